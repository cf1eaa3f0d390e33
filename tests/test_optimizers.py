"""One optimiser for a whole run: what it knows stays, what comes joins it, what goes leaves it, and files hold it."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loops import ADAM, MOMENTUM, same_bits, small_tasks, state
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

import minicl
from minicl import FineTune
from minicl.combinations import combine
from minicl.optimizers import Optimizers, pack_optimizer, unpack_optimizer


class Made:
    """A factory that remembers what it made."""

    def __init__(self, make: Any = ADAM) -> None:
        self.make, self.all = make, []  # type: tuple[Any, list[torch.optim.Optimizer]]

    def __call__(self, parameters: Any) -> torch.optim.Optimizer:
        self.all.append(self.make(parameters))
        return self.all[-1]


@pytest.mark.parametrize("make", [ADAM, MOMENTUM])
def test_a_kept_optimiser_is_that_of_a_hand_written_loop(make: Any) -> None:
    tasks = small_tasks(n=3)
    backbone = minicl.mlp(36, 12)
    twin = copy.deepcopy(backbone)
    with torch.no_grad():  # so that run draws nothing
        for p in (*backbone.parameters(), *twin.parameters()):
            p.add_(0.01)
    learner = FineTune(backbone)
    result = minicl.run(learner, tasks, epochs=2, batch_size=10, optimizer=make, seed=4, fresh_optimizer=False)
    other = FineTune(copy.deepcopy(twin))
    minicl.run(other, tasks, epochs=2, batch_size=10, optimizer=make, seed=4)

    torch.manual_seed(4)
    order = torch.Generator().manual_seed(4)
    heads: list[nn.Linear] = []
    for task in tasks:
        heads.append(nn.Linear(12, 2))
        if len(heads) == 1:
            optimizer = make([*twin.parameters(), *heads[0].parameters()])
        else:
            optimizer.add_param_group({"params": list(heads[-1].parameters())})
        for _ in range(2):
            for rows in torch.randperm(20, generator=order).split(10):
                optimizer.zero_grad()
                F.cross_entropy(heads[-1](twin(task.train.x[rows])), task.train.y[rows]).backward()
                optimizer.step()
    assert same_bits(state(learner.backbone), state(twin))
    assert same_bits(state(learner.heads["2"]), state(heads[2]))
    assert not same_bits(state(other.backbone), state(twin))  # a new one each time gives something else
    assert result.settings["fresh_optimizer"] is False


def test_what_comes_joins_and_what_goes_leaves() -> None:
    """PNN's columns, and its heads, are out of reach once a task has ended."""
    made, tasks = Made(), small_tasks(n=3)
    counts = []

    class Counting(minicl.PNN):
        def learn(self, task: minicl.Task, fit: Any) -> None:
            fit()
            (optimizer,) = made.all[1:]  # the first was tried before training
            counts.append(({id(p) for g in optimizer.param_groups for p in g["params"]}, len(optimizer.state)))
            assert counts[-1][0] == {id(p) for p in self.parameters()}

    learner = Counting(minicl.mlp(36, 8))
    minicl.run(learner, tasks, epochs=1, optimizer=made, fresh_optimizer=False)
    assert len(made.all) == 2
    assert [n for _, n in counts] == [4, 4 + 1, 4 + 1]  # nothing is known of parameters that are gone
    assert not counts[0][0] & counts[1][0]


def test_each_training_begins_with_the_first_learning_rate() -> None:
    rates: list[float] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
        optimizer.register_step_pre_hook(lambda *_: rates.extend({g["lr"] for g in optimizer.param_groups}))
        return optimizer

    settings: dict[str, Any] = {"optimizer": make, "batch_size": 20, "fresh_optimizer": False}
    minicl.run(FineTune(minicl.mlp(36, 8)), small_tasks(), epochs=3, schedule=partial(StepLR, step_size=1), **settings)
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5] * 3)
    rates.clear()
    cycle = partial(OneCycleLR, max_lr=1.0, total_steps=4)
    minicl.run(FineTune(minicl.mlp(36, 8)), small_tasks(), epochs=3, schedule=cycle, **settings)
    assert rates[:3] == rates[3:6] == rates[6:]
    assert rates[0] == pytest.approx(1 / 25)


def test_a_learning_rate_that_is_a_tensor() -> None:
    make = Made(lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.01), foreach=False))
    schedule = partial(StepLR, step_size=1)
    learner = FineTune(minicl.mlp(36, 8))
    minicl.run(learner, small_tasks(), epochs=2, optimizer=make, schedule=schedule, fresh_optimizer=False)
    assert [float(g["lr"]) for g in make.all[-1].param_groups] == pytest.approx([1e-4] * 3)  # after two steps of three


def test_what_cannot_be_kept_is_refused_before_training(tmp_path: Path) -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            self.optimizer = torch.optim.SGD(parameters, lr=0.1)
            super().__init__(self.optimizer.param_groups, {})

        def step(self, closure: Any = None) -> Any:
            return self.optimizer.step(closure)

    learner, tasks = FineTune(minicl.mlp(36, 8)), small_tasks()
    with pytest.raises(ValueError, match=r"LBFGS takes no parameters that come later, so it cannot be kept"):
        minicl.run(learner, tasks, optimizer=torch.optim.LBFGS, fresh_optimizer=False)
    with pytest.raises(ValueError, match=r"Wrapper keeps a state of its own, of which a checkpoint cannot know"):
        minicl.run(learner, tasks, optimizer=Wrapper, fresh_optimizer=False, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"fresh_optimizer is 'no'; allowed: True or False"):
        minicl.run(learner, tasks, fresh_optimizer="no")  # type: ignore[arg-type]
    assert learner.tasks == {}
    assert list(tmp_path.iterdir()) == []


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        ADAM,
        MOMENTUM,
        partial(torch.optim.SGD, lr=0.1),
        partial(torch.optim.NAdam, lr=0.01),
        partial(torch.optim.Rprop, lr=0.01),
        partial(torch.optim.ASGD, lr=0.01),
        partial(torch.optim.Adafactor, lr=0.01),
        lambda parameters: torch.optim.Adam([{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:]}]),
    ],
)
def test_an_optimiser_goes_on_from_a_file_as_if_nothing_had_been(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    one = FineTune(minicl.mlp(36, 8))
    tasks = small_tasks(n=2)
    for task in tasks:
        one.prepare(task)
    x, y = tasks[0].train.x, tasks[0].train.y

    def steps(learner: FineTune, optimizer: torch.optim.Optimizer) -> None:
        for t in (0, 1, 0):
            optimizer.zero_grad()
            F.cross_entropy(learner.heads.logits(learner.backbone(x), t), y).backward()
            optimizer.step()

    optimizer = make(list(one.parameters()))
    steps(one, optimizer)
    value, tensors = pack_optimizer(optimizer, one)
    minicl.files.write(tmp_path / "file", {"optimizer": value}, tensors)
    header, tensors = minicl.files.read(tmp_path / "file")
    other = copy.deepcopy(one)
    again = make(list(other.parameters()))
    unpack_optimizer(again, other, header["optimizer"], tensors)
    assert [len(g["params"]) for g in again.param_groups] == [len(g["params"]) for g in optimizer.param_groups]
    for each, its in ((one, optimizer), (other, again)):
        steps(each, its)
    assert same_bits(state(one), state(other))


def test_a_state_that_no_file_can_hold_says_so() -> None:
    learner = FineTune(minicl.mlp(36, 8))
    optimizer = ADAM(learner.parameters())
    optimizer.state[next(learner.parameters())]["odd"] = {1, 2}
    with pytest.raises(ValueError, match=r"the state of Adam holds a set; allowed in a file: numbers"):
        pack_optimizer(optimizer, learner)


def test_the_state_is_packed_by_name_without_what_is_gone() -> None:
    learner, optimizers = minicl.PNN(minicl.mlp(36, 8)), Optimizers(ADAM, fresh=False)
    assert optimizers.pack(learner) == (None, {})
    task = small_tasks(n=1)[0]

    def fit() -> None:
        optimizer = optimizers.begin(learner)
        learner.loss(task.train.x, task.train.y, 0).backward()
        optimizer.step()
        _, tensors = optimizers.pack(learner)
        assert len(tensors) == 4 * 3  # step, exp_avg, exp_avg_sq

    learner.learn(task, fit)
    value, tensors = optimizers.pack(learner)
    assert value == {"dict": [["groups", {"list": []}], ["state", {"dict": []}]]}
    assert tensors == {}


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def test_a_sweep_tells_kept_from_new() -> None:
    common: dict[str, Any] = {"epochs": 1, "batch_size": 4, "optimizer": ADAM, "schedule": None}
    common |= {"patience": None, "device": "cpu"}
    (plain,) = combine(["ewc"], ["split-digits"], [0], ["task"], None, common)
    (kept,) = combine(["ewc"], ["split-digits"], [0], ["task"], None, {**common, "fresh_optimizer": False})
    assert plain.key != kept.key
    assert "fresh_optimizer" not in plain.identity["settings"]  # so that results which are there are found
    assert kept.identity["settings"]["fresh_optimizer"] is False


def test_a_sweep_keeps_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "optimizer": ADAM, "network": "mlp:8", "jobs": 1, "progress": False}
    stream = partial(minicl.split, "digits", n_train=20)
    new, kept = (
        minicl.sweep("finetune", stream, 1, out=tmp_path, fresh_optimizer=fresh, **settings).results[0]
        for fresh in (True, False)
    )
    assert kept.settings["fresh_optimizer"] is False
    assert "fresh_optimizer" not in new.settings
    assert kept.learning_curves != new.learning_curves
    assert len(list(tmp_path.iterdir())) == 2


def backbone_slower_than_heads(named_parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named_parameters:
        groups[name.startswith("heads.")].append(parameter)
    heads, rest = ({"params": groups[True], "lr": 0.1}, {"params": groups[False], "lr": 0.001})
    return torch.optim.SGD([rest, heads], lr=1.0, momentum=0.9)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_factory_may_ask_for_names_and_new_heads_join_their_group(fresh: bool) -> None:
    learner = minicl.FineTune(minicl.mlp(64, 8))
    seen: list[dict[float, list[str]]] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            names = {id(p): name for name, p in learner.named_parameters()}
            found = {group["lr"]: [names[id(p)] for p in group["params"]] for group in self.param_groups}
            if not seen or seen[-1] != found:
                seen.append(found)
            return super().step(closure)

    def make(named_parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        return Watched(backbone_slower_than_heads(named_parameters).param_groups, lr=1.0, momentum=0.9)

    stream = minicl.split("digits", n_tasks=5)[:2]
    minicl.run(learner, stream, epochs=1, optimizer=make, fresh_optimizer=fresh, progress=False)
    backbone = [name for name, _ in learner.named_parameters() if name.startswith("backbone.")]
    first, second = ([f"heads.{t}.weight", f"heads.{t}.bias"] for t in (0, 1))
    assert seen[0] == {0.001: backbone, 0.1: first}
    assert seen[-1] == {0.001: backbone, 0.1: first + second}


def test_a_factory_may_hand_names_to_pytorch() -> None:
    results = []
    for make in (
        partial(torch.optim.Adam, lr=0.01),
        lambda named_parameters: torch.optim.Adam(named_parameters, lr=0.01),
    ):
        learner = minicl.FineTune(minicl.mlp(64, 8))
        stream = minicl.split("digits", n_tasks=5)[:2]
        run = partial(minicl.run, epochs=1, optimizer=make, fresh_optimizer=False, progress=False)
        results.append(run(learner, stream).accuracy)
    assert np.array_equal(*results, equal_nan=True)
