"""Several parameters pulled to where they were, in one node of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..freezing import corner


def sum_of_pulls(anchors: Sequence[tuple[Tensor, Tensor]], lam: float) -> Tensor:
    """The sum of `minicl.expansion.den.pull` over several parameters: same value and gradient, in less time.

    Args:
        anchors: parameters, and what their first rows and columns were before.
        lam: as there.
    """
    parameters, befores = zip(*anchors, strict=True)
    added: Tensor = _Pulls.apply(lam, befores, *parameters)
    return added


class _Pulls(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lam: float, befores: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        parts = [p if p.shape == b.shape else corner(p, b.shape[:2]) for p, b in zip(parameters, befores, strict=True)]
        ctx.lam, ctx.shapes = lam, [p.shape for p in parameters]
        ctx.away = torch._foreach_sub(parts, list(befores))
        flat = [away.flatten() for away in ctx.away]
        return torch.stack([torch.dot(away, away) for away in flat]).sum() * (lam / 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        pulls = torch._foreach_mul(ctx.away, grads[0] * ctx.lam)
        found = []
        for force, shape in zip(pulls, ctx.shapes, strict=True):
            whole = force
            if force.shape != shape:
                whole = force.new_zeros(shape)
                corner(whole, force.shape[:2]).copy_(force)
            found.append(whole)
        return None, None, *found
