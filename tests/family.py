"""What the tests of a whole family of methods share: a short stream, a loop of one's own, the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import minicl


def stream(scenario: str, n_tasks: int = 5) -> minicl.TaskStream:
    return minicl.split("digits", n_tasks, scenario, n_train=60)


def own_loop(
    learner: minicl.Learner,
    tasks: Iterable[minicl.Task],
    make: Callable[..., torch.optim.Optimizer],
    optimizer: torch.optim.Optimizer | None = None,
    set_to_none: bool = True,
    clip: float | None = None,
    epochs: int = 2,
) -> torch.optim.Optimizer:
    """A loop as anyone would write it, with one optimiser for all tasks."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
    for task in tasks:

        def fit(epochs: int = epochs, task: minicl.Task = task) -> None:
            nonlocal optimizer
            if optimizer is None:
                optimizer = learner.protect(make(learner.parameters()))
            elif new := [p for p in learner.parameters() if id(p) not in known]:
                optimizer.add_param_group({"params": new})
            known.update(id(p) for p in learner.parameters())
            learner.train()
            for _ in range(epochs):
                for x, y in zip(task.train.x.split(20), task.train.y.split(20), strict=True):
                    learner.before_step(0.5)
                    optimizer.zero_grad(set_to_none=set_to_none)
                    loss = learner.loss(x, y, task.id)
                    assert bool(loss.isfinite())
                    loss.backward()
                    if clip is not None:
                        nn.utils.clip_grad_norm_(learner.parameters(), clip)
                    optimizer.step()

        learner.learn(task, fit)
    assert optimizer is not None
    return optimizer


def logits(learner: minicl.Learner, tasks: Iterable[minicl.Task]) -> list[Tensor]:
    learner.eval()
    with torch.no_grad():
        return [learner(task.test.x, task.id if task.scenario == "task" else None) for task in tasks]
