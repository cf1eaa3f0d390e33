"""Right and wrong answers to the exercises of "Without a task id"."""

from __future__ import annotations

import torch

KEPT = {"packnet": "masks", "icarl": "images", "slda": "means", "generative": "generator"}

RIGHT = {
    "without_task_id-1": [KEPT, {k: f" {v.upper()} " for k, v in KEPT.items()}],
    "without_task_id-2": [lambda n, w: n * w, lambda n, w: w - w * (1 - n)],
    "without_task_id-3": [
        lambda z: z.logsumexp(1),
        lambda z: z.amax(1) + (z - z.amax(1, keepdim=True)).exp().sum(1).log(),
    ],
    "without_task_id-4": [lambda o, n: o.norm(dim=1).mean() / n.norm(dim=1).mean()],
    "without_task_id-5": [lambda m: -(m * m).sum(1) / 2, lambda m: -0.5 * torch.diag(m @ m.T)],
    "without_task_id-6": [lambda c, d: c * (d + 1) + d**2],
}

WRONG = {
    "without_task_id-1": {f"{k} wrong": {**KEPT, k: "images" if k != "icarl" else "means"} for k in KEPT},
    "without_task_id-2": {
        "mean": lambda n, w: 0.5 * n + 0.5 * w,
        "smaller": lambda n, w: n if n < w else w,
        "sum of errors": lambda n, w: 1 - (1 - n) - (1 - w),
    },
    "without_task_id-3": {
        "largest logit": lambda z: z.max(1).values,
        "no logarithm": lambda z: z.exp().sum(1),
        "sum of logits": lambda z: z.sum(1),
        "sign": lambda z: -z.exp().sum(1).log(),
    },
    "without_task_id-4": {
        "turned round": lambda o, n: n.norm(dim=1).mean() / o.norm(dim=1).mean(),
        "norm of the matrix": lambda o, n: o.norm() / n.norm(),
        "squares": lambda o, n: (o**2).sum(1).mean() / (n**2).sum(1).mean(),
    },
    "without_task_id-5": {
        "no half": lambda m: -(m**2).sum(1),
        "sign": lambda m: (m**2).sum(1) / 2,
        "not squared": lambda m: -m.norm(dim=1) / 2,
        "no biases": lambda m: torch.zeros(len(m)),
    },
    "without_task_id-6": {
        "a matrix each": lambda c, d: c * (d + 1 + d * d),
        "means alone": lambda c, d: c * (d + 1),
        "no counts": lambda c, d: c * d + d * d,
    },
}
