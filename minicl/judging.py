"""Where the answers of a learner meet labels: of one task, or of several in one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import Tree
from .losses import judged, mean_loss
from .protection import with_a_graph
from .records import State


class Judging(State):
    """The part of a `Learner` that makes a loss of logits and labels."""

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy, or `criterion`: the one place where logits meet labels.

        Args:
            logits: shape (batch, outputs).
            y: labels, int64 of shape (batch,), or soft ones: probabilities of shape (batch, outputs), as of mixup. Of
                tasks without a head, outputs and targets are whatever the criterion takes.

        Raises:
            ValueError: labels of another shape or type, or one that has no output.
        """
        return with_a_graph(self._judge(logits, y, self._current))

    def _judge(self, logits: Tensor, y: Tensor, task_id: int | None) -> Tensor:
        """The mean loss of samples of one task, by the learner's criterion, the task's own, or cross-entropy."""
        criterion = self.criterion or self._criteria.get(-1 if task_id is None else task_id)
        if criterion is None and not self.heads.are_layers:
            criterion = next(iter(self._criteria.values()), None)
            if criterion is None:
                raise ValueError("these tasks have no head, and no criterion is known; set learner.criterion")
        if criterion is not None and not self.heads.are_layers:
            return judged(logits, y, criterion)
        return mean_loss(logits, y, criterion)

    def mixed_loss(self, x: Tree, y: Tensor, task_ids: Tensor) -> Tensor:
        """Mean loss over samples of several tasks; `task_ids`, int64 of shape (batch,), says of which.

        In scenario "task" each sample goes through its own task's head.
        """
        return self.mixed_cross_entropy(self.heads.logits_of_each(self.features(x, None), task_ids), y, task_ids)

    def mixed_cross_entropy(self, logits: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        """`cross_entropy` of logits as `Heads.logits_of_each` gives them, -inf where a sample's own head has none.

        A criterion, or soft labels, are given the outputs of one head at a time, without those that it has not.
        """
        heads, kinds = self.heads.are_layers, {*map(id, self._criteria.values())}
        own = self.criterion is None and len(kinds) > (not heads)  # tasks bring their own
        cut = heads and (self.criterion is not None or y.is_floating_point())
        if self.scenario != "task" or not (own or cut):
            return self.cross_entropy(logits, y)
        parts = []
        for t in task_ids.unique().tolist():
            rows, n = (task_ids == t).nonzero().flatten(), self.tasks[t].n_outputs
            z, labels = logits[rows], y[rows]
            if n is not None:
                z, labels = z[:, :n], labels[:, :n] if y.is_floating_point() else labels
            parts.append(with_a_graph(self._judge(z, labels, t)) * (len(rows) / len(y)))
        return torch.stack(parts).sum()
