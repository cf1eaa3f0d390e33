"""PNN: the equations against slow formulas, columns and what they read, growth, export, errors.

That old tasks keep their bits, over random cases, is tested in test_every_method.py.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loops import ADAM, SGD, Loop, Make, logits, run, same_bits, small_tasks
from torch import Tensor, nn

import minicl
from minicl import PNN, Task
from minicl.isolation.pnn import adapter, lateral_sum, side_by_side


def some_task(t: int, shape: tuple[int, ...] = (6,), outputs: int = 3) -> Task:
    return small_tasks(ids=[t], outputs=outputs, samples=24, shape=shape, number=t)[0]


def loop(learner: PNN, make: Make = ADAM, **how: Any) -> Loop:
    """Three steps with all samples."""
    return Loop(learner, make, **{"batch": 24, "epochs": 3, "set_to_none": False, **how})


def learned(n_tasks: int = 3, backbone: nn.Module | None = None, shape: tuple[int, ...] = (6,), **kwargs: Any) -> PNN:
    learner = PNN(minicl.mlp(6, 5, 4) if backbone is None else backbone, **kwargs)
    for t in range(n_tasks):
        loop(learner).learn(some_task(t, shape))
    return learner.eval()


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
        assert len(learner.columns.real(str(k)).laterals) == 2


# ---- nothing is forgotten --------------------------------------------------------------------------------------------


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
    learner.columns.real("0").layers[-1].register_forward_hook(lambda *args: outputs.append(args[2]))
    loop(learner, SGD).learn(task)
    assert len(outputs) == 3
    assert all(torch.equal(outputs[0], each) for each in outputs)
    assert learner.columns.real("1").layers[-1].training is False
    learner.train()
    assert not any(module.training for module in learner.columns.modules() if module is not learner.columns)


def test_running_statistics_of_a_frozen_column_stand_still_and_those_of_the_new_one_move() -> None:
    learner = learned(1, minicl.mlp(6, 5, batchnorm=True))
    before = {name: tensor.clone() for name, tensor in learner.columns.real("0").state_dict().items()}
    task = some_task(1)
    loop(learner, SGD).learn(task)
    for name, tensor in learner.columns.real("0").state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert int(before["layers.2.num_batches_tracked"]) == 3
    assert int(learner.columns.real("1").state_dict()["layers.2.num_batches_tracked"]) == 3


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_an_old_column_keeps_and_uses_its_own_laterals(kind: str) -> None:
    learner = learned(3, adapter=kind)
    x = some_task(1).test.x
    before = learner(x, 1)
    for i in range(2):
        weight = learner.columns.real("1").laterals[i].U.weight
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
        note = lambda *args, t=t: calls[t].append(any(h.requires_grad for h in args[2].values()))  # noqa: E731
        learner.columns.real(str(t)).register_forward_hook(note)
    loop(learner, SGD, epochs=2).learn(task)
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
    learner = PNN(template, start="random")
    for t in range(3):
        learner.prepare(some_task(t))
    assert all(torch.equal(learner.columns.real("0").layers.state_dict()[name], before[name]) for name in before)
    weights = [learner.columns.real(str(t)).layers[0].weight for t in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert float(learner.columns.real("1").layers[1].running_mean.abs().sum()) == 0.0
    assert all(torch.equal(template.state_dict()[name], before[name]) for name in before), "the template is not trained"
    bound = 1 / math.sqrt(5)
    U = learner.columns.real("2").laterals[0].U.weight.detach()
    assert bound * 0.8 < float(U.abs().max()) <= bound, "each U^(k:j) starts as a layer of its own"


def test_one_optimiser_over_tasks_that_were_all_prepared_first() -> None:
    learner, tasks = PNN(minicl.mlp(6, 5, 4)), [some_task(t) for t in range(3)]
    for task in tasks:
        learner.prepare(task)
    together = loop(learner, partial(torch.optim.Adam, lr=0.01, weight_decay=0.1))
    for i, task in enumerate(tasks):
        untrained = learner.columns.real(str(i)).layers[1].weight.clone()
        together.learn(task)
        assert not torch.equal(learner.columns.real(str(i)).layers[1].weight, untrained)
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
        run(learner, [tasks[t]], epochs=1)
        if t == 2:
            before = logits(learner, [tasks[2]])
    assert same_bits(before, logits(learner, [tasks[2]]))
    assert [learner.column_ids(t) for t in range(4)] == [[0], [0, 1], [0, 2], [0, 1, 2, 3]]
    learner.save(tmp_path / "pnn")
    loaded = PNN.load(tmp_path / "pnn", minicl.mlp(6, 5, 4)).eval()
    assert same_bits(logits(learner, tasks), logits(loaded, tasks))
    assert torch.equal(learner.export(3)(tasks[3].test.x), loaded(tasks[3].test.x, 3))


def test_a_loss_that_became_nan_leaves_a_column_that_can_be_trained() -> None:
    learner = learned(1)
    with pytest.raises(FloatingPointError):
        minicl.run(learner, [some_task(1)], epochs=60, optimizer=partial(torch.optim.SGD, lr=1e15))
    minicl.run(learner, [some_task(1)], epochs=1)
    assert all(z.isfinite().all() for z in logits(learner, [some_task(0), some_task(1)]))


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


def test_an_export_has_the_columns_up_to_the_tasks_and_no_other() -> None:
    learner = learned(3)
    for t in range(3):
        names = [name.split(".") for name, _ in learner.export(t).named_parameters()]
        assert {int(name[1]) for name in names if name[0] == "columns"} == set(range(t + 1))


# ---- wrong calls -----------------------------------------------------------------------------------------------------


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


@pytest.mark.parametrize("backbone", [nn.Sequential(nn.Flatten(), nn.ReLU()), nn.Sequential()])
def test_a_template_that_has_nothing_to_learn_is_refused(backbone: nn.Module) -> None:
    with pytest.raises(ValueError, match="has no parameters, so a column would have nothing to learn"):
        PNN(backbone)


def test_an_activation_of_ones_own_is_welcome() -> None:
    learner = learned(2, nn.Sequential(nn.Linear(6, 5), Swish(), nn.Linear(5, 4), Swish()))
    x = some_task(1).test.x
    assert torch.equal(learner.export(1)(x), learner(x, 1))


def test_a_file_is_not_loaded_with_laterals_of_another_kind(tmp_path: Path) -> None:
    learned(2).save(tmp_path / "pnn")
    with pytest.raises(ValueError, match="does not fit"):
        PNN.load(tmp_path / "pnn", minicl.mlp(6, 5, 4), adapter="mlp")
