"""Dark Experience Replay++: Buzzega et al. 2020, arXiv 2004.07211.

What the network answered when it saw a sample, its logits, says more about what it knew than the label does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks, inputs
from ..inputs import Tree
from ..learner import Fit
from ..samples import Samples
from ..tasks import Task
from .memory import Replay

# ---- the equations ---------------------------------------------------------------------------------------------------


def logit_distance(z: Float[Tensor, "batch ..."], h: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
    """Mean over samples of || z - h(x') ||_2^2 (the paper's Eq. 5). Outputs not there then (NaN, -inf) count 0."""
    difference = torch.where(z.isfinite(), z - h[:, : z.shape[1]], 0.0)
    return difference.square().flatten(1).sum(1).mean()


# ---- the learner -----------------------------------------------------------------------------------------------------


class DERpp(Replay):
    """L' = CE(y, h(x)) + alpha || z - h(x') ||^2 + beta CE(y'', h(x'')) (the paper's Eq. 6), x', x'' drawn separately.

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

    needs_training_mode = True

    def __init__(self, backbone: nn.Module, budget: int = 200, alpha: float = 0.1, beta: float = 0.5) -> None:
        alpha, beta = checks.number("alpha", alpha), checks.number("beta", beta)
        super().__init__(backbone, budget, "reservoir", alpha=alpha, beta=beta)
        self.hyperparameters.pop("share")
        self.alpha, self.beta = alpha, beta
        self._offered: tuple[Tree, Tensor, Tensor] | None = None  # the last batch, with its logits of that moment

    lesson_attributes = (*Replay.lesson_attributes, "_offered")

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        self.check_memory(task)
        example = task.example  # the samples themselves come with the loop, and this memory has no shares
        self.memory.check(Samples(example, torch.zeros(inputs.length(example), dtype=torch.long)), task.id)
        self._offered = None
        try:
            with self.memory.shapes_restored_on_error():
                fit()
                self._store()
        finally:
            self._offered = None

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        if not self.training or self._current is None:
            return super().loss(x, y, task_id)
        if y.is_floating_point() and self.heads.are_layers:
            raise ValueError(
                "DERpp keeps one label with each sample, so soft labels (mixup) do not fit; allowed: int64"
            )
        plain = getattr(self, "unaugmented", x)  # what `run` gave before it augmented the batch
        again = self._offered is not None and inputs.same(self._offered[0], plain) and torch.equal(self._offered[1], y)
        if not again:
            self._store()
        task_id = self.check(x, task_id)
        n, memory = len(y), self.memory
        ids = torch.full((n,), -1 if task_id is None else task_id, device=y.device)
        if not self.replaying:
            logits = self.heads.logits_of_each(self.features(x, task_id), ids)
            loss = self.mixed_cross_entropy(logits, y, ids)
        else:
            first, second = memory.draw(n), memory.draw(n)  # x' with its logits z, and x'' with its label y''
            rows = torch.cat([first, second])
            if task_id is not None:
                ids = torch.cat([ids, memory.task_ids.index_select(0, rows)])
            features = self.features(inputs.cat([x, memory.at(rows)]), task_id)
            logits, h1, h2 = self.heads.logits_of_each(features, ids).split(n)
            loss = self.mixed_cross_entropy(logits, y, ids[:n])
            loss = loss + self.alpha * logit_distance(memory.logits.index_select(0, first), h1)
            labels, of_second = memory.y.index_select(0, second), memory.task_ids.index_select(0, second)
            loss = loss + self.beta * self.mixed_cross_entropy(h2, labels, of_second)
        if not again:
            self._offered = plain, y, logits.detach()
        return loss

    def _store(self) -> None:
        """Put the last batch into memory: once, however often an optimiser with a closure has asked for its loss."""
        if self._offered is not None:
            assert self._current is not None
            x, y, logits = self._offered
            self._offered = None
            self.memory.add(x, y, self._current, logits)
