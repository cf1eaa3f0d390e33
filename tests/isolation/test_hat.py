"""HAT: its equations against slow formulas, its promise over random cases, and a test for each trap."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minicl
from minicl import HAT
from minicl.isolation import hat

# Layers of eight units lose them all now and then; what HAT does about it is tested below.
pytestmark = pytest.mark.filterwarnings("ignore:task . switched off every unit")

# ---- the equations ---------------------------------------------------------------------------------------------------


def test_eq_1_attention() -> None:
    scores = torch.linspace(-6, 6, 101)
    for temperature in (400.0, 3.0, 1.0, 0.25, 1 / 400):
        slow = torch.tensor([1 / (1 + math.exp(min(-e / temperature, 700))) for e in scores.double().tolist()])
        assert torch.allclose(hat.attention(scores, temperature), slow, rtol=1e-5, atol=2e-12)


def test_eq_1_accumulate() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 7, generator=generator)
    previous = None
    for mask in masks:
        previous = hat.accumulate(mask, previous)
    assert previous is not None
    assert previous.tolist() == [max(masks[t, i].item() for t in range(4)) for i in range(7)]
    binary = hat.accumulate(masks[0] > 0.5, masks[1] > 0.5)
    assert binary.dtype == torch.bool
    assert binary.tolist() == [a > 0.5 or b > 0.5 for a, b in zip(masks[0].tolist(), masks[1].tolist(), strict=True)]


def test_eq_3_temperature() -> None:
    for s_max, B in ((400.0, 50), (2.0, 2), (10.0, 7)):
        for b in range(1, B + 1):
            s = 1 / s_max + (s_max - 1 / s_max) * (b - 1) / (B - 1)
            assert hat.temperature((b - 1) / (B - 1), s_max) == pytest.approx(1 / s)
    # The paper's s runs from 1/s_max to s_max, both included, and T = 1/s.
    assert hat.temperature(0.0, 400) == 400
    assert hat.temperature(1.0, 400) == 1 / 400
    e = torch.randn(9)
    assert torch.allclose(hat.attention(e, hat.temperature(1.0, 400)), torch.sigmoid(400 * e), atol=1e-9)


@pytest.mark.parametrize("progress", [-1 / 49, 1.01, float("nan")])
def test_a_batch_counted_from_the_wrong_end_is_refused(progress: float) -> None:
    with pytest.raises(ValueError, match="progress"):
        hat.temperature(progress, 400)


def test_eq_2_bracket() -> None:
    out, into = torch.rand(4), torch.rand(3)
    bracket = hat.protect_weight(out, into)
    for i in range(4):
        for j in range(3):
            assert bracket[i, j].item() == pytest.approx(1 - min(out[i].item(), into[j].item()))
    assert torch.equal(hat.protect_weight(out), 1 - out)
    binary = hat.protect_weight(torch.tensor([True, False]), torch.tensor([True, False, True]))
    assert binary.tolist() == [[0, 1, 0], [1, 1, 1]]


def test_eq_5_sparsity() -> None:
    masks, previous = [torch.rand(5), torch.rand(3)], [torch.rand(5), torch.rand(3)]
    taken = there = 0.0
    for a, p in zip(masks, previous, strict=True):
        for i in range(len(a)):
            taken += a[i].item() * (1 - p[i].item())
            there += 1 - p[i].item()
    assert hat.sparsity(masks, previous).item() == pytest.approx(taken / there)  # one ratio, not a mean of ratios
    assert hat.sparsity(masks).item() == pytest.approx((masks[0].sum() + masks[1].sum()).item() / 8)
    assert hat.sparsity(masks, [torch.ones(5), torch.ones(3)]).item() == 0
    assert hat.sparsity([masks[0]], [torch.tensor([True, False, True, True, True])]).item() == masks[0][1].item()


def test_compensation() -> None:
    scores = torch.tensor([-6.0, -1.3, -0.02, 0.0, 0.4, 2.0, 6.0])
    grad = torch.randn(7)
    for s_max in (5.0, 400.0):
        for s in (1 / s_max, 0.7, s_max):
            slow = []
            for q, e in zip(grad.tolist(), scores.tolist(), strict=True):
                x = max(-50.0, min(50.0, s * e))
                slow.append(s_max * (math.cosh(x) + 1) / (s * (math.cosh(e) + 1)) * q)
            fast = hat.compensate(grad, scores, 1 / s, s_max)
            assert torch.allclose(fast, torch.tensor(slow), rtol=1e-4)


def test_compensation_gives_the_gradient_of_a_sigmoid_with_s_1() -> None:
    """What it is for: whatever s, the scores feel s_max times the slope of sigma(e), against autograd."""
    e = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    (soft,) = torch.autograd.grad(torch.sigmoid(e).sum(), e)
    for s in (0.01, 1.0, 8.0):
        (q,) = torch.autograd.grad(hat.attention(e, 1 / s).sum(), e)
        assert torch.allclose(hat.compensate(q, e.detach(), 1 / s, 400.0), 400 * soft, rtol=1e-6)


def test_the_sources_update() -> None:
    theta, grad, mask = torch.randn(3, 3), torch.randn(3, 3), torch.rand(3)
    slow = [[theta[i, j] - 0.1 * grad[i, j] * mask[j] for j in range(3)] for i in range(3)]
    assert torch.allclose(hat.masked_step(theta, grad, mask, 0.1), torch.tensor(slow))  # j: the wrong axis
    with pytest.raises(RuntimeError, match="size of tensor"):
        hat.masked_step(torch.randn(3, 2), torch.randn(3, 2), mask, 0.1)  # a mask of hidden units on a 3 x 2 weight


def test_no_gate_is_denormal_and_none_changes_in_any_way_that_matters() -> None:
    tiny = torch.finfo(torch.float32).tiny
    e = torch.cat([torch.linspace(-6, 6, 5001), torch.randn(5000)]).clamp(-6, 6)
    some_denormal = False
    for progress in torch.linspace(0, 1, 51).tolist():
        T = hat.temperature(progress, 400)
        plain, gate = torch.sigmoid(e / T), hat.attention(e, T)
        some_denormal |= bool(((plain > 0) & (plain < tiny)).any())
        assert gate.min() >= 2**-40
        assert gate.min() ** 2 > tiny  # a weight between two closed gates sees their product
        assert (gate - plain).abs().max() <= 2**-39  # 2^-40, and rounding
        assert torch.equal(gate[plain > 2**-15], plain[plain > 2**-15])  # bit for bit
        assert torch.equal(gate > 0.5, plain > 0.5)
    assert some_denormal  # or this test would show nothing


def test_training_leaves_the_floating_point_mode_alone() -> None:
    before = torch.tensor([1e-40]) * 1
    train(HAT(minicl.mlp(6, 8, 8)), 0)
    after = torch.tensor([1e-40]) * 1
    assert before.item() > 0
    assert torch.equal(before, after)


# ---- a small workshop ------------------------------------------------------------------------------------------------


def make_task(t: int, shape: tuple[int, ...] = (6,), n: int = 12, n_outputs: int = 3) -> minicl.Task:
    generator = torch.Generator().manual_seed(100 + t)
    x = torch.rand(n, *shape, generator=generator)
    y = torch.arange(n) % n_outputs
    return minicl.Task(t, n_outputs, (x, y), test=(x, y))


Optimizer = Callable[..., torch.optim.Optimizer]
SGD: Optimizer = partial(torch.optim.SGD, lr=0.1)


def own_loop(
    learner: minicl.Learner, task: minicl.Task, optimizer: torch.optim.Optimizer, steps: int = 3, **zero: Any
) -> None:
    learner.train()
    for step in range(steps):
        learner.before_step(step / (steps - 1))
        optimizer.zero_grad(**zero)
        learner.loss(task.train.x, task.train.y, task.id).backward()
        optimizer.step()


def train(learner: HAT, t: int, optimizer: Optimizer = SGD, steps: int = 3, shape: tuple[int, ...] = (6,)) -> None:
    task = make_task(t, shape)
    learner.learn(task, lambda: own_loop(learner, task, learner.protect(optimizer(learner.parameters())), steps))


def logits(learner: minicl.Learner, t: int, x: Tensor) -> Tensor:
    training = learner.training
    learner.eval()
    with torch.no_grad():
        result: Tensor = learner(x, t)
    learner.train(training)
    return result


def random_network(seed: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    """An MLP or CNN with layers drawn at random: biases, BatchNorm before or after the activation, dropout, pooling."""
    generator = torch.Generator().manual_seed(seed)

    def chance(p: float) -> bool:
        return bool(torch.rand((), generator=generator) < p)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=generator))]

    def after(norm: nn.Module) -> list[nn.Module]:
        layers = [pick(nn.ReLU(), nn.ReLU(), nn.Tanh(), nn.LeakyReLU(), nn.Sigmoid(), nn.PReLU(), nn.GELU())]
        if chance(0.4):
            layers.insert(pick(0, 1), norm)
        if chance(0.4):
            layers.insert(1 if len(layers) == 1 else 2, nn.Dropout(0.3))
        return layers

    layers: list[nn.Module] = []
    width = 6
    shape: tuple[int, ...] = (6,)
    if chance(0.4):
        shape, width = (2, 4, 4), 2
        side = 4
        for _ in range(pick(1, 2)):
            out = pick(3, 5, 6)
            layers.append(nn.Conv2d(width, out, 3, padding=1, bias=chance(0.7)))
            layers += after(nn.BatchNorm2d(out))
            if chance(0.5) and side > 1:
                layers.append(pick(nn.MaxPool2d(2), nn.AvgPool2d(2)))
                side //= 2
            width = out
        layers.append(nn.Flatten())
        width *= side * side
    else:
        layers.append(nn.Flatten() if chance(0.5) else nn.Identity())
    for _ in range(pick(0, 1, 2) if shape == (2, 4, 4) else pick(1, 2, 3)):
        out = pick(4, 7, 9)
        layers.append(nn.Linear(width, out, bias=chance(0.7)))
        layers += after(nn.BatchNorm1d(out))
        width = out
    return nn.Sequential(*layers), shape


OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": SGD,
    "weight decay": partial(torch.optim.SGD, lr=0.1, weight_decay=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "Nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": partial(torch.optim.Adam, lr=0.02),
    "Adam with L2": partial(torch.optim.Adam, lr=0.02, weight_decay=0.1),
    "AdamW": partial(torch.optim.AdamW, lr=0.02, weight_decay=0.5),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5, weight_decay=0.01),
}


# ---- promise 1: bit for bit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", ["new optimiser", "one optimiser", "run"])
@pytest.mark.parametrize("group", range(3))
def test_finished_tasks_keep_their_logits(name: str, way: str, group: int, tmp_path: Path) -> None:
    """8 optimisers x 3 ways of training x 9 networks = 216 random cases; each saved and loaded on the way."""
    for case in range(3):
        seed = 1000 * group + 10 * case + len(name)
        torch.manual_seed(seed)
        network, shape = random_network(seed)
        learner = HAT(network, s_max=[20.0, 400.0][case % 2], c=[0.0, 0.1, 0.75][case])
        x = torch.rand(5, *shape)
        reused: torch.optim.Optimizer | None = None
        expected: dict[int, Tensor] = {}
        for t in range(3):
            task = make_task(t, shape)

            def fit(task: minicl.Task = task, learner: HAT = learner) -> None:
                nonlocal reused
                if way == "new optimiser" or reused is None:
                    optimizer = learner.protect(OPTIMIZERS[name](learner.parameters()))
                else:
                    known = {id(p) for group in reused.param_groups for p in group["params"]}
                    reused.add_param_group({"params": [p for p in learner.parameters() if id(p) not in known]})
                    optimizer = reused
                reused = optimizer if way == "one optimiser" else None
                own_loop(learner, task, optimizer, set_to_none=way == "new optimiser")

            try:
                if way == "run":
                    minicl.run(learner, [task], epochs=1, batch_size=4, optimizer=OPTIMIZERS[name], progress=False)
                else:
                    learner.learn(task, fit)
            except ValueError as error:
                if "no unit of the network is free" not in str(error):  # the smallest of the networks are soon full
                    raise
                break
            for earlier, before in expected.items():
                assert torch.equal(logits(learner, earlier, x), before), (name, way, seed, t, earlier)
            expected[t] = logits(learner, t, x)
            if t == 0 and way != "one optimiser":
                learner.save(tmp_path / "learner.safetensors")
                learner = HAT.load(tmp_path / "learner.safetensors", random_network(seed)[0])
                assert torch.equal(logits(learner, 0, x), expected[0])


def test_the_promise_has_something_to_keep() -> None:
    """The same training, with the protection taken away, changes the first task: the test above can fail."""
    x = torch.rand(5, 6)

    class Unprotected(HAT):
        def edit_gradients(self) -> None: ...
        def after_step(self) -> None: ...

    changed = []
    methods: list[type[HAT]] = [HAT, Unprotected]
    for method in methods:
        torch.manual_seed(0)
        learner = method(minicl.mlp(6, 12, 12), c=0.1)
        train(learner, 0)
        before = logits(learner, 0, x)
        train(learner, 1)
        changed.append(not torch.equal(logits(learner, 0, x), before))
    assert changed == [False, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_a_later_task_ruins_does_not_leak(bad: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU())
    learner = HAT(network, c=0.1)
    train(learner, 0, shape=(1, 4, 4))
    x = torch.rand(5, 1, 4, 4)
    before = logits(learner, 0, x)
    units, outs = learner.masks(0)
    assert not units.all()
    assert not outs.all()
    with torch.no_grad():
        network[0].weight[~units] = bad
        network[0].bias[~units] = bad  # type: ignore[index]
        network[4].weight[~outs] = bad
        network[4].weight[:, ~units.repeat_interleave(4)] = bad
    assert torch.equal(logits(learner, 0, x), before)


def test_logits_are_those_of_the_stored_binary_mask() -> None:
    torch.manual_seed(0)
    network = minicl.mlp(6, 12, 10)
    learner = HAT(network)
    train(learner, 0, steps=20)
    x = torch.rand(5, 6)
    first, second = learner.masks(0)
    assert first.dtype == second.dtype == torch.bool
    h = F.relu(F.linear(x, network[1].weight, network[1].bias)) * first
    h = F.relu(F.linear(h, network[3].weight, network[3].bias)) * second
    slow = learner.heads["0"](h)
    assert torch.allclose(logits(learner, 0, x), slow, atol=1e-6)
    assert not torch.allclose(logits(learner, 0, x), learner.heads["0"](network(x)), atol=1e-3)


# ---- Eq. 2 against autograd ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_eq_2_in_the_learner_against_autograd(binary: bool) -> None:
    """The edited gradient is the gradient of a network in which the protected share of each weight is a constant."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 10),
        nn.ReLU(),
    )
    learner = HAT(network, s_max=5.0, c=0.3, binary=binary)
    shape = (1, 4, 4)
    for t in range(2):
        train(learner, t, shape=shape)
    used = learner.used()
    assert all(0 < u.sum() < len(u) for u in used)
    task = make_task(2, shape)
    learner.prepare(task)
    names = [(0, used[0], None), (3, used[1], used[0]), (6, used[2], used[1].repeat_interleave(4))]

    def fit() -> None:
        learner.train()
        learner.zero_grad()
        learner.before_step(0.4)
        loss = learner.loss(task.train.x, task.train.y, 2)
        loss.backward()
        learner.edit_gradients()
        T = hat.temperature(0.4, 5.0)
        gates = torch.sigmoid(learner.scores["2"].detach() / T).split([8, 6, 10])
        h = task.train.x
        parameters = []
        for (i, out, into), gate in zip(names, gates, strict=True):
            layer: Any = network[i]
            weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
            parameters.append((layer, weight, bias))
            share = torch.zeros_like(weight)
            for o in range(weight.shape[0]):  # slowly, on purpose
                for j in range(weight.shape[1]):
                    share[o, j] = out[o] if into is None else min(out[o], into[j])
            w = share * weight.detach() + (1 - share) * weight
            b = out * bias.detach() + (1 - out) * bias
            if isinstance(layer, nn.Conv2d):
                h = F.conv2d(h, w, b, padding=layer.padding)
                h = h.relu() if i == 0 else h.tanh()
                h = h * gate.view(1, -1, 1, 1)
                h = F.max_pool2d(h, 2) if i == 0 else h.flatten(1)
            else:
                h = F.linear(h, w, b).relu() * gate
        F.cross_entropy(learner.heads["2"](h), task.train.y).backward()
        for layer, weight, bias in parameters:
            assert torch.allclose(layer.weight.grad, weight.grad, rtol=1e-4, atol=1e-8)
            assert torch.allclose(layer.bias.grad, bias.grad, rtol=1e-4, atol=1e-8)
            assert weight.grad.abs().max() > 0

    learner.learn(task, fit)


def test_the_loss_is_eq_4() -> None:
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 9, 8), c=0.6)
    train(learner, 0)
    task = make_task(1)
    seen = []

    def fit() -> None:
        learner.train()
        learner.before_step(0.2)
        loss = learner.loss(task.train.x, task.train.y, 1)
        scores = learner.scores["1"]
        (grad,) = torch.autograd.grad(loss, scores, retain_graph=True)
        again = scores.detach().clone().requires_grad_()
        masks = hat.attention(again, hat.temperature(0.2, 400.0)).split([9, 8])
        h = learner.backbone[1](task.train.x).relu() * masks[0]  # type: ignore[index]
        h = learner.backbone[3](h).relu() * masks[1]  # type: ignore[index]
        slow = F.cross_entropy(learner.heads["1"](h), task.train.y) + 0.6 * hat.sparsity(masks, learner.used())
        (expected,) = torch.autograd.grad(slow, again)
        seen.append((loss, slow, grad, expected))

    learner.learn(task, fit)
    loss, slow, grad, expected = seen[0]
    assert torch.allclose(loss, slow)
    assert torch.allclose(grad, expected, rtol=1e-4, atol=1e-9)


def test_scores_get_the_compensated_gradient_and_stay_within_6() -> None:
    torch.manual_seed(0)
    task = make_task(0)
    for compensation in (True, False):
        learner = HAT(minicl.mlp(6, 9), c=0.6, compensation=compensation)
        learner.prepare(task)

        def fit(learner: HAT = learner, compensation: bool = compensation) -> None:
            optimizer = learner.protect(torch.optim.SGD(learner.parameters(), lr=1e12))
            learner.train()
            learner.before_step(0.01)
            learner.loss(task.train.x, task.train.y, 0).backward()
            scores = learner.scores["0"]
            q = scores.grad.clone()  # type: ignore[union-attr]
            expected = hat.compensate(q, scores.detach(), hat.temperature(0.01, 400), 400.0)
            optimizer.step()
            assert torch.equal(scores.grad, expected if compensation else q)  # type: ignore[arg-type]
            assert scores.abs().max() == 6

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learner.learn(task, fit)


# ---- the traps -------------------------------------------------------------------------------------------------------


def test_trap_the_forward_pass_is_gated() -> None:
    """Masking gradients alone isolates nothing: units outside the mask must not reach the logits."""
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 12))
    train(learner, 0)
    (mask,) = learner.masks(0)
    x = torch.rand(4, 6)
    before = logits(learner, 0, x)
    with torch.no_grad():
        learner.backbone[1].weight[~mask] += 1  # type: ignore[index]
    assert torch.equal(logits(learner, 0, x), before)
    with torch.no_grad():
        learner.backbone[1].weight[mask] += 1  # type: ignore[index]
    assert not torch.equal(logits(learner, 0, x), before)


def test_trap_soft_masks_leak_and_binary_masks_do_not() -> None:
    x = torch.rand(5, 6)
    moved = {}
    for binary in (True, False):
        torch.manual_seed(0)
        learner = HAT(minicl.mlp(6, 12, 12), s_max=8.0, c=0.1, binary=binary)
        train(learner, 0)
        before = logits(learner, 0, x)
        for t in (1, 2):
            train(learner, t, steps=10)
        moved[binary] = (logits(learner, 0, x) - before).abs().max().item()
    assert moved[True] == 0
    assert moved[False] > 1e-4


def test_trap_old_heads_and_masks_do_not_move() -> None:
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 8), c=0.1)
    train(learner, 0)
    head, mask = copy.deepcopy(learner.heads["0"].state_dict()), learner.masks(0)[0].clone()
    train(learner, 1, OPTIMIZERS["AdamW"])
    used = mask.nonzero().flatten()
    assert torch.equal(learner.heads["0"].weight[:, used], head["weight"][:, used])
    assert torch.equal(learner.heads["0"].bias, head["bias"])
    assert torch.equal(learner.masks(0)[0], mask)
    assert not any(name.startswith(("heads.0", "scores.0")) for name, _ in learner.named_parameters())


def test_trap_batchnorm_is_kept_apart() -> None:
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 8, batchnorm=True), c=0.1)
    train(learner, 0)
    first: Any = learner.own["0"][0]  # type: ignore[index]
    kept = copy.deepcopy(first.state_dict())
    claimed = learner.masks(0)[0]
    assert kept["running_mean"].abs().max() > 0
    train(learner, 1, OPTIMIZERS["AdamW"])
    for name, value in first.state_dict().items():
        assert torch.equal(value[claimed] if value.ndim else value, kept[name][claimed] if value.ndim else kept[name])
    assert not torch.equal(learner.own["1"][0].running_mean, first.running_mean)  # type: ignore[index]


def test_trap_a_finished_task_is_in_evaluation_mode_even_while_another_trains() -> None:
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 16, batchnorm=True, dropout=0.5), c=0.1)
    train(learner, 0)
    x = torch.rand(5, 6)
    before = logits(learner, 0, x)
    learner.train()
    assert torch.equal(learner(x, 0), before)


def test_trap_a_channels_mask_repeats_over_its_positions() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 9), nn.ReLU())
    learner = HAT(network, c=0.0)
    train(learner, 0, shape=(1, 4, 4))
    channels, units = learner.masks(0)
    task = make_task(1, (1, 4, 4))
    before = network[3].weight.detach().clone()

    def fit() -> None:
        own_loop(learner, task, learner.protect(torch.optim.SGD(learner.parameters(), lr=0.5, weight_decay=0.1)))
        moved = network[3].weight != before
        frozen = units[:, None] & channels.repeat_interleave(4)[None]
        assert not moved[frozen].any()
        assert moved[~frozen].all()  # and nothing else is held

    learner.learn(task, fit)


def test_trap_flattened_before_the_activation() -> None:
    """The gate stands behind the activation, wherever the map was flattened: sigmoid(0) is not 0."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Flatten(), nn.Sigmoid(), nn.Linear(20, 6), nn.Sigmoid())
    learner = HAT(network, c=0.1)
    train(learner, 0, shape=(1, 4, 4))
    x = torch.rand(3, 1, 4, 4)
    before = logits(learner, 0, x)
    train(learner, 1, OPTIMIZERS["AdamW"], shape=(1, 4, 4))
    assert torch.equal(logits(learner, 0, x), before)


def test_trap_a_loop_that_forgot_to_protect() -> None:
    """Then training is not HAT's, but the promise holds: what is claimed is put back at the end of the lesson."""
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 12), c=0.1)
    train(learner, 0)
    x = torch.rand(5, 6)
    before = logits(learner, 0, x)
    task = make_task(1)
    learner.learn(task, lambda: own_loop(learner, task, torch.optim.Adam(learner.parameters(), lr=0.1)))
    assert torch.equal(logits(learner, 0, x), before)


def test_trap_moved_memory() -> None:
    """A module that is moved in the middle of a lesson keeps its promise (parameters get other memory)."""
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 12, 12), c=0.1)
    train(learner, 0)
    x = torch.rand(5, 6)
    before = logits(learner, 0, x)
    task = make_task(1)

    def fit() -> None:
        for parameter in learner.backbone.parameters():
            parameter.data = parameter.data.clone()
        own_loop(learner, task, learner.protect(torch.optim.Adam(learner.parameters(), lr=0.1)))

    learner.learn(task, fit)
    assert torch.equal(logits(learner, 0, x), before)


def test_trap_gradient_added_by_a_hook_after_ours() -> None:
    """Weight decay switched on in the middle is not plain SGD any more."""
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 12), c=0.1)
    train(learner, 0)
    x = torch.rand(5, 6)
    before = logits(learner, 0, x)
    task = make_task(1)

    def fit() -> None:
        optimizer = learner.protect(torch.optim.SGD(learner.parameters(), lr=0.1))
        own_loop(learner, task, optimizer)
        optimizer.param_groups[0]["weight_decay"] = 0.3
        own_loop(learner, task, optimizer)
        # inside the lesson too, at every moment
        first = learner.masks(0)[0]
        assert first.any()
        assert torch.equal(logits(learner, 0, x), before)

    learner.learn(task, fit)
    assert torch.equal(logits(learner, 0, x), before)


def test_a_layer_that_lost_every_unit_keeps_one_and_says_so() -> None:
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 8, 8))

    def fit() -> None:
        with torch.no_grad():
            learner.scores["0"].copy_(torch.linspace(-2, -1, 16))
            learner.scores["0"][:8] += 2

    with pytest.warns(UserWarning, match="layer '3'.*smaller c"):
        learner.learn(make_task(0), fit)
    first, second = learner.masks(0)
    assert first.sum() == 7
    assert second.tolist() == [True] + [False] * 7  # the one with the highest score, sorted to the front


# ---- order of units --------------------------------------------------------------------------------------------------


def test_units_are_put_in_order_without_changing_what_is_computed() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6), nn.Flatten(), nn.Linear(24, 8), nn.ReLU()
    )
    learner = HAT(network, c=0.1)
    task = make_task(0, (1, 4, 4))
    x = torch.rand(5, 1, 4, 4)
    inside = []

    def fit() -> None:
        own_loop(learner, task, learner.protect(torch.optim.SGD(learner.parameters(), lr=0.1)), 10)
        inside.append((logits(learner, 0, x), [m.clone() for m in learner.masks(0)]))

    learner.learn(task, fit)
    before, masks = inside[0]
    assert torch.allclose(logits(learner, 0, x), before, atol=1e-6)
    for old, new in zip(masks, learner.masks(0), strict=True):
        assert new.tolist() == sorted(old.tolist(), reverse=True)
        assert 0 < new.sum() < len(new)
    assert masks[0].tolist() != learner.masks(0)[0].tolist() or masks[1].tolist() != learner.masks(0)[1].tolist()


# ---- capacity, files, export -----------------------------------------------------------------------------------------


def test_capacity_counts_units() -> None:
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 20, 15), c=0.1)
    for t in range(3):
        train(learner, t)
    capacity = learner.capacity()
    for level, (name, n) in enumerate((("1", 20), ("3", 15))):
        sets = [{i for i in range(n) if learner.masks(t)[level][i]} for t in range(3)]
        layer = capacity["layers"][name]
        assert layer["units"] == n
        assert layer["claimed"] == {t: len(s) for t, s in enumerate(sets)}
        assert layer["free"] == n - len(set.union(*sets))
        assert layer["shared"] == sum(sum(i in s for s in sets) > 1 for i in range(n))
    assert capacity["extra_bytes"] == 3 * math.ceil(35 / 8)


def test_a_mask_takes_one_bit_a_unit_in_the_file(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 20, 17))
    for t in range(2):
        train(learner, t)
    learner.save(tmp_path / "hat.safetensors")
    stored = load_file(tmp_path / "hat.safetensors")
    masks = {name: value for name, value in stored.items() if "mask" in name}
    assert sum(value.nbytes for value in masks.values()) == 2 * math.ceil(37 / 8)
    assert not any("scores" in name for name in stored)
    others = {*learner.backbone.state_dict(prefix="backbone."), *learner.heads.state_dict(prefix="heads.")}
    assert stored.keys() - masks.keys() == others  # nothing else is stored
    again = HAT.load(tmp_path / "hat.safetensors", minicl.mlp(6, 20, 17))
    for t in range(2):
        assert all(torch.equal(a, b) for a, b in zip(again.masks(t), learner.masks(t), strict=True))
    assert again.capacity() == learner.capacity()
    # learning goes on alike
    for one in (learner, again):
        torch.manual_seed(5)
        train(one, 2, OPTIMIZERS["Adam"])
    x = torch.rand(4, 6)
    assert all(torch.equal(logits(learner, t, x), logits(again, t, x)) for t in range(3))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_export_is_smaller_plain_and_the_same(seed: int, binary: bool) -> None:
    torch.manual_seed(seed)
    network, shape = random_network(seed + 50)
    learner = HAT(network, c=0.1, binary=binary, s_max=20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for t in range(2):
            train(learner, t, shape=shape)
    x = torch.rand(7, *shape)
    for t in range(2):
        exported = learner.export(t)
        assert not exported.training
        assert torch.allclose(exported(x), logits(learner, t, x), atol=1e-5)
        assert all(type(m).__module__.startswith("torch.nn") for m in exported.modules())
        assert all(p.requires_grad for p in exported.parameters())
        report: Any = exported.report
        assert report["parameters"] == sum(p.numel() for p in exported.parameters())
        full = sum(p.numel() for p in network.parameters()) + sum(b.numel() for b in learner.heads[str(t)].buffers())
        assert report["parameters_before"] == full
        assert report["speed_up"] == report["seconds_before"] / report["seconds"] > 0
        if binary:
            units = sum(int(m.sum()) for m in learner.masks(t))
            kept = [m for m in exported.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][:-1]
            assert sum(m.weight.shape[0] for m in kept) == units
            assert report["parameters"] <= report["parameters_before"]
        exported.train()
        exported(x).sum().backward()  # it can be trained further, with sizes that fit


def test_an_exported_network_needs_no_minicl(tmp_path: Path) -> None:
    import subprocess
    import sys

    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 8, 8, batchnorm=True))
    train(learner, 0)
    x = torch.rand(3, 6)
    torch.save((learner.export(0), x, logits(learner, 0, x)), tmp_path / "network.pt")
    code = (
        "import sys, torch; sys.modules['minicl'] = None\n"
        f"net, x, y = torch.load({str(tmp_path / 'network.pt')!r}, weights_only=False)\n"
        "assert torch.allclose(net(x), y, atol=1e-5)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_compression() -> None:
    """Scores that start in U(0, 2) switch every unit on; a larger c then switches more of them off."""
    kept = []
    for c in (0.0, 1.5, 20.0):
        torch.manual_seed(0)
        learner = HAT(minicl.mlp(6, 30, 30), c=c, init="uniform")
        task = make_task(0)
        learner.prepare(task)
        assert learner.scores["0"].min() >= 0
        assert 1 < learner.scores["0"].max() <= 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(learner, 0, steps=30)
        kept.append(sum(int(m.sum()) for m in learner.masks(0)))
    assert kept[0] > kept[1] > kept[2]


def test_the_same_seed_gives_the_same_result() -> None:
    stream = minicl.permuted("digits", 2, n_train=40)
    results = []
    for noise in (0, 3):
        torch.rand(noise)
        learner = HAT(minicl.mlp(64, 20, 20, dropout=0.2))
        result = minicl.run(learner, stream, epochs=1, seed=4, progress=False)
        results.append((result.accuracy.tobytes(), [m.tolist() for m in learner.masks(1)]))
    assert results[0] == results[1]


def test_a_broken_lesson_can_be_repeated() -> None:
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 12, 12, batchnorm=True), c=0.1)
    train(learner, 0)
    x = torch.rand(5, 6)
    before = logits(learner, 0, x)
    task = make_task(1)

    def broken() -> None:
        own_loop(learner, task, learner.protect(torch.optim.Adam(learner.parameters(), lr=0.5)))
        for parameter in learner.parameters():
            parameter.data.fill_(float("nan"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn(task, broken)
    assert torch.equal(logits(learner, 0, x), before)
    assert learner.learned == [0]
    train(learner, 1)
    assert torch.equal(logits(learner, 0, x), before)
    assert logits(learner, 1, x).isfinite().all()


# ---- what is refused -------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


SHARED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU()), r"'2', LayerNorm"),
        (nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Softmax(1))), r"'0\.1', Softmax"),
        (nn.Sequential(nn.Linear(6, 8), Residual()), r"'1', Residual"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten()), r"'0', Conv2d, has groups=2"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), SHARED, nn.ReLU(), SHARED), r"'4', Linear, shares its weight"),
        (nn.Sequential(nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Linear(6, 8)), r"'2', Linear, follows a convolution"),
        (nn.Sequential(nn.LazyLinear(8), nn.ReLU()), r"'0', LazyLinear, has no plain weight"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), r"no layer with units"),
        (nn.Sequential(nn.LSTM(4, 4)), r"'0', LSTM"),
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.MaxPool1d(2), nn.Linear(4, 4)), r"'2', MaxPool1d"),
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(7, 4)), r"'2', Linear, takes 7 inputs"),
        (Residual(), r"the backbone is a Residual"),
    ],
)
def test_a_layer_that_cannot_be_gated_is_named(network: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words + r".*"):
        HAT(network)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"s_max": 1.0}, "s_max is 1.0"),
        ({"s_max": -400}, "s_max"),
        ({"s_max": float("nan")}, "s_max"),
        ({"s_max": float("inf")}, "s_max"),
        ({"c": -0.1}, "c is -0.1"),
        ({"c": float("nan")}, "c is nan"),
        ({"init": "zeros"}, "init is 'zeros'"),
    ],
)
def test_hyperparameters_out_of_range(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HAT(minicl.mlp(6, 8), **arguments)


def test_a_full_network_says_so_before_training() -> None:
    torch.manual_seed(0)
    learner = HAT(minicl.mlp(6, 3, 3), c=0.0)

    def fit() -> None:
        with torch.no_grad():
            next(iter(learner.scores.values())).fill_(1.0)

    learner.learn(make_task(0), fit)
    with pytest.raises(ValueError, match=r"no unit of the network is free for task 1.*'1' has 3 units.*larger c"):
        learner.learn(make_task(1), lambda: pytest.fail("training began"))
    assert learner.learned == [0]
    assert list(learner.heads) == ["0"]


def test_a_task_id_without_a_mask() -> None:
    learner = HAT(minicl.mlp(6, 8))
    train(learner, 0)
    x = torch.rand(2, 6)
    with pytest.raises(ValueError, match="task id is 3, which has no mask; allowed: 0"):
        learner.masks(3)
    for call in (lambda: learner(x, 3), lambda: learner(x, None), lambda: learner(x, -1), lambda: learner.export(2)):
        with pytest.raises(ValueError, match="task id"):
            call()


def test_scenarios_without_a_task_id_are_refused() -> None:
    with pytest.raises(ValueError, match="HAT must be told the task id"):
        minicl.run(HAT(minicl.mlp(64, 8)), minicl.split("digits", 5, "class"), epochs=1, progress=False)


def test_inputs_that_do_not_suit_the_first_layer() -> None:
    learner = HAT(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Flatten()))
    with pytest.raises(ValueError, match=r"put an nn\.Flatten before it"):
        learner.prepare(make_task(0, (2, 6)))


@pytest.mark.parametrize("nesterov", [False, True])
def test_old_answers_hold_after_every_step_under_a_momentum_from_before(nesterov: bool) -> None:
    """What momentum brings along from the first task must not move its weights in any step of the second."""
    torch.manual_seed(0)
    first, second = minicl.permuted("digits", 2, n_train=200)
    learner = minicl.HAT(minicl.mlp(64, 30, 30), c=0.3)
    learner.prepare(first)
    learner.prepare(second)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9, nesterov=nesterov)
    learner.protect(optimizer)
    before: list[torch.Tensor] = []

    def fit(task: minicl.Task) -> None:
        for k, rows in enumerate(torch.arange(len(task.train)).split(32)):
            learner.train()
            learner.before_step(k / 6)
            optimizer.zero_grad()
            learner.loss(task.train.x[rows], task.train.y[rows], task.id).backward()
            if task is second and k == 3:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # other buffers, same values
            optimizer.step()
            if before:
                learner.eval()
                with torch.no_grad():
                    assert torch.equal(learner(first.test.x, first.id), before[0])

    learner.learn(first, lambda: fit(first))
    learner.eval()
    with torch.no_grad():
        before.append(learner(first.test.x, first.id))
    learner.learn(second, lambda: fit(second))
