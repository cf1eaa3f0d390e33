"""Generative replay: its equations against slow formulas, and what learns from what."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops import ADAM, Loop, same_bits, small_tasks, state

import minicl
from minicl.replay.generative import hard_loss, mixture, soft_loss
from minicl.replay.vae import VAE, kl_to_standard_normal, reconstruction


def test_the_vaes_two_terms_against_loops() -> None:
    mu, log_var = torch.randn(3, 2), torch.randn(3, 2)
    slow = 0.0
    for m, v in zip(mu.flatten().tolist(), log_var.flatten().tolist(), strict=True):
        slow += (math.exp(v) + m * m - 1 - v) / 2  # the textbook's KL of two normals, one number each
    torch.testing.assert_close(kl_to_standard_normal(mu, log_var), torch.tensor(slow / 3))
    x, z = torch.rand(3, 4), torch.randn(3, 4)
    p = [[1 / (1 + math.exp(-v)) for v in row] for row in z.tolist()]
    slow = -sum(
        a * math.log(b) + (1 - a) * math.log(1 - b)
        for row, chances in zip(x.tolist(), p, strict=True)
        for a, b in zip(row, chances, strict=True)
    )
    torch.testing.assert_close(reconstruction(x, z), torch.tensor(slow / 3))


def test_old_answers_weigh_more_with_every_task() -> None:
    new, old = torch.tensor(2.0), torch.tensor(10.0)
    assert mixture(new, old, 1) == 2
    assert float(mixture(new, old, 4)) == pytest.approx(2 / 4 + 10 * 3 / 4)
    z, before = torch.randn(5, 4), torch.randn(5, 2)
    slow = 0.0
    for i in range(5):
        p = [math.exp(v / 2) for v in before[i].tolist()]
        q = [math.exp(v / 2) for v in z[i].tolist()]
        slow -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=False))
    torch.testing.assert_close(soft_loss(z, before, 2.0), torch.tensor(4 * slow / 5))
    torch.testing.assert_close(hard_loss(z, before.argmax(1)), F.cross_entropy(z, before.argmax(1)))


def test_a_generator_learns_what_it_is_shown() -> None:
    """Made-up samples have the mean of the real ones, and differ from each other."""
    torch.manual_seed(0)
    pattern = (torch.rand(1, 4, 4) > 0.5).float()
    x = (pattern + 0.3 * torch.randn(200, 1, 4, 4)).clamp(0, 1)
    vae = VAE((1, 4, 4), (32, 32), 4)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        vae.loss(x).backward()
        optimizer.step()
    made = vae.sample(200)
    assert made.shape == x.shape
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    assert (made.mean(0) - x.mean(0)).abs().max() < 0.15
    assert made.std(0).max() > 1e-3


@pytest.mark.parametrize("distill", [False, True])
@pytest.mark.parametrize("scenario", ["class", "domain", "task"])
def test_made_up_samples_are_labelled_by_the_network_of_before(scenario: str, distill: bool) -> None:
    tasks = small_tasks(scenario)
    learner = minicl.GenerativeReplay(minicl.mlp(36, 12), hidden=10, latent=3, distill=distill)
    Loop(learner).learn(tasks[0])
    x, y = tasks[1].train.x, tasks[1].train.y
    old = learner.backbone, {n: h for n, h in learner.heads.items() if n != "1"}
    kept = state(old[0])
    looked = []

    def fit(**_: Any) -> None:
        learner.train()
        optimizer = learner.protect(ADAM(learner.parameters()))
        learner.loss(x, y, 1 if scenario == "task" else None).backward()
        optimizer.step()
        torch.manual_seed(5)
        found = learner.loss(x, y, 1 if scenario == "task" else None)
        torch.manual_seed(5)
        generator = learner.generator
        assert generator is not None
        new = F.cross_entropy(learner(x, 1 if scenario == "task" else None), y) + generator.loss(x)
        made = learner._before[0].sample(len(x))
        assert learner.teacher is not None
        assert same_bits(state(learner.teacher.network), kept)  # not what has just been trained
        before = learner.teacher(made)
        f = learner.backbone(made)
        z = learner.heads["0"](f) if scenario == "task" else learner.heads.logits(f, None)
        one = soft_loss(z, before, 2.0) if distill else F.cross_entropy(z, before.argmax(1))
        slow = new / 2 + (one + generator.loss(made)) / 2
        torch.testing.assert_close(found, slow)
        assert found.requires_grad
        looked.append(True)

    learner.learn(tasks[1], fit)
    assert looked
    assert learner._before == []
    capacity = learner.capacity()
    assert capacity["generator_bytes"] == sum(p.nbytes for p in learner.generator.parameters())  # type: ignore[union-attr]
    assert learner.sample(3).shape == (3, 1, 6, 6)


def test_refused() -> None:
    learner = minicl.GenerativeReplay(minicl.mlp(36, 12), hidden=10, latent=3)
    with pytest.raises(ValueError, match="there is no generator before the first task"):
        learner.sample(2)
    task = small_tasks()[0]
    wide = minicl.Task(0, 2, (task.train.x * 3, task.train.y), None, (task.test.x, task.test.y))
    with pytest.raises(ValueError, match=r"the inputs run from .*; the generator makes up numbers from 0 to 1"):
        Loop(learner).learn(wide)
