"""Averaged Gradient Episodic Memory: Chaudhry et al. 2019, arXiv 1812.00420.

A step for the new task may not make the average loss over the memory worse.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .memory import Replay


def project_on_average(g: Float[Tensor, " n"], g_ref: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """g~ = g - (g . g_ref / g_ref . g_ref) g_ref if g . g_ref < 0, otherwise g (Eq. 11)."""
    overlap = torch.dot(g, g_ref)
    return g if overlap >= 0 else g - overlap / torch.dot(g_ref, g_ref) * g_ref


class GradientProjection(Replay):
    """What A-GEM and GEM share: the gradient of the new batch in one vector, and the gradient of remembered samples."""

    def __init__(self, backbone: nn.Module, budget: int, share: str, **hyperparameters: float) -> None:
        super().__init__(backbone, budget, share, **hyperparameters)
        self._batch_size = 1

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        self._batch_size = len(x)
        return super().loss(x, y, task_id)

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def gradient(self) -> Tensor:
        """The gradients that backward left, in one vector; zero where it left none, as at the heads of other tasks."""
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.trained()])

    def gradient_of(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        """The gradient of the mean loss over remembered samples, in one vector of the same order."""
        parameters = self.trained()
        with torch.enable_grad():
            loss = self.mixed_loss(x, y, task_ids)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = zip(gradients, parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    def put(self, gradient: Tensor) -> None:
        """Hand the optimiser this gradient instead."""
        for parameter, part in zip(self.trained(), self._parts(gradient), strict=True):
            parameter.grad = part

    def _parts(self, vector: Tensor) -> Iterator[Tensor]:
        parameters = self.trained()
        for parameter, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
            yield part.view_as(parameter)


class AGEM(GradientProjection):
    """The batch's gradient, projected so that it does not point against the average gradient of a batch from memory.

    Args:
        backbone: any module.
        budget: number of samples kept.
        share: who stays in memory: "reservoir", or an equal share a "task" or "class" (see `Memory`).

    Raises:
        ValueError: a budget below 1, an unknown share.
    """

    def __init__(self, backbone: nn.Module, budget: int = 200, share: str = "reservoir") -> None:
        super().__init__(backbone, budget, share)

    def edit_gradients(self) -> None:
        if len(self.memory):
            x, y, task_ids, _ = self.memory.draw(self._batch_size)
            self.put(project_on_average(self.gradient(), self.gradient_of(x, y, task_ids)))
