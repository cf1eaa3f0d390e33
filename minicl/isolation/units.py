"""The units of a network, for a method that gates them: which there are, their gates, and cutting out the unused."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# What holds numbers of its own for each unit, and is therefore copied for every task.
OWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)
POOLING = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
UNIT_BY_UNIT = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Softplus, nn.Softsign),
    *(nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
)
INSTEAD = (
    "allowed in an nn.Sequential: Linear, Conv1d to Conv3d (groups=1), activations that treat each unit alone, "
    "BatchNorm, pooling, dropout, Flatten"
)


@dataclass
class Block:
    """A layer with units, and what follows it unit by unit. Its gate comes last, before the next layer mixes them."""

    name: str
    layer: Any  # nn.Linear or a convolution
    units: int
    after: list[nn.Module | int]  # a module of the backbone, or the place of a task's own copy
    flat: bool  # no positions: one value a unit


def blocks_of(backbone: nn.Module) -> tuple[list[nn.Module | int], list[Block], list[nn.Module]]:
    """What comes before the first layer, the blocks, and the modules of which every task needs a copy.

    Raises:
        ValueError: a layer that cannot be gated, by name, or no layer at all.
    """
    stem: list[nn.Module | int] = []
    blocks: list[Block] = []
    own: list[nn.Module] = []
    after, flat, seen = stem, False, set()
    for name, module in _flattened("", backbone):
        what = f"layer {name!r}, {type(module).__name__},"
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            weight = module._parameters.get("weight")
            if weight is None or isinstance(weight, nn.UninitializedParameter):
                raise ValueError(
                    f"{what} has no plain weight yet (lazy, or parametrised), so HAT cannot gate it; {INSTEAD}"
                )
            if id(weight) in seen:
                raise ValueError(
                    f"{what} shares its weight with another layer, so HAT cannot gate it; give each layer its own"
                )
            seen.add(id(weight))
            if isinstance(module, CONVOLUTIONS) and module.groups != 1:
                raise ValueError(f"{what} has groups={module.groups}, so HAT cannot gate it; allowed: groups=1")
            if isinstance(module, CONVOLUTIONS) and flat:
                raise ValueError(f"{what} stands behind a flat layer, so HAT cannot gate it; put convolutions first")
            if isinstance(module, nn.Linear) and blocks and not flat:
                raise ValueError(f"{what} follows a convolution; put an nn.Flatten between them")
            if blocks and weight.shape[1] % blocks[-1].units:
                raise ValueError(
                    f"{what} takes {weight.shape[1]} inputs, which does not fit the {blocks[-1].units} units before it"
                )
            after, flat = [], isinstance(module, nn.Linear)
            blocks.append(Block(name, module, weight.shape[0], after, flat))
        elif isinstance(module, OWN):
            own.append(module)
            after.append(len(own) - 1)
        elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            flat = True
            after.append(module)
        elif isinstance(module, (*UNIT_BY_UNIT, *DROPOUTS)) or _pools(module, flat and bool(blocks)):
            after.append(module)
        else:
            raise ValueError(f"{what} cannot be gated unit by unit; {INSTEAD}")
    if not blocks:
        raise ValueError(f"the backbone has no layer with units, so there is nothing to gate; {INSTEAD}")
    return stem, blocks, own


def _pools(module: nn.Module, flat: bool) -> bool:
    """Whether it is a pooling that stays within each unit's map, and returns the map alone."""
    return isinstance(module, POOLING) and not flat and not getattr(module, "return_indices", False)


def _flattened(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        children = module._modules.items()  # named_children would leave out a module that stands in two places
        return [
            pair
            for key, child in children
            if child is not None
            for pair in _flattened(f"{name}.{key}".lstrip("."), child)
        ]
    if not name:
        raise ValueError(f"the backbone is a {type(module).__name__}, whose units HAT cannot follow; {INSTEAD}")
    return [(name, module)]


def spread(values: Tensor, n: int) -> Tensor:
    """One value a unit, repeated over the positions of a flattened map: shape (units,) to (n,)."""
    return values if len(values) == n else values.repeat_interleave(n // len(values))


def gated(h: Tensor, mask: Tensor) -> Tensor:
    """`a (.) h`, Eq. 1. A binary mask selects rather than multiplies: what another task did cannot leak as NaN."""
    mask = spread(mask, h.shape[1]) if h.ndim == 2 else mask.view(-1, *[1] * (h.ndim - 2))
    return torch.where(mask, h, 0.0) if mask.dtype == torch.bool else h * mask


def without(layer: Any, h: Tensor, inputs: Tensor) -> Tensor:
    """The layer, blind to the weights from units that the mask `inputs` leaves out, whatever became of them."""
    kept = spread(inputs, layer.weight.shape[1]).view(-1, *[1] * (layer.weight.ndim - 2))
    weight = torch.where(kept, layer.weight, 0.0)
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(h, weight, layer.bias)
    result: Tensor = layer._conv_forward(h, weight, layer.bias)
    return result


def packed(mask: Tensor) -> Tensor:
    """Eight bits a byte: bool of shape (n,) to uint8 of shape (ceil(n / 8),)."""
    bits = nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpacked(packed: Tensor, n: int) -> Tensor:
    """The inverse of `packed`."""
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (bits & 1).bool().flatten()[:n]


def places(order: Tensor, n: int) -> Tensor:
    """Where n entries come from when the units they belong to are put in order; a unit's entries stay together."""
    each = n // len(order)
    return order if each == 1 else (order[:, None] * each + torch.arange(each, device=order.device)).flatten()


def cut(layer: nn.Module, mask_out: Tensor | None, mask_in: Tensor | None) -> nn.Module:
    """A copy of a Linear or convolution with the units of the masks alone; soft masks scale the inputs instead."""
    small = copy.deepcopy(layer)
    weight: Any = layer.weight
    bias: Any = layer.bias
    if mask_in is not None:
        mask_in = spread(mask_in, weight.shape[1])
        hard = mask_in.dtype == torch.bool
        weight = weight[:, mask_in] if hard else weight * mask_in.view(-1, *[1] * (weight.ndim - 2))
    if mask_out is not None and mask_out.dtype == torch.bool:
        weight, bias = weight[mask_out], None if bias is None else bias[mask_out]
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            setattr(
                small,
                name,
                nn.Parameter(value.detach().clone()) if name in small._parameters else value.detach().clone(),
            )
    n_out, n_in = weight.shape[:2]
    sizes = (
        {"out_features": n_out, "in_features": n_in}
        if isinstance(layer, nn.Linear)
        else {"out_channels": n_out, "in_channels": n_in}
    )
    for name, size in sizes.items():
        setattr(small, name, size)
    return small


def cut_own(module: nn.Module, mask: Tensor) -> nn.Module:
    """A copy of a BatchNorm or PReLU with the entries of the mask's units alone."""
    small = copy.deepcopy(module)
    if mask.dtype != torch.bool:
        return small
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.ndim and len(tensor) >= len(mask):
            value = tensor.detach()[spread(mask, len(tensor))].clone()
            setattr(small, name, nn.Parameter(value) if name in small._parameters else value)
            setattr(small, "num_parameters" if isinstance(module, nn.PReLU) else "num_features", len(value))
    return small


@torch.no_grad()
def seconds(network: nn.Module, x: Tensor) -> float:
    started = time.perf_counter()
    network(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - started
