"""Elastic Weight Consolidation: Kirkpatrick et al. 2017, arXiv 1612.00796; online: Schwarz et al., arXiv 1805.06370.

A weight is important where the Fisher information is large: where moving it changes what the network predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks, evaluation
from ..inputs import Tree
from ..learner import Fit, Learner
from ..samples import LazySamples, Samples
from ..tasks import Task
from .per_sample import check_samples, mean_over_samples, subsample, try_out
from .quadratic import Anchor, Names, QuadraticPenalty

# ---- the equations ---------------------------------------------------------------------------------------------------


def fisher_diagonal(
    learner: Learner,
    parameters: Mapping[str, Tensor],
    samples: Samples | LazySamples,
    task_id: int | None,
    relabel: Callable[[Tree], Tensor] | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """F_i = mean over samples of ( d log p(y | x) / d theta_i )^2: per-sample gradients, squared, then averaged.

    The diagonal of the Fisher information, where the labels y were drawn from p(y | x). By parameter name. With a
    criterion, (outputs, targets) -> mean loss, that stands for -log p.
    """

    def log_likelihood(logits: Float[Tensor, "*outputs"], y: Tensor) -> Float[Tensor, ""]:
        if criterion is not None:
            return -criterion(logits.unsqueeze(0), y.unsqueeze(0))
        return -F.cross_entropy(logits, y)

    return mean_over_samples(learner, parameters, samples, task_id, log_likelihood, Tensor.square, relabel)


# ---- the learner -----------------------------------------------------------------------------------------------------


class EWC(QuadraticPenalty):
    """Hold every weight by its Fisher information: how much the predictions depend on it.

    L' = L + lam/2 sum_t sum_i F_i^t (theta_i - theta_i^t)^2 (Kirkpatrick et al. 2017, Eq. 3).

    Args:
        backbone: any module whose forward works on one sample at a time in evaluation mode.
        mode: "offline" keeps an anchor and a Fisher diagonal per task; "online" one anchor, moved to the newest task,
            and the decayed sum F <- decay F + F^t.
        lam: strength. 10 was the best over four streams of digits, on validation samples; by stream 1 to 1000.
        fisher: "sampled" draws labels from the model's own prediction, as the Fisher information is defined;
            "empirical" takes the true labels. Of tasks without a head (`n_outputs=None`) the gradients are always those
            of the criterion, for the true targets.
        samples: training samples that the Fisher diagonal is estimated from; None for all.
        decay: in mode "online".
        parameters: names of parameters that are held, or patterns of such ("*.lora_*"), or a function of a name; the
            others are free, and cost nothing. None for all that learn.

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
        parameters: Names = None,
    ) -> None:
        checks.one_of("mode", mode, ("offline", "online"))
        checks.one_of("fisher", fisher, ("sampled", "empirical"))
        lam, samples = checks.number("lam", lam), check_samples(samples)
        decay = checks.number("decay", decay, beyond=True, most=1)
        kept = {"mode": mode, "lam": lam, "fisher": fisher, "samples": samples, "decay": decay}
        super().__init__(backbone, lam / 2, parameters, **kept)
        self.mode, self.lam, self.fisher, self.samples, self.decay = mode, lam, fisher, samples, decay

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        try_out(self, self.shared(), task)
        super().learn(task, fit)

    def importance(self, task: Task) -> dict[str, Tensor]:
        samples, task_id = subsample(task.make("train"), self.samples), task.id_at_test
        if task.n_outputs is None:
            return fisher_diagonal(
                self, self.shared(), samples, task_id, criterion=partial(self._judge, task_id=task.id)
            )
        if self.fisher == "empirical":
            return fisher_diagonal(self, self.shared(), samples, task_id)
        if isinstance(samples, LazySamples):  # read once: labels are drawn batch by batch
            draw = partial(self._drawn_labels, task_id=task_id)
            return fisher_diagonal(self, self.shared(), samples, task_id, relabel=draw)
        samples = Samples(samples.x, self._drawn_labels(samples.x, task_id))
        return fisher_diagonal(self, self.shared(), samples, task_id)

    def consolidate(self, importance: Mapping[str, Tensor]) -> None:
        if self.mode == "offline":
            self.anchors.append(Anchor(self.shared()))
            self.latest.add(importance)
        else:
            self.merge(importance, keep=self.decay)

    @torch.no_grad()
    def _drawn_labels(self, x: Tree, task_id: int | None) -> Tensor:
        labels = [z.softmax(1).multinomial(1).squeeze(1) for z in evaluation.logits(self, x, task_id)]
        return torch.cat(labels).cpu()
