"""The optimisation loop that `run` hands to `learn`: epochs, batches, steps, schedules, early stopping.

It never asks which method it runs.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from . import checks, inputs
from .evaluation import evaluate, logits
from .inputs import Tree
from .learner import Learner
from .lesson import Lesson
from .optimizers import Optimizers, describe
from .samples import LazySamples, Reading, Samples, mixed
from .tasks import Task, check_seed

OPTIONAL = inspect.Parameter("closure", inspect.Parameter.KEYWORD_ONLY, default=None)


@dataclass(frozen=True)
class Training:
    """How a run trains; see `run` for the arguments.

    Raises:
        ValueError: an argument out of its range.
        TypeError: a factory or a function that cannot be called.
    """

    epochs: int
    batch_size: int
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer], Any] | None
    schedule_every: str
    patience: int | None
    fresh_optimizer: bool
    criterion: Callable[[Tensor, Tensor], Tensor] | None
    augment: Callable[[Tree], Tree] | None
    evaluate_every: int | None
    evaluation_batch: int | None
    checkpoint_every: int | None
    seed: int
    device: torch.device
    workers: int
    infer: str | None = None

    def __post_init__(self) -> None:
        checks.integer("epochs", self.epochs)
        checks.integer("batch_size", self.batch_size)
        for name in ("patience", "evaluate_every", "evaluation_batch", "checkpoint_every"):
            value = getattr(self, name)
            checks.integer(name, 1 if value is None else value)
        checks.integer("workers", self.workers, 0)
        checks.flag("fresh_optimizer", self.fresh_optimizer)
        checks.one_of("schedule_every", self.schedule_every, ("epoch", "step"))
        check_seed(self.seed)
        for what, factory in (("optimizer", self.optimizer), ("schedule", self.schedule)):
            if factory is not None and not callable(factory):
                raise TypeError(
                    f"{what} is a {type(factory).__name__}; "
                    "allowed: what makes one, such as partial(torch.optim.SGD, lr=0.1)"
                )
        for what, function, of in (
            ("augment", self.augment, "a batch of inputs"),
            ("criterion", self.criterion, "logits and labels"),
        ):
            if function is not None:
                checks.function(what, function, of)

    @property
    def described(self) -> dict[str, Any]:
        """What decides the result, as a file holds it; some of it only where it is not as usual."""
        usual = {
            "schedule_every": "epoch",
            "fresh_optimizer": True,
            "criterion": None,
            "augment": None,
            "evaluate_every": None,
            "evaluation_batch": None,
            "infer": None,
        }
        unusual = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": describe(self.optimizer),
            "schedule": None if self.schedule is None else describe(self.schedule),
            "patience": self.patience,
            "device": self.device.type,
            **{name: describe(value) if callable(value) else value for name, value in unusual.items()},
        }

    def batches(self, n: int) -> int:
        """The number of steps in an epoch over n samples."""
        whole, rest = divmod(n, self.batch_size)
        return whole + (rest > 0 and not (whole and rest == 1 < self.batch_size))


class Loop:
    """What `learn` calls as `fit`, for one task.

    Args:
        measure: accuracy on every task of the stream, as it is now.
        at_once: samples that are evaluated at once.

    Attributes:
        curve: accuracy on the task before training and after each epoch.
        within: what `measure` gave after every n-th epoch, where that is asked for.
        seconds: spent in training.
    """

    def __init__(
        self,
        learner: Learner,
        task: Task,
        how: Training,
        optimizers: Optimizers,
        order: torch.Generator,
        bar: Any,
        measure: Callable[[], list[float]],
        at_once: int,
        lesson: Lesson | None = None,
    ) -> None:
        self.learner, self.task, self.how, self.optimizers = learner, task, how, optimizers
        self.order, self.bar, self.measure, self.at_once = order, bar, measure, at_once
        self.lesson, self.steps = lesson, 0
        if lesson is not None:
            lesson.more, lesson.take = self._measured, self._take
        self.curve: list[float] = []
        self.within: list[list[float]] = []
        self.seconds = 0.0
        self.calls = 0

    def __call__(self, epochs: int | None = None, tasks: Sequence[Task] | None = None) -> None:
        """Train for `epochs` (the run's, by default) on the task at hand, or on the mixture of `tasks`."""
        try:
            self._train(self.how.epochs if epochs is None else epochs, tasks)
        finally:
            self.learner.__dict__.pop("unaugmented", None)

    def _train(self, epochs: int, tasks: Sequence[Task] | None) -> None:
        learner, mixture = self.learner, [self.task] if tasks is None else list(tasks)
        self._announce(epochs)
        data = _Data(mixture, self.how)
        optimizer = self.optimizers.begin(learner)
        schedule = _Schedule(self, optimizer, mixture, epochs * self.how.batches(len(data)), epochs)
        best = _Best(self, mixture)
        from_epoch, from_step = self._resume(optimizer, schedule, best)
        if not self.curve:
            self.curve.append(self.accuracy(self.task))
        for epoch in range(from_epoch, epochs + 1):
            started = time.perf_counter()
            learner.train()
            before = self.order.get_state()
            batches = self._batches(len(data))
            steps = _Steps(self, optimizer, data.ids if tasks is not None else None, epoch, epochs, len(batches))
            for step, batch in enumerate(data.read(batches, self._seed_of(epoch), from_step), from_step):
                steps.take(step, *batch)
                schedule.after_step()
                self._save(optimizer, schedule, best, epoch, step + 1, before)
            from_step = 0
            learner.eval()
            self.seconds += time.perf_counter() - started
            self._after_epoch()
            schedule.after_epoch()
            if self.how.patience is not None and best.seen_long_ago(epoch, self.how.patience):
                self.bar.total -= epochs - epoch
                break
        best.put_back()

    def _save(
        self, optimizer: torch.optim.Optimizer, schedule: _Schedule, best: _Best, epoch: int, step: int, order: Tensor
    ) -> None:
        """Write where the training is, where it is time to. `order`: the generator's state before this epoch."""
        self.steps += 1
        if self.lesson is not None and self.how.checkpoint_every and self.steps % self.how.checkpoint_every == 0:
            position = {"epoch": epoch, "step": step, "steps": self.steps, "order": order, "measured": self._measured()}
            best_so_far = [best.accuracy, best.epoch, best.state]
            self.lesson.save(
                optimizer, schedule.schedule, **position, best=best_so_far, initial=self.optimizers.initial
            )

    def _resume(self, optimizer: torch.optim.Optimizer, schedule: _Schedule, best: _Best) -> tuple[int, int]:
        """Go back to where the training was broken off, if it was: the epoch, and the step in it, to go on with."""
        position = {} if self.lesson is None else self.lesson.begin(optimizer, schedule.schedule)
        if not position:
            return 1, 0
        self._take(position["measured"])
        self.steps = position["steps"]
        best.accuracy, best.epoch, best.state = position["best"]
        self.optimizers.initial = position["initial"]
        self.order.set_state(position["order"])
        return position["epoch"], position["step"]

    def _measured(self) -> dict[str, Any]:
        """What has been measured so far, and the optimiser that is kept."""
        kept = self.optimizers.pack(self.learner)
        return {"curve": self.curve, "within": self.within, "seconds": self.seconds, "optimizer": kept}

    def _take(self, measured: dict[str, Any]) -> None:
        """The inverse of `_measured`, for a training that is not gone through again."""
        self.bar.update(len(measured["curve"]) - len(self.curve) - (not self.curve))
        self.curve, self.within = measured["curve"], measured["within"]
        self.seconds = measured["seconds"]
        self.calls = max(self.calls, self.lesson.calls if self.lesson is not None else 0)
        if self.optimizers.idle:
            self.optimizers.unpack(*measured["optimizer"])

    def _announce(self, epochs: int) -> None:
        """A method may call `fit` more than once, or for longer: the bar then has more to do than was planned."""
        self.bar.total += epochs if self.calls else epochs - self.how.epochs
        self.calls += 1

    def _after_epoch(self) -> None:
        self.curve.append(self.accuracy(self.task))
        every = self.how.evaluate_every
        if every is not None and (len(self.curve) - 1) % every == 0:
            self.within.append(self.measure())
        self.bar.set_postfix_str(f"task {self.task.id}, accuracy {self.curve[-1]:.1%}", refresh=False)
        self.bar.update()

    def accuracy(self, task: Task, part: str = "test") -> float:
        """On a part of a task, as it is now."""
        return evaluate(self.learner, task, part, self.at_once, self.how.workers)

    def _batches(self, n: int) -> list[Tensor]:
        rows = list(torch.randperm(n, generator=self.order).split(self.how.batch_size))
        if len(rows) > 1 and len(rows[-1]) == 1 < self.how.batch_size:  # BatchNorm has no statistics of one sample
            rows[-2:] = [torch.cat(rows[-2:])]
        return rows

    def _seed_of(self, epoch: int) -> int:
        """A seed for the random transforms of an epoch; it depends on nothing but where in the run this is."""
        place = f"{self.how.seed} {self.task.id} {self.calls} {epoch}"
        return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=7).digest())


class _Steps:
    """The training steps of one epoch.

    Args:
        ids: the task ids of the samples, where they are of several tasks.
    """

    def __init__(
        self, loop: Loop, optimizer: torch.optim.Optimizer, ids: Tensor | None, epoch: int, epochs: int, n: int
    ) -> None:
        self.loop, self.learner, self.optimizer, self.ids = loop, loop.learner, optimizer, ids
        self.epoch, self.epochs, self.n = epoch, epochs, n
        closure = inspect.signature(optimizer.step).parameters.get("closure", OPTIONAL)
        self.wants_closure = closure.default is OPTIONAL.empty

    def take(self, step: int, rows: Tensor, x: Tree, y: Tensor) -> None:
        """One step, on the samples at these rows."""
        at, of = (step, self.n) if self.n > 1 else (self.epoch - 1, self.epochs)  # one batch: through all epochs
        self.learner.before_step(at / max(of - 1, 1))
        of_task: Any = self.loop.task.id_at_test if self.ids is None else self.ids[rows]  # in a mixture, one per sample
        gradients = partial(self._gradients, step, self._augmented(x), y, of_task)
        if self.wants_closure:
            self.optimizer.step(gradients)  # type: ignore[arg-type]
        else:
            gradients()
            self.optimizer.step()

    def _gradients(self, step: int, x: Tree, y: Tensor, of_task: Any) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.learner.loss(x, y, of_task)
        value = loss.item()
        if not math.isfinite(value):
            task = self.loop.task
            raise FloatingPointError(
                f"the loss became {value} at task {task.id} ({task.name}), epoch {self.epoch} of {self.epochs}, "
                f"step {step + 1} of {self.n}; a smaller learning rate may help. "
                "The learner is as it was before this task"
            )
        check_criterion(self.learner)
        loss.backward()
        return loss

    def _augmented(self, x: Tree) -> Tree:
        """The inputs to train on in the place of x, which stands in `learner.unaugmented` meanwhile, for memories."""
        augment = self.loop.how.augment
        if augment is None:
            return x
        self.learner.unaugmented = x
        given = augment(x)
        n = None if given is None else inputs.length(given)
        if n != inputs.length(x):
            raise ValueError(f"augment made {n} inputs of {inputs.length(x)}; allowed: one of each")
        return given


class Criterion:
    """A criterion of the user's own, and whether the method has ever asked for it."""

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.criterion, self.asked = criterion, False

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        self.asked = True
        return self.criterion(logits, y)


def check_criterion(learner: Learner) -> None:
    """ValueError where a method's loss goes past the criterion that `run` was given; asked after the first loss."""
    if isinstance(learner.criterion, Criterion) and not learner.criterion.asked:
        raise ValueError(
            f"{type(learner).__name__} computes its loss without learner.cross_entropy, so a criterion changes nothing "
            "in it; allowed: criterion=None, or a method that uses cross-entropy"
        )


class _Schedule:
    """The schedule of one call of `fit`, if there is any.

    Raises:
        ValueError: one that goes by the validation loss, without validation samples; one that ends too early.
    """

    def __init__(
        self, loop: Loop, optimizer: torch.optim.Optimizer, mixture: Sequence[Task], steps: int, epochs: int
    ) -> None:
        self.loop, self.mixture = loop, mixture
        make, every = loop.how.schedule, loop.how.schedule_every
        self.schedule: Any = None if make is None else make(optimizer)
        self.each_step = every == "step"
        self.plateau = isinstance(self.schedule, ReduceLROnPlateau)
        empty = [task.id for task in mixture if self.plateau and not len(task.make("valid"))]
        if empty:
            raise ValueError(
                f"ReduceLROnPlateau goes by the validation loss, and task {empty[0]} has no validation samples; "
                "make the stream with validation > 0, or take another schedule"
            )
        check_total(self.schedule, every, steps if self.each_step else epochs)

    def after_step(self) -> None:
        if self.schedule is not None and self.each_step:
            self.schedule.step()

    def after_epoch(self) -> None:
        if self.schedule is None or self.each_step:
            return
        if self.plateau:
            self.schedule.step(float(np.mean([self._valid_loss(task) for task in self.mixture])))
        else:
            self.schedule.step()

    @torch.no_grad()
    def _valid_loss(self, task: Task) -> float:
        loop, valid = self.loop, task.make("valid")
        answers = logits(loop.learner, valid, task.id_at_test, loop.at_once, workers=loop.how.workers)
        batches = zip(answers, valid.labels.split([len(z) for z in answers]), strict=True)
        losses = [loop.learner.cross_entropy(z, y.to(z.device)).item() * len(z) for z, y in batches]
        return sum(losses) / len(valid)


def check_total(schedule: Any, every: str, needed: int) -> None:
    """ValueError where a schedule knows its total number of steps, and a training has more."""
    total = getattr(schedule, "total_steps", None)
    if isinstance(total, int) and total < needed:
        advice = ", or step it once per epoch" if every == "step" else ""
        raise ValueError(
            f"{type(schedule).__name__} has total_steps={total}, and one training takes {needed} of them "
            f"(schedule_every={every!r}); allowed: {needed} or more{advice}. It is made anew for every call of fit"
        )


class _Best:
    """The best epoch of one call of `fit`, by validation accuracy."""

    def __init__(self, loop: Loop, mixture: Sequence[Task]) -> None:
        self.loop, self.mixture = loop, mixture
        self.accuracy, self.epoch = -math.inf, 0
        self.state: dict[str, Tensor] | None = None

    def seen_long_ago(self, epoch: int, patience: int) -> bool:
        """Measure after an epoch; whether the best was that many epochs ago."""
        accuracy = float(np.mean([self.loop.accuracy(task, "valid") for task in self.mixture]))
        if accuracy > self.accuracy:
            self.accuracy, self.epoch = accuracy, epoch
            self.state = {name: tensor.clone() for name, tensor in self.loop.learner.state_dict().items()}
        return epoch - self.epoch >= patience

    def put_back(self) -> None:
        if self.state is not None:
            self.loop.learner.load_state_dict(self.state)


class _Data:
    """Training data of one or more tasks: on the device, or read batch by batch."""

    def __init__(self, tasks: Sequence[Task], how: Training) -> None:
        parts = [task.make("train") for task in tasks]
        self.device = how.device
        self.samples = mixed(parts).to(how.device)
        self.reading: Reading | None = None
        if isinstance(self.samples, LazySamples):
            self.reading = Reading(self.samples, how.workers, pin_memory=how.device.type == "cuda")
        lengths = torch.tensor([len(part) for part in parts])
        self.ids = torch.tensor([task.id for task in tasks]).repeat_interleave(lengths).to(how.device)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, batches: list[Tensor], seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tree, Tensor]]:
        """The rows, inputs and labels of each batch from the start-th on, on the device."""
        batches, seed = batches[start:], seed + start  # each batch has a seed of its own
        if not batches:
            return iter(())
        on_device = torch.cat(batches).to(self.device).split([len(rows) for rows in batches])
        if isinstance(self.samples, Samples):
            x, y = self.samples.x, self.samples.y
            return ((rows, inputs.take(x, rows), y[rows]) for rows in on_device)
        assert self.reading is not None
        read = zip(on_device, self.reading.epoch(batches, seed), strict=True)
        fast = self.device.type == "cuda"  # from page-locked memory a copy need not be waited for
        return ((rows, inputs.to(b.x, self.device, non_blocking=fast), b.y.to(self.device)) for rows, b in read)
