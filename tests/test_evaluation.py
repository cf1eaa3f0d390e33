"""Asking a learner changes nothing, also where the asking goes wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import minicl
from minicl import freezing
from minicl.freezing import all_modules


class Fragile(nn.Module):
    """A backbone with BatchNorm that fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU())
        self.broken = False

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.net(x)
        if self.broken:
            raise RuntimeError("out of memory")
        return h


def modes(module: nn.Module) -> list[bool]:
    return [part.training for _, part in all_modules(module)]


def test_each_part_gets_its_own_mode_back() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    network[1].eval()  # as people do who keep the statistics of a pretrained network
    before = modes(network)
    with freezing.evaluating(network):
        assert not any(modes(network))
    assert modes(network) == before == [True, True, False, True]
    with pytest.raises(KeyError), freezing.evaluating(network):
        raise KeyError
    assert modes(network) == before


@pytest.mark.parametrize("method", [n for n, m in minicl.METHODS.items() if n not in ("hat", "agscl", "den")])
@pytest.mark.parametrize("ask", [minicl.evaluate, lambda learner, task: minicl.certify(learner, [task])])
def test_a_learner_that_fails_to_answer_stays_in_training_mode(method: str, ask: object) -> None:
    tasks = minicl.split("digits", 5, n_train=20)
    backbone = Fragile()
    learner = minicl.METHODS[method](backbone)
    minicl.run(learner, tasks[:2], epochs=1, progress=False)
    learner.train()
    before = modes(learner)
    assert any(before)
    for _, part in all_modules(learner):
        if isinstance(part, Fragile):
            part.broken = True
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(learner, tasks[0])  # type: ignore[operator]
    assert modes(learner) == before


def test_an_old_task_that_fails_does_not_stop_the_statistics_of_the_new_one() -> None:
    """PackNet answers for an old task with that task's norms, and for that moment holds the new task's still."""
    tasks = minicl.split("digits", 5, n_train=60)
    backbone = Fragile()
    learner = minicl.PackNet(backbone, batchnorm="per-task")
    minicl.run(learner, tasks[:1], epochs=1, progress=False)

    def fit(epochs: int = 1) -> None:
        learner.train()
        backbone.broken = True
        with pytest.raises(RuntimeError, match="out of memory"):
            learner(tasks[0].test.x, 0)
        backbone.broken = False
        norm = backbone.net[2]
        assert norm.training
        before = norm.running_mean.clone()
        learner(tasks[1].train.x, 1)
        assert not torch.equal(norm.running_mean, before)

    learner.learn(tasks[1], fit)
