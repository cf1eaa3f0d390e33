"""Results that a script has kept: as they were written, and not made twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scripts

from minicl import files

KEPT = {
    path.stem: path
    for path in sorted((scripts.ROOT / "benchmarks" / "results").glob("*.json"))
    if "digest" in json.loads(path.read_text(encoding="utf-8"))
}


def test_those_that_say_so_are_found() -> None:
    assert {"growth", "hat_paper", "pretrained", "playground"} <= KEPT.keys()


@pytest.mark.parametrize("path", KEPT.values(), ids=KEPT)
def test_a_file_is_what_was_written(path: Path) -> None:
    files.check_digest(path, files.read_json(path))


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    bench = scripts.load("benchmarks/_bench.py")
    path, made = tmp_path / "results.json", []

    def make() -> int:
        made.append(1)
        return 7

    for _ in range(2):
        kept = bench.Kept(path, "the command")
        assert kept(kept.found.setdefault("rows", {}), "one", make) == 7
        stored = files.read_json(path)
        files.check_digest(path, stored)
        assert stored.pop("digest")
        assert stored == {"command": "the command", "rows": {"one": 7}}
    assert made == [1]
