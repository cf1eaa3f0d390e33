"""The exercises of the page "Split MNIST, beside a published table"."""

from __future__ import annotations

from typing import Any

import torch

from . import compare, exercise, one_of
from ._declared import Case, Is, Numbers, declare, entries, is_clear, one_number, vary

STEP = "Write both penalties down, one under the other, and set them equal."


def _is(EWC: float | None = None, MAS: float | None = None) -> list[Is]:
    given = {"EWC": EWC, "MAS": MAS}
    return [Is(method, "near", value, 1e-6) for method, value in given.items() if value is not None]


def _strengths(ewc: float, mas: float, outputs: int) -> Numbers:
    rights = {"EWC": 2 * ewc, "MAS": mas / outputs}
    return Numbers(
        "What `lam` is here for their EWC and for their MAS: two numbers.",
        [
            Case("A strength without its formula says nothing.", _is(**rights), right=True),
            Case(
                "Your EWC holds four times too softly: which of the two penalties has the half?",
                _is(EWC=ewc / 2),
                mistake="EWC: half",
            ),
            Case(
                "A mean over outputs is smaller than a sum. Which strength must be larger?",
                _is(MAS=mas * outputs),
                mistake="MAS: times",
            ),
            Case(
                "The right numbers in the wrong order: EWC first, then MAS.",
                _is(EWC=rights["MAS"], MAS=rights["EWC"]),
                mistake="the wrong order",
            ),
            *(
                Case(
                    f"For {method} you take their number as it is. The formulas differ by a factor.",
                    _is(**{method: theirs}),
                    mistake=f"{method}: unchanged",
                )
                for method, theirs in {"EWC": ewc, "MAS": mas}.items()
            ),
            *(
                Case(f"{{{method}:.6g}} for {method} is too {size}. {STEP}", [Is(method, relation, bound)])
                for method, right in rights.items()
                for size, relation, bound in (
                    ("large", "above", right + 5e-7 * (1 + right)),
                    ("small", "below", right - 5e-7 * (1 + right)),
                )
            ),
        ],
        shape=(2,),
        quantities=dict(zip(rights, ([row] for row in entries((2,))), strict=True)),
        what="Your answer",
    )


declare("split_mnist-1", _strengths(100.0, 0.5, 2))


@vary("split_mnist-1")
def _scripts() -> tuple[str, Numbers]:
    ewc, mas, outputs = one_of(30, 70, 250, 600), one_of(0.4, 0.7, 1.2, 3.0), one_of(2, 5, 10)
    text = (
        f"A script of the authors has {ewc} for EWC and {mas} for MAS, in a scenario in which a head has {outputs} "
        "outputs. Which lam is that here? Give two numbers, for EWC and for MAS."
    )
    return text, _strengths(ewc, mas, outputs)


def _apart(mean: float, deviation: float, ours: float, runs: int) -> Numbers:
    right = (ours - mean) / deviation
    where = ("More", "outside") if right > 2 else ("Not more", "inside")
    return one_number(
        "How many published standard deviations our mean lies above the published one: a number.",
        right,
        mistakes={
            "points": (ours - mean, "Those are points. How many standard deviations are they?"),
            "standard error": (
                (ours - mean) / (deviation / runs**0.5),
                "You divide by the standard error of a mean. The table prints the standard deviation of single runs, "
                "and so does our yardstick.",
            ),
            "relative": (
                ((ours - mean) / mean, ours / mean, 100 * (ours - mean) / mean),
                "You compare with the mean. The yardstick is how far runs lie apart.",
            ),
            "half of it": (
                (ours - mean) / deviation / 2,
                "You count in pairs. Two of them are the yardstick; how many is it?",
            ),
            "squared": ((ours - mean) / deviation**2, "Divide by the standard deviation, not by its square."),
            "upside down": (deviation / (ours - mean), "How often does the deviation go into the gap? Turn it round."),
        },
        praise=f"{where[0]} than two: the row is {where[1]} the yardstick, and the page has to say so.",
        tolerance=1e-3,
    )


declare("split_mnist-2", _apart(62.0, 1.5, 66.2, 10))


@vary("split_mnist-2")
def _a_row() -> tuple[str, Numbers]:
    while True:
        mean, deviation, gap = one_of(*range(55, 90)), one_of(0.4, 0.6, 1.2, 2.2), one_of(0.5, 1.1, 2.6, 3.7)
        runs, ours = one_of(5, 10, 20), round(mean + gap, 1)
        if is_clear(_apart(mean, deviation, ours, runs)):
            break
    text = (
        f"In a made-up row the published mean is {mean}, with a standard deviation of {deviation} over {runs} runs. "
        f"Our mean is {ours}. How many published standard deviations lie between them, to three decimals?"
    )
    return text, _apart(mean, deviation, ours, runs)


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
