"""Right and wrong answers to the exercises of "Regularisation and distillation"."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

WORDS = {
    "ewc": "predictions",
    "si": "path",
    "mas": "outputs",
    "lwf": "none",
    "vcl": "posterior",
    "agscl": "activations",
}


def fisher(x: Any, p: Any) -> Any:
    total = torch.zeros(x.shape[1])
    for row, q in zip(x, p, strict=True):
        for y, chance in ((1, q), (0, 1 - q)):
            total += chance * ((y - q) * row) ** 2 / len(x)
    return total


def mas(W: Any, x: Any) -> Any:
    total = torch.zeros_like(W)
    for row in x:
        w = W.clone().requires_grad_()
        (w @ row).square().sum().backward()
        assert w.grad is not None
        total += w.grad.abs() / len(x)
    return total


def distillation(z: Any, old: Any, T: float) -> Any:
    return F.cross_entropy(z / T, (old / T).softmax(1))


def proximal(theta: Any, anchor: Any, threshold: float) -> Any:
    distance = torch.dist(theta, anchor)
    return anchor if distance <= threshold else theta - threshold * (theta - anchor) / distance


RIGHT = {
    "regularization-1": [WORDS, {k: f" {v.upper()} " for k, v in WORDS.items()}],
    "regularization-2": [
        lambda f1, a1, f2, a2: (f1 * a1 + f2 * a2) / (f1 + f2),
        lambda f1, a1, f2, a2: a1 + f2 / (f1 + f2) * (a2 - a1),
    ],
    "regularization-3": [fisher, lambda x, p: torch.einsum("n,nd->d", p - p**2, x**2) / len(x)],
    "regularization-4": [mas, lambda W, x: 2 * torch.einsum("nc,nd->cd", (x @ W.T).abs(), x.abs()) / len(x)],
    "regularization-5": [distillation],
    "regularization-6": [proximal],
}

WRONG = {
    "regularization-1": {f"{k} wrong": {**WORDS, k: "path" if k != "si" else "none"} for k in WORDS},
    "regularization-2": {
        "plain mean": lambda f1, a1, f2, a2: 0.5 * a1 + 0.5 * a2,
        "newest anchor": lambda f1, a1, f2, a2: a2,
        "oldest anchor": lambda f1, a1, f2, a2: a1,
        "weights swapped": lambda f1, a1, f2, a2: (f2 * a1 + f1 * a2) / (f1 + f2),
        "not divided": lambda f1, a1, f2, a2: f1 * a1 + f2 * a2,
        "wrong sign": lambda f1, a1, f2, a2: -(f1 * a1 + f2 * a2) / (f1 + f2),
    },
    "regularization-3": {
        "square of the mean": lambda x, p: ((p * (1 - p)).sqrt()[:, None] * x).mean(0).square(),
        "the batch's gradient": lambda x, p: fisher(x, p) / len(x),
        "not squared": lambda x, p: ((p * (1 - p))[:, None] * x).mean(0),
        "sum over images": lambda x, p: len(x) * fisher(x, p),
        "labels not averaged": lambda x, p: torch.einsum("n,nd->d", p, x**2) / len(x),
        "labels all zero": lambda x, p: ((p[:, None] * x) ** 2).mean(0),
        "the likeliest label": lambda x, p: (((1.0 * (p > 0.5) - p)[:, None] * x) ** 2).mean(0),
        "squared twice": lambda x, p: ((p * (1 - p))[:, None] * x).square().mean(0),
        "two means": lambda x, p: (p * (1 - p)).mean() * x.square().mean(0),
        "a root": lambda x, p: fisher(x, p) ** 0.5,
        "labels all one": lambda x, p: (((1 - p)[:, None] * x) ** 2).mean(0),
    },
    "regularization-4": {
        "per batch": lambda W, x: 2 * ((x @ W.T).T @ x / len(x)).abs(),
        "without the two": lambda W, x: mas(W, x) / 2,
        "length not squared": lambda W, x: torch.stack([torch.outer(W @ r / (W @ r).norm(), r).abs() for r in x]).mean(
            0
        ),
        "no absolute value": lambda W, x: 2 * ((x @ W.T).T @ x / len(x)),
        "sum over images": lambda W, x: len(x) * mas(W, x),
        "squared like EWC": lambda W, x: torch.stack([(2 * torch.outer(W @ r, r)) ** 2 for r in x]).mean(0),
    },
    "regularization-5": {
        "roles swapped": lambda z, old, T: distillation(old, z, T),
        "no temperature": lambda z, old, T: distillation(z, old, 1.0),
        "temperature on one side": lambda z, old, T: F.cross_entropy(z, (old / T).softmax(1)),
        "hard targets": lambda z, old, T: F.cross_entropy(z / T, old.argmax(1)),
        "divergence": lambda z, old, T: F.kl_div((z / T).log_softmax(1), (old / T).softmax(1), reduction="batchmean"),
        "temperature squared": lambda z, old, T: distillation(z, old, T) * T * T,
        "mean over classes": lambda z, old, T: -((old / T).softmax(1) * (z / T).log_softmax(1)).mean(),
        "sum over images": lambda z, old, T: F.cross_entropy(z / T, (old / T).softmax(1), reduction="sum"),
        "multiplied": lambda z, old, T: F.cross_entropy(z * T, (old * T).softmax(1)),
        "wrong sign": lambda z, old, T: -distillation(z, old, T),
    },
    "regularization-6": {
        "overshoots": lambda theta, anchor, t: theta - t * (theta - anchor) / torch.dist(theta, anchor),
        "each entry by itself": lambda theta, anchor, t: anchor + F.softshrink(theta - anchor, t),
        "squared distance": lambda theta, anchor, t: (theta + 2 * t * anchor) / (1 + 2 * t),
        "a share of the way": lambda theta, anchor, t: (1 - t) * theta + t * anchor,
        "towards zero": lambda theta, anchor, t: proximal(theta, torch.zeros_like(theta), t),
    },
}
