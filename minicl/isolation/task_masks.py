"""Masks over the weights of a network, one per task: real numbers while it is learned, bits when it is finished."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..freezing import TaskModules, weight_at
from ..learner import TaskRecord
from ..saving import out_of_a_row
from ..tensors import TensorDict, without_dots
from .owners import pack_bits, unpack_bits
from .shared import SharedNetwork


class TaskMasks(nn.Module):
    """Of each task that is not finished a score per weight, a parameter; of each task room for a bit, or two.

    Args:
        n_bits: bits per weight and task.

    Attributes:
        scores: real numbers, by task id and then by layer.
        bits: packed bits, by task id and then by layer.
    """

    def __init__(self, n_bits: int = 1) -> None:
        super().__init__()
        self.n_bits = n_bits
        self.scores, self.bits = TaskModules(), TaskModules()

    def add(self, task: TaskRecord, shapes: Mapping[str, torch.Size], scale: float, like: Tensor) -> None:
        """A place for a task's mask over layers of these shapes; its scores, which start at `scale`, if it needs them.

        Args:
            like: on which device, and in which type.
        """
        name = str(task.id)
        empty = {layer: torch.zeros(self.n_bits, s.numel(), dtype=torch.bool) for layer, s in shapes.items()}
        self.bits[name] = TensorDict({layer: pack_bits(bits).to(like.device) for layer, bits in empty.items()})
        self.bits.hide(name)
        if not task.finished:
            start = {without_dots(layer): nn.Parameter(like.new_full(s, scale)) for layer, s in shapes.items()}
            self.scores[name] = nn.ParameterDict(start)

    def score(self, task_id: int, layer: str) -> nn.Parameter:
        """The scores of a task that is not finished, of the shape of the layer's weight."""
        scores = self.scores.real(str(task_id))._parameters[without_dots(layer)]
        assert isinstance(scores, nn.Parameter)
        return scores

    def scored(self, task_id: int) -> bool:
        """Whether the task still has scores."""
        return str(task_id) in self.scores

    @torch.no_grad()
    def store(self, task_id: int, layer: str, *bits: Tensor) -> None:
        """Keep `n_bits` boolean tensors of the shape of the layer's weight."""
        self.of(task_id)[layer].copy_(pack_bits(torch.stack([b.flatten() for b in bits])))

    def stored(self, task_id: int, layer: str, shape: torch.Size) -> Tensor:
        """What was stored: boolean, of shape `(n_bits, *shape)`."""
        return unpack_bits(self.of(task_id)[layer], shape.numel()).view(self.n_bits, *shape)

    def of(self, task_id: int) -> TensorDict:
        """A task's packed bits, by layer."""
        bits = self.bits.real(str(task_id))
        assert isinstance(bits, TensorDict)
        return bits

    def finish(self, task_id: int) -> None:
        """The scores are needed no more. May be repeated."""
        if self.scored(task_id):
            del self.scores[str(task_id)]

    def forget(self, task_id: int) -> None:
        """Let go of a finished task's bits."""
        del self.bits[str(task_id)]

    @property
    def nbytes(self) -> int:
        """Bytes of all tasks' bits."""
        return sum(self.of(int(name)).nbytes for name in self.bits)


class MaskedNetwork(SharedNetwork):
    """A shared network over whose weights every task learns a mask.

    A method sets `masks` and `scale` when it is made.

    Attributes:
        masks: of all tasks.
        scale: every score's first value.
    """

    masks: TaskMasks
    scale: float

    def _finish(self, record: TaskRecord) -> None:
        super()._finish(record)
        self.masks.finish(record.id)

    # ---- what it costs, and taking it elsewhere ------------------------------------------------------------

    def mask_shapes(self, task: TaskRecord) -> dict[str, torch.Size]:
        """The shape of each layer's weight in the network that the task is computed in."""
        return {layer: weight_at(self.backbone, name).shape for layer, name in self.names.items()}

    def grow(self, task: TaskRecord) -> None:
        super().grow(task)
        self.masks.add(task, self.mask_shapes(task), self.scale, self._like)

    def on_forget(self, task_id: int) -> None:
        self.masks.forget(task_id)
        super().on_forget(task_id)

    def extra_bytes(self) -> int:
        """Bytes of the masks, so many bits per weight and task, and of what else the tasks have."""
        return super().extra_bytes() + self.masks.nbytes

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.in_a_row("masks.bits", super().pack(state))

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return out_of_a_row("masks.bits", super().unpack(tensors), self.masks.bits.state_dict())
