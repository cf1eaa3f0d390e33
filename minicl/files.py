"""Safetensors with a JSON header, and JSON, written atomically; nothing is unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMAT = 1


def write(path: str | Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write tensors and a header that JSON can hold to `path` as safetensors."""
    from safetensors.torch import save_file

    ready: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().contiguous()
        # Tied weights and views share memory, which the format forbids: each name gets a copy of its own.
        ready[name] = value.clone() if value.untyped_storage().data_ptr() in places else value
        places.add(ready[name].untyped_storage().data_ptr())
    text = json.dumps({"format": FORMAT, **header})
    metadata = {"minicl": f'{text[:-1]}, "digest": "{digest(text, ready)}"}}'}
    atomically(path, lambda temporary: save_file(ready, temporary, metadata=metadata))


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file that `write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or something else.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata["minicl"]) if "minicl" in metadata else None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if isinstance(header, dict) and header.get("format") == FORMAT:
                stated = header.pop("digest", None)
                if digest(json.dumps(header), tensors) != stated:
                    raise ValueError("its content does not match its digest")
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} is not a readable safetensors file (damaged, cut short, or something else): {error}"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = None if not isinstance(header, dict) else header.get("format")
        raise ValueError(
            f"{str(path)!r} was not written by minicl, or by another version of it (format {found}; allowed: {FORMAT})"
        )
    return header, tensors


def digest(text: str, tensors: dict[str, Tensor]) -> str:
    """BLAKE2b of a text and of tensors with their names: one bit changed on a disk changes it."""
    sums = hashlib.blake2b(text.encode(), digest_size=20)
    for name in sorted(tensors):
        sums.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        sums.update(raw_bytes(tensors[name]))
    return sums.hexdigest()


def raw_bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor, for a digest."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON to `path`."""

    def put(temporary: str) -> None:
        Path(temporary).write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    atomically(path, put)


def read_json(path: str | Path) -> Any:
    """The value of a JSON file; ValueError where the file is damaged, FileNotFoundError where there is none."""
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, IsADirectoryError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} is not readable JSON (damaged, cut short, or something else): {error}"
        ) from error


def with_digest(value: dict[str, Any]) -> dict[str, Any]:
    """The value, and beside it a digest of all the rest."""
    return {**value, "digest": digest(json.dumps(value, sort_keys=True), {})}


def check_digest(path: str | Path, value: dict[str, Any]) -> None:
    """Hold a value that was read from `path` against its digest; a warning where it was written without one.

    Raises:
        ValueError: the digest is that of something else: the file is damaged.
    """
    rest = {name: item for name, item in value.items() if name != "digest"}
    if "digest" not in value:
        warnings.warn(f"{str(path)!r} has no digest, so damage to it would not be seen; save it again", stacklevel=3)
    elif value["digest"] != digest(json.dumps(rest, sort_keys=True), {}):
        raise ValueError(f"{str(path)!r} is damaged: its content does not match its digest")


def check_writable(path: str | Path) -> None:
    """Raise OSError now, and not after an hour of training, where `path` cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it")
    if path.exists() and not path.is_file():  # replacing /dev/null by a file would harm the machine
        raise OSError(f"cannot write {str(path)!r}: it is a device or a pipe, not a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"cannot write {str(path)!r}: the file is read-only")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write {str(path)!r}: the folder {str(path.parent)!r} is read-only")
    os.unlink(_temporary(path))  # trying is the only proof: the superuser may write to /proc, and yet cannot


def _temporary(path: Path) -> str:
    """A new, empty file beside `path`."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise type(error)(f"cannot write {str(path)!r}: {error.strerror}") from error
    os.close(handle)
    return name


def atomically(path: str | Path, write: Callable[[str], Any]) -> None:
    """Let `write` fill a temporary file beside `path` and rename it: what was there is replaced whole or not at all.

    That holds for a process that is killed at any moment, and for a machine that loses its power.
    """
    check_writable(path)
    path = Path(path).resolve()  # a link stays a link to what is replaced
    temporary = _temporary(path)
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's own mode is for secrets
        _fsync(temporary)  # before the name: or the name might outlive a crash, and the content not
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _fsync(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(path: str | Path) -> Path:
    """Rename a damaged file to NAME.damaged (or .damaged-2, ...), so that it is kept and nobody reads it."""
    path, number = Path(path), 1
    while (aside := path.with_name(f"{path.name}.damaged{f'-{number}' if number > 1 else ''}")).exists():
        number += 1
    os.replace(path, aside)
    return aside


def remove_temporaries(folder: str | Path, name: str = "") -> None:
    """Remove what a killed process left half written in a folder, for files whose names begin with `name`."""
    for left in Path(folder).glob(f".{name}*.tmp"):
        with contextlib.suppress(OSError):
            left.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def jsonable(value: Any) -> Any:
    """The value as JSON holds it; what cannot be held, such as a function, becomes a note that it was not saved."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"not_saved": getattr(value, "__qualname__", repr(value))}


def is_placeholder(value: Any) -> bool:
    """Whether `jsonable` put this in the place of something it could not hold."""
    return isinstance(value, dict) and value.keys() == {"not_saved"}


def packed(value: Any, prefix: str, what: str) -> tuple[Any, dict[str, Tensor]]:
    """A value made of numbers, texts, tensors, and dicts, lists and tuples of them, as JSON beside tensors by name.

    Args:
        prefix: the names of the tensors begin with it.
        what: what an error calls the value.

    Raises:
        ValueError: something else in it.
    """
    tensors: dict[str, Tensor] = {}

    def put(item: Any) -> Any:
        if isinstance(item, Tensor):
            name = f"{prefix}/{len(tensors)}"
            tensors[name] = item.detach()
            return {"tensor": name}
        if isinstance(item, dict):
            return {"dict": [[put(key), put(part)] for key, part in item.items()]}
        if isinstance(item, (list, tuple)):
            return {"list" if isinstance(item, list) else "tuple": [put(part) for part in item]}
        if isinstance(item, np.generic):
            return item.item()
        if item is None or isinstance(item, (bool, int, float, str)):
            return item
        raise ValueError(
            f"{what} holds a {type(item).__name__}; allowed in a file: numbers, texts, tensors, groups of them"
        )

    return put(value), tensors


def unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `packed`."""
    if not isinstance(value, dict):
        return value
    ((kind, item),) = value.items()
    if kind == "tensor":
        return tensors[item]
    if kind == "dict":
        return {unpacked(key, tensors): unpacked(part, tensors) for key, part in item}
    parts = [unpacked(part, tensors) for part in item]
    return parts if kind == "list" else tuple(parts)
