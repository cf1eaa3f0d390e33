"""The exercises of the chapter "Progressive networks"."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metrics import learning_curve_area
from . import compare, exercise, one_of
from ._declared import Mistake, Numbers, Words, declare, is_clear, one_number, vary

MOVES = {
    "column of task 0": "frozen",
    "lateral from column 0 to column 1": "frozen",
    "head of task 1": "frozen",
    "lateral from column 0 to column 2": "moves",
    "column of task 2": "moves",
    "head of task 2": "moves",
}


declare(
    "pnn-1",
    Words(
        'What moves while task 2 is learned? A dictionary from the six parts to "moves" or "frozen".',
        right=MOVES,
        mistakes=[
            Mistake(
                "old laterals move",
                "That lateral is part of what computes for task 1. If it moved, what would become of task 1's answers?",
                {"lateral from column 0 to column 1": "moves"},
            ),
            Mistake(
                "new laterals frozen",
                "That lateral begins in a frozen column, but it belongs to the new one: it was made for task 2.",
                {"lateral from column 0 to column 2": "frozen"},
            ),
            *(
                Mistake(
                    f"{part} {'moves' if right == 'frozen' else 'frozen'}",
                    f"Look again at the {part}: "
                    + ("its task is finished." if right == "frozen" else "task 2 is the one that is learned."),
                    {part: None},
                )
                for part, right in MOVES.items()
                if not part.startswith("lateral")
            ),
        ],
        praise="A lateral belongs to the column that it leads into. That is why no arrow leads back.",
        what="Your answer to '{}'",
        holds=f"a word for each of {', '.join(map(repr, MOVES))}",
    ),
)


def _random_layer(columns: int, batch: int, n_in: int, n_out: int) -> tuple[Any, ...]:
    U = [torch.randn(n_out, n_in) for _ in range(columns)]
    earlier = [torch.randn(batch, n_in) for _ in range(columns)]
    return torch.randn(n_out, n_in), torch.randn(batch, n_in), U, earlier


@exercise("pnn-2")
def layer(answer: Any) -> str:
    """The argument of f with plain sums: a function of W, h and the lists U and earlier, returning a tensor."""

    def laterals(U: list[Tensor], earlier: list[Tensor]) -> list[Tensor]:
        return [past @ u.T for u, past in zip(U, earlier, strict=True)]

    compare(
        answer,
        lambda W, h, U, earlier: h @ W.T + sum(laterals(U, earlier)),
        [_random_layer(3, 4, 3, 5), _random_layer(1, 2, 6, 2), _random_layer(0, 3, 2, 4), _random_layer(4, 5, 3, 3)],
        mistakes={
            "no laterals": (
                lambda W, h, U, earlier: h @ W.T,
                "That is a column on its own. Where do the earlier ones come in?",
            ),
            "the newest lateral alone": (
                (
                    lambda W, h, U, earlier: h @ W.T + sum(laterals(U, earlier)[-1:]),
                    lambda W, h, U, earlier: h @ W.T + sum(laterals(U, earlier)[:1]),
                ),
                "You read one earlier column. The sum runs over all of them.",
            ),
            "a mean": (
                (
                    lambda W, h, U, earlier: h @ W.T + sum(laterals(U, earlier)) / max(len(U), 1),
                    lambda W, h, U, earlier: (h @ W.T + sum(laterals(U, earlier))) / (len(U) + 1),
                ),
                "You divide by the number of columns. The equation has a sum.",
            ),
            "its own input": (
                lambda W, h, U, earlier: h @ W.T + sum(h @ u.T for u in U),
                "You give your own h to the laterals. U^(k:j) reads what column j has put out.",
            ),
            "one weight for all": (
                lambda W, h, U, earlier: h @ W.T + sum(past @ W.T for past in earlier),
                "You read the earlier columns through W. Each has a lateral weight of its own.",
            ),
            "f inside": (
                lambda W, h, U, earlier: torch.relu(h @ W.T + sum(laterals(U, earlier))),
                "Nearly: you have applied f already. Only its argument is asked for.",
            ),
            "f on the laterals": (
                (
                    lambda W, h, U, earlier: h @ W.T + sum(map(torch.relu, laterals(U, earlier))),
                    lambda W, h, U, earlier: h @ W.T + sum(laterals(U, list(map(torch.relu, earlier)))),
                ),
                "You apply f on the way. `earlier` has been through it already, and all the rest is one plain sum.",
            ),
            "the other order": (
                lambda W, h, U, earlier: h @ W.T + sum(laterals(U, earlier[::-1])),
                "You give columns the laterals of others: the first of `U` reads the first of `earlier`.",
            ),
            "laterals alone": (
                lambda W, h, U, earlier: sum(laterals(U, earlier), torch.zeros(len(h), len(W))),
                "The column's own input is missing.",
            ),
        },
    )
    return "With all U side by side and all earlier activations side by side, the sum is a single product."


@exercise("pnn-3")
def parameters(answer: Any) -> str:
    """Parameters of a progressive network: a function of widths, classes and T, returning a number."""

    def parts(widths: list[int], classes: int) -> tuple[int, int, int]:
        sizes = [*widths, classes]
        weights = [n * m for n, m in pairwise(sizes)]
        return sum(weights), sum(sizes[1:]), sum(weights[1:])

    def total(widths: list[int], classes: int, T: int) -> float:
        weights, biases, lateral = parts(widths, classes)
        return float(T * (weights + biases) + T * (T - 1) // 2 * lateral)

    def first_layer_too(widths: list[int], classes: int, T: int) -> float:
        weights, biases, _ = parts(widths, classes)
        return float(T * (weights + biases) + T * (T - 1) // 2 * weights)

    def not_into_heads(widths: list[int], classes: int, T: int) -> float:
        return total(widths, classes, T) - T * (T - 1) // 2 * widths[-1] * classes

    def lateral_biases(widths: list[int], classes: int, T: int) -> float:
        return total(widths, classes, T) + T * (T - 1) // 2 * (sum(widths[2:]) + classes)

    def each_way(widths: list[int], classes: int, T: int) -> float:
        return total(widths, classes, T) + T * (T - 1) // 2 * parts(widths, classes)[2]

    def neighbours(widths: list[int], classes: int, T: int) -> float:
        weights, biases, lateral = parts(widths, classes)
        return float(T * (weights + biases) + (T - 1) * lateral)

    compare(
        answer,
        total,
        [([64, 256, 256], 10, 3), ([8, 5], 2, 4), ([3, 4, 5, 6], 7, 5), ([10, 20], 3, 1), ([64, 256, 256], 10, 20)],
        mistakes={
            "no laterals": (
                lambda widths, classes, T: float(T * sum(parts(widths, classes)[:2])),
                "That is what separate columns take. Now the laterals.",
            ),
            "into the first layer": (first_layer_too, "You count laterals into the first layer, and there are none."),
            "not into the heads": (not_into_heads, "Every head reads the earlier columns as well."),
            "biases in laterals": (lateral_biases, "Your laterals have biases. One bias a layer is enough: W's."),
            "both ways": (
                each_way,
                "You count every pair of columns twice. Laterals lead from earlier to later columns.",
            ),
            "neighbours alone": (
                neighbours,
                "Your columns read only the one before them. They read all that came before.",
            ),
            "no biases": (
                lambda widths, classes, T: total(widths, classes, T) - T * parts(widths, classes)[1],
                "Layers and heads have biases.",
            ),
        },
        tolerance=1e-9,
    )
    return "T columns, T (T - 1) / 2 pairs of columns: the second term wins in the end."


def _outweighing(first: int, second: int, classes: int) -> Numbers:
    column = (64 * first + first) + (first * second + second) + (second * classes + classes)
    lateral = first * second + second * classes
    right = next(T for T in range(1, 1000) if T * (T - 1) / 2 * lateral > T * column)
    return one_number(
        "The number of tasks from which laterals outweigh columns and heads: a number.",
        right,
        mistakes={
            "the newest column": (
                next(T for T in range(1, 1000) if (T - 1) * lateral > column),
                "There the laterals of the newest column outweigh that column. Compare all laterals with all columns.",
            ),
            "one too late": (right + 1, "Then they do, but not for the first time."),
        },
        praise="So few. From there on, most of the network is wiring.",
        tolerance=0.0,
        factors={},
        step="Compare the two terms of P(T).",
    )


declare("pnn-4", _outweighing(256, 256, 10))


@vary("pnn-4")
def _columns() -> tuple[str, Numbers]:
    while True:
        first, second, classes = one_of(16, 32, 64, 128), one_of(8, 16, 32, 64, 128), one_of(2, 5, 10, 20)
        if is_clear(_outweighing(first, second, classes)):
            break
    text = (
        f"Take columns of 64-{first}-{second} and heads of {classes} classes. After how many tasks do all laterals "
        "together have more parameters than all columns and heads together, for the first time?"
    )
    return text, _outweighing(first, second, classes)


@exercise("pnn-5")
def transfer(answer: Any) -> str:
    """The transfer score: a function of two learning curves, returning a number."""
    cases = []
    for n in (3, 6, 10):
        alone = torch.rand(n) * 0.6 + 0.1
        cases.append(((torch.rand(n) * 0.6 + 0.3).tolist(), alone.tolist()))
    compare(
        answer,
        lambda curve, alone: learning_curve_area(curve) / learning_curve_area(alone),
        cases,
        mistakes={
            "a mean of all values": (
                lambda curve, alone: float(np.mean(curve) / np.mean(alone)),
                "You take the mean of the values. Between two of them the curve is a line: at both ends of the curve, "
                "how much of a value counts?",
            ),
            "steps": (
                (
                    lambda curve, alone: float(np.mean(curve[1:]) / np.mean(alone[1:])),
                    lambda curve, alone: float(np.mean(curve[:-1]) / np.mean(alone[:-1])),
                ),
                "You draw steps: between two values the curve has only one of them. Its area takes the mean of both.",
            ),
            "upside down": (
                (
                    lambda curve, alone: learning_curve_area(alone) / learning_curve_area(curve),
                    lambda curve, alone: float(np.mean(alone) / np.mean(curve)),
                ),
                "Above one should mean that the earlier columns helped.",
            ),
            "a difference": (
                (
                    lambda curve, alone: learning_curve_area(curve) - learning_curve_area(alone),
                    lambda curve, alone: float(np.mean(curve) - np.mean(alone)),
                ),
                "That is the difference of the areas. The score is their ratio.",
            ),
            "the end alone": (
                lambda curve, alone: float(curve[-1] / alone[-1]),
                "You compare where the curves end. The area also says how fast they got there.",
            ),
            "a mean of ratios": (
                lambda curve, alone: float(np.mean(np.array(curve) / np.array(alone))),
                "You take the mean of ratios. Take the ratio of means: early epochs, with their small numbers, would "
                "count too much.",
            ),
            "the gain": (
                lambda curve, alone: learning_curve_area(curve) / learning_curve_area(alone) - 1,
                "You take one off, and say how much larger the area is. The score itself is the ratio.",
            ),
            "a share of both": (
                lambda curve, alone: (
                    learning_curve_area(curve) / (learning_curve_area(curve) + learning_curve_area(alone))
                ),
                "You divide by both areas together. What is the one area without the other?",
            ),
            "the best epoch": (
                lambda curve, alone: float(np.max(curve) / np.max(alone)),
                "You compare the best epochs. The area takes all of them.",
            ),
        },
    )
    return (
        "A score above one tells knowledge from size only if the column alone is as large as what it is compared with."
    )


@exercise("pnn-6")
def adapter(answer: Any) -> str:
    """The adapter's lateral term with ReLU: a function of U, V, alpha and the list earlier, returning a tensor."""
    cases = []
    for columns, batch, n_in, hidden, n_out in ((3, 4, 2, 5, 3), (1, 3, 4, 2, 2), (2, 5, 3, 4, 6)):
        earlier = [torch.randn(batch, n_in) for _ in range(columns)]
        U, V = torch.randn(n_out, hidden), torch.randn(hidden, columns * n_in)
        cases += [(U, V, alpha, earlier) for alpha in (0.3, -1.7)]

    def together(earlier: list[Tensor]) -> Tensor:
        return torch.cat(list(earlier), 1)

    compare(
        answer,
        lambda U, V, alpha, earlier: torch.relu(alpha * together(earlier) @ V.T) @ U.T,
        cases,
        mistakes={
            "no alpha": (
                lambda U, V, alpha, earlier: torch.relu(together(earlier) @ V.T) @ U.T,
                "alpha is missing: the number that can turn the adapter up or down.",
            ),
            "no f": (
                lambda U, V, alpha, earlier: alpha * together(earlier) @ V.T @ U.T,
                "Without f between them, U V is one linear map, and the adapter is a plain sum again.",
            ),
            "alpha outside f": (
                lambda U, V, alpha, earlier: alpha * torch.relu(together(earlier) @ V.T) @ U.T,
                "alpha stands inside f. For a number above zero that makes no difference. Which alpha did you not try?",
            ),
            "f outside": (
                lambda U, V, alpha, earlier: torch.relu(alpha * together(earlier) @ V.T @ U.T),
                "The inner f comes between V and U.",
            ),
            "the size of alpha": (
                lambda U, V, alpha, earlier: torch.relu(abs(alpha) * together(earlier) @ V.T) @ U.T,
                "You drop the sign of alpha. Inside f a negative one opens what a positive one closes.",
            ),
            "another f": (
                (
                    lambda U, V, alpha, earlier: torch.sigmoid(alpha * together(earlier) @ V.T) @ U.T,
                    lambda U, V, alpha, earlier: torch.tanh(alpha * together(earlier) @ V.T) @ U.T,
                ),
                "Your f is another one. ReLU is asked for.",
            ),
            "two f": (
                lambda U, V, alpha, earlier: torch.relu(torch.relu(alpha * together(earlier) @ V.T) @ U.T),
                "The outer f is not part of the lateral term: the column's own sum is added first.",
            ),
            "newest first": (
                lambda U, V, alpha, earlier: torch.relu(alpha * together(list(earlier)[::-1]) @ V.T) @ U.T,
                "The earlier columns stand side by side in the order in which they came.",
            ),
        },
    )
    return (
        "alpha may stand before V or after it, for both are linear. Behind f, a negative alpha would do something else."
    )


@exercise("pnn-7")
def sensitivity(answer: Any) -> str:
    """The average Fisher sensitivity: a function of fisher, shape (columns, units), returning a number per column."""
    cases = [(torch.rand(columns, units) ** 3 + 0.01,) for columns, units in ((2, 3), (3, 5), (4, 2), (5, 8))]
    compare(
        answer,
        lambda fisher: (fisher / fisher.sum(0)).mean(1),
        cases,
        mistakes={
            "the paper's sum": (
                lambda fisher: (fisher / fisher.sum(0)).sum(1),
                "That is the paper's own form, which adds up to the number of units. Here the mean is asked for.",
            ),
            "a ratio of sums": (
                lambda fisher: fisher.sum(1) / fisher.sum(),
                "You add the units up first, and a single loud unit decides. Take shares unit by unit.",
            ),
            "shares of a column": (
                lambda fisher: (fisher / fisher.sum(1, keepdim=True)).mean(1),
                "You make the units of a column add up to one. For each unit, the columns should.",
            ),
            "no shares": (
                lambda fisher: fisher.mean(1),
                "That is the mean Fisher information. How large a share of it does each column have?",
            ),
        },
    )
    return "Every unit has one vote, and the columns divide it."
