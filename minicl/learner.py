"""What every continual learner is: a backbone, heads that are created as tasks arrive, and a few moments to redefine.

A method is what happens when a task arrives, so a method's `learn` reads like the algorithm box in its paper. The
optimisation loop is handed in as `fit`; a learner owns no optimiser and no data loader, and no loop needs to know which
method it runs. The moments a method may redefine, each empty or trivial here:

    learn(task, fit)         the algorithm: train, prune, re-train, freeze, measure importance, grow
    forward(x, task_id)      logits, shape (batch, classes of that head)
    loss(x, y, task_id)      cross-entropy, plus a method's own term
    before_step(progress)    progress in [0, 1] through the epoch
    watch(optimizer)         before the optimiser's step: which one it is, and its learning rates
    edit_gradients()         after backward, before the optimiser's step
    after_step()             after the optimiser's step
    belongings(task_id)      what is the task's own, and is frozen when the task ends
"""

from __future__ import annotations

import copy
import inspect
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from . import files, inputs, saving
from .admission import Admission
from .freezing import TaskModules, call_with, one_way, passing_tensors
from .heads import TURNS, Heads, turned, turned_labels
from .inputs import Tree
from .judging import Judging
from .networks import arguments, check_backbone, claim, reinitialize
from .protection import (
    InProgress,
    Snapshot,
    Steps,
    around_edit,
    around_init,
    around_learn,
    around_loss,
    check_average,
)
from .records import TaskRecord as TaskRecord
from .storable import Storable
from .tasks import Task

Fit = Callable[..., None]
"""The optimisation loop: `fit()` trains on the task at hand; `fit(epochs=...)` for so long; `fit(tasks=[...])` on the
mixture of several tasks, with one task id per sample."""


COMMON = {"rotations": inspect.Parameter("rotations", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)}
"""Hyperparameters that every method takes that must be told the task id, and that none needs to name."""

AROUND: dict[str, Callable[[Any], Any]] = {
    "__init__": around_init,
    "learn": around_learn,
    "loss": around_loss,
    "edit_gradients": around_edit,
}
"""What is put around a moment that a method redefines."""


class Learner(Admission, Judging, Steps, Storable):
    """A continual learner around `backbone`, any module from a batch to features of shape (batch, features).

    Args:
        backbone: the network to be trained task after task.
        hyperparameters: the method's own, kept in `self.hyperparameters` and written into saved files.
        features: every method takes this beside its own: a function from what the backbone returns (a dictionary, a
            tuple, a sequence of states) to features of shape (batch, features).
        rotations: every method that must be told the task id takes this: train on each square image in four turns, with
            four times as many outputs, so that each says of what class and how turned it is. A network that has learned
            how its own classes stand is less sure of others, which `minicl.infer_task` makes use of.

    Attributes:
        needs_task_id: whether the method must be told the task id at test time; such methods run in "task" alone.
        tasks: a `TaskRecord` for each task that has arrived, by task id, in order of arrival.
        heads: the output layers: one per task ("task"), one for all ("domain"), the rows of each task's new classes
            ("class").
        scenario: of the tasks learned, or None before the first.
        input_shape: shape of one input, a tuple; of inputs that are a dictionary or a list, one of such (see
            `minicl.inputs.shapes`). Set it to None where a network takes inputs of several shapes.
        certificate: digests of each task's logits, taken by `run` when the task ended; see `minicl.certify`.
        criterion: a function (logits, labels) -> mean loss, in the place of cross-entropy wherever the method uses it:
            class weights, label smoothing. Of your own loop; `run` takes it as an argument. Never saved.
    """

    needs_task_id: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    """Whether the method works with labels that are classes alone, and so refuses tasks with `n_outputs=None`."""
    copies_backbone: ClassVar[bool] = False
    """Whether the given network is copied and not trained, so that two learners may have the same."""
    needs_training_mode: ClassVar[bool] = False
    """Whether loss or forward pass leave out, in evaluation mode, what the method learns by."""
    forward_alone: ClassVar[bool] = False
    """Whether layers may be called in the forward pass alone: no gradient checkpointing."""
    saved_attributes: ClassVar[tuple[str, ...]] = ()
    """Names of plain attributes that belong into a saved file, beside the tensors of the state dict."""
    lesson_attributes: ClassVar[tuple[str, ...]] = ()
    """Names of plain attributes, dots allowed, that change while `fit` trains, for a checkpoint within a task: neither
    parameters and buffers, which it holds anyway, nor what `learn` itself sets, which is set again."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for moment, around in AROUND.items():
            if moment in cls.__dict__:
                setattr(cls, moment, around(cls.__dict__[moment]))

    def __init__(self, backbone: nn.Module, **hyperparameters: Any) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise TypeError(
                f"the backbone is a {type(backbone).__name__}; allowed: an nn.Module that maps a batch to features, "
                "such as minicl.mlp(64, 256, 256)"
            )
        check_backbone(backbone, type(self).__name__)
        if not self.copies_backbone:
            claim(backbone, self)
        self.backbone = backbone
        self.heads = Heads()
        self.select = self.__dict__.pop("_given_features", None)
        self.hyperparameters = hyperparameters if self.select is None else {**hyperparameters, "features": self.select}
        self.rotations = self.__dict__.pop("_given_rotations", False)
        if self.rotations:
            self.heads.turns, self.hyperparameters = TURNS, {**self.hyperparameters, "rotations": True}
        self.tasks: dict[int, TaskRecord] = {}
        self.scenario: str | None = None
        self.input_shape: Any = None
        self.certificate: dict[int, dict[str, Any]] = {}
        self.criterion: Callable[[Tensor, Tensor], Tensor] | None = None
        self._criteria: dict[int, Callable[[Tensor, Tensor], Tensor]] = {}  # of tasks that bring their own, by id
        self.largest_batch = 0  # samples of the largest batch that a loss was computed of while learning
        self._writes_input = False  # whether the backbone works in place on what it is given
        self._current: int | None = None  # the task that is being learned
        self._in_progress: InProgress | None = None
        self._protected: list[weakref.ref[torch.optim.Optimizer]] = []
        self._copied_at: int | None = None  # the task that was being learned when this was copied from another learner
        self._made: dict[int, set[str]] = {}  # names of the parameters that `grow` made, by task
        like = next((t for t in backbone.parameters() if t.is_floating_point()), torch.empty(0))
        self.register_buffer("_like", like.new_empty(0), persistent=False)  # where, and in what type, heads are made

    # ---- the moments -------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        """Learn `task` by calling `fit` when the method says so.

        Methods redefine this. Around it, always: the task is checked and what it needs is created (`grow`) before;
        afterwards its record is marked as finished. If it breaks off, all weights and buffers are as they were before,
        and the same task may be learned again.

        Raises:
            ValueError: a task that was learned before, of another scenario, or that the backbone cannot take.
        """
        fit()

    def forward(self, x: Tree, task_id: int | None = None) -> Tensor:
        """Logits, shape (batch, outputs of the head).

        Args:
            x: a batch of inputs, shape (batch, ...), or a dictionary, tuple or list of such.
            task_id: which task's head (and mask, column, ...) to use. Required in scenario "task".

        Raises:
            ValueError: a task id that is missing, negative or not learned; a batch of another shape.
        """
        task_id = self.check(x, task_id)
        outputs = self.outputs(x, task_id)
        return outputs[:, : self.tasks[task_id].n_outputs] if task_id is not None and self.rotations else outputs

    def loss(self, x: Tree, y: Tensor, task_id: int | None = None) -> Tensor:
        """Cross-entropy of the logits for x, shape (batch, ...), with labels y, int64 of shape (batch,). A scalar.

        With rotations, while a task is learned: of all outputs, over the batch and its three turned copies.
        """
        if self.rotations and self.training and task_id == self._current is not None:
            task_id = self.check(x, task_id)
            y = turned_labels(y, self.tasks[task_id].n_outputs)  # type: ignore[index, arg-type]
            return self.cross_entropy(self.outputs(torch.cat([turned(x, r) for r in range(TURNS)]), task_id), y)
        return self.cross_entropy(self(x, task_id), y)

    def before_step(self, progress: float) -> None:
        """Called before the loss of each batch; progress runs from 0 (first batch) to 1 (last) through each epoch.

        Where an epoch has a single batch, it runs through all epochs.
        """

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Called before `edit_gradients` with the optimiser that is about to step, through `protect`."""

    def edit_gradients(self) -> None:
        """Called after backward and before the optimiser's step, through `protect`."""

    def after_step(self) -> None:
        """Called after the optimiser's step, through `protect`."""

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        """What is the task's own, as containers and names in them: hidden when the task ends and after loading."""
        return ()

    def grow(self, task: TaskRecord) -> None:
        """Create what a task needs before it can be learned: here, its head. Also called when a file is loaded."""
        self.heads.add(task, self._like)

    def _hide_belongings(self, task_id: int) -> None:
        for container, name in self.belongings(task_id):
            container.hide(name)

    def trainings(self, samples: Sequence[int], epochs: int) -> list[tuple[int, int]]:
        """How `learn` will call `fit`, as far as that is known before: epochs of each call, and samples in an epoch.

        Args:
            samples: training samples of each task, in their order, up to the one that is to be learned.
            epochs: what `fit` takes by itself.
        """
        return [(epochs, samples[-1])]

    def on_load(self) -> None:
        """Called when a file has been loaded and its tasks' belongings are hidden: for what else is to be done."""

    def on_resume(self, tasks: Sequence[Task]) -> None:
        """Called when `run` goes on from a checkpoint, with the tasks learned before: for methods that keep data."""

    # ---- parts of forward and loss -----------------------------------------------------------------------------

    def outputs(self, x: Tree, task_id: int | None) -> Tensor:
        """All outputs of the head, shape (batch, outputs): with rotations four times as many as there are classes."""
        return self.classify(self.features(x, task_id), task_id)

    def mixed(self, x: Tree, alpha: Tensor) -> Tensor:
        """Logits of the network in which every finished task has the weight alpha: of methods with masks.

        Args:
            x: a batch of inputs.
            alpha: shape (1, tasks), in the order of learning, for the whole batch, or (batch, tasks); the logits are
                differentiable with respect to it.

        Raises:
            ValueError: a method whose tasks have no masks that could be mixed.
        """
        raise ValueError(
            f"{type(self).__name__} has no masks that could be mixed, as rule 'gradient' does; allowed: a rule that "
            "asks each task, such as 'softmax'"
        )

    def features(self, x: Tree, task_id: int | None) -> Tensor:
        """What the backbone makes of x, shape (batch, features), for this task."""
        return self.apply_network(self.backbone, x)

    def apply_network(
        self, network: nn.Module, x: Any, tensors: Mapping[str, Tensor] | None = None, learning: bool = False
    ) -> Tensor:
        """What a network makes of x, after `features` where that was given: the one place where a backbone is called.

        Args:
            network: the backbone, or what stands for it.
            x: a batch. A dictionary is given by keyword where the network's `forward` has parameters of these names.
            tensors: the network's tensors by name, in the place of its own; then it answers in evaluation mode.
            learning: with these tensors, too, each part of the network is in its own mode.
        """
        if self._writes_input:  # as nn.ReLU(inplace=True) at its beginning does
            x = inputs.map(torch.clone, x)
        args, kwargs = arguments(network, x)
        result = network(*args, **kwargs) if tensors is None else call_with(network, tensors, args, kwargs, learning)
        return result if self.select is None else self.select(result)

    def apply_kept(self, network: nn.Module, x: Any, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """As `apply_network`, for finished tasks: with tensors of theirs, or a network that is frozen by then."""
        if tensors is None and not network.__dict__.get("frozen"):
            return self.apply_network(network, x)
        return one_way(lambda x: self.apply_network(network, x, tensors), x)

    def classify(self, features: Tensor, task_id: int | None) -> Tensor:
        """Logits from features of shape (batch, features), through the head that the scenario asks for."""
        return self.heads.logits(features, task_id)

    # ---- the loop's side ---------------------------------------------------------------------------------------

    def _finish(self, record: TaskRecord) -> None:
        """The task has been learned: what is its own moves no more. May be repeated."""
        self._hide_belongings(record.id)
        record.finished = True

    def _leave(self, snapshot: Snapshot | None) -> None:
        """Learning has ended, or broken off: then everything is as it was before. May be repeated."""
        self._current, self._in_progress = None, None
        if snapshot is not None:
            snapshot.put_back(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self._current is not None and fn(self._like).dtype != self._like.dtype:
            raise RuntimeError(
                f"task {self._current} is being learned; move the learner to another type of numbers between tasks"
            )
        return super()._apply(fn, recurse)

    def __copy__(self) -> Self:
        raise TypeError(
            f"copy.copy would give a second {type(self).__name__} with the same network and the same records, of which "
            "each would change the other's; use copy.deepcopy"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        memo.update(passing_tensors(self))
        twin.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, or a pickle: a task that is being learned can be asked there, and not be learned to its end."""
        return {**self.__dict__, "_in_progress": None, "_protected": [], "_copied_at": self._current}

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As of every module; refused where an average of an earlier task asks, which would mix up tasks."""
        check_average(self, sys._getframe(1).f_locals.get("self"))
        return super().parameters(recurse)

    def train(self, mode: bool = True) -> Self:
        """Training mode for what still learns; what has been frozen (see `freeze`) stays in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self.modules():
                if getattr(module, "frozen", False):
                    module.training = False
        return self

    def feature_extractor(self) -> nn.Module:
        """The module whose output feeds a new head."""
        return self.backbone

    def reinitialize(self) -> None:
        """Draw the first weights of a network from `mlp` or `cnn` anew, if nothing has been learned yet."""
        if not self.tasks:
            reinitialize(self.feature_extractor())

    @property
    def learned(self) -> list[int]:
        """Ids of the finished tasks, in the order in which they were learned."""
        return [t for t, record in self.tasks.items() if record.finished]

    @property
    def device(self) -> torch.device:
        """Where new heads are made."""
        return self._like.device

    # ---- what it costs, and taking it elsewhere ------------------------------------------------------------------

    # ---- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the learner to `path`: safetensors with a JSON header, never pickle.

        Raises:
            ValueError: in the middle of a task, for which there is `minicl.Lesson`.
            OSError: the path cannot be written; an older file there is left as it was.
        """
        if self._current is not None:
            raise ValueError(f"task {self._current} is being learned; save between tasks")
        files.write(path, saving.header(self), saving.tensors(self))

    @classmethod
    def load(cls, path: str | Path, backbone: nn.Module, **hyperparameters: Any) -> Self:
        """The learner saved at `path`, around `backbone`, a network of the same shape; learning goes on from there.

        Args:
            path: a file written by `save`.
            backbone: takes the saved weights.
            hyperparameters: replace saved ones; needed for those that a file cannot hold, such as functions.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is damaged, not a learner's, another method's, or of another network.
        """
        return saving.load(cls, path, backbone, **hyperparameters)


for _moment in ("__init__", "learn", "loss"):
    setattr(Learner, _moment, AROUND[_moment](getattr(Learner, _moment)))


def accepted_hyperparameters(method: type[Learner]) -> dict[str, inspect.Parameter]:
    """The hyperparameters of a method, by name, as its constructor names them."""
    parameters = dict(inspect.signature(method.__init__).parameters)
    own = {n: p for n, p in parameters.items() if n not in ("self", "backbone") and p.kind is not p.VAR_KEYWORD}
    return {**own, **COMMON} if method.needs_task_id else own
