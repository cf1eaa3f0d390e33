"""The stored results of benchmarks/growth.py: complete, undamaged, and true."""

from __future__ import annotations

import pytest
import scripts

from minicl import files

growth = scripts.load("benchmarks/growth.py")


def test_every_run_is_there_and_nothing_is_forgotten() -> None:
    found = files.read_json(growth.RESULTS)
    assert found["rows"].keys() == growth.ROWS.keys()
    for name, seeds in found["rows"].items():
        assert seeds.keys() == {"0", "1", "2"}
        for row in seeds.values():
            assert row["bwt"] == 0.0
            assert 1.0 <= row["width"] <= (2.0 if name == "CPG" else 1.0)
            if name != "CPG":  # a bit for each of 82k weights and each of ten tasks
                assert row["extra_bytes"] == 10 * (64 * 256 + 256 * 256) // 8


def test_a_run_gives_what_is_stored() -> None:
    stored = files.read_json(growth.RESULTS)["rows"]["Piggyback, random"]["1"]
    assert growth.measure("Piggyback, random", 1, "test")["acc"] == pytest.approx(stored["acc"], abs=0.01)
