"""What a network is given: a tensor, or a dict, tuple or list of such, nested as you like.

Below, such inputs x are called a *tree*, and its tensors *leaves*. All leaves have the same first axis, one entry per
sample: token ids of shape (n, length) with their mask of the same shape, a picture with a row of measurements.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Tree: TypeAlias = Any
"""A tensor, or a dict, tuple or list of trees."""

FINITE_AT_ONCE = 2**22
"""Numbers that are looked at together in `check_finite`: large data are not held a second time."""


def map(f: Callable[[Tensor], Any], x: Tree) -> Tree:
    """The tree with f(leaf) in the place of each leaf.

    Raises:
        TypeError: something in the tree that is no tensor.
    """
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, Mapping):
        return {name: map(f, part) for name, part in x.items()}
    if isinstance(x, (tuple, list)):
        return like(x, [map(f, part) for part in x])
    raise _no_input(x)


def tensors(x: Tree) -> Iterator[Tensor]:
    """The leaves, in order."""
    return (leaf for _, leaf in named(x))


def named(x: Tree, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The leaves with their places in the tree, such as ".ids" or "[0]"; the place of a lone tensor is ""."""
    if isinstance(x, Tensor):
        yield path, x
    elif isinstance(x, Mapping):
        for name, part in x.items():
            yield from named(part, f"{path}.{name}")
    elif isinstance(x, (tuple, list)):
        for i, part in enumerate(x):
            yield from named(part, f"{path}[{i}]")
    else:
        raise _no_input(x)


def length(x: Tree) -> int:
    """The number of samples.

    Raises:
        ValueError: no leaf, a leaf without an axis, or leaves of different lengths.
    """
    if isinstance(x, Tensor) and x.ndim:
        return len(x)
    found = {path: None if leaf.ndim == 0 else len(leaf) for path, leaf in named(x)}
    if len(set(found.values())) != 1 or None in found.values():
        said = ", ".join(f"x{path}: {'no axis' if n is None else n}" for path, n in found.items()) or "no tensor"
        raise ValueError(f"the tensors of one input must have the same first axis, one entry per sample; given: {said}")
    return next(n for n in found.values() if n is not None)


def take(x: Tree, rows: Any) -> Tree:
    """The samples at these rows: an int64 tensor, or a slice."""
    return x[rows] if isinstance(x, Tensor) else map(lambda leaf: leaf[rows], x)


def to(
    x: Tree,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    non_blocking: bool = False,
) -> Tree:
    """The tree on a device; with a dtype, floating-point leaves in that type (others keep theirs)."""
    if isinstance(x, Tensor) and dtype is None:
        return x.to(device, non_blocking=non_blocking)
    return map(lambda leaf: leaf.to(device, dtype if leaf.is_floating_point() else None, non_blocking=non_blocking), x)


def cat(parts: Sequence[Tree]) -> Tree:
    """The samples of several trees of one kind, one after another; a tree of the kind of the first.

    Raises:
        ValueError: trees of different kinds, or leaves that do not fit together.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        if len(parts) == 1:
            return first
        try:
            return torch.cat(list(parts))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"inputs that differ cannot be joined: {_several(parts)}") from error
    names = list(first) if isinstance(first, Mapping) else range(len(first))
    if any(_kind_of(part) != _kind_of(first) or len(part) != len(first) for part in parts):
        raise ValueError(f"inputs that differ cannot be joined: {_several(parts)}")
    try:
        joined = [cat([part[name] for part in parts]) for name in names]
    except KeyError as error:
        raise ValueError(f"inputs that differ cannot be joined: {_several(parts)}") from error
    return dict(zip(names, joined, strict=True)) if isinstance(first, Mapping) else like(first, joined)


def _kind_of(x: Tree) -> str:
    """A tuple and a list hold the same: a memory that was loaded knows only that it was one of the two."""
    return "tensor" if isinstance(x, Tensor) else "mapping" if isinstance(x, Mapping) else "sequence"


def split(x: Tree, size: int) -> Iterator[Tree]:
    """The samples in order, so many at a time; views, no copies."""
    return (take(x, slice(start, start + size)) for start in range(0, length(x), size))


def nbytes(x: Tree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.nbytes for leaf in tensors(x))


def numel(x: Tree) -> int:
    """Numbers in all leaves."""
    return sum(leaf.numel() for leaf in tensors(x))


def by_keyword(network: torch.nn.Module, x: Any) -> bool:
    """Whether x, inputs or their shapes, is a dictionary whose keys are all parameters of the network's `forward`.

    Such a dictionary is given by keyword, as token ids and their mask are to a language model; everything else is one
    argument.
    """
    if not isinstance(x, Mapping) or not x:
        return False
    names = inspect.signature(network.forward).parameters
    return all(name in names for name in x)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def shapes(x: Tree) -> Any:
    """The shapes without the first axis: a tuple for a tensor, a dict for a dict, a list for a tuple or a list.

    What JSON makes of it is read by `shapes_from_json`.
    """
    if isinstance(x, Tensor):
        return tuple(x.shape[1:])
    if isinstance(x, Mapping):
        return {name: shapes(part) for name, part in x.items()}
    if isinstance(x, (tuple, list)):
        return [shapes(part) for part in x]
    raise _no_input(x)


def named_back(shape: Any, leaves: Mapping[str, Tensor], path: str = "") -> Tree:
    """The inverse of `named`: a tree of these shapes (see `shapes`) from its leaves by their places."""
    if isinstance(shape, tuple):
        return leaves[path]
    if isinstance(shape, Mapping):
        return {name: named_back(part, leaves, f"{path}.{name}") for name, part in shape.items()}
    return tuple(named_back(part, leaves, f"{path}[{i}]") for i, part in enumerate(shape))


def same(a: Tree, b: Tree) -> bool:
    """Whether two trees hold the same numbers in the same places."""
    first, second = dict(named(a)), dict(named(b))
    return first.keys() == second.keys() and all(torch.equal(first[path], second[path]) for path in first)


def shapes_from_json(value: Any) -> Any:
    """`shapes` as it was before JSON, which has no tuples.

    Raises:
        ValueError: no shapes.
    """
    if isinstance(value, dict):
        return {str(name): shapes_from_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        if all(type(n) is int for n in value):
            return tuple(value)
        return [shapes_from_json(part) for part in value]
    raise ValueError(f"{value!r} is no shape")


def describe(shape: Any) -> str:
    """Shapes in words: "(batch, 1, 8, 8)", "{ids: (batch, 12), mask: (batch, 12)}"."""
    if isinstance(shape, tuple):
        return f"({', '.join(['batch', *(str(n) for n in shape)])}{'' if shape else ','})"
    if isinstance(shape, Mapping):
        return "{" + ", ".join(f"{name}: {describe(part)}" for name, part in shape.items()) + "}"
    return "[" + ", ".join(describe(part) for part in shape) + "]"


# ---- what is wrong with it -------------------------------------------------------------------------------------------


def check_finite(x: Tree, where: str) -> None:
    """Raise ValueError where inputs hold NaN or infinity.

    Args:
        x: a tree.
        where: what the error calls it.
    """
    for path, leaf in named(x):
        # One NaN or infinity makes a sum one, too. (So may many large numbers: then every one is looked at.)
        if not leaf.is_floating_point() or not leaf.numel() or bool(leaf.sum().isfinite()):
            continue
        at_once = max(1, FINITE_AT_ONCE * len(leaf) // leaf.numel())
        if all(bool(torch.isfinite(part).all()) for part in leaf.split(at_once)):
            continue
        rows = (~torch.isfinite(leaf.reshape(len(leaf), -1)).all(1)).nonzero().flatten()
        raise ValueError(
            f"{where}{f' (x{path})' if path else ''}: NaN or infinity in {len(rows)} inputs, "
            f"the first at index {int(rows[0])}; allowed: finite numbers"
        )


def _no_input(x: Any) -> TypeError:
    return TypeError(f"inputs hold a {type(x).__name__}; allowed: tensors, and dicts, tuples or lists of them")


def like(x: tuple[Any, ...] | list[Any], parts: list[Any]) -> Any:
    """The parts in a list, tuple or named tuple as x is one."""
    if isinstance(x, tuple):
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return parts


def _several(parts: Sequence[Tree]) -> str:
    return " and ".join(dict.fromkeys(describe(shapes(part)) for part in parts))
