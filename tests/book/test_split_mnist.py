"""The stored results of benchmarks/split_mnist.py, what its page says of them, and that the script goes on."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import scripts
import torch

import minicl
from minicl import files


def mnist_from(monkeypatch: pytest.MonkeyPatch, made: list[tuple[str, str, int]]) -> ModuleType:
    """The script of Split MNIST, with runs that only say that they were made."""
    mnist = scripts.load("benchmarks/split_mnist.py")

    def one_run(method: str, scenario: str, seed: int, data: object, epochs: int) -> dict[str, Any]:
        made.append((method, scenario, seed))
        if len(made) == 3:
            raise KeyboardInterrupt
        accuracy = [[0.5] * mnist.TASKS]
        return {"method": method, "scenario": scenario, "seed": seed, "accuracy": accuracy, "ACC": 0.5}

    monkeypatch.setattr(mnist, "one_run", one_run)
    monkeypatch.setattr(mnist, "mnist", lambda root: "images")
    return mnist


def test_split_mnist_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str, int]] = []
    mnist = mnist_from(monkeypatch, made)
    results = tmp_path / "results.json"
    given = ["--root", "there", "--seeds", "2", "--methods", "EWC", "SI", "--scenarios", "task", "class"]
    given += ["--out", str(tmp_path / "runs"), "--results", str(results)]
    with pytest.raises(KeyboardInterrupt):
        mnist.main(given)
    assert not results.exists()
    mnist.main(given)
    everything = [(m, s, seed) for seed in (0, 1) for m in ("EWC", "SI") for s in ("task", "class")]
    assert made == [*everything[:2], everything[2], *everything[2:]]  # the third was broken off, and made again
    stored = files.read_json(results)
    assert sorted((r["method"], r["scenario"], r["seed"]) for r in stored["runs"]) == sorted(everything)
    assert results.with_suffix(".md").read_text(encoding="utf-8") == mnist.table(stored["runs"])
    mnist.main([*given[:-4], "--out", str(tmp_path / "elsewhere"), "--results", str(results)])
    assert len(made) == 9  # what the results hold is not made again, even where the files of the runs are gone


def test_runs_of_another_length_do_not_replace_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[tuple[str, str, int]] = []
    mnist = mnist_from(monkeypatch, made)
    results = tmp_path / "results.json"
    files.write_json(results, {"epochs": 4, "runs": []})
    with pytest.raises(SystemExit):
        mnist.main(["--root", "there", "--epochs", "1", "--out", str(tmp_path), "--results", str(results)])
    assert "holds runs of 4 epochs, and --epochs is 1; name another file with --results" in capsys.readouterr().err
    assert not made
    assert files.read_json(results)["epochs"] == 4


def test_every_method_and_variant_of_split_mnist_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    mnist = scripts.load("benchmarks/split_mnist.py")
    monkeypatch.setattr(mnist, "WIDTHS", (16, 20))
    x, y = torch.rand(1500, 1, 4, 4), torch.arange(10).repeat(150)
    data = minicl.Samples(x, y), minicl.Samples(x[:100], y[:100])
    for method in {**mnist.METHODS, **mnist.VARIANTS}:
        run = mnist.one_run(method, "class", 0, data, epochs=2)
        assert [len(row) for row in run["accuracy"]] == [mnist.TASKS] * mnist.TASKS
        assert run["ACC"] == sum(run["accuracy"][-1]) / mnist.TASKS > 0


def test_the_page_names_what_is_outside_the_yardstick() -> None:
    """Two published standard deviations: LwF in every scenario and GEM in "class" are outside, and nothing else."""
    mnist = scripts.load("benchmarks/split_mnist.py")
    stored, outside = files.read_json(mnist.RESULTS)["runs"], set()
    for method, published in mnist.PUBLISHED.items():
        for scenario, (mean, deviation) in published.items():
            own = [100 * r["ACC"] for r in stored if (r["method"], r["scenario"]) == (method, scenario)]
            if abs(sum(own) / len(own) - mean) > 2 * deviation:
                outside.add((method, scenario))
    assert outside == {("LwF", "task"), ("LwF", "domain"), ("LwF", "class"), ("GEM", "class")}


def test_what_the_page_says_of_the_variants() -> None:
    mnist = scripts.load("benchmarks/split_mnist.py")
    stored = files.read_json(mnist.RESULTS)["runs"]

    def of(method: str, scenario: str) -> dict[int, float]:
        return {r["seed"]: 100 * r["ACC"] for r in stored if (r["method"], r["scenario"]) == (method, scenario)}

    def mean(method: str, scenario: str) -> float:
        return sum(of(method, scenario).values()) / len(of(method, scenario))

    four, growing = "LwF, old outputs x 4", "LwF, old outputs x 4 (t - 1)"
    published = {scenario: value for scenario, (value, _) in mnist.PUBLISHED["LwF"].items()}
    assert mean("LwF", "domain") < published["domain"] < mean(four, "domain")
    assert abs(mean(growing, "domain") - mean(four, "domain")) < 1
    assert published["task"] + 0.06 < mean("LwF", "task") < published["task"] + 0.1
    assert abs(mean(growing, "task") - published["task"]) < 0.06  # two of the published deviations
    assert max(of(growing, "task").values()) - min(of(growing, "task").values()) > 0.06
    assert all(abs(mean(m, "class") - mean("fine-tuning", "class")) < 0.5 for m in ("LwF", four, growing))
    assert mean(growing, "class") + 0.5 < mean(f"{growing}, beside the new", "class") < published["class"] - 2
    base = of("GEM", "class")
    for variant in (m for m in mnist.VARIANTS if m.startswith("GEM")):
        assert set(of(variant, "class")) == set(base)
        assert 0 < mean(variant, "class") - mean("GEM", "class") < max(base.values()) - min(base.values())
        assert mean(variant, "class") < mnist.PUBLISHED["GEM"]["class"][0] - 0.5


def test_the_tables_of_split_mnist_are_those_of_its_runs() -> None:
    mnist = scripts.load("benchmarks/split_mnist.py")
    stored = files.read_json(mnist.RESULTS)
    assert stored["epochs"] == mnist.EPOCHS
    known = {**mnist.METHODS, **mnist.VARIANTS}
    for run in stored["runs"]:
        assert run["method"] in known
        last = run["accuracy"][-1]
        assert len(last) == mnist.TASKS
        assert run["ACC"] == pytest.approx(sum(last) / mnist.TASKS)
    for name, table in (("split_mnist.md", mnist.table), ("split_mnist_variants.md", mnist.variants_table)):
        assert mnist.RESULTS.with_name(name).read_text(encoding="utf-8") == table(stored["runs"])
    for method in ("fine-tuning", "EWC", "online EWC", "SI", "MAS", "LwF", "joint"):
        for scenario in mnist.PUBLISHED[method]:
            seeds = [r["seed"] for r in stored["runs"] if (r["method"], r["scenario"]) == (method, scenario)]
            assert len(seeds) == len(set(seeds)) >= 3
