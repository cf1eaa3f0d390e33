"""All tasks' networks at once, each with a weight: W = sum_t alpha_t W^t, with W^t = W (.) M^t where tasks have masks.

Wortsman et al. 2020, arXiv 2006.14769, Eq. 3. `minicl.inference` asks in which direction alpha should move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .owners import LAYERS

if TYPE_CHECKING:
    from ..learner import Learner


def mixed_tensors(tensors: Sequence[Mapping[str, Tensor]], alpha: Tensor) -> dict[str, Tensor]:
    """sum_t alpha_t W^t, name by name; what is the same tensor for every task stays as it is. alpha: shape (tasks,)."""
    first = tensors[0]
    return {
        name: value
        if all(each[name] is value for each in tensors)
        else torch.einsum("t,t...->...", alpha.to(value.dtype), torch.stack([each[name] for each in tensors]))
        for name, value in first.items()
    }


def mixed_features(
    learner: Learner, backbone: nn.Module, tensors: Sequence[Mapping[str, Tensor]], x: Any, alpha: Tensor
) -> Tensor:
    """What the mixed network makes of x, differentiable with respect to alpha.

    With one row of alpha the weights are mixed: it costs what one network costs. With a row for each sample every
    layer's products with the weights of all tasks are needed, for their slopes; its value is that of the mixture.

    Args:
        learner, backbone: as for `Learner.apply_network`.
        tensors: of each task's network, by name in the backbone.
        alpha: shape (1, tasks) or (batch, tasks). Rows must be the same in value.

    Raises:
        ValueError: tasks that differ in more than weights of Linear and Conv layers.
    """
    differ = sorted(name for name, value in tensors[0].items() if any(each[name] is not value for each in tensors))
    layers = {f"{name}.weight" if name else "weight": part for name, part in backbone.named_modules()}
    if strange := [name for name in differ if not isinstance(layers.get(name), LAYERS)]:
        raise ValueError(
            f"the tasks differ in {', '.join(strange[:3])}, and only weights of Linear and Conv layers can be mixed; "
            "allowed: a rule that asks each task, such as 'softmax'"
        )
    if len(alpha) == 1:
        return learner.apply_network(backbone, x, mixed_tensors(tensors, alpha[0]))
    slope = alpha - alpha.detach()  # (batch, tasks), zeros
    hooks = [layers[name].register_forward_hook(_adding([each[name] for each in tensors], slope)) for name in differ]
    try:
        return learner.apply_network(backbone, x, mixed_tensors(tensors, alpha[0].detach()))
    finally:
        for hook in hooks:
            hook.remove()


def _adding(weights: Sequence[Tensor], slope: Tensor) -> Any:
    """A hook that adds sum_t (alpha_t - its value) W^t h to what a layer gives: nothing, with the right slope."""

    def add(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
        h = given[0].detach()  # what comes through the input is in the result already
        for t, weight in enumerate(weights):
            own = {"weight": weight}
            if isinstance(layer.bias, Tensor):
                own["bias"] = torch.zeros_like(layer.bias)
            z = _plain(layer, own, h)
            result = result + slope[:, t].view(-1, *[1] * (z.ndim - 1)) * z
        return result

    return add


@torch.no_grad()
def _plain(layer: nn.Module, own: dict[str, Tensor], h: Tensor) -> Tensor:
    """The layer with other tensors, without its hooks."""
    hooks, layer._forward_hooks = layer._forward_hooks, type(layer._forward_hooks)()
    try:
        result: Tensor = functional_call(layer, own, (h,))
        return result
    finally:
        layer._forward_hooks = hooks
