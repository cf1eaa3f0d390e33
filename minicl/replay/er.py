"""Experience Replay: Rolnick et al. 2019, arXiv 1811.11682; Chaudhry et al. 2019, arXiv 1902.10486.

Half of every batch is new, half is remembered. Nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import inputs
from ..losses import together
from .memory import Replay

# ---- the learner -----------------------------------------------------------------------------------------------------


class ER(Replay):
    """L' = mean cross-entropy over the new batch and as many samples drawn from memory.

    Args:
        backbone: any module.
        budget: number of samples kept.
        share: who stays in memory: "reservoir", or an equal share per "task" or "class" (see `Memory`).

    Raises:
        ValueError: a budget below 1, an unknown share.
    """

    needs_training_mode = True

    def __init__(self, backbone: nn.Module, budget: int = 200, share: str = "reservoir") -> None:
        super().__init__(backbone, budget, share)

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        if not (self.training and self.replaying):
            return super().loss(x, y, task_id)
        task_id, memory = self.check(x, task_id), self.memory
        rows = memory.draw(len(y))
        x = inputs.cat([x, memory.at(rows)])
        y = together(y, memory.y.index_select(0, rows), self.widest())
        if task_id is None:
            return super().loss(x, y)
        ids = torch.cat([torch.full_like(rows, task_id), memory.task_ids.index_select(0, rows)])
        return self.mixed_loss(x, y, ids)
