"""What every learner does: heads, task ids, protection of an optimiser, files, export; and the bounds."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import minicl
from minicl import FeatureExtraction, FineTune, Individual, Joint, Learner, Task, files
from minicl.learner import Fit, parameters_of, plain


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


BOUNDS = (FineTune, Joint, Individual, FeatureExtraction)


def make_tasks(scenario: str = "task", n: int = 3, shape: tuple[int, ...] = (6,), k: int = 2) -> list[Task]:
    """Small tasks of random inputs, with two classes each."""
    generator = torch.Generator().manual_seed(5)
    tasks = []
    for t in range(n):
        first = t * k if scenario == "class" else 0
        x = torch.randn(20, *shape, generator=generator)
        y = torch.randint(k, (20,), generator=generator) + first
        tasks.append(Task(t, first + k, (x, y), (x[:4], y[:4]), (x[4:], y[4:]), scenario=scenario))
    return tasks


class Plain(nn.Module):
    """Anyone's network: convolutions, BatchNorm, dropout, a residual connection; no nn.Sequential around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x)))
        return self.drop(h + self.again(h)).mean((2, 3))


def train(learner: Learner, tasks: list[Task], seed: int = 0, **settings: Any) -> minicl.Result:
    return minicl.run(learner, tasks, epochs=2, batch_size=8, seed=seed, **settings)


def state(learner: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def allowed(method: type[Learner], scenario: str) -> bool:
    return scenario == "task" or not method.needs_task_id


bounds_and_scenarios = pytest.mark.parametrize(
    ("method", "scenario"),
    [(method, scenario) for method in BOUNDS for scenario in minicl.SCENARIOS if allowed(method, scenario)],
)


# ---- heads and task ids ----------------------------------------------------------------------------------------------


def test_each_task_has_a_head_of_its_own() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks("task"))
    x = torch.randn(3, 6)
    for t in range(3):
        head = learner.heads[str(t)]
        torch.testing.assert_close(learner(x, t), head(learner.backbone(x)), rtol=0, atol=0)
        assert learner(x, t).shape == (3, 2)


def test_all_domains_share_one_head() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks("domain"))
    x = torch.randn(3, 6)
    assert list(learner.heads) == ["shared"]
    assert torch.equal(learner(x), learner.heads["shared"](learner.backbone(x)))
    assert torch.equal(learner(x, 1), learner(x))


def test_the_head_grows_with_the_classes() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    x = torch.randn(3, 6)
    for t, task in enumerate(make_tasks("class")):
        learner.prepare(task)
        assert learner(x).shape == (3, 2 * (t + 1)) if t == 0 else True
        train(learner, [task])
        assert learner(x).shape == (3, 2 * (t + 1))
    logits = [head(learner.backbone(x)) for head in learner.heads.values()]
    torch.testing.assert_close(learner(x), torch.cat(logits, 1))


def test_tasks_of_different_size() -> None:
    x = torch.randn(8, 6)
    tasks = [Task(t, k, (x, torch.arange(8) % k), test=(x, torch.arange(8) % k)) for t, k in ((4, 3), (0, 1), (9, 7))]
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, tasks)
    assert [learner(x, t).shape[1] for t in (4, 0, 9)] == [3, 1, 7]
    assert learner.learned == [4, 0, 9]


@pytest.mark.parametrize("method", BOUNDS)
def test_a_task_id_is_never_guessed(method: type[Learner]) -> None:
    learner = method(minicl.mlp(6, 5))
    x = torch.randn(2, 6)
    with pytest.raises(ValueError, match=f"{method.__name__} has learned no task yet"):
        learner(x, 0)
    train(learner, make_tasks("task", 2))
    with pytest.raises(ValueError, match=r"the task id is missing; .* Learned so far: 0, 1"):
        learner(x)
    for wrong in (-1, 2, 99):
        with pytest.raises(ValueError, match=f"the task id is {wrong}, which has not been learned; allowed: 0, 1"):
            learner(x, wrong)
        with pytest.raises(ValueError, match=f"the task id is {wrong}"):
            learner.export(wrong)
    with pytest.raises(ValueError, match="the task id is True"):
        learner(x, True)
    with pytest.raises(ValueError, match="the task id is True"):
        learner.export(True)
    with pytest.raises(ValueError, match="the task id is missing; allowed: 0, 1"):
        learner.export()
    assert learner(x, 1).shape == (2, 2)


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_an_unknown_task_id_is_refused_where_none_is_needed(scenario: str) -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks(scenario, 2))
    with pytest.raises(ValueError, match="the task id is 2"):
        learner(torch.randn(2, 6), 2)


@pytest.mark.parametrize("shape", [(2, 7), (6,), (2, 1, 6), (), (2, 6, 1)])
def test_a_batch_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks("task", 1))
    with pytest.raises(ValueError, match=r"the batch has shape .*; allowed: \(batch, 6\)"):
        learner(torch.zeros(shape), 0)
    learner.input_shape = None
    assert learner(torch.zeros(2, 1, 6), 0).shape == (2, 2)  # mlp flattens


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_labels_out_of_range_are_named(scenario: str) -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks(scenario, 1))
    x = torch.randn(3, 6)
    for y in ([0, 1, 2], [-1, 0, 0], [0, -100, 1]):
        message = f"labels run from {min(y)} to {max(y)}, but the head has 2 outputs; allowed: 0 to 1"
        with pytest.raises(ValueError, match=message):
            learner.loss(x, torch.tensor(y), 0)
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) and torch.int64 do not fit logits of shape \(3, 2\)"):
        learner.loss(x, torch.tensor([0, 1]), 0)
    with pytest.raises(ValueError, match=r"torch.float32 do not fit .* allowed: int64 of shape \(3,\)"):
        learner.loss(x, torch.tensor([0.0, 1, 1]), 0)


def test_the_loss_is_the_mean_cross_entropy() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks("task", 2))
    x, y = torch.randn(7, 6), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    p = learner(x, 1).softmax(1)
    by_hand = -sum(p[i, y[i]].log() for i in range(7)) / 7
    torch.testing.assert_close(learner.loss(x, y, 1), torch.as_tensor(by_hand))


# ---- what a task must be, and a backbone -----------------------------------------------------------------------------


def test_a_task_is_learned_once() -> None:
    tasks = make_tasks()
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, tasks)
    before = state(learner)
    with pytest.raises(ValueError, match="task 1 has been learned already; learned so far: 0, 1, 2"):
        learner.learn(tasks[1], lambda: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=r"task 0 has been learned already; go on with stream\[3:\]"):
        train(learner, tasks)
    assert equal(before, state(learner))


def test_one_learner_one_scenario() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks("task", 1))
    with pytest.raises(ValueError, match="task 1 is of scenario 'class', the tasks before it of 'task'"):
        learner.learn(make_tasks("class", 2)[1], lambda: pytest.fail("it trained"))


def test_domains_have_the_same_outputs_and_classes_only_grow() -> None:
    x, y = torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
    for scenario, message in (
        ("domain", "task 1 has 2 outputs, task 0 had 3; in scenario 'domain' all tasks share one head"),
        ("class", "task 1 has n_outputs=2, but 3 classes were seen before it"),
    ):
        learner = FineTune(minicl.mlp(6, 5))
        train(learner, [Task(0, 3, (x, y), test=(x, y), scenario=scenario)])
        before = state(learner)
        with pytest.raises(ValueError, match=message):
            learner.learn(Task(1, 2, (x, y), test=(x, y), scenario=scenario), lambda: pytest.fail("it trained"))
        assert learner.learned == [0]
        assert equal(before, state(learner))


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_a_method_that_needs_the_task_id_is_refused_without(scenario: str) -> None:
    learner = Individual(minicl.mlp(6, 5))
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"Individual must be told the task id .* scenario {scenario!r} gives none"):
        train(learner, make_tasks(scenario))
    assert learner.tasks == {}
    assert torch.equal(before, torch.get_rng_state())


class Returns(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x * self.weight)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda x: x.view(-1, 1, 6), r"\(2, 1, 6\)"),
        (lambda x: x.sum(), r"\(\)"),
        (lambda x: x.sum(1), r"\(2,\)"),
        (lambda x: x[:1], r"\(1, 6\)"),
        (lambda x: (x, x), "tuple"),
        (lambda x: None, "NoneType"),
    ],
)
@pytest.mark.parametrize("method", BOUNDS)
def test_a_backbone_that_returns_the_wrong_shape_is_refused(
    method: type[Learner], make: Callable[[Tensor], Any], what: str
) -> None:
    learner = method(Returns(make))
    message = rf"the backbone returned {what} for a batch of 2; allowed: features of shape \(2, features\)"
    with pytest.raises(ValueError, match=message):
        train(learner, make_tasks())
    assert learner.tasks == {}
    assert len(learner.heads) == 0


def test_a_backbone_that_cannot_take_the_inputs_is_refused_and_nothing_sticks() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    with pytest.raises(ValueError, match=r"the backbone cannot take inputs of shape \(batch, 7\), as task 0 has them"):
        train(learner, make_tasks(shape=(7,)))
    train(learner, make_tasks())  # the right ones
    assert learner.learned == [0, 1, 2]
    with pytest.raises(ValueError, match=r"the inputs of task 3 have shape \(2, 3\), those before it \(6,\)"):
        learner.learn(make_tasks(n=4, shape=(2, 3))[3], lambda: None)


def test_a_backbone_is_a_module() -> None:
    with pytest.raises(TypeError):
        FineTune(lambda x: x)  # type: ignore[arg-type]


def test_looking_at_a_backbone_leaves_it_as_it_was() -> None:
    backbone = Plain()
    backbone.norm.eval()
    before = state(backbone)
    FineTune(backbone).prepare(make_tasks(shape=(1, 4, 4))[0])
    assert equal(before, state(backbone))
    assert backbone.training
    assert not backbone.norm.training
    assert backbone.drop.training


@pytest.mark.parametrize("method", BOUNDS)
def test_anyones_network_learns(method: type[Learner]) -> None:
    learner = method(Plain())
    result = train(learner, make_tasks(shape=(1, 5, 5)))
    assert learner.learned == [0, 1, 2]
    assert not learner.training
    assert result.parameters == sum(p.numel() for p in parameters_of(learner))


# ---- a task that breaks off ------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


@bounds_and_scenarios
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
def test_a_task_that_breaks_off_leaves_the_learner_as_it_was(
    method: type[Learner], scenario: str, error: type[BaseException]
) -> None:
    tasks = make_tasks(scenario, 2, shape=(1, 5, 5))
    learner = method(Plain())
    train(learner, tasks[:1])
    learner.prepare(tasks[1])
    before, mode = state(learner), learner.training

    def fit(epochs: int | None = None, tasks: list[Task] | None = None) -> None:
        optimizer = learner.protect(torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=1.0))
        learner.train()
        task = make_tasks(scenario, 2, shape=(1, 5, 5))[1]
        for _ in range(2):
            optimizer.zero_grad()
            learner.loss(task.train.x, task.train.y, 1).backward()
            optimizer.step()
        assert not equal(before, state(learner))
        raise error

    with pytest.raises(error):
        learner.learn(tasks[1], fit)
    assert equal(before, state(learner))
    assert learner.training == mode
    assert learner.learned == [0]
    if scenario == "task":
        with pytest.raises(ValueError, match=r"the task id is 1, which has not been learned; allowed: 0$"):
            learner(tasks[1].train.x, 1)
    train(learner, tasks[1:])  # the same task may be learned again
    assert learner.learned == [0, 1]


def test_a_prepared_task_keeps_its_number_of_outputs() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    learner.prepare(make_tasks(k=2)[0])
    with pytest.raises(ValueError, match="task 0 has n_outputs=3, and was prepared with 2"):
        learner.prepare(make_tasks(k=3)[0])


# ---- the moments, and protect ----------------------------------------------------------------------------------------


class Recorder(FineTune):
    """Writes down which moment came when."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.moments: list[str] = []

    def learn(self, task: Task, fit: Fit) -> None:
        self.moments.append("learn")
        super().learn(task, fit)
        self.moments.append("learned")

    def before_step(self, progress: float) -> None:
        self.moments.append("before_step")

    def edit_gradients(self) -> None:
        assert all(p.grad is not None for p in self.backbone.parameters())
        self.before_optimizer = state(self.backbone)
        self.moments.append("edit_gradients")

    def after_step(self) -> None:
        assert not equal(self.before_optimizer, state(self.backbone))
        self.moments.append("after_step")


def test_the_moments_come_in_their_order() -> None:
    learner = Recorder(minicl.mlp(6, 5))
    minicl.run(learner, make_tasks(n=1), epochs=2, batch_size=10)
    assert learner.moments == ["learn", *["before_step", "edit_gradients", "after_step"] * 4, "learned"]


def test_protecting_twice_does_nothing_more() -> None:
    learner = Recorder(minicl.mlp(6, 5))
    learner.prepare(make_tasks()[0])
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    assert learner.protect(optimizer) is optimizer
    assert learner.protect(optimizer) is optimizer

    def fit() -> None:
        learner.protect(optimizer)
        learner.loss(torch.randn(2, 6), torch.tensor([0, 1]), 0).backward()
        optimizer.step()

    learner.learn(make_tasks()[0], fit)
    assert learner.moments == ["learn", "edit_gradients", "after_step", "learned"]


def test_one_optimiser_may_serve_two_learners() -> None:
    learners = [Recorder(minicl.mlp(6, 5)), Recorder(minicl.mlp(6, 5))]
    for learner in learners:
        learner.prepare(make_tasks()[0])
        learner.tasks[0].finished = True
    optimizer = torch.optim.SGD([p for learner in learners for p in learner.parameters()], lr=0.1)
    for learner in learners:
        learner.protect(optimizer)
        learner.loss(torch.randn(2, 6), torch.tensor([0, 1]), 0).backward()
    optimizer.step()
    assert [learner.moments for learner in learners] == [["edit_gradients", "after_step"]] * 2


@pytest.mark.parametrize("keyword", [True, False])
@pytest.mark.parametrize("make", [partial(torch.optim.LBFGS, lr=0.1, max_iter=3), partial(torch.optim.Adam, lr=0.1)])
def test_gradients_from_a_closure_are_edited_too(make: Any, keyword: bool) -> None:
    class Half(FineTune):
        edits = 0

        def edit_gradients(self) -> None:
            self.edits += 1
            self.backbone[1].weight.grad[:2] = 0

    learner = Half(minicl.mlp(6, 5))
    learner.prepare(make_tasks()[0])
    optimizer = learner.protect(make(learner.parameters()))
    x, y = make_tasks()[0].train.x, make_tasks()[0].train.y
    before = learner.backbone[1].weight.detach().clone()
    evaluations = []

    def fit() -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = learner.loss(x, y, 0)
            loss.backward()
            evaluations.append(loss.item())
            return loss

        for _ in range(3):
            told = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert torch.is_tensor(told)

    learner.learn(make_tasks()[0], fit)
    assert learner.edits == len(evaluations) >= 3
    assert evaluations[-1] < evaluations[0]
    assert torch.equal(learner.backbone[1].weight[:2], before[:2])
    assert not torch.equal(learner.backbone[1].weight[2:], before[2:])


def test_only_an_optimiser_can_be_protected() -> None:
    with pytest.raises(TypeError):
        FineTune(minicl.mlp(6, 5)).protect("Adam")  # type: ignore[type-var]


def own_loop(learner: Learner, tasks: list[Task], epochs: int = 3) -> None:
    """What a user writes: one optimiser for all tasks, new heads added to it."""
    optimizer: torch.optim.Optimizer | None = None

    for task in tasks:

        def fit(epochs: int = epochs, task: Task = task) -> None:
            nonlocal optimizer
            if optimizer is None:
                optimizer = learner.protect(torch.optim.Adam(learner.parameters(), lr=0.01, weight_decay=0.1))
            else:
                known = {id(p) for group in optimizer.param_groups for p in group["params"]}
                new = [p for p in learner.parameters() if id(p) not in known]
                if new:
                    optimizer.add_param_group({"params": new})
            learner.train()
            for _ in range(epochs):
                learner.before_step(0.5)
                optimizer.zero_grad(set_to_none=False)
                learner.loss(task.train.x, task.train.y, task.id if task.scenario == "task" else None).backward()
                optimizer.step()
            learner.eval()

        learner.learn(task, fit)


@pytest.mark.parametrize("method", [Individual, FeatureExtraction])
def test_what_is_finished_does_not_move_in_ones_own_loop(method: type[Learner]) -> None:
    tasks = make_tasks(shape=(1, 5, 5))
    learner = method(Plain())
    x = torch.randn(4, 1, 5, 5)
    logits: dict[int, Tensor] = {}
    for t in range(3):
        if t == 0:
            own_loop(learner, tasks[:1])
        else:
            own_loop(learner, tasks[t : t + 1])
        logits[t] = learner(x, t).detach().clone()
        for old, was in logits.items():
            assert torch.equal(learner(x, old), was)
    again = method(Plain())
    own_loop(again, tasks)  # one optimiser all through
    assert again.learned == [0, 1, 2]


@pytest.mark.parametrize("method", [Individual, FeatureExtraction])
def test_one_optimiser_all_through_moves_nothing_that_is_finished(method: type[Learner]) -> None:
    tasks = make_tasks(shape=(1, 5, 5))
    learner = method(Plain())
    x = torch.randn(4, 1, 5, 5)
    seen: dict[int, Tensor] = {}
    learn = learner.learn

    def watched(task: Task, fit: Fit) -> None:
        learn(task, fit)
        learner.eval()
        seen[task.id] = learner(x, task.id).detach().clone()

    learner.learn = watched  # type: ignore[method-assign]
    own_loop(learner, tasks)
    assert all(torch.equal(learner(x, t), seen[t]) for t in range(3))


# ---- freeze and plain ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), torch.randn(5, 3)),
        (nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), torch.randn(5, 3)),
        (nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(2, 5, 4)),
    ],
    ids=["sequential", "lstm", "weight_norm", "attention"],
)
def test_a_frozen_module_is_out_of_reach_and_comes_back_plain(module: nn.Module, x: Tensor) -> None:
    module = copy.deepcopy(module)
    call = (lambda m: m(x, x, x)[0]) if isinstance(module, nn.MultiheadAttention) else (lambda m: m(x))
    value = (lambda m: call(m)[0]) if isinstance(module, nn.LSTM) else call
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    value(module).square().sum().backward()
    optimizer.step()
    n = sum(p.numel() for p in module.parameters())
    keys = set(module.state_dict())
    learner = FineTune(nn.Sequential(nn.Flatten()))
    learner.backbone.add_module("part", module)
    module.eval()
    before = value(module).detach().clone()

    minicl.freeze(module)
    minicl.freeze(module)  # twice is once
    for _ in range(3):
        optimizer.step()  # it still holds the old parameters
    learner.train()
    assert not any(part.training for part in module.modules())
    assert learner.training
    assert list(module.parameters()) == []
    assert torch.equal(value(module), before)
    assert set(module.state_dict()) == keys
    assert sum(t.numel() for t in parameters_of(module)) == n

    # What is loaded into it is what it uses.
    other = copy.deepcopy(module)
    for tensor in other.state_dict().values():
        tensor.zero_() if tensor.is_floating_point() else None
    assert not torch.equal(value(other), before)
    other.load_state_dict(module.state_dict())
    assert torch.equal(value(other), before)

    plain(module)
    assert torch.equal(value(module), before)
    assert sum(p.numel() for p in module.parameters()) == n
    assert all(p.requires_grad for p in module.parameters())
    torch.optim.SGD(module.parameters(), lr=0.1).zero_grad()
    value(module).sum().backward()
    assert any(p.grad is not None for p in module.parameters())


# ---- capacity and export ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (FineTune, 6 * 5 + 5 + 3 * (5 * 2 + 2)),
        (FeatureExtraction, 6 * 5 + 5 + 3 * (5 * 2 + 2)),
        (Joint, 6 * 5 + 5 + 3 * (5 * 2 + 2)),
        (Individual, 3 * (6 * 5 + 5 + 5 * 2 + 2)),
    ],
)
def test_capacity_counts_what_is_stored(method: type[Learner], expected: int) -> None:
    learner = method(minicl.mlp(6, 5))
    result = train(learner, make_tasks())
    capacity = learner.capacity()
    assert capacity["parameters"] == expected == result.parameters
    assert capacity["bytes"] == 4 * expected
    assert capacity["tasks"] == {t: {"name": f"task {t}", "finished": True} for t in range(3)}
    data = 3 * 20 * (6 * 4 + 8) + 4 * (6 * 5 + 5) if method is Joint else 0  # x, y, and the first weights
    assert capacity["extra_bytes"] == data


@bounds_and_scenarios
def test_export_is_the_same_network_and_needs_no_minicl(method: type[Learner], scenario: str) -> None:
    learner = method(Plain())
    train(learner, make_tasks(scenario, shape=(1, 5, 5)))
    x = torch.randn(4, 1, 5, 5)
    for t in range(3) if scenario == "task" else (None,):
        network = learner.export(t)
        assert torch.equal(network(x), learner(x, t))
        assert not network.training
        assert all(p.requires_grad for p in network.parameters())
        for module in network.modules():
            assert type(module) is Plain or type(module).__module__.startswith("torch.")
            assert not {"frozen", "frozen_parameters", "_first_weights"} & set(vars(module))
        before = learner(x, t).detach().clone()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        assert torch.equal(learner(x, t), before)  # a copy, not a view
        assert all(
            torch.equal(a, b) for a, b in zip(learner.state_dict().values(), state(learner).values(), strict=True)
        )


def test_there_is_nothing_to_export_before_the_first_task() -> None:
    with pytest.raises(ValueError, match="no task has been learned yet"):
        FineTune(minicl.mlp(6, 5)).export(0)


# ---- files -----------------------------------------------------------------------------------------------------------


def backbones() -> list[Callable[[], nn.Module]]:
    return [Plain, lambda: minicl.cnn(1, 3, batchnorm=True, dropout=0.2)]


@bounds_and_scenarios
@pytest.mark.parametrize("make", backbones(), ids=["plain", "cnn"])
def test_a_saved_learner_is_the_same_and_goes_on_the_same(
    method: type[Learner], scenario: str, make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    tasks = make_tasks(scenario, 3, shape=(1, 5, 5))
    learner = method(make())
    train(learner, tasks[:2])
    fresh = make()
    rng = torch.get_rng_state()
    learner.save(tmp_path / "learner.safetensors")
    loaded = method.load(tmp_path / "learner.safetensors", fresh)
    if isinstance(loaded, Joint):
        with pytest.raises(ValueError, match=r"needs the data of tasks \[0, 1\] too; set learner.seen"):
            loaded.learn(tasks[2], lambda: None)
        loaded.seen = tasks[:2]
    assert torch.equal(rng, torch.get_rng_state())
    assert equal(state(learner), state(loaded))
    assert loaded.learned == [0, 1]
    assert loaded.capacity() == learner.capacity()
    x = torch.randn(4, 1, 5, 5)
    loaded.eval()
    for t in (0, 1) if scenario == "task" else (None,):
        assert torch.equal(learner(x, t), loaded(x, t))
        assert torch.equal(learner.export(t)(x), loaded.export(t)(x))

    # A second trip changes nothing.
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "learner.safetensors").read_bytes()

    a, b = (minicl.run(each, tasks[2:], epochs=3, batch_size=7, seed=4) for each in (learner, loaded))
    assert equal(state(learner), state(loaded))
    assert a.learning_curves == b.learning_curves


def test_a_learner_that_has_learned_nothing_can_be_saved(tmp_path: Path) -> None:
    learner = FineTune(minicl.mlp(6, 5))
    learner.save(tmp_path / "f")
    loaded = FineTune.load(tmp_path / "f", minicl.mlp(6, 5))
    assert equal(state(learner), state(loaded))
    assert loaded.tasks == {}
    assert loaded.scenario is None


def test_a_task_that_broke_off_freezes_nothing_after_load(tmp_path: Path) -> None:
    learner = FeatureExtraction(minicl.mlp(6, 5))
    with pytest.raises(Broken):
        learner.learn(make_tasks()[0], lambda: (_ for _ in ()).throw(Broken()))
    learner.save(tmp_path / "f")
    loaded = FeatureExtraction.load(tmp_path / "f", minicl.mlp(6, 5))
    assert len(list(loaded.backbone.parameters())) == 2
    train(loaded, make_tasks())
    assert loaded.learned == [0, 1, 2]


class WithSettings(FineTune):
    saved_attributes = ("counted",)

    def __init__(self, backbone: nn.Module, strength: float, function: Callable[[float], float] = abs) -> None:
        Learner.__init__(self, backbone, strength=strength, function=function)
        self.counted = {"a": 0}

    def learn(self, task: Task, fit: Fit) -> None:
        fit()
        self.counted["a"] += 1


def test_hyperparameters_and_attributes_are_saved(tmp_path: Path) -> None:
    learner = WithSettings(minicl.mlp(6, 5), 0.1 + 0.2)
    train(learner, make_tasks())
    learner.save(tmp_path / "f")
    with pytest.raises(
        ValueError, match=r"could not hold function \(abs\); give it to load\(path, backbone, function=...\)"
    ):
        WithSettings.load(tmp_path / "f", minicl.mlp(6, 5))
    loaded = WithSettings.load(tmp_path / "f", minicl.mlp(6, 5), function=round)
    assert loaded.hyperparameters == {"strength": 0.1 + 0.2, "function": round}
    assert loaded.counted == {"a": 3}
    with pytest.raises(ValueError, match=r"has hyperparameters that WithSettings does not take: .*colour"):
        WithSettings.load(tmp_path / "f", minicl.mlp(6, 5), function=round, colour="red")


def saved(tmp_path: Path, scenario: str = "task") -> Path:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks(scenario))
    learner.save(tmp_path / "f.safetensors")
    return tmp_path / "f.safetensors"


def test_a_file_of_another_method_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(ValueError, match="holds a FineTune, not a Joint; load it with minicl"):
        Joint.load(path, minicl.mlp(6, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: minicl.mlp(6, 4),
            r"does not fit this backbone: backbone.1.weight has shape \(5, 6\) in the file and \(4, 6\)",
        ),
        (
            lambda: minicl.mlp(6, 5, 5),
            r"does not fit this backbone: backbone.3.bias is in the network but not in the file",
        ),
        (lambda: minicl.mlp(6, 5, bias=False), r"backbone.1.bias is in the file but not in the network"),
        (lambda: minicl.mlp(6, 5).double(), r"is torch.float32 in the file and torch.float64 in the network"),
    ],
)
def test_a_file_of_another_network_is_refused_and_the_network_untouched(
    make: Any, message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    backbone = make()
    before = state(backbone)
    with pytest.raises(ValueError, match=message):
        FineTune.load(path, backbone)
    assert equal(before, state(backbone))


def test_double_precision_survives(tmp_path: Path) -> None:
    tasks = [Task(0, 2, (t.train.x.double(), t.train.y), test=(t.train.x.double(), t.train.y)) for t in make_tasks(n=1)]
    learner = FineTune(minicl.mlp(6, 5).double())
    train(learner, tasks)
    assert learner.heads["0"].weight.dtype == torch.float64
    learner.save(tmp_path / "f")
    assert equal(state(learner), state(FineTune.load(tmp_path / "f", minicl.mlp(6, 5).double())))


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("bomb-went-off"),)


@pytest.mark.parametrize("content", [b"", pickle.dumps(Bomb()), random.Random(1).randbytes(5000), b"{}"])
def test_a_hostile_file_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        FineTune.load("f.safetensors", minicl.mlp(6, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["f.safetensors"]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            FineTune.load(path, minicl.mlp(6, 5))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        FineTune.load(tmp_path / "another", minicl.mlp(6, 5))


HEAD = {"id": 0, "n_outputs": 2, "n_features": 5, "scenario": "task", "name": "", "finished": True, "notes": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"hyperparameters": None},
        {"hyperparameters": [1]},
        {"hyperparameters": {"learning_rate": 1}},
        {"attributes": None},
        {"input_shape": "abc"},
        {"input_shape": 5},
        {"tasks": None},
        {"tasks": [5]},
        {"tasks": [{}]},
        {"tasks": [HEAD | {"id": -1}]},
        {"tasks": [HEAD | {"id": "0"}]},
        {"tasks": [HEAD | {"n_outputs": 0}]},
        {"tasks": [HEAD | {"n_outputs": "2"}]},
        {"tasks": [HEAD | {"n_outputs": 10**15}]},  # would take all memory
        {"tasks": [HEAD | {"n_features": 10**15}]},
        {"tasks": [HEAD | {"scenario": "none"}]},
        {"tasks": [HEAD | {"notes": 3}]},
        {"tasks": [HEAD | {"surprise": 3}]},
        {"tasks": [HEAD, HEAD]},
        {"tasks": [HEAD, HEAD | {"id": 1, "scenario": "class"}]},
        {"tasks": []},  # and then the heads are left over
        {"method": None},
    ],
)
def test_a_file_with_a_wrong_header_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["minicl"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["digest"]  # which `write` works out anew: it is the header's own checks that are to find what is wrong
    files.write(path, header | change, tensors)
    with pytest.raises(ValueError, match=r"f\.safetensors"):
        FineTune.load(path, minicl.mlp(6, 5))
    for name in header.keys() - {"scenario", "format"}:
        files.write(path, {k: v for k, v in header.items() if k != name}, tensors)
        with pytest.raises(ValueError, match=r"f\.safetensors"):
            FineTune.load(path, minicl.mlp(6, 5))


def test_what_cannot_be_written_leaves_the_older_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    learner = WithSettings(minicl.mlp(6, 5), 1.0)
    learner.counted["a"] = object()  # type: ignore[assignment]
    with pytest.raises(TypeError):
        learner.save(path)
    learner.counted["a"] = 1
    assert path.read_bytes() == whole
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        learner.save(tmp_path / "no" / "f")
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        learner.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


def test_nobody_saves_in_the_middle_of_a_task(tmp_path: Path) -> None:
    learner = FineTune(minicl.mlp(6, 5))

    def fit() -> None:
        learner.save(tmp_path / "f")

    with pytest.raises(ValueError, match="task 0 is being learned; save between tasks"):
        learner.learn(make_tasks()[0], fit)
    assert list(tmp_path.iterdir()) == []


# ---- the bounds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Individual, FeatureExtraction])
def test_what_shares_nothing_that_moves_forgets_nothing(method: type[Learner]) -> None:
    stream = minicl.split("digits", 5, n_train=60)
    result = minicl.run(method(minicl.mlp(64, 20, batchnorm=True, dropout=0.2)), stream, epochs=3)
    known = result.accuracy
    for j in range(5):
        assert all(known[i, j] == known[j, j] for i in range(j, 5))
    assert result.forgetting == 0


def test_individual_networks_are_separate_and_start_from_different_weights() -> None:
    learner = Individual(minicl.mlp(6, 5))
    for task in make_tasks():
        learner.prepare(task)
    weights = [learner.networks[str(t)][1].weight for t in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert len({w.data_ptr() for w in weights}) == 3


def test_individual_is_as_good_as_a_network_trained_alone() -> None:
    """Task 0 of Individual is FineTune on task 0, to the bit: the same network, the same order, the same optimiser."""
    tasks = make_tasks(shape=(1, 5, 5))
    torch.manual_seed(0)
    backbone = Plain()
    one, other = Individual(copy.deepcopy(backbone)), FineTune(copy.deepcopy(backbone))
    train(one, tasks[:1])
    train(other, tasks[:1])
    x = torch.randn(3, 1, 5, 5)
    assert torch.equal(one(x, 0), other(x, 0))


def test_feature_extraction_is_fine_tuning_on_the_first_task_and_linear_after_it() -> None:
    tasks = make_tasks()
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    one, other = FeatureExtraction(copy.deepcopy(backbone)), FineTune(copy.deepcopy(backbone))
    train(one, tasks[:1])
    train(other, tasks[:1])
    x = torch.randn(3, 6)
    assert torch.equal(one(x, 0), other(x, 0))
    before = one.backbone(x)
    train(one, tasks[1:])
    assert torch.equal(one.backbone(x), before)
    torch.testing.assert_close(one(x, 2), before @ one.heads["2"].weight.T + one.heads["2"].bias)


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_joint_is_a_run_from_the_first_weights_on_all_data(scenario: str) -> None:
    """After each task, Joint's backbone comes from the first weights, whatever was learned in between."""
    tasks = make_tasks(scenario)
    backbone = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    started: list[dict[str, Tensor]] = []
    given: list[list[int]] = []

    class Watched(Joint):
        def learn(self, task: Task, fit: Fit) -> None:
            def watched(tasks: list[Task]) -> None:
                started.append(state(self.backbone))
                given.append([t.id for t in tasks])
                fit(tasks=tasks)

            super().learn(task, watched)

    first = state(backbone)
    learner = Watched(backbone)
    train(learner, tasks)
    assert given == [[0], [0, 1], [0, 1, 2]]
    assert all(equal(first, each) for each in started)
    assert not equal(first, state(learner.backbone))


def test_the_loss_of_a_mixture_is_the_mean_over_its_samples() -> None:
    learner = Joint(minicl.mlp(6, 5))
    train(learner, make_tasks())
    x, y = torch.randn(7, 6), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    ids = torch.tensor([0, 2, 2, 1, 0, 2, 2])
    one_by_one = [learner.loss(x[i : i + 1], y[i : i + 1], int(ids[i])) for i in range(7)]
    torch.testing.assert_close(learner.loss(x, y, ids), torch.stack(one_by_one).mean())


def test_joint_training_remembers_what_fine_tuning_forgets() -> None:
    stream = minicl.permuted("digits", 3, "domain", n_train=300)
    scores = {
        method: minicl.run(method(minicl.mlp(64, 64)), stream, epochs=40).average_accuracy
        for method in (FineTune, Joint)
    }
    assert scores[Joint] > scores[FineTune] + 0.05
