"""The strengths of the chapter on regularisation: searched on validation samples, then five seeds on test samples.

    python benchmarks/regularization_search.py

Digits, 64-100-100, Adam 3e-3, batch 64, 6 epochs per task. Streams: permuted digits ("domain", 5 tasks, at most 500
images each) and split digits in the three scenarios (5 tasks). For each method and stream every strength is tried with
two seeds, and the one with the highest mean ACC on validation samples is taken; test samples choose nothing. Results
are written after every run, and a run that is in the file is not made again. In the end the values are written in a
table beside it, with what each came to on validation samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import minicl
from minicl import files

RESULTS = Path(__file__).resolve().parent / "results" / "regularization.json"
WIDTHS, EPOCHS, BATCH = (64, 100, 100), 6, 64
ADAM = partial(torch.optim.Adam, lr=3e-3)
SEARCH_SEEDS, TEST_SEEDS = range(100, 102), range(5)

Make = Callable[[float], minicl.Learner]

METHODS: dict[str, tuple[str, list[float], Make]] = {
    # the name of what is searched, its values, and the learner that has it
    "EWC": ("lam", [1, 10, 100, 1e3, 1e4], lambda v: minicl.EWC(minicl.mlp(*WIDTHS), lam=v)),
    "SI": ("c", [0.1, 1, 10, 100, 1e3], lambda v: minicl.SI(minicl.mlp(*WIDTHS), c=v)),
    "MAS": ("lam", [0.01, 0.1, 1, 10, 100], lambda v: minicl.MAS(minicl.mlp(*WIDTHS), lam=v)),
    "LwF": ("lam", [0.1, 0.3, 1, 3, 10], lambda v: minicl.LwF(minicl.mlp(*WIDTHS), lam=v)),
    "VCL": (
        "initial_sigma",
        [0.01, 0.03, 0.1, 0.2, 0.4],
        lambda v: minicl.VCL(minicl.mlp(*WIDTHS), initial_sigma=v),
    ),
    "AGSCL": ("lam", [0.1, 0.3, 1, 3, 10], lambda v: minicl.AGSCL(minicl.mlp(*WIDTHS), mu=0.5, lam=v)),
}
BOUNDS: dict[str, Make] = {
    "FineTune": lambda v: minicl.FineTune(minicl.mlp(*WIDTHS)),
    "Joint": lambda v: minicl.Joint(minicl.mlp(*WIDTHS)),
}
STREAMS: dict[str, Callable[[int], minicl.TaskStream]] = {
    "permuted-domain": lambda seed: minicl.permuted("digits", 5, "domain", seed, n_train=500),
    "split-task": lambda seed: minicl.split("digits", 5, "task", seed),
    "split-domain": lambda seed: minicl.split("digits", 5, "domain", seed),
    "split-class": lambda seed: minicl.split("digits", 5, "class", seed),
}


def on_validation(stream: minicl.TaskStream) -> minicl.TaskStream:
    """The same tasks, with their validation samples in the place of the test samples."""
    tasks = [minicl.Task(t.id, t.n_outputs, t.train, t.valid, t.valid, scenario=t.scenario) for t in stream]
    return minicl.TaskStream(tasks, f"{stream.name}-valid")


def measure(method: str, stream: str, value: float, seed: int, part: str) -> dict[str, Any]:
    """One run: ACC, BWT, FWT (None where it has no meaning), accuracy on each task just learned, bytes, seconds."""
    tasks = STREAMS[stream](seed)
    tasks = on_validation(tasks) if part == "valid" else tasks
    learner = BOUNDS[method](value) if method in BOUNDS else METHODS[method][2](value)
    result = minicl.run(learner, tasks, epochs=EPOCHS, batch_size=BATCH, optimizer=ADAM, seed=seed, progress=False)
    forward = result.forward_transfer
    return {
        "ACC": result.average_accuracy,
        "BWT": result.backward_transfer,
        "FWT": None if forward != forward else forward,
        "new": float(result.accuracy.diagonal().mean()),
        "bytes": learner.capacity()["bytes"] + learner.capacity()["extra_bytes"],
        "extra_bytes": learner.capacity()["extra_bytes"],
        "bytes_while_learning": learner.capacity().get("bytes_while_learning", 0),
        "seconds": result.seconds,
    }


def key(method: str, stream: str, value: float, seed: int, part: str) -> str:
    return f"{method} {stream} {value:g} {seed} {part}"


def mean_acc(runs: dict[str, Any], method: str, stream: str, value: float) -> float:
    """Mean ACC on validation samples over the seeds of the search."""
    found = [runs[key(method, stream, value, seed, "valid")]["ACC"] for seed in SEARCH_SEEDS]
    return float(sum(found) / len(found))


def chosen(runs: dict[str, Any], method: str, stream: str) -> float:
    """The strength with the highest mean ACC on validation samples; of equal ones the smallest."""
    values = METHODS[method][1]
    return max(values, key=lambda value: (mean_acc(runs, method, stream, value), -value))


def table(runs: dict[str, Any]) -> str:
    """The search in Markdown: mean ACC on validation samples of each strength, in percent; the one taken in bold."""
    longest = max(len(values) for _, values, _ in METHODS.values())
    lines = ["| method | searched | stream |" + " |" * longest, "|---" * (3 + longest) + "|"]
    for method, (name, values, _) in METHODS.items():
        for stream in STREAMS:
            taken = chosen(runs, method, stream)
            cells = [f"{value:g}: {100 * mean_acc(runs, method, stream, value):.1f}" for value in values]
            cells = [f"**{cell}**" if value == taken else cell for cell, value in zip(cells, values, strict=True)]
            lines.append(f"| {method} | `{name}` | {stream} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that is read and completed")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *BOUNDS], default=[*METHODS, *BOUNDS])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Any] = files.read_json(arguments.results) if arguments.results.exists() else {}

    def ensure(*run: Any) -> None:
        if key(*run) not in runs:
            runs[key(*run)] = measure(*run)
            files.write_json(arguments.results, runs)

    for stream in STREAMS:
        for method in arguments.methods:
            value = 0.0
            if method in METHODS:
                for value in METHODS[method][1]:
                    for seed in SEARCH_SEEDS:
                        ensure(method, stream, value, seed, "valid")
                value = chosen(runs, method, stream)
            for seed in TEST_SEEDS:
                ensure(method, stream, value, seed, "test")
            acc = [runs[key(method, stream, value, seed, "test")]["ACC"] for seed in TEST_SEEDS]
            searched = f"{METHODS[method][0]} = {value:g}" if method in METHODS else ""
            print(f"{stream:16} {method:9} {searched:22} ACC {sum(acc) / len(acc):.2%}", flush=True)
    if set(arguments.methods) >= set(METHODS):
        arguments.results.with_suffix(".md").write_text(table(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
