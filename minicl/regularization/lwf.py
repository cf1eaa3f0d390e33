"""Learning without Forgetting: Li and Hoiem 2016, arXiv 1606.09282.

The new task's own images, answered by the network as it was before training, are what the old outputs must keep saying.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..learner import Fit, Learner
from ..tasks import Task

# ---- the equations ---------------------------------------------------------------------------------------------------


def distillation(
    logits: Float[Tensor, "batch *heads classes"], targets: Float[Tensor, "batch *heads classes"], temperature: float
) -> Float[Tensor, ""]:
    """- mean over samples of sum_i p_i log q_i: p, q the softmax of recorded and of present logits at temperature tau.

    Li and Hoiem 2016, Eqs. 2 and 3: the recorded probabilities, raised to 1/tau and normalised again, are the
    targets. Of several heads, the sum.
    """
    p = (targets / temperature).softmax(-1)
    log_q = (logits / temperature).log_softmax(-1)
    return torch.dot(p.flatten(), log_q.flatten()) / -len(logits)


def output_distance(outputs: Float[Tensor, "batch ..."], targets: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
    """Mean squared difference of present and recorded outputs: what distils a network whose outputs are no classes."""
    return (outputs - targets).square().mean()


# ---- the learner -----------------------------------------------------------------------------------------------------


class LwF(Learner):
    """Hold on to the answers of the network before the task, on the task's own images; no weight is held.

    L' = L(new task) + lam sum over old outputs of the distillation loss (Li and Hoiem 2016, Figure 3).

    The network as it was when the task arrived is kept in evaluation mode until the task is learned, and answers each
    batch: the same numbers as recording its outputs for every image beforehand. In scenario "task" every old head is
    distilled, in "domain" the shared head, in "class" the classes seen before. Of tasks without a head
    (`n_outputs=None`) the network's own outputs are, by `output_distance`.

    Args:
        backbone: any module.
        lam: weight of the old outputs.
        temperature: 2 in the paper.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    def __init__(self, backbone: nn.Module, lam: float = 1.0, temperature: float = 2.0) -> None:
        lam, temperature = checks.number("lam", lam), checks.number("temperature", temperature, beyond=True)
        super().__init__(backbone, lam=lam, temperature=temperature)
        self.lam, self.temperature = lam, temperature
        self.old: list[nn.Module] = []  # in a list, so that the copies are neither trained nor saved
        self.old_outputs: tuple[Tensor, ...] = ()  # weight and bias of all the old heads in one
        self.held: list[nn.Linear] = []  # the same heads as they are trained now

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        self.remember(task)
        try:
            fit()
        finally:
            self.old, self.held, self.old_outputs = [], [], ()

    def remember(self, task: Task) -> None:
        """Copy the backbone and the heads that are to keep their answers, before the first step is taken."""
        kept = {name: head for name, head in self.heads.items() if self._answers(name, task.id)}
        self.old = []
        if self.learned and not self.heads.are_layers:
            self.old = [copy.deepcopy(self.backbone).eval().requires_grad_(False)]
        elif self.learned and kept:
            self.old = [copy.deepcopy(self.backbone).eval(), copy.deepcopy(nn.ModuleDict(kept)).eval()]
            for module in self.old:
                module.requires_grad_(False)
            self.held = [head for head in kept.values() if isinstance(head, nn.Linear)]
            copies, sizes = list(self.old[1].children()), [head.out_features for head in self.held]
            self.old_outputs = stacked(copies)
            parts = (tensor.split(sizes) for tensor in self.old_outputs)
            for head, weight, bias in zip(copies, *parts, strict=True):  # the copies live in the one tensor
                head.weight.data, head.bias.data = weight, bias

    def _answers(self, name: str, task_id: int) -> bool:
        """Whether the head of this name had answers before this task; in "class", rows that stand before its own."""
        if self.scenario == "class":
            names = list(self.heads)
            return str(task_id) not in names or names.index(name) < names.index(str(task_id))
        return name == "shared" or int(name) in self.learned

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        if not self.old:
            return super().loss(x, y, task_id)
        task_id = self.check(x, task_id)
        features = self.features(x, task_id)
        if not self.heads.are_layers:
            with torch.no_grad():
                before = self.apply_network(self.old[0], x)
            return self.cross_entropy(features, y) + self.lam * output_distance(features, before)
        with torch.no_grad():
            targets = F.linear(self.apply_network(self.old[0], x), *self.old_outputs)
        n = targets.shape[1]
        if self.scenario == "task":  # all heads in one product: the old ones, and behind them that of the task
            outputs = F.linear(features, *stacked([*self.held, self.heads[str(task_id)]]))
            now, logits = outputs.tensor_split([n], dim=1)
        else:  # the outputs that there were before: one head in "domain", the rows of the old classes in "class"
            logits = self.classify(features, task_id)
            now = logits[:, :n]
        return self.cross_entropy(logits, y) + self.lam * self.distilled(now, targets)

    def distilled(self, now: Tensor, targets: Tensor) -> Tensor:
        """The distillation loss of old heads that stand side by side, each with its share of the columns."""
        sizes = [head.out_features for head in self.held] if self.scenario == "task" else [now.shape[1]]
        if len(set(sizes)) == 1:
            shape = (len(now), len(sizes), sizes[0])
            return distillation(now.reshape(shape), targets.reshape(shape), self.temperature)
        pairs = zip(now.split(sizes, 1), targets.split(sizes, 1), strict=True)
        return torch.stack([distillation(*pair, self.temperature) for pair in pairs]).sum()

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def capacity(self) -> dict[str, Any]:
        """As of every method, and "bytes_while_learning": the copy of the network that the next task would need."""
        capacity = super().capacity()
        copied = (
            self.backbone,
            *(h for name, h in self.heads.items() if name == "shared" or int(name) in self.learned),
        )
        tensors = (tensor for module in copied for tensor in (*module.parameters(), *module.buffers()))
        capacity["bytes_while_learning"] = sum(tensor.nbytes for tensor in tensors) if self.learned else 0
        return capacity

    def extra_bytes(self) -> int:
        """Bytes of the copy that is there while a task is learned; between tasks, none."""
        return sum(tensor.nbytes for module in self.old for tensor in (*module.parameters(), *module.buffers()))


def stacked(heads: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """Weight and bias of several linear heads as those of one, whose outputs are theirs side by side."""
    return torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])  # type: ignore[misc]
