"""PackNet: its equations against slow formulas, promise 1 bit for bit, each trap, each error."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from functools import partial
from math import ceil, log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import minicl
from minicl.isolation.frozen import FrozenEntries
from minicl.isolation.packnet import (
    PackNet,
    keep_mask,
    owned_by,
    prunable,
    total_mask,
    trainable,
    used_by,
)

SGD, Adam, AdamW, RMSprop = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop


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
    torch.manual_seed(0)
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


@pytest.mark.parametrize("keep_ratio", [0, 0.0, -0.5, 1.0001, float("nan"), True, "half", None])
def test_a_share_is_more_than_0_and_at_most_1(keep_ratio: object) -> None:
    with pytest.raises(ValueError, match=r"keep_ratio is .*allowed: a share in \(0, 1\]"):
        PackNet(minicl.mlp(4, 3), keep_ratio=keep_ratio)
    if isinstance(keep_ratio, (int, float)):
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


# ---- frozen entries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_held_entries_keep_their_bits_and_lose_their_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(6, 5).to(dtype))
    parameter.data[0, :2] = torch.tensor([0.0, -0.0], dtype=dtype)
    entries = torch.rand(6, 5) < 0.5
    entries[0, :2] = True
    before, held = parameter.detach().clone(), FrozenEntries()
    held.hold(parameter, entries)
    gradient = torch.randn(6, 5).to(dtype)
    gradient[entries] = torch.nan
    parameter.grad = gradient.clone()
    held.edit_gradients()
    assert torch.equal(parameter.grad, torch.where(entries, 0, gradient))
    with torch.no_grad():
        parameter.copy_(torch.randn(6, 5))
        parameter[entries] = torch.inf
    after = parameter.detach().clone()
    held.restore()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    assert torch.equal(parameter.detach().view(integers), torch.where(entries, before, after).view(integers))
    held.release()
    with torch.no_grad():
        parameter.fill_(7)
    held.restore()
    assert (parameter == 7).all()


@pytest.mark.parametrize(
    ("optimizer", "spared"),
    [
        (partial(SGD, lr=0.1, momentum=0.9), True),
        (partial(SGD, lr=0.1, momentum=0.9, nesterov=True), True),
        (partial(Adam, lr=0.1), True),
        (partial(Adam, lr=0.1, amsgrad=True), True),
        (partial(RMSprop, lr=0.1, momentum=0.9, centered=True), True),
        (partial(AdamW, lr=0.1), False),  # its weight decay
        (partial(SGD, lr=0.1, weight_decay=0.1), False),
        (partial(Adam, lr=0.1, eps=0.0), False),  # 0 / 0
        (partial(torch.optim.Adagrad, lr=0.1), False),  # not known to stand still
        (partial(type("Mine", (SGD,), {}), lr=0.1), False),
    ],
)
def test_restoring_is_spared_only_where_nothing_can_move(optimizer: object, spared: bool) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(20, 10))
    stepper, held = optimizer([parameter]), FrozenEntries()  # type: ignore[operator]
    for _ in range(2):  # momentum of a task before
        parameter.grad = torch.randn(20, 10)
        stepper.step()
    entries = torch.rand(20, 10) < 0.5
    held.hold(parameter, entries)
    before = parameter.detach().clone()
    for _ in range(3):
        parameter.grad = torch.randn(20, 10)
        held.edit_gradients()
        held.watch(stepper)
        assert held._still == spared
        stepper.step()
        if spared:
            assert torch.equal(parameter[entries], before[entries])  # without restoring
        held.restore()
        assert torch.equal(parameter[entries], before[entries])
        assert (parameter[~entries] != before[~entries]).all()


def test_a_state_that_is_loaded_in_the_middle_of_a_task_moves_nothing() -> None:
    torch.manual_seed(0)
    learner = PackNet(minicl.mlp(8, 9, 7))
    weight, seen = learner.backbone[1].weight, []

    def fit(epochs: int | None = None) -> None:
        optimizer = learner.protect(SGD(learner.parameters(), lr=0.1, momentum=0.9))
        for _ in range(3):
            before = weight.detach().clone()
            optimizer.zero_grad()
            learner.loss(task(1).train.x, task(1).train.y, learner._current).backward()
            optimizer.step()
            state = optimizer.state_dict()
            for value in state["state"].values():
                value["momentum_buffer"] = torch.ones_like(value["momentum_buffer"])
            optimizer.load_state_dict(state)
            owned = learner.owners["1"] > 0
            seen.append(torch.equal(weight[owned], before[owned]))

    for t in range(3):
        learner.learn(task(t), fit)
    assert seen == [True] * 18


# ---- promise 1, bit for bit --------------------------------------------------------------------------------


class Residual(nn.Module):
    """A small network with everything nested: convolutions, a shortcut, norms, a projection."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.block = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(2, channels), nn.PReLU())
        self.up = nn.ConvTranspose2d(channels, 2, 2, stride=2)
        self.out = nn.Linear(2 * 32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.out(self.up(x + self.block(x)).flatten(1))


class Attention(nn.Module):
    """A transformer encoder over the two rows of an image."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.place = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.flatten(1).view(len(x), 2, 4) + self.place).flatten(1)


class Words(nn.Module):
    """Embedding, recurrence, a list of parameters, and a running mean that is updated in training."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.recurrent = nn.LSTM(4, 3, batch_first=True)
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))])
        self.register_buffer("mean", torch.zeros(6))
        self.out = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.recurrent(self.words((x.flatten(1) * 4.9).long()))[0][:, -2:].flatten(1)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return self.out((h - self.mean) * self.scales[0] + self.scales[1])


SHAPE = (1, 2, 4)
NETWORKS = {
    "plain": lambda: minicl.mlp(8, 9, 7),
    "no biases, dropout": lambda: minicl.mlp(8, 9, 7, bias=False, dropout=0.3),
    "batchnorm": lambda: minicl.mlp(8, 9, 7, batchnorm=True, dropout=0.2),
    "convolutions": lambda: minicl.cnn(1, 4, pool=1, batchnorm=True),
    "residual": Residual,
    "attention": Attention,
    "words": Words,
    "one dimension": lambda: nn.Sequential(
        *(nn.Flatten(2), nn.Conv1d(1, 3, 3), nn.InstanceNorm1d(3, track_running_stats=True)),
        *(nn.ReLU(), nn.ConvTranspose1d(3, 2, 2), nn.Flatten()),
    ),
    "three dimensions": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 3, (1, 2, 2)), nn.Tanh()),
        *(nn.ConvTranspose3d(3, 2, 1), nn.Flatten()),
    ),
}
OPTIMIZERS = [
    partial(SGD, lr=0.1),
    partial(SGD, lr=0.05, momentum=0.9),
    partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    partial(Adam, lr=0.02),
    partial(Adam, lr=0.02, weight_decay=0.1, amsgrad=True),
    partial(AdamW, lr=0.02, weight_decay=0.3),
    partial(RMSprop, lr=0.01, momentum=0.5),
    partial(RMSprop, lr=0.01, weight_decay=0.1),
]


def task(task_id: int, n: int = 12, outputs: int = 3, shape: tuple[int, ...] = SHAPE) -> minicl.Task:
    generator = torch.Generator().manual_seed(1000 + task_id)
    parts = [
        (torch.rand(m, *shape, generator=generator), torch.randint(outputs, (m,), generator=generator))
        for m in (n, 6, 6)
    ]
    return minicl.Task(task_id, outputs, *parts)


class OwnLoop:
    """A loop as a user writes it: one optimiser for all tasks or a new one for each call, and `protect`."""

    def __init__(self, learner: PackNet, optimizer: object, reuse: bool, set_to_none: bool, batch: int = 6) -> None:
        self.learner, self.make, self.reuse, self.set_to_none, self.batch = (
            learner,
            optimizer,
            reuse,
            set_to_none,
            batch,
        )
        self.optimizer = None
        self.data: minicl.Task | None = None

    def __call__(self, epochs: int | None = None) -> None:
        learner, data = self.learner, self.data
        if self.optimizer is None or not self.reuse:
            self.optimizer = learner.protect(self.make(learner.parameters()))  # type: ignore[operator]
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        new = [p for p in learner.heads.parameters() if id(p) not in known]
        if new:
            self.optimizer.add_param_group({"params": new})
        learner.train()
        for x, y in zip(data.train.x.split(self.batch), data.train.y.split(self.batch), strict=True):
            learner.before_step(0.0)
            self.optimizer.zero_grad(set_to_none=self.set_to_none)
            learner.loss(x, y, data.id).backward()
            self.optimizer.step()

    def learn(self, data: minicl.Task) -> None:
        self.data = data
        self.learner.learn(data, self)


def answers(learner: PackNet, x: Tensor, tasks: list[int]) -> list[Tensor]:
    """Logits of every task, with and without gradients: attention has a code path of its own for the latter."""
    learner.eval()
    with torch.no_grad():
        quick = [learner(x, t) for t in tasks]
    return [*quick, *(learner(x, t).detach() for t in tasks)]


@pytest.mark.parametrize("seed", range(220))
def test_no_finished_task_changes_by_a_bit(seed: int, tmp_path: object) -> None:
    choose = random.Random(seed)
    torch.manual_seed(seed)
    name = list(NETWORKS)[seed % len(NETWORKS)]
    backbone = NETWORKS[name]()
    learner = PackNet(
        backbone,
        keep_ratio=choose.choice([0.2, 0.5, [0.5, 0.3, 0.9, 1.0], lambda number, layer: 1 / (number + 1)]),
        retrain_epochs=choose.choice([None, 0, 2]),
        batchnorm=choose.choice(["frozen", "per-task"]),
    )
    optimizer, reuse, set_to_none = choose.choice(OPTIMIZERS), choose.random() < 0.5, choose.random() < 0.5
    by_run, reload_after = choose.random() < 0.25, choose.choice([None, 0, 1])
    loop = OwnLoop(learner, optimizer, reuse, set_to_none)
    x = torch.rand(5, *SHAPE)
    was: dict[int, list[Tensor]] = {}
    ids = choose.sample(range(10), 3)
    for task_id in ids:
        if by_run:
            minicl.run(learner, [task(task_id)], epochs=1, batch_size=6, optimizer=optimizer, seed=seed)
        else:
            loop.learn(task(task_id))
        was[task_id] = answers(learner, x, [task_id])
        if ids.index(task_id) == reload_after:
            learner.save(tmp_path / "learner")
            kept = {} if not callable(learner.keep_ratio) else {"keep_ratio": learner.keep_ratio}
            learner = PackNet.load(tmp_path / "learner", NETWORKS[name](), **kept)
            loop = OwnLoop(learner, optimizer, reuse, set_to_none)
        learner.train()
        backbone.train()  # whoever does this must not move running statistics
        if choose.random() < 0.5:
            learner(x, choose.choice(learner.learned))
        for earlier, logits in was.items():
            for now, then in zip(answers(learner, x, [earlier]), logits, strict=True):
                assert torch.equal(now, then), f"{name}: task {earlier} after task {task_id}"
    for earlier, logits in was.items():
        exported = learner.export(earlier)
        with torch.no_grad():
            assert torch.equal(exported(x), logits[0])
        assert torch.equal(exported(x), logits[1])


def test_the_reference_changes_when_nothing_is_protected() -> None:
    """The test above can fail: without `protect`, the same loop moves what earlier tasks own."""
    torch.manual_seed(0)
    learner = PackNet(minicl.mlp(8, 9, 7))
    loop = OwnLoop(learner, partial(SGD, lr=0.1, momentum=0.9), True, True)
    loop.learn(task(0))
    x = torch.rand(5, *SHAPE)
    before = answers(learner, x, [0])[0]
    seen = []

    def fit(epochs: int | None = None) -> None:
        optimizer = SGD(learner.parameters(), lr=0.1)
        learner.loss(task(1).train.x, task(1).train.y, 1).backward()
        optimizer.step()
        seen.append(torch.equal(answers(learner, x, [0])[0], before))

    learner.learn(task(1), fit)
    assert seen == [False, False]
    assert torch.equal(answers(learner, x, [0])[0], before)  # put right when the task ends, all the same


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
    torch.manual_seed(0)
    learner = PackNet(make(), keep_ratio=[0.5, 0.25], retrain_epochs=0, batchnorm=batchnorm)  # type: ignore[operator]
    loop = OwnLoop(learner, partial(AdamW, lr=0.01), True, False, batch=4)
    x = torch.rand(2, 3, 32, 32)
    loop.learn(task(0, 4, 2, (3, 32, 32)))
    before = answers(learner, x, [0])
    loop.learn(task(1, 4, 2, (3, 32, 32)))
    assert all(torch.equal(a, b) for a, b in zip(answers(learner, x, [0]), before, strict=True))
    exported = learner.export(0)
    assert torch.equal(exported(x), before[1])
    dense = dict(learner.backbone.named_parameters())
    owned = {name: owned_by(learner.owners[layer], 2) for layer, name in learner._names.items()}
    assert all((dense[name][mask] != 0).any() for name, mask in owned.items())  # the second task learned something


# ---- the procedure -----------------------------------------------------------------------------------------


def test_train_prune_retrain_freeze() -> None:
    torch.manual_seed(0)
    backbone = minicl.mlp(8, 20, 10)
    learner = PackNet(backbone, keep_ratio=[0.5, 0.25, 0.25], retrain_epochs=3)
    calls: list[int | None] = []
    free = {"1": 160, "3": 200}
    for number, share in ((1, 0.5), (2, 0.25), (3, 0.25)):
        seen: list[dict[str, Tensor]] = []
        loop = OwnLoop(learner, partial(AdamW, lr=0.05), False, True)
        loop.data = task(number)

        def fit(epochs: int | None = None, seen: list = seen, loop: OwnLoop = loop) -> None:
            calls.append(epochs)
            weights = {"1": backbone[1].weight, "3": backbone[3].weight}
            seen.append({layer: w.detach().clone() for layer, w in weights.items()})
            loop()
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
    torch.manual_seed(0)
    dark = task(1)
    for part in (dark.train, dark.valid, dark.test):
        part.x[:, :, 0] = 0  # half of the pixels are always dark
    learner = PackNet(minicl.mlp(8, 10, 10), keep_ratio=[0.5, 0.9, 0.9, 1.0])
    loop = OwnLoop(learner, partial(Adam, lr=0.05), False, True)
    loop.learn(task(0))
    loop.learn(dark)
    owner = learner.owners["1"]
    assert owned_by(owner, 1)[:, :4].any()
    assert not owned_by(owner, 2)[:, :4].any()
    assert owned_by(owner, 0)[:, :4].sum() + owned_by(owner, 1)[:, :4].sum() == 40
    assert owned_by(owner, 2)[:, 4:].any()
    assert learner.backbone[1].weight[owned_by(owner, 2)].all()
    free = learner.capacity()["free"]
    with torch.no_grad():
        learner.backbone[1].bias.fill_(-100.0)  # every unit is silent now: no weight gets a gradient
        learner.backbone[3].bias.fill_(-100.0)
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
    torch.manual_seed(0)
    learner = PackNet(nn.Sequential(Residual(), nn.LayerNorm(8)))
    packed = set(learner._names.values())
    loop = OwnLoop(learner, partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.1), True, False)

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
    torch.manual_seed(0)
    learner = PackNet(minicl.mlp(8, 9, 7, batchnorm=True), batchnorm="per-task")
    loop = OwnLoop(learner, partial(SGD, lr=0.1), True, False)
    loop.learn(task(0))
    first = {name: tensor.clone() for name, tensor in learner.norms["0"].state_dict().items()}
    loop.data, x = task(1), torch.rand(5, *SHAPE)
    before = answers(learner, x, [0])

    def fit(epochs: int | None = None) -> None:
        loop()
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
    torch.manual_seed(0)
    learner = PackNet(minicl.mlp(8, 9, 7, batchnorm=True), batchnorm="per-task")
    loop = OwnLoop(learner, partial(Adam, lr=0.1, weight_decay=0.1), True, False)
    loop.learn(task(0))
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    learner.loss(task(1).train.x, task(1).train.y % 3, 0).backward()
    loop.optimizer.step()  # momentum and weight decay are waiting
    assert all(torch.equal(before[name], now) for name, now in learner.state_dict().items())


def test_a_task_that_breaks_off_leaves_no_trace_and_can_be_learned_again() -> None:
    torch.manual_seed(0)
    learner = PackNet(minicl.mlp(8, 9, 7, batchnorm=True), batchnorm="per-task", retrain_epochs=1)
    loop = OwnLoop(learner, partial(Adam, lr=0.1), True, True)
    loop.learn(task(0))
    x = torch.rand(5, *SHAPE)
    before = answers(learner, x, [0])

    def breaks(epochs: int | None = None) -> None:
        loop()
        if epochs:
            raise KeyboardInterrupt

    loop.data = task(1)
    with pytest.raises(KeyboardInterrupt):
        learner.learn(task(1), breaks)
    learner.train()
    assert all(torch.equal(a, b) for a, b in zip(answers(learner, x, [0]), before, strict=True))
    assert learner.capacity()["tasks"][1]["finished"] is False
    free = learner.capacity()["free"]
    loop.learn(task(2))  # another first, then the one that broke off
    second = answers(learner, x, [2])
    loop.learn(task(1))
    assert [learner.number(t) for t in (0, 2, 1)] == [1, 2, 3]
    assert learner.capacity()["free"] < free
    for t, logits in ((0, before), (2, second)):
        assert all(torch.equal(a, b) for a, b in zip(answers(learner, x, [t]), logits, strict=True))


def test_free_weights_start_from_zero_whoever_moved_them() -> None:
    learner = learned(PackNet(minicl.mlp(8, 9, 7)), 1)
    for layer, weight in learner._weights().items():
        weight.data[learner.owners[layer] == 0] = torch.nan  # an optimiser without `protect`, between two tasks

    def fit(epochs: int | None = None) -> None:
        for layer, weight in learner._weights().items():
            assert not weight[learner.owners[layer] == 0].any()

    learner.learn(task(1), fit)


def test_weights_that_became_nan_are_refused() -> None:
    learner = PackNet(minicl.mlp(8, 5))
    with pytest.raises(FloatingPointError, match=r"layer '1' holds NaN"):
        learner.learn(task(0), lambda epochs=None: learner.backbone[1].weight.data.fill_(torch.nan))


def test_a_shared_layer_is_one_layer(tmp_path: object) -> None:
    torch.manual_seed(0)

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
    loop = OwnLoop(learner, partial(Adam, lr=0.05), True, True)
    x = torch.rand(5, *SHAPE)
    loop.learn(task(0))
    before = answers(learner, x, [0])
    loop.learn(task(1))
    assert all(torch.equal(a, b) for a, b in zip(answers(learner, x, [0]), before, strict=True))
    exported = learner.export(0)
    assert exported[0].a.weight is exported[0].b.weight is exported[0].words.weight
    assert torch.equal(exported(x), before[1])
    assert torch.equal(learner.export(0, sparse=True)(x), before[1])
    learner.save(tmp_path / "twice")
    with safe_open(tmp_path / "twice", "pt") as file:
        assert [name for name in file.keys() if name.endswith("weight")] == ["backbone.a.weight"]  # noqa: SIM118
    again = PackNet.load(tmp_path / "twice", Twice())
    assert all(torch.equal(a, b) for a, b in zip(answers(again, x, [0]), before, strict=True))


# ---- the traps ---------------------------------------------------------------------------------------------


def test_the_source_s_formula_as_the_forward_pass_erases_earlier_tasks() -> None:
    """theta (.) (1 - m^(1:t)) says what may move; as a network it has lost everything that was learned."""
    torch.manual_seed(0)
    learner = PackNet(minicl.mlp(8, 9, 7))
    OwnLoop(learner, partial(Adam, lr=0.05), True, True).learn(task(0))
    for layer, weight in learner._weights().items():
        assert not trainable(weight.detach(), used_by(learner.owners[layer], 1)).any()


def test_without_a_mask_later_tasks_leak_into_earlier_ones() -> None:
    torch.manual_seed(0)
    learner = PackNet(minicl.mlp(8, 9, 7))
    loop = OwnLoop(learner, partial(Adam, lr=0.05), True, True)
    x = torch.rand(5, *SHAPE)
    loop.learn(task(0))
    before = answers(learner, x, [0])[1]
    loop.learn(task(1))
    assert torch.equal(learner(x, 0), before)
    assert not torch.equal(learner.heads["0"](learner.backbone(x)), before)


def test_answers_never_depend_on_something_kept_from_before() -> None:
    torch.manual_seed(0)
    learner = PackNet(minicl.mlp(8, 9, 7))
    loop = OwnLoop(learner, partial(Adam, lr=0.05), True, True)
    loop.learn(task(0))
    loop.learn(task(1))
    x = torch.rand(5, *SHAPE)
    first = answers(learner, x, [0])[0]
    weight = learner.backbone[1].weight
    weight.data[learner.owners["1"] == 1] += 1.0  # in a way that leaves no mark
    moved = answers(learner, x, [0])[0]
    assert not torch.equal(moved, first)
    weight.data[learner.owners["1"] == 2] += 1.0  # what task 0 does not read
    assert torch.equal(answers(learner, x, [0])[0], moved)
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
    for arguments in (
        {"retrain_epochs": -1},
        {"retrain_epochs": 1.5},
        {"batchnorm": "shared"},
        {"tolerance": 1.0},
        {"min_free": 0},
    ):
        with pytest.raises(ValueError, match=rf"{next(iter(arguments))} is .*allowed"):
            PackNet(network, **arguments)


def never(epochs: int | None = None) -> None:
    raise AssertionError("trained, although the task should have been refused before")


def test_a_share_that_is_missing_or_wrong_is_refused_before_training() -> None:
    learner = learned(PackNet(minicl.mlp(8, 10, 10), keep_ratio=[0.5, 0.5]))
    with pytest.raises(ValueError, match="keep_ratio has 2 values, one a task, and this is task number 3"):
        learner.learn(task(2), never)
    assert list(learner.tasks) == [0, 1]
    assert "2" not in learner.heads
    with pytest.raises(ValueError, match=r"keep_ratio\(1, '1'\) is 1.5"):
        PackNet(minicl.mlp(8, 10), keep_ratio=lambda number, layer: 1.5).learn(task(0), never)
    with pytest.raises(ValueError, match="would keep none of the 80 weights of layer '1'"):
        PackNet(minicl.mlp(8, 10), keep_ratio=0.005).learn(task(0), never)


def test_auto_finds_the_smallest_share_within_the_tolerance_on_validation_data() -> None:
    torch.manual_seed(0)
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
        trained.update({layer: w.detach().clone() for layer, w in learner._weights().items()})

    learner.learn(forbidden, fit)
    share = learner.tasks[0].notes["keep_ratio"]
    assert 0 < share < 0.9

    def accuracy(share: float) -> float:
        network = copy.deepcopy(learner.backbone)
        for layer, name in learner._names.items():
            weight = network.get_parameter(name).data
            weight.copy_(torch.where(keep_mask(trained[layer], share), trained[layer], 0))
        logits = learner.heads["0"](network(first.valid.x))
        return float((logits.argmax(1) == first.valid.y).float().mean())

    goal = accuracy(1.0) - 0.05 - 1e-6
    assert accuracy(share) >= goal
    assert accuracy(share - 1 / 128) < goal
    for layer, weight in learner._weights().items():
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
    torch.manual_seed(0)
    learner = PackNet(nn.Sequential(nn.Flatten(), nn.Linear(8, 300, bias=False)), keep_ratio=0.01, retrain_epochs=0)
    x, example = torch.rand(3, *SHAPE), task(0)
    for t in range(255):
        learner.learn(minicl.Task(t, 2, example=example.example), lambda epochs=None: None)
        learner.backbone[1].weight.data[learner.owners["1"] == t + 1] = t + 1.0  # something of its own
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
    assert loaded._standing == n  # the newest task answers from the raw weights, without a mask


def test_a_learner_without_tasks_can_be_saved(tmp_path: object) -> None:
    learner = PackNet(minicl.mlp(8, 5))
    learner.save(tmp_path / "learner")
    loaded = PackNet.load(tmp_path / "learner", minicl.mlp(8, 5))
    assert torch.equal(loaded.backbone[1].weight, learner.backbone[1].weight)


def test_a_file_of_another_network_is_refused(tmp_path: object) -> None:
    learned(PackNet(minicl.mlp(8, 10))).save(tmp_path / "learner")
    for other in (minicl.mlp(8, 11), minicl.mlp(8, 10, 10), minicl.mlp(8, 10, bias=False)):
        with pytest.raises(ValueError, match="does not fit this backbone"):
            PackNet.load(tmp_path / "learner", other)


def test_an_export_needs_no_minicl_and_holds_no_other_task(tmp_path: object) -> None:
    torch.manual_seed(0)
    learner = PackNet(Residual(), keep_ratio=0.4)
    learner.backbone = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6)
    )
    learner = PackNet(learner.backbone, keep_ratio=0.4)
    loop = OwnLoop(learner, partial(Adam, lr=0.02), True, True)
    for t in range(3):
        loop.learn(task(t))
    x = torch.rand(5, *SHAPE)
    for t in range(3):
        exported = learner.export(t)
        exported[0][0].weight.data += 0.0  # its own memory
        for layer in ("0", "4"):
            alone = exported[0].get_submodule(layer).weight
            used = used_by(learner.owners[layer], t + 1)
            assert not alone[~used].any()
            assert torch.equal(alone[used], learner.backbone.get_submodule(layer).weight[used])
            assert alone.data_ptr() != learner.backbone.get_submodule(layer).weight.data_ptr()
        assert all(p.requires_grad for p in exported.parameters())
    torch.save({"network": learner.export(0), "x": x, "logits": learner.eval()(x, 0)}, tmp_path / "export.pt")
    program = (
        "import sys, torch; sys.modules['minicl'] = None; "
        f"saved = torch.load({str(tmp_path / 'export.pt')!r}, weights_only=False); "
        "torch.set_num_threads(1); assert torch.equal(saved['network'](saved['x']), saved['logits'])"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batchnorm", ["frozen", "per-task"])
def test_a_sparse_export_gives_the_same_logits(name: str, batchnorm: str) -> None:
    torch.manual_seed(0)
    learner = PackNet(NETWORKS[name](), keep_ratio=0.3, batchnorm=batchnorm)
    loop = OwnLoop(learner, partial(Adam, lr=0.02), True, True)
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
        weights = [weight[mask] for weight, mask in zip(learner._weights().values(), used, strict=True)]
        assert [tensor._nnz() for tensor in stored] == [int((weight != 0).sum()) for weight in weights]
        assert {tuple(tensor.shape) for tensor in stored} == {tuple(mask.shape) for mask in used}
        dense = {id(p): p for p in sparse.parameters()}
        assert not {tuple(p.shape) for p in dense.values()} & {
            tuple(mask.shape) for mask in used
        }  # nothing is kept twice


def test_export_asks_for_a_task() -> None:
    with pytest.raises(ValueError, match="no task has been learned"):
        PackNet(minicl.mlp(8, 5)).export(0)
    learner = learned(PackNet(minicl.mlp(8, 5)))
    for task_id in (None, 7, -1):
        with pytest.raises(ValueError, match="allowed: 0, 1"):
            learner.export(task_id)


# ---- what it cannot work with ------------------------------------------------------------------------------


def test_networks_that_cannot_be_packed_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\(Embedding\) has no layer to prune"):
        PackNet(nn.Embedding(3, 4))
    with pytest.raises(ValueError, match="no layer to prune"):
        PackNet(minicl.mlp(8, 5).requires_grad_(False))
    for wrapped in (parametrizations.weight_norm(nn.Linear(8, 5)), parametrizations.spectral_norm(nn.Linear(8, 5))):
        with pytest.raises(ValueError, match=r"layer '1' \(.*Linear\) computes its weight from other parameters"):
            PackNet(nn.Sequential(nn.Flatten(), wrapped))
    with pytest.raises(ValueError, match=r"layer '1' \(LazyLinear\) has no weights yet"):
        PackNet(nn.Sequential(nn.Flatten(), nn.LazyLinear(5)))
    with pytest.raises(ValueError, match=r"layer '1' \(Linear\) has weights of torch.complex64; allowed: float16"):
        PackNet(nn.Sequential(nn.Flatten(), nn.Linear(8, 5, dtype=torch.complex64)))


def test_all_weights_of_attention_are_packed() -> None:
    assert list(prunable(Attention())) == [
        f"encoder.layers.{i}.{name}"
        for i in (0, 1)
        for name in ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")
    ]
    apart = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
    assert list(prunable(apart)) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"]
    assert prunable(nn.Linear(2, 3)) == {"weight": "weight"}


def test_layers_that_were_frozen_before_stay_as_they_are() -> None:
    torch.manual_seed(0)
    network = minicl.mlp(8, 9, 7)
    network[1].requires_grad_(False)
    first = network[1].weight.clone()
    learner = PackNet(network)
    assert list(learner.owners) == ["3"]
    loop = OwnLoop(learner, partial(SGD, lr=0.1, weight_decay=0.1), True, True)
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


def test_only_the_task_scenario() -> None:
    domain = minicl.Task(0, 3, (task(0).train.x, task(0).train.y), scenario="domain")
    with pytest.raises(ValueError, match="must be told the task id"):
        PackNet(minicl.mlp(8, 5)).learn(domain, never)
    learner = learned(PackNet(minicl.mlp(8, 5)))
    for task_id in (None, 5, -1):
        with pytest.raises(ValueError, match="task id"):
            learner(torch.rand(2, *SHAPE), task_id)


# ---- what it is worth --------------------------------------------------------------------------------------


@settings(max_examples=5)
@given(st.integers(0, 100))
def test_the_same_seed_gives_the_same_bits(seed: int) -> None:
    stream = minicl.split("digits", 5, seed=0, n_train=60)[:2]
    runs = [
        minicl.run(PackNet(minicl.mlp(64, 20)), stream, epochs=2, optimizer=partial(Adam, lr=0.01), seed=seed)
        for _ in range(2)
    ]
    assert runs[0].accuracy.tobytes() == runs[1].accuracy.tobytes()
    assert runs[0].forgetting == 0.0
    assert runs[0].backward_transfer == 0.0


def test_many_tasks_are_learned_in_one_network() -> None:
    stream = minicl.permuted("digits", 5, seed=0)
    learner = PackNet(minicl.mlp(64, 128, 128), keep_ratio=[1 / (5 - k) for k in range(5)], retrain_epochs=2)
    result = minicl.run(learner, stream, epochs=4, optimizer=partial(Adam, lr=0.01))
    assert result.average_accuracy > 0.93
    assert result.forgetting == 0.0
    assert result.capacity["free"] == 0
