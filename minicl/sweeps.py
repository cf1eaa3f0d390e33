"""`sweep`: every combination of methods, streams and seeds, on all cores, and nothing is lost.

One result is one file. Its name is a hash of everything that determines it, so a sweep knows what is there already, and
runs the rest. Files are written by the process that called `sweep`, to a temporary name, and renamed: whatever is
killed, and whenever, there are only whole results. Each run has one thread; several runs go on at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import files, networks, results
from .learner import Learner, accepted_hyperparameters
from .metrics import Result
from .tasks import PARTS, STREAMS, TaskStream, check_scenario, check_seed
from .training import SGD, _bar, _describe, check_device, run

BACKENDS = ("loky", "dask")
_ALONE = threading.Lock()  # a Dask worker may have several threads, and torch's random generator is one for all


@dataclass(frozen=True)
class _Job:
    """One combination, ready to be sent to a worker."""

    key: str
    identity: dict[str, Any]
    label: str
    kind: tuple[str, str]  # method and stream: seeds of the same kind take equally long
    method: Callable[..., Learner]
    stream: Callable[[int], TaskStream]
    network: Callable[[tuple[int, ...]], nn.Module]
    seed: int
    settings: dict[str, Any]


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
    device: str = "cpu",
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
        epochs, batch_size, optimizer, schedule, patience, device: as for `run`. Optimiser and schedule must have names
            that tell them from others: a class, a function of a module, or a `partial` of one; not a lambda.
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
        _combinations(
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
            },
        )
    )
    wanted = {job.key: job for job in combinations}
    if not wanted:
        raise ValueError("there is nothing to run; at least one method, one stream and one seed are needed")
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise ValueError(f"jobs is {jobs!r}; allowed: integers from 1 up, or None for all cores")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files.check_writable(folder / "result.json")
    _clear(folder)
    with _cluster(backend, scheduler, jobs) as pool:
        return _Run(folder, wanted, pool, progress).go()


class _Run:
    """A sweep under way."""

    def __init__(self, folder: Path, wanted: dict[str, _Job], pool: _Pool, progress: bool | None) -> None:
        self.folder, self.wanted, self.pool, self.progress = folder, wanted, pool, progress
        self.report = Sweep()
        self.records: dict[str, Any] = {}
        self.took: dict[tuple[str, str], float] = {}  # seconds, by kind of job

    def go(self) -> Sweep:
        started = time.perf_counter()
        missing = [job for job in self.wanted.values() if not self._find(job)]
        self.report.found = len(self.records)
        with _bar(self.progress, len(self.wanted)) as bar:
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

    def _find(self, job: _Job) -> bool:
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

    def _work_off(self, jobs: list[_Job]) -> tuple[list[_Job], list[_Job]]:
        """Run these jobs. Where the pool breaks down: the jobs that were under way, and those not begun."""
        left = {job.key: job for job in jobs}
        begun: set[str] = set()

        def longest_first() -> Iterator[_Job]:
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

    def _learn_time(self, job: _Job, took: float) -> None:
        self.took[job.kind] = max(took, self.took.get(job.kind, 0.0))

    def _fail(self, job: _Job, why: str) -> None:
        self.report.failures[job.label] = why


def _work(job: _Job, version: str) -> tuple[str, dict[str, Any] | None, str | None, float]:
    """Run a job, in whatever process: its key, the record, what went wrong, and the seconds that it took."""
    started = time.perf_counter()
    with _ALONE:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if (here := results.version()) != version:
                raise RuntimeError(f"the worker has minicl {here}, the sweep {version}; install the same everywhere")
            stream = job.stream(job.seed)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(job.seed)  # for a network whose weights `run` does not draw
                learner = job.method(job.network(tuple(stream[0].example.shape[1:])))
            result = run(learner, stream, seed=job.seed, progress=False, **job.settings)
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            return job.key, None, why, time.perf_counter() - started
        finally:
            torch.set_num_threads(threads)
    took = time.perf_counter() - started
    record = {"identity": job.identity, "took": took, "with": f"torch {torch.__version__}", "result": result.as_json()}
    return job.key, record, None, took


# ---- where the work is done ------------------------------------------------------------------------------------------


@dataclass
class _Pool:
    """Workers, through joblib. What breaks down is remembered in `error`, and ends the round."""

    settings: dict[str, Any]
    error: str = ""

    def run(self, jobs: Iterator[_Job]) -> Iterator[tuple[str, Any, str | None, float]]:
        import joblib

        version = results.version()
        with joblib.parallel_config(**self.settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A worker stopped while some jobs")  # loky renews idle workers
            # One job at a time and none in advance: the next is chosen when a worker is free.
            parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")
            try:
                yield from parallel(joblib.delayed(_work)(job, version) for job in jobs)
            except Exception as error:  # no job's own: those are caught where they arise
                self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def _cluster(backend: str, scheduler: str | None, jobs: int | None) -> Iterator[_Pool]:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; allowed: {', '.join(BACKENDS)}")
    if backend == "loky":
        if scheduler is not None:
            raise ValueError(
                "a scheduler was named, and the backend is 'loky'; allowed: backend='dask' (--backend dask)"
            )
        import joblib

        n_jobs = jobs or joblib.cpu_count()
        # A process that was just forked has what it needs in a second; one thread each, whatever the libraries.
        yield _Pool({"backend": "loky", "n_jobs": n_jobs, "inner_max_num_threads": 1} if n_jobs > 1 else {"n_jobs": 1})
        return
    if scheduler is None:
        raise ValueError(
            "the Dask backend needs the address of a scheduler: scheduler='tcp://host:8786' (--scheduler tcp://...)"
        )
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            "the Dask backend needs the packages dask and distributed; install them with: "
            "pip install 'minicl[distributed]'"
        ) from error
    try:
        client = Client(scheduler, timeout=10, set_as_default=True)
    except (OSError, ValueError) as error:
        raise OSError(f"no Dask scheduler answers at {scheduler!r}: {error}") from error
    try:
        yield _Pool({"backend": "dask", "client": client, "n_jobs": jobs or -1})
    finally:
        client.close()


# ---- what is to be run -----------------------------------------------------------------------------------------------


def _combinations(
    methods: Any, streams: Any, seeds: Sequence[int], scenarios: list[str], network: Any, settings: dict[str, Any]
) -> Iterator[_Job]:
    for seed in seeds:
        check_seed(seed)
    for name in scenarios:
        check_scenario(name)
    check_device(settings["device"])
    if isinstance(network, str):
        networks.layers(network)
    elif network is not None and not callable(network):
        raise TypeError(f"network is a {type(network).__name__}; allowed: a name such as 'mlp:256,256', or a function")
    described = {
        **settings,
        "optimizer": _named("optimizer", settings["optimizer"]),
        "schedule": None if settings["schedule"] is None else _named("schedule", settings["schedule"]),
    }
    made = [_method(item) for item in _several(methods, (str, type, tuple, partial))]
    given = [s for item in _several(streams, (str, Mapping, TaskStream, partial)) for s in _streams(item, scenarios)]
    for cls, hyperparameters in made:
        for what, make, settings_of_stream in given:
            for seed in seeds:
                identity = {
                    "minicl": results.version(),
                    "method": _class(cls),
                    "hyperparameters": {**_defaults(cls), **files.jsonable(hyperparameters)},
                    "stream": settings_of_stream(seed),
                    "network": _network_identity(network, seed),
                    "seed": seed,
                    "settings": described,
                }
                text = json.dumps(identity, sort_keys=True, default=_unnameable)
                key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
                changed = ", ".join(f"{k}={v!r}" for k, v in hyperparameters.items())
                name = f"{cls.__name__}({changed})" if changed else cls.__name__
                yield _Job(
                    key,
                    identity,
                    f"{name} on {what}, seed {seed}",
                    (name, what),
                    partial(cls, **hyperparameters),
                    make,
                    partial(_network, network),
                    seed,
                    settings,
                )


def _several(items: Any, single: tuple[type, ...]) -> list[Any]:
    return [items] if isinstance(items, single) or callable(items) else list(items)


def _method(item: Any) -> tuple[type[Learner], dict[str, Any]]:
    from . import METHODS

    given: Mapping[str, Any] = {}
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], Mapping):
        item, given = item
    elif isinstance(item, partial):
        if item.args:
            raise TypeError(f"{_describe(item)} has arguments without a name; allowed: hyperparameters by name")
        item, given = item.func, item.keywords
    if isinstance(item, str):
        if item not in METHODS:
            raise ValueError(f"unknown method {item!r}; allowed: {', '.join(METHODS)}")
        item = METHODS[item]
    if not (isinstance(item, type) and issubclass(item, Learner)):
        raise TypeError(
            f"a method is {item!r}; allowed: a name such as 'hat', a Learner class, a pair ('hat', {{'c': 1.0}}), "
            "or partial(minicl.HAT, c=1.0)"
        )
    accepted = accepted_hyperparameters(item)
    for name in given:
        if name not in accepted:
            raise ValueError(
                f"{item.__name__} has no hyperparameter {name!r}; allowed: {', '.join(accepted) or 'none'}"
            )
    return item, dict(given)


def _defaults(cls: type[Learner]) -> dict[str, Any]:
    accepted = accepted_hyperparameters(cls)
    return {name: files.jsonable(p.default) for name, p in accepted.items() if p.default is not p.empty}


def _class(cls: type[Learner]) -> str | list[str]:
    """A method's name; for one of anyone's own also a digest of its code, which no version number covers."""
    if cls.__module__.startswith(f"{__package__}."):
        return cls.__name__
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # typed into a shell
        source = ""
    return [cls.__qualname__, hashlib.blake2b(source.encode(), digest_size=16).hexdigest()]


Settings = Callable[[int], Any]


def _streams(item: Any, scenarios: list[str]) -> Iterator[tuple[str, Callable[[int], TaskStream], Settings]]:
    """What a stream is called, a function from a seed to it, and one from a seed to what identifies it."""
    if isinstance(item, str):
        kind, _, dataset = item.partition("-")
        _known_stream(item, kind, dataset)
        for scenario in scenarios:
            yield from _streams(partial(STREAMS[kind], dataset, scenario=scenario), scenarios)
    elif isinstance(item, Mapping):
        settings = dict(item)
        kind = settings.pop("kind", None)
        if kind not in STREAMS:
            raise ValueError(f"a stream has the kind {kind!r}; allowed: {', '.join(STREAMS)}")
        yield from _streams(partial(STREAMS[kind], **settings), scenarios)
    elif isinstance(item, TaskStream):
        digest = _data(item)
        yield f"{item.name} ({item.scenario})", lambda seed: item, lambda seed: digest
    elif isinstance(item, partial) and item.func in STREAMS.values():
        kind = next(name for name, make in STREAMS.items() if make is item.func)
        bound = inspect.signature(item.func).bind_partial(*item.args, **item.keywords)
        fixed = "seed" in bound.arguments
        bound.apply_defaults()
        settings = dict(bound.arguments)
        if isinstance(settings["dataset"], str):
            _known_stream(f"{kind}-{settings['dataset']}", kind, settings["dataset"])
            check_scenario(settings["scenario"])
            kept = {name: value for name, value in settings.items() if name not in ("root", "download")}
            name = f"{kind}-{settings['dataset']} ({settings['scenario']}, {settings['n_tasks']} tasks)"
            make = partial(_made, item.func, settings, fixed)
            yield name, make, lambda seed: {"kind": kind, **kept, "seed": kept["seed"] if fixed else seed}
        else:
            yield from _streams(partial(_made, item.func, settings, fixed), scenarios)
    elif callable(item):
        first = item(0)
        if not isinstance(first, TaskStream):
            raise TypeError(f"a function of a stream returned a {type(first).__name__}; allowed: a minicl.TaskStream")
        yield f"{first.name} ({first.scenario})", item, lambda seed: _data(item(seed))
    else:
        raise TypeError(
            f"a stream is {item!r}; allowed: a name such as 'split-digits', partial(minicl.split, 'digits'), "
            "a function from a seed to a TaskStream, or a TaskStream"
        )


def _made(make: Callable[..., TaskStream], settings: dict[str, Any], fixed: bool, seed: int) -> TaskStream:
    return make(**settings) if fixed else make(**{**settings, "seed": seed})


def _known_stream(name: str, kind: str, dataset: str) -> None:
    from .datasets import NAMES

    if kind not in STREAMS or dataset not in NAMES:
        known = ", ".join(f"{kind}-{dataset}" for kind in STREAMS for dataset in NAMES)
        raise ValueError(f"unknown stream {name!r}; allowed: {known}")


def _data(stream: TaskStream) -> dict[str, Any]:
    """What identifies a stream that no settings describe: its data."""
    sums = hashlib.blake2b(digest_size=16)
    for task in stream:
        sums.update(f"{task.id} {task.name} {task.n_outputs} {task.scenario}".encode())
        for part in PARTS:
            samples = task.make(part)
            sums.update(files.bits(samples.x))
            sums.update(files.bits(samples.y))
    return {"name": stream.name, "data": sums.hexdigest()}


def _named(what: str, factory: Any) -> str:
    text = _describe(factory) if callable(factory) else repr(factory)
    if not callable(factory) or "<" in text:
        raise ValueError(
            f"{what} is {text}, which does not say what it does; "
            "allowed: a class, a function of a module, or a partial of one, such as partial(torch.optim.SGD, lr=0.1)"
        )
    return text


def _network(network: str | Callable[[], nn.Module] | None, shape: tuple[int, ...]) -> nn.Module:
    return network() if callable(network) else networks.by_name(network, shape)


def _network_identity(network: Any, seed: int) -> Any:
    if not callable(network):
        return network or "default"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = network()
    if not isinstance(module, nn.Module):
        raise TypeError(f"the function of a network returned a {type(module).__name__}; allowed: an nn.Module")
    return [str(module), "untouched" if networks.untouched(module) else networks._digest(module)]


def _unnameable(value: Any) -> Any:
    raise TypeError(f"{value!r} has no name that tells it from others; settings must be numbers, texts, lists of those")


def _clear(folder: Path) -> None:
    """Remove what killed processes left half written; not what another sweep may be writing at this moment."""
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - os.stat(left).st_mtime > 600:
                left.unlink()
