"""All methods side by side: the figures of the book's chapter "All methods side by side".

    python benchmarks/comparison.py                     # all of it: an hour on one core
    python benchmarks/comparison.py --methods HAT PNN   # a part; what is in the file is not measured again

Three parts, all on digits. *Search*: HAT, PackNet and GEM try each value of a dial on seeds 100 and 101, judged by mean
accuracy on validation samples; test samples choose nothing. *Runs*: five seeds of every method, by
`minicl.sweep`, with the value that was chosen. Permuted digits with the task id: 10 tasks, at most 500 images each,
64-256-256, batch 32, five epochs per task. Split digits in the three scenarios: as in regularization_search.py, whose
results stand beside these. Re-training counts as training. *Growth*: twenty permuted tasks (at most 300 images each)
for a network of 64-100-100, ten epochs, measured after every task; for each method with the best of twenty trials, on
validation samples of seeds 100 and 101: the first is the setting for permuted digits, the others are drawn as
budget.py draws them, without what would change how much a method stores.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import budget
import numpy as np
import regularization_search as before
import torch

import minicl
from minicl import certificate, files

RESULTS = Path(__file__).resolve().parent / "results" / "comparison.json"
RUNS = Path(__file__).resolve().parents[1] / "_build" / "comparison"
SEARCH_SEEDS, SEEDS = (100, 101), range(5)
BUDGET = 200  # samples that every replay method keeps

Stream = Callable[..., minicl.TaskStream]
STREAMS: dict[str, Stream] = {
    "permuted-task": partial(minicl.permuted, "digits", n_tasks=10, scenario="task", n_train=500),
    **{f"split-{s}": partial(minicl.split, "digits", n_tasks=5, scenario=s) for s in ("task", "domain", "class")},
}
EPOCHS = {stream: before.EPOCHS for stream in STREAMS} | {"permuted-task": 5, "growth": 10}
BATCH = {stream: before.BATCH for stream in STREAMS} | {"permuted-task": 32, "growth": 32}
WIDTHS = {stream: (64, 256, 256) if stream == "permuted-task" else before.WIDTHS for stream in STREAMS}
ELSEWHERE = ("Piggyback", "CPG", "DEN", "DER", "NCM", "SLDA", "ICaRL", "BiC", "GenerativeReplay")
"""Methods that have tables of their own, in the chapters on growth and on unknown task ids."""
NAMES = {method.__name__: name for name, method in minicl.METHODS.items() if method.__name__ not in ELSEWHERE}

# Whose dial is searched here, and the values that are tried. Strengths of the regularisation methods on permuted digits
# are those that regularization_search.py chose for them (in Domain-IL, on validation samples); others have defaults.
DIALS: dict[str, tuple[str, list[float]]] = {
    "HAT": ("c", [0.1, 0.25, 0.5, 1.0]),
    "PackNet": ("keep_ratio", [0.05, 0.1, 0.2, 0.4]),
    "GEM": ("margin", [0.0, 0.5]),
}
ALWAYS: dict[str, dict[str, Any]] = {
    "HAT": {"s_max": 1000.0},
    "PackNet": {"retrain_epochs": 2},
    "AGSCL": {"mu": 0.5},
    **{name: {"budget": BUDGET} for name in ("ER", "AGEM", "GEM", "DERpp")},
}
STRENGTHS: dict[str, Any] = files.read_json(before.RESULTS)
GROWN = ("FineTune", "Individual", "PNN", "HAT", "PackNet", "EWC", "ER")
GROWTH: Stream = partial(minicl.permuted, "digits", n_tasks=20, scenario="task", n_train=300)
GROWN_WIDTHS = (64, 100, 100)
GROWN_HOW = {"epochs": EPOCHS["growth"], "batch_size": BATCH["growth"]}
SIZES = ("adapter", "share")  # dials on which it depends how much is stored, and what the figure shows


def fits(method: str, stream: str) -> bool:
    """Whether the method can work on the stream, and is not in the results of regularization_search.py."""
    if stream != "permuted-task" and method in (*before.METHODS, *before.BOUNDS):
        return False
    return stream.endswith("task") or not minicl.METHODS[NAMES[method]].needs_task_id


def hyperparameters(method: str, value: float | None) -> dict[str, Any]:
    """What the method is given, its dial at `value`."""
    dial = before.METHODS[method][0] if method in before.METHODS else DIALS.get(method, (None,))[0]
    return {**ALWAYS.get(method, {}), **({} if dial is None else {dial: value})}


def training(method: str, stream: str) -> dict[str, Any]:
    """What `run` is told. The optimisers of the isolation methods were searched: see permuted_digits.py."""
    epochs = EPOCHS[stream]
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": BATCH[stream], "optimizer": before.ADAM}
    if method == "HAT":
        settings["optimizer"] = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        settings["schedule"] = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    elif method == "PackNet":
        settings |= {"optimizer": partial(torch.optim.Adam, lr=0.01), "epochs": epochs - 2}
    elif method == "PNN":
        settings["optimizer"] = partial(torch.optim.Adam, lr=0.002)
    return settings


def on_validation(stream: minicl.TaskStream) -> minicl.TaskStream:
    """The same tasks, with their validation samples in the place of the test samples."""
    tasks = [minicl.Task(t.id, t.n_outputs, t.train, t.valid, t.valid, scenario=t.scenario) for t in stream]
    return minicl.TaskStream(tasks, f"{stream.name}-valid")


def tried(method: str, stream: str, value: float, seed: int) -> float:
    """ACC on validation samples."""
    learner = minicl.METHODS[NAMES[method]](minicl.mlp(*WIDTHS[stream]), **hyperparameters(method, value))
    tasks = on_validation(STREAMS[stream](seed=seed))
    try:
        result = minicl.run(learner, tasks, seed=seed, progress=False, **training(method, stream))
    except (ValueError, FloatingPointError):  # a network that is full, a loss that is no number: not to be chosen
        return 0.0
    return result.average_accuracy


def key(method: str, stream: str, value: float, seed: int) -> str:
    return f"{method} {stream} {value:g} {seed}"


def chosen(search: dict[str, float], method: str, stream: str) -> float | None:
    """The value with the highest mean ACC on validation samples; None without a dial."""
    if method in before.METHODS:
        return before.chosen(STRENGTHS, method, "permuted-domain")
    if method not in DIALS:
        return None
    means = {v: statistics.mean(search[key(method, stream, v, s)] for s in SEARCH_SEEDS) for v in DIALS[method][1]}
    return max(means, key=means.__getitem__)


def summary(result: minicl.Result) -> dict[str, Any]:
    """What the chapter needs of a run."""
    capacity = result.capacity
    return {
        "ACC": result.average_accuracy,
        "BWT": result.backward_transfer,
        "F": result.forgetting,
        "new": float(np.diagonal(result.accuracy).mean()),
        "parameters": result.parameters,
        "bytes": capacity["bytes"],
        "extra_bytes": capacity["extra_bytes"],
        "seconds": result.seconds,
    }


# ---- growth ----------------------------------------------------------------------------------------------------------


def median_ms(work: Callable[[], Any], turns: int = 9) -> float:
    """Median milliseconds of a call, after one that is not counted."""
    times = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def free_share(capacity: dict[str, Any]) -> float | None:
    """What is left for later tasks, of units (HAT) or weights (PackNet); None where nothing is claimed."""
    if "prunable" in capacity:
        return float(capacity["free"] / capacity["prunable"])
    layers = capacity.get("layers")
    if layers:
        return float(sum(layer["free"] for layer in layers.values()) / sum(layer["units"] for layer in layers.values()))
    return None


def reused_share(learner: minicl.Learner, task_id: int) -> float | None:
    """How much of what answers for a task was made for earlier tasks: units, weights, or parameters of columns."""
    if isinstance(learner, minicl.HAT):
        own = torch.cat(learner.masks(task_id))
        before = [torch.cat(learner.masks(t)) for t in learner.learned if t < task_id]
        earlier = torch.stack(before).any(0) if before else torch.zeros_like(own)
        return float((own & earlier).sum() / own.sum())
    if isinstance(learner, minicl.PackNet):
        weights = {t: task["weights"] for t, task in learner.capacity()["tasks"].items()}
        return 1 - weights[task_id] / sum(weights.values())
    if isinstance(learner, minicl.PNN):
        capacity = learner.capacity()
        own_parameters = capacity["columns"][task_id] + sum(capacity["laterals"][task_id].values())
        return float(1 - own_parameters / capacity["parameters"])
    return None


def drawn_for_growth(method: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of the trial after these; the first has those for permuted digits."""
    if not before:
        return {}
    space = {name: values for name, values in budget.space(method, "growth-task").items() if name not in SIZES}
    space["fresh_optimizer"] = [True]  # tasks are learned one by one, to be measured
    return budget.drawn(budget.ranges_at(space, before), method, "growth-task", len(before))


def for_growth(method: str, settings: dict[str, Any], value: float | None) -> tuple[minicl.Learner, dict[str, Any]]:
    """A learner with the settings of a trial, and what `run` is told."""
    if settings:
        own, how = budget.prepared(method, settings, GROWN_HOW, len(GROWTH(seed=0)))
    else:
        own, how = hyperparameters(method, value), training(method, "growth")
    return minicl.METHODS[NAMES[method]](minicl.mlp(*GROWN_WIDTHS), **own), how


def tried_for_growth(method: str, value: float | None, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Mean accuracy on validation samples after twenty tasks; 0, and why, where training fails."""
    learner, how = for_growth(method, settings, value)
    stream = GROWTH(seed=seed)
    try:
        minicl.run(learner, stream, seed=seed, progress=False, **how)
    except (ValueError, FloatingPointError) as error:
        return {"valid": 0.0, "failed": str(error)[:200]}
    return {"valid": statistics.mean(minicl.evaluate(learner, task, "valid") for task in stream)}


def growth(method: str, settings: dict[str, Any], value: float | None, seed: int) -> dict[str, Any]:
    """Twenty tasks, and after each what it costs; ends early, with the reason, where the network is full."""
    learner, how = for_growth(method, settings, value)
    stream = GROWTH(seed=seed)
    rows: list[dict[str, Any]] = []
    full = None
    for t, task in enumerate(stream):
        try:
            result = minicl.run(learner, stream[t : t + 1], seed=1000 * seed + t, progress=False, **how)
        except ValueError as error:
            full = str(error)
            break
        capacity = learner.capacity()
        epochs = len(result.learning_curves[0]) - 1
        n = sum(len(each.train) for each in stream[: t + 1]) if method == "Joint" else len(task.train)
        x = task.test.x[:100]
        learner.eval()
        with torch.no_grad():
            ms = median_ms(partial(learner, x, task.id))
        rows.append(
            {
                "newest": float(result.accuracy[0, 0]),
                "mean": statistics.mean(minicl.evaluate(learner, old) for old in stream[: t + 1]),
                "parameters": capacity["parameters"],
                "bytes": capacity["bytes"],
                "extra_bytes": capacity["extra_bytes"],
                "step_ms": 1000 * result.seconds / (epochs * math.ceil(n / BATCH["growth"])),
                "task_seconds": result.seconds,
                "inference_ms": ms,
                "free": free_share(capacity),
                "reused": reused_share(learner, task.id),
            }
        )
    identical = certificate.compare(learner, stream[: len(rows)])
    return {"rows": rows, "full": full, "identical": sum(bool(line.identical) for line in identical.lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that is read and completed")
    parser.add_argument("--runs", type=Path, default=RUNS, help="the folder of the sweep")
    parser.add_argument("--methods", nargs="+", choices=list(NAMES), default=list(NAMES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"search": {}, "runs": {}, "growth": {}}
    if arguments.results.exists():
        found = files.read_json(arguments.results)
    for method in arguments.methods:
        for stream in (s for s in STREAMS if fits(method, s)):
            for value in DIALS[method][1] if method in DIALS else []:
                for seed in SEARCH_SEEDS:
                    if (name := key(method, stream, value, seed)) not in found["search"]:
                        found["search"][name] = tried(method, stream, value, seed)
            files.write_json(arguments.results, found)
            value = chosen(found["search"], method, stream)
            missing = [seed for seed in SEEDS if f"{method} {stream} {seed}" not in found["runs"]]
            if missing:
                done = minicl.sweep(
                    [(NAMES[method], hyperparameters(method, value))],
                    [STREAMS[stream]],
                    missing,
                    out=arguments.runs,
                    network=f"mlp:{','.join(map(str, WIDTHS[stream][1:]))}",
                    jobs=1,
                    **training(method, stream),
                )
                if done.failures:
                    raise SystemExit(str(done))
                found["runs"] |= {f"{method} {stream} {r.seed}": summary(r) for r in done.results}
                files.write_json(arguments.results, found)
            acc = [found["runs"][f"{method} {stream} {seed}"]["ACC"] for seed in SEEDS]
            print(f"{stream:14} {method:18} {value!s:8} ACC {statistics.mean(acc):.2%}", flush=True)
        if method in GROWN:
            value = chosen(found["search"], method, "permuted-task")
            trials = found.setdefault("growth search", {}).setdefault(method, [])
            budget.search(
                trials,
                budget.TRIALS,
                partial(drawn_for_growth, method),
                partial(tried_for_growth, method, value),
                lambda: files.write_json(arguments.results, found),
            )
            settings = trials[budget.best_of(trials)]["settings"]
            for seed in SEEDS:
                if f"{method} {seed}" not in found["growth"]:
                    found["growth"][f"{method} {seed}"] = growth(method, settings, value, seed)
                    files.write_json(arguments.results, found)
            last = found["growth"][f"{method} 0"]
            print(f"growth         {method:18} {len(last['rows'])} tasks {last['rows'][-1]}", flush=True)


if __name__ == "__main__":
    main()
