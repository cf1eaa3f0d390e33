"""The soak: a small sample of its cases, and that it finds what is broken and makes it small."""

from __future__ import annotations

from pathlib import Path

import pytest
import seeds
import torch
from loops import Loop, small_tasks
from torch import nn

import minicl
from minicl.testing import METHODS, WRITERS, Scene, Writer, soak


@pytest.mark.parametrize("case", range(24))
def test_a_sample_of_the_soak(case: int) -> None:
    try:
        soak.run(seeds.of(case))
    except soak.Skipped as reason:
        pytest.skip(str(reason))


def test_a_case_is_the_same_whenever_it_is_drawn() -> None:
    drawn = [soak.draw(seed) for seed in range(400)]
    assert drawn == [soak.draw(seed) for seed in range(400)]
    assert {method for method, _ in drawn} == set(soak.ISOLATING) >= {"pnn", "hat", "packnet"}
    used = {name.partition(": ")[2] for _, ingredients in drawn for name in ingredients if ": " in name}
    for table in (soak.OPTIMIZERS, soak.OF_THEIR_OWN, soak.CHANGES, soak.TOOLS, soak.EVENTS):
        assert set(table) <= used


def spoil(scene: Scene) -> None:
    """What nobody could write to, as if somebody had."""
    for tensor in scene.learner.finished.tensors.values():  # type: ignore[union-attr, operator]
        tensor.copy_(tensor + 1)


def test_what_fails_is_made_small(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tool = "p.mul_(0.99)"
    monkeypatch.setitem(WRITERS, tool, Writer("reaches what is hidden", spoil))
    whole = ["a random network", "optimizer: AdamW", f"writer: {tool}", "writer: load_state_dict", "life: exported"]
    error = soak.failure(3, "packnet", whole)
    assert isinstance(error, AssertionError)
    assert soak.shrink(3, "packnet", whole, error) == [f"writer: {tool}"]
    assert soak.main(["--seeds", "3", "--methods", "packnet", "--with", f"writer: {tool}"]) == 1
    assert "seed 3, packnet: AssertionError: logits of task" in capsys.readouterr().out
    seed = next(seed for seed in range(1000) if f"writer: {tool}" in soak.draw(seed, ["packnet"])[1])
    assert soak.main(["--seeds", str(seed), "--methods", "packnet"]) == 1
    said = capsys.readouterr().out
    assert f"python -m minicl.testing --seeds {seed} --methods packnet --with 'writer: {tool}'\n" in said
    assert "1 cases in" in said


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--seeds", "2", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.startswith("1 cases in ")
    assert soak.main(["--seeds", "2", "--methods", "pnn", "--with", "optimizer: SGD"]) == 0
    assert capsys.readouterr().out == "seed 2, pnn: fine\n"
    for wrong in ("9-3", "x", "-1"):
        with pytest.raises(SystemExit):
            soak.main([f"--seeds={wrong}"])
        assert "allowed: a number, or a range such as 0-9999" in capsys.readouterr().err


# ---- what it has found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["packnet", "individual", "feature-extraction", "pnn", "hat"])
def test_channels_last_between_tasks_moves_no_bit(method: str) -> None:
    """Kernels of one place, too, whose strides say either order."""
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Flatten())
    learner, tasks = minicl.METHODS[method](network), small_tasks(shape=(3, 6, 6))
    Loop(learner).learn(*tasks[:2])
    learner.eval()
    before = [learner(t.test.x, t.id).detach() for t in tasks[:2]]
    learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert all(torch.equal(learner(t.test.x, t.id), z) for t, z in zip(tasks, before, strict=False))
    Loop(learner, channels_last=True).learn(tasks[2])
    learner.eval()
    assert all(torch.equal(learner(t.test.x, t.id), z) for t, z in zip(tasks, before, strict=False))


def test_forgetting_a_task_reads_what_finished_tasks_read() -> None:
    learner, tasks = minicl.PackNet(minicl.mlp(36, 24)), small_tasks()
    Loop(learner).learn(*tasks)
    learner.eval()
    before = learner(tasks[0].test.x, 0).detach()
    for module in learner.backbone.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    learner.forget(1)
    assert torch.equal(learner(tasks[0].test.x, 0), before)


def test_two_optimisers_may_each_call_a_closure() -> None:
    learner, tasks = minicl.SI(minicl.mlp(36, 8)), small_tasks(n=2)
    Loop(learner, second=lambda name, _: name.startswith("heads."), closure=True).learn(*tasks)
    assert learner.learned == [0, 1]


@pytest.mark.parametrize("method", soak.ISOLATING)
def test_a_file_holds_what_finished_tasks_read(method: str, tmp_path: Path) -> None:
    """And not what somebody has written over the backbone since."""
    learner, tasks = METHODS[method].make(minicl.mlp(36, 24)), small_tasks()
    Loop(learner).learn(*tasks[:2])
    learner.eval()
    before = [learner(t.test.x, t.id).detach() for t in tasks[:2]]
    with torch.no_grad():
        for p in learner.parameters():
            p.mul_(0.9)
    learner.save(tmp_path / "file")
    loaded = type(learner).load(tmp_path / "file", minicl.mlp(36, 24)).eval()
    assert all(torch.equal(loaded(t.test.x, t.id), z) for t, z in zip(tasks, before, strict=False))
