"""Results as a DataFrame, as a table, as figures; and what the command line makes of them."""

from __future__ import annotations

import csv
import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import minicl
from minicl import results
from minicl.cli import main

SPLIT = partial(minicl.split, "digits", n_tasks=2, n_train=20)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, one of them with two settings, on two streams, three seeds."""
    folder = tmp_path_factory.mktemp("sweep") / "runs"
    streams = [SPLIT, partial(minicl.permuted, "digits", n_tasks=3, scenario="domain", n_train=20)]
    methods = ["finetune", ("si", {"c": 0.1}), ("si", {"c": 5.0})]
    minicl.sweep(methods, streams, 3, out=folder, network="mlp:8", epochs=1, jobs=1, progress=False)
    minicl.sweep("hat", SPLIT, 1, out=folder, network="mlp:8", epochs=1, jobs=1, progress=False)
    return folder


def test_one_row_a_result(runs: Path) -> None:
    rows = minicl.load_results(runs)
    assert len(rows) == 19
    for line, result in zip(rows.to_dict("records"), results.load_all(runs), strict=True):
        assert line["method"] == result.method
        assert line["hyperparameters"] == result.hyperparameters
        assert (line["stream"], line["scenario"], line["seed"]) == (result.stream["name"], result.scenario, result.seed)
        assert line["n_tasks"] == len(result.accuracy)
        assert line["needs_task_id"] is (result.method == "HAT")
        assert line["knows_task_id"] is result.knows_task_id
        for name in ("average_accuracy", "backward_transfer", "forward_transfer", "forgetting"):
            assert line[name] == pytest.approx(getattr(result, name), nan_ok=True)
        assert line["newest_accuracy"] == pytest.approx(np.diagonal(result.accuracy).mean())
        assert line["stored_bytes"] == result.capacity["bytes"] + result.capacity["extra_bytes"]
        assert line["parameters"] == result.parameters
        assert line["seconds"] == result.seconds


def test_the_table_is_means_and_t_intervals(runs: Path) -> None:
    rows, whole = minicl.load_results(runs), results.table(runs)
    assert list(whole["method"]) == [
        "FineTune",
        "SI (c=0.1)",
        "SI (c=5.0)",
        "FineTune",
        "HAT",
        "SI (c=0.1)",
        "SI (c=5.0)",
    ]
    assert list(whole["task_id"]) == ["nobody"] * 3 + ["told", "needs it, is told", "told", "told"]
    assert list(whole["seeds"]) == [3, 3, 3, 3, 1, 3, 3]
    chosen = rows[(rows.method == "FineTune") & (rows.stream == "split-digits")]
    line = whole[(whole.method == "FineTune") & (whole.stream == "split-digits")].iloc[0]
    values = list(chosen.average_accuracy)
    low, high = stats.t.interval(0.95, 2, statistics.mean(values), statistics.stdev(values) / math.sqrt(3))
    assert line.average_accuracy == pytest.approx((low + high) / 2)
    assert line.average_accuracy_half == pytest.approx((high - low) / 2)
    assert line.stored_bytes == pytest.approx(chosen.stored_bytes.mean())
    assert line.seconds == pytest.approx(chosen.seconds.mean())
    assert math.isnan(whole[whole.method == "HAT"].iloc[0].average_accuracy_half)  # one seed says nothing of a spread


def test_settings_that_differ_are_told_apart(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"out": tmp_path, "jobs": 1, "progress": False}
    for network, epochs, n_train in (("mlp:8", 1, 20), ("mlp:9", 1, 20), ("mlp:8", 2, 20), ("mlp:8", 1, 25)):
        stream = partial(minicl.split, "digits", n_tasks=2, n_train=n_train)
        minicl.sweep("finetune", stream, 1, network=network, epochs=epochs, **settings)
    whole = results.table(tmp_path)
    assert len(whole) == 4
    assert len(set(zip(whole.method, whole.stream, strict=True))) == 4


def test_the_table_on_the_command_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(runs), "--out", str(tmp_path / "made")]) == 0
    printed = capsys.readouterr().out
    markdown = (tmp_path / "made" / "table.md").read_text()
    assert markdown in printed
    lines = markdown.splitlines()
    assert len({len(line) for line in lines}) == 1  # columns are lined up
    assert lines[0].count("|") == 12
    whole = results.table(runs)
    first = whole.iloc[0]
    assert f"{100 * first.average_accuracy:.1f} ± {100 * first.average_accuracy_half:.1f}" in lines[2]
    with (tmp_path / "made" / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [line["method"] for line in read] == list(whole["method"])
    assert float(read[0]["average_accuracy"]) == pytest.approx(first.average_accuracy, rel=1e-12)
    latex = (tmp_path / "made" / "table.tex").read_text()
    assert latex.count(r"\\") == 8
    assert r"$\pm$" in latex
    assert "ACC \\%" in latex
    assert "%" not in latex.replace("\\%", "")  # which would be a comment


def test_the_figures_on_the_command_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(runs), "--out", str(tmp_path), "--format", "svg"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert len(paths) == 6  # three figures for each of two streams
    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert all("<svg" in path.read_text() for path in paths)


def test_results_of_single_runs_count_too(tmp_path: Path) -> None:
    result = minicl.run(minicl.FineTune(minicl.mlp(64, 8)), SPLIT(), epochs=1)
    result.save(tmp_path / "one.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "notes.txt").write_text("nothing")
    rows = minicl.load_results(tmp_path)
    assert list(rows.file) == ["one.json"]
    assert rows.average_accuracy[0] == pytest.approx(result.average_accuracy)


def test_where_nothing_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        minicl.load_results(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"there are no results in .*; minicl.sweep and minicl compare write them"):
        minicl.load_results(tmp_path)
    assert main(["table", str(tmp_path)]) == 2
    assert main(["plot", str(tmp_path), "--format", "bmp"]) == 2
    assert "allowed: png, svg, pdf" in capsys.readouterr().err


def test_a_damaged_file_is_told_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    minicl.sweep("finetune", SPLIT, 2, out=tmp_path, network="mlp:8", epochs=1, jobs=1, progress=False)
    path = min(tmp_path.glob("*.json"))
    path.write_bytes(path.read_bytes()[:99])
    assert main(["table", str(tmp_path)]) == 0
    errors = capsys.readouterr().err
    assert errors.startswith("minicl: ")
    assert path.name in errors
    assert errors.count("\n") == 1


def test_ten_thousand_results_are_read_in_seconds(runs: Path, tmp_path: Path) -> None:
    """One thousand are read here, and the target is missed only by a machine ten times too slow."""
    record = results.read_record(min(runs.glob("*.json")))
    for seed in range(1000):
        record["result"]["seed"] = seed
        results.write_record(tmp_path / f"{seed}.json", record)
    started = time.process_time()
    assert results.table(tmp_path)["seeds"].sum() == 1000
    assert time.process_time() - started < 5
