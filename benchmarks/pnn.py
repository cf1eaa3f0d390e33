"""What a training step of PNN costs beside a loop by hand that does the same arithmetic, and the memory of 20 columns.

    python benchmarks/pnn.py

Columns of 64-256-256, batch 32, laterals of Eq. 1; the k-th column trains, those before it are frozen. Both read the
same samples in the same order. Memory is that of the process while it trains column after column, beside what the
parameters, their gradients and the optimiser's momentum take by themselves.
"""

from __future__ import annotations

import argparse
import gc
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from _bench import compare
from torch import Tensor, nn

import minicl

WIDTHS, BATCH, CLASSES, N = (64, 256, 256), 32, 10, 320
TARGET = 1.25
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def by_hand(columns: int, x: Tensor, y: Tensor, epochs: int) -> float:
    """Seconds that the shortest loop spends on the last of so many columns."""
    n_in, n1, n2 = WIDTHS

    def column(k: int) -> nn.ModuleDict:
        parts = {"W1": nn.Linear(n_in, n1), "W2": nn.Linear(n1, n2), "head": nn.Linear(n2, CLASSES)}
        if k:
            parts |= {"U2": nn.Linear(k * n1, n2, bias=False), "U3": nn.Linear(k * n2, CLASSES, bias=False)}
        return nn.ModuleDict(parts)

    network = [column(k) for k in range(columns)]
    for frozen in network[:-1]:
        frozen.requires_grad_(False)

    def logits(batch: Tensor) -> Tensor:
        first: list[Tensor] = []
        second: list[Tensor] = []
        for c in network:
            h1 = F.relu(c["W1"](batch))
            a2 = c["W2"](h1)
            if first:
                a2 = a2 + c["U2"](torch.cat(first, 1))
            first.append(h1)
            h2 = F.relu(a2)
            if c is network[-1]:
                out: Tensor = c["head"](h2)
                return out + c["U3"](torch.cat(second, 1)) if second else out
            second.append(h2)
        raise AssertionError

    started = time.perf_counter()
    optimizer = SGD(network[-1].parameters())
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(logits(x[rows]), y[rows]).backward()
            optimizer.step()
    return time.perf_counter() - started


def by_minicl(columns: int, x: Tensor, y: Tensor, epochs: int) -> float:
    """Seconds that a user's own loop spends on the last of so many columns of `PNN`."""
    learner = minicl.PNN(minicl.mlp(*WIDTHS))
    tasks = [minicl.Task(t, CLASSES, (x, y)) for t in range(columns)]
    for task in tasks[:-1]:
        learner.learn(task, lambda: None)
    seconds = 0.0

    def fit() -> None:
        nonlocal seconds
        learner.train()
        started = time.perf_counter()
        optimizer = learner.protect(SGD(learner.parameters()))
        for _ in range(epochs):
            for rows in torch.randperm(len(y)).split(BATCH):
                learner.before_step(0.0)
                optimizer.zero_grad()
                learner.loss(x[rows], y[rows], tasks[-1].id).backward()
                optimizer.step()
        seconds = time.perf_counter() - started

    learner.learn(tasks[-1], fit)
    return seconds


def memory(columns: int, x: Tensor, y: Tensor) -> None:
    """Train column after column; print what is held beside what has to be held, all in MB."""
    learner = minicl.PNN(minicl.mlp(*WIDTHS))
    start = resident()
    print(f"{'columns':>8} {'weights':>9} {'+ gradients, momentum':>22} {'all tensors':>12} {'process':>9}")
    for t in range(columns):

        def fit(t: int = t) -> None:
            optimizer = learner.protect(SGD(learner.parameters()))
            for rows in torch.randperm(len(y)).split(BATCH):
                optimizer.zero_grad()
                learner.loss(x[rows], y[rows], t).backward()
                optimizer.step()
            weights, trained = learner.capacity()["parameters"], sum(p.numel() for p in learner.parameters())
            sizes = [4 * weights, 4 * (weights + 2 * trained), tensors(), resident() - start]
            print("{:8} {:9.1f} {:22.1f} {:12.1f} {:9.1f}".format(t + 1, *(size / 1e6 for size in sizes)))

        learner.learn(minicl.Task(t, CLASSES, (x, y)), fit)


def tensors() -> int:
    """Bytes of all tensors alive."""
    storages = [o.untyped_storage() for o in gc.get_objects() if issubclass(type(o), Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def resident() -> int:
    """Bytes of memory that this process holds (Linux); the allocator keeps some that is free."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="how often each takes its turn (default 30)")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {arguments.rounds} rounds, taking turns\n")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(N, WIDTHS[0], generator=generator), torch.randint(CLASSES, (N,), generator=generator)
    for k in (1, 5, 10):
        epochs = 10 // k + 1
        print(f"column {k}: a training step (target: at most {TARGET:.2f})")
        candidates = {"by hand": partial(by_hand, k, x, y, epochs), "minicl.PNN": partial(by_minicl, k, x, y, epochs)}
        compare(candidates, rounds=arguments.rounds, per=N // BATCH * epochs)
        print()
    print("memory while 20 columns train one after another")
    memory(20, x, y)


if __name__ == "__main__":
    main()
