"""The stored results of benchmarks/comparison.py: complete, chosen on validation samples, and true."""

from __future__ import annotations

from typing import Any

import pytest
import scripts

import minicl
from minicl import files

comparison = scripts.load("benchmarks/comparison.py")
found = files.read_json(comparison.RESULTS)


def test_every_run_is_there() -> None:
    pairs = [(m, s) for m in comparison.NAMES for s in comparison.STREAMS if comparison.fits(m, s)]
    assert set(found["runs"]) == {f"{method} {stream} {seed}" for method, stream in pairs for seed in range(5)}
    assert set(found["growth"]) == {f"{method} {seed}" for method in comparison.GROWN for seed in range(5)}
    for method, stream in pairs:
        for value in comparison.DIALS[method][1] if method in comparison.DIALS else []:
            for seed in comparison.SEARCH_SEEDS:
                assert comparison.key(method, stream, value, seed) in found["search"]
    assert not set(comparison.SEARCH_SEEDS) & set(comparison.SEEDS)


@pytest.mark.parametrize(
    ("method", "stream", "seed"),
    [
        ("FeatureExtraction", "split-domain", 3),
        ("PackNet", "split-task", 1),
        ("PNN", "split-task", 4),
        ("ER", "split-class", 0),
        ("DERpp", "split-domain", 2),
    ],
)
def test_a_sample_of_the_runs_comes_out_the_same(method: str, stream: str, seed: int) -> None:
    value = comparison.chosen(found["search"], method, stream)
    learner = minicl.METHODS[comparison.NAMES[method]](
        minicl.mlp(*comparison.WIDTHS[stream]), **comparison.hyperparameters(method, value)
    )
    settings = comparison.training(method, stream)
    result = minicl.run(learner, comparison.STREAMS[stream](seed=seed), seed=seed, progress=False, **settings)
    stored, now = found["runs"][f"{method} {stream} {seed}"], comparison.summary(result)
    for name in ("ACC", "BWT", "new"):  # another processor may round otherwise
        assert now[name] == pytest.approx(stored[name], abs=0.04)
    for name in ("parameters", "bytes", "extra_bytes"):
        assert now[name] == stored[name]


def test_a_value_tried_on_validation_samples_comes_out_the_same() -> None:
    stored = found["search"][comparison.key("PackNet", "split-task", 0.1, 101)]
    assert comparison.tried("PackNet", "split-task", 0.1, 101) == pytest.approx(stored, abs=0.05)


def grown_by(method: str) -> tuple[minicl.Learner, dict[str, Any]]:
    """The learner whose growth was measured, and what `run` was told."""
    trials = found["growth search"][method]
    value = comparison.chosen(found["search"], method, "permuted-task")
    learner, how = comparison.for_growth(method, trials[comparison.budget.best_of(trials)]["settings"], value)
    return learner, how


@pytest.mark.parametrize("method", comparison.GROWN)
def test_growth_was_searched_with_one_budget_and_is_what_the_program_draws(method: str) -> None:
    trials = found["growth search"][method]
    assert len(trials) == comparison.budget.TRIALS
    for t, made in enumerate(trials):
        assert made["settings"] == comparison.drawn_for_growth(method, trials[:t])
        assert set(made["runs"]) <= set(map(str, comparison.SEARCH_SEEDS))
        assert made["runs"]


def test_the_first_tasks_of_growth_come_out_the_same() -> None:
    learner, how = grown_by("HAT")
    rows = found["growth"]["HAT 2"]["rows"]
    for t, task in enumerate(comparison.GROWTH(seed=2)[:3]):
        result = minicl.run(learner, [task], seed=2000 + t, progress=False, **how)
        assert result.accuracy[0, 0] == pytest.approx(rows[t]["newest"], abs=0.05)  # another processor rounds otherwise


def test_growth_is_what_the_methods_say() -> None:
    """What a task adds, without training: the same parameters and bytes after every task."""
    for method in ("PNN", "HAT", "PackNet", "ER"):
        learner, _ = grown_by(method)
        rows = found["growth"][f"{method} 0"]["rows"]
        assert len(rows) == 20
        for task, row in zip(comparison.GROWTH(seed=0)[:4], rows, strict=False):
            learner.learn(task, lambda epochs=None: None)
            assert learner.capacity()["parameters"] == row["parameters"]
            assert learner.capacity()["extra_bytes"] == row["extra_bytes"]
    for method in ("PNN", "HAT", "PackNet", "Individual"):
        assert all(found["growth"][f"{method} {seed}"]["identical"] == 20 for seed in range(5))
