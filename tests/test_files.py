"""Files are written whole or not at all, hold no code, and say what is wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import random
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from minicl import files

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
as_root = hasattr(os, "geteuid") and os.geteuid() == 0


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensor = (torch.randn(shape, generator=generator) * 100).to(draw(st.sampled_from(DTYPES)))
    return tensor.transpose(0, -1) if tensor.ndim > 1 else tensor  # not contiguous


names = st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__")
headers = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3)


@given(held=st.dictionaries(names, tensors(), max_size=4), header=headers)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tensors_and_header_come_back_exactly(held: dict[str, Tensor], header: dict[str, Any], tmp_path: Path) -> None:
    files.write(tmp_path / "f.safetensors", header, held)
    read_header, read = files.read(tmp_path / "f.safetensors")
    assert read_header == {"format": files.FORMAT, **header}
    assert read.keys() == held.keys()
    for name, tensor in held.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    held = {"a": whole, "b": whole, "row": whole[1], "columns": whole[:, 1:], "empty": whole[:0]}
    files.write(tmp_path / "f", {}, held)
    _, read = files.read(tmp_path / "f")
    assert all(torch.equal(read[name], held[name]) for name in held)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("bomb-went-off"),)


def good(path: Path) -> bytes:
    files.write(path, {"a": 1}, {"t": torch.arange(5.0)})
    return path.read_bytes()


HOSTILE = {
    "empty": b"",
    "pickle": pickle.dumps(Bomb()),
    "random": random.Random(0).randbytes(4096),
    "zeros": bytes(4096),
    "endless header": b"\xff" * 8 + b"{}",
    "deep header": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "text": b"hello",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_safetensors_file_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"'f\.safetensors' is not a readable safetensors file"):
        files.read("f.safetensors")
    assert os.listdir() == ["f.safetensors"]


def test_a_torch_file_renamed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Bomb(), "f.safetensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        files.read("f.safetensors")
    assert os.listdir() == ["f.safetensors"]


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = good(tmp_path / "f")
    for length in range(len(whole)):
        (tmp_path / "f").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            files.read(tmp_path / "f")


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"other": "x"}, {"minicl": "[]"}, {"minicl": "{}"}, {"minicl": '{"format": 99}'}, {"minicl": "null"}],
)
def test_a_safetensors_file_of_something_else_is_refused(metadata: Any, tmp_path: Path) -> None:
    save_file({"t": torch.zeros(2)}, tmp_path / "f", metadata=metadata)
    with pytest.raises(ValueError, match="was not written by minicl, or by another version"):
        files.read(tmp_path / "f")


@pytest.mark.parametrize("text", ["{", "", "[" * 200_000])
def test_a_damaged_header_is_refused(text: str, tmp_path: Path) -> None:
    save_file({"t": torch.zeros(2)}, tmp_path / "f", metadata={"minicl": text})
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        files.read(tmp_path / "f")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for read in (files.read, files.read_json):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            read(tmp_path / "nothing")
        with pytest.raises(ValueError, match="is not"):
            read(tmp_path)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    files.write_json(path, {"old": True})

    def breaks_off(temporary: str) -> None:
        Path(temporary).write_text('{"new"')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.atomically(path, breaks_off)
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["f.json"]


def test_what_cannot_be_json_is_not_half_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "f.json", {"a": object()})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "f.json", float("nan"))
    assert os.listdir(tmp_path) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, error, message in (
        (tmp_path, IsADirectoryError, "is a folder; name a file in it"),
        (tmp_path / "no" / "f", FileNotFoundError, "there is no folder"),
        (tmp_path / "file" / "f", FileNotFoundError, "there is no folder"),
    ):
        for write in (
            lambda path: files.write_json(path, 1),
            lambda path: files.write(path, {}, {}),
            files.check_writable,
        ):
            with pytest.raises(error, match=message):
                write(path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    """A stand-in for /dev/null, which root could replace as well, to the harm of the whole machine."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a device or a pipe, not a file"):
        files.write_json(tmp_path / "pipe", 1)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(as_root or os.name == "nt", reason="root may write everywhere")
def test_a_read_only_file_or_folder_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text("1")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="the file is read-only"):
        files.write_json(path, 2)
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match=r"the folder .* is read-only"):
        files.write_json(tmp_path / "new.json", 2)
    tmp_path.chmod(0o755)
    assert path.read_text() == "1"


@pytest.mark.skipif(os.name == "nt", reason="needs links and modes")
def test_a_link_stays_a_link_and_the_file_is_readable_as_others_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write_json(tmp_path / "link", 5)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "5\n"
    (tmp_path / "usual").touch()
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_one_bit_changed_on_the_disk_is_found(tmp_path: Path) -> None:
    whole = good(tmp_path / "f")
    for place in range(8, len(whole)):  # header, metadata and tensors alike
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "f").write_bytes(changed)
        with pytest.raises(ValueError, match=r"is not a readable safetensors file|was not written by minicl"):
            files.read(tmp_path / "f")


def test_damaged_files_are_set_aside_one_after_another(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "f").write_text(str(number))
        files.set_aside(tmp_path / "f")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "f.damaged": "0",
        "f.damaged-2": "1",
        "f.damaged-3": "2",
    }
