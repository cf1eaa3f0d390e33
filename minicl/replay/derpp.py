"""Dark Experience Replay++: Buzzega et al. 2020, arXiv 2004.07211.

What the network answered when it saw a sample, its logits, says more about what it knew than the label does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..learner import Fit
from ..tasks import Task
from .memory import Replay, check_weight


def logit_distance(z: Float[Tensor, "batch outputs"], h: Float[Tensor, "batch all_outputs"]) -> Float[Tensor, ""]:
    """Mean over samples of || z - h(x') ||_2^2 (Eq. 5). Outputs that were not there then, NaN or -inf in z, count 0."""
    difference = torch.where(z.isfinite(), z - h[:, : z.shape[1]], 0.0)
    return difference.square().sum(1).mean()


class DERpp(Replay):
    """L' = CE(y, h(x)) + alpha || z - h(x') ||^2 + beta CE(y'', h(x'')) (Eq. 6), x' and x'' from two separate draws.

    Samples enter the memory, a reservoir, as they are trained on, with the logits of that moment, so that the memory
    holds answers from the whole path of training.

    Args:
        backbone: any module.
        budget: number of samples kept.
        alpha: weight of the remembered logits.
        beta: weight of the remembered labels.

    Raises:
        ValueError: a budget below 1, a negative weight.
    """

    def __init__(self, backbone: nn.Module, budget: int = 200, alpha: float = 0.1, beta: float = 0.5) -> None:
        check_weight("alpha", alpha)
        check_weight("beta", beta)
        super().__init__(backbone, budget, "reservoir", alpha=alpha, beta=beta)
        self.hyperparameters.pop("share")
        self.alpha, self.beta = alpha, beta

    def learn(self, task: Task, fit: Fit) -> None:
        example = task.example  # the samples themselves come with the loop
        self.memory.check(example, torch.zeros(len(example)), task.id)
        with self.memory.unless_broken_off():
            fit()

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        if not self.training or self._current is None:
            return super().loss(x, y, task_id)
        task_id = self.check(x, task_id)
        n, memory = len(x), self.memory
        ids = torch.full_like(y, -1 if task_id is None else task_id)
        if not self.replaying:
            logits = self.mixed_logits(self.features(x, task_id), ids)
            loss = self.cross_entropy(logits, y)
        else:
            first, second = memory.draw(n), memory.draw(n)  # x' with its logits z, and x'' with its label y''
            rows = torch.cat([first, second])
            if task_id is not None:
                ids = torch.cat([ids, memory.task_ids.index_select(0, rows)])
            features = self.features(torch.cat([x, memory.x.index_select(0, rows)]), task_id)
            logits, h1, h2 = self.mixed_logits(features, ids).split(n)
            loss = self.cross_entropy(logits, y)
            loss = loss + self.alpha * logit_distance(memory.logits.index_select(0, first), h1)
            loss = loss + self.beta * self.cross_entropy(h2, memory.y.index_select(0, second))
        memory.add(x, y, self._current, logits)
        return loss
