"""What `minicl.run` costs beside a loop written by hand: time per optimisation step, on the same tensors.

    python benchmarks/step.py

Training alone is compared: `Result.seconds` (evaluation left out) against the loop's own clock. Both draw the order of
samples anew for each epoch, take batches as index slices, and make their optimiser inside the time that is measured.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
import torch.nn.functional as F
from _bench import compare
from torch import nn

import minicl

TARGETS = {"64-256-256, batch 32": 1.10, "784-2000-2000, batch 64": 1.03}
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def by_hand(task: minicl.Task, widths: tuple[int, ...], batch_size: int, epochs: int) -> float:
    """Seconds of the shortest loop that one would write for this task."""
    network = nn.Sequential(minicl.mlp(*widths), nn.Linear(widths[-1], task.n_outputs))
    x, y = task.train.x, task.train.y
    started = time.perf_counter()
    optimizer = SGD(network.parameters())
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
    return time.perf_counter() - started


def by_minicl(task: minicl.Task, widths: tuple[int, ...], batch_size: int, epochs: int) -> float:
    """Seconds that `run` spends in training, by its own account."""
    learner = minicl.FineTune(minicl.mlp(*widths))
    result = minicl.run(learner, [task], epochs=epochs, batch_size=batch_size, optimizer=SGD, progress=False)
    return result.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="how often each takes its turn (default 40)")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {arguments.rounds} rounds, taking turns\n")
    for n_in, width, batch_size, n, epochs in ((64, 256, 32, 640, 10), (784, 2000, 64, 640, 1)):
        name = f"{n_in}-{width}-{width}, batch {batch_size}"
        generator = torch.Generator().manual_seed(0)
        x, y = torch.rand(n, n_in, generator=generator), torch.randint(10, (n,), generator=generator)
        task = minicl.Task(0, 10, (x, y), test=(x[:10], y[:10]))
        given = (task, (n_in, width, width), batch_size, epochs)
        print(f"{name}: a step (target: at most {TARGETS[name]:.2f})")
        compare(
            {"by hand": partial(by_hand, *given), "minicl.run": partial(by_minicl, *given)},
            rounds=arguments.rounds,
            per=n // batch_size * epochs,
        )
        print()


if __name__ == "__main__":
    main()
