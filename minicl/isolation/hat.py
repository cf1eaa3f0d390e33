"""Hard Attention to the Task: Serra, Surís, Miron and Karatzoglou 2018, arXiv 1801.01423.

Each task learns which units it uses: a score for every hidden unit, turned by a sigmoid into a gate on the unit's
output. The sigmoid sharpens while the task is learned; when it ends, the gates are 0 or 1, and what goes into the units
that the task uses never moves again. Later tasks may read those units and claim free ones.

The file reads from top to bottom: the equations, then the learner. Which units a network has, and how they are gated
and cut out, is in `minicl.isolation.units`. Where it departs from the authors' code (github.com/joansj/hat), the
docstring of `HAT` says so.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from ..learner import Fit, Learner, TaskRecord, freeze, plain
from ..tasks import Task
from . import units

# ---- the equations ---------------------------------------------------------------------------------------------------

FLOOR = 2.0**-40
"""The lowest value of a gate. The sigmoid of -88 and below is no normal float32 any more, and a CPU multiplies such
numbers up to a hundred times slower, and products of two gates reach that range sooner. 2^-40 is far below the rounding
error of the gates that count, and its square is a normal number."""
_FLOOR = torch.tensor(FLOOR)  # a tensor of no dimensions takes the type of what it meets


def attention(scores: Float[Tensor, "*units"], temperature: float) -> Float[Tensor, "*units"]:
    """Eq. 1 (the source's mask): `a~_l = sigma(s_l / T)`, in the paper's letters `a_l = sigma(s e_l)` with `s = 1 / T`.

    In float32, 2^-40 is added (see `FLOOR`): gates above 2^-15 are the sigmoid's to the bit, none is below 2^-40, and
    the gradient is the sigmoid's everywhere.

    Args:
        scores: one a unit.
        temperature: T > 0, as `temperature` returns it; small is sharp.
    """
    gate = torch.sigmoid(scores / temperature)
    return gate if gate.dtype == torch.float64 else gate + _FLOOR


def temperature(progress: float, s_max: float) -> float:
    """Eq. 3, the temperature `T = 1 / s`, where `s = 1/s_max + (s_max - 1/s_max) (b - 1) / (B - 1)` for batch b of B.

    The paper's s rises from 1/s_max to s_max through every epoch; so T falls from s_max to 1/s_max, both included, and
    `attention(scores, temperature(progress, s_max))` is the paper's `sigma(s e)`.

    Args:
        progress: (b - 1) / (B - 1), from 0 at the first batch of an epoch to 1 at the last.
        s_max: the largest s, more than 1; the s of testing.

    Raises:
        ValueError: progress outside [0, 1] (a batch counted from the wrong end would make s negative), s_max <= 1.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress!r}; allowed: 0 (first batch of an epoch) to 1 (last batch)")
    _check_s_max(s_max)
    return 1 / ((1 - progress) / s_max + progress * s_max)


def accumulate(mask: Shaped[Tensor, "*units"], previous: Shaped[Tensor, "*units"] | None) -> Shaped[Tensor, "*units"]:
    """Below Eq. 1: `a_l^{<=t} = max(a_l^t, a_l^{<=t-1})`, unit by unit; for binary masks, OR. None: no earlier task."""
    return mask if previous is None else torch.maximum(mask, previous)


def protect_weight(
    mask_out: Shaped[Tensor, " n_out"], mask_in: Shaped[Tensor, " n_in"] | None = None
) -> Float[Tensor, "n_out ..."]:
    """The bracket of Eq. 2, `1 - min(a_{l,i}^{<=t}, a_{l-1,j}^{<=t})`: the factor on the gradient of a weight j to i.

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
    """Eq. 5: `R = sum_l sum_i a_{l,i}^t (1 - a_{l,i}^{<t}) / sum_l sum_i (1 - a_{l,i}^{<t})`.

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
    """The source's update, verbatim: `theta <- theta - eta * grad L (.) a~`, broadcast as PyTorch does it.

    `HAT` does not use it, because it protects nothing: it slows down the weights of units that the *current* task
    leaves out. The chapter measures what it does.
    """
    return theta - lr * grad * mask


# ---- the learner -----------------------------------------------------------------------------------------------------


@dataclass
class _Corner:
    """The part of a parameter that must not move, the values it keeps, and a view of it while that is valid."""

    parameter: nn.Parameter
    sizes: tuple[int, ...]
    values: Tensor
    view: Tensor
    momentum: Tensor | None = None  # the buffer of SGD's momentum that holds zeros in this corner

    def stop(self, optimizer: torch.optim.Optimizer) -> None:
        """Take SGD's momentum away: with zero gradients it stays zero, until the buffer is another one."""
        momentum = optimizer.state.get(self.parameter, {}).get("momentum_buffer")
        if momentum is not self.momentum and momentum is not None:
            _corner(momentum, self.sizes).zero_()
        self.momentum = momentum

    def put_back(self) -> None:
        if self.view.data_ptr() != self.parameter.data_ptr():  # the parameter was moved to other memory
            self.view = _corner(self.parameter.detach(), self.sizes)
        self.view.copy_(self.values)


@dataclass
class _Lesson:
    """What matters while one task is learned."""

    scores: nn.Parameter
    price: Tensor  # c R is linear in the masks: what each unit adds to it, all layers in one vector
    temperature: float
    nothing_moved: bool = False  # by the optimiser's step that is under way, of what is protected
    gates: Tensor | None = None  # the attention of the batch at hand, for the sparsity term
    corners: list[_Corner] = field(default_factory=list)
    brackets: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)

    def protect(self, parameter: nn.Parameter, bracket: Tensor, binary: bool) -> None:
        """Remember the bracket of Eq. 2. Of binary masks its zeros fill a corner, since units are in order."""
        if not binary:
            self.brackets.append((parameter, bracket.view(*bracket.shape, *[1] * (parameter.ndim - bracket.ndim))))
            return
        still = bracket == 0
        sides = (still,) if still.ndim == 1 else (still.any(1), still.any(0))
        sizes = tuple(int(side.sum()) for side in sides)
        corner = _corner(still, sizes)
        assert int(still.sum()) == int(corner.sum()) == corner.numel(), "claimed units are not in order"
        if sizes[0]:
            sizes = sizes[:1] if len(sizes) == 2 and sizes[1] == still.shape[1] else sizes  # whole rows
            view = _corner(parameter.detach(), sizes)
            self.corners.append(_Corner(parameter, sizes, view.clone(), view))


class HAT(Learner):
    """Hard Attention to the Task around `backbone`, an `nn.Sequential` of layers whose units can be told apart.

    Differences from the authors' code: masks become binary when a task ends, as the source says, `1[e > 0]`; what they
    claim is put back after every step, so that momentum, Adam and weight decay cannot move it; BatchNorm and PReLU are
    kept once a task (a task starts with a copy of the backbone's, which is frozen when it ends, statistics included);
    gates stand behind activation, dropout and pooling, right before the next layer mixes the units (behind pooling a
    gate costs less, and pooling a gated map or gating a pooled one is the same).

    When a task ends the units of each layer are put in order: claimed ones first, in the order in which they were
    claimed. The network computes the same, and what is protected is the upper left corner of every weight matrix.

    Args:
        backbone: Linear, Conv1d to Conv3d, activations, pooling, BatchNorm, dropout, Flatten, in an `nn.Sequential`.
        s_max: how sharp the sigmoid gets, more than 1.
        c: weight of the sparsity term (Eq. 4), not negative; larger leaves more units free.
        binary: make the masks 0 or 1 when a task ends. False keeps the paper's soft masks, through which later tasks
            change earlier ones a little.
        compensation: rescale the gradients of the scores (`compensate`).
        init: how scores start, "normal" for N(0, 1), or "uniform" for U(0, 2), every unit on, with which the paper
            compresses a network (use a larger c, such as 1.5).

    Raises:
        TypeError: a backbone that is no `nn.Module`.
        ValueError: a layer that cannot be gated (named), s_max <= 1, c < 0, unknown init.
    """

    needs_task_id = True

    def __init__(
        self,
        backbone: nn.Module,
        s_max: float = 400.0,
        c: float = 0.75,
        binary: bool = True,
        compensation: bool = True,
        init: str = "normal",
    ) -> None:
        parts = units.blocks_of(backbone) if isinstance(backbone, nn.Module) else ([], [], [])  # or a TypeError follows
        super().__init__(backbone, s_max=s_max, c=c, binary=binary, compensation=compensation, init=init)
        _check_s_max(s_max)
        if not 0 <= c < math.inf:
            raise ValueError(f"c is {c!r}; allowed: numbers from 0 up")
        if init not in ("normal", "uniform"):
            raise ValueError(f"init is {init!r}; allowed: 'normal' for N(0, 1), 'uniform' for U(0, 2)")
        self.s_max, self.c, self.binary, self.compensation, self.init = s_max, c, binary, compensation, init
        self._stem, self._blocks, self._templates = parts
        self.sizes = [block.units for block in self._blocks]
        self.own = nn.ModuleDict()
        self.scores = nn.ParameterDict()  # of the task being learned: all layers in one vector
        self._lesson: _Lesson | None = None

    def _probe(self, task: Task) -> int:
        shape, first = tuple(task.example.shape[1:]), self._blocks[0]
        flat = any(isinstance(module, nn.Flatten) for module in self._stem)
        if not flat and len(shape) != first.layer.weight.ndim - 1:
            raise ValueError(
                f"inputs of shape {shape} do not suit layer {first.name!r}, {type(first.layer).__name__}; "
                "for a Linear layer put an nn.Flatten before it"
            )
        return super()._probe(task)

    def grow(self, task: TaskRecord) -> None:
        if not task.finished and self._full():
            raise ValueError(
                f"no unit of the network is free for task {task.id}: {self._counts()}. "
                "Use a wider backbone, or a larger c, with which each task takes fewer units"
            )
        super().grow(task)
        self.own[str(task.id)] = nn.ModuleList(copy.deepcopy(module) for module in self._templates)
        if task.finished:  # a file is being loaded, which will fill in the values
            self._keep(task.id, self._place.new_zeros(sum(self.sizes)))
        else:
            scores = self._place.new_empty(sum(self.sizes))
            self.scores[str(task.id)] = nn.Parameter(
                scores.normal_() if self.init == "normal" else scores.uniform_(0, 2)
            )

    def learn(self, task: Task, fit: Fit) -> None:
        self.lock(task.id)  # what earlier tasks claimed cannot move
        try:
            fit()
            self.after_step()  # also for a loop that forgot `protect`
            self.fix(task.id)  # the mask becomes binary, and final
        finally:
            self._lesson = None

    # ---- forward -----------------------------------------------------------------------------------------------------

    def features(self, x: Tensor, task_id: int | None) -> Tensor:
        assert task_id is not None
        finished = self.tasks[task_id].finished
        own: Any = self.own[str(task_id)] if self._templates else ()
        h, masks = x, self._masks(task_id)
        binary = masks[0].dtype == torch.bool
        for module in self._stem:
            h = (own[module] if isinstance(module, int) else module)(h)
        inputs: Tensor | None = None
        for block, mask in zip(self._blocks, masks, strict=True):
            h = block.layer(h) if inputs is None else units.without(block.layer, h, inputs)
            for module in block.after:
                if isinstance(module, int):
                    h = own[module](h)
                elif not (finished and isinstance(module, units.DROPOUTS)):  # what is learned stays in evaluation mode
                    h = module(h)
            h = h * mask if block.flat and not binary else units.gated(h, mask)
            inputs = mask if binary else None
        return h

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        """Eq. 4: `L' = L + c R`, cross-entropy and the share of free units that the task takes."""
        lesson = self._lesson
        loss = super().loss(x, y, task_id)
        if lesson is None or lesson.gates is None:
            return loss
        gates, lesson.gates = lesson.gates, None
        return loss + torch.dot(gates, lesson.price)

    def _masks(self, task_id: int) -> Sequence[Tensor]:
        """One mask a layer: while the task is learned, the attention of the moment, through which gradients flow."""
        lesson = self._lesson
        if lesson is not None and self.training and task_id == self._current:
            lesson.gates = attention(lesson.scores, lesson.temperature)
            return lesson.gates.split(self.sizes)
        return self._final(task_id).split(self.sizes)

    def masks(self, task_id: int) -> list[Float[Tensor, " _"] | Bool[Tensor, " _"]]:
        """The task's mask of each layer, shape (units,): bool where masks are binary, otherwise from 0 to 1.

        Raises:
            ValueError: a task id that has no mask.
        """
        if not isinstance(task_id, int) or task_id not in self.tasks:
            raise ValueError(
                f"the task id is {task_id!r}, which has no mask; allowed: {', '.join(map(str, self.tasks)) or 'none'}"
            )
        return list(self._final(task_id).detach().split(self.sizes))

    def _final(self, task_id: int) -> Tensor:
        """The task's mask as it is tested, all layers in one vector: binary, or the attention at s_max."""
        if self.tasks[task_id].finished:
            kept = getattr(self, f"mask_{task_id}")
            return units.unpacked(kept, sum(self.sizes)) if self.binary else attention(kept, 1 / self.s_max)
        scores = self.scores[str(task_id)].detach()
        return (
            torch.cat([_harden(e)[0] for e in scores.split(self.sizes)])
            if self.binary
            else attention(scores, 1 / self.s_max)
        )

    # ---- protection --------------------------------------------------------------------------------------------------

    def used(self) -> list[Float[Tensor, " _"]]:
        """The accumulated mask `a^{<=t}` of each layer, over all finished tasks: 0 for free units."""
        used: Tensor | None = None
        for t in self.learned:
            used = accumulate(self._final(t), used)
        if used is None:
            used = self._place.new_zeros(sum(self.sizes))
        return list(used.detach().to(self._place.dtype).split(self.sizes))

    @torch.no_grad()
    def lock(self, task_id: int) -> None:
        """Eq. 2 for the task to come: work out, once, what must not move, and remember it."""
        used = self.used()
        lesson = _Lesson(self.scores[str(task_id)], self._price(torch.cat(used)), 1 / self.s_max)
        for block, mask_out, mask_in in zip(self._blocks, used, [None, *used], strict=False):
            weight, bias = block.layer.weight, block.layer.bias
            bracket = protect_weight(mask_out, None if mask_in is None else units.spread(mask_in, weight.shape[1]))
            lesson.protect(weight, bracket, self.binary)
            if bias is not None:
                lesson.protect(bias, protect_weight(mask_out), self.binary)
        self._lesson = lesson

    def _price(self, previous: Tensor) -> Tensor:
        """The gradient of `c R` with respect to the task's mask: constant through a lesson, since R is linear in it."""
        with torch.enable_grad():
            mask = torch.zeros_like(previous, requires_grad=True)
            (price,) = torch.autograd.grad(self.c * sparsity([mask], [previous]), mask)
        return price

    def before_step(self, progress: float) -> None:
        """Eq. 3: sharpen. A loop that never calls this trains at s_max throughout, and masks stay nearly as drawn."""
        value = temperature(progress, self.s_max)
        if self._lesson is not None:
            self._lesson.temperature = value

    def edit_gradients(self) -> None:
        """Eq. 2 on the weights, and the compensation on the scores."""
        lesson = self._lesson
        if lesson is None:
            return
        for corner in lesson.corners:
            grad = corner.parameter.grad
            if grad is not None:
                _corner(grad, corner.sizes).zero_()
        for parameter, bracket in lesson.brackets:
            if parameter.grad is not None:
                parameter.grad.mul_(bracket)
        scores = lesson.scores
        if scores.grad is not None and self.compensation:
            scores.grad = compensate(scores.grad, scores.detach(), lesson.temperature, self.s_max)

    def after_step(self) -> None:
        """Put back what momentum, Adam or weight decay moved, and clamp the scores to [-6, 6]."""
        lesson = self._lesson
        if lesson is not None:
            for corner in () if lesson.nothing_moved else lesson.corners:
                corner.put_back()
            lesson.scores.detach().clamp_(-6, 6)
            lesson.nothing_moved = False

    def _before_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        # SGD without momentum adds -lr * 0 to what is protected: the one case in which nothing needs to be put back.
        lesson = self._lesson
        if lesson is not None and type(optimizer) is torch.optim.SGD:
            groups = optimizer.param_groups
            lesson.nothing_moved = not any([group["weight_decay"] for group in groups])
            if lesson.nothing_moved and any([group["momentum"] for group in groups]):
                for corner in lesson.corners:
                    corner.stop(optimizer)
        return super()._before_optimizer_step(optimizer, args, kwargs)

    # ---- the end of a task -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fix(self, task_id: int) -> None:
        """Make the task's mask binary and final, put the units in order, and freeze what is the task's own."""
        scores = self.scores[str(task_id)].detach()
        if self.binary:
            masks, empty = zip(*(_harden(e) for e in scores.split(self.sizes)), strict=True)
            for block, died in zip(self._blocks, empty, strict=True):
                if died:
                    warnings.warn(
                        f"task {task_id} switched off every unit of layer {block.name!r}; the one with the highest "
                        "score was kept, so the task goes on, but poorly. Use a smaller c, or train for longer",
                        stacklevel=5,
                    )
            scores = torch.cat(self._in_order(list(masks)))
        self._keep(task_id, scores)
        del self.scores[str(task_id)]
        freeze(self.heads[str(task_id)])
        freeze(self.own[str(task_id)])

    def _keep(self, task_id: int, values: Tensor) -> None:
        """Remember a finished task's mask: one bit a unit, or the scores of a soft mask."""
        self.register_buffer(f"mask_{task_id}", units.packed(values != 0) if self.binary else values.clone())

    def _in_order(self, masks: list[Tensor]) -> list[Tensor]:
        """Reorder each layer's units: claimed earlier (they stay where they are), claimed by this task, free."""
        heads: list[Any] = list(self.heads.values())
        readers = [[block.layer] for block in self._blocks[1:]] + [heads]
        for level, (block, used) in enumerate(zip(self._blocks, self.used(), strict=True)):
            order = torch.where(used > 0, 0, torch.where(masks[level], 1, 2)).argsort(stable=True)
            masks[level] = masks[level][order]
            collections: list[Any] = [self._templates, *self.own.values()]
            own = [copies[i] for copies in collections for i in block.after if isinstance(i, int)]
            for tensor in (value for module in (block.layer, *own) for value in module.state_dict().values()):
                if tensor.ndim and len(tensor) >= block.units:
                    tensor.copy_(tensor[units.places(order, len(tensor))])
            for reader in readers[level]:
                reader.weight.copy_(reader.weight[:, units.places(order, reader.weight.shape[1])])
        return masks

    def restored(self) -> None:
        for t in self.learned:
            freeze(self.heads[str(t)])
            freeze(self.own[str(t)])

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def capacity(self) -> dict[str, Any]:
        """As for every method, and "layers", by name: "units" in all, "claimed" by each task, "shared" by two or more
        tasks, and "free". Soft masks count from 0.5 up."""
        masks = {t: [a > 0.5 for a in self.masks(t)] for t in self.learned}
        layers = {}
        for level, block in enumerate(self._blocks):
            users = sum(
                (m[level].int() for m in masks.values()),
                torch.zeros(block.units, dtype=torch.int32, device=self.device),
            )
            layers[block.name] = {
                "units": block.units,
                "claimed": {t: int(m[level].sum()) for t, m in masks.items()},
                "shared": int((users > 1).sum()),
                "free": int((users == 0).sum()),
            }
        return {**super().capacity(), "layers": layers}

    def extra_bytes(self) -> int:
        """Bytes of the masks."""
        return sum(getattr(self, f"mask_{t}").nbytes for t in self.learned)

    def _full(self) -> bool:
        return all(bool((used > 0.5).all()) for used in self.used())

    def _counts(self) -> str:
        return ", ".join(f"layer {block.name!r} has {block.units} units, all claimed" for block in self._blocks)

    def export(self, task_id: int | None = None) -> nn.Module:
        """That task's network alone, without the units it does not use: a plain `nn.Sequential`, in evaluation mode.

        Its attribute `report` says what was gained: "parameters" and "parameters_before"; for a batch of 100, "seconds"
        and "seconds_before" (medians, measured now) and "speed_up". Soft masks leave no unit out; they are multiplied
        into the weights.

        Raises:
            ValueError: a task id that is missing or not learned.
        """
        t = self.check_finished(task_id)
        assert t is not None
        before = nn.Sequential(copy.deepcopy(self.backbone), copy.deepcopy(self.heads[str(t)])).eval()
        own: Any = self.own[str(t)]
        mask_in = None
        modules = [copy.deepcopy(own[m] if isinstance(m, int) else m) for m in self._stem]
        for block, mask in zip(self._blocks, self.masks(t), strict=True):
            modules.append(units.cut(block.layer, mask, mask_in))
            modules += [units.cut_own(own[m], mask) if isinstance(m, int) else copy.deepcopy(m) for m in block.after]
            mask_in = mask
        network = plain(nn.Sequential(*modules, units.cut(self.heads[str(t)], None, mask_in)))
        network.report = self._report(before, network)  # type: ignore[assignment]
        return network

    def _report(self, before: nn.Module, after: nn.Module) -> dict[str, float | None]:
        report: dict[str, float | None] = {
            "parameters": sum(p.numel() for p in after.parameters()),
            "parameters_before": sum(p.numel() for p in plain(before).parameters()),
            **dict.fromkeys(("seconds", "seconds_before", "speed_up")),
        }
        if self.input_shape is not None:
            x = self._place.new_zeros(100, *self.input_shape)
            pairs = [(units.seconds(before, x), units.seconds(after, x)) for _ in range(7)][2:]
            slow, quick = (sorted(times)[len(pairs) // 2] for times in zip(*pairs, strict=True))
            report.update(seconds=quick, seconds_before=slow, speed_up=slow / quick)
        return report


def _corner(tensor: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The first so many rows of a tensor, and the first so many columns, where there are two sizes."""
    return tensor.as_strided((*sizes, *tensor.shape[len(sizes) :]), tensor.stride())  # one call for both sides


def _check_s_max(s_max: float) -> None:
    if not 1 < s_max < math.inf:
        raise ValueError(f"s_max is {s_max!r}; allowed: numbers above 1, such as the paper's 400")


def _harden(scores: Tensor) -> tuple[Tensor, bool]:
    """`1[e > 0]`, and whether that left no unit; then the one with the highest score is kept all the same."""
    mask = scores > 0
    empty = not bool(mask.any())
    if empty:
        mask[scores.argmax()] = True
    return mask, empty
