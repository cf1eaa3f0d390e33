"""Hard Attention to the Task: Serra, Surís, Miron and Karatzoglou 2018, arXiv 1801.01423.

Each task learns which units it uses: a score for every hidden unit, turned by a sigmoid into a gate on the unit's
output. The sigmoid sharpens while the task is learned; when it ends, the gates are 0 or 1, and what goes into the units
that the task uses never moves again. Later tasks may read those units and claim free ones.

The file reads from top to bottom: the equations, then the learner. Where the units of a network are is found out in
`minicl.isolation.graph`, and how they are gated, ordered and cut out is in `minicl.isolation.units`. Where it departs
from the authors' code (https://github.com/joansj/hat/blob/6fd0b9d/src/approaches/hat.py#L106-L152), the docstring of
`HAT` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .. import checks
from ..freezing import FrozenEntries, every_name
from ..learner import Fit, TaskRecord
from ..tasks import Task
from . import units
from .gated import GatedNetwork

# ---- the equations ---------------------------------------------------------------------------------------------------

FLOOR = 2.0**-40
"""The lowest value of a gate. The sigmoid of -88 and below is no normal float32 any more, and a CPU multiplies such
numbers up to a hundred times slower, and products of two gates reach that range sooner. 2^-40 is far below the rounding
error of the gates that count, and its square is a normal number."""
_FLOOR = torch.tensor(FLOOR)  # a tensor of no dimensions takes the type of what it meets


def attention(scores: Float[Tensor, "*units"], temperature: float) -> Float[Tensor, "*units"]:
    """`a_l = sigma(e_l / tau)`, the paper's Eq. 1, which writes `sigma(s e_l)` with `s = 1 / tau`.

    In float32, 2^-40 is added (see `FLOOR`): gates above 2^-15 are the sigmoid's to the bit, none is below 2^-40, and
    the gradient is the sigmoid's everywhere.

    Args:
        scores: one per unit.
        temperature: tau > 0, as `temperature` returns it; small is sharp.
    """
    gate = torch.sigmoid(scores / temperature)
    return gate if gate.dtype == torch.float64 else gate + _FLOOR


def temperature(progress: float, s_max: float) -> float:
    """The temperature `tau = 1 / s`, `s = 1/s_max + (s_max - 1/s_max) (b - 1) / (B - 1)` for batch b of B.

    It is the paper's Eq. 3, whose s rises from 1/s_max to s_max through every epoch; so tau falls from s_max to
    1/s_max, both included, and `attention(scores, temperature(progress, s_max))` is the paper's `sigma(s e)`.

    Args:
        progress: (b - 1) / (B - 1), from 0 at the first batch of an epoch to 1 at the last.
        s_max: the largest s, more than 1; the s of testing.

    Raises:
        ValueError: progress outside [0, 1] (a batch counted from the wrong end would make s negative), s_max <= 1.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress!r}; allowed: 0 (first batch of an epoch) to 1 (last batch)")
    checks.number("s_max", s_max, 1, beyond=True)
    return 1 / ((1 - progress) / s_max + progress * s_max)


def accumulate(mask: Shaped[Tensor, "*units"], previous: Shaped[Tensor, "*units"] | None) -> Shaped[Tensor, "*units"]:
    """Below the paper's Eq. 1: `a_l^{<=t} = max(a_l^t, a_l^{<=t-1})`, for binary masks OR. None: no earlier task."""
    return mask if previous is None else torch.maximum(mask, previous)


def protect_weight(
    mask_out: Shaped[Tensor, " n_out"], mask_in: Shaped[Tensor, " n_in"] | None = None
) -> Float[Tensor, "n_out ..."]:
    """`1 - min(a_{l,i}^{<=t}, a_{l-1,j}^{<=t})`: the factor on the gradient of a weight j to i, the paper's Eq. 2.

    Args:
        mask_out: accumulated mask of the units that the weights lead to, i.
        mask_in: accumulated mask of the units that they come from, j; None for the first layer and for biases, where
            the output mask decides alone.

    Returns:
        Factors from 0 (must not move) to 1 (free), shape (n_out, n_in), or (n_out,) without `mask_in`.
    """
    if mask_in is None:
        return 1 - 1.0 * mask_out  # 1.0 *: masks may be bool
    return 1 - 1.0 * torch.minimum(mask_out[:, None], mask_in[None, :])


def compensate(
    grad: Float[Tensor, "*units"], scores: Float[Tensor, "*units"], temperature: float, s_max: float
) -> Float[Tensor, "*units"]:
    """Gradient compensation: `q' = s_max [cosh(s e) + 1] / (s [cosh(e) + 1]) q`, with `s = 1 / T`.

    A sharp sigmoid is flat nearly everywhere, so scores would hardly move; q' has the shape that a sigmoid with s = 1
    gives. As in the authors' code, s e is clamped to [-50, 50] inside cosh.

    Args:
        grad: q, the gradient of the loss with respect to the scores.
        scores: e.
        temperature: T, the temperature at which q was computed.
        s_max: the largest s.
    """
    sharp = (scores / temperature).clamp_(-50, 50).cosh_()
    raised = torch.addcmul(grad, grad, sharp)  # (sharp + 1) q
    return raised.div_(torch.cosh(scores).add_(1)).mul_(s_max * temperature)


def sparsity(
    masks: Sequence[Shaped[Tensor, " _"]], previous: Sequence[Shaped[Tensor, " _"]] | None = None
) -> Float[Tensor, ""]:
    """The paper's Eq. 5: `R = sum_l sum_i a_{l,i}^t (1 - a_{l,i}^{<t}) / sum_l sum_i (1 - a_{l,i}^{<t})`.

    The share of the free units that the task takes: one ratio over all layers together, from 0 to 1. Units that earlier
    tasks use cost nothing. Zero where no unit is free.

    Args:
        masks: a^t of each layer.
        previous: a^{<t} of each layer; None before the second task.
    """
    a = torch.cat(list(masks)) if len(masks) > 1 else masks[0]
    if previous is None:
        return a.mean()
    used = torch.cat(list(previous)) if len(previous) > 1 else previous[0]
    free = 1 - (used if used.is_floating_point() else used.to(a.dtype))
    return torch.dot(a, free / free.sum().clamp(min=torch.finfo(free.dtype).tiny))


def masked_step(
    theta: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], mask: Float[Tensor, "*any"], lr: float
) -> Float[Tensor, "*shape"]:
    """A common misreading of the paper's Eq. 2: `theta <- theta - eta * grad L (.) a~`, broadcast as PyTorch does it.

    `HAT` does not use it, because it protects nothing: it slows down the weights of units that the *current* task
    leaves out. The chapter measures what it does.
    """
    return theta - lr * grad * mask


# ---- the learner -----------------------------------------------------------------------------------------------------

PERIOD = 20
"""Steps in which s rises to s_max, where a loop does not say how far it is."""


@dataclass
class _Training:
    """What matters while one task is learned."""

    scores: nn.Parameter
    sparsity_gradient: Tensor  # c R is linear in the masks: what each unit adds to it, all layers in one vector
    temperature: float
    fresh: dict[str, Tensor]  # what norms start with in every task
    gates: Tensor | None = None  # the attention of the batch at hand, for the sparsity term
    brackets: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)  # of the bracket, where masks are soft
    steps: int = 0
    told: tuple[float, int] | None = None  # the progress that the loop spoke of last, and the step at which it did
    stuck: bool = False  # whether it says the same in every step


class HAT(GatedNetwork):
    """Hard Attention to the Task around `backbone`, any network with linear layers or convolutions.

    Behind every layer with units stands a gate. Its mask goes with the units through activations, pooling and the like;
    where branches meet in a sum it is the union of theirs, in a concatenation they stand side by side. Where something
    is not understood (recurrence, a function of one's own), all units count as read; so they do in a network whose
    way depends on values (`if h.sum() > 0`). Norms, and whatever has at most one axis and leads to no units, are kept
    once per task; larger parameters of that kind (embeddings, recurrent layers) are trained with the first task and
    frozen after it: see `capacity()["frozen"]`.

    In `nn.MultiheadAttention` each head is a unit, and so is each entry of what out_proj makes: `capacity()["layers"]`
    has them as "path.heads" and "path.out_proj". A gate on a head stands before out_proj, so closed heads may attend to
    what they like: rows of the input projections and columns of out_proj belong to their head. Where attention is
    called twice, shares a weight, has a computed one, or has its attention weights read, it is not understood, and
    frozen after the first task. Attention that is written with linear layers has their units, one for each entry of
    query, key and value; what reads the result of `scaled_dot_product_attention` counts as reading all of them.

    Differences from the authors' code: masks become binary when a task ends, `1[e > 0]`; what they
    claim is put back after every step, so that momentum, Adam and weight decay cannot move it; BatchNorm and PReLU are
    kept once per task (a task starts with those of the given backbone); gates stand behind activation, dropout and
    pooling, right before something mixes the units (behind pooling a gate costs less, and pooling a gated map or gating
    a pooled one is the same). Finished tasks are answered from weights of their own, in evaluation mode: nothing that
    others write into the backbone reaches them.

    When a task ends the units of a layer are put in order, unless a sum or the like ties them: claimed ones first, in
    the order in which they were claimed. The network computes the same, and what is protected is the upper left corner
    of a weight matrix.

    Args:
        backbone: any module with a Linear or Conv layer.
        s_max: how sharp the sigmoid gets, more than 1.
        c: weight of the sparsity term (the paper's Eq. 4), not negative; larger leaves more units free.
        binary: make the masks 0 or 1 when a task ends. False keeps the paper's soft masks, through which later tasks
            change earlier ones a little.
        compensation: rescale the gradients of the scores (`compensate`).
        init: how scores start, "normal" for N(0, 1), or "uniform" for U(0, 2), every unit on, with which the paper
            compresses a network (use a larger c, such as 1.5).

    Raises:
        TypeError: a backbone that is no `nn.Module`.
        ValueError: a backbone without a layer that could be gated, s_max <= 1, c < 0, unknown init.
    """

    needs_training_mode = True
    lesson_attributes = ("_training.steps", "_training.told", "_training.stuck")

    def __init__(
        self,
        backbone: nn.Module,
        s_max: float = 400.0,
        c: float = 0.75,
        binary: bool = True,
        compensation: bool = True,
        init: str = "normal",
    ) -> None:
        s_max, c = checks.number("s_max", s_max, 1, beyond=True), checks.number("c", c)
        checks.one_of("init", init, ("normal", "uniform"))
        super().__init__(backbone, s_max=s_max, c=c, binary=binary, compensation=compensation, init=init)
        self.s_max, self.c, self.binary, self.compensation, self.init = s_max, c, binary, compensation, init
        self.scores = nn.ParameterDict()  # of the task being learned: all layers in one vector
        self._training: _Training | None = None
        self._frozen = FrozenEntries()

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        """Protect what earlier tasks claimed, train weights and mask together, make the mask binary and final."""
        self.protect_claimed(task.id)
        try:
            fit()
            self.after_step()  # also for a loop that forgot `protect`
            self.binarize(task.id)
        finally:
            self._training = None
            self._frozen.release()
            self.gates.detach()

    @torch.no_grad()
    def protect_claimed(self, task_id: int) -> None:
        """The paper's Eq. 2 for the task to come: work out, once, what must not move, and remember it."""
        self.put_back()
        used, tensors = self.used(), every_name(self.backbone)
        fresh = {name: tensors[name].detach().clone() for name in self.graph.fresh}
        gradient = self._sparsity_gradient(torch.cat(used))
        self._training = _Training(self.scores[str(task_id)], gradient, 1 / self.s_max, fresh)
        self.gates.attach(self.backbone, self.graph)
        values = self.graph.evaluate(used)
        for weights in self.graph.weights:
            parameter = self.backbone.get_parameter(weights.name)
            bracket = weights.pairs(values, protect_weight)
            if self.binary:
                units.hold(self._frozen, parameter, bracket == 0)
            else:
                self._training.brackets.append((parameter, units.aligned(bracket, parameter)))

    def _sparsity_gradient(self, previous: Tensor) -> Tensor:
        """The gradient of `c R` with respect to the task's mask: the same in every step, since R is linear in it."""
        with torch.enable_grad():
            mask = torch.zeros_like(previous, dtype=self._score_type, requires_grad=True)
            (gradient,) = torch.autograd.grad(self.c * sparsity([mask], [previous.to(mask.dtype)]), mask)
        return gradient

    @torch.no_grad()
    def binarize(self, task_id: int) -> None:
        """Make the task's mask binary and final, put the units in order, and remember what is the task's own."""
        assert self._training is not None
        self._frozen.restore(always=True)
        scores = self.scores[str(task_id)].detach()
        if self.binary:
            masks, empty = zip(*(_binary(e) for e in scores.split(self.sizes)), strict=True)
            for layer, died in zip(self.graph.layers, empty, strict=True):
                if died:
                    warnings.warn(
                        f"task {task_id} switched off every unit of layer {layer.path!r}; the one with the highest "
                        "score was kept, so the task goes on, but poorly. Use a smaller c, or train for longer",
                        stacklevel=5,
                    )
            scores = units.packed(torch.cat(self.in_order(task_id, list(masks), self._training.fresh)))
        self.stored_masks[str(task_id)] = scores.clone()
        self.norms.store(task_id, self.backbone)
        tensors = every_name(self.backbone)
        for name, value in self._training.fresh.items():
            tensors[name].copy_(value)
        del self.scores[str(task_id)]

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        """The paper's Eq. 4: `L' = L + c R`, cross-entropy and the share of free units that the task takes."""
        training = self._training
        loss = super().loss(x, y, task_id)
        if training is None or training.gates is None:
            return loss
        gates, training.gates = training.gates, None
        return loss + torch.dot(gates, training.sparsity_gradient)

    def mask(self, task_id: int) -> Tensor:
        """All layers in one vector: while the task is learned, the attention of the moment, through which gradients
        flow; otherwise the mask that is tested, binary, or the attention at s_max."""
        training = self._training
        if training is not None and self.training and task_id == self._current:
            if training.told is None:
                training.temperature = self._by_count(training)
            training.gates = attention(training.scores, training.temperature)
            return training.gates
        if self.tasks[task_id].finished:
            kept = self.stored_masks[str(task_id)]
            return units.unpacked(kept, sum(self.sizes)) if self.binary else attention(kept, 1 / self.s_max)
        scores = self.scores[str(task_id)].detach()
        if self.binary:
            return torch.cat([_binary(e)[0] for e in scores.split(self.sizes)])
        return attention(scores, 1 / self.s_max)

    def used(self, but: int | None = None) -> list[Float[Tensor, " _"]]:
        """The accumulated mask `a^{<=t}` of each layer, over all finished tasks (`but` one): 0 for free units."""
        used = self._like.new_zeros(sum(self.sizes))
        for t in map(int, self.stored_masks):
            if t != but:
                used = accumulate(self.mask(t).to(used.dtype), used)
        return list(used.detach().split(self.sizes))

    # ---- what must not move ------------------------------------------------------------------------------------------

    def before_step(self, progress: float) -> None:
        """Sharpen (the paper's Eq. 3). Where progress stays the same, or is never told, s rises over every 20 steps."""
        value, training = temperature(progress, self.s_max), self._training
        if training is not None:
            if training.told is not None and training.steps > training.told[1]:
                training.stuck = progress == training.told[0]
            training.told = progress, training.steps
            training.temperature = self._by_count(training) if training.stuck else value

    def _by_count(self, training: _Training) -> float:
        return temperature(training.steps % PERIOD / (PERIOD - 1), self.s_max)

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        self._frozen.watch(optimizer)

    def edit_gradients(self) -> None:
        """The paper's Eq. 2 on the weights, and the compensation on the scores."""
        training = self._training
        if training is None:
            return
        if training.told is None and not training.steps:
            warnings.warn(
                "this loop does not say how far it is, so HAT sharpens its masks over every "
                f"{PERIOD} steps; call learner.before_step(progress) before each batch, from 0 to 1 in each epoch",
                stacklevel=2,
            )
        self._frozen.edit_gradients()
        for parameter, bracket in training.brackets:
            if parameter.grad is not None:
                parameter.grad.mul_(bracket)
        scores = training.scores
        training.steps += 1
        if scores.grad is not None and self.compensation:
            scores.grad = compensate(scores.grad, scores.detach(), training.temperature, self.s_max)

    def after_step(self) -> None:
        """Put back what momentum, Adam or weight decay moved, and clamp the scores to [-6, 6]."""
        self._frozen.restore()
        if self._training is not None:
            self._training.scores.detach().clamp_(-6, 6)

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    @property
    def _score_type(self) -> torch.dtype:
        return torch.float32 if self._like.element_size() < 4 else self._like.dtype

    def grow(self, task: TaskRecord) -> None:
        if not task.finished and len(self.stored_masks) and all(bool((used > 0.5).all()) for used in self.used()):
            counts = (f"layer {layer.path!r} has {layer.units} units, all claimed" for layer in self.graph.layers)
            raise ValueError(
                f"no unit of the network is free for task {task.id}: {', '.join(counts)}. "
                "Use a wider backbone, or a larger c, with which each task takes fewer units"
            )
        super().grow(task)
        if not task.finished:  # otherwise a file is being loaded, which will fill in the values
            scores = self._like.new_empty(sum(self.sizes), dtype=self._score_type)
            self.scores[str(task.id)] = nn.Parameter(
                scores.normal_() if self.init == "normal" else scores.uniform_(0, 2)
            )


def _binary(scores: Tensor) -> tuple[Tensor, bool]:
    """`1[e > 0]`, and whether that left no unit; then the one with the highest score is kept all the same."""
    mask = scores > 0
    empty = not bool(mask.any())
    if empty:
        mask[scores.argmax()] = True
    return mask, empty
