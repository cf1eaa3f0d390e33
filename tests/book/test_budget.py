"""One budget for every method (benchmarks/budget.py): what is drawn, what wins, and the stored results."""

from __future__ import annotations

import itertools
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scripts
import torch

from minicl import files
from minicl.samples import Samples

budget = scripts.load("benchmarks/budget.py")
CELLS = files.read_json(budget.RESULTS)["cells"] if budget.RESULTS.exists() else []
IMAGES = Path(os.environ.get("MINICL_DATA", scripts.ROOT.parent / "shared" / "data"))
NAMED = [pytest.param(cell, id=f"{cell['stream']}-{cell['method']}") for cell in CELLS]


def trial(valid: float, test: float = 0.0, **settings: Any) -> dict[str, Any]:
    return {"settings": settings, "runs": {"100": {"valid": valid, "test": test}}}


def test_the_best_is_chosen_on_validation_samples_alone() -> None:
    trials = [trial(0.5, 0.9), trial(0.7, 0.1), trial(0.7, 1.0), trial(0.6, 0.8)]
    assert budget.best_of(trials) == 1  # of equal ones the first, whatever its test samples say
    assert budget.best_of(trials[:1]) == 0


def test_what_is_expected_of_the_best_of_k_is_the_mean_over_all_choices_of_k() -> None:
    trials = [trial(v, t) for v, t in ((0.3, 0.2), (0.9, 0.7), (0.5, 0.8), (0.6, 0.1))]
    for k, found in enumerate(budget.expected(trials), 1):
        of_each = [max(some, key=budget.valid)["runs"]["100"]["test"] for some in itertools.combinations(trials, k)]
        assert found == pytest.approx(statistics.mean(of_each))


def test_a_range_grows_where_the_best_lies_near_its_end() -> None:
    ranges = {"lam": (1.0, 100.0), "lr adam": (0.001, 0.1), "lr sgd": (0.001, 0.1), "share": ["a", "b"]}
    best = {"lam": 99.0, "optimizer": "adam", "lr": 0.0011, "share": "b"}
    longer = budget.grown(ranges, best)
    assert longer["lam"] == pytest.approx((1.0, 1000.0))
    assert longer["lr adam"] == pytest.approx((0.0001, 0.1))
    assert longer["lr sgd"] == ranges["lr sgd"]
    assert budget.grown(ranges, {"lam": 10.0, "optimizer": "sgd", "lr": 0.01}) == ranges
    assert budget.grown(ranges, {}) == ranges  # the package's own settings are in no range


@pytest.mark.parametrize("method", budget.METHODS)
def test_every_method_has_as_many_trials_and_draws_the_same_again(method: str) -> None:
    ranges = budget.space(method, "split-class")
    drawn = [budget.drawn(ranges, method, "split-class", t) for t in range(budget.TRIALS)]
    assert drawn == [budget.drawn(ranges, method, "split-class", t) for t in range(budget.TRIALS)]
    assert set(drawn[0]) <= {"infer"}  # the first trial says nothing
    assert {settings["optimizer"] for settings in drawn[1:]} == {"adam", "sgd"}
    assert {settings["fresh_optimizer"] for settings in drawn[1:]} == {True, False}
    for settings in drawn[1:]:
        low, high = budget.LR[settings["optimizer"]]
        assert low <= settings["lr"] <= high


def test_a_search_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []

    def measure(method: str, stream: str, settings: dict[str, Any], seed: int, root: str) -> dict[str, Any]:
        made.append((round(1e6 * settings.get("lr", 0)), seed))
        if len(made) == 4:
            raise KeyboardInterrupt
        return {"valid": 0.9 - settings.get("lr", 0) if seed == 100 else 0.5, "test": 0.5}

    monkeypatch.setattr(budget, "measure", measure)
    monkeypatch.setattr(budget, "CHECKPOINTS", (1, 3))
    given = ("FineTune", "split-class", tmp_path, "", 3, 2)
    with pytest.raises(KeyboardInterrupt):
        budget.work(*given)
    budget.work(*given)
    found = files.read_json(tmp_path / "split-class-FineTune.json")
    assert [list(t["runs"]) for t in found["trials"]] == [["100", "101"]] * 3
    assert found["tests"].keys() == {"0"}
    count = len(made)
    budget.work(*given)
    assert len(made) == count == 3 * 2 + 2 + 1  # one was broken off
    assert made[3] == made[4]


def test_a_trial_far_behind_is_spared_its_second_seed() -> None:
    assert budget.hopeless(trial(0.5), [trial(0.7)])
    assert not budget.hopeless(trial(0.65), [trial(0.7)])
    assert not budget.hopeless({"settings": {}, "runs": {}}, [trial(0.7)])
    assert not budget.hopeless(trial(0.1), [])


def test_every_method_is_searched_on_every_stream_that_is_reported() -> None:
    found = [(cell["stream"], cell["method"]) for cell in CELLS]
    assert sorted(found) == sorted(itertools.product(budget.REPORTED, budget.METHODS))


def test_few_images_are_so_many_of_each_class_and_others_with_another_seed() -> None:
    samples = Samples(torch.arange(60.0)[:, None], torch.arange(60) % 3)
    first, same, other = (budget.sample(samples, 5, np.random.default_rng(seed)) for seed in (0, 0, 1))
    for drawn in (first, other):
        assert drawn.y.bincount().tolist() == [5, 5, 5]
        assert torch.equal(drawn.x[:, 0] % 3, drawn.y.float())  # each with its own label
        assert len(drawn.x.unique()) == 15  # none twice
    assert torch.equal(first.x, same.x)
    assert not torch.equal(first.x, other.x)


@pytest.mark.parametrize("cell", NAMED)
def test_a_stored_search_is_whole_and_is_what_the_program_draws(cell: dict[str, Any]) -> None:
    trials, tests = cell["trials"], cell["tests"]
    assert len(trials) == budget.TRIALS
    for t, made in enumerate(trials):
        ranges = budget.ranges_at(budget.space(cell["method"], cell["stream"]), trials[:t])
        assert made["settings"] == budget.drawn(ranges, cell["method"], cell["stream"], t)
        best = max(map(budget.valid, trials[:t]), default=0.0)
        first = made["runs"]["100"]["valid"]
        assert len(made["runs"]) == (1 if first < best - budget.BEHIND else 2)
    for k in budget.CHECKPOINTS:
        runs = tests[str(budget.best_of(trials[:k]))]
        assert len(runs) == budget.SEEDS
        assert not set(runs) & set(map(str, budget.SEARCH_SEEDS))


AGAIN = [
    ("split-class", "FineTune", 1),
    ("split-class", "NCM", 0),
    ("split-class", "ER", 2),
    ("split-class", "PackNet", 3),
    ("permuted-task", "SLDA", 4),
    ("few-mnist-class", "SLDA", 5),
    ("few-fashion-task", "FineTune", 6),
]


@pytest.mark.parametrize(("stream", "method", "seed"), AGAIN)
def test_a_sample_of_the_runs_comes_out_the_same(stream: str, method: str, seed: int) -> None:
    if stream.startswith("few") and not (IMAGES / "FashionMNIST").is_dir():
        pytest.skip("MNIST and Fashion-MNIST are not there; MINICL_DATA can name their folder")
    (cell,) = [cell for cell in CELLS if (cell["method"], cell["stream"]) == (method, stream)]
    best = budget.best_of(cell["trials"])
    stored = cell["tests"][str(best)][str(seed)]
    now = budget.measure(method, stream, cell["trials"][best]["settings"], seed, str(IMAGES))
    assert now["test"] == pytest.approx(stored["test"], abs=0.05)  # another processor may round otherwise
    assert now["valid"] == pytest.approx(stored["valid"], abs=0.05)
    assert now["stored"] == stored["stored"]
