"""The samples of a part of a task: held as tensors (`Samples`), or read when they are asked for (`LazySamples`).

Both answer alike, so that no method needs to know which of the two it was given: `len(samples)`, `samples.labels`,
`samples.take(rows)` and `samples.batches(size)`. Inputs are a tensor or a tree of tensors, see `minicl.inputs`; what
becomes of arrays and pictures stands in `minicl.arrays`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from . import inputs
from .arrays import Name, as_labels, as_targets, check_integers, coded, is_pair
from .inputs import Tree
from .sources import Arrays, Collate, Items, Job, Reader, Source, seeded


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples that are held: inputs `x`, a tensor of shape (n, ...) or a tree of such, and labels `y`, int64 (n,)."""

    x: Tree
    y: Tensor

    def __post_init__(self) -> None:
        n = inputs.length(self.x)
        if n != len(self.y):
            raise ValueError(f"{n} inputs but {len(self.y)} labels: there must be one label per input")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> Samples:
        return Samples(inputs.take(self.x, index), self.y[index])

    @property
    def labels(self) -> Tensor:
        """int64 of shape (n,); the same as `y`."""
        return self.y

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the samples take."""
        return inputs.nbytes(self.x) + self.y.nbytes

    def take(self, rows: Tensor | slice) -> Samples:
        """The samples at these rows."""
        return self[rows]

    def batches(self, size: int, **reading: Any) -> Iterator[Samples]:
        """The samples in order, so many at a time: views, no copies. How they would be read does not matter here."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def subset(self, rows: Tensor) -> Samples:
        """The samples at these rows, as `take`."""
        return self[rows]

    def with_labels(self, y: Tensor) -> Samples:
        """The same inputs with other labels, int64 of shape (n,)."""
        return Samples(self.x, y)

    def changed(self, change: Callable[[Tree], Tree]) -> Samples:
        """The same samples, their inputs changed."""
        return Samples(change(self.x), self.y)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Samples:
        """The same samples on a device; with a dtype, their floating-point inputs in that type."""
        return Samples(inputs.to(self.x, device, dtype), self.y.to(device))


class LazySamples:
    """Samples that are read when they are asked for: of a map-style data set, or of arrays that stay where they are.

    Nothing is kept, so random transforms draw anew in each reading, and a data set may be larger than the memory. A
    batch is seeded as a whole: the same rows with the same seed are the same inputs, whichever process reads them.

    Args:
        data: a data set with a length whose items are (input, label), or whatever `collate` understands; or a pair of
            arrays (x, y), read by batch: those that are memory-mapped are never copied as a whole.
        collate: makes a batch of a list of items, `collate(items) -> (x, y)`, for inputs that cannot be stacked as they
            are, such as texts of different lengths.
        name: what errors call the samples.
        targets: labels are no classes, but numbers of any shape and type.

    Raises:
        ValueError: no data set, an item that is no pair, labels that are no integers; when read: inputs of different
            shapes, NaN or infinity.
    """

    def __init__(
        self, data: Any, collate: Collate | None = None, name: Name | None = None, targets: bool = False
    ) -> None:
        self.name, self.targets = Name() if name is None else name, targets
        self.source: Source = (
            Arrays(data[0], data[1], self.name, targets) if is_pair(data) else Items(data, collate, self.name, targets)
        )
        self.rows: Tensor | None = None  # of the source, in this order; None for all
        self.changes: tuple[Callable[[Tree], Tree], ...] = ()
        self.n_outputs: int | None = None  # labels that are read must be smaller
        self.names: tuple[str, ...] | None = None  # of the classes, where labels are texts
        self._labels: Tensor | None = None
        self._tell_labels()

    def _tell_labels(self) -> None:
        """Labels that can be known without reading inputs; and all of them where they are texts, to number them."""
        source = self.source
        if self.targets:
            self._labels = source.y if isinstance(source, Arrays) else None  # type: ignore[assignment]
            return
        if isinstance(source, Items):
            told = source.told_labels() if len(source) else None
            if told is None and len(source):
                with seeded(0):
                    first = as_labels([source.label_of(source.dataset[0])], self.name)
                told = source.labels() if isinstance(first, list) else None
        else:
            told = source.labels()
        if isinstance(told, list):
            told, self.names = coded(told)
        self._labels = None if told is None else check_integers(told, self.name)

    def __len__(self) -> int:
        return len(self.source) if self.rows is None else len(self.rows)

    def __getattr__(self, name: str) -> Any:
        if name in ("x", "y"):
            raise AttributeError(
                f"samples that are read on demand have no {name} at once; allowed: .take(rows), .batches(size), .labels"
            )
        raise AttributeError(f"LazySamples has no attribute {name!r}")

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the samples take: those of the labels, where these are known."""
        return 0 if self._labels is None else self._labels.nbytes

    @property
    def knows_labels(self) -> bool:
        """Whether `labels` can be told without reading inputs."""
        return self._labels is not None

    @property
    def labels(self) -> Tensor:
        """All labels, int64 of shape (n,): read once, without keeping inputs, unless the data set tells them."""
        if self._labels is None:
            if self.targets:
                whole = as_targets(self.source.labels(), self.name)
            else:
                read = as_labels(self.source.labels(), self.name)
                assert isinstance(read, Tensor)  # texts have been numbered already
                whole = check_integers(read, self.name)
            self._labels = whole if self.rows is None else whole[self.rows]
        return self._labels

    def take(self, rows: Tensor | slice) -> Samples:
        """The samples at these rows, read now."""
        return Samples(*self.reader[self.job(rows)])

    def batches(
        self, size: int, *, seed: int | None = None, workers: int = 0, pin_memory: bool = False
    ) -> Iterator[Samples]:
        """The samples in order, so many at a time; other arguments as for `Reading`."""
        return Reading(self, workers, pin_memory).epoch(torch.arange(len(self)).split(size), seed)

    def subset(self, rows: Tensor) -> LazySamples:
        """The samples at these rows, still to be read."""
        other = copy.copy(self)
        other.rows = rows if self.rows is None else self.rows[rows]
        other._labels = None if self._labels is None else self._labels[rows]
        return other

    def with_labels(self, y: Tensor) -> LazySamples:
        """The same inputs with other labels, int64 of shape (n,)."""
        other = copy.copy(self)
        other._labels, other.names = y, None
        return other

    def changed(self, change: Callable[[Tree], Tree]) -> LazySamples:
        """The same samples, each batch of inputs changed after it was read. Workers may have to pickle `change`."""
        other = copy.copy(self)
        other.changes = (*self.changes, change)
        return other

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LazySamples:
        """The same samples; with a dtype, their floating-point inputs in that type. They are read on the CPU."""
        return self if dtype is None else self.changed(_Retyped(dtype))

    def checked(self, n_outputs: int | None, name: Name) -> LazySamples:
        """The same samples, under another name in errors; labels that are read must be smaller than n_outputs."""
        other = copy.copy(self)
        other.n_outputs, other.name = n_outputs, name
        return other

    @property
    def reader(self) -> Reader:
        """What reads a batch, in this process or in a worker."""
        return Reader(self.source, self.changes, self.n_outputs, self.name, self.targets)

    def job(self, rows: Tensor | slice, seed: int | None = None) -> Job:
        """What the reader is told of a batch."""
        rows = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows.cpu()
        of_source = rows if self.rows is None else self.rows[rows]
        return of_source, None if self._labels is None else self._labels[rows], seed


@dataclass(frozen=True)
class _Retyped:
    """Floating-point inputs in another type; a class, which a worker can unpickle."""

    dtype: torch.dtype

    def __call__(self, x: Tree) -> Tree:
        return inputs.to(x, dtype=self.dtype)


class Reading:
    """How samples are read: by worker processes, which stay until this object goes, or in this process.

    Args:
        samples: what to read.
        workers: processes that read ahead; 0 for this one. Arrays are always read in this process.
        pin_memory: into page-locked memory, from which a GPU copies faster.
    """

    def __init__(self, samples: LazySamples, workers: int = 0, pin_memory: bool = False) -> None:
        workers = 0 if isinstance(samples.source, Arrays) else workers
        self.jobs = _Jobs(samples)
        with _quietly():
            self.loader = DataLoader(
                samples.reader,
                batch_size=None,  # the reader's items are batches
                sampler=self.jobs,
                collate_fn=_as_it_is,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=pin_memory,
                generator=torch.Generator(),  # or it would draw from the process's own
            )

    def epoch(self, batches: Sequence[Tensor], seed: int | None = None) -> Iterator[Samples]:
        """Read these batches, each a tensor of rows.

        Args:
            seed: of random transforms: the same seed gives the same inputs, whatever the number of workers. None: they
                draw anew each time.
        """
        if seed is None and self.loader.num_workers:
            seed = int(torch.empty((), dtype=torch.int64).random_())
        self.jobs.batches, self.jobs.seed = batches, seed
        with _quietly():
            reading = iter(self.loader)
        return (Samples(x, y) for x, y in reading)


class _Jobs:
    """What a `DataLoader` is to read, in order: a sampler whose samples are batches."""

    def __init__(self, samples: LazySamples) -> None:
        self.samples, self.seed = samples, None  # type: tuple[LazySamples, int | None]
        self.batches: Sequence[Tensor] = ()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Job]:
        for i, rows in enumerate(self.batches):
            yield self.samples.job(rows, None if self.seed is None else (self.seed + i) % 2**63)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without a warning of more workers than cores: as many as were asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


def _as_it_is(batch: Any) -> Any:
    return batch


# ---- several parts in one --------------------------------------------------------------------------------------------


class Mixture(Source):
    """Several samples, one part after another, for batches that have some of each."""

    def __init__(self, parts: Sequence[Samples | LazySamples]) -> None:
        self.parts = parts
        self.starts = torch.tensor([0, *map(len, parts)]).cumsum(0)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, rows: Tensor) -> tuple[Tree, Any]:
        part = torch.searchsorted(self.starts, rows, right=True) - 1  # (batch,)
        of_part = rows - self.starts[part]
        shared = self._shared()
        if shared is not None:
            return self._collated(*shared, part, of_part)
        here = [(i, (part == i).nonzero().flatten()) for i in part.unique().tolist()]
        read = [self.parts[i].take(of_part[places]) for i, places in here]
        back = torch.cat([places for _, places in here]).argsort()
        return (
            inputs.take(inputs.cat([samples.x for samples in read]), back),
            torch.cat([samples.y for samples in read])[back],
        )

    def _shared(self) -> tuple[Items, tuple[Callable[[Tree], Tree], ...]] | None:
        """What makes batches of all parts together, and what is done to them: where one collate is given for all."""
        found = [(part.source, part.changes) for part in self.parts if isinstance(part, LazySamples)]
        sources = [source for source, _ in found if isinstance(source, Items)]
        if len(sources) < len(self.parts) or any(changes != found[0][1] for _, changes in found):
            return None
        collate = sources[0].collate
        alike = collate is not None and all(source.collate is collate for source in sources)
        return (sources[0], found[0][1]) if alike else None

    def _collated(
        self, source: Items, changes: tuple[Callable[[Tree], Tree], ...], part: Tensor, of_part: Tensor
    ) -> tuple[Tree, Any]:
        items: list[Any] = []
        known: list[Tensor] = []
        for i, row in zip(part.tolist(), of_part, strict=True):
            one = self.parts[i]
            assert isinstance(one, LazySamples)
            rows, label, _ = one.job(row[None])
            assert isinstance(one.source, Items)
            items += one.source.items(rows.tolist())
            known += [] if label is None else [label]
        x, y = source.batch(items)
        for change in changes:
            x = change(x)
        return x, torch.cat(known) if len(known) == len(items) else y

    def labels(self) -> Tensor:
        return torch.cat([part.labels for part in self.parts])


def mixed(parts: Sequence[Samples | LazySamples]) -> Samples | LazySamples:
    """All samples of several parts, one part after another: held where all of them are."""
    if len(parts) == 1:
        return parts[0]
    held = [part for part in parts if isinstance(part, Samples)]
    if len(held) == len(parts):
        return Samples(inputs.cat([part.x for part in held]), torch.cat([part.y for part in held]))
    together = LazySamples.__new__(LazySamples)
    together.name, together.source = Name(of="of several tasks, "), Mixture(parts)
    together.rows, together.changes, together.n_outputs = None, (), None
    together.names, together._labels = None, None
    together.targets = any(isinstance(part, LazySamples) and part.targets for part in parts)
    return together
