"""DEN, Dynamically Expandable Networks: Yoon, Yang, Lee and Hwang 2018, arXiv 1708.01547.

A new task first re-trains the units that it can use. Where that is not enough, the network gets new units, and those
that are not needed are taken out again. Units that moved too far from what earlier tasks knew are split: the old one
goes back, its copy stays. Every unit remembers the task with which it came, and earlier tasks do not see it.

Units stand in the order of their arrival, so what a task may use is the upper left corner of each weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import checks
from ..evaluation import feeder
from ..freezing import evaluating
from ..layers import incoming, set_incoming
from ..learner import Fit, TaskRecord
from ..protection import Snapshot
from ..tasks import Task
from .pulls import sum_of_pulls
from .stamped import StampedNetwork

# ---- the equations ---------------------------------------------------------------------------------------------------


def soft_threshold(w: Float[Tensor, "*shape"], mu: float) -> Float[Tensor, "*shape"]:
    """sign(w) max(|w| - mu, 0): the proximal step of mu ||w||_1 (the paper's Eqs. 2, 3, 5). Within mu: zero."""
    return F.softshrink(w, mu)


def group_soft_threshold(w: Float[Tensor, "units incoming"], mu: float) -> Float[Tensor, "units incoming"]:
    """w_g max(0, 1 - mu / ||w_g||): the proximal step of mu sum_g ||w_g||_2, the paper's Eq. 5.

    A group g is a row, what comes into one unit; a row no longer than mu becomes zero as a whole.
    """
    norm = w.norm(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)  # (units, 1)
    return w * (1 - mu / norm).clamp(min=0)


def reachable(
    head: Float[Tensor, "outputs features"], weights: Sequence[Float[Tensor, "_ _ ..."]]
) -> list[Bool[Tensor, " _"]]:
    """Algorithm 2: the units of each layer from which a way over weights that are not zero leads to an output.

    Args:
        head: weights of the task's outputs, all of which are looked at.
        weights: of the layers, from the first to the last. A unit may feed several neighbouring columns of the next
            one (a channel behind a Flatten).
    """
    found: list[Tensor] = []
    above, used = head, torch.ones(len(head), dtype=torch.bool, device=head.device)
    for weight in reversed(weights):
        read = (above != 0).view(len(above), len(weight), -1)  # (units above, units, columns of each)
        used = read[used].any(2).any(0)
        found.insert(0, used)
        above = weight
    return found


def drift(w: Float[Tensor, "units ..."], w_before: Float[Tensor, "units ..."]) -> Float[Tensor, " units"]:
    """rho_i = ||w_i^t - w_i^{t-1}||_2, how far what comes into unit i has moved (Algorithm 4)."""
    return (w - w_before).flatten(1).norm(dim=1)


def pull(w: Float[Tensor, "*shape"], w_before: Float[Tensor, "*shape"], lam: float) -> Float[Tensor, ""]:
    """lam / 2 ||w^t - w^{t-1}||_2^2, the paper's Eq. 6."""
    return (w - w_before).square().sum() * (lam / 2)


# ---- the learner -----------------------------------------------------------------------------------------------------


@dataclass
class _Step:
    """What one call of `fit` trains, beside what `FrozenEntries` holds."""

    head_alone: bool = False
    sparse: list[tuple[Tensor, int, int]] = field(default_factory=list)  # l1, beyond so many rows and columns
    new: list[tuple[Any, int]] = field(default_factory=list)  # group lasso, on the units of a layer from this one on
    anchors: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # parameters and corners of them before


class DEN(StampedNetwork):
    """Re-train what a task can use, add units where that is not enough, and split those that moved too far.

    It forgets a little: shared units move, within the pull `lam` and the threshold `drift`, so it makes no promise of
    exactness. What is exact: the logits of a finished task use the units of its time stamp and no others.

    `learn` calls `fit` up to four times: for the head alone, for the selected sub-network, for the new units and after
    the split (the paper's Eqs. 3 to 6). So a task takes up to four times the steps of other methods; give it fewer
    epochs where that matters. Weight decay, 1e-4 in the paper, is the optimiser's.

    Where the paper leaves it open: in its Eq. 4 shared weights are pulled to where they were, as in its Eq. 6 and the
    authors' code; the thresholds are taken off after every step, whatever its learning rate, as there. After a
    split, what came with the task (its head, new units, copies) reads the copy; an older unit, which earlier
    tasks read too, goes on reading the unit that went back, and its weight from the copy starts at zero.

    Where the authors' code (jaehong31/DEN at 52ebb5d, DEN.py) departs from the paper, which this follows:

    1. Its score is the mean area under the ROC curve over classes (line 613), not accuracy.
    2. The search for units looks at the head's first output only (line 392); here at all of them.
    3. It splits only if it has expanded (line 445).
    4. Of the units that drifted it splits the `k` that drifted least: `argsort` is ascending (line 509).
    5. Copies get random biases between 0 and 1 (line 214); here the unit's own.

    And two more, found while this was written: the head is trained by a single step before the search, since the
    counter starts where it stops (lines 375 and 578); and a shallow copy makes the trained weights the old ones before
    the split (lines 514 to 521), so both copies start from the old. `benchmarks/expansion.py` measures the effects.

    Args:
        backbone: an `nn.Sequential` of Linear or Conv layers, each followed by a ReLU, with pooling, Flatten and
            Dropout between them. It is widened in place.
        l1: mu, taken off every weight of the first task, of heads (the paper's Eq. 3) and new units, after each step.
        group: gamma, taken off the length of what comes into a new unit, after each step.
        lam: pull on weights that earlier tasks use.
        tau: mean loss on the training samples above which the network is expanded.
        drift: sigma, how far a unit may move; a unit that moved further is split.
        k: units that an expansion adds to each layer.
        selective: search for the units that matter, and train those alone. Off: all of them.
        expansion, splitting: whether units are added, and split.
        stamping: whether finished tasks see the units of their time stamp alone. Off: all units, as far as their heads
            can read them.

    Raises:
        ValueError: a hyperparameter out of its range; a backbone that holds another kind of layer.
    """

    needs_training_mode = True
    needs_classes = True

    def __init__(
        self,
        backbone: nn.Module,
        l1: float = 1e-5,
        group: float = 1e-3,
        lam: float = 0.5,
        tau: float = 0.01,
        drift: float = 0.05,
        k: int = 10,
        selective: bool = True,
        expansion: bool = True,
        splitting: bool = True,
        stamping: bool = True,
    ) -> None:
        numbers = {
            name: checks.number(name, value)
            for name, value in (("l1", l1), ("group", group), ("lam", lam), ("tau", tau), ("drift", drift))
        }
        steps = {"selective": selective, "expansion": expansion, "splitting": splitting, "stamping": stamping}
        super().__init__(backbone, **numbers, k=checks.integer("k", k), **steps)
        self.l1, self.group, self.lam, self.tau, self.drift = numbers.values()
        self.k, self.selective, self.expansion, self.splitting, self.stamping = k, *steps.values()
        self._step = _Step()
        self._stepping: set[int] = set()  # parameters of the optimiser that is taking its step

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        """Algorithm 1."""
        task.needs("train")
        record = self.tasks[task.id]
        with self.growing(record):
            if not self.learned:
                self.train_sparse(record, fit)
            else:
                self.train_selected(record, fit)
                expanded = self.expansion and self.training_loss(task) > self.tau
                if expanded:
                    self.expand(record, fit)
                if self.splitting and self.may_split(expanded):
                    self.split(record, fit)

    def train_sparse(self, record: TaskRecord, fit: Fit) -> None:
        """The paper's Eq. 2: the first task, with l1."""
        layers = (*self.network.layers, self.head_of(record))
        self._step = _Step(sparse=[(layer.weight, 0, 0) for layer in layers])
        fit()

    def train_selected(self, record: TaskRecord, fit: Fit) -> None:
        """Algorithm 2: the head alone, the search, and the sub-network that it found (the paper's Eqs. 3, 4)."""
        if self.selective:
            head = self.head_of(record)
            self.network.hold_first(self.network.sizes, self._frozen)
            self._step = _Step(head_alone=True, sparse=[(head.weight, 0, 0)])
            fit()
            self._frozen.release()
            self.network.hold_all_but(self.search(head.weight.detach()), head, self._frozen)
        self._step = _Step(anchors=self.network.since(self.before))
        fit()
        self._frozen.release()

    def search(self, head: Tensor) -> list[Tensor]:
        """S of Algorithm 2, for a head of shape (outputs, features): one boolean mask over the units of each layer."""
        return reachable(head, [layer.weight.detach() for layer in self.network.layers])

    def training_loss(self, task: Task) -> float:
        """L_t, the mean loss over the training samples, in evaluation mode."""
        train, feed = task.make("train"), feeder(self)
        total = self._like.new_zeros(())
        with evaluating(self), torch.no_grad():
            for batch in train.batches(1000):
                total += self.cross_entropy(self(feed(batch.x), task.id), batch.y.to(self.device)) * len(batch.y)
        return total.item() / len(train)

    def expand(self, record: TaskRecord, fit: Fit) -> None:
        """Algorithm 3: k units for every layer, trained alone (the paper's Eq. 5); the empty ones go again."""
        self.check_one_process()
        network, head, old = self.network, self.head_of(record), self.network.sizes
        self.resize(record, [n_out + self.k for n_out, _ in old])
        network.hold_first(old, self._frozen)
        self._step = _Step(sparse=[(head.weight, 0, 0)])
        for layer, (n_out, n_in) in zip(network.layers, old, strict=True):
            self._step.sparse.append((layer.weight, n_out, n_in))
            self._step.new.append((layer, n_out))
        fit()
        self._frozen.release()
        network.remove_unused([n_out for n_out, _ in old], head, record.notes["each"])
        self.resized(record)

    def may_split(self, expanded: bool) -> bool:
        """Whether Algorithm 1 goes on to the split: always."""
        return True

    def split(self, record: TaskRecord, fit: Fit) -> None:
        """Algorithm 4: what drifted goes back to what it was, copies stay; all is trained (the paper's Eq. 6)."""
        drifted = []
        for layer, (before, _) in zip(self.network.layers, self.before, strict=True):
            n_out, n_in = before.shape[:2]
            drifted.append(self.to_split(drift(layer.weight.detach()[:n_out, :n_in], before)))
        if any(len(units) for units in drifted):
            self.check_one_process()
            self.network.duplicate(
                drifted, self.before, self.head_of(record), record.notes["each"], self.bias_of_copies
            )
            self.resized(record)
            self._step = _Step(anchors=self.network.since(self.before))
            fit()

    def to_split(self, rho: Float[Tensor, " units"]) -> Tensor:
        """Which units of a layer are split, int64 of shape (n,): those with rho_i > sigma."""
        return (rho > self.drift).nonzero().flatten()

    def bias_of_copies(self, bias: Tensor) -> Tensor:
        """What the copies of split units, whose biases these are, start with: the same."""
        return bias

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def features(self, x: Tensor, task_id: int | None) -> Tensor:
        assert task_id is not None
        record = self.tasks[task_id]
        if record.finished:
            return self.apply_network(self.backbone, x, self.network.first(self.units_seen(task_id)))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._step.head_alone):
            return self.apply_network(self.backbone, x)

    def units_seen(self, task_id: int) -> list[int]:
        """How many units of each layer a finished task uses: the first ones, up to its time stamp."""
        units = super().units_seen(task_id)
        return units if self.stamping else [*self.network.units[:-1], units[-1]]

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        """Cross-entropy, with the pull of the paper's Eqs. 4 and 6 while a task is learned."""
        loss, anchors = super().loss(x, y, task_id), self._step.anchors
        return loss + sum_of_pulls(anchors, self.lam) if self.training and self.lam and anchors else loss

    # ---- what must not move ------------------------------------------------------------------------------------------

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        super().watch(optimizer)
        self._stepping = {id(p) for group in optimizer.param_groups for p in group["params"]}

    @torch.no_grad()
    def after_step(self) -> None:
        """The proximal steps; and what must not move goes back."""
        for parameter, rows, cols in self._step.sparse:
            if id(parameter) in self._stepping:  # another optimiser takes its step for itself
                for part in (parameter[rows:], parameter[:rows, cols:]):
                    if part.numel():
                        part.copy_(soft_threshold(part, self.l1))
        for layer, first in self._step.new:
            if id(layer.weight) in self._stepping:
                units = incoming(layer, first)  # (new units, all that comes into each)
                set_incoming(layer, group_soft_threshold(units, self.group), first)
        super().after_step()

    def _leave(self, snapshot: Snapshot | None) -> None:
        self._step = _Step()
        super()._leave(snapshot)
