"""Fair comparisons on a busy machine: the candidates take turns, and the medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import minicl
from minicl import files

Candidate = Callable[[], object]


class Kept:
    """The results of a script in one file: what is there is not made again, and what is made is kept at once.

    Attributes:
        found: what the file holds, without its digest; a script may add to it.
    """

    def __init__(self, path: Path, command: str) -> None:
        self.path = path
        self.found: dict[str, Any] = files.read_json(path) if path.exists() else {}
        self.found.pop("digest", None)
        self.found["command"] = command

    def __call__(self, place: dict[str, Any], name: str, make: Callable[[], Any]) -> Any:
        """What stands at this name in a part of `found`; if nothing does, it is made, and the file is written."""
        if name not in place:
            place[name] = make()
            files.write_json(self.path, files.with_digest(self.found))
        return place[name]


def compare(candidates: dict[str, Candidate], rounds: int = 20, unit: str = "ms", per: int = 1) -> dict[str, float]:
    """Median seconds of each candidate, over `rounds` rounds in which all take turns; prints them as a table.

    Args:
        candidates: what to time, by name; the first is what the others are compared with. A candidate that returns a
            float says itself how many seconds it took (so that it can leave its preparations out); otherwise the
            whole call is timed.
        rounds: so many turns each, after one that is not counted. The order is reversed every other round.
        unit: "s", "ms" or "us", for the table.
        per: divide the times by this number, for example by the steps that one call makes.
    """
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name in candidates if turn % 2 else reversed(candidates):
            started = time.perf_counter()
            told = candidates[name]()
            elapsed = time.perf_counter() - started
            if turn:  # the first turn warms up
                times[name].append((told if isinstance(told, float) else elapsed) / per)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(candidates))
    width = max(map(len, candidates))
    print(f"{'':{width}}  median {unit:>4}  ratio of medians  median of ratios")
    for name, median in medians.items():
        # Neighbours in time share what else the machine was doing, so their ratios spread less than the times do.
        ratio = statistics.median(a / b for a, b in zip(times[name], times[first], strict=True))
        print(f"{name:{width}}  {median * scale:11.4f}  {median / medians[first]:16.3f}  {ratio:16.3f}")
    return medians


def plain(
    widths: Sequence[int],
    n_outputs: int,
    optimizer: Callable[..., Optimizer],
    batches: Sequence[tuple[Tensor, Tensor]],
    extra: Callable[[nn.Module], Candidate] = lambda network: lambda: None,
) -> Callable[[int], float]:
    """A function of n: the seconds of n steps of a plain MLP, written by hand: forward, backward, optimiser.

    `extra(network)` gives what is done between backward and the optimiser's step.
    """
    return by_hand(nn.Sequential(minicl.mlp(*widths), nn.Linear(widths[-1], n_outputs)), optimizer, batches, extra)


def by_hand(
    network: nn.Module,
    optimizer: Callable[..., Optimizer],
    batches: Sequence[tuple[Tensor, Tensor]],
    extra: Callable[[nn.Module], Candidate] = lambda network: lambda: None,
) -> Callable[[int], float]:
    """The same for any network with its head."""
    stepper, also = optimizer(network.parameters()), extra(network)

    def steps(n: int) -> float:
        started = time.perf_counter()
        for step in range(n):
            x, y = batches[step % len(batches)]
            stepper.zero_grad()
            F.cross_entropy(network(x), y).backward()
            also()
            stepper.step()
        return time.perf_counter() - started

    return steps
