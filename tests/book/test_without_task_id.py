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
    for k, setting in enumerate(script.GRID[-3:]):
        for seed in script.SEARCH_SEEDS:
            accuracies = {"softmax": {"accuracy": 0.1}, "energy": {"accuracy": (0.5, 0.9, 0.7)[k]}}
            files.write_json(tmp_path / f"search-{k}-{seed}.json", {"setting": setting, "rules": accuracies})
    assert script.best_setting(tmp_path, True) == script.GRID[-2]
    (tmp_path / f"search-1-{script.SEARCH_SEEDS[-1]}.json").unlink()  # a search that is not whole does not count
    assert script.best_setting(tmp_path, True) == script.GRID[-1]
    assert script.best_setting(tmp_path, False) == script.UNSEARCHED[False]


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
