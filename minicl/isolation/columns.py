"""A column of a progressive network, made of any module: which calls can have laterals, and what each is given.

The copied network stays as it is. Where a lateral leads into a layer, that layer's `forward` is put inside a `Reading`,
which notes what the layer is given, and adds what the earlier columns were given at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import inputs
from ..freezing import evaluating, one_at_a_time

Site = tuple[str, int]
"""A layer by its path in the network, and which of its calls in one pass, from 0. The head is `HEAD`."""
HEAD: Site = ("", 0)
Given = dict[Site, Any]
"""h_{i-1} of one column for every site i: what the layer there was given."""
Tap = Callable[[int, Tensor], Tensor]
Lateral = Callable[..., Tensor]

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
BELONG_TO_F = (
    *(nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    nn.PReLU,
)
"""Layers whose weights count as part of the non-linearity f."""


def is_layer(module: nn.Module) -> bool:
    """Whether this is a Linear or Conv layer, or `Conv1D` of Hugging Face, which is a Linear."""
    return isinstance(module, (nn.Linear, *CONVOLUTIONS)) or _transposed(module)


def _transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and getattr(module._parameters.get("weight"), "ndim", 0) == 2


def width(layer: nn.Module) -> tuple[int, int]:
    """Features, or channels, that a layer is given and puts out."""
    if _transposed(layer):
        n_in, n_out = layer.get_parameter("weight").shape
        return n_in, n_out
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    return getattr(layer, names[0]), getattr(layer, names[1])


def axis(layer: nn.Module) -> int:
    """The axis of features or channels: the last one for a Linear, the one before the pixels for a Conv."""
    return -1 - len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else -1


def like(layer: nn.Module, n_in: int, columns: int = 1, **changes: int) -> nn.Module:
    """A layer with the outputs of `layer`, and `n_in` features or channels from each of several columns. No bias."""
    kind = next((kind for kind in CONVOLUTIONS if isinstance(layer, kind)), None)
    new: Any
    if kind is None:
        new = nn.Linear(columns * n_in, width(layer)[1], bias=False)
    else:
        names = ["kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
        if issubclass(kind, nn.modules.conv._ConvTransposeNd):
            names.append("output_padding")
        settings = {name: getattr(layer, name) for name in names} | changes
        new = kind(columns * n_in, layer.out_channels, bias=False, **settings)  # type: ignore[arg-type]
    if not isinstance(new, nn.modules.conv._ConvTransposeNd):
        new.weight.data *= columns**0.5  # PyTorch's first weights go with 1 / sqrt(inputs): of all columns, that is
    weight: Any = layer.weight
    return new.to(weight.device, weight.dtype)


def pointwise(layer: nn.Module, n_in: int, columns: int) -> nn.Module:
    """The same with a kernel of one pixel, which leaves maps as large as they are."""
    one = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        one["output_padding"] = 0
    return like(layer, n_in, columns, **one)


def layers_at(network: nn.Module, paths: Iterable[str]) -> list[nn.Module]:
    """The layers at these paths.

    Raises:
        ValueError: there is none.
    """
    modules = dict(network.named_modules())
    for path in paths:
        if path not in modules or not is_layer(modules[path]):
            raise ValueError(f"the file does not fit this backbone: it has no layer {path!r}, which has laterals")
    return [modules[path] for path in paths]


# ---- which calls have laterals ---------------------------------------------------------------------------------------


def look(network: nn.Module, x: Any, apply: Callable[[nn.Module, Any], Any]) -> dict[str, Any]:
    """What is found by running a copy of the network on an example x, as JSON can hold it.

    "sites", the calls that have laterals; "without", by layer, why others have none; "inputs", by its place in the
    tree, the type and the shape of one input.
    """
    with torch.random.fork_rng(devices=[]):
        sites, without = find_sites(network, lambda: apply(network, x))
    like_one = {at: [str(leaf.dtype), *leaf.shape[1:]] for at, leaf in inputs.named(x)}
    return {"sites": sites, "without": without, "inputs": like_one}


def unseen(network: nn.Module) -> dict[str, Any]:
    """The same for an `nn.Sequential` in a file from when nobody looked: all layers but the first."""
    return {"sites": [(path, 0) for path, module in network.named_modules() if is_layer(module)][1:]}


def stand_in(found: Mapping[str, Any], shape: Any, like: Tensor) -> Any:
    """Two made-up inputs of the kind that `look` has seen; else of this shape, and of the type of `like`."""
    kinds = found.get("inputs", {"": (str(like.dtype), *shape)})
    with torch.random.fork_rng(devices=[]):
        leaves = {at: torch.rand(2, *sizes) for at, (_, *sizes) in kinds.items()}
    types = {at: getattr(torch, kind.removeprefix("torch.")) for at, (kind, *_) in kinds.items()}
    return inputs.named_back(shape, {at: leaf.to(like.device, types[at]) for at, leaf in leaves.items()})


def find_sites(network: nn.Module, run: Callable[[], Any]) -> tuple[list[Site], dict[str, str]]:
    """The calls of layers that can have laterals, in order, and of all other layers why they have none.

    The network runs once. A call reads the network's own input if no weight lies between the two, but those of norms
    and activations: reshaping, pooling and arithmetic change nothing about that. Every column is given the same there.

    Args:
        network: a copy; its parameters are made to require gradients.
        run: runs it on an example.
    """
    paths = {id(module): path for path, module in network.named_modules()}
    calls: list[tuple[nn.Module, Any, Any, int, dict[str, Any]]] = []
    handles = []
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.requires_grad_(not isinstance(module, BELONG_TO_F))
        if is_layer(module):
            handles.append(module.register_forward_hook(partial(_note, calls), with_kwargs=True))
    with evaluating(network), slow_attention(), torch.enable_grad():
        run()
    for handle in handles:
        handle.remove()
    sites, without, seen = [], {}, dict.fromkeys(paths.values(), 0)
    for layer, h, out, version, more in calls:
        path = paths[id(layer)]
        site, seen[path] = (path, seen[path]), seen[path] + 1
        problem = _problem(layer, h, out, version, more)
        if problem is None:
            sites.append(site)
        else:
            without[path] = problem
    for module in network.modules():
        path = paths[id(module)]
        if is_layer(module):
            if not seen[path]:
                without[path] = "is never called: what is around it uses its weight by itself"
        elif _computes(module) and any(p.ndim > 1 for p in module.parameters(recurse=False)):
            without[path] = f"is a {type(module).__name__}: laterals lead into Linear and Conv layers"
    return sites, {path: why for path, why in without.items() if path not in {name for name, _ in sites}}


def _computes(module: nn.Module) -> bool:
    """Whether the weights here are those of a layer of some kind, and not just parameters beside other modules."""
    alone = isinstance(module, nn.MultiheadAttention) or not list(module.children())
    return alone and not isinstance(module, BELONG_TO_F)


def _note(calls: list[Any], layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    h, more = _arguments(args, kwargs)
    calls.append((layer, h, out, h._version, more))


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a layer is given, and what else it is told: the size of its output, where it is a transposed Conv."""
    kwargs = dict(kwargs)
    h, *more = args or (kwargs.pop(next(iter(kwargs))),)
    return h, kwargs | dict(zip(("output_size",), more, strict=False))


def _problem(layer: nn.Module, h: Tensor, out: Tensor, version: int, more: dict[str, Any]) -> str | None:
    """Why this call can have no lateral, or None."""
    if not h.requires_grad:
        return "reads the network's own input, which is the same in all columns"
    if h._version != version:
        return "is given a tensor that is overwritten in place later"
    if h.ndim != (2 - axis(layer) - 1 if isinstance(layer, CONVOLUTIONS) else max(h.ndim, 2)):
        return f"is given {tuple(h.shape)}, without an axis for the samples"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            shape = like(layer, width(layer)[0])(h, **more).shape
    except (RuntimeError, TypeError, ValueError) as error:
        return f"has a forward of its own: {error}"
    return None if shape == out.shape else "has a forward of its own, which puts out another shape"


def some_activation(network: nn.Module) -> nn.Module:
    """An activation like the network's first, for use on any number of units; ReLU where it has no such module."""
    for module in network.modules():
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            return nn.PReLU(init=float(module.weight.detach().mean()))
        if type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, _NOT_BY_UNIT):
            return module
    return nn.ReLU()


_NOT_BY_UNIT = (nn.MultiheadAttention, nn.GLU, nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d)


# ---- a column --------------------------------------------------------------------------------------------------------


class _Pass:
    """One batch on its way through one column."""

    def __init__(self, before: Sequence[Given], tap: Tap | None) -> None:
        self.before, self.tap = before, tap
        self.given: Given = {}
        self.calls: dict[str, int] = {}


class _Now:
    """What the column and its layers share: the pass that is on its way, if any."""

    passing: _Pass | None = None


class Reading:
    """In the place of a layer's `forward`: notes what it is given, and adds its lateral where earlier columns ran.

    Args:
        W: the layer's own forward.
        path: of the layer.
        numbers: the place, from 1, of each of its calls that has laterals.
        lateral: what reads the earlier columns; None in a first column.
        now: shared with the column.
    """

    def __init__(self, W: Lateral, path: str, numbers: Mapping[int, int], lateral: Lateral | None, now: _Now) -> None:
        self.W, self.path, self.numbers, self.lateral, self.now = W, path, numbers, lateral, now

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        passing = self.now.passing
        if passing is None:
            if self.lateral is not None and torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    f"layer {self.path!r} was called in the backward pass (gradient checkpointing), where what the "
                    "earlier columns put out is gone; switch gradient checkpointing off"
                )
            return self.W(*args, **kwargs)
        call = passing.calls.get(self.path, 0)
        passing.calls[self.path] = call + 1
        if call not in self.numbers:
            return self.W(*args, **kwargs)
        h, more = (args[0], {}) if len(args) == 1 and not kwargs else _arguments(args, kwargs)
        site = (self.path, call)
        if passing.tap is not None:
            h = passing.tap(self.numbers[call], h)
        passing.given[site] = h
        if self.lateral is None:
            return self.W(h, **more)
        try:
            earlier = [given[site] for given in passing.before]
        except KeyError:  # a call that not all columns make: layers that are left out at random
            return self.W(h, **more)
        return self.lateral(self.W, h, earlier, **more)


class Column(nn.Module):
    """One task's network, and its own laterals from the columns that were finished when it was made.

    Attributes:
        layers: the network, a copy of the backbone.
        sources: the numbers of the columns that it reads.
        sites: the calls that have laterals, the head's last.
        laterals: one for each layer that has any, in order of first call, and one for the head, where that is a layer;
            none where there are no sources.
    """

    def __init__(
        self, layers: nn.Module, sources: Sequence[int], sites: Iterable[Site], laterals: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.layers, self.sources = layers, list(sources)
        self.laterals = nn.ModuleList(laterals)
        self.sites = [*sites, HEAD]
        self.attends = attends(layers)
        self._now = _Now()
        for place, path in enumerate(paths_of(self.sites[:-1])):
            lateral = laterals[place] if laterals else None
            numbers = {site[1]: i for i, site in enumerate(self.sites, 1) if site[0] == path}
            layer = layers.get_submodule(path)
            layer.forward = Reading(layer.forward, path, numbers, lateral, self._now)

    def forward(self, run: Callable[[nn.Module], Any], before: Sequence[Given], tap: Tap | None = None) -> Given:
        """What every site, the head included, is given.

        Args:
            run: runs a network on the batch.
            before: the same of the earlier columns.
            tap: `tap(i, h)` may look at what site i, from 1, is given, or replace it.
        """
        passing = self._now.passing = _Pass(before, tap)
        try:
            if self.attends:
                with slow_attention():
                    h = run(self.layers)
            else:
                h = run(self.layers)
        finally:
            self._now.passing = None
        passing.given[HEAD] = h if tap is None else tap(len(self.sites), h)
        return passing.given

    def head(self, W: nn.Module, given: Mapping[int, Given], own: int) -> Tensor:
        """What the head W makes of what it is given; `given` are all columns, the `own` one among them."""
        h, before = given[own][HEAD], [given[j][HEAD] for j in self.sources]
        reads = len(self.laterals) == len(paths_of(self.sites))
        return self.laterals[-1](W, h, before) if reads else W(h)


def run_columns(
    columns: Mapping[int, Column],
    run: Callable[[nn.Module], Any],
    tap: Callable[[int, int, Tensor], Tensor] | None = None,
) -> dict[int, Given]:
    """Run columns one after another, each with what those before it were given; see `Column.forward`.

    `tap(k, i, h)` may look at what site i of column k is given, or replace it.
    """
    given: dict[int, Given] = {}
    with one_at_a_time():  # several threads may ask; what is on its way is noted in the columns
        for k, column in columns.items():
            given[k] = column(run, [given[j] for j in column.sources], None if tap is None else partial(tap, k))
    return given


class Progressive(nn.Module):
    """Columns and a head as one network.

    Args:
        columns: by number, in the order in which they run; the head is that of the last.
        head: of its task.
        apply: a network and a batch -> features.
        n_outputs: so many of the outputs are given; None for all.
    """

    def __init__(
        self,
        columns: Mapping[int, Column],
        head: nn.Module,
        apply: Callable[[nn.Module, Any], Any],
        n_outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.columns = nn.ModuleDict({str(k): column for k, column in columns.items()})
        self.head, self.apply_network, self.n_outputs = head, apply, n_outputs

    def forward(self, x: Any) -> Tensor:
        columns: dict[int, Any] = {int(k): column for k, column in self.columns.items()}
        given = run_columns(columns, lambda network: self.apply_network(network, x))
        own = next(reversed(columns))
        outputs = columns[own].head(self.head, given, own)
        return outputs if self.n_outputs is None else outputs[:, : self.n_outputs]


def paths_of(sites: Iterable[Site]) -> list[str]:
    """The layers of these sites, each once."""
    return list(dict.fromkeys(path for path, _ in sites))


def attends(network: nn.Module) -> bool:
    """Whether PyTorch's attention is in it."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    return any(isinstance(module, kinds) for module in network.modules())


@contextmanager
def slow_attention() -> Iterator[None]:
    """PyTorch's attention has a second way to compute, which passes over the layers inside; here it is off."""
    with one_at_a_time():
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
