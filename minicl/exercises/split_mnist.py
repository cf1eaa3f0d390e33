"""The exercises of the page "Split MNIST, beside a published table"."""

from __future__ import annotations

from typing import Any

import torch

from . import compare, exercise
from ._declared import Case, Is, Numbers, declare, entries, one_number

THEIRS_EWC, THEIRS_MAS, OUTPUTS = 100.0, 0.5, 2


RIGHT = {"EWC": 2 * THEIRS_EWC, "MAS": THEIRS_MAS / OUTPUTS}
STEP = "Write both penalties down, one under the other, and set them equal."


def _is(EWC: float | None = None, MAS: float | None = None) -> list[Is]:
    given = {"EWC": EWC, "MAS": MAS}
    return [Is(method, "near", value, 1e-6) for method, value in given.items() if value is not None]


declare(
    "split_mnist-1",
    Numbers(
        "What `lam` is here for their EWC and for their MAS: two numbers.",
        [
            Case("A strength without its formula says nothing.", _is(**RIGHT), right=True),
            Case(
                "Your EWC holds four times too softly: which of the two penalties has the half?",
                _is(EWC=THEIRS_EWC / 2),
                mistake="EWC: half",
            ),
            Case(
                "A mean over outputs is smaller than a sum. Which strength must be larger?",
                _is(MAS=THEIRS_MAS * OUTPUTS),
                mistake="MAS: times",
            ),
            Case(
                "The right numbers in the wrong order: EWC first, then MAS.",
                _is(EWC=RIGHT["MAS"], MAS=RIGHT["EWC"]),
                mistake="the wrong order",
            ),
            *(
                Case(
                    f"For {method} you take their number as it is. The formulas differ by a factor.",
                    _is(**{method: theirs}),
                    mistake=f"{method}: unchanged",
                )
                for method, theirs in {"EWC": THEIRS_EWC, "MAS": THEIRS_MAS}.items()
            ),
            *(
                Case(f"{{{method}:.6g}} for {method} is too {size}. {STEP}", [Is(method, relation, bound)])
                for method, right in RIGHT.items()
                for size, relation, bound in (
                    ("large", "above", right + 5e-7 * (1 + right)),
                    ("small", "below", right - 5e-7 * (1 + right)),
                )
            ),
        ],
        shape=(2,),
        quantities=dict(zip(RIGHT, ([row] for row in entries((2,))), strict=True)),
        what="Your answer",
    ),
)


MEAN, DEVIATION, OURS, RUNS = 62.0, 1.5, 66.2, 10


declare(
    "split_mnist-2",
    one_number(
        "How many published standard deviations our mean lies above the published one: a number.",
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
        praise="More than two: the row is outside the yardstick, and the page has to say so.",
        tolerance=1e-3,
    ),
)


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
