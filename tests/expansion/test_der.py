"""Dynamically Expandable Representation: equations, frozen extractors, the classifier on a balanced memory, masks."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import loops
import pytest
import torch
from loops import OPTIMIZERS, Loop, answer, same_bits, small_tasks, state
from torch import Tensor, nn

import minicl
from minicl.expansion import der
from minicl.expansion.der import auxiliary_targets, sparsity

X = torch.linspace(0, 1, 5 * 36).view(5, 1, 6, 6)


def make(**settings: Any) -> minicl.DER:
    torch.manual_seed(0)
    return minicl.DER(minicl.mlp(36, 12, 8), **{"budget": 12, "balance_epochs": 3, **settings})


def cnn(**settings: Any) -> minicl.DER:
    torch.manual_seed(0)
    return minicl.DER(minicl.cnn(1, 6, 5), **{"budget": 12, "balance_epochs": 3, **settings})


def features(learner: minicl.DER, task_id: int | None = None) -> list[Tensor]:
    learner.eval()
    return [part.detach() for part in learner.features_of_each(X, task_id)]


# ---- the equations ---------------------------------------------------------------------------------------------------


def test_old_classes_are_one_for_the_auxiliary_classifier() -> None:
    y = torch.tensor([0, 5, 3, 4, 6, 2])
    assert auxiliary_targets(y, 4).tolist() == [0 if c < 4 else c - 4 + 1 for c in y.tolist()]
    assert auxiliary_targets(y, 0).tolist() == [c + 1 for c in y.tolist()]
    soft = torch.softmax(torch.randn(3, 6), 1)
    found = auxiliary_targets(soft, 4)
    assert found.shape == (3, 3)
    for row, given in zip(found.tolist(), soft.tolist(), strict=True):
        assert row == pytest.approx([sum(given[:4]), *given[4:]])
    assert torch.equal(auxiliary_targets(nn.functional.one_hot(y, 7).float(), 4).argmax(1), auxiliary_targets(y, 4))


def test_the_sparsity_counts_layers_by_their_weights() -> None:
    masks = [torch.rand(4, dtype=torch.float64), torch.rand(5, dtype=torch.float64), torch.rand(2, dtype=torch.float64)]
    kernels, n_inputs = [9.0, 9.0, 4.0], 3
    kept = size = 0.0
    below = [1.0] * n_inputs
    for mask, k in zip(masks, kernels, strict=True):
        for a, b in itertools.product(below, mask.tolist()):
            kept += k * a * b
            size += k
        below = mask.tolist()
    assert sparsity(masks, n_inputs, kernels).item() == pytest.approx(kept / size)
    assert sparsity([torch.ones(3), torch.ones(2)], 5, [1.0, 1.0]) == 1
    assert sparsity([torch.zeros(3), torch.ones(2)], 5, [1.0, 1.0]) == 0


@pytest.mark.parametrize("scenario", ["class", "domain", "task"])
def test_the_loss_by_hand(scenario: str) -> None:
    learner, tasks = make(aux=0.7), small_tasks(scenario, outputs=3)
    Loop(learner).learn(tasks[0])
    checked = []

    def fit(epochs: int | None = None, tasks: Any = None) -> None:
        if epochs is not None:
            return
        Loop(learner, epochs=1).fit(task)
        learner.train()
        x, y = task.train.x, task.train.y
        task_id = 1 if scenario == "task" else None
        parts = [learner.extractors[str(t)](x) for t in (0, 1)]
        head = learner.heads["1"] if scenario == "task" else learner.heads.alone(None)
        logits = head(torch.cat(parts, 1))
        assert logits.shape[1] == (6 if scenario == "class" else 3)
        targets = torch.tensor([max(0, c - 2) for c in y.tolist()]) if scenario == "class" else y
        auxiliary = learner.auxiliary["1"]
        assert auxiliary.out_features == (4 if scenario == "class" else 3)
        expected = nn.functional.cross_entropy(logits, y)
        expected = expected + 0.7 * nn.functional.cross_entropy(auxiliary(parts[1]), targets)
        torch.testing.assert_close(learner.loss(x, y, task_id), expected)
        checked.append(True)

    task = tasks[1]
    learner.learn(task, fit)
    assert checked
    assert not learner.auxiliary


# ---- extractors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_finished_extractors_are_exact(scenario: str, optimizer: loops.Make) -> None:
    """Bit for bit, after every step of what follows, also of the classifier's own training."""
    learner, tasks = make(budget=40), small_tasks(scenario)
    kept: list[Tensor] = []

    def watch() -> None:
        for found, then in zip(
            learner.features_of_each(X, None if scenario != "task" else task.id), kept, strict=False
        ):
            assert torch.equal(found, then)

    loop = Loop(learner, optimizer, watch=watch, set_to_none=False)
    for task in tasks:
        loop.learn(task)
        assert same_bits(features(learner, task.id if scenario == "task" else None)[: len(kept)], kept)
        kept = features(learner, task.id if scenario == "task" else None)
    assert len(kept) == 3
    assert not torch.equal(kept[0], kept[1])


def test_an_extractor_starts_from_the_last_one() -> None:
    for weight in (None, 0.0):
        learner, tasks = make(sparsity=weight), small_tasks("class")
        Loop(learner).learn(tasks[0])
        learner.prepare(tasks[1])

        def fit(epochs: int | None = None, learner: minicl.DER = learner, **_: Any) -> None:
            if epochs is not None:  # of the classifier alone
                return
            before, now = learner.extractors["0"], learner.extractors["1"]
            one, two = before[1].weight, now[1].weight
            kept = learner.tasks[0].notes.get("kept", [list(range(12)), list(range(8))])
            assert torch.equal(two[kept[0]], one)
            assert torch.equal(now[3].weight[kept[1]][:, kept[0]], before[3].weight)
            assert torch.equal(now[3].bias[kept[1]], before[3].bias)
            assert two.shape == (12, 36)

        learner.learn(tasks[1], fit)


def test_the_classifier_reads_new_features_and_starts_from_its_old_rows() -> None:
    learner, tasks = make(), small_tasks("class")
    Loop(learner).learn(tasks[0])
    before = learner.heads["0"].weight.detach().clone()
    at_start = answer(learner, X)

    def fit(*_: Any, **__: Any) -> None:
        assert learner.heads["0"].weight.shape == learner.heads["1"].weight.shape == (2, 16)
        assert torch.equal(learner.heads["0"].weight[:, :8], before)
        assert not learner.heads["0"].weight[:, 8:].any()
        assert learner.heads["1"].weight[:, 8:].any()
        torch.testing.assert_close(answer(learner, X)[:, :2], at_start)

    learner.balance_epochs = 0
    learner.learn(tasks[1], fit)


def test_tasks_and_memory_are_one_set_of_samples() -> None:
    """As in the paper: each sample of both once an epoch."""
    learner, tasks = make(), small_tasks("class")
    seen: list[tuple[int, int | None]] = []

    def fit(task: minicl.Task, epochs: int | None = None, tasks: Any = None) -> None:
        seen.append((sum(len(t.train) for t in tasks or [task]), epochs))
        Loop(learner, epochs=1).fit(task, epochs, tasks)

    for task in tasks:
        learner.learn(task, partial(fit, task))
    assert seen == [(20, None), (32, None), (12, 3), (32, None), (12, 3)]
    assert torch.bincount(learner.memory.y).tolist() == [2] * 6


def test_the_classifier_alone_is_trained_on_a_balanced_memory() -> None:
    learner, tasks = make(temperature=4.0), small_tasks("class")
    Loop(learner).learn(tasks[0])
    calls: list[str] = []
    trained: list[Tensor] = []

    def fit(epochs: int | None = None, tasks: Any = None) -> None:
        if epochs is None:
            Loop(learner).fit(task, None, tasks)
            trained.extend(learner.heads[name].weight.detach().clone() for name in learner.heads)
            return
        (memory,) = tasks
        drawn_anew = [learner.heads[name].weight for name in learner.heads]
        assert not any(torch.equal(now, then) for now, then in zip(drawn_anew, trained, strict=True))
        assert torch.bincount(memory.train.y).tolist() == [3, 3, 3, 3]
        before = state(learner)
        x, y = memory.train.x, memory.train.y
        learner.train()
        plain = learner.heads.alone(None)(learner.eval().features(x, None).detach())
        learner.train()
        torch.testing.assert_close(learner.loss(x, y), nn.functional.cross_entropy(plain / 4.0, y))
        Loop(learner, partial(torch.optim.AdamW, lr=0.02, weight_decay=0.5), set_to_none=False).fit(task, epochs, tasks)
        moved = {name for name, tensor in state(learner).items() if not torch.equal(tensor, before[name])}
        moved -= {name for name in moved if name.startswith("auxiliary")}  # which nobody reads any more
        assert moved == {f"heads.{t}.{kind}" for t in (0, 1) for kind in ("weight", "bias")}
        calls.append("balanced")

    task = tasks[1]
    learner.learn(task, fit)
    assert calls == ["balanced"]


def test_running_statistics_stand_still_while_the_classifier_is_trained() -> None:
    torch.manual_seed(0)
    learner = minicl.DER(minicl.mlp(36, 8, batchnorm=True), budget=12, balance_epochs=2)
    tasks = small_tasks("class")
    Loop(learner).learn(tasks[0])
    before: list[dict[str, Tensor]] = []

    def fit(epochs: int | None = None, given: Any = None, **kwargs: Any) -> None:
        if epochs is not None:
            before.append(state(learner.extractors["1"]))
        Loop(learner).fit(tasks[1], epochs, kwargs["tasks"])

    learner.learn(tasks[1], fit)
    assert same_bits(before[0], state(learner.extractors["1"]))


def test_with_task_ids_it_is_a_progressive_network_without_laterals() -> None:
    learner, tasks = make(), small_tasks("task")
    Loop(learner).learn(*tasks)
    assert len(learner.memory) == 0
    learner.eval()
    for task_id in range(3):
        networks = [learner.extractors[str(t)] for t in range(task_id + 1)]
        expected = learner.heads[str(task_id)](torch.cat([network(X) for network in networks], 1))
        assert torch.equal(learner(X, task_id), expected)


def test_what_was_given_up_is_read_by_nobody() -> None:
    learner, tasks = make(), small_tasks("task")
    for task in tasks:
        learner.prepare(task)
    Loop(learner).learn(tasks[2], tasks[0])
    assert learner.reads(2) == [2]
    assert learner.reads(0) == [2, 0]
    assert learner.heads["0"].in_features == 16
    learner.forget(0)
    assert "0" not in learner.extractors
    learner.forget(2)
    assert "2" not in learner.extractors


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make, cnn])
def test_masks_scale_channels_as_they_anneal(make: Any) -> None:
    """In training the output of each layer is multiplied by sigma(s e), in evaluation by 1[e > 0]."""
    learner, (task,) = make(sparsity=0.5, s_max=100.0), small_tasks("class", n=1)
    checked = []

    def fit() -> None:
        network, scores = learner.extractors["0"], learner.scores["0"]
        layers = [m for m in network if isinstance(m, (nn.Linear, nn.Conv2d))]
        with torch.no_grad():
            scores[0] = -3.0
        for progress, s in ((0.0, 1 / 100.0), (0.25, 0.75 / 100 + 0.25 * 100), (1.0, 100.0)):
            learner.before_step(progress)
            for training in (True, False):
                learner.train(training)
                parts = scores.detach().split([len(layer.weight) for layer in layers])
                masks = [torch.sigmoid(s * e) if training else (e > 0).float() for e in parts]
                h, level = X, 0
                bare = nn.Sequential(*network)
                hooks = [layer._forward_hooks.copy() for layer in layers]
                for layer in layers:
                    layer._forward_hooks.clear()
                for module in bare:
                    h = module(h)
                    if module in layers:
                        h = h * masks[level].view(-1, *[1] * (h.ndim - 2))
                        level += 1
                for layer, kept in zip(layers, hooks, strict=True):
                    layer._forward_hooks.update(kept)
                torch.testing.assert_close(learner.features(X, None), h)
                if training:
                    x, y = task.train.x, task.train.y
                    sizes = zip(layers, learner_in, strict=True)
                    kernels = [layer.weight.numel() / (len(layer.weight) * n) for layer, n in sizes]
                    plain = nn.functional.cross_entropy(learner(x), y)
                    expected = plain + 0.5 * sparsity(masks, learner_in[0], kernels)
                    torch.testing.assert_close(learner.loss(x, y), expected)
        checked.append(True)
        Loop(learner).fit(task)

    layers = [m for m in learner.template.network if isinstance(m, (nn.Linear, nn.Conv2d))]
    learner_in = [layers[0].weight.shape[1], *(len(layer.weight) for layer in layers[:-1])]
    learner.learn(task, fit)
    assert checked


@pytest.mark.parametrize("make", [make, cnn])
@pytest.mark.parametrize("scenario", ["class", "task"])
def test_pruning_cuts_what_the_masks_leave_out(make: Any, scenario: str) -> None:
    learner, tasks = make(sparsity=0.0), small_tasks(scenario)
    Loop(learner).learn(tasks[0])
    first = state(learner.extractors["0"])
    found: list[Tensor] = []
    masks: list[Tensor] = []

    def fit(epochs: int | None = None, tasks: Any = None) -> None:
        if epochs is None:
            Loop(learner).fit(task, None, tasks)
            with torch.no_grad():
                learner.scores["1"][::3] = -2.0
                learner.scores["1"][1::3] = 2.0
            masks.extend(learner.hard_masks(learner.tasks[1]))
            found.append(answer(learner, X, 1 if scenario == "task" else None))

    task = tasks[1]
    learner.balance_epochs = 0
    learner.learn(task, fit)
    network = learner.extractors["1"]
    layers = [m for m in network if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert [len(layer.weight) for layer in layers] == [int(mask.sum()) for mask in masks]
    assert sum(len(layer.weight) for layer in layers) < sum(len(mask) for mask in masks)
    torch.testing.assert_close(answer(learner, X, 1 if scenario == "task" else None), found[0])
    assert learner.tasks[1].notes["width"] == features(learner, 1 if scenario == "task" else None)[-1].shape[1]
    assert same_bits(first, state(learner.extractors["0"]))
    report = learner.capacity()
    assert report["extractors"][1]["bytes"] == sum(t.nbytes for t in network.state_dict().values())
    assert report["masked"]
    assert not learner.scores


def test_a_layer_keeps_its_best_channel() -> None:
    learner, (task,) = make(sparsity=1.0), small_tasks("class", n=1)

    def fit() -> None:
        with torch.no_grad():
            learner.scores["0"].fill_(-1.0)
            learner.scores["0"][3] = -0.5
            learner.scores["0"][14] = -0.5

    learner.learn(task, fit)
    assert learner.tasks[0].notes["kept"] == [[3], [2]]


def test_more_sparsity_leaves_fewer_channels() -> None:
    left = []
    for weight in (0.0, 3.0):
        torch.manual_seed(1)
        learner = minicl.DER(minicl.mlp(64, 40, 30), sparsity=weight, s_max=100.0, balance_epochs=1)
        loops.run(
            learner, loops.digits("class", 5, n_train=100)[:2], epochs=6, optimizer=partial(torch.optim.Adam, lr=1e-2)
        )
        left.append(learner.capacity()["extractors"][1]["bytes"])
    assert left[1] < 0.8 * left[0]


def test_what_cannot_be_masked_is_said() -> None:
    learner = minicl.DER(minicl.mlp(36, 8, batchnorm=True), sparsity=0.1)
    assert learner.capacity()["masked"] == []
    assert "BatchNorm1d" in learner.unmasked
    Loop(learner).learn(*small_tasks("class"))
    assert not learner.scores
    assert make(sparsity=0.1).capacity()["masked"] == ["1", "3"]
    assert make().capacity()["masked"] == []


# ---- what breaks off -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1])
def test_what_breaks_off_after_pruning_leaves_no_trace(stop: int) -> None:
    """Also where the classifier was being trained, on a memory that had the new samples already."""
    learner, tasks = make(sparsity=0.0), small_tasks("class")
    Loop(learner).learn(*tasks[:2])
    learner.prepare(tasks[2])
    before, then = state(learner), features(learner)
    calls = itertools.count()

    def fit(epochs: int | None = None, given: Any = None, **kwargs: Any) -> None:
        Loop(learner).fit(tasks[2], epochs, kwargs["tasks"])
        if next(calls) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn(tasks[2], fit)
    assert same_bits(before, state(learner))
    assert same_bits(then, features(learner))
    Loop(learner).learn(tasks[2])
    assert learner.learned == [0, 1, 2]


def test_the_name_is_told_apart() -> None:
    assert der.__doc__ is not None
    assert der.__doc__.splitlines()[0].endswith("not Dark Experience Replay (that is `DERpp`).")
