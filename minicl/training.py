"""`run`: learn the tasks of a stream one after another, and measure every task after each."""

from __future__ import annotations

import inspect
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .certificate import taken
from .checkpoint import Checkpoint, Measured
from .datasets import Samples
from .learner import Learner
from .metrics import Result
from .tasks import Task, TaskStream, check_seed, check_together

SGD = partial(torch.optim.SGD, lr=0.1)
EVALUATED_AT_ONCE = 1000
OPTIONAL = inspect.Parameter("closure", inspect.Parameter.KEYWORD_ONLY, default=None)


def run(
    learner: Learner,
    stream: TaskStream | Sequence[Task],
    *,
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: Callable[..., torch.optim.Optimizer] = SGD,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
) -> Result:
    """Learn the tasks of `stream` in order; after each, evaluate every task that has a head.

    The same seed gives the same result, bit for bit, on the same machine; the state of the global random generators
    neither matters nor changes. Networks from `minicl.mlp` and `minicl.cnn` that are still untouched are drawn from the
    seed; any other network keeps the weights that it comes with.

    Args:
        learner: trained in place.
        stream: tasks in the order in which they are learned.
        epochs: passes over a task's training data for each call of `fit`, unless the method asks for another number.
        batch_size: samples a step. A last batch of one sample joins the batch before it.
        optimizer: makes an optimiser from parameters; called anew for every call of `fit`.
            One that wants a closure, such as LBFGS, gets one.
        schedule: makes a learning-rate scheduler from the optimiser; stepped after each epoch, with the validation
            loss where it wants one (ReduceLROnPlateau).
        patience: stop after so many epochs without a better validation accuracy, and go back to the best epoch.
        seed: for initial weights, the order of samples, dropout.
        device: "cpu", "cuda", "cuda:1", "mps".
        progress: show a progress bar; by default where a person watches (a terminal, and not in CI).
        checkpoint: a folder for this run alone. After each task everything is written there; the same call, with a new
            learner, goes on after the last finished task, and gives what an uninterrupted run would have given, bit for
            bit. A damaged file is set aside with a warning. See `minicl.checkpoint`.

    Raises:
        ValueError: an argument out of its range, a task learned before, tasks that do not go together, a scenario in
            which the method cannot work, a device that is not there, a checkpoint of another run; before anything is
            trained.
        TypeError: something that is no learner, task or optimiser factory.
        FloatingPointError: the loss became NaN or infinite; says at which task and step. As after any other error, the
            learner is as it was before that task.
    """
    if isinstance(stream, Task):
        raise TypeError("run was given a single task; allowed: a stream or a list of tasks, such as [task]")
    tasks = list(stream)
    place = check_device(device)
    _check(learner, tasks, epochs, batch_size, patience, seed, checkpoint)
    for what, factory in (("optimizer", optimizer), ("schedule", schedule)):
        if factory is not None and not callable(factory):
            raise TypeError(
                f"{what} is a {type(factory).__name__}; "
                "allowed: what makes one, such as partial(torch.optim.SGD, lr=0.1)"
            )
    name = getattr(stream, "name", "stream")
    about = {"name": name, **getattr(stream, "settings", {})}
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": _describe(optimizer),
        "schedule": None if schedule is None else _describe(schedule),
        "patience": patience,
        "device": place.type,
    }
    kept = None if checkpoint is None else Checkpoint(checkpoint, _identity(learner, tasks, about, seed, settings))
    T = len(tasks)
    measured = Measured(np.full((T, T), np.nan), np.full(T, np.nan), [])
    with _random_numbers_of(seed, place), _bar(progress, T * epochs) as bar:
        learner.to(place)
        learner.redraw()
        order = torch.Generator().manual_seed(seed)
        done = 0 if kept is None else kept.resume(learner, tasks, measured, order)
        bar.update(done * epochs)
        if tasks[0].scenario == "domain" and not learner.tasks:  # the one scenario with a head before the first task
            learner.prepare(tasks[0])
            measured.baseline[:] = [evaluate(learner, task) for task in tasks]
        for i, task in list(enumerate(tasks))[done:]:
            fit = _Fit(learner, task, epochs, batch_size, optimizer, schedule, patience, order, place, bar)
            learner.learn(task, fit)
            measured.seconds += fit.seconds
            measured.curves.append(fit.curve)
            learner.certificate[task.id] = taken(learner, task)
            for j, other in enumerate(tasks):
                if j <= i or other.scenario == "domain":
                    measured.accuracy[i, j] = evaluate(learner, other)
            if kept is not None:
                kept.save(learner, i + 1, measured, order)
    capacity = learner.capacity()
    return Result(
        accuracy=measured.accuracy,
        baseline=measured.baseline,
        learning_curves=measured.curves,
        parameters=capacity["parameters"],
        seconds=measured.seconds,
        method=type(learner).__name__,
        hyperparameters=dict(learner.hyperparameters),
        needs_task_id=learner.needs_task_id,
        scenario=tasks[0].scenario,
        stream=about,
        seed=seed,
        settings=settings,
        capacity=capacity,
    )


@torch.no_grad()
def evaluate(learner: Learner, task: Task, part: str = "test", batch_size: int = EVALUATED_AT_ONCE) -> float:
    """Accuracy (0 to 1) on a part of a task: "test", "valid" or "train". The task id is given in scenario "task" alone.

    Raises:
        ValueError: another part, an empty one, or a task that the learner cannot answer for.
    """
    samples = task.make(part)
    if not len(samples):
        raise ValueError(f"task {task.id} has no {part} samples to evaluate on")
    task_id = task.id if task.scenario == "task" else None
    training = learner.training
    learner.eval()
    right = sum(
        int((learner(x.to(learner.device), task_id).argmax(1) == y.to(learner.device)).sum())
        for x, y in zip(samples.x.split(batch_size), samples.y.split(batch_size), strict=True)
    )
    learner.train(training)
    return right / len(samples)


class _Fit:
    """The optimisation loop that `run` hands to `learn`. It never asks which method it runs."""

    def __init__(
        self,
        learner: Learner,
        task: Task,
        epochs: int,
        batch_size: int,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer], Any] | None,
        patience: int | None,
        order: torch.Generator,
        device: torch.device,
        bar: Any,
    ) -> None:
        self.learner, self.task, self.epochs, self.batch_size = learner, task, epochs, batch_size
        self.optimizer, self.schedule, self.patience = optimizer, schedule, patience
        self.order, self.device, self.bar = order, device, bar
        self.curve: list[float] = []
        self.seconds = 0.0
        self.calls = 0

    def __call__(self, epochs: int | None = None, tasks: Sequence[Task] | None = None) -> None:
        """Train for `epochs` (the run's, by default) on the task at hand, or on the mixture of `tasks`."""
        epochs = self.epochs if epochs is None else epochs
        learner, mixture = self.learner, [self.task] if tasks is None else list(tasks)
        self._announce(epochs)
        data = _mix(mixture, self.device)
        task_id = self.task.id if self.task.scenario == "task" else None
        ids = data.ids if tasks is not None else None
        trainable = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        optimizer = learner.protect(self.optimizer(trainable))
        wants_closure = inspect.signature(optimizer.step).parameters.get("closure", OPTIONAL).default is OPTIONAL.empty
        schedule = None if self.schedule is None else self.schedule(optimizer)
        self._check_schedule(schedule, mixture)
        best, best_epoch, best_state = -1.0, 0, None

        def gradients(rows: Tensor, epoch: int, step: int, n_steps: int) -> Tensor:
            optimizer.zero_grad()
            of_task: Any = task_id if ids is None else ids[rows]  # in a mixture, one id a sample
            loss = learner.loss(data.x[rows], data.y[rows], of_task)
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss became {value} at task {self.task.id} ({self.task.name}), epoch {epoch} of {epochs}, "
                    f"step {step + 1} of {n_steps}; a smaller learning rate may help. "
                    "The learner is as it was before this task"
                )
            loss.backward()
            return loss

        if not self.curve:
            self.curve.append(evaluate(learner, self.task))
        for epoch in range(1, epochs + 1):
            started = time.perf_counter()
            learner.train()
            batches = self._batches(len(data.y))
            last = max(len(batches) - 1, 1)
            for step, rows in enumerate(batches):
                learner.before_step(step / last if len(batches) > 1 else 1.0)
                if wants_closure:
                    optimizer.step(partial(gradients, rows, epoch, step, len(batches)))  # type: ignore[arg-type]
                else:
                    gradients(rows, epoch, step, len(batches))
                    optimizer.step()
            learner.eval()
            self.seconds += time.perf_counter() - started
            self.curve.append(evaluate(learner, self.task))
            self.bar.set_postfix_str(f"task {self.task.id}, accuracy {self.curve[-1]:.1%}", refresh=False)
            self.bar.update()
            if schedule is not None:
                self._step(schedule, mixture)
            if self.patience is not None:
                accuracy = float(np.mean([evaluate(learner, task, "valid") for task in mixture]))
                if accuracy > best:
                    best, best_epoch = accuracy, epoch
                    best_state = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
                elif epoch - best_epoch >= self.patience:
                    self.bar.total -= epochs - epoch
                    break
        if best_state is not None:
            learner.load_state_dict(best_state)

    def _announce(self, epochs: int) -> None:
        """A method may call `fit` more than once, or for longer: the bar then has more to do than was planned."""
        self.bar.total += epochs if self.calls else epochs - self.epochs
        self.calls += 1

    def _batches(self, n: int) -> list[Tensor]:
        rows = list(torch.randperm(n, generator=self.order).to(self.device).split(self.batch_size))
        if len(rows) > 1 and len(rows[-1]) == 1 < self.batch_size:  # BatchNorm has no statistics of one sample
            rows[-2:] = [torch.cat(rows[-2:])]
        return rows

    def _check_schedule(self, schedule: Any, mixture: Sequence[Task]) -> None:
        plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
        empty = [task.id for task in mixture if plateau and not len(task.make("valid"))]
        if empty:
            raise ValueError(
                f"ReduceLROnPlateau goes by the validation loss, and task {empty[0]} has no validation samples; "
                "make the stream with validation > 0, or take another schedule"
            )

    def _step(self, schedule: Any, mixture: Sequence[Task]) -> None:
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            schedule.step(float(np.mean([self._valid_loss(task) for task in mixture])))
        else:
            schedule.step()

    @torch.no_grad()
    def _valid_loss(self, task: Task) -> float:
        valid = task.make("valid")
        task_id = task.id if task.scenario == "task" else None
        total = 0.0
        for x, y in zip(valid.x.split(EVALUATED_AT_ONCE), valid.y.split(EVALUATED_AT_ONCE), strict=True):
            logits = self.learner(x.to(self.device), task_id)
            total += nn.functional.cross_entropy(logits, y.to(self.device), reduction="sum").item()
        return total / len(valid)


class _mix:
    """Training data of one or more tasks on the device, with the task id of each sample."""

    def __init__(self, tasks: Sequence[Task], device: torch.device) -> None:
        parts: list[Samples] = [task.make("train").to(device) for task in tasks]
        one = len(parts) == 1
        self.x = parts[0].x if one else torch.cat([part.x for part in parts])
        self.y = parts[0].y if one else torch.cat([part.y for part in parts])
        lengths = torch.tensor([len(part) for part in parts])
        self.ids = torch.tensor([task.id for task in tasks]).repeat_interleave(lengths).to(device)


def check_device(device: str | torch.device) -> torch.device:
    """The device, or a ValueError that says which ones there are."""
    allowed = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        allowed.append("mps")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device {device!r}; there are: {', '.join(allowed)}") from error
    names = {"cpu", *allowed, *(name.partition(":")[0] for name in allowed)}
    if str(place) not in names:
        raise ValueError(f"the device {str(device)!r} is not there; there are: {', '.join(allowed)}")
    return place


def _identity(
    learner: Learner, tasks: list[Task], stream: dict[str, Any], seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """What a run is: all that decides what comes out of it, but for the first weights of a network of one's own."""
    network = learner.probed()
    return {
        "method": type(learner).__name__,
        "hyperparameters": learner.hyperparameters,
        "backbone": str(network),
        "stream": stream,
        "tasks": [[task.id, task.name, task.n_outputs, task.scenario] for task in tasks],
        "learned before": learner.learned,
        "seed": seed,
        **settings,
        "torch": torch.__version__,
    }


def _check(
    learner: Learner,
    tasks: list[Task],
    epochs: int,
    batch_size: int,
    patience: int | None,
    seed: int,
    checkpoint: str | Path | None,
) -> None:
    if not isinstance(learner, Learner):
        raise TypeError(
            f"the learner is a {type(learner).__name__}; allowed: a minicl.Learner such as minicl.FineTune(backbone)"
        )
    for name, value in (
        ("epochs", epochs),
        ("batch_size", batch_size),
        ("patience", 1 if patience is None else patience),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; allowed: integers from 1 up")
    check_seed(seed)
    if not tasks:
        raise ValueError("the stream has no tasks; at least one is needed")
    if strange := [task for task in tasks if not isinstance(task, Task)]:
        raise TypeError(f"the stream holds a {type(strange[0]).__name__}; allowed: minicl.Task")
    check_together(tasks)
    for task in tasks:
        learner.accepts(task.scenario)
        task.needs("train", "test")
        if task.id in learner.learned:
            advice = f"go on with stream[{len(learner.learned)}:]"
            if checkpoint is not None:
                advice = "to go on from the checkpoint, give run a new learner, made as this one was"
            raise ValueError(f"task {task.id} has been learned already; {advice}")
        if patience is not None and not len(task.make("valid")):
            raise ValueError(
                f"patience needs validation samples, and task {task.id} has none; make the stream with validation > 0"
            )
    if len(shapes := {tuple(task.example.shape[1:]) for task in tasks if task.has_example}) > 1:
        raise ValueError(
            f"the tasks have inputs of different shapes: {', '.join(map(str, sorted(shapes)))}; "
            "one learner takes inputs of one shape"
        )


@contextmanager
def _random_numbers_of(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers that depend on the seed alone, and leave the process's generators as they were."""
    cuda, cudnn = device.type == "cuda", torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach into devices that are not in use
        if cuda:
            torch.cuda.manual_seed_all(seed)
            cudnn.benchmark, cudnn.deterministic = False, True
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if cuda:
                cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def _bar(progress: bool | None, total: int) -> Iterator[Any]:
    from tqdm import tqdm

    shown = sys.stderr.isatty() and not os.environ.get("CI") if progress is None else progress
    with tqdm(total=total, unit="epoch", disable=not shown) as bar:
        if not shown:
            bar.total = total  # a disabled bar forgets it
        yield bar


def _describe(factory: Any) -> str:
    """A factory in words that fit into a file: partial(SGD, lr=0.1) -> "SGD(lr=0.1)"."""
    if isinstance(factory, partial):
        arguments = [*map(repr, factory.args), *(f"{k}={v!r}" for k, v in factory.keywords.items())]
        return f"{getattr(factory.func, '__name__', factory.func)}({', '.join(arguments)})"
    return str(getattr(factory, "__qualname__", None) or type(factory).__name__)
