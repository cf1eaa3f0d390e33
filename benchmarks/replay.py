"""What ER, DER++, A-GEM and GEM cost: a training step beside a plain one, and whether it stays so as tasks arrive.

    python benchmarks/replay.py

64-256-256, batch 32, 10 outputs (in Task-IL for each task), and a memory of 500 samples that is full. The plain step is
written by hand: forward, backward, optimiser, on 32 samples. A step of ER takes 32 new and 32 remembered samples.
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

WIDTHS, BATCH, CLASSES, BUDGET, PAST = (64, 256, 256), 32, 10, 500, 5
TARGETS = {"ER": 1.5, "DER++": 2.6, "A-GEM": 2.6, "GEM": 4.0}
METHODS: dict[str, Callable[[nn.Module], minicl.Learner]] = {
    "ER": partial(minicl.ER, budget=BUDGET),
    "DER++": partial(minicl.DERpp, budget=BUDGET),
    "A-GEM": partial(minicl.AGEM, budget=BUDGET),
    "GEM": partial(minicl.GEM, budget=BUDGET),
}
SGD = partial(torch.optim.SGD, lr=0.01)
Batches = list[tuple[Tensor, Tensor]]


class Stopwatch:
    """Time steps of a learner in the lesson after its first `past` ones, some now and some later."""

    def __init__(self, make: Callable[[nn.Module], minicl.Learner], batches: Batches, past: int, scenario: str) -> None:
        self.learner, self.batches, self.past = make(minicl.mlp(*WIDTHS)), batches, past
        self.scenario = scenario
        self.data = tuple(torch.cat(part) for part in zip(*batches, strict=True))
        for t in range(past):
            data = (self.data[0].roll(t, 1), self.data[1])  # other inputs, so other gradients
            task = minicl.Task(t, CLASSES, data, scenario=scenario)
            self.learner.learn(task, partial(self.train, t, 10 * len(batches)))

    def train(self, task_id: int, n: int) -> float:
        optimizer = self.learner.protect(SGD(self.learner.parameters()))
        self.learner.train()
        started = time.perf_counter()
        for step in range(n):
            x, y = self.batches[step % len(self.batches)]
            self.learner.before_step(step / n)
            optimizer.zero_grad()
            self.learner.loss(x, y, task_id).backward()
            optimizer.step()
        return time.perf_counter() - started

    def steps(self, n: int) -> float:
        """The seconds of n steps in the next lesson, which is then broken off, and begun anew."""
        seconds = 0.0

        def fit() -> None:
            nonlocal seconds
            seconds = self.train(self.past, n)
            raise KeyboardInterrupt  # filling the memory is not part of a step

        try:
            self.learner.learn(minicl.Task(self.past, CLASSES, self.data, scenario=self.scenario), fit)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            return seconds
        raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="how often each takes its turn (default 20)")
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {rounds} rounds, taking turns\n")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20 * BATCH, WIDTHS[0], generator=generator)
    y = torch.randint(CLASSES, (20 * BATCH,), generator=generator)
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))

    targets = ", ".join(f"{name} {value}" for name, value in TARGETS.items())
    for scenario in ("domain", "task"):
        print(f"a step with {PAST} past tasks, scenario {scenario!r} (targets: {targets})")
        candidates = {"plain": plain(WIDTHS, CLASSES, SGD, batches)}
        candidates |= {name: Stopwatch(make, batches, PAST, scenario).steps for name, make in METHODS.items()}
        compare({name: partial(steps, 100) for name, steps in candidates.items()}, rounds, per=100)
        print()
    for name, make in METHODS.items():
        print(f"{name}: an epoch of {len(batches)} steps, scenario 'domain', after so many tasks")
        watches = {f"{past:2} tasks": Stopwatch(make, batches, past, "domain") for past in (1, 2, 5, 10, 20)}
        compare({title: partial(watch.steps, len(batches)) for title, watch in watches.items()}, rounds)
        print()


if __name__ == "__main__":
    main()
