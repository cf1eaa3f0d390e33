"""DEN: its equations against slow formulas; what each step moves; units that come, go, split, and are stamped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import loops
import pytest
import torch
from loops import OPTIMIZERS, Loop, answers, same_bits, small_tasks, state
from torch import Tensor, nn

import minicl
from minicl import distributed
from minicl.expansion.den import drift, group_soft_threshold, pull, reachable, soft_threshold
from minicl.expansion.pulls import sum_of_pulls

NEVER = 1e9
X = torch.linspace(0, 1, 5 * 36).view(5, 1, 6, 6)


def make(**settings: Any) -> minicl.DEN:
    torch.manual_seed(0)
    return minicl.DEN(minicl.mlp(36, 8, 7), **settings)


def cnn(**settings: Any) -> minicl.DEN:
    torch.manual_seed(0)
    return minicl.DEN(minicl.cnn(1, 4, 5), **settings)


def layers(learner: minicl.DEN) -> list[Any]:
    return [m for m in learner.backbone if isinstance(m, (nn.Linear, nn.Conv2d))]  # type: ignore[attr-defined]


class Stages:
    """A loop that writes down, for each call of `fit`, the weights before and after it."""

    def __init__(self, learner: minicl.DEN, make_optimizer: loops.Make = loops.ADAM, epochs: int = 2) -> None:
        self.learner, self.make, self.epochs = learner, make_optimizer, epochs
        self.calls: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def learn(self, *tasks: minicl.Task) -> Stages:
        for task in tasks:
            self.learner.learn(task, partial(self.fit, task))
        return self

    def fit(self, task: minicl.Task, epochs: int | None = None) -> None:
        before = state(self.learner)
        Loop(self.learner, self.make, epochs=self.epochs).fit(task)
        self.calls.append((before, state(self.learner)))


# ---- the equations ---------------------------------------------------------------------------------------------------


def test_soft_threshold_entry_by_entry() -> None:
    w = torch.randn(6, 5, dtype=torch.float64)
    w[0, 0], w[0, 1], w[0, 2] = 0.25, -0.25, 0.0
    found = soft_threshold(w, 0.25)
    for i, j in itertools.product(range(6), range(5)):
        value = w[i, j].item()
        assert found[i, j].item() == pytest.approx(math.copysign(max(abs(value) - 0.25, 0.0), value))
    assert found[0, 0] == found[0, 1] == 0
    assert (found == 0).any()
    assert torch.equal(soft_threshold(w, 0.0), w)


def test_group_soft_threshold_row_by_row() -> None:
    w = torch.randn(6, 5, dtype=torch.float64)
    w[2] *= 0.1
    w[3] = 0
    found = group_soft_threshold(w, 0.5)
    for row, given in zip(found.tolist(), w.tolist(), strict=True):
        norm = math.sqrt(sum(v * v for v in given))
        factor = max(0.0, 1 - 0.5 / norm) if norm else 0.0
        assert row == pytest.approx([v * factor for v in given])
    assert not found[2].any()
    assert found[0].all()  # a group shrinks as a whole: no entry of a long one becomes zero


@pytest.mark.parametrize("seed", range(5))
def test_units_are_reachable_by_a_walk_from_the_outputs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [3, 5, 6, 4]  # inputs, two layers, and a layer of which each unit feeds two columns of the head
    weights = [torch.randn(n_out, n_in, generator=generator) for n_in, n_out in itertools.pairwise(sizes)]
    head = torch.randn(2, 8, generator=generator)
    for weight in (*weights, head):
        weight[torch.rand(weight.shape, generator=generator) < 0.7] = 0

    found: list[set[int]] = [set(), set(), set()]
    waiting = [(2, column // 2) for row in head for column in range(8) if row[column] != 0]
    while waiting:
        level, unit = waiting.pop()
        if unit not in found[level]:
            found[level].add(unit)
            waiting += [(level - 1, j) for j in range(sizes[level]) if level and weights[level][unit, j] != 0]
    masks = reachable(head, weights)
    assert [set(mask.nonzero().flatten().tolist()) for mask in masks] == found


def test_all_outputs_are_looked_at() -> None:
    """The authors' code looks at the first alone."""
    head = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    (mask,) = reachable(head, [torch.ones(2, 3)])
    assert mask.tolist() == [False, True]


def test_a_head_that_reads_nothing_reaches_nothing() -> None:
    masks = reachable(torch.zeros(2, 5), [torch.ones(4, 3), torch.ones(5, 4)])
    assert [mask.any().item() for mask in masks] == [False, False]
    learner, tasks = make(l1=NEVER, expansion=False, splitting=False), small_tasks()
    Stages(learner).learn(*tasks[:2])
    assert not learner.heads["1"].weight.any()


def test_channels_are_reachable_through_kernels() -> None:
    first, second = torch.zeros(2, 1, 3, 3), torch.zeros(1, 2, 3, 3)
    second[0, 1, 2, 2] = 1.0
    masks = reachable(torch.ones(1, 1), [first, second])
    assert [mask.tolist() for mask in masks] == [[False, True], [True]]


def test_drift_and_pull_by_hand() -> None:
    now, before = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    for i, value in enumerate(drift(now, before).tolist()):
        squares = [(a - b) ** 2 for a, b in zip(now[i].flatten().tolist(), before[i].flatten().tolist(), strict=True)]
        assert value == pytest.approx(math.sqrt(sum(squares)))
    total = sum((a - b) ** 2 for a, b in zip(now.flatten().tolist(), before.flatten().tolist(), strict=True))
    assert pull(now, before, 0.5).item() == pytest.approx(0.25 * total)


# ---- what each call of fit moves -------------------------------------------------------------------------------------


def test_the_first_task_takes_proximal_steps() -> None:
    """Eq. 2, one step of SGD: w - lr g, and then the soft threshold, for weights and not for biases."""
    learner, (task,) = make(l1=0.01), small_tasks(n=1)
    seen: dict[str, Tensor] = {}

    def fit() -> None:
        optimizer = learner.protect(torch.optim.SGD(learner.parameters(), lr=0.1))
        learner.loss(task.train.x, task.train.y, 0).backward()
        for name, p in learner.named_parameters():
            assert p.grad is not None
            moved = p.detach() - 0.1 * p.grad
            seen[name] = moved if p.ndim == 1 else moved.sign() * (moved.abs() - 0.01).clamp(min=0)
        optimizer.step()
        for name, p in learner.named_parameters():
            torch.testing.assert_close(p.detach(), seen[name])

    learner.learn(task, fit)
    assert len(seen) == 6
    assert (learner.backbone[1].weight == 0).any()  # type: ignore[index]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_each_call_of_fit_moves_what_the_paper_says(optimizer: loops.Make) -> None:
    """Head alone; what leads over selected units; what is new; after a split, everything."""
    learner = make(tau=0.0, drift=1e-3, k=3, l1=1e-4)
    first, second = small_tasks()[:2]
    Stages(learner, optimizer).learn(first)
    with torch.no_grad():  # nothing reads two units: no way leads from there to an output
        two = layers(learner)[1]
        two.weight[:, 2] = 0
        two.weight[:, 5] = 0
    stages = Stages(learner, optimizer)
    selected: list[Tensor] = []
    search = learner.search

    def noted(head: Tensor) -> list[Tensor]:
        masks = search(head)
        masks[1][4] = False  # as if the head did not read it
        selected.extend(masks)
        return masks

    learner.search = noted  # type: ignore[method-assign]
    without_gradients = False

    def looked_at() -> None:
        nonlocal without_gradients
        if not stages.calls:
            without_gradients = all(p.grad is None for p in learner.backbone.parameters())

    edit = learner.edit_gradients
    learner.edit_gradients = lambda: (looked_at(), edit())[1]  # type: ignore[method-assign]
    stages.learn(second)
    head, sub, grown, last = stages.calls
    assert without_gradients
    assert {n for n in head[0] if not torch.equal(head[0][n], head[1][n])} == {"heads.1.weight", "heads.1.bias"}

    (s1, s2), names = selected, ("backbone.1.weight", "backbone.3.weight", "heads.1.weight")
    assert s1.tolist() == [i not in (2, 5) for i in range(8)]
    free = (
        s1[:, None].expand(8, 36),
        s2[:, None] & s1[None],
        s2[None].expand(2, 7),
    )
    for name, mask in zip(names, free, strict=True):
        moved = sub[0][name] != sub[1][name]
        assert not (moved & ~mask).any(), name
        assert moved.any(), name
    assert torch.equal(sub[0]["backbone.3.bias"][~s2], sub[1]["backbone.3.bias"][~s2])

    for name, (rows, cols) in {"backbone.1.weight": (8, 36), "backbone.3.weight": (7, 8)}.items():
        now, then = grown[1][name], sub[1][name]
        assert now.shape[0] == rows + 3
        assert torch.equal(now[:rows, :cols], then), "what was there stays, bit for bit"
        assert not torch.equal(now[rows:], grown[0][name][rows:])
    assert torch.equal(grown[1]["backbone.1.bias"][:8], sub[1]["backbone.1.bias"])
    assert grown[1]["heads.0.weight"].shape == (2, 7)

    assert last[0]["backbone.1.weight"].shape[0] > grown[1]["backbone.1.weight"].shape[0]
    for name in names:
        assert not torch.equal(last[0][name], last[1][name])
    assert torch.equal(last[0]["heads.0.weight"], last[1]["heads.0.weight"])


def test_the_loss_pulls_shared_weights_back() -> None:
    learner = make(lam=0.7, expansion=False, splitting=False, selective=False)
    first, second = small_tasks()[:2]
    Loop(learner).learn(first)
    before = [p.detach().clone() for layer in layers(learner) for p in (layer.weight, layer.bias)]

    def fit() -> None:
        optimizer = learner.protect(torch.optim.SGD(learner.parameters(), lr=0.5))
        for _ in range(3):
            x, y = second.train.x, second.train.y
            loss, plain = learner.loss(x, y, 1), nn.functional.cross_entropy(learner(x, 1), y)
            now = [p for layer in layers(learner) for p in (layer.weight, layer.bias)]
            away = sum(((a.detach() - b) ** 2).sum().item() for a, b in zip(now, before, strict=True))
            assert loss.item() == pytest.approx(plain.item() + 0.35 * away, rel=1e-5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert away > 0

    learner.learn(second, fit)


def test_all_pulls_at_once_have_the_same_value_and_gradient() -> None:
    parameters = [torch.randn(4, 3, 2, 2, requires_grad=True), torch.randn(5, requires_grad=True)]
    befores = [torch.randn(3, 2, 2, 2), torch.randn(5)]
    slow = pull(parameters[0][:3, :2], befores[0], 0.7) + pull(parameters[1], befores[1], 0.7)
    fast = sum_of_pulls(list(zip(parameters, befores, strict=True)), 0.7)
    torch.testing.assert_close(fast, slow)
    expected = torch.autograd.grad(3 * slow, parameters)
    for found, right in zip(torch.autograd.grad(3 * fast, parameters), expected, strict=True):
        torch.testing.assert_close(found, right)


def test_a_stronger_pull_moves_shared_units_less() -> None:
    moved = []
    for lam in (0.0, 0.5, 50.0):
        learner = make(lam=lam, expansion=False, splitting=False)
        first, second = small_tasks()[:2]
        Loop(learner, loops.SGD, epochs=8).learn(first)
        before = layers(learner)[0].weight.detach().clone()
        Loop(learner, partial(torch.optim.SGD, lr=0.01), epochs=20).learn(second)
        moved.append(float((layers(learner)[0].weight.detach() - before).norm()))
    assert moved[0] > moved[1] > moved[2] > 0


# ---- units come, go, and split ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "grows"), [({"tau": NEVER}, False), ({"tau": 0.0}, True), ({"expansion": False}, False)]
)
def test_it_expands_where_the_loss_is_above_tau(settings: dict[str, Any], grows: bool) -> None:
    learner = make(**settings, splitting=False, k=3)
    stages = Stages(learner).learn(*small_tasks()[:2])
    assert learner.network.units == ([11, 10] if grows else [8, 7])
    assert len(stages.calls) == 1 + 2 + grows
    assert learner.heads["1"].in_features == (10 if grows else 7)
    assert learner.heads["0"].in_features == 7


def test_the_training_loss_is_the_mean_over_all_samples() -> None:
    learner, (task,) = make(), small_tasks(n=1, samples=23)
    Loop(learner).learn(task)
    learner.eval()
    plain = nn.functional.cross_entropy(learner(task.train.x, 0), task.train.y)
    assert learner.training_loss(task) == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("make", [make, cnn])
def test_units_that_nothing_comes_into_are_taken_out(make: Callable[..., minicl.DEN]) -> None:
    """With a strong group lasso that is all of the new ones; the answers stay as they were."""
    strong = make(tau=0.0, group=NEVER, splitting=False, k=3)
    size = strong.network.units
    Loop(strong).learn(*small_tasks())
    assert strong.network.units == size
    assert {task.n_features for task in strong.tasks.values()} == {strong.tasks[0].n_features}

    learner = make(tau=0.0, splitting=False, k=4)
    Loop(learner).learn(*small_tasks()[:1])
    third = small_tasks()[1]
    remove, kept = learner.network.remove_unused, []

    def some(first: Any, head: nn.Linear, each: int) -> None:
        with torch.no_grad():
            for layer, n in zip(layers(learner), first, strict=True):
                for unit in (n, n + 2):
                    layer.weight[unit] = 0
                    layer.bias[unit] = 0
        learner.eval()
        before = learner(X, 1)
        remove(first, head, each)
        torch.testing.assert_close(learner(X, 1), before)
        kept.extend(learner.network.units)

    learner.network.remove_unused = some  # type: ignore[method-assign]
    Loop(learner).learn(third)
    assert kept == [n + 2 for n in size]


def test_a_unit_with_nothing_but_a_bias_stays() -> None:
    learner = make(k=2)
    learner.prepare(small_tasks()[0])
    head = learner.heads["0"]
    with torch.no_grad():
        learner.network.resize([10, 7], head, 1)
        one = layers(learner)[0]
        one.weight[8:], one.bias[8] = 0, 0
        assert one.bias[9]
    learner.network.remove_unused([8, 7], head, 1)
    assert learner.network.units == [9, 7]


def test_a_unit_that_is_fed_by_removed_units_alone_goes_too() -> None:
    learner = make(k=2)
    learner.prepare(small_tasks()[0])
    head = learner.heads["0"]
    with torch.no_grad():
        learner.network.resize([10, 9], head, 1)
        one, two = layers(learner)
        one.weight[8:], one.bias[8:] = 0, 0
        two.weight[7:, :8], two.bias[7:] = 0, 0
    learner.network.remove_unused([8, 7], head, 1)
    assert learner.network.units == [8, 7]


@pytest.mark.parametrize("make", [make, cnn])
def test_what_drifted_is_split(make: Callable[..., minicl.DEN]) -> None:
    """The unit goes back to what it was, its copy goes on as it is, and what came with the task reads the copy."""
    learner = make(expansion=False, selective=False, lam=0.0)
    learner.to_split = lambda rho: torch.arange(len(rho))  # type: ignore[method-assign]
    first, second = small_tasks()[:2]
    Loop(learner).learn(first)
    before, units = state(learner), learner.network.units
    then = answers(learner, X, 0)
    calls: list[tuple[dict[str, Tensor], Tensor]] = []

    def fit() -> None:
        learner.eval()
        if calls:  # after the split, before the training that follows
            calls.append((state(learner), learner(X, 1)))
        Loop(learner, epochs=0 if calls else 3).fit(second)
        learner.eval()
        if not calls:
            calls.append((state(learner), learner(X, 1)))

    learner.learn(second, fit)
    (trained, answer), (split, after) = calls
    assert learner.network.units == [2 * n for n in units]
    torch.testing.assert_close(after, answer)  # all units were split, so the task's own network is what it was
    name = next(n for n in before if n.startswith("backbone") and n.endswith("weight"))
    n = len(before[name])
    assert torch.equal(split[name][:n], before[name])
    assert torch.equal(split[name][n:], trained[name])
    assert not torch.equal(before[name], trained[name])
    bias = name.replace("weight", "bias")
    assert torch.equal(split[bias], torch.cat([before[bias], trained[bias]]))
    assert same_bits(answers(learner, X, 0), then)  # nothing that is shared has moved in the end


def test_an_older_unit_goes_on_reading_what_went_back() -> None:
    learner = make(expansion=False, selective=False, lam=0.0)
    first, second = small_tasks()[:2]
    Loop(learner).learn(first)
    learner.to_split = lambda rho: torch.tensor([1]) if len(rho) == 8 else torch.tensor([], dtype=torch.long)  # type: ignore[method-assign]
    before = layers(learner)[0].weight.detach().clone()
    calls: list[Tensor] = []

    def fit() -> None:
        if calls:
            one, two = layers(learner)
            assert torch.equal(one.weight[1], before[1])
            assert torch.equal(two.weight[:, :8], calls[0])
            assert not two.weight[:, 8].any()
        Loop(learner).fit(second)
        calls.append(layers(learner)[1].weight.detach().clone())

    learner.learn(second, fit)
    assert learner.network.units == [9, 7]
    assert len(calls) == 2
    assert calls[1][:, 8].any(), "from there it learns"


def test_a_unit_that_goes_back_reads_nothing_that_is_new() -> None:
    learner = make(tau=0.0, k=3, selective=False, lam=0.0, group=0.0)
    first, second = small_tasks()[:2]
    Loop(learner).learn(first)
    learner.to_split = lambda rho: torch.tensor([1])  # type: ignore[method-assign]
    before = layers(learner)[1].weight.detach().clone()
    calls = itertools.count()

    def fit() -> None:
        if next(calls) == 2:  # after the split
            weight = layers(learner)[1].weight
            assert weight.shape == (7 + 3 + 1, 8 + 3 + 1)
            assert torch.equal(weight[1, :8], before[1])
            assert not weight[1, 8:].any()
            assert weight[10, 8:].all()
            assert not weight[10, 1], "the copy reads the copy below"
        Loop(learner).fit(second)

    learner.learn(second, fit)
    assert next(calls) == 3


def test_units_within_the_threshold_are_not_split() -> None:
    rho = torch.tensor([0.25, 0.5, 0.75, 1.0])
    assert make(drift=0.5).to_split(rho).tolist() == [2, 3]
    stages = Stages(make(drift=NEVER, expansion=False)).learn(*small_tasks()[:2])
    assert len(stages.calls) == 3
    assert stages.learner.network.units == [8, 7]


# ---- time stamps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make, cnn])
def test_a_finished_task_uses_the_units_of_its_stamp_and_no_others(make: Callable[..., minicl.DEN]) -> None:
    """Exactly: whatever becomes of later units, they are not read."""
    learner = make(tau=0.0, k=3, drift=1e-3)
    Loop(learner).learn(*small_tasks())
    for task_id in range(2):
        units = learner.units_seen(task_id)
        before = answers(learner, X, task_id)
        kept = state(learner)
        with torch.no_grad():
            below = layers(learner)[0].weight.shape[1]
            for layer, n, each in zip(layers(learner), units, learner.network.each, strict=True):
                layer.weight[n:] = torch.nan
                layer.weight[:, (below if layer is layers(learner)[0] else below * each) :] = torch.nan
                layer.bias[n:] = torch.nan
                below = n
        assert same_bits(answers(learner, X, task_id), before)
        with torch.no_grad():
            layers(learner)[0].weight[units[0] - 1] += 0.5
        assert not same_bits(answers(learner, X, task_id), before), "and those that it has it reads"
        learner.load_state_dict(kept)
    assert learner.units_seen(0) != learner.units_seen(1) != learner.network.units


def test_without_stamps_later_units_are_read() -> None:
    for stamping in (True, False):
        learner = make(tau=0.0, k=3, stamping=stamping)
        Loop(learner).learn(*small_tasks()[:2])
        before = answers(learner, X, 0)
        torch.testing.assert_close(learner.export(0)(X), before[0])
        with torch.no_grad():
            layers(learner)[0].weight[8:] += 1.0
        assert same_bits(answers(learner, X, 0), before) == stamping


def test_stamps_say_who_brought_which_unit() -> None:
    learner = make(tau=0.0, k=2, splitting=False)
    Loop(learner).learn(*small_tasks(ids=[5, 3, 9]))
    assert learner.stamps() == [[5] * 8 + [3] * 2 + [9] * 2, [5] * 7 + [3] * 2 + [9] * 2]
    assert learner.capacity()["units"] == {"1": {5: 8, 3: 2, 9: 2}, "3": {5: 7, 3: 2, 9: 2}}
    answers_of_3 = answers(learner, X, 3)
    learner.forget(9)
    assert learner.stamps()[0][-2:] == [-1, -1]
    assert same_bits(answers(learner, X, 3), answers_of_3)


def test_it_forgets_a_little() -> None:
    """No promise: shared units move. But far less than without all this."""
    tasks = loops.digits("task", 5, n_train=150)
    settings: dict[str, Any] = {"epochs": 6, "optimizer": partial(torch.optim.Adam, lr=1e-2)}
    learner = make_wide()
    before: list[Tensor] = []
    loops.run(learner, tasks[:1], **settings)
    before = answers(learner, tasks[0].test.x, 0)
    loops.run(learner, tasks[1:], **settings)
    now = answers(learner, tasks[0].test.x, 0)
    assert not same_bits(before, now)
    plain = minicl.FineTune(minicl.mlp(64, 40, 30))
    loops.run(plain, tasks[:1], **settings)
    then = answers(plain, tasks[0].test.x, 0)
    loops.run(plain, tasks[1:], **settings)
    lost = answers(plain, tasks[0].test.x, 0)
    assert (now[0] - before[0]).square().mean() < 0.5 * (lost[0] - then[0]).square().mean()


def make_wide() -> minicl.DEN:
    return minicl.DEN(minicl.mlp(64, 40, 30), drift=0.5, l1=1e-4)


# ---- loops, files, refusals ------------------------------------------------------------------------------------------


def test_a_loop_that_does_not_train_the_new_units_is_told_so() -> None:
    learner = make(tau=0.0)
    first, second = small_tasks()[:2]
    Loop(learner).learn(first)
    learner.prepare(second)
    optimizer = learner.protect(torch.optim.SGD(learner.parameters(), lr=0.1))

    def fit() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            learner.loss(second.train.x, second.train.y, 1).backward()
            optimizer.step()

    with pytest.raises(RuntimeError, match="are in no protected optimiser, so they would never be trained"):
        learner.learn(second, fit)
    assert learner.network.units == [8, 7]
    assert learner.learned == [0]


def test_what_breaks_off_after_growing_leaves_no_trace() -> None:
    learner = make(tau=0.0, k=3, drift=1e-3)
    tasks = small_tasks()
    learner.prepare(tasks[2])  # its head is older than the units that task 1 brings
    Loop(learner).learn(*tasks[:2])
    before, units, then = state(learner), learner.network.units, answers(learner, X, 0, 1)
    width = learner.tasks[2].n_features
    assert width < units[-1]
    for stop in range(4):
        calls = itertools.count()

        def fit(calls: Any = calls, stop: int = stop) -> None:
            Loop(learner).fit(tasks[2])
            if next(calls) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            learner.learn(tasks[2], fit)
        assert same_bits(before, state(learner))
        assert learner.network.units == units
        assert learner.tasks[2].n_features == width
        assert same_bits(answers(learner, X, 0, 1), then)
    Loop(learner).learn(tasks[2])
    assert set(learner.learned) == {0, 1, 2}
    assert learner.stamps()[0][-1] == 2  # the last that was learned, though not the last that was prepared
    assert same_bits(answers(learner, X, 0, 1)[:1], then[:1]) is False  # shared units moved


def test_what_it_cannot_follow_is_refused_by_name() -> None:
    for wrong, message in (
        (
            minicl.mlp(4, 4, batchnorm=True),
            "layer '2', a BatchNorm1d, is nothing that DEN can work with; allowed",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()), "layer '1', a Linear, follows '0' without a ReLU"),
        (nn.LSTM(3, 3), r"the backbone is a LSTM; allowed: an nn\.Sequential"),
    ):
        with pytest.raises(ValueError, match=message):
            minicl.DEN(wrong)


def test_several_processes_cannot_grow_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make(tau=0.0)
    Loop(learner).learn(small_tasks()[0])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="train in one process, or with expansion=False and splitting=False"):
        Loop(learner).learn(small_tasks()[1])
    assert learner.network.units == [8, 7]
