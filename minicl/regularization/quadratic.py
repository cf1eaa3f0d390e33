"""The one penalty of EWC, SI and MAS: every weight on a spring, as stiff as the weight is important.

    penalty = sum_i Omega_i (theta_i - theta*_i)^2

The methods differ in where the importances Omega come from, and each file holds only that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..datasets import Samples
from ..learner import Fit, Learner, TaskRecord
from ..tasks import Task


def quadratic_penalty(theta: Sequence[Tensor], anchor: Sequence[Tensor], importance: Sequence[Tensor]) -> Tensor:
    """sum_i Omega_i (theta_i - theta*_i)^2, a scalar, over tensors of equal shapes in the three sequences."""
    total: Tensor = _Spring.apply(list(anchor), list(importance), *theta)
    return total


class _Spring(torch.autograd.Function):
    """The penalty with its gradient 2 Omega (theta - theta*) written out: autograd's own takes three times as long."""

    @staticmethod
    def forward(ctx: Any, anchor: list[Tensor], importance: list[Tensor], *theta: Tensor) -> Tensor:
        pull = torch._foreach_sub(theta, anchor)
        force = torch._foreach_mul(pull, importance)
        ctx.save_for_backward(*force)
        return torch.stack([torch.dot(f.flatten(), p.flatten()) for f, p in zip(force, pull, strict=True)]).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *torch._foreach_mul(ctx.saved_tensors, (2 * grads[0]).item())


class Anchor(nn.Module):
    """Values theta* that parameters should stay near, and how important each is: buffers, so they move and are saved."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = list(parameters)
        for name, value in parameters.items():
            self.register_buffer(f"value {_key(name)}", value.detach().clone())
            self.register_buffer(f"importance {_key(name)}", torch.zeros_like(value))

    @property
    def values(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(f"value {_key(name)}") for name in self.names}

    @property
    def importances(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(f"importance {_key(name)}") for name in self.names}

    def add(self, importances: Mapping[str, Tensor], keep: float = 1.0) -> None:
        """Omega <- keep Omega + importances."""
        for name, importance in importances.items():
            self.importances[name].mul_(keep).add_(importance)


def _key(name: str) -> str:
    return name.replace(".", "/")  # the name of a buffer must not hold a dot


class QuadraticPenalty(Learner):
    """Cross-entropy plus `strength` times the penalty. A method redefines `importance`, and what is done with it.

    Which weights are held: those that later tasks will train. In scenario "task" these are the backbone's, since the
    head of a finished task is never trained again; in "domain" and "class" the head's are among them.
    """

    def __init__(self, backbone: nn.Module, strength: float, **hyperparameters: Any) -> None:
        super().__init__(backbone, **hyperparameters)
        self.strength = strength
        self.anchors = nn.ModuleList()
        self._spring: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None
        self._offset = 0.0

    def importance(self, task: Task) -> dict[str, Tensor]:
        """Omega of the task just learned, by parameter name, each of its parameter's shape."""
        raise NotImplementedError

    def learn(self, task: Task, fit: Fit) -> None:
        self.tighten()
        fit()
        self.consolidate(self.importance(task))
        self._spring = None

    def consolidate(self, importance: Mapping[str, Tensor]) -> None:
        """Remember where the network is now, and what mattered: by default in one anchor whose importances add up."""
        self.merge(importance)

    def merge(self, importance: Mapping[str, Tensor], keep: float = 1.0) -> None:
        """One anchor for all tasks: it moves to where the network is now, and Omega <- keep Omega + importance."""
        anchor = Anchor(self.shared())
        if len(self.anchors):
            anchor.add(self.latest.importances)
        anchor.add(importance, keep)
        self.anchors = nn.ModuleList([anchor])

    @property
    def latest(self) -> Anchor:
        anchor = self.anchors[-1]
        assert isinstance(anchor, Anchor)
        return anchor

    def shared(self) -> dict[str, nn.Parameter]:
        """The parameters that later tasks will train as well."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not (self.scenario == "task" and name.startswith("heads."))
        }

    def tighten(self) -> None:
        """Bring the springs of all anchors into one, so that a step costs the same however many tasks there were.

        A sum of quadratics is a quadratic: sum_t F_t (theta - theta_t)^2 = F (theta - mean)^2 + what does not depend on
        theta, with F = sum_t F_t and mean = sum_t F_t theta_t / F.
        """
        if not len(self.anchors):
            return
        parameters = dict(self.named_parameters())
        anchors = [anchor for anchor in self.anchors if isinstance(anchor, Anchor)]
        theta, means, stiffness, offset = [], [], [], 0.0
        for name in anchors[-1].names:
            pairs = [(a.importances[name], a.values[name]) for a in anchors if name in a.names]
            total = torch.stack([omega for omega, _ in pairs]).sum(0)
            weighted = torch.stack([omega * value for omega, value in pairs]).sum(0)
            mean = pairs[0][1] if len(pairs) == 1 else torch.where(total > 0, weighted / total, pairs[-1][1])
            offset += sum(float((omega * (value - mean) ** 2).sum()) for omega, value in pairs)
            theta.append(parameters[name])
            means.append(mean)
            stiffness.append(total)
        self._spring, self._offset = (theta, means, stiffness), offset

    def penalty(self) -> Tensor:
        """sum over anchors of sum_i Omega_i (theta_i - theta*_i)^2; 0 in the first task."""
        if self._spring is None:
            return torch.zeros((), device=self.device)
        return quadratic_penalty(*self._spring) + self._offset

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        loss = super().loss(x, y, task_id)
        return loss if self._spring is None else loss + self.strength * self.penalty()

    def grow(self, task: TaskRecord) -> None:
        super().grow(task)
        self.scenario = task.scenario
        if task.finished:  # a file is being loaded: make room for what was consolidated after this task
            self.consolidate({})

    def extra_bytes(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in self.anchors.buffers())


@torch.no_grad()
def mean_over_samples(
    learner: Learner,
    parameters: Mapping[str, Tensor],
    samples: Samples,
    task_id: int | None,
    output: Callable[[Tensor, Tensor], Tensor],
    measure: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Mean over samples of measure(d output / d theta), one gradient a sample, by parameter name.

    Args:
        output: a scalar from one sample's logits, shape (classes,), and label, shape ().
        measure: applied to the gradients of each sample before they are averaged: squares for EWC, |.| for MAS. The
            square of a batch's mean gradient is something else, and much smaller.
    """
    theta = {name: parameter.detach() for name, parameter in parameters.items()}

    def scalar(theta: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = functional_call(learner, theta, (x.unsqueeze(0), task_id))
        return output(logits.squeeze(0), y)

    gradients = vmap(grad(scalar), in_dims=(None, 0, 0))
    # As many samples at once as fit comfortably in memory: each brings a gradient of the size of the network.
    chunk = max(1, min(256, 8_000_000 // max(1, sum(t.numel() for t in theta.values()))))
    mean = {name: torch.zeros_like(value) for name, value in theta.items()}
    training = learner.training
    learner.eval()
    for x, y in zip(samples.x.split(chunk), samples.y.split(chunk), strict=True):
        for name, g in gradients(theta, x.to(learner.device), y.to(learner.device)).items():
            mean[name] += measure(g).sum(0) / len(samples)
    learner.train(training)
    return mean


def some(samples: Samples, n: int | None) -> Samples:
    """All samples, or n of them drawn at random without replacement."""
    return samples if n is None or n >= len(samples) else samples[torch.randperm(len(samples))[:n]]


def check_strength(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{name} is {value!r}; allowed: numbers from 0 (no protection) up")


def check_samples(samples: int | None) -> None:
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise ValueError(f"samples is {samples!r}; allowed: None (all training samples) or integers from 1 up")
