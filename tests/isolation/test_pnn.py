"""PNN: the equations against slow formulas, old tasks bit for bit, growth, export, sensitivity, errors."""

from __future__ import annotations

import copy
import itertools
import math
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import minicl
from minicl import PNN, Task
from minicl.isolation.pnn import adapter, lateral_sum, side_by_side
from minicl.isolation.sensitivity import average_fisher_sensitivity, average_perturbation_sensitivity

SGD, ADAM = partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.01)


def some_task(t: int, shape: tuple[int, ...] = (6,), n_outputs: int = 3, n: int = 24, seed: int = 0) -> Task:
    generator = torch.Generator().manual_seed(1000 * seed + t)
    x = torch.randn(n, *shape, generator=generator)
    y = (x.flatten(1) @ torch.randn(x[0].numel(), n_outputs, generator=generator)).argmax(1)
    return Task(t, n_outputs, (x, y), (x, y), (x, y))


def loop(learner: PNN, task: Task, optimizer: torch.optim.Optimizer, steps: int = 3) -> Callable[[], None]:
    """A user's own loop."""

    def fit() -> None:
        learner.train()
        for step in range(steps):
            learner.before_step(step / max(steps - 1, 1))
            optimizer.zero_grad(set_to_none=False)
            learner.loss(task.train.x, task.train.y, task.id).backward()
            optimizer.step()

    return fit


def learned(n_tasks: int = 3, backbone: nn.Module | None = None, shape: tuple[int, ...] = (6,), **kwargs: Any) -> PNN:
    torch.manual_seed(0)
    learner = PNN(minicl.mlp(6, 5, 4) if backbone is None else backbone, **kwargs)
    for t in range(n_tasks):
        task = some_task(t, shape)
        learner.prepare(task)
        learner.learn(task, loop(learner, task, learner.protect(ADAM(learner.parameters()))))
    return learner.eval()


def logits_of(learner: PNN, tasks: list[Task]) -> list[Tensor]:
    with torch.no_grad():
        return [learner(task.test.x, task.id) for task in tasks]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=False)) and len(a) <= len(b)


# ---- the equations ---------------------------------------------------------------------------------------------------


def slow_product(weight: np.ndarray, x: np.ndarray, stride: int = 1, padding: int = 0, groups: int = 1) -> np.ndarray:
    """A Linear or a Conv2d without bias, one output unit after the other."""
    if weight.ndim == 2:
        z = np.zeros((len(x), len(weight)))
        for b, i, m in itertools.product(range(len(x)), range(len(weight)), range(weight.shape[1])):
            z[b, i] += weight[i, m] * x[b, m]
        return z
    n_out, n_in, side, _ = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = (x.shape[2] - side) // stride + 1
    z = np.zeros((len(x), n_out, size, size))
    for b, i, r, c in itertools.product(range(len(x)), range(n_out), range(size), range(size)):
        first = i // (n_out // groups) * n_in
        for m, p, q in itertools.product(range(n_in), range(side), range(side)):
            z[b, i, r, c] += weight[i, m, p, q] * x[b, first + m, r * stride + p, c * stride + q]
    return z


def numerical_gradient(f: Callable[[], float], value: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    gradient = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        kept = value[index]
        value[index] = kept + eps
        above = f()
        value[index] = kept - eps
        gradient[index] = (above - f()) / (2 * eps)
        value[index] = kept
    return gradient


LAYERS = {
    "linear": (nn.Linear(3, 4), (3,), {}),
    "convolution": (nn.Conv2d(1, 2, 3, stride=2, padding=1), (1, 3, 3), {"stride": 2, "padding": 1}),
    "grouped": (nn.Conv2d(2, 4, 2, groups=2), (2, 2, 2), {"groups": 2}),
}


def split_laterals(U: np.ndarray, n: int, groups: int) -> list[np.ndarray]:
    """[U^(k:1), ...] out of the one weight in which they stand side by side."""
    return np.split(U, n, axis=1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("n", [1, 3])
def test_lateral_sum_is_eq_1(name: str, n: int) -> None:
    layer, shape, how = LAYERS[name]
    torch.manual_seed(1)
    W = copy.deepcopy(layer).double()
    groups = how.get("groups", 1)
    U = type(layer)(n * shape[0], layer.weight.shape[0], bias=False, **_settings(layer)).double()
    h = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    earlier = [torch.randn(2, *shape, dtype=torch.float64) for _ in range(n)]
    z = lateral_sum(W, h, U, side_by_side(earlier, U))
    direction = torch.randn_like(z)
    (z * direction).sum().backward()

    arrays = {"W": W.weight, "b": W.bias, "U": U.weight, "h": h}
    values = {key: t.detach().numpy().copy() for key, t in arrays.items()}

    def slow() -> np.ndarray:
        total = slow_product(values["W"], values["h"], **how)
        total = total + values["b"].reshape(1, -1, *[1] * (total.ndim - 2))
        for j, u in enumerate(split_laterals(values["U"], n, groups)):
            total = total + slow_product(u, earlier[j].numpy(), **how)
        return total

    np.testing.assert_allclose(z.detach().numpy(), slow(), rtol=1e-10)
    for key, tensor in arrays.items():
        expected = numerical_gradient(lambda: float((slow() * direction.numpy()).sum()), values[key])
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-5, atol=1e-7, err_msg=key)


def _settings(layer: nn.Module) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "groups")
    return {} if isinstance(layer, nn.Linear) else {name: getattr(layer, name) for name in names}


@pytest.mark.parametrize("name", LAYERS)
def test_adapter_is_eq_2(name: str) -> None:
    layer, shape, how = LAYERS[name]
    torch.manual_seed(2)
    n = 3
    linear, n_out = isinstance(layer, nn.Linear), layer.weight.shape[0]
    V = nn.Linear(n * shape[0], n_out, bias=False) if linear else nn.Conv2d(n * shape[0], n_out, 1, bias=False)
    V.double()
    U = type(layer)(n_out, n_out, bias=False, **_settings(layer)).double()
    alpha = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    earlier = torch.randn(2, n * shape[0], *shape[1:], dtype=torch.float64)
    z = adapter(U, V, alpha, earlier, torch.tanh)
    direction = torch.randn_like(z)
    (z * direction).sum().backward()

    arrays = {"V": V.weight, "U": U.weight, "alpha": alpha}
    values = {key: t.detach().numpy().copy() for key, t in arrays.items()}

    def slow() -> np.ndarray:
        return slow_product(values["U"], np.tanh(slow_product(values["V"], values["alpha"] * earlier.numpy())), **how)

    np.testing.assert_allclose(z.detach().numpy(), slow(), rtol=1e-10)
    for key, tensor in arrays.items():
        expected = numerical_gradient(lambda: float((slow() * direction.numpy()).sum()), values[key])
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-5, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_learner_computes_the_equations_column_by_column_and_unit_by_unit(kind: str) -> None:
    learner = learned(
        3, nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Tanh()), adapter=kind
    )
    x = some_task(2).test.x[:2]
    state = {name: tensor.double().numpy() for name, tensor in learner.state_dict().items()}
    seen: list[list[np.ndarray]] = []  # seen[k][i] = h_i of column k
    for k in range(3):
        h = [x.double().numpy()]
        for i, (weight, bias) in enumerate(
            [
                (f"columns.{k}.layers.0.weight", f"columns.{k}.layers.0.bias"),
                (f"columns.{k}.layers.2.weight", ""),
                (f"heads.{k}.weight", f"heads.{k}.bias"),
            ]
        ):
            z = slow_product(state[weight], h[-1]) + state.get(bias, 0.0)
            at = f"columns.{k}.laterals.{i - 1}"
            if k and i and kind == "linear":
                for j, u in enumerate(np.split(state[f"{at}.U.weight"], k, axis=1)):
                    z = z + slow_product(u, seen[j][i])
            elif k and i:
                together = np.concatenate([seen[j][i] for j in range(k)], 1)
                hidden = np.tanh(slow_product(state[f"{at}.V.weight"], state[f"{at}.alpha"] * together))
                z = z + slow_product(state[f"{at}.U.weight"], hidden)
            h.append(z if i == 2 else np.tanh(z))
        seen.append(h)
        with torch.no_grad():
            np.testing.assert_allclose(learner(x, k).numpy(), h[-1], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(learner.features(x, k).numpy(), h[-2], rtol=1e-4, atol=1e-6)


def test_a_first_column_has_no_laterals_and_later_ones_none_at_the_first_layer() -> None:
    learner = learned(3)
    names = [name for name, _ in learner.columns.named_buffers()]
    assert not [name for name in names if name.startswith("0.laterals")]
    for k in (1, 2):
        widths = [learner.state_dict()[f"columns.{k}.laterals.{i}.U.weight"].shape for i in range(2)]
        assert widths == [(4, k * 5), (3, k * 4)], "the second layer and the head, and nothing else"
        assert len(learner.columns[str(k)].laterals) == 2


# ---- nothing is forgotten --------------------------------------------------------------------------------------------

OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [
    partial(torch.optim.SGD, lr=0.1),
    partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    partial(torch.optim.Adam, lr=0.01),
    partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5),
    partial(torch.optim.RMSprop, lr=0.005, momentum=0.5, weight_decay=0.1),
]


def random_template(rng: random.Random) -> tuple[nn.Sequential, tuple[int, ...]]:
    bias, dropout = rng.random() < 0.5, rng.choice([0.0, 0.5])
    activation = rng.choice([nn.ReLU, nn.Tanh, nn.ELU, nn.PReLU, partial(nn.ReLU, inplace=True), nn.GELU, nn.Identity])
    norm = rng.choice(["", "batch", "layer"])
    layers: list[nn.Module] = []
    if rng.random() < 0.5:
        shape: tuple[int, ...] = (rng.randint(2, 6),)
        width = shape[0]
        if rng.random() < 0.3:
            layers.append(nn.BatchNorm1d(width))  # before the first layer, too
        for _ in range(rng.randint(1, 3)):
            n_out = rng.randint(1, 6)
            layers.append(nn.Linear(width, n_out, bias=bias))
            layers += {"": [], "batch": [nn.BatchNorm1d(n_out)], "layer": [nn.LayerNorm(n_out)]}[norm]
            layers += [activation(), *([nn.Dropout(dropout)] if dropout else [])]
            width = n_out
        return nn.Sequential(*layers), shape
    channels, side = rng.choice([2, 4]), rng.choice([4, 6])
    shape = (channels, side, side)
    for _ in range(rng.randint(1, 2)):
        n_out, groups = rng.choice([2, 4]), rng.choice([1, 1, 2])
        block = [nn.Conv2d(channels, n_out, 3, padding=1, bias=bias, groups=groups)]
        block += {"": [], "batch": [nn.BatchNorm2d(n_out)], "layer": [nn.GroupNorm(1, n_out)]}[norm]
        block += [activation(), *([nn.MaxPool2d(2)] if side > 2 else []), *([nn.Dropout2d(dropout)] if dropout else [])]
        layers += [nn.Sequential(*block)] if rng.random() < 0.3 else block
        channels, side = n_out, side // 2 if side > 2 else side
    layers.append(nn.Flatten())
    if rng.random() < 0.5:
        layers += [nn.Linear(channels * side**2, 3, bias=bias), activation()]
    return nn.Sequential(*layers), shape


@pytest.mark.parametrize("seed", range(210))
def test_finished_tasks_keep_their_logits_bit_for_bit(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    template, shape = random_template(rng)
    learner = PNN(copy.deepcopy(template), adapter=rng.choice(["linear", "mlp"]))
    tasks = [some_task(t, shape, rng.randint(2, 4), n=12, seed=seed) for t in rng.sample(range(9), 3)]
    make, how = rng.choice(OPTIMIZERS), rng.choice(["run", "own loop", "one optimiser"])
    optimizer: torch.optim.Optimizer | None = None
    finished: list[Tensor] = []
    for i, task in enumerate(tasks):
        if how == "run":
            minicl.run(learner, [task], epochs=2, batch_size=5, optimizer=make, seed=seed)
        else:
            learner.prepare(task)
            if optimizer is None or how == "own loop":
                optimizer = learner.protect(make(learner.parameters()))
            else:
                optimizer.add_param_group({"params": list(learner.parameters())})
            learner.learn(task, loop(learner, task, optimizer))
        assert same(finished, logits_of(learner, tasks[:i])), "in training mode"
        learner.eval()
        assert same(finished, logits_of(learner, tasks[: i + 1])), "in evaluation mode"
        finished = logits_of(learner, tasks[: i + 1])
        if rng.random() < 0.4:
            learner.save(tmp_path / "pnn")
            learner = PNN.load(tmp_path / "pnn", copy.deepcopy(template)).eval()
            assert same(finished, logits_of(learner, tasks[: i + 1])), "after loading"
            optimizer = None
    assert len({tuple(z.flatten().tolist()) for z in finished}) == 3, "three tasks, three outputs"


def test_the_new_column_does_learn() -> None:
    learner = PNN(minicl.mlp(64, 32, 32))
    result = minicl.run(learner, minicl.split("digits", 5)[:3], epochs=5, optimizer=partial(torch.optim.Adam, lr=0.003))
    assert result.average_accuracy > 0.95
    assert result.backward_transfer == 0.0
    assert result.forgetting == 0.0


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_an_earlier_column_of_the_same_task_helps(kind: str) -> None:
    few = minicl.rotated("digits", 2, max_angle=0, n_train=[500, 30])
    adam = partial(torch.optim.Adam, lr=0.003)
    areas = {}
    for method in (minicl.Individual, partial(PNN, adapter=kind)):
        result = minicl.run(method(minicl.mlp(64, 48, 48)), few, epochs=6, batch_size=10, optimizer=adam)
        areas[result.method] = float(np.mean(result.learning_curves[1]))
    assert areas["PNN"] > areas["Individual"] + 0.05, areas


def test_dropout_of_a_frozen_column_is_off_while_the_new_one_trains() -> None:
    learner = learned(1, minicl.mlp(6, 50, dropout=0.5))
    task = some_task(1)
    learner.prepare(task)
    learner.train()
    outputs: list[Tensor] = []
    learner.columns["0"].layers[-1].register_forward_hook(lambda *args: outputs.append(args[2]))
    learner.learn(task, loop(learner, task, learner.protect(SGD(learner.parameters()))))
    assert len(outputs) == 3
    assert all(torch.equal(outputs[0], each) for each in outputs)
    assert learner.columns["1"].layers[-1].training is False
    learner.train()
    assert not any(module.training for module in learner.columns.modules() if module is not learner.columns)


def test_running_statistics_of_a_frozen_column_stand_still_and_those_of_the_new_one_move() -> None:
    learner = learned(1, minicl.mlp(6, 5, batchnorm=True))
    before = {name: tensor.clone() for name, tensor in learner.columns["0"].state_dict().items()}
    task = some_task(1)
    learner.prepare(task)
    learner.learn(task, loop(learner, task, learner.protect(SGD(learner.parameters()))))
    for name, tensor in learner.columns["0"].state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert int(before["layers.2.num_batches_tracked"]) == 3
    assert int(learner.columns["1"].state_dict()["layers.2.num_batches_tracked"]) == 3


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_an_old_column_keeps_and_uses_its_own_laterals(kind: str) -> None:
    learner = learned(3, adapter=kind)
    x = some_task(1).test.x
    before = learner(x, 1)
    for i in range(2):
        weight = learner.columns["1"].laterals[i].U.weight
        kept = weight.clone()
        weight.zero_()
        assert not torch.equal(learner(x, 1), before), f"lateral {i} is dead"
        weight.copy_(kept)
    assert torch.equal(learner(x, 1), before)


def test_columns_are_run_once_a_batch_without_a_graph_and_only_up_to_the_task() -> None:
    learner = learned(3)
    task = some_task(3)
    learner.prepare(task)
    calls: dict[int, list[bool]] = {t: [] for t in range(4)}
    for t in range(4):
        note = lambda *args, t=t: calls[t].append(any(h.requires_grad for h in args[2]))  # noqa: E731
        learner.columns[str(t)].register_forward_hook(note)
    learner.learn(task, loop(learner, task, SGD(learner.parameters()), steps=2))
    assert calls == {0: [False] * 2, 1: [False] * 2, 2: [False] * 2, 3: [True] * 2}
    for each in calls.values():
        each.clear()
    learner(task.test.x, 1)
    assert [len(calls[t]) for t in range(4)] == [1, 1, 0, 0]


def test_frozen_columns_are_out_of_an_optimisers_reach() -> None:
    learner = learned(2)
    assert list(learner.parameters()) == []
    learner.prepare(some_task(2))
    assert {name.split(".")[1] for name, _ in learner.named_parameters()} == {"2"}


def test_a_template_that_overwrites_its_input_leaves_the_batch_alone() -> None:
    learner = learned(2, nn.Sequential(nn.ELU(inplace=True), nn.Linear(6, 4), nn.LeakyReLU(-0.5, inplace=True)))
    x = some_task(0).test.x
    before = x.clone()
    first = learner(x, 1)
    assert torch.equal(x, before)
    assert torch.equal(learner(x, 1), first)


def test_columns_start_from_different_weights_and_the_first_from_the_templates() -> None:
    template = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU())
    nn.init.constant_(template[1].running_mean, 3.0)
    before = copy.deepcopy(template.state_dict())
    learner = PNN(template)
    for t in range(3):
        learner.prepare(some_task(t))
    assert all(torch.equal(learner.columns["0"].layers.state_dict()[name], before[name]) for name in before)
    weights = [learner.columns[str(t)].layers[0].weight for t in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert float(learner.columns["1"].layers[1].running_mean.abs().sum()) == 0.0
    assert all(torch.equal(template.state_dict()[name], before[name]) for name in before), "the template is not trained"
    bound = 1 / math.sqrt(5)
    U = learner.columns["2"].laterals[0].U.weight.detach()
    assert bound * 0.8 < float(U.abs().max()) <= bound, "each U^(k:j) starts as a layer of its own"


def test_the_same_seed_gives_the_same_columns() -> None:
    stream = minicl.split("digits", 5)[:2]
    learners = [PNN(minicl.mlp(64, 8, 8, dropout=0.2), adapter="mlp") for _ in range(2)]
    for learner in learners:
        torch.rand(3)
        minicl.run(learner, stream, epochs=1, seed=3)
    a, b = (learner.state_dict() for learner in learners)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_learning_goes_on_after_loading_as_if_nothing_had_happened(tmp_path: Path) -> None:
    learner = learned(2, minicl.mlp(6, 5, 4, batchnorm=True, dropout=0.3), adapter="mlp")
    learner.save(tmp_path / "pnn")
    loaded = PNN.load(tmp_path / "pnn", minicl.mlp(6, 5, 4, batchnorm=True, dropout=0.3))
    assert loaded.adapter == "mlp"
    assert loaded.capacity() == learner.capacity()
    assert list(loaded.parameters()) == []
    for each in (learner, loaded):
        minicl.run(each, [some_task(2)], epochs=2, seed=5)
    assert same(
        logits_of(learner, [some_task(t) for t in range(3)]), logits_of(loaded, [some_task(t) for t in range(3)])
    )


def test_one_optimiser_over_tasks_that_were_all_prepared_first() -> None:
    torch.manual_seed(0)
    learner = PNN(minicl.mlp(6, 5, 4))
    tasks = [some_task(t) for t in range(3)]
    for task in tasks:
        learner.prepare(task)
    optimizer = learner.protect(torch.optim.Adam(learner.parameters(), lr=0.01, weight_decay=0.1))
    finished: list[Tensor] = []
    for i, task in enumerate(tasks):
        untrained = learner.columns[str(i)].layers[1].weight.clone()
        learner.learn(task, loop(learner, task, optimizer))
        assert not torch.equal(learner.columns[str(i)].layers[1].weight, untrained)
        assert same(finished, logits_of(learner, tasks[:i]))
        finished = logits_of(learner.eval(), tasks[: i + 1])
    assert learner.column_ids(2) == [0, 1, 2]


def test_a_task_given_up_half_way_is_read_by_nobody_and_can_be_learned_later(tmp_path: Path) -> None:
    learner = learned(1)
    tasks = [some_task(t) for t in range(4)]

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn(tasks[1], interrupted)
    for t in (2, 1, 3):  # task 1 is learned after task 2
        learner.prepare(tasks[t])
        minicl.run(learner, [tasks[t]], epochs=1)
        if t == 2:
            before = logits_of(learner, [tasks[2]])
    assert same(before, logits_of(learner, [tasks[2]]))
    assert [learner.column_ids(t) for t in range(4)] == [[0], [0, 1], [0, 2], [0, 1, 2, 3]]
    learner.save(tmp_path / "pnn")
    loaded = PNN.load(tmp_path / "pnn", minicl.mlp(6, 5, 4)).eval()
    assert same(logits_of(learner.eval(), tasks), logits_of(loaded, tasks))
    assert torch.equal(learner.export(3)(tasks[3].test.x), loaded(tasks[3].test.x, 3))


def test_a_loss_that_became_nan_leaves_a_column_that_can_be_trained() -> None:
    learner = learned(1)
    with pytest.raises(FloatingPointError):
        minicl.run(learner, [some_task(1)], epochs=60, optimizer=partial(torch.optim.SGD, lr=1e15))
    minicl.run(learner, [some_task(1)], epochs=1)
    assert all(z.isfinite().all() for z in logits_of(learner, [some_task(0), some_task(1)]))


def test_double_precision() -> None:
    learner = PNN(minicl.mlp(6, 5).double(), adapter="mlp")
    for t in range(2):
        given = some_task(t)
        task = Task(t, 3, (given.train.x.double(), given.train.y))
        learner.prepare(task)
        learner.learn(task, loop(learner, task, SGD(learner.parameters())))
    assert learner(task.train.x, 1).dtype == torch.float64


# ---- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 2, 5])
def test_parameters_grow_by_the_formula(T: int) -> None:
    learner = PNN(minicl.mlp(64, 256, 256))
    for t in range(T):
        learner.prepare(some_task(t, (64,), 10))
    column, head = 64 * 256 + 256 + 256 * 256 + 256, 256 * 10 + 10
    lateral = 256 * 256 + 256 * 10
    report = learner.capacity()
    assert report["parameters"] == T * (column + head) + T * (T - 1) // 2 * lateral
    assert report["columns"] == {t: column + head for t in range(T)}
    assert report["laterals"] == {t: {j: lateral for j in range(t)} for t in range(T)}
    assert report["adapters"] == {t: 0 for t in range(T)}


def test_parameters_of_eq_2_and_of_convolutions() -> None:
    for kind, lateral, beside in (
        ("linear", 8 * 4 * 9 + 3 * 32, 0),
        ("mlp", 8 * 4 + 3 * 32, 8 * 8 * 9 + 3 * 3 + 2),  # V and what goes with it: U and alpha, twice
    ):
        learner = PNN(minicl.cnn(1, 4, 8), adapter=kind)
        for t in range(3):
            learner.prepare(some_task(t, (1, 8, 8)))
        report = learner.capacity()
        column = 1 * 4 * 9 + 4 + 4 * 8 * 9 + 8 + 32 * 3 + 3
        assert report["laterals"] == {0: {}, 1: {0: lateral}, 2: {0: lateral, 1: lateral}}
        assert report["adapters"] == {0: 0, 1: beside, 2: beside}
        assert report["parameters"] == 3 * column + 3 * lateral + 2 * beside


def test_capacity_is_the_same_before_and_after_freezing_and_counts_every_tensor() -> None:
    learner = learned(2, minicl.mlp(6, 5, 4), adapter="mlp")
    report = learner.capacity()
    assert report["parameters"] == sum(tensor.numel() for tensor in learner.state_dict().values())
    assert report["bytes"] == 4 * report["parameters"]


# ---- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_export_gives_the_same_logits_bit_for_bit(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    template, shape = random_template(rng)
    learner = learned(3, template, shape, adapter=rng.choice(["linear", "mlp"]))
    for t in range(3):
        exported, x = learner.export(t), some_task(t, shape).test.x
        assert not exported.training
        assert torch.equal(exported(x), learner(x, t))
        assert torch.equal(exported(x[:1]), learner(x[:1], t)), "another size of batch"
        assert all(p.requires_grad for p in exported.parameters())
        own = {int(name.split(".")[1]) for name, _ in exported.named_parameters() if name.startswith("columns")}
        assert own == set(range(t + 1)), "the columns up to the task's, and no other"


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_an_export_that_was_pickled_needs_no_minicl(kind: str, tmp_path: Path) -> None:
    learner = learned(3, minicl.cnn(1, 2, 4, batchnorm=True, dropout=0.2), (1, 6, 6), adapter=kind)
    x = some_task(2, (1, 6, 6)).test.x
    torch.save(learner.export(2), tmp_path / "network.pt")
    torch.save({"x": x, "logits": learner(x, 2).detach()}, tmp_path / "expected.pt")
    code = """
import sys
sys.modules["minicl"] = None  # an import of it fails
import torch
torch.set_num_threads(1)
network, expected = torch.load("network.pt", weights_only=False), torch.load("expected.pt")
assert torch.equal(network(expected["x"]), expected["logits"])
network.train()(expected["x"]).sum().backward()
print("same", sum(p.grad is not None for p in network.parameters()) == len(list(network.parameters())))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "same True\n", done.stderr


def test_changing_an_export_does_not_change_the_learner() -> None:
    learner = learned(2)
    x = some_task(1).test.x
    before = learner(x, 1)
    exported = learner.export(1)
    with torch.no_grad():
        for p in exported.parameters():
            p.add_(1.0)
    assert torch.equal(learner(x, 1), before)


def test_export_refuses_tasks_that_are_not_finished() -> None:
    learner = learned(2)
    learner.prepare(some_task(2))
    for task_id in (None, 2, 7, -1):
        with pytest.raises(ValueError, match="allowed: 0, 1"):
            learner.export(task_id)


# ---- sensitivity -----------------------------------------------------------------------------------------------------


def test_afs_and_aps_are_the_papers_ratios() -> None:
    fisher = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]])
    torch.testing.assert_close(average_fisher_sensitivity(fisher), torch.tensor([(0.25 + 0.5) / 2, (0.75 + 0.5) / 2]))
    torch.testing.assert_close(average_perturbation_sensitivity(torch.tensor([1.0, 3.0])), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_fisher_sensitivity_against_one_sample_one_class_one_feature_at_a_time(kind: str) -> None:
    learner = learned(3, nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh()), adapter=kind).double()
    x = some_task(2).test.x[:5].double()

    def log_p(x: Tensor, changed: tuple[int, int, int] | None, by: float) -> Tensor:
        """The columns run by hand, with one feature of one h_i changed."""
        seen: list[list[Tensor]] = []
        for k in range(3):
            column, h = learner.columns[str(k)], [x]
            for i, layer in enumerate((column.layers[0], column.layers[2], learner.heads[str(k)])):
                z = layer(h[-1])
                if k and i:
                    lateral, earlier = column.laterals[i - 1], torch.cat([each[i] for each in seen], 1)
                    z = z + (
                        lateral.U(earlier)
                        if kind == "linear"
                        else lateral.U((lateral.alpha * lateral.V(earlier)).tanh())
                    )
                h.append(z.tanh() if i < 2 else z)
                if changed is not None and (k, i + 1) == changed[:2]:
                    h[-1] = h[-1].clone()
                    h[-1][:, changed[2]] += by
            seen.append(h)
            spread[k] = [each.std(0, correction=0) for each in h[1:3]]
        return seen[2][3].log_softmax(1)

    spread: dict[int, list[Tensor]] = {}
    p = log_p(x, None, 0.0).exp()
    std = dict(spread)
    rows = []
    for i, width in ((1, 5), (2, 4)):
        fisher = torch.zeros(3, width, dtype=torch.float64)
        for k, m in itertools.product(range(3), range(width)):
            slope = (log_p(x, (k, i, m), 1e-5) - log_p(x, (k, i, m), -1e-5)) / 2e-5
            fisher[k, m] = (p * slope**2).sum(1).mean() * std[k][i - 1][m] ** 2
        rows.append((fisher / fisher.sum(0)).mean(1))
    found = learner.sensitivity(2, x)
    torch.testing.assert_close(found.double(), torch.stack(rows), rtol=1e-4, atol=1e-6)


def test_fisher_sensitivity_of_maps_sums_over_pixels() -> None:
    learner = learned(2, minicl.cnn(1, 3, 4), (1, 6, 6))
    found = learner.sensitivity(1, some_task(1, (1, 6, 6)).test.x)
    assert found.shape == (2, 2)
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    assert float(found.min()) > 0


@pytest.mark.parametrize("kind", ["fisher", "perturbation"])
def test_a_column_that_nobody_listens_to_has_no_sensitivity(kind: str) -> None:
    learner = PNN(minicl.mlp(64, 16, 16))
    tasks = minicl.split("digits", 5)[:3]
    minicl.run(learner, tasks, epochs=3, optimizer=partial(torch.optim.Adam, lr=0.003))
    x, y = tasks[2].valid.x, tasks[2].valid.y
    before = learner.sensitivity(2, x, y, kind)
    for lateral in learner.columns["2"].laterals:
        lateral.U.weight[:, : lateral.U.weight.shape[1] // 2] = 0  # from column 0
    after = learner.sensitivity(2, x, y, kind)
    assert before.shape == after.shape == (2, 3)
    assert torch.equal(after[1, 0], torch.tensor(0.0)), "h_2 of column 0 reaches only the head of column 2"
    assert float(after[0, 0]) < float(before[0, 0]), "h_1 of column 0 still works through column 1"
    torch.testing.assert_close(after.sum(1), torch.ones(2))
    for lateral in learner.columns["1"].laterals:
        lateral.U.weight.zero_()
    assert float(learner.sensitivity(2, x, y, kind)[:, 0].abs().max()) == 0.0


def test_perturbation_finds_the_noise_that_halves_accuracy_above_chance() -> None:
    learner = PNN(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Identity()))
    x = torch.tensor([[-1.0], [1.0]]).repeat(2000, 1)
    tasks = [Task(t, 2, (x, (x[:, 0] > 0).long())) for t in range(2)]
    for task in tasks:
        learner.learn(task, lambda: None)
    one = torch.ones(1, 1)
    for t in range(2):
        learner.columns[str(t)].layers[0].weight.copy_(one)
    learner.heads["1"].weight.copy_(torch.tensor([[-1.0], [1.0]]))
    learner.heads["1"].bias.zero_()
    learner.columns["1"].laterals[0].U.weight.copy_(torch.tensor([[-0.5], [0.5]]))
    # The logits differ by 2 (h^(2) + h^(1) / 2), and each h is the input: +-1, of standard deviation 1. Noise on h^(2)
    # flips the sign with probability 1/4, which halves 100 % - 50 %, where 1.5 / sigma is the 75 % quantile of a normal
    # variable; on h^(1) sigma is twice as large. Precision goes with 1 / sigma^2: 4 to 1.
    found = learner.sensitivity(1, x, tasks[1].train.y, "perturbation")
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.8]]), atol=0.02, rtol=0)


def test_sensitivity_leaves_the_learner_as_it_was() -> None:
    learner = learned(2).train()
    task = some_task(1)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    state = torch.random.get_rng_state()
    for kind in ("fisher", "perturbation"):
        first = learner.sensitivity(1, task.test.x, task.test.y, kind)
        assert torch.equal(first, learner.sensitivity(1, task.test.x, task.test.y, kind))
    assert learner.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())


def test_sensitivity_refuses_what_it_cannot_measure() -> None:
    learner = learned(2)
    x, y = some_task(1).test.x, some_task(1).test.y
    with pytest.raises(ValueError, match=r"kind is 'gradient'; allowed: 'fisher', 'perturbation'"):
        learner.sensitivity(1, x, y, "gradient")
    with pytest.raises(ValueError, match="labels y of shape"):
        learner.sensitivity(1, x, kind="perturbation")
    with pytest.raises(ValueError, match="labels y of shape"):
        learner.sensitivity(1, x, y[:3], kind="perturbation")
    with pytest.raises(ValueError, match=r"task id is 5.*allowed: 0, 1"):
        learner.sensitivity(5, x)
    wrong = (learner(x, 1).argmax(1) + 1) % 3
    with pytest.raises(ValueError, match="no better than chance"):
        learner.sensitivity(1, x, wrong, "perturbation")


# ---- wrong calls -----------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class OwnLinear(nn.Linear):
    pass


class OwnSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


def _pruned() -> nn.Module:
    from torch.nn.utils import prune

    return prune.random_unstructured(nn.Linear(6, 6), "weight", 0.5)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (Residual(), "the backbone is a Residual; .*nn.Sequential of Linear.*minicl.mlp"),
        (nn.Linear(6, 3), "the backbone is a Linear; .*nn.Sequential"),
        (
            nn.Sequential(nn.Linear(6, 6), Residual()),
            "layer '1' of the backbone is a Residual; .*nn.Sequential of Linear",
        ),
        (nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.GRU(6, 6))), "layer '0.1' of the backbone is a GRU"),
        (
            nn.Sequential(nn.Linear(6, 6), nn.MultiheadAttention(6, 1)),
            "layer '1' of the backbone is a MultiheadAttention",
        ),
        (nn.Sequential(nn.ConvTranspose2d(1, 1, 3)), "layer '0' of the backbone is a ConvTranspose2d"),
        (nn.Sequential(nn.Embedding(3, 3), nn.Linear(3, 3)), "layer '0' of the backbone is a Embedding"),
        (nn.Sequential(nn.Bilinear(3, 3, 3)), "layer '0' of the backbone is a Bilinear"),
        (nn.Sequential(OwnLinear(6, 3)), "layer '0' of the backbone is a OwnLinear; "),
        (nn.Sequential(OwnSequential(nn.Linear(6, 6))), "layer '0' of the backbone is a OwnSequential"),
        (OwnSequential(nn.Linear(6, 6)), "the backbone is a OwnSequential"),
        (nn.Sequential(nn.LazyLinear(6)), "layer '0'.*does not know its inputs"),
        (nn.Sequential(_pruned()), "layer '0'.*hooks or a parametrisation"),
        (nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))), "layer '0'.*parametrisation"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no Linear or Conv layer"),
        (nn.Sequential(), "no Linear or Conv layer"),
    ],
)
def test_a_template_that_cannot_be_a_column_is_refused(backbone: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PNN(backbone)


def test_no_module_at_all() -> None:
    with pytest.raises(TypeError, match="the backbone is a list"):
        PNN([nn.Linear(3, 3)])  # type: ignore[arg-type]


def test_an_activation_of_ones_own_is_welcome() -> None:
    learner = learned(2, nn.Sequential(nn.Linear(6, 5), Swish(), nn.Linear(5, 4), Swish()))
    x = some_task(1).test.x
    assert torch.equal(learner.export(1)(x), learner(x, 1))


@pytest.mark.parametrize("adapter", ["MLP", "", None, 2, ["mlp"]])
def test_an_unknown_adapter_is_refused(adapter: Any) -> None:
    with pytest.raises(ValueError, match=r"adapter is .*allowed: 'linear' \(Eq. 1\), 'mlp' \(Eq. 2\)"):
        PNN(minicl.mlp(6, 3), adapter=adapter)


def test_inputs_of_another_shape_are_refused() -> None:
    learner = learned(1)
    with pytest.raises(ValueError, match=r"inputs of task 1 have shape \(7,\), those before it \(6,\)"):
        learner.learn(some_task(1, (7,)), lambda: None)
    assert learner.learned == [0]
    assert list(learner.columns) == ["0"]


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_scenarios_without_a_task_id_are_refused(scenario: str) -> None:
    with pytest.raises(ValueError, match="PNN must be told the task id"):
        minicl.run(PNN(minicl.mlp(64, 4)), minicl.split("digits", 5, scenario=scenario), epochs=1)


@pytest.mark.parametrize("task_id", [None, -1, 2, True, "0"])
def test_a_task_id_that_is_missing_or_unknown_is_refused(task_id: Any) -> None:
    with pytest.raises(ValueError, match="task id"):
        learned(2)(some_task(0).test.x, task_id)


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    learned(2).save(tmp_path / "pnn")
    with pytest.raises(ValueError, match="does not fit"):
        PNN.load(tmp_path / "pnn", minicl.mlp(6, 5, 5))
    with pytest.raises(ValueError, match="does not fit"):
        PNN.load(tmp_path / "pnn", minicl.mlp(6, 5, 4), adapter="mlp")
