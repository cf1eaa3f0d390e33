"""Right and wrong answers to the exercises of "Three scenarios"."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import minicl

SORTED = {"a": "domain", "b": "class", "c": "task", "d": "domain", "e": "task", "f": "class"}


def label(digit: int, scenario: str, n_tasks: int) -> int:
    if scenario == "class":
        return digit
    k = 10 // n_tasks
    return digit - k * (digit // k)


def gradient(z: Tensor, y: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    F.cross_entropy(z, y).backward()
    assert z.grad is not None
    return z.grad


class OwnClasses(minicl.FineTune):
    def learn(self, task: minicl.Task, fit: Any) -> None:
        self.first = task.n_outputs - len(task.classes)
        fit()

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        return self.cross_entropy(self(x, task_id)[:, self.first :], y - self.first)


class FilledWithMinusInfinity(OwnClasses):
    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        logits = self(x, task_id)
        old = torch.arange(logits.shape[1]) < self.first
        return F.cross_entropy(logits.masked_fill(old, -torch.inf), y)


class MaskedInForward(OwnClasses):
    def forward(self, x: Tensor, task_id: int | None = None) -> Tensor:
        logits = super().forward(x, task_id)
        old = torch.arange(logits.shape[1]) < self.first
        return logits.masked_fill(old, -1e9)

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        return self.cross_entropy(self(x, task_id), y)


class NewClassesLeftOut(OwnClasses):
    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        logits = self(x, task_id)
        keep = self.first or 2
        return self.cross_entropy(logits[:, :keep], y % keep)


def confident(logits: Tensor) -> list[int]:
    T, n, k = logits.shape
    answer = []
    for i in range(n):
        sure = [[float(logits[t, i, c].exp() / logits[t, i].exp().sum()) for c in range(k)] for t in range(T)]
        t, c = max(((t, c) for t in range(T) for c in range(k)), key=lambda tc: sure[tc[0]][tc[1]])
        answer.append(k * t + c)
    return answer


RIGHT = {
    "scenarios-1": [SORTED, {letter: f"{word.title()}-IL" for letter, word in SORTED.items()}],
    "scenarios-2": [lambda n: (n[-1] / sum(n), 1 / len(n)), lambda n: np.array([n[-1] / np.sum(n), 1 / len(n)])],
    "scenarios-3": [label, lambda d, s, n: d if s == "class" else d % (10 // n)],
    "scenarios-4": [gradient, lambda z, y: (torch.softmax(z, 1) - torch.eye(z.shape[1])[y]) / len(z)],
    "scenarios-5": [OwnClasses, FilledWithMinusInfinity, lambda backbone: OwnClasses(backbone)],
    "scenarios-6": [confident, lambda z: z.softmax(2).permute(1, 0, 2).flatten(1).argmax(1)],
}

WRONG = {
    "scenarios-1": {
        "domain taken for class": {**SORTED, "a": "class"},
        "domain taken for task": {**SORTED, "d": "task"},
        "class taken for task": {**SORTED, "b": "task"},
        "class taken for domain": {**SORTED, "f": "domain"},
        "task taken for class": {**SORTED, "c": "class"},
        "task taken for domain": {**SORTED, "e": "domain"},
    },
    "scenarios-2": {
        "swapped": lambda n: (1 / len(n), n[-1] / sum(n)),
        "tasks of equal size": lambda n: (1 / len(n), 1 / len(n)),
        "images twice": lambda n: (n[-1] / sum(n),) * 2,
        "first task": lambda n: (n[0] / sum(n), 1 / len(n)),
        "percent": lambda n: (100 * n[-1] / sum(n), 100 / len(n)),
    },
    "scenarios-3": {
        "within its task everywhere": lambda d, s, n: d % (10 // n),
        "the digit everywhere": lambda d, s, n: d,
        "own labels in domain": lambda d, s, n: d % (10 // n) if s == "task" else d,
        "two digits everywhere": lambda d, s, n: d if s == "class" else d % 2,
        "counted from one": lambda d, s, n: label(d, s, n) + 1,
        "number of the task": lambda d, s, n: d if s == "class" else d // (10 // n),
        "counts from the other end": lambda d, s, n: d if s == "class" else d % n,
    },
    "scenarios-4": {
        "sum over the batch": lambda z, y: z.softmax(1) - F.one_hot(y, z.shape[1]),
        "label left out": lambda z, y: z.softmax(1) / len(y),
        "logits for probabilities": lambda z, y: (z - F.one_hot(y, z.shape[1])) / len(y),
        "softmax over the batch": lambda z, y: (z.softmax(0) - F.one_hot(y, z.shape[1])) / len(y),
        "wrong sign": lambda z, y: -gradient(z, y),
        "changes its argument": lambda z, y: z.sub_(F.one_hot(y, z.shape[1])),
    },
    "scenarios-5": {
        "old classes in the loss": minicl.FineTune,
        "masked at test time": MaskedInForward,
        "new classes left out": NewClassesLeftOut,
    },
    "scenarios-6": {
        "largest logit": lambda z: z.permute(1, 0, 2).flatten(1).argmax(1),
        "label within the head": lambda z: torch.tensor(confident(z)) % z.shape[2],
        "the head": lambda z: torch.tensor(confident(z)) // z.shape[2],
        "numbered across": lambda z: (
            (torch.tensor(confident(z)) % z.shape[2]) * len(z) + torch.tensor(confident(z)) // z.shape[2]
        ),
    },
}
