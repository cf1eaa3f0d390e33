"""What a learner costs, and taking it elsewhere: files, networks of one task, tasks that are taken out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .freezing import as_called, copied, parameters_of, standalone
from .records import State


class Storable(State):
    """The part of a `Learner` that counts, exports, saves and forgets."""

    def forget(self, task_id: int) -> None:
        """Take a finished task out: what it alone owned is free again, and the others stay as they are, bit for bit.

        What later tasks read of it stays, since they would change. In scenario "task" alone.

        Raises:
            ValueError: a task that has not been learned; another scenario, in which tasks share their outputs; while a
                task is being learned.
        """
        if self._current is not None:
            raise ValueError(f"task {self._current} is being learned; forget between tasks")
        if self.scenario not in (None, "task"):
            raise ValueError(f"in scenario {self.scenario!r} tasks share their outputs, so none can be taken out alone")
        self.check_finished(task_id)
        del self.tasks[task_id]
        del self.heads[str(task_id)]
        self.certificate.pop(task_id, None)
        self._made.pop(task_id, None)
        self._criteria.pop(task_id, None)
        self.on_forget(task_id)

    def on_forget(self, task_id: int) -> None:
        """Called when a task is taken out, its record and its head gone: let go of what it alone owned."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of every module, between learners that know the same tasks; `save` and `load` hold the tasks as well.

        Raises:
            RuntimeError: tensors that this learner has not, or the other way round.
        """
        differ = sorted(state_dict.keys() ^ self.state_dict().keys())
        if strict and differ:
            raise RuntimeError(
                f"this state dict is of a learner with other tasks, or another network: {', '.join(differ[:4])} "
                f"{'and others are' if len(differ) > 4 else 'are'} in one of them alone. A state dict does not hold "
                f"the tasks: use learner.save(path) and {type(self).__name__}.load(path, backbone)"
            )
        return super().load_state_dict(state_dict, strict, assign)

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
        network = as_called(copied(self.export_backbone(task_id)), self.select, self.input_shape)
        return standalone(nn.Sequential(network, self._export_head(task_id)))

    def export_backbone(self, task_id: int | None) -> nn.Module:
        """The module that makes this task's features; `export` copies it."""
        return self.backbone

    def _export_head(self, task_id: int | None) -> nn.Module:
        return self.heads.alone(task_id)

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict as it goes into a file; methods whose masks can be stored in fewer bits redefine it."""
        return state

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `pack`."""
        return tensors
