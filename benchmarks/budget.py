"""One budget: every method is searched with the same number of trials, on the stream and scenario that is reported.

    python benchmarks/budget.py --root FOLDER --jobs 2              # what is reported: two to three hours of two cores
    python benchmarks/budget.py                                     # of it what needs no folder: digits
    python benchmarks/budget.py --streams split-class --methods EWC HAT
    python benchmarks/budget.py --streams split-mnist-class --root FOLDER     # days on one core; name some methods
    python benchmarks/budget.py --gather                            # only the table, of the runs that there are

*Trials.* 20 for each method on each stream. The first is what the package does when nothing is said. The others are
drawn at random: the method's own dials (SPACES), Adam or SGD with momentum, its learning rate, one optimiser for all
tasks or a new one each. Each trial is trained with seeds 100 and 101, and the highest mean ACC on validation samples
wins; test samples choose nothing. (Where the first seed is more than ten points behind the best trial so far, the
second is spared.) After every five trials, a range whose end the best one is near is made longer at that end. A trial
that fails (the loss becomes NaN, the network is full) counts as 0.

*Runs.* What was best after 1, 5 and 20 trials is trained again with seeds 0, 1, ..., on test samples: so the
figure is honest about how much of a result is the search.

*Images.* A run on all of MNIST takes half a minute, and a stream needs 1,600. So the streams few-mnist and few-fashion
have a sample of each class that every seed draws anew (FEW): 250 images to train on, 100 to validate, 200 of the test
images. They say who is ahead where images are few; the streams split-mnist and split-fashion take all that there are.

A result is one file for a method and a stream in --out; what is there is not run again, so the script goes on where it
was stopped, and several may fill one folder. In the end all are gathered in --results.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import minicl
from minicl import files, inference
from minicl.datasets import load
from minicl.samples import Samples

RESULTS = Path(__file__).resolve().parent / "results" / "budget.json"
RUNS = Path(__file__).resolve().parents[1] / "_build" / "budget"
TRIALS, CHECKPOINTS = 20, (1, 5, 20)
BEHIND = 0.1
SEARCH_SEEDS = (100, 101)
BLOCK, EDGE = 5, 0.1  # after so many trials ranges may grow; this share of a range is its end
BUDGET = 200  # samples that every method with a memory keeps

# ---- what is reported ------------------------------------------------------------------------------------------------

SEEDS = 10  # of the runs on test samples
PERMUTED = {"widths": (64, 100, 100), "epochs": 5, "batch_size": 64}
SPLIT = {"widths": (64, 100, 100), "epochs": 6, "batch_size": 64}
IMAGES = {"widths": (784, 400, 400), "epochs": 4, "batch_size": 128}
FEW_IMAGES = {"widths": (784, 100, 100), "epochs": 4, "batch_size": 64}
FEW = {"train": 250, "valid": 100, "test": 200}  # images of each class

Stream = Callable[[int, str], minicl.TaskStream]


def _digits(kind: str, scenario: str) -> Stream:
    if kind == "permuted":
        return lambda seed, root: minicl.permuted("digits", 10, scenario, seed, n_train=500)
    return lambda seed, root: minicl.split("digits", 5, scenario, seed)


def _images(name: str, scenario: str) -> Stream:
    return lambda seed, root: minicl.split(_read(name, root), 5, scenario, seed)


def _few(name: str, scenario: str) -> Stream:
    def make(seed: int, root: str) -> minicl.TaskStream:
        train, test = _read(name, root)
        rng = np.random.default_rng(seed)
        n = FEW["train"] + FEW["valid"]
        some = sample(train, n, rng), sample(test, FEW["test"], rng)
        return minicl.split(some, 5, scenario, seed, validation=FEW["valid"] / n)

    return make


_read = cache(load)  # 1,600 runs read the same files


def sample(samples: Samples, n: int, rng: np.random.Generator) -> Samples:
    """So many samples of each class, drawn."""
    of_class = [np.flatnonzero(samples.y.numpy() == label) for label in samples.y.unique().tolist()]
    return samples.subset(torch.from_numpy(np.concatenate([rng.choice(rows, n, replace=False) for rows in of_class])))


STREAMS: dict[str, tuple[Stream, dict[str, Any]]] = {
    **{f"split-{s}": (_digits("split", s), SPLIT) for s in ("class", "task", "domain")},
    **{f"permuted-{s}": (_digits("permuted", s), PERMUTED) for s in ("task", "domain")},
    **{
        f"{kind}-{name}-{s}": (make(data, s), how)
        for kind, make, how in (("few", _few, FEW_IMAGES), ("split", _images, IMAGES))
        for name, data in (("mnist", "mnist"), ("fashion", "fashion-mnist"))
        for s in minicl.SCENARIOS
    },
}
DIGITS = ("split-class", "split-domain", "split-task", "permuted-task")
REPORTED = (*DIGITS, *(stream for stream, (_, how) in STREAMS.items() if how is FEW_IMAGES))


def scenario_of(stream: str) -> str:
    return stream.rpartition("-")[2]


# ---- what is searched ------------------------------------------------------------------------------------------------

Range = tuple[float, float]  # from, to; drawn evenly on a logarithmic scale
Choice = list[Any]

LR: dict[str, Range] = {"adam": (3e-4, 0.03), "sgd": (0.003, 0.1)}
_shares: Choice = [None, 0.05, 0.1, 0.2, 0.4]  # of PackNet; None: an equal share of the network for each task

SPACES: dict[str, dict[str, Range | Choice]] = {
    "FineTune": {},
    "Joint": {},
    "FeatureExtraction": {},
    "Individual": {},
    "EWC": {"lam": (1.0, 1e4)},
    "SI": {"c": (0.1, 1e3)},
    "MAS": {"lam": (0.01, 100.0)},
    "LwF": {"lam": (0.1, 10.0)},
    "VCL": {"initial_sigma": (0.01, 0.4)},
    "AGSCL": {"lam": (0.1, 10.0), "mu": (0.003, 1.0)},
    "ER": {"share": ["reservoir", "class"]},
    "AGEM": {"share": ["reservoir", "class"]},
    "GEM": {"margin": (0.05, 1.0)},
    "DERpp": {"alpha": (0.03, 1.0), "beta": (0.3, 4.0)},
    "ICaRL": {},
    "BiC": {"held_out": (0.05, 0.4)},
    "GenerativeReplay": {"distill": [False, True]},
    "NCM": {},
    "SLDA": {"epsilon": (1e-6, 1.0)},
    "PNN": {"adapter": ["linear", "mlp"]},
    "HAT": {"s_max": (50.0, 2000.0), "c": (0.05, 2.0)},
    "PackNet": {"keep_ratio": _shares, "retrain_epochs": [1, 2, 3]},
    "Piggyback": {"threshold": (1e-3, 0.02)},
    "CPG": {"tolerance": (0.003, 0.1), "retrain_epochs": [1, 2, 3]},
    "DEN": {"drift": (0.02, 0.5), "lam": (0.01, 1.0)},
    "DER": {"aux": (0.3, 3.0)},
}
FIXED: dict[str, dict[str, Any]] = {
    **{name: {"budget": BUDGET} for name in ("ER", "AGEM", "GEM", "DERpp", "ICaRL", "BiC", "DER")},
}
RULES: Choice = ["softmax", "logit", "energy"]
"""How a method that must be told the task id guesses it where nobody tells: searched too."""
NAMES = {method.__name__: name for name, method in minicl.METHODS.items()}
METHODS = tuple(SPACES)
SLOW = ("DEN", "CPG", "Joint", "DER", "PNN", "GenerativeReplay", "VCL")
"""These come last."""
BOUNDS = ("FineTune", "FeatureExtraction", "Individual", "Joint")


def space(method: str, stream: str) -> dict[str, Range | Choice]:
    """Everything that a trial draws: the method's dials, how it is trained, and how it guesses."""
    found: dict[str, Range | Choice] = {
        **SPACES[method],
        "optimizer": list(LR),
        **{f"lr {name}": ends for name, ends in LR.items()},
        "fresh_optimizer": [True, False],
    }
    if guesses(method, stream):
        found["infer"] = RULES
    return found


def guesses(method: str, stream: str) -> bool:
    return minicl.METHODS[NAMES[method]].needs_task_id and scenario_of(stream) != "task"


def drawn(ranges: dict[str, Range | Choice], method: str, stream: str, trial: int) -> dict[str, Any]:
    """The settings of a trial: those of the package for the first, random ones for all others."""
    if trial == 0:
        return {"infer": "softmax"} if guesses(method, stream) else {}
    rng = np.random.default_rng([zlib.crc32(f"{method} {stream}".encode()), trial])
    settings: dict[str, Any] = {}
    for name, values in ranges.items():
        u = float(rng.random())  # one number for each dial, whichever optimiser is taken
        if isinstance(values, tuple):
            low, high = map(math.log, values)
            settings[name] = float(f"{math.exp(low + u * (high - low)):.4g}")
        else:
            settings[name] = values[int(u * len(values))]
    rates = {name: settings.pop(f"lr {name}") for name in LR}
    return {**settings, "lr": rates[settings["optimizer"]]}


def grown(ranges: dict[str, Range | Choice], best: dict[str, Any]) -> dict[str, Range | Choice]:
    """The same ranges; one whose end the best trial is near is longer there, by half of its length."""
    longer = dict(ranges)
    for name, values in ranges.items():
        value = best.get(name) if not name.startswith("lr ") else None
        if name == f"lr {best.get('optimizer')}":
            value = best["lr"]
        if isinstance(values, tuple) and value is not None:
            low, high = map(math.log, values)
            place, half = (math.log(value) - low) / (high - low), math.exp((high - low) / 2)
            if place < EDGE:
                longer[name] = (values[0] / half, values[1])
            elif place > 1 - EDGE:
                longer[name] = (values[0], values[1] * half)
    return longer


# ---- one run ---------------------------------------------------------------------------------------------------------


def prepared(
    method: str, settings: dict[str, Any], how: dict[str, Any], n_tasks: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a trial gives to the method, and what to `minicl.run`."""
    own = {name: value for name, value in settings.items() if name in SPACES[method]}
    if method == "PackNet" and "keep_ratio" in own and own["keep_ratio"] is None:
        own["keep_ratio"] = [1 / (n_tasks - k) for k in range(n_tasks)]
    given: dict[str, Any] = {"epochs": how["epochs"], "batch_size": how["batch_size"]}
    if "retrain_epochs" in own:
        given["epochs"] -= own["retrain_epochs"]  # re-training counts as training
    elif method in ("PackNet", "CPG"):
        given["epochs"] -= given["epochs"] // 3
        own["retrain_epochs"] = how["epochs"] // 3
    if "optimizer" in settings:
        lr = settings["lr"]
        adam = settings["optimizer"] == "adam"
        given["optimizer"] = partial(torch.optim.Adam, lr=lr) if adam else partial(torch.optim.SGD, lr=lr, momentum=0.9)
        given["fresh_optimizer"] = settings["fresh_optimizer"]
    return {**FIXED.get(method, {}), **own}, given


def measure(method: str, stream: str, settings: dict[str, Any], seed: int, root: str = "") -> dict[str, Any]:
    """Train once: ACC on validation and on test samples, BWT, what is stored, seconds; 0, and why, where it fails."""
    make, how = STREAMS[stream]
    tasks = make(seed, root)
    own, given = prepared(method, settings, how, len(tasks))
    rule = settings.get("infer")
    try:
        learner = minicl.METHODS[NAMES[method]](minicl.mlp(*how["widths"]), **own)
        result = minicl.run(learner, tasks, seed=seed, progress=False, infer=rule, **given)
    except (ValueError, FloatingPointError) as error:
        return {"valid": 0.0, "test": 0.0, "failed": str(error)[:200]}
    if rule is None:
        valid = [minicl.evaluate(learner, task, "valid") for task in tasks]
    else:
        asked = partial(inference.asked_for_a_class, learner, rule=rule, part="valid")
        valid = [asked(task) for task in tasks]
    capacity = result.capacity
    return {
        "valid": statistics.mean(valid),
        "test": result.average_accuracy,
        "BWT": result.backward_transfer,
        "new": float(result.accuracy.diagonal().mean()),
        "stored": capacity["bytes"] + capacity["extra_bytes"],
        "seconds": round(result.seconds, 2),
    }


# ---- a method on a stream --------------------------------------------------------------------------------------------


def best_of(trials: Sequence[dict[str, Any]]) -> int:
    """The trial with the highest mean ACC on validation samples; of equal ones the first."""
    scores = [valid(trial) for trial in trials]
    return scores.index(max(scores))


def valid(trial: dict[str, Any]) -> float:
    return statistics.mean(run["valid"] for run in trial["runs"].values())


def hopeless(trial: dict[str, Any], before: Sequence[dict[str, Any]]) -> bool:
    """Whether the trial's first run is far behind the best earlier trial, so that a second is spared."""
    return bool(trial["runs"] and before) and valid(trial) < max(map(valid, before)) - BEHIND


def ranges_at(ranges: dict[str, Range | Choice], trials: Sequence[dict[str, Any]]) -> dict[str, Range | Choice]:
    """The ranges that the next trial is drawn from: those of the first, grown after every five trials."""
    for n in range(BLOCK, len(trials) + 1, BLOCK):
        ranges = grown(ranges, trials[best_of(trials[:n])]["settings"])
    return ranges


def search(
    trials: list[dict[str, Any]],
    n_trials: int,
    draw: Callable[[list[dict[str, Any]]], dict[str, Any]],
    run: Callable[[dict[str, Any], int], dict[str, Any]],
    keep: Callable[[], object],
) -> None:
    """Add what is missing of so many trials: `draw` gives the settings of the next, `keep` is called after each run."""
    for t in range(n_trials):
        if t == len(trials):
            trials.append({"settings": draw(trials), "runs": {}})
        trial = trials[t]
        for seed in SEARCH_SEEDS:
            if str(seed) not in trial["runs"] and not hopeless(trial, trials[:t]):
                trial["runs"][str(seed)] = run(trial["settings"], seed)
                keep()


def work(method: str, stream: str, out: Path, root: str, n_trials: int, seeds: int) -> str:
    """Whatever is missing of a method on a stream."""
    torch.set_num_threads(1)
    path = out / f"{stream}-{method}.json"
    found: dict[str, Any] = (
        files.read_json(path) if path.exists() else {"method": method, "stream": stream, "trials": [], "tests": {}}
    )
    search(
        found["trials"],
        n_trials,
        lambda before: drawn(ranges_at(space(method, stream), before), method, stream, len(before)),
        lambda settings, seed: measure(method, stream, settings, seed, root),
        lambda: files.write_json(path, found),
    )
    for winner in dict.fromkeys(best_of(found["trials"][:n]) for n in CHECKPOINTS if n <= n_trials):
        tests = found["tests"].setdefault(str(winner), {})
        for seed in range(seeds):
            if str(seed) not in tests:
                tests[str(seed)] = measure(method, stream, found["trials"][winner]["settings"], seed, root)
                files.write_json(path, found)
    acc = statistics.mean(run["test"] for run in found["tests"][str(best_of(found["trials"]))].values())
    return f"{stream:18} {method:18} ACC {acc:.2%}  {found['trials'][best_of(found['trials'])]['settings']}"


# ---- what is made of the runs ----------------------------------------------------------------------------------------


def expected(trials: Sequence[dict[str, Any]]) -> list[float]:
    """Test ACC to be expected of the best of k trials, for k = 1, 2, ...: over every order in which they might come.

    The trial of rank i of n (on validation samples, from 0) is the best of k with probability C(n-1-i, k-1) / C(n, k).
    """
    n = len(trials)
    ranked = sorted(trials, key=valid, reverse=True)
    tests = [statistics.mean(run["test"] for run in trial["runs"].values()) for trial in ranked]
    return [
        sum(math.comb(n - 1 - i, k - 1) / math.comb(n, k) * test for i, test in enumerate(tests))
        for k in range(1, n + 1)
    ]


def is_whole(cell: dict[str, Any], seeds: int = SEEDS) -> bool:
    """Whether all trials were made, and what won has at least so many runs on test samples."""
    trials, tests = cell["trials"], cell["tests"]
    winners = {str(best_of(trials[:n])) for n in CHECKPOINTS} if len(trials) == TRIALS else {""}
    return all(len(tests.get(winner, ())) >= seeds for winner in winners)


def gather(out: Path, results: Path) -> dict[str, Any]:
    """All runs that are whole, in one file; each with what is `expected` of its trials."""
    cells = [files.read_json(path) for path in sorted(out.glob("*.json"))]
    whole = [cell | {"expected": expected(cell["trials"])} for cell in cells if is_whole(cell)]
    order = {name: i for i, name in enumerate(METHODS)}
    whole.sort(key=lambda cell: (list(STREAMS).index(cell["stream"]), order[cell["method"]]))
    found = {"trials": TRIALS, "search_seeds": SEARCH_SEEDS, "few": FEW, "cells": whole}
    results.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(results, found)
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--streams", nargs="+", choices=list(STREAMS), help="default: what is reported, without --root the digits of it"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--root", default="", help="the folder of MNIST and Fashion-MNIST, for their streams")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"of the runs on test samples (default: {SEEDS})")
    parser.add_argument("--out", type=Path, default=RUNS, help="a folder for one file a method and stream")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where all are gathered")
    parser.add_argument("--jobs", type=int, default=1, help="methods at once, one thread each (default: 1)")
    parser.add_argument("--gather", action="store_true", help="run nothing")
    arguments = parser.parse_args(given)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.gather:
        one = partial(work, out=arguments.out, root=arguments.root, n_trials=TRIALS, seeds=arguments.seeds)
        streams = arguments.streams or (REPORTED if arguments.root else DIGITS)
        methods = sorted(arguments.methods, key=lambda method: SLOW.index(method) if method in SLOW else -1)
        cells = [(method, stream) for stream in streams for method in methods]
        for line in _all(one, cells, arguments.jobs):
            print(line, flush=True)
    found = gather(arguments.out, arguments.results)
    print(f"{len(found['cells'])} methods on streams: {arguments.results}")


def _all(one: Callable[..., str], cells: Sequence[tuple[str, str]], jobs: int) -> Iterable[str]:
    if jobs == 1:
        yield from (one(*cell) for cell in cells)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(one, *zip(*cells, strict=True))


if __name__ == "__main__":
    main()
