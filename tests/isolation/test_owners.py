"""Which weights of a network can have owners: names, and what is refused."""

from __future__ import annotations

import pytest
import torch
from backbones import Attention
from torch import nn
from torch.nn.utils import parametrizations, prune

import minicl
from minicl import PackNet
from minicl.isolation.owners import prunable


def test_networks_that_cannot_be_packed_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\(Embedding\) has no layer to prune"):
        PackNet(nn.Embedding(3, 4))
    with pytest.raises(ValueError, match="no layer to prune"):
        PackNet(minicl.mlp(8, 5).requires_grad_(False))
    for wrapped, helps in (
        (parametrizations.weight_norm(nn.Linear(8, 5)), "parametrize.remove_parametrizations"),
        (prune.l1_unstructured(nn.Linear(8, 5), "weight", 0.5), "prune.remove"),
        (nn.utils.spectral_norm(nn.Linear(8, 5)), "remove_spectral_norm"),
    ):
        words = rf"layer '1' \(.*Linear\) computes its weight from other parameters .* with torch\.nn\.utils\.{helps}$"
        with pytest.raises(ValueError, match=words):
            PackNet(nn.Sequential(nn.Flatten(), wrapped))
    with pytest.raises(ValueError, match=r"layer '1' \(LazyLinear\) has no weights yet"):
        PackNet(nn.Sequential(nn.Flatten(), nn.LazyLinear(5)))
    with pytest.raises(ValueError, match=r"layer '1' \(Linear\) has weights of torch.complex64; allowed: float16"):
        PackNet(nn.Sequential(nn.Flatten(), nn.Linear(8, 5, dtype=torch.complex64)))


def test_all_weights_of_attention_are_packed() -> None:
    assert list(prunable(Attention())) == [
        f"encoder.layers.{i}.{name}"
        for i in (0, 1)
        for name in ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")
    ]
    apart = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
    assert list(prunable(apart)) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"]
    assert prunable(nn.Linear(2, 3)) == {"weight": "weight"}
