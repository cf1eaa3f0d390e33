"""What the replay methods reach with budgets of 10 to 1,000 samples: the runs behind the chapter on replay.

    python benchmarks/replay_grid.py

Digits, with the streams, network, optimiser and epochs of regularization_search.py, so that its results for EWC,
fine-tuning and joint training stand beside these. Every method has its stated defaults, so nothing is searched, and
five seeds. PackNet, which must be told the task id, is there for split digits in Task-IL. Results are written after
every run, and a run that is in the file is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from regularization_search import ADAM, BATCH, EPOCHS, STREAMS, TEST_SEEDS, WIDTHS

import minicl
from minicl import files

RESULTS = Path(__file__).resolve().parent / "results" / "replay.json"
BUDGETS = (10, 50, 200, 1000)

METHODS: dict[str, Callable[[int], minicl.Learner]] = {
    "ER": lambda budget: minicl.ER(minicl.mlp(*WIDTHS), budget),
    "DERpp": lambda budget: minicl.DERpp(minicl.mlp(*WIDTHS), budget),
    "AGEM": lambda budget: minicl.AGEM(minicl.mlp(*WIDTHS), budget),
    "GEM": lambda budget: minicl.GEM(minicl.mlp(*WIDTHS), budget),
}
WITHOUT_MEMORY: dict[str, Callable[[int], minicl.Learner]] = {
    "PackNet": lambda budget: minicl.PackNet(minicl.mlp(*WIDTHS), keep_ratio=[1 / (5 - k) for k in range(5)]),
    "HAT": lambda budget: minicl.HAT(minicl.mlp(*WIDTHS)),
    "PNN": lambda budget: minicl.PNN(minicl.mlp(*WIDTHS)),
}


def runs() -> Iterator[tuple[str, str, int, int]]:
    """Method, stream, budget and seed of every run, the cheap ones first."""
    for seed in TEST_SEEDS:
        for stream in STREAMS:
            yield from ((method, stream, budget, seed) for budget in BUDGETS for method in ("ER", "DERpp", "AGEM"))
        yield from ((method, "split-task", 0, seed) for method in WITHOUT_MEMORY)
    for seed in TEST_SEEDS:
        yield from (("GEM", stream, budget, seed) for stream in STREAMS for budget in BUDGETS)


def measure(method: str, stream: str, budget: int, seed: int) -> dict[str, Any]:
    """One run: ACC, BWT, the bytes kept beside the weights, those of the weights, seconds."""
    learner = (METHODS | WITHOUT_MEMORY)[method](budget)
    settings = partial(minicl.run, epochs=EPOCHS, batch_size=BATCH, optimizer=ADAM, seed=seed, progress=False)
    result = settings(learner, STREAMS[stream](seed))
    return {
        "ACC": result.average_accuracy,
        "BWT": result.backward_transfer,
        "bytes": learner.capacity()["bytes"],
        "extra_bytes": learner.capacity()["extra_bytes"],
        "seconds": result.seconds,
    }


def key(method: str, stream: str, budget: int, seed: int) -> str:
    return f"{method} {stream} {budget} {seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that is read and completed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = files.read_json(arguments.results) if arguments.results.exists() else {}
    for run in runs():
        if key(*run) not in found:
            found[key(*run)] = measure(*run)
            files.write_json(arguments.results, found)
            print(f"{key(*run):34} ACC {found[key(*run)]['ACC']:.2%}", flush=True)


if __name__ == "__main__":
    main()
