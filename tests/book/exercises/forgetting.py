"""Right and wrong answers to the exercises of "Why networks forget"."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import minicl

PLANS = {"a": "continual", "b": "feature extraction", "c": "fine-tuning", "d": "joint", "e": "meta-learning"}


def left_behind(theta: Any, x1: Any, y1: float, x2: Any, y2: float) -> Any:
    theta = theta - (theta @ x2 - y2) / (x2 @ x2) * x2
    return (theta @ x1 - y1) ** 2 / 2


def by_descent(theta: Any, x1: Any, y1: float, x2: Any, y2: float) -> Any:
    for _ in range(2000):
        theta = theta - 0.1 * (theta @ x2 - y2) * x2 / (x2 @ x2)
    return (theta @ x1 - y1) ** 2 / 2


def linear_layers(learner: minicl.Learner) -> list[nn.Linear]:
    return [module for module in learner.backbone.modules() if isinstance(module, nn.Linear)]


def freeze_first(learner: minicl.Learner, n: int) -> None:
    for layer in linear_layers(learner)[:n]:
        minicl.freeze(layer)


def without_gradients(learner: minicl.Learner, n: int) -> None:
    for layer in linear_layers(learner)[:n]:
        layer.requires_grad_(False)


def freeze_last(learner: minicl.Learner, n: int) -> None:
    for layer in linear_layers(learner)[3 - n :]:
        minicl.freeze(layer)


def freeze_modules(learner: minicl.Learner, n: int) -> None:
    for module in list(learner.backbone)[: n + (n > 0)]:  # type: ignore[call-overload]
        minicl.freeze(module)


def erase(learner: minicl.Learner, n: int) -> None:
    for layer in linear_layers(learner)[:n]:
        nn.init.zeros_(layer.weight)
        minicl.freeze(layer)


def freeze_weights(learner: minicl.Learner, n: int) -> None:
    for layer in linear_layers(learner)[:n]:
        layer.weight.requires_grad_(False)
        layer.weight.grad = None


def freeze_one_more(learner: minicl.Learner, n: int) -> None:
    freeze_first(learner, n + 1)


RIGHT = {
    "forgetting-1": [PLANS, {letter: f" {name.upper()} ".replace("-", " ") for letter, name in PLANS.items()}],
    "forgetting-2": [left_behind, by_descent],
    "forgetting-3": [[2, -1, 0], np.array([0.0, 1.0, -1.0]), torch.tensor([-4.0, 1.0, 1.0]), (2, 1, -2)],
    "forgetting-4": [lambda g1, g2, H1, lr: -lr * (g1 @ g2) + lr**2 / 2 * (g2 @ (H1 @ g2))],
    "forgetting-5": [freeze_first],
}

WRONG = {
    "forgetting-1": {
        "a: joint": {**PLANS, "a": "joint", "d": "continual"},
        "b: fine-tuning": {**PLANS, "b": "fine-tuning", "c": "feature extraction"},
        "c: continual": {**PLANS, "c": "continual"},
        "c: feature extraction": {**PLANS, "c": "feature extraction"},
        "d: meta-learning": {**PLANS, "d": "meta-learning"},
        "e: continual": {**PLANS, "e": "continual"},
    },
    "forgetting-2": {
        "loss before": lambda theta, x1, y1, x2, y2: (theta @ x1 - y1) ** 2 / 2,
        "loss of task 2": lambda theta, x1, y1, x2, y2: (theta @ x2 - y2) ** 2 / 2,
        "tasks swapped": lambda theta, x1, y1, x2, y2: left_behind(theta, x2, y2, x1, y1),
        "uphill": lambda theta, x1, y1, x2, y2: ((theta + (theta @ x2 - y2) * x2 / (x2 @ x2)) @ x1 - y1) ** 2 / 2,
        "one step": lambda theta, x1, y1, x2, y2: ((theta - (theta @ x2 - y2) * x2) @ x1 - y1) ** 2 / 2,
        "length, not its square": lambda theta, x1, y1, x2, y2: (
            ((theta - (theta @ x2 - y2) * x2 / (x2 @ x2) ** 0.5) @ x1 - y1) ** 2 / 2
        ),
        "no half": lambda *given: 2 * left_behind(*given),
        "error, not loss": lambda theta, x1, y1, x2, y2: (theta - (theta @ x2 - y2) / (x2 @ x2) * x2) @ x1 - y1,
        "wrong sign": lambda *given: -left_behind(*given),
    },
    "forgetting-3": {"zeros": [0, 0, 0], "parallel": [-2, -4, -4], "product not zero": [1, 0, 0]},
    "forgetting-4": {
        "first order": lambda g1, g2, H1, lr: -lr * (g1 @ g2),
        "second order": lambda g1, g2, H1, lr: lr**2 / 2 * (g2 @ H1 @ g2),
        "sign of the first term": lambda g1, g2, H1, lr: lr * (g1 @ g2) + lr**2 / 2 * (g2 @ H1 @ g2),
        "sign of the second term": lambda g1, g2, H1, lr: -lr * (g1 @ g2) - lr**2 / 2 * (g2 @ H1 @ g2),
        "no half": lambda g1, g2, H1, lr: -lr * (g1 @ g2) + lr**2 * (g2 @ H1 @ g2),
        "lr not squared": lambda g1, g2, H1, lr: -lr * (g1 @ g2) + lr / 2 * (g2 @ H1 @ g2),
        "the other gradient": lambda g1, g2, H1, lr: -lr * (g1 @ g2) + lr**2 / 2 * (g1 @ H1 @ g1),
    },
    "forgetting-5": {
        "nothing is frozen": lambda learner, n: None,
        "the gradient alone": without_gradients,
        "counts every module": freeze_modules,
        "biases move": freeze_weights,
        "the last": freeze_last,
        "the wrong layers": freeze_one_more,
        "changes the weights": erase,
    },
}
