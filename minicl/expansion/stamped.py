"""A network whose layers get new units while it learns, each of which remembers the task with which it came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed
from ..freezing import FrozenEntries, TaskModules
from ..layers import set_tensors
from ..learner import Learner, TaskRecord
from ..protection import Snapshot, uninterrupted
from ..saving import starting_with
from .growing import Before, Growing


class StampedNetwork(Learner):
    """Units stand in the order of their arrival, and a task's time stamp says how many of each layer there were.

    Args:
        backbone: an `nn.Sequential` that `Growing` takes. It is widened in place.
        hyperparameters: as of every learner.

    Attributes:
        network: its layers.
        first_units: how many units each layer had at first.
        before: W^{t-1}, while a task is learned.
    """

    needs_task_id = True
    saved_attributes = ("first_units",)

    def __init__(self, backbone: nn.Module, **hyperparameters: Any) -> None:
        super().__init__(backbone, **hyperparameters)
        self.network = Growing(backbone, type(self).__name__)
        self.first_units = self.network.units
        self.before: Before = []
        self._frozen = FrozenEntries()

    def units_seen(self, task_id: int) -> list[int]:
        """How many units of each layer a finished task uses: the first ones, up to its time stamp."""
        units: list[int] = self.tasks[task_id].notes["units"]
        return units

    def stamps(self) -> list[list[int]]:
        """For each layer, the task that each unit came with; -1 where that task has been forgotten since."""
        seen = sorted((self.tasks[t].notes["units"], t) for t in self.learned)  # in the order of learning
        return [
            [next((t for units, t in seen if i < units[level]), -1) for i in range(n)]
            for level, n in enumerate(self.network.units)
        ]

    # ---- sizes -------------------------------------------------------------------------------------------------------

    @contextmanager
    def growing(self, record: TaskRecord) -> Iterator[None]:
        """Here units may come and go, and the task gets its time stamp at the end. If it breaks off, all sizes are as
        they were; `learn` restores the numbers."""
        units, n_features = self.network.units, record.n_features
        try:
            if n_features != units[-1] * record.notes["each"]:  # the network has grown since the head was prepared
                self.resize(record, units)
            self.before = self.network.copy()
            yield
            record.notes["units"] = self.network.units
        except BaseException:
            uninterrupted(lambda: self._back_to(record, units, n_features))
            raise

    def head_of(self, record: TaskRecord) -> nn.Linear:
        """The head of a task that is being learned."""
        return self.heads.real(str(record.id))  # type: ignore[return-value]

    def resize(self, record: TaskRecord, units: Sequence[int]) -> None:
        """So many units for each layer, and a head that reads those of the last."""
        self.network.resize(units, self.head_of(record), record.notes["each"])
        self.resized(record)

    def resized(self, record: TaskRecord) -> None:
        """Parameters have been replaced: the record knows the head's width, and optimisers must have the new ones."""
        head = self.head_of(record)
        record.n_features = head.in_features
        own = {id(p) for p in (*self.network.parameters, *head.parameters())}
        if self._in_progress is not None:
            self._in_progress.replaced({name for name, p in self.named_parameters() if id(p) in own})

    def _back_to(self, record: TaskRecord, units: Sequence[int], n_features: int) -> None:
        head = self.head_of(record)
        with torch.random.fork_rng(devices=[]):
            self.network.resize(units, head, record.notes["each"])
        set_tensors(head, head.weight.detach()[:, :n_features], None)  # prepared before the network had grown
        record.n_features = n_features

    def check_one_process(self) -> None:
        """ValueError where several processes train together."""
        if distributed.world_size() > 1:
            raise ValueError(
                f"{type(self).__name__} adds units while a task is learned, which processes that train together cannot "
                "follow; train in one process, or with expansion=False and splitting=False"
            )

    # ---- what must not move ------------------------------------------------------------------------------------------

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        self._frozen.watch(optimizer)

    def edit_gradients(self) -> None:
        self._frozen.edit_gradients()

    def after_step(self) -> None:
        self._frozen.restore()

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        yield self.heads, str(task_id)

    def _leave(self, snapshot: Snapshot | None) -> None:
        self.before = []
        self._frozen.release()
        super()._leave(snapshot)

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def grow(self, task: TaskRecord) -> None:
        super().grow(task)
        task.notes.setdefault("each", task.n_features // self.network.units[-1])  # features that a last unit makes

    def capacity(self) -> dict[str, Any]:
        """As of every method; "units", by layer, how many came with which task."""
        layers = zip(self.network.names, self.stamps(), strict=True)
        units = {name: {t: stamps.count(t) for t in dict.fromkeys(stamps)} for name, stamps in layers}
        return {**super().capacity(), "units": units}

    def export_backbone(self, task_id: int | None) -> nn.Module:
        assert task_id is not None
        return self.network.alone(self.units_seen(task_id))

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.first_units == self.network.units:  # what the file says, and what the given backbone has
            self.network.make_room(dict(starting_with("backbone.", tensors)))
        return tensors
