"""iCaRL: its equations against slow formulas, who stays in memory, and what is trained."""

from __future__ import annotations

import math
from typing import Any

import loops
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import ADAM, Loop, answer, small_tasks
from torch import Tensor

import minicl
from minicl.replay.icarl import binary_loss, herding, nearest_mean, normalized, similarity


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 10**6))
def test_herding_against_the_box(n: int, m: int, seed: int) -> None:
    """Algorithm 4, one sample at a time; each sample at most once."""
    f = normalized(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    found = herding(f, m).tolist()
    mu, slow = f.mean(0), []
    for k in range(1, min(m, n) + 1):
        total = sum((f[j] for j in slow), torch.zeros(3, dtype=torch.float64))
        distance = {i: float((mu - (f[i] + total) / k).norm()) for i in range(n) if i not in slow}
        assert distance[found[k - 1]] <= min(distance.values()) + 1e-9
        slow.append(found[k - 1])
    assert sorted(set(found)) == sorted(found)


def test_the_nearest_mean_against_loops() -> None:
    f, means = normalized(torch.randn(20, 5)), normalized(torch.randn(4, 5)) * 0.7
    slow = [min(range(4), key=lambda c, row=row: math.dist(row, means[c].tolist())) for row in f.tolist()]  # type: ignore[misc]
    assert nearest_mean(f, means).tolist() == slow
    assert similarity(f, means).argmax(1).tolist() == slow
    means[2] = 0  # no exemplar: not a mean at the origin
    assert 2 not in similarity(f, means).argmax(1).tolist()


def test_binary_loss_against_loops() -> None:
    z, t = torch.randn(5, 3), torch.rand(5, 3)
    total = 0.0
    for i in range(5):
        for c in range(3):
            g = 1 / (1 + math.exp(-z[i, c].item()))
            total -= t[i, c].item() * math.log(g) + (1 - t[i, c].item()) * math.log(1 - g)
    torch.testing.assert_close(binary_loss(z, t), torch.tensor(total / 5))


def test_lists_are_cut_from_their_ends() -> None:
    """Exemplars of the first task after the second are the first half of what they were: the first network's choice."""
    tasks = small_tasks("class", samples=60)
    learner = minicl.ICaRL(minicl.mlp(36, 12), budget=16)
    loop = Loop(learner).learn(tasks[0])
    memory = learner.memory
    features = normalized(learner.features(tasks[0].train.x, None))
    lists = {}
    for c in range(2):
        rows = (tasks[0].train.y == c).nonzero().flatten()
        lists[c] = tasks[0].train.x[rows[herding(features[rows], 8)]]
    held = memory.x[:16]
    order = memory.priorities[:16].argsort(stable=True)
    for c in range(2):
        own = [i for i in order.tolist() if int(memory.y[i]) == c]
        assert torch.equal(held[own], lists[c])
    loop.learn(tasks[1])
    for c in range(2):
        own = [i for i in memory.priorities[:16].argsort(stable=True).tolist() if int(memory.y[i]) == c]
        assert torch.equal(memory.x[own], lists[c][: len(own)])
        assert len(own) == 4


def test_targets_of_old_outputs_are_old_answers() -> None:
    tasks = small_tasks("class", samples=20)
    learner = minicl.ICaRL(minicl.mlp(36, 12), budget=20)
    Loop(learner).learn(tasks[0])
    old = (
        torch.nn.functional.linear(learner.backbone(tasks[1].train.x), *learner.heads.side_by_side()).sigmoid().detach()
    )
    looked = []

    def fit(**_: Any) -> None:
        learner.train()
        optimizer = learner.protect(ADAM(learner.parameters()))
        for _step in range(3):
            optimizer.zero_grad()
            learner.loss(tasks[1].train.x, tasks[1].train.y).backward()
            optimizer.step()
        x, y = tasks[1].train.x, tasks[1].train.y
        z, targets = (torch.cat(p, 1) for p in zip(*learner.columns(learner.backbone(x), x, y), strict=True))
        assert z.shape == targets.shape == (len(x), 4)
        torch.testing.assert_close(targets[:, :2], old)  # not what the network says now
        assert targets[:, 2:].argmax(1).tolist() == (y - 2).tolist()
        looked.append(True)

    learner.learn(tasks[1], fit)
    assert looked
    means = learner.means["1"]
    assert torch.allclose(means.norm(dim=1), torch.ones(2), atol=1e-5)
    expected = similarity(normalized(learner.features(tasks[1].test.x, None)), torch.cat(learner.means.values()))
    torch.testing.assert_close(answer(learner, tasks[1].test.x), expected)


def test_an_epoch_passes_over_the_exemplars_once_on_average(monkeypatch: Any) -> None:
    tasks = small_tasks("class", samples=50)
    learner = minicl.ICaRL(minicl.mlp(36, 12), budget=30)
    Loop(learner, epochs=1).learn(tasks[0])
    drawn: list[int] = []
    draw = learner.memory.draw

    def counted(n: int) -> Tensor:
        drawn.append(n)
        return draw(n)

    monkeypatch.setattr(learner.memory, "draw", counted)
    loops.run(learner, [tasks[1]], epochs=40, batch_size=10)
    assert abs(sum(drawn) / 40 - 30) < 3
