"""Importances of named parameters alone: of LoRA's matrices beside frozen weights, say."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Loop, small_tasks
from torch import Tensor, nn

import minicl
from minicl.regularization import per_sample
from minicl.samples import Samples

HOLDING = {"ewc": partial(minicl.EWC, lam=5.0), "si": partial(minicl.SI, c=1.0), "mas": partial(minicl.MAS, lam=1.0)}
methods = pytest.mark.parametrize("name", HOLDING)


class LoRA(nn.Module):
    """A linear layer that does not learn, and a product of two thin matrices beside it that does."""

    def __init__(self, n_in: int, n_out: int, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(n_in, n_out)
        self.lora_a = nn.Parameter(torch.randn(n_in, rank) / n_in)
        self.lora_b = nn.Parameter(torch.zeros(rank, n_out))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + x @ self.lora_a @ self.lora_b
        return y


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), LoRA(36, 12), nn.ReLU(), LoRA(12, 8))


@methods
def test_only_named_parameters_are_held_and_weighed_as_among_all(name: str) -> None:
    found = {}
    for names in (None, ["*.lora_*"], lambda parameter: "lora_b" in parameter):
        learner = HOLDING[name](backbone(), parameters=names)
        torch.manual_seed(1)
        Loop(learner).learn(small_tasks(n=1)[0])
        found[str(type(names))] = dict(learner.latest.importances.items())
    every, patterns, function = found.values()
    assert sorted(patterns) == [f"backbone.{i}.lora_{m}" for i in (1, 3) for m in "ab"]
    assert sorted(function) == ["backbone.1.lora_b", "backbone.3.lora_b"]
    assert len(every) == 8
    for some in (patterns, function):
        for parameter, importance in some.items():
            assert torch.allclose(importance, every[parameter], rtol=1e-5)


@methods
def test_what_is_not_named_is_free(name: str) -> None:
    learner = HOLDING[name](backbone(), parameters=["1.lora_a"])
    tasks = small_tasks(n=2)
    Loop(learner).learn(tasks[0])
    learner.latest.importances["backbone.1.lora_a"].fill_(1e6)
    merged = learner.merged_penalty()
    assert merged is not None
    assert [t.shape for t in merged.theta] == [(36, 2)]


@methods
def test_names_are_kept_in_files_and_may_name_heads(name: str, tmp_path: Path) -> None:
    learner = HOLDING[name](backbone(), parameters=["3.lora_b", "heads.*"])
    tasks = small_tasks("domain", n=2)
    Loop(learner).learn(tasks[0])
    assert sorted(learner.latest.names) == ["backbone.3.lora_b", "heads.shared.bias", "heads.shared.weight"]
    learner.save(tmp_path / "file")
    loaded = type(learner).load(tmp_path / "file", backbone())
    assert loaded.hyperparameters["parameters"] == ["3.lora_b", "heads.*"]
    Loop(loaded).learn(tasks[1])


@methods
def test_names_that_name_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"'lora' names no parameter of the backbone; there are: 1\.lora_a"):
        HOLDING[name](backbone(), parameters=["*.lora_*", "lora"])
    with pytest.raises(ValueError, match="parameters: the function names no parameter"):
        HOLDING[name](backbone(), parameters=lambda parameter: False)
    with pytest.raises(ValueError, match="parameters holds a int; allowed: names"):
        HOLDING[name](backbone(), parameters=[3])


@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_large_networks_are_asked_for_no_more_samples_than_they_were_trained_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[int, set[int]] = {}
    importances = []
    for large in (10**9, 10):
        monkeypatch.setattr(per_sample, "LARGE", large)
        batches, seen = Samples.batches, sizes.setdefault(large, set())

        def watched(self: Samples, size: int, batches: Any = batches, seen: Any = seen, **reading: Any) -> Any:
            seen.add(size)
            return batches(self, size, **reading)

        monkeypatch.setattr(Samples, "batches", watched)
        learner = HOLDING[name](backbone())
        torch.manual_seed(1)
        Loop(learner, batch=7).learn(small_tasks(n=1)[0])
        importances.append(dict(learner.latest.importances.items()))
        monkeypatch.undo()
    assert 7 in sizes[10]
    assert 256 not in sizes[10]
    assert 256 in sizes[10**9]
    for parameter, importance in importances[0].items():
        assert torch.allclose(importance, importances[1][parameter], rtol=1e-4, atol=1e-7)
