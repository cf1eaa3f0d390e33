"""`run`: the same bits from the same seed, nothing decided by test data, every loop detail, every refusal."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

import minicl
from minicl import FineTune, Joint, Learner, Task, evaluate, run
from minicl.learner import Fit

MNIST = Path(__file__).parents[2] / "shared" / "data"
MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def digits(n_tasks: int = 2, scenario: str = "task", **settings: Any) -> minicl.TaskStream:
    return minicl.split("digits", n_tasks, scenario, **{"n_train": 80, **settings})


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def digest(learner: nn.Module) -> str:
    tensors = (tensor.cpu().contiguous().numpy().tobytes() for tensor in learner.state_dict().values())
    return hashlib.sha256(b"".join(tensors)).hexdigest()


# ---- the loop is the loop that one would write -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [MOMENTUM, partial(torch.optim.AdamW, lr=0.01)])
def test_run_is_a_hand_written_loop_to_the_bit(make: Any) -> None:
    task = digits()[0]
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.3))
    learner = FineTune(copy.deepcopy(backbone))
    result = run(learner, [task], epochs=3, batch_size=32, optimizer=make, seed=11)

    torch.manual_seed(11)
    head = nn.Linear(20, 5)
    order = torch.Generator().manual_seed(11)
    optimizer = make([*backbone.parameters(), *head.parameters()])
    for _ in range(3):
        backbone.train()
        rows = torch.randperm(80, generator=order)
        for batch in (rows[:32], rows[32:64], rows[64:]):
            optimizer.zero_grad()
            F.cross_entropy(head(backbone(task.train.x[batch])), task.train.y[batch]).backward()
            optimizer.step()
    assert equal(state(learner.backbone), state(backbone))
    assert equal(state(learner.heads["0"]), state(head))
    backbone.eval()
    right = (head(backbone(task.test.x)).argmax(1) == task.test.y).double().mean()
    assert result.accuracy[0, 0] == pytest.approx(float(right))


class Watched(FineTune):
    """Writes down what the loop hands over."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.sizes: list[int] = []
        self.progress: list[float] = []
        self.ids: list[Any] = []
        self.modes: list[bool] = []
        self.seen: list[Tensor] = []

    def loss(self, x: Tensor, y: Tensor, task_id: Any = None) -> Tensor:
        self.sizes.append(len(x))
        self.ids.append(task_id)
        self.modes.append(self.training)
        self.seen.append(x)
        return super().loss(x, y, task_id)

    def before_step(self, progress: float) -> None:
        self.progress.append(progress)


def of_size(n: int, scenario: str = "task", id: int = 0) -> Task:
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, 4, generator=generator), torch.randint(2, (n,), generator=generator)
    return Task(id, 2, (x, y), (x, y), (x, y), scenario=scenario)


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),  # a last batch of one would leave BatchNorm without a variance
        (8, 4, [4, 4]),
        (5, 1, [1, 1, 1, 1, 1]),
        (1, 4, [1]),
        (3, 100, [3]),
        (3, 2, [3]),
    ],
)
def test_batches(n: int, batch_size: int, sizes: list[int]) -> None:
    learner = Watched(minicl.mlp(4, 3))
    task = of_size(n)
    run(learner, [task], epochs=2, batch_size=batch_size)
    assert learner.sizes == sizes * 2
    steps = len(sizes)
    each_epoch = [i / max(steps - 1, 1) for i in range(steps)]
    assert learner.progress == ([0.0, 1.0] if steps == 1 else each_epoch * 2)  # one batch: over all epochs
    assert learner.ids == [0] * (2 * steps)
    assert all(learner.modes)
    assert not learner.training
    for epoch in (0, 1):  # each sample once an epoch
        rows = torch.cat(learner.seen[epoch * steps : (epoch + 1) * steps])
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, task.train.x.tolist()))
    if n > 3:
        assert not torch.equal(torch.cat(learner.seen[:steps]), torch.cat(learner.seen[steps:]))


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_no_task_id_is_handed_over_where_the_scenario_gives_none(scenario: str) -> None:
    learner = Watched(minicl.mlp(64, 8))
    run(learner, digits(scenario=scenario), epochs=1)
    assert set(learner.ids) == {None}


def test_a_method_decides_how_long_it_trains() -> None:
    class Twice(Watched):
        def learn(self, task: Task, fit: Fit) -> None:
            fit()
            fit(epochs=1)
            fit(epochs=0)

    learner = Twice(minicl.mlp(4, 3))
    optimizers = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizers.append(MOMENTUM(parameters))
        return optimizers[-1]

    result = run(learner, [of_size(8)], epochs=3, batch_size=4, optimizer=make)
    assert len(learner.sizes) == 2 * (3 + 1)
    assert len(optimizers) == 3  # a new one for every call of fit
    assert len(result.learning_curves[0]) == 1 + 3 + 1


def test_a_mixture_says_of_which_task_each_sample_is() -> None:
    class WatchedJoint(Joint):
        batches: list[tuple[Tensor, Tensor]]

        def loss(self, x: Tensor, y: Tensor, task_id: Any = None) -> Tensor:
            self.batches.append((x, task_id))
            return super().loss(x, y, task_id)

    learner = WatchedJoint(minicl.mlp(64, 8))
    learner.batches = []
    stream = digits(5)
    run(learner, stream, epochs=1)
    image_of = {tuple(x.flatten().tolist()): task.id for task in stream for x in task.train.x}
    for x, ids in learner.batches:
        assert [image_of[tuple(image.flatten().tolist())] for image in x] == ids.tolist()
    last = torch.cat([ids for _, ids in learner.batches[-(5 * 80 // 32) :]])  # the epoch on all five
    assert set(last.tolist()) == {0, 1, 2, 3, 4}
    assert max(len(ids.unique()) for _, ids in learner.batches) >= 4  # and they come mixed


# ---- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_every_task_is_measured_after_every_task(scenario: str) -> None:
    stream = digits(5, scenario)
    learner = FineTune(minicl.mlp(64, 16))
    seen: list[list[float]] = []

    result = run(learner, stream, epochs=2, seed=3)
    for i in range(1, 6):  # the same run, stopped after i tasks, and measured by hand
        again = FineTune(minicl.mlp(64, 16))
        run(again, stream[:i], epochs=2, seed=3)
        row = []
        for task in stream:
            if task.id >= i and scenario != "domain":
                row.append(math.nan)
                continue
            logits = again(task.test.x, task.id if scenario == "task" else None)
            row.append(float((logits.argmax(1) == task.test.y).double().mean()))
        seen.append(row)
    np.testing.assert_allclose(result.accuracy, np.array(seen), rtol=0, atol=1e-12)
    for i, curve in enumerate(result.learning_curves):
        assert len(curve) == 3
        assert curve[-1] == pytest.approx(result.accuracy[i, i])
    if scenario == "domain":
        assert np.isfinite(result.baseline).all()
        assert math.isfinite(result.forward_transfer)
        assert result.baseline[0] == pytest.approx(result.learning_curves[0][0])  # task 0 before it is learned
    else:
        assert np.isnan(result.baseline).all()
    assert result.parameters == sum(p.numel() for p in learner.parameters())
    assert 0 < result.seconds < 60
    assert result.scenario == scenario
    assert result.stream["name"] == "split-digits"
    assert result.seed == 3
    assert result.settings == {
        "epochs": 2,
        "batch_size": 32,
        "optimizer": "SGD(lr=0.1)",
        "schedule": None,
        "patience": None,
        "device": "cpu",
    }


def test_evaluate_by_hand() -> None:
    learner = FineTune(minicl.mlp(4, 3, dropout=0.5))
    task = of_size(23)
    run(learner, [task], epochs=1)
    right = [int(learner(task.test.x[i : i + 1], 0).argmax()) == int(task.test.y[i]) for i in range(23)]
    learner.train()
    for batch_size in (1, 7, 23, 1000):
        assert evaluate(learner, task, "test", batch_size) == sum(right) / 23
    assert learner.training  # as it was
    assert evaluate(learner, task) == evaluate(learner, task, "valid") == evaluate(learner, task, "train")


def test_evaluate_refuses_what_it_cannot_measure() -> None:
    learner = FineTune(minicl.mlp(4, 3))
    task = of_size(6)
    with pytest.raises(ValueError, match="learned no task yet"):
        evaluate(learner, task)
    run(learner, [task], epochs=1)
    with pytest.raises(ValueError, match="unknown part 'tests'; allowed: train, valid, test"):
        evaluate(learner, task, "tests")
    with pytest.raises(ValueError, match="task 0 has no valid samples to evaluate on"):
        evaluate(learner, Task(0, 2, (task.train.x, task.train.y)), "valid")
    with pytest.raises(ValueError, match="the task id is 5, which has not been learned; allowed: 0"):
        evaluate(learner, of_size(6, id=5))


# ---- the same seed, the same bits ------------------------------------------------------------------------------------


def everything(seed: int = 5, method: type[Learner] = FineTune) -> str:
    """A run with everything random in it: weights, order, dropout; several tasks, validation, a schedule."""
    stream = minicl.permuted("digits", 2, "task", seed=seed, n_train=70)
    backbone = minicl.cnn(1, 4, 8, batchnorm=True, dropout=0.3)
    learner = method(backbone)
    result = run(
        learner, stream, epochs=3, optimizer=MOMENTUM, schedule=partial(StepLR, step_size=1), patience=2, seed=seed
    )
    return digest(learner) + repr(result.learning_curves) + repr(result.accuracy.tolist())


@pytest.mark.parametrize("method", [FineTune, minicl.Individual, Joint])
def test_the_same_seed_gives_the_same_bits_whatever_ran_before(method: type[Learner]) -> None:
    first = everything(method=method)
    torch.manual_seed(99)
    torch.randn(1000)
    np.random.seed(4)
    random.seed(4)
    run(FineTune(minicl.mlp(64, 30)), digits(), epochs=1, optimizer=torch.optim.Adam, seed=8)
    assert everything(method=method) == first
    assert everything(6, method) != first


def test_the_same_bits_in_a_fresh_process() -> None:
    script = f"""
        import os, sys
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch
        torch.set_num_threads(1)
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        import test_training
        print(test_training.everything())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.stdout.strip() == everything(), done.stderr


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    learner = FineTune(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5)))
    torch.set_rng_state(before[0])
    run(learner, digits(), epochs=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    with pytest.raises(FloatingPointError):
        run(learner, digits(5)[2:], epochs=2, optimizer=partial(torch.optim.SGD, lr=1e30))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]


def test_networks_of_ones_own_keep_the_weights_they_come_with() -> None:
    torch.manual_seed(1)
    one, other = (nn.Sequential(nn.Flatten(), nn.Linear(64, 8)) for _ in range(2))
    started: list[dict[str, Tensor]] = []

    class Look(FineTune):
        def learn(self, task: Task, fit: Fit) -> None:
            started.append(state(self.backbone))
            fit()

    for backbone in (one, other):
        before = state(backbone)
        run(Look(backbone), digits()[:1], epochs=1)
        assert equal(started[-1], before)
    assert not equal(*started)
    for _ in range(2):  # minicl's own are drawn from the seed
        run(Look(minicl.mlp(64, 8)), digits()[:1], epochs=1)
    assert equal(*started[2:])
    trained = minicl.mlp(64, 8)
    with torch.no_grad():
        trained[1].weight.add_(1)
    run(Look(trained), digits()[:1], epochs=1)
    assert float(started[-1]["1.weight"].mean()) > 0.9


def test_a_second_run_goes_on_where_the_first_stopped() -> None:
    stream = digits(5)
    learner = FineTune(minicl.mlp(64, 8))
    first = run(learner, stream[:2], epochs=1)
    backbone = state(learner.backbone)
    second = run(learner, stream[2:], epochs=1)
    assert first.accuracy.shape == (2, 2)
    assert second.accuracy.shape == (3, 3)
    assert learner.learned == [0, 1, 2, 3, 4]
    assert not equal(backbone, state(learner.backbone))


# ---- nothing is decided by test data ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"patience": 3},
        {"schedule": partial(ReduceLROnPlateau, patience=0, factor=0.3), "patience": 4},
        {"schedule": partial(CosineAnnealingLR, T_max=6)},
    ],
)
@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_other_test_labels_give_the_same_weights(settings: dict[str, Any], scenario: str) -> None:
    def tasks(part: str | None) -> list[Task]:
        made = []
        for task in digits(2, scenario):
            given = {name: (getattr(task, name).x, getattr(task, name).y) for name in ("train", "valid", "test")}
            if part is not None:
                given[part] = (given[part][0], given[part][1].roll(1))
            made.append(Task(task.id, task.n_outputs, **given, scenario=scenario))
        return made

    def train(part: str | None) -> tuple[str, np.ndarray]:
        learner = FineTune(minicl.mlp(64, 16))
        result = run(learner, tasks(part), epochs=6, optimizer=MOMENTUM, **settings)
        return digest(learner), result.accuracy

    weights, accuracy = train(None)
    same_weights, other_accuracy = train("test")
    assert weights == same_weights
    assert not np.array_equal(accuracy, other_accuracy, equal_nan=True)  # the labels are other ones
    if "patience" in settings:
        assert train("valid")[0] != weights  # validation data do decide


class Spy:
    """A schedule that looks at the learner after each epoch, as a person might."""

    def __init__(self, learner: Learner, task: Task) -> None:
        self.learner, self.task = learner, task
        self.valid: list[float] = []
        self.states: list[dict[str, Tensor]] = []

    def __call__(self, optimizer: torch.optim.Optimizer) -> Spy:
        return self

    def step(self) -> None:
        self.valid.append(evaluate(self.learner, self.task, "valid"))
        self.states.append(state(self.learner))


@pytest.mark.parametrize("patience", [1, 2, 5])
@pytest.mark.parametrize("lr", [0.5, 2.0])
def test_early_stopping_goes_back_to_the_best_epoch(patience: int, lr: float) -> None:
    task = digits(1, validation=0.3)[0]
    learner = FineTune(minicl.mlp(64, 12, batchnorm=True))
    spy = Spy(learner, task)
    result = run(learner, [task], epochs=25, optimizer=partial(torch.optim.SGD, lr=lr), schedule=spy, patience=patience)
    best = max(range(len(spy.valid)), key=spy.valid.__getitem__)  # the first of the best
    assert len(spy.valid) == min(25, best + 1 + patience)
    assert len(spy.valid) < 25  # it did stop early, or this test shows nothing
    assert equal(state(learner), spy.states[best])
    assert not equal(state(learner), spy.states[-1])
    assert evaluate(learner, task, "valid") == max(spy.valid)
    assert len(result.learning_curves[0]) == 1 + len(spy.valid)
    assert result.accuracy[0, 0] == result.learning_curves[0][best + 1]


def test_an_epoch_that_is_only_as_good_is_no_better() -> None:
    task = of_size(6)
    learner = FineTune(minicl.mlp(4, 3))
    spy = Spy(learner, task)
    run(learner, [task], epochs=9, optimizer=partial(torch.optim.SGD, lr=1e-5), schedule=spy, patience=3)
    assert len(set(spy.valid)) == 1
    assert len(spy.valid) == 1 + 3
    assert equal(state(learner), spy.states[0])
    assert not equal(state(learner), spy.states[-1])


# ---- schedules and optimisers ----------------------------------------------------------------------------------------


def rates(schedule: Any, epochs: int = 5) -> list[float]:
    """The learning rate of each step, for one step an epoch."""
    seen: list[float] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    run(FineTune(minicl.mlp(4, 3)), [of_size(6)], epochs=epochs, optimizer=make, schedule=schedule)
    return seen


def test_a_schedule_steps_after_each_epoch() -> None:
    assert rates(None) == [1.0] * 5
    assert rates(partial(StepLR, step_size=2, gamma=0.1)) == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])


def test_a_plateau_is_seen_in_the_validation_loss() -> None:
    given: list[float] = []
    task = of_size(6)
    learner = FineTune(minicl.mlp(4, 3, dropout=0.5))

    class Seen(ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:
            assert not learner.training
            given.append(metrics)
            with torch.no_grad():
                assert metrics == pytest.approx(
                    float(F.cross_entropy(learner(task.valid.x, 0), task.valid.y)), rel=1e-5
                )
            super().step(metrics)

    run(learner, [task], epochs=3, schedule=Seen)
    assert len(set(given)) == 3
    assert rates(
        partial(ReduceLROnPlateau, patience=0, factor=0.1, threshold=1e9, threshold_mode="abs"), 4
    ) == pytest.approx([1, 1, 0.1, 0.01])


@pytest.mark.parametrize(
    "make",
    [
        MOMENTUM,
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        partial(torch.optim.Adam, lr=0.01),
        partial(torch.optim.AdamW, lr=0.01),
        partial(torch.optim.RMSprop, lr=0.01),
        partial(torch.optim.Adagrad, lr=0.1),
        partial(torch.optim.LBFGS, lr=0.5, max_iter=4),
        lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    ],
)
@pytest.mark.parametrize("network", [lambda: minicl.mlp(64, 16), lambda: minicl.cnn(1, 6, batchnorm=True, dropout=0.1)])
def test_any_optimiser_learns(make: Any, network: Callable[[], nn.Module]) -> None:
    result = run(FineTune(network()), digits(5)[:1], epochs=8, optimizer=make)
    assert result.accuracy[0, 0] > 0.9


def test_residual_networks_and_odd_batches() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.second = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.norm(self.first(x)))
            return F.relu(h + self.second(h)).flatten(1)

    stream = digits(5, n_train=33)  # batches of 16 and 17, never of 1
    assert run(FineTune(Residual()), stream, epochs=5, batch_size=16).average_accuracy > 0.8


@pytest.mark.skipif(not MNIST.is_dir(), reason="there is no MNIST beside the project")
def test_mnist_is_learned() -> None:
    stream = minicl.split("mnist", 5, root=MNIST, n_train=500)
    assert run(FineTune(minicl.mlp(784, 64)), stream[:2], epochs=3).accuracy[1, 1] > 0.9


# ---- what is refused -------------------------------------------------------------------------------------------------

X, Y = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])


def bare(id: int, scenario: str = "task", n_outputs: int = 2, shape: tuple[int, ...] = (6, 4), **parts: Any) -> Task:
    x = torch.zeros(shape)
    return Task(id, n_outputs, **{"train": (x, Y), "test": (x, Y), **parts}, scenario=scenario)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs is 0; allowed: integers from 1 up"),
        ({"epochs": -3}, "epochs is -3"),
        ({"batch_size": 0}, "batch_size is 0; allowed: integers from 1 up"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"patience": 0}, "patience is 0; allowed: integers from 1 up"),
        ({"seed": -1}, "seed is -1; allowed: integers from 0"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"device": "cuda:99"}, "the device 'cuda:99' is not there; there are: cpu"),
        ({"device": "tpu"}, "unknown device 'tpu'; there are: cpu"),
        ({"device": "meta"}, "the device 'meta' is not there"),
        ({"stream": []}, "the stream has no tasks"),
        ({"patience": 2}, "patience needs validation samples, and task 0 has none"),
        (
            {"schedule": ReduceLROnPlateau},
            "ReduceLROnPlateau goes by the validation loss, and task 0 has no validation samples",
        ),
        ({"stream": [bare(0), bare(0)]}, "must have different ids"),
        ({"stream": [bare(0), bare(1, "domain")]}, "must share one scenario; given: domain, task"),
        ({"stream": [bare(0, "domain"), bare(1, "domain", 3)]}, r"share one head; given n_outputs: \[2, 3\]"),
        ({"stream": [bare(0, "class", 4), bare(1, "class", 2)]}, "it cannot shrink"),
        ({"stream": [bare(0), bare(1, test=None)]}, r"task 1 \(task 1\) was made without test samples"),
        ({"stream": [bare(0), bare(1, train=None, example=X)]}, r"task 1 \(task 1\) was made without train samples"),
        ({"stream": [bare(0), bare(1, shape=(6, 5))]}, r"inputs of different shapes: \(4,\), \(5,\)"),
        ({"stream": [bare(0, shape=(6, 5))]}, r"the backbone cannot take inputs of shape \(batch, 5\)"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_changes(arguments: dict[str, Any], message: str) -> None:
    learner = FineTune(nn.Sequential(nn.Linear(4, 3)))
    before, rng = state(learner), torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        run(learner, **{"stream": [bare(0)], **arguments})
    after = {name: tensor for name, tensor in state(learner).items() if not name.startswith("heads.")}
    assert equal(before, after)
    assert learner.learned == []
    assert torch.equal(rng, torch.get_rng_state())
    run(learner, [bare(0), bare(1)], epochs=1)  # and nothing is in the way of the right call


def test_wrong_types_are_named() -> None:
    script = """
        import minicl, torch  # without the tests' type checks in between
        learner, stream = minicl.FineTune(minicl.mlp(64, 8)), minicl.split("digits")
        tries = [
            lambda: minicl.run(learner, stream[0]),
            lambda: minicl.run(learner, [1, 2]),
            lambda: minicl.run(torch.nn.Linear(2, 2), stream),
            lambda: minicl.run(learner, stream, optimizer="adam"),
            lambda: minicl.run(learner, stream, optimizer=torch.optim.SGD(learner.parameters(), lr=0.1)),
            lambda: minicl.run(learner, stream, schedule=3),
            lambda: minicl.run(learner, stream, epochs=1.5),
            lambda: minicl.run(learner, stream, epochs=True),
            lambda: minicl.run(learner, stream, batch_size="32"),
            lambda: minicl.run(learner, stream, seed=None),
            lambda: minicl.run(learner, stream, device=None),
            lambda: minicl.split("digits", n_tasks=2.0),
            lambda: minicl.Task("0", 2),
            lambda: minicl.FineTune(len),
            lambda: minicl.FineTune(minicl.mlp(4, 2), strength=3),
            lambda: learner.protect(3),
            lambda: minicl.mlp(4, 2, activation=torch.nn.ReLU()),
            lambda: minicl.mlp("4", 2),
        ]
        for attempt in tries:
            try:
                attempt()
                print("accepted")
            except (TypeError, ValueError) as error:
                print(type(error).__name__, error)
        assert learner.tasks == {}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    expected = [
        "TypeError run was given a single task; allowed: a stream or a list of tasks",
        "TypeError the stream holds a int; allowed: minicl.Task",
        "TypeError the learner is a Linear; allowed: a minicl.Learner",
        "TypeError optimizer is a str; allowed: what makes one",
        "TypeError optimizer is a SGD; allowed: what makes one",
        "TypeError schedule is a int; allowed: what makes one",
        "ValueError epochs is 1.5; allowed: integers from 1 up",
        "ValueError epochs is True",
        "ValueError batch_size is '32'",
        "ValueError seed is None",
        "ValueError unknown device None",
        "ValueError n_tasks is 2.0; allowed: integers from 1 up",
        "ValueError the task id is '0'; allowed: integers from 0 up",
        "TypeError the backbone is a builtin_function_or_method; allowed: an nn.Module",
        "TypeError FineTune.__init__() got an unexpected keyword argument 'strength'",
        "TypeError protect was given a int; allowed: a torch.optim.Optimizer",
        "TypeError activation is ReLU(); allowed: a class of modules",
        "ValueError mlp('4', 2) is not a network",
    ]
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected), done.stderr
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


class Explodes(FineTune):
    """A loss that is not finite from the given step on."""

    def __init__(self, backbone: nn.Module, value: float) -> None:
        super().__init__(backbone)
        self.value, self.steps, self.explosive = value, 0, True

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        self.steps += 1
        loss = super().loss(x, y, task_id)
        return loss * self.value if self.explosive and self.steps >= 4 + 4 + 3 else loss


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [MOMENTUM, partial(torch.optim.LBFGS, max_iter=1)])
def test_a_loss_that_is_no_number_stops_and_says_where(value: float, make: Any) -> None:
    learner = Explodes(minicl.mlp(4, 3, batchnorm=True), value)
    tasks = [of_size(8), of_size(8, id=7)]
    run(learner, tasks[:1], epochs=2, batch_size=4, optimizer=MOMENTUM)  # four steps
    learner.steps = 4
    before = state(learner)
    where = "task 7 .task 7., epoch 4 of 5, step 1 of 2"
    if make is not MOMENTUM:
        learner.explosive = False  # LBFGS looks at the loss more than once a step; here it only has to stop
        learner.explosive, where = True, r"task 7 .task 7., epoch \d of 5, step \d of 2"
    with pytest.raises(
        FloatingPointError, match=f"the loss became -?(nan|inf) at {where}; .* as it was before this task"
    ):
        run(learner, tasks[1:], epochs=5, batch_size=4, optimizer=make)
    assert learner.learned == [0]
    after = state(learner)
    assert equal(before, {name: after[name] for name in before})
    learner.explosive = False
    run(learner, tasks[1:], epochs=1)  # the task can be learned after all
    assert learner.learned == [0, 7]


def test_a_learning_rate_that_is_too_large_is_noticed() -> None:
    learner = FineTune(minicl.mlp(64, 16))
    with pytest.raises(FloatingPointError, match=r"at task 0 \(classes 0-4\), epoch \d+ of 50, step \d of 3"):
        run(learner, digits(), epochs=50, optimizer=partial(torch.optim.SGD, lr=1e20))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in learner.state_dict().values())


# ---- devices and the progress bar ------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu() -> None:
    def once() -> tuple[FineTune, str]:
        learner = FineTune(minicl.cnn(1, 8, 16, batchnorm=True, dropout=0.2))
        before = torch.cuda.get_rng_state()
        result = run(learner, digits(5), epochs=3, optimizer=MOMENTUM, patience=2, device="cuda", seed=2)
        assert torch.equal(torch.cuda.get_rng_state(), before)
        assert result.settings["device"] == "cuda"
        return learner, digest(learner) + repr(result.accuracy.tolist())

    learner, first = once()
    assert learner.device.type == "cuda"
    torch.randn(100, device="cuda")
    torch.cuda.manual_seed_all(7)
    assert once()[1] == first
    network = learner.export(3)
    x = digits(5)[3].test.x.to("cuda")
    assert torch.equal(network(x), learner(x, 3))
    assert run(FineTune(minicl.mlp(64, 32)), digits(5)[:1], device="cuda", epochs=8).accuracy[0, 0] > 0.9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="the device 'cuda' is not there; there are: cpu"):
        run(FineTune(minicl.mlp(64, 8)), digits(), device="cuda")


def test_the_progress_bar_shows_when_asked_and_counts_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    run(FineTune(minicl.mlp(64, 8)), digits(), epochs=3, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "6/6" in shown.err
    assert "task 1, accuracy" in shown.err


def test_the_bar_counts_what_early_stopping_and_longer_methods_do(capsys: pytest.CaptureFixture[str]) -> None:
    class Longer(FineTune):
        def learn(self, task: Task, fit: Fit) -> None:
            fit(epochs=2)
            fit(epochs=3)

    run(Longer(minicl.mlp(64, 8)), digits(), epochs=3, progress=True)
    assert "10/10" in capsys.readouterr().err
    result = run(FineTune(minicl.mlp(64, 8)), digits()[:1], epochs=50, patience=1, progress=True)
    n = len(result.learning_curves[0]) - 1
    assert n < 50
    assert f"{n}/{n}" in capsys.readouterr().err


def test_no_bar_where_nobody_watches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run(FineTune(minicl.mlp(64, 8)), digits(), epochs=1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(os.environ, "CI", "true")
    run(FineTune(minicl.mlp(64, 8)), digits(), epochs=1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("CI")
    run(FineTune(minicl.mlp(64, 8)), digits(), epochs=1)
    assert "2/2" in capsys.readouterr().err
