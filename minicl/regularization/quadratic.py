"""The one penalty of EWC, SI and MAS: every weight on a spring, as stiff as the weight is important.

    penalty = strength * sum_i Omega_i (theta_i - theta*_i)^2

The methods differ in where the importances Omega come from, and each file holds only that.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..datasets import Samples
from ..learner import Fit, Learner
from ..tasks import Task

PER_SAMPLE_NUMBERS = 8_000_000
"""Gradients of single samples that are held at once, in numbers: 32 MB of float32."""


def quadratic_penalty(theta: Sequence[Tensor], anchor: Sequence[Tensor], importance: Sequence[Tensor]) -> Tensor:
    """sum_i Omega_i (theta_i - theta*_i)^2, a scalar, over tensors of equal shapes in the three sequences."""
    terms = [(o * (t - a) ** 2).sum() for t, a, o in zip(theta, anchor, importance, strict=True)]
    return torch.stack(terms).sum()


class Spring:
    """`strength * quadratic_penalty(...)`, with all constants worked out beforehand: it is computed in every step.

    Autograd's own gradient of the formula takes three times as long.
    """

    def __init__(
        self, theta: Sequence[Tensor], anchor: Sequence[Tensor], importance: Sequence[Tensor], strength: float
    ) -> None:
        self.theta = list(theta)
        self.sizes = [t.numel() for t in theta]
        self.anchor = [a.detach().clone() for a in anchor]
        self.stiffness = torch.cat([(2 * strength * o.detach()).flatten() for o in importance])
        # Written anew in every call: fresh memory of this size costs as much as the arithmetic.
        self.pull, self.force = torch.empty_like(self.stiffness), torch.empty_like(self.stiffness)
        self.pulls, self.views = self._parts(self.pull), self._parts(self.force)
        self.calls = 0
        self.forces: dict[int, Tensor] = {}  # what the present backward pass adds to the gradients
        self.backward_pass = -1  # and which pass that is

    def _parts(self, vector: Tensor) -> list[Tensor]:
        return [part.view_as(t) for part, t in zip(vector.split(self.sizes), self.theta, strict=True)]

    def pull_at(self, theta: Sequence[Tensor]) -> None:
        """pull = theta - theta*, force = k pull."""
        self.calls += 1
        for pull, t, anchor in zip(self.pulls, theta, self.anchor, strict=True):
            torch.sub(t, anchor, out=pull)
        torch.mul(self.stiffness, self.pull, out=self.force)

    def __call__(self) -> Tensor:
        """The penalty, a scalar, at the present theta."""
        value: Tensor = _Pull.apply(self, *self.theta)
        return value

    def adds(self, forces: Sequence[Tensor]) -> None:
        """Write down what a backward pass adds; a pass through several losses at once adds as often."""
        present: int = torch._C._current_graph_task_id()
        if present == self.backward_pass:
            forces = [f + self.forces.get(id(t), 0) for t, f in zip(self.theta, forces, strict=True)]
        self.backward_pass = present
        self.forces = {id(t): force for t, force in zip(self.theta, forces, strict=True)}

    def force_on(self, theta: Tensor) -> Tensor | None:
        """What the present backward pass added to the gradient of a parameter; None where that is nothing."""
        return self.forces.pop(id(theta), None)


class _Pull(torch.autograd.Function):
    """k/2 (theta - theta*)^2 with its gradient k (theta - theta*) written out; k = 2 strength Omega."""

    @staticmethod
    def forward(ctx: Any, spring: Spring, *theta: Tensor) -> Tensor:
        spring.pull_at(theta)
        ctx.spring, ctx.call = spring, spring.calls
        ctx.save_for_backward(*theta)
        return torch.dot(spring.force, spring.pull).mul_(0.5)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        spring: Spring = ctx.spring
        if ctx.call != spring.calls:  # it was called again since, perhaps elsewhere
            spring.pull_at(ctx.saved_tensors)
        forces = spring.views
        if spring.force.is_cuda or grads[0].item() != 1:
            forces = [force * grads[0] for force in forces]
        spring.adds(forces)
        return None, *forces


class Anchor(nn.Module):
    """Values theta* that parameters should stay near, and how important each is: as buffers, which are saved."""

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
        """Omega <- keep Omega + importances; what has none this time, as a layer that did not train, gains nothing."""
        for name, mine in self.importances.items():
            mine.mul_(keep).add_(importances.get(name, 0))


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
        self.spring: Spring | None = None  # while a task is learned

    def importance(self, task: Task) -> dict[str, Tensor]:
        """Omega of the task just learned, by parameter name, each of its parameter's shape."""
        raise NotImplementedError

    def learn(self, task: Task, fit: Fit) -> None:
        self.spring = self.tightened()
        try:
            fit()
            self.consolidate(self.importance(task))
        finally:
            self.spring = None

    def consolidate(self, importance: Mapping[str, Tensor]) -> None:
        """Remember where the network is now, and what mattered: by default in one anchor whose importances add up."""
        self.merge(importance)

    def merge(self, importance: Mapping[str, Tensor], keep: float = 1.0) -> None:
        """One anchor for all tasks: it moves to where the network is now, and Omega <- keep Omega + importance."""
        held = {*self.shared(), *(self.latest.names if len(self.anchors) else ())}
        anchor = Anchor({name: parameter for name, parameter in self.named_parameters() if name in held})
        if len(self.anchors):
            anchor.add(self.latest.importances)
        anchor.add(importance, keep)
        self.anchors = nn.ModuleList([anchor])

    @property
    def latest(self) -> Anchor:
        """The newest anchor."""
        anchor = self.anchors[-1]
        assert isinstance(anchor, Anchor)
        return anchor

    def shared(self) -> dict[str, nn.Parameter]:
        """The parameters that later tasks will train as well, by name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not (self.scenario == "task" and name.startswith("heads."))
        }

    @torch.no_grad()
    def tightened(self) -> Spring | None:
        """The springs of all anchors in one, so that a step costs the same however many tasks there were.

        A sum of quadratics is a quadratic: sum_t F_t (theta - theta_t)^2 = F (theta - mean)^2 + what does not depend on
        theta, with F = sum_t F_t and mean = sum_t F_t theta_t / F. The part that does not depend on theta moves nothing
        and is left out.
        """
        if not len(self.anchors) or not self.strength:
            return None
        parameters = self.shared()
        anchors = [anchor for anchor in self.anchors if isinstance(anchor, Anchor)]
        names = [name for name in parameters if any(name in anchor.names for anchor in anchors)]
        values, importances = [a.values for a in anchors], [a.importances for a in anchors]
        means, totals = [], []
        for name in names:
            pairs = [(i[name], v[name]) for i, v in zip(importances, values, strict=True) if name in v]
            total = torch.stack([omega for omega, _ in pairs]).sum(0)
            weighted = torch.stack([omega * value for omega, value in pairs]).sum(0)
            means.append(pairs[0][1] if len(pairs) == 1 else torch.where(total > 0, weighted / total, pairs[-1][1]))
            totals.append(total)
        return Spring([parameters[name] for name in names], means, totals, self.strength)

    def penalty(self) -> Tensor:
        """What is added to the loss while a task is learned: 0 in the first."""
        return torch.zeros((), device=self.device) if self.spring is None else self.spring()

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        if self.spring is None:
            return super().loss(x, y, task_id)
        penalty = self.spring()  # first, so that its gradients come last and are added in place
        return super().loss(x, y, task_id) + penalty

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make room for the anchors that a file holds."""
        parameters = dict(self.named_parameters())
        held: dict[str, dict[str, Tensor]] = {}
        for tensor in tensors:
            place, _, name = tensor.partition(".value ")
            if place.startswith("anchors."):
                name = next((n for n in parameters if _key(n) == name), "")
                if name:
                    held.setdefault(place, {})[name] = parameters[name]
        self.anchors = nn.ModuleList(  # places and names in the order in which they were made, whatever the file's
            Anchor({name: parameters[name] for name in parameters if name in held[place]})
            for place in sorted(held, key=_number)
        )
        return tensors

    def capacity(self) -> dict[str, Any]:
        """As of every method, and "bytes_while_learning": the springs that the next task would need."""
        capacity = super().capacity()
        spring = self.tightened()
        of_spring = () if spring is None else (*spring.anchor, spring.stiffness, spring.pull, spring.force)
        capacity["bytes_while_learning"] = sum(tensor.nbytes for tensor in of_spring)
        return capacity

    def extra_bytes(self) -> int:
        """Bytes of the anchors: values and importances."""
        return sum(buffer.nbytes for buffer in self.anchors.buffers())


def _number(place: str) -> int:
    return int(place.rpartition(".")[2]) if place.rpartition(".")[2].isdigit() else 0


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
            square of a batch's mean gradient is something else, and much smaller. Not in place: the gradients of two
            parameters that are added to each other may be one tensor.
    """
    theta = {name: parameter.detach() for name, parameter in parameters.items()}

    def scalar(theta: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = functional_call(learner, theta, (x.unsqueeze(0), task_id))
        return output(logits.squeeze(0), y)

    def one_by_one(theta: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        each = [grad(scalar)(theta, a, b) for a, b in zip(x, y, strict=True)]
        return {name: torch.stack([g[name] for g in each]) for name in theta}

    gradients = vmap(grad(scalar), in_dims=(None, 0, 0))
    # As many samples at once as fit comfortably in memory: each brings a gradient of the size of the network.
    chunk = max(1, min(256, PER_SAMPLE_NUMBERS // max(1, sum(t.numel() for t in theta.values()))))
    mean = {name: torch.zeros_like(value) for name, value in theta.items()}
    training = learner.training
    learner.eval()
    try:
        for x, y in zip(samples.x.split(chunk), samples.y.split(chunk), strict=True):
            given = theta, x.to(learner.device), y.to(learner.device)
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    found = gradients(*given)
            except (RuntimeError, NotImplementedError, ValueError):  # a layer that vmap cannot take, such as an LSTM
                gradients = one_by_one
                found = gradients(*given)
            for name, g in found.items():
                mean[name] += measure(g).sum(0)
    finally:
        learner.train(training)
    return {name: value.div_(len(samples)) for name, value in mean.items()}


def some(samples: Samples, n: int | None) -> Samples:
    """All samples, or n of them drawn at random without replacement."""
    return samples if n is None or n >= len(samples) else samples[torch.randperm(len(samples))[:n]]


def check_number(name: str, value: float, least: float, beyond: bool = False) -> None:
    """ValueError unless the value is a finite number from `least` up, or beyond it."""
    right = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    if not right or value < least or (beyond and value == least):
        raise ValueError(f"{name} is {value!r}; allowed: numbers {'above' if beyond else 'from'} {least}")


def check_samples(samples: int | None, name: str = "samples") -> None:
    """ValueError unless it is None or an integer from 1 up."""
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise ValueError(f"{name} is {samples!r}; allowed: None (all training samples) or integers from 1 up")
