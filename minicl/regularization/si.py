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

from ..learner import Fit
from ..tasks import Task
from .quadratic import QuadraticPenalty, check_number


def path_integral_step(
    omega: Float[Tensor, "*shape"], g: Float[Tensor, "*shape"], delta: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """omega_i <- omega_i - g_i dtheta_i: what this step of weight i took off the loss (Eq. 3). In place."""
    return omega.addcmul_(g, delta, value=-1)


def consolidated(omega: Float[Tensor, "*shape"], total: Float[Tensor, "*shape"], xi: float) -> Float[Tensor, "*shape"]:
    """What Omega_i gains: max(0, omega_i) / ((theta_i^end - theta_i^start)^2 + xi) (Eq. 5), never negative."""
    return omega.clamp(min=0) / (total**2 + xi)


class SI(QuadraticPenalty):
    """Hold every weight by what its own movement took off the loss.

    L' = L + c sum_i Omega_i (theta_i - theta*_i)^2 (Eq. 4); Omega sums over tasks, theta* is the newest solution.

    The gradient in the path integral is that of the task's loss alone, without the penalty's, as backward finds it:
    clipping it afterwards changes the step, and leaves the integral what it is; multiplying the loss by a number, as
    torch.amp.GradScaler does, multiplies the integral. The weights of a head that other tasks train as well belong to
    the path.

    Args:
        backbone: any module.
        c: strength. On validation samples of digits 10 to 100 was best with Adam; with plain SGD and a large learning
            rate that much makes the weights swing, and the loss infinite.
        xi: damping, which keeps weights that hardly moved from becoming infinitely important.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    def __init__(self, backbone: nn.Module, c: float = 0.1, xi: float = 0.1) -> None:
        check_number("c", c, least=0)
        check_number("xi", xi, least=0, beyond=True)
        super().__init__(backbone, c, c=c, xi=xi)
        self.c, self.xi = c, xi
        self.path: Path | None = None  # while a task is learned

    def learn(self, task: Task, fit: Fit) -> None:
        self.path = Path(self.shared())
        hooks = [
            theta.register_post_accumulate_grad_hook(partial(self._hear, i)) for i, theta in enumerate(self.path.theta)
        ]
        try:
            super().learn(task, fit)
        finally:
            self.path = None
            for hook in hooks:
                hook.remove()

    def _hear(self, i: int, theta: Tensor) -> None:
        """Backward calls this when it has added to the gradient of a parameter, and nobody has clipped it yet."""
        assert self.path is not None
        self.path.hear(i, None if self.spring is None else self.spring.force_on(theta))

    def after_step(self) -> None:
        if self.path is not None:
            self.path.step()

    def capacity(self) -> dict[str, Any]:
        """As of every method, and "bytes_while_learning": the springs, and the path with its four numbers a weight."""
        capacity = super().capacity()
        if self.learned:
            capacity["bytes_while_learning"] += 4 * sum(parameter.nbytes for parameter in self.shared().values())
        return capacity

    def importance(self, task: Task) -> dict[str, Tensor]:
        assert self.path is not None
        return self.path.importance(self.xi)


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
        self.register_buffer("start", torch.cat([t.detach().flatten() for t in self.theta]))
        self.register_buffer("before", self.start.clone())
        self.register_buffer("omega", torch.zeros_like(self.start))
        self.g = torch.zeros_like(self.start)
        self.befores, self.gs = self._parts(self.before), self._parts(self.g)
        self.forces: list[Tensor | None] = [None] * len(self.theta)  # the penalty's part of the gradients
        self.heard = [(0, -1)] * len(self.theta)  # which gradients those are: tensor and version

    def _parts(self, vector: Tensor) -> list[Tensor]:
        return [part.view_as(t) for part, t in zip(vector.split(self.sizes), self.theta, strict=True)]

    @torch.no_grad()
    def hear(self, i: int, force: Tensor | None) -> None:
        """A backward pass has added to the gradient of parameter i, and `force` is the penalty's part of that."""
        gradient, earlier = self.theta[i].grad, self.forces[i]
        assert gradient is not None
        if earlier is not None and self.heard[i] == (id(gradient), gradient._version - 1):
            force = earlier if force is None else earlier + force  # a batch in several parts: gradients add up
        self.forces[i], self.heard[i] = force, (id(gradient), gradient._version)
        if force is None:
            self.gs[i].copy_(gradient)
        else:
            torch.sub(gradient, force, out=self.gs[i])

    @torch.no_grad()
    def step(self) -> None:
        """The parameters have moved."""
        now = [t.detach() for t in self.theta]
        for before, t in zip(self.befores, now, strict=True):
            torch.sub(t, before, out=before)
        path_integral_step(self.omega, self.g, delta=self.before)
        torch._foreach_copy_(self.befores, now)

    @torch.no_grad()
    def importance(self, xi: float) -> dict[str, Tensor]:
        """What Omega gains, by parameter name."""
        now = torch.cat([t.detach().flatten() for t in self.theta])
        return dict(zip(self.names, self._parts(consolidated(self.omega, now - self.start, xi)), strict=True))
