"""Averaged Gradient Episodic Memory: Chaudhry et al. 2019, arXiv 1812.00420.

A step for the new task may not make the average loss over the memory worse.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..learner import Fit
from ..tasks import Task
from .memory import Replay


def project_on_average(g: Float[Tensor, " n"], g_ref: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """g~ = g - (g . g_ref / g_ref . g_ref) g_ref if g . g_ref < 0, otherwise g (Eq. 11)."""
    overlap, square = torch.dot(g, g_ref), torch.dot(g_ref, g_ref)
    if overlap >= 0:
        return g
    if square < 1e-30:  # all is remembered, and so short a vector has no square; its direction alone matters
        return project_on_average(g, g_ref / g_ref.abs().max())
    return torch.addcmul(g, g_ref, overlap / square, value=-1)


class GradientProjection(Replay):
    """What A-GEM and GEM share: the size of the new batch, and gradients in one vector."""

    def __init__(self, backbone: nn.Module, budget: int, share: str, **hyperparameters: float) -> None:
        super().__init__(backbone, budget, share, **hyperparameters)
        self._batch_size = 1
        self._lent: list[nn.Parameter] = []

    def learn(self, task: Task, fit: Fit) -> None:
        self.zero_grad()  # what an earlier loop has left behind is no part of the new task's gradient
        super().learn(task, fit)

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        self._batch_size = len(x)
        for parameter in self._lent:  # its gradient came from memory; an optimiser that has it not would not clear it
            parameter.grad = None
        self._lent = []
        return super().loss(x, y, task_id)

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def lend(self, gradient: Tensor, parameters: list[nn.Parameter]) -> None:
        """Hand the optimiser this gradient, for one step also where the new batch gave none."""
        self._lent = [parameter for parameter in parameters if parameter.grad is None]
        for p, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def gradient_of(self, x: Tensor, y: Tensor, task_ids: Tensor, parameters: list[nn.Parameter]) -> Tensor:
        """The gradient of the mean loss over remembered samples, in one vector."""
        with torch.enable_grad():
            loss = self.mixed_loss(x, y, task_ids)
        return flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)


def flat(gradients: Iterable[Tensor | None], parameters: list[nn.Parameter]) -> Tensor:
    """Gradients in one vector; zero where there is none, as at the heads of other tasks."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


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
        if self.replaying:
            memory, rows, parameters = self.memory, self.memory.draw(self._batch_size), self.trained()
            g = flat((p.grad for p in parameters), parameters)
            remembered = memory.x[rows], memory.y[rows], memory.task_ids[rows]
            projected = project_on_average(g, self.gradient_of(*remembered, parameters))
            if projected is not g:
                self.lend(projected, parameters)
