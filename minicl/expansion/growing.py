"""A chain of layers that grows: units are added, taken out and duplicated, and a task may use the first so many alone.

Whoever reads a unit changes with it: the layer above, and for the last layer the head of the task being learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..freezing import FrozenEntries, copied
from ..layers import chain, columns, set_tensors
from ..saving import starting_with

Before = Sequence[tuple[Tensor, Tensor | None]]
"""Weight and bias of each layer, as they were."""


class Growing:
    """The layers of `backbone`, from the first to the last, whose units come in the order of their arrival.

    Args:
        backbone: an `nn.Sequential` that `minicl.layers.chain` takes.
        method: what errors call the method that asks.

    Attributes:
        names: of the layers.
        each: for each layer, how many of its columns a unit of the layer below feeds.
    """

    def __init__(self, backbone: nn.Module, method: str) -> None:
        self.backbone = backbone
        self.names = chain(backbone, method)[0]
        above = zip(self.layers[1:], self.units, strict=False)
        self.each = [1, *(layer.weight.shape[1] // n for layer, n in above)]

    @property
    def layers(self) -> list[Any]:
        """The layers."""
        return [self.backbone.get_submodule(name) for name in self.names]

    @property
    def units(self) -> list[int]:
        """How many units each layer has now."""
        return [len(layer.weight) for layer in self.layers]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of each layer's weight."""
        return [(layer.weight.shape[0], layer.weight.shape[1]) for layer in self.layers]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weights and biases of the layers."""
        return [p for layer in self.layers for p in (layer.weight, layer.bias) if p is not None]

    def copy(self) -> Before:
        """Weights and biases as they are now."""
        return [(layer.weight.detach().clone(), _clone(layer.bias)) for layer in self.layers]

    def since(self, before: Before) -> list[tuple[Tensor, Tensor]]:
        """Each parameter, and what it was then."""
        pairs = zip(self.layers, before, strict=True)
        both = [pair for layer, (w, b) in pairs for pair in ((layer.weight, w), (layer.bias, b))]
        return [(parameter, then) for parameter, then in both if then is not None]

    def first(self, units: Sequence[int]) -> dict[str, Tensor]:
        """The backbone's tensors, by name, with the first so many units of each layer alone."""
        tensors: dict[str, Tensor] = {}
        for name, layer, n_out, n_in in zip(self.names, self.layers, units, self._widths(units), strict=True):
            tensors[f"{name}.weight"] = layer.weight[:n_out, :n_in].contiguous()
            if layer.bias is not None:
                tensors[f"{name}.bias"] = layer.bias[:n_out].contiguous()
        return tensors

    def alone(self, units: Sequence[int]) -> nn.Module:
        """A copy of the backbone with the first so many units of each layer alone."""
        network, tensors = copied(self.backbone), self.first(units)
        for name in self.names:
            bias = tensors.get(f"{name}.bias")
            set_tensors(network.get_submodule(name), tensors[f"{name}.weight"].clone(), _clone(bias))
        return network

    def _widths(self, units: Sequence[int]) -> list[int]:
        """How many columns each layer has, where there are so many units."""
        below = zip(units, self.each[1:], strict=False)
        return [self.layers[0].weight.shape[1], *(n * each for n, each in below)]

    # ---- units come and go -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def resize(self, units: Sequence[int], head: nn.Linear, each: int) -> None:
        """So many units for each layer: new ones get first weights, or the last ones go.

        Args:
            head: reads the last layer.
            each: how many of its columns a unit feeds.
        """
        sizes = [*zip(units, self._widths(units), strict=True), (len(head.weight), units[-1] * each)]
        for layer, (n_out, n_in) in zip([*self.layers, head], sizes, strict=True):
            old, bias = layer.weight, layer.bias
            if old.shape[:2] != (n_out, n_in):
                fresh = copied(layer)
                weight = old.new_empty(n_out, n_in, *old.shape[2:])
                set_tensors(fresh, weight, None if bias is None else weight.new_empty(n_out))
                fresh.reset_parameters()
                rows, cols = min(n_out, old.shape[0]), min(n_in, old.shape[1])
                fresh.weight[:rows, :cols] = old[:rows, :cols]
                if bias is not None:
                    fresh.bias[:rows] = bias[:rows]
                set_tensors(layer, fresh.weight, fresh.bias)

    @torch.no_grad()
    def remove_unused(self, first: Sequence[int], head: nn.Linear, each: int) -> None:
        """Take out the units that nothing comes into, of those from `first` on in each layer."""
        below: Tensor | None = None
        for layer, n, of_each in zip(self.layers, first, self.each, strict=True):
            weight = layer.weight if below is None else layer.weight[:, columns(below, of_each)]
            alive = weight.flatten(1).any(1)
            if layer.bias is not None:
                alive |= layer.bias != 0
            alive[:n] = True
            kept = alive.nonzero().flatten()
            set_tensors(layer, weight[kept], None if layer.bias is None else layer.bias[kept])
            below = kept
        assert below is not None
        set_tensors(head, head.weight[:, columns(below, each)], None)

    @torch.no_grad()
    def duplicate(
        self, split: Sequence[Tensor], before: Before, head: nn.Linear, each: int, biases: Callable[[Tensor], Tensor]
    ) -> None:
        """A copy behind the last unit of each layer for every unit that is split; the unit goes back to what it was.

        What came with this task reads the copy in the unit's place; older units go on reading the unit alone.

        Args:
            split: the units of each layer, int64 of shape (n,).
            before: the layers before the task.
            head: as for `resize`, as is `each`.
            biases: from biases of split units to those that their copies start with.
        """
        below: Tensor | None = None
        for layer, (weight_before, bias_before), units, of_each in zip(
            self.layers, before, split, self.each, strict=True
        ):
            weight = torch.cat([layer.weight.detach(), layer.weight.detach()[units]])  # copies last
            if below is not None:
                weight = _read_copies(weight, columns(below, of_each), len(weight_before))
            weight[units] = 0
            weight[units, : weight_before.shape[1]] = weight_before[units]
            bias = None
            if layer.bias is not None and bias_before is not None:
                bias = torch.cat([layer.bias.detach(), biases(layer.bias.detach()[units])])
                bias[units] = bias_before[units]
            set_tensors(layer, weight, bias)
            below = units
        assert below is not None
        set_tensors(head, _read_copies(head.weight.detach(), columns(below, each), 0), None)

    def make_room(self, saved: Mapping[str, Tensor]) -> None:
        """Have the layers as large as in these tensors of a grown backbone, by name; not if it was another network."""
        own = self.backbone.state_dict()
        rest = {name: tensor.shape[2:] for name, tensor in own.items()}
        if rest != {name: tensor.shape[2:] for name, tensor in saved.items()}:
            return
        if saved[f"{self.names[0]}.weight"].shape[1] != self.layers[0].weight.shape[1]:
            return
        for name, layer in zip(self.names, self.layers, strict=True):
            of_layer, like = dict(starting_with(f"{name}.", saved)), layer.weight
            bias = None if layer.bias is None else like.new_empty(of_layer["bias"].shape)
            set_tensors(layer, like.new_empty(of_layer["weight"].shape), bias)

    # ---- a part of it ------------------------------------------------------------------------------------------------

    def hold_first(self, sizes: Sequence[tuple[int, int]], frozen: FrozenEntries) -> None:
        """Hold so many rows and columns of each layer, and as much of its bias."""
        for layer, (n_out, n_in) in zip(self.layers, sizes, strict=True):
            frozen.hold_corner(layer.weight, (n_out, n_in))
            if layer.bias is not None:
                frozen.hold_corner(layer.bias, (n_out,))

    @torch.no_grad()
    def hold_all_but(self, selected: Sequence[Tensor], head: nn.Linear, frozen: FrozenEntries) -> None:
        """Hold every weight that does not lead from one selected unit, or an input, to another, or to an output.

        Args:
            selected: a boolean mask over the units of each layer.
            head: reads the last layer; its bias is free.
            frozen: what holds.
        """
        below = torch.ones(self.layers[0].weight.shape[1], dtype=torch.bool, device=head.weight.device)
        for layer, units in zip(self.layers, selected, strict=True):
            n_out, n_in = layer.weight.shape[:2]
            held = ~(units[:, None] & below.repeat_interleave(n_in // len(below)))  # (n_out, n_in)
            frozen.hold(layer.weight, held.view(n_out, n_in, *[1] * (layer.weight.ndim - 2)).expand_as(layer.weight))
            if layer.bias is not None:
                frozen.hold(layer.bias, ~units)
            below = units
        unread = ~below.repeat_interleave(head.in_features // len(below))
        frozen.hold(head.weight, unread.expand_as(head.weight))  # type: ignore[arg-type]


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _read_copies(weight: Tensor, split: Tensor, first: int) -> Tensor:
    """Columns for copies of the columns `split`: rows from `first` on read them in their place, the others not yet."""
    weight = torch.cat([weight, weight[:, split]], 1)
    weight[:first, weight.shape[1] - len(split) :] = 0
    weight[first:, split] = 0
    return weight
