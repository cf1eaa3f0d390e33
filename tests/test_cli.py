"""The command line, as a person and as a program meet it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import minicl
from minicl.cli import main

QUICK = ["--tasks", "2", "--epochs", "1", "--n-train", "40", "--network", "mlp:8"]


def refused(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """The one line that a wrong argument gets."""
    assert main(argv) == code
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("minicl: error: ")
    assert errors.count("\n") == 1
    return errors


def test_run_prints_every_number_by_name_and_writes_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "result.json"
    argv = ["run", "finetune", "permuted-digits", "--scenario", "domain", "--seed", "3", "--out", str(out), *QUICK]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    result = minicl.Result.load(out)
    assert result.seed == 3
    assert result.scenario == "domain"
    assert result.accuracy.shape == (2, 2)
    for name, value, sign in (
        ("average accuracy (ACC)", result.average_accuracy, ""),
        ("backward transfer (BWT)", result.backward_transfer, "+"),
        ("forward transfer (FWT)", result.forward_transfer, "+"),
        ("forgetting (F)", result.forgetting, ""),
    ):
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert line.removeprefix(name).strip() == f"{100 * value:{sign}.1f} %"
    assert str(out) in printed
    assert "nobody knows the task id" in printed
    assert f"{100 * result.accuracy[1, 0]:.1f}" in printed


def test_run_gives_what_minicl_run_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "result.json"
    assert (
        main(["run", "finetune", "split-digits", "--scenario", "class", "--seed", "1", "--out", str(out), *QUICK]) == 0
    )
    stream = minicl.split("digits", n_tasks=2, scenario="class", seed=1, n_train=40)
    expected = minicl.run(minicl.FineTune(minicl.mlp(64, 8)), stream, epochs=1, seed=1)
    np.testing.assert_array_equal(minicl.Result.load(out).accuracy, expected.accuracy)
    assert "not defined here" in capsys.readouterr().out  # forward transfer, where no head exists beforehand


def test_json_is_one_value_for_programs(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "finetune", "split-digits", "--json", *QUICK]) == 0
    output, errors = capsys.readouterr()
    value = json.loads(output)
    assert value["method"] == "FineTune"
    assert value["accuracy"][0][1] is None
    assert value["average_accuracy"] == pytest.approx(np.mean(value["accuracy"][1]))
    assert value["forward_transfer"] is None  # not NaN, which JSON does not know
    assert errors == ""


def test_hyperparameters_reach_the_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "result.json"
    argv = ["run", "packnet", "split-digits", "--set", "keep_ratio=0.25", "--set", "batchnorm=per-task"]
    assert main([*argv, "--out", str(out), *QUICK]) == 0
    hyperparameters = minicl.Result.load(out).hyperparameters
    assert hyperparameters["keep_ratio"] == 0.25
    assert hyperparameters["batchnorm"] == "per-task"


def test_a_checkpoint_within_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["run", "packnet", "split-digits", "--json", *QUICK]
    found = []
    for more in ([], ["--checkpoint", str(tmp_path / "kept"), "--checkpoint-every", "2"]):
        assert main([*argv, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["learning_curves"] == found[1]["learning_curves"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["checkpoint.safetensors"]
    assert main([*argv, "--checkpoint-every", "2"]) == 2
    assert "checkpoint_every says when to write, and nobody says where" in capsys.readouterr().err


def test_classes_of_tasks(capsys: pytest.CaptureFixture[str]):
    argv = ["run", "finetune", "split-digits", "--json", *QUICK]
    argv = [a for i, a in enumerate(argv) if a != "--tasks" and argv[i - 1] != "--tasks"]

    def classes(*more: str) -> Any:
        assert main([*argv, *more]) == 0
        return json.loads(capsys.readouterr().out)["stream"]["classes"]

    assert classes("--classes", "0,1,2,3/4,5/6,7,8,9") == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9]]
    assert classes("--first", "6", "--tasks", "3") == [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9]]
    order = "9,8,7,6,5,4,3,2,1,0"
    assert classes("--class-order", order, "--tasks", "2") == [[9, 8, 7, 6, 5], [4, 3, 2, 1, 0]]
    assert sorted(c for group in classes("--class-order", "seed", "--tasks", "2") for c in group) == list(range(10))
    for wrong, said in (
        (["split-digits", "--classes", "0,1/1"], "classes names 1 twice"),
        (["split-digits", "--class-order", "cat"], "class_order names 'cat'"),
        (["permuted-digits", "--first", "3"], "--first says which classes a task has, and permuted-digits has all"),
    ):
        assert main(["run", "finetune", *wrong]) == 2
        assert said in capsys.readouterr().err


def test_one_optimiser_for_all_tasks(capsys: pytest.CaptureFixture[str]):
    argv = ["run", "finetune", "split-digits", "--json", "--optimizer", "adam", *QUICK, "--epochs", "3", "--lr", "0.05"]
    found = []
    for more in ([], ["--keep-optimizer"]):
        assert main([*argv, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [run["settings"].get("fresh_optimizer") for run in found] == [None, False]
    assert found[0]["learning_curves"][0] == found[1]["learning_curves"][0]
    assert found[0]["learning_curves"] != found[1]["learning_curves"]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "rmsprop"])
def test_optimizers_by_name(optimizer: str, capsys: pytest.CaptureFixture[str]):
    assert main(["run", "finetune", "split-digits", "--json", "--optimizer", optimizer, "--lr", "0.003", *QUICK]) == 0
    described = json.loads(capsys.readouterr().out)["settings"]["optimizer"]
    assert described.lower().startswith(optimizer.replace("momentum", "sgd"))
    assert "lr=0.003" in described


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["run", "fine-tune", "split-digits"], ["'fine-tune'", "finetune", "packnet"]),
        (["run", "finetune", "shuffled-digits"], ["'shuffled-digits'", "split-DATASET", "permuted-DATASET"]),
        (["run", "finetune", "split-mnits"], ["'split-mnits'", "split-mnist", "split-digits"]),
        (["run", "finetune", "split"], ["'split'", "split-digits"]),
        (["run", "finetune", "split-digits", "--scenario", "online"], ["'online'", "task, domain, class"]),
        (["run", "finetune", "split-digits", "--tasks", "3"], ["10 classes", "3 equal tasks", "1, 2, 5, 10"]),
        (["run", "finetune", "split-digits", "--tasks", "0"], ["--tasks", "'0'", "from 1"]),
        (["run", "finetune", "split-digits", "--epochs", "0"], ["--epochs", "'0'", "from 1"]),
        (["run", "finetune", "split-digits", "--epochs", "two"], ["--epochs", "'two'"]),
        (["run", "finetune", "split-digits", "--batch-size", "-4"], ["--batch-size", "'-4'", "from 1"]),
        (["run", "finetune", "split-digits", "--seed", "-1"], ["--seed", "'-1'", "from 0"]),
        (["run", "finetune", "split-digits", "--lr", "0"], ["--lr", "'0'", "above 0"]),
        (["run", "finetune", "split-digits", "--lr", "nan"], ["--lr", "'nan'", "above 0"]),
        (["run", "finetune", "split-digits", "--optimizer", "sdg"], ["'sdg'", "sgd, momentum, adam"]),
        (["run", "finetune", "split-digits", "--device", "cuda:7"], ["'cuda:7'", "cpu"]),
        (["run", "finetune", "split-digits", "--device", "abacus"], ["'abacus'", "cpu"]),
        (["run", "finetune", "split-digits", "--network", "rnn:3"], ["'rnn:3'", "mlp:", "cnn:"]),
        (["run", "finetune", "split-digits", "--network", "mlp:"], ["'mlp:'", "mlp:WIDTH"]),
        (["run", "finetune", "split-digits", "--set", "lam=3"], ["finetune", "'lam'", "none"]),
        (["run", "packnet", "split-digits", "--set", "keep=3"], ["packnet", "'keep'", "keep_ratio"]),
        (["run", "packnet", "split-digits", "--set", "keep_ratio"], ["NAME=VALUE"]),
        (["run", "packnet", "split-digits", "--set", "keep_ratio=2"], ["keep_ratio is 2"]),
        (["run", "hat", "split-digits", "--set", "s_max=many"], ["s_max", "'many'", "float"]),
        (["run", "hat", "split-digits", "--set", "binary=1"], ["binary", "1", "bool"]),
        (["run", "packnet", "split-digits", "--scenario", "class"], ["packnet", "task id", "'class'"]),
        (["run", "finetune", "split-digits", "--batch-size", "9" * 30], ["--batch-size", "9" * 30, "2147483647"]),
        (["run", "finetune", "split-digits", "--n-train", "0"], ["--n-train", "from 1"]),
        (["run", "finetune", "split-digits", "--patience", "0"], ["--patience", "from 1"]),
        (["run", "finetune", "split-digits", "--lr", "inf"], ["--lr", "'inf'", "above 0"]),
        (["run", "finetune", "split-digits", "--lr", "fast"], ["--lr", "'fast'", "above 0"]),
        (["run", "finetune", "split-mnist"], ["mnist", "--root", "--download"]),
        (["run", "finetune"], ["STREAM"]),
        (["run", "finetune", "split-digits", "--epoch-count", "3"], ["--epoch-count"]),
        (["learn"], ["'learn'"]),
        ([], ["COMMAND"]),
    ],
)
def test_wrong_arguments_get_one_clear_line(argv: list[str], named: list[str], capsys: pytest.CaptureFixture[str]):
    line = refused(capsys, *argv)
    for word in named:
        assert word in line


def test_a_missing_data_set_names_the_command_that_fetches_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = refused(capsys, "run", "finetune", "split-mnist", "--root", str(tmp_path))
    assert str(tmp_path) in line
    assert "--download" in line


@pytest.mark.parametrize("place", ["no/such/folder/result.json", ".", "x" * 300])
def test_an_unwritable_output_is_refused_before_training(place: str, tmp_path: Path, monkeypatch, capsys):
    def train(*_: object, **__: object) -> None:
        pytest.fail("training began although its result cannot be written")

    monkeypatch.setattr(minicl, "run", train)
    line = refused(capsys, "run", "finetune", "split-digits", "--out", str(tmp_path / place))
    assert str(tmp_path) in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_an_output_that_not_even_the_superuser_can_write_is_refused(capsys: pytest.CaptureFixture[str]):
    assert "'/proc/result.json'" in refused(capsys, "run", "finetune", "split-digits", "--out", "/proc/result.json")


def test_what_is_wrong_is_said_before_data_are_fetched(monkeypatch: pytest.MonkeyPatch, capsys):
    def fetch(*_: object, **__: object) -> None:
        pytest.fail("data were fetched for a run that cannot begin")

    monkeypatch.setitem(minicl.STREAMS, "split", fetch)
    refused(capsys, "run", "finetune", "split-mnist", "--root", "data", "--download", "--scenario", "online")
    start = ["run", "packnet", "split-mnist", "--root", "data", "--download"]
    for wrong in (
        ["--scenario", "class"],
        ["--set", "keep=1"],
        ["--network", "mlp:0"],
        ["--device", "abacus"],
        ["--out", "no/such/folder/result.json"],
    ):
        refused(capsys, *start, *wrong)


def test_what_a_download_says_is_no_part_of_the_result(monkeypatch: pytest.MonkeyPatch, capsys):
    def talking(*argv: object, **settings: object) -> minicl.TaskStream:
        print("downloading ... 100%")
        return minicl.split(*argv, **settings)

    monkeypatch.setitem(minicl.STREAMS, "split", talking)
    assert main(["run", "finetune", "split-digits", "--json", *QUICK]) == 0
    output, errors = capsys.readouterr()
    assert json.loads(output)["method"] == "FineTune"
    assert "downloading" in errors


def test_a_disk_that_is_full_in_the_end_loses_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(minicl.Result, "save", full)
    assert main(["run", "finetune", "split-digits", "--out", str(tmp_path / "result.json"), *QUICK]) == 1
    output, errors = capsys.readouterr()
    assert "average accuracy (ACC)" in output
    assert "written to" not in output
    assert errors == "minicl: error: no space left on device\n"


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]):
    refused(capsys, "run", "finetune", "split-digits", "--network", f"mlp:{10**12}", code=1)


class Odd(minicl.Learner):
    """Takes what the command line must tell apart."""

    def __init__(
        self,
        backbone: object,
        needed: float,
        shape: Literal["round", "flat"] = "flat",
        ratios: float | Sequence[float] | None = 0.5,
        activation: Callable[[float], float] = abs,
    ) -> None:
        super().__init__(backbone, needed=needed, shape=shape, ratios=ratios)  # type: ignore[arg-type]


def test_hyperparameters_are_checked_against_their_annotations(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(minicl.METHODS, "odd", Odd)

    def given(*pairs: str) -> list[str]:
        return ["run", "odd", "split-digits", "--json", *QUICK, *(word for pair in pairs for word in ("--set", pair))]

    assert "--set needed=VALUE" in refused(capsys, *given())
    for wrong in ("needed=true", "needed=[1]", "needed=", "shape=oval", "ratios=[1,null]", "activation=abs"):
        assert wrong.partition("=")[0] in refused(capsys, *given("needed=1", wrong))
    for right, value in (
        ("shape=round", "round"),
        ("ratios=[0.5, 1]", [0.5, 1]),
        ("ratios=null", None),
        ("needed=2", 2),
    ):
        assert main(given("needed=1", right)) == 0
        assert json.loads(capsys.readouterr().out)["hyperparameters"][right.partition("=")[0]] == value
    assert main(["methods", "--json"]) == 0  # a default that JSON cannot hold does no harm
    assert json.loads(capsys.readouterr().out)[-1]["hyperparameters"]["shape"] == "flat"


def test_help_and_version_return(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    assert "methods" in capsys.readouterr().out
    assert main(["run", "--help"]) == 0
    assert "--scenario" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("minicl ")


def test_a_reader_who_leaves_early_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys):
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        assert main(["streams"]) == 1
    assert capsys.readouterr().err == ""


def test_a_loss_that_becomes_nan_is_one_line_and_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "result.json"
    line = refused(
        capsys, "run", "finetune", "split-digits", "--lr", "1e30", "--out", str(out), *QUICK, "--epochs", "9"
    )
    assert "task 0" in line
    assert "step" in line
    assert list(tmp_path.iterdir()) == []


def test_methods_and_streams_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name in minicl.METHODS:
        assert f"\n{name}" in f"\n{printed}"
    assert "keep_ratio=0.5" in printed
    assert main(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["needs_task_id"] for name, row in rows.items()} == {
        name: method.needs_task_id for name, method in minicl.METHODS.items()
    }
    assert main(["streams"]) == 0
    assert "rotated-digits" in capsys.readouterr().out
    assert main(["streams", "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert names == {f"{kind}-{data}" for kind in minicl.STREAMS for data in minicl.DATASETS}


def test_every_method_listed_can_be_run(capsys: pytest.CaptureFixture[str]):
    for name, method in minicl.METHODS.items():
        assert main(["run", name, "split-digits", "--json", *QUICK]) == 0
        assert json.loads(capsys.readouterr().out)["method"] == method.__name__


def test_the_installed_program(tmp_path: Path):
    """As a process of its own: output, errors and exit codes go where a shell expects them."""
    out = tmp_path / "result.json"
    argv = [sys.executable, "-m", "minicl", "run", "finetune", "split-digits"]
    good = subprocess.run([*argv, "--out", str(out), *QUICK], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    assert "average accuracy" in good.stdout
    assert out.exists()
    bad = subprocess.run([*argv, "--scenario", "none"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)


def test_help_answers_without_loading_torch():
    # `import minicl` itself needs torch, so the module is loaded by its path, as fast as the help can be.
    path = Path(minicl.__file__).parent / "cli.py"
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('cli', {str(path)!r})\n"
        "cli = importlib.util.module_from_spec(spec); spec.loader.exec_module(cli)\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "minicl run finetune split-digits" in shown.stdout


def test_ctrl_c_leaves_earlier_results_and_no_half_file(tmp_path: Path, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    earlier = tmp_path / "earlier.json"
    earlier.write_text("kept")
    monkeypatch.setattr("minicl.loop.Loop.__call__", interrupted)
    assert main(["run", "finetune", "split-digits", "--out", str(earlier), *QUICK]) == 130
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("minicl: interrupted")
    assert earlier.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [earlier]
