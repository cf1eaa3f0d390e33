"""What HAT costs beside the same network without it: time per training step, on the same tensors.

    python benchmarks/hat.py

The plain step is written by hand: forward, backward, optimiser. HAT's step adds gates, sparsity, compensation and the
protection of what earlier tasks claimed. It is measured at the first task, where nothing is protected yet, and at the
second, where half of the units are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from _bench import compare, plain

import minicl

TARGETS = {"64-256-256, batch 32": 1.60, "784-2000-2000, batch 64": 1.15}
# A small learning rate keeps the networks as they are: where a large one has learned everything, what is left in the
# momentum of dead units becomes denormal, and the plain network, of all, takes three times as long.
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=1e-4),
    "SGD with momentum": partial(torch.optim.SGD, lr=1e-4, momentum=0.9),
}

Steps = Callable[[int], float]


def gated(
    task: minicl.Task,
    widths: tuple[int, ...],
    batch_size: int,
    optimizer: Callable[..., torch.optim.Optimizer],
    before: int,
) -> Steps:
    """The same for HAT, in the lesson that comes after `before` others."""
    learner = minicl.HAT(minicl.mlp(*widths))
    batches = list(zip(task.train.x.split(batch_size), task.train.y.split(batch_size), strict=True))

    def another(t: int) -> minicl.Task:
        return minicl.Task(t, task.n_outputs, (task.train.x, task.train.y))

    for t in range(before):
        learner.learn(another(t), lambda: None)  # untrained masks: each task claims half of the units
    last = another(before)
    learner.prepare(last)
    learner._current = last.id  # inside the lesson, as `learn` would have it, but left and entered again at will
    learner.lock(last.id)
    stepper = learner.protect(optimizer(learner.parameters()))

    def steps(n: int) -> float:
        started = time.perf_counter()
        for step in range(n):
            x, y = batches[step % len(batches)]
            learner.before_step(step / max(n - 1, 1))
            stepper.zero_grad()
            learner.loss(x, y, last.id).backward()
            stepper.step()
        return time.perf_counter() - started

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="how often each takes its turn (default 20)")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {arguments.rounds} rounds, taking turns\n")
    for n_in, width, batch_size, n_steps in ((64, 256, 32, 100), (784, 2000, 64, 5)):
        name = f"{n_in}-{width}-{width}, batch {batch_size}"
        generator = torch.Generator().manual_seed(0)
        n = batch_size * 10
        x, y = torch.rand(n, n_in, generator=generator), torch.randint(10, (n,), generator=generator)
        batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        given = (minicl.Task(0, 10, (x, y)), (n_in, width, width), batch_size)
        for title, optimizer in OPTIMIZERS.items():
            print(f"{name}, {title}: a step (target: at most {TARGETS[name]:.2f})")
            candidates = {
                "plain": plain((n_in, width, width), 10, optimizer, batches),
                "HAT, task 1": gated(*given, optimizer, before=0),
                "HAT, task 2": gated(*given, optimizer, before=1),
            }
            compare({k: partial(steps, n_steps) for k, steps in candidates.items()}, arguments.rounds, per=n_steps)
            print()


if __name__ == "__main__":
    main()
