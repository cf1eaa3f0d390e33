"""What `run` may be asked for within a task: schedules per step, another criterion, measurements, sizes of batches."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loops import ADAM, MOMENTUM, same_bits, small_tasks, state
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import minicl
from minicl import FineTune, Learner, PackNet, evaluation
from minicl.loop import Training
from minicl.testing import METHODS, VARIANTS, Method

TABLE = METHODS | VARIANTS
every_method = pytest.mark.parametrize("method", TABLE.values(), ids=TABLE)
pytestmark = pytest.mark.filterwarnings(r"ignore:task \d+ switched off every unit")


def network() -> nn.Sequential:
    return minicl.mlp(36, 8)


# ---- schedules -------------------------------------------------------------------------------------------------------


def rates(**settings: Any) -> list[float]:
    """The learning rate of each step: two epochs of two steps for each of two tasks."""
    seen: list[float] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=1.0, momentum=0.9)
        optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    minicl.run(FineTune(network()), small_tasks(n=2), epochs=2, batch_size=10, optimizer=make, **settings)
    return seen


def test_a_schedule_steps_after_each_step_where_that_is_asked_for() -> None:
    halving = partial(StepLR, step_size=1, gamma=0.5)
    assert rates(schedule=halving, schedule_every="step") == [1, 0.5, 0.25, 0.125] * 2
    assert rates(schedule=halving) == [1, 1, 0.5, 0.5] * 2


def test_one_cycle_is_gone_through_once_in_every_training() -> None:
    found = rates(schedule=partial(OneCycleLR, max_lr=1.0, total_steps=4), schedule_every="step")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    schedule, expected = OneCycleLR(optimizer, max_lr=1.0, total_steps=4), []
    for _ in range(4):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == expected * 2


@pytest.mark.parametrize(
    ("make", "total", "settings", "needed"),
    [
        (FineTune, 3, {"schedule_every": "step"}, 4),
        (FineTune, 1, {}, 2),
        (partial(PackNet, retrain_epochs=5), 4, {"schedule_every": "step"}, 10),
        (partial(PackNet, retrain_epochs=5), 4, {}, 5),
        (minicl.Joint, 11, {"schedule_every": "step"}, 12),  # three tasks in the last training
        (partial(minicl.CPG, stage_epochs=3), 5, {"schedule_every": "step"}, 6),
        (partial(minicl.DER, budget=15, balance_epochs=3), 7, {"schedule_every": "step", "scenario": "class"}, 8),
        (partial(minicl.DER, budget=15, balance_epochs=5), 4, {"scenario": "domain"}, 5),
        (partial(minicl.VCL, coreset=15), 7, {"schedule_every": "step"}, 10),  # three coresets: five steps per epoch
    ],
)
def test_a_schedule_that_ends_too_early_is_refused_before_training(
    make: Any, total: int, settings: dict[str, Any], needed: int
) -> None:
    learner = make(network())
    settings = {"epochs": 2, "batch_size": 10, "optimizer": MOMENTUM, **settings}
    before, tasks = state(learner), small_tasks(settings.pop("scenario", "task"), n=3)
    every = settings.get("schedule_every", "epoch")
    said = rf"OneCycleLR has total_steps={total}, and one training takes {needed} of them \(schedule_every='{every}'\)"
    with pytest.raises(ValueError, match=said):
        minicl.run(learner, tasks, schedule=partial(OneCycleLR, max_lr=0.1, total_steps=total), **settings)
    assert same_bits(state(learner), before)
    assert learner.tasks == {}
    minicl.run(learner, tasks, schedule=partial(OneCycleLR, max_lr=0.1, total_steps=needed), **settings)
    assert learner.learned == [0, 1, 2]


def test_a_method_of_ones_own_that_trains_longer_than_it_said_is_refused_then() -> None:
    class Longer(FineTune):
        def learn(self, task: minicl.Task, fit: Any) -> None:
            fit(epochs=7)

    learner, schedule = Longer(network()), partial(OneCycleLR, max_lr=0.1, total_steps=3)
    with pytest.raises(ValueError, match="total_steps=3, and one training takes 7 of them"):
        minicl.run(learner, small_tasks(), epochs=2, optimizer=MOMENTUM, schedule=schedule)
    assert learner.learned == []


def test_a_plateau_is_seen_once_per_epoch() -> None:
    with pytest.raises(
        ValueError, match=r"schedule_every is 'step', and ReduceLROnPlateau goes by the validation loss"
    ):
        minicl.run(FineTune(network()), small_tasks(), schedule=ReduceLROnPlateau, schedule_every="step")
    with pytest.raises(ValueError, match="schedule_every is 'batch'; allowed: epoch, step"):
        minicl.run(FineTune(network()), small_tasks(), schedule=StepLR, schedule_every="batch")


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (9, 4), (8, 4), (5, 1), (1, 4), (3, 100), (3, 2), (2, 1)])
def test_the_number_of_steps_is_known_before(n: int, batch_size: int) -> None:
    seen = 0

    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.register_step_pre_hook(count)
        return optimizer

    task = small_tasks(samples=n)[0]
    minicl.run(FineTune(network()), [task], epochs=1, batch_size=batch_size, optimizer=make)
    fields: dict[str, Any] = dict.fromkeys(Training.__dataclass_fields__)
    fields |= {"epochs": 1, "batch_size": batch_size, "optimizer": make, "schedule_every": "epoch"}
    fields |= {"fresh_optimizer": True, "seed": 0, "device": torch.device("cpu"), "workers": 0}
    assert Training(**fields).batches(n) == seen


# ---- criterion -------------------------------------------------------------------------------------------------------


def smoothed(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, label_smoothing=0.3)


@every_method
def test_every_method_takes_a_criterion_for_a_run(method: Method) -> None:
    learner, plain = (method.make(method.backbone()) for _ in range(2))
    learner.criterion = own = lambda z, y: smoothed(z, y) * 2
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 10, "optimizer": ADAM}
    if method.trains == "never" or method.kind is minicl.ICaRL:  # whose loss is one of its own
        with pytest.raises(ValueError, match=f"{method.kind.__name__} computes its loss without learner.cross_entropy"):
            minicl.run(learner, small_tasks(), criterion=smoothed, **settings)
        return
    result = minicl.run(learner, small_tasks(), criterion=smoothed, **settings)
    assert learner.criterion is own
    assert result.settings["criterion"] == "smoothed"
    assert "criterion" not in minicl.run(plain, small_tasks(), **settings).settings
    x = torch.rand(5, *small_tasks()[0].test.x.shape[1:])
    assert not torch.equal(learner.eval()(x, 0), plain.eval()(x, 0))


def test_a_criterion_is_put_back_after_an_error() -> None:
    learner = FineTune(network())
    with pytest.raises(FloatingPointError):
        minicl.run(learner, small_tasks(), criterion=lambda z, y: smoothed(z, y) * math.nan)
    assert learner.criterion is None


@pytest.mark.parametrize("trains", [True, False])
def test_a_method_that_never_asks_for_it_is_refused(trains: bool) -> None:
    class Own(FineTune):
        def learn(self, task: minicl.Task, fit: Any) -> None:
            if trains:
                fit()

        def loss(self, x: Tensor, y: Tensor, task_id: Any = None) -> Tensor:
            return F.cross_entropy(self(x, task_id), y)

    learner = Own(network())
    learner.prepare(small_tasks()[0])
    before = state(learner)
    with pytest.raises(
        ValueError, match=r"Own computes its loss without learner.cross_entropy, so a criterion changes"
    ):
        minicl.run(learner, small_tasks(), criterion=smoothed)
    assert same_bits(state(learner), before)  # it was refused in the first step
    minicl.run(Own(network()), small_tasks())


def test_a_plateau_goes_by_the_criterion() -> None:
    given: list[float] = []

    class Seen(ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:
            given.append(metrics)
            super().step(metrics)

    tasks, learner = small_tasks(n=1), FineTune(network())
    minicl.run(learner, tasks, epochs=1, schedule=Seen, criterion=lambda z, y: 100 + z.square().mean())
    assert given[0] == pytest.approx(100 + learner(tasks[0].valid.x, 0).square().mean().item())


# ---- measurements within a task --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_all_tasks_are_measured_within_tasks(scenario: str, tmp_path: Path) -> None:
    tasks = small_tasks(scenario, 3)
    learner, plain = FineTune(network()), FineTune(network())
    settings: dict[str, Any] = {"epochs": 5, "batch_size": 10, "optimizer": ADAM}
    result = minicl.run(learner, tasks, evaluate_every=2, **settings)
    other = minicl.run(plain, tasks, **settings)
    assert same_bits(state(learner), state(plain))  # looking changes nothing
    assert other.within_tasks == []
    assert [moments.shape for moments in result.within_tasks] == [(2, 3)] * 3
    for i, moments in enumerate(result.within_tasks):
        np.testing.assert_array_equal(moments[:, i], [result.learning_curves[i][e] for e in (2, 4)])
        later = moments[:, i + 1 :]
        assert np.isfinite(later).all() if scenario == "domain" else np.isnan(later).all()
    assert result.settings["evaluate_every"] == 2
    result.save(tmp_path / "file")
    loaded = minicl.Result.load(tmp_path / "file")
    assert all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(loaded.within_tasks, result.within_tasks, strict=True)
    )


def test_the_last_epoch_is_that_of_the_matrix() -> None:
    for method in (FineTune, minicl.Individual, minicl.EWC):
        result = minicl.run(method(network()), small_tasks(), epochs=3, evaluate_every=3)
        np.testing.assert_array_equal([moments[-1] for moments in result.within_tasks], result.accuracy)


@every_method
def test_every_method_can_be_looked_at_within_a_task(method: Method) -> None:
    result = minicl.run(method.make(method.backbone()), small_tasks(), epochs=2, batch_size=10, evaluate_every=1)
    for i, moments in enumerate(result.within_tasks):
        assert len(moments) == max(len(result.learning_curves[i]) - 1, 0)  # none where nothing is trained
        assert np.isfinite(moments[:, : i + 1]).all()


def test_no_moment_where_a_task_ends_before(tmp_path: Path) -> None:
    result = minicl.run(FineTune(network()), small_tasks(), epochs=1, evaluate_every=4)
    assert [moments.shape for moments in result.within_tasks] == [(0, 3)] * 3
    result.save(tmp_path / "file")
    assert [m.shape for m in minicl.Result.load(tmp_path / "file").within_tasks] == [(0, 3)] * 3


@pytest.mark.parametrize("wrong", [[np.zeros((2, 3))], [np.zeros((2, 2))] * 3])
def test_moments_that_do_not_fit_the_matrix(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"within_tasks has moments of shape .*; allowed: for each of 3 tasks"):
        minicl.Result(np.eye(3), np.zeros(3), [[0.1]] * 3, parameters=1, seconds=0.0, within_tasks=wrong)


# ---- sizes of batches ------------------------------------------------------------------------------------------------


class Counting(FineTune):
    """Writes down how many samples it was asked about at once, in evaluation mode."""

    def forward(self, x: Tensor, task_id: int | None = None) -> Tensor:
        if not self.training:
            self.__dict__.setdefault("sizes", []).append(len(x))
        return super().forward(x, task_id)


def large(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, channels, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 1000),
        ({"evaluation_batch": 7}, 7),
        ({"evaluation_batch": 5000}, 1200),
        ({"batch_size": 300}, 1000),
    ],
)
def test_small_samples_are_evaluated_many_at_once(settings: dict[str, Any], expected: int) -> None:
    x, y = torch.rand(1200, 36), torch.arange(1200) % 2
    learner = Counting(network())
    tasks = [minicl.Task(0, 2, (x[:8], y[:8]), (x, y), (x, y))]
    result = minicl.run(learner, tasks, epochs=1, patience=1, schedule=ReduceLROnPlateau, **settings)
    assert max(learner.sizes) == expected
    assert learner.certificate[0]["batch"] == settings.get("evaluation_batch", 1000)
    assert result.settings.get("evaluation_batch") == settings.get("evaluation_batch")
    learner.sizes.clear()
    assert minicl.certify(learner, tasks)
    assert max(learner.sizes) == expected


@pytest.mark.parametrize(
    ("channels", "batch_size", "expected"), [(64, 4, 102), (64, 200, 200), (1000, 4, 6), (1, 4, 1000)]
)
def test_large_results_are_evaluated_few_at_once(channels: int, batch_size: int, expected: int) -> None:
    """2**24 numbers in a result of (channels, 51, 50), but as many as a training step takes."""
    learner = Counting(large(channels))
    assert evaluation.LARGEST == 2**24
    x, y = torch.rand(2, 1, 51, 50), torch.arange(2)
    task = minicl.Task(0, 2, (x, y), None, (x, y))
    assert evaluation.samples_at_once(learner, task, batch_size) == expected


def test_looking_at_the_network_leaves_no_trace() -> None:
    learner = FineTune(nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4)))
    before, rng = state(learner), torch.get_rng_state()
    found = evaluation.Passing(learner, small_tasks()[0])
    assert (found.largest, found.alone) == (36, ["2"])
    assert same_bits(state(learner), before)
    assert learner.training
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(module._forward_hooks for module in learner.modules())


@pytest.mark.parametrize("name", ["finetune", "individual", "pnn", "hat", "packnet", "feature-extraction"])
def test_norms_of_one_number_are_refused_before_training(name: str) -> None:
    learner: Learner = TABLE[name].make(minicl.mlp(36, 8, batchnorm=True))
    with pytest.raises(
        ValueError, match=r"batch_size is 1, and the norm '2' of the network would have statistics of a"
    ):
        minicl.run(learner, small_tasks(), batch_size=1)
    assert learner.tasks == {}
    minicl.run(FineTune(minicl.cnn(1, 4, batchnorm=True)), small_tasks(n=1), epochs=1, batch_size=1)  # many per channel
    minicl.run(FineTune(network()), small_tasks(n=1), epochs=1, batch_size=1)


@pytest.mark.parametrize("name", ["evaluate_every", "evaluation_batch"])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "1"])
def test_numbers_out_of_range(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {wrong!r}; allowed: integers from 1 up"):
        minicl.run(FineTune(network()), small_tasks(), **{name: wrong})
