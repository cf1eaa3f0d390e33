"""The exercises of the chapter "Networks that grow"."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from ..expansion import den
from ..expansion.den import reachable, soft_threshold
from . import compare, exercise, without
from ._declared import Mistake, Words, declare

ADDS = {"Piggyback": "a mask", "CPG": "a mask, and width if needed", "DEN": "units", "DER": "an extractor"}


declare(
    "growth-1",
    Words(
        'What each of the four adds for a further task: a dictionary from "Piggyback", "CPG", "DEN", "DER" to words.',
        right=ADDS,
        mistakes=[
            Mistake(
                "the wrong representation",
                "DER is Dynamically Expandable Representation here. What is frozen when a task ends, as a whole?",
                {"DER": None},
            ),
            Mistake("not by units", "DEN looks at single units: it re-trains, adds and splits them.", {"DEN": None}),
            Mistake(
                "who widens",
                "One of the two masks a network that never changes its size.",
                [{"Piggyback": None}, {"CPG": None}],
            ),
        ],
        praise="From one bit per weight to a whole network per task: the four differ in the size of what they add.",
        what="What {} adds",
    ),
)


@exercise("growth-2")
def soft(answer: Any) -> str:
    """The proximal step of mu ||w||_1: a function of a tensor w and of mu, returning a tensor."""
    compare(
        without(den, answer),
        soft_threshold,
        cases=[(torch.randn(5, 4), mu) for mu in (0.0, 0.1, 0.5, 1.5)] + [(torch.tensor([0.3, -0.3, 0.0]), 0.3)],
        mistakes={
            "hard": (
                lambda w, mu: torch.where(w.abs() > mu, w, 0),
                "Small weights become zero, that is right; what happens to the large ones?",
            ),
            "one side": (
                lambda w, mu: (w - mu).clamp(min=0),
                "That sets every negative weight to zero, however large it is.",
            ),
            "without the sign": (
                lambda w, mu: (w.abs() - mu).clamp(min=0),
                "The sizes are right. A weight of -1 should not become positive.",
            ),
            "through zero": (
                lambda w, mu: w - mu * w.sign(),
                "A small weight goes through zero and comes out on the other side. Where should it stop?",
            ),
            "away from zero": (
                lambda w, mu: w + mu * w.sign(),
                "Your weights become larger.",
            ),
        },
    )
    return "Subgradient descent on |w| alone would hover around zero and never reach it; this step stops there."


@exercise("growth-3")
def straight_through(answer: Any) -> str:
    """The gradient that Piggyback gives to its scores: a function of grad, weight, scores and threshold."""
    cases = [(torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 6), tau) for tau in (-0.5, 0.0, 0.7)]
    compare(
        answer,
        lambda grad, weight, scores, threshold: grad * weight,
        cases,
        mistakes={
            "the gradient of the weights": (
                lambda grad, weight, scores, threshold: grad * (scores > threshold),
                "That is what the weights would get, if they moved. By what is the mask multiplied in W * m?",
            ),
            "only where the mask is on": (
                lambda grad, weight, scores, threshold: grad * weight * (scores > threshold),
                "Then a weight that is off would stay off for ever. The step is passed as if it were not there.",
            ),
            "without the weight": (
                lambda grad, weight, scores, threshold: grad.clone(),
                "That is the gradient of the masked weight. How does it depend on the mask?",
            ),
            "the true derivative": (
                lambda grad, weight, scores, threshold: torch.zeros_like(grad),
                "The true derivative of a step is zero nearly everywhere, and nothing would learn. What is used?",
            ),
        },
    )
    return "So a weight that is zero has a mask that never learns, and large weights have masks that learn fast."


def _reached(head: Tensor, weight: Tensor) -> Tensor:
    return reachable(head, [torch.ones(weight.shape[1], 1), weight])[0]


@exercise("growth-4")
def search(answer: Any) -> str:
    """Which units of the lower layer matter to a task: a function of its head and of the layer in between."""
    generator = torch.Generator().manual_seed(4)
    cases = []
    for outputs, top, bottom in ((1, 3, 4), (2, 5, 6), (3, 6, 8), (3, 4, 9), (2, 7, 7)):
        head, weight = torch.randn(outputs, top, generator=generator), torch.randn(top, bottom, generator=generator)
        head[torch.rand(head.shape, generator=generator) < 0.6] = 0
        weight[torch.rand(weight.shape, generator=generator) < 0.7] = 0
        cases.append((head, weight))
    cases.append((torch.tensor([[0.0, 0.0], [0.0, -1.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])))
    compare(
        without(den, answer),
        _reached,
        cases,
        mistakes={
            "the first output": (
                lambda head, weight: _reached(head[:1], weight),
                "You follow the ways to the first output only, as the authors' code does. The task has more.",
            ),
            "read by anybody": (
                lambda head, weight: (weight != 0).any(0),
                "Somebody reads these units. But does the task read whoever reads them?",
            ),
            "by all outputs": (
                lambda head, weight: (weight[(head != 0).all(0)] != 0).any(0),
                "One output that reads a unit is enough.",
            ),
            "the sum of the ways": (
                lambda head, weight: (head.sum(0) @ weight).abs() > 1.0,
                "A way counts whatever its strength, and two ways do not cancel.",
            ),
        },
    )
    return "The search asks for weights that are exactly zero. That is why the head is trained with l1 first."


@exercise("growth-5")
def size(answer: Any) -> str:
    """Parameters of DER after T tasks: a function of T, of an extractor's parameters E, of its features F and of c."""
    compare(
        answer,
        lambda T, E, F, c: float(T * E + T * F * T * c + T * c),
        cases=[(1, 100, 10, 2), (2, 100, 10, 2), (5, 17_000, 100, 2), (10, 83_000, 256, 10), (3, 50, 7, 4)],
        mistakes={
            "each class reads its own": (
                lambda T, E, F, c: float(T * E + T * F * c + T * c),
                "There each class reads one extractor alone. In DER every class reads them all.",
            ),
            "no biases": (
                lambda T, E, F, c: float(T * E + T * F * T * c),
                "Close: the classifier has biases, too.",
            ),
            "one extractor": (
                lambda T, E, F, c: float(E + F * T * c + T * c),
                "That is a network that does not grow.",
            ),
            "no classifier": (
                lambda T, E, F, c: float(T * E),
                "Those are the extractors. Their features have to be turned into classes.",
            ),
            "those that came before": (
                lambda T, E, F, c: float(T * E + F * c * T * (T + 1) / 2 + T * c),
                "With yours, a class reads the extractors up to its own task. In DER every class reads them all.",
            ),
            "a bias for each feature": (
                lambda T, E, F, c: float(T * E + T * F * T * c + T * F),
                "A bias belongs to an output, and an output to a class.",
            ),
            "the auxiliary classifier too": (
                lambda T, E, F, c: float(T * E + T * F * T * c + T * c + (F + 1) * (c + 1)),
                "You count the auxiliary classifier as well. It is thrown away when its task ends.",
            ),
            "the classifier of one task": (
                (
                    lambda T, E, F, c: float(T * E + T * F * c + c),
                    lambda T, E, F, c: float(T * E + T * F * T * c + c),
                ),
                "How many classes are there after T tasks?",
            ),
        },
        tolerance=1e-9,
    )
    return "The classifier grows with the square of T; while extractors are large, nobody notices."


def _weights(n_in: int, units: Sequence[int]) -> float:
    return float(sum(a * b for a, b in zip([n_in, *units[:-1]], units, strict=True)))


@exercise("growth-6")
def stamped(answer: Any) -> str:
    """How many weights a task of DEN computes with: a function of n_in, of units (one list per task) and of j."""
    histories = [[[8, 6], [10, 6], [13, 9]], [[4], [7], [7]], [[5, 4, 3], [6, 6, 6]]]
    cases = [(n_in, h, j) for n_in, h in zip((12, 3, 7), histories, strict=True) for j in range(len(h))]

    def of_new(n_in: int, units: list[list[int]], j: int) -> float:
        before = units[j - 1] if j else [0] * len(units[0])
        return _weights(n_in, [a - b for a, b in zip(units[j], before, strict=True)])

    compare(
        answer,
        lambda n_in, units, j: _weights(n_in, units[j]),
        cases,
        mistakes={
            "today's network": (
                lambda n_in, units, j: _weights(n_in, units[-1]),
                "Later units came after the task's time stamp: it does not see them.",
            ),
            "its own units": (
                of_new,
                "A task also uses the units that were there before it. It is the later ones that it does not see.",
            ),
            "with biases": (
                lambda n_in, units, j: _weights(n_in, units[j]) + sum(units[j]),
                "Weights are asked for, without biases.",
            ),
            "units": (
                lambda n_in, units, j: float(sum(units[j])),
                "That is the number of units. How many weights lead into them?",
            ),
        },
        tolerance=1e-9,
    )
    return "Units stand in the order of their arrival, so a task is the upper left corner of every weight matrix."


@exercise("growth-7")
def strong_enough(answer: Any) -> str:
    """The pull lambda at which a unit is just not split: a function of n, g and sigma."""
    compare(
        answer,
        lambda n, g, sigma: sqrt(n) * g / sigma,
        cases=[(64, 0.1, 0.05), (256, 0.02, 0.05), (1, 0.5, 0.1), (784, 0.01, 0.2), (10, 0.3, 1.0)],
        mistakes={
            "one weight": (
                lambda n, g, sigma: g / sigma,
                "That is right for a unit with a single weight. The drift is the length of n of them.",
            ),
            "added up": (
                lambda n, g, sigma: n * g / sigma,
                "The drift is a Euclidean length: the squares are added, not the weights.",
            ),
            "without the half": (
                lambda n, g, sigma: sqrt(n) * g / (2 * sigma),
                "The pull is lambda / 2 times a square. What is its derivative?",
            ),
            "upside down": (
                lambda n, g, sigma: sigma / (sqrt(n) * g),
                "A stronger gradient needs a stronger pull, and a larger sigma a weaker one.",
            ),
        },
    )
    return "With wide layers sigma must grow with the square root of their inputs, or every unit is split."
