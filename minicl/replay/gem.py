"""Gradient Episodic Memory: Lopez-Paz and Ranzato 2017, arXiv 1706.08840.

A step for the new task may not make the loss over any earlier task's memory worse.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .agem import GradientProjection
from .memory import check_weight


def project_on_cone(g: Float[Tensor, " n"], G: Float[Tensor, "tasks n"], margin: float = 0.0) -> Float[Tensor, " n"]:
    """The g~ nearest to g with <g~, g_k> >= 0 for every row g_k of G (Eqs. 8 to 11).

    The dual, minimise 1/2 v' G G' v + g' G' v over v >= 0, is a non-negative least-squares problem,
    min || G' v + g ||, and g~ = G' v + g. A margin asks for v >= margin, which leans g~ towards the old tasks.
    """
    from scipy.optimize import nnls

    products = G @ g
    if bool((products >= 0).all()):
        return g
    # ||G'v + g||^2 = ||R v + R^-T G g||^2 + const, with R'R = G G': as small as the number of tasks.
    gram = (G @ G.T).double().cpu().numpy()
    values, vectors = np.linalg.eigh(gram)
    kept = values > values[-1] * 1e-12  # gradients that depend on one another leave fewer directions
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    target = (products.double().cpu().numpy() + margin * gram.sum(1)) @ vectors[:, kept] / np.sqrt(values[kept])
    v = nnls(root, -target)[0] + margin
    return g + torch.from_numpy(v).to(G) @ G


class GEM(GradientProjection):
    """The batch's gradient, projected so that it points against the gradient of no earlier task.

    Differs from the authors' code in one point: a constraint's gradient is taken over at most as many of the task's
    samples as a batch has, drawn anew each step, not over all of them.

    Args:
        backbone: any module.
        budget: number of samples kept, shared equally by the tasks.
        margin: gamma, the authors' "memory strength".

    Raises:
        ValueError: a budget below 1, a negative margin.
    """

    def __init__(self, backbone: nn.Module, budget: int = 200, margin: float = 0.5) -> None:
        check_weight("margin", margin)
        super().__init__(backbone, budget, "task", margin=margin)
        self.hyperparameters.pop("share")
        self.margin = margin

    def edit_gradients(self) -> None:
        if not len(self.memory):
            return
        rows = []
        for t in self.learned:
            held = self.memory.of_task(t)
            some = held[torch.randperm(len(held))[: self._batch_size].to(held.y.device)]
            rows.append(self.gradient_of(some.x, some.y, torch.full_like(some.y, t)))
        self.put(project_on_cone(self.gradient(), torch.stack(rows), self.margin))
