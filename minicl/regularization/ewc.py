"""Elastic Weight Consolidation: Kirkpatrick et al. 2017, arXiv 1612.00796; online: Schwarz et al., arXiv 1805.06370.

A weight is important where the Fisher information is large: where moving it changes what the network predicts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..datasets import Samples
from ..learner import Learner
from ..tasks import Task
from .quadratic import Anchor, QuadraticPenalty, check_number, check_samples, mean_over_samples, some


def fisher_diagonal(
    learner: Learner, parameters: Mapping[str, Tensor], samples: Samples, task_id: int | None
) -> dict[str, Tensor]:
    """F_i = mean over samples of ( d log p(y | x) / d theta_i )^2: per-sample gradients, squared, then averaged.

    The diagonal of the Fisher information, where the labels y were drawn from p(y | x). By parameter name.
    """

    def log_likelihood(logits: Float[Tensor, " classes"], y: Int[Tensor, ""]) -> Float[Tensor, ""]:
        return -F.cross_entropy(logits, y)

    return mean_over_samples(learner, parameters, samples, task_id, log_likelihood, Tensor.square)


class EWC(QuadraticPenalty):
    """Hold every weight by its Fisher information: how much the predictions depend on it.

    L' = L + lam/2 sum_t sum_i F_i^t (theta_i - theta_i^t)^2 (Kirkpatrick et al. 2017, Eq. 3).

    Args:
        backbone: any module whose forward works on one sample at a time in evaluation mode.
        mode: "offline" keeps one anchor and one Fisher diagonal a task; "online" one anchor, moved to the newest task,
            and the decayed sum F <- decay F + F^t.
        lam: strength. 10 was the best over four streams of digits, on validation samples; by stream 1 to 1000.
        fisher: "sampled" draws labels from the model's own prediction, as the Fisher information is defined;
            "empirical" takes the true labels.
        samples: training samples that the Fisher diagonal is estimated from; None for all.
        decay: in mode "online".

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mode: str = "offline",
        lam: float = 10.0,
        fisher: str = "sampled",
        samples: int | None = None,
        decay: float = 1.0,
    ) -> None:
        if mode not in ("offline", "online"):
            raise ValueError(f"mode is {mode!r}; allowed: 'offline', 'online'")
        if fisher not in ("sampled", "empirical"):
            raise ValueError(f"fisher is {fisher!r}; allowed: 'sampled', 'empirical'")
        check_number("lam", lam, least=0)
        check_samples(samples)
        check_number("decay", decay, least=0, beyond=True)
        if decay > 1:
            raise ValueError(f"decay is {decay!r}; allowed: above 0, up to 1")
        super().__init__(backbone, lam / 2, mode=mode, lam=lam, fisher=fisher, samples=samples, decay=decay)
        self.mode, self.lam, self.fisher, self.samples, self.decay = mode, lam, fisher, samples, decay

    def importance(self, task: Task) -> dict[str, Tensor]:
        samples, task_id = some(task.make("train"), self.samples), task.id if task.scenario == "task" else None
        if self.fisher == "sampled":
            samples = Samples(samples.x, self._drawn_labels(samples.x, task_id))
        return fisher_diagonal(self, self.shared(), samples, task_id)

    def consolidate(self, importance: Mapping[str, Tensor]) -> None:
        if self.mode == "offline":
            self.anchors.append(Anchor(self.shared()))
            self.latest.add(importance)
        else:
            self.merge(importance, keep=self.decay)

    @torch.no_grad()
    def _drawn_labels(self, x: Tensor, task_id: int | None) -> Tensor:
        training = self.training
        self.eval()
        try:
            parts = (self(part.to(self.device), task_id) for part in x.split(1000))
            labels = [logits.softmax(1).multinomial(1).squeeze(1) for logits in parts]
        finally:
            self.train(training)
        return torch.cat(labels).to(x.device)
