"""Right and wrong answers to the exercises of "Measuring forgetting"."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

from minicl import metrics
from minicl.metrics import forgetting as forgetting_of_the_package


def forward(R: Any, b: Any) -> float:
    T = len(R)
    return sum(R[j - 1][j] - b[j] for j in range(1, T)) / (T - 1)


def forgetting(R: Any) -> float:
    T, total = len(R), 0.0
    for j in range(T - 1):
        known = [R[i][j] for i in range(T - 1) if not math.isnan(R[i][j])]
        total += max(known) - R[T - 1][j]
    return total / (T - 1)


def forgetting_with(R: Any, rows: slice) -> float:
    return float((np.nanmax(R[rows, :-1], axis=0) - R[-1, :-1]).mean())


def changed(R: Any) -> float:
    R[np.isnan(R)] = 0
    return forgetting(R)


def interval(values: Any) -> float:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return (high - low) / 2


def quantile(p: float, n: int) -> float:
    return float(stats.t.ppf(p, n))


WITHOUT_HEADS = [[0.5, math.nan, math.nan], [0.9, 0.5, math.nan], [0.5, 0.5, 0.9]]
HIDING = [[0.6, 0.2, 0.2], [1.0, 0.9, 0.2], [0.7, 0.8, 0.9]]

RIGHT = {
    "measuring-1": [-0.2, ((0.6 - 0.9) + (0.7 - 0.8)) / 2],
    "measuring-2": [forward, lambda R, b: np.mean([R[j - 1, j] - b[j] for j in range(1, len(R))])],
    "measuring-3": [forgetting, lambda R: forgetting_with(R, slice(0, -1))],
    "measuring-4": [HIDING, np.array(HIDING), WITHOUT_HEADS, [[0.5, 0.5, 0.5], [0.9, 0.5, 0.5], [0.5, 0.5, 0.5]]],
    "measuring-5": [interval],
    "measuring-6": [lambda R: R[-1].min(), lambda R: -R[-1].std(), lambda R: np.log(R[-1]).mean()],
}

WRONG = {
    "measuring-1": {
        "divided by all tasks": -0.4 / 3,
        "best instead of first": -0.225,
        "one task only": -0.1,
        "forgetting": 0.225,
        "last column": -0.5,
        "every later moment": -0.35 / 3,
        "the first row": 0.1,
        "ACC": 2.2 / 3,
        "sum": -0.4,
        "wrong sign": 0.2,
        "percent": -20,
    },
    "measuring-2": {
        "the package's own": metrics.forward_transfer,
        "after learning it": lambda R, b: np.mean(np.diag(R)[1:] - b[1:]),
        "below the diagonal": lambda R, b: np.mean([R[j, j - 1] - b[j] for j in range(1, len(R))]),
        "baseline left out": lambda R, b: np.mean(np.diag(R, 1)),
        "baseline of the wrong task": lambda R, b: np.mean(np.diag(R, 1) - b[:-1]),
        "divided by all tasks": lambda R, b: np.sum(np.diag(R, 1) - b[1:]) / len(R),
        "wrong sign": lambda R, b: -forward(R, b),
    },
    "measuring-3": {
        "the package's own": lambda R: 1.0 * forgetting_of_the_package(R),
        "the last row too": lambda R: forgetting_with(R, slice(None)),
        "diagonal instead of the best": lambda R: np.mean(np.diag(R)[:-1] - R[-1, :-1]),
        "divided by all tasks": lambda R: forgetting(R) * (len(R) - 1) / len(R),
        "the worst task": lambda R: np.max(np.nanmax(R[:-1, :-1], axis=0) - R[-1, :-1]),
        "best of all tasks": lambda R: np.nanmax(R[:-1, :-1]) - R[-1, :-1].mean(),
        "NaN is not left out": lambda R: float((R[:-1, :-1].max(axis=0) - R[-1, :-1]).mean()),
        "changes its argument": changed,
        "wrong sign": lambda R: -forgetting(R),
    },
    "measuring-4": {
        "NaN below": [[0.6, math.nan, math.nan], [1.0, 0.9, math.nan], [math.nan, 0.8, 0.9]],
        "no accuracies": [[60, 20, 20], [100, 90, 20], [70, 80, 90]],
        "BWT is negative": [[0.9, 0.2, 0.2], [0.8, 0.9, 0.2], [0.6, 0.6, 0.9]],
        "F is too small": np.full((3, 3), 0.9),
    },
    "measuring-5": {
        "divided by n": lambda v: quantile(0.975, len(v) - 1) * np.std(v) / np.sqrt(len(v)),
        "no root": lambda v: quantile(0.975, len(v) - 1) * np.std(v, ddof=1) / len(v),
        "whole width": lambda v: 2 * interval(v),
        "root of n left out": lambda v: quantile(0.975, len(v) - 1) * np.std(v, ddof=1),
        "normal instead of t": lambda v: 1.96 * np.std(v, ddof=1) / np.sqrt(len(v)),
        "standard error": lambda v: np.std(v, ddof=1) / np.sqrt(len(v)),
        "variance": lambda v: quantile(0.975, len(v) - 1) * np.var(v, ddof=1) / np.sqrt(len(v)),
        "an end of the interval": lambda v: np.mean(v) + interval(v),
        "root of n minus one": lambda v: quantile(0.975, len(v) - 1) * np.std(v, ddof=1) / np.sqrt(len(v) - 1),
        "another level": lambda v: quantile(0.995, len(v) - 1) * np.std(v, ddof=1) / np.sqrt(len(v)),
        "standard deviation": lambda v: np.std(v, ddof=1),
        "one tail": lambda v: quantile(0.95, len(v) - 1) * np.std(v, ddof=1) / np.sqrt(len(v)),
        "n degrees of freedom": lambda v: quantile(0.975, len(v)) * np.std(v, ddof=1) / np.sqrt(len(v)),
    },
    "measuring-6": {
        "a mean over tasks": lambda R: R[-1].mean(),
        "turned round": lambda R: R[-1].std(),
        "blind to what was never learned": lambda R: -np.max(np.nanmax(R, axis=0) - R[-1]),
    },
}
