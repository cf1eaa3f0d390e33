"""Learners as files: what is kept, and what is refused.

That each method comes back from a file and goes on is tested in test_every_method.py.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from loops import run, same_bits, small_tasks, state
from safetensors import safe_open
from torch import nn

import minicl
from minicl import FineTune, Joint, Learner, Task, files
from minicl.learner import Fit

make_tasks = partial(small_tasks, shape=(6,))
train = partial(run, epochs=2, batch_size=8)


class WithSettings(FineTune):
    saved_attributes = ("counted",)

    def __init__(self, backbone: nn.Module, strength: float, function: Callable[[float], float] = abs) -> None:
        Learner.__init__(self, backbone, strength=strength, function=function)
        self.counted = {"a": 0}

    def learn(self, task: Task, fit: Fit) -> None:
        fit()
        self.counted["a"] += 1


def test_hyperparameters_and_attributes_are_saved(tmp_path: Path) -> None:
    learner = WithSettings(minicl.mlp(6, 5), 0.1 + 0.2)
    train(learner, make_tasks())
    learner.save(tmp_path / "f")
    with pytest.raises(
        ValueError, match=r"could not hold function \(abs\); give it to load\(path, backbone, function=...\)"
    ):
        WithSettings.load(tmp_path / "f", minicl.mlp(6, 5))
    loaded = WithSettings.load(tmp_path / "f", minicl.mlp(6, 5), function=round)
    assert loaded.hyperparameters == {"strength": 0.1 + 0.2, "function": round}
    assert loaded.counted == {"a": 3}
    with pytest.raises(ValueError, match=r"has hyperparameters that WithSettings does not take: .*colour"):
        WithSettings.load(tmp_path / "f", minicl.mlp(6, 5), function=round, colour="red")


def saved(tmp_path: Path, scenario: str = "task") -> Path:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks(scenario))
    learner.save(tmp_path / "f.safetensors")
    return tmp_path / "f.safetensors"


def test_a_file_of_another_method_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(ValueError, match="holds a FineTune, not a Joint; load it with minicl"):
        Joint.load(path, minicl.mlp(6, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: minicl.mlp(6, 4),
            r"does not fit this backbone: backbone.1.weight has shape \(5, 6\) in the file and \(4, 6\)",
        ),
        (
            lambda: minicl.mlp(6, 5, 5),
            r"does not fit this backbone: backbone.3.bias is in the network but not in the file",
        ),
        (lambda: minicl.mlp(6, 5, bias=False), r"backbone.1.bias is in the file but not in the network"),
        (lambda: minicl.mlp(6, 5).double(), r"is torch.float32 in the file and torch.float64 in the network"),
    ],
)
def test_a_file_of_another_network_is_refused_and_the_network_untouched(
    make: Any, message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    backbone = make()
    before = state(backbone)
    with pytest.raises(ValueError, match=message):
        FineTune.load(path, backbone)
    assert same_bits(before, state(backbone))


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("bomb-went-off"),)


@pytest.mark.parametrize("content", [b"", pickle.dumps(Bomb()), random.Random(1).randbytes(5000), b"{}"])
def test_a_hostile_file_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        FineTune.load("f.safetensors", minicl.mlp(6, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["f.safetensors"]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            FineTune.load(path, minicl.mlp(6, 5))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        FineTune.load(tmp_path / "another", minicl.mlp(6, 5))


HEAD = {"id": 0, "n_outputs": 2, "n_features": 5, "scenario": "task", "name": "", "finished": True, "notes": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"hyperparameters": None},
        {"hyperparameters": [1]},
        {"hyperparameters": {"learning_rate": 1}},
        {"attributes": None},
        {"input_shape": "abc"},
        {"input_shape": 5},
        {"tasks": None},
        {"tasks": [5]},
        {"tasks": [{}]},
        {"tasks": [HEAD | {"id": -1}]},
        {"tasks": [HEAD | {"id": "0"}]},
        {"tasks": [HEAD | {"n_outputs": 0}]},
        {"tasks": [HEAD | {"n_outputs": "2"}]},
        {"tasks": [HEAD | {"n_outputs": 10**15}]},  # would take all memory
        {"tasks": [HEAD | {"n_features": 10**15}]},
        {"tasks": [HEAD | {"scenario": "none"}]},
        {"tasks": [HEAD | {"notes": 3}]},
        {"tasks": [HEAD | {"surprise": 3}]},
        {"tasks": [HEAD, HEAD]},
        {"tasks": [HEAD, HEAD | {"id": 1, "scenario": "class"}]},
        {"tasks": []},  # and then the heads are left over
        {"method": None},
    ],
)
def test_a_file_with_a_wrong_header_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["minicl"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["digest"]  # which `write` works out anew: it is the header's own checks that are to find what is wrong
    files.write(path, header | change, tensors)
    with pytest.raises(ValueError, match=r"f\.safetensors"):
        FineTune.load(path, minicl.mlp(6, 5))
    for name in header.keys() - {"scenario", "format"}:
        files.write(path, {k: v for k, v in header.items() if k != name}, tensors)
        with pytest.raises(ValueError, match=r"f\.safetensors"):
            FineTune.load(path, minicl.mlp(6, 5))


def test_what_cannot_be_written_leaves_the_older_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    learner = WithSettings(minicl.mlp(6, 5), 1.0)
    learner.counted["a"] = object()  # type: ignore[assignment]
    with pytest.raises(TypeError):
        learner.save(path)
    learner.counted["a"] = 1
    assert path.read_bytes() == whole
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        learner.save(tmp_path / "no" / "f")
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        learner.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]
