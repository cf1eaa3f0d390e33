"""Wider networks of the same kind: every layer but the first one's input gets more units."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..freezing import copied
from ..isolation.owners import PROJECTIONS
from ..isolation.task_norms import NORMS
from ..networks import mark_initial

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def widening(backbone: nn.Module | Callable[[float], nn.Module], max_width: float) -> Callable[[float], nn.Module]:
    """A function from a width to a network, from such a function or from an `nn.Sequential`.

    Raises:
        ValueError: a module that cannot be widened, where it may have to be; see `wider`.
    """
    if not isinstance(backbone, nn.Module):
        _check_rows(backbone(1.0))
        return backbone
    make = partial(wider, copied(backbone))
    if max_width > 1:
        make(max_width)  # refused now, or never
    return make


def wider(network: nn.Module, width: float) -> nn.Module:
    """A new network like an `nn.Sequential` of Linear and Conv layers, each with `width` times as many units.

    Rounded up. Its weights are drawn anew. Layers without parameters are made to work on any number of units.

    Raises:
        ValueError: what is no `nn.Sequential`, or holds a layer that is not known.
    """
    if not isinstance(network, nn.Sequential):
        raise ValueError(
            f"the backbone ({type(network).__name__}) cannot be widened; give max_width=1, an nn.Sequential, or a "
            "function from a width to a network, such as lambda width: minicl.mlp(64, int(256 * width))"
        )
    grown, _ = _wider(network, width, "", None)
    return mark_initial(grown)


def _wider(module: Any, width: float, path: str, before: tuple[int, int] | None) -> tuple[nn.Module, Any]:
    """The wider module, and how many units the last layer had and has; None before the first layer."""
    if type(module) is nn.Sequential:
        parts = OrderedDict[str, nn.Module]()
        for name, part in module.named_children():
            parts[name], before = _wider(part, width, f"{path}.{name}" if path else name, before)
        return nn.Sequential(parts), before
    if type(module) is nn.Linear:
        n_in, n_out = _inputs(module.in_features, before), math.ceil(module.out_features * width)
        return nn.Linear(n_in, n_out, module.bias is not None), (module.out_features, n_out)
    if type(module) in CONVOLUTIONS and module.groups == 1:
        n_in, n_out = _inputs(module.in_channels, before), math.ceil(module.out_channels * width)
        how = {k: getattr(module, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        return type(module)(n_in, n_out, bias=module.bias is not None, **how), (module.out_channels, n_out)
    if isinstance(module, NORMS):
        how = {k: getattr(module, k) for k in ("eps", "momentum", "affine", "track_running_stats")}
        return type(module)(_inputs(module.num_features, before), **how), before
    if all(p.numel() == 1 for p in module.parameters()):  # none, or a PReLU's one
        return copied(module), before
    raise ValueError(
        f"layer {path!r} ({type(module).__name__}) cannot be widened; allowed: Linear, Conv without groups, BatchNorm, "
        "InstanceNorm, layers without parameters. Give a function from a width to a network, or max_width=1"
    )


def _inputs(n: int, before: tuple[int, int] | None) -> int:
    """So many inputs read the wider layer before it; each of its units may be read at several places."""
    return n if before is None else n // before[0] * before[1]


def _check_rows(network: nn.Module) -> None:
    """ValueError where rows of a layer stand in blocks, so that the first rows of a wider one mean something else."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or any(hasattr(module, p) for p in PROJECTIONS):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) cannot be widened: its rows stand in blocks, one per gate "
                "or projection, so its old weights would be other weights of a wider one. Give a module and max_width=1"
            )
