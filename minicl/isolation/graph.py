"""The units of any network, followed through everything that it does with them.

The network is run once, on an example. Every function of PyTorch that it calls is noted (`Recorder`), whatever Python
stands around it, so there is nothing that cannot be traced. Then the units of each layer are followed from there:
activations, pooling and flattening carry them along, sums unite them, concatenations put them side by side (`follow`).
Where something is not known, every unit counts as read: less is free for later tasks, and nothing else is lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..freezing import every_name
from .task_norms import NORMS

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
OVER_UNITS = (nn.GroupNorm, nn.LayerNorm)
"""Norms whose statistics are of many units together."""

KEEP_ZERO = {
    *("identity", "clone", "contiguous", "detach", "to", "float", "double", "half", "bfloat16"),
    *("relu", "relu6", "leaky_relu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh"),
    *("hardtanh", "tanhshrink", "softsign", "softshrink", "hardshrink", "neg", "abs", "square", "sqrt", "sin", "sign"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool1d", "lp_pool2d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "interpolate", "upsample"),
}
"""Functions that treat each unit alone, or its map, and make zero of zero."""
MOVE_ZERO = {
    *("sigmoid", "logsigmoid", "hardsigmoid", "softplus", "threshold", "exp", "cos", "pad"),
    *("batch_norm", "instance_norm"),
}
"""Functions that treat each unit alone, or its map."""
SUMS, PRODUCTS, QUOTIENTS = {"add", "sub", "subtract"}, {"mul", "multiply"}, {"div", "divide", "truediv", "true_divide"}
IN_PLACE_AND_REFLECTED = {f"{letter}{name}": name for letter in "ir" for name in ("add", "sub", "mul")}
RESHAPES = {"flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze"}
REDUCTIONS = {"mean", "sum", "amax", "amin"}
DECISIONS = {
    *("bool", "int", "float", "complex", "index", "item", "tolist", "numpy", "array", "contains"),
    *("is_nonzero", "equal", "allclose"),
}
"""Functions that hand numbers to Python, where it may go one way or another by them."""
HEAD = "head"
"""Stands for the weight of a task's head among the places where the order of units matters."""


# ---- what is found out -----------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """A layer with units: its `places` are the tensors in which they stand in order: name, axis, entries per unit.

    Units that are `tied` to an order, by a sum or by something unknown, must stay where they are.
    """

    path: str
    units: int
    places: list[tuple[str, int, int]] = field(default_factory=list)
    tied: bool = False
    cuts: bool = True


@dataclass
class Weights:
    """A parameter whose entries lead from the units of one mask (None: all of them) to those of another."""

    name: str
    out: int
    into: int | None = None
    out_axis: int = 0
    groups: int = 1

    def pairs(self, values: Callable[[int], Tensor], rule: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """What a rule makes of the masks, shape (n_out, n_in), or (n_out,) where all that comes in counts.

        The axes are those of the parameter: (n_in, n_out) or (1, n_out) where the units stand along its second.
        """
        out, into = values(self.out), None if self.into is None else values(self.into)
        if into is None:
            made = rule(out, None)  # (n_out,)
            return made[None, :] if self.out_axis else made
        parts = zip(out.chunk(self.groups), into.chunk(self.groups), strict=True)
        made = torch.cat([rule(o, i) for o, i in parts]) if self.groups > 1 else rule(out, into)  # (n_out, n_in)
        return made.T if self.out_axis else made


@dataclass
class Gate:
    """A module whose output is gated by a mask, along the axis before the last `behind` ones.

    With `heads`, PyTorch's attention: its out_proj is gated on both sides, and the mask is that of what it makes, and
    then that of what it reads.
    """

    path: str
    mask: int
    behind: int
    heads: bool = False


@dataclass
class Graph:
    """Where the units of a network are. Plain values, so that a file can hold it.

    Attributes:
        layers: in the order in which they are called.
        masks: expressions: ["layer", number], or made of others: "repeat" (each entry so often), "tile", "max", "min",
            "cat", "slice", "ones".
        weights, gates: what they protect, and where they stand.
        own: tensors of which each task has its own: all with at most one axis that lead to no units.
        fresh: those of them with which every task starts anew.
        frozen: all other tensors that lead to no units.
        aliases: further names of tensors, and their first.
        output: mask of the features, or None.
        numbers: whether the network takes one tensor of real numbers.
    """

    layers: list[Layer] = field(default_factory=list)
    masks: list[list[Any]] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    output: int | None = None
    numbers: bool = False

    @property
    def sizes(self) -> list[int]:
        """Units of each layer."""
        return [layer.units for layer in self.layers]

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Graph:
        """The inverse of `plain`."""
        layers = [Layer(**{**layer, "places": [tuple(p) for p in layer["places"]]}) for layer in plain["layers"]]
        weights, gates = [Weights(**w) for w in plain["weights"]], [Gate(**g) for g in plain["gates"]]
        return cls(**{**plain, "layers": layers, "weights": weights, "gates": gates})

    def layers_of(self, mask: int) -> set[int]:
        """The numbers of the layers whose units are in a mask."""
        kind, *given = self.masks[mask]
        if kind == "layer":
            return {given[0]}
        parts = given[0] if kind in ("max", "min", "cat") else [] if kind == "ones" else [given[0]]
        return {layer for part in parts for layer in self.layers_of(part)}

    def evaluate(self, layers: Sequence[Tensor]) -> Callable[[int], Tensor]:
        """The masks, by number, from one mask per layer (units last): soft, so that gradients flow, or bool."""
        known: dict[int, Tensor] = {}

        def value(number: int) -> Tensor:
            if number not in known:
                kind, *given = self.masks[number]
                known[number] = layers[given[0]] if kind == "layer" else compute(kind, given)
            return known[number]

        def compute(kind: str, given: list[Any]) -> Tensor:
            if kind == "ones":
                return torch.ones_like(layers[0][..., :1]).expand(*layers[0].shape[:-1], given[0])
            if kind == "repeat":
                return value(given[0]).repeat_interleave(given[1], -1)
            if kind == "tile":
                return torch.cat([value(given[0])] * given[1], -1)
            if kind == "slice":
                return value(given[0])[..., given[1] : given[2]]
            parts = [value(part) for part in given[0]]
            if kind == "cat":
                return torch.cat(parts, -1)
            merge = torch.maximum if kind == "max" else torch.minimum
            result = parts[0]
            for part in parts[1:]:
                result = merge(result, part)
            return result

        return value


# ---- one run, noted down ---------------------------------------------------------------------------------------------


class Node(NamedTuple):
    """A call of a function, or of a module whose inside is known."""

    name: str
    module: nn.Module | None
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[int]  # values, by number
    outputs: list[int]


class Recorder(TorchFunctionMode):
    """Notes every function that a network calls, and every module with what it returned.

    Attributes:
        nodes: the calls in order.
        shapes: of each value.
        returned: of each value, the modules that returned it, innermost first.
        decides: whether Python was told what follows from real numbers of the input, or from parameters, so another
            input may go another way. What follows from token ids and masks alone is taken for a look at their lengths.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.shapes: list[tuple[int, ...]] = []
        self.returned: dict[int, list[str]] = {}
        self.calls: Counter[str] = Counter()
        self.decides = False
        self._values: dict[int, tuple[Tensor, int, int]] = {}  # by id: the tensor, its version, its number
        self._inside = 0
        self._network = network
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        for path, module in self._network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            inside_known = understood(module)
            if inside_known:
                self._handles.append(module.register_forward_pre_hook(self._begin))
            self._handles.append(
                module.register_forward_hook(self._hook(path, module if inside_known else None), with_kwargs=True)
            )
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        self._inside += 1

    def _hook(self, path: str, known: nn.Module | None) -> Callable[..., Any]:
        def returned(module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
            if known is not None:
                self._inside -= 1
            if self._inside:
                return None
            self.calls[path] += 1
            if isinstance(known, nn.MultiheadAttention):
                self._note(type(module).__name__, known, path, args, kwargs, result)
            if not isinstance(result, Tensor):
                return None
            given = list(_tensors((args, kwargs)))
            if known is not None:
                self._note(type(module).__name__, known, path, args, kwargs, result)
            elif any(result is t for t in given):  # as what drops out does in evaluation: a value of its own
                result = self._apart("identity", (result,), {}, result)
            self.returned.setdefault(self.value(result), []).append(path)
            return result

        return returned

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        before = [(t, t._version) for t in _tensors((args, kwargs))]
        numbers = [self.value(t) for t, _ in before]
        result = func(*args, **kwargs)
        unchanged = any(result is t and t._version == version for t, version in before)
        name = getattr(func, "__name__", "").strip("_")
        name = IN_PLACE_AND_REFLECTED.get(name, name)
        if unchanged:
            return self._apart(name, args, kwargs, result)
        made = any(True for _ in _tensors(result))
        if name in DECISIONS and not made and not self.decides:
            self.decides = self.follow_from_real(numbers)
        if made or any(t._version != version for t, version in before):
            self._note(name, None, "", args, kwargs, result, numbers)
        return result

    def follow_from_real(self, numbers: Iterable[int]) -> bool:
        """Whether some of these values were made from real numbers of the input, or from parameters."""
        found, made = set(numbers), set()
        for node in reversed(self.nodes):
            if not found.isdisjoint(node.outputs):
                found.update(node.inputs)
                made.update(node.outputs)
        buffers = {id(buffer) for buffer in self._network.buffers()}
        given = {number: t.is_floating_point() and id(t) not in buffers for t, _, number in self._values.values()}
        return any(given.get(number, True) for number in found - made)

    def _apart(self, name: str, args: Any, kwargs: Any, result: Tensor) -> Tensor:
        numbers = [self.value(t) for t in _tensors((args, kwargs))]
        self._inside += 1
        result = result.view_as(result)
        self._inside -= 1
        self._note(name, None, "", args, kwargs, result, numbers)
        return result

    def _note(
        self, name: str, module: Any, path: str, args: Any, kwargs: Any, result: Any, inputs: list[int] | None = None
    ) -> None:
        numbers = [self.value(t) for t in _tensors((args, kwargs))] if inputs is None else inputs
        outputs = [self.value(t, new=True) for t in _tensors(result)]
        self.nodes.append(Node(name, module, path, args, kwargs, numbers, outputs))

    def value(self, tensor: Tensor, new: bool = False) -> int:
        """The number of a tensor: another one when something has been written into it."""
        _, version, number = self._values.get(id(tensor), (None, -1, -1))
        if new or version != tensor._version:
            number = len(self.shapes)
            self.shapes.append(tuple(tensor.shape))
            self._values[id(tensor)] = tensor, tensor._version, number
        return number


def _tensors(thing: Any) -> Iterator[Tensor]:
    """All tensors in arguments or results."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for part in thing.values():
            yield from _tensors(part)
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            yield from _tensors(part)


def understood(module: nn.Module) -> bool:
    """Whether it is a layer, or has numbers for each unit, in PyTorch's own way, with plain parameters."""
    kinds = (nn.Linear, nn.MultiheadAttention, *CONVOLUTIONS, *TRANSPOSED, *OVER_UNITS, *NORMS_AND_PRELU)
    plain = isinstance(module, kinds) and type(module).forward.__module__.startswith("torch.nn.modules")
    if isinstance(module, nn.MultiheadAttention):  # reads the weight of its out_proj, and calls nothing
        plain = plain and "forward" not in vars(module) and understood(module.out_proj)
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        return False
    if hasattr(module, "weight") and "weight" not in module._parameters:  # computed by a hook: prune, spectral_norm
        return False
    return (plain and not hasattr(module, "parametrizations")) or _transposed_linear(module)


NORMS_AND_PRELU = (NORMS, nn.PReLU)


def _transposed_linear(module: nn.Module) -> bool:
    """Hugging Face's `Conv1D`, of GPT-2: a Linear whose weight is transposed."""
    return type(module).__name__ == "Conv1D" and getattr(module._parameters.get("weight"), "ndim", 0) == 2


def is_layer(module: nn.Module) -> bool:
    """Whether it makes units: a linear layer, a convolution, or PyTorch's attention."""
    return understood(module) and not isinstance(module, (*OVER_UNITS, *NORMS_AND_PRELU))


# ---- following the units ---------------------------------------------------------------------------------------------


class Units(NamedTuple):
    """Of a value: which mask its entries along an axis have, and whether what the mask leaves out is zero there."""

    mask: int
    axis: int
    zero: bool


def follow(network: nn.Module, recorder: Recorder, output: Tensor, answers: bool = False) -> Graph:
    """The graph of a network that has run in a recorder, and returned these features.

    Args:
        answers: what it returns are the answers themselves, and no features of a head: the layers that make them have
            no units, since every task needs all of its outputs. Their biases are kept per task; of their weights each
            task trains those from units that it alone has claimed.
    """
    walk = _Walk(network, recorder, recorder.value(output), answers)
    return walk.graph


class _Walk:
    def __init__(self, network: nn.Module, recorder: Recorder, output: int, answers: bool) -> None:
        self.network, self.recorder, self.output = network, recorder, output
        self.graph = Graph()
        self.names = every_name(network)
        self.uses = Counter(id(tensor) for tensor in self.names.values())
        self.first = {id(tensor): name for name, tensor in reversed(self.names.items())}
        self.readers: dict[int, list[Node]] = {}
        for node in recorder.nodes:
            for number in dict.fromkeys(node.inputs):
                self.readers.setdefault(number, []).append(node)
        self.answers = self.leading_to(output) if answers else set()
        self.units: dict[int, Units] = {}
        self.gated: set[int] = set()  # values behind a gate
        for node in recorder.nodes:
            for number, units in zip(node.outputs, self.through(node), strict=False):
                if units is not None and not recorder.decides:  # else nobody knows who reads them another time
                    self.units[number] = units._replace(zero=True) if number in self.gated else units
        self.finish()

    def leading_to(self, output: int) -> set[int]:
        """Values from which the output is made without a further layer."""
        makers = {number: node for node in self.recorder.nodes for number in node.outputs}
        found, waiting = set(), [output]
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                node = makers.get(number)
                if node is not None and not (node.module is not None and is_layer(node.module)):
                    waiting += node.inputs
        return found

    # masks

    def mask(self, *expression: Any) -> int:
        masks, wanted = self.graph.masks, list(expression)
        if wanted not in masks:
            masks.append(wanted)
        return masks.index(wanted)

    def multiple(self, kind: str, mask: int, times: int) -> int:
        return mask if times == 1 else self.mask(kind, mask, times)

    def merged(self, kind: str, masks: Sequence[int]) -> int:
        flat: set[int] = set()
        for mask in masks:
            inner = self.graph.masks[mask]
            flat |= set(inner[1]) if inner[0] == kind else {mask}
        same = sorted(flat)
        return same[0] if len(same) == 1 else self.mask(kind, same)

    def tie(self, *many: Units | None) -> None:
        """The order of these units matters to what reads them."""
        for units in many:
            for layer in () if units is None else self.graph.layers_of(units.mask):
                self.graph.layers[layer].tied = True

    def place(self, units: Units, name: str, axis: int, length: int) -> None:
        """A tensor has `length` entries along an axis for the units, in their order; one without a name ties them."""
        kind, *given = self.graph.masks[units.mask]
        mask = units.mask
        while kind == "repeat":
            mask = given[0]
            kind, *given = self.graph.masks[mask]
        if kind == "layer" and name:
            layer = self.graph.layers[given[0]]
            layer.places.append((name, axis, length // layer.units))
        else:
            self.tie(units)

    # nodes

    def through(self, node: Node) -> list[Units | None]:
        """What is known of the outputs of a node."""
        given = [self.units.get(number) for number in node.inputs]
        if isinstance(node.module, nn.MultiheadAttention):
            return self.attention(node, node.module)
        if node.module is not None and is_layer(node.module) and not self.per_unit(node, given[0]):
            return [self.layer(node, given[0])]
        if node.name in SUMS and len(node.inputs) == 2:
            return [self.sum(node, given)]
        if node.name in PRODUCTS and len(node.inputs) == 2:
            return [self.product(node, given)]
        if node.name in ("cat", "concat", "concatenate"):
            return [self.side_by_side(node, given)]
        if node.name in ("chunk", "split", "tensor_split"):
            return self.parts(node, given[0])
        units = given[0] if given else None
        carried = None if units is None else self.carry(node, units, known=True)
        if carried is None:
            self.tie(*given)
            return [None] * len(node.outputs)
        if carried.zero is False and units is not None and units.zero:
            self.gate(node.outputs[0], carried)
        return [carried]

    def per_unit(self, node: Node, units: Units | None) -> bool:
        """Whether it is a depthwise convolution of units that are known."""
        module: Any = node.module
        return (
            units is not None
            and isinstance(module, CONVOLUTIONS)
            and module.groups == module.in_channels
            and module.groups > 1
            and units.axis == 1
            and self.single(node)
        )

    def single(self, node: Node) -> bool:
        """Whether the module is called once, and its weight stands nowhere else."""
        assert node.module is not None
        weight = node.module._parameters["weight"]
        return self.recorder.calls[node.path] == 1 and self.uses[id(weight)] == 1

    def layer(self, node: Node, units: Units | None) -> Units | None:
        module: Any = node.module
        shape, n_in = self.recorder.shapes[node.outputs[0]], len(self.recorder.shapes[node.inputs[0]])
        convolves = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))
        axis = 1 if convolves else len(shape) - 1
        if not self.single(node) or axis == 0 or (convolves and n_in != module.weight.ndim):
            self.tie(units)
            return None
        out_axis = 1 if isinstance(module, TRANSPOSED) or _transposed_linear(module) else 0
        groups = module.groups if convolves else 1
        into = None
        if units is not None and units.axis == axis and units.zero:
            into = units.mask
            if groups == 1:
                self.place(units, self.name(node, "weight"), 1 - out_axis, module.weight.shape[1 - out_axis])
        if into is None or groups > 1:
            self.tie(units)
        if node.outputs[0] in self.answers:
            if into is not None and groups == 1:
                ones = self.mask("ones", shape[axis])
                self.graph.weights.append(Weights(self.name(node, "weight"), ones, into, out_axis))
            return None
        number = len(self.graph.layers)
        self.graph.layers.append(Layer(node.path, shape[axis], tied=groups > 1))
        made = Units(self.mask("layer", number), axis, False)
        self.has(node, made, out_axis, into, groups)
        self.gate(node.outputs[0], made)
        return made

    def attention(self, node: Node, module: nn.MultiheadAttention) -> list[Units | None]:
        """The heads are units, and so is what out_proj makes of them.

        Where the weights of attention are read, closed heads would be seen in their mean: then nothing is understood.
        """
        nothing: list[Units | None] = [None] * len(node.outputs)
        named = dict(zip(("query", "key", "value"), node.args, strict=False)) | node.kwargs
        numbers = {id(t): n for t, n in zip(_tensors((node.args, node.kwargs)), node.inputs, strict=True)}
        read = [numbers[id(named[name])] for name in ("query", "key", "value")]
        self.tie(*(self.units.get(number) for number in node.inputs))
        alone = all(self.uses[id(parameter)] == 1 for parameter in module.parameters())
        calls = self.recorder.calls[node.path], self.recorder.calls[self.name(node, "out_proj")]
        weights_read = any(number in self.readers or number == self.output for number in node.outputs[1:])
        if not alone or calls != (1, 0) or weights_read or len(self.recorder.shapes[node.outputs[0]]) != 3:
            return nothing
        given = [self.units.get(number) for number in read]
        into = [None if u is None or u.axis != 2 or not u.zero else u.mask for u in given]
        heads = self.multiple("repeat", self.units_at(node, "heads", module.num_heads), module.head_dim)
        for name, mask in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), into, strict=True):
            self.leads(node, name, heads, mask)
        together = self.mask("tile", heads, 3)
        self.leads(node, "in_proj_weight", together, into[0] if len(set(into)) == 1 else None)
        self.leads(node, "in_proj_bias", together)
        answers = node.outputs[0] in self.answers
        out = self.mask("ones", module.embed_dim) if answers else self.units_at(node, "out_proj", module.embed_dim)
        self.leads(node, "out_proj.weight", out, heads)
        if not answers:
            self.leads(node, "out_proj.bias", out)
        self.graph.gates.append(Gate(node.path, self.mask("cat", [out, heads]), 0, heads=True))
        return nothing if answers else [Units(out, 2, True), *nothing[1:]]

    def units_at(self, node: Node, name: str, n: int) -> int:
        """The mask of new units, which stay in their order."""
        self.graph.layers.append(Layer(self.name(node, name), n, tied=True))
        return self.mask("layer", len(self.graph.layers) - 1)

    def leads(self, node: Node, name: str, out: int, into: int | None = None) -> None:
        """A parameter, if the module has it, leads to units of one mask from those of another."""
        if self.names.get(self.name(node, name)) is not None:
            self.graph.weights.append(Weights(self.name(node, name), out, into))

    def has(self, node: Node, units: Units, out_axis: int = 0, into: int | None = None, groups: int = 1) -> None:
        """The module's weight and bias lead to these units."""
        for name, tensor in node.module._parameters.items():  # type: ignore[union-attr]
            if tensor is not None:
                axis = out_axis if tensor.ndim > 1 else 0
                weights = Weights(self.name(node, name), units.mask, into if tensor.ndim > 1 else None, axis, groups)
                self.graph.weights.append(weights)
                self.place(units, weights.name, axis, tensor.shape[axis])

    def name(self, node: Node, tensor: str) -> str:
        return f"{node.path}.{tensor}" if node.path else tensor

    def carry(self, node: Node, units: Units, known: bool = False) -> Units | None:
        """The units behind a node that treats each of them alone, or None.

        Args:
            known: note down what the node has for each unit; otherwise this is a look ahead.
        """
        if len(node.outputs) != 1:
            return None
        old, new = self.recorder.shapes[node.inputs[0]], self.recorder.shapes[node.outputs[0]]
        module: Any = node.module
        if module is not None:
            return self.carry_module(node, units, old, new, known)
        tensors = sum(number in self.units for number in dict.fromkeys(node.inputs))
        if node.name in ("batch_norm", "instance_norm", "layer_norm", "group_norm"):
            for tensor in list(_tensors((node.args, node.kwargs)))[1:] if known else ():
                self.place(units, self.first.get(id(tensor), ""), 0, len(tensor))
            alone = node.name in MOVE_ZERO
            if known and not alone:
                self.tie(units)
            axis = len(old) - 1 if node.name == "layer_norm" else 1
            return units._replace(zero=False) if units.axis == axis and (alone or units.zero) else None
        if tensors > 1 or len(node.inputs) > 1:
            return None
        if node.name in KEEP_ZERO or node.name in MOVE_ZERO:
            digit = node.name[-1]
            spatial = int(digit) if "pool" in node.name and digit.isdigit() else 0
            if len(old) != len(new) or old[units.axis] != new[units.axis] or units.axis >= len(old) - spatial:
                return None
            return units if node.name in KEEP_ZERO else units._replace(zero=False)
        if node.name in SUMS or node.name in PRODUCTS | QUOTIENTS:  # with a number
            return units if node.name not in SUMS else units._replace(zero=False)
        if node.name == "pow":
            power = node.args[1] if len(node.args) > 1 else None
            return units if isinstance(power, (int, float)) and power > 0 else None
        if node.name in RESHAPES:
            return self.reshaped(units, old, new)
        if node.name in REDUCTIONS or node.name in ("permute", "transpose", "swapaxes", "movedim", "getitem"):
            return self.moved(node, units, old, new)
        return None

    def carry_module(
        self, node: Node, units: Units, old: tuple[int, ...], new: tuple[int, ...], known: bool
    ) -> Units | None:
        module: Any = node.module
        single = self.recorder.calls[node.path] == 1
        if isinstance(module, nn.PReLU):
            if units.axis != 1 and module.num_parameters > 1:
                return None
        elif isinstance(module, OVER_UNITS):
            norm: Any = module
            axis = 1 if isinstance(module, nn.GroupNorm) else len(old) - 1
            if units.axis != axis or not units.zero or (axis != 1 and len(norm.normalized_shape) != 1):
                return None
            if known:
                self.tie(units)
            return units._replace(zero=False)
        elif is_layer(module):
            if not self.per_unit(node, units):
                return None
            made = Units(self.multiple("repeat", units.mask, new[1] // old[1]), 1, units.zero and module.bias is None)
            if known:
                self.has(node, made)
            return made
        elif units.axis != 1:
            return None
        if known:
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.ndim == 1 and len(tensor) == old[1]:
                    self.place(units, self.name(node, name), 0, old[1])
            if not single:
                self.tie(units)
        return units if isinstance(module, nn.PReLU) else units._replace(zero=False)

    def reshaped(self, units: Units, old: tuple[int, ...], new: tuple[int, ...]) -> Units | None:
        """Behind a view: the same units where their axis is still one, or was merged with others into one."""
        i = j = 0
        while i < len(old) and j < len(new):
            first_i, first_j, a, b = i, j, old[i], new[j]
            while a != b:
                if a < b:
                    i += 1
                    if i == len(old):
                        return None
                    a *= old[i]
                else:
                    j += 1
                    if j == len(new):
                        return None
                    b *= new[j]
            i, j = i + 1, j + 1
            if first_i <= units.axis < i:
                if j - first_j > 1 or first_j == 0:
                    return None
                mask = self.multiple("repeat", units.mask, math.prod(old[units.axis + 1 : i]))
                mask = self.multiple("tile", mask, math.prod(old[first_i : units.axis]))
                return Units(mask, first_j, units.zero)
        return None

    def moved(self, node: Node, units: Units, old: tuple[int, ...], new: tuple[int, ...]) -> Units | None:
        """Behind a function that moves or drops axes: which one is it now? A tensor that counts them is asked."""
        marks = torch.arange(old[units.axis], dtype=torch.float64)
        marks = marks.view(-1, *[1] * (len(old) - units.axis - 1)).expand(old)
        args, kwargs = _with(node.args, marks), _with(node.kwargs, marks)
        function = (lambda x, i: x[i]) if node.name == "getitem" else getattr(torch.Tensor, node.name)
        if node.name == "sum":
            function = torch.Tensor.mean  # of equal numbers
        try:
            result = function(*args, **kwargs)
        except (RuntimeError, TypeError, IndexError):
            return None
        if tuple(result.shape) != new:
            return None
        for axis, n in enumerate(new):
            wanted = torch.arange(n, dtype=torch.float64).view(-1, *[1] * (len(new) - axis - 1)).expand(new)
            if axis and n == old[units.axis] and torch.allclose(result, wanted):
                return units._replace(axis=axis)
        return None

    def aligned(self, node: Node, units: Units | None, number: int) -> Units | None:
        """Units of an input, with their axis in the output of a function that broadcasts."""
        if units is None:
            return None
        old, new = self.recorder.shapes[number], self.recorder.shapes[node.outputs[0]]
        axis = units.axis + len(new) - len(old)
        return units._replace(axis=axis) if new[axis] == old[units.axis] else None

    def meet(self, node: Node, given: list[Units | None]) -> tuple[Units | None, Units | None, bool]:
        """The units of two inputs in the output, and whether they are the same: then nothing ties their order."""
        a, b = (self.aligned(node, u, number) for u, number in zip(given, node.inputs, strict=True))
        same = a is not None and b is not None and (a.mask, a.axis) == (b.mask, b.axis)
        if not same:
            self.tie(*given)
        return a, b, same

    def sum(self, node: Node, given: list[Units | None]) -> Units | None:
        a, b, same = self.meet(node, given)
        if a is None or b is None:
            return None
        if same:
            return a._replace(zero=a.zero and b.zero)
        both = a.axis == b.axis and a.zero and b.zero
        return a._replace(mask=self.merged("max", [a.mask, b.mask])) if both else None

    def product(self, node: Node, given: list[Units | None]) -> Units | None:
        a, b, same = self.meet(node, given)
        if same and a is not None and b is not None:
            return a._replace(zero=a.zero or b.zero)
        if a is not None and b is not None and a.axis == b.axis and a.zero and b.zero:
            return a._replace(mask=self.merged("min", [a.mask, b.mask]))
        zero = [u for u in (a, b) if u is not None and u.zero]
        return zero[0] if zero else None

    def side_by_side(self, node: Node, given: list[Units | None]) -> Units | None:
        self.tie(*given)
        shapes = [self.recorder.shapes[number] for number in node.inputs]
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        axis = dim % len(shapes[0]) if isinstance(dim, int) else -1
        known = [u for u in given if u is not None and u.zero]
        if axis < 1 or not known:
            return None
        if any(u.axis != axis for u in known):
            same = len(known) == len(given) and len({u.axis for u in known}) == 1
            return known[0]._replace(mask=self.merged("max", [u.mask for u in known])) if same else None
        masks = [
            u.mask if u is not None and u.zero else self.mask("ones", shape[axis])
            for u, shape in zip(given, shapes, strict=True)
        ]
        return Units(self.mask("cat", masks), axis, True)

    def parts(self, node: Node, units: Units | None) -> list[Units | None]:
        self.tie(units)
        shapes = [self.recorder.shapes[number] for number in node.outputs]
        if units is None:
            return [None] * len(shapes)
        old, first, found = self.recorder.shapes[node.inputs[0]], 0, []
        for shape in shapes:
            if shape[units.axis] == old[units.axis]:
                found.append(units)
            else:
                mask = self.mask("slice", units.mask, first, first + shape[units.axis])
                found.append(units._replace(mask=mask))
            first += shape[units.axis]
        return list(found)

    # gates

    def gate(self, number: int, units: Units) -> None:
        """A gate for these units, as far behind this value as nothing else can read them before."""
        best: tuple[int, Units, str] | None = None
        alone = self.recorder.decides  # behind the layer itself: what comes then may be left out another time
        while True:
            paths = [path for path in self.recorder.returned.get(number, []) if self.recorder.calls[path] == 1]
            if paths:
                best = number, units, paths[0 if alone else -1]
            readers = self.readers.get(number, [])
            if alone or len(readers) != 1 or number == self.output or readers[0].inputs.count(number) != 1:
                break
            ahead = self.carry(readers[0], units) if readers[0].inputs[0] == number else None
            if ahead is None:
                break
            number, units = readers[0].outputs[0], ahead
        if best is not None:
            number, units, path = best
            self.gated.add(number)
            self.graph.gates.append(Gate(path, units.mask, len(self.recorder.shapes[number]) - units.axis - 1))

    def finish(self) -> None:
        """What leaves the network, and what is neither weight nor bias of a layer with units."""
        graph, units = self.graph, self.units.get(self.output)
        if units is not None and units.zero and units.axis == 1 and len(self.recorder.shapes[self.output]) == 2:
            graph.output = units.mask
            self.place(units, HEAD, 1, self.recorder.shapes[self.output][1])
        else:
            self.tie(units)
        if self.recorder.decides:
            for layer in graph.layers:
                layer.tied = True
        protected = {weights.name for weights in graph.weights}
        modules = dict(self.network.named_modules())
        for name, tensor in self.names.items():
            if self.first[id(tensor)] != name:
                graph.aliases[name] = self.first[id(tensor)]
            elif name not in protected:
                small = tensor.numel() == max(tensor.shape, default=1)
                own = small and (tensor.is_floating_point() or tensor.ndim == 0)
                (graph.own if own else graph.frozen).append(name)
                if own and isinstance(modules[name.rpartition(".")[0]], NORMS_AND_PRELU):
                    graph.fresh.append(name)


def _with(thing: Any, tensor: Tensor) -> Any:
    """Arguments, with another tensor in the place of theirs."""
    if isinstance(thing, Tensor):
        return tensor
    if isinstance(thing, dict):
        return {key: _with(part, tensor) for key, part in thing.items()}
    return type(thing)(_with(part, tensor) for part in thing) if type(thing) in (list, tuple) else thing
