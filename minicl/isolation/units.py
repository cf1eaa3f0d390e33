"""The units of a network, for a method that gates them: their gates, their order, and cutting out the unused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..freezing import FrozenEntries, copied, corner, evaluating, every_name, standalone
from ..networks import taken_off_with
from .columns import slow_attention
from .graph import CONVOLUTIONS, HEAD, TRANSPOSED, Graph, Recorder, follow, is_layer
from .task_norms import NORMS

Call = Callable[[nn.Module], Tensor]
"""Makes features of a network, of the inputs that it has in mind: shape (batch, features)."""

# ---- gates -----------------------------------------------------------------------------------------------------------


class Gates:
    """Gates on the outputs of modules, as long as they are attached; open while there are no values.

    Attributes:
        values: one mask for each gate.
        anew: makes the values once more, with a graph of their own.
    """

    def __init__(self) -> None:
        self.values: Sequence[Tensor] | None = None
        self.anew: Callable[[], Sequence[Tensor]] | None = None
        self.without_graph: set[int] = set()  # the gates that were last called where no graph is made
        self._handles: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy: the gates are open until the next forward pass, for PyTorch copies no tensor with a graph."""
        return {**self.__dict__, "values": None, "anew": None}

    def value(self, number: int) -> Tensor | None:
        """The mask of one gate.

        Reentrant gradient checkpointing runs a part of the network without a graph, and again in the backward pass,
        through which it goes backward on its own: there each gate needs a graph that belongs to that part alone.
        """
        if torch._C._current_graph_task_id() != -1:
            if number in self.without_graph and self.anew is not None:
                return self.anew()[number]
        elif torch.is_grad_enabled():
            self.without_graph.discard(number)
        else:
            self.without_graph.add(number)
        return None if self.values is None else self.values[number]

    def attach(self, network: nn.Module, graph: Graph) -> None:
        """Put the gates behind their modules."""
        for number, gate in enumerate(graph.gates):
            module = network.get_submodule(gate.path)
            if gate.heads:
                self._handles += [_Heads(self, number, module), module.register_forward_pre_hook(_no_shortcut)]
            else:
                self._handles.append(module.register_forward_hook(_Gate(self, number, gate.behind)))

    def detach(self) -> None:
        """Take them away again."""
        while self._handles:
            self._handles.pop().remove()
        self.values = self.anew = None

    @contextmanager
    def set(self, network: nn.Module, graph: Graph, values: Sequence[Tensor]) -> Any:
        """Here the gates have these values, attached or not; afterwards all is as before."""
        before, attached = self.values, bool(self._handles)
        try:
            if not attached:
                self.attach(network, graph)
            self.values = values
            yield
        finally:
            if not attached:
                self.detach()
            self.values = before


class _Gate:
    def __init__(self, gates: Gates, number: int, behind: int) -> None:
        self.gates, self.number, self.behind = gates, number, behind

    def __call__(self, module: nn.Module, args: Any, h: Tensor) -> Tensor:
        value = self.gates.value(self.number)
        return h if value is None else gated(h, value, self.behind)


class _Heads:
    """Gates on both sides of the out_proj of PyTorch's attention, in the place of its `forward`.

    Attention reads the weight of out_proj and calls no layer, so the gates stand in that weight: with a_i before what
    it makes and a_j before the heads, `a_i (sum_j W_ij (a_j h_j) + b_i) = sum_j (a_i W_ij a_j) h_j + a_i b_i`.
    """

    def __init__(self, gates: Gates, number: int, module: Any) -> None:
        self.gates, self.number, self.module = gates, number, module
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values, out = self.gates.values, self.module.out_proj
        given = dict(out._parameters)
        try:
            if values is not None:
                out._parameters.update(gated_heads(given, values[self.number]))
            return type(self.module).forward(self.module, *args, **kwargs)
        finally:
            out._parameters.update(given)

    def remove(self) -> None:
        """Attention is as it was."""
        del self.module.forward


def gated_heads(tensors: Mapping[str, Any], mask: Tensor) -> dict[str, Tensor]:
    """Weight and bias of out_proj between gates; of the mask, what it makes comes first, then what it reads."""
    weight, bias = tensors["weight"], tensors["bias"]
    after, before = mask.split(list(weight.shape))
    found = {"weight": gated(gated(weight, before, 0), after, 1)}
    return found if bias is None else {**found, "bias": gated(bias, after, 0)}


def _no_shortcut(*_: Any) -> None:
    """A hook: where there is one, the layer around attention calls it, and does not compute all by itself."""


def gated(h: Tensor, mask: Tensor, behind: int) -> Tensor:
    """`a (.) h`, the paper's Eq. 1. A binary mask selects, it does not multiply: no NaN of another task leaks.

    Args:
        h: shape (batch, ..., units, ...).
        mask: one for all, shape (units,), or one per sample, shape (batch, units).
        behind: how many axes h has after that of the units.
    """
    if mask.ndim > 1:
        mask = mask.view(len(mask), *[1] * (h.ndim - 2 - behind), -1, *[1] * behind)
    elif behind:
        mask = mask.view(-1, *[1] * behind)
    if mask.dtype == torch.bool:
        return torch.where(mask, h, 0.0)
    return h * (mask if mask.dtype == h.dtype else mask.to(h.dtype))


def packed(mask: Tensor) -> Tensor:
    """Eight bits a byte: bool of shape (n,) to uint8 of shape (ceil(n / 8),)."""
    bits = nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpacked(packed: Tensor, n: int) -> Tensor:
    """The inverse of `packed`."""
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (bits & 1).bool().flatten()[:n]


# ---- which units there are, and what may be done with them -----------------------------------------------------------


def check_layers(network: nn.Module) -> None:
    """ValueError where no layer could be gated."""
    if any(is_layer(module) for module in network.modules()):
        return
    computed = [
        f"; layer {path!r} ({type(module).__name__}) computes its weight from other parameters (weight_norm, "
        f"spectral_norm, ...): take that off first, with {taken_off_with(module)}"
        for path, module in network.named_modules()
        if isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)) and "weight" not in module._parameters
    ]
    raise ValueError(
        f"the backbone ({type(network).__name__}) has no layer with units that can be gated: no Linear or convolution "
        f"with a plain weight{''.join(computed[:4])}; minicl.PackNet takes recurrent layers, and any other module by "
        "its name"
    )


def units_of(network: nn.Module, call: Call, numbers: bool, answers: bool = False) -> Graph:
    """The units of a network, followed through one run of it in evaluation mode.

    Args:
        call: runs it.
        numbers: whether it is given one tensor of real numbers.
        answers: whether it returns answers, and no features of a head; see `follow`.

    Raises:
        ValueError: a network without a layer whose units can be told apart.
    """
    with slow_attention(), evaluating(network), torch.no_grad():
        with Recorder(network) as recorder:
            output = call(network)
        graph = follow(network, recorder, output, answers)
        if not graph.layers:
            raise ValueError(
                f"no layer of the backbone ({type(network).__name__}) has units that can be gated: each is called "
                "several times or not at all, or shares its weight. Give each place a layer of its own, or use "
                "minicl.PackNet"
            )
        _try(network, graph, call)
    graph.numbers = numbers
    return graph


def _try(network: nn.Module, graph: Graph, call: Call) -> None:
    """Let units stand in any order only where that is seen to change nothing, and cut them out only likewise."""
    for layer in graph.layers:
        layer.cuts = not layer.tied
    free = [layer for layer in graph.layers if not layer.tied]
    if not free:
        return
    generator = torch.Generator().manual_seed(0)
    network = copied(network)
    for parameter in network.parameters():  # where weights are zero nothing would be seen
        draw = 3.4 * (torch.rand(parameter.shape, generator=generator) - 0.5)  # of variance 1
        parameter.copy_(draw / (parameter[0].numel() if parameter.ndim > 1 else 1) ** 0.5)
    orders = [torch.randperm(layer.units, generator=generator).to(parameter.device) for layer in free]
    halves = [order[: (len(order) + 1) // 2].sort().values for order in orders]
    masked = copied(network)
    for layer, half in zip(free, halves, strict=True):
        for name, axis, each in layer.places:
            if name != HEAD:
                tensor = every_name(masked)[name]
                left_out = torch.ones(tensor.shape[axis], dtype=torch.bool, device=tensor.device)
                left_out[spread(half, each)] = False
                tensor.movedim(axis, 0)[left_out] = 0
    before, after = call(masked), None
    ordered = copied(network)
    for layer, order in zip(free, orders, strict=True):
        reorder(every_name(ordered), layer.places, order)
    if not _near(call(network), call(ordered), free, orders):
        for layer in free:
            layer.tied = True
    for layer in free:
        layer.cuts = not layer.tied
    with suppress(RuntimeError, ValueError, TypeError):  # where a size is written down somewhere
        after = call(cut(copied(network), [(layer.places, half) for layer, half in zip(free, halves, strict=True)]))
    if after is None or not _near(before, after, free, halves):
        for layer in free:
            layer.cuts = False


def _near(a: Tensor, b: Tensor, layers: Sequence[Any], orders: Sequence[Tensor]) -> bool:
    for layer, order in zip(layers, orders, strict=True):
        for name, axis, each in layer.places:
            if name == HEAD:
                a = a.index_select(axis, spread(order, each))
    size = a.abs().max()
    return a.shape == b.shape and bool(size.isfinite()) and torch.allclose(a / size, b / size, atol=1e-3)


def spread(order: Tensor, each: int) -> Tensor:
    """Where entries come from when their units are put in order, `each` entries for a unit, which stay together."""
    return order if each == 1 else (order[:, None] * each + torch.arange(each, device=order.device)).flatten()


def aligned(pairs: Tensor, parameter: Tensor) -> Tensor:
    """What holds for pairs of units, or for units, so that it can be broadcast over a parameter."""
    return pairs.view(*pairs.shape, *[1] * (parameter.ndim - pairs.ndim)) if parameter.ndim > pairs.ndim else pairs


def both(out: Tensor, into: Tensor | None) -> Tensor:
    """Which weights lead from units of one mask to units of another: bool, shape (n_out, n_in), or (n_out,)."""
    return out if into is None else out[:, None] & into[None, :]


def hold(frozen: FrozenEntries, parameter: nn.Parameter, claimed: Tensor) -> None:
    """Hold what is claimed of a parameter: a corner of it, where units are in order, which takes a tenth of the time.

    Args:
        claimed: shape (rows, columns), or (rows,) where a row is claimed as a whole.
    """
    if claimed.ndim > 1:
        claimed = claimed.expand(parameter.shape[:2])
    sides = [claimed] if claimed.ndim == 1 else [claimed.any(1), claimed.any(0)]
    sizes = tuple(int(side.sum()) for side in sides)
    filled = corner(claimed.contiguous(), sizes)
    if int(claimed.sum()) == int(filled.sum()) == filled.numel():
        frozen.hold_corner(parameter, sizes[:1] if sizes[1:] == claimed.shape[1:] else sizes)
    else:
        frozen.hold(parameter, aligned(claimed, parameter).expand_as(parameter))


@torch.no_grad()
def reorder(tensors: Mapping[str, Tensor], places: Iterable[tuple[str, int, int]], order: Tensor) -> None:
    """Put the entries of one layer's units in this order, in all tensors that have a place for them.

    Some optimisers keep means over an axis (Adafactor): of size 1, they have no place for units.
    """
    for name, axis, each in places:
        if name in tensors and tensors[name].shape[axis] == each * len(order):
            tensors[name].copy_(tensors[name].index_select(axis, spread(order, each)))


# ---- a task's network alone ------------------------------------------------------------------------------------------


@torch.no_grad()
def alone(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the network that has these tensors, and no gates."""
    network = standalone(copied(network))
    for module in network.modules():
        if isinstance(vars(module).get("forward"), _Heads):
            del module.forward
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # which no gate takes; the learner does without, too
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [n for n, hook in hooks.items() if isinstance(hook, _Gate) or hook is _no_shortcut]:
                del hooks[number]
    places = every_name(network)
    for name, value in tensors.items():
        places[name].copy_(value)
    return network


def without_units(network: nn.Module, head: nn.Module, graph: Graph, masks: Sequence[Tensor]) -> Any:
    """The network, changed in place, and the head behind it: a layer's other units are cut out, or gated."""
    cuts = {number for number, layer in enumerate(graph.layers) if layer.cuts and masks[0].dtype == torch.bool}
    values, kept = graph.evaluate(masks), {number: masks[number].nonzero().flatten() for number in cuts}
    for gate in graph.gates:
        if gate.heads:
            out = network.get_submodule(f"{gate.path}.out_proj" if gate.path else "out_proj")
            out.load_state_dict(gated_heads(out._parameters, values(gate.mask)))
        elif not graph.layers_of(gate.mask) <= cuts:
            put_gate(network, gate.path, values(gate.mask), gate.behind)
    cut(network, [(graph.layers[number].places, kept[number]) for number in cuts])
    for number in cuts:
        for name, axis, each in graph.layers[number].places:
            if name == HEAD:
                cut(head, [([("weight", axis, each)], kept[number])])
    both = standalone(nn.Sequential(network, head))
    names = [layer.path for layer in graph.layers]
    both.report = {"cut": [names[n] for n in sorted(cuts)], "masked": [n for i, n in enumerate(names) if i not in cuts]}  # type: ignore[assignment]
    return both


@torch.no_grad()
def cut(network: nn.Module, kept: Iterable[tuple[Sequence[tuple[str, int, int]], Tensor]]) -> nn.Module:
    """The network with some of its units alone, changed in place: places and, of each layer, the units to keep."""
    changed: dict[int, nn.Module] = {}
    for places, units in kept:
        for name, axis, each in places:
            if name == HEAD:
                continue
            path, _, attribute = name.rpartition(".")
            module = network.get_submodule(path)
            small = getattr(module, attribute).detach().index_select(axis, spread(units, each)).clone()
            needs = attribute in module._parameters
            setattr(module, attribute, nn.Parameter(small, requires_grad=False) if needs else small)
            changed[id(module)] = module
    for module in changed.values():
        _resize(module)
    return network


def from_older_files(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of version 0.1, with the names that they have now."""
    kinds = (NORMS, nn.PReLU)
    own = [path for path, module in network.named_modules() if isinstance(module, kinds)]
    found = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "own":
            task, number, attribute = rest.split(".")
            name = f"norms.{task}.{own[int(number)]}/{attribute}".replace(".", "/").replace("norms/", "norms.", 1)
            name = name.replace(f"norms.{task}/", f"norms.{task}.", 1)
        elif kind.startswith("mask_"):
            name = f"stored_masks.{kind.removeprefix('mask_')}"
        found[name] = tensor
    return found


def _resize(module: Any) -> None:
    """Say in a module's attributes what size its tensors have now."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = weight.shape[:2]
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups > 1:  # depthwise
            each = module.out_channels // module.groups
            module.groups = len(weight) // each
        module.out_channels, module.in_channels = len(weight), weight.shape[1] * module.groups
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
    elif hasattr(module, "num_features"):
        module.num_features = len(next(t for t in (weight, module.running_mean) if t is not None))
    elif hasattr(module, "nf"):
        module.nx, module.nf = weight.shape


def put_gate(network: nn.Module, path: str, mask: Tensor, behind: int) -> None:
    """Have the output of a module multiplied by a mask, by what needs PyTorch alone."""
    module = network.get_submodule(path)
    chain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    graph = fx.Graph()
    h = [graph.placeholder(name) for name in (["h"] if chain else ["module", "given", "h"])][-1]
    values = graph.get_attr("mask")
    gate = (torch.where, (values, h, 0.0)) if mask.dtype == torch.bool else (torch.mul, (h, values))
    graph.output(graph.call_function(*gate))
    holder = nn.Module()
    holder.register_buffer("mask", mask.view(-1, *[1] * behind).clone())
    made = fx.GraphModule(holder, graph, "Gate")
    module.add_module("gate", made)
    if not chain:
        module.register_forward_hook(made)


def report(before: nn.Module, after: nn.Module, x: Tensor | None) -> dict[str, Any]:
    """What was gained: parameters of both, and, where inputs are given, the seconds they take, in turns."""
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in after.parameters()),
        "parameters_before": sum(p.numel() for p in before.parameters()),
        **dict.fromkeys(("seconds", "seconds_before", "speed_up")),
    }
    if x is not None:
        pairs = [(_seconds(before, x), _seconds(after, x)) for _ in range(7)][2:]
        slow, quick = (sorted(times)[len(pairs) // 2] for times in zip(*pairs, strict=True))
        found.update(seconds=quick, seconds_before=slow, speed_up=slow / quick)
    return found


@torch.no_grad()
def _seconds(network: nn.Module, x: Tensor) -> float:
    started = time.perf_counter()
    network(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - started
