"""benchmarks/cifar100.py on a stand-in: CIFAR-100 itself is not at hand where the tests run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import scripts
import torch

import minicl
from minicl import files

cifar = scripts.load("benchmarks/cifar100.py")


def test_the_superclasses_divide_the_classes() -> None:
    assert Counter(cifar.COARSE) == dict.fromkeys(range(20), 5)
    assert sorted(c for group in cifar.SUPERCLASSES for c in group) == list(range(100))


def test_pictures_are_shifted_and_mirrored_one_by_one() -> None:
    torch.manual_seed(0)
    x = torch.rand(200, 3, 8, 8)
    changed = cifar.shifted_and_mirrored(x)
    assert changed.shape == x.shape
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    mirrored = 0
    for before, after in zip(padded, changed, strict=True):
        places = [(i, j) for i in range(9) for j in range(9)]
        plain = any(torch.equal(before[:, i : i + 8, j : j + 8], after) for i, j in places)
        turned = any(torch.equal(before[:, i : i + 8, j : j + 8].flip(2), after) for i, j in places)
        assert plain or turned
        mirrored += turned
    assert 60 < mirrored < 140


@pytest.mark.filterwarnings("ignore:task .* switched off every unit")  # there is nothing to learn
@pytest.mark.parametrize("table", ["tasks", "classes"])
def test_every_method_of_a_table_runs_on_a_stand_in(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cifar.NETWORKS, table, lambda: minicl.cnn(3, 8, pool=8))
    monkeypatch.setattr(cifar, "KEPT", 60)
    monkeypatch.setattr(cifar, "TASKS", 3)
    monkeypatch.setattr(cifar, "STEPS", 3)
    monkeypatch.setattr(cifar, "SUPERCLASSES", [[0, 5, 7, 9], [1, 2, 3, 4], [6, 8, 10, 11]])
    monkeypatch.setattr(cifar, "stand_in", _few)
    given = ["--stand-in", "--table", table, "--epochs", "1", "--seeds", "1", "--out", str(tmp_path)]
    cifar.main(given)
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == [m.split()[0] for m in cifar.METHODS[table]]
    for method in cifar.METHODS[table]:
        run = files.read_json(tmp_path / f"{table}-{method}-0-1.json")
        assert len(run["accuracy"]) == 3
    monkeypatch.delattr(cifar, "one_run")  # nothing is run again
    cifar.main(given)
    assert capsys.readouterr().out == printed


def _few() -> tuple[minicl.Samples, minicl.Samples]:
    y = torch.arange(12).repeat_interleave(12)
    x = torch.rand(len(y), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return minicl.Samples(x, y), minicl.Samples(x[::6], y[::6])  # labels that do not lie side by side in memory
