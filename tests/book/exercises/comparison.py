"""Right and wrong answers to the exercises of "All methods side by side"."""

from __future__ import annotations

from typing import Any

import numpy as np

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


def beaten_in_both(stored: Any, acc: Any) -> list[int]:
    return [i for i in range(len(acc)) if not ((stored < stored[i]) & (acc > acc[i])).any()]


def beaten_by_twins(stored: Any, acc: Any) -> list[int]:
    others = ~np.eye(len(acc), dtype=bool)
    return [i for i in range(len(acc)) if not ((stored <= stored[i]) & (acc >= acc[i]) & others[i]).any()]


RIGHT = {
    "comparison-1": [NEEDS, {**NEEDS, "exact and small": " HAT ", "no id": "DER++", "exact and endless": "individual"}],
    "comparison-2": [
        lambda values, t: t * values.std(ddof=1) / len(values) ** 0.5,
        lambda values, t: t * (((values - values.mean()) ** 2).sum() / (len(values) - 1) / len(values)) ** 0.5,
    ],
    "comparison-3": [lambda T, c, u: T * c + T * (T - 1) // 2 * u, lambda T, c, u: sum(c + k * u for k in range(T))],
    "comparison-4": [lambda p, T: (1 - p) ** T, lambda p, T: np.prod([1 - p] * T)],
    "comparison-5": [
        lambda then, now: then.shape == now.shape and then.tobytes() == now.tobytes(),
        lambda then, now: then.shape == now.shape and np.array_equal(then.view(np.int32), now.view(np.int32)),
    ],
    "comparison-6": [front],
}

WRONG = {
    "comparison-1": {
        "exact and small wrong": {**NEEDS, "exact and small": "pnn"},
        "exact and endless wrong": {**NEEDS, "exact and endless": "hat"},
        "no id wrong": {**NEEDS, "no id": "ewc"},
        "a fence is not enough": {**NEEDS, "no id": "agem"},
    },
    "comparison-2": {
        "divided by n": lambda values, t: t * np.std(values) / len(values) ** 0.5,
        "spread of the values": lambda values, t: t * np.std(values, ddof=1),
        "no root": lambda values, t: t * np.std(values, ddof=1) / len(values),
        "whole width": lambda values, t: 2 * t * np.std(values, ddof=1) / len(values) ** 0.5,
    },
    "comparison-3": {
        "every pair twice": lambda T, c, u: T * (c + (T - 1) * u),
        "one connection a column": lambda T, c, u: c + (T - 1) * (c + u),
        "half of the square": lambda T, c, u: T * (c + T * u / 2),
        "itself too": lambda T, c, u: sum(c + k * u for k in range(1, T + 1)),
        "columns alone": lambda T, c, u: c * T,
    },
    "comparison-4": {
        "share of the whole": lambda p, T: 1 - T * p,
        "what is used": lambda p, T: 1 - (1 - p) ** T,
        "p for 1 - p": lambda p, T: p**T,
        "what the last one got": lambda p, T: p * (1 - p) ** (T - 1),
        "one task too many": lambda p, T: (1 - p) ** T * (1 - p),
        "times": lambda p, T: T - p * T,
        "one task too few": lambda p, T: (1 - p) ** T / (1 - p),
    },
    "comparison-5": {
        "never true": lambda then, now: then is now,
        "same winners": lambda then, now: len(then) == len(now) and (then.argmax(1) == now.argmax(1)).all(),
        "close enough": lambda then, now: then.shape == now.shape and np.allclose(then, now),
        "equal numbers": np.array_equal,
        "NaN": lambda then, now: np.array_equal(then, now) and np.array_equal(np.signbit(then), np.signbit(now)),
        "no single answer": lambda then, now: then == now,
        "shorter": lambda then, now: all((a == b).all() for a, b in zip(then, now, strict=False)),
    },
    "comparison-6": {
        "better in both": beaten_in_both,
        "twins beat each other": beaten_by_twins,
        "the dominated ones": lambda stored, acc: [i for i in range(len(acc)) if i not in front(stored, acc)],
        "the best alone": lambda stored, acc: [int(np.lexsort((stored, -acc))[0])],
        "not rising": lambda stored, acc: front(stored, acc)[::-1],
    },
}
