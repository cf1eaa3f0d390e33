"""What a learner remembers of its tasks, and what the parts of a learner share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, device, nn

from .heads import Heads
from .inputs import Tree

if TYPE_CHECKING:
    from weakref import ref

    from torch.optim import Optimizer

    from .protection import InProgress


@dataclass
class TaskRecord:
    """What a learner remembers of a task: never its data.

    Attributes:
        classes: what its outputs stand for, as the data set itself calls its classes; in scenario "class" those that it
            brought. `Learner.classes_of` has those of a whole head.
    """

    id: int
    n_outputs: int | None  # None: no head, the network's own output is the answer
    n_features: int  # that a head reads: numbers per sample in what the backbone makes
    scenario: str
    name: str = ""
    finished: bool = False
    classes: list[int | str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


class State(nn.Module):
    """The attributes of a `Learner`, which sets and explains them, and what its parts ask of one another."""

    needs_task_id: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    copies_backbone: ClassVar[bool] = False
    needs_training_mode: ClassVar[bool] = False
    forward_alone: ClassVar[bool] = False
    saved_attributes: ClassVar[tuple[str, ...]] = ()
    lesson_attributes: ClassVar[tuple[str, ...]] = ()

    backbone: nn.Module
    heads: Heads
    hyperparameters: dict[str, Any]
    select: Callable[[Any], Tensor] | None
    rotations: bool
    tasks: dict[int, TaskRecord]
    scenario: str | None
    input_shape: Any
    certificate: dict[int, dict[str, Any]]
    criterion: Callable[[Tensor, Tensor], Tensor] | None
    largest_batch: int
    _criteria: dict[int, Callable[[Tensor, Tensor], Tensor]]
    _writes_input: bool
    _current: int | None
    _in_progress: InProgress | None
    _protected: list[ref[Optimizer]]
    _copied_at: int | None
    _made: dict[int, set[str]]
    _like: Tensor

    if TYPE_CHECKING:

        @property
        def learned(self) -> list[int]: ...
        @property
        def device(self) -> device: ...
        def feature_extractor(self) -> nn.Module: ...
        def features(self, x: Tree, task_id: int | None) -> Tensor: ...
        def apply_network(
            self, network: nn.Module, x: Any, tensors: Mapping[str, Tensor] | None = None, learning: bool = False
        ) -> Tensor: ...
        def grow(self, task: TaskRecord) -> None: ...
        def watch(self, optimizer: Any) -> None: ...
        def edit_gradients(self) -> None: ...
        def after_step(self) -> None: ...
        def check_finished(self, task_id: int | None) -> int | None: ...
