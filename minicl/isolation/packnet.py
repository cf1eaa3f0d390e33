"""PackNet: Mallya and Lazebnik 2018, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning",
arXiv 1711.05769.

Every weight has one owner. A task trains all weights that are still free, keeps the largest, gives the rest back, and
trains again what it kept; from then on these weights are frozen. Later tasks read them and never move them. To answer
for a task, the weights of the tasks after it are switched off.

The file reads from top to bottom: the equations, then the learner. Which weights a network has, and how their owners
are stored, is in `minicl.isolation.owners`. Where it departs from the authors' code (github.com/arunmallya/packnet),
the docstring of `PackNet` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor, nn

from .. import checks
from ..evaluation import evaluate
from ..freezing import one_at_a_time
from ..learner import Fit, TaskRecord
from ..tasks import Task
from .shared import OwnedNetwork
from .shares import KeepRatio, check_keep_ratio, check_share, share_of
from .task_norms import TaskNorms

# ---- the equations -----------------------------------------------------------------------------------------


def keep_mask(
    weight: Float[Tensor, "*shape"], keep_ratio: float, among: Bool[Tensor, "*shape"] | None = None
) -> Bool[Tensor, "*shape"]:
    """m^(t), by magnitude: which of the weights `among` a task keeps.

    The paper's pruned share is p = 1 - keep_ratio. Of the n weights in question, the round(p n) smallest in absolute
    value are released. So where p n rounds to 0, nothing is; and exactly n - round(p n) are kept, for of weights that
    tie at the cutoff the first ones (row by row) stay. (The authors release all that tie.)

    Args:
        weight: of one layer.
        keep_ratio: share to keep, in (0, 1].
        among: the weights in question, those that this task trained; None for all.

    Returns:
        True for what is kept, False elsewhere.

    Raises:
        ValueError: keep_ratio outside (0, 1].
    """
    check_share(keep_ratio, "keep_ratio")
    among = torch.ones_like(weight, dtype=torch.bool) if among is None else among
    n = int(among.sum())
    released = round((1 - keep_ratio) * n)
    if released == 0:
        return among.clone()
    size = weight.detach().abs()
    cutoff = (size[among] if n < size.numel() else size.flatten()).kthvalue(released).values
    keep = among & (size > cutoff)
    ties = n - released - int(keep.sum())
    if ties > 0:
        keep[tuple((among & (size == cutoff)).nonzero()[:ties].T)] = True
    return keep


def total_mask(masks: Iterable[Bool[Tensor, "*shape"]]) -> Bool[Tensor, "*shape"]:
    """m^(1:t) = OR_i m^(i): the weights that belong to any of the tasks whose masks are given.

    Raises:
        ValueError: no mask.
    """
    masks = iter(masks)
    first = next(masks, None)
    if first is None:
        raise ValueError("total_mask was given no mask, so it cannot know their shape; allowed: at least one")
    total = first.clone()
    for mask in masks:
        total |= mask
    return total


def trainable(theta: Float[Tensor, "*shape"], total: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """theta (.) (1 - m^(1:t)), verbatim: the weights that no task owns yet, and zero in the place of all others.

    This says what may *move*. As the network of the next task it would be wrong: that reads the owned weights too.
    """
    return theta * (1 - total.to(theta.dtype))


def owned_by(owner: UInt8[Tensor, "*shape"], task: int) -> Bool[Tensor, "*shape"]:
    """m^(task), read off the owner index: the weights that this task keeps.

    Args:
        owner: 0 for a free weight, k for the k-th task that was learned.
        task: k, from 1; 0 gives the free weights.
    """
    return owner == task


def used_by(owner: UInt8[Tensor, "*shape"], task: int) -> Bool[Tensor, "*shape"]:
    """m^(1:task), read off the owner index in one go: the weights that are switched on when this task is asked."""
    return (owner != 0) & (owner <= task)


# ---- the learner -------------------------------------------------------------------------------------------


class PackNet(OwnedNetwork):
    """Many tasks in one network, by pruning and freezing.

    Prunable are the weights of Linear and Conv layers (1d, 2d, 3d, transposed), of recurrent layers, the input
    projections of attention, and what `prunable` names. Everything else in the backbone (biases, norms, embeddings) is
    trained with the first task and frozen after it: `capacity()["unprunable"]` says how much that is. Heads are not
    pruned.

    BatchNorm without running statistics (`track_running_stats=False`) normalises by the batch: then the same batch gets
    the same bits, and the same image in another batch does not.

    Departures from the authors' code: the stated share is kept where weights tie (see `keep_mask`); attention's
    input projections, which their networks do not have, are pruned as three stacked linear layers; what an optimiser
    did to a frozen weight is undone, so that momentum, Adam and weight decay may be used.

    Args:
        backbone: any module from a batch to features that has a Linear or Conv layer.
        keep_ratio: share of the weights that a task trained, layer by layer, which it keeps; the paper's 1 - p.
            A number in (0, 1]; or a list of such, one per task in order of learning; or a dict, one per layer by its
            name, see `capacity()`; or a function of the task's number (1 for the first that is learned) and the name
            of the layer; or "auto": the smallest share, for all layers alike, whose validation accuracy before
            re-training is at most `tolerance` below the unpruned network's, found by bisection to 1/128.
        retrain_epochs: passes after pruning; None for as many as before, 0 for none. (Authors: 10 after 20.)
        batchnorm: "frozen" after the first task, as in the paper, or "per-task": scale, shift and running statistics
            of each task's own, starting from those of the task before.
        tolerance: of "auto", as a share of the validation samples.
        min_free: a task that would find fewer free weights in the whole backbone is refused before it is trained.
        prunable: names of further modules of the backbone, or of parameters, whose weights of two or more axes are
            packed too, such as an embedding.

    Raises:
        ValueError: a hyperparameter out of its range, or a network that cannot be packed; see `prunable` in
            `minicl.isolation.owners`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        keep_ratio: KeepRatio = 0.5,
        retrain_epochs: int | None = None,
        batchnorm: str = "frozen",
        tolerance: float = 0.01,
        min_free: int = 1,
        prunable: Sequence[str] = (),
    ) -> None:
        if retrain_epochs is not None:
            retrain_epochs = checks.integer("retrain_epochs", retrain_epochs, 0, ", or None for as many as before")
        checks.one_of("batchnorm", batchnorm, ("frozen", "per-task"))
        tolerance = checks.number("tolerance", tolerance, most=1, below=True)
        min_free = checks.integer("min_free", min_free)
        super().__init__(
            backbone,
            prunable,
            TaskNorms(per_task=batchnorm == "per-task"),
            keep_ratio=keep_ratio,
            retrain_epochs=retrain_epochs,
            batchnorm=batchnorm,
            tolerance=tolerance,
            min_free=min_free,
            prunable=list(prunable),
        )
        check_keep_ratio(keep_ratio, list(self.names))
        self.keep_ratio, self.retrain_epochs, self.batchnorm = keep_ratio, retrain_epochs, batchnorm
        self.tolerance, self.min_free = tolerance, min_free
        self._warn_of_what_stands_still()

    # ---- the algorithm -------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        """Train, prune, re-train, freeze.

        Raises:
            ValueError: see `Learner.learn`; too few free weights; "auto" without validation samples; the backbone was
                moved to another device without the learner.
            FloatingPointError: weights became NaN or infinite.
        """
        self.claim_free_weights(task)  # theta * (1 - m^(1:t)) may move, the rest may not
        fit()
        self.prune(self.smallest_share(task) if self.keep_ratio == "auto" else self.keep_ratio)
        self.retrain(fit)
        self.freeze()  # m^(1:t+1) = m^(1:t) OR m^(t+1)

    def claim_free_weights(self, task: Task) -> None:
        """From here on, the weights that no task owns may move: all for the first task; for later ones, from zero."""
        self._check_room()
        if self.keep_ratio == "auto" and not len(task.make("valid")):
            raise ValueError(
                f"keep_ratio='auto' needs validation samples, and task {task.id} has none; give valid=(x, y)"
            )
        self.claim(task.id)

    @torch.no_grad()
    def prune(self, keep_ratio: KeepRatio) -> None:
        """Keep the largest of the weights that this task trained, layer by layer; release the others, which become 0.

        A weight that is still exactly zero (its input is always dark, its unit silent) is not claimed while anything is
        released, as in the authors' code, where it never exceeds the cutoff. Only where the loop trained nothing at all
        does the share count zeros too, so that a plan can be tried out without training.

        Args:
            keep_ratio: as for the constructor, except "auto".
        """
        self._put_back()
        weights, kept = self.finite_weights(), {}
        free = {layer: owned_by(owner, 0) for layer, owner in self.owners.items()}
        trained = self._stepped or any(bool(weights[layer][free[layer]].any()) for layer in weights)
        for layer, weight in weights.items():
            share = share_of(keep_ratio, self._active, layer)
            kept[layer] = keep_mask(weight, share, among=free[layer])
            if trained and share < 1:
                kept[layer] &= weight != 0  # what never moved from zero holds nothing
            stays = total_mask([~free[layer], kept[layer]])  # m^(1:t) OR m^(t+1)
            weight.sub_(trainable(weight, stays))
        self.hold_all_but(kept)

    def retrain(self, fit: Fit) -> None:
        """Train what was kept for `retrain_epochs`: None means for as many epochs as `fit` takes by itself."""
        if self.retrain_epochs is None:
            fit()
        elif self.retrain_epochs > 0:
            fit(epochs=self.retrain_epochs)

    def trainings(self, samples: Sequence[int], epochs: int) -> list[tuple[int, int]]:
        again = epochs if self.retrain_epochs is None else self.retrain_epochs
        return [(epochs, samples[-1]), (again, samples[-1])]

    def freeze(self) -> None:
        """The kept weights are this task's: its number goes into the owner index."""
        self.own()

    def smallest_share(self, task: Task) -> float:
        """The smallest share of the weights just trained with which the validation accuracy stays within `tolerance`.

        Found by bisection, to 1/128, before any re-training; noted in the task's record.
        """
        goal = evaluate(self, task, "valid") - self.tolerance
        trained = {layer: weight.detach().clone() for layer, weight in self.weights().items()}
        enough, too_small = 1.0, 0.0
        while enough - too_small > 1 / 128:
            share = (enough + too_small) / 2
            with torch.no_grad():
                for layer, weight in self.weights().items():
                    free = owned_by(self.owners[layer], 0)
                    weight.masked_fill_(free & ~keep_mask(weight, share, among=free), 0)
            if evaluate(self, task, "valid") >= goal - 1e-12:
                enough = share
            else:
                too_small = share
            with torch.no_grad():
                for layer, weight in self.weights().items():
                    weight.copy_(trained[layer])
        self.tasks[task.id].notes["keep_ratio"] = enough
        return enough

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def reads(self, layer: str, task_id: int) -> Tensor:
        """Of the weights with an owner, those of this task and of the tasks before it, not of those after it."""
        return used_by(self.owners[layer], self.number(task_id))

    def mixed(self, x: Any, alpha: Tensor) -> Tensor:
        """As of every learner. Masks are nested: a weight counts for its owner's task and for all that came after."""
        if len(alpha) > 1 or len(self.norms):
            return super().mixed(x, alpha)
        numbers = torch.tensor([self.number(t) for t in self.learned], device=alpha.device)
        owners = torch.arange(int(numbers.max()) + 1, device=alpha.device)
        counts = ((owners[:, None] <= numbers) & (owners[:, None] > 0)).to(alpha.dtype) @ alpha[0]  # of each owner
        tensors = dict(self.finished.tensors.items())
        for layer, name in self.names.items():
            tensors[name] = tensors[name] * counts[self.owners[layer].int()].to(tensors[name].dtype)
        with one_at_a_time():
            features = self.apply_network(self.backbone, x, self.by_every_name(tensors))
        return self.heads.mixed(features, alpha, self.learned)

    # ---- what it costs, and taking it elsewhere ------------------------------------------------------------

    def grow(self, task: TaskRecord) -> None:
        self._check_room()
        super().grow(task)

    def _warn_of_what_stands_still(self) -> None:
        standing = [p for p in self.backbone.parameters() if p.requires_grad]
        whole, packed = sum(p.numel() for p in standing), sum(w.numel() for w in self.weights().values())
        if packed < whole / 2:
            warnings.warn(
                f"only {packed / whole:.0%} of what this {type(self.backbone).__name__} trains can learn after the "
                "first task; the rest is trained with it and then frozen. Name further modules in prunable=[...]",
                stacklevel=4,
            )

    def _check_room(self) -> None:
        """Refuse a task that would find no place, or no share to keep, before anything is made for it."""
        number = self.check_number()
        owners = self.owners
        free = {layer: int((owner == 0).sum()) for layer, owner in owners.items()}
        if sum(free.values()) < self.min_free:
            raise ValueError(
                f"task number {number} would get {sum(free.values())} free weights of "
                f"{sum(owner.numel() for owner in owners.values())}; at least min_free={self.min_free} are asked for. "
                "What helps: a smaller keep_ratio for the tasks before it (learn them again), a wider backbone, or "
                "minicl.FeatureExtraction, which needs a head alone"
            )
        for layer, n in free.items():
            if self.keep_ratio == "auto":
                break
            share = share_of(self.keep_ratio, number, layer)
            if number == 1 and round((1 - share) * n) == n:
                raise ValueError(
                    f"keep_ratio {share} would keep none of the {n} weights of layer {layer!r}, and no signal would "
                    f"pass it; allowed: more than {0.5 / n:.3g} there"
                )
