"""What a learner lets in: tasks that fit it and one another, task ids that it knows, batches of the right shape."""

from __future__ import annotations

import torch
from torch import Tensor

from . import inputs
from .distributed import check_wrapper
from .freezing import evaluating
from .inputs import Tree
from .networks import not_called_again
from .records import State, TaskRecord
from .tasks import Task, check_scenario, check_task_id


class Admission(State):
    """The part of a `Learner` that looks at what it is given, before anything is trained."""

    def check(self, x: Tree, task_id: int | None) -> int | None:
        """The task id to go on with: refused where it is missing or unknown, None where the scenario gives none."""
        if type(self).__name__.startswith("FSDP"):
            raise ValueError(
                "the learner was sharded (fully_shard), so no process holds its weights whole, which every method here "
                "needs; use DistributedDataParallel"
            )
        if self.input_shape is not None and inputs.shapes(x) != self.input_shape:
            given = tuple(x.shape) if isinstance(x, Tensor) else inputs.describe(inputs.shapes(x))
            raise ValueError(
                f"the batch has shape {given}; allowed: {inputs.describe(self.input_shape)}. "
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
        if task_id == self._current:
            check_wrapper(self)
        return task_id if self.scenario == "task" else None

    def _known(self) -> str:
        return ", ".join(str(t) for t, record in self.tasks.items() if record.finished or t == self._current) or "none"

    def prepare(self, task: Task) -> TaskRecord:
        """Check `task` and create what it needs, as `learn` does first; useful to look at a network before training.

        Raises:
            ValueError: see `learn`.
        """
        if torch.is_inference_mode_enabled():
            raise ValueError(
                f"task {task.id} cannot be learned in torch.inference_mode(); call learn or run outside of it"
            )
        tensors = (*self.feature_extractor().parameters(), *self.parameters(), *self.buffers())
        if any(t.is_inference() for t in tensors):
            raise ValueError(
                "the learner holds tensors that were made in torch.inference_mode(), which nothing can train; make the "
                "backbone and the learner outside of it"
            )
        if tensors and all(t.is_meta for t in tensors):
            raise ValueError(
                "the learner holds tensors on the device 'meta', which have no numbers; call backbone.to_empty(device) "
                "and give it weights before the learner is made"
            )
        check_task_id(task.id)
        check_scenario(task.scenario)
        self.accepts(task.scenario)
        self.check_outputs(task)
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
            self._take_criterion(task)
            return record
        n_features = self._n_features(task)  # which reads samples, and with them classes that are texts
        record = TaskRecord(task.id, task.n_outputs, n_features, task.scenario, task.name, classes=list(task.classes))
        self._check_outputs(record)
        before = {name for name, _ in self.named_parameters()}
        self.grow(record)
        self._made[task.id] = {name for name, _ in self.named_parameters()} - before
        if not self.tasks:
            self.input_shape = None if task.ragged else task.shapes
        self._register(record)
        self._take_criterion(task)
        return record

    def _take_criterion(self, task: Task) -> None:
        self._criteria.pop(task.id, None)
        if task.criterion is not None:
            self._criteria[task.id] = task.criterion

    def _register(self, record: TaskRecord) -> None:
        self.tasks[record.id] = record
        self.scenario = record.scenario

    def accepts(self, scenario: str) -> None:
        """Raises ValueError where the method needs the task id at test time and the scenario does not give it."""
        if self.needs_task_id and scenario != "task":
            raise ValueError(
                f"{type(self).__name__} must be told the task id at test time, and scenario {scenario!r} gives none; "
                "allowed: scenario 'task', or run(..., infer='softmax'), which guesses it"
            )

    def check_outputs(self, task: Task) -> None:
        """Raises ValueError where a task has no head (`n_outputs=None`), and the method or the loop cannot do without.

        Also where some tasks have a head and others have none.
        """
        if task.n_outputs is None and self.needs_classes:
            raise ValueError(
                f"{type(self).__name__} works with classes, and task {task.id} has none (n_outputs=None); allowed: a "
                "number of outputs, or another method, such as minicl.ER, minicl.EWC or minicl.PackNet"
            )
        if task.n_outputs is None and self.rotations:
            raise ValueError(
                f"task {task.id} has n_outputs=None, and rotations need a head that can be widened; allowed: a number"
            )
        if task.n_outputs is None and task.criterion is None and self.criterion is None:
            raise ValueError(
                f"task {task.id} has n_outputs=None, so its loss must be said: Task(..., criterion=f), "
                "f(outputs, targets) -> a scalar tensor, or learner.criterion = f"
            )
        for t, record in self.tasks.items():
            if t != task.id and (record.n_outputs is None) != (task.n_outputs is None):
                raise ValueError(
                    f"task {task.id} has n_outputs={task.n_outputs}, and task {t} had {record.n_outputs}: tasks with a "
                    "head and tasks without one do not go together in one learner"
                )

    def _check_outputs(self, record: TaskRecord) -> None:
        if record.scenario == "domain":
            for other in self.tasks.values():
                if other.n_outputs != record.n_outputs:
                    raise ValueError(
                        f"task {record.id} has {record.n_outputs} outputs, task {other.id} had {other.n_outputs}; "
                        "in scenario 'domain' all tasks share one head"
                    )

    def _n_features(self, task: Task) -> int:
        """How many numbers the backbone makes of an input, found by showing it two inputs in evaluation mode."""
        example = task.example
        if self.input_shape is not None and task.shapes != self.input_shape:
            raise ValueError(
                f"the inputs of task {task.id} have shape {inputs.describe(task.shapes)}, "
                f"those before it {inputs.describe(self.input_shape)}; one learner takes inputs of one shape"
            )
        network = self.feature_extractor()
        device = next(network.parameters(), self._like).device
        given = inputs.map(torch.clone, inputs.to(example, device))
        versions = [leaf._version for leaf in inputs.tensors(given)]
        try:
            with evaluating(network), torch.no_grad():
                features = self.apply_network(network, given)
        except (RuntimeError, ValueError, IndexError, KeyError, AttributeError, TypeError, AssertionError) as error:
            raise ValueError(
                f"the backbone cannot take inputs of shape {inputs.describe(task.shapes)}, as task {task.id} has them: "
                f"{error}"
            ) from error
        fits = isinstance(features, Tensor) and features.ndim > 0 and len(features) == inputs.length(example)
        if not fits or (task.n_outputs is not None and features.ndim != 2):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"the backbone returned {shape} for a batch of {inputs.length(example)}; "
                f"allowed: features of shape ({inputs.length(example)}, features). "
                "Put an nn.Flatten at its end, take its classifier off, or say what the features are: "
                f"{type(self).__name__}(backbone, features=lambda out: ...). Where the network's own output is the "
                "answer: Task(..., n_outputs=None, criterion=f)"
            )
        now = [leaf._version for leaf in inputs.tensors(given)]
        self._writes_input = self._writes_input or now != versions
        if self.forward_alone and not self.tasks:
            not_called_again(network, lambda trial: self.apply_network(trial, given), type(self).__name__)
        return features[0].numel()

    def classes_of(self, task_id: int | None = None) -> list[int | str]:
        """What each output stands for, as the data set itself calls its classes, in the order of the outputs.

        Args:
            task_id: whose head; not needed in scenario "class", where there is one for the classes of all tasks.

        Raises:
            ValueError: a task id that is missing or unknown.
        """
        if self.scenario == "class":
            names: list[int | str] = []
            for record in self.tasks.values():  # each brings its own, unless it lists all that there are by then
                names = (names if len(record.classes) < (record.n_outputs or 0) or not names else []) + record.classes
            return names
        if task_id not in self.tasks:
            known = ", ".join(map(str, self.tasks)) or "none"
            raise ValueError(f"the task id is {task_id!r}, whose classes are not known; allowed: {known}")
        return list(self.tasks[task_id].classes)

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
