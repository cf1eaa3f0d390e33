"""Tasks and streams of tasks: split, permuted and rotated data sets in the three scenarios.

The scenarios are those of van de Ven and Tolias (2019), arXiv 1904.07734:

- "task": the task id is known at test time; labels are 0..k-1 within each task, and each task has its own head.
- "domain": the task id is not known; all tasks share one head and one set of labels.
- "class": the task id is not known; one head over all classes seen so far, which grows as tasks arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .datasets import Samples, as_samples, load

SCENARIOS = ("task", "domain", "class")
PARTS = ("train", "valid", "test")
MOST_TASKS = 10_000
"""Of a stream that is made in one call. The accuracies are a matrix of tasks by tasks: 800 MB for so many."""


class Task:
    """One task: what it is called, how many outputs its head needs, and its samples.

    `stream` functions make these; make your own to bring data that is already split into tasks. Only `id`, `n_outputs`
    and either `train` or `example` are needed where your own loop reads the data.

    Attributes:
        id: non-negative integer, unique in its stream.
        n_outputs: outputs of the head once this task has arrived: k classes in "task" and "domain", all classes seen
            so far in "class".
        classes: the labels that the data set itself uses for this task's classes.
        scenario: "task", "domain" or "class".
        train, valid, test: `Samples` with `x` of shape (n, ...) and `y`, int64 in [0, n_outputs), of shape (n,).

    Raises:
        ValueError: unknown scenario, bad id or n_outputs; when samples are first read: an empty part (valid may be
            empty), a label out of range, NaN or infinity in the inputs.
    """

    def __init__(
        self,
        id: int,
        n_outputs: int,
        train: Samples | tuple[Tensor, Tensor] | Callable[[], Samples] | None = None,
        valid: Samples | tuple[Tensor, Tensor] | Callable[[], Samples] | None = None,
        test: Samples | tuple[Tensor, Tensor] | Callable[[], Samples] | None = None,
        *,
        scenario: str = "task",
        name: str | None = None,
        classes: Sequence[int] | None = None,
        example: Tensor | None = None,
    ) -> None:
        check_scenario(scenario)
        check_task_id(id)
        if isinstance(n_outputs, bool) or not isinstance(n_outputs, int) or n_outputs < 1:
            raise ValueError(f"task {id} has n_outputs={n_outputs!r}; allowed: integers from 1 up")
        self.id = id
        self.n_outputs = n_outputs
        self.scenario = scenario
        self.name = f"task {id}" if name is None else name
        self.classes = tuple(range(n_outputs)) if classes is None else tuple(int(c) for c in classes)
        self._example = example
        self._given = {"train": train, "valid": valid, "test": test}
        self._kept: dict[str, Samples] = {}
        for part, given in self._given.items():
            if given is not None and not callable(given):
                self._kept[part] = self.make(part)

    @property
    def train(self) -> Samples:
        return self._keep("train")

    @property
    def valid(self) -> Samples:
        return self._keep("valid")

    @property
    def test(self) -> Samples:
        return self._keep("test")

    @property
    def example(self) -> Tensor:
        """At most two inputs, shape (n, ...): enough to find out what a backbone makes of them."""
        return self.train.x[:2] if self._example is None else self._example[:2]

    @property
    def has_example(self) -> bool:
        """Whether `example` is at hand, so that asking for it makes no samples."""
        return self._example is not None or "train" in self._kept

    def needs(self, *parts: str) -> None:
        """Raise ValueError where the task was made without one of these parts."""
        for part in parts:
            if self._given[part] is None:
                raise ValueError(
                    f"task {self.id} ({self.name}) was made without {part} samples; give them as {part}=(x, y)"
                )

    def make(self, part: str) -> Samples:
        """The samples of a part, made anew and not kept: what a loop needs that goes through many large tasks."""
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; allowed: {', '.join(PARTS)}")
        if part in self._kept:
            return self._kept[part]
        given = self._given[part]
        if part == "valid" and given is None:
            return Samples(self.example[:0], torch.empty(0, dtype=torch.long))
        self.needs(part)
        samples = given() if callable(given) else given
        if isinstance(samples, (tuple, list)) and len(samples) == 2:
            samples = Samples(torch.as_tensor(samples[0]), torch.as_tensor(samples[1]))
        if not isinstance(samples, Samples):
            samples = as_samples(samples, part)
        return self._checked(samples, part)

    def _keep(self, part: str) -> Samples:
        if part not in self._kept:
            self._kept[part] = self.make(part)
        return self._kept[part]

    def _checked(self, samples: Samples, part: str) -> Samples:
        where = f"task {self.id} ({self.name}): the {part} samples"
        if len(samples) == 0 and part != "valid":
            raise ValueError(f"{where} are empty; at least one is needed")
        if samples.y.is_floating_point() or samples.y.ndim != 1:
            raise ValueError(
                f"{where} have labels of {samples.y.dtype} and shape {tuple(samples.y.shape)}; allowed: integers, (n,)"
            )
        if len(samples) and not 0 <= int(samples.y.min()) <= int(samples.y.max()) < self.n_outputs:
            raise ValueError(
                f"{where} have labels from {int(samples.y.min())} to {int(samples.y.max())}; "
                f"allowed: 0 to {self.n_outputs - 1}, since n_outputs is {self.n_outputs}"
            )
        check_finite(samples.x, where)
        return Samples(samples.x, samples.y.long())

    def __repr__(self) -> str:
        return f"Task(id={self.id}, name={self.name!r}, n_outputs={self.n_outputs}, scenario={self.scenario!r})"


class TaskStream(Sequence[Task]):
    """Tasks in the order in which they are learned. Iterate over it, index it, slice it.

    Attributes:
        name: for example "split-digits".
        scenario: "task", "domain" or "class".
        settings: what the stream was made from, as JSON can hold it.
    """

    def __init__(self, tasks: Sequence[Task], name: str = "stream", settings: dict[str, Any] | None = None) -> None:
        self.tasks = list(tasks)
        if not self.tasks:
            raise ValueError("a stream needs at least one task")
        check_together(self.tasks)
        self.name = name
        self.scenario = self.tasks[0].scenario
        self.settings = settings or {}

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> TaskStream: ...
    def __getitem__(self, index: int | slice) -> Task | TaskStream:
        if isinstance(index, slice):
            return TaskStream(
                self.tasks[index], self.name, {**self.settings, "tasks": [t.id for t in self.tasks[index]]}
            )
        return self.tasks[index]

    def __repr__(self) -> str:
        return f"TaskStream({self.name!r}, {len(self)} tasks, scenario={self.scenario!r})"


def split(
    dataset: str | tuple[Any, Any] = "digits",
    n_tasks: int = 5,
    scenario: str = "task",
    seed: int = 0,
    *,
    validation: float = 0.1,
    n_train: int | Sequence[int] | None = None,
    root: str | Path | None = None,
    download: bool = False,
    size: int = 64,
) -> TaskStream:
    """Split a data set by class: task t holds the t-th group of classes, in the order of their labels.

    Args:
        dataset, root, download, size: as for `minicl.datasets.load`.
        n_tasks: number of tasks; must divide the number of classes.
        scenario: "task", "domain" or "class".
        seed: draws the validation split (and the samples kept, where `n_train` is given).
        validation: share of each class's training samples that is held out for validation, in [0, 1).
        n_train: at most so many training samples a task; one number, or one a task.

    Raises:
        ValueError: `n_tasks` that does not divide the number of classes, or another argument out of its range.
    """
    base = _Base(dataset, scenario, seed, validation, n_train, n_tasks, root, download, size)
    n_classes = len(base.classes)
    if n_tasks > n_classes or n_classes % n_tasks:
        allowed = [n for n in range(1, n_classes + 1) if n_classes % n == 0]
        raise ValueError(
            f"{n_classes} classes cannot be split into {n_tasks} equal tasks; "
            f"allowed n_tasks: {', '.join(map(str, allowed))}"
        )
    k = n_classes // n_tasks

    def build(t: int) -> Task:
        first = t * k
        shift = 0 if scenario == "class" else first

        def samples(part: str) -> Samples:
            data = base.parts[part]
            chosen = ((data.y >= first) & (data.y < first + k)).nonzero().flatten()
            chosen = base.limit(chosen, t) if part == "train" else chosen
            return Samples(data.x[chosen], data.y[chosen] - shift)

        classes = base.classes[first : first + k]
        if not bool(((base.parts["test"].y >= first) & (base.parts["test"].y < first + k)).any()):
            raise ValueError(f"task {t} would hold the classes {classes}, and the test data has no sample of them")
        name = f"{classes[0]}" if k == 1 else f"{classes[0]}-{classes[-1]}"
        return base.task(t, samples, first + k if scenario == "class" else k, f"classes {name}", classes)

    return base.stream("split", build)


def permuted(
    dataset: str | tuple[Any, Any] = "digits",
    n_tasks: int = 10,
    scenario: str = "task",
    seed: int = 0,
    *,
    validation: float = 0.1,
    n_train: int | Sequence[int] | None = None,
    root: str | Path | None = None,
    download: bool = False,
    size: int = 64,
) -> TaskStream:
    """All classes in every task, with the pixels in an order of the task's own. Task 0 keeps the original order.

    In scenario "class" every task brings new classes: the "3" of task 1 is not the "3" of task 0.
    Arguments and errors as for `split`, but up to 10,000 tasks; `seed` also draws the permutations.
    """
    base = _Base(dataset, scenario, seed, validation, n_train, n_tasks, root, download, size)
    generator = torch.Generator().manual_seed(base.seed + 1)
    n_pixels = base.parts["train"].x[0].numel()
    orders = [torch.arange(n_pixels), *(torch.randperm(n_pixels, generator=generator) for _ in range(n_tasks - 1))]

    def change(x: Tensor, t: int) -> Tensor:
        return x if t == 0 else x.flatten(1)[:, orders[t]].view_as(x)

    return base.stream("permuted", lambda t: base.changed(t, change, "permutation"))


def rotated(
    dataset: str | tuple[Any, Any] = "digits",
    n_tasks: int = 5,
    scenario: str = "task",
    seed: int = 0,
    *,
    max_angle: float = 90.0,
    validation: float = 0.1,
    n_train: int | Sequence[int] | None = None,
    root: str | Path | None = None,
    download: bool = False,
    size: int = 64,
) -> TaskStream:
    """All classes in every task, turned by an angle that grows evenly from 0 to `max_angle` degrees.

    Pictures are turned counter-clockwise about their centre with bilinear interpolation; what comes in from outside
    is black. Other arguments and errors as for `split`, but up to 10,000 tasks.
    """
    base = _Base(dataset, scenario, seed, validation, n_train, n_tasks, root, download, size)
    if base.parts["train"].x.ndim != 4 or not base.parts["train"].x.is_floating_point():
        raise ValueError(
            f"inputs of {base.parts['train'].x.dtype} and shape {tuple(base.parts['train'].x.shape[1:])} "
            "cannot be turned; "
            "allowed: images of floating-point numbers, (channels, height, width)"
        )
    if not -360 <= max_angle <= 360:
        raise ValueError(f"max_angle is {max_angle}; allowed: -360 to 360 degrees")
    angles = torch.linspace(0, max_angle, n_tasks, dtype=torch.float64).tolist() if n_tasks > 1 else [0.0]
    stream = base.stream(
        "rotated", lambda t: base.changed(t, lambda x, t: rotate(x, angles[t]), f"{angles[t]:g} degrees")
    )
    stream.settings["max_angle"] = max_angle
    return stream


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Images x, shape (n, channels, height, width), turned counter-clockwise about their centre."""
    if degrees == 0 or not len(x):
        return x
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    cos, sin = float(angle.cos()), float(angle.sin())
    height, width = x.shape[-2:]
    # grid_sample's coordinates run from -1 to 1 along both sides, whatever their lengths: hence the ratios.
    theta = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]], dtype=x.dtype)
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    # Between black and the image's own values nothing new can appear, but for rounding.
    return F.grid_sample(x, grid, align_corners=False).clamp(min(0.0, float(x.min())), max(0.0, float(x.max())))


STREAMS: dict[str, Callable[..., TaskStream]] = {"split": split, "permuted": permuted, "rotated": rotated}


class _Base:
    """What the three kinds of stream share: checked arguments, and train, valid and test samples with labels 0..C-1."""

    def __init__(
        self,
        dataset: str | tuple[Any, Any],
        scenario: str,
        seed: int,
        validation: float,
        n_train: int | Sequence[int] | None,
        n_tasks: int,
        root: str | Path | None,
        download: bool,
        size: int,
    ) -> None:
        check_scenario(scenario)
        if isinstance(n_tasks, bool) or not isinstance(n_tasks, int) or not 1 <= n_tasks <= MOST_TASKS:
            raise ValueError(f"n_tasks is {n_tasks!r}; allowed: integers from 1 up to {MOST_TASKS:,}")
        check_seed(seed)
        if not 0 <= validation < 1:
            raise ValueError(f"validation is {validation}; allowed: a share from 0 up to, but not including, 1")
        self.n_train = _per_task(n_train, n_tasks)
        self.scenario, self.seed, self.n_tasks = scenario, seed, n_tasks
        train, test = load(dataset, root, download, size)
        for part, samples in (("train", train), ("test", test)):
            if not len(samples):
                raise ValueError(f"the {part} data set is empty; at least one sample is needed")
            if samples.x.ndim < 2:
                raise ValueError(
                    f"the {part} inputs have shape {tuple(samples.x.shape)}; "
                    "allowed: (n, ...), at least one axis an input"
                )
            check_finite(samples.x, f"the {part} data set")
        if train.x.shape[1:] != test.x.shape[1:]:
            raise ValueError(
                f"training inputs have shape {tuple(train.x.shape[1:])}, test inputs {tuple(test.x.shape[1:])}"
            )
        classes = train.y.unique()
        unknown = sorted(set(test.y.unique().tolist()) - set(classes.tolist()))
        if unknown:
            raise ValueError(
                f"the test data has labels that the training data has not: {unknown}; allowed: {classes.tolist()}"
            )
        self.classes: list[int] = classes.tolist()
        self.generator = torch.Generator().manual_seed(seed)
        fit, held_out = self._hold_out(torch.searchsorted(classes, train.y), validation)
        y = torch.searchsorted(classes, train.y)
        self.parts = {
            "train": Samples(train.x[fit], y[fit]),
            "valid": Samples(train.x[held_out], y[held_out]),
            "test": Samples(test.x, torch.searchsorted(classes, test.y)),
        }
        self.name = dataset if isinstance(dataset, str) else "own"
        self.settings = {
            "dataset": self.name,
            "n_tasks": n_tasks,
            "scenario": scenario,
            "seed": seed,
            "validation": validation,
            "n_train": self.n_train,
        }

    def _hold_out(self, y: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Indices to train on and to validate on; the share is taken of every class, and every class keeps a sample."""
        held_out = torch.zeros(len(y), dtype=torch.bool)
        for c in range(len(self.classes)):
            members = (y == c).nonzero().flatten()
            order = torch.randperm(len(members), generator=self.generator)
            held_out[members[order[: min(round(share * len(members)), len(members) - 1)]]] = True
        return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()

    def limit(self, indices: Tensor, t: int) -> Tensor:
        """At most `n_train` of the indices, drawn for task t."""
        if self.n_train is None or self.n_train[t] >= len(indices):
            return indices
        generator = torch.Generator().manual_seed(self.seed * 100_003 + t)
        return indices[torch.randperm(len(indices), generator=generator)[: self.n_train[t]].sort().values]

    def changed(self, t: int, change: Callable[[Tensor, int], Tensor], name: str) -> Task:
        """A task with all classes, whose inputs went through `change`."""
        n_classes = len(self.classes)
        shift = t * n_classes if self.scenario == "class" else 0

        def samples(part: str) -> Samples:
            data = self.parts[part]
            if part == "train":
                data = data[self.limit(torch.arange(len(data)), t)]
            return Samples(change(data.x, t), data.y + shift)

        return self.task(t, samples, shift + n_classes, f"{name} {t}" if name == "permutation" else name, self.classes)

    def task(self, t: int, samples: Callable[[str], Samples], n_outputs: int, name: str, classes: list[int]) -> Task:
        parts = {part: (lambda part=part: samples(part)) for part in PARTS}
        example = self.parts["train"].x[:2]  # of the right shape, which is what it is for
        return Task(t, n_outputs, **parts, scenario=self.scenario, name=name, classes=classes, example=example)

    def stream(self, kind: str, build: Callable[[int], Task]) -> TaskStream:
        tasks = [build(t) for t in range(self.n_tasks)]
        return TaskStream(tasks, f"{kind}-{self.name}", {"kind": kind, **self.settings})


def _per_task(n_train: int | Sequence[int] | None, n_tasks: int) -> list[int] | None:
    if n_train is None:
        return None
    numbers = [n_train] * n_tasks if isinstance(n_train, int) else list(n_train)
    if len(numbers) != n_tasks or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise ValueError(f"n_train is {n_train!r}; allowed: a positive integer, or {n_tasks} of them, one a task")
    return numbers


def check_finite(x: Tensor, where: str) -> None:
    """Raise ValueError where inputs x, shape (n, ...), hold NaN or infinity."""
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        rows = (~torch.isfinite(x.reshape(len(x), -1)).all(1)).nonzero().flatten()
        raise ValueError(
            f"{where}: NaN or infinity in {len(rows)} inputs, the first at index {int(rows[0])}; "
            "allowed: finite numbers"
        )


def check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; allowed: integers from 0 to 2**32 - 1")


def check_together(tasks: Sequence[Task]) -> None:
    """Raise ValueError unless these tasks can be learned in this order: one scenario, different ids, heads that fit."""
    if len(scenarios := {task.scenario for task in tasks}) > 1:
        raise ValueError(f"the tasks of a stream must share one scenario; given: {', '.join(sorted(scenarios))}")
    ids = [task.id for task in tasks]
    if len(set(ids)) < len(ids):
        raise ValueError(f"the tasks of a stream must have different ids; given: {ids}")
    outputs = [task.n_outputs for task in tasks]
    if tasks[0].scenario == "domain" and len(set(outputs)) > 1:
        raise ValueError(f"in scenario 'domain' all tasks share one head; given n_outputs: {outputs}")
    if tasks[0].scenario == "class" and sorted(outputs) != outputs:
        raise ValueError(
            f"in scenario 'class' n_outputs counts all classes seen so far, so it cannot shrink; given: {outputs}"
        )


def check_scenario(scenario: str) -> None:
    if scenario not in SCENARIOS:
        raise ValueError(f"unknown scenario {scenario!r}; allowed: {', '.join(SCENARIOS)}")


def check_task_id(task_id: Any) -> None:
    if isinstance(task_id, bool) or not isinstance(task_id, int) or task_id < 0:
        raise ValueError(f"the task id is {task_id!r}; allowed: integers from 0 up")
