"""What the tests of many methods share: the loop and the tasks of `minicl.testing`, with the seed of the test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import seeds
import torch
from torch import Tensor, nn

import minicl
from minicl import same_bits
from minicl.testing import loops
from minicl.testing.loops import (
    ADAM,
    MOMENTUM,
    OPTIMIZERS,
    SGD,
    SHAPE,
    Loop,
    Make,
    answer,
    answers,
    known,
    logits,
    state,
)

__all__ = [
    "ADAM",
    "MOMENTUM",
    "OPTIMIZERS",
    "SGD",
    "SHAPE",
    "Loop",
    "Make",
    "answer",
    "answers",
    "bytes_held",
    "digits",
    "gradient",
    "gradient_by_hand",
    "known",
    "logits",
    "run",
    "same_bits",
    "small_tasks",
    "state",
]


def small_tasks(scenario: str = "task", n: int = 3, *, number: int = 0, **settings: Any) -> list[minicl.Task]:
    """Those of `minicl.testing`; another number gives others, and so does another seed of the tests."""
    return loops.small_tasks(scenario, n, seed=seeds.of(1000 + number), **settings)


def digits(scenario: str = "task", n_tasks: int = 5, n_train: int = 60) -> minicl.TaskStream:
    return minicl.split("digits", n_tasks, scenario, seed=seeds.current(), n_train=n_train)


def run(learner: minicl.Learner, tasks: Iterable[minicl.Task], **settings: Any) -> minicl.Result:
    """`minicl.run` with the seed of the test."""
    return minicl.run(learner, tasks, **{"seed": seeds.current(), "progress": False, **settings})  # type: ignore[arg-type]


def bytes_held(thing: Any) -> int:
    """The memory of every tensor that can be reached from a learner, or from another object of minicl."""
    found: dict[int, int] = {}  # bytes by address: what several tensors share counts once
    seen: set[int] = set()

    def look(thing: Any) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        inside: Iterable[Any] = ()
        if isinstance(thing, dict):
            inside = thing.values()
        elif isinstance(thing, (list, tuple)):
            inside = thing
        elif isinstance(thing, nn.Module) or type(thing).__module__.startswith("minicl"):
            inside = vars(thing).values()
        for value in inside:
            look(value)

    look(thing)
    return sum(found.values())


def gradient(learner: nn.Module) -> Tensor:
    """The gradients of all parameters in one vector; zero where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learner.parameters()])


def gradient_by_hand(learner: minicl.Learner, x: Tensor, y: Tensor, task_id: int | None) -> Tensor:
    """The gradient of the mean cross-entropy, in one vector, from an ordinary backward pass; `.grad` is as it was."""
    kept = [None if p.grad is None else p.grad.clone() for p in learner.parameters()]
    learner.zero_grad()
    nn.functional.cross_entropy(learner(x, task_id), y).backward()
    found = gradient(learner)
    for p, g in zip(learner.parameters(), kept, strict=True):
        p.grad = g
    return found
