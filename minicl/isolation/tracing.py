"""A network as torch alone can run it: what it computes, written down call by call, without anybody's classes."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import inputs
from ..freezing import one_at_a_time
from .columns import attends

NAME = "ProgressiveNetwork"


def traced(network: nn.Module, x: Any) -> fx.GraphModule:
    """A graph with the weights of the network: by `torch.fx`, or by `torch.export` where that cannot follow.

    With `torch.fx` the layers of torch stay modules, and `code` can be read; `torch.export` writes down single
    operations, for batches of any size.

    Args:
        network: takes a tensor, or a tree of such; in evaluation mode.
        x: two samples to try it with; None where there are none.

    Raises:
        ValueError: neither can follow the network, or both give other bits than it does.
    """
    problems = []
    for way in (_by_fx, _by_export):
        try:
            with one_at_a_time(), _lengths():
                found = way(network, x)
        except Exception as error:  # tracers stop with anything
            problems.append(f"{way.__doc__}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        else:
            return found
    raise ValueError(
        f"the network cannot be written down without its own classes ({'; '.join(problems)}). What helps: a forward "
        "without branches that depend on values; or keep the learner, with save and load"
    )


@contextmanager
def _lengths() -> Iterator[None]:
    """`len(x)` is `x.shape[0]`, as for every tensor; Python's own wants a number, where the batch may have any size."""
    own, changed = builtins.len, vars(builtins)

    def length(x: Any) -> Any:
        return x.shape[0] if isinstance(x, (Tensor, fx.Proxy)) else own(x)  # type: ignore[index]

    changed["len"] = length
    try:
        yield
    finally:
        changed["len"] = own


class _Tracer(fx.Tracer):
    """Follows modules of torch to their inside, too, where something was put around a layer in them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) and not any("forward" in vars(p) for p in m.modules())


def _by_fx(network: nn.Module, x: Any) -> fx.GraphModule:
    """torch.fx"""
    if x is not None and not isinstance(x, Tensor):
        raise TypeError("inputs that are no tensor")
    if attends(network):
        raise TypeError("PyTorch's attention computes in one of two ways, as it finds quicker")
    graph = _Tracer().trace(network)
    foreign = [node.target for node in graph.nodes if node.op == "call_function" and not _of_torch(node.target)]
    if foreign:
        raise TypeError(f"it calls {foreign[0].__module__}.{foreign[0].__name__}")
    return _same(network, network, graph, x)


def _by_export(network: nn.Module, x: Any) -> fx.GraphModule:
    """torch.export"""
    if x is None:
        raise TypeError("the shape of an input is not known")
    batch = torch.export.Dim("batch", min=1)
    sizes = inputs.map(lambda leaf: {0: batch}, x)
    followed: Any = torch.export.export(network, (x,), dynamic_shapes=(sizes,), strict=False).module(check_guards=False)
    places = (node.target for node in followed.graph.nodes if node.op == "get_attr")
    return _same(network, {place: attrgetter(place)(followed) for place in places}, followed.graph, x)


def _of_torch(function: Any) -> bool:
    home = getattr(function, "__module__", None) or "torch"
    return home.partition(".")[0] in ("torch", "_operator", "operator", "builtins", "math")


def _same(network: nn.Module, root: Any, traced: fx.Graph, x: Any) -> fx.GraphModule:
    """The graph with the tensors of `root` and nothing of who traced it, if it answers as the network does."""
    graph = fx.Graph()
    out: Any = graph.graph_copy(traced, {})
    if x is not None and not isinstance(x, Tensor):
        graph._codegen = traced._codegen  # which takes the tree apart, and puts the answer together
    elif isinstance(out, (tuple, list)):
        (out,) = out
    graph.output(out)
    for node in graph.nodes:
        node.meta, node.type = {}, None
    found = fx.GraphModule(root, graph, NAME).eval().requires_grad_(False)
    if x is not None:
        with torch.no_grad():
            for part in (x, inputs.take(x, slice(0, 1))):
                if not torch.equal(found(part), network(part)):
                    raise ValueError("the answers are not the same")
    return found
