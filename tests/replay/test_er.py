"""ER: the loss is the mean over new and remembered samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from loops import digits, run

import minicl


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_er_loss_is_the_mean_over_new_and_remembered(scenario: str) -> None:
    learner, tasks = minicl.ER(minicl.mlp(64, 16)), digits(scenario, n_train=40)
    run(learner, tasks[:2], epochs=1)
    task = tasks[2]
    x, y = task.train.x[:8], task.train.y[:8]
    task_id = 2 if scenario == "task" else None

    def fit() -> None:
        learner.train()
        torch.manual_seed(5)
        loss = learner.loss(x, y, task_id)
        torch.manual_seed(5)
        rows = learner.memory.draw(8)
        old_x, old_y, old_ids = learner.memory.x[rows], learner.memory.y[rows], learner.memory.task_ids[rows]
        losses = [F.cross_entropy(learner(x[i : i + 1], task_id), y[i : i + 1]) for i in range(8)]
        for i in range(8):
            own = int(old_ids[i]) if scenario == "task" else None
            losses.append(F.cross_entropy(learner(old_x[i : i + 1], own), old_y[i : i + 1]))
        torch.testing.assert_close(loss, torch.stack(losses).mean())
        assert set(old_ids.tolist()) == {0, 1}

    learner.learn(task, fit)
