"""Memory Aware Synapses: Aljundi et al. 2018, arXiv 1711.09601.

A weight is important where moving it changes the length of the output. No labels are needed.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..learner import Fit, Learner
from ..samples import LazySamples, Samples
from ..tasks import Task
from .per_sample import check_samples, mean_over_samples, subsample, try_out
from .quadratic import Names, QuadraticPenalty

# ---- the equations ---------------------------------------------------------------------------------------------------


def output_sensitivity(
    learner: Learner, parameters: Mapping[str, Tensor], samples: Samples | LazySamples, task_id: int | None
) -> dict[str, Tensor]:
    """Omega_i = mean over samples of | d ||F(x)||_2^2 / d theta_i | (the paper's Eqs. 2, 3): per sample, not batch."""

    def squared_length(logits: Float[Tensor, "*outputs"], y: Tensor) -> Float[Tensor, ""]:
        return logits.square().sum()

    return mean_over_samples(learner, parameters, samples, task_id, squared_length, Tensor.abs)


# ---- the learner -----------------------------------------------------------------------------------------------------


class MAS(QuadraticPenalty):
    """Hold every weight by how much the outputs depend on it; no labels are needed for that.

    L' = L + lam sum_i Omega_i (theta_i - theta*_i)^2 (the paper's Eq. 4)

    Omega sums over tasks, theta* is the newest solution.

    Args:
        backbone: any module whose forward works on one sample at a time in evaluation mode.
        lam: strength. 0.1 was the best over four streams of digits, on validation samples; by stream 0.01 to 100.
            1 is too much for a large learning rate: the weights swing, and the loss becomes infinite.
        samples: training samples that the importances are measured on; None for all.
        parameters: names of parameters that are held, or patterns of such ("*.lora_*"), or a function of a name; the
            others are free, and cost nothing. None for all that learn.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    def __init__(
        self, backbone: nn.Module, lam: float = 0.1, samples: int | None = None, parameters: Names = None
    ) -> None:
        lam, samples = checks.number("lam", lam), check_samples(samples)
        super().__init__(backbone, lam, parameters, lam=lam, samples=samples)
        self.lam, self.samples = lam, samples

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        try_out(self, self.shared(), task)
        super().learn(task, fit)

    def importance(self, task: Task) -> dict[str, Tensor]:
        samples, task_id = subsample(task.make("train"), self.samples), task.id_at_test
        return output_sensitivity(self, self.shared(), samples, task_id)
