"""The exercises of the chapter "Measuring forgetting"."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import metrics
from . import Hint, call, close, compare, exercise, number, without
from ._declared import Case, Is, Numbers, Row, declare, entries, is_clear, linear, one_number, vary

Array = NDArray[np.float64]

BY_HAND = np.array([[0.9, 0.2, 0.3], [0.95, 0.8, 0.4], [0.6, 0.7, 0.9]])
"""The matrix of the first exercise. It stands on the page too."""


def _matrices(n: int = 6) -> list[tuple[Array]]:
    """Random accuracy matrices of two to six tasks."""
    sizes = torch.randint(2, 7, (n,)).tolist()
    return [(torch.rand(size, size, dtype=torch.float64).numpy(),) for size in sizes]


def _by_hand(R: Array) -> Numbers:
    return one_number(
        "BWT of the matrix on the page, worked out by hand: a number.",
        metrics.backward_transfer(R),
        mistakes={
            "divided by all tasks": (
                metrics.backward_transfer(R) * 2 / 3,
                "The last task has no later tasks that could harm it: over how many tasks is the mean?",
            ),
            "best instead of first": (
                -metrics.forgetting(R),
                "You compare with the best moment: forgetting, its sign turned. BWT compares with the diagonal.",
            ),
            "one task only": (
                (R[-1, 0] - R[0, 0], R[-1, 1] - R[1, 1]),
                "That is one task alone. BWT is the mean over all tasks but the last.",
            ),
            "forgetting": (
                metrics.forgetting(R),
                "That is forgetting, F. BWT compares with the diagonal, and what is lost counts below zero.",
            ),
            "last column": (
                float((R[:-1, -1] - np.diag(R)[:-1]).mean()),
                "You took the last column. What the network knows in the end stands in the last row.",
            ),
            "every later moment": (
                float(np.mean([R[1, 0] - R[0, 0], R[2, 0] - R[0, 0], R[2, 1] - R[1, 1]])),
                "You compare every later moment with the diagonal. BWT looks at the end alone.",
            ),
            "the first row": (
                (float((R[-1] - R[0])[:-1].mean()), float((R[-1] - R[0]).mean())),
                "You compare with the first row. Each task is compared with the moment when it had just been learned.",
            ),
            "ACC": (
                float(R[-1].mean()),
                "That is ACC, the mean of the last row. From what is it to be taken off?",
            ),
            "when they were learned": (
                (float(np.diag(R).mean()), float(np.diag(R)[:-1].mean())),
                "That is how well tasks were known when they had just been learned. With what is it compared?",
            ),
            "relative": (
                (
                    float((R[-1] / np.diag(R))[:-1].mean() - 1),
                    float((R[-1] / np.diag(R))[:-1].mean()),
                    1 + metrics.backward_transfer(R),
                ),
                "You say how large a share was kept or lost. BWT takes differences, and nothing is divided by what "
                "was there before.",
            ),
            "before it was learned": (
                (float(np.diag(R, 1).mean()), float((np.diag(R, 1) - np.diag(R)[:-1]).mean())),
                "You look above the diagonal, where a task is not yet learned. BWT is about what comes after.",
            ),
            "all entries": (
                float(R.mean()),
                "That is the mean of the whole matrix. Which of its entries has BWT to do with?",
            ),
            "sum": (
                2 * metrics.backward_transfer(R),
                "The differences are right, and added up. What turns a sum into a mean?",
            ),
        },
        praise="Negative: what came later did harm.",
        tolerance=1e-3,
    )


declare("measuring-1", _by_hand(BY_HAND))


@vary("measuring-1")
def _a_matrix() -> tuple[str, Numbers]:
    while True:
        R = torch.randint(2, 12, (3, 3)).double() / 20 + torch.diag(torch.randint(1, 7, (3,)).double() / 20)
        drawn = _by_hand(R.numpy())
        if metrics.backward_transfer(R.numpy()) < -0.02 and is_clear(drawn):
            rows = ",\n ".join(str([round(entry, 2) for entry in row]) for row in R.tolist())
            return f"Work out BWT of this accuracy matrix, with pencil and paper.\n\n[{rows}]", drawn


@exercise("measuring-2")
def forward_transfer(answer: Any) -> str:
    """FWT as a function of R, shape (T, T), and b, shape (T,), the accuracies at random initialisation: a number."""
    cases = [(R, torch.rand(len(R), dtype=torch.float64).numpy()) for (R,) in _matrices()]
    compare(
        without(metrics, answer),
        metrics.forward_transfer,
        cases,
        mistakes={
            "after learning it": (
                lambda R, b: float((np.diag(R) - b)[1:].mean()),
                "The diagonal holds the accuracy after a task has been learned. Forward transfer is measured before.",
            ),
            "below the diagonal": (
                lambda R, b: float((np.diag(R, -1) - b[1:]).mean()),
                "You read below the diagonal, where a task has one successor behind it. "
                "In which row is task j still unknown?",
            ),
            "baseline left out": (
                lambda R, b: float(np.diag(R, 1).mean()),
                "Even an untrained network is right now and then. What does b tell you?",
            ),
            "baseline of the wrong task": (
                lambda R, b: float((np.diag(R, 1) - b[:-1]).mean()),
                "Each accuracy is compared with the baseline of its own task. Which task has none to compare?",
            ),
            "divided by all tasks": (
                (
                    lambda R, b: float((np.diag(R, 1) - b[1:]).sum() / len(R)),
                    lambda R, b: float(((np.diag(R, 1) - b[1:]).sum() - b[0]) / len(R)),
                ),
                "Nothing comes before the first task: over how many tasks is the mean?",
            ),
        },
    )
    return "It measures what is known of a task before its first lesson."


@exercise("measuring-3")
def forgetting(answer: Any) -> str:
    """Forgetting F as a function of R, shape (T, T), NaN where a task had no head yet: a number."""
    cases = _matrices()
    for (R,) in cases[::2]:
        R[np.triu_indices(len(R), 1)] = math.nan

    def later(R: Array) -> Array:
        return np.where(np.isnan(R), -math.inf, R)

    def number_of(R: Array) -> float:
        value = call(without(metrics, answer), R)
        if isinstance(value, (float, np.floating)) and math.isnan(value) and np.isnan(R).any():
            raise Hint(
                "It returns NaN where R holds NaN. A moment at which a task had no head is left out of the maximum.",
                mistake="NaN is not left out",
            )
        return number(value, "What your function returns")

    compare(
        number_of if callable(answer) else answer,
        metrics.forgetting,
        cases,
        mistakes={
            "the last row too": (
                lambda R: float((later(R)[:, :-1].max(0) - R[-1, :-1]).mean()),
                "Your maximum includes the last row, so it can never be negative. Which rows come before the end?",
            ),
            "diagonal instead of the best": (
                lambda R: -metrics.backward_transfer(R),
                "You compare with the moment when the task had just been learned. "
                "Might it have been known better at another?",
            ),
            "divided by all tasks": (
                lambda R: metrics.forgetting(R) * (len(R) - 1) / len(R),
                "The last task cannot be forgotten yet: over how many tasks is the mean?",
            ),
            "the worst task": (
                lambda R: float((later(R)[:-1, :-1].max(0) - R[-1, :-1]).max()),
                "That is the task that was forgotten most. F is the mean over tasks.",
            ),
            "best of all tasks": (
                lambda R: float(later(R)[:-1, :-1].max() - R[-1, :-1].mean()),
                "Your maximum runs over all tasks at once. Every task is compared with its own best moment.",
            ),
        },
    )
    return "It may be negative: then the end is better than every moment before it."


def _forgetting(T: int) -> list[Row]:
    """F of a matrix: the largest of the sums that compare the last row with one earlier row for each task."""
    rows: list[Row] = []
    for before in product(range(T - 1), repeat=T - 1):
        weights = np.zeros((T, T))
        for task, row in enumerate(before):
            weights[row, task] += 1 / (T - 1)
            weights[-1, task] -= 1 / (T - 1)
        rows.append((*weights.reshape(-1).tolist(), 0.0))
    return rows


declare(
    "measuring-4",
    Numbers(
        "An accuracy matrix of three tasks with BWT of at least 0 and forgetting of at least 0.2: shape (3, 3).",
        [
            Case(
                "NaN may stand above the diagonal, where a task had no head yet. From the diagonal on every task has "
                "been learned, and has an accuracy.",
                [Is("learned", "unknown")],
                mistake="NaN below",
            ),
            *(
                Case("Accuracies are shares between 0 and 1; some of yours are not.", when, mistake="no accuracies")
                for when in ([Is("largest", "above", 1)], [Is("minus the smallest", "above", 0)])
            ),
            Case(
                "Its BWT is {BWT:z.3f}: on average the end is worse than the moment at which a task had been learned. "
                "F looks at another moment. When could that be?",
                [Is("BWT", "below", -1e-9)],
                mistake="BWT is negative",
            ),
            Case(
                "Its BWT is fine, but F is only {F:z.3f}. "
                "Let a task be known best neither when it was learned nor in the end.",
                [Is("F", "below", 0.2 - 1e-9)],
                mistake="F is too small",
            ),
            Case("Task 0 was known best in the middle. BWT never looks there.", [], right=True),
        ],
        shape=(3, 3),
        quantities={
            "learned": [(*np.tri(3).reshape(-1).tolist(), 0.0)],
            "largest": entries((3, 3)),
            "minus the smallest": entries((3, 3), sign=-1),
            "BWT": linear(metrics.backward_transfer, (3, 3)),
            "F": _forgetting(3),
        },
        what="Your matrix",
        gaps=True,
    ),
)


@exercise("measuring-5")
def half_width(answer: Any) -> str:
    """Half the width of the 95 % t-interval of a mean, as a function of the values, shape (n,), n >= 2: a number."""
    from scipy.stats import t

    def of(values: Array) -> float:
        return float(metrics.mean_and_interval(values)[1])

    def spread(values: Array) -> float:
        return float(np.std(values, ddof=1))

    compare(
        without(metrics, answer),
        of,
        cases=[(torch.rand(n, dtype=torch.float64).numpy(),) for n in (2, 3, 5, 10)],
        mistakes={
            "divided by n": (
                (
                    lambda v: of(v) * math.sqrt((len(v) - 1) / len(v)),
                    lambda v: 1.959963984540054 * float(np.std(v)) / math.sqrt(len(v)),
                    lambda v: float(t.ppf(0.975, len(v)) * np.std(v)) / math.sqrt(len(v)),
                ),
                "Your standard deviation divides by n. With a mean taken from the same values, by what should it?",
            ),
            "root of n left out": (
                lambda v: of(v) * math.sqrt(len(v)),
                "That is the spread of single runs. How does the mean of n runs scatter, compared with one?",
            ),
            "normal instead of t": (
                (
                    lambda v: 1.959963984540054 * spread(v) / math.sqrt(len(v)),
                    lambda v: 1.96 * spread(v) / math.sqrt(len(v)),
                    lambda v: 2 * spread(v) / math.sqrt(len(v)),
                ),
                "You took the normal distribution's quantile. The spread is itself estimated, from few values.",
            ),
            "standard error": (
                lambda v: spread(v) / math.sqrt(len(v)),
                "That is the standard error. How many of them make up an interval that is right 95 times in 100?",
            ),
            "standard deviation": (
                spread,
                "That is the spread of single runs. The interval is about their mean, and holds 95 times in 100.",
            ),
            "no root": (
                lambda v: of(v) / math.sqrt(len(v)),
                "The spread of a mean falls with the root of n, not with n: four times the runs, half the width.",
            ),
            "variance": (
                lambda v: of(v) * spread(v),
                "You multiply by the variance. Its root, the standard deviation, is on the scale of the values.",
            ),
            "an end of the interval": (
                (lambda v: float(v.mean()) + of(v), lambda v: float(v.mean()) - of(v)),
                "That is an end of the interval. How far is it from the mean?",
            ),
            "root of n minus one": (
                lambda v: of(v) * math.sqrt(len(v) / (len(v) - 1)),
                "You divide by the root of n - 1. The standard deviation has taken care of that; here it is n.",
            ),
            "another level": (
                lambda v: float(t.ppf(0.995, len(v) - 1)) * spread(v) / math.sqrt(len(v)),
                "That holds 99 times in 100. The book's intervals hold 95 times.",
            ),
            "whole width": (
                lambda v: 2 * of(v),
                "That is the whole interval. Half of it stands behind the ±.",
            ),
            "one tail": (
                lambda v: float(t.ppf(0.95, len(v) - 1)) * spread(v) / math.sqrt(len(v)),
                "Your quantile leaves 5 % above it. The interval is to leave 5 % outside on both sides together.",
            ),
            "n degrees of freedom": (
                lambda v: float(t.ppf(0.975, len(v))) * spread(v) / math.sqrt(len(v)),
                "You took n degrees of freedom. One was spent on the mean.",
            ),
        },
    )
    return "With two runs the quantile is above 12, with five it is below 3."


def _trio(T: int) -> tuple[Array, Array, Array]:
    """Three matrices with the same ACC: all tasks known alike; one lost to guessing; one never learned."""
    even = np.tril(np.full((T, T), 0.95))
    even[np.triu_indices(T, 1)] = math.nan
    even[-1] = 0.55 + 0.1 * torch.rand(T, dtype=torch.float64).numpy()
    task = int(torch.randint(T - 1, (1,)))
    lost = even.copy()
    lost[-1, :-1] = (even[-1, :-1].sum() - 0.1) / (T - 2)
    lost[-1, task] = 0.1
    never = lost.copy()
    never[task:, task] = 0.1
    return even, lost, never


@exercise("measuring-6")
def lost_task(answer: Any) -> str:
    """A function of R, shape (T, T), that is lower when one task is lost than when none is, at equal ACC: a number."""
    scores = []
    for T in (4, 5, 6, 8):
        scores.append([number(call(answer, R), "What your function returns") for R in _trio(T)])
    even, lost, never = np.array(scores).T
    if close(even, lost):
        raise Hint(
            "It gives the same whether a task is lost or not: a mean over tasks, and all means are equal here by "
            "construction. What else is there to read in the last row?",
            mistake="a mean over tasks",
        )
    if (lost > even).all():
        raise Hint(
            "It is higher where a task is lost. Turn it round: better should mean larger.", mistake="turned round"
        )
    if (lost >= even).any():
        raise Hint("For some pairs of matrices with the same ACC it ranks the one with a lost task higher.")
    if (never >= even).any():
        raise Hint(
            "It misses a task that was never learned: nothing was forgotten there, and still the task is not known. "
            "Does it need to compare with an earlier moment at all?",
            mistake="blind to what was never learned",
        )
    return "It sees the lost task whether it was forgotten or never learned."
