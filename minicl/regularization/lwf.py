"""Learning without Forgetting: Li and Hoiem 2016, arXiv 1606.09282.

The new task's own images, answered by the network as it was before training, are what the old outputs must keep saying.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..learner import Fit, Learner
from ..tasks import Task
from .quadratic import check_strength


def distillation(
    logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """- mean over samples of sum_i p'_i log q'_i, p' and q' the softmax of recorded and present logits at temperature T.

    Li and Hoiem 2016, Eqs. 2 and 3: the recorded probabilities, raised to 1/T and normalised again, are the targets.
    """
    p = (targets / temperature).softmax(1)
    log_q = (logits / temperature).log_softmax(1)
    return -(p * log_q).sum(1).mean()


class LwF(Learner):
    """L' = L(new task) + lam sum over old outputs of the distillation loss (Li and Hoiem 2016, Figure 3).

    The network as it was when the task arrived is kept in evaluation mode until the task is learned, and answers each
    batch: the same numbers as recording its outputs for every image beforehand. In scenario "task" every old head is
    distilled, in "domain" the shared head, in "class" the classes seen before.

    Args:
        backbone: any module.
        lam: weight of the old outputs.
        temperature: 2 in the paper.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    def __init__(self, backbone: nn.Module, lam: float = 1.0, temperature: float = 2.0) -> None:
        check_strength("lam", lam)
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; allowed: numbers above 0")
        super().__init__(backbone, lam=lam, temperature=temperature)
        self.lam, self.temperature = lam, temperature
        self.old: list[nn.Module] = []  # in a list, so that the copies are neither trained nor saved

    def learn(self, task: Task, fit: Fit) -> None:
        self.remember(task)
        fit()
        self.old = []

    def remember(self, task: Task) -> None:
        """Copy backbone and heads before the first step is taken."""
        self.old = []
        if self.learned:
            heads = {name: head for name, head in self.heads.items() if name != str(task.id)}
            self.old = [copy.deepcopy(self.backbone).eval(), copy.deepcopy(nn.ModuleDict(heads)).eval()]
            for module in self.old:
                module.requires_grad_(False)

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        if not self.old:
            return super().loss(x, y, task_id)
        task_id = self.check(x, task_id)
        features = self.features(x, task_id)
        logits = self.classify(features, task_id)
        loss = self.cross_entropy(logits, y)
        backbone, heads = self.old
        with torch.no_grad():
            before = backbone(x)
            assert isinstance(heads, nn.ModuleDict)
            targets = {name: head(before) for name, head in heads.items()}
        if self.scenario == "task":
            now = {name: self.heads[name](features) for name in targets}
        else:  # the outputs that there were before: one head in "domain", the rows of the old classes in "class"
            targets = {"old": torch.cat(list(targets.values()), 1)}
            now = {"old": logits[:, : targets["old"].shape[1]]}
        return loss + self.lam * torch.stack([distillation(now[n], targets[n], self.temperature) for n in targets]).sum()

    def extra_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for module in self.old for p in module.parameters())
