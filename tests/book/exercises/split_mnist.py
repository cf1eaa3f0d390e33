"""Right and wrong answers to the exercises of "Split MNIST"."""

from __future__ import annotations

import numpy as np

RIGHT = {
    "split_mnist-1": [[200, 0.25], np.array([200.0, 0.25])],
    "split_mnist-2": [2.8, (66.2 - 62.0) / 1.5],
    "split_mnist-3": [lambda T, t: T * T * (t - 1)],
}

WRONG = {
    "split_mnist-1": {
        "EWC: half": [50, 0.25],
        "MAS: times": [200, 1.0],
        "the wrong order": [0.25, 200],
        "EWC: unchanged": [100, 0.25],
        "MAS: unchanged": [200, 0.5],
    },
    "split_mnist-2": {
        "points": 4.2,
        "standard error": 4.2 / 0.4743416,
        "relative": 4.2 / 62,
        "half of it": 1.4,
        "squared": 4.2 / 2.25,
        "upside down": 1.5 / 4.2,
        "wrong sign": -2.8,
    },
    "split_mnist-3": {
        "temperature alone": lambda T, t: T * T,
        "tasks alone": lambda T, t: t - 1,
        "not squared": lambda T, t: T * t - T,
        "this task too": lambda T, t: t * T**2,
        "divided": lambda T, t: (t - 1) / T / T,
        "added": lambda T, t: T * T + (t - 1),
    },
}
