"""The bounds: FineTune and Joint, Individual and FeatureExtraction."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from backbones import Own
from loops import run, same_bits, small_tasks, state
from torch import Tensor, nn

import minicl
from minicl import FeatureExtraction, FineTune, Individual, Joint, Learner, Task
from minicl.learner import Fit

make_tasks = partial(small_tasks, shape=(6,))
train = partial(run, epochs=2, batch_size=8)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (FineTune, 6 * 5 + 5 + 3 * (5 * 2 + 2)),
        (FeatureExtraction, 6 * 5 + 5 + 3 * (5 * 2 + 2)),
        (Joint, 6 * 5 + 5 + 3 * (5 * 2 + 2)),
        (Individual, 3 * (6 * 5 + 5 + 5 * 2 + 2)),
    ],
)
def test_capacity_counts_what_is_stored(method: type[Learner], expected: int) -> None:
    learner = method(minicl.mlp(6, 5))
    result = train(learner, make_tasks())
    capacity = learner.capacity()
    assert capacity["parameters"] == expected == result.parameters
    assert capacity["bytes"] == 4 * expected
    assert capacity["tasks"] == {t: {"name": f"task {t}", "finished": True} for t in range(3)}
    data = 3 * 20 * (6 * 4 + 8) + 4 * (6 * 5 + 5) if method is Joint else 0  # x, y, and the first weights
    assert capacity["extra_bytes"] == data


def test_a_task_that_broke_off_freezes_nothing_after_load(tmp_path: Path) -> None:
    learner = FeatureExtraction(minicl.mlp(6, 5))
    with pytest.raises(RuntimeError):
        learner.learn(make_tasks()[0], lambda: (_ for _ in ()).throw(RuntimeError()))
    learner.save(tmp_path / "f")
    loaded = FeatureExtraction.load(tmp_path / "f", minicl.mlp(6, 5))
    assert len(list(loaded.backbone.parameters())) == 2
    train(loaded, make_tasks())
    assert loaded.learned == [0, 1, 2]


def test_individual_networks_are_separate_and_start_from_different_weights() -> None:
    learner = Individual(minicl.mlp(6, 5))
    for task in make_tasks():
        learner.prepare(task)
    weights = [learner.networks[str(t)][1].weight for t in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert len({w.data_ptr() for w in weights}) == 3


def test_individual_is_as_good_as_a_network_trained_alone() -> None:
    """Task 0 of Individual is FineTune on task 0, to the bit: the same network, the same order, the same optimiser."""
    tasks = make_tasks(shape=(1, 5, 5))
    torch.manual_seed(0)
    backbone = Own()
    one, other = Individual(copy.deepcopy(backbone)), FineTune(copy.deepcopy(backbone))
    train(one, tasks[:1])
    train(other, tasks[:1])
    x = torch.randn(3, 1, 5, 5)
    assert torch.equal(one(x, 0), other(x, 0))


def test_feature_extraction_is_fine_tuning_on_the_first_task_and_linear_after_it() -> None:
    tasks = make_tasks()
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    one, other = FeatureExtraction(copy.deepcopy(backbone)), FineTune(copy.deepcopy(backbone))
    train(one, tasks[:1])
    train(other, tasks[:1])
    x = torch.randn(3, 6)
    assert torch.equal(one(x, 0), other(x, 0))
    before = one.backbone(x)
    train(one, tasks[1:])
    assert torch.equal(one.backbone(x), before)
    torch.testing.assert_close(one(x, 2), before @ one.heads["2"].weight.T + one.heads["2"].bias)


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_joint_is_a_run_from_the_first_weights_on_all_data(scenario: str) -> None:
    """After each task, Joint's backbone comes from the first weights, whatever was learned in between."""
    tasks = make_tasks(scenario)
    backbone = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    started: list[dict[str, Tensor]] = []
    given: list[list[int]] = []

    class Watched(Joint):
        def learn(self, task: Task, fit: Fit) -> None:
            def watched(tasks: list[Task]) -> None:
                started.append(state(self.backbone))
                given.append([t.id for t in tasks])
                fit(tasks=tasks)

            super().learn(task, watched)

    first = state(backbone)
    learner = Watched(backbone)
    train(learner, tasks)
    assert given == [[0], [0, 1], [0, 1, 2]]
    assert all(same_bits(first, each) for each in started)
    assert not same_bits(first, state(learner.backbone))


def test_the_loss_of_a_mixture_is_the_mean_over_its_samples() -> None:
    learner = Joint(minicl.mlp(6, 5))
    train(learner, make_tasks())
    x, y = torch.randn(7, 6), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    ids = torch.tensor([0, 2, 2, 1, 0, 2, 2])
    one_by_one = [learner.loss(x[i : i + 1], y[i : i + 1], int(ids[i])) for i in range(7)]
    torch.testing.assert_close(learner.loss(x, y, ids), torch.stack(one_by_one).mean())


def test_joint_training_remembers_what_fine_tuning_forgets() -> None:
    stream = minicl.permuted("digits", 3, "domain", n_train=300)
    scores = {
        method: minicl.run(method(minicl.mlp(64, 64)), stream, epochs=40).average_accuracy
        for method in (FineTune, Joint)
    }
    assert scores[Joint] > scores[FineTune] + 0.05


def test_joint_asks_for_the_data_that_a_file_does_not_hold(tmp_path: Path) -> None:
    tasks = make_tasks()
    learner = Joint(minicl.mlp(6, 5))
    train(learner, tasks[:2])
    learner.save(tmp_path / "file")
    loaded = Joint.load(tmp_path / "file", minicl.mlp(6, 5))
    with pytest.raises(ValueError, match=r"needs the data of tasks \[0, 1\] too; set learner.seen"):
        loaded.learn(tasks[2], lambda: None)
    loaded.seen = tasks[:2]
    train(loaded, tasks[2:])
    assert loaded.learned == [0, 1, 2]
