"""PackNet: its equations against slow formulas, the procedure, each trap, each error.

Its promise, over random cases, is tested in test_every_method.py.
"""

from __future__ import annotations

import copy
from functools import partial
from math import ceil, log2
from typing import Any

import pytest
import torch
from backbones import NETWORKS, SHAPE, Residual
from hypothesis import given
from hypothesis import strategies as st
from loops import Loop, Make, answers, same_bits, small_tasks
from safetensors import safe_open
from torch import Tensor, nn

import minicl
from minicl.isolation.packnet import (
    PackNet,
    keep_mask,
    owned_by,
    total_mask,
    trainable,
    used_by,
)

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


# ---- the equations, against formulas that take their time --------------------------------------------------


def slow_keep(weights: list[float], keep_ratio: float, among: list[bool]) -> list[bool]:
    """Sort the candidates by size; of equals, the first in the row counts as the larger."""
    candidates = [i for i, chosen in enumerate(among) if chosen]
    ordered = sorted(candidates, key=lambda i: (abs(weights[i]), -i))
    released = set(ordered[: round((1 - keep_ratio) * len(candidates))])
    return [chosen and i not in released for i, chosen in enumerate(among)]


@given(
    entries=st.lists(
        st.tuples(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]), st.booleans()), min_size=1, max_size=40
    ),
    keep_ratio=st.floats(0.01, 1.0),
)
def test_keep_mask_keeps_the_largest(entries: list[tuple[float, bool]], keep_ratio: float) -> None:
    weights, among = [w for w, _ in entries], [a for _, a in entries]
    found = keep_mask(torch.tensor(weights), keep_ratio, torch.tensor(among))
    assert found.tolist() == slow_keep(weights, keep_ratio, among)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 3), (2, 3, 3, 3)])
@pytest.mark.parametrize("keep_ratio", [0.05, 0.3, 0.5, 0.75, 1.0])
def test_keep_mask_of_any_shape_and_type(dtype: torch.dtype, shape: tuple[int, ...], keep_ratio: float) -> None:
    weight = torch.randn(shape).to(dtype)
    among = torch.ones(shape, dtype=torch.bool)
    found = keep_mask(weight, keep_ratio, among)
    assert found.flatten().tolist() == slow_keep(weight.flatten().tolist(), keep_ratio, among.flatten().tolist())
    assert torch.equal(found, keep_mask(weight, keep_ratio))


def test_nothing_is_released_where_the_share_rounds_to_zero() -> None:
    weight = torch.randn(4)
    assert keep_mask(weight, 0.9).all()  # 0.4 of a weight
    among = torch.zeros(4, dtype=torch.bool)
    assert not keep_mask(weight, 0.5, among).any()  # nor is anything kept where nothing is in question


def test_ties_at_the_cutoff_are_broken_by_place_and_leave_the_exact_share() -> None:
    weight = torch.full((10,), 0.5)
    assert keep_mask(weight, 0.3).tolist() == [True] * 3 + [False] * 7
    assert torch.equal(keep_mask(-weight, 0.3), keep_mask(weight, 0.3))


def test_keep_mask_leaves_its_arguments_alone() -> None:
    weight, among = torch.randn(9), torch.rand(9) < 0.5
    before = weight.clone(), among.clone()
    for keep_ratio in (0.4, 1.0):
        mask = keep_mask(weight, keep_ratio, among)
        mask[:] = True
        assert torch.equal(weight, before[0])
        assert torch.equal(among, before[1])


@pytest.mark.parametrize("keep_ratio", [0, 0.0, -0.5, 1.0001, float("nan"), True])
def test_a_share_is_more_than_0_and_at_most_1(keep_ratio: float) -> None:
    with pytest.raises(ValueError, match=r"keep_ratio is .*allowed: a share in \(0, 1\]"):
        keep_mask(torch.randn(3), keep_ratio)


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
def test_total_mask_is_or(masks: list[list[bool]]) -> None:
    tensors = [torch.tensor(mask) for mask in masks]
    before = copy.deepcopy(tensors)
    assert total_mask(iter(tensors)).tolist() == [any(column) for column in zip(*masks, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_total_mask_of_nothing_has_no_shape() -> None:
    with pytest.raises(ValueError, match="at least one"):
        total_mask([])


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32])
def test_trainable_is_the_formula_of_the_source(kind: torch.dtype) -> None:
    theta, total = torch.randn(5, 4), torch.rand(5, 4) < 0.5
    expected = [
        [w * (1 - int(m)) for w, m in zip(*rows, strict=True)]
        for rows in zip(theta.tolist(), total.tolist(), strict=True)
    ]
    assert torch.equal(trainable(theta, total.to(kind)), torch.tensor(expected))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.integers(1, 255))
def test_owners_give_back_their_masks(owners: list[int], task: int) -> None:
    owner = torch.tensor(owners, dtype=torch.uint8)
    assert owned_by(owner, task).tolist() == [o == task for o in owners]
    assert torch.equal(used_by(owner, task), total_mask(owned_by(owner, k) for k in range(1, task + 1)))


def test_a_state_that_is_loaded_in_the_middle_of_a_task_moves_nothing() -> None:
    learner = PackNet(minicl.mlp(8, 9, 7))
    weight, seen = learner.backbone[1].weight, []

    def fit(t: int, epochs: int | None = None) -> None:
        optimizer = learner.protect(SGD(learner.parameters(), lr=0.1, momentum=0.9))
        for _ in range(3):
            before = weight.detach().clone()
            optimizer.zero_grad()
            learner.loss(task(1).train.x, task(1).train.y, t).backward()
            optimizer.step()
            state = optimizer.state_dict()
            for value in state["state"].values():
                value["momentum_buffer"] = torch.ones_like(value["momentum_buffer"])
            optimizer.load_state_dict(state)
            owned = learner.owners["1"] > 0
            seen.append(torch.equal(weight[owned], before[owned]))

    for t in range(3):
        learner.learn(task(t), partial(fit, t))
    assert seen == [True] * 18


# ---- a small workshop --------------------------------------------------------------------------------------


def task(task_id: int, samples: int = 12, outputs: int = 3, shape: tuple[int, ...] = SHAPE) -> minicl.Task:
    return small_tasks(ids=[task_id], outputs=outputs, samples=samples, shape=shape, number=task_id)[0]


def loop_of(learner: PackNet, make: Make, **how: Any) -> Loop:
    """Two batches an epoch, one epoch."""
    return Loop(learner, make, **{"batch": 6, "epochs": 1, **how})


# ---- what promise 1 stands on (over random cases it is tested in test_every_method.py) ---------------------


def test_the_reference_changes_when_nothing_is_protected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without what is put back, the same loop moves what finished tasks own."""
    learner = PackNet(minicl.mlp(8, 9, 7))
    loop = loop_of(learner, partial(SGD, lr=0.1, weight_decay=0.1))
    loop.learn(task(0))
    x = torch.rand(5, *SHAPE)
    before = answers(learner, x, 0)[0]
    monkeypatch.setattr(learner, "after_step", lambda: None)
    monkeypatch.setattr(learner, "_put_back", lambda: None)
    loop.learn(task(1))
    assert not torch.equal(answers(learner, x, 0)[0], before)


def test_a_loop_that_forgot_to_protect_is_told_so() -> None:
    learner = PackNet(minicl.mlp(8, 9, 7))
    loop = loop_of(learner, partial(SGD, lr=0.1, momentum=0.9))
    loop.learn(task(0))
    x = torch.rand(5, *SHAPE)
    before = answers(learner, x, 0)[0]
    seen = []

    def fit(epochs: int | None = None) -> None:
        optimizer = SGD(learner.parameters(), lr=0.1)
        learner.loss(task(1).train.x, task(1).train.y, 1).backward()
        optimizer.step()
        seen.append(torch.equal(answers(learner, x, 0)[0], before))

    with pytest.raises(RuntimeError, match=r"PackNet saw no step of a protected optimiser. Call learner.protect\("):
        learner.learn(task(1), fit)
    assert seen == [True]  # finished tasks do not read what others can write
    assert learner.learned == [0]
    loop.learn(task(1))
    assert torch.equal(answers(learner, x, 0)[0], before)


def resnet18() -> nn.Module:
    network = minicl.datasets.torchvision().models.resnet18()
    network.fc = nn.Identity()
    return network


def vgg11() -> nn.Module:
    network = minicl.datasets.torchvision().models.vgg11()
    network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
    return network


@pytest.mark.parametrize(("make", "batchnorm"), [(resnet18, "frozen"), (resnet18, "per-task"), (vgg11, "frozen")])
def test_torchvision_networks_as_they_come(make: object, batchnorm: str) -> None:
    learner = PackNet(make(), keep_ratio=[0.5, 0.25], retrain_epochs=0, batchnorm=batchnorm)  # type: ignore[operator]
    loop = loop_of(learner, partial(AdamW, lr=0.01), set_to_none=False, batch=4)
    x = torch.rand(2, 3, 32, 32)
    loop.learn(task(0, 4, 2, (3, 32, 32)))
    before = answers(learner, x, 0)
    loop.learn(task(1, 4, 2, (3, 32, 32)))
    assert same_bits(answers(learner, x, 0), before)
    exported = learner.export(0)
    assert torch.equal(exported(x), before[1])
    dense = dict(learner.backbone.named_parameters())
    owned = {name: owned_by(learner.owners[layer], 2) for layer, name in learner.owner.names.items()}
    assert all((dense[name][mask] != 0).any() for name, mask in owned.items())  # the second task learned something


# ---- the procedure -----------------------------------------------------------------------------------------


def test_train_prune_retrain_freeze() -> None:
    backbone = minicl.mlp(8, 20, 10)
    learner = PackNet(backbone, keep_ratio=[0.5, 0.25, 0.25], retrain_epochs=3)
    calls: list[int | None] = []
    free = {"1": 160, "3": 200}
    for number, share in ((1, 0.5), (2, 0.25), (3, 0.25)):
        seen: list[dict[str, Tensor]] = []
        loop = loop_of(learner, partial(AdamW, lr=0.05), reuse=False)

        def fit(epochs: int | None = None, seen: list = seen, loop: Loop = loop, number: int = number) -> None:
            calls.append(epochs)
            weights = {"1": backbone[1].weight, "3": backbone[3].weight}
            seen.append({layer: w.detach().clone() for layer, w in weights.items()})
            loop.fit(task(number))
            seen.append({layer: w.detach().clone() for layer, w in weights.items()})

        owners = {layer: owner.clone() for layer, owner in learner.owners.items()}
        learner.learn(task(number), fit)
        start, trained, pruned, retrained = seen
        for layer, owner in owners.items():
            was_free, kept = owner == 0, owned_by(learner.owners[layer], number)
            if number > 1:
                assert not start[layer][was_free].any()  # free weights start from zero
            assert torch.equal(start[layer][~was_free], retrained[layer][~was_free])  # owned ones work and do not move
            assert (trained[layer][was_free] != start[layer][was_free]).any()
            expected = slow_keep(trained[layer].flatten().tolist(), share, was_free.flatten().tolist())
            assert torch.equal(kept, torch.tensor(expected).view_as(kept) & (trained[layer] != 0))
            assert torch.equal(pruned[layer], torch.where(kept | ~was_free, trained[layer], 0))  # released: zero
            assert not retrained[layer][was_free & ~kept].any()  # and held there
            assert (retrained[layer][kept] != pruned[layer][kept]).any()  # what is kept is trained again
            free[layer] -= int(kept.sum())
            assert torch.equal(learner.owners[layer], torch.where(kept, number, owner).to(torch.uint8))
    assert calls == [None, 3] * 3
    capacity = learner.capacity()
    assert {layer: row["free"] for layer, row in capacity["layers"].items()} == free
    assert capacity["free"] == sum(free.values())
    assert capacity["prunable"] == 360
    assert capacity["extra_bytes"] == 360
    for t in (1, 2, 3):
        owned = sum(int((owner == t).sum()) for owner in learner.owners.values())
        assert capacity["tasks"][t]["weights"] == owned
        assert sum(row["tasks"][t] for row in capacity["layers"].values()) == owned


def test_weights_that_never_moved_from_zero_are_not_claimed() -> None:
    dark = task(1)
    for part in (dark.train, dark.valid, dark.test):
        part.x[:, :, 0] = 0  # half of the pixels are always dark
    learner = PackNet(minicl.mlp(8, 10, 10), keep_ratio=[0.5, 0.9, 0.9, 1.0])
    loop = loop_of(learner, partial(Adam, lr=0.05), reuse=False)
    loop.learn(task(0))
    loop.learn(dark)
    owner = learner.owners["1"]
    assert owned_by(owner, 1)[:, :4].any()
    assert not owned_by(owner, 2)[:, :4].any()
    assert owned_by(owner, 0)[:, :4].sum() + owned_by(owner, 1)[:, :4].sum() == 40
    assert owned_by(owner, 2)[:, 4:].any()
    assert learner.backbone[1].weight[owned_by(owner, 2)].all()
    free = learner.capacity()["free"]
    for bias in ("1.bias", "3.bias"):
        learner.finished.tensors[bias].fill_(-100.0)  # every unit is silent now: no weight gets a gradient
    loop.learn(task(2))
    assert learner.capacity()["free"] == free > 0
    loop.learn(task(3))  # keeps all
    assert learner.capacity()["free"] == 0


def test_retraining_can_be_left_out_or_be_as_long_as_training() -> None:
    for retrain_epochs, expected in ((0, [7]), (None, [7, 7]), (2, [7, 2])):
        calls: list[int] = []

        def fit(epochs: int = 7, calls: list[int] = calls) -> None:  # it must never be told None
            calls.append(epochs)

        PackNet(minicl.mlp(8, 5), retrain_epochs=retrain_epochs).learn(task(0), fit)
        assert calls == expected


def test_biases_norms_and_embeddings_are_the_first_tasks() -> None:
    learner = PackNet(nn.Sequential(Residual(), nn.LayerNorm(8)))
    packed = set(learner.owner.names.values())
    loop = loop_of(learner, partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.1), set_to_none=False)

    def rest() -> dict[str, Tensor]:
        state = learner.backbone.state_dict()
        return {name: tensor.clone() for name, tensor in state.items() if name not in packed}

    fresh = rest()
    loop.learn(task(0))
    first = rest()
    assert all(not torch.equal(first[name], fresh[name]) for name in fresh)
    learner.backbone.requires_grad_(True)  # even who asks for their gradients
    loop.learn(task(1))
    assert all(torch.equal(first[name], now) for name, now in rest().items())


def test_each_task_may_have_norms_of_its_own() -> None:
    learner = PackNet(minicl.mlp(8, 9, 7, batchnorm=True), batchnorm="per-task")
    loop = loop_of(learner, partial(SGD, lr=0.1), set_to_none=False)
    loop.learn(task(0))
    first = {name: tensor.clone() for name, tensor in learner.norms["0"].state_dict().items()}
    x = torch.rand(5, *SHAPE)
    before = answers(learner, x, 0)

    def fit(epochs: int | None = None) -> None:
        loop.fit(task(1))
        assert learner.backbone[2].training  # the norms of the task at hand learn
        assert all(torch.equal(learner(x, 0), logits) for logits in before)  # those of another do not, in no mode
        assert learner.backbone[2].training

    learner.learn(task(1), fit)
    assert all(torch.equal(first[name], now) for name, now in learner.norms["0"].state_dict().items())
    assert all(not torch.equal(first[name], now) for name, now in learner.norms["1"].state_dict().items())
    assert {"2/running_mean", "2/weight", "5/bias"} <= set(first)
    norm, stored = learner.backbone[2], learner.norms["1"]
    assert torch.equal(norm.running_mean, stored.get_buffer("2/running_mean"))
    assert not norm.training
    assert learner.capacity()["extra_bytes"] == sum(owner.numel() for owner in learner.owners.values()) + 2 * (
        4 * 4 * (9 + 7) + 2 * 8
    )


def test_between_tasks_nothing_moves() -> None:
    learner = PackNet(minicl.mlp(8, 9, 7, batchnorm=True), batchnorm="per-task")
    loop = loop_of(learner, partial(Adam, lr=0.1, weight_decay=0.1), set_to_none=False)
    loop.learn(task(0))
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    learner.loss(task(1).train.x, task(1).train.y % 3, 0).backward()
    loop.optimizer.step()  # momentum and weight decay are waiting
    assert all(torch.equal(before[name], now) for name, now in learner.state_dict().items())


def test_a_task_that_breaks_off_leaves_no_trace_and_can_be_learned_again() -> None:
    learner = PackNet(minicl.mlp(8, 9, 7, batchnorm=True), batchnorm="per-task", retrain_epochs=1)
    loop = loop_of(learner, partial(Adam, lr=0.1))
    loop.learn(task(0))
    x = torch.rand(5, *SHAPE)
    before = answers(learner, x, 0)

    def breaks(epochs: int | None = None) -> None:
        loop.fit(task(1))
        if epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn(task(1), breaks)
    learner.train()
    assert same_bits(answers(learner, x, 0), before)
    assert learner.capacity()["tasks"][1]["finished"] is False
    free = learner.capacity()["free"]
    loop.learn(task(2))  # another first, then the one that broke off
    second = answers(learner, x, 2)
    loop.learn(task(1))
    assert [learner.number(t) for t in (0, 2, 1)] == [1, 2, 3]
    assert learner.capacity()["free"] < free
    for t, logits in ((0, before), (2, second)):
        assert same_bits(answers(learner, x, t), logits)


def test_free_weights_start_from_zero_whoever_moved_them() -> None:
    learner = learned(PackNet(minicl.mlp(8, 9, 7)), 1)
    for layer, weight in learner.weights().items():
        weight.data[learner.owners[layer] == 0] = torch.nan  # an optimiser without `protect`, between two tasks

    def fit(epochs: int | None = None) -> None:
        for layer, weight in learner.weights().items():
            assert not weight[learner.owners[layer] == 0].any()

    learner.learn(task(1), fit)


def test_weights_that_became_nan_are_refused() -> None:
    learner = PackNet(minicl.mlp(8, 5))
    with pytest.raises(FloatingPointError, match=r"layer '1' holds NaN"):
        learner.learn(task(0), lambda epochs=None: learner.backbone[1].weight.data.fill_(torch.nan))


def test_a_shared_layer_is_one_layer(tmp_path: object) -> None:

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.again = self.a
            self.b.weight = self.a.weight
            self.words = nn.Embedding(8, 8)
            self.words.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.b(torch.relu(self.a(x.flatten(1)))))
            return self.again(x) + self.words(torch.arange(len(x)))

    learner = PackNet(Twice())
    assert list(learner.owners) == ["a"]
    loop = loop_of(learner, partial(Adam, lr=0.05))
    x = torch.rand(5, *SHAPE)
    loop.learn(task(0))
    before = answers(learner, x, 0)
    loop.learn(task(1))
    assert same_bits(answers(learner, x, 0), before)
    exported = learner.export(0)
    assert exported[0].a.weight is exported[0].b.weight is exported[0].words.weight
    assert torch.equal(exported(x), before[1])
    assert torch.equal(learner.export(0, sparse=True)(x), before[1])
    learner.save(tmp_path / "twice")
    with safe_open(tmp_path / "twice", "pt") as file:
        assert [name for name in file.keys() if name.endswith("weight")] == ["backbone.a.weight"]  # noqa: SIM118
    again = PackNet.load(tmp_path / "twice", Twice())
    assert same_bits(answers(again, x, 0), before)


# ---- the traps ---------------------------------------------------------------------------------------------


def test_the_source_s_formula_as_the_forward_pass_erases_earlier_tasks() -> None:
    """theta (.) (1 - m^(1:t)) says what may move; as a network it has lost everything that was learned."""
    learner = PackNet(minicl.mlp(8, 9, 7))
    loop_of(learner, partial(Adam, lr=0.05)).learn(task(0))
    for layer, weight in learner.weights().items():
        assert not trainable(weight.detach(), used_by(learner.owners[layer], 1)).any()


def test_without_a_mask_later_tasks_leak_into_earlier_ones() -> None:
    learner = PackNet(minicl.mlp(8, 9, 7))
    loop = loop_of(learner, partial(Adam, lr=0.05))
    x = torch.rand(5, *SHAPE)
    loop.learn(task(0))
    before = answers(learner, x, 0)[1]
    loop.learn(task(1))
    assert torch.equal(learner(x, 0), before)
    assert not torch.equal(learner.heads["0"](learner.backbone(x)), before)


def test_answers_never_depend_on_something_kept_from_before() -> None:
    learner = PackNet(minicl.mlp(8, 9, 7))
    loop = loop_of(learner, partial(Adam, lr=0.05))
    loop.learn(task(0))
    loop.learn(task(1))
    x = torch.rand(5, *SHAPE)
    first = answers(learner, x, 0)[0]
    weight = learner.backbone[1].weight
    weight.data[learner.owners["1"] == 1] += 1.0  # in a way that leaves no mark
    assert torch.equal(answers(learner, x, 0)[0], first)  # not what others can write over
    learner.finished.tensors["1.weight"][learner.owners["1"] == 1] += 1.0
    moved = answers(learner, x, 0)[0]
    assert not torch.equal(moved, first)
    learner.finished.tensors["1.weight"][learner.owners["1"] == 2] += 1.0  # what task 0 does not read
    assert torch.equal(answers(learner, x, 0)[0], moved)
    assert torch.equal(learner.double()(x.double(), 0).float().round(decimals=4), moved.round(decimals=4))


# ---- the share that is kept --------------------------------------------------------------------------------


def learned(learner: PackNet, n: int = 2) -> PackNet:
    """The learner after n tasks, without training."""
    for t in range(n):
        learner.learn(task(t), lambda epochs=None: None)
    return learner


def test_a_share_for_each_task_and_layer() -> None:
    by_layer = learned(PackNet(minicl.mlp(8, 10, 10), keep_ratio={"1": 0.5, "3": [0.1, 0.5]}))
    assert by_layer.capacity()["layers"]["1"]["tasks"] == {0: 40, 1: 20}
    assert by_layer.capacity()["layers"]["3"]["tasks"] == {0: 10, 1: 45}
    asked = []

    def share(number: int, layer: str) -> float:
        asked.append((number, layer))
        return 0.3 if layer == "1" else 0.6

    by_function = learned(PackNet(minicl.mlp(8, 10, 10), keep_ratio=share))
    assert by_function.capacity()["layers"]["1"]["tasks"][0] == 24
    assert by_function.capacity()["layers"]["3"]["tasks"][0] == 60
    assert set(asked) == {(1, "1"), (1, "3"), (2, "1"), (2, "3")}


def test_shares_are_checked_where_they_are_given() -> None:
    network = minicl.mlp(8, 10, 10)
    with pytest.raises(ValueError, match=r"names the layers \['0'\]; allowed: one share for each of \['1', '3'\]"):
        PackNet(network, keep_ratio={"0": 0.5})
    with pytest.raises(ValueError, match=r"keep_ratio\['3'\] is 2"):
        PackNet(network, keep_ratio={"1": 0.5, "3": 2})
    with pytest.raises(ValueError, match=r"keep_ratio\[1\] is 0"):
        PackNet(network, keep_ratio=[0.5, 0])
    with pytest.raises(ValueError, match="empty"):
        PackNet(network, keep_ratio=[])
    with pytest.raises(ValueError, match=r"keep_ratio\[0\] is 'auto'"):
        PackNet(network, keep_ratio=["auto"])


def never(epochs: int | None = None) -> None:
    raise AssertionError("trained, although the task should have been refused before")


def test_a_share_that_is_missing_or_wrong_is_refused_before_training() -> None:
    learner = learned(PackNet(minicl.mlp(8, 10, 10), keep_ratio=[0.5, 0.5]))
    with pytest.raises(ValueError, match="keep_ratio has 2 values, one per task, and this is task number 3"):
        learner.learn(task(2), never)
    assert list(learner.tasks) == [0, 1]
    assert "2" not in learner.heads
    with pytest.raises(ValueError, match=r"keep_ratio\(1, '1'\) is 1.5"):
        PackNet(minicl.mlp(8, 10), keep_ratio=lambda number, layer: 1.5).learn(task(0), never)
    with pytest.raises(ValueError, match="would keep none of the 80 weights of layer '1'"):
        PackNet(minicl.mlp(8, 10), keep_ratio=0.005).learn(task(0), never)


def test_auto_finds_the_smallest_share_within_the_tolerance_on_validation_data() -> None:
    stream = minicl.split("digits", 5, seed=0, validation=0.3)
    first = stream[0]
    forbidden = minicl.Task(0, 2, first.train, first.valid, lambda: pytest.fail("test samples were read"))
    learner = PackNet(minicl.mlp(64, 30, 20), keep_ratio="auto", tolerance=0.05, retrain_epochs=0)
    trained: dict[str, Tensor] = {}

    def fit(epochs: int | None = None) -> None:
        optimizer = learner.protect(Adam(learner.parameters(), lr=0.01))
        for _ in range(20):
            optimizer.zero_grad()
            learner.loss(first.train.x, first.train.y, 0).backward()
            optimizer.step()
        trained.update({layer: w.detach().clone() for layer, w in learner.weights().items()})

    learner.learn(forbidden, fit)
    share = learner.tasks[0].notes["keep_ratio"]
    assert 0 < share < 0.9

    def accuracy(share: float) -> float:
        network = copy.deepcopy(learner.backbone)
        for layer, name in learner.owner.names.items():
            weight = network.get_parameter(name).data
            weight.copy_(torch.where(keep_mask(trained[layer], share), trained[layer], 0))
        logits = learner.heads["0"](network(first.valid.x))
        return float((logits.argmax(1) == first.valid.y).float().mean())

    goal = accuracy(1.0) - 0.05 - 1e-6
    assert accuracy(share) >= goal
    assert accuracy(share - 1 / 128) < goal
    for layer, weight in learner.weights().items():
        assert torch.equal(owned_by(learner.owners[layer], 1), keep_mask(trained[layer], share))
        assert torch.equal(weight[owned_by(learner.owners[layer], 1)], trained[layer][keep_mask(trained[layer], share)])


def test_auto_needs_validation_samples() -> None:
    x, y = task(0).train.x, task(0).train.y
    with pytest.raises(ValueError, match="needs validation samples, and task 0 has none"):
        PackNet(minicl.mlp(8, 10), keep_ratio="auto").learn(minicl.Task(0, 3, (x, y)), never)


def test_a_full_network_says_so_before_training() -> None:
    learner = learned(PackNet(minicl.mlp(8, 10), keep_ratio=1.0), 1)
    with pytest.raises(
        ValueError, match=r"task number 2 would get 0 free weights of 80.*smaller keep_ratio.*wider backbone"
    ):
        learner.learn(task(1), never)
    assert list(learner.tasks) == [0]
    asking = learned(PackNet(minicl.mlp(8, 10), keep_ratio=0.5, min_free=30), 2)
    with pytest.raises(ValueError, match="task number 3 would get 20 free weights of 80; at least min_free=30"):
        asking.learn(task(2), never)


def test_255_tasks_and_not_one_more(tmp_path: object) -> None:
    learner = PackNet(nn.Sequential(nn.Flatten(), nn.Linear(8, 300, bias=False)), keep_ratio=0.01, retrain_epochs=0)
    x, example = torch.rand(3, *SHAPE), task(0)
    for t in range(255):
        learner.learn(minicl.Task(t, 2, example=example.example), lambda epochs=None: None)
        for tensor in (learner.backbone[1].weight.data, learner.finished.tensors["1.weight"]):
            tensor[learner.owners["1"] == t + 1] = t + 1.0  # something of its own
    with pytest.raises(ValueError, match="task number 256, and an owner is one byte: PackNet holds 255 tasks at most"):
        learner.learn(minicl.Task(255, 2, example=example.example), never)
    learner.save(tmp_path / "many")
    loaded = PackNet.load(tmp_path / "many", nn.Sequential(nn.Flatten(), nn.Linear(8, 300, bias=False)))
    assert torch.equal(loaded.owners["1"], learner.owners["1"])
    learner.eval()
    for t in (0, 128, 254):
        assert torch.equal(loaded.eval()(x, t), learner(x, t))


# ---- files and exports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 4, 10])
def test_ownership_costs_few_bits(n: int, tmp_path: object) -> None:
    learner = learned(PackNet(minicl.mlp(8, 500, 120), keep_ratio=0.1), n)
    learner.save(tmp_path / "learner")
    n_backbone = sum(p.numel() for p in learner.backbone.parameters())
    n_heads = sum(t.numel() for head in learner.heads.values() for t in head.state_dict().values())
    owners = learner.capacity()["prunable"] * ceil(log2(n + 1)) / 8
    allowed = 1.01 * (4 * n_backbone + owners + 4 * n_heads)
    assert 4 * n_backbone + owners < (tmp_path / "learner").stat().st_size <= allowed
    loaded = PackNet.load(tmp_path / "learner", minicl.mlp(8, 500, 120))
    for layer, owner in learner.owners.items():
        assert torch.equal(loaded.owners[layer], owner)
    assert loaded.capacity() == learner.capacity()
    assert not list(loaded.heads.parameters())  # out of every optimiser's reach
    assert [p.requires_grad for p in loaded.backbone.parameters()] == [True, False, True, False]
    x, newest = torch.rand(5, *SHAPE), loaded.eval().learned[-1]
    raw = loaded.heads[str(newest)](loaded.backbone(x))  # its free weights are zero: it needs no mask
    torch.testing.assert_close(raw, loaded(x, newest))


@pytest.mark.parametrize("events", ["prepare 0 1 2 learn 2 0 1", "prepare 0 1 2 learn 1", "learn 0 prepare 1 learn 2"])
def test_a_file_keeps_every_tasks_head_in_whatever_order_they_came(events: str, tmp_path: object) -> None:
    """Heads are made in the order in which tasks are prepared, and numbers given in that in which they are learned."""
    learner, finished = PackNet(minicl.mlp(8, 9, 7)), []
    loop = loop_of(learner, partial(Adam, lr=0.02), reuse=False)
    for event in events.split():
        if not event.isdigit():
            what = event
        elif what == "prepare":
            learner.prepare(task(int(event)))
        else:
            loop.learn(task(int(event)))
            finished.append(int(event))
    x = torch.rand(5, *SHAPE)
    before = answers(learner, x, *finished)
    learner.save(tmp_path / "learner")
    loaded = PackNet.load(tmp_path / "learner", minicl.mlp(8, 9, 7))
    assert same_bits(answers(loaded, x, *finished), before)


def test_an_export_holds_no_other_task() -> None:
    learner = PackNet(Residual(), keep_ratio=0.4)
    learner.backbone = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6)
    )
    learner = PackNet(learner.backbone, keep_ratio=0.4)
    loop = loop_of(learner, partial(Adam, lr=0.02))
    for t in range(3):
        loop.learn(task(t))
    for t in range(3):
        exported = learner.export(t)
        exported[0][0].weight.data += 0.0  # its own memory
        for layer in ("0", "4"):
            alone = exported[0].get_submodule(layer).weight
            used = used_by(learner.owners[layer], t + 1)
            assert not alone[~used].any()
            assert torch.equal(alone[used], learner.backbone.get_submodule(layer).weight[used])
            assert alone.data_ptr() != learner.backbone.get_submodule(layer).weight.data_ptr()
        assert not any(p.requires_grad for p in exported.parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batchnorm", ["frozen", "per-task"])
def test_a_sparse_export_gives_the_same_logits(name: str, batchnorm: str) -> None:
    learner = PackNet(NETWORKS[name](), keep_ratio=0.3, batchnorm=batchnorm)
    loop = loop_of(learner, partial(Adam, lr=0.02))
    for t in range(2):
        loop.learn(task(t))
    x = torch.rand(5, *SHAPE)
    for t in range(2):
        sparse = learner.export(t, sparse=True)
        with torch.no_grad():
            assert torch.equal(sparse(x), learner.eval()(x, t))
            assert torch.equal(copy.deepcopy(sparse)(x), learner(x, t))
        stored = [tensor for tensor in sparse.state_dict().values() if tensor.layout == torch.sparse_coo]
        used = [used_by(owner, t + 1) for owner in learner.owners.values()]
        weights = [weight[mask] for weight, mask in zip(learner.weights().values(), used, strict=True)]
        assert [tensor._nnz() for tensor in stored] == [int((weight != 0).sum()) for weight in weights]
        assert {tuple(tensor.shape) for tensor in stored} == {tuple(mask.shape) for mask in used}
        dense = {id(p): p for p in sparse.parameters()}
        assert not {tuple(p.shape) for p in dense.values()} & {
            tuple(mask.shape) for mask in used
        }  # nothing is kept twice


# ---- what it cannot work with ------------------------------------------------------------------------------


def test_layers_that_were_frozen_before_stay_as_they_are() -> None:
    network = minicl.mlp(8, 9, 7)
    network[1].requires_grad_(False)
    first = network[1].weight.clone()
    learner = PackNet(network)
    assert list(learner.owners) == ["3"]
    loop = loop_of(learner, partial(SGD, lr=0.1, weight_decay=0.1))
    loop.learn(task(0))
    loop.learn(task(1))
    assert torch.equal(network[1].weight, first)


def test_a_backbone_moved_alone_is_refused() -> None:
    learner = learned(PackNet(minicl.mlp(8, 5)), 1)
    learner.backbone.to("meta")
    with pytest.raises(ValueError, match=r"layer '1' is on meta.*owners on cpu.*learner.to\(device\)"):
        learner.learn(task(1), never)
    with pytest.raises(ValueError, match=r"move the learner as a whole"):
        learner(torch.rand(2, *SHAPE), 0)


# ---- what it is worth --------------------------------------------------------------------------------------


def test_many_tasks_are_learned_in_one_network() -> None:
    stream = minicl.permuted("digits", 5, seed=0)
    learner = PackNet(minicl.mlp(64, 128, 128), keep_ratio=[1 / (5 - k) for k in range(5)], retrain_epochs=2)
    result = minicl.run(learner, stream, epochs=4, optimizer=partial(Adam, lr=0.01))
    assert result.average_accuracy > 0.93
    assert result.forgetting == 0.0
    assert result.capacity["free"] == 0
