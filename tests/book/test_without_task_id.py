"""The script behind Split MNIST without a task id: it goes on where it stopped, and the search decides."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scripts
import torch

from minicl import files


@pytest.fixture
def script() -> ModuleType:
    return scripts.load("benchmarks/without_task_id.py")


def test_it_goes_on_where_it_stopped(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    def fake(root: str, out: Path, *arguments: Any) -> dict[str, Any]:
        made.append(arguments)
        if len(made) == 2:
            raise KeyboardInterrupt
        return {"arguments": list(arguments)}

    monkeypatch.setattr(script, "DO", {"memory": fake})
    given = ["--root", "there", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", ["script", *given, "--parts", "memory", "--seeds", "3", "4"])
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert not (tmp_path / "results.json").exists()
    script.main()
    assert made == [made[0], made[1], *made[1:2], *made[3:]]  # the second was broken off, and made again
    stored = files.read_json(tmp_path / "results.json")
    assert len(stored["runs"]) == 2 * len(script.MEMORY)
    assert stored["command"].endswith("--seeds 3 4")
    script.main()
    assert len(made) == 1 + 2 * len(script.MEMORY)


def test_the_setting_with_the_best_rule_on_validation_samples_is_taken(script: ModuleType, tmp_path: Path) -> None:
    assert script.best_setting(tmp_path, True) == script.UNSEARCHED[True]
    still = [setting for setting in script.GRID if setting["rotations"] and "moved" not in setting]
    for k, setting in enumerate(still[-3:]):
        for seed in script.SEARCH_SEEDS:
            accuracies = {"softmax": {"accuracy": 0.1}, "energy": {"accuracy": (0.5, 0.9, 0.7)[k]}}
            files.write_json(tmp_path / f"search-{k}-{seed}.json", {"setting": setting, "rules": accuracies})
    assert script.best_setting(tmp_path, True) == still[-2]
    (tmp_path / f"search-1-{script.SEARCH_SEEDS[-1]}.json").unlink()  # a search that is not whole does not count
    assert script.best_setting(tmp_path, True) == still[-1]
    assert script.best_setting(tmp_path, False) == script.UNSEARCHED[False]


def test_images_that_are_moved_are_searched_apart(script: ModuleType, tmp_path: Path) -> None:
    for k, setting in enumerate(script.GRID):
        rules = {"softmax": {"accuracy": 0.5 + 0.01 * k}}
        files.write_json(tmp_path / f"search-{k}-{script.SEARCH_SEEDS[0]}.json", {"setting": setting, "rules": rules})
    for rotations in (False, True):
        for moving in (False, True):
            best = script.best_setting(tmp_path, rotations, moving)
            of_this_kind = [s for s in script.GRID if s["rotations"] == rotations and ("moved" in s) == moving]
            assert best == of_this_kind[-1]


def test_each_image_is_moved_by_itself_and_keeps_its_pixels(script: ModuleType) -> None:
    x = torch.zeros(200, 1, 9, 9)
    x[:, :, 3:6, 3:6] = torch.rand(200, 1, 3, 3) + 0.1  # far enough from the edge to stay whole
    found = script.moved(x, 2)
    assert found.shape == x.shape
    by = set()
    for before, after in zip(x, found, strict=True):
        shifts = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if before.roll((i, j), (1, 2)).equal(after)]
        assert len(shifts) == 1
        by.add(shifts[0])
    assert len(by) == 25
    assert script.moved(torch.ones(50, 1, 4, 4), 1).amin() == 0, "what comes in is black"


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_without_torchvision(script: ModuleType, tmp_path: Path, packed: bool) -> None:
    import gzip

    numbers = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in numbers.shape)
    path = tmp_path / "train-images-idx3-ubyte"
    content = head + numbers.tobytes()
    if packed:
        Path(f"{path}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)
    assert torch.equal(script.idx(path), torch.from_numpy(numbers))
