"""`run`: learn the tasks of a stream one after another, and measure every task after each."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from . import inputs
from .certificate import digest_of
from .checkpoint import Checkpoint, Measured
from .evaluation import Passing, check_metric, evaluate, samples_at_once
from .freezing import parameters_of
from .inference import asked_for_a_class, told
from .inputs import Tree
from .learner import Learner
from .loop import Criterion, Loop, Training, check_criterion, check_total
from .metrics import Result
from .optimizers import SGD, Optimizers, check_keepable, check_packable, describe, made_by
from .sources import seeded
from .tasks import Task, TaskStream, check_together


def run(
    learner: Learner,
    stream: TaskStream | Sequence[Task],
    *,
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: Callable[..., torch.optim.Optimizer] = SGD,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    schedule_every: str = "epoch",
    patience: int | None = None,
    fresh_optimizer: bool = True,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    augment: Callable[[Tree], Tree] | None = None,
    evaluate_every: int | None = None,
    evaluation_batch: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    workers: int = 0,
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    infer: str | None = None,
) -> Result:
    """Learn the tasks of `stream` in order; after each, evaluate every task that has a head.

    The same seed gives the same result, bit for bit, on the same machine; the state of the global random generators
    neither matters nor changes. Networks from `minicl.mlp` and `minicl.cnn` that are still untouched are drawn from the
    seed; any other network keeps the weights that it comes with. Floating-point inputs come in the network's type.

    Args:
        learner: trained in place.
        stream: tasks in the order in which they are learned.
        epochs: passes over a task's training data for each call of `fit`, unless the method asks for another number.
        batch_size: samples per step. A last batch of one sample joins the batch before it.
        optimizer: makes an optimiser from a list of parameters, or, where its first argument is called
            `named_parameters`, from pairs (name, parameter): `lambda named_parameters: SGD([...])` can give the heads
            another learning rate than the backbone. One that wants a closure, such as LBFGS, gets one.
        schedule: makes a learning-rate scheduler from the optimiser, anew for every call of `fit`; stepped after each
            epoch, with the validation loss where it wants one (ReduceLROnPlateau). One that knows its total number of
            steps, as OneCycleLR does, is held against what a training needs.
        schedule_every: "epoch", or "step": after each batch.
        patience: stop after so many epochs without a better validation accuracy, and go back to the best epoch.
        fresh_optimizer: make a new optimiser for every call of `fit`, as the authors of HAT and PackNet do. False keeps
            one for the whole run, as most benchmarks do: parameters that come later join it, those that the learner has
            no longer leave it. A schedule is made anew for every call of `fit`, from the first learning rate.
        criterion: a function (logits, labels) -> mean loss, in the place of cross-entropy: class weights, label
            smoothing. In scenario "class" there are as many logits as classes so far, so weights of all classes are
            `weights[: logits.shape[1]]`. It is `learner.criterion` during the run. Importances and distillation stay
            what they are. A method whose loss does not go through `learner.cross_entropy` is refused in the first step.
        augment: a function from a batch of training inputs, on the device, to what is trained on in their place, such
            as a transform of torchvision's v2. What it draws comes from the run's seed. Nothing else is augmented: not
            what is evaluated, nor what a memory keeps.
        evaluate_every: also measure all tasks after so many epochs within a task, for `Result.within_tasks`.
        evaluation_batch: samples that are evaluated at once, also for the certificate. By default 1,000; fewer where
            the largest result of a layer would take more than 64 MB, but not fewer than `batch_size`.
        seed: for initial weights, the order of samples, dropout, random transforms.
        device: "cpu", "cuda", "cuda:1", "mps".
        workers: processes that read samples which are read on demand (see `Task`); 0 reads them in this process. The
            number does not change what is read. Where processes are not forked (Windows, macOS), data set and `collate`
            must be such that pickle can send them.
        progress: show a progress bar; by default where a person watches (a terminal, and not in CI).
        checkpoint: a folder for this run alone. After each task everything is written there; the same call, with a new
            learner, goes on after the last finished task, and gives what an uninterrupted run would have given, bit for
            bit. A damaged file is set aside with a warning. See `minicl.checkpoint`.
        checkpoint_every: also write the task that is being learned, after so many steps, and go on in its middle; see
            `minicl.Lesson`. Each time as much is written as learner and optimiser hold.
        infer: for streams of scenario "class" or "domain": the learner is told the task id while it learns, as in
            "task", and in the test it must guess it, by this rule of `minicl.infer_task`. (Learning curves are of the
            task at hand, and know it.) None gives nobody the id where the scenario has none. Not with `evaluate_every`.

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
    given = asked = list(stream)
    if infer is not None and isinstance(learner, Learner):
        if evaluate_every is not None:
            raise ValueError("evaluate_every asks in the middle of a task, and infer guesses finished tasks alone")
        given = told(learner, asked, infer)
    how = Training(
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        schedule=schedule,
        schedule_every=schedule_every,
        patience=patience,
        fresh_optimizer=fresh_optimizer,
        criterion=criterion,
        augment=augment,
        evaluate_every=evaluate_every,
        evaluation_batch=evaluation_batch,
        checkpoint_every=checkpoint_every,
        seed=seed,
        device=check_device(device),
        workers=workers,
        infer=infer,
    )
    _check(learner, given, how, checkpoint)
    tasks = [_fitted(task, learner) for task in given]
    asked = tasks if infer is None else asked
    about = {"name": getattr(stream, "name", "stream"), **getattr(stream, "settings", {})}
    kept = None if checkpoint is None else Checkpoint(checkpoint, _identity(learner, given, about, how))
    T = len(tasks)
    measured = Measured(np.full((T, T), np.nan), np.full(T, np.nan))
    optimizers = Optimizers(how.optimizer, how.fresh_optimizer)
    with _seeded(how), _criterion(learner, criterion), progress_bar(progress, T * epochs) as bar:
        learner.to(how.device)
        learner.reinitialize()
        at_once = evaluation_batch or samples_at_once(learner, tasks[0], batch_size)
        order = torch.Generator().manual_seed(seed)
        done = 0 if kept is None else kept.resume(learner, given, measured, optimizers, order)
        bar.update(done * epochs)

        def measure(last: int) -> list[float]:
            """Accuracy on every task that has a head, when the tasks up to the last have come."""
            known = [i <= last or task.scenario == "domain" for i, task in enumerate(asked)]
            how_to: Any = evaluate if infer is None else partial(asked_for_a_class, rule=infer)
            ask = partial(how_to, learner, batch_size=at_once, workers=workers)
            return [ask(task) if there else math.nan for task, there in zip(asked, known, strict=True)]

        if tasks[0].scenario == "domain" and not learner.tasks:  # the one scenario with a head before the first task
            learner.prepare(tasks[0])
            measured.baseline[:] = measure(0)
        if kept is not None and checkpoint_every is not None and not kept.path.exists():
            kept.save(learner, 0, measured, optimizers, order)
        for i, task in list(enumerate(tasks))[done:]:
            lesson = None if kept is None or checkpoint_every is None else kept.lesson(learner, task, order)
            fit = Loop(learner, task, how, optimizers, order, bar, partial(measure, i), at_once, lesson)
            learner.learn(task, fit if lesson is None else lesson.fit(fit))
            check_criterion(learner)
            learner.eval()  # also where the method has not trained
            measured.seconds += fit.seconds
            measured.curves.append(fit.curve)
            measured.within.append(fit.within)
            learner.certificate[task.id] = digest_of(learner, given[i], batch_size=at_once)
            measured.accuracy[i] = measure(i)
            if kept is not None:
                kept.save(learner, i + 1, measured, optimizers, order)
            if lesson is not None:
                lesson.remove()
    capacity = learner.capacity()
    return Result(
        accuracy=measured.accuracy,
        baseline=measured.baseline,
        learning_curves=measured.curves,
        within_tasks=[np.array(moments).reshape(-1, T) for moments in measured.within if evaluate_every is not None],
        parameters=capacity["parameters"],
        seconds=measured.seconds,
        method=type(learner).__name__,
        hyperparameters=dict(learner.hyperparameters),
        needs_task_id=learner.needs_task_id,
        scenario=asked[0].scenario,
        stream=about,
        seed=seed,
        settings={**how.described, **_judges(tasks)},
        capacity=capacity,
    )


def _fitted(task: Task, learner: Learner) -> Task:
    """The task with floating-point inputs in the type of the learner's network: float32, say, for data in float64."""
    types = {t.dtype: None for t in parameters_of(learner) if t.is_floating_point()}  # in order
    if not types or (not task.has_example and len(types) > 1):
        return task
    if task.has_example:
        given = {leaf.dtype for leaf in inputs.tensors(task.example) if leaf.is_floating_point()}
        if given <= types.keys():
            return task
    return task.with_dtype(next(iter(types)))


def check_device(device: str | torch.device) -> torch.device:
    """The device, or a ValueError that says which ones there are."""
    allowed = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        allowed.append("mps")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device {device!r}; there are: {', '.join(allowed)}") from error
    names = {"cpu", *allowed, *(name.partition(":")[0] for name in allowed)}
    if str(found) not in names:
        raise ValueError(f"the device {str(device)!r} is not there; there are: {', '.join(allowed)}")
    return found


def _judges(tasks: list[Task]) -> dict[str, Any]:
    """The criteria and metrics that tasks bring, as a file holds them."""
    found = {
        what: list({describe(judge): None for task in tasks if (judge := getattr(task, what)) is not None})
        for what in ("criterion", "metric")
    }
    return {f"task {what}": names for what, names in found.items() if names}


def _identity(learner: Learner, tasks: list[Task], stream: dict[str, Any], how: Training) -> dict[str, Any]:
    """Everything that determines a run, except the initial weights of a user's network."""
    network = learner.feature_extractor()
    return {
        "method": type(learner).__name__,
        "hyperparameters": learner.hyperparameters,
        "backbone": str(network),
        "stream": stream,
        "tasks": [[task.id, task.name, task.n_outputs, task.scenario] for task in tasks],
        "learned before": learner.learned,
        "seed": how.seed,
        **how.described,
        **_judges(tasks),
        "torch": torch.__version__,
    }


def _check(learner: Learner, tasks: list[Task], how: Training, checkpoint: str | Path | None) -> None:
    if not isinstance(learner, Learner):
        raise TypeError(
            f"the learner is a {type(learner).__name__}; allowed: a minicl.Learner such as minicl.FineTune(backbone)"
        )
    if not tasks:
        raise ValueError("the stream has no tasks; at least one is needed")
    if strange := [task for task in tasks if not isinstance(task, Task)]:
        raise TypeError(f"the stream holds a {type(strange[0]).__name__}; allowed: minicl.Task")
    check_together(tasks)
    if how.checkpoint_every is not None and checkpoint is None:
        raise ValueError("checkpoint_every says when to write, and nobody says where; give checkpoint=folder")
    for task in tasks:
        learner.accepts(task.scenario)
        learner.check_outputs(task)
        check_metric(task)
        task.needs("train", "test")
        if task.id in learner.learned:
            advice = f"go on with stream[{len(learner.learned)}:]"
            if checkpoint is not None:
                advice = "to go on from the checkpoint, give run a new learner, made as this one was"
            raise ValueError(f"task {task.id} has been learned already; {advice}")
        if how.patience is not None and not len(task.make("valid")):
            raise ValueError(
                f"patience needs validation samples, and task {task.id} has none; make the stream with validation > 0"
            )
    found = {
        inputs.describe(shape): shape
        for shape in (task.shapes for task in tasks if task.has_example and not task.ragged)
    }
    if len(found) > 1:
        said = ", ".join(sorted(str(shape) if isinstance(shape, tuple) else text for text, shape in found.items()))
        raise ValueError(f"the tasks have inputs of different shapes: {said}; one learner takes inputs of one shape")
    if how.batch_size == 1 and (alone := Passing(learner, tasks[0]).alone):
        raise ValueError(
            f"batch_size is 1, and the norm {alone[0]!r} of the network would have statistics of a single number; "
            "allowed: 2 or more, or a network without such norms"
        )
    _check_optimizer(learner, tasks, how, checkpoint is not None)


def _check_optimizer(learner: Learner, tasks: list[Task], how: Training, files_too: bool) -> None:
    """Make an optimiser and a schedule to look at: what will not do is refused before anything is trained."""
    if how.fresh_optimizer and how.schedule is None and how.checkpoint_every is None:
        return
    named = [(name, p) for name, p in learner.named_parameters() if p.requires_grad]
    optimizer = made_by(how.optimizer, named or [("heads.0.weight", nn.Parameter(torch.zeros(1)))])
    if not how.fresh_optimizer:
        check_keepable(optimizer)
    if files_too and (how.checkpoint_every is not None or not how.fresh_optimizer):
        check_packable(optimizer)
    if how.schedule is None:
        return
    schedule = how.schedule(optimizer)
    if how.checkpoint_every is not None and not hasattr(schedule, "load_state_dict"):
        raise ValueError(
            f"{type(schedule).__name__} has no load_state_dict, so it cannot go on in the middle of a task; "
            "allowed with checkpoint_every=: schedules that have it, as those of torch.optim do"
        )
    if how.schedule_every == "step" and isinstance(schedule, ReduceLROnPlateau):
        raise ValueError(
            "schedule_every is 'step', and ReduceLROnPlateau goes by the validation loss, which is measured after each "
            "epoch; allowed: schedule_every='epoch'"
        )
    if hasattr(schedule, "total_steps"):
        each_step = how.schedule_every == "step"
        samples = [len(task.make("train")) if each_step else 1 for task in tasks]
        for i in range(len(tasks)):
            for epochs, n in learner.trainings(samples[: i + 1], how.epochs):
                check_total(schedule, how.schedule_every, epochs * (how.batches(n) if each_step else 1))


@contextmanager
def _criterion(learner: Learner, criterion: Callable[[Tensor, Tensor], Tensor] | None) -> Iterator[None]:
    """The learner with this criterion, where there is one, and with its own again afterwards."""
    before = learner.criterion
    if criterion is not None:
        learner.criterion = Criterion(criterion)
    try:
        yield
    finally:
        learner.criterion = before


@contextmanager
def _seeded(how: Training) -> Iterator[None]:
    """Random numbers that depend on the seed alone, and leave the process's generators as they were."""
    seed, device = how.seed, how.device
    cuda, cudnn = device.type == "cuda", torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    # NumPy's and Python's are the user's own, unless a function that augments may draw from them.
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []),
        seeded(None if how.augment is None else seed),
    ):
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
def progress_bar(progress: bool | None, total: int) -> Iterator[Any]:
    """A bar of so many epochs; None shows it where a person watches: in a terminal, and not in CI."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() and not os.environ.get("CI") if progress is None else progress
    with tqdm(total=total, unit="epoch", disable=not shown) as bar:
        if not shown:
            bar.total = total  # a disabled bar forgets it
        yield bar
