"""Where images come from: scikit-learn's digits (no download) and torchvision's data sets by name, or your own.

Every data set becomes two `Samples`, train and test, held as tensors once: images float32 in [0, 1] of shape
(n, channels, height, width), labels int64 of shape (n,).
"""

from __future__ import annotations

import pickle
import sys
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "flowers102": "Flowers102",
}
NAMES = ("digits", *TORCHVISION)


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs `x`, shape (n, ...), and labels `y`, int64 of shape (n,)."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"{len(self.x)} inputs but {len(self.y)} labels: there must be one label an input")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> Samples:
        return Samples(self.x[index], self.y[index])

    def to(self, device: torch.device | str) -> Samples:
        """The same samples on `device`."""
        return Samples(self.x.to(device), self.y.to(device))


def load(
    dataset: str | tuple[Any, Any] = "digits",
    root: str | Path | None = None,
    download: bool = False,
    size: int = 64,
) -> tuple[Samples, Samples]:
    """Train and test samples of a data set.

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
    if not isinstance(dataset, str):
        if not isinstance(dataset, (tuple, list)) or len(dataset) != 2:
            raise ValueError(
                f"dataset is {_kind(dataset)}; allowed: a name ({', '.join(NAMES)}) "
                "or a pair (train, test) of torch datasets"
            )
        return as_samples(dataset[0], "train"), as_samples(dataset[1], "test")
    if dataset == "digits":
        return _digits()
    if dataset not in TORCHVISION:
        raise ValueError(
            f"unknown data set {dataset!r}; allowed: {', '.join(NAMES)}, or a pair (train, test) of torch datasets"
        )
    if root is None:
        raise ValueError(f"{dataset!r} is read from a folder of your choice: give it as root, for example root='data'")
    return _from_torchvision(dataset, Path(root), download, size)


def as_samples(data: Any, part: str = "data") -> Samples:
    """A torch dataset of (input, label) pairs, decoded once into tensors. uint8 images become float32 in [0, 1]."""
    if isinstance(data, Samples):
        x, y = data.x, data.y
    elif isinstance(data, torch.utils.data.TensorDataset) and len(data.tensors) == 2:
        x, y = data.tensors
    elif isinstance(data, (tuple, list)) and len(data) == 2 and all(map(_is_array, data)):
        x, y = map(torch.as_tensor, data)
    else:
        x, y = _decode(data, part)
    if y.is_floating_point() or y.is_complex() or y.ndim != 1:
        raise ValueError(
            f"the labels of the {part} samples are {y.dtype} of shape {tuple(y.shape)}; allowed: integers of shape (n,)"
        )
    if x.dtype == torch.uint8:
        x = x.float() / 255
    elif x.dtype in (torch.float64, torch.float16, torch.bfloat16, torch.bool):
        x = x.float()
    return Samples(x, y.long())


def _decode(data: Any, part: str) -> tuple[Tensor, Tensor]:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or isinstance(data, (str, dict)):
        raise ValueError(
            f"the {part} data is {_kind(data)}; allowed: a torch dataset with a length, whose items are (input, label)"
        )
    pairs = [data[i] for i in range(len(data))]
    if not pairs:
        raise ValueError(f"the {part} data set is empty; at least one sample is needed")
    if not isinstance(pairs[0], (tuple, list)) or len(pairs[0]) != 2:
        raise ValueError(f"an item of the {part} data set is {_kind(pairs[0])}; allowed: a pair (input, label)")
    inputs = [_as_tensor(image) for image, _ in pairs]
    shapes = sorted({tuple(image.shape) for image in inputs})
    if len(shapes) > 1:
        raise ValueError(
            f"the {part} data set has inputs of different shapes, such as {shapes[0]} and {shapes[-1]}; "
            "give it a transform that brings them to one shape"
        )
    labels = [_as_label(label, part) for _, label in pairs]
    return torch.stack(inputs), torch.stack(labels)


def _as_label(label: Any, part: str) -> Tensor:
    try:
        number = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        number = torch.empty(0)
    if number.numel() != 1 or number.is_floating_point() or number.is_complex():
        raise ValueError(f"the {part} data set has labels that are not single integers, such as {label!r}")
    return number.reshape(()).long()


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or type(value).__module__ == "numpy"


def _as_tensor(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    import numpy as np

    array = torch.from_numpy(np.array(image))  # pictures (PIL) and arrays alike; a copy, hence writable
    if hasattr(image, "getbands"):  # a PIL picture: (h, w) or (h, w, c)
        array = array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1)
    return array


def _digits() -> tuple[Samples, Samples]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(digits.target).long()
    # The test set is fixed once and for all: a stream's seed must never move a picture between training and test.
    train, test = train_test_split(range(len(y)), test_size=0.2, stratify=digits.target, random_state=0)
    return Samples(x[train], y[train]), Samples(x[test], y[test])


def _from_torchvision(name: str, root: Path, download: bool, size: int) -> tuple[Samples, Samples]:
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

    if name == "flowers102":
        transform = _square(size)
        train = [as_samples(parts(split=split, transform=transform), split) for split in ("train", "val")]
        return Samples(torch.cat([s.x for s in train]), torch.cat([s.y for s in train])), as_samples(
            parts(split="test", transform=transform), "test"
        )
    return _raw(parts(train=True)), _raw(parts(train=False))


def _raw(dataset: Any) -> Samples:
    """The arrays that torchvision already holds, without decoding picture by picture."""
    x, y = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return Samples((x.float() / 255).contiguous(), y.long())


def _square(size: int) -> Callable[[Any], Tensor]:
    def transform(picture: Any) -> Tensor:
        return _as_tensor(picture.convert("RGB").resize((size, size)))

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


def _kind(value: Any) -> str:
    return f"{value!r}" if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
