"""Memory Aware Synapses: Aljundi et al. 2018, arXiv 1711.09601.

A weight is important where moving it changes the length of the output. No labels are needed.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..datasets import Samples
from ..learner import Learner
from ..tasks import Task
from .quadratic import QuadraticPenalty, check_number, check_samples, mean_over_samples, some


def output_sensitivity(
    learner: Learner, parameters: Mapping[str, Tensor], samples: Samples, task_id: int | None
) -> dict[str, Tensor]:
    """Omega_i = mean over samples of | d ||F(x)||_2^2 / d theta_i | (Eqs. 2, 3): one gradient a sample, not a batch."""

    def squared_length(logits: Float[Tensor, " classes"], y: Int[Tensor, ""]) -> Float[Tensor, ""]:
        return logits.square().sum()

    return mean_over_samples(learner, parameters, samples, task_id, squared_length, Tensor.abs)


class MAS(QuadraticPenalty):
    """Hold every weight by how much the outputs depend on it; no labels are needed for that.

    L' = L + lam sum_i Omega_i (theta_i - theta*_i)^2 (Eq. 4); Omega sums over tasks, theta* is the newest solution.

    Args:
        backbone: any module whose forward works on one sample at a time in evaluation mode.
        lam: strength. 0.1 was the best over four streams of digits, on validation samples; by stream 0.01 to 100.
            1 is too much for a large learning rate: the weights swing, and the loss becomes infinite.
        samples: training samples that the importances are measured on; None for all.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    def __init__(self, backbone: nn.Module, lam: float = 0.1, samples: int | None = None) -> None:
        check_number("lam", lam, least=0)
        check_samples(samples)
        super().__init__(backbone, lam, lam=lam, samples=samples)
        self.lam, self.samples = lam, samples

    def importance(self, task: Task) -> dict[str, Tensor]:
        samples, task_id = some(task.make("train"), self.samples), task.id if task.scenario == "task" else None
        return output_sensitivity(self, self.shared(), samples, task_id)
