"""The one penalty of EWC, SI and MAS: every weight on a spring, as stiff as the weight is important.

    penalty = strength * sum_i Omega_i (theta_i - theta*_i)^2

The methods differ in where the importances Omega come from, and each file holds only that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed
from ..learner import Fit, Learner
from ..tasks import Task
from ..tensors import TensorDict, without_dots

Names = Sequence[str] | Callable[[str], bool] | None
"""Which parameters: names in the backbone, or patterns of such, as "*.lora_*"; a function of a name; None for all."""


def _is_named(name: str, names: Names) -> bool:
    if names is None:
        return True
    return bool(names(name)) if callable(names) else any(fnmatchcase(name, pattern) for pattern in names)


def _checked_names(names: Any, backbone: nn.Module) -> Any:
    """The names; ValueError where one of them, or a function, finds no parameter of the backbone."""
    if isinstance(names, str):
        names = [names]
    given = [names] if callable(names) else list(names)
    there = [name for name, _ in backbone.named_parameters()]
    for one in given:
        if not callable(one) and not isinstance(one, str):
            raise ValueError(f"parameters holds a {type(one).__name__}; allowed: names, or patterns as '*.lora_*'")
        sought = one if callable(one) else [one]
        if not any(_is_named(name, sought) for name in there) and not str(one).startswith("heads"):
            what = "the function" if callable(one) else repr(one)
            raise ValueError(
                f"parameters: {what} names no parameter of the backbone; there are: {', '.join(there[:6])}"
                f"{', ...' if len(there) > 6 else ''}"
            )
    return names if callable(names) else given


def quadratic_penalty(theta: Sequence[Tensor], anchor: Sequence[Tensor], importance: Sequence[Tensor]) -> Tensor:
    """sum_i Omega_i (theta_i - theta*_i)^2, a scalar, over tensors of equal shapes in the three sequences."""
    terms = [(o * (t - a) ** 2).sum() for t, a, o in zip(theta, anchor, importance, strict=True)]
    return torch.stack(terms).sum()


class MergedPenalty:
    """`strength * quadratic_penalty(...)`, with all constants worked out beforehand: it is computed in every step.

    The same value and gradient, tested against it; autograd's own gradient of the formula takes three times as long.
    """

    def __init__(
        self, theta: Sequence[Tensor], anchor: Sequence[Tensor], importance: Sequence[Tensor], strength: float
    ) -> None:
        self.theta = list(theta)
        self.sizes = [t.numel() for t in theta]
        self.anchor = [a.detach().clone() for a in anchor]
        self.curvature = torch.cat([(2 * strength * o.detach()).flatten() for o in importance])
        # Written anew in every call: fresh memory of this size costs as much as the arithmetic.
        self.displacement, self.gradient = torch.empty_like(self.curvature), torch.empty_like(self.curvature)
        self.displacements, self.views = self._parts(self.displacement), self._parts(self.gradient)
        self.calls = 0
        self.gradients: dict[int, Tensor] = {}  # what the present backward pass adds to those of the parameters
        self.backward_pass = -1  # and which pass that is

    def _parts(self, vector: Tensor) -> list[Tensor]:
        return [part.view_as(t) for part, t in zip(vector.split(self.sizes), self.theta, strict=True)]

    def displace(self, theta: Sequence[Tensor]) -> None:
        """displacement = theta - theta*, gradient = k displacement."""
        self.calls += 1
        for displacement, t, anchor in zip(self.displacements, theta, self.anchor, strict=True):
            torch.sub(t, anchor, out=displacement)
        torch.mul(self.curvature, self.displacement, out=self.gradient)

    def __call__(self) -> Tensor:
        """The penalty, a scalar, at the present theta."""
        value: Tensor = _PenaltyWithGradient.apply(self, *self.theta)
        return value

    def record(self, gradients: Sequence[Tensor]) -> None:
        """Write down what a backward pass adds; a pass through several losses at once adds as often."""
        present: int = torch._C._current_graph_task_id()
        if present == self.backward_pass:
            gradients = [g + self.gradients.get(id(t), 0) for t, g in zip(self.theta, gradients, strict=True)]
        self.backward_pass = present
        self.gradients = {id(t): gradient for t, gradient in zip(self.theta, gradients, strict=True)}

    def gradient_of(self, theta: Tensor) -> Tensor | None:
        """What the present backward pass added to the gradient of a parameter; None where that is nothing."""
        return self.gradients.pop(id(theta), None)


class _PenaltyWithGradient(torch.autograd.Function):
    """k/2 (theta - theta*)^2 with its gradient k (theta - theta*) written out; k = 2 strength Omega."""

    @staticmethod
    def forward(ctx: Any, merged: MergedPenalty, *theta: Tensor) -> Tensor:
        merged.displace(theta)
        ctx.merged, ctx.call = merged, merged.calls
        ctx.save_for_backward(*theta)
        return torch.dot(merged.gradient, merged.displacement).mul_(0.5)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        merged: MergedPenalty = ctx.merged
        if ctx.call != merged.calls:  # it was called again since, perhaps elsewhere
            merged.displace(ctx.saved_tensors)
        gradients = merged.views
        if merged.gradient.is_cuda or grads[0].item() != 1:
            gradients = [gradient * grads[0] for gradient in gradients]
        merged.record(gradients)
        return None, *gradients


class Anchor(nn.Module):
    """Values theta* that parameters should stay near, and how important each is, by parameter name.

    Args:
        parameters: by name; where they are now is where they should stay. Importances start at zero.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = TensorDict({name: value.detach().clone() for name, value in parameters.items()})
        self.importances = TensorDict({name: torch.zeros_like(value) for name, value in parameters.items()})

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        return list(self.values)

    def add(self, importances: Mapping[str, Tensor], keep: float = 1.0) -> None:
        """Omega <- keep Omega + importances; what has none this time, as a layer that did not train, gains nothing."""
        for name, mine in self.importances.items():
            mine.mul_(keep).add_(importances.get(name, 0))


class QuadraticPenalty(Learner):
    """Cross-entropy plus `strength` times the penalty. A method redefines `importance`, and what is done with it.

    Which weights are held: those that later tasks will train. In scenario "task" these are the backbone's, since the
    head of a finished task is never trained again; in "domain" and "class" the head's are among them. With `parameters`
    only those that it names.
    """

    def __init__(self, backbone: nn.Module, strength: float, parameters: Names = None, **hyperparameters: Any) -> None:
        if parameters is not None:
            hyperparameters["parameters"] = _checked_names(parameters, backbone)
        super().__init__(backbone, **hyperparameters)
        self.strength, self.names = strength, hyperparameters.get("parameters")
        self.anchors = nn.ModuleList()
        self.merged: MergedPenalty | None = None  # while a task is learned

    def importance(self, task: Task) -> dict[str, Tensor]:
        """Omega of the task just learned, by parameter name, each of its parameter's shape."""
        raise NotImplementedError

    def learn(self, task: Task, fit: Fit) -> None:
        self.merged = self.merged_penalty()
        try:
            fit()
            importance = self.importance(task)
            distributed.average(importance.values())
            self.consolidate(importance)
        finally:
            self.merged = None

    def consolidate(self, importance: Mapping[str, Tensor]) -> None:
        """Remember where the network is now, and what mattered: by default in one anchor whose importances add up."""
        self.merge(importance)

    def merge(self, importance: Mapping[str, Tensor], keep: float = 1.0) -> None:
        """One anchor for all tasks: it moves to where the network is now, and Omega <- keep Omega + importance."""
        held = {*self.shared(), *(self.latest.names if len(self.anchors) else ())}
        anchor = Anchor({name: parameter for name, parameter in self.named_parameters() if name in held})
        if len(self.anchors):
            anchor.add(dict(self.latest.importances.items()))
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
            if parameter.requires_grad
            and not (self.scenario == "task" and name.startswith("heads."))
            and _is_named(name.removeprefix("backbone."), self.names)
        }

    @torch.no_grad()
    def merged_penalty(self) -> MergedPenalty | None:
        """The penalties of all anchors in one, so that a step costs the same however many tasks there were.

        A sum of quadratics is a quadratic: sum_t F_t (theta - theta_t)^2 = F (theta - mean)^2 + what does not depend on
        theta, with F = sum_t F_t and mean = sum_t F_t theta_t / F. The part that does not depend on theta moves nothing
        and is left out.
        """
        if not len(self.anchors) or not self.strength:
            return None
        parameters = self.shared()
        anchors = [anchor for anchor in self.anchors if isinstance(anchor, Anchor)]
        names = [name for name in parameters if any(name in anchor.values for anchor in anchors)]
        values, importances = [a.values for a in anchors], [a.importances for a in anchors]
        means, totals = [], []
        for name in names:
            pairs = [(i[name], v[name]) for i, v in zip(importances, values, strict=True) if name in v]
            total = torch.stack([omega for omega, _ in pairs]).sum(0)
            weighted = torch.stack([omega * value for omega, value in pairs]).sum(0)
            means.append(pairs[0][1] if len(pairs) == 1 else torch.where(total > 0, weighted / total, pairs[-1][1]))
            totals.append(total)
        if not names:  # nothing that later tasks train: a frozen backbone
            return None
        return MergedPenalty([parameters[name] for name in names], means, totals, self.strength)

    def penalty(self) -> Tensor:
        """What is added to the loss while a task is learned: 0 in the first."""
        if self._in_progress is not None:
            self._in_progress.losses += 1  # a loss of one's own with this term in it is right, too
        return torch.zeros((), device=self.device) if self.merged is None else self.merged()

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        if self.merged is None:
            return super().loss(x, y, task_id)
        penalty = self.merged()  # first, so that its gradients come last and are added in place
        return super().loss(x, y, task_id) + penalty

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As many anchors as a file holds, for the parameters that it names, in their order."""
        held = {name.split(".")[1] for name in tensors if name.startswith("anchors.")}
        self.anchors = nn.ModuleList(Anchor({}) for _ in held)
        order = {without_dots(name): place for place, (name, _) in enumerate(self.named_parameters())}
        return dict(sorted(tensors.items(), key=lambda item: order.get(item[0].rpartition(".")[2], -1)))

    def capacity(self) -> dict[str, Any]:
        """As of every method, and "bytes_while_learning": what the penalty of the next task would need."""
        capacity = super().capacity()
        merged = self.merged_penalty()
        of_spring = () if merged is None else (*merged.anchor, merged.curvature, merged.displacement, merged.gradient)
        capacity["bytes_while_learning"] = sum(tensor.nbytes for tensor in of_spring)
        return capacity

    def extra_bytes(self) -> int:
        """Bytes of the anchors: values and importances."""
        return sum(buffer.nbytes for buffer in self.anchors.buffers())
