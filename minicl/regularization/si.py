"""Synaptic Intelligence: Zenke, Poole and Ganguli 2017, arXiv 1703.04200.

A weight is important when its own movement brought the loss down. That is known for free, step by step, while training.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..learner import Fit
from ..tasks import Task
from .quadratic import QuadraticPenalty, check_strength


def path_integral_step(
    omega: Float[Tensor, "*shape"], g: Float[Tensor, "*shape"], delta: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """omega_i <- omega_i - g_i dtheta_i: what this step of weight i took off the loss (below Eq. 3)."""
    return omega - g * delta


def consolidated(
    omega: Float[Tensor, "*shape"], total: Float[Tensor, "*shape"], xi: float
) -> Float[Tensor, "*shape"]:
    """Omega_i gains max(0, omega_i) / ((theta_i^end - theta_i^start)^2 + xi) (Eq. 5); never negative."""
    return omega.clamp(min=0) / (total**2 + xi)


class SI(QuadraticPenalty):
    """L' = L + c sum_i Omega_i (theta_i - theta*_i)^2 (Eq. 4).

    Args:
        backbone: any module.
        c: strength.
        xi: damping, which keeps weights that hardly moved from becoming infinitely important.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    def __init__(self, backbone: nn.Module, c: float = 0.1, xi: float = 0.1) -> None:
        check_strength("c", c)
        if isinstance(xi, bool) or not isinstance(xi, (int, float)) or not xi > 0:
            raise ValueError(f"xi is {xi!r}; allowed: numbers above 0")
        super().__init__(backbone, c, c=c, xi=xi)
        self.c, self.xi = c, xi
        self._names: list[str] = []

    def learn(self, task: Task, fit: Fit) -> None:
        self.start_path()
        super().learn(task, fit)
        self._names = []

    @torch.no_grad()
    def start_path(self) -> None:
        """omega = 0, and remember where every weight starts."""
        shared = self.shared()
        self._names, self._theta = list(shared), list(shared.values())
        self._start = [p.detach().clone() for p in self._theta]
        self._before = [p.clone() for p in self._start]
        self._omega = [torch.zeros_like(p) for p in self._start]

    @torch.no_grad()
    def edit_gradients(self) -> None:
        # The gradient of the task's loss alone: the penalty's own, 2 c Omega (theta - theta*), is taken out again.
        self._g = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self._theta]
        if self._spring is not None:
            theta, anchor, importance = self._spring
            places = {id(p): i for i, p in enumerate(self._theta)}
            force = torch._foreach_mul(torch._foreach_sub([p.detach() for p in theta], anchor), importance)
            torch._foreach_add_([self._g[places[id(p)]] for p in theta], force, alpha=-2 * self.c)

    @torch.no_grad()
    def after_step(self) -> None:
        now = [p.detach() for p in self._theta]
        delta = torch._foreach_sub(now, self._before)
        self._omega = [path_integral_step(o, g, d) for o, g, d in zip(self._omega, self._g, delta, strict=True)]
        torch._foreach_copy_(self._before, now)

    @torch.no_grad()
    def importance(self, task: Task) -> dict[str, Tensor]:
        return {
            name: consolidated(omega, theta.detach() - start, self.xi)
            for name, omega, theta, start in zip(self._names, self._omega, self._theta, self._start, strict=True)
        }
