"""What methods with one mean per class share: a frozen network, the means as rows of the head, and their counts.

The nearest of several means is what a linear layer says, so the means are kept as its weight. Everything that is done
with heads (files, exports, the three scenarios) is done with means, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import checks
from ..evaluation import AT_ONCE, SEED, feeder
from ..freezing import TaskModules, evaluating
from ..heads import SHARED
from ..learner import Fit, Learner, TaskRecord
from ..tasks import Task
from ..tensors import TensorDict


def merged_means(
    means: Float[Tensor, "classes d"],
    counts: Int[Tensor, " classes"],
    features: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
) -> tuple[Float[Tensor, "classes d"], Int[Tensor, " classes"]]:
    """mu_c <- (n_c mu_c + sum of new features of class c) / (n_c + how many): means and counts after more samples."""
    new = torch.bincount(y, minlength=len(means))
    sums = torch.zeros_like(means).index_add_(0, y, features)
    total = counts + new
    merged = (means * counts[:, None] + sums) / total.clamp(min=1)[:, None]
    return torch.where(new[:, None] > 0, merged, means), total


class Prototypes(Learner):
    """A network that stands still after the first task at the latest, and one mean per class on its features.

    Args:
        train_first: train the network and a head on the first task, and freeze it then. False: as it was given, which
            is for networks that are pretrained, and for pixels (`nn.Flatten()`).
        hyperparameters: as of every learner.

    Attributes:
        counts: how many samples each mean is of, by the name of the head that holds it.
    """

    needs_classes = True

    def __init__(self, backbone: nn.Module, train_first: bool, **hyperparameters: Any) -> None:
        train_first = checks.flag("train_first", train_first)
        super().__init__(backbone, train_first=train_first, **hyperparameters)
        del self._modules["backbone"]
        self.networks = TaskModules()
        self.networks["backbone"] = backbone
        self.train_first = train_first
        self.counts = TensorDict()
        self._fitting = False  # while the first task trains the network, its head is an ordinary one

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The network; once it is frozen, a copy of it."""
        return self.networks["backbone"]

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        if self.train_first and not self.learned:
            self._fitting = True
            try:
                fit()
            finally:
                self._fitting = False
        self.count(task)

    @torch.no_grad()
    def count(self, task: Task) -> None:
        """Pass over the task's training samples once, in evaluation mode, and take them into the means."""
        names = self._names(task)
        fresh = [name for name in names if not self.counts[name].any()]
        heads: list[Any] = [self.heads.real(name) for name in names]
        means = torch.cat([h.weight * (name not in fresh) for h, name in zip(heads, names, strict=True)]).double()
        counts = torch.cat([self.counts[name] for name in names])
        for features, y in self._features_of(task):
            before, known = means, counts
            means, counts = merged_means(means, counts, features, y)
            self.take(features, y, before, known)
        sizes = [h.out_features for h in heads]
        for head, name, mu, n in zip(heads, names, means.split(sizes), counts.split(sizes), strict=True):
            head.weight.copy_(mu)
            self.counts[name].copy_(n)
        self.settle()

    def _names(self, task: Task) -> list[str]:
        """Of the heads that hold the task's classes, in the order of its labels."""
        if task.scenario == "task":
            return [str(task.id)]
        return [SHARED] if task.scenario == "domain" else list(self.heads)

    def _features_of(self, task: Task) -> Iterator[tuple[Tensor, Tensor]]:
        """Features in double precision, shape (n, d), and labels, batch by batch."""
        feed = feeder(self)
        with evaluating(self):
            for batch in task.make("train").batches(AT_ONCE, seed=SEED):
                x = feed(batch.x)
                yield self.features(x, task.id_at_test).double(), batch.y.to(self.device)

    def take(self, features: Tensor, y: Tensor, means: Tensor, counts: Tensor) -> None:
        """What else is to be kept of a batch; means and counts are those before it."""

    def settle(self) -> None:
        """The means have changed: biases with which the linear layer's largest output is the nearest mean."""
        raise NotImplementedError

    def write_bias(self, name: str, bias: Tensor) -> None:
        """The biases of a head; those of classes without a sample are as low as can be."""
        head: Any = self.heads.real(name)
        head.bias.copy_(torch.where(self.counts[name] > 0, bias, torch.finfo(bias.dtype).min))

    def metric(self) -> Tensor | None:
        """M of the distance (f - mu)^T M (f - mu), shape (d, d); None for the Euclidean one."""
        raise NotImplementedError

    def grow(self, task: TaskRecord) -> None:
        super().grow(task)
        for name in self.heads:
            if name not in self.counts:
                head: Any = self.heads.real(name)
                self.counts[name] = torch.zeros(head.out_features, dtype=torch.long, device=self.device)
                if self.learned or not self.train_first:  # nothing trains this head
                    head.weight.data.zero_()
                    head.bias.data.fill_(torch.finfo(head.bias.dtype).min)

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def feature_extractor(self) -> nn.Module:
        return self.networks.real("backbone")

    def features(self, x: Any, task_id: int | None) -> Tensor:
        return self.apply_kept(self.feature_extractor(), x)

    def classify(self, features: Tensor, task_id: int | None) -> Tensor:
        if self._fitting:
            return super().classify(features, task_id)
        logits: Tensor = self._export_head(task_id)(features)
        return logits

    def _export_head(self, task_id: int | None) -> nn.Module:
        """mu^T M f + b, as one linear layer."""
        head: Any = self.heads.alone(task_id)
        metric = self.metric()
        if metric is not None:
            with torch.no_grad():
                head.weight.copy_(head.weight @ metric)
        return head

    # ---- what must not move ------------------------------------------------------------------------------------------

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        yield self.networks, "backbone"
        for name in (SHARED, str(task_id)):
            if name in self.heads:
                yield self.heads, name

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def on_forget(self, task_id: int) -> None:
        del self.counts[str(task_id)]

    def extra_bytes(self) -> int:
        """Bytes of the counts."""
        return self.counts.nbytes

    def export_backbone(self, task_id: int | None) -> nn.Module:
        return self.feature_extractor()
