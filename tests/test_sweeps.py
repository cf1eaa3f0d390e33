"""`sweep`: every combination once, whatever fails, dies or is damaged meanwhile."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import minicl
from minicl import combinations, pool, results
from minicl.cli import main
from minicl.learner import Fit

SPLIT = partial(minicl.split, "digits", n_tasks=2, n_train=20)
QUICK: dict[str, Any] = {"network": "mlp:8", "epochs": 1, "progress": False}
ALONE: dict[str, Any] = {**QUICK, "jobs": 1}  # in this process


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def held(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What the files of a folder are: which file on the disk, and what is in it."""
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.glob("*.json")}


def matrices(done: minicl.Sweep) -> list[Any]:
    return [(r.method, r.scenario, r.seed, r.accuracy.tolist(), r.learning_curves) for r in done.results]


def same(one: minicl.Sweep, other: minicl.Sweep) -> bool:
    return repr(matrices(one)) == repr(matrices(other))  # where NaN equals itself


def test_every_combination_gives_what_run_gives(tmp_path: Path) -> None:
    streams = [SPLIT, partial(minicl.permuted, "digits", n_tasks=2, scenario="domain", n_train=20)]
    done = minicl.sweep(["finetune", ("ewc", {"lam": 3.0})], streams, [0, 4], out=tmp_path / "a" / "b", **ALONE)
    assert (done.found, len(done.results), done.failures) == (0, 8, {})
    assert len(names(tmp_path / "a" / "b")) == 8
    expected = [
        minicl.run(make(minicl.mlp(64, 8)), stream(seed=seed), epochs=1, seed=seed)
        for make in (minicl.FineTune, partial(minicl.EWC, lam=3.0))
        for stream in streams
        for seed in (0, 4)
    ]
    for found, result in zip(done.results, expected, strict=True):
        np.testing.assert_array_equal(found.accuracy, result.accuracy)
        assert found.hyperparameters == result.hyperparameters
        assert found.stream == result.stream
        assert found.seed == result.seed
        assert found.capacity == result.capacity


def test_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    first = minicl.sweep("finetune", SPLIT, 2, out=tmp_path, **ALONE)
    before = held(tmp_path)
    more = minicl.sweep(["finetune", minicl.MAS], SPLIT, 3, out=tmp_path, **ALONE)
    assert more.found == 2
    assert len(more.results) == 6
    after = held(tmp_path)
    assert {name: after[name] for name in before} == before  # not even written again
    assert len(after) == 6
    assert repr(matrices(first)) == repr(matrices(more)[:2])


DIFFERENT: dict[str, dict[str, Any]] = {
    "method": {"methods": "mas"},
    "hyperparameter": {"methods": ("ewc", {"lam": 2.0})},
    "stream": {"streams": partial(minicl.rotated, "digits", n_tasks=2, n_train=20)},
    "number of tasks": {"streams": partial(minicl.split, "digits", n_tasks=5, n_train=20)},
    "samples": {"streams": partial(minicl.split, "digits", n_tasks=2, n_train=21)},
    "scenario": {"streams": partial(minicl.split, "digits", n_tasks=2, n_train=20, scenario="class")},
    "seed": {"seeds": [1]},
    "epochs": {"epochs": 2},
    "batch size": {"batch_size": 5},
    "optimiser": {"optimizer": torch.optim.Adam},
    "its settings": {"optimizer": partial(torch.optim.SGD, lr=0.2)},
    "schedule": {"schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=1)},
    "patience": {"patience": 1},
    "network": {"network": "mlp:9"},
    "a network of one's own": {"network": lambda: minicl.mlp(64, 8, dropout=0.5)},
}


def key(**change: Any) -> str:
    given = {"methods": ["ewc"], "streams": SPLIT, "seeds": [0], "network": "mlp:8", **change}
    settings = {"epochs": 1, "batch_size": 32, "optimizer": torch.optim.SGD, "schedule": None, "patience": None}
    settings |= {name: given[name] for name in settings if name in given}
    return next(
        combinations.combine(
            given["methods"], given["streams"], given["seeds"], ["task"], given["network"], settings | {"device": "cpu"}
        )
    ).key


def test_the_name_of_a_result_says_all_that_determines_it(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: key(**change) for name, change in DIFFERENT.items()}
    keys["nothing"] = key()
    monkeypatch.setattr(minicl, "__version__", "99")
    keys["version"] = key()
    assert len(set(keys.values())) == len(keys)


def test_the_same_said_in_other_words_has_the_same_name() -> None:
    default = inspect.signature(minicl.EWC).parameters["lam"].default
    ways: list[dict[str, Any]] = [
        {"methods": minicl.EWC},
        {"methods": [("ewc", {})]},
        {"methods": ("ewc", {"lam": default})},
        {"methods": partial(minicl.EWC, lam=default)},
        {"streams": [{"kind": "split", "dataset": "digits", "n_tasks": 2, "n_train": 20}]},
        {"streams": partial(minicl.split, n_tasks=2, n_train=20, scenario="task", root="elsewhere")},
        {"seeds": range(1)},
    ]
    assert {key(**way) for way in ways} == {key()}


def test_data_of_ones_own_and_networks_of_ones_own(tmp_path: Path) -> None:
    def stream(seed: int, shift: float = 0.0) -> minicl.TaskStream:
        x = torch.rand(40, 6, generator=torch.Generator().manual_seed(seed)) + shift
        y = (x.sum(1) > 3 + 6 * shift).long()
        return minicl.TaskStream([minicl.Task(t, 2, (x, y), test=(x, y)) for t in range(2)], "own")

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh())

    settings: dict[str, Any] = {**ALONE, "network": network, "out": tmp_path}
    done = minicl.sweep("finetune", [stream, stream(0)], 2, **settings)
    # As a stream of a function and as a stream itself, seed 0 is the same data, and the same combination.
    assert len(done.results) == 3
    torch.manual_seed(5)  # nothing outside matters
    assert minicl.sweep("finetune", [stream], 2, **settings).found == 2
    assert minicl.sweep("finetune", [partial(stream, shift=1.0)], 2, **settings).found == 0


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    class Mine(minicl.FineTune):
        pass

    done = minicl.sweep([Mine, minicl.FineTune], SPLIT, 1, out=tmp_path, **ALONE)
    assert [r.method for r in done.results] == ["Mine", "FineTune"]


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_failed_combination_does_not_lose_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Fails(minicl.FineTune):
        def learn(self, task: minicl.Task, fit: Fit) -> None:
            raise RuntimeError("of no use\nat all")

    classes = partial(SPLIT, scenario="class")
    done = minicl.sweep(
        ["finetune", Fails, ("packnet", {"keep_ratio": 2.0}), "hat"], [SPLIT, classes], 1, out=tmp_path, **ALONE
    )
    assert [(r.method, r.scenario) for r in done.results] == [
        ("FineTune", "task"),
        ("FineTune", "class"),
        ("HAT", "task"),
    ]
    reasons = {label.partition(" on ")[0]: why for label, why in done.failures.items()}
    assert reasons["Fails"] == "RuntimeError: of no use at all"
    assert "keep_ratio is 2.0" in reasons["PackNet(keep_ratio=2.0)"]
    assert "must be told the task id" in reasons["HAT"]
    assert len(done.failures) == 5
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert all(line.startswith("minicl: failed: ") for line in errors)
    assert len(names(tmp_path)) == 3
    assert str(done).splitlines()[0] == "8 combinations: 3 run, 0 found, 5 failed"


@pytest.mark.parametrize("damage", ["cut", "empty", "digit", "binary", "other"])
def test_a_damaged_file_is_reported_set_aside_and_run_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = minicl.sweep("finetune", SPLIT, 2, out=tmp_path, **ALONE)
    path = min(tmp_path.glob("*.json"))
    content = path.read_bytes()
    place = content.index(b'"accuracy": [[') + 16
    digit = content[:place] + (b"1" if content[place : place + 1] != b"1" else b"2") + content[place + 1 :]
    damaged = {"cut": content[:-50], "empty": b"", "digit": digit, "binary": b"\xff\x00" * 99, "other": b"{}\n"}[damage]
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match=path.name) if damage != "other" else pytest.raises(AssertionError):
        assert len(minicl.load_results(tmp_path)) == 2 - (damage != "other")
    done = minicl.sweep("finetune", SPLIT, 2, out=tmp_path, **ALONE)
    assert same(done, expected)
    assert done.found == 1
    assert done.damaged == [tmp_path / f"{path.name}.damaged"]
    assert done.damaged[0].read_bytes() == damaged
    errors = capsys.readouterr().err
    assert path.name in errors
    assert "is run again" in errors
    assert len(minicl.load_results(tmp_path)) == 2


def test_a_process_that_is_killed_and_the_rest_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "finetune", "si", "--stream", "split-digits", "--seeds", "4", "--epochs", "6", "--jobs", "1"]
    command += ["--network", "mlp:16", "--out", str(tmp_path / "runs"), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([sys.executable, "-m", "minicl", *command], env=environment, stdout=subprocess.DEVNULL)
    while running.poll() is None and len(list((tmp_path / "runs").glob("*.json"))) < 3:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    before = held(tmp_path / "runs")
    assert 3 <= len(before) < 8
    for name in before:  # whole files, every one of them
        assert results.read_record(tmp_path / "runs" / name)["result"]["kind"] == "result"
    (tmp_path / "runs" / ".left.json.x.tmp").touch()
    os.utime(tmp_path / "runs" / ".left.json.x.tmp", (0, 0))  # long ago
    assert main(command) == 0
    assert f"8 combinations: {8 - len(before)} run, {len(before)} found, 0 failed" in capsys.readouterr().out
    after = held(tmp_path / "runs")
    assert len(after) == 8
    assert {name: after[name] for name in before} == before
    assert all(path.suffix == ".json" for path in (tmp_path / "runs").iterdir())


class TestOnAllCores:
    """Several processes, started once for all of this."""

    def test_the_same_as_alone_one_thread_each_and_what_dies_is_told(self, tmp_path: Path) -> None:
        class Threads(minicl.FineTune):
            def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
                assert task_id is not None
                counts = [torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"), os.getpid()]
                self.tasks[task_id].name = json.dumps(counts)
                return super().loss(x, y, task_id)

        class Dies(minicl.FineTune):
            def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
                os.kill(os.getpid(), signal.SIGKILL)
                return super().loss(x, y, task_id)

        settings: dict[str, Any] = {**QUICK, "out": tmp_path / "many", "jobs": 2}
        done = minicl.sweep(["finetune", Dies, "si", Threads], SPLIT, 1, **settings)
        assert list(done.failures) == ["Dies on split-digits (task, 2 tasks), seed 0"]
        assert all("its process died" in why for why in done.failures.values())
        alone = minicl.sweep(["finetune", "si"], SPLIT, 1, **{**ALONE, "out": tmp_path / "alone"})
        assert repr(matrices(done)[:2]) == repr(matrices(alone))
        noted = [json.loads(task["name"]) for r in done.results[2:] for task in r.capacity["tasks"].values()]
        assert {tuple(note[:2]) for note in noted} == {(1, "1")}
        assert all(note[2] != os.getpid() for note in noted)


def test_long_jobs_are_not_left_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own, which no other program can slow down."""
    order: list[str] = []
    clock = 0.0
    monkeypatch.setattr(pool, "time", SimpleNamespace(perf_counter=lambda: clock))

    class Slow(minicl.FineTune):
        def learn(self, task: minicl.Task, fit: Fit) -> None:
            nonlocal clock
            order.append("slow")
            clock += 10
            fit()

    class Fast(minicl.FineTune):
        def learn(self, task: minicl.Task, fit: Fit) -> None:
            nonlocal clock
            order.append("fast")
            clock += 1
            fit()

    done = minicl.sweep([Fast, Slow], partial(minicl.split, "digits", n_tasks=1, n_train=10), 4, out=tmp_path, **ALONE)
    assert order == ["fast", "slow", *["slow"] * 3, *["fast"] * 3]  # one of each kind, to know them; then the longest
    assert done.worked == 44


# ---- Dask ------------------------------------------------------------------------------------------------------------


@pytest.mark.patient
@pytest.mark.filterwarnings("default")  # of Dask's own
def test_a_dask_cluster_of_which_half_is_killed(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    methods, streams = ["finetune", "si"], [SPLIT, partial(SPLIT, scenario="class")]
    settings: dict[str, Any] = {**QUICK, "epochs": 30, "optimizer": partial(torch.optim.SGD, lr=0.01)}
    expected = minicl.sweep(methods, streams, 4, out=tmp_path / "alone", **{**settings, "jobs": 1})
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        workers = {worker.pid for worker in cluster.workers.values()}
        assert len(workers) == 2
        watched = threading.Thread(target=_kill_half_way, args=(tmp_path / "dask", 4, workers))
        watched.start()
        done = minicl.sweep(
            methods,
            streams,
            4,
            out=tmp_path / "dask",
            backend="dask",
            scheduler=cluster.scheduler_address,
            **settings,
        )
        watched.join()
        assert not workers  # the killing took place
    assert done.failures == {}
    assert same(done, expected)
    assert names(tmp_path / "dask") == names(tmp_path / "alone")
    assert len(minicl.load_results(tmp_path / "dask")) == 16


def _kill_half_way(folder: Path, at: int, workers: set[int]) -> None:
    while len(list(folder.glob("*.json"))) < at:
        time.sleep(0.005)
    os.kill(min(workers), signal.SIGKILL)
    workers.clear()


class Killer(minicl.FineTune):
    """Kills every process that tries to learn with it."""

    def learn(self, task: minicl.Task, fit: Fit) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.patient
@pytest.mark.filterwarnings("default")  # of Dask's own
def test_a_job_that_kills_its_workers_again_and_again_is_a_failure(tmp_path: Path) -> None:
    distributed, dask = pytest.importorskip("distributed"), pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
    ):
        settings: dict[str, Any] = {**QUICK, "backend": "dask", "scheduler": cluster.scheduler_address}
        done = minicl.sweep([Killer, "finetune"], SPLIT, 1, out=tmp_path, **settings)
    assert len(done.failures) == 1
    assert all("its workers died again and again (KilledWorker" in why for why in done.failures.values())
    assert len(done.results) == 1  # the other is not harmed


@pytest.mark.filterwarnings("default")
def test_a_cluster_that_has_lost_all_its_workers_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(pool, "NO_WORKERS", 0.5)
    monkeypatch.setattr(pool, "POLL", 0.2)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as cluster:
        settings: dict[str, Any] = {**QUICK, "backend": "dask", "scheduler": cluster.scheduler_address}
        done = minicl.sweep("finetune", SPLIT, 2, out=tmp_path, **settings)
    assert len(done.failures) == 2
    assert all("the cluster has had no worker for 0.5 s" in why for why in done.failures.values())


def test_dask_that_is_not_installed_or_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"needs the address of a scheduler: .*tcp://host:8786"):
        minicl.sweep("finetune", SPLIT, 1, out=tmp_path, backend="dask", **QUICK)
    with pytest.raises(ValueError, match="the backend is 'loky'"):
        minicl.sweep("finetune", SPLIT, 1, out=tmp_path, scheduler="tcp://127.0.0.1:1", **QUICK)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'minicl\[distributed\]'"):
        minicl.sweep("finetune", SPLIT, 1, out=tmp_path, backend="dask", scheduler="tcp://127.0.0.1:1", **QUICK)


# ---- wrong calls -----------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "method": ({"methods": ["finetune", "fine"]}, ValueError, r"unknown method 'fine'; allowed: finetune, "),
    "no method": ({"methods": [nn.Linear]}, TypeError, r"a method is .*Linear.*; allowed: a name such as 'hat'"),
    "hyperparameter": (
        {"methods": [("hat", {"cc": 1})]},
        ValueError,
        r"HAT has no hyperparameter 'cc'; allowed: s_max",
    ),
    "backbone": ({"methods": partial(minicl.HAT, minicl.mlp(4, 4))}, TypeError, "hyperparameters by name"),
    "stream": ({"streams": "split-digit"}, ValueError, "unknown stream 'split-digit'; allowed: .*split-digits"),
    "data set": ({"streams": partial(minicl.split, "digit")}, ValueError, "unknown stream 'split-digit'"),
    "kind": ({"streams": {"kind": "shuffled"}}, ValueError, "kind 'shuffled'; allowed: split, permuted"),
    "no stream": ({"streams": [3]}, TypeError, "a stream is 3; allowed: a name such as 'split-digits'"),
    "a function of none": ({"streams": [lambda seed: 3]}, TypeError, "returned a int; allowed: a minicl.TaskStream"),
    "scenario": ({"streams": "split-digits", "scenario": "online"}, ValueError, "unknown scenario 'online'"),
    "seed": ({"seeds": [-1]}, ValueError, r"seed is -1; allowed"),
    "nothing": ({"methods": []}, ValueError, "nothing to run"),
    "no seeds": ({"seeds": 0}, ValueError, "nothing to run"),
    "network": ({"network": "rnn:3"}, ValueError, "the network is 'rnn:3'; allowed: mlp:WIDTH"),
    "no network": ({"network": 3}, TypeError, "network is a int"),
    "lambda": (
        {"optimizer": lambda p: torch.optim.SGD(p, lr=1)},
        ValueError,
        "optimizer is .*lambda.*; allowed: a class",
    ),
    "jobs": ({"jobs": 0}, ValueError, "jobs is 0; allowed: integers from 1 up"),
    "backend": ({"backend": "ray"}, ValueError, "unknown backend 'ray'; allowed: loky, dask"),
    "device": ({"device": "cuda:99"}, ValueError, "cuda:99"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_are_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    change, error, message = WRONG[name]
    given = {"methods": "finetune", "streams": SPLIT, "seeds": 1, "out": tmp_path, **ALONE, **change}
    with pytest.raises(error, match=message):
        minicl.sweep(given.pop("methods"), given.pop("streams"), given.pop("seeds"), **given)
    assert names(tmp_path) == set()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        minicl.sweep("finetune", SPLIT, 1, out=tmp_path / "file", **ALONE)


def test_scheduling_is_cheap(tmp_path: Path) -> None:
    """Not a test of time: the work of a sweep without the runs themselves, counted in calls."""
    calls: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def both(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return both

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_record", watched("write", results.write_record))
        patch.setattr(results, "read_record", watched("read", results.read_record))
        minicl.sweep("finetune", SPLIT, 3, out=tmp_path, **ALONE)
        assert calls == ["write"] * 3
        calls.clear()
        minicl.sweep("finetune", SPLIT, 3, out=tmp_path, **ALONE)
        assert calls == ["read"] * 3


def test_nothing_of_the_callers_is_changed(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    minicl.sweep("finetune", SPLIT, 1, out=tmp_path, **ALONE)
    assert torch.get_num_threads() == threads
    after: Tensor = torch.get_rng_state()
    assert torch.equal(after, state)
