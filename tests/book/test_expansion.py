"""The stored results of benchmarks/expansion.py: complete, chosen on validation samples, and true."""

from __future__ import annotations

import pytest
import scripts
import torch

import minicl
from minicl import files

expansion = scripts.load("benchmarks/expansion.py")
found = files.read_json(expansion.RESULTS)


def test_every_run_is_there() -> None:
    for name, stream, seed in expansion.known():
        assert f"{name} {stream} {seed}" in found
    for seed in expansion.SEEDS:
        assert f"CPG permuted {seed}" in found
        for goal in expansion.GOALS:
            assert f"CPG, goal {goal} permuted {seed}" in found
        for name in expansion.REPRESENTATIONS:
            for budget in expansion.BUDGETS:
                assert f"{name} split-class {budget} {seed}" in found
    for seed in range(3):
        for name in expansion.FASHION:
            for budget in expansion.BUDGETS if name not in ("FineTune", "Joint") else (0,):
                assert f"{name} fashion {budget} {seed}" in found
    assert not set(expansion.SEARCH_SEEDS) & set(expansion.SEEDS)


def test_dials_were_chosen_on_validation_samples() -> None:
    for name, settings in expansion.TRIED.items():
        for stream in expansion.STREAMS if name == "DEN" else ("permuted",):
            for dial in settings:
                for seed in expansion.SEARCH_SEEDS:
                    assert f"{name} {stream} valid {expansion.words(dial)} {seed}" in found
            assert expansion.chosen(found, name, stream) in settings


@pytest.mark.parametrize(
    ("name", "stream", "seed"),
    [("DEN, pull alone", "rotated", 1), ("DEN without splitting", "permuted", 0), ("DER", "permuted", 2)],
)
def test_a_sample_of_the_runs_comes_out_the_same(name: str, stream: str, seed: int) -> None:
    now = expansion.task_known(name, stream, seed, expansion.chosen(found, name, stream))
    then = found[f"{name} {stream} {seed}"]
    for what in ("ACC", "F", "new"):  # another processor may round otherwise
        assert now[what] == pytest.approx(then[what], abs=0.04)
    for what in ("bytes", "extra_bytes", "epochs", "identical"):
        assert now[what] == then[what]


def test_a_run_without_task_ids_comes_out_the_same() -> None:
    now, then = expansion.class_incremental("DER", 200, 3), found["DER split-class 200 3"]
    assert now["ACC"] == pytest.approx(then["ACC"], abs=0.05)
    assert now["extractors"] == then["extractors"]


def test_what_isolates_keeps_every_task_in_every_run() -> None:
    for name in ("PNN", "HAT", "PackNet", "Piggyback", "Piggyback, untrained", "DER", "CPG"):
        assert all(found[f"{name} permuted {seed}"]["identical"] == 10 for seed in expansion.SEEDS)
    assert all(found[f"DEN permuted {seed}"]["identical"] < 10 for seed in expansion.SEEDS)


def test_the_departures_depart() -> None:
    """Each does what its name says, where the learner of the paper does not."""
    rho = torch.tensor([0.01, 0.5, 0.2, 0.3])
    least, most = (kind(minicl.mlp(4, 4), drift=0.1, k=2) for kind in (expansion.LeastDrifted, expansion.MostDrifted))
    assert least.to_split(rho).tolist() == [2, 3]
    assert most.to_split(rho).tolist() == [1, 3]
    head = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    (mask,) = expansion.FirstOutput(minicl.mlp(2, 2)).search(head)
    assert mask.tolist() == [False, True]
    assert not expansion.AfterExpansion(minicl.mlp(4, 4)).may_split(False)
    bias = torch.zeros(100)
    assert expansion.RandomBiases(minicl.mlp(4, 4)).bias_of_copies(bias).min() >= 0
    assert expansion.RandomBiases(minicl.mlp(4, 4)).bias_of_copies(bias).any()
    assert torch.equal(minicl.DEN(minicl.mlp(4, 4)).bias_of_copies(bias), bias)
