"""Where data come from: scikit-learn's digits (no download) and torchvision's data sets by name, or your own.

Every data set becomes two parts, train and test, held as tensors or read on demand (see `minicl.samples`): images
float32 in [0, 1] of shape (n, channels, height, width), labels int64 of shape (n,).
"""

from __future__ import annotations

import pickle
import sys
import urllib.error
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from .arrays import Name, as_input, as_labels, as_targets, as_tensor, check_integers, coded, is_pair, kind
from .samples import LazySamples as LazySamples
from .samples import Samples as Samples
from .sources import Collate, Items, is_mapped, seeded

TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "flowers102": "Flowers102",
}
NAMES = ("digits", *TORCHVISION)
_classes: dict[str, Sequence[str]] = {}  # by the name of a data set that has been read: what it calls its classes


def load(
    dataset: str | tuple[Any, Any] = "digits",
    root: str | Path | None = None,
    download: bool = False,
    size: int = 64,
) -> tuple[Samples, Samples]:
    """Train and test samples of a data set, held as tensors; floating-point inputs as float32.

    Args:
        dataset: one of `NAMES`, or a pair (train, test) of torch datasets (or of `Samples`, or of (x, y) tensors).
        root: the folder torchvision reads from; needed for torchvision's data sets, unused otherwise.
        download: let torchvision fetch what is missing, with its own checks.
        size: side in pixels to which pictures of different sizes (flowers102) are scaled.

    Raises:
        ValueError: unknown name, no root, or samples that cannot be stacked into one tensor.
        FileNotFoundError: the files are not under `root`; the message says which command fetches them.
        ConnectionError: they could not be downloaded.
    """
    train, test = find(dataset, root, download, size)
    return as_samples(train, "train"), as_samples(test, "test")


def find(
    dataset: str | tuple[Any, Any], root: str | Path | None, download: bool, size: int, held: bool = True
) -> tuple[Any, Any]:
    """The two parts of a data set as they come; arguments and errors as for `load`. Not held: as little as possible."""
    if not isinstance(dataset, str):
        if not isinstance(dataset, (tuple, list)) or len(dataset) != 2:
            raise ValueError(
                f"dataset is {kind(dataset)}; allowed: a name ({', '.join(NAMES)}) "
                "or a pair (train, test) of torch datasets"
            )
        return dataset[0], dataset[1]
    if dataset == "digits":
        return _digits()
    if dataset not in TORCHVISION:
        raise ValueError(
            f"unknown data set {dataset!r}; allowed: {', '.join(NAMES)}, or a pair (train, test) of torch datasets"
        )
    if root is None:
        raise ValueError(f"{dataset!r} is read from a folder of your choice: give it as root, for example root='data'")
    return _from_torchvision(dataset, Path(root), download, size, held)


def names_of(dataset: Any, data: Any, labels: Sequence[int | str]) -> dict[int | str, str]:
    """What a data set calls the classes that it has integers for: those in its attribute `classes`, by label.

    `dataset` is how it was named, `data` its training part. Empty where it has none, or none that says more than the
    number ("3 - three"), or where labels are names already.
    """
    while isinstance(data, Subset):
        data = data.dataset
    names = _classes.get(dataset) if isinstance(dataset, str) else getattr(data, "classes", None)
    if not isinstance(names, (list, tuple)) or any(type(name) is not str or not name.strip() for name in names):
        return {}
    if any(type(label) is not int or not 0 <= label < len(names) for label in labels) or len({*names}) < len(names):
        return {}
    found: dict[int | str, str] = {label: names[int(label)] for label in labels}
    return {} if all(name.split()[0].startswith(str(label)) for label, name in found.items()) else found


def as_samples(data: Any, part: str = "data") -> Samples:
    """A part of a data set, read once and held; its floating-point inputs as float32. See `minicl.arrays`."""
    samples, _ = ingest(data, Name(part))
    if not isinstance(samples, Samples):
        samples = samples.take(slice(None))
    return samples.with_labels(check_integers(samples.y, Name(part))).to(dtype=torch.float32)


Names = tuple[str, ...] | None
"""The classes, in the order of their numbers, where labels were texts."""


def ingest(
    data: Any,
    name: Name,
    collate: Collate | None = None,
    *,
    hold_arrays: bool = True,
    hold_items: bool = True,
    targets: bool = False,
) -> tuple[Samples | LazySamples, Names]:
    """Samples from whatever people bring: a data set, (x, y), a list of items, or samples.

    Args:
        collate: for what is read on demand.
        hold_arrays: hold (x, y) as tensors; memory-mapped files are read on demand all the same.
        hold_items: read a data set once, item by item, and hold it. A list of items is held already.
        targets: labels are no classes, but numbers of any shape and type.

    Raises:
        ValueError: see `LazySamples`.
    """
    if isinstance(data, LazySamples):
        return data, data.names
    arrays, rows = _arrays_of(data)
    if arrays is not None and hold_arrays and not is_mapped(arrays[0]):
        x = as_input(arrays[0], name)
        y = as_targets(arrays[1], name) if targets else as_labels(arrays[1], name)
        codes, names = (y, None) if isinstance(y, Tensor) else coded(y)
        held = Samples(x, codes)
        return (held if rows is None else held[rows]), names
    if arrays is not None:
        lazy = LazySamples(arrays, name=name, targets=targets)
        return (lazy if rows is None else lazy.subset(rows)), lazy.names
    if collate is not None or not (hold_items or isinstance(data, (list, tuple))):
        lazy = LazySamples(data, collate, name, targets)
        return lazy, lazy.names
    return _held(Items(data, None, name, targets), name)


def _arrays_of(data: Any) -> tuple[Any, Tensor | None]:
    """The (x, y) that data are made of, and which rows of it; None where data are no arrays."""
    if isinstance(data, Samples):
        return (data.x, data.y), None
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return data.tensors, None
    if isinstance(data, Subset):
        arrays, rows = _arrays_of(data.dataset)
        indices = torch.as_tensor(list(data.indices), dtype=torch.long)
        return arrays, indices if rows is None else rows[indices]
    return (data if is_pair(data) else None), None


def _held(source: Items, name: Name) -> tuple[Samples, Names]:
    """All items of a data set, read once. What they draw at random comes from a fixed seed, and a warning says so."""
    if not len(source):
        raise ValueError(f"{name('data set')} is empty; at least one sample is needed")
    with seeded(0) as drew:
        x, labels = source.read(torch.arange(len(source)))
        if drew():
            warnings.warn(
                f"{name('data set')} drew random numbers while it was read, and it is read once: every epoch would see "
                "the same draw. For a new one in each epoch: split(..., held=False), or run(..., augment=f)",
                stacklevel=5,
            )
    y = as_targets(labels, name) if source.targets else as_labels(labels, name)
    codes, names = (y, None) if isinstance(y, Tensor) else coded(y)
    return Samples(x, codes), names


def _digits() -> tuple[Samples, Samples]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(digits.target).long()
    # The test set is fixed once and for all: a stream's seed must never move a picture between training and test.
    train, test = train_test_split(range(len(y)), test_size=0.2, stratify=digits.target, random_state=0)
    return Samples(x[train], y[train]), Samples(x[test], y[test])


def _from_torchvision(name: str, root: Path, download: bool, size: int, held: bool) -> tuple[Any, Any]:
    datasets = torchvision().datasets
    maker: Callable[..., Any] = getattr(datasets, TORCHVISION[name])

    def parts(**kwargs: Any) -> Any:
        try:
            return maker(root=str(root), download=download, **kwargs)
        except urllib.error.URLError as error:
            raise ConnectionError(f"{name} could not be fetched into the folder {str(root)!r}: {error}") from error
        except (RuntimeError, AssertionError, EOFError, IndexError, ValueError, pickle.UnpicklingError) as error:
            if download and "ownload" in str(error):
                raise ConnectionError(f"{name} could not be fetched into the folder {str(root)!r}: {error}") from error
            if "not found" in str(error):  # in the words of torchvision
                raise FileNotFoundError(
                    f"{name} is not, or not whole, in the folder {str(root)!r}. Fetch it with  "
                    f"minicl.split({name!r}, root={str(root)!r}, download=True)  or on the command line with  "
                    f"minicl run finetune split-{name} --root {root} --download"
                ) from error
            raise ValueError(
                f"the files of {name} in the folder {str(root)!r} are damaged ({error}); "
                "delete them and fetch them again with download=True"
            ) from error

    if name != "flowers102":
        train, test = parts(train=True), parts(train=False)
        _classes[name] = train.classes  # CIFAR's stand in its files, those of the others in torchvision
        return (_raw(train), _raw(test)) if held else (_bytes(train), _bytes(test))
    transform = _square(size)
    train, valid, test = (parts(split=split, transform=transform) for split in ("train", "val", "test"))
    _classes[name] = getattr(train, "classes", ())
    for dataset in (train, valid, test):
        dataset.targets = getattr(dataset, "_labels", None)  # told, so that no picture is decoded for its label
    return ConcatDataset([train, valid]), test


def _raw(dataset: Any) -> Samples:
    """The arrays that torchvision already holds, without decoding picture by picture."""
    x, y = _bytes(dataset)
    return Samples((x.float() / 255).contiguous(), y)


def _bytes(dataset: Any) -> tuple[Tensor, Tensor]:
    """The same as uint8, shape (n, channels, height, width)."""
    x, y = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
    return x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2), y.long()


def _square(size: int) -> Callable[[Any], Tensor]:
    def transform(picture: Any) -> Tensor:
        return as_tensor(picture.convert("RGB").resize((size, size)), Name())

    return transform


_operators: list[torch.library.Library] = []  # declared operators live as long as their library object does


def torchvision() -> ModuleType:
    """torchvision, also where its compiled operators do not fit the installed torch.

    A CUDA build of torchvision beside a CPU build of torch fails to import ("operator torchvision::nms does not
    exist", pytorch/vision #9085). Data sets, transforms and models need none of those operators, so the two that the
    import asks for are declared, only where the plain import failed.
    """
    try:
        import torchvision
    except (RuntimeError, AttributeError) as error:
        if "torchvision" not in str(error) or _operators:
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # the failed import left half-loaded modules behind
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _operators.append(library)
        import torchvision
    except ImportError as error:
        raise ImportError("this data set comes through torchvision: pip install 'minicl[vision]'") from error
    return torchvision
