"""The equations as they stand on the page against the functions that the methods use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import minicl
from minicl import reference
from minicl.isolation import hat, packnet
from minicl.regularization import ewc, mas, si
from minicl.replay.agem import project_on_average


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_temperature_of_hat() -> None:
    for b in range(1, 8):
        assert reference.temperature(b, 7, 400.0) == pytest.approx(hat.temperature((b - 1) / 6, 400.0))


def test_sparsity_of_hat() -> None:
    masks, used = [torch.rand(5), torch.rand(3)], [torch.rand(5).round(), torch.rand(3).round()]
    expected = reference.sparsity(torch.cat(masks), torch.cat(used))
    torch.testing.assert_close(hat.sparsity(masks, used), expected)


@pytest.mark.parametrize("keep_ratio", [0.1, 0.5, 0.77, 1.0])
def test_masks_of_packnet(keep_ratio: float) -> None:
    weights = torch.randn(3, 7, 5)
    masks = [packnet.keep_mask(weight, keep_ratio) for weight in weights]
    for weight, mask in zip(weights, masks, strict=True):
        assert torch.equal(reference.keep_mask(weight, keep_ratio), mask)
    assert torch.equal(reference.total_mask(masks), packnet.total_mask(masks))


def test_importances_of_ewc_and_mas() -> None:
    task = minicl.split("digits", 5, "task", seed=0, n_train=12)[0]
    learner = minicl.FineTune(minicl.mlp(64, 6))
    learner.learn(task, lambda: None)
    x, y = task.train.x, task.train.y
    named = dict(learner.named_parameters())
    fisher = ewc.fisher_diagonal(learner, named, task.train, 0)
    outputs = mas.output_sensitivity(learner, named, task.train, 0)

    class Logits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return learner(x, 0)

    for name, theta in learner.named_parameters():
        torch.testing.assert_close(reference.fisher_diagonal(Logits(), theta, x, y), fisher[name])
        torch.testing.assert_close(reference.output_sensitivity(Logits(), theta, x), outputs[name])
    assert max(float(f.max()) for f in fisher.values()) > 0


def test_path_integral_of_si() -> None:
    gradients, steps = torch.randn(2, 9, 4, 3)
    omega = torch.zeros(4, 3)
    for g, delta in zip(gradients, steps, strict=True):
        si.path_integral_step(omega, g, delta)
    expected = si.consolidated(omega, steps.sum(0), 0.1)
    torch.testing.assert_close(reference.path_integral(gradients, steps, 0.1), expected)
    assert (expected == 0).any()
    assert (expected > 0).any()


def test_step_of_a_gem() -> None:
    g, other = torch.randn(2, 20)
    for g_ref in (other, -other):
        torch.testing.assert_close(reference.project_on_average(g, g_ref), project_on_average(g, g_ref))
