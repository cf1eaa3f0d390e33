"""A checkpoint within a task: whatever breaks off, wherever, goes on there and gives the bits of an unbroken run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeds
import torch
from loops import ADAM, MOMENTUM, same_bits, small_tasks, state
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

import minicl
from minicl import FineTune, Learner, PackNet
from minicl.checkpoint import FILE, WITHIN
from minicl.testing import METHODS, VARIANTS

pytestmark = pytest.mark.filterwarnings(r"ignore:task \d+ switched off every unit")
TABLE = METHODS | VARIANTS


class Broken(Exception):
    pass


def broken_at(make: Any, step: int) -> Any:
    """An optimiser whose step-th step, of all that are made, is the last thing that is done."""
    taken = 0

    def breaking(parameters: Any) -> torch.optim.Optimizer:
        optimizer = make(parameters)

        def count(*_: Any) -> None:
            nonlocal taken
            taken += 1
            if taken == step:
                raise Broken

        optimizer.register_step_pre_hook(count)
        return optimizer

    breaking.__qualname__ = "made"
    return breaking


def same(a: minicl.Result, b: minicl.Result) -> bool:
    return (
        np.array_equal(a.accuracy, b.accuracy, equal_nan=True)
        and a.learning_curves == b.learning_curves
        and a.capacity == b.capacity
        and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a.within_tasks, b.within_tasks, strict=True))
    )


def check(make: Any, tasks: list[minicl.Task], folder: Path, breaks: list[int], **settings: Any) -> None:
    """A run that breaks off after so many steps, and so many more, gives what one gives that does not."""
    settings = {"epochs": 3, "batch_size": 6, "optimizer": ADAM, "evaluate_every": 2, **settings}
    torch.manual_seed(1)
    whole: Learner = make()
    optimizer = settings.pop("optimizer")
    expected = minicl.run(whole, tasks, optimizer=broken_at(optimizer, 0), **settings)
    for step in [*breaks, 0]:
        torch.manual_seed(1)
        learner = make()
        again = partial(minicl.run, learner, tasks, checkpoint=folder, checkpoint_every=2, **settings)
        if step:
            with pytest.raises(Broken):
                again(optimizer=broken_at(optimizer, step))
            assert (folder / FILE).exists()
        else:
            result = again(optimizer=broken_at(optimizer, 0))
    assert same(result, expected)
    assert same_bits(state(learner), state(whole))
    assert learner.certificate == whole.certificate
    assert os.listdir(folder) == [FILE]


@pytest.mark.parametrize("name", seeds.sampled(list(TABLE), 2, 1))
def test_every_method_goes_on_in_the_middle_of_a_task(name: str, tmp_path: Path) -> None:
    method = TABLE[name]
    draw = random.Random(str(method.make))
    if method.trains == "never":
        pytest.skip("takes no steps")
    tasks = small_tasks(samples=14)  # two steps per epoch, six per training
    make = partial(lambda m: m.make(m.backbone(m.kinds[-1])), method)
    later = [draw.randint(5, 9), draw.randint(3, 6)] if method.trains == "always" else []
    check(make, tasks, tmp_path, [draw.randint(3, 5), *later])


@pytest.mark.parametrize(("fresh", "step"), seeds.sampled([(f, n) for f in (True, False) for n in range(1, 13)], 3, 0))
def test_packnet_at_every_step_of_both_its_trainings(step: int, fresh: bool, tmp_path: Path) -> None:
    make = partial(lambda: PackNet(minicl.mlp(36, 10, batchnorm=True, dropout=0.2), batchnorm="per-task"))
    check(make, small_tasks(n=2, samples=14), tmp_path, [step], fresh_optimizer=fresh)


@pytest.mark.parametrize("step", [11, 14])
def test_cpg_in_the_middle_of_a_stage_of_compacting(step: int, tmp_path: Path) -> None:
    """What is pruned so far stays pruned, and the next pruning comes when it would have come."""
    make = partial(lambda: minicl.CPG(minicl.mlp(36, 10), stage=0.5, stage_epochs=4, every=3, tolerance=0.5))
    check(make, small_tasks(n=1, samples=14), tmp_path, [step])


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": partial(OneCycleLR, max_lr=0.1, total_steps=9), "schedule_every": "step"},
        {"schedule": partial(ReduceLROnPlateau, patience=0, factor=0.3), "patience": 2, "epochs": 6},
        {"optimizer": MOMENTUM, "fresh_optimizer": False, "patience": 1, "epochs": 5},
        {"optimizer": partial(torch.optim.LBFGS, lr=0.1, max_iter=3)},
        {"augment": lambda x: x + torch.randn_like(x) * random.random() * np.random.rand()},
    ],
    ids=["one cycle", "plateau", "kept, stopping early", "a closure", "augmented"],
)
def test_whatever_else_a_run_does(settings: dict[str, Any], scenario: str, tmp_path: Path) -> None:
    make = partial(lambda: FineTune(minicl.mlp(36, 10, dropout=0.3)))
    check(make, small_tasks(scenario, 2, samples=18), tmp_path, [4, 3, 8], **settings)


class Noisy(torch.utils.data.Dataset[Any]):
    def __init__(self, task: minicl.Task) -> None:
        self.samples = task.train

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        return self.samples.x[i] + torch.randn(()) * random.random(), int(self.samples.y[i])


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_that_are_read_on_demand(workers: int, tmp_path: Path) -> None:
    small = small_tasks(n=1, samples=20)
    tasks = [minicl.Task(0, 2, Noisy(small[0]), None, (small[0].test.x, small[0].test.y))]
    make = partial(lambda: FineTune(minicl.mlp(36, 10)))
    check(make, tasks, tmp_path, [6, 3], workers=workers)


def test_weights_of_ones_own_come_from_the_checkpoint(tmp_path: Path) -> None:
    """Also those before the first task: the learner that goes on is made with others."""
    tasks = small_tasks(n=2)
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 10, "checkpoint": tmp_path, "checkpoint_every": 1}
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(36, 8)) for _ in range(3)]
    networks[1].load_state_dict(networks[0].state_dict())
    whole = FineTune(networks[0])
    expected = minicl.run(whole, tasks, epochs=3, batch_size=10, optimizer=broken_at(ADAM, 0))
    with pytest.raises(Broken):
        minicl.run(FineTune(networks[1]), tasks, optimizer=broken_at(ADAM, 4), **settings)
    learner = FineTune(networks[2])
    assert same(minicl.run(learner, tasks, optimizer=broken_at(ADAM, 0), **settings), expected)
    assert same_bits(state(learner), state(whole))


def test_steps_are_not_taken_again(tmp_path: Path) -> None:
    tasks, taken = small_tasks(n=1), 0

    def make(parameters: Any) -> torch.optim.Optimizer:
        def count(*_: Any) -> None:
            nonlocal taken
            taken += 1
            if taken == 8:
                raise Broken

        optimizer = ADAM(parameters)
        optimizer.register_step_pre_hook(count)
        return optimizer

    again = partial(minicl.run, stream=tasks, optimizer=make, epochs=3, batch_size=10, checkpoint=tmp_path)
    with pytest.raises(Broken):
        again(PackNet(minicl.mlp(36, 8)), checkpoint_every=1)
    again(PackNet(minicl.mlp(36, 8)), checkpoint_every=1)
    assert taken == 12 + 1


def test_a_damaged_file_is_set_aside_and_the_task_begins_anew(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 10, "checkpoint": tmp_path, "checkpoint_every": 1}
    expected = minicl.run(FineTune(minicl.mlp(36, 8)), small_tasks(), epochs=3, batch_size=10, optimizer=ADAM)
    with pytest.raises(Broken):
        minicl.run(FineTune(minicl.mlp(36, 8)), small_tasks(), optimizer=broken_at(ADAM, 9), **settings)
    damaged = (tmp_path / WITHIN).read_bytes()[:-7]
    (tmp_path / WITHIN).write_bytes(damaged)
    with pytest.warns(UserWarning, match=rf"set aside as {WITHIN}.damaged, and the task begins anew"):
        result = minicl.run(FineTune(minicl.mlp(36, 8)), small_tasks(), optimizer=broken_at(ADAM, 0), **settings)
    assert same(result, expected)
    assert (tmp_path / f"{WITHIN}.damaged").read_bytes() == damaged


def test_what_cannot_go_on_is_refused_before_training(tmp_path: Path) -> None:
    learner, tasks = FineTune(minicl.mlp(36, 8)), small_tasks()
    with pytest.raises(ValueError, match="checkpoint_every says when to write, and nobody says where"):
        minicl.run(learner, tasks, checkpoint_every=3)
    with pytest.raises(ValueError, match="checkpoint_every is 0; allowed: integers from 1 up"):
        minicl.run(learner, tasks, checkpoint=tmp_path, checkpoint_every=0)

    class Odd:
        def step(self) -> None:
            pass

    with pytest.raises(ValueError, match=r"Odd has no load_state_dict, so it cannot go on in the middle of a task"):
        minicl.run(learner, tasks, checkpoint=tmp_path, checkpoint_every=3, schedule=lambda optimizer: Odd())

    class Own(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {}

    with pytest.raises(ValueError, match=r"Own keeps a state of its own, of which a checkpoint cannot know"):
        minicl.run(learner, tasks, checkpoint=tmp_path, checkpoint_every=3, optimizer=Own)
    assert learner.tasks == {}
    assert list(tmp_path.iterdir()) == []


# ---- a loop of one's own ---------------------------------------------------------------------------------------------


def own_loop(folder: Path, make: Any, breaks: int = 0) -> Learner:
    """As a user writes it, around PackNet's two trainings; the steps break off where that is asked for."""
    learner, steps = make(), 0
    task = small_tasks(n=1)[0]
    order = torch.Generator().manual_seed(3)
    lesson = minicl.Lesson(folder / "task", learner, [order])

    def train(epochs: int = 3, tasks: Any = None) -> None:
        nonlocal steps
        optimizer = learner.protect(torch.optim.Adam(learner.parameters(), lr=0.01))
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        position = lesson.begin(optimizer, schedule)
        for epoch in range(position.get("epoch", 0), epochs):
            learner.train()
            for rows in torch.randperm(20, generator=order).split(10):
                learner.before_step(0.5)
                optimizer.zero_grad()
                learner.loss(task.train.x[rows], task.train.y[rows], task.id).backward()
                optimizer.step()
                steps += 1
                if steps == breaks:
                    raise Broken
            schedule.step()
            lesson.save(optimizer, schedule, epoch=epoch + 1)

    learner.learn(task, lesson.fit(train))
    learner.save(folder / "learner")
    lesson.remove()
    return learner


@pytest.mark.parametrize("breaks", [1, 3, 4, 6, 7, 8, 11, 12])
def test_a_loop_of_ones_own(breaks: int, tmp_path: Path) -> None:
    def make() -> Learner:
        torch.manual_seed(2)
        return PackNet(minicl.mlp(36, 8, dropout=0.2))

    whole = own_loop(tmp_path, make)
    (tmp_path / "learner").unlink()
    with pytest.raises(Broken):
        own_loop(tmp_path, make, breaks)
    assert not (tmp_path / "learner").exists()
    learner = own_loop(tmp_path, make)
    assert same_bits(state(learner), state(whole))
    assert {path.name for path in tmp_path.iterdir()} == {"learner"}


def test_a_lesson_says_what_is_wrong(tmp_path: Path) -> None:
    learner, tasks = FineTune(minicl.mlp(36, 8)), small_tasks()
    lesson = minicl.Lesson(tmp_path / "file", learner)
    with pytest.raises(ValueError, match=r"no task is being learned; call learner.learn\(task, lesson.fit\(train\)\)"):
        lesson.save(epoch=1)
    learner.learn(tasks[0], lesson.fit(lambda: lesson.save(epoch=1)))
    other = minicl.Lesson(tmp_path / "file", learner)
    assert other.task_id == 0
    with pytest.raises(ValueError, match="holds task 0 under way, and task 1 is being learned; remove the file"):
        learner.learn(tasks[1], other.fit(lambda: None))
    learner.save(tmp_path / "learner")
    with pytest.raises(ValueError, match="holds no task under way; name another file"):
        minicl.Lesson(tmp_path / "learner", learner)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_process_that_is_killed(tmp_path: Path) -> None:
    script = f"""
        import os, signal, sys, torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from loops import ADAM, small_tasks
        import minicl
        torch.set_num_threads(1)
        taken = 0
        def make(parameters):
            optimizer = ADAM(parameters)
            def count(*_):
                global taken
                taken += 1
                if taken == int(sys.argv[1]):
                    os.kill(os.getpid(), signal.SIGKILL)
            optimizer.register_step_post_hook(count)
            return optimizer
        learner = minicl.PackNet(minicl.mlp(36, 8, dropout=0.2))
        more = dict(checkpoint={str(tmp_path / "kept")!r}, checkpoint_every=1) if int(sys.argv[1]) >= 0 else {{}}
        minicl.run(learner, small_tasks(n=2), optimizer=make, epochs=3, batch_size=10, seed=5, **more)
        learner.save({str(tmp_path / "learner")!r})
    """

    def process(kill_at: int) -> int:
        arguments = [sys.executable, "-c", textwrap.dedent(script), str(kill_at)]
        return subprocess.run(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode

    assert process(-1) == 0
    expected = (tmp_path / "learner").read_bytes()
    (tmp_path / "learner").unlink()
    for kill_at in (5, 4):
        assert process(kill_at) == -9
    assert process(0) == 0
    assert (tmp_path / "learner").read_bytes() == expected
