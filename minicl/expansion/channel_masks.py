"""Masks over the channels of a network while it is learned, and what is cut out of it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..isolation.hat import attention
from ..layers import columns, set_tensors
from .growing import Growing


class ChannelMasks:
    """Of each layer of a network one number from 0 to 1 for each channel, which its output is multiplied by.

    Args:
        network: an `nn.Sequential` that `Growing` takes.
        scores: real numbers, of all layers in one vector.

    Attributes:
        soft: the masks of the forward pass that was done last in training.
        inputs: channels of the network's input.
        kernels: of each layer the number of weights between one channel and another.
    """

    def __init__(self, network: nn.Module, scores: Tensor) -> None:
        self.layers, self.scores = Growing(network, "DER").layers, scores
        self.sizes = [len(layer.weight) for layer in self.layers]
        self.soft: list[Tensor] = []
        self.inputs: int = self.layers[0].weight.shape[1]
        pairs = zip(self.layers, [self.inputs, *self.sizes], strict=False)
        self.kernels = [layer.weight.numel() / (len(layer.weight) * below) for layer, below in pairs]

    def hard(self) -> list[Tensor]:
        """1[e > 0] for each layer, and in a layer without any the channel with the highest score."""
        return [(e > 0) | (e == e.max()) & (e.max() <= 0) for e in self.scores.detach().split(self.sizes)]

    @contextmanager
    def on(self, training: Callable[[], bool], heat: Callable[[], float]) -> Iterator[None]:
        """Here the masks are multiplied in: soft in training, 0 or 1 otherwise.

        Args:
            training: whether that is now.
            heat: how sharp the soft ones are now.
        """

        def gate(level: int, _module: nn.Module, _given: Any, out: Tensor) -> Tensor:
            if not training():
                masks = self.hard()
            elif level == 0:
                masks = self.soft = list(attention(self.scores, heat()).split(self.sizes))
            else:
                masks = self.soft
            return out * masks[level].to(out.dtype).view(-1, *[1] * (out.ndim - 2))

        hooks = [layer.register_forward_hook(partial(gate, level)) for level, layer in enumerate(self.layers)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def cut_out(network: nn.Module, kept: Sequence[Tensor]) -> None:
    """Leave in a network these channels of each layer alone, int64 of shape (n,), and no weights that read others."""
    chain, below = Growing(network, "DER"), None
    for layer, units, each in zip(chain.layers, kept, chain.each, strict=True):
        weight = layer.weight[units] if below is None else layer.weight[units][:, columns(below, each)]
        set_tensors(layer, weight, None if layer.bias is None else layer.bias[units])
        below = units


@torch.no_grad()
def fill_from_cut(network: nn.Module, cut: nn.Module, kept: Sequence[Sequence[int]]) -> None:
    """Give a network the weights of one that it was cut out of: new ones stand where channels were left out.

    Args:
        network: a whole one.
        cut: the one that channels are missing of.
        kept: of each layer the channels that were left in it.
    """
    whole, below = Growing(network, "DER"), None
    for layer, small, left, each in zip(whole.layers, Growing(cut, "DER").layers, kept, whole.each, strict=True):
        layer.reset_parameters()
        units = torch.tensor(left, device=layer.weight.device)
        inputs = columns(below, each) if below is not None else torch.arange(layer.weight.shape[1]).to(units)
        layer.weight[units[:, None], inputs] = small.weight
        if layer.bias is not None:
            layer.bias[units] = small.bias
        below = units
