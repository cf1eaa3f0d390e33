"""What A-GEM and GEM share: the batch's gradient as one vector, changed before the optimiser sees it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..learner import Fit
from ..networks import no_sparse_gradients
from ..tasks import Task
from ..tensors import calls_again, gradients_put_back
from .memory import Replay


class GradientProjection(Replay):
    """What A-GEM and GEM share: the size of the new batch, and gradients in one vector."""

    def __init__(self, backbone: nn.Module, budget: int, share: str, **hyperparameters: float) -> None:
        no_sparse_gradients(backbone, type(self).__name__)
        super().__init__(backbone, budget, share, **hyperparameters)
        self._batch_size = 1
        self._set_without_batch: list[nn.Parameter] = []
        self._calls_again: bool | None = None  # whether the network is checkpointed reentrantly; known while it learns

    def learn(self, task: Task, fit: Fit) -> None:
        self.zero_grad()  # what an earlier loop has left behind is no part of the new task's gradient
        self._calls_again = None
        super().learn(task, fit)

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        self._batch_size = len(y)
        for parameter in self._set_without_batch:  # from memory; an optimiser without them would not clear it
            parameter.grad = None
        self._set_without_batch = []
        return super().loss(x, y, task_id)

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def set_gradients(self, gradient: Tensor, parameters: list[nn.Parameter]) -> None:
        """Hand the optimiser this gradient, for one step also where the new batch gave none."""
        self._set_without_batch = [parameter for parameter in parameters if parameter.grad is None]
        for p, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            # In the parameter's own layout: fused optimisers read the two side by side, number by number.
            same = part.view(p.shape)
            if same.stride() != p.stride():
                same = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device=p.device).copy_(same)
            p.grad = same

    def gradient_of(self, x: Tensor, y: Tensor, task_ids: Tensor, parameters: list[nn.Parameter]) -> Tensor:
        """The gradient of the mean loss over remembered samples, in one vector."""
        with torch.enable_grad():
            loss = self.mixed_loss(x, y, task_ids)
        if self._calls_again is None:
            self._calls_again = calls_again(loss)
        if not self._calls_again:
            return flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)
        with gradients_put_back(self.parameters()):
            loss.backward()
            return flat((parameter.grad for parameter in parameters), parameters)


def flat(gradients: Iterable[Tensor | None], parameters: list[nn.Parameter]) -> Tensor:
    """Gradients in one vector; zero where there is none, as at the heads of other tasks."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
