"""Right and wrong answers to the exercises of "Replay"."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

WORDS = {"er": "batch", "agem": "average", "gem": "each", "derpp": "answers"}


def agem(g: Any, r: Any) -> Any:
    overlap = torch.dot(g, r)
    return g if overlap >= 0 else g - overlap / r.norm() ** 2 * r


def one_after_another(g: Any, G: Any) -> Any:
    for row in G:
        g = agem(g, row)
    return g


RIGHT = {
    "replay-1": [WORDS, {k: f" {v.upper()} " for k, v in WORDS.items()}],
    "replay-2": [lambda b, i, n: min(1, b / n), lambda b, i, n: 1.0 if n <= b else b / n],
    "replay-3": [agem, lambda g, r: g + torch.relu(-(g @ r)) / (r @ r) * r],
    "replay-4": [
        lambda z, h: ((z - h) ** 2).sum() / len(z),
        lambda z, h: z.shape[1] * F.mse_loss(h, z),
    ],
    "replay-5": [one_after_another, lambda g, G: g + torch.relu(-(G @ g)) @ (G / G.norm(dim=1, keepdim=True) ** 2)],
    "replay-6": [lambda b, c: c * ((c - 1) / c) ** b],
}

WRONG = {
    "replay-1": {
        "gem and a-gem": {**WORDS, "gem": "average", "agem": "each"},
        **{f"{k} wrong": {**WORDS, k: "batch" if k != "er" else "each"} for k in WORDS},
    },
    "replay-2": {
        "chance of entering": lambda b, i, n: min(1, b / i),
        "always let in": lambda b, i, n: (1 - 1 / b) ** max(0, n - max(i, b)),
        "above one": lambda b, i, n: b / n,
        "pushed out by all that is let in": lambda b, i, n: (
            min(1, b / i) * math.prod(1 - b / j for j in range(max(i, b) + 1, n + 1))
        ),
        "first come": lambda b, i, n: 1.0 if i <= b else 0.0,
    },
    "replay-3": {
        "always projects": lambda g, r: g - torch.dot(g, r) / torch.dot(r, r) * r,
        "length of g_ref left in": lambda g, r: g - torch.dot(g, r) * r if g @ r < 0 else g,
        "added": lambda g, r: g if g @ r >= 0 else g + (g @ r) / (r @ r) * r,
        "reflected": lambda g, r: g - 2 * (g @ r) / (r @ r) * r if g @ r < 0 else g,
        "the wrong part": lambda g, r: (g @ r) / (r @ r) * r if g @ r < 0 else g,
        "condition turned round": lambda g, r: g - (g @ r) / (r @ r) * r if g @ r > 0 else g,
        "divided by g": lambda g, r: g - (g @ r) / (g @ g) * r if g @ r < 0 else g,
        "divided by the length": lambda g, r: g - (g @ r) / r.norm() * r if g @ r < 0 else g,
    },
    "replay-4": {
        "mean over outputs": lambda z, h: ((z - h) ** 2).mean(),
        "half": lambda z, h: ((z - h) ** 2).sum(1).mean() / 2,
        "sum over samples": lambda z, h: ((z - h) ** 2).sum(),
        "absolute values": lambda z, h: h.sub(z).abs().mean(0).sum(),
        "not squared": lambda z, h: ((z - h) ** 2).sum(1).sqrt().mean(),
        "after softmax": lambda z, h: ((z.softmax(1) - h.softmax(1)) ** 2).sum(1).mean(),
        "distillation": lambda z, h: F.cross_entropy(h, z.softmax(1)),
        "wrong sign": lambda z, h: -((z - h) ** 2).sum(1).mean(),
    },
    "replay-5": {
        "all removed": lambda g, G: g - (G / G.norm(dim=1, keepdim=True) ** 2).T @ (G @ g),
        "average": lambda g, G: agem(g, G.mean(0)),
        "worst only": lambda g, G: agem(g, G[(G @ g).argmin()]),
        "lengths left in": lambda g, G: g + torch.relu(-(G @ g)) @ G,
    },
    "replay-6": {
        "one class": lambda b, c: ((c - 1) / c) ** b,
        "a place each": lambda b, c: max(0, c - b),
        "probability turned round": lambda b, c: c * (1 / c) ** b,
        "an exponential": lambda b, c: c * math.exp(-b / c),
        "rounded": lambda b, c: round(c * ((c - 1) / c) ** b),
        "a share of the present": lambda b, c: 1 - ((c - 1) / c) ** b,
        "those present": lambda b, c: c - c * ((c - 1) / c) ** b,
    },
}
