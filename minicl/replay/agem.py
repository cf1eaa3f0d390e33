"""Averaged Gradient Episodic Memory: Chaudhry et al. 2019, arXiv 1812.00420.

A step for the new task may not make the average loss over the memory worse.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import distributed
from .projection import GradientProjection, flat

# ---- the equations ---------------------------------------------------------------------------------------------------


def project_on_average(g: Float[Tensor, " n"], g_ref: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """g~ = g - (g . g_ref / g_ref . g_ref) g_ref if g . g_ref < 0, otherwise g (the paper's Eq. 11)."""
    overlap, square = torch.dot(g, g_ref), torch.dot(g_ref, g_ref)
    if overlap >= 0:
        return g
    if square < 1e-30:  # all is remembered, and so short a vector has no square; its direction alone matters
        return project_on_average(g, g_ref / g_ref.abs().max())
    return torch.addcmul(g, g_ref, overlap / square, value=-1)


# ---- the learner -----------------------------------------------------------------------------------------------------


class AGEM(GradientProjection):
    """The batch's gradient, projected so that it does not point against the average gradient of a batch from memory.

    Args:
        backbone: any module.
        budget: number of samples kept.
        share: who stays in memory: "reservoir", or an equal share per "task" or "class" (see `Memory`).

    Raises:
        ValueError: a budget below 1, an unknown share.
    """

    def __init__(self, backbone: nn.Module, budget: int = 200, share: str = "reservoir") -> None:
        super().__init__(backbone, budget, share)

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def edit_gradients(self) -> None:
        if self.replaying:
            memory, rows, parameters = self.memory, self.memory.draw(self._batch_size), self.trained()
            g = flat((p.grad for p in parameters), parameters)
            remembered = memory.at(rows), memory.y[rows], memory.task_ids[rows]
            reference = self.gradient_of(*remembered, parameters)
            distributed.average([reference])
            projected = project_on_average(g, reference)
            if projected is not g:
                self.set_gradients(projected, parameters)
