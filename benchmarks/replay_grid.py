"""What the replay methods reach with budgets of 10 to 1,000 samples: the runs behind the chapter on replay.

    python benchmarks/replay_grid.py

Digits, with the streams, network, optimiser and epochs of regularization_search.py, so that its results for EWC,
fine-tuning and joint training stand beside these. GEM's margin and the weights of DER++ are searched for each stream:
budget 200, two seeds, highest mean ACC on validation samples; test samples choose nothing. ER and A-GEM have nothing to
search. Then every budget with five seeds, on test samples. PNN, HAT and PackNet, which must be told the task id, are
there for split digits in Task-IL. Results are written after every run, and a run that is in the file is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from regularization_search import ADAM, BATCH, EPOCHS, SEARCH_SEEDS, STREAMS, TEST_SEEDS, WIDTHS, on_validation

import minicl
from minicl import files

RESULTS = Path(__file__).resolve().parent / "results" / "replay.json"
BUDGETS, SEARCH_BUDGET = (10, 50, 200, 1000), 200

# The settings that are tried, and the learner of a budget that has them.
METHODS: dict[str, tuple[list[dict[str, float]], Callable[..., minicl.Learner]]] = {
    "ER": ([{}], minicl.ER),
    "AGEM": ([{}], minicl.AGEM),
    "GEM": ([{"margin": m} for m in (0.0, 0.5, 1.0)], minicl.GEM),
    "DERpp": ([{"alpha": a, "beta": b} for a in (0.03, 0.1, 0.3, 1.0) for b in (0.5, 1.0, 2.0, 4.0)], minicl.DERpp),
}
WITHOUT_MEMORY: dict[str, Callable[[], minicl.Learner]] = {
    "PNN": lambda: minicl.PNN(minicl.mlp(*WIDTHS)),
    "HAT": lambda: minicl.HAT(minicl.mlp(*WIDTHS)),
    "PackNet": lambda: minicl.PackNet(minicl.mlp(*WIDTHS), keep_ratio=[1 / (5 - k) for k in range(5)]),
}


def measure(learner: minicl.Learner, stream: str, seed: int, part: str) -> dict[str, Any]:
    """One run: ACC, BWT, the bytes of the weights, those kept beside them, seconds."""
    tasks = on_validation(STREAMS[stream](seed)) if part == "valid" else STREAMS[stream](seed)
    result = minicl.run(learner, tasks, epochs=EPOCHS, batch_size=BATCH, optimizer=ADAM, seed=seed, progress=False)
    return {
        "ACC": result.average_accuracy,
        "BWT": result.backward_transfer,
        "bytes": learner.capacity()["bytes"],
        "extra_bytes": learner.capacity()["extra_bytes"],
        "seconds": result.seconds,
    }


def key(method: str, stream: str, budget: int, seed: int, part: str, settings: dict[str, float]) -> str:
    words = ",".join(f"{name}={value:g}" for name, value in settings.items())
    return f"{method} {stream} {budget} {seed} {part} {words or 'default'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that is read and completed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = files.read_json(arguments.results) if arguments.results.exists() else {}

    def acc(method: str, stream: str, budget: int, seed: int, part: str, settings: dict[str, float]) -> float:
        run = key(method, stream, budget, seed, part, settings)
        if run not in found:
            if budget:
                learner = METHODS[method][1](minicl.mlp(*WIDTHS), budget, **settings)
            else:
                learner = WITHOUT_MEMORY[method]()
            found[run] = measure(learner, stream, seed, part)
            files.write_json(arguments.results, found)
        return float(found[run]["ACC"])

    for seed in TEST_SEEDS:
        for method in WITHOUT_MEMORY:
            acc(method, "split-task", 0, seed, "test", {})
    for stream in STREAMS:
        for method, (tried, _) in METHODS.items():
            best = tried[0]
            if len(tried) > 1:
                searched = [
                    sum(acc(method, stream, SEARCH_BUDGET, seed, "valid", settings) for seed in SEARCH_SEEDS)
                    for settings in tried
                ]
                best = tried[searched.index(max(searched))]
            for budget in BUDGETS:
                tested = [acc(method, stream, budget, seed, "test", best) for seed in TEST_SEEDS]
                print(f"{stream:16} {method:6} {budget:5} ACC {sum(tested) / len(tested):.2%}  {best}", flush=True)


if __name__ == "__main__":
    main()
