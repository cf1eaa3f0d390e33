"""The exercises of the page "Split MNIST, beside a published table"."""

from __future__ import annotations

from typing import Any

import torch

from . import Hint, array, close, compare, exercise, is_number

THEIRS_EWC, THEIRS_MAS, OUTPUTS = 100.0, 0.5, 2


@exercise("split_mnist-1")
def strengths(answer: Any) -> str:
    """What `lam` is here for their EWC and for their MAS: two numbers."""
    given = array(answer, (2,), "Your answer")
    right = [2 * THEIRS_EWC, THEIRS_MAS / OUTPUTS]
    if close(given[0], THEIRS_EWC / 2):
        raise Hint("Your EWC holds four times too softly: which of the two penalties has the half?", "EWC: half")
    if close(given[1], THEIRS_MAS * OUTPUTS):
        raise Hint("A mean over outputs is smaller than a sum. Which strength must be larger?", "MAS: times")
    if close(given, right[::-1]):
        raise Hint("The right numbers in the wrong order: EWC first, then MAS.", mistake="the wrong order")
    for i, unchanged in enumerate((THEIRS_EWC, THEIRS_MAS)):
        if close(given[i], unchanged):
            raise Hint(
                f"For {('EWC', 'MAS')[i]} you take their number as it is. The formulas differ by a factor.",
                mistake=f"{('EWC', 'MAS')[i]}: unchanged",
            )
    if not close(given, right):
        i = 0 if not close(given[0], right[0]) else 1
        raise Hint(
            f"{given[i]:.6g} for {('EWC', 'MAS')[i]} is too {'large' if given[i] > right[i] else 'small'}. Write both "
            "penalties down, one under the other, and set them equal."
        )
    return "A strength without its formula says nothing."


MEAN, DEVIATION, OURS, RUNS = 62.0, 1.5, 66.2, 10


@exercise("split_mnist-2")
def yardstick(answer: Any) -> str:
    """How many published standard deviations our mean lies above the published one: a number."""
    is_number(
        answer,
        (OURS - MEAN) / DEVIATION,
        mistakes={
            "points": (OURS - MEAN, "Those are points. How many standard deviations are they?"),
            "standard error": (
                (OURS - MEAN) / (DEVIATION / RUNS**0.5),
                "You divide by the standard error of a mean. The table prints the standard deviation of single runs, "
                "and so does our yardstick.",
            ),
            "relative": (
                ((OURS - MEAN) / MEAN, OURS / MEAN, 100 * (OURS - MEAN) / MEAN),
                "You compare with the mean. The yardstick is how far runs lie apart.",
            ),
            "half of it": (
                (OURS - MEAN) / DEVIATION / 2,
                "You count in pairs. Two of them are the yardstick; how many is it?",
            ),
            "squared": ((OURS - MEAN) / DEVIATION**2, "Divide by the standard deviation, not by its square."),
            "upside down": (DEVIATION / (OURS - MEAN), "How often does the deviation go into the gap? Turn it round."),
        },
        tolerance=1e-3,
    )
    return "More than two: the row is outside the yardstick, and the page has to say so."


@exercise("split_mnist-3")
def old_against_new(answer: Any) -> str:
    """The weight of the old outputs, with both factors, as a function of the temperature T and of t: a number."""
    compare(
        answer,
        lambda T, t: T**2 * (t - 1),
        cases=[(2.0, 2), (2.0, 5), (1.0, 3), (3.0, 4), (float(1 + torch.rand(())), 6)],
        mistakes={
            "temperature alone": (lambda T, t: T**2, "One factor is missing: it grows with the tasks."),
            "tasks alone": (lambda T, t: t - 1, "One factor is missing: it makes up for smaller gradients."),
            "not squared": (
                lambda T, t: T * (t - 1),
                "Softened outputs have gradients that are smaller by the square of the temperature.",
            ),
            "this task too": (lambda T, t: T**2 * t, "The tasks learned *before* count. How many are they in task t?"),
            "divided": (
                (lambda T, t: (t - 1) / T**2, lambda T, t: T**2 / (t - 1)),
                "Both factors make the old outputs weigh more.",
            ),
            "added": (lambda T, t: T**2 + t - 1, "Two factors are multiplied."),
        },
    )
    return "With the temperature of the page and five tasks it ends at sixteen, where the formula of the paper has one."
