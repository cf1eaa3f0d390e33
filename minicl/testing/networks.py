"""Networks of all kinds: plain ones, random ones, and those that not every method takes."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minicl

Shape = tuple[int, ...]


class Own(nn.Module):
    """Anyone's network: convolutions, BatchNorm, dropout, a residual connection; no nn.Sequential around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.register_parameter("scale", nn.Parameter(torch.ones(())))
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x)))
        return self.drop(h + self.scale * self.again(h)).mean((2, 3))


class Residual(nn.Module):
    """A small network with everything nested: convolutions, a shortcut, norms, a projection."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.block = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(2, channels), nn.PReLU())
        self.up = nn.ConvTranspose2d(channels, 2, 2, stride=2)
        self.out = nn.Linear(2 * 32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.out(self.up(x + self.block(x)).flatten(1))


class Attention(nn.Module):
    """A transformer encoder over the two rows of an image."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.place = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.flatten(1).view(len(x), 2, 4) + self.place).flatten(1)


class Words(nn.Module):
    """Embedding, recurrence, a list of parameters, and a running mean that is updated in training."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.recurrent = nn.LSTM(4, 3, batch_first=True)
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))])
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(6))
        self.out = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        words = self.words((x.flatten(1) * 4.9).long())
        with torch.autocast("cpu", enabled=False):  # many processors have no LSTM in half precision
            h = self.recurrent(words)[0][:, -2:].flatten(1)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return self.out((h - self.mean) * self.scales[0] + self.scales[1])


SHAPE: Shape = (1, 2, 4)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: minicl.mlp(8, 9, 7),
    "no biases, dropout": lambda: minicl.mlp(8, 9, 7, bias=False, dropout=0.3),
    "batchnorm": lambda: minicl.mlp(8, 9, 7, batchnorm=True, dropout=0.2),
    "convolutions": lambda: minicl.cnn(1, 4, pool=1, batchnorm=True),
    "residual": Residual,
    "attention": Attention,
    "words": Words,
    "one dimension": lambda: nn.Sequential(
        *(nn.Flatten(2), nn.Conv1d(1, 3, 3), nn.InstanceNorm1d(3, track_running_stats=True)),
        *(nn.ReLU(), nn.ConvTranspose1d(3, 2, 2), nn.Flatten()),
    ),
    "three dimensions": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 3, (1, 2, 2)), nn.Tanh()),
        *(nn.ConvTranspose3d(3, 2, 1), nn.Flatten()),
    ),
}
"""For inputs of shape `SHAPE`.

:meta hide-value:
"""

ACTIVATIONS = (
    *(nn.ReLU, nn.Tanh, nn.LeakyReLU, nn.Sigmoid, nn.PReLU, nn.GELU, nn.ELU, nn.Identity),
    partial(nn.ReLU, inplace=True),
)


def sequential(case: int, gated: bool = False, narrowest: int = 1) -> tuple[nn.Sequential, Shape]:
    """An MLP or a CNN with layers drawn at random, the same for the same case, and the shape of its inputs.

    Biases or none, norms before or after the activation or none, dropout, pooling, networks within networks.

    Args:
        gated: wide enough for several tasks of HAT, without groups, and with no norm but BatchNorm.
        narrowest: the fewest units of a layer, where it is not gated.
    """
    choose = random.Random(case)
    bias, dropout = choose.random() < 0.7, choose.choice([0.0, 0.3])
    norm = choose.choice(["", "batch"] if gated else ["", "batch", "layer"])
    layers: list[nn.Module] = []

    def after(n_out: int, of_maps: bool) -> list[nn.Module]:
        """Activation, norm and dropout behind a layer."""
        kinds: dict[str, Any] = {"batch": nn.BatchNorm2d if of_maps else nn.BatchNorm1d}
        kinds["layer"] = partial(nn.GroupNorm, 1) if of_maps else nn.LayerNorm
        made: list[nn.Module] = [choose.choice(ACTIVATIONS)()]
        if norm:
            made.insert(choose.choice([0, 1]), kinds[norm](n_out))
        if dropout:
            made.append((nn.Dropout2d if of_maps and choose.random() < 0.5 else nn.Dropout)(dropout))
        return made

    if choose.random() < 0.5:
        shape: Shape = (choose.randint(2, 6),)
        width = shape[0]
        if choose.random() < 0.3:
            layers.append(nn.Flatten() if gated or choose.random() < 0.5 else nn.BatchNorm1d(width))
        for _ in range(choose.randint(1, 3)):
            n_out = choose.choice([4, 7, 9]) if gated else choose.randint(narrowest, 6)
            layers += [nn.Linear(width, n_out, bias=bias), *after(n_out, False)]
            width = n_out
        return nn.Sequential(*layers), shape
    channels, side = choose.choice([2, 4]), choose.choice([4, 6])
    shape = (channels, side, side)
    for _ in range(choose.randint(1, 2)):
        n_out, groups = (choose.choice([3, 5, 6]), 1) if gated else (choose.choice([2, 4]), choose.choice([1, 1, 2]))
        block = [nn.Conv2d(channels, n_out, 3, padding=1, bias=bias, groups=groups), *after(n_out, True)]
        if side > 2:
            block.append(choose.choice([nn.MaxPool2d, nn.AvgPool2d])(2))
        layers += [nn.Sequential(*block)] if choose.random() < 0.3 else block
        channels, side = n_out, side // 2 if side > 2 else side
    layers.append(nn.Flatten())
    width = channels * side**2
    for _ in range(choose.randint(0, 2) if gated else choose.randint(0, 1)):
        n_out = choose.choice([4, 7, 9]) if gated else choose.randint(narrowest, 6)
        layers += [nn.Linear(width, n_out, bias=bias), *after(n_out, False)]
        width = n_out
    return nn.Sequential(*layers), shape


def anything(case: int) -> tuple[nn.Module, Shape]:
    """One of `NETWORKS`, or now and then a random `sequential`; and the shape of its inputs."""
    at = case % (len(NETWORKS) + 2)
    return (list(NETWORKS.values())[at](), SHAPE) if at < len(NETWORKS) else sequential(case, narrowest=3)


# ---- random graphs ---------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Several ways through a network, which meet: "sum", "cat" side by side, or "product" with gates from 0 to 1."""

    def __init__(self, how: str, *branches: nn.Module) -> None:
        super().__init__()
        self.how, self.branches = how, nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [branch(x) for branch in self.branches]
        if self.how == "cat":
            return torch.cat([first, *others], dim=1)
        for other in others:
            first = first * torch.sigmoid(other) if self.how == "product" else first + other
        return F.relu(first) if self.how == "sum" else first


def graph(number: int, narrowest: int = 3) -> tuple[nn.Module, Shape]:
    """A network with branches drawn at random, the same for the same number, and the shape of its inputs.

    Sums, with and without a layer on the shortcut, concatenations, products, depthwise and grouped convolutions,
    transposed ones, norms per channel and over channels, pooling; then layers without positions, with the same.

    Args:
        number: which one.
        narrowest: the fewest units of a layer.
    """
    choose = random.Random(number)
    norm, bias = choose.choice(["", "batch", "batch", "group"]), choose.random() < 0.7
    width = partial(choose.randint, narrowest, narrowest + 3)

    def layer(n_in: int, n_out: int, of_maps: bool, groups: int = 1, last: bool = False) -> list[nn.Module]:
        """A layer, and behind it, unless a sum follows, a norm and an activation in any order."""
        if not of_maps:
            made: nn.Module = nn.Linear(n_in, n_out, bias=bias)
        elif groups == 1 and choose.random() < 0.15:
            made = nn.ConvTranspose2d(n_in, n_out, 3, padding=1, bias=bias)
        else:
            size = choose.choice([1, 3]) if groups == 1 else 3
            made = nn.Conv2d(n_in, n_out, size, padding=size // 2, bias=bias, groups=groups)
        after: list[nn.Module] = []
        if norm == "batch":
            after.append(nn.BatchNorm2d(n_out) if of_maps else nn.BatchNorm1d(n_out))
        elif norm:
            after.append(nn.GroupNorm(1, n_out) if of_maps else nn.LayerNorm(n_out))
        if not last:
            after.insert(choose.choice([0, len(after)]), choose.choice(ACTIVATIONS)())
        return [made, *after]

    def block(n: int, of_maps: bool) -> tuple[list[nn.Module], int]:
        """One part of the network, and how many channels or features come out."""
        kind = choose.choice(["plain", "sum", "sum", "shortcut", "cat", "product", *["separable", "grouped"] * of_maps])
        n_out = width()
        if kind == "plain":
            return layer(n, n_out, of_maps), n_out
        if kind == "separable":
            return [*layer(n, n, of_maps, groups=n), *layer(n, n_out, of_maps)], n_out
        if kind == "grouped":
            return [*layer(n, 4, of_maps), *layer(4, 6, of_maps, groups=2)], 6
        deep = choose.random() < 0.5
        inner = width()
        branch = [*layer(n, inner, of_maps), *layer(inner, n_out, of_maps)] if deep else layer(n, n_out, of_maps)
        if kind == "cat":
            return [Branches("cat", nn.Identity(), nn.Sequential(*branch))], n + n_out
        if kind == "product":
            pooled = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, n, 1)] if of_maps else [nn.Linear(n, n)]
            return [Branches("product", nn.Identity(), nn.Sequential(*pooled))], n
        if kind == "shortcut":
            way = nn.Sequential(*layer(n, n_out, of_maps, last=True))
            return [Branches("sum", way, nn.Sequential(*branch))], n_out
        end = layer(n_out, n, of_maps, last=True)
        return [Branches("sum", nn.Identity(), nn.Sequential(*branch, *end))], n

    if choose.random() < 0.3:
        shape: Shape = (choose.randint(2, 6),)
        made: list[nn.Module] = []
        n, sides = shape[0], 0
    else:
        channels, sides = choose.choice([1, 2, 3]), choose.choice([4, 6])
        shape = (channels, sides, sides)
        n = width()
        made = layer(channels, n, True)
        for _ in range(choose.randint(1, 3)):
            more, n = block(n, True)
            made += more
            if sides > 2 and choose.random() < 0.5:
                made.append(choose.choice([nn.MaxPool2d, nn.AvgPool2d])(2))
                sides //= 2
        if choose.random() < 0.5:
            made.append(nn.AdaptiveAvgPool2d(1))
            sides = 1
        made.append(nn.Flatten())
        n *= sides**2
    for _ in range(choose.randint(0 if sides else 1, 2)):
        if n > 12:  # no wide sums
            made += layer(n, n := width(), False)
        more, n = block(n, False)
        made += more
        if choose.random() < 0.3:
            made.append(nn.Dropout(0.2))
    return nn.Sequential(*made), shape
