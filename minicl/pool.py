"""Where a sweep is worked off: in this process, on all cores, or by the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from . import results
from .combinations import Job
from .training import run

BACKENDS = ("loky", "dask")
POLL = 2.0
"""Seconds after which a Dask cluster is looked at again, if no job has ended."""
NO_WORKERS = 120.0
"""Seconds without any worker after which a Dask cluster has broken down."""
Done = tuple[str, Any, str | None, float]
"""What `work` returns."""
_ALONE = threading.Lock()  # a Dask worker may have several threads, and torch's random generator is one for all


def work(job: Job, version: str) -> Done:
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
            settings = {name: v for name, v in job.settings.items() if name != "infer" or stream.scenario != "task"}
            result = run(learner, stream, seed=job.seed, progress=False, **settings)
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            return job.key, None, why, time.perf_counter() - started
        finally:
            torch.set_num_threads(threads)
    took = time.perf_counter() - started
    record = {"identity": job.identity, "took": took, "with": f"torch {torch.__version__}", "result": result.as_json()}
    return job.key, record, None, took


class Pool(Protocol):
    """Workers. What breaks down is remembered in `error`, and ends the round."""

    error: str

    def run(self, jobs: Iterator[Job]) -> Iterator[Done]:
        """Work off the jobs and give back what `work` returned for each, whichever is ready first."""


@dataclass
class Processes:
    """Workers on this machine, through joblib."""

    settings: dict[str, Any]
    error: str = ""

    def run(self, jobs: Iterator[Job]) -> Iterator[Done]:
        """Work off the jobs and give back what `work` returned for each, whichever is ready first."""
        import joblib

        version = results.version()
        with joblib.parallel_config(**self.settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A worker stopped while some jobs")  # loky renews idle workers
            # One job at a time and none in advance: the next is chosen when a worker is free.
            parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")
            try:
                yield from parallel(joblib.delayed(work)(job, version) for job in jobs)
            except Exception as error:  # no job's own: those are caught where they arise
                self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass
class Dask:
    """The workers of a Dask cluster.

    A job whose worker dies is sent to another one; when it has killed as many as the scheduler allows (the setting
    `distributed.scheduler.allowed-failures`, 3 by default), it is a failure like any other.
    """

    client: Any
    n_jobs: int | None
    error: str = ""

    def run(self, jobs: Iterator[Job]) -> Iterator[Done]:
        """Work off the jobs and give back what `work` returned for each, whichever is ready first."""
        try:
            yield from self._run(jobs)
        except Exception as error:  # no job's own: the scheduler went away, say
            self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def _run(self, jobs: Iterator[Job]) -> Iterator[Done]:
        from distributed import wait

        version, alone_since = results.version(), time.monotonic()
        under_way: dict[Any, Job] = {}
        while True:
            # As many as there are threads and none in advance: the next is chosen when a worker is free.
            threads = sum(worker["nthreads"] for worker in self.client.scheduler_info(n_workers=-1)["workers"].values())
            alone_since = time.monotonic() if threads else alone_since
            while len(under_way) < (self.n_jobs or max(threads, 1)) and (job := next(jobs, None)) is not None:
                under_way[self.client.submit(work, job, version, pure=False)] = job
            if not under_way:
                return
            with contextlib.suppress(TimeoutError):
                wait(list(under_way), timeout=POLL, return_when="FIRST_COMPLETED")
            if time.monotonic() - alone_since > NO_WORKERS:
                raise RuntimeError(f"the cluster has had no worker for {NO_WORKERS} s")
            for future in [future for future in under_way if future.done()]:
                job = under_way.pop(future)
                if future.status == "finished":
                    yield future.result()
                else:
                    error = future.exception() if future.status == "error" else future.status
                    why = f"its workers died again and again ({type(error).__name__}: {error})"
                    yield job.key, None, " ".join(why.split())[:400], 0.0


@contextlib.contextmanager
def cluster(backend: str, scheduler: str | None, jobs: int | None) -> Iterator[Pool]:
    """Workers on this machine ("loky"), or those of a Dask scheduler.

    Raises:
        ValueError: an unknown backend, or a scheduler without "dask", or the reverse.
        ImportError: backend "dask" without dask and distributed.
        OSError: no scheduler answers.
    """
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
        yield Processes(
            {"backend": "loky", "n_jobs": n_jobs, "inner_max_num_threads": 1} if n_jobs > 1 else {"n_jobs": 1}
        )
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
        yield Dask(client, jobs)
    finally:
        client.close()
