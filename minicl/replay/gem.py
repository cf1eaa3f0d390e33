"""Gradient Episodic Memory: Lopez-Paz and Ranzato 2017, arXiv 1706.08840.

A step for the new task may not make the loss over any earlier task's memory worse.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks, distributed, inputs
from ..learner import Fit
from ..tasks import Task
from .projection import GradientProjection, flat

# ---- the equations ---------------------------------------------------------------------------------------------------


def dual(products: Float[Tensor, " tasks"], gram: Float[Tensor, "tasks tasks"], margin: float) -> Tensor | None:
    """The v >= margin with least 1/2 v' G G' v + g' G' v (the paper's Eqs. 10, 11), from G g and G G'; shape (tasks,).

    It is that of a non-negative least-squares problem as small as the number of tasks: || R v + R^-T G g || with
    R'R = G G'. None where some rows of G nearly depend on others: their products are too coarse to tell them apart.
    """
    from scipy.optimize import nnls

    if bool((products + margin * gram.sum(1) >= 0).all()):  # the dual rises in every direction: all v are the least
        return torch.full_like(products, margin)
    small = gram.double().cpu().numpy()
    size = np.sqrt(small.diagonal())
    size[size == 0] = 1.0  # all rows count alike, however long they are
    values, vectors = np.linalg.eigh(small / size / size[:, None])
    if values[0] < 1e-3:
        return None
    root = np.sqrt(values)[:, None] * vectors.T
    target = ((products.double().cpu().numpy() + margin * small.sum(1)) / size) @ vectors / np.sqrt(values)
    return torch.from_numpy(nnls(root, -target)[0] / size + margin).to(products)


def dual_from_rows(g: Float[Tensor, " n"], G: Float[Tensor, "tasks n"], margin: float) -> Tensor:
    """The same v from g and G themselves, in double precision: slower, and exact where rows depend on one another."""
    from scipy.optimize import nnls

    rows, size = G.double(), G.double().norm(dim=1)
    size[size == 0] = 1.0
    Q, R = torch.linalg.qr((rows / size[:, None]).T)
    target = Q.T @ (g.double() + margin * rows.sum(0))
    return torch.from_numpy(nnls(R.cpu().numpy(), -target.cpu().numpy())[0]).to(size) / size + margin


def project_on_cone(g: Float[Tensor, " n"], G: Float[Tensor, "tasks n"], margin: float = 0.0) -> Float[Tensor, " n"]:
    """g~ = g + G' v, nearest to g with <g~, g_k> >= 0 for all rows g_k of G (the paper's Eqs. 8, 11); v is the dual's.

    A margin asks for v >= margin, which leans g~ towards the old tasks.
    """
    products = G @ g
    if bool((products >= 0).all()):
        return g
    v = dual(products, G @ G.T, margin)
    if v is None:
        return (g.double() + dual_from_rows(g, G, margin) @ G.double()).to(g)
    return g + v @ G


ROW_BY_ROW = (nn.Sequential, nn.Flatten, nn.Identity, nn.Linear, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU)
"""Modules that treat every sample by itself, and whose only weights are those of linear layers."""


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that an nn.Sequential calls, one after another; one that stands in two places comes twice."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from layers_of(child)
    else:
        yield module


def is_plain(module: nn.Module) -> bool:
    """Whether all of a module's parameters learn, or none, and none is computed from others (as pruning does)."""
    parameters = module._parameters  # asked in every step: named_parameters takes several times as long
    return (
        parameters.keys() <= {"weight", "bias"}
        and len({p.requires_grad for p in parameters.values() if p is not None}) < 2
    )


# ---- the learner -----------------------------------------------------------------------------------------------------


class GEM(GradientProjection):
    """The batch's gradient, projected so that it points against the gradient of no earlier task.

    Differs from the authors' code in one point: a constraint's gradient is taken over at most half as many of the
    task's samples as a batch has, drawn anew each step, not over all of them.

    Args:
        backbone: any module. Constraints of a plain stack of linear layers are computed together, of others in turn.
        budget: number of samples kept, shared equally by the tasks.
        margin: gamma, the authors' "memory strength".

    Raises:
        ValueError: a budget below 1, a negative margin.
    """

    def __init__(self, backbone: nn.Module, budget: int = 200, margin: float = 0.5) -> None:
        margin = checks.number("margin", margin)
        super().__init__(backbone, budget, "task", margin=margin)
        self.hyperparameters.pop("share")
        self.margin = margin
        self._G = torch.empty(0)  # room for the constraints, while a task is learned

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        try:
            super().learn(task, fit)
        finally:
            self._G = torch.empty(0)

    def edit_gradients(self) -> None:
        if self.replaying:
            parameters = self.trained()
            g = flat((p.grad for p in parameters), parameters)
            projected = project_on_cone(g, self.constraints(parameters), self.margin)
            if projected is not g:
                self.set_gradients(projected, parameters)

    # ---- the constraints ---------------------------------------------------------------------------------------------

    def constraints(self, parameters: list[nn.Parameter]) -> Tensor:
        """G: the gradient of the loss over each earlier task's samples, shape (tasks, numbers in the parameters)."""
        x, y, task_ids = self.memory.draw_each(max(2, self._batch_size // 2))  # BatchNorm needs two
        shape = (len(task_ids), sum(p.numel() for p in parameters))
        if self._G.shape != shape:  # written anew in every step: fresh memory of this size would cost time
            self._G = parameters[0].new_empty(shape)
        modules = [*self.backbone.modules(), *self.heads.values()]
        plain = self.select is None and isinstance(x, Tensor) and not self._writes_input and self.heads.are_layers
        if plain and all(type(module) in ROW_BY_ROW and is_plain(module) for module in modules):
            self._per_task_gradients(x, y, task_ids, parameters)
        else:
            for k, (row, y_k, t) in enumerate(zip(self._G, y, task_ids, strict=True)):
                x_k = inputs.map(lambda leaf: leaf[k], x)  # noqa: B023
                row.copy_(self.gradient_of(x_k, y_k, t.expand(len(y_k)), parameters))
        distributed.average([self._G])
        return self._G

    def _per_task_gradients(self, x: Tensor, y: Tensor, task_ids: Tensor, parameters: list[nn.Parameter]) -> None:
        """The same from one pass: a linear layer's is the product of its input and the gradient of its output."""
        calls: list[tuple[list[nn.Linear], Tensor, Tensor]] = []
        n_tasks, m = y.shape
        h = x.flatten(0, 1)
        with torch.enable_grad():
            for layer in layers_of(self.backbone):
                given, h = h, layer(h)
                if isinstance(layer, nn.Linear) and layer.weight.requires_grad:
                    calls.append(([layer], given, h))
            outputs = F.linear(h, *self.heads.side_by_side())
            own = self.heads.own_outputs(outputs, task_ids.repeat_interleave(m)) if self.scenario == "task" else outputs
            loss = self._sum_of_means(own.unflatten(0, (n_tasks, m)), y, task_ids)
        calls.append((self.heads.layers, h, outputs))
        pairs: dict[nn.Linear, list[tuple[Tensor, Tensor]]] = {}
        for (modules, given, _), back in zip(calls, torch.autograd.grad(loss, [c[2] for c in calls]), strict=True):
            given = given.detach().reshape(n_tasks, -1, given.shape[-1])
            back = back.reshape(n_tasks, -1, back.shape[-1])
            for module, of_module in zip(modules, back.split([m.out_features for m in modules], 2), strict=True):
                pairs.setdefault(module, []).append((given, of_module))
        rooms: dict[Tensor, Tensor] = dict(
            zip(parameters, self._G.split([p.numel() for p in parameters], 1), strict=True)
        )
        for module, sides in pairs.items():  # several where a layer is called twice
            given, back = (side[0] if len(side) == 1 else torch.cat(side, 1) for side in zip(*sides, strict=True))
            if module.weight in rooms:
                torch.bmm(back.mT, given, out=rooms[module.weight].unflatten(1, module.weight.shape))
                if module.bias is not None:
                    torch.sum(back, 1, out=rooms[module.bias])

    def _sum_of_means(self, logits: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        """The sum over tasks of each one's mean loss; logits of shape (tasks, m, outputs)."""
        if self.criterion is None and not self._criteria:
            return len(y) * self.cross_entropy(logits.flatten(0, 1), y.flatten())
        each = [self.mixed_cross_entropy(z, b, t.expand(len(b))) for z, b, t in zip(logits, y, task_ids, strict=True)]
        return torch.stack(each).sum()
