"""BiC: Wu et al. 2019, "Large Scale Incremental Learning", arXiv 1905.13260.

After training on many new images and few old ones the outputs of the new classes are too large. They are so in one way
for all of them, so two numbers, found on a few samples that were held out, put it right.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import checks, inputs
from ..evaluation import AT_ONCE, feeder
from ..freezing import evaluating
from ..inputs import Tree
from ..learner import Fit
from ..losses import together
from ..regularization.lwf import distillation
from ..samples import LazySamples, Samples
from ..tasks import Task
from .memory import Replay
from .teacher import Teacher, bytes_of_teacher

# ---- the equations ---------------------------------------------------------------------------------------------------


def corrected(
    z: Float[Tensor, "batch classes"], n_old: int, alpha: Tensor | float, beta: Tensor | float
) -> Float[Tensor, "batch classes"]:
    """q_k = z_k for the n old classes, alpha z_k + beta for the new ones."""
    return torch.cat([z[:, :n_old], alpha * z[:, n_old:] + beta], 1)


def old_share(n_old: int, n_new: int) -> float:
    """lambda = n / (n + m): the weight of the distillation loss, with n old and m new classes."""
    return n_old / (n_old + n_new)


def fit_correction(
    z: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], n_old: int, steps: int = 100
) -> tuple[float, float]:
    """alpha and beta with the least cross-entropy of `corrected` logits.

    The problem is convex; it is solved with L-BFGS, where the authors take steps of SGD.
    """
    z, pair = z.detach().double(), torch.tensor([1.0, 0.0], dtype=torch.float64, device=z.device, requires_grad=True)
    solver = torch.optim.LBFGS([pair], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        with torch.enable_grad():
            loss = F.cross_entropy(corrected(z, n_old, *pair), y)
            loss.backward()
        return loss.item()

    solver.step(closure)
    alpha, beta = pair.tolist()
    return alpha, beta


# ---- the learner -----------------------------------------------------------------------------------------------------


class BiC(Replay):
    """Distillation with a memory, and a linear correction of the newest classes' logits.

    L' = lambda L_d + (1 - lambda) L_CE over new samples and, on average once an epoch, the stored ones. What is
    distilled are the logits of the network before the task as it answered then, corrected (a well-known toolbox
    distils uncorrected ones, and takes the softmax twice in the second stage). Then a tenth of the stored samples of
    each class, held out with as many of each new class, says how the new logits must be changed.

    In "task" and "domain" no outputs compete with older ones, and nothing is corrected; lambda then counts tasks.

    Args:
        backbone: any module.
        budget: number of samples kept, an equal share for each class.
        temperature: of the distillation; 2 in the paper.
        held_out: share of the stored samples that are held out, above 0 and below 1; 0.1 in the paper.

    Attributes:
        correction: alpha and beta of the classes that came last.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    needs_training_mode = True
    needs_classes = True
    correction: Tensor

    def __init__(
        self, backbone: nn.Module, budget: int = 2000, temperature: float = 2.0, held_out: float = 0.1
    ) -> None:
        temperature = checks.number("temperature", temperature, beyond=True)
        held_out = checks.number("held_out", held_out, most=1, beyond=True, below=True)
        super().__init__(backbone, budget, "class", temperature=temperature, held_out=held_out)
        self.hyperparameters.pop("share")
        self.temperature, self.held_out = temperature, held_out
        self.register_buffer("correction", self._like.new_tensor([1.0, 0.0]))
        self.teacher: Teacher | None = None
        self._trained: Tensor | None = None  # rows of the memory that may be drawn; None for all
        self._pace = 0.0  # stored samples drawn for each new one

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        train = task.make("train")
        self.memory.labels_per_task = task.scenario == "task"
        self.check_memory(task)
        self.memory.check(train, task.id)  # before anything is trained
        competing = task.scenario == "class" and bool(self.learned)
        stored, new = self.hold_out(train) if competing else (torch.empty(0).long(), torch.empty(0).long())
        if self.learned:
            self.teacher = Teacher(self)
            if task.scenario == "class":  # as it answers
                self.teacher.weight, self.teacher.bias = self._corrected_rows(self.teacher.weight, self.teacher.bias)
        if len(stored):
            kept = torch.ones(len(self.memory), dtype=torch.bool)
            kept[stored] = False
            self._trained = kept.nonzero().flatten().to(self.memory.y.device)
        self._pace = (len(self.memory) - len(stored)) / max(len(train) - len(new), 1)
        try:
            if len(new):
                rest = torch.ones(len(train), dtype=torch.bool)
                rest[new] = False
                fit(tasks=[self._part(task, train.subset(rest.nonzero().flatten()))])
            else:
                fit()
            with torch.no_grad():
                self.correction.copy_(self.correct(task, train, stored, new) if competing else torch.tensor([1.0, 0.0]))
        finally:
            self.teacher, self._trained = None, None
        with self.memory.shapes_restored_on_error():
            self.memory.offer(train, torch.randperm(len(train)), task.id)

    def _part(self, task: Task, samples: Samples | LazySamples) -> Task:
        """The task with fewer training samples."""
        make = task.make
        return Task(
            task.id, task.n_outputs, lambda: samples, lambda: make("valid"), scenario=task.scenario, name=task.name
        )

    def hold_out(self, train: Samples | LazySamples) -> tuple[Tensor, Tensor]:
        """Rows of the memory and of the new samples that are not trained on: of each class as many, where there are."""
        stored_y, new_y = self.memory.y[: len(self.memory)].cpu(), train.labels.cpu()
        counts = torch.bincount(stored_y)
        m = max(int(self.held_out * int(counts[counts > 0].min())), 1)
        return tuple(  # type: ignore[return-value]
            torch.cat([rows[torch.randperm(len(rows))[: min(m, len(rows) - 1)]] for rows in _of_each_class(y)])
            for y in (stored_y, new_y)
        )

    def correct(self, task: Task, train: Samples | LazySamples, stored: Tensor, new: Tensor) -> Tensor:
        """alpha and beta, from what was held out; 1 and 0 where nothing was, or the task brings no class."""
        n_old = self._n_old()
        if not len(stored) or not len(new) or n_old == self.heads.n_outputs:
            return torch.tensor([1.0, 0.0])
        feed, taken = feeder(self), train.take(new)
        rows = stored.to(self.memory.y.device)
        with evaluating(self):
            z = [self.raw(part) for part in inputs.split(self.memory.at(rows), AT_ONCE)]
            z += [self.raw(feed(part)) for part in inputs.split(taken.x, AT_ONCE)]
        y = torch.cat([self.memory.y[rows], taken.y.to(rows.device)])
        return torch.tensor(fit_correction(torch.cat(z), y, n_old))

    def _n_old(self) -> int:
        """Classes before those of the newest task."""
        newest = str(self._current if self._current is not None else self.learned[-1])
        head: Any = self.heads.real(newest) if newest in self.heads else None
        return self.heads.n_outputs - (0 if head is None else int(head.out_features))

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def raw(self, x: Tree) -> Tensor:
        """Logits as they are trained, shape (batch, outputs)."""
        return super().classify(self.features(x, None), None)

    def classify(self, features: Tensor, task_id: int | None) -> Tensor:
        if self.scenario != "class" or self._current is not None:
            return super().classify(features, task_id)
        return F.linear(features, *self._corrected_rows(*self.heads.side_by_side()))

    def _corrected_rows(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier whose logits are `corrected`: alpha w and alpha b + beta for the classes that came last."""
        newest, newer = str(self.learned[-1]), torch.zeros_like(bias)
        first = 0
        for name in self.heads:
            head: Any = self.heads.real(name)
            newer[first : first + head.out_features] = name == newest
            first += head.out_features
        alpha, beta = self.correction.to(bias)
        scale = 1 + (alpha - 1) * newer
        return weight * scale[:, None], bias * scale + beta * newer

    def loss(self, x: Tree, y: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        if isinstance(task_id, Tensor):  # of a part of the task at hand
            task_id = self._current
        if self._current is None or not self.training:
            return super().loss(x, y, task_id)
        task_id, memory, n = self.check(x, task_id), self.memory, len(y)
        drawn = int(n * self._pace + float(torch.rand(()))) if len(memory) else 0
        ids = torch.full((n,), -1 if task_id is None else task_id, device=y.device)
        if drawn:
            rows = memory.draw(drawn) if self._trained is None else self._draw(self._trained, drawn)
            x = inputs.cat([x, memory.at(rows)])
            y = together(y, memory.y.index_select(0, rows), self.widest())
            ids = torch.cat([ids, memory.task_ids.index_select(0, rows)])
        features = self.features(x, task_id)
        loss = self.mixed_cross_entropy(self.heads.logits_of_each(features, ids), y, ids)
        if self.teacher is None:
            return loss
        share = self._share()
        now = [self.heads[name](features) for name in self.teacher.names]
        then = self.teacher.each(x)
        if self.scenario == "class":
            distilled = distillation(torch.cat(now, 1), torch.cat(then, 1), self.temperature)
        else:
            pairs = zip(now, then, strict=True)
            distilled = torch.stack([distillation(a, b, self.temperature) for a, b in pairs]).mean()
        return share * distilled + (1 - share) * loss

    def _draw(self, rows: Tensor, n: int) -> Tensor:
        """n of these rows, with replacement."""
        return rows[torch.randint(len(rows), (n,)).to(rows.device)]

    def _share(self) -> float:
        if self.scenario == "class":
            n_old = self._n_old()
            return old_share(n_old, self.heads.n_outputs - n_old)
        return old_share(len(self.learned), 1)

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def capacity(self) -> dict[str, Any]:
        """As of every method, and "bytes_while_learning": the copy of the network that the next task would need."""
        return {**super().capacity(), "bytes_while_learning": bytes_of_teacher(self)}

    def extra_bytes(self) -> int:
        """Bytes of the memory and of the two numbers."""
        return super().extra_bytes() + self.correction.nbytes

    def _export_head(self, task_id: int | None) -> nn.Module:
        head: Any = self.heads.alone(task_id)
        if self.scenario == "class":
            with torch.no_grad():
                weight, bias = self._corrected_rows(*self.heads.side_by_side())
                head.weight.copy_(weight)
                head.bias.copy_(bias)
        return head


def _of_each_class(y: Tensor) -> list[Tensor]:
    """Rows of each class."""
    return [(y == c).nonzero().flatten() for c in y.unique().tolist()]
