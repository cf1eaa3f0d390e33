"""A network as torch alone can run it: what it computes, written down call by call, without anybody's classes."""

from __future__ import annotations

import builtins
import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import inputs
from ..freezing import one_at_a_time
from .columns import Column, attends

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
            with one_at_a_time(), _lengths(), redirect_stderr(StringIO()):  # where torch.export prints whole graphs
                found = way(network, x)
        except Exception as error:  # tracers stop with anything
            said = str(error).strip().partition("\n")[0]
            problems.append(f"{way.__doc__}: {_where(network, error)}{type(error).__name__}: {said}")
        else:
            return found
    raise ValueError(
        f"the network cannot be written down without its own classes ({'; '.join(problems)}). What helps: a forward "
        "without branches that depend on values (torch.where in their place), and of torch alone; or keep the learner, "
        "with save and load"
    )


def _where(network: nn.Module, error: BaseException) -> str:
    """Where a tracer stopped, in words: the innermost module of the user's, and the line of their code."""
    paths: dict[int, str] = {}
    for part in network.modules():
        if isinstance(part, Column):  # which are all alike
            paths |= {id(module): path for path, module in part.layers.named_modules()}
    module = line = ""
    known: BaseException | None = error
    while known is not None and not line:
        for frame, number in traceback.walk_tb(known.__traceback__):
            package = frame.f_globals.get("__name__", "").partition(".")[0]
            if package not in ("torch", "minicl"):
                within = next((frame.f_locals.get(name) for name in frame.f_code.co_varnames[:1]), None)
                if id(within) in paths:
                    module = f"in {_called(paths[id(within)])} ({type(within).__name__}), "
                file = frame.f_code.co_filename
                line = f'{Path(file).name}, line {number}, "{linecache.getline(file, number).strip()}": '
        known = known.__cause__ or known.__context__
    return module + line


def _called(path: str) -> str:
    return f"layer {path!r}" if path else "the backbone"


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
    for node in graph.nodes:
        if node.op == "call_function" and not _of_torch(node.target):
            raise TypeError(f"it calls {node.target.__module__}.{node.target.__name__}")
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
