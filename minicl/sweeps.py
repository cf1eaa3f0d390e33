"""`sweep`: every combination of methods, streams and seeds, on all cores, and nothing is lost.

One result is one file. Its name is a hash of everything that determines it, so a sweep knows what is there already, and
runs the rest. Files are written by the process that called `sweep`, to a temporary name, and renamed: whatever is
killed, and whenever, there are only whole results. Each run has one thread; several runs go on at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checks, files, results
from .combinations import Job, combine
from .inference import RULES
from .metrics import Result
from .optimizers import SGD
from .pool import Pool, cluster
from .training import progress_bar


@dataclass
class Sweep:
    """What `sweep` did.

    Attributes:
        results: of all combinations that have one, in order of methods, streams, seeds.
        failures: what went wrong, by combination.
        found: how many results were there already.
        damaged: files that could not be read, under the names to which they were moved.
        seconds: how long the sweep took.
        worked: seconds that all runs took together, as their workers measured them.
    """

    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    found: int = 0
    damaged: list[Path] = field(default_factory=list)
    seconds: float = 0.0
    worked: float = 0.0

    def __str__(self) -> str:
        n = len(self.results) + len(self.failures)
        text = (
            f"{n} combinations: {len(self.results) - self.found} run, {self.found} found, {len(self.failures)} failed"
        )
        return "\n".join([text, *(f"failed: {label}: {why}" for label, why in self.failures.items())])


def sweep(
    methods: Iterable[Any] | Any,
    streams: Iterable[Any] | Any,
    seeds: int | Iterable[int] = 5,
    *,
    out: str | Path = "runs",
    scenario: str | Sequence[str] = "task",
    network: str | Callable[[], nn.Module] | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: Callable[..., torch.optim.Optimizer] = SGD,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    patience: int | None = None,
    fresh_optimizer: bool = True,
    device: str = "cpu",
    infer: str | None = None,
    jobs: int | None = None,
    backend: str = "loky",
    scheduler: str | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Run every combination that has no result in the folder `out` yet.

    What fails does not stop the others; it is in `failures`, and reported on stderr at the end. A file that is damaged
    is reported, set aside, and its combination run again.

    Args:
        methods: each a name ("hat"), a `Learner` class, a pair of either and a dictionary of hyperparameters, or
            `partial(minicl.HAT, c=1.0)`.
        streams: each a name ("split-digits"), `partial(minicl.split, "digits", n_tasks=5)`, any function from a seed to
            a `TaskStream`, or a `TaskStream`, which is then the same for every seed.
        seeds: of streams and runs alike; a number n means 0 to n - 1.
        out: the folder of the results, made if it is not there.
        scenario: for streams given by name; several mean every combination.
        network: "mlp:256,256", "cnn:16,32", or a function that makes a backbone; by default as `minicl run` does.
        epochs, batch_size, optimizer, schedule, patience, fresh_optimizer, device: as for `run`. Optimiser and schedule
            must have names that tell them from others: a class, a function of a module, or a `partial` of one; not a
            lambda.
        infer: as for `run`, for the methods that need it: those that must be told the task id, in the other scenarios.
        jobs: runs at once; by default as many as there are cores. 1 stays in this process.
        backend: "loky" (processes on this machine) or "dask".
        scheduler: address of the Dask scheduler, such as "tcp://host:8786". Its workers need the same minicl; give them
            one thread each (`dask worker --nthreads 1`).
        progress: as for `run`.

    Raises:
        ValueError: an unknown name, nothing to combine, settings out of range; before anything is run.
        TypeError: something that is no method, stream or network.
        ImportError: backend "dask" without dask and distributed.
        OSError: the folder cannot be written, or no scheduler answers.
    """
    combinations = list(
        combine(
            methods,
            streams,
            range(seeds) if isinstance(seeds, int) else list(seeds),
            [scenario] if isinstance(scenario, str) else list(scenario),
            network,
            {
                "epochs": epochs,
                "batch_size": batch_size,
                "optimizer": optimizer,
                "schedule": schedule,
                "patience": patience,
                "device": device,
                **({} if fresh_optimizer else {"fresh_optimizer": False}),
                **({} if infer is None else {"infer": checks.one_of("infer", infer, RULES)}),
            },
        )
    )
    wanted = {job.key: job for job in combinations}
    if not wanted:
        raise ValueError("there is nothing to run; at least one method, one stream and one seed are needed")
    jobs = None if jobs is None else checks.integer("jobs", jobs, what=", or None for all cores")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files.check_writable(folder / "result.json")
    _clear(folder)
    with cluster(backend, scheduler, jobs) as pool:
        return _Run(folder, wanted, pool, progress).go()


class _Run:
    """A sweep under way."""

    def __init__(self, folder: Path, wanted: dict[str, Job], pool: Pool, progress: bool | None) -> None:
        self.folder, self.wanted, self.pool, self.progress = folder, wanted, pool, progress
        self.report = Sweep()
        self.records: dict[str, Any] = {}
        self.took: dict[tuple[str, str], float] = {}  # seconds, by kind of job

    def go(self) -> Sweep:
        started = time.perf_counter()
        missing = [job for job in self.wanted.values() if not self._find(job)]
        self.report.found = len(self.records)
        with progress_bar(self.progress, len(self.wanted)) as bar:
            bar.unit = "run"
            bar.update(self.report.found)
            self.bar = bar
            # Where workers die (no memory left, kill -9), the pool breaks down and takes the jobs along that were under
            # way. One of them may be to blame, so each gets a second chance by itself; the others go on in a new pool.
            while missing:
                suspects, left = self._work_off(missing)
                for job in suspects:
                    if any(self._work_off([job])):
                        self._fail(job, f"its process died, or it could not be sent there ({self.pool.error})")
                if left and not suspects:
                    for job in left:
                        self._fail(job, f"no worker could take it ({self.pool.error})")
                    break
                missing = left
        self.report.seconds = time.perf_counter() - started
        self.report.results = [
            Result.from_json(self.records[key]["result"]) for key in self.wanted if key in self.records
        ]
        for label, why in self.report.failures.items():
            print(f"minicl: failed: {label}: {why}", file=sys.stderr)
        return self.report

    def _find(self, job: Job) -> bool:
        """Whether the result of a job is there."""
        path = self.folder / f"{job.key}.json"
        if not path.exists():
            return False
        try:
            self.records[job.key] = results.read_record(path)
        except ValueError as error:
            aside = files.set_aside(path)
            self.report.damaged.append(aside)
            print(f"minicl: {error}; it was set aside as {aside.name}, and is run again", file=sys.stderr)
            return False
        self._learn_time(job, self.records[job.key]["took"])
        return True

    def _work_off(self, jobs: list[Job]) -> tuple[list[Job], list[Job]]:
        """Run these jobs. Where the pool breaks down: the jobs that were under way, and those not begun."""
        left = {job.key: job for job in jobs}
        begun: set[str] = set()

        def longest_first() -> Iterator[Job]:
            """So that no long job is left for the end, when all others wait; the unknown ones before the known."""
            waiting = list(jobs)
            while waiting:
                job = max(waiting, key=lambda job: self.took.get(job.kind, float("inf")))
                waiting.remove(job)
                begun.add(job.key)
                yield job

        for key, record, why, took in self.pool.run(longest_first()):
            job = left.pop(key)
            self._learn_time(job, took)
            self.report.worked += took
            if why is None:
                results.write_record(self.folder / f"{key}.json", record)
                self.records[key] = record
            else:
                self._fail(job, why)
            self.bar.set_postfix_str(job.label, refresh=False)
            self.bar.update()
        return [job for job in left.values() if job.key in begun], [j for j in left.values() if j.key not in begun]

    def _learn_time(self, job: Job, took: float) -> None:
        self.took[job.kind] = max(took, self.took.get(job.kind, 0.0))

    def _fail(self, job: Job, why: str) -> None:
        self.report.failures[job.label] = why


def _clear(folder: Path) -> None:
    """Remove what killed processes left half written; not what another sweep may be writing at this moment."""
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - os.stat(left).st_mtime > 600:
                left.unlink()
