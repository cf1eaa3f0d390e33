"""The exercises of the chapter "All methods side by side"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import tensors
from . import Hint, call, compare, exercise, without
from ._declared import Mistake, Words, declare

MEASURED = [
    *("finetune", "feature-extraction", "individual", "joint", "ewc", "si", "mas", "lwf", "vcl", "agscl"),
    *("er", "agem", "gem", "derpp", "pnn", "hat", "packnet"),
]
"""The methods of the chapter's table."""

NEEDS = {
    "exact and small": (
        frozenset({"packnet", "hat"}),
        "Which methods promise that no bit changes, in a network that does not grow?",
    ),
    "exact and endless": (
        frozenset({"pnn", "individual"}),
        "A network of fixed size is full one day. Which methods have none?",
    ),
    "no id": (
        frozenset({"er", "derpp", "gem"}),
        "Isolation must be told the task id, and springs did not help in Class-IL. What did?",
    ),
}


declare(
    "comparison-1",
    Words(
        'A dictionary from "exact and small", "exact and endless", "no id" to the name of a method each.',
        right={need: right for need, (right, _) in NEEDS.items()},
        mistakes=[
            Mistake(
                "features alone",
                "A network whose features stand still forgets nothing, that is true. But how little does it learn?",
                [{need: "feature-extraction"} for need in NEEDS if need != "no id"],
            ),
            *(Mistake(f"{need} wrong", hint, {need: None}) for need, (_, hint) in NEEDS.items() if need != "no id"),
            Mistake(
                "a fence is not enough",
                "A-GEM keeps pictures too, but as a fence, not to learn from. How far did it get in Class-IL?",
                {"no id": "agem"},
            ),
            Mistake("no id wrong", NEEDS["no id"][1], {"no id": None}),
        ],
        praise="There is no best method, only a best one for a need: the three answers differ.",
        allowed=MEASURED,
        what="Your answer to '{}'",
        holds=f"a method for each of {', '.join(map(repr, NEEDS))}",
    ),
)


def _values(n: int) -> np.ndarray:
    return torch.rand(n, dtype=torch.float64).numpy()


def _error_of(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


@exercise("comparison-2")
def lower_end(answer: Any) -> str:
    """A function of a and b, shape (n,), one entry a seed, and t: the lower end of the interval of a - b, in pairs."""
    cases = []
    for n, t in ((3, 4.303), (5, 2.776), (10, 2.262)):
        of_seed = _values(n)
        cases.append((of_seed + 0.2 * _values(n), of_seed + 0.1 * _values(n), t))
    compare(
        answer,
        lambda a, b, t: float((a - b).mean()) - t * _error_of(a - b),
        cases=cases,
        mistakes={
            "not paired": (
                (
                    lambda a, b, t: float(a.mean() - b.mean()) - t * float(np.hypot(_error_of(a), _error_of(b))),
                    lambda a, b, t: float(a.mean() - b.mean()) - t * (_error_of(a) + _error_of(b)),
                ),
                "You take the spread of each method by itself, and what a seed does to both is in there twice. Take "
                "the differences first.",
            ),
            "ends taken off": (
                lambda a, b, t: float(a.mean() - b.mean()) - t * (_error_of(a) - _error_of(b)),
                "You take one lower end off the other. The interval of a difference has an end of its own.",
            ),
            "the upper end": (
                lambda a, b, t: float((a - b).mean()) + t * _error_of(a - b),
                "That is the upper end. Which one must lie above zero?",
            ),
            "no interval": (
                lambda a, b, t: float((a - b).mean()),
                "That is the mean difference. How far down does its interval go?",
            ),
            "the half width": (
                lambda a, b, t: t * _error_of(a - b),
                "That is half of the width. From what is it taken off?",
            ),
            "the other way round": (
                lambda a, b, t: float((b - a).mean()) - t * _error_of(a - b),
                "You ask whether b is ahead of a.",
            ),
            "divided by n": (
                lambda a, b, t: float((a - b).mean()) - t * float((a - b).std()) / float(np.sqrt(len(a))),
                "NumPy's std divides by n. One of the n differences is given by the others, as they add up to zero.",
            ),
            "spread of the values": (
                lambda a, b, t: float((a - b).mean()) - t * float((a - b).std(ddof=1)),
                "That is about one run. The mean of n runs is surer than one of them.",
            ),
        },
    )
    return "Where it is above zero, a is ahead: minicl.claims.above asks for nothing else."


@exercise("comparison-3")
def still_free(answer: Any) -> str:
    """A function of p, T: the share that is free after T tasks which each keep the share p of what is free."""
    cases = [(0.5, 1), (0.5, 3), (0.1, 10), (0.25, 20)]
    compare(
        answer,
        lambda p, T: (1 - p) ** T,
        cases=cases,
        mistakes={
            "share of the whole": (
                (lambda p, T: max(0.0, 1 - p * T), lambda p, T: 1 - p * T),
                "Each task takes a share of what is *free*, not of the whole network.",
            ),
            "what is used": (lambda p, T: 1 - (1 - p) ** T, "That is what is used. How much is left?"),
            "p for 1 - p": (
                (lambda p, T: p**T, lambda p, T: 1 - p**T),
                "After the first task 1 - p is free, not p.",
            ),
            "what the last one got": (
                lambda p, T: p * (1 - p) ** (T - 1),
                "That is the share that the last task got. What is left after it?",
            ),
            "what the next one gets": (
                lambda p, T: p * (1 - p) ** T,
                "That is the share that one more task would get. All that is free is asked for.",
            ),
            "an exponential": (
                lambda p, T: np.exp(-p * T),
                "That is right for shares near zero. Tasks come one by one: what is left after a single one?",
            ),
            "one task too few": (lambda p, T: (1 - p) ** (T - 1), "That is what the last of the T tasks found."),
            "one task too many": (lambda p, T: (1 - p) ** (T + 1), "T tasks have taken their share, not T + 1."),
            "times": (
                (lambda p, T: (1 - p) * T, lambda p, T: (1 - p) / T, lambda p, T: 1 - p),
                "What is free after two tasks is 1 - p of 1 - p. How does it go on?",
            ),
        },
    )
    return "It never reaches zero, and that is no comfort: the twentieth task gets a share of nearly nothing."


@exercise("comparison-4")
def unchanged(answer: Any) -> str:
    """A function of logits then and now, arrays of shape (n, classes): True only where every bit is the same."""
    then = torch.randn(6, 3).numpy()
    nudged = then.copy()
    nudged[4, 1] = np.nextafter(nudged[4, 1], np.float32(9))
    doubled = then * 2  # other logits, the same winners
    zeros, lost = then.copy(), then.copy()
    zeros[2, 0], lost[5, 2] = 0.0, np.nan
    minus = zeros.copy()
    minus[2, 0] = -0.0
    long = torch.randn(800, 3).numpy()  # NumPy prints its two ends alone
    changed = long.copy()
    changed[400, 1] += 1
    for was, now, hint, mistake in (
        (then, then.copy(), "Nothing has changed there, and your function says otherwise.", "never true"),
        (then, doubled, "The same classes win, but the logits are others.", "same winners"),
        (then, nudged, "One number has moved by its last bit. Rounding counts.", "close enough"),
        (then, then[:5], "A row is missing there.", "shorter"),
        (long, changed, "One number of many has changed. Of a long array, only its ends are printed.", "printed"),
        (zeros, minus, "A zero has become minus zero. They are equal, but not bit for bit.", "equal numbers"),
        (lost, lost.copy(), "No bit has changed, but NaN is not equal to itself.", "NaN"),
    ):
        said = call(without(tensors, answer), was, now)
        if isinstance(said, torch.Tensor) and said.ndim == 0:
            said = said.item()
        if not isinstance(said, (bool, np.bool_)):
            shape = getattr(said, "shape", ())
            raise Hint(
                "Your function should return True or False; it returns "
                + (f"an array of shape {tuple(shape)}. When is the whole of it the same?" if shape else f"{said!r}."),
                mistake="no single answer",
            )
        if bool(said) is not tensors.same_bits(was, now):
            raise Hint(hint, mistake=mistake)
    return "minicl keeps a digest of those bytes: twenty of them, however many logits there are."


def _undominated(stored: np.ndarray, acc: np.ndarray) -> np.ndarray:
    n = range(len(acc))
    kept = [
        i
        for i in n
        if not any(
            stored[j] <= stored[i] and acc[j] >= acc[i] and (stored[j] < stored[i] or acc[j] > acc[i]) for j in n
        )
    ]
    return np.array(kept)


def _marked(indices: Any, n: int) -> np.ndarray:
    """1 for those among n that are listed, 0 for the others."""
    found = np.asarray(indices)
    if found.dtype == bool:
        raise Hint(
            "Your function returns True and False. Their indices are asked for: np.flatnonzero makes them.",
            mistake="a mask",
        )
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= n:
        raise Hint(
            f"Your function should return a list of indices, from 0 to {n - 1}, at least one; it gave {indices!r}."
        )
    if (np.diff(found) <= 0).any():
        raise Hint(f"The indices should rise, each listed once; yours are {found.tolist()}.", mistake="not rising")
    return np.isin(np.arange(n), found).astype(np.float64)


@exercise("comparison-5")
def undominated(answer: Any) -> str:
    """A function of bytes and acc, arrays with an entry a method: indices, in rising order, of the undominated ones."""
    cases = [
        (np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.9, 0.8])),
        (np.array([2.0, 2.0, 1.0, 2.0]), np.array([0.7, 0.7, 0.3, 0.6])),
        *((torch.randint(1, 9, (9,)).double().numpy(), torch.randint(1, 9, (9,)).double().numpy()) for _ in range(4)),
    ]

    def left(beats: Callable[[float, float, float, float], bool]) -> Callable[..., np.ndarray]:
        """Who is left where one method beats another so, by its bytes and accuracy and those of the other."""
        return lambda stored, acc: np.array(
            [
                float(not any(j != i and beats(stored[j], acc[j], stored[i], acc[i]) for j in range(len(acc))))
                for i in range(len(acc))
            ]
        )

    def one_of_each(stored: np.ndarray, acc: np.ndarray) -> np.ndarray:
        kept = _undominated(stored, acc)
        pairs = list(zip(stored[kept], acc[kept], strict=True))
        return _marked([int(i) for k, i in enumerate(kept) if pairs.index(pairs[k]) == k], len(acc))

    def marked(stored: np.ndarray, acc: np.ndarray) -> np.ndarray:
        return _marked(call(answer, stored, acc), len(acc))

    compare(
        marked if callable(answer) else answer,
        lambda stored, acc: _marked(_undominated(stored, acc), len(acc)),
        cases=cases,
        mistakes={
            "better in both": (
                left(lambda fewer, better, stored, acc: fewer < stored and better > acc),
                "A method with the same bytes and a higher accuracy dominates, too: better in one is enough.",
            ),
            "more accurate alone": (
                left(lambda fewer, better, stored, acc: fewer <= stored and better > acc),
                "A method with the same accuracy and fewer bytes dominates, too.",
            ),
            "smaller alone": (
                left(lambda fewer, better, stored, acc: fewer < stored and better >= acc),
                "Of two methods with the same bytes, the more accurate one dominates the other.",
            ),
            "twins beat each other": (
                left(lambda fewer, better, stored, acc: fewer <= stored and better >= acc),
                "Two methods that are equal in both: neither is better in anything, so both stay.",
            ),
            "one of two twins": (
                one_of_each,
                "Of two methods that are equal in both you keep the first alone. Which of them is better in anything?",
            ),
            "more is better": (
                left(
                    lambda more, better, stored, acc: (
                        more >= stored and better >= acc and (more, better) != (stored, acc)
                    )
                ),
                "With yours, more bytes are an advantage. They are what is paid.",
            ),
            "the dominated ones": (
                lambda stored, acc: 1 - _marked(_undominated(stored, acc), len(acc)),
                "These are the ones that are dominated. Who is left?",
            ),
            "the best alone": (
                lambda stored, acc: _marked([int(np.lexsort((stored, -acc))[0])], len(acc)),
                "You keep the most accurate alone. One that is worse, but smaller, is dominated by nobody.",
            ),
        },
    )
    return "What is left is called a Pareto front: the only methods between which a choice is a matter of taste."
