"""The exercises of the chapter "Hard Attention to the Task"."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import permuted
from ..evaluation import evaluate
from ..isolation import hat
from ..isolation.hat import HAT
from . import Hint, array, call, compare, exercise, without
from ._declared import Mistake, Words, declare

WORDS = {"a": "score", "b": "gate", "c": "temperature", "d": "mask", "e": "accumulated mask"}

SAYS = {
    "score": "A score is what the optimiser moves: any number, one for each unit and task.",
    "gate": "A gate is what a unit's activation is multiplied by while the network trains: soft, between 0 and 1.",
    "temperature": "The temperature is one number for all units. It changes from batch to batch.",
    "mask": "A mask belongs to one task, and is hard: it is what remains when the task is finished.",
    "accumulated mask": "An accumulated mask belongs to no single task: it knows what all of them use.",
}


declare(
    "hat-1",
    Words(
        'What each thing is called: a dictionary from the letters "a" to "e" to the names in the list.',
        right=WORDS,
        mistakes=[
            Mistake(f"{letter}: {name}", f"Not {name} for {letter}. {says}", {letter: name})
            for letter, right in WORDS.items()
            for name, says in SAYS.items()
            if name != right
        ],
        praise="From the score to the mask it is one number per unit and task; "
        "only the temperature between them changes.",
        what="The name for {}",
    ),
)


def _s(b: int, B: int, s_max: float) -> float:
    return 1 / s_max + (s_max - 1 / s_max) * (b - 1) / (B - 1)


@exercise("hat-2")
def temperature(answer: Any) -> str:
    """The temperature of batch b of B (b from 1) as a function of b, B and s_max: a number."""
    cases = [(1, 10, 400.0), (10, 10, 400.0), (4, 9, 50.0), (2, 5, 8.0), (3, 3, 2.0)]
    compare(
        without(hat, answer),
        lambda b, B, s_max: hat.temperature((b - 1) / (B - 1), s_max),
        cases,
        mistakes={
            "s instead of the temperature": (
                (
                    _s,
                    lambda b, B, s_max: 1 / s_max + (s_max - 1 / s_max) * (b - 1) / B,
                    lambda b, B, s_max: 1 / s_max + (s_max - 1 / s_max) * b / (B - 1),
                    lambda b, B, s_max: 1 / s_max + (s_max - 1 / s_max) * b / B,
                ),
                "You return s. The temperature is one over it.",
            ),
            "b over B": (
                (
                    lambda b, B, s_max: 1 / (1 / s_max + (s_max - 1 / s_max) * b / B),
                    lambda b, B, s_max: 1 / (s_max * b / B),
                ),
                "The last batch reaches s_max, but the first one starts too late. What has s to be at b = 1?",
            ),
            "starts at one": (
                lambda b, B, s_max: 1 / (1 + (s_max - 1) * (b - 1) / (B - 1)),
                "Your s rises from 1. It should start far softer: at 1/s_max.",
            ),
            "too far": (
                (
                    lambda b, B, s_max: 1 / (1 / s_max + s_max * (b - 1) / (B - 1)),
                    lambda b, B, s_max: 1 / (1 / s_max + (s_max + 1 / s_max) * (b - 1) / (B - 1)),
                ),
                "Your s ends above s_max. From 1/s_max to s_max, how long is the way?",
            ),
            "a bracket is missing": (
                (
                    lambda b, B, s_max: 1 / (1 / s_max + s_max - 1 / s_max * (b - 1) / (B - 1)),
                    lambda b, B, s_max: 1 / (1 / s_max + (s_max - 1 / s_max) * b - 1 / (B - 1)),
                    lambda b, B, s_max: 1 / (1 / s_max + (s_max - 1 / s_max) * (b - 1) / B - 1),
                    lambda b, B, s_max: 1 / (1 / s_max + (s_max - 1 / s_max) * b - 1 / B - 1),
                    lambda b, B, s_max: 1 / 1 / s_max + (s_max - 1 / s_max) * (b - 1) / (B - 1),
                ),
                "Look at the brackets: division and multiplication come before the minus.",
            ),
            "by a factor": (
                lambda b, B, s_max: s_max ** (1 - 2 * (b - 1) / (B - 1)),
                "Your s grows by the same factor with each batch. In the equation it grows by the same amount.",
            ),
            "counted from 0": (
                lambda b, B, s_max: 1 / (1 / s_max + (s_max - 1 / s_max) * b / (B - 1)),
                "The first batch has b = 1 and must get s = 1/s_max. Yours is one batch ahead.",
            ),
            "divided by B": (
                lambda b, B, s_max: 1 / (1 / s_max + (s_max - 1 / s_max) * (b - 1) / B),
                "The last batch must reach s_max. B batches have B - 1 steps between them.",
            ),
            "a straight line of temperatures": (
                lambda b, B, s_max: s_max + (1 / s_max - s_max) * (b - 1) / (B - 1),
                "Your temperature falls in a straight line. It is s that rises in one.",
            ),
            "turned round": (
                lambda b, B, s_max: 1 / _s(B + 1 - b, B, s_max),
                "Your gates get softer through the epoch. At which end should they be hard?",
            ),
        },
    )
    return (
        "Counted from 0, the first batch would get s = 1/s_max - (s_max - 1/s_max)/(B - 1): negative, "
        "and every gate would stand the wrong way round."
    )


@exercise("hat-3")
def bracket(answer: Any) -> str:
    """The bracket of HAT's gradient rule from mask_out, shape (n_out,), and mask_in, shape (n_in,): (n_out, n_in)."""
    cases = [(torch.rand(4), torch.rand(3)), (torch.rand(2), torch.rand(5)), (torch.ones(3), torch.rand(3).round())]

    def outer(out: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
        return out[:, None], into[None, :]

    compare(
        without(hat, answer),
        hat.protect_weight,
        cases,
        mistakes={
            "maximum": (
                lambda out, into: 1 - torch.maximum(*outer(out, into)),
                "You lock a weight as soon as one of its two units is claimed. Whom would a weight harm that leads "
                "into a free unit?",
            ),
            "not subtracted from 1": (
                lambda out, into: torch.minimum(*outer(out, into)),
                "Yours is 1 where both units are claimed. The bracket scales the gradient: what should it be there?",
            ),
            "product": (
                lambda out, into: 1 - outer(out, into)[0] * outer(out, into)[1],
                "For masks of 0 and 1 a product is right. For soft ones the paper takes the minimum, which is larger.",
            ),
            "the input mask alone": (
                lambda out, into: (1 - into[None, :]).expand(len(out), len(into)),
                "You look at the unit below alone. The unit above decides as well.",
            ),
            "the output mask alone": (
                lambda out, into: (1 - out[:, None]).expand(len(out), len(into)),
                "That is the rule for the first layer and for biases. Here the unit below counts too.",
            ),
        },
    )
    return "A weight from a free unit into a claimed one may move: the claimed unit's task never opens that free unit."


@exercise("hat-4")
def spread(answer: Any) -> str:
    """A channel mask, shape (C,), repeated for the n_in inputs behind a flatten: a function of mask, n_in: (n_in,)."""
    cases = [(torch.rand(3), 12), (torch.rand(5), 20), (torch.rand(4), 4), (torch.rand(2), 18)]
    compare(
        answer,
        lambda mask, n_in: mask.repeat_interleave(n_in // len(mask)),
        cases,
        mistakes={
            "repeated as a whole": (
                lambda mask, n_in: mask.repeat(n_in // len(mask)),
                "You repeat the whole mask: channel 0, 1, 2, 0, 1, 2 ... In which order does nn.Flatten lay out a map?",
            ),
            "padded": (
                lambda mask, n_in: torch.cat([mask, torch.zeros(n_in - len(mask))]),
                "Only the first C inputs get a mask. Each channel has as many inputs as its map has positions.",
            ),
        },
    )
    return "The positions of one channel are neighbours."


@exercise("hat-5")
def compensated(answer: Any) -> str:
    """The compensated gradient of a score from g (of its gate), e and s_max, without s: a tensor of the shape of e."""
    cases = [(torch.randn(6), torch.randn(6), s_max) for s_max in (400.0, 7.0)]

    def slope(x: Tensor) -> Tensor:
        return torch.sigmoid(x) * (1 - torch.sigmoid(x))

    compare(
        answer,
        lambda g, e, s_max: g * s_max * slope(e),
        cases,
        mistakes={
            "s_max left out": (
                lambda g, e, s_max: g * slope(e),
                "The slope is right. One factor is still missing, and it does not depend on e.",
            ),
            "the slope at s_max": (
                lambda g, e, s_max: g * s_max * slope(s_max * e),
                "That is the gradient at s = s_max without any compensation. What becomes of cosh(s e) + 1?",
            ),
            "twice": (
                lambda g, e, s_max: 2 * g * s_max * slope(e),
                "Twice what it should be: 1/(cosh x + 1) is two times the slope of the sigmoid, not the slope.",
            ),
        },
    )
    return "Whatever the temperature, a score feels the slope of a soft sigmoid: that is what compensation is for."


def _used(masks: Tensor, by: int) -> list[int]:
    """How many units at least so many tasks use, and how many none does."""
    return [int((masks.sum(0) >= by).sum()), int((masks.sum(0) == 0).sum())]


@exercise("hat-6")
def count(answer: Any) -> str:
    """Units that the last task claimed anew, units used by two tasks or more, free units, from masks (tasks, units)."""
    cases = [(torch.rand(n, 12) < 0.35,) for n in (2, 3, 4, 5)]

    def of(masks: Tensor, new: Tensor) -> list[int]:
        users = masks.sum(0)
        return [int(new.sum()), int((users > 1).sum()), int((users == 0).sum())]

    def shown(masks: Tensor) -> Any:
        return array(call(answer, masks), (3,), "What your function returns")

    compare(
        shown if callable(answer) else answer,
        lambda masks: of(masks, masks[-1] & ~masks[:-1].any(0)),
        cases,
        mistakes={
            "all that the last task uses": (
                lambda masks: of(masks, masks[-1]),
                "Your first number counts every unit that the last task uses. Some were claimed before it.",
            ),
            "the wrong order": (
                lambda masks: [of(masks, masks[-1] & ~masks[:-1].any(0))[i] for i in (0, 2, 1)],
                "The right numbers, the last two of them the wrong way round: first shared, then free.",
            ),
            "the task before": (
                lambda masks: of(masks, masks[-1] & ~masks[-2]),
                "Your first number compares with one task. All tasks before the last may have claimed a unit.",
            ),
            "used by any": (
                lambda masks: [of(masks, masks[-1] & ~masks[:-1].any(0))[0], *_used(masks, 1)],
                "Your second number counts every unit that is used. A shared one has two users.",
            ),
            "used by all": (
                lambda masks: [of(masks, masks[-1] & ~masks[:-1].any(0))[0], *_used(masks, len(masks))],
                "Your second number asks for units that all tasks use. Two users are enough.",
            ),
            "free before the last": (
                lambda masks: [*of(masks, masks[-1] & ~masks[:-1].any(0))[:2], int((~masks[:-1].any(0)).sum())],
                "Your third number is what was free before the last task. What is free after it?",
            ),
            "shares": (
                lambda masks: [n / masks.shape[1] for n in of(masks, masks[-1] & ~masks[:-1].any(0))],
                "You return shares. Numbers of units are asked for.",
            ),
            "exactly two": (
                lambda masks: [
                    int((masks[-1] & ~masks[:-1].any(0)).sum()),
                    int((masks.sum(0) == 2).sum()),
                    int((masks.sum(0) == 0).sum()),
                ],
                "Your second number leaves out units that three tasks share.",
            ),
            "free for the last task": (
                lambda masks: [*of(masks, masks[-1] & ~masks[:-1].any(0))[:2], int((~masks[-1]).sum())],
                "Your third number counts units that the last task leaves alone. Others may have claimed them.",
            ),
        },
    )
    return "What is shared was claimed once and paid for once."


@exercise("hat-7")
def gate(answer: Any) -> str:
    """A gate that cannot leak: a function of h, shape (batch, units), and a bool mask, shape (units,): like h."""
    for _ in range(4):
        h, mask = torch.randn(3, 8), torch.rand(8) < 0.5
        mask[:2] = torch.tensor([True, False])
        clean = torch.where(mask, h, 0.0)
        result = array(call(answer, h.clone(), mask.clone()), (3, 8), "What your gate returns")
        if not torch.allclose(torch.as_tensor(result).float(), clean):
            if torch.allclose(torch.as_tensor(result).float(), h - clean):
                raise Hint("Your gate is open where the mask is False.", mistake="turned round")
            raise Hint("With ordinary numbers it should be h where the mask is True, and 0 elsewhere.")
        for bad in (math.nan, math.inf):
            h[:, ~mask] = bad
            try:
                result = array(call(answer, h.clone(), mask.clone()), (3, 8), "What your gate returns")
            except Hint as hint:
                raise Hint(
                    "With NaN or infinity in a closed unit, the result is not finite. Zero times NaN is NaN, and so "
                    "is zero times infinity: do not multiply, choose.",
                    mistake="it multiplies",
                ) from hint
            if not torch.allclose(torch.as_tensor(result).float(), clean):
                raise Hint("With NaN or infinity in a closed unit the result changes.", mistake="it leaks")
        h = clean.clone()
        h[0, 0] = math.nan
        result = call(answer, h, mask.clone())
        if not bool(torch.isnan(torch.as_tensor(result)[0, 0])):
            raise Hint(
                "The closed units are safe. But a NaN in an open unit is this task's own trouble, and your gate hides "
                "it: what is open should pass as it is.",
                mistake="it hides NaN",
            )
    return "It chooses instead of multiplying."


@exercise("hat-8")
def compress(answer: Any) -> str:
    """A function of a stream that returns a minicl.HAT trained on its first task, with at most half of its units."""
    stream = permuted("digits", 2, seed=7)
    learner = call(answer, stream)
    if not isinstance(learner, HAT):
        raise Hint(f"Your function returns a {type(learner).__name__}; it should return the minicl.HAT.", "no HAT")
    if stream[0].id not in learner.learned:
        raise Hint("The learner has not learned the first task of the stream.", mistake="not trained")
    if len(learner.learned) > 1:
        raise Hint(
            "The learner has learned the other tasks of the stream as well. Only the first is to be compressed.",
            mistake="all tasks",
        )
    layers = learner.capacity()["layers"].values()
    used = sum(layer["claimed"][stream[0].id] for layer in layers) / sum(layer["units"] for layer in layers)
    right = evaluate(learner, stream[0], "valid")
    if right < 0.8:
        raise Hint(
            f"It uses {used:.0%} of its units, but is right on only {right:.0%} of the validation pictures. "
            "Is the price too high, or the training too short?",
            mistake="too small",
        )
    if used > 0.5:
        raise Hint(f"It is right on {right:.0%}, but uses {used:.0%} of its units. Raise c.", mistake="too large")
    return f"It uses {used:.0%} of its units and is right on {right:.0%} of the validation pictures."
