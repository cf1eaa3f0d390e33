"""MAS: the importance against its closed form on a linear network; no labels; per sample."""

from __future__ import annotations

import torch
from torch import nn

import minicl
from minicl.datasets import Samples
from minicl.regularization.mas import output_sensitivity


class Linear(nn.Module):
    """A linear backbone without bias."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_a_linear_network_has_a_closed_form() -> None:
    """F = V W x + b: d |F|^2 / dW = 2 V^T F x^T, d |F|^2 / dV = 2 F (W x)^T, d |F|^2 / db = 2 F."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    task = minicl.Task(0, 3, (x, y), scenario="domain")
    learner = minicl.MAS(Linear(5, 4))
    learner.learn(task, lambda: None)
    found = learner.importance(task)
    W = learner.backbone.linear.weight.detach()
    V, b = (p.detach() for p in learner.heads["shared"].parameters())
    expected = {n: torch.zeros_like(p) for n, p in found.items()}
    for row in x:
        F = V @ W @ row + b
        expected["backbone.linear.weight"] += (2 * torch.outer(V.T @ F, row)).abs() / len(x)
        expected["heads.shared.weight"] += (2 * torch.outer(F, W @ row)).abs() / len(x)
        expected["heads.shared.bias"] += (2 * F).abs() / len(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    batch = {n: torch.autograd.grad(learner(x).square().sum(1).mean(), p)[0].abs() for n, p in learner.shared().items()}
    assert any(float((batch[n] - found[n]).abs().max()) > 0.1 for n in found)  # the trap: one gradient a batch


def test_labels_do_not_matter() -> None:
    task = minicl.split("digits", 2, "task", n_train=30)[0]
    learner = minicl.MAS(minicl.mlp(64, 8))
    learner.learn(task, lambda: None)
    other = Samples(task.train.x, (task.train.y + 1) % 5)
    torch.testing.assert_close(
        output_sensitivity(learner, learner.shared(), task.train, 0),
        output_sensitivity(learner, learner.shared(), other, 0),
        rtol=0,
        atol=0,
    )


def test_importances_add_up_and_the_anchor_moves_on() -> None:
    stream = minicl.split("digits", 5, "task", n_train=30)
    learner = minicl.MAS(minicl.mlp(64, 8))
    minicl.run(learner, stream[:1], epochs=2, progress=False)
    first = {n: o.clone() for n, o in learner.latest.importances.items()}
    minicl.run(learner, stream[1:2], epochs=2, progress=False)
    second = learner.importance(stream[1])
    for name, omega in learner.latest.importances.items():
        torch.testing.assert_close(omega, first[name] + second[name])
        assert torch.equal(learner.latest.values[name], learner.shared()[name])
    assert len(learner.anchors) == 1


def test_it_forgets_less() -> None:
    stream = minicl.permuted("digits", 3, "domain")
    free = minicl.run(minicl.FineTune(minicl.mlp(64, 64)), stream, epochs=4, progress=False)
    held = minicl.run(minicl.MAS(minicl.mlp(64, 64), lam=0.1), stream, epochs=4, progress=False)
    assert held.backward_transfer > free.backward_transfer + 0.02
