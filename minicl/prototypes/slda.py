"""Deep streaming linear discriminant analysis: Hayes and Kanan 2020, "Lifelong Machine Learning with Deep Streaming
Linear Discriminant Analysis", arXiv 1909.01520.

Means alone treat all directions alike. One covariance matrix, shared by all classes, says in which directions the
samples of one class spread anyway, and differences there count less.

A departure: the paper's update of the covariance (`streamed`) weighs each sample by the number of all samples before
it, and gives another matrix for another order. Here it is that of all samples around the means of their classes.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import checks
from ..learner import TaskRecord
from .means import Prototypes

# ---- the equations ---------------------------------------------------------------------------------------------------


def streamed(
    covariance: Float[Tensor, "d d"], t: int, z: Float[Tensor, " d"], mean: Float[Tensor, " d"]
) -> Float[Tensor, "d d"]:
    """Sigma_{t+1} = (t Sigma_t + Delta_t) / (t + 1), Delta_t = t (z - mu)(z - mu)^T / (t + 1), as in the paper.

    z is the sample t + 1, and mu the mean of its class before it. Not used by `SLDA`; see the top of the file.
    """
    delta = t * torch.outer(z - mean, z - mean) / (t + 1)
    return (t * covariance + delta) / (t + 1)


def scatter_added(
    features: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    means: Float[Tensor, "classes d"],
    counts: Int[Tensor, " classes"],
) -> Float[Tensor, "d d"]:
    """By how much sum_i (z_i - mu_{y_i})(z_i - mu_{y_i})^T grows with these samples, the means moving along.

    Of each class: the scatter of the new samples around their own mean nu, and n m / (n + m) (mu - nu)(mu - nu)^T, with
    n samples before and m new ones. Exact, so neither order nor batches matter.
    """
    new = torch.bincount(y, minlength=len(means)).to(features.dtype)
    own = torch.zeros_like(means).index_add_(0, y, features) / new.clamp(min=1)[:, None]
    around = features - own[y]
    weight = counts * new / (counts + new).clamp(min=1)
    moved = means - own
    return around.T @ around + (moved * weight[:, None]).T @ moved


def shrunk(covariance: Float[Tensor, "d d"], epsilon: float, target: str = "identity") -> Float[Tensor, "d d"]:
    """(1 - epsilon) Sigma + epsilon I, as in the paper; with target "scaled", I times the mean of Sigma's diagonal.

    The latter is scikit-learn's, and does not depend on the unit in which features are measured.
    """
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    scale = covariance.diagonal().mean() if target == "scaled" else 1.0
    return (1 - epsilon) * covariance + epsilon * scale * eye


# ---- the learner -----------------------------------------------------------------------------------------------------


class SLDA(Prototypes):
    """One running mean per class, one covariance for all, on the features of a network that stands still.

    z_c = mu_c^T L f - mu_c^T L mu_c / 2, with L the inverse of the shrunk covariance. Classes are
    taken to be equally frequent. Nothing is stored but the means, their counts and one matrix.

    Args:
        backbone: any module; `nn.Flatten()` for the pixels themselves.
        train_first: train the network on the first task, and freeze it then. False: take it as it is.
        epsilon: how far the covariance is shrunk, above 0 and up to 1. The paper's is 1e-4.
        target: towards what: "identity", as in the paper, or "scaled", as in scikit-learn.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    saved_attributes = ("samples_forgotten",)
    samples_forgotten = 0  # of tasks that were taken out; they stay in the covariance, which all classes share
    scatter: Tensor

    def __init__(
        self, backbone: nn.Module, train_first: bool = True, epsilon: float = 1e-4, target: str = "identity"
    ) -> None:
        epsilon = checks.number("epsilon", epsilon, most=1, beyond=True)
        checks.one_of("target", target, ("identity", "scaled"))
        super().__init__(backbone, train_first, epsilon=epsilon, target=target)
        self.epsilon, self.target = epsilon, target
        self.register_buffer("scatter", self._like.new_zeros(0, 0))
        self._inverse: tuple[Any, Tensor] | None = None  # the metric, and the state that it was computed of

    def grow(self, task: TaskRecord) -> None:
        if not len(self.scatter):
            self.scatter = self._like.new_zeros(task.n_features, task.n_features)
        super().grow(task)

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def take(self, features: Tensor, y: Tensor, means: Tensor, counts: Tensor) -> None:
        self.scatter.add_(scatter_added(features, y, means, counts).to(self.scatter.dtype))

    @torch.no_grad()
    def settle(self) -> None:
        for name in self.heads:
            mu: Tensor = self.heads.real(name).weight  # type: ignore[assignment]
            self.write_bias(name, -0.5 * (mu @ self.metric() * mu).sum(1))

    def metric(self) -> Tensor:
        """The inverse of the shrunk covariance, shape (d, d), worked out when there is a new one."""
        n = self.samples_forgotten + sum(int(counts.sum()) for counts in self.counts.values())
        if not n:
            return torch.eye(len(self.scatter), dtype=self.scatter.dtype, device=self.scatter.device)
        state = (self.scatter, self.scatter._version, n)
        if self._inverse is None or self._inverse[0][0] is not state[0] or self._inverse[0][1:] != state[1:]:
            with torch.no_grad():
                covariance = shrunk(self.scatter.double() / n, self.epsilon, self.target)
                self._inverse = state, torch.linalg.inv(covariance).to(self.scatter.dtype)
        return self._inverse[1]

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def on_forget(self, task_id: int) -> None:
        self.samples_forgotten += int(self.counts[str(task_id)].sum())
        super().on_forget(task_id)

    def extra_bytes(self) -> int:
        """Bytes of the counts and of the matrix."""
        return super().extra_bytes() + self.scatter.nbytes

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if "scatter" in tensors:
            self.scatter = torch.empty_like(tensors["scatter"], device=self.device)
        return super().unpack(tensors)
