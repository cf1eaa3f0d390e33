"""Normalisation layers of which every task has its own numbers: scale, shift, and running statistics."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ..freezing import TaskModules, every_name
from ..tensors import TensorDict, first

NORMS = nn.modules.batchnorm._NormBase  # what may keep running statistics: BatchNorm, InstanceNorm


class TaskNorms(TaskModules):
    """The tensors of a backbone's norms, once per task; none where they are shared.

    The norms of the backbone hold the numbers of the task that is being learned. A finished task's are here.

    Args:
        per_task: whether every task has its own.
        vectors: not the norms alone: every parameter of at most one axis, biases too.

    Attributes:
        named: names of the tensors, where they are not those of all norms.
    """

    def __init__(self, per_task: bool, vectors: bool = False) -> None:
        super().__init__()
        self.per_task, self.vectors = per_task, vectors
        self.named: Collection[str] | None = None

    def modules_of(self, backbone: nn.Module) -> list[nn.Module]:
        """The norms of the backbone of which every task has its own."""
        return [module for module in backbone.modules() if isinstance(module, NORMS)] if self.per_task else []

    def tensors_of(self, backbone: nn.Module) -> dict[str, Tensor]:
        """Their parameters and buffers, and vectors if those are meant, by name in the backbone."""
        if self.named is not None:
            return {name: tensor for name, tensor in every_name(backbone).items() if name in self.named}
        norms = {id(module) for module in self.modules_of(backbone)}
        own = {
            f"{path}.{name}" if path else name: tensor
            for path, module in backbone.named_modules()
            if id(module) in norms
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        }
        vectors = backbone.named_parameters() if self.per_task and self.vectors else ()
        return own | {name: parameter for name, parameter in vectors if parameter.ndim < 2}

    def add(self, task_id: int, backbone: nn.Module) -> None:
        """A place for a task's tensors, which starts with what the backbone holds now."""
        if self.per_task:
            self[str(task_id)] = TensorDict({n: t.detach().clone() for n, t in self.tensors_of(backbone).items()})
            self.hide(str(task_id))

    @torch.no_grad()
    def store(self, task_id: int, backbone: nn.Module) -> None:
        """What the backbone holds now is the task's."""
        for name, tensor in self.tensors_of(backbone).items():
            self.of(task_id)[name].copy_(tensor)

    @torch.no_grad()
    def put_back(self, task_id: int, backbone: nn.Module) -> None:
        """The backbone holds the task's tensors again, among its first entries if it has grown since."""
        for name, tensor in self.tensors_of(backbone).items():
            stored = self.of(task_id)[name]
            first(tensor, stored.shape).copy_(stored)

    @property
    def nbytes(self) -> int:
        """Bytes of all tasks' tensors."""
        return sum(self.of(int(name)).nbytes for name in self)

    def of(self, task_id: int) -> TensorDict:
        """A task's tensors, by name in the backbone."""
        tensors = self.real(str(task_id))
        assert isinstance(tensors, TensorDict)
        return tensors

    def network(self, task_id: int) -> Mapping[str, Tensor]:
        """The same, for `torch.func.functional_call`: nothing where norms are shared."""
        return dict(self.of(task_id).items()) if self.per_task else {}
