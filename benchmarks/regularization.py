"""What EWC, SI, MAS and LwF cost: a training step beside a plain one, and the time to measure importances.

    python benchmarks/regularization.py

64-256-256, batch 32, in the fourth task, when there is something to hold on to. The plain step is written by hand:
forward, backward, optimiser. "bare penalty" is that plain step with the arithmetic of the quadratic penalty and nothing
else: what EWC, SI and MAS cannot go below. Importances: 1,000 samples for 784-400-400, one gradient per sample.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from _bench import compare, plain
from torch import Tensor, nn

import minicl

WIDTHS, BATCH, CLASSES, BEFORE = (64, 256, 256), 32, 10, 3
TARGETS = {"EWC": 1.3, "EWC, online": 1.3, "MAS": 1.3, "SI": 1.3, "LwF": 1.8}
METHODS: dict[str, Callable[[nn.Module], minicl.Learner]] = {
    "EWC": minicl.EWC,
    "EWC, online": partial(minicl.EWC, mode="online"),
    "MAS": minicl.MAS,
    "SI": minicl.SI,
    "LwF": minicl.LwF,
}
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.01),
    "SGD with momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "Adam": partial(torch.optim.Adam, lr=1e-3),
}
Steps = Callable[[int], float]


class Stopwatch:
    """Time steps of a learner inside a lesson, some now and some later: the lesson runs for as long as this does."""

    def __init__(
        self,
        make: Callable[[nn.Module], minicl.Learner],
        batches: list[tuple[Tensor, Tensor]],
        optimizer: Callable[..., torch.optim.Optimizer],
    ) -> None:
        self.learner, self.batches = make(minicl.mlp(*WIDTHS)), batches
        x, y = (torch.cat(part) for part in zip(*batches, strict=True))
        for t in range(BEFORE):
            self.learner.learn(minicl.Task(t, CLASSES, (x, y)), partial(self.train, t, optimizer, len(batches)))
        self.last, self.optimizer = minicl.Task(BEFORE, CLASSES, (x, y)), optimizer

    def train(self, task_id: int, optimizer: Callable[..., torch.optim.Optimizer], n: int) -> float:
        stepper = self.learner.protect(optimizer(self.learner.parameters()))
        self.learner.train()
        started = time.perf_counter()
        for step in range(n):
            x, y = self.batches[step % len(self.batches)]
            self.learner.before_step(step / n)
            stepper.zero_grad()
            self.learner.loss(x, y, task_id).backward()
            stepper.step()
        return time.perf_counter() - started

    def steps(self, n: int) -> float:
        """The seconds of n steps in the lesson after the first ones; the lesson is then broken off, and begun anew."""
        seconds = 0.0

        def fit() -> None:
            nonlocal seconds
            seconds = self.train(BEFORE, self.optimizer, n)
            raise KeyboardInterrupt  # importances are not part of a step

        try:
            self.learner.learn(self.last, fit)
        except KeyboardInterrupt:
            return seconds
        raise AssertionError


def bare_penalty(network: nn.Module) -> Callable[[], Tensor]:
    """k/2 (theta - theta*)^2 of all weights below the head and its gradient, on memory that is there already."""
    body = network.get_submodule("0")
    theta = [parameter.detach() for parameter in body.parameters()]
    sizes = [t.numel() for t in theta]
    anchor, stiffness = torch.rand(sum(sizes)), torch.full((sum(sizes),), 1e-6)
    pull, force = torch.empty_like(anchor), torch.empty_like(anchor)
    parts = [list(vector.split(sizes)) for vector in (pull, anchor, force)]

    def value() -> Tensor:
        for t, away, home in zip(theta, *parts[:2], strict=True):
            torch.sub(t.view(-1), home, out=away)
        torch.mul(stiffness, pull, out=force)
        for parameter, part in zip(body.parameters(), parts[2], strict=True):
            assert parameter.grad is not None
            parameter.grad.view(-1).add_(part)
        return torch.dot(force, pull).mul_(0.5)

    return value


def importance(make: Callable[[nn.Module], minicl.Learner]) -> float:
    """Seconds that the importances of 1,000 samples take for 784-400-400."""
    learner = make(minicl.mlp(784, 400, 400))
    x, y = torch.rand(1000, 784), torch.randint(10, (1000,))
    task = minicl.Task(0, 10, (x, y))
    learner.learn(task, lambda: None)
    assert isinstance(learner, (minicl.EWC, minicl.MAS))
    started = time.perf_counter()
    learner.importance(task)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="how often each takes its turn (default 20)")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {arguments.rounds} rounds, taking turns\n")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(10 * BATCH, WIDTHS[0], generator=generator)
    y = torch.randint(CLASSES, (10 * BATCH,), generator=generator)
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    for title, optimizer in OPTIMIZERS.items():
        print(f"{title}: a step (targets: {', '.join(f'{name} {value}' for name, value in TARGETS.items())})")
        candidates: dict[str, Steps] = {"plain": plain(WIDTHS, CLASSES, optimizer, batches)}
        candidates["bare penalty"] = plain(WIDTHS, CLASSES, optimizer, batches, bare_penalty)
        candidates |= {name: Stopwatch(make, batches, optimizer).steps for name, make in METHODS.items()}
        compare({name: partial(steps, 100) for name, steps in candidates.items()}, arguments.rounds, per=100)
        print()
    print("importances of 1,000 samples, 784-400-400 (target: less than 2 s)")
    compare({"EWC": partial(importance, minicl.EWC), "MAS": partial(importance, minicl.MAS)}, rounds=3, unit="s")


if __name__ == "__main__":
    main()
