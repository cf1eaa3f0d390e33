"""The weights of a network, for a method that gives each an owner: which there are, stored in few bits, and sparse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
NORMS = nn.modules.batchnorm._NormBase  # what may keep running statistics: BatchNorm, InstanceNorm


def prunable(backbone: nn.Module) -> dict[str, str]:
    """Names of the weights that PackNet packs, by the name of their layer: those of Linear and Conv layers, transposed
    ones included, and the input projections of attention. A weight used in several places counts once. Weights that
    do not require gradients are left out.

    Raises:
        ValueError: a layer whose weight is no ordinary floating-point parameter, or no layer at all.
    """
    found: dict[str, str] = {}
    seen: set[int] = set()
    for name, module in backbone.named_modules():
        names = ["weight"] if isinstance(module, LAYERS) else []
        names += [
            n for n in PROJECTIONS if isinstance(module, nn.MultiheadAttention) and getattr(module, n) is not None
        ]
        for attribute in names:
            where = f"layer {name!r} ({type(module).__name__})"
            weight = module._parameters.get(attribute)
            if weight is None:
                raise ValueError(
                    f"{where} computes its {attribute} from other parameters (weight_norm, spectral_norm, ...); "
                    "PackNet needs it as a parameter: take that off first, with "
                    "torch.nn.utils.parametrize.remove_parametrizations"
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
            f"the backbone ({type(backbone).__name__}) has no layer to prune: no Linear and no convolution with a "
            "weight that requires gradients; minicl.FeatureExtraction trains a new head on a network as it is"
        )
    return found


def every_name(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name under which a module holds them; a module used in two places comes once.

    PyTorch's `functional_call` loses parameters when it ties such names itself, so it is given them all.
    """
    return {
        f"{name}.{key}" if name else key: tensor
        for name, module in network.named_modules()
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def flat(name: str) -> str:
    """A name that a buffer may have."""
    return name.replace(".", "/")


def pack_owners(owner: Tensor, bits: int) -> Tensor:
    """An owner index, values below 2^bits, as `bits` rows of packed bits."""
    flat = owner.cpu().flatten().numpy()
    rows = [np.packbits(flat >> bit & 1) for bit in range(bits)]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, dtype=torch.uint8)


def unpack_owners(name: str, packed: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `pack_owners`."""
    n = shape.numel()
    if packed.numel() and packed.shape[1] != -(-n // 8):
        raise ValueError(f"the file does not fit this backbone: {name} does not hold {n} owners")
    flat = np.zeros(n, dtype=np.uint8)
    for bit, row in enumerate(packed.numpy() if packed.numel() else ()):
        flat |= np.unpackbits(row, count=n) << bit
    return torch.from_numpy(flat).view(shape)


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    was = [(module, module.training) for module in modules]
    for module, _ in was:
        module.training = False
    yield
    for module, mode in was:
        module.training = mode


class SparseNetwork(nn.Module):
    """A network whose weights are kept as sparse tensors, and made dense while it is called."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        at = {id(network.get_parameter(name)): flat(name) for name in names}
        self.stored = {name: at[id(tensor)] for name, tensor in every_name(network).items() if id(tensor) in at}
        for name in names:
            weight = network.get_parameter(name)
            self.register_buffer(flat(name), weight.detach().to_sparse())
            weight.data = weight.data.new_empty(0)  # in place, so that a weight used in two places stays one

    def forward(self, x: Tensor) -> Tensor:
        dense = {name: self.get_buffer(stored).to_dense() for name, stored in self.stored.items()}
        return functional_call(self.network, dense, (x,), tie_weights=False)
