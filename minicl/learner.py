"""What every continual learner is: a backbone, heads that are created as tasks arrive, and a few moments to redefine.

A method is what happens when a task arrives, so a method's `learn` reads like the algorithm box in its paper. The
optimisation loop is handed in as `fit`; a learner owns no optimiser and no data loader, and no loop needs to know which
method it runs. The moments a method may redefine, each empty or trivial here:

    learn(task, fit)         the algorithm: train, prune, re-train, freeze, measure importance, grow
    forward(x, task_id)      logits, shape (batch, classes of that head)
    loss(x, y, task_id)      cross-entropy, plus a method's own term
    before_step(progress)    progress in [0, 1] through the epoch
    edit_gradients()         after backward, before the optimiser's step
    after_step()             after the optimiser's step

This file ends with the bounds that every method is held against: FineTune, Joint, Individual, FeatureExtraction.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import files
from .networks import redraw, untouched
from .tasks import Task, check_scenario, check_task_id

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)

Fit = Callable[..., None]
"""The optimisation loop: `fit()` trains on the task at hand; `fit(epochs=...)` for so long; `fit(tasks=[...])` on the
mixture of several tasks, with one task id a sample."""


NO_LABEL = -(2**62)
"""PyTorch leaves samples with the label -100 out of the loss, silently. Here nothing is left out."""


@dataclass
class TaskRecord:
    """What a learner remembers of a task: never its data."""

    id: int
    n_outputs: int
    n_features: int
    scenario: str
    name: str = ""
    finished: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


class Learner(nn.Module):
    """A continual learner around `backbone`, any module from a batch to features of shape (batch, features).

    Args:
        backbone: the network to be trained task after task.
        hyperparameters: the method's own, kept in `self.hyperparameters` and written into saved files.

    Attributes:
        needs_task_id: whether the method must be told the task id at test time; such methods run in "task" alone.
        tasks: a `TaskRecord` for each task that has arrived, by task id, in order of arrival.
        heads: the output layers: one a task ("task"), one for all ("domain"), the rows of each task's new classes
            ("class").
        scenario: of the tasks learned, or None before the first.
        input_shape: shape of one input. Set it to None where a network takes inputs of several shapes.
        certificate: digests of each task's logits, taken by `run` when the task ended; see `minicl.certify`.
    """

    needs_task_id: ClassVar[bool] = False
    saved_attributes: ClassVar[tuple[str, ...]] = ()
    """Names of plain attributes that belong into a saved file, beside the tensors of the state dict."""
    _place: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "learn" in cls.__dict__:
            cls.learn = _lesson(cls.__dict__["learn"])  # type: ignore[method-assign, assignment]

    def __init__(self, backbone: nn.Module, **hyperparameters: Any) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise TypeError(
                f"the backbone is a {type(backbone).__name__}; allowed: an nn.Module that maps a batch to features, "
                "such as minicl.mlp(64, 256, 256)"
            )
        self.backbone = backbone
        self.heads = nn.ModuleDict()
        self.hyperparameters = hyperparameters
        self.tasks: dict[int, TaskRecord] = {}
        self.scenario: str | None = None
        self.input_shape: tuple[int, ...] | None = None
        self.certificate: dict[int, dict[str, Any]] = {}
        self._current: int | None = None
        self._columns: tuple[tuple[Any, ...], Tensor, Tensor, Tensor | None]  # see `own_outputs`
        self._columns = ((), torch.empty(0), torch.empty(0), None)
        like = next((t for t in backbone.parameters() if t.is_floating_point()), torch.empty(0))
        self.register_buffer("_place", like.new_empty(0), persistent=False)  # where, and in what type, heads are made

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

    def forward(self, x: Tensor, task_id: int | None = None) -> Tensor:
        """Logits, shape (batch, outputs of the head).

        Args:
            x: a batch of inputs, shape (batch, ...).
            task_id: which task's head (and mask, column, ...) to use. Required in scenario "task".

        Raises:
            ValueError: a task id that is missing, negative or not learned; a batch of another shape.
        """
        task_id = self.check(x, task_id)
        return self.classify(self.features(x, task_id), task_id)

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        """Cross-entropy of the logits for x, shape (batch, ...), with labels y, int64 of shape (batch,). A scalar."""
        return self.cross_entropy(self(x, task_id), y)

    def before_step(self, progress: float) -> None:
        """Called before the loss of each batch; progress runs from 0 (first batch) to 1 (last) through each epoch."""

    def edit_gradients(self) -> None:
        """Called after backward and before the optimiser's step, through `protect`."""

    def after_step(self) -> None:
        """Called after the optimiser's step, through `protect`."""

    def grow(self, task: TaskRecord) -> None:
        """Create what a task needs before it can be learned: here, its head. Also called when a file is loaded."""
        if task.scenario == "domain" and "shared" in self.heads:
            return
        before = sum(head.out_features for head in self.heads.values()) if task.scenario == "class" else 0  # type: ignore[misc]
        if task.n_outputs < before:
            raise ValueError(
                f"task {task.id} has n_outputs={task.n_outputs}, but {before} classes were seen before it; "
                "in scenario 'class' n_outputs counts all classes seen so far"
            )
        if task.n_outputs > before:
            name = "shared" if task.scenario == "domain" else str(task.id)
            self.heads[name] = nn.Linear(
                task.n_features, task.n_outputs - before, device=self._place.device, dtype=self._place.dtype
            )

    def restored(self) -> None:
        """Called when a file has been loaded: freeze again what the finished tasks had frozen."""

    def revisit(self, tasks: Sequence[Task]) -> None:
        """Called when `run` goes on from a checkpoint, with the tasks learned before: for methods that keep data."""

    # ---- parts of forward and loss -----------------------------------------------------------------------------

    def features(self, x: Tensor, task_id: int | None) -> Tensor:
        """What the backbone makes of x, shape (batch, features), for this task."""
        features: Tensor = self.backbone(x)
        return features

    def classify(self, features: Tensor, task_id: int | None) -> Tensor:
        """Logits from features of shape (batch, features), through the head that the scenario asks for."""
        if self.scenario == "task":
            logits: Tensor = self.heads[str(task_id)](features)
        elif self.scenario == "domain":
            logits = self.heads["shared"](features)
        else:  # one linear head whose rows arrived task by task
            logits = F.linear(features, *self.all_heads())
        return logits

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy, with an error in words where a label has no output."""
        try:
            return F.cross_entropy(logits, y, ignore_index=NO_LABEL)
        except (IndexError, RuntimeError, ValueError) as error:
            if y.shape != logits.shape[:1] or y.is_floating_point():
                raise ValueError(
                    f"labels of shape {tuple(y.shape)} and {y.dtype} do not fit logits of shape {tuple(logits.shape)}; "
                    f"allowed: int64 of shape ({logits.shape[0]},)"
                ) from error
            if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
                raise ValueError(
                    f"labels run from {int(y.min())} to {int(y.max())}, but the head has {logits.shape[1]} outputs; "
                    f"allowed: 0 to {logits.shape[1] - 1}"
                ) from error
            raise

    def mixed_loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        """Mean cross-entropy over samples of several tasks; `task_ids`, int64 of shape (batch,), says of which.

        In scenario "task" each sample goes through its own task's head.
        """
        return self.cross_entropy(self.mixed_logits(self.features(x, None), task_ids), y)

    def mixed_logits(self, features: Tensor, task_ids: Tensor) -> Tensor:
        """Logits of features, shape (batch, features), of several tasks: shape (batch, outputs of the widest head).

        In scenario "task" each sample goes through the head of its own task; outputs that this head has not are -inf.
        All heads are computed in one product, so the cost hardly depends on the number of tasks.
        """
        if self.scenario != "task":
            return self.classify(features, None)
        return self.own_outputs(F.linear(features, *self.all_heads()), task_ids)

    def all_heads(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of all heads side by side, in the order of their arrival."""
        heads = list(self.heads.values())
        return torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads])  # type: ignore[misc]

    def own_outputs(self, outputs: Tensor, task_ids: Tensor) -> Tensor:
        """Of the outputs of all heads, shape (batch, all outputs), for each sample those of its own task's head."""
        if self._columns[0] != (*self.heads, outputs.device):
            sizes = [head.out_features for head in self.heads.values() if isinstance(head, nn.Linear)]
            columns = torch.full((len(sizes), max(sizes)), -1)
            for row, size in enumerate(sizes):
                columns[row, :size] = torch.arange(size) + int(columns.max()) + 1
            ids, order = torch.tensor([int(name) for name in self.heads]).sort()  # of any size, in any order
            columns, place = columns[order], outputs.device
            missing = (columns < 0).to(place) if bool((columns < 0).any()) else None
            self._columns = (*self.heads, place), ids.to(place), columns.clamp(min=0).to(place), missing
        _, ids, columns, missing = self._columns
        rows = torch.bucketize(task_ids.contiguous(), ids)
        own = outputs.gather(1, columns[rows])
        return own if missing is None else own.masked_fill(missing[rows], -torch.inf)

    def check(self, x: Tensor, task_id: int | None) -> int | None:
        """The task id to go on with: refused where it is missing or unknown, None where the scenario gives none."""
        if self.input_shape is not None and tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(
                f"the batch has shape {tuple(x.shape)}; allowed: (batch, {', '.join(map(str, self.input_shape))}). "
                "For a network that takes several shapes set learner.input_shape = None"
            )
        if self.scenario is None:
            raise ValueError(
                f"{type(self).__name__} has learned no task yet; call learner.learn(task, fit) or minicl.run first"
            )
        if task_id is None:
            if self.scenario == "task":
                raise ValueError(
                    f"the task id is missing; in scenario 'task' it is needed. Learned so far: {self._known()}"
                )
            return None
        record = self.tasks.get(task_id) if isinstance(task_id, int) and not isinstance(task_id, bool) else None
        if record is None or not (record.finished or task_id == self._current):
            raise ValueError(f"the task id is {task_id!r}, which has not been learned; allowed: {self._known()}")
        return task_id if self.scenario == "task" else None

    def _known(self) -> str:
        return ", ".join(str(t) for t, record in self.tasks.items() if record.finished or t == self._current) or "none"

    # ---- the loop's side ---------------------------------------------------------------------------------------

    def protect(self, optimizer: Optimizer) -> Optimizer:
        """Make every step of `optimizer` keep the method's promises; returns the optimiser.

        Attaches `edit_gradients` before and `after_step` after each step, by PyTorch's public hooks. Protecting an
        optimiser twice does nothing more. One optimiser may serve all tasks: give it the parameters of a new head with
        `optimizer.add_param_group`.

        Raises:
            TypeError: not a torch optimiser.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"protect was given a {type(optimizer).__name__}; allowed: a torch.optim.Optimizer")
        protected = optimizer.__dict__.setdefault("_protected_by", [])
        if not any(learner is self for learner in protected):
            protected.append(self)
            optimizer.register_step_pre_hook(self._before_optimizer_step)
            optimizer.register_step_post_hook(lambda *_: self.after_step())
        return optimizer

    def _before_optimizer_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # `step(closure)` computes its gradients inside the step, after this hook: there the editing goes with them.
        given = args[1:] if args and args[0] is optimizer else args
        closure = kwargs.get("closure", given[0] if given else None)
        if closure is None:
            self.edit_gradients()
            return None

        def edited() -> Any:
            value = closure()
            self.edit_gradients()
            return value

        return args[: len(args) - len(given)], {**kwargs, "closure": edited}

    def train(self, mode: bool = True) -> Self:
        """Training mode for what still learns; what has been frozen (see `freeze`) stays in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self.modules():
                if getattr(module, "frozen", False):
                    module.training = False
        return self

    def prepare(self, task: Task) -> TaskRecord:
        """Check `task` and create what it needs, as `learn` does first; useful to look at a network before training.

        Raises:
            ValueError: see `learn`.
        """
        check_task_id(task.id)
        check_scenario(task.scenario)
        self.accepts(task.scenario)
        if self.scenario not in (None, task.scenario):
            raise ValueError(
                f"task {task.id} is of scenario {task.scenario!r}, the tasks before it of {self.scenario!r}"
            )
        if task.id in self.tasks:
            record = self.tasks[task.id]
            if record.finished:
                raise ValueError(f"task {task.id} has been learned already; learned so far: {self._known()}")
            if record.n_outputs != task.n_outputs:
                raise ValueError(
                    f"task {task.id} has n_outputs={task.n_outputs}, and was prepared with {record.n_outputs}"
                )
            return record
        record = TaskRecord(task.id, task.n_outputs, self._probe(task), task.scenario, task.name)
        self._check_outputs(record)
        self.grow(record)
        if not self.tasks:
            self.input_shape = tuple(task.example.shape[1:])
        self._admit(record)
        return record

    def _admit(self, record: TaskRecord) -> None:
        self.tasks[record.id] = record
        self.scenario = record.scenario

    def accepts(self, scenario: str) -> None:
        """Raises ValueError where the method needs the task id at test time and the scenario does not give it."""
        if self.needs_task_id and scenario != "task":
            raise ValueError(
                f"{type(self).__name__} must be told the task id at test time, and scenario {scenario!r} gives none; "
                "allowed: scenario 'task'"
            )

    def _check_outputs(self, record: TaskRecord) -> None:
        if record.scenario == "domain":
            for other in self.tasks.values():
                if other.n_outputs != record.n_outputs:
                    raise ValueError(
                        f"task {record.id} has {record.n_outputs} outputs, task {other.id} had {other.n_outputs}; "
                        "in scenario 'domain' all tasks share one head"
                    )

    def _probe(self, task: Task) -> int:
        """The number of features that the backbone makes, found by showing it two inputs in evaluation mode."""
        example = task.example
        if self.input_shape is not None and tuple(example.shape[1:]) != self.input_shape:
            raise ValueError(
                f"the inputs of task {task.id} have shape {tuple(example.shape[1:])}, "
                f"those before it {self.input_shape}; "
                "one learner takes inputs of one shape"
            )
        network = self.probed()
        place = next(network.parameters(), self._place).device
        modes = [(module, module.training) for module in network.modules()]
        try:
            network.eval()
            with torch.no_grad():
                features = network(example.to(place))
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            raise ValueError(
                f"the backbone cannot take inputs of shape (batch, {', '.join(map(str, example.shape[1:]))}), "
                f"as task {task.id} has them: {error}"
            ) from error
        finally:
            for module, mode in modes:
                module.training = mode
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(example):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"the backbone returned {shape} for a batch of {len(example)}; "
                f"allowed: features of shape ({len(example)}, features). "
                "Put an nn.Flatten at its end, or take its classifier off"
            )
        return features.shape[1]

    def probed(self) -> nn.Module:
        """The module whose output feeds a new head."""
        return self.backbone

    def redraw(self) -> None:
        """Draw the first weights of a network from `mlp` or `cnn` anew, if nothing has been learned yet."""
        if not self.tasks:
            redraw(self.probed())

    @property
    def learned(self) -> list[int]:
        """Ids of the finished tasks, in the order in which they were learned."""
        return [t for t, record in self.tasks.items() if record.finished]

    @property
    def device(self) -> torch.device:
        """Where new heads are made."""
        return self._place.device

    # ---- what it costs, and taking it elsewhere ------------------------------------------------------------------

    def capacity(self) -> dict[str, Any]:
        """What is stored, by whom it is used, and what is left.

        Keys of every method: "method"; "parameters", the weights stored, frozen ones and heads included; "bytes", what
        they take; "extra_bytes", what the method stores beside them (masks, importances, memory); "tasks", by task id.
        """
        tensors = list(parameters_of(self))
        return {
            "method": type(self).__name__,
            "parameters": sum(t.numel() for t in tensors),
            "bytes": sum(t.nbytes for t in tensors),
            "extra_bytes": self.extra_bytes(),
            "tasks": {t: {"name": record.name, "finished": record.finished} for t, record in self.tasks.items()},
        }

    def extra_bytes(self) -> int:
        """Bytes that the method stores beside the weights."""
        return 0

    def export(self, task_id: int | None = None) -> nn.Module:
        """That task's network alone: a plain module in evaluation mode, on the CPU or wherever the learner is.

        Raises:
            ValueError: a task id that is missing (in scenario "task") or not learned.
        """
        task_id = self.check_finished(task_id)
        return plain(nn.Sequential(copy.deepcopy(self.export_backbone(task_id)), self._export_head(task_id)))

    def export_backbone(self, task_id: int | None) -> nn.Module:
        """The module that makes this task's features; `export` copies it."""
        return self.backbone

    def check_finished(self, task_id: int | None) -> int | None:
        """The task id, or None where the scenario gives none; ValueError unless the task is finished."""
        if not self.learned:
            raise ValueError("no task has been learned yet, so there is nothing to export")
        if task_id is None and self.scenario == "task":
            raise ValueError(f"the task id is missing; allowed: {', '.join(map(str, self.learned))}")
        if task_id is not None and (type(task_id) is not int or task_id not in self.learned):
            raise ValueError(
                f"the task id is {task_id!r}, which has not been learned; allowed: {', '.join(map(str, self.learned))}"
            )
        return task_id if self.scenario == "task" else None

    def _export_head(self, task_id: int | None) -> nn.Module:
        if self.scenario == "task":
            return copy.deepcopy(self.heads[str(task_id)])
        heads = [copy.deepcopy(head) for head in self.heads.values()]
        weight, bias = torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads])  # type: ignore[misc]
        head = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        head.weight.data, head.bias.data = weight.detach(), bias.detach()
        return head

    def save(self, path: str | Path) -> None:
        """Write the learner to `path`: safetensors with a JSON header, never pickle.

        Raises:
            ValueError: in the middle of a task.
            OSError: the path cannot be written; an older file there is left as it was.
        """
        if self._current is not None:
            raise ValueError(f"task {self._current} is being learned; save between tasks")
        files.write(path, self.header(), self.pack(dict(self.state_dict())))

    def header(self) -> dict[str, Any]:
        """What a file says of the learner, beside its tensors; JSON can hold it."""
        return {
            "method": type(self).__name__,
            "hyperparameters": files.jsonable(self.hyperparameters),
            "scenario": self.scenario,
            "input_shape": self.input_shape,
            "tasks": [asdict(record) for record in self.tasks.values()],
            "attributes": {name: getattr(self, name) for name in self.saved_attributes},
            "certificate": self.certificate,
        }

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
        header, tensors = files.read(path)
        if header.get("method") != cls.__name__:
            raise ValueError(
                f"{path} holds a {header.get('method')}, not a {cls.__name__}; "
                f"load it with minicl.{header.get('method')}.load"
            )
        stored = _Stored.read(path, header, tensors, cls)
        given = {**stored.hyperparameters, **hyperparameters}
        missing = [name for name, value in given.items() if files.is_placeholder(value)]
        if missing:
            raise ValueError(
                f"{path} could not hold {', '.join(missing)} ({given[missing[0]]['not_saved']}); "
                f"give it to load(path, backbone, {missing[0]}=...)"
            )
        with torch.random.fork_rng(devices=[]):  # the first weights of what grows are drawn, and overwritten
            try:
                learner = cls(backbone, **given)
            except TypeError as error:
                raise ValueError(f"{path} has hyperparameters that {cls.__name__} does not take: {error}") from error
            stored.into(learner)
        return learner

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict as it goes into a file; methods whose masks can be stored in fewer bits redefine it."""
        return state

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `pack`."""
        return tensors


@dataclass
class _Stored:
    """What a file holds of a learner, checked."""

    path: str | Path
    hyperparameters: dict[str, Any]
    input_shape: tuple[int, ...] | None
    records: list[TaskRecord]
    attributes: dict[str, Any]
    certificate: dict[int, dict[str, Any]]
    tensors: dict[str, Tensor]

    @classmethod
    def read(
        cls, path: str | Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor], kind: type[Learner]
    ) -> _Stored:
        # A checkpoint of `run` is a learner's file, and holds a few things more.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("run/")}
        try:
            shape, attributes = header["input_shape"], dict(header["attributes"])
            return cls(
                path,
                dict(header["hyperparameters"]),
                None if shape is None else tuple(int(n) for n in shape),
                _check_records(header["tasks"], sum(tensor.numel() for tensor in tensors.values())),
                {name: attributes[name] for name in kind.saved_attributes},
                {int(t): dict(taken) for t, taken in header["certificate"].items()},
                tensors,
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} has a header that is incomplete or damaged: {error!r}") from error

    def into(self, learner: Learner) -> None:
        """Give the learner everything; what it has not grown yet grows."""
        learner.input_shape = self.input_shape
        for record in self.records:
            if record.id not in learner.tasks:
                learner.grow(record)
            learner._admit(record)
        for name, value in self.attributes.items():
            setattr(learner, name, value)
        learner.certificate = self.certificate
        state = learner.unpack(self.tensors)
        _check_state(self.path, state, learner.state_dict())
        learner.load_state_dict(state)
        learner.restored()


def _lesson(learn: Callable[[Any, Task, Fit], None]) -> Callable[[Any, Task, Fit], None]:
    """Around a method's `learn`: check the task and create what it needs, mark it finished when all went well.

    When it did not go well (a loss that became NaN, Ctrl-C), put back what the broken training had changed.
    """

    @functools.wraps(learn)
    def lesson(self: Learner, task: Task, fit: Fit) -> None:
        if self._current is not None:  # super().learn(), inside a lesson that has begun
            learn(self, task, fit)
            return
        record = self.prepare(task)
        still = {f"{path}.{name}" for path, m in self.named_modules() for name in getattr(m, "frozen_parameters", [])}
        before = {name: tensor.clone() for name, tensor in self.state_dict().items() if name not in still}
        training = self.training
        self._current = task.id
        try:
            learn(self, task, fit)
            record.finished = True
        finally:
            self._current = None
            if not record.finished:
                _put_back(before, self)
                self.train(training)

    return lesson


Learner.learn = _lesson(Learner.learn)  # type: ignore[method-assign, assignment]


@torch.no_grad()
def _put_back(state: Mapping[str, Tensor], learner: Learner) -> None:
    for name, tensor in learner.state_dict().items():
        if name in state and state[name].shape == tensor.shape:  # what has been created since stays as it is
            tensor.copy_(state[name])


def _check_records(records: Any, n_stored: int) -> list[TaskRecord]:
    """The task records of a file's header, refused where no learner could have written them."""
    tasks = [TaskRecord(**saved) for saved in records]
    for task in tasks:
        check_task_id(task.id)
        check_scenario(task.scenario)
        numbers = (task.n_outputs, task.n_features)
        if not all(type(n) is int and n >= 1 for n in numbers) or not isinstance(task.notes, dict):
            raise ValueError(f"task {task.id} has a record that is damaged: {task}")
        if task.n_outputs * task.n_features > n_stored:  # before memory is asked for
            raise ValueError(
                f"task {task.id} has a head of {task.n_features} x {task.n_outputs}, which the file does not hold"
            )
    if len({task.id for task in tasks}) < len(tasks) or len({task.scenario for task in tasks}) > 1:
        raise ValueError("its tasks have the same id, or different scenarios")
    return tasks


def _check_state(path: str | Path, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in sorted(given.keys() ^ expected.keys()):
        place = "the file but not in the network" if name in given else "the network but not in the file"
        raise ValueError(f"{path} does not fit this backbone: {name} is in {place}")
    for name, tensor in expected.items():
        if given[name].shape != tensor.shape:
            raise ValueError(
                f"{path} does not fit this backbone: {name} has shape {tuple(given[name].shape)} in the file "
                f"and {tuple(tensor.shape)} in the network"
            )
        if given[name].dtype != tensor.dtype:
            raise ValueError(
                f"{path} does not fit this backbone: {name} is {given[name].dtype} in the file "
                f"and {tensor.dtype} in the "
                f"network; give it a backbone.to({given[name].dtype})"
            )


# ---- what has been learned and must not move ------------------------------------------------------------------------


def freeze(module: nn.Module) -> None:
    """Take a module out of every optimiser's reach, and keep it in evaluation mode.

    Its parameters become buffers with memory of their own. An optimiser that still holds the old parameters, with
    momentum or weight decay to apply, may do to them what it likes: the module no longer reads them.
    """
    for part in module.modules():
        names = [name for name, parameter in part.named_parameters(recurse=False)]
        for name in names:
            value = getattr(part, name).detach().clone()
            delattr(part, name)
            part.register_buffer(name, value)
        part.frozen = True  # type: ignore[assignment]
        part.frozen_parameters = [*getattr(part, "frozen_parameters", []), *names]  # type: ignore[assignment]
        part.training = False


def plain(module: nn.Module) -> nn.Module:
    """A module as anyone would have written it, for use elsewhere: frozen buffers are parameters again. Changes it."""
    for part in module.modules():
        for name in getattr(part, "frozen_parameters", []):
            value = getattr(part, name)
            delattr(part, name)
            part.register_parameter(name, nn.Parameter(value))
        for attribute in ("frozen", "frozen_parameters", "_first_weights"):
            part.__dict__.pop(attribute, None)
    return module.eval().requires_grad_(True)


def parameters_of(module: nn.Module) -> Iterable[Tensor]:
    """All parameters, those that `freeze` made buffers included; a tensor used in two places comes once."""
    seen: set[int] = set()
    for part in module.modules():
        frozen = (getattr(part, name) for name in getattr(part, "frozen_parameters", []))
        for tensor in (*part.parameters(recurse=False), *frozen):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


# ---- the bounds ------------------------------------------------------------------------------------------------------


class FineTune(Learner):
    """Train on each task as it comes and protect nothing: the lower bound on what is remembered."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)


class FeatureExtraction(Learner):
    """Freeze the backbone after the first task and train new heads on it: "classifier only" in PackNet's tables."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)

    def learn(self, task: Task, fit: Fit) -> None:
        fit()
        self._freeze(task.id)

    def restored(self) -> None:
        for t in self.learned:
            self._freeze(t)

    def _freeze(self, task_id: int) -> None:
        freeze(self.backbone)
        if self.scenario == "task":
            freeze(self.heads[str(task_id)])


class Individual(Learner):
    """One network a task, each a copy of the given backbone: nothing is shared, forgotten or transferred."""

    needs_task_id = True

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        del self.backbone  # every task trains a copy; the given network itself is no part of the learner
        self.template = [backbone]  # in a list, so that it is not registered as a module
        self.networks = nn.ModuleDict()

    def probed(self) -> nn.Module:
        return self.template[0]

    def grow(self, task: TaskRecord) -> None:
        super().grow(task)
        network = copy.deepcopy(self.template[0])
        redraw(network)
        self.networks[str(task.id)] = network.to(self.device)

    def learn(self, task: Task, fit: Fit) -> None:
        fit()
        self._freeze(task.id)

    def features(self, x: Tensor, task_id: int | None) -> Tensor:
        features: Tensor = self.networks[str(task_id)](x)
        return features

    def export_backbone(self, task_id: int | None) -> nn.Module:
        return self.networks[str(task_id)]

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # Later tasks start from the given network, which may be pretrained; not from whatever `load` is given.
        given = {} if untouched(self.template[0]) else self.template[0].state_dict()
        return state | {f"template.{name}": tensor for name, tensor in given.items()}

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {name.removeprefix("template."): t for name, t in tensors.items() if name.startswith("template.")}
        if given:
            _check_state("the file's copy of the given network", given, self.template[0].state_dict())
            self.template[0].load_state_dict(given)
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("template.")}

    def restored(self) -> None:
        for t in self.learned:
            self._freeze(t)

    def _freeze(self, task_id: int) -> None:
        freeze(self.networks[str(task_id)])
        freeze(self.heads[str(task_id)])


class Joint(Learner):
    """Train on all tasks so far at once, from the first weights, whenever one arrives: the upper bound.

    It keeps the data of every task, which continual learning forbids. A file holds the first weights, but not the data:
    after `load`, set `learner.seen` to the tasks learned before.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.seen: list[Task] = []
        self._first: dict[str, Tensor] | None = None

    def prepare(self, task: Task) -> TaskRecord:
        missing = set(self.learned) - {t.id for t in self.seen}
        if missing:
            raise ValueError(
                f"joint training needs the data of tasks {sorted(missing)} too; set learner.seen to those tasks"
            )
        return super().prepare(task)

    def revisit(self, tasks: Sequence[Task]) -> None:
        self.seen = [t for t in self.seen if t.id not in {task.id for task in tasks}] + list(tasks)

    def learn(self, task: Task, fit: Fit) -> None:
        self.start_over()
        self.seen = [t for t in self.seen if t.id != task.id] + [task]
        fit(tasks=self.seen)

    def extra_bytes(self) -> int:
        """Bytes of the training data and of the first weights, which it keeps."""
        data = [part for task in self.seen for part in (task.make("train").x, task.make("train").y)]
        return sum(part.nbytes for part in (*data, *(self._first or {}).values()))

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state | {f"first.{name}": tensor for name, tensor in (self._first or {}).items()}

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        first = {name.removeprefix("first."): t for name, t in tensors.items() if name.startswith("first.")}
        if first:
            _check_state("the file's copy of the first weights", first, self.backbone.state_dict())
            self._first = first
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("first.")}

    def start_over(self) -> None:
        """Back to the first weights, and heads drawn anew."""
        if self._first is None:
            self._first = {name: tensor.clone() for name, tensor in self.backbone.state_dict().items()}
        self.backbone.load_state_dict(self._first)
        for head in self.heads.values():
            head.reset_parameters()  # type: ignore[operator]

    def loss(self, x: Tensor, y: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Cross-entropy over a batch of samples of several tasks; `task_id`, int64 of shape (batch,), says of which."""
        if not isinstance(task_id, Tensor):
            return super().loss(x, y, task_id)
        return self.mixed_loss(x, y, task_id)


def accepted_hyperparameters(method: type[Learner]) -> dict[str, inspect.Parameter]:
    """The hyperparameters of a method, by name, as its constructor names them."""
    parameters = dict(inspect.signature(method.__init__).parameters)
    return {n: p for n, p in parameters.items() if n not in ("self", "backbone") and p.kind is not p.VAR_KEYWORD}
