"""The exercises of the chapter "PackNet"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..isolation import packnet
from ..isolation.packnet import keep_mask, used_by
from . import compare, exercise, one_of, without
from ._declared import Mistake, Numbers, Where, Words, declare, is_clear, one_number, vary

STEPS = ["train", "prune", "re-train", "freeze"]


def _before(earlier: str, later: str) -> list[Where]:
    """All places at which one word stands before another."""
    return [{str(i): earlier, str(j): later} for i, j in combinations(range(1, 5), 2)]


declare(
    "packnet-1",
    Words(
        'What happens with each task, in order: a list of "freeze", "prune", "re-train" and "train".',
        right={str(i): step for i, step in enumerate(STEPS, 1)},
        mistakes=[
            Mistake(
                "a step twice",
                "Each of the four happens once for each task.",
                [where for step in STEPS for where in _before(step, step)],
            ),
            Mistake(
                "pruned before trained",
                "What is pruned before training? Sizes say nothing yet.",
                _before("prune", "train"),
            ),
            Mistake(
                "frozen too early",
                "What is frozen cannot be trained again. What do the weights that stay need after others have been "
                "taken from them?",
                _before("freeze", "re-train"),
            ),
            Mistake(
                "re-trained before pruned",
                "Re-training repairs something. What has to happen first?",
                _before("re-train", "prune"),
            ),
        ],
        praise="The weights that pruning released are free: the next task trains them, and reads all that is frozen.",
        what="Word {}",
        holds=f"the four words {', '.join(map(repr, sorted(STEPS)))}, in order",
        in_order=True,
    ),
)


def _most(weight: Tensor, keep_ratio: float, among: Tensor) -> Tensor:
    """A wrong mask: the share is taken of the whole layer."""
    return _largest(weight, round(keep_ratio * weight.numel()), among) & among


def _kept(keep_ratio: float, among: Tensor) -> int:
    n = int(among.sum())
    return n - round((1 - keep_ratio) * n)


def _largest(weight: Tensor, n: int, among: Tensor, size: Tensor | None = None) -> Tensor:
    """A mask of the n largest weights in `among`; by size, or by what is given as one."""
    size = (torch.where(among, weight.abs(), -1.0) if size is None else size).flatten()
    kept = torch.zeros_like(size, dtype=torch.bool)
    kept[size.argsort(descending=True)[:n]] = True
    return kept.view_as(among)


def _of_all(weight: Tensor, n: int) -> Tensor:
    return _largest(weight, n, torch.ones_like(weight, dtype=torch.bool))


def _cut(size: Tensor, n: int) -> float:
    """The n-th smallest, which is the largest that is released."""
    return float(size.sort().values[n - 1]) if n else float("-inf")


def _released(keep_ratio: float, sizes: Tensor) -> int:
    return round((1 - keep_ratio) * len(sizes))


@exercise("packnet-2")
def mask(answer: Any) -> str:
    """Which weights a task keeps: a function of weight, keep_ratio and among, returning a mask of True and False."""
    cases = []
    for rows, columns, share in ((4, 5, 0.5), (3, 6, 0.25), (8, 8, 0.1), (5, 4, 1.0), (6, 7, 0.7)):
        cases.append((torch.randn(rows, columns), share, torch.rand(rows, columns) < 0.7))
    cases.append((torch.randn(2, 3), 0.5, torch.tensor([[True, True, True], [True, True, False]])))  # two and a half
    compare(
        without(packnet, answer),
        keep_mask,
        cases,
        mistakes={
            "the smallest": (
                lambda weight, keep_ratio, among: (
                    among & ~keep_mask(weight, 1 - keep_ratio, among) if keep_ratio < 1 else among
                ),
                "You keep the smallest weights and release the largest.",
            ),
            "without the sign": (
                (
                    lambda weight, keep_ratio, among: keep_mask(weight - weight.min() + 1, keep_ratio, among),
                    lambda weight, keep_ratio, among: _largest(
                        weight, _kept(keep_ratio, among), among, torch.where(among, weight, -1.0)
                    ),
                    lambda weight, keep_ratio, among: _largest(
                        weight, _kept(keep_ratio, among), among, torch.where(among, weight, 0.0)
                    ),
                    lambda weight, keep_ratio, among: keep_mask(weight - weight.min() + 1, keep_ratio),
                    lambda weight, keep_ratio, among: keep_mask(weight - weight.min() + 1, keep_ratio) & among,
                    lambda weight, keep_ratio, among: among & (weight >= weight[among].quantile(1 - keep_ratio)),
                    lambda weight, keep_ratio, among: among & (weight > weight[among].quantile(1 - keep_ratio)),
                ),
                "A weight of -3 matters as much as one of 3. Look at what you sort by.",
            ),
            "everything is in question": (
                (
                    lambda weight, keep_ratio, among: keep_mask(weight, keep_ratio),
                    lambda weight, keep_ratio, among: _of_all(weight, round(keep_ratio * weight.numel())),
                    lambda weight, keep_ratio, among: _of_all(weight, int(keep_ratio * weight.numel())),
                    lambda weight, keep_ratio, among: _of_all(weight, _kept(keep_ratio, among)),
                    lambda weight, keep_ratio, among: (
                        weight.abs() > _cut(weight[among].abs(), _released(keep_ratio, weight[among]))
                    ),
                ),
                "Weights outside `among` belong to earlier tasks, and yours claims some of them.",
            ),
            "masked too late": (
                (
                    lambda weight, keep_ratio, among: keep_mask(weight, keep_ratio) & among,
                    lambda weight, keep_ratio, among: among & (weight.abs() >= weight.abs().quantile(1 - keep_ratio)),
                    lambda weight, keep_ratio, among: among & (weight.abs() > weight.abs().quantile(1 - keep_ratio)),
                ),
                "You choose among all weights and drop others afterwards. The cutoff must come from `among` alone.",
            ),
            "share of the layer": (
                _most,
                "You keep a share of the whole layer. The share is of the weights in `among`.",
            ),
            "what is kept is rounded": (
                (
                    lambda weight, keep_ratio, among: _largest(weight, round(keep_ratio * int(among.sum())), among),
                    lambda weight, keep_ratio, among: _largest(weight, int(keep_ratio * int(among.sum())), among),
                ),
                "Nearly. Round the number that is released, not the number that is kept: a half goes to the even side.",
            ),
            "rounded down": (
                lambda weight, keep_ratio, among: _largest(
                    weight, int(among.sum()) - int((1 - keep_ratio) * int(among.sum())), among
                ),
                "Nearly. The number that is released is rounded to the nearest one; yours is cut off.",
            ),
            "one too many": (
                lambda weight, keep_ratio, among: (
                    among & (weight.abs() >= _cut(weight[among].abs(), _released(keep_ratio, weight[among])))
                ),
                "Nearly. The weight at your cutoff is the last that is released; yours keeps it.",
            ),
            "a quantile": (
                (
                    lambda weight, keep_ratio, among: (
                        among & (weight.abs() >= weight[among].abs().quantile(1 - keep_ratio))
                    ),
                    lambda weight, keep_ratio, among: (
                        among & (weight.abs() > weight[among].abs().quantile(1 - keep_ratio))
                    ),
                ),
                "Nearly. A quantile may fall between two weights, and does not round as the exercise does: count how "
                "many are released.",
            ),
            "what is released": (
                (
                    lambda weight, keep_ratio, among: ~keep_mask(weight, keep_ratio, among),
                    lambda weight, keep_ratio, among: among & ~keep_mask(weight, keep_ratio, among),
                ),
                "Your mask is True where a weight is released. It should be True where one is kept.",
            ),
            "the weights": (
                lambda weight, keep_ratio, among: weight * keep_mask(weight, keep_ratio, among),
                "You return weights. The mask itself is asked for: True and False.",
            ),
            "the other share": (
                lambda weight, keep_ratio, among: (
                    keep_mask(weight, 1 - keep_ratio, among) if keep_ratio < 1 else among & False
                ),
                "That is the share to release. `keep_ratio` is the share to keep.",
            ),
        },
    )
    return (
        "Sorting by size is all that PackNet knows about importance. It is enough, because the rest is trained again."
    )


@exercise("packnet-3")
def network_of(answer: Any) -> str:
    """The weights that compute for the k-th task: a function of theta, owner and k."""
    cases = []
    for tasks in (1, 2, 4, 5):
        theta, owner = torch.randn(6, 7), torch.randint(tasks + 1, (6, 7), dtype=torch.uint8)
        cases += [(theta, owner, k) for k in range(1, tasks + 1)]
    compare(
        answer,
        lambda theta, owner, k: torch.where(used_by(owner, k), theta, 0),
        cases,
        mistakes={
            "its own alone": (
                lambda theta, owner, k: theta * (owner == k),
                "That is what the task owns. What may it read?",
            ),
            "free ones too": (
                lambda theta, owner, k: theta * (owner <= k),
                "The free weights have owner 0. Are they switched on for any task that is finished?",
            ),
            "no mask": (
                lambda theta, owner, k: theta,
                "That is the whole network. For an old task, the weights of later tasks are a disturbance.",
            ),
            "all owned": (
                lambda theta, owner, k: theta * (owner > 0),
                "The free weights are off, but the weights of later tasks are still on.",
            ),
            "only earlier ones": (
                lambda theta, owner, k: theta * ((owner > 0) & (owner < k)),
                "The task's own weights are missing.",
            ),
            "one task too many": (
                lambda theta, owner, k: theta * ((owner > 0) & (owner <= k + 1)),
                "Owners are counted from 1, and so is k: yours lets the task after it compute as well.",
            ),
            "later ones": (
                lambda theta, owner, k: theta * (owner > k),
                "These are the weights of the tasks after it: exactly those that must be off.",
            ),
            "the source's formula": (
                lambda theta, owner, k: theta * (owner == 0),
                "That is theta * (1 - m): what may still move, not what computes.",
            ),
        },
    )
    return (
        "Later tasks may read everything before them, so this is the only line of PackNet that has a direction in time."
    )


def _left(n: int, shares: list[float], released: Callable[[float, int], int]) -> int:
    for share in shares:
        n = released(share, n)
    return n


@exercise("packnet-4")
def free_after(answer: Any) -> str:
    """How many of n weights are free after some tasks: a function of n and of the list of their shares to keep."""

    def right(n: int, shares: list[float]) -> int:
        return _left(n, shares, lambda share, n: round((1 - share) * n))

    def of_all(n: int, shares: list[float]) -> float:
        return n - sum(share * n for share in shares)

    compare(
        answer,
        lambda n, shares: float(right(n, shares)),
        cases=[
            (1000, [0.5, 0.25]),
            (999, [0.5, 0.5, 0.5]),
            (64, []),
            (200, [0.1] * 5),
            (10, [1.0]),
            (7, [0.5]),
            (77, [0.3, 0.7]),
        ],
        mistakes={
            "what is kept": (
                lambda n, shares: float(n - right(n, shares)),
                "That is how many are taken. How many are left?",
            ),
            "share of all weights": (
                of_all,
                "Each share is of what was free when the task arrived, not of all weights.",
            ),
            "fractions of weights": (
                lambda n, shares: n * float(torch.tensor([1.0, *(1 - s for s in shares)], dtype=torch.float64).prod()),
                "Close. There are no fractions of weights: each task rounds the number that it releases.",
            ),
            "what is kept is rounded": (
                lambda n, shares: float(_left(n, shares, lambda share, n: n - round(share * n))),
                "Nearly. Round the number that is released, not the number that is kept.",
            ),
            "rounded down": (
                lambda n, shares: float(_left(n, shares, lambda share, n: int((1 - share) * n))),
                "Nearly. The number that is released is rounded to the nearest one; yours is cut off.",
            ),
            "the shares are released": (
                lambda n, shares: float(right(n, [1 - s for s in shares])),
                "You release the share that is to be kept.",
            ),
        },
        tolerance=1e-9,
    )
    return "A constant share gives each task a constant fraction less than the one before: room shrinks geometrically."


@exercise("packnet-5")
def equal_shares(answer: Any) -> str:
    """Shares to keep that give each of T tasks the same number of weights: a function of T, returning a list."""
    compare(
        answer,
        lambda T: [1 / (T - k) for k in range(T)],
        cases=[(T,) for T in (1, 2, 3, 5, 10)],
        mistakes={
            "the same share": (
                lambda T: [1 / T] * T,
                "The same share of ever less: with your list, who gets more, the first task or the last?",
            ),
            "the wrong way round": (
                lambda T: [1 / (k + 1) for k in range(T)],
                "The right numbers in the wrong order: your first task keeps everything.",
            ),
            "all to the last": (
                lambda T: [1.0] * T,
                "The first task then keeps everything, and the second finds no free weight.",
            ),
        },
    )
    return "The last share is 1: when nobody comes afterwards, there is nothing to leave."


@exercise("packnet-6")
def bytes_for_owners(answer: Any) -> str:
    """Bytes that say whose each weight is, in a file: a function of the number of weights and of tasks."""
    from math import ceil, log2

    def right(weights: int, tasks: int) -> int:
        return ceil(weights * ceil(log2(tasks + 1)) / 8)

    compare(
        answer,
        lambda weights, tasks: float(right(weights, tasks)),
        cases=[(8000, 1), (8000, 3), (8000, 4), (4096, 10), (1000, 15), (1000, 16), (800, 255), (11, 2)],
        mistakes={
            "a bit for each task": (
                lambda weights, tasks: float(ceil(weights * tasks / 8)),
                "One bit for each task and weight is more than needed: a weight has only one owner.",
            ),
            "bits": (
                lambda weights, tasks: float(weights * ceil(log2(tasks + 1))),
                "That is the number of bits.",
            ),
            "rounded down": (
                lambda weights, tasks: float(weights * ceil(log2(tasks + 1)) // 8),
                "The bits that are left over take a byte as well: round up.",
            ),
            "nobody": (
                lambda weights, tasks: float(ceil(weights * ceil(log2(tasks)) / 8)) if tasks > 1 else 0.0,
                "How many values can an owner take? A weight may also be free.",
            ),
            "a byte for each weight": (
                lambda weights, tasks: float(weights),
                "That is what it takes in memory. In the file, as many bits as the number of tasks needs are enough.",
            ),
            "not rounded": (
                lambda weights, tasks: weights * log2(tasks + 1) / 8,
                "There are no fractions of bits: an owner among three values takes two.",
            ),
        },
        tolerance=1e-9,
    )
    return "For ten tasks: an eighth of what the weights take, in float32."


@dataclass(frozen=True)
class Story:
    """A weight whose gradient is masked, and an optimiser that goes on."""

    weight: float = 2.0
    velocity: float = 0.5
    lr: float = 0.5
    momentum: float = 0.9
    decay: float = 0.1

    def after(self, steps: int, pulled: bool = False, **changed: float) -> float:
        """Where the weight is, if decay pulls at it as it is; or, `pulled`, as it was at the start."""
        story = replace(self, **changed)
        weight, velocity = story.weight, story.velocity
        for _ in range(steps):
            velocity = story.momentum * velocity + story.decay * (story.weight if pulled else weight)
            weight -= story.lr * velocity
        return weight


def _drift(story: Story) -> Numbers:
    return one_number(
        "A frozen weight after the steps of the story, if only its gradient is masked: a number, to three decimals.",
        story.after(2),
        mistakes={
            "does not move": (story.weight, "A gradient of zero is not a step of zero. Write out what SGD does."),
            "no momentum": (
                story.after(2, velocity=0.0),
                "You let weight decay pull, but the velocity that is left from the task before pushes too.",
            ),
            "no decay": (
                story.after(2, decay=0.0),
                "You let the old velocity push, but weight decay pulls as well: it joins the gradient of zero.",
            ),
            "one step": (story.after(1), "That is after one step. Two are taken."),
            "decay of the old weight": (
                story.after(2, pulled=True),
                "Near, but not there. Weight decay pulls at the weight as it is now, not as it was at the start.",
            ),
            "uphill": (
                2 * story.weight - story.after(2),
                "The way is as long as it should be, but a step goes against the velocity.",
            ),
        },
        praise="So PackNet does not trust the gradient: it clears the optimiser's memory, or puts the weight back.",
        tolerance=4e-4,  # three decimals
        step="Write down velocity and weight after each of the two steps, and round the last number alone.",
    )


declare("packnet-7", _drift(Story()))


@vary("packnet-7")
def _a_story() -> tuple[str, Numbers]:
    while True:
        weight, velocity = one_of(1.0, 2.0, 3.0), one_of(-1.0, 0.5, 1.0)
        story = Story(weight, velocity, lr=one_of(0.2, 0.5), momentum=one_of(0.5, 0.8), decay=one_of(0.1, 0.2))
        if is_clear(_drift(story)):
            break
    text = (
        f"A weight of {story.weight} belongs to task 1. SGD goes on to task 2: lr={story.lr}, "
        f"momentum={story.momentum}, weight_decay={story.decay}, and the velocity that is left over from task 1 is "
        f"{story.velocity}. The weight's gradient is masked, so it is zero; nothing else is done for it. Where is the "
        "weight after two steps, to three decimals?"
    )
    return text, _drift(story)
