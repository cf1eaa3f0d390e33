"""Synaptic Intelligence: Zenke, Poole and Ganguli 2017, arXiv 1703.04200.

A weight is important when its own movement brought the loss down. That is known for free, step by step, while training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks, distributed
from ..learner import Fit
from ..networks import no_sparse_gradients
from ..tasks import Task
from .quadratic import Names, QuadraticPenalty

# ---- the equations ---------------------------------------------------------------------------------------------------


def path_integral_step(
    omega: Float[Tensor, "*shape"], g: Float[Tensor, "*shape"], delta: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """omega_i <- omega_i - g_i dtheta_i: what this step of weight i took off the loss (the paper's Eq. 3). In place."""
    return omega.addcmul_(g, delta, value=-1)


def consolidated(omega: Float[Tensor, "*shape"], total: Float[Tensor, "*shape"], xi: float) -> Float[Tensor, "*shape"]:
    """What Omega_i gains: max(0, omega_i) / ((theta_i^end - theta_i^start)^2 + xi) (the paper's Eq. 5), at least 0."""
    return omega.clamp(min=0) / (total**2 + xi)


# ---- the learner -----------------------------------------------------------------------------------------------------


class SI(QuadraticPenalty):
    """Hold every weight by what its own movement took off the loss.

    L' = L + c sum_i Omega_i (theta_i - theta*_i)^2 (the paper's Eq. 4)

    Omega sums over tasks, theta* is the newest solution.

    The gradient in the path integral is that of the task's loss alone, without the penalty's, as backward finds it:
    clipping it afterwards changes the step, and leaves the integral what it is. Where torch.amp.GradScaler has
    multiplied the loss, the gradient of the step, which is unscaled, sets the length (clipped, if it was clipped). The
    weights of a head that other tasks train as well belong to the path.

    Args:
        backbone: any module.
        c: strength. On validation samples of digits 10 to 100 was best with Adam; with plain SGD and a large learning
            rate that much makes the weights swing, and the loss infinite.
        xi: damping, which keeps weights that hardly moved from becoming infinitely important.
        parameters: names of parameters that are held, or patterns of such ("*.lora_*"), or a function of a name; the
            others are free, and cost nothing. None for all that learn.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    def __init__(self, backbone: nn.Module, c: float = 0.1, xi: float = 0.1, parameters: Names = None) -> None:
        c, xi = checks.number("c", c), checks.number("xi", xi, beyond=True)
        no_sparse_gradients(backbone, "SI")
        super().__init__(backbone, c, parameters, c=c, xi=xi)
        self.c, self.xi = c, xi
        self.path: Path | None = None  # while a task is learned

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        self.path = Path(self.shared())
        hooks = [
            theta.register_post_accumulate_grad_hook(partial(self._record_gradient, i))
            for i, theta in enumerate(self.path.theta)
        ]
        try:
            super().learn(task, fit)
        finally:
            self.path = None
            for hook in hooks:
                hook.remove()

    def _record_gradient(self, i: int, theta: Tensor) -> None:
        """Backward calls this when it has added to the gradient of a parameter, and nobody has clipped it yet."""
        assert self.path is not None
        self.path.record_gradient(i, None if self.merged is None else self.merged.gradient_of(theta))

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        loss = super().loss(x, y, task_id)
        if self.path is not None and loss.requires_grad:
            loss.register_hook(self.path.see_scale)
        return loss

    # ---- around a step -----------------------------------------------------------------------------------------------

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        if self.path is not None:
            self.path.unscale()

    def after_step(self) -> None:
        if self.path is not None:
            self.path.step()

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def capacity(self) -> dict[str, Any]:
        """As of every method, and "bytes_while_learning": the penalty, and the path: four numbers per weight."""
        capacity = super().capacity()
        if self.learned:
            capacity["bytes_while_learning"] += 4 * sum(parameter.nbytes for parameter in self.shared().values())
        return capacity

    def importance(self, task: Task) -> dict[str, Tensor]:
        assert self.path is not None
        return self.path.importance(self.xi)


# ---- the path --------------------------------------------------------------------------------------------------------


class Path(nn.Module):
    """The way that the parameters take through a task, and what each of them took off the loss on it.

    Everything is kept in one long vector of all parameters. The vectors are buffers, so that early stopping, which goes
    back to the best epoch by `load_state_dict`, goes back on the path as well.
    """

    start: Tensor
    before: Tensor
    omega: Tensor

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.names, self.theta = list(parameters), list(parameters.values())  # in a list: not to be trained twice
        self.sizes = [t.numel() for t in self.theta]
        nothing = torch.zeros(0)  # of a frozen backbone
        self.register_buffer("start", torch.cat([t.detach().flatten() for t in self.theta]) if self.theta else nothing)
        self.register_buffer("before", self.start.clone())
        self.register_buffer("omega", torch.zeros_like(self.start))
        self.g = torch.zeros_like(self.start)
        self.befores, self.gs = self._parts(self.before), self._parts(self.g)
        self.penalty_gradients: list[Tensor | None] = [None] * len(self.theta)  # the penalty's part of the gradients
        self.seen = [(0, -1)] * len(self.theta)  # which gradients those are: tensor and version
        self.scale = 1.0  # that the loss was multiplied by, where that is more than 1: a GradScaler's
        self.squares = [0.0] * len(self.theta)  # of the gradients as they were recorded, where they were scaled

    def _parts(self, vector: Tensor) -> list[Tensor]:
        return [part.view_as(t) for part, t in zip(vector.split(self.sizes), self.theta, strict=True)]

    @torch.no_grad()
    def record_gradient(self, i: int, of_penalty: Tensor | None) -> None:
        """A backward pass has added to the gradient of parameter i, and `of_penalty` is the penalty's part of that."""
        gradient, earlier = self.theta[i].grad, self.penalty_gradients[i]
        assert gradient is not None
        if earlier is not None and self.seen[i] == (id(gradient), gradient._version - 1):
            of_penalty = earlier if of_penalty is None else earlier + of_penalty  # of a batch in several parts
        self.penalty_gradients[i], self.seen[i] = of_penalty, (id(gradient), gradient._version)
        if self.scale > 1:
            self.squares[i] = float(gradient.double().square().sum())
        if of_penalty is None:
            self.gs[i].copy_(gradient)
        else:
            torch.sub(gradient, of_penalty, out=self.gs[i])

    def see_scale(self, gradient: Tensor) -> None:
        """Called first in a backward pass, with the number that the loss was multiplied by."""
        self.scale = float(gradient)

    @torch.no_grad()
    def unscale(self) -> None:
        """Take a GradScaler's scale off what was recorded: as much as it was taken off the gradients of this step."""
        recorded = sum(self.squares, 0.0)
        if self.scale > 1 and recorded > 0:
            now = sum((float(t.grad.double().square().sum()) for t in self.theta if t.grad is not None), 0.0)
            self.g.mul_((now / recorded) ** 0.5)

    @torch.no_grad()
    def step(self) -> None:
        """The parameters have moved."""
        now = [t.detach() for t in self.theta]
        for before, t in zip(self.befores, now, strict=True):
            torch.sub(t, before, out=before)
        path_integral_step(self.omega, self.g, delta=self.before)
        if now:
            torch._foreach_copy_(self.befores, now)

    @torch.no_grad()
    def importance(self, xi: float) -> dict[str, Tensor]:
        """What Omega gains, by parameter name."""
        distributed.average([self.omega])
        now = torch.cat([t.detach().flatten() for t in self.theta]) if self.theta else self.start
        return dict(zip(self.names, self._parts(consolidated(self.omega, now - self.start, xi)), strict=True))
