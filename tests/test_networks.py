"""Backbones: plain networks of the stated shapes, and the weights that `run` may draw anew."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minicl import cnn, mlp
from minicl.networks import reinitialize

sizes = st.lists(st.integers(1, 9), min_size=2, max_size=5)
options = st.fixed_dictionaries(
    {"bias": st.booleans(), "batchnorm": st.booleans(), "dropout": st.sampled_from([0.0, 0.5])}
)


@given(widths=sizes, options=options, n=st.integers(1, 4))
def test_mlp_is_what_one_would_write_by_hand(widths: list[int], options: dict[str, Any], n: int) -> None:
    network = mlp(*widths, **options).eval()
    assert type(network) is nn.Sequential
    x = torch.randn(n, 1, widths[0])
    h = x.flatten(1)
    for layer in (m for m in network if isinstance(m, nn.Linear)):
        assert (layer.bias is not None) == options["bias"]
        h = h @ layer.weight.T + (layer.bias if options["bias"] else 0)
        h = (h / (1 + 1e-5) ** 0.5 if options["batchnorm"] else h).clamp(
            min=0
        )  # untrained statistics: mean 0, variance 1
    torch.testing.assert_close(network(x), h, atol=1e-5, rtol=1e-4)
    assert h.shape == (n, widths[-1])
    assert sum(isinstance(m, nn.BatchNorm1d) for m in network) == options["batchnorm"] * (len(widths) - 1)
    assert sum(isinstance(m, nn.Dropout) for m in network) == (options["dropout"] > 0) * (len(widths) - 1)


@given(
    channels=sizes.filter(lambda c: len(c) < 5),
    options=options,
    kernel=st.sampled_from([1, 3, 5]),
    pool=st.integers(1, 2),
)
def test_cnn_has_the_shape_it_promises(channels: list[int], options: dict[str, Any], kernel: int, pool: int) -> None:
    network = cnn(*channels, kernel_size=kernel, pool=pool, **options).eval()
    blocks = len(channels) - 1
    x = torch.randn(2, channels[0], 16, 24)
    assert network(x).shape == (2, channels[-1] * (16 // pool**blocks) * (24 // pool**blocks))
    assert [m.out_channels for m in network if isinstance(m, nn.Conv2d)] == channels[1:]
    assert all((m.bias is not None) == options["bias"] for m in network if isinstance(m, nn.Conv2d))


def test_the_activation_is_ones_own_choice() -> None:
    assert any(isinstance(m, nn.Tanh) for m in mlp(2, 3, activation=nn.Tanh))
    leaky = next(m for m in cnn(1, 2, activation=partial(nn.LeakyReLU, 0.3)) if isinstance(m, nn.LeakyReLU))
    assert leaky.negative_slope == 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp(64), r"mlp\(64,\) is not a network; allowed: at least two positive integers"),
        (lambda: mlp(), r"mlp\(\) is not a network"),
        (lambda: mlp(64, 0), r"mlp\(64, 0\) is not a network"),
        (lambda: mlp(64, -3, 10), r"mlp\(64, -3, 10\)"),
        (lambda: mlp(64, 10, dropout=1.0), "dropout is 1.0; allowed: from 0 up to, but not including, 1"),
        (lambda: mlp(64, 10, dropout=-0.5), "dropout is -0.5"),
        (lambda: mlp(64, 10, dropout=float("nan")), "dropout is nan"),
        (lambda: cnn(1), r"cnn\(1,\) is not a network"),
        (lambda: cnn(1, 8, kernel_size=2), "kernel_size is 2; allowed: odd numbers"),
        (lambda: cnn(1, 8, kernel_size=-1), "kernel_size is -1"),
        (lambda: cnn(1, 8, pool=0), "pool is 0; allowed: integers from 1"),
    ],
)
def test_what_is_no_network_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_activation_is_a_class_not_a_module() -> None:
    from minicl.networks import _check

    with pytest.raises(TypeError, match=r"activation is ReLU\(\); allowed: a class of modules"):
        _check("mlp", (1, 2), nn.ReLU(), 0.0)


@pytest.mark.parametrize("make", [lambda: mlp(4, 8, 3, batchnorm=True), lambda: cnn(1, 4, 2, batchnorm=True)])
def test_untouched_weights_are_drawn_anew(make: Any) -> None:
    draws = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        network = make()
        torch.manual_seed(7)
        assert reinitialize(network)
        assert reinitialize(network)  # still untouched
        draws.append(torch.cat([t.flatten().double() for t in network.state_dict().values()]))
    assert torch.equal(*draws)


def test_touched_weights_are_kept() -> None:
    for touch in (
        lambda network: network[1].weight.data.add_(1),
        lambda network: network(torch.randn(3, 4)),  # in training mode: BatchNorm has seen data
        lambda network: network.load_state_dict(mlp(4, 3, batchnorm=True).state_dict()),
    ):
        network = mlp(4, 3, batchnorm=True)
        touch(network)
        before = copy.deepcopy(network.state_dict())
        assert not reinitialize(network)
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_networks_from_elsewhere_are_kept() -> None:
    network = nn.Sequential(nn.Linear(2, 3))
    assert not reinitialize(network)
    assert not reinitialize(nn.Sequential(mlp(2, 3)))
