"""The stored results of benchmarks/pretrained.py: whole, and nothing in them was chosen by looking at a result."""

from __future__ import annotations

import statistics

import pytest
import scripts

from minicl import files

SCRIPT = scripts.load("benchmarks/pretrained.py")
STORED = files.read_json(SCRIPT.RESULTS)


def test_every_method_has_the_same_three_seeds() -> None:
    assert set(STORED["rows"]) == set(SCRIPT.METHODS)
    assert {tuple(sorted(rows)) for rows in STORED["rows"].values()} == {("0", "1", "2")}


def test_the_threshold_was_searched_on_a_seed_that_no_result_uses() -> None:
    assert set(STORED["search"]) == {str(threshold) for threshold in SCRIPT.THRESHOLDS}
    assert str(SCRIPT.SEARCH_SEED) not in STORED["rows"]["Piggyback"]


@pytest.mark.parametrize("method", SCRIPT.METHODS)
def test_rows_agree_with_themselves(method: str) -> None:
    for row in STORED["rows"][method].values():
        assert row["acc"] == pytest.approx(statistics.mean(row["accuracy"]))
        assert len(row["accuracy"]) == SCRIPT.TASKS
        if method not in ("fine-tuning", "LwF"):
            assert row["bwt"] == 0
