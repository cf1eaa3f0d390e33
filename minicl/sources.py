"""Where samples are read from, and how: what runs in this process, or in a worker of a `DataLoader`."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from . import checks, inputs
from .arrays import (
    Name,
    as_input,
    as_labels,
    as_targets,
    check_integers,
    is_array,
    kind,
    leaves,
    map_leaves,
    pair,
    stacked,
)
from .inputs import Tree

Collate = Callable[[list[Any]], tuple[Any, Any]]
"""Makes a batch of a list of a data set's items: its inputs, a tree, and its labels, one per item."""

Job = tuple[Tensor, Tensor | None, int | None]
"""A batch to be read: rows of a source, int64 (batch,), their labels where these are known, and a seed."""

PAGED_AT_ONCE = 16
"""Rows of a mapped file that are read before its pages are given back."""


class Source:
    """Something of a known length, of which some rows can be read."""

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, rows: Tensor) -> tuple[Tree, Any]:
        """Inputs, a tree, and labels, as they are there; rows are int64 of shape (batch,)."""
        raise NotImplementedError

    def labels(self) -> Tensor | list[str]:
        """All labels, without keeping inputs."""
        raise NotImplementedError


class Items(Source):
    """A map-style data set, item by item."""

    def __init__(self, dataset: Any, collate: Collate | None, name: Name, targets: bool = False) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or isinstance(dataset, (str, dict)):
            raise ValueError(
                f"{name('data')} is {kind(dataset)}; "
                "allowed: a torch dataset with a length, whose items are (input, label)"
            )
        if collate is not None:
            checks.function("collate", collate, "a list of items, which returns (inputs, labels)")
        self.dataset, self.collate, self.name, self.targets = dataset, collate, name, targets

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self, rows: list[int]) -> list[Any]:
        """Some items, as they are."""
        together = getattr(self.dataset, "__getitems__", None)  # PyTorch's name for reading several at once
        return list(together(rows)) if callable(together) else [self.dataset[i] for i in rows]

    def read(self, rows: Tensor) -> tuple[Tree, Any]:
        return self.batch(self.items(rows.tolist()))

    def batch(self, items: list[Any]) -> tuple[Tree, Any]:
        """The inputs and labels of some items."""
        if self.collate is None:
            return stacked(items, self.name)
        made = self.collate(items)
        if not isinstance(made, (tuple, list)) or len(made) != 2:
            raise ValueError(
                f"{self.name.of}collate returned {kind(made)} for {self.name.plain('samples')}; "
                "allowed: a pair (inputs, labels)"
            )
        return as_input(made[0], self.name), made[1]

    def labels(self) -> Tensor | list[str]:
        told = self.told_labels()
        if told is not None:
            return told
        with seeded(0):
            if self.targets:
                return as_targets([self.label_of(self.dataset[i]) for i in range(len(self))], self.name)
            return as_labels([self.label_of(self.dataset[i]) for i in range(len(self))], self.name)

    def label_of(self, item: Any) -> Any:
        return pair(item, self.name)[1] if self.collate is None else self.batch([item])[1][0]

    def told_labels(self) -> Tensor | list[str] | None:
        """What the data set says of its labels in `targets` or `labels`, where three of its items agree with that."""
        found = None if self.targets else _told(self.dataset)
        if found is None or not len(self) or len(found) != len(self):
            return None
        some = sorted({0, len(self) // 2, len(self) - 1})
        with seeded(0):
            read = [self.label_of(self.dataset[i]) for i in some]
        try:
            told, seen = as_labels(found, self.name), as_labels(read, self.name)
        except ValueError:
            return None
        same = [told[i] for i in some] == [seen[i] for i in range(len(some))]  # not so where a transform follows
        return told if same and (isinstance(told, list) or not told.is_floating_point()) else None


def _told(dataset: Any) -> Any:
    """The labels that a data set of PyTorch or torchvision tells without reading its items, or None."""
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1] if len(dataset.tensors) == 2 else None
    if isinstance(dataset, Subset):
        whole = _told(dataset.dataset)
        return None if whole is None else [whole[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_told(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part]
    for attribute in ("targets", "labels"):
        found = getattr(dataset, attribute, None)
        if isinstance(found, (list, tuple)) or (found is not None and is_array(found) and found.ndim == 1):
            return found
    return None


class Arrays(Source):
    """Inputs and labels that stay where they are: in memory, or in a file that is mapped into it."""

    def __init__(self, x: Tree, y: Any, name: Name, targets: bool = False) -> None:
        self.x, self.y, self.name = x, as_targets(y, name) if targets else as_labels(y, name), name
        for leaf in leaves(x):
            if len(leaf) != len(self):
                raise ValueError(f"{len(leaf)} inputs but {len(self)} labels: there must be one label per input")

    def __len__(self) -> int:
        return len(self.y)

    def read(self, rows: Tensor) -> tuple[Tree, Any]:
        read = map_leaves(lambda leaf: _rows(leaf, rows), self.x)
        return as_input(read, self.name), self.y[rows] if isinstance(self.y, Tensor) else [self.y[i] for i in rows]

    def labels(self) -> Tensor | list[str]:
        return self.y


def _rows(array: Any, rows: Tensor) -> Any:
    """A copy of some rows; what a mapped file brought into memory for that is given back to the system at once."""
    if isinstance(array, Tensor):
        return array[rows]
    mapped, plain, places = mapped_file(array), np.asarray(array), rows.numpy()
    # "c": a private copy, of which changes would be lost
    held = None if mapped is None or mapped.mode == "c" else mapped._mmap  # type: ignore[attr-defined]
    if held is None or not hasattr(held, "madvise"):
        return plain[places]
    read = np.empty((len(places), *plain.shape[1:]), plain.dtype)
    for start in range(0, len(places), PAGED_AT_ONCE):  # a row may bring megabytes along
        here = slice(start, start + PAGED_AT_ONCE)
        read[here] = plain[places[here]]
        held.madvise(mmap.MADV_DONTNEED)
    return read


def mapped_file(array: Any) -> np.memmap[Any, Any] | None:
    """The memory-mapped array of NumPy that this is, or a view of."""
    while array is not None:
        if isinstance(array, np.memmap) and array._mmap is not None:  # type: ignore[attr-defined]
            return array
        array = getattr(array, "base", None) if isinstance(array, np.ndarray) else None
    return None


def is_mapped(x: Any) -> bool:
    """Whether some leaf of x lies in a file that is mapped into memory, as far as that can be seen."""
    return any(
        leaf.untyped_storage().filename is not None if isinstance(leaf, Tensor) else mapped_file(leaf) is not None
        for leaf in leaves(x)
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader(Dataset[tuple[Tree, Tensor]]):
    """What reads a batch: a data set whose items are batches, in the eyes of a `DataLoader`.

    Attributes:
        source: what is read.
        changes: done to the inputs of a batch afterwards, in this order.
        n_outputs: labels that are read must be smaller; None for any.
        name: of the samples, for errors.
        targets: labels are no classes, but numbers of any shape and type.
    """

    source: Source
    changes: tuple[Callable[[Tree], Tree], ...]
    n_outputs: int | None
    name: Name
    targets: bool = False

    def __getitem__(self, job: Job) -> tuple[Tree, Tensor]:
        rows, labels, seed = job
        with seeded(seed):
            x, y = self.source.read(rows)
        n = inputs.length(x)
        if n != len(rows):
            raise ValueError(f"{self.name}: {n} inputs were made of {len(rows)} items; allowed: one of each")
        if self.targets:
            labels = as_targets(y, self.name) if labels is None else labels
            inputs.check_finite(labels, self.name("targets"))
        elif labels is None:
            read = as_labels(y, self.name)
            if isinstance(read, list):
                raise ValueError(f"{self.name('data set')} has labels that are not integers, such as {read[0]!r}")
            labels = check_labels(check_integers(read, self.name), self.n_outputs, self.name)
        inputs.check_finite(x, self.name("samples"))
        for change in self.changes:
            x = change(x)
        return x, labels


def check_labels(y: Tensor, n_outputs: int | None, name: Name) -> Tensor:
    """The labels; ValueError unless they go from 0 up to n_outputs - 1."""
    if n_outputs is not None and len(y) and not 0 <= int(y.min()) <= int(y.max()) < n_outputs:
        lowest = int(y.min())
        meant = ""
        if lowest in (-1, -100):
            meant = f". Where {lowest} stands for 'no label', leave those samples out; where it is a class, number it"
        raise ValueError(
            f"{name('samples')} have labels from {lowest} to {int(y.max())}; "
            f"allowed: 0 to {n_outputs - 1}, since n_outputs is {n_outputs}{meant}"
        )
    return y


Drew = Callable[[], bool]


@contextmanager
def seeded(seed: int | None) -> Iterator[Drew]:
    """Random numbers of PyTorch, NumPy and Python from this seed, and as they were afterwards; None changes nothing.

    Gives a function that says whether anything was drawn.
    """
    if seed is None:
        yield lambda: False
        return
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # On the CPU alone: torch.manual_seed would reach into devices that are not in use.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    start = torch.get_rng_state(), _numpy_state(), random.getstate()

    def drew() -> bool:
        return not torch.equal(torch.get_rng_state(), start[0]) or (_numpy_state(), random.getstate()) != start[1:]

    try:
        yield drew
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return (name, np.asarray(keys).tobytes(), *rest)
