"""BiC and WA: what corrects the outputs of new classes, against slow formulas, on samples that were not trained on."""

from __future__ import annotations

from typing import Any

import pytest
import seeds
import torch
import torch.nn.functional as F
from loops import ADAM, Loop, answer, small_tasks
from torch import nn

import minicl
from minicl.replay.bic import corrected, fit_correction, old_share
from minicl.replay.teacher import Teacher
from minicl.replay.wa import align, gamma


def test_corrected_and_share() -> None:
    z = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert corrected(z, 3, 0.5, 1.0).tolist() == [[1.0, 2.0, 3.0, 3.0]]
    assert old_share(6, 2) == 0.75


def test_the_two_numbers_are_found() -> None:
    """New logits that were made larger and shifted are put back; and no other pair is better."""
    y = torch.randint(6, (600,), generator=seeds.generator(1))
    z = 2 * (torch.randn(600, 6, generator=seeds.generator(2)).double() + 2.0 * F.one_hot(y, 6))  # log-odds
    spoiled = torch.cat([z[:, :4], 3 * z[:, 4:] + 5], 1)
    alpha, beta = fit_correction(spoiled, y, 4)
    assert alpha == pytest.approx(1 / 3, rel=0.25)
    best = F.cross_entropy(corrected(spoiled, 4, alpha, beta), y)
    for da, db in ((0.02, 0), (-0.02, 0), (0, 0.05), (0, -0.05)):
        assert F.cross_entropy(corrected(spoiled, 4, alpha + da, beta + db), y) > best - 1e-8


def test_what_is_held_out_is_not_trained_on_and_the_correction_is_used() -> None:
    tasks = small_tasks("class", samples=60)
    learner = minicl.BiC(minicl.mlp(36, 12), budget=40, held_out=0.2)
    Loop(learner).learn(tasks[0])
    assert learner.correction.tolist() == [1.0, 0.0]
    seen: list[int] = []
    loop = Loop(learner)

    def fit(epochs: int | None = None, tasks: Any = None) -> None:
        (part,) = tasks
        seen.append(len(part.train))
        assert learner._trained is not None
        assert len(learner._trained) == 40 - 2 * 4  # a fifth of twenty, of each class
        loop.fit(part, 8, tasks)

    learner.learn(tasks[1], fit)
    assert seen == [60 - 2 * 4]
    alpha, beta = learner.correction.tolist()
    assert (alpha, beta) != (1.0, 0.0)
    x = tasks[1].test.x
    raw = F.linear(learner.backbone(x), *learner.heads.side_by_side())
    torch.testing.assert_close(answer(learner, x), corrected(raw, 2, alpha, beta).detach())
    torch.testing.assert_close(learner.export()(x), answer(learner, x))


def test_trap_corrected_logits_are_distilled() -> None:
    tasks = small_tasks("class", samples=60)
    learner = minicl.BiC(minicl.mlp(36, 12), budget=40)
    Loop(learner, epochs=6).learn(*tasks[:2])
    then = answer(learner, tasks[2].train.x)
    raw = F.linear(learner.backbone(tasks[2].train.x), *learner.heads.side_by_side()).detach()
    assert not torch.allclose(then, raw)
    looked = []

    def fit(epochs: int | None = None, tasks: Any = None) -> None:
        assert isinstance(learner.teacher, Teacher)
        looked.append(learner.teacher)

    learner.learn(tasks[2], fit)
    torch.testing.assert_close(looked[0](tasks[2].train.x), then)


def test_rows_are_aligned() -> None:
    old, new = torch.randn(4, 3), 5 * torch.randn(2, 3)
    slow = sum(float(r.norm()) for r in old) / 4 / (sum(float(r.norm()) for r in new) / 2)
    assert float(gamma(old, new)) == pytest.approx(slow, rel=1e-5)
    tasks = small_tasks("class")
    learner = minicl.ER(minicl.mlp(36, 12), budget=20)
    loop = Loop(learner).learn(tasks[0])
    assert align(learner) == 1.0
    loop.learn(tasks[1])
    before = {name: head.weight.detach().clone() for name, head in learner.heads.items()}  # type: ignore[union-attr, operator]
    factor = align(learner)
    assert factor == pytest.approx(float(gamma(before["0"], before["1"])))
    assert torch.equal(learner.heads["0"].weight, before["0"])  # type: ignore[arg-type]
    torch.testing.assert_close(learner.heads["1"].weight, factor * before["1"])
    assert align(learner) == pytest.approx(1.0, abs=1e-5)


def test_aligning_is_refused_where_it_means_nothing() -> None:
    learner = minicl.FineTune(minicl.mlp(36, 12))
    with pytest.raises(ValueError, match="weights are aligned in scenario 'class', after a task"):
        align(learner)
    Loop(learner).learn(*small_tasks("task"))
    with pytest.raises(ValueError, match="this FineTune has learned 3 tasks in scenario 'task'"):
        align(learner)
    still = minicl.NCM(nn.Flatten(), train_first=False)
    Loop(still, ADAM).learn(*small_tasks("class"))
    with pytest.raises(ValueError, match="the outputs of NCM stand still"):
        align(still)
