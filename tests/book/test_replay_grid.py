"""The stored results of benchmarks/replay_grid.py: complete, chosen on validation samples, and true."""

from __future__ import annotations

import pytest
import scripts

import minicl
from minicl import files

grid = scripts.load("benchmarks/replay_grid.py")
runs = files.read_json(grid.RESULTS)


def chosen(method: str, stream: str) -> dict[str, float]:
    """The settings of the highest mean ACC on validation samples."""
    tried: list[dict[str, float]] = grid.METHODS[method][0]
    if len(tried) == 1:
        return tried[0]
    keys = [[grid.key(method, stream, grid.SEARCH_BUDGET, s, "valid", t) for s in grid.SEARCH_SEEDS] for t in tried]
    reached = [sum(runs[key]["ACC"] for key in of_one) for of_one in keys]
    return tried[reached.index(max(reached))]


def test_every_run_is_there_and_no_other() -> None:
    expected = {grid.key(m, "split-task", 0, s, "test", {}) for m in grid.WITHOUT_MEMORY for s in grid.TEST_SEEDS}
    for stream in grid.STREAMS:
        for method, (tried, _) in grid.METHODS.items():
            if len(tried) > 1:
                for settings in tried:
                    expected |= {
                        grid.key(method, stream, grid.SEARCH_BUDGET, s, "valid", settings) for s in grid.SEARCH_SEEDS
                    }
            expected |= {
                grid.key(method, stream, budget, s, "test", chosen(method, stream))
                for budget in grid.BUDGETS
                for s in grid.TEST_SEEDS
            }
    assert set(runs) == expected


@pytest.mark.parametrize(
    ("method", "stream", "budget"),
    [("ER", "split-domain", 200), ("GEM", "split-class", 50), ("DERpp", "split-task", 50)],
)
def test_a_sample_of_the_runs_comes_out_the_same(method: str, stream: str, budget: int) -> None:
    settings = chosen(method, stream)
    learner = grid.METHODS[method][1](minicl.mlp(*grid.WIDTHS), budget, **settings)
    found = grid.measure(learner, stream, 0, "test")
    stored = runs[grid.key(method, stream, budget, 0, "test", settings)]
    assert found["ACC"] == pytest.approx(stored["ACC"], abs=0.06)  # another processor may round otherwise
    assert found["extra_bytes"] == stored["extra_bytes"]
