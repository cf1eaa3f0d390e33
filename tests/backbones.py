"""Networks of all kinds: those of `minicl.testing`, by the name under which the tests know them."""

from __future__ import annotations

from minicl.testing.networks import (
    ACTIVATIONS,
    NETWORKS,
    SHAPE,
    Attention,
    Branches,
    Own,
    Residual,
    Words,
    anything,
    graph,
    sequential,
)

__all__ = [
    "ACTIVATIONS",
    "NETWORKS",
    "SHAPE",
    "Attention",
    "Branches",
    "Own",
    "Residual",
    "Words",
    "anything",
    "graph",
    "sequential",
]
