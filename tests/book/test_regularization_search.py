"""The stored results of benchmarks/regularization_search.py: complete, chosen on validation samples, and true."""

from __future__ import annotations

import pytest
import scripts

from minicl import files

search = scripts.load("benchmarks/regularization_search.py")
runs = files.read_json(search.RESULTS)


def test_every_run_is_there() -> None:
    expected = set()
    for stream in search.STREAMS:
        for method in [*search.METHODS, *search.BOUNDS]:
            value = 0.0
            if method in search.METHODS:
                for value in search.METHODS[method][1]:
                    expected |= {search.key(method, stream, value, s, "valid") for s in search.SEARCH_SEEDS}
                value = search.chosen(runs, method, stream)  # the best on validation samples, and no other, was tested
            expected |= {search.key(method, stream, value, s, "test") for s in search.TEST_SEEDS}
    assert set(runs) == expected


@pytest.mark.parametrize(
    "run",
    [("EWC", "split-task", 0, "test"), ("SI", "split-domain", 100, "valid"), ("AGSCL", "split-task", 1, "test")],
)
def test_a_sample_of_the_runs_comes_out_the_same(run: tuple[str, str, int, str]) -> None:
    method, stream, seed, part = run
    value = search.chosen(runs, method, stream)
    stored = runs[search.key(method, stream, value, seed, part)]
    found = search.measure(method, stream, value, seed, part)
    for name in ("ACC", "BWT", "new"):  # another processor may round otherwise
        assert found[name] == pytest.approx(stored[name], abs=0.03)
    assert found["bytes"] == stored["bytes"]


def test_the_table_of_the_search_is_that_of_its_runs() -> None:
    assert search.RESULTS.with_suffix(".md").read_text(encoding="utf-8") == search.table(runs)
