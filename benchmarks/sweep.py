"""What a sweep gains and costs: all cores against one, scheduling, reading ten thousand results.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --everything     # all methods, three streams, ten seeds: target 90 minutes on two cores

Five methods, two streams of digits, five seeds: once with two processes, once in this one. Scheduling is what the sweep
took in this process beyond the runs themselves. On a machine that has other work the gain is smaller.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import joblib
import torch

import minicl
from minicl import results

METHODS = ["finetune", "ewc", "hat", "packnet", "er"]
STREAMS = ["split-digits", "permuted-digits"]
EVERY_STREAM = [*STREAMS, "rotated-digits"]
TARGETS = {"gain": 1.8, "scheduling": 0.02, "reading": 5.0}


def everything(seeds: int) -> None:
    """A sweep over all methods on three streams of digits, ten seeds; or fewer, and what ten would take."""
    with tempfile.TemporaryDirectory() as place:
        adam = partial(torch.optim.Adam, lr=0.003)
        done = minicl.sweep(list(minicl.METHODS), EVERY_STREAM, seeds, out=Path(place), jobs=2, optimizer=adam)
    print(f"{len(done.results)} runs, {len(done.failures)} failures: {done.seconds / 60:.1f} min with two processes")
    print(f"ten seeds: {done.seconds / seeds * 10 / 60:.0f} min (target: 90)")
    took: dict[str, float] = {}
    for result in done.results:
        took[result.method] = took.get(result.method, 0.0) + result.seconds
    whole = sum(took.values())
    for method in sorted(took, key=took.__getitem__, reverse=True)[:6]:
        print(f"  {method}: {took[method] / whole:.0%} of the time of all runs")
    for name, why in done.failures.items():
        print(f"  failed: {name}: {why.splitlines()[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default: 5 of them)")
    parser.add_argument("--results", type=int, default=10_000, help="how many to read (default: 10,000)")
    parser.add_argument("--everything", action="store_true", help="time a sweep over all methods, and nothing else")
    arguments = parser.parse_args()
    if arguments.everything:
        everything(arguments.seeds)
        return
    print(f"torch {torch.__version__}, {joblib.cpu_count()} cores\n")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = (METHODS, STREAMS, arguments.seeds)
        optimizer = partial(torch.optim.SGD, lr=0.01)
        two = minicl.sweep(*given, out=folder / "two", jobs=2, optimizer=optimizer, progress=False)
        one = minicl.sweep(*given, out=folder / "one", jobs=1, optimizer=optimizer, progress=False)
        assert not one.failures
        assert not two.failures
        share = 1 - one.worked / one.seconds
        print(f"in sequence {one.seconds:.1f} s, two processes {two.seconds:.1f} s: ", end="")
        print(f"{one.seconds / two.seconds:.2f} times as fast (target: {TARGETS['gain']})")
        print(f"scheduling: {share:.2%} of the time in sequence (target: less than {TARGETS['scheduling']:.0%})")
        many = folder / "many"
        many.mkdir()
        record = results.read_record(min((folder / "one").glob("*.json")))
        started = time.perf_counter()
        for seed in range(arguments.results):
            record["result"]["seed"] = seed
            results.write_record(many / f"{seed}.json", record)
        written = time.perf_counter() - started
        started = time.perf_counter()
        assert results.table(many)["seeds"].sum() == arguments.results
        took = time.perf_counter() - started
        print(f"{arguments.results:,} results: written in {written:.1f} s, read into a table in {took:.1f} s ", end="")
        print(f"(target for 10,000: less than {TARGETS['reading']:.0f} s)")


if __name__ == "__main__":
    main()
