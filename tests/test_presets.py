"""Presets: what the stored searches chose, no more and no less, in the package and on the command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import scripts

import minicl
from minicl import files
from minicl.cli import main

program = scripts.load("benchmarks/presets.py")


def test_the_file_in_the_package_is_what_the_searches_chose() -> None:
    made = json.loads(json.dumps(program.presets()))
    assert files.read_json(program.PRESETS) == made
    assert len(made) >= 6 * 4 + 2 * 2 + 4


@pytest.mark.parametrize("name", program.presets())
def test_every_preset_can_be_made(name: str) -> None:
    method, stream, scenario = name.split()
    found = minicl.preset(method, stream, scenario)
    learner = found.learner()
    assert {**learner.hyperparameters, **found.hyperparameters} == learner.hyperparameters
    assert (found.results.rpartition("/")[2], found.searched in found.hyperparameters) in {
        ("regularization.json", True),
        ("comparison.json", True),
    }


def test_a_preset_gives_the_number_that_was_stored() -> None:
    """Of another machine and version: close, not equal."""
    runs = files.read_json(program.before.RESULTS)
    value = program.before.chosen(runs, "EWC", "split-task")
    found = minicl.preset("ewc", "split-digits")
    assert found.hyperparameters == {"lam": value}
    result = found.run(seed=0, progress=False)
    assert result.settings["optimizer"] == "Adam(lr=0.003)"
    stored = runs[program.before.key("EWC", "split-task", value, 0, "test")]["ACC"]
    assert result.average_accuracy == pytest.approx(stored, abs=0.02)


def test_settings_may_be_replaced() -> None:
    result = minicl.preset("hat", "split-digits").run(epochs=1, progress=False)
    assert result.settings["epochs"] == 1
    assert result.settings["schedule"].startswith("CosineAnnealingLR")


def test_what_was_not_searched_is_refused() -> None:
    said = "nothing was searched for ewc on rotated-digits in scenario 'task'; there are .*permuted-digits domain"
    with pytest.raises(ValueError, match=said):
        minicl.preset("ewc", "rotated-digits")
    with pytest.raises(ValueError, match="method is 'finetune'; allowed: agscl, "):
        minicl.preset("finetune", "split-digits")
    with pytest.raises(ValueError, match="unknown scenario 'domains'"):
        minicl.preset("ewc", "split-digits", "domains")


def test_the_command_line_says_what_it_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert main(["run", "ewc", "split-digits", "--preset", "--scenario", "class", "--out", str(out), "--quiet"]) == 0
    said = capsys.readouterr().err
    found = minicl.preset("ewc", "split-digits", "class")
    assert f"preset: {found}" in said
    assert "lam was chosen on validation samples (benchmarks/results/regularization.json)" in said
    result = minicl.Result.load(out)
    assert result.hyperparameters["lam"] == found.hyperparameters["lam"]
    assert result.settings["batch_size"] == 64
    for more, option in (
        (["--epochs", "3"], "--epochs"),
        (["--set", "lam=3"], "--set"),
        (["--n-train", "5"], "--n-train"),
        (["--epochs", "10"], "--epochs"),  # also what would be there without it
        (["--keep-optimizer"], "--keep-optimizer"),
    ):
        assert main(["run", "ewc", "split-digits", "--preset", *more]) == 2
        assert f"{option} was given, and --preset says what it is" in capsys.readouterr().err


# ---- slow machines ---------------------------------------------------------------------------------------------------


def test_a_factor_scales_the_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = scripts.load("tools/fill_cache.py")
    limits = []
    for factor in ("1", "2.5"):
        monkeypatch.setenv("MINICL_TIMEOUT_FACTOR", factor)
        limits.append(cache.time_limit())
    assert limits[1] == 2.5 * limits[0] > 0
    for wrong in ("0", "-1", "fast", "inf", "nan"):
        monkeypatch.setenv("MINICL_TIMEOUT_FACTOR", wrong)
        with pytest.raises(SystemExit, match=r"MINICL_TIMEOUT_FACTOR is .*; allowed: numbers above 0"):
            cache.time_limit()


def test_make_scales_them_too() -> None:
    def command(*more: str) -> str:
        options = ["-n", "-o", ".venv/.ready", "notebooks", *more]
        return subprocess.run(["make", *options], cwd=scripts.ROOT, capture_output=True, text=True, check=True).stdout

    assert "--nbval-cell-timeout=300 " in command()
    assert "--nbval-cell-timeout=1200 " in command("MINICL_TIMEOUT_FACTOR=4")
