"""The bounds that every method is held against: FineTune below, Joint and Individual above, and FeatureExtraction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from .freezing import TaskModules, Template, copied
from .learner import Fit, Learner, TaskRecord
from .networks import reinitialize
from .saving import check_state, put_template, starting_with, take_template
from .tasks import Task


class FineTune(Learner):
    """Train on each task as it comes and protect nothing: the lower bound on what is remembered."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)


class FeatureExtraction(Learner):
    """Freeze the backbone after the first task and train new heads on it: "classifier only" in PackNet's tables."""

    needs_classes = True

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        del self._modules["backbone"]
        self.networks = TaskModules()
        self.networks["backbone"] = backbone

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The network; once it is frozen, a copy of it."""
        return self.networks["backbone"]

    def feature_extractor(self) -> nn.Module:
        return self.networks.real("backbone")

    def features(self, x: Tensor, task_id: int | None) -> Tensor:
        return self.apply_kept(self.feature_extractor(), x)

    def export_backbone(self, task_id: int | None) -> nn.Module:
        return self.feature_extractor()

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        yield self.networks, "backbone"
        if self.scenario == "task":
            yield self.heads, str(task_id)


class Individual(Learner):
    """One network per task, each a copy of the given backbone: nothing is shared, forgotten or transferred."""

    needs_task_id = True
    copies_backbone = True

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        del self.backbone  # every task trains a copy; the given network itself is no part of the learner
        self.template = Template(backbone)
        self.networks = TaskModules()

    def feature_extractor(self) -> nn.Module:
        return self.template.network

    def grow(self, task: TaskRecord) -> None:
        super().grow(task)
        network = copied(self.template.network)
        reinitialize(network)
        self.networks[str(task.id)] = network

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        return (self.networks, str(task_id)), (self.heads, str(task_id))

    def on_forget(self, task_id: int) -> None:
        del self.networks[str(task_id)]

    def features(self, x: Tensor, task_id: int | None) -> Tensor:
        return self.apply_kept(self.networks.real(str(task_id)), x)

    def export_backbone(self, task_id: int | None) -> nn.Module:
        return self.networks.real(str(task_id))

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return put_template(state, self.template.network)

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return take_template(tensors, self.template.network)


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

    def on_resume(self, tasks: Sequence[Task]) -> None:
        self.seen = [t for t in self.seen if t.id not in {task.id for task in tasks}] + list(tasks)

    def learn(self, task: Task, fit: Fit) -> None:
        self.start_over()
        self.seen = [t for t in self.seen if t.id != task.id] + [task]
        fit(tasks=self.seen)

    def trainings(self, samples: Sequence[int], epochs: int) -> list[tuple[int, int]]:
        return [(epochs, sum(samples))]

    def extra_bytes(self) -> int:
        """Bytes of the training data and of the first weights, which it keeps."""
        data = [task.make("train") for task in self.seen]
        return sum(part.nbytes for part in (*data, *(self._first or {}).values()))

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state | {f"first.{name}": tensor for name, tensor in (self._first or {}).items()}

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        first = dict(starting_with("first.", tensors))
        if first:
            check_state("the file's copy of the first weights", first, self.backbone.state_dict())
            self._first = first
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("first.")}

    def start_over(self) -> None:
        """Back to the first weights, and heads drawn anew."""
        if self._first is None:
            self._first = {name: tensor.clone() for name, tensor in self.backbone.state_dict().items()}
        self.backbone.load_state_dict(self._first)
        for head in self.heads.layers:
            head.reset_parameters()

    def loss(self, x: Tensor, y: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Cross-entropy over a batch of samples of several tasks; `task_id`, int64 of shape (batch,), says of which."""
        if not isinstance(task_id, Tensor):
            return super().loss(x, y, task_id)
        return self.mixed_loss(x, y, task_id)
