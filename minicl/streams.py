"""Streams of tasks from one data set: split by class, permuted, rotated.

The three functions take the same arguments, which one `Recipe` checks and holds; `STREAMS` has them by name, and
`by_name` reads the names that the command line and sweeps use, such as "split-digits".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .arrays import Name, check_integers
from .datasets import NAMES, Names, find, ingest, names_of
from .inputs import Tree, check_finite, describe, shapes
from .partitions import name_of, partition
from .samples import LazySamples, Samples
from .sources import Collate, seeded
from .tasks import PARTS, Task, TaskStream, check_scenario, check_seed

NO_CLASS = (-1, -100)
"""Labels that stand for "no label" in many data sets and in PyTorch: nobody makes them a class without a word."""
MOST_TASKS = 10_000
"""Of a stream that is made in one call. The accuracies are a matrix of tasks by tasks: 800 MB for so many."""


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
    held: bool = True,
    collate: Collate | None = None,
    classes: Sequence[Sequence[int | str]] | None = None,
    first: int | None = None,
    class_order: Sequence[int | str] | str | None = None,
) -> TaskStream:
    """Split a data set by class: task t holds the t-th group of classes, by default in the order of their labels.

    Labels that are texts are numbered in the order of the alphabet. `Task.classes` says which class each output of a
    task stands for; learners keep it, see `Learner.classes_of`. Where the data set has names for its numbers (an
    attribute `classes`, as torchvision's have), these are what classes are called, and both are understood.

    Args:
        dataset, root, download, size: as for `minicl.datasets.load`. Inputs become float32, see `minicl.arrays`.
        n_tasks: number of tasks; must divide the number of classes. Where `classes` is given, it says the number.
        scenario: "task", "domain" or "class".
        seed: draws the validation split (and the samples kept, where `n_train` is given; and `class_order="seed"`).
        validation: share of each class's training samples that is held out for validation, in [0, 1).
        n_train: at most so many training samples per task; one number, or one per task.
        held: read the data set once, and hold it as tensors. False: hold nothing; `run` then reads it with a
            `DataLoader` in every epoch, so that random transforms draw anew. Memory-mapped arrays are never held.
        collate: makes a batch of a list of the data set's items, see `Task`. What needs it is not held.
        classes: the classes of each task, `[[0, 1, 2, 3], [4, 5], [6, 7, 8, 9]]`: each once, in any order.
        first: so many classes in the first task; the others share the rest equally: `first=6, n_tasks=3` makes tasks of
            6, 2 and 2 of ten classes.
        class_order: the order in which classes come: a list of all of them; or "seed", drawn from the seed.

    Raises:
        ValueError: `n_tasks` that does not divide the number of classes; a class that is named twice, missing or
            unknown; another argument out of its range.
    """
    if classes is not None and hasattr(classes, "__len__"):
        if n_tasks not in (len(classes), inspect.signature(split).parameters["n_tasks"].default):
            raise ValueError(
                f"n_tasks is {n_tasks!r}, and classes names those of {len(classes)} tasks; leave n_tasks out"
            )
        n_tasks = max(len(classes), 1)  # where it names none, `partition` says so
    base = _Base(Recipe(dataset, n_tasks, scenario, seed, validation, n_train, root, download, size, held), collate)
    groups = partition(base.classes, n_tasks, classes, first, class_order, seed, names=base.names)
    sizes = [len(group) for group in groups]
    place = {label: i for i, label in enumerate(base.classes)}
    members = [torch.tensor([place[label] for label in group]) for group in groups]  # (classes of the task,)

    def build(t: int) -> Task:
        before, k = sum(sizes[:t]), sizes[t]
        shift = before if scenario == "class" else 0
        output = torch.full((len(base.classes),), -1)  # by class of the data set; -1 where it is none of this task's
        output[members[t]] = torch.arange(shift, shift + k)

        def samples(part: str) -> Samples | LazySamples:
            data = base.parts[part]
            chosen = (output[data.labels] >= 0).nonzero().flatten()
            chosen = base.limit(chosen, t) if part == "train" else chosen
            return data.subset(chosen).with_labels(output[data.labels[chosen]])

        of_test = base.parts["test"].labels
        if not bool((output[of_test] >= 0).any()):
            raise ValueError(f"task {t} would hold the classes {groups[t]}, and the test data has no sample of them")
        name = name_of(groups[t], base.classes, base.names)
        return base.task(t, samples, before + k if scenario == "class" else k, name, groups[t])

    stream = base.stream("split", build)
    if classes is not None or first is not None or class_order is not None or isinstance(base.classes[0], str):
        stream.settings["classes"] = groups
    return stream


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
    held: bool = True,
) -> TaskStream:
    """All classes in every task, with the pixels in an order of the task's own. Task 0 keeps the original order.

    In scenario "class" every task brings new classes: the "3" of task 1 is not the "3" of task 0.
    Arguments and errors as for `split`, but up to 10,000 tasks; `seed` also draws the permutations.
    """
    base = _Base(Recipe(dataset, n_tasks, scenario, seed, validation, n_train, root, download, size, held))
    generator = torch.Generator().manual_seed(seed + 1)
    if not isinstance(base.example, Tensor):
        raise ValueError(f"inputs of shape {describe(shapes(base.example))} cannot be permuted; allowed: one tensor")
    n_pixels = base.example[0].numel()
    orders = [None, *(torch.randperm(n_pixels, generator=generator) for _ in range(n_tasks - 1))]
    return base.stream("permuted", lambda t: base.changed(t, Permutation(orders[t]), f"permutation {t}"))


@dataclass(frozen=True)
class Permutation:
    """The numbers of each input in another order, int64 of shape (numbers,); None leaves them as they are."""

    order: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.flatten(1)[:, self.order].view_as(x)


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
    held: bool = True,
) -> TaskStream:
    """All classes in every task, turned by an angle that grows evenly from 0 to `max_angle` degrees.

    Pictures are turned counter-clockwise about their centre with bilinear interpolation; what comes in from outside
    is black. Other arguments and errors as for `split`, but up to 10,000 tasks.
    """
    base = _Base(Recipe(dataset, n_tasks, scenario, seed, validation, n_train, root, download, size, held))
    x = base.example
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        of = f"{x.dtype} and shape {tuple(x.shape[1:])}" if isinstance(x, Tensor) else describe(shapes(x))
        raise ValueError(
            f"inputs of {of} cannot be turned; allowed: images of floating-point numbers, (channels, height, width)"
        )
    angle = checks.plain(max_angle)
    if isinstance(angle, bool) or not isinstance(angle, (int, float)) or not -360 <= angle <= 360:
        raise ValueError(f"max_angle is {max_angle!r}; allowed: -360 to 360 degrees")
    angles = torch.linspace(0, max_angle, n_tasks, dtype=torch.float64).tolist() if n_tasks > 1 else [0.0]
    stream = base.stream("rotated", lambda t: base.changed(t, Rotation(angles[t]), f"{angles[t]:g} degrees"))
    stream.settings["max_angle"] = max_angle
    return stream


@dataclass(frozen=True)
class Rotation:
    """Images turned counter-clockwise about their centre, see `rotate`."""

    degrees: float

    def __call__(self, x: Tensor) -> Tensor:
        return rotate(x, self.degrees)


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Images x, shape (n, channels, height, width), turned counter-clockwise about their centre."""
    if degrees == 0 or not len(x):
        return x
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    cos, sin = float(angle.cos()), float(angle.sin())
    height, width = x.shape[-2:]
    # grid_sample's coordinates run from -1 to 1 along both sides, whatever their lengths: hence the ratios.
    theta = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]], dtype=x.dtype)  # (2, 3)
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)  # (n, height, width, 2)
    # Between black and the image's own values nothing new can appear, but for rounding.
    return F.grid_sample(x, grid, align_corners=False).clamp(min(0.0, float(x.min())), max(0.0, float(x.max())))


STREAMS: dict[str, Callable[..., TaskStream]] = {"split": split, "permuted": permuted, "rotated": rotated}


def by_name(name: str, **settings: Any) -> Callable[..., TaskStream]:
    """What makes the stream of a name such as "split-digits", with these settings; a seed may follow.

    Raises:
        ValueError: a name that is not KIND-DATASET.
    """
    kind, _, dataset = name.partition("-")
    if kind not in STREAMS:
        raise ValueError(f"unknown stream {name!r}; allowed: {', '.join(f'{kind}-DATASET' for kind in STREAMS)}")
    if dataset not in NAMES:
        raise ValueError(f"unknown stream {name!r}; allowed: {', '.join(f'{kind}-{known}' for known in NAMES)}")
    return partial(STREAMS[kind], dataset, **settings)


def from_settings(settings: Mapping[str, Any], **more: Any) -> TaskStream:
    """The stream that said of itself what it was made from, in `TaskStream.settings`; `more` is for the folder.

    Raises:
        ValueError: settings of a stream that has no name, such as one from data of one's own.
    """
    make = by_name(f"{settings.get('kind')}-{settings.get('dataset')}", **more)
    accepted = inspect.signature(make).parameters
    return make(**{name: value for name, value in settings.items() if name in accepted})


@dataclass(frozen=True)
class Recipe:
    """What every kind of stream is made from; see `split` for the arguments.

    Raises:
        ValueError: an argument out of its range; whatever can be told before data are read.
    """

    dataset: str | tuple[Any, Any]
    n_tasks: int
    scenario: str
    seed: int
    validation: float
    n_train: int | Sequence[int] | None
    root: str | Path | None
    download: bool
    size: int
    held: bool

    def __post_init__(self) -> None:
        check_scenario(self.scenario)
        n_tasks = self.n_tasks
        if isinstance(n_tasks, bool) or not isinstance(n_tasks, int) or not 1 <= n_tasks <= MOST_TASKS:
            raise ValueError(f"n_tasks is {n_tasks!r}; allowed: integers from 1 up to {MOST_TASKS:,}")
        check_seed(self.seed)
        share = checks.plain(self.validation)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise ValueError(f"validation is {self.validation!r}; allowed: a share from 0 up to, but not including, 1")
        checks.flag("held", self.held)
        numbers = self.n_train_per_task
        if numbers is not None and (
            len(numbers) != n_tasks or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers)
        ):
            raise ValueError(
                f"n_train is {self.n_train!r}; allowed: a positive integer, or {n_tasks} of them, one per task"
            )

    @property
    def n_train_per_task(self) -> list[int] | None:
        """At most so many training samples of each task; None for all."""
        if self.n_train is None:
            return None
        return [self.n_train] * self.n_tasks if isinstance(self.n_train, int) else list(self.n_train)

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.dataset if isinstance(self.dataset, str) else "own"

    @property
    def settings(self) -> dict[str, Any]:
        """What a stream says of itself, as JSON can hold it."""
        return {
            "dataset": self.name,
            "n_tasks": self.n_tasks,
            "scenario": self.scenario,
            "seed": self.seed,
            "validation": self.validation,
            "n_train": self.n_train_per_task,
        }


class _Base:
    """What the three kinds of stream share: train, valid and test samples with labels 0..C-1, and tasks made of them.

    Attributes:
        classes: the labels that the data set itself uses, in ascending order; texts in that of the alphabet.
        names: what the data set calls its classes, by their labels; empty where it says nothing but the labels.
        example: two inputs.

    Raises:
        ValueError: data that cannot be learned from.
    """

    def __init__(self, recipe: Recipe, collate: Collate | None = None) -> None:
        self.recipe, self.collate = recipe, collate
        parts = find(recipe.dataset, recipe.root, recipe.download, recipe.size, held=recipe.held)
        ingested = [self._ingest(data, Name(part), collate) for data, part in zip(parts, PARTS[::2], strict=True)]
        (train, self.example, names), (test, of_test, test_names) = ingested
        if collate is None and shapes(self.example) != shapes(of_test):
            raise ValueError(f"training inputs have shape {shapes(self.example)}, test inputs {shapes(of_test)}")
        self.classes, y, y_test = _numbered(train.labels, names, test.labels, test_names)
        self.names = names_of(recipe.dataset, parts[0], self.classes)
        fit, held_out = self._hold_out(y)
        self.parts = {
            "train": train.subset(fit).with_labels(y[fit]),
            "valid": train.subset(held_out).with_labels(y[held_out]),
            "test": test.with_labels(y_test),
        }

    def _ingest(self, data: Any, name: Name, collate: Collate | None) -> tuple[Samples | LazySamples, Tree, Names]:
        """A part of the data set, two of its inputs, and its classes where labels are texts."""
        held = self.recipe.held
        samples, names = ingest(data, name, collate, hold_arrays=held, hold_items=held)
        if not len(samples):
            raise ValueError(f"{name('data set')} is empty; at least one sample is needed")
        if isinstance(samples, Samples):
            samples = samples.with_labels(check_integers(samples.y, name))
            check_finite(samples.x, name("data set"))
        samples = samples.to(dtype=torch.float32)
        with seeded(0):
            example = samples.take(slice(2)).x
        if isinstance(example, Tensor) and example.ndim < 2:
            raise ValueError(
                f"{name('inputs')} have shape ({len(samples)},); allowed: (n, ...), at least one axis per input"
            )
        return samples, example, names

    def _hold_out(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Indices to train on and to validate on; the share is taken of every class, and every class keeps a sample."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        held_out = torch.zeros(len(y), dtype=torch.bool)
        for c in range(len(self.classes)):
            members = (y == c).nonzero().flatten()
            order = torch.randperm(len(members), generator=generator)
            n_held_out = min(round(self.recipe.validation * len(members)), len(members) - 1)
            held_out[members[order[:n_held_out]]] = True
        return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()

    def limit(self, indices: Tensor, t: int) -> Tensor:
        """At most `n_train` of the indices, drawn for task t."""
        n_train = self.recipe.n_train_per_task
        if n_train is None or n_train[t] >= len(indices):
            return indices
        generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + t)
        return indices[torch.randperm(len(indices), generator=generator)[: n_train[t]].sort().values]

    def changed(self, t: int, change: Callable[[Tensor], Tensor], name: str) -> Task:
        """A task with all classes, whose inputs went through `change`."""
        n_classes = len(self.classes)
        shift = t * n_classes if self.recipe.scenario == "class" else 0

        def samples(part: str) -> Samples | LazySamples:
            data = self.parts[part]
            if part == "train":
                data = data.subset(self.limit(torch.arange(len(data)), t))
            return data.changed(change).with_labels(data.labels + shift)

        return self.task(t, samples, shift + n_classes, name, self.classes)

    def task(
        self,
        t: int,
        samples: Callable[[str], Samples | LazySamples],
        n_outputs: int,
        name: str,
        classes: Sequence[int | str],
    ) -> Task:
        """A task that makes its parts when they are asked for."""
        return Task(
            t,
            n_outputs,
            *(partial(samples, part) for part in PARTS),
            scenario=self.recipe.scenario,
            name=name,
            classes=[self.names.get(label, label) for label in classes],
            example=self.example,  # of the right shape, which is what it is for
            collate=self.collate,
        )

    def stream(self, kind: str, build: Callable[[int], Task]) -> TaskStream:
        tasks = [build(t) for t in range(self.recipe.n_tasks)]
        return TaskStream(tasks, f"{kind}-{self.recipe.name}", {"kind": kind, **self.recipe.settings})


def _numbered(
    y: Tensor, names: Names, y_test: Tensor, test_names: Names
) -> tuple[list[int] | list[str], Tensor, Tensor]:
    """The classes, and the labels of training and test data as their places among them.

    Raises:
        ValueError: texts in one of the two and integers in the other; test labels that training data have not.
    """
    if (names is None) != (test_names is None):
        text, part, other = (names, "train", "test") if names is not None else (test_names, "test", "train")
        assert text is not None
        raise ValueError(
            f"the {part} data set has labels that are not single integers, such as {text[0]!r}, and the {other} data "
            "set has integers; allowed: integers in both, or texts in both"
        )
    for labels, part, text in ((y, "train", names), (y_test, "test", test_names)):
        for value in NO_CLASS:
            if text is None and bool((labels == value).any()):
                raise ValueError(
                    f"{int((labels == value).sum())} samples of the {part} data set have the label {value}. What does "
                    "it mean? Where it stands for 'no label', leave those samples out; where it is a class, number the "
                    "classes from 0"
                )
    values = y.unique()  # (C,)
    classes = values.tolist() if names is None else [names[i] for i in values.tolist()]
    of_test = y_test.unique().tolist() if test_names is None else [test_names[i] for i in y_test.unique().tolist()]
    unknown = sorted(set(of_test) - set(classes))
    if unknown:
        raise ValueError(f"the test data has labels that the training data has not: {unknown}; allowed: {classes}")
    places_of_y = torch.searchsorted(values, y.contiguous())
    if test_names is None:
        return classes, places_of_y, torch.searchsorted(values, y_test.contiguous())
    places = torch.tensor([classes.index(name) if name in classes else -1 for name in test_names])
    return classes, places_of_y, places[y_test]
