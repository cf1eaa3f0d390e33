"""Piggyback: its equations against slow formulas, the straight-through gradient by hand, each trap, bytes.

Its promise, over random cases, is tested in test_every_method.py.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import NETWORKS, SHAPE, Attention, Residual
from hypothesis import given
from hypothesis import strategies as st
from loops import ADAM, OPTIMIZERS, Loop, answers, same_bits, small_tasks, state
from safetensors import safe_open
from torch import Tensor, nn

import minicl
from minicl import Piggyback
from minicl.expansion.piggyback import binarize, masked, masked_above, scaled_gradient, ternarize
from minicl.isolation.owners import pack_bits, unpack_bits

TAU = 5e-3

# ---- the equations, against formulas that take their time ------------------------------------------------------------

SCORES = st.lists(st.sampled_from([-1.0, -TAU, -0.0, 0.0, 1e-3, TAU, TAU * (1 + 1e-6), 1e-2, 2.0]), min_size=1)


@given(SCORES)
def test_a_weight_is_on_above_the_threshold_and_off_at_it(scores: list[float]) -> None:
    assert binarize(torch.tensor(scores, dtype=torch.float64), TAU).tolist() == [
        1.0 if s > TAU else 0.0 for s in scores
    ]


@given(SCORES)
def test_three_values(scores: list[float]) -> None:
    expected = [1.0 if s > TAU else -1.0 if s < 0 else 0.0 for s in scores]
    assert ternarize(torch.tensor(scores, dtype=torch.float64), TAU).tolist() == expected


@given(st.lists(st.tuples(st.floats(-2, 2), st.sampled_from([-1.0, 0.0, 1.0])), min_size=1))
def test_masked_is_a_product_entry_by_entry(entries: list[tuple[float, float]]) -> None:
    weight, mask = (torch.tensor(column, dtype=torch.float64) for column in zip(*entries, strict=True))
    assert masked(weight, mask).tolist() == [w * m for w, m in entries]


@pytest.mark.parametrize("three", [False, True])
@pytest.mark.parametrize("how", ["plain", "average", "individual"])
def test_the_straight_through_gradient_by_hand(how: str, three: bool) -> None:
    """Of a linear layer: dL/dW' = (dL/da)^T x, then times W; through the step as if it were not there."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    learner, task = Piggyback(network, gradient=how, ternary=three), small_tasks(n=1, shape=SHAPE)[0]
    learner.prepare(task)
    with torch.no_grad():
        scores = learner.masks.score(0, "1")
        scores.copy_(torch.randn(3, 8) * 0.01)
        network[1].weight[0, 0] = 0.0
        learner.finished.tensors["1.weight"][0, 0] = 0.0
    found: list[Tensor] = []

    def fit() -> None:
        learner.loss(task.train.x, task.train.y, 0).backward()
        found.append(learner.masks.score(0, "1").grad)  # type: ignore[arg-type]

    learner.learn(task, fit)
    weight, bias, head = network[1].weight.detach(), network[1].bias.detach(), learner.heads["0"]
    x, n = task.train.x.flatten(1), len(task.train)
    mask = [[1.0 if s > TAU else -1.0 if three and s < 0 else 0.0 for s in row] for row in scores.tolist()]
    h = x @ (weight * torch.tensor(mask)).T + bias
    p = torch.softmax(h @ head.weight.T + head.bias, 1)
    dh = (p - F.one_hot(task.train.y, 2)) @ head.weight / n
    expected = torch.zeros(3, 8)
    for i in range(3):
        for j in range(8):
            through = sum(float(dh[s, i] * x[s, j]) for s in range(n))
            w = float(weight[i, j])
            size = {"plain": 1.0, "average": float(weight.abs().sum()) / 24, "individual": abs(w)}[how]
            expected[i, j] = through * w / size if w else 0.0
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)
    assert found[0][0, 0] == 0  # a weight that is 0 has no say
    assert (found[0] != 0).sum() > 12


@pytest.mark.parametrize("three", [False, True])
@pytest.mark.parametrize("how", ["plain", "average", "individual"])
def test_mask_and_product_at_once_are_the_equations_bit_for_bit(how: str, three: bool) -> None:
    torch.manual_seed(2)
    weight, upstream = torch.randn(7, 5), torch.randn(7, 5)
    weight[0, 0] = 0.0
    scores = (torch.randn(7, 5) * 0.01).requires_grad_()
    slow = masked(weight, (ternarize if three else binarize)(scores, TAU))
    (gradient,) = torch.autograd.grad(slow, scores, upstream)
    fast = masked_above(weight, scores, TAU, weight, how, three)
    (found,) = torch.autograd.grad(fast, scores, upstream)
    assert same_bits(fast + 0, slow + 0)  # whose zeros have a sign
    assert same_bits(found, scaled_gradient(gradient, weight, how))


def test_where_the_threshold_is_minus_infinity_a_weight_is_on_and_its_score_has_no_say() -> None:
    weight, scores = torch.tensor([1.0, 2.0, 3.0], requires_grad=True), torch.tensor([-9.0, 0.0, 9.0])
    free = torch.tensor([True, False, False])
    thresholds = torch.full((3,), TAU).masked_fill(free, -torch.inf)
    product = masked_above(weight, scores.requires_grad_(), thresholds, weight.detach().masked_fill(free, 0))
    product.sum().backward()
    assert product.tolist() == [1.0, 0.0, 3.0]
    assert scores.grad is not None
    assert weight.grad is not None
    assert scores.grad.tolist() == [0.0, 2.0, 3.0]
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]  # what is owned is held elsewhere


def test_scaled_gradients_of_a_layer_that_is_all_zero() -> None:
    for how in ("plain", "average", "individual"):
        assert not scaled_gradient(torch.zeros(3), torch.zeros(3), how).any()


@given(st.lists(st.lists(st.booleans(), min_size=13, max_size=13), min_size=1, max_size=3), st.integers(1, 13))
def test_bits_come_back(rows: list[list[bool]], n: int) -> None:
    bits = torch.tensor(rows)[:, :n]
    packed = pack_bits(bits)
    expected = [
        [int("".join(str(int(b)) for b in row[i : i + 8]).ljust(8, "0"), 2) for i in range(0, n, 8)]
        for row in bits.tolist()
    ]
    assert packed.tolist() == expected
    assert torch.equal(unpack_bits(packed, n), bits)


# ---- a small workshop ------------------------------------------------------------------------------------------------


def task(task_id: int, samples: int = 12, outputs: int = 3, shape: tuple[int, ...] = SHAPE) -> minicl.Task:
    return small_tasks(ids=[task_id], outputs=outputs, samples=samples, shape=shape, number=task_id)[0]


def trained(make: Any, n: int = 2, **settings: Any) -> Piggyback:
    learner = Piggyback(make(), **settings)
    Loop(learner, epochs=3).learn(*(task(t) for t in range(n)))
    return learner


# ---- what stands still -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_backbone_never_moves(name: str, make: Any) -> None:
    network = NETWORKS[name]()
    before = state(network)
    learner = Piggyback(network)
    loop = Loop(learner, make, set_to_none=False)
    for t in range(2):
        loop.learn(task(t))
        network.train()
        network.requires_grad_(True)  # whoever asks for its gradients
        assert same_bits(before, state(network))
    assert same_bits(
        before,
        {name: tensor for name, tensor in learner.finished.tensors.items()}
        | {name: tensor for name, tensor in state(network).items() if name not in learner.finished.tensors},
    )


def test_running_statistics_stand_still_while_dropout_goes_on() -> None:
    learner = Piggyback(minicl.mlp(8, 9, 7, batchnorm=True, dropout=0.5))
    seen = []

    def fit() -> None:
        learner.train()
        learner.loss(task(0).train.x, task(0).train.y, 0)
        seen.extend((type(m).__name__, m.training) for m in learner.backbone.modules())

    learner.learn(task(0), fit)
    assert ("BatchNorm1d", False) in seen
    assert ("BatchNorm1d", True) not in seen
    assert ("Dropout", True) in seen


def test_scores_of_a_finished_task_are_gone_and_an_old_optimiser_cannot_move_its_mask() -> None:
    learner = Piggyback(minicl.mlp(8, 9, 7))
    loop = Loop(learner, ADAM)  # one for all tasks; Adam moves what has momentum, also without a gradient
    loop.learn(task(0))
    assert not [name for name, _ in learner.named_parameters() if "scores" in name]
    before = learner.masks.of(0)["1"].clone()
    x = torch.rand(5, *SHAPE)
    logits = answers(learner, x, 0)
    loop.learn(task(1), task(2))
    assert torch.equal(learner.masks.of(0)["1"], before)
    assert same_bits(answers(learner, x, 0), logits)


def test_the_reference_changes_when_masks_move() -> None:
    """The tests of the promise can fail: bits turned around are seen."""
    learner = trained(lambda: minicl.mlp(8, 9, 7))
    x = torch.rand(5, *SHAPE)
    before = answers(learner, x, 0)
    learner.masks.of(0)["3"].bitwise_not_()
    assert not same_bits(answers(learner, x, 0), before)


@pytest.mark.parametrize("ternary", [False, True])
def test_masks_are_where_the_scores_ended(ternary: bool) -> None:
    learner = Piggyback(minicl.mlp(8, 9, 7), ternary=ternary)
    loop, seen = Loop(learner, partial(torch.optim.Adam, lr=1e-3), epochs=10), {}

    def fit() -> None:
        loop.fit(task(0))
        seen.update({layer: learner.masks.score(0, layer).detach().clone() for layer in learner.names})

    learner.learn(task(0), fit)
    exported = learner.export(0)
    for layer, scores in seen.items():
        rows = scores.tolist()
        mask = torch.tensor([[1.0 if s > TAU else -1.0 if ternary and s < 0 else 0.0 for s in row] for row in rows])
        assert set(mask.unique().tolist()) == ({-1.0, 0.0, 1.0} if ternary else {0.0, 1.0})
        assert torch.equal(learner.mask(0, layer), mask)
        weight = learner.backbone.get_parameter(f"{layer}.weight")
        assert torch.equal(exported[0].get_parameter(f"{layer}.weight"), weight * mask)
        assert learner.capacity()["layers"][layer] == {"weights": mask.numel(), "tasks": {0: int((mask != 0).sum())}}
    assert learner.capacity()["tasks"][0]["weights"] == sum(int((learner.mask(0, n) != 0).sum()) for n in seen)


@pytest.mark.parametrize(
    "make",
    [
        Attention,
        Residual,
        lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 1, groups=4), nn.ReLU(), nn.Flatten()),
    ],
    ids=["transformer", "residual", "depthwise"],
)
def test_networks_of_many_kinds_learn(make: Any) -> None:
    torch.manual_seed(0)
    learner = Piggyback(make(), gradient="average")
    first = {name: p.clone() for name, p in learner.backbone.named_parameters()}
    one = task(0, samples=40)
    before = []

    def fit() -> None:
        optimizer = learner.protect(torch.optim.Adam(learner.parameters(), lr=2e-3))
        learner.eval()
        for _ in range(60):
            optimizer.zero_grad()
            loss = learner.loss(one.train.x, one.train.y, 0)
            before.append(float(loss.detach()))
            loss.backward()
            optimizer.step()

    learner.learn(one, fit)
    assert before[-1] < before[0] - 0.1
    assert any(row["tasks"][0] < row["weights"] for row in learner.capacity()["layers"].values())
    assert all(torch.equal(first[name], p) for name, p in learner.backbone.named_parameters())


def test_what_is_named_by_hand_has_masks_too() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 6))
    network.register_parameter("table", nn.Parameter(torch.randn(3, 4)))
    assert list(Piggyback(copy.deepcopy(network)).names) == ["1"]
    assert list(Piggyback(network, prunable=["table"]).names) == ["table", "1"]


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ternary", "n"), [(False, 1), (False, 3), (True, 2)])
def test_a_file_holds_a_bit_for_each_weight_and_task(ternary: bool, n: int, tmp_path: Path) -> None:
    learner = trained(lambda: minicl.mlp(8, 51, 33, batchnorm=True), n, ternary=ternary)
    learner.save(tmp_path / "learner")
    whole = (tmp_path / "learner").read_bytes()
    header = int.from_bytes(whole[:8], "little")  # of safetensors: its length, then names and shapes as JSON
    weights = [51 * 8, 33 * 51]
    masks = n * sum(-(-w // 8) for w in weights) * (2 if ternary else 1)
    backbone = 4 * (sum(weights) + 51 + 33 + 4 * (51 + 33)) + 2 * 8  # biases, norms, and how many batches they saw
    heads = n * 4 * (33 * 3 + 3)
    assert len(whole) - 8 - header == masks + backbone + heads
    with safe_open(tmp_path / "learner", "pt") as file:  # each name costs a hundred bytes: all masks have one
        assert [n for n in file.keys() if not n.startswith("backbone.")] == ["heads", "masks.bits"]  # noqa: SIM118
    assert learner.capacity()["extra_bytes"] == masks
    assert learner.capacity()["maskable"] == sum(weights)
    loaded = Piggyback.load(tmp_path / "learner", minicl.mlp(8, 51, 33, batchnorm=True))
    x = torch.rand(5, *SHAPE)
    assert same_bits(answers(loaded, x, *range(n)), answers(learner, x, *range(n)))
    assert loaded.capacity() == learner.capacity()
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_task_that_is_only_prepared_goes_into_a_file_with_its_scores(tmp_path: Path) -> None:
    learner = trained(lambda: minicl.mlp(8, 9, 7), 1)
    learner.prepare(task(1))
    learner.save(tmp_path / "learner")
    loaded = Piggyback.load(tmp_path / "learner", minicl.mlp(8, 9, 7))
    assert same_bits(state(loaded), state(learner))
    Loop(loaded).learn(task(1))
    assert loaded.learned == [0, 1]


def test_forgetting_a_task_takes_its_masks_and_leaves_the_others(tmp_path: Path) -> None:
    learner = trained(lambda: minicl.mlp(8, 9, 7), 3)
    x, bytes_before = torch.rand(5, *SHAPE), learner.capacity()["extra_bytes"]
    before = answers(learner, x, 0, 2)
    learner.forget(1)
    assert learner.capacity()["extra_bytes"] == bytes_before * 2 // 3
    assert same_bits(answers(learner, x, 0, 2), before)
    learner.save(tmp_path / "learner")
    assert same_bits(answers(Piggyback.load(tmp_path / "learner", minicl.mlp(8, 9, 7)), x, 0, 2), before)
    Loop(learner).learn(task(1))
    assert same_bits(answers(learner, x, 0, 2), before)


def test_whether_anyone_has_trained_the_network_is_said() -> None:
    network = minicl.mlp(8, 9, 7)
    assert trained(lambda: copy.deepcopy(network)).capacity()["untrained"] is True
    first = minicl.FineTune(network)
    Loop(first).learn(task(0))
    assert trained(lambda: copy.deepcopy(network)).capacity()["untrained"] is False


def test_the_network_is_the_one_that_was_given_and_not_the_one_that_load_was_given(tmp_path: Path) -> None:
    learner = trained(lambda: minicl.mlp(8, 9, 7))
    learner.save(tmp_path / "learner")
    other = minicl.mlp(8, 9, 7)
    loaded = Piggyback.load(tmp_path / "learner", other)
    assert torch.equal(loaded.finished.tensors["1.weight"], learner.finished.tensors["1.weight"])
    assert torch.equal(other[1].weight, learner.backbone[1].weight)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_networks_without_weights_to_mask_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(Embedding\) has no layer to prune"):
        Piggyback(nn.Embedding(3, 4))
    with pytest.raises(ValueError, match=r"scale is 0\.1; allowed: more than threshold=0\.1"):
        Piggyback(minicl.mlp(8, 9), threshold=0.1, scale=0.1)


# ---- what it is worth ------------------------------------------------------------------------------------------------


def test_masks_over_a_trained_network_learn_other_tasks() -> None:
    stream = minicl.permuted("digits", 3, seed=0)
    first = minicl.FineTune(minicl.mlp(64, 128, 128))
    minicl.run(first, stream[:1], epochs=5, optimizer=partial(torch.optim.Adam, lr=0.005))
    learner = Piggyback(copy.deepcopy(first.backbone), gradient="individual")
    result = minicl.run(learner, stream, epochs=6, optimizer=partial(torch.optim.Adam, lr=1e-3))
    assert result.average_accuracy > 0.85
    assert result.forgetting == 0.0
