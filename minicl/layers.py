"""Chains of layers, one after another, in which a method can look at single units, add some and take some out.

A unit is a row of a layer's weight, or a channel of a convolution, and what it feeds in the layer above: one column,
or, behind a Flatten, as many neighbouring columns as its map has positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BETWEEN = (
    *(nn.ReLU, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)


def chain(backbone: nn.Module, method: str) -> tuple[list[str], list[str]]:
    """The names of the Linear and Conv layers in order, and of the ReLU that follows each.

    Args:
        backbone: the network.
        method: what the error calls the method that asks.

    Raises:
        ValueError: not a sequence of layers that such a method knows.
    """
    names: list[str] = []
    relus: list[str] = []
    advice = (
        "allowed: an nn.Sequential of Linear or Conv layers, each followed by nn.ReLU, with pooling, Flatten and "
        "Dropout between them, such as minicl.mlp(64, 256, 256)"
    )
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Sequential):
            continue
        place = f"layer {name!r}, a {type(module).__name__},"
        if isinstance(module, LAYERS):
            if len(relus) < len(names):
                raise ValueError(f"{place} follows {names[-1]!r} without a ReLU between them; {advice}")
            if getattr(module, "groups", 1) != 1:
                raise ValueError(f"{place} has groups; {advice}")
            names.append(name)
        elif isinstance(module, nn.ReLU):
            if len(relus) == len(names):
                raise ValueError(f"{place} follows no Linear or Conv layer; {advice}")
            relus.append(name)
        elif not isinstance(module, BETWEEN):
            raise ValueError(
                f"{place} is nothing that {method} can work with; {advice}"
                if name
                else f"the backbone is a {type(module).__name__}; {advice}"
            )
    if not names or len(relus) < len(names):
        raise ValueError(f"the backbone does not end in a layer with a ReLU; {advice}")
    return names, relus


def incoming(layer: Any, first: int = 0) -> Tensor:
    """What comes into each unit of a layer from the unit `first` on, bias last: shape (units, weights)."""
    weight: Tensor = layer.weight.detach()[first:].flatten(1)
    return weight.clone() if layer.bias is None else torch.cat([weight, layer.bias.detach()[first:, None]], 1)


def set_incoming(layer: Any, rows: Tensor, first: int = 0) -> None:
    """The inverse of `incoming`."""
    n = layer.weight[0].numel()
    weight = layer.weight[first:]
    weight.copy_(rows[:, :n].view_as(weight))
    if layer.bias is not None:
        layer.bias[first:].copy_(rows[:, n])


def by_input_unit(layer: Any, below: Tensor) -> Tensor:
    """The weights of a layer by unit below, a view of shape (units, units below, weights of each)."""
    columns: Tensor = layer.weight.detach().view(len(layer.weight), len(below), -1)
    return columns


def columns(units: Tensor, each: int) -> Tensor:
    """Which columns these units, int64 of shape (n,), feed in the layer above, where a unit has so many of them."""
    return (units[:, None] * each + torch.arange(each, device=units.device)).flatten()


def set_tensors(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer other tensors, also of another size: as new parameters, since an optimiser's state fits the old."""
    for name, value in (("weight", weight), ("bias", bias)):
        old = getattr(layer, name)
        if value is not None and old is not None:
            setattr(layer, name, nn.Parameter(value.detach().contiguous(), old.requires_grad))
    kind = "features" if isinstance(layer, nn.Linear) else "channels"
    setattr(layer, f"out_{kind}", weight.shape[0])
    setattr(layer, f"in_{kind}", weight.shape[1])
