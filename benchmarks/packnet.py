"""What PackNet costs beside the same network without it: a training step, inference after `export`, pruning.

    python benchmarks/packnet.py

The plain step is written by hand: forward, backward, optimiser, on the same batches. PackNet's step is taken in its
second task, with half of the weights owned by the first: their gradients are zeroed, and whatever the optimiser did to
them is undone. The candidates take turns in blocks of steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _bench import compare
from torch import Tensor, nn

import minicl
from minicl.isolation.packnet import keep_mask

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
PLAIN = partial(torch.optim.SGD, lr=0.01)
DECAY = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=1e-4)
CLASSES = 10

Steps = Callable[[], float]


def steps_of(step: Callable[[Tensor, Tensor], object], x: Tensor, y: Tensor, n: int) -> Steps:
    """A function that takes n steps and returns their seconds."""

    def steps() -> float:
        step(x, y)  # what another candidate pushed out of the cache comes back
        started = time.perf_counter()
        for _ in range(n):
            step(x, y)
        return time.perf_counter() - started

    return steps


def plain(network: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> Callable[[Tensor, Tensor], object]:
    """A training step of the network without PackNet."""
    network.train()
    stepper = optimizer(network.parameters())

    def step(x: Tensor, y: Tensor) -> None:
        stepper.zero_grad()
        F.cross_entropy(network(x), y).backward()
        stepper.step()

    return step


def packed(
    backbone: nn.Module, x: Tensor, y: Tensor, optimizer: Callable[..., torch.optim.Optimizer]
) -> tuple[Callable[[Tensor, Tensor], object], minicl.PackNet]:
    """A training step of PackNet in its second task, and the learner."""
    learner = minicl.PackNet(backbone, keep_ratio=0.5)
    learner.learn(minicl.Task(0, CLASSES, (x, y)), lambda epochs=None: None)
    learner.prepare(minicl.Task(1, CLASSES, (x, y)))
    learner._current = 1  # a lesson that stays open, so that its steps can be timed from outside
    learner.claim_free_weights(minicl.Task(1, CLASSES, (x, y)))
    learner.train()
    stepper = learner.protect(optimizer([p for p in learner.parameters() if p.requires_grad]))

    def step(x: Tensor, y: Tensor) -> None:
        stepper.zero_grad()
        learner.loss(x, y, 1).backward()
        stepper.step()

    return step, learner


def resnet18() -> nn.Module:
    """torchvision's, for features of 512."""
    network = minicl.datasets.torchvision().models.resnet18()
    network.fc = nn.Identity()
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="how often each takes its turn (default 30)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {arguments.rounds} rounds, taking turns\n")
    small, large = partial(minicl.mlp, 64, 256, 256), partial(minicl.mlp, 784, 2000, 2000)
    # What it is called, the network, the shape of an input, the batch, the target, the optimisers, steps a turn.
    cases: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], int, float, dict[str, Any], int]]
    cases = [
        (
            "64-256-256, batch 32",
            small,
            (64,),
            32,
            1.25,
            {"SGD with momentum": SGD, "SGD with weight decay": DECAY},
            50,
        ),
        ("784-2000-2000, batch 64", large, (784,), 64, 1.05, {"SGD": PLAIN, "SGD with momentum": SGD}, 8),
        ("resnet18 at 32x32, batch 32", resnet18, (3, 32, 32), 32, 1.03, {"SGD with momentum": SGD}, 1),
    ]
    for name, make, shape, batch, target, optimizers, n in cases:
        x, y = torch.rand(batch, *shape), torch.randint(CLASSES, (batch,))
        for how, optimizer in optimizers.items():
            features = make().eval()(x).shape[1]
            network = nn.Sequential(make(), nn.Linear(features, CLASSES))
            step, learner = packed(make(), x, y, optimizer)
            print(f"{name}, {how}: a training step (target: at most {target:.2f})")
            compare(
                {"plain": steps_of(plain(network, optimizer), x, y, n), "PackNet": steps_of(step, x, y, n)},
                rounds=arguments.rounds,
                per=n,
            )
        alone, usual = learner.export(0).eval(), network.eval()
        with torch.no_grad():
            print(f"{name}: inference of task 0 (target after export: 1.00)")
            learner.eval()
            m = max(n, 4)
            compare(
                {
                    "plain": steps_of(lambda x, _, network=usual: network(x), x, y, m),
                    "exported": steps_of(lambda x, _, network=alone: network(x), x, y, m),
                    "in the learner": steps_of(lambda x, _, network=learner: network(x, 0), x, y, m),
                },
                rounds=arguments.rounds,
                per=m,
            )
        print()
    weight, among = torch.randn(2500, 4000), torch.rand(2500, 4000) < 0.5
    print("a mask for a layer of ten million weights (target: less than 2 s)")
    compare(
        {"all of them": lambda: keep_mask(weight, 0.5), "half of them": lambda: keep_mask(weight, 0.25, among)},
        rounds=3,
        unit="s",
    )


if __name__ == "__main__":
    main()
