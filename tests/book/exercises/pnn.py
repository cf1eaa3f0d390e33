"""Right and wrong answers to the exercises of "Progressive networks"."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minicl.metrics import learning_curve_area


def layer(W: Tensor, h: Tensor, U: list[Tensor], earlier: list[Tensor]) -> Tensor:
    """One product, all weights and all activations side by side."""
    return torch.cat([h, *earlier], 1) @ torch.cat([W, *U], 1).T


def parameters(widths: list[int], classes: int, T: int, **changed: Any) -> int:
    """Layer by layer, task by task."""
    given = {"biases": True, "first": False, "head": True, "lateral_bias": 0, "read": lambda k: k} | changed
    total = 0
    for k in range(T):
        n_in = widths[0]
        for i, n_out in enumerate([*widths[1:], classes]):
            total += n_in * n_out + n_out * given["biases"]
            if (i or given["first"]) and (given["head"] or i < len(widths) - 1):
                total += given["read"](k) * n_out * (n_in + given["lateral_bias"])
            n_in = n_out
    return total


def trapezoids(curve: list[float]) -> float:
    return sum((a + b) / 2 for a, b in pairwise(curve))


def adapter(U: Tensor, V: Tensor, alpha: float, earlier: list[Tensor]) -> Any:
    return np.maximum(alpha * (np.concatenate([h.numpy() for h in earlier], 1) @ V.numpy().T), 0) @ U.numpy().T


def afs(fisher: Tensor) -> list[float]:
    columns, units = fisher.shape
    return [sum(float(fisher[k, m] / fisher[:, m].sum()) for m in range(units)) / units for k in range(columns)]


MOVES = {
    "column of task 0": "frozen",
    "lateral from column 0 to column 1": "frozen",
    "head of task 1": "frozen",
    "lateral from column 0 to column 2": "moves",
    "column of task 2": "moves",
    "head of task 2": "moves",
}

RIGHT = {
    "pnn-1": [MOVES],
    "pnn-2": [layer],
    "pnn-3": [parameters],
    "pnn-4": [4],
    "pnn-5": [
        lambda curve, alone: trapezoids(curve) / trapezoids(alone),
        lambda curve, alone: learning_curve_area(curve) / learning_curve_area(alone),
        lambda curve, alone: np.trapezoid(curve) / np.trapezoid(alone),
    ],
    "pnn-6": [adapter],
    "pnn-7": [afs],
}

WRONG = {
    "pnn-1": {
        "old laterals move": {part: "moves" if "lateral" in part else word for part, word in MOVES.items()},
        "new laterals frozen": {part: "frozen" if "lateral" in part else word for part, word in MOVES.items()},
        "head of task 1 moves": {part: "moves" if "head" in part else word for part, word in MOVES.items()},
        "column of task 2 frozen": {**MOVES, "column of task 2": "frozen"},
    },
    "pnn-2": {
        "no laterals": lambda W, h, U, earlier: layer(W, h, [], []),
        "the newest lateral alone": lambda W, h, U, earlier: layer(W, h, U[-1:], earlier[-1:]),
        "a mean": lambda W, h, U, earlier: layer(W, h, [u / len(U) for u in U], earlier),
        "its own input": lambda W, h, U, earlier: layer(W, h, U, [h] * len(U)),
        "one weight for all": lambda W, h, U, earlier: layer(W, h, [W] * len(U), earlier),
        "f on the laterals": lambda W, h, U, earlier: layer(W, h, U, [past.relu() for past in earlier]),
        "the other order": lambda W, h, U, earlier: layer(W, h, U, earlier[::-1]),
        "laterals alone": lambda W, h, U, earlier: layer(0 * W, h, U, earlier),
        "f inside": lambda W, h, U, earlier: layer(W, h, U, earlier).clamp(min=0),
    },
    "pnn-3": {
        "no laterals": lambda widths, classes, T: T * parameters(widths, classes, 1),
        "into the first layer": lambda *given: parameters(*given, first=True),
        "not into the heads": lambda *given: parameters(*given, head=False),
        "biases in laterals": lambda *given: parameters(*given, lateral_bias=1),
        "both ways": lambda *given: parameters(*given, read=lambda k: given[-1] - 1),
        "neighbours alone": lambda *given: parameters(*given, read=lambda k: min(k, 1)),
        "no biases": lambda *given: parameters(*given, biases=False),
    },
    "pnn-4": {"the newest column": 3, "one too late": 5},
    "pnn-5": {
        "a mean of all values": lambda curve, alone: sum(curve) / sum(alone),
        "steps": lambda curve, alone: sum(curve[1:]) / sum(alone[1:]),
        "upside down": lambda curve, alone: trapezoids(alone) / trapezoids(curve),
        "a difference": lambda curve, alone: (trapezoids(curve) - trapezoids(alone)) / (len(curve) - 1),
        "the end alone": lambda curve, alone: curve[-1] / alone[-1],
        "a mean of ratios": lambda curve, alone: sum(c / a for c, a in zip(curve, alone, strict=True)) / len(curve),
        "the best epoch": lambda curve, alone: max(curve) / max(alone),
    },
    "pnn-6": {
        "no alpha": lambda U, V, alpha, earlier: adapter(U, V, 1.0, earlier),
        "no f": lambda U, V, alpha, earlier: alpha * torch.cat(earlier, 1) @ V.T @ U.T,
        "alpha outside f": lambda U, V, alpha, earlier: alpha * adapter(U, V, 1.0, earlier),
        "f outside": lambda U, V, alpha, earlier: (alpha * torch.cat(earlier, 1) @ V.T @ U.T).clamp(min=0),
        "the size of alpha": lambda U, V, alpha, earlier: adapter(U, V, abs(alpha), earlier),
        "another f": lambda U, V, alpha, earlier: torch.tanh(alpha * torch.cat(earlier, 1) @ V.T) @ U.T,
        "two f": lambda *given: np.maximum(adapter(*given), 0),
        "newest first": lambda U, V, alpha, earlier: adapter(U, V, alpha, earlier[::-1]),
    },
    "pnn-7": {
        "the paper's sum": lambda fisher: np.array(afs(fisher)) * fisher.shape[1],
        "a ratio of sums": lambda fisher: fisher.sum(1) / fisher.sum(),
        "shares of a column": lambda fisher: [1 / fisher.shape[1]] * len(fisher),
        "no shares": lambda fisher: fisher.mean(1),
    },
}
