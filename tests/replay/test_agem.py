"""A-GEM: the projection against its definition, and what it makes of a step."""

from __future__ import annotations

import pytest
import seeds
import torch
import torch.nn.functional as F
from loops import digits, gradient, gradient_by_hand, run
from torch import nn

import minicl
from minicl.replay.agem import project_on_average


@pytest.mark.parametrize("case", range(20))
def test_agem_is_the_nearest_point_of_the_half_space(case: int) -> None:
    torch.manual_seed(seeds.of(case))
    g, g_ref = torch.randn(2, 30, dtype=torch.float64)
    projected = project_on_average(g, g_ref)
    if g @ g_ref >= 0:
        assert torch.equal(projected, g)
    else:
        assert abs(float(projected @ g_ref)) < 1e-12
        # What was taken off points along g_ref: no other point of the half-space is as near.
        assert float(F.cosine_similarity(g - projected, g_ref, dim=0)) == pytest.approx(-1)


@pytest.mark.filterwarnings("ignore:the memory holds no sample")  # one sample is all that it holds
@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_agem_hands_the_optimiser_the_projected_gradient(scenario: str) -> None:
    learner = minicl.AGEM(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh()), budget=1)
    tasks = digits(scenario, n_train=40)
    run(learner, tasks[:1], epochs=1)
    changed = []

    def fit() -> None:
        learner.train()
        x, y = tasks[1].train.x[:7], tasks[1].train.y[:7]
        for _ in range(8):
            learner.zero_grad()
            learner.loss(x, y, 1 if scenario == "task" else None).backward()
            before = gradient(learner)
            only = learner.memory.x[:1], learner.memory.y[:1], 0 if scenario == "task" else None
            g_ref = gradient_by_hand(learner, *only)  # a memory of one sample: every batch from it is that sample
            learner.edit_gradients()
            after = gradient(learner)
            torch.testing.assert_close(after, project_on_average(before, g_ref), rtol=1e-4, atol=1e-6)
            changed.append(not torch.equal(before, after))
            learner.protect(torch.optim.SGD(learner.parameters(), lr=0.2)).step()

    learner.learn(tasks[1], fit)
    assert any(changed)


@pytest.mark.parametrize("length", [1.0, 1e-18, 1e-22, 1e-30])
def test_agem_projects_on_a_reference_of_any_length(length: float) -> None:
    """When all is remembered the reference is so short that its square is zero, and a step must not become infinite."""
    g, g_ref = torch.randn(2, 40)
    g_ref = -g_ref * torch.sign(g @ g_ref)
    found = project_on_average(g, length * g_ref)
    torch.testing.assert_close(found, project_on_average(g, g_ref), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [minicl.AGEM, minicl.GEM])
def test_an_optimiser_without_the_old_heads_does_not_keep_their_gradients(method: type[minicl.Learner]) -> None:
    """It does not clear them: what a projection left there must not count as the next batch's."""
    learner, tasks = method(minicl.mlp(64, 16), budget=20), digits(n_train=40)
    run(learner, tasks[:2], epochs=1)
    task = tasks[2]
    old = [p for t in ("0", "1") for p in learner.heads[t].parameters()]
    projected = []

    def fit() -> None:
        learner.train()
        optimizer = torch.optim.SGD([*learner.backbone.parameters(), *learner.heads["2"].parameters()], lr=0.3)
        learner.protect(optimizer)
        for _ in range(3):
            for x, y in zip(task.train.x.split(10), task.train.y.split(10), strict=True):
                optimizer.zero_grad()
                learner.loss(x, y, 2).backward()
                assert all(p.grad is None for p in old)
                optimizer.step()
                projected.append(any(p.grad is not None for p in old))

    learner.learn(task, fit)
    assert any(projected)
