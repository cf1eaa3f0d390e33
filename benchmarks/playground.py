"""What the playground (book/playground.md) shows with its first settings, by minicl itself and over five seeds.

    python benchmarks/playground.py

The page's images, network, batches, epochs and learning rate; its own random numbers are others. Results go to
results/playground.json, and as a table to results/playground.md, which stands where the page cannot be used.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import minicl
from minicl import files

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "playground.json"
TABLE = HERE / "results" / "playground.md"
SEEDS = 5
EPOCHS, AGAIN, BATCH, LR = 12, 4, 30, 0.2

Make = Callable[[nn.Module], minicl.Learner]
ROWS: dict[str, tuple[str, int, Make]] = {
    "Fine-tuning": ("domain", EPOCHS, minicl.FineTune),
    "EWC, `lam=10`": ("domain", EPOCHS, partial(minicl.EWC, lam=10)),
    "Replay, 100 images": ("domain", EPOCHS, partial(minicl.ER, budget=100)),
    "PackNet, share `0.5`": ("task", EPOCHS - AGAIN, partial(minicl.PackNet, keep_ratio=0.5, retrain_epochs=AGAIN)),
    "HAT, `c=0.1`": ("task", EPOCHS, partial(minicl.HAT, c=0.1)),
}
"""Scenario, epochs and learner of each method, as the page has them at first."""


@cache
def page_tool() -> Any:
    """tools/playground.py, which knows the page's images."""
    spec = importlib.util.spec_from_file_location("page_tool", HERE.parent / "tools" / "playground.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(name: str, seed: int) -> list[float]:
    """Accuracy on task 1 when it was learned and in the end, and on task 2 in the end."""
    scenario, epochs, make = ROWS[name]
    tool = page_tool()
    how = partial(torch.optim.SGD, lr=LR)
    learner = make(minicl.mlp(*tool.WIDTHS))
    result = minicl.run(
        learner, tool.stream(scenario), epochs=epochs, batch_size=BATCH, optimizer=how, seed=seed, progress=False
    )
    R = result.accuracy
    return [float(R[0, 0]), float(R[1, 0]), float(R[1, 1])]


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """The means as a table, in per cent."""
    lines = ["| method | task 1, when learned | task 1, in the end | task 2, in the end |", "| --- | --- | --- | --- |"]
    for name in ROWS:
        means = [statistics.mean(column) for column in zip(*rows[name].values(), strict=True)]
        lines.append(f"| {name} | {' | '.join(f'{100 * mean:.0f}' for mean in means)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    torch.set_num_threads(1)
    found = {"command": "python benchmarks/playground.py"}
    rows = {name: {str(seed): measure(name, seed) for seed in range(SEEDS)} for name in ROWS}
    files.write_json(RESULTS, files.with_digest({**found, "rows": rows}))
    TABLE.write_text(table(rows), encoding="utf-8")
    print(table(rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
