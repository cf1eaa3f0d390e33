"""VCL: the KL against torch.distributions, a regression's exact posterior, what is converted, answers, coresets."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from loops import Loop, small_tasks
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import minicl
from minicl.regularization import gaussian

ADAM = partial(torch.optim.Adam, lr=5e-3)


def test_the_kl_is_that_of_torch_distributions() -> None:
    torch.manual_seed(0)
    mean, log_sigma, prior_mean, prior_log_sigma = (torch.randn(5, 3, dtype=torch.float64) for _ in range(4))
    found = gaussian.kl_divergence(mean, log_sigma, prior_mean, prior_log_sigma)
    right = kl_divergence(Normal(mean, log_sigma.exp()), Normal(prior_mean, prior_log_sigma.exp())).sum()
    torch.testing.assert_close(found, right)
    assert gaussian.kl_divergence(mean, log_sigma, mean, log_sigma).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_outputs_have_the_distribution_that_drawn_weights_give(kind: str, bias: bool) -> None:
    """Local reparameterisation against networks whose weights are drawn one after another."""
    torch.manual_seed(0)
    make = {
        "linear": lambda: nn.Linear(6, 3, bias=bias),
        "conv1d": lambda: nn.Conv1d(2, 3, 3, padding=1, bias=bias),
        "conv2d": lambda: nn.Conv2d(2, 3, 3, stride=2, bias=bias),
    }
    x = {"linear": torch.randn(1, 6), "conv1d": torch.randn(1, 2, 4), "conv2d": torch.randn(1, 2, 5, 5)}[kind]
    layer = gaussian.gaussian_copy(make[kind](), 1.0, 0.3)
    assert isinstance(layer, gaussian.Gaussian)
    with torch.no_grad():
        layer.weight_log_sigma.normal_(-1, 0.3)  # type: ignore[operator, union-attr]
        local = layer(x.expand(6000, *x.shape[1:]))
        generator = torch.Generator().manual_seed(0)
        drawn = []
        for _ in range(6000):
            layer.draw(generator)
            drawn.append(layer(x)[0])
        weights = torch.stack(drawn)
    torch.testing.assert_close(local.mean(0), weights.mean(0), atol=0.08, rtol=0)
    torch.testing.assert_close(local.std(0), weights.std(0), atol=0.05, rtol=0.05)


def test_conjugate_regression_reaches_the_exact_posterior() -> None:
    """y = x w + noise, orthogonal inputs (so that the posterior is a product), two tasks one after the other."""
    torch.manual_seed(0)
    noise, n = 0.5, 40
    layer = gaussian.gaussian_copy(nn.Linear(3, 1, bias=False), prior_sigma=1.0, initial_sigma=0.05)
    assert isinstance(layer, gaussian.Gaussian)
    mean, precision = torch.zeros(3), torch.ones(3)
    for task in range(2):
        x = torch.linalg.qr(torch.randn(n, 3))[0] * torch.tensor([2.0, 4.0, 1.0])
        y = x @ torch.tensor([0.7, -1.0, 0.3]) + noise * torch.randn(n)
        total = precision + (x**2).sum(0) / noise**2
        mean = (precision * mean + x.T @ y / noise**2) / total
        precision = total
        layer.train()
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.005, 1 - step / 1500))
        many = x.repeat(20, 1)  # twenty draws a step
        for _ in range(1500):
            optimizer.zero_grad()
            misfit = (layer(many)[:, 0] - y.repeat(20)) ** 2
            loss = misfit.mean() / (2 * noise**2) + layer.kl() / n
            loss.backward()
            optimizer.step()
            schedule.step()
        found, sigma = layer.weight.detach()[0], layer.weight_log_sigma.detach().exp()[0]  # type: ignore[index, operator, union-attr]
        torch.testing.assert_close(found, mean, atol=0.03, rtol=0)
        torch.testing.assert_close(sigma, precision**-0.5, atol=0.005, rtol=0.05)
        assert task or not torch.allclose(sigma, torch.ones(3), atol=0.1)
        with torch.no_grad():
            layer.posterior_to_prior()


def test_linear_and_conv_layers_are_converted_and_nothing_else() -> None:
    backbone = minicl.cnn(1, 4, 6, batchnorm=True)
    learner = minicl.VCL(backbone)
    assert [type(m).__name__ for m in learner.backbone.modules()][1:3] == ["GaussianConv2d", "BatchNorm2d"]
    assert type(backbone[0]) is nn.Conv2d  # the given network is as it was
    with pytest.raises(ValueError, match=r"no layer that VCL can make uncertain; allowed: at least one nn\.Linear"):
        minicl.VCL(nn.Flatten())


def test_weights_start_nearly_certain_and_the_first_prior_is_wide() -> None:
    learner = minicl.VCL(minicl.mlp(64, 8), prior_sigma=2.0, initial_sigma=0.01)
    layer = learner.layers(learner.backbone)[0]
    for _, log_sigma, prior_mean, prior_log_sigma in layer.posterior():
        torch.testing.assert_close(log_sigma.exp(), torch.full_like(log_sigma, 0.01))
        torch.testing.assert_close(prior_log_sigma.exp(), torch.full_like(log_sigma, 2.0))
        assert not prior_mean.any()


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_the_loss_is_a_draw_and_the_kl_by_data_count(scenario: str) -> None:
    stream = minicl.split("digits", 5, scenario, n_train=50)
    learner = minicl.VCL(minicl.mlp(64, 12), initial_sigma=0.1)
    minicl.run(learner, stream[:1], epochs=2, progress=False, optimizer=ADAM)
    task = stream[1]
    task_id = task.id if scenario == "task" else None

    def look() -> None:
        learner.train()
        with torch.no_grad():
            for p in learner.backbone.parameters():
                p.add_(0.1 * torch.randn_like(p))
        torch.manual_seed(0)
        loss = learner.loss(task.train.x, task.train.y, task_id)
        torch.manual_seed(0)
        logits = learner(task.train.x, task_id)
        slow = 0.0
        for layer in learner.layers(learner):
            for mean, log_sigma, prior_mean, prior_log_sigma in layer.posterior():
                q, p = Normal(mean, log_sigma.exp()), Normal(prior_mean, prior_log_sigma.exp())
                slow += kl_divergence(q, p).sum().item()
        expected = nn.functional.cross_entropy(logits, task.train.y).item() + slow / len(task.train)
        assert loss.item() == pytest.approx(expected, rel=1e-4)

    learner.learn(task, look)


def test_the_posterior_becomes_the_prior() -> None:
    stream = minicl.split("digits", 5, "domain", n_train=50)
    learner = minicl.VCL(minicl.mlp(64, 12))
    minicl.run(learner, stream[:1], epochs=2, progress=False, optimizer=ADAM)
    for layer in learner.layers(learner):
        for mean, log_sigma, prior_mean, prior_log_sigma in layer.posterior():
            assert torch.equal(mean, prior_mean)
            assert torch.equal(log_sigma, prior_log_sigma)
    assert learner.kl().item() == pytest.approx(0, abs=1e-3)


def test_predictions_average_probabilities_and_do_not_depend_on_the_batch() -> None:
    stream = minicl.split("digits", 5, "domain", n_train=50)
    learner = minicl.VCL(minicl.mlp(64, 12), samples=4, initial_sigma=0.2)
    minicl.run(learner, stream[:1], epochs=2, progress=False, optimizer=ADAM)
    learner.eval()
    x = stream[0].test.x
    with torch.no_grad():
        answer = learner(x)
        assert torch.equal(answer, learner(x))
        torch.testing.assert_close(answer[3:5], learner(x[3:5]))
        probabilities = []
        for number in range(4):
            generator = torch.Generator().manual_seed(number)
            for layer in learner.layers(learner):
                layer.draw(generator)
            hidden = nn.functional.linear(x.flatten(1), **learner.backbone[1].drawn).relu()  # type: ignore[index, union-attr, arg-type]
            probabilities.append(nn.functional.linear(hidden, **learner.heads["shared"].drawn).softmax(1))  # type: ignore[arg-type]
        for layer in learner.layers(learner):
            layer.drawn = None
    torch.testing.assert_close(answer.exp(), torch.stack(probabilities).mean(0))
    assert float((probabilities[0] - probabilities[1]).abs().max()) > 0.01


def test_a_weight_that_is_known_exactly_can_hardly_move() -> None:
    stream = minicl.split("digits", 5, "domain", n_train=60)
    learner = minicl.VCL(minicl.mlp(64, 8), initial_sigma=0.1)
    minicl.run(learner, stream[:1], epochs=3, progress=False, optimizer=ADAM)
    layer = learner.layers(learner.backbone)[0]
    with torch.no_grad():
        layer.weight_log_sigma[:4] = math.log(1e-3)  # type: ignore[index, operator, union-attr]
        layer.posterior_to_prior()
    before = layer.weight.detach().clone()  # type: ignore[operator, union-attr]
    minicl.run(learner, stream[1:2], epochs=20, progress=False, optimizer=partial(torch.optim.Adam, lr=1e-3))
    moved = (layer.weight.detach() - before).norm(dim=1)  # type: ignore[operator, union-attr]
    assert float(moved[:4].max()) < 0.3 * float(moved[4:].max())


def test_a_coreset_brings_old_images_back_and_the_next_task_starts_without_it(tmp_path: Path) -> None:
    stream = minicl.split("digits", 5, "class", n_train=80)
    with_images = minicl.VCL(minicl.mlp(64, 32), coreset=20, initial_sigma=0.05)
    without = minicl.VCL(minicl.mlp(64, 32), initial_sigma=0.05)
    results = [minicl.run(m, stream[:2], epochs=15, progress=False, optimizer=ADAM) for m in (with_images, without)]
    assert results[0].accuracy[1, 0] > results[1].accuracy[1, 0] + 0.2
    stored = 2 * 20 * (64 * 4 + 8)
    assert with_images.extra_bytes() == without.extra_bytes() + stored
    layer = with_images.layers(with_images.backbone)[0]
    assert not torch.equal(*layer.posterior()[0][::2])
    seen: list[bool] = []
    starts = lambda tasks=None: seen.append(all(torch.equal(p[0], p[2]) for p in layer.posterior()))  # noqa: E731
    with_images.learn(stream[2], starts)
    assert seen[0]
    with_images.save(tmp_path / "file")
    loaded = minicl.VCL.load(tmp_path / "file", minicl.mlp(64, 32))
    a, b = with_images.state_dict(), loaded.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_coresets_in_the_other_scenarios(scenario: str) -> None:
    stream = minicl.split("digits", 5, scenario, n_train=40)
    learner = minicl.VCL(minicl.mlp(64, 8), coreset=10)
    result = minicl.run(learner, stream[:3], epochs=2, progress=False, optimizer=ADAM)
    assert math.isfinite(result.average_accuracy)


def test_parameters_without_a_posterior_are_frozen_after_the_first_task(tmp_path: Path) -> None:
    stream = minicl.split("digits", 5, "task", n_train=40)
    learner = minicl.VCL(minicl.mlp(64, 8, batchnorm=True))
    minicl.run(learner, stream[:1], epochs=1, progress=False, optimizer=ADAM)
    learner.save(tmp_path / "file")
    for each in (learner, minicl.VCL.load(tmp_path / "file", minicl.mlp(64, 8, batchnorm=True))):
        norm = each.backbone[2]  # type: ignore[index]
        before = norm.weight.detach().clone()
        minicl.run(each, stream[1:2], epochs=1, progress=False, optimizer=ADAM)
        assert torch.equal(norm.weight, before)


def test_no_optimiser_from_before_moves_what_is_frozen() -> None:
    """Gradients that were zeroed and not removed would leave weight decay and momentum at work."""
    first, second = small_tasks(n=2)
    learner = minicl.VCL(minicl.mlp(36, 8, batchnorm=True))
    loop = Loop(learner, partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1), set_to_none=False).learn(first)
    before = learner.backbone[2].weight.detach().clone()  # type: ignore[index, operator, union-attr]
    loop.learn(second)
    assert torch.equal(learner.backbone[2].weight, before)  # type: ignore[index, union-attr]


def test_export_is_the_network_of_the_means() -> None:
    stream = minicl.split("digits", 5, "task", n_train=40)
    learner = minicl.VCL(minicl.mlp(64, 8))
    minicl.run(learner, stream[:1], epochs=1, progress=False, optimizer=ADAM)
    network = learner.export(0)
    assert all(type(m).__module__.startswith("torch") for m in network.modules())
    assert len(network.state_dict()) == 4
    x: Tensor = stream[0].test.x
    hidden = nn.functional.linear(x.flatten(1), learner.backbone[1].weight, learner.backbone[1].bias).relu()  # type: ignore[index, union-attr, arg-type]
    right = nn.functional.linear(hidden, learner.heads["0"].weight, learner.heads["0"].bias)  # type: ignore[arg-type]
    torch.testing.assert_close(network(x), right)
