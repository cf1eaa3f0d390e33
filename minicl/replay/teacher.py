"""The network as it was before a task: what distillation asks, and what labels samples that are made up."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..freezing import copied
from ..heads import SHARED
from ..inputs import Tree
from ..learner import Learner


class Teacher:
    """Copies of a learner's network and of the heads of its finished tasks, side by side, in evaluation mode.

    It is no module, so that it is neither trained nor saved with the learner that holds it.

    Attributes:
        names, sizes: of the heads, in their order.
    """

    def __init__(self, learner: Learner) -> None:
        self.names = names_of_finished(learner)
        heads = [learner.heads[name] for name in self.names]
        self.network = copied(learner.backbone).eval().requires_grad_(False)
        self.weight, self.bias = (
            torch.cat([getattr(head, what).detach() for head in heads]).clone() for what in ("weight", "bias")
        )
        self.sizes = [len(head.bias) for head in heads]  # type: ignore[arg-type]
        self.ask = learner.apply_network

    @torch.no_grad()
    def __call__(self, x: Tree) -> Tensor:
        """Logits of all old outputs, shape (batch, old outputs)."""
        return F.linear(self.ask(self.network, x), self.weight, self.bias)

    def each(self, x: Tree) -> tuple[Tensor, ...]:
        """The same, head by head."""
        return self(x).split(self.sizes, 1)


def names_of_finished(learner: Learner) -> list[str]:
    """The names of the heads that finished tasks have."""
    return [name for name in learner.heads if name == SHARED or int(name) in learner.learned]


def bytes_of_teacher(learner: Learner) -> int:
    """What a `Teacher` would take; 0 before the first task, which needs none."""
    if not learner.learned:
        return 0
    modules = (learner.backbone, *(learner.heads[name] for name in names_of_finished(learner)))
    tensors: list[Any] = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum(tensor.nbytes for tensor in tensors)
