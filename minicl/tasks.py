"""A task, and streams of tasks, in the three scenarios. `minicl.streams` makes them from data sets.

The scenarios are those of van de Ven and Tolias (2019), arXiv 1904.07734:

- "task": the task id is known at test time; labels are 0..k-1 within each task, and each task has its own head.
- "domain": the task id is not known; all tasks share one head and one set of labels.
- "class": the task id is not known; one head over all classes seen so far, which grows as tasks arrive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from . import checks, inputs
from .arrays import Name
from .datasets import ingest
from .inputs import Tree
from .samples import LazySamples, Samples
from .sources import Collate, check_labels, seeded

SCENARIOS = ("task", "domain", "class")
PARTS = ("train", "valid", "test")


Part = Any
"""What a part of a task may be given as: see `Task`."""

Judge = Callable[[Tensor, Tensor], Any]
"""A function of outputs, shape (batch, ...), and what they should have been: a mean loss, or a score."""


class Task:
    """One task: what it is called, how many outputs its head needs, and its samples.

    `minicl.split` and its like make these; make your own to bring data that is already split into tasks. Only `id`,
    `n_outputs` and either `train` or `example` are needed where your own loop reads the data.

    Each part (`train`, `valid`, `test`) is one of

    - `(x, y)`: tensors or arrays, which are held; memory-mapped arrays are read by batch, not copied. x may be a dict,
      tuple or list of such, see `minicl.inputs`; y holds integers, or texts, which are numbered (see `classes`);
    - a map-style torch data set of (input, label): read on demand, in every epoch anew, and nothing is held;
    - a list of such items, `Samples` or `LazySamples`;
    - a function without arguments that makes one of these, called when the samples are needed.

    What becomes of uint8, float64 and the like stands in `minicl.arrays`; it is the same for `minicl.split`.

    A task with `n_outputs=None` gets no head: the network's own output, of any shape (batch, ...), is the answer. Its
    labels are targets, of any shape (n, ...) and type, as the criterion and the metric want them: regression,
    segmentation, a language model's next tokens.

    Args:
        criterion: (outputs, targets) -> mean loss, a scalar tensor, in the place of cross-entropy; needed where
            `n_outputs` is None, unless the learner has a criterion.
        metric: (outputs, targets) -> score of a batch, in the place of the accuracy; higher is better. A task's score
            is the mean over its batches, weighted by their sizes. `run` needs it where `n_outputs` is None.
        collate: makes a batch of a list of a data set's items, `collate(items) -> (x, y)`, where these cannot be
            stacked as they are, such as texts of different lengths.
        example: inputs, of which two are enough, for a task whose samples your own loop reads.

    Attributes:
        id: non-negative integer, unique in its stream.
        n_outputs: outputs of the head once this task has arrived: k classes in "task" and "domain", all classes seen
            so far in "class"; None for a task without a head.
        classes: the labels that the data set itself uses for this task's classes, in the order of the task's outputs.
            Labels that are texts are numbered in this order; where it is not given, in that of the alphabet.
        scenario: "task", "domain" or "class".
        train, valid, test: `Samples` with `x` of shape (n, ...) and `y`, int64 in [0, n_outputs), of shape (n,); or
            `LazySamples`, which are asked in the same way.

    Raises:
        ValueError: unknown scenario, bad id or n_outputs; when samples are first read: an empty part (valid may be
            empty), a label out of range, NaN or infinity in the inputs.
    """

    def __init__(
        self,
        id: int,
        n_outputs: int | None,
        train: Part = None,
        valid: Part = None,
        test: Part = None,
        *,
        scenario: str = "task",
        name: str | None = None,
        classes: Sequence[int | str] | None = None,
        example: Tree | None = None,
        collate: Collate | None = None,
        criterion: Judge | None = None,
        metric: Judge | None = None,
    ) -> None:
        check_scenario(scenario)
        self.id = check_task_id(id)
        self.n_outputs = None if n_outputs is None else checks.integer(f"n_outputs of task {id}", n_outputs)
        if n_outputs is None and scenario == "class":
            raise ValueError(
                f"task {id} has n_outputs=None, and scenario 'class' counts classes; allowed: 'task' or 'domain'"
            )
        for what, judge in (("criterion", criterion), ("metric", metric)):
            if judge is not None:
                checks.function(f"{what} of task {id}", judge, "outputs and targets, which returns a number")
        self.criterion, self.metric = criterion, metric
        self.scenario = scenario
        self.name = f"task {id}" if name is None else name
        self.classes: tuple[int | str, ...] = tuple(range(self.n_outputs or 0))
        self._names_classes = classes is not None
        if classes is not None:
            self.classes = tuple(c if isinstance(c, str) else int(c) for c in classes)
        self._example, self._collate = example, collate
        self._given = {"train": train, "valid": valid, "test": test}
        self._kept: dict[str, Samples | LazySamples] = {}
        for part, given in self._given.items():
            if given is not None and not _is_maker(given):
                self._kept[part] = self.make(part)

    @property
    def id_at_test(self) -> int | None:
        """What a learner is told of the task at test time: its id in scenario "task", otherwise nothing."""
        return self.id if self.scenario == "task" else None

    @property
    def train(self) -> Any:
        return self._keep("train")

    @property
    def valid(self) -> Any:
        return self._keep("valid")

    @property
    def test(self) -> Any:
        return self._keep("test")

    @property
    def example(self) -> Tree:
        """At most two inputs, shape (n, ...): enough to find out what a backbone makes of them."""
        if self._example is None:
            train = self._keep("train")
            if isinstance(train, Samples):
                return inputs.take(train.x, slice(2))
            with seeded(0):
                self._example = train.take(slice(2)).x
        return inputs.take(self._example, slice(2))

    @property
    def has_example(self) -> bool:
        """Whether `example` is at hand, so that asking for it makes no samples."""
        return self._example is not None or "train" in self._kept

    @property
    def shapes(self) -> Any:
        """The shapes of the example, see `inputs.shapes`."""
        return inputs.shapes(self.example)

    @property
    def collate(self) -> Collate | None:
        """What makes a batch of a list of items, if it was given."""
        return self._collate

    @property
    def ragged(self) -> bool:
        """Whether inputs may have several shapes, since a function of the user's own makes batches of them."""
        return self._collate is not None

    def needs(self, *parts: str) -> None:
        """Raise ValueError where the task was made without one of these parts."""
        for part in parts:
            if self._given[part] is None:
                raise ValueError(
                    f"task {self.id} ({self.name}) was made without {part} samples; give them as {part}=(x, y)"
                )

    def make(self, part: str) -> Any:
        """The samples of a part, made anew and not kept: what a loop needs that goes through many large tasks.

        `Samples`, or `LazySamples` where they are read on demand.
        """
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; allowed: {', '.join(PARTS)}")
        if part in self._kept:
            return self._kept[part]
        given = self._given[part]
        if part == "valid" and given is None:
            return Samples(inputs.take(self.example, slice(0)), torch.empty(0, dtype=torch.long))
        self.needs(part)
        name = Name(part, f"task {self.id} ({self.name}): ")
        samples, names = ingest(
            given() if _is_maker(given) else given,
            name,
            self._collate,
            hold_items=False,
            targets=self.n_outputs is None,
        )
        if names is not None:  # labels that are texts
            samples = samples.with_labels(self._numbers(names, name)[samples.labels])
        return self._checked(samples, name)

    def _numbers(self, names: tuple[str, ...], name: Name) -> Tensor:
        """The numbers of classes that labels name, int64 of shape (names,)."""
        assert self.n_outputs is not None
        if not self._names_classes and name.part != "train" and self._given["train"] is not None:
            self.make("train")  # which may tell them
        if not self._names_classes:
            self.classes, self._names_classes = names, True
            if (self.scenario != "class" and len(names) != self.n_outputs) or len(names) > self.n_outputs:
                raise ValueError(
                    f"{name} have labels of {len(names)} kinds ({', '.join(names)}), and n_outputs is "
                    f"{self.n_outputs}; name all classes in their order with classes=[...]"
                )
        unknown = [repr(text) for text in names if text not in self.classes]
        if unknown:
            raise ValueError(
                f"{name} have labels that name none of the task's classes: {', '.join(unknown)}; "
                f"allowed: {', '.join(map(repr, self.classes))}"
            )
        before = self.n_outputs - len(self.classes) if self.scenario == "class" else 0
        return torch.tensor([before + self.classes.index(text) for text in names])

    def with_dtype(self, dtype: torch.dtype) -> Task:
        """The same task, its floating-point inputs in another type."""
        other = copy.copy(self)
        other._kept = {}
        other._given = {
            part: None if given is None else partial(self._retyped, part, dtype) for part, given in self._given.items()
        }
        other._example = inputs.to(self.example, dtype=dtype) if self.has_example else None
        return other

    def _retyped(self, part: str, dtype: torch.dtype) -> Samples | LazySamples:
        samples: Samples | LazySamples = self.make(part)
        return samples.to(dtype=dtype)

    def _keep(self, part: str) -> Any:
        if part not in self._kept:
            self._kept[part] = self.make(part)
        return self._kept[part]

    def _checked(self, samples: Samples | LazySamples, name: Name) -> Samples | LazySamples:
        if len(samples) == 0 and name.part != "valid":
            raise ValueError(f"{name} are empty; at least one is needed")
        if self.n_outputs is None:
            if isinstance(samples, LazySamples):
                return samples.checked(None, name)
            inputs.check_finite(samples.x, str(name))
            inputs.check_finite(samples.y, name("targets"))
            return samples
        if isinstance(samples, LazySamples):  # what is not known yet is checked when it is read
            if samples.knows_labels:
                check_labels(samples.labels, self.n_outputs, name)
            return samples.checked(self.n_outputs, name)
        y = samples.y
        if y.is_floating_point() or y.ndim != 1:
            raise ValueError(f"{name} have labels of {y.dtype} and shape {tuple(y.shape)}; allowed: integers, (n,)")
        inputs.check_finite(samples.x, str(name))
        return samples.with_labels(check_labels(y, self.n_outputs, name).long())

    def __repr__(self) -> str:
        return f"Task(id={self.id}, name={self.name!r}, n_outputs={self.n_outputs}, scenario={self.scenario!r})"


def _is_maker(given: Any) -> bool:
    """Whether a part was given as a function that makes it; a data set that can be called is none."""
    return callable(given) and not hasattr(given, "__getitem__")


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
    if None in outputs and len(set(outputs)) > 1:
        raise ValueError(
            f"tasks with a head and tasks without one (n_outputs=None) do not go together; given n_outputs: {outputs}"
        )
    if tasks[0].scenario == "class" and sorted(outputs, key=lambda n: n or 0) != outputs:
        raise ValueError(
            f"in scenario 'class' n_outputs counts all classes seen so far, so it cannot shrink; given: {outputs}"
        )


def check_scenario(scenario: str) -> None:
    if scenario not in SCENARIOS:
        raise ValueError(f"unknown scenario {scenario!r}; allowed: {', '.join(SCENARIOS)}")


def check_task_id(task_id: Any) -> int:
    """The task id as an int; ValueError where it is none."""
    return checks.integer("the task id", task_id, 0)
