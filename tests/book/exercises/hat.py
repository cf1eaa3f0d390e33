"""Right and wrong answers to the exercises of "Hard Attention to the Task"."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import minicl
from minicl.isolation import hat

SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "schedule": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=3),
    "progress": False,
}


def s(b: int, B: int, s_max: float) -> float:
    return 1 / s_max + (s_max - 1 / s_max) * (b - 1) / (B - 1)


def slope(e: Any) -> Any:
    return torch.sigmoid(e) * torch.sigmoid(-e)


def spread(mask: Any, n: int) -> Any:
    return torch.stack([mask] * (n // len(mask)), dim=1).flatten()


def count(masks: Any) -> tuple[int, int, int]:
    n_tasks, n_units = masks.shape
    new = shared = free = 0
    for unit in range(n_units):
        users = [t for t in range(n_tasks) if masks[t, unit]]
        new += users == [n_tasks - 1]
        shared += len(users) >= 2
        free += not users
    return new, shared, free


def small(stream: Any, c: float = 0.75, epochs: int = 3, width: int = 60, n_tasks: int = 1) -> minicl.HAT:
    learner = minicl.HAT(minicl.mlp(64, width, width), c=c, init="uniform")
    minicl.run(learner, stream[:n_tasks], **{**SETTINGS, "epochs": epochs})
    return learner


WORDS = {"a": "score", "b": "gate", "c": "temperature", "d": "mask", "e": "accumulated mask"}

RIGHT = {
    "hat-1": [WORDS, {letter: f" {word.upper()} " for letter, word in WORDS.items()}],
    "hat-2": [lambda b, B, s_max: 1 / s(b, B, s_max)],
    "hat-3": [
        lambda out, into: 1 - torch.minimum(out[:, None], into),
        lambda out, into: torch.maximum((1 - out)[:, None], 1 - into[None]),
    ],
    "hat-4": [spread, lambda mask, n: mask.repeat_interleave(n // len(mask))],
    "hat-5": [lambda g, e, s_max: s_max * slope(e) * g, lambda g, e, s_max: g * s_max / (2 * (torch.cosh(e) + 1))],
    "hat-6": [count],
    "hat-7": [lambda h, mask: torch.where(mask, h, 0.0), lambda h, mask: h.masked_fill(~mask, 0)],
    "hat-8": [small],
}

WRONG = {
    "hat-1": {
        "a: gate": {**WORDS, "a": "gate", "b": "score"},
        "b: mask": {**WORDS, "b": "mask", "d": "gate"},
        "c: score": {**WORDS, "c": "score"},
        "d: accumulated mask": {**WORDS, "d": "accumulated mask", "e": "mask"},
        "e: temperature": {**WORDS, "e": "temperature"},
    },
    "hat-2": {
        "s instead of the temperature": s,
        "b over B": lambda b, B, s_max: 1 / (1 / s_max + (s_max - 1 / s_max) * b / B),
        "starts at one": lambda b, B, s_max: 1 / (1 + (s_max - 1) * (b - 1) / (B - 1)),
        "too far": lambda b, B, s_max: 1 / (1 / s_max + s_max * (b - 1) / (B - 1)),
        "a bracket is missing": lambda b, B, s_max: 1 / (1 / s_max + s_max - 1 / s_max * (b - 1) / (B - 1)),
        "counted from 0": lambda b, B, s_max: 1 / s(b + 1, B, s_max),
        "by a factor": lambda b, B, s_max: 1 / (1 / s_max * (s_max * s_max) ** ((b - 1) / (B - 1))),
        "the package's own": lambda b, B, s_max: hat.temperature((b - 1) / (B - 1), s_max),
        "divided by B": lambda b, B, s_max: 1 / (1 / s_max + (s_max - 1 / s_max) * (b - 1) / B),
        "a straight line of temperatures": lambda b, B, s_max: s_max - (s_max - 1 / s_max) * (b - 1) / (B - 1),
        "turned round": lambda b, B, s_max: 1 / s(B - b + 1, B, s_max),
    },
    "hat-3": {
        "maximum": lambda out, into: 1 - torch.maximum(out[:, None], into[None]),
        "not subtracted from 1": lambda out, into: torch.minimum(out[:, None], into[None]),
        "product": lambda out, into: 1 - torch.outer(out, into),
        "the input mask alone": lambda out, into: torch.ones(len(out), 1) * (1 - into),
        "the output mask alone": lambda out, into: (1 - out)[:, None] * torch.ones(len(into)),
    },
    "hat-4": {
        "repeated as a whole": lambda mask, n: mask.repeat(n // len(mask)),
        "padded": lambda mask, n: torch.nn.functional.pad(mask, (0, n - len(mask))),
    },
    "hat-5": {
        "s_max left out": lambda g, e, s_max: g * slope(e),
        "the slope at s_max": lambda g, e, s_max: g * s_max * slope(s_max * e),
        "twice": lambda g, e, s_max: g * s_max / (torch.cosh(e) + 1),
    },
    "hat-6": {
        "all that the last task uses": lambda masks: (int(masks[-1].sum()), *count(masks)[1:]),
        "the wrong order": lambda masks: (count(masks)[0], count(masks)[2], count(masks)[1]),
        "exactly two": lambda masks: (count(masks)[0], int((masks.sum(0) == 2).sum()), count(masks)[2]),
        "the task before": lambda masks: (int((masks[-1] & ~masks[-2]).sum()), *count(masks)[1:]),
        "used by any": lambda masks: (count(masks)[0], int(masks.any(0).sum()), count(masks)[2]),
        "used by all": lambda masks: (count(masks)[0], int(masks.all(0).sum()), count(masks)[2]),
        "free before the last": lambda masks: (*count(masks)[:2], int((~masks[:-1].any(0)).sum())),
        "shares": lambda masks: [number / masks.shape[1] for number in count(masks)],
        "free for the last task": lambda masks: (*count(masks)[:2], int((~masks[-1]).sum())),
    },
    "hat-7": {
        "it multiplies": lambda h, mask: h * mask,
        "turned round": lambda h, mask: torch.where(mask, 0.0, h),
        "it hides NaN": lambda h, mask: torch.nan_to_num(h, 0.0, 0.0, 0.0) * mask,
        "it leaks": lambda h, mask: torch.nan_to_num(h * mask, nan=1.0),
    },
    "hat-8": {
        "no HAT": lambda stream: minicl.FineTune(minicl.mlp(64, 8)),
        "not trained": lambda stream: minicl.HAT(minicl.mlp(64, 8)),
        "all tasks": lambda stream: small(stream, epochs=1, n_tasks=2),
        "too large": lambda stream: small(stream, c=0.0),
        "too small": lambda stream: small(stream, c=0.0, epochs=1, width=3),
    },
}
