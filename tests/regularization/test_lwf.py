"""LwF: the distillation loss, targets from before training, which outputs are held in which scenario."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import minicl
from minicl.regularization.lwf import distillation


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_distillation_is_the_papers_formula(temperature: float) -> None:
    """Eqs. 2 and 3: probabilities to the power 1/T, normalised again, in a cross-entropy."""
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    slow = 0.0
    for z, old in zip(logits, targets, strict=True):
        q, p = z.softmax(0) ** (1 / temperature), old.softmax(0) ** (1 / temperature)
        q, p = q / q.sum(), p / p.sum()
        slow -= sum(float(p[i]) * float(q[i].log()) for i in range(4)) / len(logits)
    assert distillation(logits, targets, temperature).item() == pytest.approx(slow, rel=1e-10)


def test_its_gradient_vanishes_where_the_answers_are_the_old_ones() -> None:
    targets = torch.randn(5, 3)
    logits = (targets + 4.0).requires_grad_()  # the softmax does not see a shift
    distillation(logits, targets, 2.0).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(5, 3), atol=1e-6, rtol=0)


def test_distillation_of_several_heads_is_the_sum() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 3, 4, dtype=torch.float64), torch.randn(7, 3, 4, dtype=torch.float64)
    one_by_one = sum(distillation(logits[:, h], targets[:, h], 2.0) for h in range(3))
    torch.testing.assert_close(distillation(logits, targets, 2.0), one_by_one)


def test_heads_of_different_sizes() -> None:
    """Their outputs are computed in one product, and distilled each with a softmax of its own."""
    torch.manual_seed(0)
    x = torch.rand(20, 6)
    data = [(x, torch.arange(20) % k) for k in (2, 5, 3)]
    tasks = [minicl.Task(t, k, own, None, own) for t, (k, own) in enumerate(zip((2, 5, 3), data, strict=True))]
    learner = minicl.LwF(minicl.mlp(6, 8), lam=0.5)
    minicl.run(learner, tasks[:2], epochs=2, progress=False)
    before = copy.deepcopy(learner).eval()

    def look() -> None:
        for p in learner.parameters():
            p.data += 0.1 * torch.randn_like(p)
        learner.train()
        features, old = learner.backbone(x), before.backbone(x)
        expected = nn.functional.cross_entropy(learner.heads["2"](features), tasks[2].train.y)
        for t in ("0", "1"):
            expected = expected + 0.5 * distillation(learner.heads[t](features), before.heads[t](old).detach(), 2.0)
        loss = learner.loss(x, tasks[2].train.y, 2)
        torch.testing.assert_close(loss, expected)
        found, right = (torch.autograd.grad(v, learner.heads["1"].weight)[0] for v in (loss, expected))  # type: ignore[arg-type]
        torch.testing.assert_close(found, right)

    learner.learn(tasks[2], look)
    assert not learner.held


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_the_loss_in_every_scenario(scenario: str) -> None:
    stream = minicl.split("digits", 5, scenario, n_train=40)
    learner = minicl.LwF(minicl.mlp(64, 8, batchnorm=True, dropout=0.2), lam=0.7, temperature=3.0)
    minicl.run(learner, stream[:2], epochs=2, progress=False)
    before = copy.deepcopy(learner).eval()
    task = stream[2]
    x, y = task.train.x, task.train.y
    task_id = task.id if scenario == "task" else None

    def look() -> None:
        for p in learner.parameters():  # training has moved everything
            p.data += 0.1 * torch.randn_like(p)
        learner.train()
        torch.manual_seed(7)
        loss = learner.loss(x, y, task_id)
        torch.manual_seed(7)
        features = learner.backbone(x)
        with torch.no_grad():
            old = before.backbone(x)
        if scenario == "task":
            logits = learner.heads["2"](features)
            pairs = [(learner.heads[t](features), before.heads[t](old)) for t in ("0", "1")]
        elif scenario == "domain":
            logits = learner.heads["shared"](features)
            pairs = [(logits, before.heads["shared"](old))]
        else:
            rows = [learner.heads[t](features) for t in ("0", "1", "2")]
            logits = torch.cat(rows, 1)
            pairs = [(logits[:, :4], torch.cat([before.heads[t](old) for t in ("0", "1")], 1))]
        expected = nn.functional.cross_entropy(logits, y)
        for now, then in pairs:
            expected = expected + 0.7 * distillation(now, then, 3.0)
        torch.testing.assert_close(loss, expected)

    learner.learn(task, look)


def test_old_heads_get_gradients_and_targets_do_not_move() -> None:
    stream = minicl.split("digits", 5, "task", n_train=40)
    learner = minicl.LwF(minicl.mlp(64, 8))
    minicl.run(learner, stream[:1], epochs=2, progress=False)
    old_head = learner.heads["0"].weight.detach().clone()
    answers: list[torch.Tensor] = []

    def fit() -> None:
        optimizer = learner.protect(torch.optim.SGD(learner.parameters(), lr=0.1))
        for _ in range(5):
            backbone, heads = learner.old
            answers.append(heads["0"](backbone(stream[1].train.x)))  # type: ignore[index]
            optimizer.zero_grad()
            learner.loss(stream[1].train.x, stream[1].train.y, 1).backward()
            optimizer.step()

    learner.learn(stream[1], fit)
    assert all(torch.equal(a, answers[0]) for a in answers)
    assert not torch.equal(learner.heads["0"].weight, old_head)  # as in the paper, old heads learn to keep the answers


def test_a_task_that_was_prepared_and_not_learned_is_not_distilled() -> None:
    stream = minicl.split("digits", 5, "task", n_train=40)
    learner = minicl.LwF(minicl.mlp(64, 8))
    minicl.run(learner, stream[:1], epochs=1, progress=False)
    learner.prepare(stream[3])

    def look() -> None:
        assert list(learner.old[1].keys()) == ["0"]  # type: ignore[operator]

    learner.learn(stream[1], look)


def test_memory_between_tasks_and_while_learning() -> None:
    stream = minicl.split("digits", 5, "task", n_train=40)
    learner = minicl.LwF(minicl.mlp(64, 8))
    minicl.run(learner, stream[:1], epochs=1, progress=False)
    network = 4 * (64 * 8 + 8 + 8 * 2 + 2)
    assert learner.capacity()["extra_bytes"] == 0
    assert learner.capacity()["bytes_while_learning"] == network
    seen: list[int] = []
    learner.learn(stream[1], lambda: seen.append(learner.extra_bytes()))
    assert seen == [network]


def test_it_forgets_less() -> None:
    stream = minicl.split("digits", 5, "task")
    free = minicl.run(minicl.FineTune(minicl.mlp(64, 64)), stream, epochs=4, progress=False)
    held = minicl.run(minicl.LwF(minicl.mlp(64, 64)), stream, epochs=4, progress=False)
    assert held.backward_transfer > free.backward_transfer
