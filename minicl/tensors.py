"""Tensors by name, as buffers that move with a learner and are saved with it."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def without_dots(name: str) -> str:
    """A name that a buffer may have."""
    return name.replace(".", "/")


def first(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The first entries along each axis, a view of this shape: what a tensor was before it grew."""
    return tensor[tuple(slice(n) for n in shape)]


def in_one_order(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, with the strides that a new tensor of its shape has.

    What lies otherwise in memory (`channels_last`) is computed by other kernels, which give other last bits. Where an
    axis has length 1, `Tensor.contiguous` leaves strides as they are, and kernels go by those.
    """
    usual = torch.empty(tensor.shape, device="meta").stride()
    return tensor if tensor.stride() == usual else tensor.clone(memory_format=torch.contiguous_format)


def same_bits(a: Any, b: Any) -> bool:
    """Whether `a` and `b` are the same, bit for bit: of one type and shape, with the same bytes.

    So NaN is the same as itself, and minus zero is not the same as zero, though equal to it. This is what the book
    means by "bit for bit", and what `certify` compares.

    Args:
        a, b: tensors or NumPy arrays of any shape; or lists, tuples or dictionaries of them, which must have the same
            length or the same keys.

    Raises:
        TypeError: something else than these.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_bits(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    for value in (a, b):
        if not isinstance(value, (Tensor, np.ndarray, Mapping, list, tuple)):
            raise TypeError(
                f"bits of a {type(value).__name__} cannot be compared; allowed: tensors, NumPy arrays, and lists, "
                "tuples or dictionaries of them"
            )
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return False


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


class TensorDict(nn.Module):
    """Tensors by any name, dots included, in one order in memory. A file may bring other names and shapes."""

    def __init__(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] = ()) -> None:
        super().__init__()
        for name, tensor in dict(tensors).items():
            self[name] = tensor

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._buffers[without_dots(name)]
        assert tensor is not None
        return tensor

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(without_dots(name), in_one_order(tensor.detach()))

    def __delitem__(self, name: str) -> None:
        del self._buffers[without_dots(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and without_dots(name) in self._buffers

    def __iter__(self) -> Iterator[str]:
        return iter([name.replace("/", ".") for name in self._buffers])

    def __len__(self) -> int:
        return len(self._buffers)

    def values(self) -> list[Tensor]:
        """The tensors, in the order in which they were first set."""
        return [self[name] for name in self]

    def items(self) -> ItemsView[str, Tensor]:
        """Names and tensors, in the order in which they were first set."""
        return {name.replace("/", "."): tensor for name, tensor in self._buffers.items() if tensor is not None}.items()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for _, tensor in self.items())

    def make_room(self, saved: Mapping[str, Tensor], device: torch.device) -> None:
        """Have the tensors of these names, with these shapes and types and no others; `load_state_dict` fills them."""
        self._buffers.clear()
        for name, tensor in saved.items():
            self.register_buffer(name, tensor.new_empty(tensor.shape, device=device))


@contextmanager
def gradients_put_back(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Here parameters have no gradients, so that `backward` makes them; afterwards they have those of before."""
    before = [(parameter, parameter.grad) for parameter in parameters]
    try:
        for parameter, _ in before:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def calls_again(loss: Tensor) -> bool:
    """Whether the backward pass of a loss calls parts of the network again by a `backward` inside it.

    That is reentrant gradient checkpointing, with which PyTorch refuses `torch.autograd.grad`.
    """
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            if "CheckpointFunction" in node.name():
                return True
            seen.add(node)
            ahead += [following for following, _ in node.next_functions]
    return False
