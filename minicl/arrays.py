"""What people bring, as tensors: arrays, pictures, lists, texts as labels.

An array becomes the same tensor wherever it is given, to `Task` or to `split`, whole or item by item: uint8 becomes
float32 in [0, 1] (pictures), NumPy's floating-point numbers become PyTorch's default type, float32, and a lone array of
bool becomes 0.0 and 1.0. Other integers stay integers (tokens), bool in a dict or tuple stays bool (masks), and
floating-point tensors of PyTorch keep their type. Pictures of PIL have their channels first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import inputs
from .inputs import Tree


@dataclass(frozen=True)
class Name:
    """What errors call the samples at hand: `part` "train" and `of` "task 3: " make "task 3: the train samples"."""

    part: str = ""
    of: str = ""

    def __str__(self) -> str:
        return self("samples")

    def __call__(self, what: str) -> str:
        return self.of + self.plain(what)

    def plain(self, what: str) -> str:
        """The same without `of`, which then stands at the beginning of the error."""
        return f"the {self.part} {what}" if self.part else f"the {what}"


def as_input(x: Any, name: Name) -> Tree:
    """Inputs of any kind as a tree of tensors, by the rules above; without a copy where the type stays.

    Raises:
        ValueError: what is no number, no picture and no tree of them.
    """
    return finished(map_leaves(lambda leaf: as_tensor(leaf, name), x))


def finished(x: Tree) -> Tree:
    """The tree with bytes and lone bools as floating-point numbers."""

    def scaled(leaf: Tensor) -> Tensor:
        return leaf.to(torch.get_default_dtype()) / 255 if leaf.dtype == torch.uint8 else leaf

    if isinstance(x, Tensor) and x.dtype == torch.bool:
        return x.to(torch.get_default_dtype())
    return inputs.map(scaled, x)


def as_tensor(value: Any, name: Name) -> Tensor:
    """A number, an array or a picture as a tensor, with the values that it has."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name('inputs')} hold {kind(value)}; allowed: numbers, pictures, and dicts, tuples or lists of them"
        )
    if not array.flags.writeable or not array.dtype.isnative or any(step < 0 for step in array.strides):
        array = array.astype(array.dtype.newbyteorder("="))  # a copy that PyTorch can take
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    tensor = torch.from_numpy(array)
    if array.dtype in (np.float64, np.float16):
        tensor = tensor.to(torch.get_default_dtype())
    if hasattr(value, "getbands"):  # a picture of PIL: (h, w) or (h, w, c)
        tensor = tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.permute(2, 0, 1)
    return tensor


def is_array(value: Any) -> bool:
    """Whether it is a tensor or an array of NumPy, its numbers included."""
    return isinstance(value, Tensor) or type(value).__module__ == "numpy" or isinstance(value, np.ndarray)


def is_tree(value: Any) -> bool:
    """Whether it is a dict, tuple or list of inputs, and not one input written as a list of numbers."""
    if isinstance(value, Mapping):
        return True
    return isinstance(value, (tuple, list)) and any(
        is_tree(part) or hasattr(part, "getbands") or (is_array(part) and part.ndim > 0) for part in value
    )


def is_pair(data: Any) -> bool:
    """Whether data are inputs and labels, (x, y), and not a data set of two items."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    x, y = data
    inputs_first = is_array(x) or isinstance(x, (tuple, list, Mapping))
    if is_array(y):
        return inputs_first and y.ndim > 0
    return inputs_first and isinstance(y, (tuple, list)) and not is_tree(y)


def map_leaves(f: Callable[[Any], Any], x: Any) -> Any:
    """`inputs.map` for trees whose leaves are no tensors yet."""
    if isinstance(x, Mapping):
        return {name: map_leaves(f, part) for name, part in x.items()}
    return inputs.like(x, [map_leaves(f, part) for part in x]) if is_tree(x) else f(x)


def leaves(x: Any) -> Iterator[Any]:
    """The leaves of such a tree."""
    found: list[Any] = []
    map_leaves(found.append, x)
    return iter(found)


def stacked(items: list[Any], name: Name) -> tuple[Tree, list[Any]]:
    """The inputs of a list of (input, label) as one tree, and the list of labels.

    Raises:
        ValueError: an item that is no pair, inputs of different shapes or kinds.
    """
    pairs = [pair(item, name) for item in items]
    trees = [map_leaves(lambda leaf: as_tensor(leaf, name), x) for x, _ in pairs]
    return finished(_stack(trees, name)), [label for _, label in pairs]


def _stack(trees: list[Tree], name: Name) -> Tree:
    first = trees[0]
    if len({_structure(tree) for tree in trees}) > 1:
        raise ValueError(
            f"{name('data set')} has inputs of different kinds; "
            "give it collate=, which makes a batch of a list of items"
        )
    if isinstance(first, dict):
        return {key: _stack([tree[key] for tree in trees], name) for key in first}
    if not isinstance(first, Tensor):
        return inputs.like(first, [_stack(list(parts), name) for parts in zip(*trees, strict=True)])
    shapes = sorted({tuple(tensor.shape) for tensor in trees})
    if len(shapes) > 1:
        raise ValueError(
            f"{name('data set')} has inputs of different shapes, such as {shapes[0]} and {shapes[-1]}; "
            "give it a transform that brings them to one shape, or collate=, which makes a batch of a list of items"
        )
    return torch.stack(trees)


def _structure(tree: Tree) -> Any:
    if isinstance(tree, Tensor):
        return Tensor
    return type(tree), tuple(tree) if isinstance(tree, dict) else len(tree)


def pair(item: Any, name: Name) -> tuple[Any, Any]:
    """An item of a data set, which must be (input, label)."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(
            f"{name.of}an item of {name.plain('data set')} is {kind(item)}; allowed: a pair (input, label), "
            "or anything else with collate=, which makes a batch of a list of items"
        )
    return item[0], item[1]


# ---- labels ----------------------------------------------------------------------------------------------------------


def as_labels(y: Any, name: Name) -> Tensor | list[str]:
    """Labels as a tensor, as they are, or as a list of texts.

    Raises:
        ValueError: a list of something else than single integers or texts, or some of each.
    """
    if isinstance(y, Tensor):
        return y
    if isinstance(y, np.ndarray) and y.dtype.kind in "biuf":
        return torch.from_numpy(y.astype(y.dtype.newbyteorder("=")))  # a copy: labels are small, and held
    values = y.tolist() if isinstance(y, np.ndarray) else list(y)
    if values and all(isinstance(value, str) for value in values):
        return [str(value) for value in values]
    return torch.tensor([_as_label(value, name) for value in values], dtype=torch.long)


def _as_label(value: Any, name: Name) -> int:
    if type(value) is int:
        return value
    try:
        number = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        number = torch.empty(0)
    if number.numel() != 1 or number.is_floating_point() or number.is_complex():
        raise ValueError(
            f"{name('data set')} has labels that are not single integers, such as {value!r}; "
            "allowed: integers, or texts alone"
        )
    return int(number)


def as_targets(y: Any, name: Name) -> Tensor:
    """Targets of a task without a head: any numbers, shape (n, ...), in the type that they have; NumPy's in PyTorch's.

    Raises:
        ValueError: what is no number, or targets of different shapes.
    """
    if isinstance(y, Tensor) or is_array(y):
        return as_tensor(y, name)
    found = [as_tensor(value, name) for value in y]
    shapes = sorted({tuple(target.shape) for target in found})
    if len(shapes) > 1:
        raise ValueError(
            f"{name('samples')} have targets of different shapes, such as {shapes[0]} and {shapes[-1]}; "
            "give collate=, which makes a batch of a list of items"
        )
    return torch.stack(found) if found else torch.empty(0)


def check_integers(y: Tensor, name: Name) -> Tensor:
    """The labels as int64; ValueError unless they are integers of shape (n,)."""
    if y.is_floating_point() or y.is_complex() or y.ndim != 1:
        raise ValueError(
            f"{name.of}the labels of {name.plain('samples')} are {y.dtype} of shape {tuple(y.shape)}; "
            "allowed: integers of shape (n,)"
        )
    return y.long()


def coded(texts: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Texts as numbers, int64 of shape (n,): their places in the sorted tuple of all different ones."""
    names = sorted(set(texts))
    place = {name: i for i, name in enumerate(names)}
    return torch.tensor([place[text] for text in texts], dtype=torch.long), tuple(names)


def kind(value: Any) -> str:
    """A value in an error: itself where it is short, else what it is."""
    return f"{value!r}" if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
