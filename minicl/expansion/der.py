"""DER as in "Dynamically Expandable Representation", not Dark Experience Replay (that is `DERpp`).

Yan, Xie and He 2021, arXiv 2103.16788. Each task brings a feature extractor of its own; those of earlier tasks stand
still. One classifier reads the features of all of them, and is trained again on a memory in which every class has the
same share. An auxiliary classifier makes the new extractor tell its classes apart by itself; masks over channels, as in
HAT, make it smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .. import checks
from ..inputs import Tree
from ..isolation.hat import compensate, temperature
from ..learner import Fit, TaskRecord
from ..samples import Samples
from ..tasks import Task
from .extractors import Extractors

# ---- the equations ---------------------------------------------------------------------------------------------------


def auxiliary_targets(y: Shaped[Tensor, "batch ..."], n_old: int) -> Shaped[Tensor, "batch ..."]:
    """What the auxiliary classifier is to answer: 0 for any of the n_old classes before, 1, 2, ... for the new ones.

    Args:
        y: classes, int64 of shape (batch,), or probabilities of them, shape (batch, classes).
        n_old: how many classes there were before.
    """
    if y.is_floating_point():
        return torch.cat([y[:, :n_old].sum(1, keepdim=True), y[:, n_old:]], 1)
    return (y - n_old + 1).clamp(min=0)


def sparsity(masks: Sequence[Float[Tensor, " _"]], inputs: int, kernels: Sequence[float]) -> Float[Tensor, ""]:
    """sum_l K_l ||m_{l-1}||_1 ||m_l||_1 / sum_l K_l c_{l-1} c_l: the share of the weights that the masks leave.

    A layer counts by its size: K_l weights for each pair of a channel below and one of its own.

    Args:
        masks: m_l of each layer, one number from 0 to 1 for each of its c_l channels.
        inputs: c_0, the channels of the input, of which none is left out.
        kernels: K_l of each layer, the weights between one channel and another.
    """
    kept, size = masks[0].new_zeros(()), 0.0
    below, c_below = masks[0].new_full((), float(inputs)), inputs
    for mask, k in zip(masks, kernels, strict=True):
        total = mask.sum()
        kept = kept + k * below * total
        size += k * c_below * len(mask)
        below, c_below = total, len(mask)
    return kept / size


# ---- the learner -----------------------------------------------------------------------------------------------------


class DER(Extractors):
    """A frozen extractor for each task so far, a new one for the task, and one classifier over all their features.

    Loss of a task after the first: L_CE + `aux` L_aux (+ `sparsity` L_S), over the task's samples and the memory
    together, each sample once an epoch. Then the new extractor is frozen, the memory gets its share of the new
    classes, and the classifier is drawn anew and trained on the memory alone, its logits divided by `temperature`.

    The features of an extractor that is finished are exact: nothing moves them. The classifier goes on learning, so the
    logits are no promise, but in scenario "task": there each task has a head of its own over the extractors up to its
    own, nothing is remembered, and this is a progressive network (PNN) without laterals, whose answers stay the same
    to the bit. In "domain" all classes are new to the auxiliary classifier.

    Where this departs from the authors' code (Rhyssiyan/DER-ClassIL.pytorch at dd4af61, inclearn/models/incmodel.py):
    that has no masks; here they are the paper's, if `sparsity` is given. They work where channels can be followed: an
    `nn.Sequential` of Linear or Conv layers, each with its ReLU. On other backbones nothing is masked, and
    `capacity()["masked"]` says so. Old rows of the classifier start from what they were, and read new features with
    weight 0; theirs are drawn anew. Samples of the memory are drawn at random for each class, not by herding. The
    auxiliary loss is plain cross-entropy, also where the learner has a criterion.

    Args:
        backbone: any module; a template, which is copied. An extractor starts from the weights of the one before.
        budget: number of samples kept; unused in "task".
        share: who stays in memory; "class", an equal share for each, is what makes it balanced.
        aux: weight of the auxiliary loss.
        sparsity: weight of L_S; None for no masks, as in the authors' code.
        s_max: how sharp the masks get, see HAT.
        balance_epochs: passes over the memory for the classifier alone; 0 leaves it as it is.
        temperature: what its logits are divided by there.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    needs_training_mode = True
    needs_classes = True

    def __init__(
        self,
        backbone: nn.Module,
        budget: int = 200,
        share: str = "class",
        aux: float = 1.0,
        sparsity: float | None = None,
        s_max: float = 400.0,
        balance_epochs: int = 30,
        temperature: float = 5.0,
    ) -> None:
        numbers = {
            "aux": checks.number("aux", aux),
            "s_max": checks.number("s_max", s_max, 1, beyond=True),
            "temperature": checks.number("temperature", temperature, beyond=True),
        }
        sparsity = None if sparsity is None else checks.number("sparsity", sparsity)
        balance_epochs = checks.integer("balance_epochs", balance_epochs, 0)
        super().__init__(backbone, budget, share, sparsity, **numbers, balance_epochs=balance_epochs)
        self.aux, self.s_max, self.temperature = numbers.values()
        self.balance_epochs = balance_epochs
        self._to_come = "task"  # the scenario that was asked about last

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        record, train = self.tasks[task.id], task.make("train")
        remembers = self.remembers(task.scenario)
        if remembers:
            self.check_memory(task)
            self.memory.check(train, task.id)  # before anything is trained
        before = self.order()
        with self.sizes_restored_on_error(record), self.memory.shapes_restored_on_error():
            self.expand(record)  # a new extractor, and a classifier that reads it
            with self.masked(record):
                if before and remembers:
                    fit(tasks=[task, self.remembered(task)])  # L_CE + L_aux (+ L_S)
                else:
                    fit()
            self.prune(record)
            if remembers:
                self.memory.offer(train, torch.randperm(len(train)), task.id)
            if before and remembers and self.balance_epochs:
                self.balance(task, fit)
        self.settle(task.id, len(before))

    def expand(self, record: TaskRecord) -> None:
        """Start the new extractor from the last one, and let the classifier read it."""
        self.start_from_last(record)
        self.read_all(record)

    def remembered(self, task: Task) -> Task:
        """The memory as the training samples of a task; those for validation are the task's own."""
        rows = torch.arange(len(self.memory), device=self.memory.y.device)
        held = Samples(self.memory.at(rows), self.memory.y[rows]).to("cpu")
        valid = partial(task.make, "valid")
        return Task(task.id, task.n_outputs, held, valid, scenario=task.scenario, name=task.name)

    def balance(self, task: Task, fit: Fit) -> None:
        """The classifier alone, from new weights, on a memory in which every class has the same share."""
        for head in self.heads.layers:
            head.reset_parameters()
        with self.standing(task.id):
            fit(epochs=self.balance_epochs, tasks=[self.remembered(task)])

    def accepts(self, scenario: str) -> None:
        super().accepts(scenario)
        self._to_come = scenario

    def trainings(self, samples: Sequence[int], epochs: int) -> list[tuple[int, int]]:
        seen = [len(self.memory) + sum(samples[:n]) for n in (len(samples) - 1, len(samples))]
        before, after = (min(self.memory.budget, n) for n in seen)
        if not before or not self.remembers(self._to_come):
            return super().trainings(samples, epochs)
        return [(epochs, samples[-1] + before), (self.balance_epochs, after)]

    def prune(self, record: TaskRecord) -> None:
        """Cut out of the new extractor the channels that its masks leave out, and of the classifier what reads them."""
        if str(record.id) in self.scores:
            self.keep_channels(record, [mask.nonzero().flatten() for mask in self.hard_masks(record)])

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def loss(self, x: Tree, y: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """L_CE + aux L_aux + sparsity L_S while a task is learned; the tempered loss while the classifier alone is."""
        if isinstance(task_id, Tensor):  # of the memory; the scenario gives none
            task_id = None
        if self._current is None or not self.training:
            return super().loss(x, y, task_id)
        parts = self.features_of_each(x, self.check(x, task_id))
        logits = self.classify(torch.cat(parts, 1), task_id)
        if self._standing:
            return self.cross_entropy(logits / self.temperature, y)
        loss = self.cross_entropy(logits, y)
        record = self.tasks[self._current]
        if len(parts) > 1 and self.aux and str(record.id) in self.auxiliary:
            n_old = record.notes["old"]
            targets = auxiliary_targets(y, n_old) if record.scenario == "class" else y
            loss = loss + self.aux * F.cross_entropy(self.auxiliary[str(record.id)](parts[-1]), targets)
        if self.masks is not None and self.masks.soft and self.sparsity:
            loss = loss + self.sparsity * sparsity(self.masks.soft, self.masks.inputs, self.masks.kernels)
        return loss

    # ---- what must not move, and masks -------------------------------------------------------------------------------

    def before_step(self, progress: float) -> None:
        """The masks sharpen through each epoch, as in HAT."""
        self.heat = temperature(progress, self.s_max)

    @torch.no_grad()
    def edit_gradients(self) -> None:
        super().edit_gradients()
        for scores in self.scores.values():
            if scores.grad is not None:
                scores.grad = compensate(scores.grad, scores.detach(), self.heat, self.s_max)

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        for scores in self.scores.values():
            scores.clamp_(-6, 6)
