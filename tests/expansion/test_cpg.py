"""CPG: its equations against slow formulas, the algorithm step by step, growing bit for bit, each trap, each error.

Its promise on networks that do not grow, over random cases, is tested in test_every_method.py.
"""

from __future__ import annotations

import copy
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import seeds
import torch
import torch.nn.functional as F
from backbones import SHAPE, Attention, Residual, Words, sequential
from hypothesis import given
from hypothesis import strategies as st
from loops import ADAM, OPTIMIZERS, Loop, Make, answers, same_bits, small_tasks, state
from torch import Tensor, nn

import minicl
from minicl import CPG
from minicl.expansion.cpg import picked, sparsity_schedule
from minicl.expansion.widen import wider

# ---- the equations, against formulas that take their time ------------------------------------------------------------


@given(st.integers(0, 30), st.integers(1, 20), st.floats(0, 0.9), st.floats(0, 0.9))
def test_the_sparsity_schedule(step: int, n_steps: int, start: float, end: float) -> None:
    left = 1.0
    for _ in range(3):
        left *= (n_steps - min(step, n_steps)) / n_steps
    assert sparsity_schedule(step, n_steps, start, end) == pytest.approx(left * start + (1 - left) * end)


def test_a_stage_starts_and_ends_where_it_should_and_never_goes_back() -> None:
    path = [sparsity_schedule(n, 40, 0.2, 0.3) for n in range(50)]
    assert path[0] == pytest.approx(0.2)
    assert path[40:] == [0.3] * 10
    assert path == sorted(path)
    assert path[10] - path[0] > 1.5 * (path[20] - path[10]) > 0  # fast at first


@given(st.lists(st.tuples(st.integers(0, 255), st.booleans()), min_size=1), st.integers(1, 255))
def test_a_task_reads_its_own_weights_and_the_earlier_ones_that_it_picks(
    entries: list[tuple[int, bool]], task: int
) -> None:
    owner, mask = torch.tensor([o for o, _ in entries], dtype=torch.uint8), torch.tensor([m for _, m in entries])
    expected = [o == task or (o in range(1, task) and m) for o, m in entries]
    assert picked(owner, mask, task).tolist() == expected


# ---- a small workshop ------------------------------------------------------------------------------------------------


def task(task_id: int, samples: int = 20, outputs: int = 3, shape: tuple[int, ...] = SHAPE) -> minicl.Task:
    return small_tasks(ids=[task_id], outputs=outputs, samples=samples, shape=shape, number=task_id)[0]


def networks(width: float) -> nn.Module:
    return minicl.mlp(8, round(9 * width), round(7 * width), batchnorm=True)


def grown(n: int = 3, make: Make = ADAM, **settings: Any) -> CPG:
    """A learner whose goal is out of reach, so that it grows with each task until it may not."""
    learner = CPG(networks, **{"goal": 1.0, "tolerance": 0.0, "max_width": 2.0, "stage": 0.3, **settings})
    for t in range(n):
        Loop(learner, make, reuse=False).learn(unteachable(t))
    return learner


def unteachable(t: int, samples: int = 20, outputs: int = 3, shape: tuple[int, ...] = SHAPE) -> minicl.Task:
    """A task whose validation samples are one input with two labels: nobody names more than half of them."""
    one = task(t, samples, outputs, shape)
    valid = one.valid.x[:1].repeat(6, *[1] * len(shape)), torch.arange(6) % 2
    return minicl.Task(t, outputs, one.train, valid, one.test)


# ---- the algorithm ---------------------------------------------------------------------------------------------------


def test_train_and_pick_compact_retrain_freeze() -> None:
    """On a network that does not grow: who may move when, and what is kept."""
    torch.manual_seed(0)
    learner = CPG(minicl.mlp(8, 20, 10), stage=0.25, stage_epochs=3, every=1, retrain_epochs=4, tolerance=0.99)
    for number in (1, 2, 3):
        calls: list[int | None] = []
        moments: list[dict[str, Any]] = []
        loop = Loop(learner, partial(torch.optim.Adam, lr=0.01), set_to_none=False, batch=5)  # momentum goes on

        def look() -> dict[str, Any]:
            return {
                "weights": {layer: w.detach().clone() for layer, w in learner.weights().items()},
                "scores": {layer: learner.masks.score(number, layer).detach().clone() for layer in learner.names},  # noqa: B023
            }

        def fit(epochs: int | None = None) -> None:
            calls.append(epochs)  # noqa: B023
            moments.append(look())  # noqa: B023
            loop.fit(task(number), epochs)  # noqa: B023
            moments.append(look())  # noqa: B023

        owners = {layer: owner.clone() for layer, owner in learner.owners.items()}
        learner.learn(task(number), fit)
        assert calls == [None, 3, 3, 3, 4]
        start, trained, pruned, retrained = moments[0], moments[1], moments[-3], moments[-1]
        for layer, owner in owners.items():
            owned = owner != 0
            for moment in moments:  # owned weights work and do not move
                assert torch.equal(moment["weights"][layer][owned], start["weights"][layer][owned])
            assert (trained["weights"][layer][~owned] != start["weights"][layer][~owned]).any()
            assert not (number > 1 and start["weights"][layer][~owned].any())  # free weights start from zero
            first, last = trained["scores"][layer], moments[-2]["scores"][layer]
            assert torch.equal(first, last)  # the mask stands still while it is compacted
            assert (retrained["scores"][layer] == first).all() == (number == 1)
            changed = (first != 0.01) & owned
            assert bool(changed.any()) == (number > 1)
            assert not ((first != 0.01) & ~owned).any()  # a score of a free weight says nothing, and learns nothing
            kept = learner.owners[layer] == number
            n = int((~owned).sum())
            moved = int((trained["weights"][layer][~owned] != 0).sum())  # what never moved from zero is not claimed
            assert int(kept.sum()) == min(n - round(0.75 * n), moved)
            largest = pruned["weights"][layer].abs()[~owned].sort(descending=True).values[: int(kept.sum())]
            assert set(largest.tolist()) <= set(pruned["weights"][layer][kept].abs().tolist())
            assert not retrained["weights"][layer][~owned & ~kept].any()  # released: zero, and held there
            assert torch.equal(learner.owners[layer], torch.where(kept, number, owner).to(torch.uint8))
            mask = learner.masks.stored(number, layer, owner.shape)[0]
            assert torch.equal(mask, retrained["scores"][layer] > learner.threshold)
        assert learner.tasks[number].notes["goal"] is None


def test_a_stage_prunes_gradually_and_follows_the_schedule() -> None:
    learner = CPG(minicl.mlp(8, 30), stage=0.5, stage_epochs=4, every=2, tolerance=0.99, retrain_epochs=0)
    free: list[float] = []
    loop = Loop(
        learner,
        partial(torch.optim.SGD, lr=0.1),
        batch=4,
        watch=lambda: free.append(float((learner.backbone[1].weight == 0).float().mean())),
    )
    loop.learn(task(0))
    stage = free[-20:]  # five steps an epoch, four epochs
    expected = [
        round(sparsity_schedule((n // 5) + (n % 5) / 4, 4, 0.0, 0.5) * 240) / 240 if n % 2 else None for n in range(20)
    ]
    for n, share in enumerate(expected):
        assert stage[n] == pytest.approx(share if share is not None else (stage[n - 1] if n else 0.0), abs=1e-6)
    assert int((learner.owners["1"] == 1).sum()) == 120


def test_a_stage_that_misses_the_goal_is_undone_and_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = CPG(minicl.mlp(8, 30, batchnorm=True), goal=0.7, tolerance=0.0, stage=0.1, retrain_epochs=0)
    told = iter([0.9, 0.9, 0.8, 0.7, 0.69])  # after training, twice; then after each stage
    monkeypatch.setattr(learner, "accuracy", lambda task: next(told))
    seen: list[dict[str, Tensor]] = []
    loop = Loop(learner, reuse=False)

    def fit(epochs: int | None = None) -> None:
        seen.append(state(learner))
        loop.fit(task(0), epochs)

    learner.learn(task(0), fit)
    assert len(seen) == 4
    assert int((learner.owners["1"] == 1).sum()) == 240 - 48  # two stages held
    after = state(learner)
    for name in ("backbone.1.weight", "backbone.2.running_mean", "backbone.1.bias"):
        assert torch.equal(seen[-1][name], after[name]), name


def test_retraining_that_harms_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    for last, undone in ((0.5, True), (0.9, False)):
        learner = CPG(minicl.mlp(8, 12), goal=0.7, stage=0.9, retrain_epochs=2)
        told = iter([0.9, 0.9, 0.1, 0.8, last])
        monkeypatch.setattr(learner, "accuracy", lambda task, told=told: next(told))
        seen: list[Tensor] = []
        loop = Loop(learner, reuse=False)

        def fit(epochs: int | None = None, seen: list[Tensor] = seen, loop: Loop = loop) -> None:
            seen.append(loop.learner.backbone[1].weight.detach().clone())
            loop.fit(task(0), epochs)

        learner.learn(task(0), fit)
        assert torch.equal(learner.backbone[1].weight, seen[-1]) == undone


def test_a_goal_of_a_network_of_its_own_is_found_first_on_validation_samples() -> None:
    one = task(0, samples=60)
    forbidden = minicl.Task(0, 3, one.train, one.valid, lambda: pytest.fail("test samples were read"))
    learner = CPG(minicl.mlp(8, 12), goal="individual", tolerance=0.2)
    before, seen = state(learner.backbone), []

    def fit(epochs: int | None = None) -> None:
        if not seen:
            optimizer = learner.protect(torch.optim.Adam(learner.parameters(), lr=0.02))
            for _ in range(50):
                optimizer.zero_grad()
                learner.loss(one.train.x, one.train.y, 0).backward()
                optimizer.step()
            assert same_bits(before, state(learner.backbone))  # the network of its own was trained, and this one not
            learner.eval()
            z = learner.heads["0"](learner.alone(one.valid.x))  # type: ignore[misc]
            seen.append(float((z.argmax(1) == one.valid.y).float().mean()))

    learner.learn(forbidden, fit)
    assert learner.tasks[0].notes["goal"] == seen[0] > 1 / 3
    assert learner.alone is None


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("goal", ["individual", 1.0])
def test_two_optimisers_that_take_closures_are_known_anew_for_each_network(goal: str | float, reuse: bool) -> None:
    """The first one's closure comes before the second has stepped: nothing is missing yet, in a new network either."""
    learner = CPG(networks, goal=goal, tolerance=0.0, max_width=2.0, stage=0.9)
    loop = Loop(learner, reuse=reuse, closure=True, second=lambda name, _: name.startswith("heads"))
    loop.learn(unteachable(0), unteachable(1))
    assert learner.learned == [0, 1]
    assert learner.width == 2.0 or goal == "individual"


def test_a_network_of_its_own_has_the_first_width_however_wide_the_learner_is() -> None:
    learner = CPG(networks, goal="individual", tolerance=0.0, max_width=2.0, stage=0.9, retrain_epochs=0)
    widths: list[int] = []
    for t in range(3):
        loop = Loop(learner, reuse=False)

        def fit(epochs: int | None = None, t: int = t, loop: Loop = loop) -> None:
            if learner.alone is not None:
                widths.append(learner.alone[1].out_features)
                loop.fit(task(t), 30)
            else:  # so badly that the network must grow
                loop.fit(task(t), 0)

        one = task(t)
        learner.learn(minicl.Task(t, 3, one.train, one.train, one.test), fit)
    assert widths == [9, 9, 9]
    assert learner.width == 2.0
    assert learner.export(2)[1].in_features == 14


def test_goals_of_each_task() -> None:
    learner = CPG(networks, goal=[0.1, 1.0], tolerance=0.0, max_width=1.5, stage=0.9)
    Loop(learner, reuse=False).learn(unteachable(0))
    assert learner.width == 1.0 or learner.tasks[0].notes["goal"] == 0.1
    Loop(learner, reuse=False).learn(unteachable(1))
    assert learner.tasks[1].notes["goal"] == 1.0
    assert learner.width == 1.5
    with pytest.raises(ValueError, match="goal has 2 values, one per task, and this is task number 3"):
        learner.learn(task(2), never)


# ---- growing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", seeds.sampled(range(60), 3, 0))
def test_growing_keeps_every_finished_task_bit_for_bit(case: int, tmp_path: Path) -> None:
    number = seeds.of(case)
    choose = random.Random(number)
    torch.manual_seed(number)
    backbone, shape = sequential(number, gated=True)
    settings: dict[str, Any] = {
        "goal": 1.0,
        "tolerance": 0.0,
        "max_width": 3.0,
        "widen": choose.choice([0.5, 0.7]),
        "stage": choose.choice([0.3, 0.5]),
        "retrain_epochs": choose.choice([None, 0]),
        "batchnorm": choose.choice(["frozen", "per-task"]),
    }
    given = backbone if case % 2 else partial(wider, backbone)
    learner = CPG(given, **settings)
    make = list(OPTIMIZERS.values())[case % 10]
    x, finished = torch.rand(5, *shape), {}

    def check(when: str) -> None:
        for t, then in finished.items():
            assert same_bits(answers(learner, x, t), then), f"task {t}, {when}"

    loop = Loop(learner, make, batch=6, set_to_none=case % 3 > 0, watch=lambda: check("after a step"))
    for t in choose.sample(range(9), 3):
        loop.learn(unteachable(t, 12, choose.randint(2, 4), shape))
        check("after a task")
        finished[t] = answers(learner, x, t)
        if choose.random() < 0.4:
            learner.save(tmp_path / "file")
            before = learner
            again = sequential(number, gated=True)[0]
            learner = CPG.load(tmp_path / "file", again if case % 2 else partial(wider, again))  # type: ignore[arg-type]
            assert learner.capacity() == before.capacity()
            assert same_bits(state(learner), state(before))
            loop = Loop(learner, make, batch=6, watch=lambda: check("after a step"))
            check("after loading")
        if choose.random() < 0.3:
            learner = copy.deepcopy(learner)
            loop = Loop(learner, make, batch=6, watch=lambda: check("after a step"))
            check("of a copy")
    assert learner.width > 1.0
    learner.eval()
    for t, then in finished.items():
        exported = learner.export(t)
        with torch.no_grad():
            assert torch.equal(exported(x), then[0])
        assert torch.equal(exported(x), then[1])


def test_what_grew_is_read_by_new_tasks_and_not_by_old_ones() -> None:
    learner = grown(3)
    assert learner.width == 2.0
    widths = [learner.width_of(t) for t in range(3)]
    assert widths == sorted(widths)
    assert learner.capacity()["tasks"][2]["width"] == 2.0
    first = learner.export(0)
    wide = learner.export(2)
    assert first[0][1].weight.shape == (round(9 * widths[0]), 8)
    assert wide[0][1].weight.shape == (18, 8)
    assert wide[1].weight.shape == (3, 14)
    assert learner.backbone[1].weight.shape == (18, 8)


def test_growing_makes_a_later_task_better_and_leaves_the_old_weights_where_they_were() -> None:
    learner = CPG(networks, stage=0.3)
    Loop(learner).learn(task(0))
    owned = {layer: (owner == 1).clone() for layer, owner in learner.owners.items()}
    before = {layer: w.detach().clone() for layer, w in learner.weights().items()}
    learner.max_width, learner.goal, learner.tolerance = 2.0, 1.0, 0.0
    Loop(learner, reuse=False).learn(unteachable(1))
    for layer, weight in learner.weights().items():
        rows, columns = before[layer].shape
        assert weight.shape == (18, 8) if layer == "1" else (14, 18)
        assert torch.equal((learner.owners[layer] == 1)[:rows, :columns], owned[layer])
        assert int((learner.owners[layer] == 1).sum()) == int(owned[layer].sum())
        assert torch.equal(weight[:rows, :columns][owned[layer]], before[layer][owned[layer]])
        assert (learner.owners[layer][rows:] == 2).any()  # what grew is used


def test_growing_that_breaks_off_leaves_no_trace() -> None:
    learner = CPG(networks, goal=[0.0, 1.0, 0.0, 0.0], tolerance=0.0, max_width=3.0, stage=0.3)
    Loop(learner).learn(task(0))
    learner.prepare(task(1))
    x = torch.rand(5, *SHAPE)
    before, capacity, logits = state(learner), learner.capacity(), answers(learner, x, 0)
    calls: list[int] = []
    loop = Loop(learner, reuse=False)
    wrong = unteachable(1)

    def fit(epochs: int | None = None) -> None:
        loop.fit(wrong, epochs)
        calls.append(1)
        if learner.width > 1.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn(wrong, fit)
    assert len(calls) >= 3
    assert same_bits(before, state(learner))
    assert learner.capacity() == capacity
    assert same_bits(answers(learner, x, 0), logits)
    Loop(learner).learn(task(2), wrong)
    assert same_bits(answers(learner, x, 0), logits)


def test_a_loop_that_does_not_train_what_has_grown_is_told_so() -> None:
    learner = CPG(networks, goal=1.0, tolerance=0.0, max_width=2.0)
    one = unteachable(0)
    optimizer = None

    def fit(epochs: int | None = None) -> None:
        nonlocal optimizer
        if optimizer is None:  # one for ever, and never told of what is new
            optimizer = learner.protect(torch.optim.SGD(learner.parameters(), lr=0.01))
        for _ in range(3):
            optimizer.zero_grad()
            learner.loss(one.train.x, one.train.y, 0).backward()
            optimizer.step()

    with pytest.raises(RuntimeError, match=r"were made for task 0 and are in no protected optimiser"):
        learner.learn(one, fit)


def test_capacity_counts_every_weight_by_hand() -> None:
    learner = grown(3)
    capacity = learner.capacity()
    assert capacity["width"] == capacity["max_width"] == 2.0
    for layer, row in capacity["layers"].items():
        owner = learner.owners[layer].tolist()
        readers = [[0] * len(line) for line in owner]
        for t in range(3):
            shape = learner.export(t)[0].get_parameter(learner.names[layer]).shape
            mask = learner.masks.stored(t, layer, shape)[0].tolist()
            own = [(i, j) for i, line in enumerate(owner) for j, o in enumerate(line) if o == t + 1]
            picks = [(i, j) for i in range(shape[0]) for j in range(shape[1]) if 0 < owner[i][j] <= t and mask[i][j]]
            assert row["tasks"][t] == len(own)
            assert row["picked"][t] == len(picks)
            for i, j in own + picks:
                readers[i][j] += 1
        flat = [n for line in readers for n in line]
        assert row["shared"] == sum(n > 1 for n in flat)
        assert row["free"] == sum(o == 0 for line in owner for o in line)
        assert row["weights"] == len(flat)
    for t in range(3):
        assert capacity["tasks"][t]["picked"] == sum(row["picked"][t] for row in capacity["layers"].values())
    assert sum(row["shared"] for row in capacity["layers"].values()) > 0


def test_forgetting_frees_what_nobody_else_reads() -> None:
    learner = grown(3)
    x = torch.rand(5, *SHAPE)
    before, free = answers(learner, x, 0, 2), learner.capacity()["free"]
    read = {layer: learner.reads(layer, 2) for layer in learner.names}
    unread = sum(int(((learner.owners[layer] == 2) & ~read[layer]).sum()) for layer in learner.names)
    learner.forget(1)
    assert same_bits(answers(learner, x, 0, 2), before)
    assert learner.capacity()["free"] == free + unread
    Loop(learner, reuse=False).learn(unteachable(1))
    assert same_bits(answers(learner, x, 0, 2), before)


# ---- the gradient of what is picked ----------------------------------------------------------------------------------


def test_the_gradients_of_weights_and_scores_by_hand() -> None:
    """W' = W (.) m with m = 1 where the weight is free: dL/dW' (.) W for the score of an owned weight, 0 for others."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    learner = CPG(network, stage=0.5, retrain_epochs=0, tolerance=0.99)
    Loop(learner).learn(task(0))
    one, found = task(1), {}

    def fit(epochs: int | None = None) -> None:
        if found:
            return
        with torch.no_grad():
            scores = learner.masks.score(1, "1")
            scores.copy_(torch.rand(3, 8) * 0.01)
            network[1].weight[learner.owners["1"] == 0] = 0.3
        found["state"] = network[1].weight.detach().clone(), scores.detach().clone(), network[1].bias.detach().clone()
        found["head"] = copy.deepcopy(learner.heads["1"])
        optimizer = learner.protect(torch.optim.SGD(learner.parameters(), lr=0.0))
        learner.loss(one.train.x, one.train.y, 1).backward()
        found["grads"] = [p.grad.clone() for p in (network[1].weight, scores)]  # type: ignore[union-attr]
        optimizer.step()

    owned = (learner.owners["1"] != 0).clone()
    learner.learn(one, fit)
    weight, scores, bias = found["state"]
    mask = torch.where(owned, (scores > 5e-3).float(), 1.0)
    h = one.train.x.flatten(1) @ (weight * mask).T + bias
    head = found["head"]
    p = torch.softmax(h @ head.weight.T + head.bias, 1)
    through = ((p - F.one_hot(one.train.y, 3)) @ head.weight / len(one.train)).T @ one.train.x.flatten(1)
    grad_weight, grad_scores = found["grads"]
    torch.testing.assert_close(grad_scores, torch.where(owned, through * weight, 0.0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad_weight[~owned], through[~owned], rtol=1e-4, atol=1e-6)
    assert grad_scores[owned].any()


# ---- norms, biases ---------------------------------------------------------------------------------------------------


def test_norms_and_biases_are_each_tasks_own() -> None:
    learner = CPG(networks, stage=0.5)
    loop = Loop(learner, partial(torch.optim.SGD, lr=0.1), set_to_none=False)
    loop.learn(task(0))
    first = {name: t.clone() for name, t in learner.norms.of(0).items()}
    assert {"1.bias", "2.weight", "2.bias", "2.running_mean", "4.bias"} <= first.keys()
    loop.learn(task(1))
    assert all(torch.equal(first[name], t) for name, t in learner.norms.of(0).items())
    assert all(not torch.equal(first[name], t) for name, t in learner.norms.of(1).items())
    frozen = CPG(networks, stage=0.5, batchnorm="frozen")
    loop = Loop(frozen, partial(torch.optim.SGD, lr=0.1), set_to_none=False).learn(task(0))
    before = {n: t for n, t in state(frozen.backbone).items() if n not in frozen.names.values()}
    loop.learn(task(1))
    assert all(torch.equal(t, frozen.backbone.state_dict()[n]) for n, t in before.items())


# ---- wider networks --------------------------------------------------------------------------------------------------


def test_a_sequential_is_widened_layer_by_layer() -> None:
    cnn = minicl.cnn(1, 4, 6, batchnorm=True)
    wide = wider(nn.Sequential(cnn, nn.Linear(cnn(torch.rand(2, 1, 8, 8)).shape[1], 5)), 1.5)
    assert wide(torch.rand(2, 1, 8, 8)).shape == (2, 8)
    shapes = {name: tuple(p.shape) for name, p in wide.named_parameters()}
    narrow = dict(nn.Sequential(cnn, nn.Linear(1, 1)).named_parameters())
    assert shapes.keys() == narrow.keys()
    assert shapes["0.0.weight"] == (6, 1, 3, 3)
    half = wider(minicl.mlp(8, 5, 3), 1.1)
    assert [tuple(p.shape) for p in half.parameters()] == [(6, 8), (6,), (4, 6), (4,)]  # rounded up


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Residual, r"the backbone \(Residual\) cannot be widened; give max_width=1"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))),
            r"layer '1.1' \(LayerNo",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1, groups=2)),
            r"layer '1' \(Conv2d\) cannot be wid",
        ),
    ],
)
def test_what_cannot_be_widened_is_refused_when_it_may_have_to_be(make: Any, message: str) -> None:
    CPG(make())
    with pytest.raises(ValueError, match=message):
        CPG(make(), max_width=2.0)


@pytest.mark.parametrize("kind", [Attention, Words])
def test_layers_whose_rows_stand_in_blocks_cannot_grow(kind: Any) -> None:
    with pytest.raises(ValueError, match="its rows stand in blocks, one per gate or projection"):
        CPG(lambda width: kind())
    CPG(kind(), prunable=[])


def test_a_function_must_give_networks_of_one_kind() -> None:
    def odd(width: float) -> nn.Module:
        return minicl.mlp(8, 5) if width == 1 else minicl.mlp(8, 5, 5)

    with pytest.raises(ValueError, match=r"the network of width 1\.5 has other layers than the first"):
        Loop(CPG(odd, goal=1.0, tolerance=0.0, max_width=2.0)).learn(unteachable(0))


# ---- what is refused -------------------------------------------------------------------------------------------------


def never(epochs: int | None = None) -> None:
    raise AssertionError("trained, although the task should have been refused before")


def test_goals_need_validation_samples() -> None:
    x, y = task(0).train.x, task(0).train.y
    with pytest.raises(ValueError, match="CPG goes by validation samples, and task 0 has none"):
        CPG(minicl.mlp(8, 10)).learn(minicl.Task(0, 3, (x, y)), never)


def test_weights_that_became_nan_are_refused() -> None:
    learner = CPG(minicl.mlp(8, 5))
    with pytest.raises(FloatingPointError, match="layer '1' holds NaN"):
        learner.learn(task(0), lambda epochs=None: learner.backbone[1].weight.data.fill_(torch.nan))


# ---- what it is worth ------------------------------------------------------------------------------------------------


def test_many_tasks_are_learned_in_a_network_that_grows() -> None:
    stream = minicl.permuted("digits", 4, seed=0)
    learner = CPG(
        lambda width: minicl.mlp(64, round(24 * width), round(24 * width)),
        goal=0.95,
        tolerance=0.0,
        max_width=3.0,
        scale=0.2,
        threshold=0.1,
        retrain_epochs=2,
    )
    result = minicl.run(learner, stream, epochs=4, batch_size=16, optimizer=partial(torch.optim.Adam, lr=0.01))
    assert result.average_accuracy > 0.9
    assert result.forgetting == 0.0
    assert learner.width > 1.0
