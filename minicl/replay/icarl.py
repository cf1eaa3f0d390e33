"""iCaRL: Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning", arXiv 1611.07725.

The outputs of the network train its features and classify nothing. An image is of the class whose exemplars have, on
average, the nearest features; and the exemplars are chosen so that their average is that of all samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from .. import inputs
from ..evaluation import AT_ONCE, SEED, feeder
from ..freezing import evaluating, standalone
from ..heads import SHARED
from ..inputs import Tree
from ..learner import Fit, TaskRecord
from ..samples import LazySamples, Samples
from ..tasks import Task
from ..tensors import TensorDict
from .memory import Replay, equal_shares
from .teacher import Teacher, bytes_of_teacher

# ---- the equations ---------------------------------------------------------------------------------------------------


def herding(features: Float[Tensor, "n d"], m: int) -> Int[Tensor, " m"]:
    """The m samples, best first, whose mean stays nearest to that of all (Algorithm 4).

    p_k = argmin_x || mu - (phi(x) + sum_{j<k} phi(p_j)) / k ||, each sample at most once. So the first few of them are
    good, too, and a list can be cut from its end.
    """
    mu, total = features.mean(0), torch.zeros_like(features[0])
    squares = features.square().sum(1)
    chosen = torch.zeros(min(m, len(features)), dtype=torch.long, device=features.device)
    for k in range(1, len(chosen) + 1):
        # || k mu - total - phi(x) ||^2, without what is the same for all x
        distances = squares - 2 * (features @ (k * mu - total))
        best = distances.argmin()
        chosen[k - 1], squares[best] = best, torch.inf
        total = total + features[best]
    return chosen


def normalized(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """phi / || phi ||: all features of the paper have length 1, and so have their means."""
    return F.normalize(features, dim=1)


def nearest_mean(features: Float[Tensor, "n d"], means: Float[Tensor, "classes d"]) -> Int[Tensor, " n"]:
    """y* = argmin_y || phi(x) - mu_y || (Algorithm 1)."""
    return torch.cdist(features, means).argmin(1)


def similarity(features: Float[Tensor, "n d"], means: Float[Tensor, "classes d"]) -> Float[Tensor, "n classes"]:
    """1 - || phi - mu ||^2 for features of length 1: largest for the nearest mean. A mean of 0 stands for none."""
    squares = means.square().sum(1)
    lowest = torch.finfo(means.dtype).min
    return F.linear(features, 2 * means, torch.where(squares > 0, -squares, lowest))


def binary_loss(z: Float[Tensor, "n classes"], targets: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    """- sum_y t_y log g_y + (1 - t_y) log(1 - g_y), g = sigmoid(z), mean over samples (Algorithm 3).

    t is 1 for the label and 0 for other new classes; for old classes it is what the old network's sigmoid said.
    """
    return F.binary_cross_entropy_with_logits(z, targets, reduction="sum") / len(z)


# ---- the learner -----------------------------------------------------------------------------------------------------


class ICaRL(Replay):
    """Classify by the nearest mean of exemplars; train with binary cross-entropy, old outputs held by distillation.

    An epoch passes over the new samples and, on average, once over the exemplars, which are drawn for each batch; the
    paper puts both in one list. In "task" training is the same, and the nearest of the task's own classes is the
    answer; in "domain" new samples train the shared outputs, and exemplars hold them.

    Args:
        backbone: any module.
        budget: number of exemplars, shared equally by all classes.

    Attributes:
        means: of the exemplars of each class, by the name of their head, shape (classes, features); 0 where there is
            none.

    Raises:
        ValueError: a budget below 1; when a task comes, a budget smaller than the number of classes.
    """

    needs_training_mode = True
    needs_classes = True

    def __init__(self, backbone: nn.Module, budget: int = 2000) -> None:
        super().__init__(backbone, budget, "class")
        self.hyperparameters.pop("share")
        self.means = TensorDict()
        self.teacher: Teacher | None = None
        self._pace = 0.0  # exemplars drawn for each new sample

    def grow(self, task: TaskRecord) -> None:
        super().grow(task)
        for name in self.heads:
            if name not in self.means:
                self.means[name] = torch.zeros_like(self.heads[name].weight)  # type: ignore[arg-type]

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        train = task.make("train")
        self.memory.labels_per_task = task.scenario == "task"
        self.check_memory(task)
        self.memory.check(train, task.id)  # before anything is trained
        self.teacher = Teacher(self) if self.learned else None
        self._pace = len(self.memory) / max(len(train), 1)
        try:
            fit()
        finally:
            self.teacher = None
        with self.memory.shapes_restored_on_error():
            self.choose(train, task)
        self.average()

    @torch.no_grad()
    def choose(self, train: Samples | LazySamples, task: Task) -> None:
        """The lists of old classes are cut from their ends; new classes get theirs by herding."""
        features, y = self._features_of(train, task), train.labels.to(self.device)
        classes, sizes = y.unique(return_counts=True)
        most = max(equal_shares([*self.memory.group_sizes(), *sizes.tolist()], self.memory.budget))
        ranks = torch.full((len(y),), torch.inf, device=self.device)
        for c in classes.tolist():
            rows = (y == c).nonzero().flatten()
            chosen = herding(features[rows], most)
            ranks[rows[chosen]] = torch.arange(len(chosen), dtype=ranks.dtype, device=self.device)
        self.memory.offer(train, torch.arange(len(y)), task.id, priorities=ranks)

    def _features_of(self, samples: Samples | LazySamples, task: Task) -> Tensor:
        feed = feeder(self)
        with evaluating(self):
            batches = samples.batches(AT_ONCE, seed=SEED)
            return normalized(torch.cat([self.features(feed(b.x), task.id_at_test) for b in batches]))

    @torch.no_grad()
    def average(self) -> None:
        """The mean of the exemplars of each class, on the features that the network has now, at length 1."""
        memory, held = self.memory, len(self.memory)
        y, ids, places = memory.y[:held], memory.task_ids[:held], torch.arange(held, device=memory.y.device)
        with evaluating(self):
            parts = [self.features(memory.at(rows), None) for rows in places.split(AT_ONCE)]
        features, first = normalized(torch.cat(parts)), 0
        for name, means in self.means.items():
            for c in range(len(means)):
                own = (ids == int(name)) & (y == c) if self.scenario == "task" else y == first + c
                means[c] = F.normalize(features[own].sum(0), dim=0)
            first += len(means) if self.scenario == "class" else 0

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def classify(self, features: Tensor, task_id: int | None) -> Tensor:
        """`similarity` to the means; while a task is learned, the outputs that are trained."""
        if self._current is not None:
            return super().classify(features, task_id)
        return similarity(normalized(features), self._means(task_id))

    def _means(self, task_id: int | None) -> Tensor:
        if self.scenario == "class":
            return torch.cat(self.means.values())
        return self.means[SHARED if self.scenario == "domain" else str(task_id)]

    def loss(self, x: Tree, y: Tensor, task_id: int | None = None) -> Tensor:
        if self._current is None or not self.training:
            return super().loss(x, y, task_id)
        task_id, memory, n = self.check(x, task_id), self.memory, len(y)
        drawn = int(n * self._pace + float(torch.rand(()))) if len(memory) else 0
        if drawn:
            x = inputs.cat([x, memory.at(memory.draw(drawn))])
        columns = self.columns(self.features(x, task_id), x, y)
        return binary_loss(*(torch.cat(parts, 1) for parts in zip(*columns, strict=True)))

    def columns(self, features: Tensor, x: Tree, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Head by head, logits and targets, (batch, outputs): old ones say what they said, new ones which label it is.

        Exemplars stand behind the samples whose labels are y; of new outputs none is theirs.
        """
        old = {} if self.teacher is None else dict(zip(self.teacher.names, self.teacher.each(x), strict=True))
        first = 0
        for name in self.heads:
            head: Any = self.heads[name]
            n, own = head.out_features, name in (SHARED, str(self._current))
            if own:
                numbers = torch.arange(n, device=y.device) + (first if self.scenario == "class" else 0)
                label = y[:, numbers] if y.is_floating_point() else y[:, None] == numbers
                label = label.to(features.dtype)
                missing = len(features) - len(y)
                rest = old[name][len(y) :].sigmoid() if name in old else label.new_zeros(missing, n)
                yield head(features), torch.cat([label, rest])
            elif name in old:
                yield head(features), old[name].sigmoid()
            first += n

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def on_forget(self, task_id: int) -> None:
        super().on_forget(task_id)
        del self.means[str(task_id)]

    def capacity(self) -> dict[str, Any]:
        """As of every method, and "bytes_while_learning": the copy of the network that the next task would need."""
        return {**super().capacity(), "bytes_while_learning": bytes_of_teacher(self)}

    def extra_bytes(self) -> int:
        """Bytes of the memory and of the means."""
        return super().extra_bytes() + self.means.nbytes

    def _export_head(self, task_id: int | None) -> nn.Module:
        means = self._means(task_id)
        head = fx.symbolic_trace(_NearestMean(means))
        for node in head.graph.nodes:
            node.type = None  # an annotation, which is a text here, and with which nothing can be pickled
        head.recompile()
        return standalone(head)


class _NearestMean(nn.Module):
    """`similarity`, written so that torch.fx can take it elsewhere."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        squares = means.square().sum(1)
        self.register_buffer("weight", 2 * means)
        self.register_buffer("bias", torch.where(squares > 0, -squares, torch.finfo(means.dtype).min))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=1), self.weight, self.bias)  # type: ignore[arg-type]
