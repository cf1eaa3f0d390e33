"""Piggyback: Mallya, Davis and Lazebnik 2018, "Piggyback: Adapting a Single Network to Multiple Tasks by Learning to
Mask Weights", arXiv 1801.06519.

The network has been trained before, and never moves. Each task learns a real number, its score, for every weight; where
the score is above a threshold the weight is on, and elsewhere it is off. What is kept of a task is a bit per weight.

The file reads from top to bottom: the equations, then the learner. Which weights a network has, and what finished tasks
read, is in `minicl.isolation.owners` and `minicl.isolation.shared`. The authors' code is
github.com/arunmallya/piggyback at 5a6094c, `src/modnets/layers.py:12-205` and `src/main.py:160-173`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..isolation.task_masks import MaskedNetwork, TaskMasks
from ..isolation.task_norms import TaskNorms
from ..learner import Fit, TaskRecord
from ..networks import is_initial
from ..tasks import Task

# ---- the equations ---------------------------------------------------------------------------------------------------


def binarize(scores: Float[Tensor, "*shape"], threshold: float) -> Float[Tensor, "*shape"]:
    """m = 1[m_r > tau], the paper's Eq. 2: 1 where the score is above the threshold, 0 elsewhere, also at it.

    The derivative of a step is zero almost everywhere. The gradient goes straight through instead: dL/dm_r := dL/dm.
    """
    mask: Tensor = _StraightThrough.apply(scores, threshold, False)
    return mask


def ternarize(scores: Float[Tensor, "*shape"], threshold: float) -> Float[Tensor, "*shape"]:
    """The variant with three values: -1 where the score is below 0, 1 where it is above the threshold, 0 between.

    The gradient goes straight through, as in `binarize`.
    """
    mask: Tensor = _StraightThrough.apply(scores, threshold, True)
    return mask


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: float, ternary: bool) -> Tensor:
        return _above(scores, threshold, ternary)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None, None


def _above(scores: Tensor, threshold: float | Tensor, ternary: bool) -> Tensor:
    mask = torch.gt(scores, threshold, out=torch.empty_like(scores))  # numbers at once: a third of the time
    return mask.masked_fill_(scores < 0, -1) if ternary else mask


def masked(weight: Float[Tensor, "*shape"], mask: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """W' = W (.) m, the paper's Eq. 1: the weights of a task. By the product rule dL/dm = dL/dW' (.) W, so a weight
    that is 0 gives its score no gradient."""
    return weight * mask


def scaled_gradient(
    gradient: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"], how: str
) -> Float[Tensor, "*shape"]:
    """dL/dm_r divided by the size of the weights, so that layers with small weights learn as fast as others.

    Args:
        gradient: dL/dm_r = dL/dW' (.) W, of a layer.
        weight: W, of this layer.
        how: "plain", as it is; "average", divided by the mean of |W| over the layer; "individual", by the |W| of each
            weight, which leaves dL/dW' with the sign of W, and 0 where W is 0.
    """
    if how == "plain":
        return gradient
    size = weight.abs().mean() if how == "average" else weight.abs()
    return gradient / size.clamp(min=torch.finfo(weight.dtype).tiny)  # 0 / tiny = 0


def masked_above(
    weight: Float[Tensor, "*shape"],
    scores: Float[Tensor, "*shape"],
    threshold: float | Float[Tensor, "*shape"],
    slope: Float[Tensor, "*shape"],
    how: str = "plain",
    ternary: bool = False,
) -> Float[Tensor, "*shape"]:
    """`masked(weight, binarize(scores, threshold))`, the same numbers in half of the passes over memory.

    Args:
        weight: W. Its gradient is dL/dW' as it comes: where a weight is off, nobody may be training it.
        scores: m_r; their gradient is dL/dW' (.) slope, scaled as `scaled_gradient` says.
        threshold: tau, one for all or one for each score: minus infinity where the weight is always on.
        slope: W, or 0 where the mask has no say.
        how: see `scaled_gradient`.
        ternary: `ternarize` in the place of `binarize`.
    """
    product: Tensor = _MaskedAbove.apply(weight, scores, threshold, slope, how, ternary)
    return product


class _MaskedAbove(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scores: Tensor, threshold: float | Tensor, slope: Tensor, how: str, ternary: bool
    ) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.how = how
        if not ternary and not isinstance(threshold, Tensor):
            # The backward pass of a ReLU that begins at tau: W where m_r > tau, 0 elsewhere, in one pass over memory.
            return torch.ops.aten.threshold_backward(weight, scores, threshold)
        return _above(scores, threshold, ternary).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        weight, scores = ctx.needs_input_grad[:2]
        scored = scaled_gradient(grads[0] * slope, slope, ctx.how) if scores else None
        return grads[0] if weight else None, scored, None, None, None, None


# ---- the learner -----------------------------------------------------------------------------------------------------


class Piggyback(MaskedNetwork):
    """Many tasks over one network that stands still, each with a mask of its own.

    The given network is the pre-trained one: it is fixed as it is when the first task is prepared, and nothing in it
    ever moves, neither weights nor biases nor norms with their running statistics. A task trains its scores and its
    head. Masked are the weights of Linear and Conv layers (1d, 2d, 3d, transposed), of recurrent layers, the input
    projections of attention, and what `prunable` names.

    A network that nobody has trained is allowed: masks over random weights find networks, too, and worse ones.
    `capacity()` says "untrained" then, as far as it can be known: of networks from `minicl.mlp` and `minicl.cnn`.

    The loop owns the optimiser. The authors' is Adam with 1e-4 for scores and head, 30 epochs, divided by 10 after 15.
    What counts is how many steps lie between a score's first value and the threshold: with Adam about
    (scale - threshold) / lr, 50 for the authors.

    Args:
        backbone: any module from a batch to features that has a Linear or Conv layer.
        threshold: tau, above which a score switches its weight on.
        scale: every score's first value; above the threshold, so that at first every weight is on.
        gradient: of the scores, see `scaled_gradient`: "plain", "average" or "individual".
        ternary: a mask may also turn a weight's sign around: two bits per weight and task instead of one.
        prunable: names of further modules of the backbone, or of parameters, whose weights of two or more axes are
            masked too, such as an embedding.

    Raises:
        ValueError: a hyperparameter out of its range, or a network without weights to mask; see `prunable` in
            `minicl.isolation.owners`.
    """

    saved_attributes = ("untrained",)
    forward_alone = True

    def __init__(
        self,
        backbone: nn.Module,
        threshold: float = 5e-3,
        scale: float = 1e-2,
        gradient: str = "plain",
        ternary: bool = False,
        prunable: Sequence[str] = (),
    ) -> None:
        threshold = checks.number("threshold", threshold)
        scale = checks.number("scale", scale)
        if scale <= threshold:
            raise ValueError(f"scale is {scale}; allowed: more than threshold={threshold}, or every weight starts off")
        checks.one_of("gradient", gradient, ("plain", "average", "individual"))
        if not isinstance(ternary, bool):
            raise ValueError(f"ternary is {ternary!r}; allowed: False, True")
        super().__init__(
            backbone,
            prunable,
            TaskNorms(per_task=False),
            threshold=threshold,
            scale=scale,
            gradient=gradient,
            ternary=ternary,
            prunable=list(prunable),
        )
        self.threshold, self.scale, self.gradient, self.ternary = threshold, scale, gradient, ternary
        self.untrained = False
        self.masks = TaskMasks(n_bits=2 if ternary else 1)

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        """Train scores and head; keep where the scores are above the threshold.

        Raises:
            ValueError: see `Learner.learn`.
        """
        fit()  # W (.) 1[m_r > tau]; W stands still
        self.keep_mask(task.id)

    @torch.no_grad()
    def keep_mask(self, task_id: int) -> None:
        """m = 1[m_r > tau]: a bit per weight stays of the scores, two if ternary."""
        for layer in self.names:
            mask = self.mask(task_id, layer)
            self.masks.store(task_id, layer, *[mask > 0, mask < 0][: self.masks.n_bits])

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def while_learning(self, x: Any, task_id: int) -> Tensor:
        kept = self.finished.tensors
        weights: dict[str, Tensor] = {}
        for layer, name in self.names.items():
            scores, w = self.masks.score(task_id, layer), kept[name]
            weights[name] = masked_above(w, scores, self.threshold, w, self.gradient, self.ternary)
        return self.learn_with(x, weights)

    def task_weight(self, layer: str, kept: Tensor, task_id: int) -> Tensor:
        """W (.) m of a finished task."""
        return masked(kept, self.mask(task_id, layer))

    def mask(self, task_id: int, layer: str) -> Tensor:
        """A task's mask over a layer: 0 or 1, if ternary also -1; of the type and shape of its weight."""
        weight = self.finished.tensors[self.names[layer]]
        if not self.masks.scored(task_id):
            on = self.masks.stored(task_id, layer, weight.shape)  # (n_bits, *shape)
            mask = on[0].to(weight.dtype)
            return mask.masked_fill_(on[1], -1) if self.ternary else mask
        return (ternarize if self.ternary else binarize)(self.masks.score(task_id, layer), self.threshold)

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def grow(self, task: TaskRecord) -> None:
        if not len(self.finished.tensors):  # from here on nothing in the backbone moves
            self.untrained = is_initial(self.backbone)
            self.keep()
        super().grow(task)

    def capacity(self) -> dict[str, Any]:
        """As of every method, and: "maskable", the number of weights that each task has a mask over; "untrained",
        whether the network still had its first, random weights when it was fixed; "weights" in each finished one of
        "tasks", how many are on; "layers", by name, each with its "weights" and "tasks": how many each has on.
        """
        capacity = super().capacity()
        weights = self.weights()
        capacity["maskable"] = sum(weight.numel() for weight in weights.values())
        capacity["untrained"] = self.untrained
        capacity["layers"] = {
            layer: {
                "weights": weight.numel(),
                "tasks": {t: int(self.mask(t, layer).count_nonzero()) for t in self.learned},
            }
            for layer, weight in weights.items()
        }
        for t in self.learned:
            capacity["tasks"][t]["weights"] = sum(layer["tasks"][t] for layer in capacity["layers"].values())
        return capacity
