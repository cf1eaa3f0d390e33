"""Right and wrong answers to the exercises of "PackNet"."""

from __future__ import annotations

from math import ceil, log2
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minicl.isolation import packnet


def mask(weight: Tensor, keep_ratio: float, among: Tensor) -> Any:
    """By sorting, in NumPy."""
    n = int(among.sum())
    return largest(weight, n - round((1 - keep_ratio) * n), among)


def largest(weight: Tensor, kept: int, among: Tensor) -> Any:
    size = np.where(among.numpy(), np.abs(weight.numpy()), -1.0)
    order = np.argsort(-size, axis=None, kind="stable")[:kept]
    result = np.zeros(size.size, dtype=bool)
    result[order] = True
    return result.reshape(size.shape)


def largest_of(size: Tensor, kept: int) -> Any:
    result = torch.zeros(size.numel(), dtype=torch.bool)
    result[size.flatten().argsort(descending=True)[:kept]] = True
    return result.view_as(size)


def smallest(weight: Tensor, keep_ratio: float, among: Tensor) -> Any:
    return among & ~torch.as_tensor(mask(weight, 1 - keep_ratio, among))


def by_value(weight: Tensor, keep_ratio: float, among: Tensor) -> Any:
    return mask(weight - weight.min() + 1, keep_ratio, among)


def of_layer(weight: Tensor, keep_ratio: float, among: Tensor) -> Any:
    size = np.where(among.numpy(), np.abs(weight.numpy()), -1.0).ravel()
    result = np.zeros(size.size, dtype=bool)
    result[np.argsort(-size, kind="stable")[: round(keep_ratio * size.size)]] = True
    return result.reshape(weight.shape) & among.numpy()


def cutoff(sizes: Tensor, keep_ratio: float) -> float:
    released = round((1 - keep_ratio) * len(sizes))
    return float(sizes.kthvalue(released).values) if released else 0.0


def free_after(n: int, shares: list[float]) -> int:
    for share in shares:
        n = round((1 - share) * n)
    return n


def after(steps: int, velocity: float, decay: float, sign: float = -1.0) -> float:
    weight = 2.0
    for _ in range(steps):
        velocity = 0.9 * velocity + decay * weight
        weight -= 0.5 * velocity
    return 2.0 - sign * (weight - 2.0)


STEPS = ["train", "prune", "re-train", "freeze"]

RIGHT = {
    "packnet-1": [STEPS, ("Train", "prune", "retrain", "freeze")],
    "packnet-2": [mask, lambda *given: torch.as_tensor(mask(*given))],
    "packnet-3": [lambda theta, owner, k: theta * ((owner > 0) & (owner <= k)), lambda t, o, k: t * (o - 1 < k)],
    "packnet-4": [free_after],
    "packnet-5": [lambda T: [1 / (T - k) for k in range(T)], lambda T: 1 / np.arange(T, 0, -1)],
    "packnet-6": [
        lambda weights, tasks: ceil(weights * ceil(log2(tasks + 1)) / 8),
        lambda w, t: -(-w * t.bit_length() // 8),
    ],
    "packnet-7": [after(2, 0.5, 0.1), 1.299, 1.2987],
}

WRONG = {
    "packnet-1": {
        "pruned before trained": ["prune", "train", "re-train", "freeze"],
        "frozen too early": ["train", "prune", "freeze", "re-train"],
        "re-trained before pruned": ["train", "re-train", "prune", "freeze"],
        "a step twice": ["train", "prune", "train", "freeze"],
    },
    "packnet-2": {
        "the smallest": smallest,
        "without the sign": lambda w, r, among: largest_of(torch.where(among, w, -1.0), mask(w, r, among).sum()),
        "everything is in question": lambda w, r, among: largest_of(w.abs(), round(r * w.numel())),
        "masked too late": lambda w, r, among: mask(w, r, torch.ones_like(among)) & among.numpy(),
        "share of the layer": of_layer,
        "what is kept is rounded": lambda w, r, among: largest(w, round(r * int(among.sum())), among),
        "rounded down": lambda w, r, among: largest(w, int(among.sum()) - int((1 - r) * int(among.sum())), among),
        "the other share": lambda w, r, among: mask(w, 1 - r, among),
        "one too many": lambda w, r, among: among & (w.abs() >= cutoff(w[among].abs(), r)),
        "a quantile": lambda w, r, among: among & (w.abs() >= w[among].abs().quantile(1 - r)),
        "what is released": lambda w, r, among: ~torch.as_tensor(mask(w, r, among)),
        "the weights": lambda w, r, among: w * torch.as_tensor(mask(w, r, among)),
        "the package's own": packnet.keep_mask,
    },
    "packnet-3": {
        "its own alone": lambda theta, owner, k: theta * (owner == k),
        "free ones too": lambda theta, owner, k: theta * (owner <= k),
        "no mask": lambda theta, owner, k: theta.clone(),
        "all owned": lambda theta, owner, k: theta * (owner > 0),
        "only earlier ones": lambda theta, owner, k: theta * ((owner > 0) & (owner < k)),
        "one task too many": lambda theta, owner, k: theta * ((owner > 0) & (owner < k + 2)),
        "later ones": lambda theta, owner, k: theta * (owner > k),
        "the source's formula": lambda theta, owner, k: theta * (owner == 0),
    },
    "packnet-4": {
        "what is kept": lambda n, shares: n - free_after(n, shares),
        "share of all weights": lambda n, shares: n * (1 - sum(shares)),
        "fractions of weights": lambda n, shares: n * np.prod([1 - s for s in shares]),
        "what is kept is rounded": lambda n, shares: (
            [n := n - round(share * n) for share in shares][-1] if shares else n
        ),
        "rounded down": lambda n, shares: [n := int((1 - share) * n) for share in shares][-1] if shares else n,
        "the shares are released": lambda n, shares: free_after(n, [1 - s for s in shares]),
    },
    "packnet-5": {
        "the same share": lambda T: [1 / T] * T,
        "the wrong way round": lambda T: [1 / (k + 1) for k in range(T)],
        "all to the last": lambda T: [1] * T,
    },
    "packnet-6": {
        "a bit for each task": lambda weights, tasks: ceil(weights * tasks / 8),
        "bits": lambda weights, tasks: weights * ceil(log2(tasks + 1)),
        "nobody": lambda weights, tasks: ceil(weights * ceil(log2(tasks)) / 8),
        "rounded down": lambda weights, tasks: weights * ceil(log2(tasks + 1)) // 8,
        "a byte for each weight": lambda weights, tasks: weights,
        "not rounded": lambda weights, tasks: weights * log2(tasks + 1) / 8,
    },
    "packnet-7": {
        "does not move": 2.0,
        "no momentum": after(2, 0.0, 0.1),
        "no decay": 1.572,  # to three decimals
        "one step": after(1, 0.5, 0.1),
        "uphill": after(2, 0.5, 0.1, sign=1.0),
        "decay of the old weight": 1.2825,  # 2 - 0.5 (0.9 * 0.5 + 0.2) - 0.5 (0.9 * 0.65 + 0.2)
    },
}
