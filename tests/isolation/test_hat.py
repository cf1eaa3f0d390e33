"""HAT: its equations against slow formulas, and a test for each trap.

Its promise, over random cases, is tested in test_every_method.py.
"""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import backbones
import pytest
import seeds
import torch
import torch.nn.functional as F
from loops import OPTIMIZERS, SGD, Loop, Make, answer, small_tasks
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import minicl
from minicl import HAT, files
from minicl.isolation import hat

# Layers of eight units lose them all now and then; what HAT does about it is tested below.
pytestmark = pytest.mark.filterwarnings(r"ignore:task \d+ switched off every unit")

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

ADAM, ADAMW = partial(torch.optim.Adam, lr=0.1), OPTIMIZERS["AdamW"]


def make_task(t: int, shape: tuple[int, ...] = (6,)) -> minicl.Task:
    return small_tasks(ids=[t], outputs=3, samples=12, shape=shape, number=t)[0]


def loop(learner: HAT, make: Make = SGD) -> Loop:
    """Three batches an epoch, so that the temperature falls from s_max to 1 / s_max."""
    return Loop(learner, make, batch=4, epochs=1)


def train(learner: HAT, t: int, make: Make = SGD, epochs: int = 1, shape: tuple[int, ...] = (6,)) -> None:
    task = make_task(t, shape)
    learner.learn(task, lambda: loop(learner, make).fit(task, epochs))


# ---- promise 1: bit for bit ------------------------------------------------------------------------------------------


def test_the_promise_has_something_to_keep() -> None:
    """The same training, with the protection taken away, moves what the first task claimed, and with it its answers
    if they were read from there."""

    class Unprotected(HAT):
        def edit_gradients(self) -> None: ...
        def after_step(self) -> None: ...

    def moves(method: type[HAT]) -> bool:
        torch.manual_seed(seeds.current())
        learner = method(minicl.mlp(6, 12, 12), c=0.1)
        train(learner, 0)
        first, second = learner.masks(0)
        weight: Tensor = learner.backbone[3].weight  # type: ignore[index, assignment]
        before, task, found = weight.detach()[second][:, first].clone(), make_task(1), []

        def fit() -> None:
            loop(learner).fit(task)
            found.append(not torch.equal(weight.detach()[second][:, first], before))

        learner.learn(task, fit)
        return found[0]

    assert [moves(HAT), moves(Unprotected)] == [False, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_a_later_task_ruins_does_not_leak(bad: float) -> None:
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU())
    learner = HAT(network, c=0.1)
    train(learner, 0, shape=(1, 4, 4))
    x = torch.rand(5, 1, 4, 4)
    before = answer(learner, x, 0)
    units, outs = learner.masks(0)
    assert not units.all()
    assert not outs.all()
    with torch.no_grad():
        network[0].weight[~units] = bad
        network[0].bias[~units] = bad  # type: ignore[index]
        network[4].weight[~outs] = bad
        network[4].weight[:, ~units.repeat_interleave(4)] = bad
    assert torch.equal(answer(learner, x, 0), before)


def test_logits_are_those_of_the_stored_binary_mask() -> None:
    network = minicl.mlp(6, 12, 10)
    learner = HAT(network)
    train(learner, 0, epochs=7)
    x = torch.rand(5, 6)
    first, second = learner.masks(0)
    assert first.dtype == second.dtype == torch.bool
    h = F.relu(F.linear(x, network[1].weight, network[1].bias)) * first
    h = F.relu(F.linear(h, network[3].weight, network[3].bias)) * second
    slow = learner.heads["0"](h)
    assert torch.allclose(answer(learner, x, 0), slow, atol=1e-6)
    assert not torch.allclose(answer(learner, x, 0), learner.heads["0"](network(x)), atol=1e-3)


# ---- Eq. 2 against autograd ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_eq_2_in_the_learner_against_autograd(binary: bool) -> None:
    """The edited gradient is the gradient of a network in which the protected share of each weight is a constant."""
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
    learner = HAT(minicl.mlp(6, 12))
    x = torch.rand(4, 6)
    task = make_task(0)

    def fit() -> None:
        loop(learner).fit(task)
        learner.eval()
        (mask,) = learner.masks(0)
        assert 0 < mask.sum() < 12
        before = learner(x, 0)
        with torch.no_grad():
            learner.backbone[1].weight[~mask] += 1  # type: ignore[index]
        assert torch.equal(learner(x, 0), before)
        with torch.no_grad():
            learner.backbone[1].weight[mask] += 1  # type: ignore[index]
        assert not torch.equal(learner(x, 0), before)

    learner.learn(task, fit)


def test_trap_soft_masks_leak_and_binary_masks_do_not() -> None:
    x = torch.rand(5, 6)
    moved = {}
    for binary in (True, False):
        torch.manual_seed(seeds.current())
        learner = HAT(minicl.mlp(6, 12, 12), s_max=8.0, c=0.1, binary=binary)
        train(learner, 0)
        before = answer(learner, x, 0)
        for t in (1, 2):
            train(learner, t, epochs=4)
        moved[binary] = (answer(learner, x, 0) - before).abs().max().item()
    assert moved[True] == 0
    assert moved[False] > 1e-4


def test_trap_old_heads_and_masks_do_not_move() -> None:
    learner = HAT(minicl.mlp(6, 8), c=0.1)
    train(learner, 0)
    head, mask = copy.deepcopy(learner.heads["0"].state_dict()), learner.masks(0)[0].clone()
    train(learner, 1, ADAMW)
    used = mask.nonzero().flatten()
    assert torch.equal(learner.heads["0"].weight[:, used], head["weight"][:, used])
    assert torch.equal(learner.heads["0"].bias, head["bias"])
    assert torch.equal(learner.masks(0)[0], mask)
    assert not any(name.startswith(("heads.0", "scores.0")) for name, _ in learner.named_parameters())


def test_trap_batchnorm_is_kept_apart() -> None:
    network = minicl.mlp(6, 8, batchnorm=True)
    initial = copy.deepcopy(network[2].state_dict())
    learner = HAT(network, c=0.1)
    train(learner, 0)
    first = {name: tensor.clone() for name, tensor in learner.norms.of(0).items()}
    assert set(first) == {f"2.{name}" for name in initial}
    assert first["2.running_mean"].abs().max() > 0
    assert all(torch.equal(value, initial[name]) for name, value in network[2].state_dict().items())
    train(learner, 1, ADAMW)
    assert all(torch.equal(value, first[name]) for name, value in learner.norms.of(0).items())
    assert not torch.equal(learner.norms.of(1)["2.running_mean"], first["2.running_mean"])


def test_trap_a_finished_task_is_in_evaluation_mode_even_while_another_trains() -> None:
    learner = HAT(minicl.mlp(6, 16, batchnorm=True, dropout=0.5), c=0.1)
    train(learner, 0)
    x = torch.rand(5, 6)
    before = answer(learner, x, 0)
    learner.train()
    assert torch.equal(learner(x, 0), before)


def test_trap_a_channels_mask_repeats_over_its_positions() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 9), nn.ReLU())
    learner = HAT(network, c=0.0)
    train(learner, 0, shape=(1, 4, 4))
    channels, units = learner.masks(0)
    task = make_task(1, (1, 4, 4))
    before = network[3].weight.detach().clone()

    def fit() -> None:
        loop(learner, partial(torch.optim.SGD, lr=0.5, weight_decay=0.1)).fit(task)
        moved = network[3].weight != before
        frozen = units[:, None] & channels.repeat_interleave(4)[None]
        assert not moved[frozen].any()
        assert moved[~frozen].all()  # and nothing else is held

    learner.learn(task, fit)


def test_trap_flattened_before_the_activation() -> None:
    """The gate stands behind the activation, wherever the map was flattened: sigmoid(0) is not 0."""
    network = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Flatten(), nn.Sigmoid(), nn.Linear(20, 6), nn.Sigmoid())
    learner = HAT(network, c=0.1)
    train(learner, 0, shape=(1, 4, 4))
    x = torch.rand(3, 1, 4, 4)
    before = answer(learner, x, 0)
    train(learner, 1, ADAMW, shape=(1, 4, 4))
    assert torch.equal(answer(learner, x, 0), before)


def test_trap_a_loop_that_forgot_to_protect() -> None:
    """Then training is not HAT's: that is said before the task counts as learned, and nothing has moved."""
    learner = HAT(minicl.mlp(6, 12), c=0.1)
    train(learner, 0)
    x = torch.rand(5, 6)
    before = answer(learner, x, 0)
    task, unprotected = make_task(1), Loop(learner, ADAM, batch=4, epochs=1, protect=False)
    with pytest.raises(RuntimeError, match=r"HAT saw no step of a protected optimiser. Call learner.protect\("):
        learner.learn(task, partial(unprotected.fit, task))
    assert learner.learned == [0]
    assert torch.equal(answer(learner, x, 0), before)
    train(learner, 1)
    assert torch.equal(answer(learner, x, 0), before)


def test_trap_moved_memory() -> None:
    """A module that is moved in the middle of a lesson keeps its promise (parameters get other memory)."""
    learner = HAT(minicl.mlp(6, 12, 12), c=0.1)
    train(learner, 0)
    x = torch.rand(5, 6)
    before = answer(learner, x, 0)
    task = make_task(1)

    def fit() -> None:
        for parameter in learner.backbone.parameters():
            parameter.data = parameter.data.clone()
        loop(learner, ADAM).fit(task)

    learner.learn(task, fit)
    assert torch.equal(answer(learner, x, 0), before)


def test_trap_gradient_added_by_a_hook_after_ours() -> None:
    """Weight decay switched on in the middle is not plain SGD any more."""
    learner = HAT(minicl.mlp(6, 12), c=0.1)
    train(learner, 0)
    x = torch.rand(5, 6)
    before = answer(learner, x, 0)
    task = make_task(1)

    def fit() -> None:
        changing = loop(learner)
        changing.fit(task)
        assert changing.optimizer is not None
        changing.optimizer.param_groups[0]["weight_decay"] = 0.3
        changing.fit(task)
        # inside the lesson too, at every moment
        first = learner.masks(0)[0]
        assert first.any()
        assert torch.equal(answer(learner, x, 0), before)

    learner.learn(task, fit)
    assert torch.equal(answer(learner, x, 0), before)


def test_a_layer_that_lost_every_unit_keeps_one_and_says_so() -> None:
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
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6), nn.Flatten(), nn.Linear(24, 8), nn.ReLU()
    )
    learner = HAT(network, c=0.1)
    task = make_task(0, (1, 4, 4))
    x = torch.rand(5, 1, 4, 4)
    inside = []

    def fit() -> None:
        loop(learner).fit(task, 4)
        inside.append((answer(learner, x, 0), [m.clone() for m in learner.masks(0)]))

    learner.learn(task, fit)
    before, masks = inside[0]
    assert torch.allclose(answer(learner, x, 0), before, atol=1e-6)
    for old, new in zip(masks, learner.masks(0), strict=True):
        assert new.tolist() == sorted(old.tolist(), reverse=True)
        assert 0 < new.sum() < len(new)
    assert masks[0].tolist() != learner.masks(0)[0].tolist() or masks[1].tolist() != learner.masks(0)[1].tolist()


# ---- capacity, files, export -----------------------------------------------------------------------------------------


def test_capacity_counts_units() -> None:
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

    torch.manual_seed(seeds.current())
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
        torch.manual_seed(seeds.current())
        train(one, 2, ADAM)
    x = torch.rand(4, 6)
    assert all(torch.equal(answer(learner, x, t), answer(again, x, t)) for t in range(3))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("case", range(12))
def test_export_is_smaller_plain_and_the_same(case: int, binary: bool) -> None:
    torch.manual_seed(seeds.of(case))
    network, shape = backbones.sequential(seeds.of(case + 50), gated=True)
    learner = HAT(network, c=0.1, binary=binary, s_max=20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for t in range(2):
            train(learner, t, shape=shape)
    x = torch.rand(7, *shape)
    for t in range(2):
        exported = learner.export(t)
        assert not exported.training
        assert torch.allclose(exported(x), answer(learner, x, t), atol=1e-5)
        assert all(type(m).__module__.startswith("torch.") for m in exported.modules())
        assert not any(p.requires_grad for p in exported.parameters())
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
        exported.requires_grad_()(x).sum().backward()  # it can be trained further, with sizes that fit


def test_compression() -> None:
    """Scores that start in U(0, 2) switch every unit on; a larger c then switches more of them off."""
    kept = []
    for c in (0.0, 1.5, 20.0):
        torch.manual_seed(seeds.current())
        learner = HAT(minicl.mlp(6, 30, 30), c=c, init="uniform")
        task = make_task(0)
        learner.prepare(task)
        assert learner.scores["0"].min() >= 0
        assert 1 < learner.scores["0"].max() <= 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(learner, 0, epochs=10)
        kept.append(sum(int(m.sum()) for m in learner.masks(0)))
    assert kept[0] > kept[1] > kept[2]


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.Sequential(nn.LazyLinear(8), nn.ReLU()), r"layer '0' \(LazyLinear\) has no weights yet; run a batch"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), r"\(Sequential\) has no layer with units that can be gated"),
        (nn.LSTM(4, 4), r"\(LSTM\) has no layer with units .*; minicl\.PackNet takes recurrent layers"),
        (
            nn.Sequential(
                nn.utils.spectral_norm(nn.Linear(4, 4)), nn.ReLU(), parametrizations.weight_norm(nn.Linear(4, 4))
            ),
            r"; layer '0' \(Linear\) computes its weight .*remove_spectral_norm"
            r"; layer '2' \(ParametrizedLinear\) computes its weight .*remove_parametrizations;",
        ),
    ],
)
def test_a_network_without_units_is_refused(network: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HAT(network)


def test_layers_that_are_called_twice_are_refused_before_training() -> None:
    layer = nn.Linear(6, 6)
    learner = HAT(nn.Sequential(layer, nn.ReLU(), layer))
    with pytest.raises(ValueError, match="each is called several times or not at all, or shares its weight"):
        learner.learn(make_task(0), lambda: pytest.fail("training began"))
    assert learner.tasks == {}


def test_a_full_network_says_so_before_training() -> None:
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
    with pytest.raises(ValueError, match="task id is 3, which has no mask; allowed: 0"):
        learner.masks(3)


# ---- what others do to it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SGD, ADAMW, partial(torch.optim.SGD, lr=0.1, momentum=0.9)])
def test_a_stray_step_between_tasks_moves_nothing_that_is_finished(make: Make, tmp_path: Path) -> None:
    learner = HAT(minicl.mlp(6, 12, 12, batchnorm=True), c=0.1)
    used = loop(learner, make)
    for t in range(2):
        used.learn(make_task(t))
        x = torch.rand(5, 6)
        before = [answer(learner, x, task_id) for task_id in learner.learned]
        weights = learner.backbone[1].weight.detach().clone()  # type: ignore[index]
        for _ in range(3):
            for parameter in learner.parameters():
                parameter.grad = torch.randn_like(parameter)
            used.optimizer.step()
        assert not torch.equal(learner.backbone[1].weight, weights)  # type: ignore[index]
        assert all(torch.equal(answer(learner, x, task_id), before[task_id]) for task_id in learner.learned)
    learner.save(tmp_path / "file")
    loaded = HAT.load(tmp_path / "file", minicl.mlp(6, 12, 12, batchnorm=True))
    used.learn(make_task(2))
    assert all(torch.equal(answer(each, x, t), before[t]) for each in (learner, loaded) for t in range(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Scores stay in float32: s_max cosh(50) is no number of float16."""
    torch.manual_seed(seeds.current())
    learner = HAT(minicl.mlp(6, 24, 24, batchnorm=True).to(dtype), c=0.1)
    tasks = small_tasks(n=3, shape=(6,), dtype=dtype)
    Loop(learner, partial(torch.optim.SGD, lr=0.05, momentum=0.9), epochs=4, batch=5).learn(*tasks[:2])
    before = [answer(learner, task.test.x, task.id) for task in tasks[:2]]
    Loop(learner, ADAMW if dtype == torch.bfloat16 else SGD).learn(tasks[2])
    for task, then in zip(tasks, before, strict=False):
        assert then.isfinite().all()
        assert then.dtype == dtype
        assert torch.equal(answer(learner, task.test.x, task.id), then)
    assert all(0 < mask.sum() < 24 for mask in learner.masks(0))


def moved(learner: HAT, train: Any) -> float:
    """The share of the scores that move noticeably while this trains."""
    task, found = make_task(0), []

    def fit() -> None:
        before = learner.scores["0"].detach().clone()
        train(task)
        found.append(float(((learner.scores["0"] - before).abs() > 1e-2).float().mean()))

    learner.learn(task, fit)
    return found[0]


@pytest.mark.parametrize("said", [0.0, 1.0, None])
def test_scores_move_whatever_a_loop_says_of_its_progress(said: float | None) -> None:
    """One batch an epoch makes progress the same in every step; some loops do not speak of it at all."""
    torch.manual_seed(seeds.current())
    learner = HAT(minicl.mlp(6, 20, 20))

    def train(task: minicl.Task) -> None:
        optimizer = learner.protect(SGD(learner.parameters()))
        learner.train()
        for _ in range(40):
            if said is not None:
                learner.before_step(said)
            optimizer.zero_grad()
            learner.loss(task.train.x, task.train.y, 0).backward()
            optimizer.step()

    if said is None:
        with pytest.warns(UserWarning, match=r"does not say how far it is.*learner\.before_step\(progress\)"):
            assert moved(learner, train) > 0.5
    else:
        assert moved(learner, train) > 0.5


def test_scores_move_in_a_run_of_one_batch_an_epoch() -> None:
    torch.manual_seed(seeds.current())
    learner, seen = HAT(minicl.mlp(6, 20, 20)), []
    task = make_task(0)
    told = learner.before_step
    learner.before_step = lambda progress: (seen.append(progress), told(progress))[1]  # type: ignore[method-assign, func-returns-value]
    minicl.run(learner, [task], epochs=5, batch_size=50, optimizer=SGD, progress=False)
    assert seen == [0, 0.25, 0.5, 0.75, 1]


def test_dropout_before_the_first_layer_is_off_for_finished_tasks() -> None:
    learner = HAT(nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 12), nn.ReLU()), c=0.1)
    train(learner, 0)
    x = torch.rand(5, 6)
    before = answer(learner, x, 0)
    learner.train()
    assert torch.equal(learner(x, 0), before)


class Checkpointed(nn.Module):
    def __init__(self, again: str) -> None:
        super().__init__()
        self.zero, self.one, self.two, self.again = nn.Linear(6, 6), nn.Linear(6, 12), nn.Linear(12, 9), again

    def forward(self, x: Tensor) -> Tensor:
        h = self.zero(x)
        for part in (nn.Sequential(self.one, nn.ReLU()), self.two):
            h = checkpoint(part, h, use_reentrant=self.again == "reentrant") if self.again else part(h)
        return F.relu(h)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's, where nothing is trained
@pytest.mark.parametrize("how", ["reentrant", "without"])
def test_what_is_computed_once_more_in_the_backward_pass_has_its_gates(how: str) -> None:
    found = []
    for again in ("", how):
        torch.manual_seed(seeds.current())
        learner = HAT(Checkpointed(again), c=0.1)
        train(learner, 0)
        train(learner, 1)
        found.append(learner.backbone.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


@pytest.mark.parametrize("make", [partial(torch.optim.Adam, lr=0.01), partial(torch.optim.Adafactor, lr=0.01)])
def test_what_an_optimiser_remembers_goes_with_the_units(make: Any) -> None:
    """Units that are put in order learn as they would have where they were."""
    found = []
    for ordered in (True, False):
        torch.manual_seed(0)
        learner, optimizers = HAT(minicl.mlp(6, 16, 12), c=0.3), []
        for task in (make_task(0), make_task(1)):

            def fit(
                learner: Any = learner, task: Task = task, optimizers: Any = optimizers, ordered: bool = ordered
            ) -> None:
                for layer in learner.graph.layers:
                    layer.tied = not ordered
                new = [p for p in learner.parameters() if p.requires_grad]
                if optimizers:  # the same for each unit, wherever it stands
                    nn.init.constant_(learner.scores["1"], 0.5)
                    learner.heads["1"].weight.data.copy_(torch.tensor([[0.1], [-0.1], [0.2]]).expand(3, 12))
                    old = {id(p) for group in optimizers[0].param_groups for p in group["params"]}
                    optimizers[0].add_param_group({"params": [p for p in new if id(p) not in old]})
                else:
                    optimizers.append(learner.protect(make(new)))
                for progress in (0, 0.5, 1):
                    learner.before_step(progress)
                    optimizers[0].zero_grad()
                    learner.loss(task.train.x, task.train.y, task.id).backward()
                    optimizers[0].step()

            learner.learn(task, fit)
        found.append(learner.eval()(make_task(1).test.x, 1))
    torch.testing.assert_close(*found)


def test_a_copy_made_while_a_task_is_learned_is_on_its_own() -> None:
    learner, x = HAT(minicl.mlp(6, 12, 12), c=0.1), torch.rand(5, 6)
    train(learner, 0)
    before, copies = answer(learner, x, 0), []

    def fit() -> None:
        loop(learner).fit(make_task(1))
        copies.append((copy.deepcopy(learner), answer(learner, x, 1)))
        loop(learner).fit(make_task(1))

    learner.learn(make_task(1), fit)
    twin, then = copies[0]
    assert torch.equal(answer(twin, x, 1), then)
    assert torch.equal(answer(twin, x, 0), before)
    assert torch.equal(answer(learner, x, 0), before)


def test_units_of_a_forgotten_task_are_free_again() -> None:
    learner = HAT(minicl.mlp(6, 20, 15), c=0.1)
    for t in range(3):
        train(learner, t)
    x = torch.rand(5, 6)
    before = {t: answer(learner, x, t) for t in (0, 2)}
    free = {name: layer["free"] for name, layer in learner.capacity()["layers"].items()}
    alone = [int((b & ~a & ~c).sum()) for a, b, c in zip(*map(learner.masks, range(3)), strict=True)]
    assert sum(alone) > 0
    learner.forget(1)
    now = {name: layer["free"] for name, layer in learner.capacity()["layers"].items()}
    assert [now[name] - free[name] for name in now] == alone
    for t in (3, 4):  # claimed units stand apart now, and stay where they are
        train(learner, t, ADAMW)
        assert all(torch.equal(answer(learner, x, other), before[other]) for other in before)
    for t in list(learner.learned):
        learner.forget(t)
    assert all(layer["free"] == layer["units"] for layer in learner.capacity()["layers"].values())


def test_a_file_of_an_older_version(tmp_path: Path) -> None:
    """It had the masks, and the norms of each task, under other names, and did not say where the units are."""

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6), nn.Flatten(), nn.Linear(24, 8))

    learner, x = HAT(network(), c=0.1), torch.rand(5, 1, 4, 4)
    for t in range(2):
        train(learner, t, shape=(1, 4, 4))
    learner.save(tmp_path / "new")
    header, tensors = files.read(tmp_path / "new")
    del header["attributes"]["structure"]
    places = {"1": 0, "2": 1}
    old = {}
    for name, tensor in tensors.items():
        if name.startswith("norms."):
            _, task, rest = name.split(".")
            path, attribute = rest.split("/")
            name = f"own.{task}.{places[path]}.{attribute}"
        old[name.replace("stored_masks.", "mask_")] = tensor
    assert sum(name.startswith("own.") for name in old) == 2 * 6
    files.write(tmp_path / "old", header, old)
    loaded = HAT.load(tmp_path / "old", network())
    for t in range(2):
        assert torch.equal(answer(loaded, x, t), answer(learner, x, t))
    assert loaded.capacity() == learner.capacity()
    train(loaded, 2, shape=(1, 4, 4))
    assert torch.equal(answer(loaded, x, 0), answer(learner, x, 0))
