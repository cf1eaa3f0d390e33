"""Right and wrong answers to the exercises of "All methods side by side"."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

import minicl

NEEDS = {"exact and small": "packnet", "exact and endless": "pnn", "no id": "er"}


def front(stored: Any, acc: Any) -> list[int]:
    order = np.lexsort((-acc, stored))
    kept, best = [], -np.inf
    for i in order:
        equal = kept and stored[kept[-1]] == stored[i] and acc[kept[-1]] == acc[i]
        if acc[i] > best or equal:
            kept.append(int(i))
            best = max(best, acc[i])
    return sorted(kept)


def beaten_by_twins(stored: Any, acc: Any) -> list[int]:
    others = ~np.eye(len(acc), dtype=bool)
    return [i for i in range(len(acc)) if not ((stored <= stored[i]) & (acc >= acc[i]) & others[i]).any()]


def no_worse(stored: Any, acc: Any, fewer: Any, better: Any) -> list[int]:
    """Who is beaten by nobody, where these two comparisons say what beats."""
    return [i for i in range(len(acc)) if not (fewer(stored, stored[i]) & better(acc, acc[i])).any()]


RIGHT = {
    "comparison-1": [NEEDS, {**NEEDS, "exact and small": " HAT ", "no id": "DER++", "exact and endless": "individual"}],
    "comparison-2": [
        lambda a, b, t: (a - b).mean() - t * (a - b).std(ddof=1) / len(a) ** 0.5,
        lambda a, b, t: np.mean(a - b) - t * stats.sem(a - b),
    ],
    "comparison-3": [lambda p, T: (1 - p) ** T, lambda p, T: np.prod([1 - p] * T)],
    "comparison-4": [
        lambda then, now: then.shape == now.shape and then.tobytes() == now.tobytes(),
        lambda then, now: then.shape == now.shape and np.array_equal(then.view(np.int32), now.view(np.int32)),
    ],
    "comparison-5": [front],
}

WRONG = {
    "comparison-1": {
        "exact and small wrong": {**NEEDS, "exact and small": "pnn"},
        "exact and endless wrong": {**NEEDS, "exact and endless": "hat"},
        "no id wrong": {**NEEDS, "no id": "ewc"},
        "features alone": {**NEEDS, "exact and endless": "feature-extraction"},
        "a fence is not enough": {**NEEDS, "no id": "agem"},
    },
    "comparison-2": {
        "not paired": lambda a, b, t: a.mean() - b.mean() - t * (stats.sem(a) ** 2 + stats.sem(b) ** 2) ** 0.5,
        "ends taken off": lambda a, b, t: (a.mean() - t * stats.sem(a)) - (b.mean() - t * stats.sem(b)),
        "the upper end": lambda a, b, t: (a - b).mean() + t * stats.sem(a - b),
        "no interval": lambda a, b, t: (a - b).mean(),
        "the half width": lambda a, b, t: t * stats.sem(a - b),
        "the other way round": lambda a, b, t: (b - a).mean() - t * stats.sem(b - a),
        "divided by n": lambda a, b, t: (a - b).mean() - t * (a - b).std() / len(a) ** 0.5,
        "spread of the values": lambda a, b, t: (a - b).mean() - t * (a - b).std(ddof=1),
    },
    "comparison-3": {
        "share of the whole": lambda p, T: 1 - T * p,
        "what is used": lambda p, T: 1 - (1 - p) ** T,
        "p for 1 - p": lambda p, T: p**T,
        "what the last one got": lambda p, T: p * (1 - p) ** (T - 1),
        "one task too many": lambda p, T: (1 - p) ** T * (1 - p),
        "times": lambda p, T: T - p * T,
        "what the next one gets": lambda p, T: (1 - p) ** T * p,
        "an exponential": lambda p, T: math.exp(-p * T),
        "one task too few": lambda p, T: (1 - p) ** T / (1 - p),
    },
    "comparison-4": {
        "the package's own": minicl.same_bits,
        "never true": lambda then, now: then is now,
        "same winners": lambda then, now: len(then) == len(now) and (then.argmax(1) == now.argmax(1)).all(),
        "close enough": lambda then, now: then.shape == now.shape and np.allclose(then, now),
        "equal numbers": np.array_equal,
        "NaN": lambda then, now: np.array_equal(then, now) and np.array_equal(np.signbit(then), np.signbit(now)),
        "no single answer": lambda then, now: then == now,
        "printed": lambda then, now: str(then) == str(now),
        "shorter": lambda then, now: all((a == b).all() for a, b in zip(then, now, strict=False)),
    },
    "comparison-5": {
        "better in both": lambda stored, acc: no_worse(stored, acc, np.less, np.greater),
        "twins beat each other": beaten_by_twins,
        "more accurate alone": lambda stored, acc: no_worse(stored, acc, np.less_equal, np.greater),
        "smaller alone": lambda stored, acc: no_worse(stored, acc, np.less, np.greater_equal),
        "one of two twins": lambda stored, acc: list(
            {(stored[i], acc[i]): i for i in reversed(front(stored, acc))}.values()
        )[::-1],
        "more is better": lambda stored, acc: front(-stored, acc),
        "a mask": lambda stored, acc: np.isin(np.arange(len(acc)), front(stored, acc)),
        "the dominated ones": lambda stored, acc: [i for i in range(len(acc)) if i not in front(stored, acc)],
        "the best alone": lambda stored, acc: [int(np.lexsort((stored, -acc))[0])],
        "not rising": lambda stored, acc: front(stored, acc)[::-1],
    },
}
