"""`certify`: what has not changed is identical to the bit, and what has is found, and how far."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import minicl
from minicl.cli import main

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "progress": False}


def tasks(scenario: str = "task", **settings: Any) -> minicl.TaskStream:
    return minicl.split("digits", 5, scenario, n_train=40, **settings)


def learned(method: str, scenario: str = "task", **settings: Any) -> minicl.Learner:
    learner = minicl.METHODS[method](minicl.mlp(64, 12), **settings)
    minicl.run(learner, tasks(scenario), **QUICK)
    return learner


@pytest.mark.filterwarnings("ignore:task . switched off every unit")
@pytest.mark.parametrize("method", ["pnn", "hat", "packnet", "individual", "feature-extraction"])
def test_what_does_not_forget_is_identical(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    learner = learned(method)
    certificate = minicl.certify(learner, tasks())
    assert certificate
    assert [line.off_by for line in certificate.lines] == [0.0] * 5
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    assert all("identical, accuracy" in line for line in printed[:5])
    assert printed[5].endswith("5 of 5 tasks identical, bit for bit")


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_what_forgets_is_found(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    learner = learned("finetune", scenario)
    certificate = minicl.certify(learner, tasks(scenario))
    assert not certificate
    assert [line.identical for line in certificate.lines] == [False] * 4 + [True]
    for line, task in zip(certificate.lines, tasks(scenario), strict=True):
        assert line.accuracy_now == pytest.approx(minicl.evaluate(learner, task))
    assert "NOT identical, logits off by up to" in capsys.readouterr().out


def test_the_smallest_change_is_found_and_how_far() -> None:
    learner = learned("packnet")
    bias = learner.heads.real("2").bias
    with torch.no_grad():
        bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
    lines = minicl.certify(learner, tasks()).lines
    assert [line.identical for line in lines] == [True, True, False, True, True]
    with torch.no_grad():
        bias[0] += 0.25
    assert minicl.certify(learner, tasks()).lines[2].off_by == pytest.approx(0.25, abs=1e-5)


def test_a_saved_network_can_be_checked_by_anyone(tmp_path: Path) -> None:
    learned("packnet").save(tmp_path / "net")
    loaded = minicl.PackNet.load(tmp_path / "net", minicl.mlp(64, 12))
    assert minicl.certify(loaded, tasks())
    assert minicl.certify(loaded, tasks()[1:3]).lines[0].task_id == 1


def test_tasks_of_ones_own_loop_have_no_digest(capsys: pytest.CaptureFixture[str]) -> None:
    learner = minicl.PackNet(minicl.mlp(64, 12))
    minicl.run(learner, tasks()[:1], **QUICK)
    learner.learn(tasks()[1], lambda epochs=None: None)
    certificate = minicl.certify(learner, tasks())
    assert [line.identical for line in certificate.lines] == [True, None]
    assert not certificate
    assert "no digest was taken" in capsys.readouterr().out


def test_what_cannot_be_certified_is_refused() -> None:
    learner = learned("packnet")
    with pytest.raises(ValueError, match=r"test data of task 0 .* is not that of which the digest was taken"):
        minicl.certify(learner, minicl.rotated("digits", 5))
    with pytest.raises(ValueError, match="no task of this stream has been learned"):
        minicl.certify(minicl.PackNet(minicl.mlp(64, 12)), tasks())
    with pytest.raises(TypeError, match="a stream or a list of tasks"):
        minicl.certify(learner, tasks()[0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"allowed: a minicl\.Learner"):
        minicl.certify(torch.nn.Linear(1, 1), tasks())  # type: ignore[arg-type]


def test_taking_a_digest_changes_nothing() -> None:
    learner = learned("hat")
    learner.train()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    minicl.certify(learner, tasks())
    assert learner.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = partial(_run, tmp_path)
    assert run("packnet") == run("finetune") == 0
    capsys.readouterr()
    assert main(["certify", str(tmp_path / "packnet"), "--network", "mlp:8"]) == 0
    assert "PackNet: 5 of 5 tasks identical" in capsys.readouterr().out
    assert main(["certify", str(tmp_path / "finetune"), "--network", "mlp:8"]) == 1
    assert "FineTune: 1 of 5 tasks identical" in capsys.readouterr().out
    learned("packnet").save(tmp_path / "file")
    file = ["certify", str(tmp_path / "file"), "--network", "mlp:12"]
    assert main([*file, "--stream", "split-digits", "--n-train", "40"]) == 0
    assert "5 of 5" in capsys.readouterr().out
    assert main(file) == 2
    assert "name it with --stream STREAM" in capsys.readouterr().err
    assert main(["certify", str(tmp_path / "packnet"), "--network", "mlp:9"]) == 2
    assert "was it trained with --network mlp:9?" in capsys.readouterr().err
    assert main(["certify", str(tmp_path / "nothing")]) == 2
    assert "there is no file" in capsys.readouterr().err


def _run(folder: Path, method: str) -> int:
    settings = ["--epochs", "1", "--n-train", "40", "--network", "mlp:8", "--quiet"]
    return main(["run", method, "split-digits", *settings, "--checkpoint", str(folder / method)])
