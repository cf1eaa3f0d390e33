"""EWC: the Fisher diagonal against its closed form, modes, labels, samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import minicl
from minicl.datasets import Samples
from minicl.regularization.ewc import fisher_diagonal


class Logistic(nn.Module):
    """Softmax regression: the backbone is the identity, and all parameters are the head's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def logistic(n: int, scenario: str = "domain") -> tuple[minicl.EWC, minicl.Task]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    y = torch.randint(3, (n,), generator=generator)
    task = minicl.Task(0, 3, (x, y), scenario=scenario)
    learner = minicl.EWC(Logistic())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner.prepare(task)
        learner.learn(task, lambda: None)
    return learner, task


def test_the_fisher_diagonal_of_logistic_regression_is_its_closed_form() -> None:
    """sum_y p(y) (1[y = c] - p_c)^2 x_i^2 = p_c (1 - p_c) x_i^2, averaged over inputs."""
    learner, task = logistic(50)
    x = task.train.x
    p = learner(x).softmax(1).detach()
    weight = torch.zeros(3, 4)
    bias = torch.zeros(3)
    for row, q in zip(x, p, strict=True):
        for c in range(3):
            bias[c] += q[c] * (1 - q[c]) / len(x)
            for i in range(4):
                weight[c, i] += q[c] * (1 - q[c]) * row[i] ** 2 / len(x)
    exact = {"heads.shared.weight": torch.zeros(3, 4), "heads.shared.bias": torch.zeros(3)}
    for c in range(3):  # the expectation over labels, written out: each label weighted by its probability
        for i in range(len(x)):
            one = Samples(x[i : i + 1], torch.tensor([c]))
            for name, f in fisher_diagonal(learner, learner.shared(), one, None).items():
                exact[name] += p[i, c] * f / len(x)
    torch.testing.assert_close(exact["heads.shared.weight"], weight)
    torch.testing.assert_close(exact["heads.shared.bias"], bias)


def test_sampled_labels_estimate_the_closed_form() -> None:
    learner, task = logistic(20_000)
    p = learner(task.train.x).softmax(1).detach()
    closed = ((p * (1 - p))[:, :, None] * task.train.x[:, None, :] ** 2).mean(0)
    torch.manual_seed(0)
    found = learner.importance(task)["heads.shared.weight"]
    torch.testing.assert_close(found, closed, rtol=0.05, atol=0)


def test_empirical_labels_are_the_true_ones() -> None:
    learner, task = logistic(100)
    learner.fisher = "empirical"
    p = learner(task.train.x).softmax(1).detach()
    residual = p - nn.functional.one_hot(task.train.y, 3)
    closed = (residual[:, :, None] ** 2 * task.train.x[:, None, :] ** 2).mean(0)
    torch.testing.assert_close(learner.importance(task)["heads.shared.weight"], closed)


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_one_gradient_a_sample(scenario: str) -> None:
    """Against a loop over samples; the square of the batch's mean gradient is something else."""
    task = minicl.split("digits", 5, scenario, n_train=30)[0]
    learner = minicl.EWC(minicl.mlp(64, 6), fisher="empirical")
    learner.learn(task, lambda: None)
    found = learner.importance(task)
    slow = {name: torch.zeros_like(p) for name, p in learner.shared().items()}
    learner.eval()
    for x, y in zip(task.train.x, task.train.y, strict=True):
        learner.zero_grad()
        nn.functional.cross_entropy(learner(x[None], 0), y[None]).backward()
        for name, p in learner.shared().items():
            assert p.grad is not None
            slow[name] += p.grad**2 / len(task.train)
    assert found.keys() == slow.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, slow[name], rtol=1e-4, atol=1e-8)


def test_a_number_of_samples_is_drawn_without_replacement() -> None:
    learner, task = logistic(40)
    learner.samples, learner.fisher = 10, "empirical"
    torch.manual_seed(3)
    rows = torch.randperm(40)[:10]
    torch.manual_seed(3)
    found = learner.importance(task)
    part = Samples(task.train.x[rows], task.train.y[rows])
    expected = fisher_diagonal(learner, learner.shared(), part, None)
    torch.testing.assert_close(found, expected)


def test_labels_are_drawn_from_the_model_in_evaluation_mode() -> None:
    learner, task = logistic(3000)
    torch.manual_seed(1)
    learner.train()
    counts = torch.bincount(learner._drawn_labels(task.train.x, None), minlength=3) / 3000
    p = learner(task.train.x).softmax(1).mean(0)
    assert torch.allclose(counts, p, atol=0.03)
    assert learner.training


def test_dropout_and_batchnorm_are_off_while_measuring() -> None:
    task = minicl.split("digits", 5, "domain", n_train=30)[0]
    learner = minicl.EWC(minicl.mlp(64, 6, batchnorm=True, dropout=0.5), fisher="empirical")
    learner.learn(task, lambda: None)
    before = {n: b.clone() for n, b in learner.named_buffers()}
    learner.train()
    first, second = learner.importance(task), learner.importance(task)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert all(torch.equal(b, before[n]) for n, b in learner.named_buffers())


def test_it_forgets_less() -> None:
    stream = minicl.permuted("digits", 3, "domain")
    free = minicl.run(minicl.FineTune(minicl.mlp(64, 64)), stream, epochs=4, progress=False)
    held = minicl.run(minicl.EWC(minicl.mlp(64, 64), lam=30.0), stream, epochs=4, progress=False)
    assert held.backward_transfer > free.backward_transfer + 0.02
    assert held.average_accuracy > free.average_accuracy
