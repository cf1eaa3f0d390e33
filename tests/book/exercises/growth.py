"""Right and wrong answers to the exercises of "Networks that grow"."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

ADDS = {"Piggyback": "a mask", "CPG": "a mask, and width if needed", "DEN": "units", "DER": "an extractor"}


def soft(w: Tensor, mu: float) -> Any:
    """Entry by entry, in NumPy."""
    return np.array([math.copysign(max(abs(v) - mu, 0), v) for v in w.flatten().tolist()]).reshape(w.shape)


def reached(head: Tensor, weight: Tensor) -> Any:
    """By walking."""
    found = np.zeros(weight.shape[1], dtype=bool)
    for o in range(len(head)):
        for i in range(len(weight)):
            for j in range(weight.shape[1]):
                found[j] |= bool(head[o, i] != 0 and weight[i, j] != 0)
    return found


def weights(n_in: int, units: list[int]) -> int:
    total = 0
    for n in units:
        total, n_in = total + n_in * n, n
    return total


def own(n_in: int, units: list[list[int]], j: int) -> int:
    before = [0] * len(units[0]) if j == 0 else units[j - 1]
    return weights(n_in, [a - b for a, b in zip(units[j], before, strict=True)])


RIGHT = {
    "growth-1": [ADDS],
    "growth-2": [soft, lambda w, mu: w.sign() * (w.abs() - mu).clamp(min=0)],
    "growth-3": [lambda grad, weight, scores, threshold: weight * grad],
    "growth-4": [reached, lambda head, weight: (head.abs() @ weight.abs()).sum(0) > 0],
    "growth-5": [lambda T, E, F, c: T * (E + c * (T * F + 1))],
    "growth-6": [lambda n_in, units, j: weights(n_in, units[j])],
    "growth-7": [lambda n, g, sigma: g * n**0.5 / sigma],
}

WRONG = {
    "growth-1": {
        "the wrong representation": {**ADDS, "DER": "units", "DEN": "an extractor"},
        "not by units": {**ADDS, "DEN": "a mask"},
        "who widens": {**ADDS, "Piggyback": ADDS["CPG"], "CPG": ADDS["Piggyback"]},
    },
    "growth-2": {
        "hard": lambda w, mu: w * (w.abs() > mu),
        "one side": lambda w, mu: torch.relu(w - mu),
        "without the sign": lambda w, mu: torch.relu(w.abs() - mu),
        "through zero": lambda w, mu: w - w.sign() * mu,
        "away from zero": lambda w, mu: w + w.sign() * mu,
    },
    "growth-3": {
        "the gradient of the weights": lambda g, w, s, tau: torch.where(s > tau, g, 0),
        "only where the mask is on": lambda g, w, s, tau: torch.where(s > tau, g * w, 0),
        "without the weight": lambda g, w, s, tau: g,
        "the true derivative": lambda g, w, s, tau: g * 0,
    },
    "growth-4": {
        "the first output": lambda head, weight: reached(head[:1], weight),
        "read by anybody": lambda head, weight: weight.abs().sum(0) > 0,
        "by all outputs": lambda head, weight: weight[(head != 0).all(0)].abs().sum(0) > 0,
        "the sum of the ways": lambda head, weight: (head.sum(0) @ weight).abs() > 1,
    },
    "growth-5": {
        "each class reads its own": lambda T, E, F, c: T * (E + F * c + c),
        "no biases": lambda T, E, F, c: T * E + T * T * F * c,
        "no classifier": lambda T, E, F, c: T * E,
        "those that came before": lambda T, E, F, c: T * E + sum(t * F * c + c for t in range(1, T + 1)),
        "a bias for each feature": lambda T, E, F, c: T * (E + F) + T * T * F * c,
        "the auxiliary classifier too": lambda T, E, F, c: T * (E + c * (T * F + 1)) + F * (c + 1) + c + 1,
        "one extractor": lambda T, E, F, c: E + T * c * (F + 1),
        "the classifier of one task": lambda T, E, F, c: T * E + c * (T * F + 1),
    },
    "growth-6": {
        "today's network": lambda n_in, units, j: weights(n_in, units[-1]),
        "its own units": own,
        "with biases": lambda n_in, units, j: weights(n_in, units[j]) + sum(units[j]),
        "units": lambda n_in, units, j: sum(units[j]),
    },
    "growth-7": {
        "one weight": lambda n, g, sigma: g / sigma,
        "added up": lambda n, g, sigma: n * g / sigma,
        "without the half": lambda n, g, sigma: 0.5 * math.sqrt(n) * g / sigma,
        "upside down": lambda n, g, sigma: sigma / g / math.sqrt(n),
    },
}
