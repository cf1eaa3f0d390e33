"""DER++: the distance of logits, the loss from two draws, and a memory that fills from the loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from loops import ADAM, Loop, digits, run, small_tasks

import minicl
from minicl.replay.derpp import logit_distance


def test_logit_distance_against_a_loop() -> None:
    z, h = torch.randn(5, 3), torch.randn(5, 4)
    z[2, 1:] = torch.nan
    expected = sum((z[i, j] - h[i, j]) ** 2 for i in range(5) for j in range(3) if not z[i, j].isnan()) / 5
    torch.testing.assert_close(logit_distance(z, h), expected)


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_derpp_loss_has_two_separate_draws(scenario: str) -> None:
    learner, tasks = minicl.DERpp(minicl.mlp(64, 16), alpha=0.3, beta=0.7), digits(scenario, n_train=40)
    run(learner, tasks[:2], epochs=1)
    task = tasks[2]
    x, y = task.train.x[:8], task.train.y[:8]
    task_id = 2 if scenario == "task" else None

    def fit() -> None:
        learner.train()
        torch.manual_seed(5)
        memory, first, second = learner.memory, learner.memory.draw(8), learner.memory.draw(8)
        x1, ids1, z = memory.x[first], memory.task_ids[first], memory.logits[first]
        x2, y2, ids2 = memory.x[second], memory.y[second], memory.task_ids[second]
        assert not torch.equal(x1, x2)
        own = [int(t) if scenario == "task" else None for t in ids1]
        distance = 0.0
        for i in range(8):
            h = learner(x1[i : i + 1], own[i])[0].detach()
            known = ~z[i].isnan()
            distance += float(((z[i][known] - h[: int(known.sum())]) ** 2).sum()) / 8
        remembered = [
            F.cross_entropy(learner(x2[i : i + 1], int(ids2[i]) if scenario == "task" else None), y2[i : i + 1])
            for i in range(8)
        ]
        new = F.cross_entropy(learner(x, task_id), y)
        expected = new.item() + 0.3 * distance + 0.7 * torch.stack(remembered).mean().item()
        torch.manual_seed(5)
        assert learner.loss(x, y, task_id).item() == pytest.approx(expected, rel=1e-4)

    learner.learn(task, fit)


def test_derpp_needs_no_training_samples_but_those_of_the_loop() -> None:
    """They may come from a stream that is never held as a whole."""
    source = small_tasks("domain", 2)
    learner = minicl.DERpp(minicl.mlp(36, 16), budget=30)
    loop = Loop(learner, ADAM, epochs=1)
    for task in source:
        bare = minicl.Task(task.id, 2, scenario="domain", example=task.train.x)
        learner.learn(bare, lambda task=task: loop.fit(task))
    assert learner.memory.seen == sum(len(task.train) for task in source)
    assert set(learner.memory.task_ids.tolist()) == {0, 1}
