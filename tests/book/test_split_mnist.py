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
    for method in {**mnist.METHODS, **mnist.VARIANTS, **mnist.BEYOND}:
        run = mnist.one_run(method, "class", 0, data, epochs=2)
        assert [len(row) for row in run["accuracy"]] == [mnist.TASKS] * mnist.TASKS
        assert run["ACC"] == sum(run["accuracy"][-1]) / mnist.TASKS > 0


def test_the_page_names_what_is_outside_the_quick_yardstick() -> None:
    """Two published standard deviations: LwF in two scenarios and GEM in "class" are outside, and nothing else."""
    mnist = scripts.load("benchmarks/split_mnist.py")
    stored, outside = files.read_json(mnist.RESULTS)["runs"], set()
    for method, published in mnist.PUBLISHED.items():
        for scenario, (mean, deviation) in published.items():
            own = mnist.accs_of(stored, method, scenario)
            if abs(sum(own) / len(own) - mean) > 2 * deviation:
                outside.add((method, scenario))
    assert outside == {("LwF", "domain"), ("LwF", "class"), ("GEM", "class")}


def test_what_the_page_says_of_differences() -> None:
    """By Welch's interval; what is said to differ does, in the direction that is said, and the size."""
    mnist = scripts.load("benchmarks/split_mnist.py")
    stored = files.read_json(mnist.RESULTS)["runs"]
    found = mnist.differences(stored, [*mnist.METHODS, *mnist.VARIANTS])
    differ = {key for key, cell in found.items() if key[0] in mnist.METHODS and not mnist.holds_zero(cell)}
    lwf = {("LwF", scenario) for scenario in minicl.SCENARIOS}
    rest = {("GEM", "domain"), ("SI", "task"), ("MAS", "class"), ("fine-tuning", "class")}
    assert differ == lwf | rest | {("GEM", "class")}
    assert -1 < found["GEM", "domain"][0] < 0
    assert all(0 < found[key][0] < 1 for key in (("SI", "task"), ("MAS", "class"), ("fine-tuning", "class")))

    four, growing, weighted = (
        f"LwF, {name}" for name in ("old outputs x 4", "old outputs x 4 (t - 1)", "CE / t + (1 - 1 / t) KD")
    )
    assert found["LwF", "domain"][2] < 0 < found[four, "domain"][1]
    assert found[weighted, "domain"][0] > max(found[name, "domain"][0] for name in (four, growing)) > 0
    assert 0 < found["LwF", "task"][0] < 0.1
    assert mnist.holds_zero(found[four, "task"])
    ends = {}
    for name in mnist.METHODS | mnist.VARIANTS:
        accs = mnist.accs_of(stored, name, "class")
        ends[name] = sum(accs) / len(accs)
    assert all(abs(ends[m] - ends["fine-tuning"]) < 0.5 for m in ("LwF", four, growing))
    assert ends[growing] + 0.5 < ends[f"{growing}, beside the new"] < ends[weighted]
    assert -4.5 < found["LwF", "class"][0] < -4
    assert found[weighted, "class"][0] > -2
    assert found[weighted, "class"][2] < 0

    beyond = {name: mnist.accs_of(stored, name, "class") for name in (*mnist.BEYOND, "rehearsal")}
    rehearsal = sum(beyond["rehearsal"]) / len(beyond["rehearsal"])
    assert all(
        len(beyond[name]) >= 3 for name in ("BiC", "rehearsal and WA", "iCaRL, 2000 images", "generative replay")
    )
    assert min(beyond["BiC"]) > max(beyond["rehearsal"])
    assert max(beyond["rehearsal and WA"]) < rehearsal - 5
    aligned = [r["gammas"] for r in stored if r["method"] == "rehearsal and WA"]
    assert all(gamma > 1 for gammas in aligned for gamma in gammas[1:])
    for name in ("iCaRL, 2000 images", "generative replay"):
        assert max(beyond[name]) < mnist.PUBLISHED_BEYOND[name][0] - 2
    assert min(beyond["generative replay, 20 epochs"]) > mnist.PUBLISHED_BEYOND["generative replay"][0]
    assert max(beyond["iCaRL, 2000 images, 20 epochs"]) < min(beyond["iCaRL, 2000 images"])

    assert mnist.holds_zero(found["GEM, trained on its memory", "class"])
    others = [m for m in mnist.VARIANTS if m.startswith("GEM") and "trained" not in m]
    assert len(others) == 3
    assert all(found[m, "class"][2] < 0 for m in (*others, "GEM"))


def test_interval_and_direction_of_a_difference() -> None:
    """Against an interval worked out by hand: equal spreads and numbers of runs, 18 degrees of freedom."""
    mnist = scripts.load("benchmarks/split_mnist.py")
    mean, deviation = mnist.PUBLISHED["GEM"]["class"]
    tens = [mean + 1 + deviation * (-1) ** k * (9 / 10) ** 0.5 for k in range(10)]  # of the published deviation
    runs = [{"method": "GEM", "scenario": "class", "ACC": acc / 100} for acc in tens]
    ((_, (effect, low, high)),) = mnist.differences(runs, ["GEM"]).items()
    half = 2.10092 * deviation * (2 / 10) ** 0.5
    assert (effect, low, high) == pytest.approx((1, 1 - half, 1 + half), rel=1e-4)
    assert mnist.written((1.0, 0.5, 1.5)) == "**+1.00 (+0.50 to +1.50)**"
    assert mnist.written((0.1, -0.5, 0.7)) == "+0.10 (−0.50 to +0.70)"


def test_the_tables_of_split_mnist_are_those_of_its_runs() -> None:
    mnist = scripts.load("benchmarks/split_mnist.py")
    stored = files.read_json(mnist.RESULTS)
    assert stored["epochs"] == mnist.EPOCHS
    known = {**mnist.METHODS, **mnist.VARIANTS, **mnist.BEYOND}
    for run in stored["runs"]:
        assert run["method"] in known
        last = run["accuracy"][-1]
        assert len(last) == mnist.TASKS
        assert run["ACC"] == pytest.approx(sum(last) / mnist.TASKS)
    for name, table in mnist.tables(stored["runs"]).items():
        assert mnist.RESULTS.with_name(f"split_mnist{name}.md").read_text(encoding="utf-8") == table
    for method in mnist.METHODS:
        for scenario in mnist.PUBLISHED[method]:
            seeds = [r["seed"] for r in stored["runs"] if (r["method"], r["scenario"]) == (method, scenario)]
            assert sorted(seeds) == list(range(10)), "as many as the published rows have"
