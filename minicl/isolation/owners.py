"""The weights of a network, each with one owner: which there are, who owns them, and stored in few bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor, nn
from torch.func import functional_call

from ..freezing import Hidden, every_name, weight_at
from ..networks import taken_off_with
from ..tensors import TensorDict, without_dots

LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")

MOST_TASKS = 255
"""An owner is one byte: 0 for a free weight, 1 to 255 for the tasks in the order in which they were learned."""


class Owners(Hidden):
    """The owner index of every weight of a backbone that can have an owner, uint8, 0 for free.

    Args:
        backbone: whose weights are owned.
        names: the weight's name in the backbone, by the name of its layer; see `prunable`.
    """

    def __init__(self, backbone: nn.Module, names: dict[str, str]) -> None:
        super().__init__()
        self.names = names
        weights = {layer: backbone.get_parameter(name) for layer, name in self.names.items()}
        index = {layer: torch.zeros_like(w, dtype=torch.uint8, requires_grad=False) for layer, w in weights.items()}
        self.hidden["index"] = TensorDict(index)

    @property
    def index(self) -> TensorDict:
        """The owner index of each layer, of the shape of its weight."""
        return self.hidden["index"]  # type: ignore[return-value]

    def weights(self, backbone: nn.Module) -> dict[str, nn.Parameter]:
        """The weights by layer.

        Raises:
            ValueError: a weight that is on another device than its index, or has another shape.
        """
        weights = {}
        for layer, name in self.names.items():
            weight, owner = weight_at(backbone, name), self.index[layer]
            if weight.device != owner.device or weight.shape != owner.shape:
                raise ValueError(
                    f"layer {layer!r} is on {weight.device} with shape {tuple(weight.shape)}, the index of its owners "
                    f"on {owner.device} with shape {tuple(owner.shape)}; "
                    "move the learner as a whole, with learner.to(device)"
                )
            weights[layer] = weight
        return weights

    def counts(self) -> dict[str, list[int]]:
        """How many weights of each layer are free (place 0) and belong to each task (places 1 to 255)."""
        return {
            layer: torch.bincount(o.flatten(), minlength=MOST_TASKS + 1).tolist() for layer, o in self.index.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the index: one per weight."""
        return self.index.nbytes

    def pack(self, state: dict[str, Tensor], prefix: str, n_tasks: int) -> dict[str, Tensor]:
        """A state dict with each index in as many bits per weight as the number of tasks needs."""
        names = [f"{prefix}.index.{without_dots(layer)}" for layer in self.names]
        return {**state, **{name: pack_owners(state[name], n_tasks.bit_length()) for name in names}}

    def unpack(self, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """The inverse of `pack`."""
        places = {f"{prefix}.index.{without_dots(layer)}": owner.shape for layer, owner in self.index.items()}
        found = {name: unpack_owners(name, state[name], shape) for name, shape in places.items() if name in state}
        return {**state, **found}


def prunable(backbone: nn.Module, method: str = "PackNet", more: Sequence[str] = ()) -> dict[str, str]:
    """Names of the weights that can have owners, by the name of their layer.

    Those of Linear and Conv layers, transposed ones included, of recurrent layers, of Hugging Face's `Conv1D`, input
    projections of attention, and every parameter of two or more axes in a module that is named in `more`. A weight used
    in several places counts once. Weights that do not require gradients are left out.

    Args:
        backbone: any module.
        method: who asks, for the error.
        more: names of further modules, or of single parameters.

    Raises:
        ValueError: a layer whose weight is no ordinary floating-point parameter, a name in `more` that is no module and
            no parameter with two or more axes, or no layer at all.
    """
    found: dict[str, str] = {}
    seen: set[int] = set()
    named = _named_by_hand(backbone, more)
    for name, module in backbone.named_modules():
        for attribute in dict.fromkeys([*_weights_of(module), *named.get(name, ())]):
            where = f"layer {name!r} ({type(module).__name__})"
            weight = module._parameters.get(attribute)
            if weight is None:
                raise ValueError(
                    f"{where} computes its {attribute} from other parameters (weight_norm, spectral_norm, ...); "
                    f"{method} needs it as a parameter: take that off first, with {taken_off_with(module)}"
                )
            if isinstance(weight, nn.UninitializedParameter):
                raise ValueError(f"{where} has no weights yet; run a batch through the network first")
            if not weight.is_floating_point():
                raise ValueError(f"{where} has weights of {weight.dtype}; allowed: float16, bfloat16, float32, float64")
            if weight.requires_grad and id(weight) not in seen:
                seen.add(id(weight))
                full = f"{name}.{attribute}" if name else attribute
                found[full.removesuffix(".weight")] = full
    if not found:
        raise ValueError(
            f"the backbone ({type(backbone).__name__}) has no layer to prune: no Linear, convolution, recurrent layer "
            f"with a weight that requires gradients. Name other modules in prunable=[...]: {_candidates(backbone)}; "
            "minicl.FeatureExtraction trains a new head on a network as it is"
        )
    return found


def _weights_of(module: nn.Module) -> list[str]:
    """The weights of a layer that are pruned without being asked for."""
    if isinstance(module, LAYERS):
        return ["weight"]
    if isinstance(module, nn.MultiheadAttention):
        return [name for name in PROJECTIONS if getattr(module, name) is not None]
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return [name for name in (*module._parameters, *_computed(module)) if name.startswith("weight_")]
    if type(module).__name__ == "Conv1D" and getattr(module._parameters.get("weight"), "ndim", 0) == 2:
        return ["weight"]  # of Hugging Face's transformers: a Linear whose weight is transposed
    return []


def _computed(module: nn.Module) -> list[str]:
    parametrizations = getattr(module, "parametrizations", None)
    return list(parametrizations) if isinstance(parametrizations, nn.ModuleDict) else []


def _named_by_hand(backbone: nn.Module, more: Sequence[str]) -> dict[str, list[str]]:
    """What is named in `more`, as names of weights by the name of their module."""
    if isinstance(more, str) or not all(isinstance(name, str) for name in more):
        raise ValueError(f"prunable is {more!r}; allowed: a list of names, of: {_candidates(backbone)}")
    modules = dict(backbone.named_modules())
    found: dict[str, list[str]] = {}
    for name in more:
        module, _, attribute = name.rpartition(".")
        if name in modules:
            module, names = name, [n for n, p in modules[name]._parameters.items() if p is not None and p.ndim > 1]
        else:
            parameter = modules[module]._parameters.get(attribute) if module in modules else None
            names = [attribute] if parameter is not None and parameter.ndim > 1 else []
        if not names:
            raise ValueError(
                f"prunable names {name!r}, which is no module and no parameter of the backbone with two or more axes; "
                f"allowed: {_candidates(backbone)}"
            )
        found.setdefault(module, []).extend(names)
    return found


def _candidates(backbone: nn.Module) -> str:
    """The modules that could be named, in words."""
    names = [
        repr(name)
        for name, module in backbone.named_modules()
        if any(p is not None and p.ndim > 1 for p in module._parameters.values())
    ]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"


def pack_bits(bits: Bool[Tensor, "rows n"]) -> UInt8[Tensor, "rows n_bytes"]:
    """Eight bits to a byte, the first one highest; the last byte of a row is filled with zeros."""
    padded = nn.functional.pad(bits, (0, -bits.shape[1] % 8)).view(len(bits), -1, 8)
    return (padded * _powers(bits)).sum(2, dtype=torch.uint8)


def unpack_bits(packed: UInt8[Tensor, "rows n_bytes"], n: int) -> Bool[Tensor, "rows n"]:
    """The inverse of `pack_bits`."""
    return (packed.unsqueeze(2) & _powers(packed)).ne(0).flatten(1)[:, :n]


def _powers(like: Tensor) -> Tensor:
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=like.device)


def pack_owners(owner: Tensor, bits: int) -> Tensor:
    """An owner index, values below 2^bits, as `bits` rows of packed bits."""
    flat = owner.flatten()
    rows = [(flat >> bit & 1).bool() for bit in range(bits)]
    return pack_bits(torch.stack(rows)) if rows else torch.empty(0, dtype=torch.uint8)


def unpack_owners(name: str, packed: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `pack_owners`."""
    n = shape.numel()
    if packed.numel() and packed.shape[1] != -(-n // 8):
        raise ValueError(f"the file does not fit this backbone: {name} does not hold {n} owners")
    flat = torch.zeros(n, dtype=torch.uint8)
    for bit, row in enumerate(unpack_bits(packed, n) if packed.numel() else ()):
        flat |= row.to(torch.uint8) << bit
    return flat.view(shape)


class SparseNetwork(nn.Module):
    """A network whose weights are kept as sparse tensors, and made dense while it is called."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        at = {id(network.get_parameter(name)): without_dots(name) for name in names}
        self.stored = {name: at[id(tensor)] for name, tensor in every_name(network).items() if id(tensor) in at}
        for name in names:
            weight = network.get_parameter(name)
            self.register_buffer(without_dots(name), weight.detach().to_sparse())
            weight.data = weight.data.new_empty(0)  # in place, so that a weight used in two places stays one

    def forward(self, x: Tensor) -> Tensor:
        dense = {name: self.get_buffer(stored).to_dense() for name, stored in self.stored.items()}
        return functional_call(self.network, dense, (x,), tie_weights=False)
