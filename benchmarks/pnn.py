"""What a training step of PNN costs beside a loop by hand that does the same arithmetic, and the memory of 20 columns.

    python benchmarks/pnn.py

Columns of 64-256-256, batch 32, plain sums as laterals; the k-th column trains, those before it are frozen. Then the
third column of a small residual network on images. Both read the same samples in the same order. Memory is that of the
process while it trains column after column, beside what the parameters, their gradients and the optimiser's momentum
take by themselves.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
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

    return timed(network[-1], logits, x, y, epochs)


def timed(trained: nn.Module, logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, epochs: int) -> float:
    """Seconds that the shortest loop takes."""
    started = time.perf_counter()
    optimizer = SGD(trained.parameters())
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(logits(x[rows]), y[rows]).backward()
            optimizer.step()
    return time.perf_counter() - started


class Residual(nn.Module):
    """A stem, two residual blocks, and the mean over pixels."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = conv(3, channels)
        self.inner = nn.ModuleList([nn.ModuleList([conv(channels, channels) for _ in range(2)]) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(5)])

    def forward(self, x: Tensor) -> Tensor:
        h, norms = F.relu(self.norms[0](self.stem(x))), iter(self.norms[1:])
        for first, second in self.inner:
            h = F.relu(h + next(norms)(second(F.relu(next(norms)(first(h))))))
        return h.mean((2, 3))


def conv(n_in: int, n_out: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)


def residual_by_hand(columns: int, x: Tensor, y: Tensor, epochs: int) -> float:
    """The same as `by_hand`, of `Residual`: the laterals of its four inner convolutions and of the head."""
    network, laterals, heads = [Residual() for _ in range(columns)], nn.ModuleList(), nn.ModuleList()
    for k in range(columns):
        heads.append(nn.Linear(16, CLASSES))
        into = [conv(16 * k, 16) for _ in range(4)] + [nn.Linear(16 * k, CLASSES, bias=False)] if k else []
        laterals.append(nn.ModuleList(into))
    for frozen in (*network[:-1], *laterals[:-1]):
        frozen.requires_grad_(False).eval()

    def logits(batch: Tensor) -> Tensor:
        given: list[list[Tensor]] = [[] for _ in range(5)]
        for c, U in zip(network, laterals, strict=True):
            h, norms = F.relu(c.norms[0](c.stem(batch))), iter(c.norms[1:])
            inputs = []
            for block, convolutions in enumerate(c.inner):
                inner = h
                for half, W in enumerate(convolutions):
                    i = 2 * block + half
                    z = W(inner)
                    if given[i]:
                        z = z + U[i](torch.cat(given[i], 1))
                    inputs.append(inner)
                    inner = next(norms)(z)
                    if half == 0:
                        inner = F.relu(inner)
                h = F.relu(h + inner)
            h = h.mean((2, 3))
            if c is network[-1]:
                out: Tensor = heads[-1](h)
                return out + U[4](torch.cat(given[4], 1)) if given[4] else out
            for place, what in zip(given, (*inputs, h), strict=True):
                place.append(what)
        raise AssertionError

    return timed(nn.ModuleList([network[-1], laterals[-1], heads[-1]]), logits, x, y, epochs)


def by_minicl(columns: int, x: Tensor, y: Tensor, epochs: int, make: Callable[[], nn.Module] | None = None) -> float:
    """Seconds that a user's own loop spends on the last of so many columns of `PNN`."""
    learner = minicl.PNN(minicl.mlp(*WIDTHS) if make is None else make())
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
    for k in (1, 3, 5, 10):
        epochs = 10 // k + 1
        print(f"column {k}: a training step (target: at most {TARGET:.2f})")
        candidates = {"by hand": partial(by_hand, k, x, y, epochs), "minicl.PNN": partial(by_minicl, k, x, y, epochs)}
        compare(candidates, rounds=arguments.rounds, per=N // BATCH * epochs)
        print()
    images = torch.rand(96, 3, 32, 32, generator=generator)
    print(f"column 3 of a residual network: a training step (target: at most {TARGET:.2f})")
    candidates = {
        "by hand": partial(residual_by_hand, 3, images, y[:96], 1),
        "minicl.PNN": partial(by_minicl, 3, images, y[:96], 1, Residual),
    }
    compare(candidates, rounds=arguments.rounds, per=3)
    print("\nmemory while 20 columns train one after another")
    memory(20, x, y)


if __name__ == "__main__":
    main()
