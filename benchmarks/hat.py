"""What HAT costs beside the same network without it: time per training step, on the same tensors.

    python benchmarks/hat.py

The plain step is written by hand: forward, backward, optimiser. HAT's step adds gates, sparsity, compensation and the
protection of what earlier tasks claimed. It is measured at the first task, where nothing is protected yet, and at the
second, where half of the units are. Networks: two MLPs, and torchvision's resnet18, where residual sums tie the units
to their order, so that single entries are protected instead of corners.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from _bench import by_hand, compare
from torch import Tensor, nn

import minicl

TARGETS = {"64-256-256, batch 32": 1.60, "784-2000-2000, batch 64": 1.15, "resnet18, 32x32, batch 32": 1.10}
# A small learning rate keeps the networks as they are: where a large one has learned everything, what is left in the
# momentum of dead units becomes denormal, and the plain network, of all, takes three times as long.
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=1e-4),
    "SGD with momentum": partial(torch.optim.SGD, lr=1e-4, momentum=0.9),
}

Steps = Callable[[int], float]


def resnet18() -> nn.Module:
    """torchvision's, up to its features."""
    network: nn.Module = minicl.datasets.torchvision().models.resnet18()
    network.fc = nn.Identity()
    return network


def with_head(network: nn.Module, n_outputs: int, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """The network and a linear head, in training mode."""
    with torch.no_grad():
        width = network.eval()(batches[0][0][:2]).shape[1]
    return nn.Sequential(network, nn.Linear(width, n_outputs)).train()


def gated(
    task: minicl.Task,
    network: nn.Module,
    batch_size: int,
    optimizer: Callable[..., torch.optim.Optimizer],
    before: int,
) -> Steps:
    """The same for HAT, in the lesson that comes after `before` others."""
    learner = minicl.HAT(network)
    batches = list(zip(task.train.x.split(batch_size), task.train.y.split(batch_size), strict=True))

    def another(t: int) -> minicl.Task:
        return minicl.Task(t, task.n_outputs, (task.train.x, task.train.y))

    for t in range(before):
        learner.learn(another(t), lambda: None)  # untrained masks: each task claims half of the units
    last = another(before)
    learner.prepare(last)
    learner._current = last.id  # inside the lesson, as `learn` would have it, but left and entered again at will
    learner.protect_claimed(last.id)
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
    parser.add_argument("--only", default="", help="networks whose name contains this")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {arguments.rounds} rounds, taking turns\n")
    networks: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], int, int]] = [
        ("64-256-256, batch 32", partial(minicl.mlp, 64, 256, 256), (64,), 32, 100),
        ("784-2000-2000, batch 64", partial(minicl.mlp, 784, 2000, 2000), (784,), 64, 5),
        ("resnet18, 32x32, batch 32", resnet18, (3, 32, 32), 32, 2),
    ]
    for name, make, shape, batch_size, n_steps in networks:
        if arguments.only not in name:
            continue
        generator = torch.Generator().manual_seed(0)
        n = batch_size * 10
        x, y = torch.rand(n, *shape, generator=generator), torch.randint(10, (n,), generator=generator)
        batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        task = minicl.Task(0, 10, (x, y))
        for title, optimizer in OPTIMIZERS.items():
            print(f"{name}, {title}: a step (target: at most {TARGETS[name]:.2f})")
            candidates = {
                "plain": by_hand(with_head(make(), 10, batches), optimizer, batches),
                "HAT, task 1": gated(task, make(), batch_size, optimizer, before=0),
                "HAT, task 2": gated(task, make(), batch_size, optimizer, before=1),
            }
            compare({k: partial(steps, n_steps) for k, steps in candidates.items()}, arguments.rounds, per=n_steps)
            print()


if __name__ == "__main__":
    main()
