"""`run(..., checkpoint=folder)`: killed at any moment and started again, it gives the bits of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeds
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import minicl
from minicl import Learner, files, loop, training
from minicl.checkpoint import FILE
from minicl.cli import main
from minicl.learner import Fit

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 10, "progress": False}
STEPS = 2 * 3  # of a task: two epochs, thirty samples
MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)


def network(**settings: Any) -> nn.Sequential:
    return minicl.mlp(64, 12, 8, **settings)


Make = Callable[[], Learner]
METHODS: dict[str, Make] = {name: partial(lambda m: m(network()), m) for name, m in minicl.METHODS.items()}
VARIANTS: dict[str, Make] = {
    "joint, dropout": lambda: minicl.Joint(network(dropout=0.2)),
    "individual, a network of one's own": lambda: minicl.Individual(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
    ),
    "pnn, mlp": lambda: minicl.PNN(network(batchnorm=True), adapter="mlp"),
    "hat, soft": lambda: minicl.HAT(network(dropout=0.2), binary=False),
    "hat, batchnorm": lambda: minicl.HAT(network(batchnorm=True)),
    "packnet, per-task": lambda: minicl.PackNet(network(batchnorm=True), keep_ratio=0.3, batchnorm="per-task"),
    "packnet, auto": lambda: minicl.PackNet(network(), keep_ratio="auto"),
    "ewc, online": lambda: minicl.EWC(network(), mode="online", decay=0.9, samples=10),
    "vcl, coreset": lambda: minicl.VCL(network(), coreset=5),
    "er, by class": lambda: minicl.ER(network(), budget=40, share="class"),
}


def stream(learner: Learner, number: int, n_tasks: int = 3) -> minicl.TaskStream:
    scenario = "task" if learner.needs_task_id else minicl.SCENARIOS[number % 3]
    return minicl.permuted("digits", n_tasks, scenario, n_train=30)


def killed(work: Callable[[], Any], at: int | None) -> bool:
    """Work in a process of its own that kills itself at the at-th of these events; whether it came to that.

    A step of an optimiser, an evaluation, bytes put onto the disk, a file renamed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks where there are threads
        child = os.fork()
    if child == 0:
        happened = 0

        def tick(*_: Any) -> None:
            nonlocal happened
            happened += 1
            if happened == at:
                os.kill(os.getpid(), signal.SIGKILL)

        def ticking(function: Callable[..., Any]) -> Callable[..., Any]:
            def both(*args: Any, **kwargs: Any) -> Any:
                tick()
                return function(*args, **kwargs)

            return both

        try:
            register_optimizer_step_post_hook(tick)
            training.evaluate, loop.evaluate = ticking(training.evaluate), ticking(loop.evaluate)
            os.fsync, os.replace = ticking(os.fsync), ticking(os.replace)
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def same(a: minicl.Result, b: minicl.Result) -> bool:
    return (
        np.array_equal(a.accuracy, b.accuracy, equal_nan=True)
        and np.array_equal(a.baseline, b.baseline, equal_nan=True)
        and a.learning_curves == b.learning_curves
        and a.capacity == b.capacity
    )


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit; NaN, which stands for logits that a memory does not hold, equals itself."""
    return a.keys() == b.keys() and all(
        a[name].equal(b[name]) or files.raw_bytes(a[name]).tobytes() == files.raw_bytes(b[name]).tobytes() for name in a
    )


@pytest.mark.filterwarnings("ignore:task . switched off every unit")  # so small a network is not for HAT
@pytest.mark.parametrize("name", seeds.sampled([*METHODS, *VARIANTS], 2, 0))
def test_killed_at_random_moments_and_started_again(name: str, tmp_path: Path) -> None:
    make = {**METHODS, **VARIANTS}[name]
    number = [*METHODS, *VARIANTS].index(name)
    draw = random.Random(name)
    torch.manual_seed(1)
    whole = make()
    torch.manual_seed(1)  # for a network of one's own, which run does not draw
    learner = make()
    tasks = stream(whole, number)
    settings: dict[str, Any] = {**SETTINGS, "optimizer": MOMENTUM, "seed": number}
    expected = minicl.run(whole, tasks, **settings)
    again = partial(minicl.run, learner, tasks, checkpoint=tmp_path / "kept", **settings)

    # Two tasks or less are finished at the first kill, so that there is something left for the second.
    assert killed(again, draw.randint(1, 2 * STEPS))
    assert killed(again, draw.randint(1, STEPS))
    killed(again, draw.randint(1, 4 * STEPS))
    result = again()
    assert same(result, expected)
    assert learner.certificate == whole.certificate
    assert equal(learner.state_dict(), whole.state_dict())
    assert os.listdir(tmp_path / "kept") == [FILE]


KEPT = ["finetune", "joint", "individual", "pnn", "hat", "packnet, per-task", "ewc", "si", "vcl", "derpp"]


@pytest.mark.filterwarnings("ignore:task . switched off every unit")
@pytest.mark.parametrize("name", KEPT)
def test_killed_with_an_optimiser_that_is_kept(name: str, tmp_path: Path) -> None:
    make, draw = {**METHODS, **VARIANTS}[name], random.Random(name)
    torch.manual_seed(1)
    whole = make()
    torch.manual_seed(1)
    learner = make()
    tasks = stream(whole, KEPT.index(name))
    settings: dict[str, Any] = {**SETTINGS, "optimizer": ADAM, "fresh_optimizer": False}
    settings["schedule"] = partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    expected = minicl.run(whole, tasks, **settings)
    again = partial(minicl.run, learner, tasks, checkpoint=tmp_path, **settings)
    while not (tmp_path / FILE).exists():
        assert killed(again, draw.randint(2 * STEPS, 5 * STEPS))
    _, tensors = files.read(tmp_path / FILE)
    if name not in ("individual", "pnn"):  # there every parameter goes when its task ends
        assert any(tensor.any() for key, tensor in tensors.items() if key.startswith("run/optimizer/"))
    killed(again, draw.randint(1, 2 * STEPS))
    result = again()
    assert same(result, expected)
    assert equal(learner.state_dict(), whole.state_dict())
    assert result.settings["fresh_optimizer"] is False


def test_killed_while_the_checkpoint_is_written(tmp_path: Path) -> None:
    """Between the temporary name, the disk and the final name: the checkpoint before is what is found."""
    tasks = stream(minicl.FineTune(network()), 2)

    def work() -> minicl.Result:
        return minicl.run(minicl.FineTune(network()), tasks, checkpoint=tmp_path, seed=4, **SETTINGS)

    expected = minicl.run(minicl.FineTune(network()), tasks, seed=4, **SETTINGS)
    of_a_task = STEPS + 3 + 1  # its steps, its learning curve, its row of the matrix
    for event in range(of_a_task, of_a_task + 4):
        for file in tmp_path.iterdir():
            file.unlink()
        assert killed(work, event)
        held = {file.name for file in tmp_path.iterdir()}
        assert held <= {FILE} or all(name == FILE or name.endswith(".tmp") for name in held)
        assert same(work(), expected)
        assert os.listdir(tmp_path) == [FILE]


def test_more_tasks_than_fingers(tmp_path: Path) -> None:
    """Task 10 sorts before task 2 in a file; what is mixed from all tasks must come in the order of learning."""
    tasks = minicl.permuted("digits", 12, "domain", n_train=10)
    for make in (lambda: minicl.VCL(network(), coreset=3), lambda: minicl.EWC(network())):
        settings: dict[str, Any] = {"epochs": 1, "batch_size": 5, "progress": False}
        settings["optimizer"] = partial(torch.optim.Adam, lr=0.001)
        expected = minicl.run(make(), tasks, **settings)
        folder = tmp_path / type(make()).__name__
        assert killed(partial(minicl.run, make(), tasks, checkpoint=folder, **settings), 150)
        assert same(minicl.run(make(), tasks, checkpoint=folder, **settings), expected)


class Dice(minicl.FineTune):
    """Draws from every generator there is, as a method of anyone's own may."""

    def learn(self, task: minicl.Task, fit: Fit) -> None:
        fit()
        drawn = float(np.random.rand() + np.random.randn() + random.random() + random.gauss(0, 1) + torch.rand(()))
        self.tasks[task.id].notes["drawn"] = drawn


def test_every_random_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    tasks = stream(Dice(network()), 0)

    def work(folder: Path) -> list[Any]:
        np.random.seed(3)
        random.seed(4)
        learner = Dice(network())
        minicl.run(learner, tasks, checkpoint=folder, **SETTINGS)
        return [record.notes["drawn"] for record in learner.tasks.values()]

    expected = work(tmp_path / "whole")
    assert killed(partial(work, tmp_path / "broken"), 2 * STEPS)
    random.seed(99)
    assert work(tmp_path / "broken") == expected


def test_a_finished_run_is_read_and_not_run_again(tmp_path: Path) -> None:
    tasks = stream(minicl.EWC(network()), 1)
    results = []
    for _ in range(2):
        learner = minicl.EWC(network())
        results.append(minicl.run(learner, tasks, checkpoint=tmp_path / "a" / "b", **SETTINGS))
    assert same(*results)
    assert results[0].seconds == results[1].seconds  # the very same clock


def test_the_checkpoint_is_a_file_of_the_learner(tmp_path: Path) -> None:
    learner = minicl.PackNet(network())
    tasks = stream(learner, 0)
    minicl.run(learner, tasks, checkpoint=tmp_path, **SETTINGS)
    loaded = minicl.PackNet.load(tmp_path / FILE, network())
    assert equal(loaded.state_dict(), learner.state_dict())
    assert minicl.certify(loaded, tasks)


def test_goes_on_after_other_tasks(tmp_path: Path) -> None:
    """A run may begin with a learner that knows something already."""

    def make() -> minicl.EWC:
        learner = minicl.EWC(network())
        minicl.run(learner, tasks[:1], **SETTINGS)
        return learner

    tasks = stream(minicl.EWC(network()), 1)
    expected = minicl.run(make(), tasks[1:], **SETTINGS)
    assert killed(lambda: minicl.run(make(), tasks[1:], checkpoint=tmp_path, **SETTINGS), 2 * STEPS)
    assert same(minicl.run(make(), tasks[1:], checkpoint=tmp_path, **SETTINGS), expected)


CHANGES: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": 3},
    "batch_size": {"batch_size": 7},
    "optimizer": {"optimizer": partial(torch.optim.SGD, lr=0.2)},
    "schedule": {"schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=1)},
    "patience": {"patience": 1},
    "fresh_optimizer": {"fresh_optimizer": False},
    "seed": {"seed": 5},
}


@pytest.mark.parametrize("name", [*CHANGES, "method", "hyperparameters", "backbone", "stream", "tasks"])
def test_the_checkpoint_of_another_run_is_refused_by_name(name: str, tmp_path: Path) -> None:
    tasks = minicl.split("digits", 5, n_train=20)[:2]
    minicl.run(minicl.EWC(network()), tasks, checkpoint=tmp_path, **SETTINGS)
    before = (tmp_path / FILE).read_bytes()
    learner: Learner = minicl.EWC(network())
    if name == "method":
        learner = minicl.MAS(network())
    elif name == "hyperparameters":
        learner = minicl.EWC(network(), lam=3.0)
    elif name == "backbone":
        learner = minicl.EWC(minicl.mlp(64, 12, 9))
    elif name == "stream":
        tasks = minicl.split("digits", 5, n_train=20, seed=1)[:2]
    elif name == "tasks":
        tasks = minicl.split("digits", 5, n_train=20)[1:3]
    with pytest.raises(ValueError, match=rf"belongs to another run: .*\b{name} is .*, there "):
        minicl.run(learner, tasks, checkpoint=tmp_path, **{**SETTINGS, **CHANGES.get(name, {})})
    assert (tmp_path / FILE).read_bytes() == before


def test_the_same_settings_on_other_data_are_refused(tmp_path: Path) -> None:
    def own(shift: float) -> list[minicl.Task]:
        x, y = torch.linspace(0, 1, 80).view(20, 4) + shift, torch.arange(20) % 2
        return [minicl.Task(t, 2, (x, y), test=(x, y)) for t in range(2)]

    minicl.run(minicl.FineTune(minicl.mlp(4, 3)), own(0), checkpoint=tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"test data of task 0 .* is not that of which the digest was taken"):
        minicl.run(minicl.FineTune(minicl.mlp(4, 3)), own(1), checkpoint=tmp_path, **SETTINGS)


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "a learner's file"])
def test_a_damaged_checkpoint_is_reported_and_set_aside(damage: str, tmp_path: Path) -> None:
    tasks = stream(minicl.FineTune(network()), 0)
    learner = minicl.FineTune(network())
    expected = minicl.run(learner, tasks, checkpoint=tmp_path, **SETTINGS)
    path = tmp_path / FILE
    content = path.read_bytes()
    if damage == "a learner's file":
        learner.save(path)
    else:
        flipped = content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "bit": flipped}[damage])
    damaged = path.read_bytes()
    with pytest.warns(UserWarning, match=rf"{FILE}.* set aside as {FILE}\.damaged, and the run begins anew"):
        result = minicl.run(minicl.FineTune(network()), tasks, checkpoint=tmp_path, **SETTINGS)
    assert same(result, expected)
    assert (tmp_path / f"{FILE}.damaged").read_bytes() == damaged


def test_what_has_been_learned_in_this_process_is_no_new_learner(tmp_path: Path) -> None:
    learner = minicl.FineTune(network())
    tasks = stream(learner, 0)
    minicl.run(learner, tasks, checkpoint=tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"task 0 has been learned already; .* give run a new learner"):
        minicl.run(learner, tasks, checkpoint=tmp_path, **SETTINGS)


def test_a_folder_that_cannot_be_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        minicl.run(minicl.FineTune(network()), stream(minicl.FineTune(network()), 0), checkpoint=tmp_path / "file")


def test_a_program_killed_from_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In processes that share nothing, as after a crash: through the command line."""
    command = ["run", "ewc", "permuted-digits", "--tasks", "4", "--json", "--epochs", "4", "--network", "mlp:32"]
    command += ["--n-train", "300", "--checkpoint"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    expected = json.loads(capsys.readouterr().out)
    broken = subprocess.Popen(
        [sys.executable, "-m", "minicl", *command, str(tmp_path / "broken")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    while not (tmp_path / "broken" / FILE).exists() and broken.poll() is None:
        time.sleep(0.01)
    broken.kill()
    broken.wait()
    header, _ = files.read(tmp_path / "broken" / FILE)
    assert header["run"]["finished"] >= 1
    assert main([*command, str(tmp_path / "broken")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == expected["accuracy"]
    assert found["learning_curves"] == expected["learning_curves"]
