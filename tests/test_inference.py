"""Guessing the task id: each rule against a slow formula, on learners that are told it in training alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import loops
import numpy as np
import pytest
import seeds
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import ADAM, Loop, answers, same_bits, small_tasks
from torch import Tensor, nn

import minicl
from minicl import cli, inference
from minicl.heads import turned, turned_labels
from minicl.inference import RULES, Calibration, as_told, calibrate, decompose, decomposition, guess, task_scores
from minicl.isolation.shared import SharedNetwork

Make = Callable[..., minicl.Learner]
MASKED: dict[str, Make] = {
    "packnet": partial(minicl.PackNet, keep_ratio=0.4, retrain_epochs=1),
    "hat": partial(minicl.HAT, c=0.2),
    "piggyback": minicl.Piggyback,
}
LEARNERS: dict[str, Make] = {**MASKED, "pnn": minicl.PNN, "individual": minicl.Individual}
quiet = pytest.mark.filterwarnings(r"ignore:task \d+ switched off every unit")


def trained(make: Make, backbone: nn.Module | None = None, **more: Any) -> tuple[minicl.Learner, list[minicl.Task]]:
    """A learner of three tasks with ids in no order."""
    tasks = small_tasks(ids=[4, 0, 7], **more)
    learner = make(minicl.mlp(36, 24, 16) if backbone is None else backbone)
    Loop(learner).learn(*tasks)
    return learner.eval(), tasks


# ---- the equations ---------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=1, max_size=5))
def test_scores_against_slow_formulas(rows: list[list[float]]) -> None:
    z = torch.tensor(rows, dtype=torch.float64)
    for i, row in enumerate(rows):
        total = sum(math.exp(v) for v in row)
        p = [math.exp(v) / total for v in row]
        slow = {
            "softmax": max(p),
            "entropy": sum(q * math.log(q) for q in p if q > 0),
            "logit": max(row),
            "energy": math.log(total),
        }
        for rule, value in slow.items():
            assert inference.SCORES[rule](z)[i].item() == pytest.approx(value, abs=1e-9)


def test_averaged_over_turns_against_loops() -> None:
    outputs = torch.randn(4, 5, 4 * 3, dtype=torch.float64)
    found = inference.averaged_over_turns(outputs)
    for b in range(5):
        for c in range(3):
            chances = []
            for r in range(4):
                total = sum(math.exp(v) for v in outputs[r, b].tolist())
                chances.append(math.log(math.exp(outputs[r, b, 3 * r + c].item()) / total))
            assert found[b, c].item() == pytest.approx(sum(chances) / 4)


def test_turned_labels_name_class_and_turn() -> None:
    y = torch.tensor([0, 2, 1])
    found = turned_labels(y, 3)
    assert found.tolist() == [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10]
    soft = turned_labels(nn.functional.one_hot(y, 3).double(), 3)
    assert torch.equal(soft, nn.functional.one_hot(found, 12).double())
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(turned(x, 2), x.flip(-1).flip(-2))
    assert torch.equal(turned(turned(x, 1), 3), x)
    for wrong in (torch.rand(2, 16), torch.rand(2, 1, 4, 5), {"x": x}):
        with pytest.raises(ValueError, match="rotations turn square images, and the inputs are"):
            turned(wrong, 1)  # type: ignore[arg-type]


def test_calibration_finds_what_made_the_tasks_incomparable() -> None:
    """One task shouts: its logits are five times as large, and shifted. A scale and a shift a task undo that."""
    torch.manual_seed(seeds.current())
    y = torch.randint(6, (400,))
    z = torch.randn(400, 6, dtype=torch.float64) * 0.7 + 2.0 * nn.functional.one_hot(y, 6)
    parts = [z[:, :2], 5 * z[:, 2:4] + 3, z[:, 4:]]
    before = (torch.cat(parts, 1).argmax(1) == y).double().mean()
    fitted = inference.fit_calibration(parts, y)
    after = (torch.cat([fitted(t, part) for t, part in enumerate(parts)], 1).argmax(1) == y).double().mean()
    assert after > before + 0.1
    assert fitted.scale[0] / fitted.scale[1] == pytest.approx(5, rel=0.35)
    loss = nn.functional.cross_entropy(torch.cat([fitted(t, part) for t, part in enumerate(parts)], 1), y)
    for t in range(3):  # convex, so where every small move is worse there is nothing better
        for name in ("scale", "shift"):
            for move in (-0.05, 0.05):
                other = {"scale": fitted.scale.clone(), "shift": fitted.shift.clone()}
                other[name][t] += move
                moved = Calibration(**other)
                near = torch.cat([moved(k, part) for k, part in enumerate(parts)], 1)
                if not (name == "shift" and t == 0):  # a shift of all tasks changes nothing
                    assert nn.functional.cross_entropy(near, y) > loss - 1e-7


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("make", MASKED.values(), ids=MASKED)
@quiet
def test_the_gradient_rule_against_differences(make: Make, together: bool) -> None:
    """Move alpha_t by a little, compute the mixed network by hand, and see how its entropy changes."""
    learner, tasks = trained(make, minicl.mlp(36, 24, 16).double(), dtype=torch.float64)
    x = tasks[1].test.x
    ids = learner.learned

    def mixed(alpha: Tensor, row: Tensor) -> Tensor:
        h = row.flatten()
        if not isinstance(learner, minicl.HAT):
            assert isinstance(learner, SharedNetwork)
            networks = [learner.masked_tensors(t) for t in ids]
            for layer in (1, 3):
                W = sum(a * n[f"{layer}.weight"] for a, n in zip(alpha, networks, strict=True))
                h = (W @ h + networks[0][f"{layer}.bias"]).relu()
        else:
            for level, layer in enumerate((1, 3)):
                gate = sum(a * learner.masks(t)[level].double() for a, t in zip(alpha, ids, strict=True))
                h = learner.backbone[layer](h).relu() * gate  # type: ignore[index, operator]
        z = sum(a * learner.heads.real(str(t))(h) for a, t in zip(alpha, ids, strict=True))  # type: ignore[operator]
        p = z.softmax(0)  # type: ignore[union-attr]
        return -(p * p.log()).sum()

    alpha, step = torch.full((3,), 1 / 3, dtype=torch.float64), 1e-6
    slopes = torch.zeros(len(x), 3, dtype=torch.float64)
    with torch.no_grad():
        for t in range(3):
            move = torch.zeros(3, dtype=torch.float64)
            move[t] = step
            for b, row in enumerate(x):
                slopes[b, t] = (mixed(alpha + move, row) - mixed(alpha - move, row)) / (2 * step)
    assert slopes.abs().max() > 1e-4
    found = task_scores(learner, x, "gradient")
    torch.testing.assert_close(found, -slopes, atol=1e-8, rtol=1e-4)
    expected = (-slopes.sum(0)).argmax().expand(len(x)) if together else (-slopes).argmax(1)
    asked = minicl.infer_task(learner, x, "gradient", together=together)
    assert torch.equal(asked, torch.tensor(ids)[expected])


def test_mixing_convolutions_costs_one_network_or_one_layer_a_task() -> None:
    learner, tasks = trained(MASKED["packnet"], minicl.cnn(1, 6, 8))
    x = tasks[0].test.x
    one = inference.entropy_gradient(partial(learner.mixed, x), torch.full((1, 3), 1 / 3))
    each = inference.entropy_gradient(partial(learner.mixed, x), torch.full((len(x), 3), 1 / 3))
    torch.testing.assert_close(each.sum(0, keepdim=True), one, atol=1e-5, rtol=1e-4)
    assert not any(module._forward_hooks for module in learner.modules())


# ---- asking a learner ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
@pytest.mark.parametrize("rule", inference.SCORES)
@quiet
def test_the_task_that_is_surest_is_named(make: Make, rule: str) -> None:
    learner, tasks = trained(make, outputs=[2, 3, 4] if rule == "logit" else 2)
    x = torch.cat([task.test.x for task in tasks])
    learner.train()
    ids, classes = minicl.infer_task(learner, x, rule, batch_size=5), minicl.predict(learner, x, rule, batch_size=5)
    assert learner.training
    assert ids.dtype == classes.dtype == torch.int64
    assert ids.shape == classes.shape == (len(x),)
    first = {4: 0, 0: tasks[0].n_outputs, 7: tasks[0].n_outputs + tasks[1].n_outputs}
    for i, image in enumerate(x):
        z = {t: loops.answer(learner, image[None], t) for t in learner.learned}
        scores = {t: inference.SCORES[rule](each).item() for t, each in z.items()}
        best = max(scores.values())
        t = int(ids[i])
        assert scores[t] == pytest.approx(best, rel=1e-5, abs=1e-6)
        assert int(classes[i]) == first[t] + int(z[t].argmax())
    whole = minicl.infer_task(learner, x, rule, together=True)
    total = task_scores(learner, x, rule).sum(0)
    assert set(whole.tolist()) == {learner.learned[int(total.argmax())]}


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
@quiet
def test_asking_changes_nothing(make: Make) -> None:
    learner, tasks = trained(partial(make, rotations=True))
    before, x = loops.state(learner), tasks[0].test.x
    learner.zero_grad()
    rng = torch.get_rng_state()
    for rule in RULES:
        if rule != "gradient" or make in MASKED.values():
            minicl.predict(learner, x, rule)
    assert same_bits(before, loops.state(learner))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None for p in learner.parameters())


def test_what_cannot_be_asked_is_refused() -> None:
    learner, tasks = trained(minicl.PNN)
    x = tasks[0].test.x
    for ask in (minicl.infer_task, minicl.predict, task_scores):
        with pytest.raises(ValueError, match=r"rule is 'max'; allowed: softmax, entropy, logit, energy"):
            ask(learner, x, "max")  # type: ignore[operator]
        with pytest.raises(ValueError, match="PNN was not trained with rotations; make it with rotations=True"):
            ask(learner, x, "rotation")  # type: ignore[operator]
        with pytest.raises(ValueError, match="PNN has no masks that could be mixed, as rule 'gradient' does"):
            ask(learner, x, "gradient")  # type: ignore[operator]
    with pytest.raises(ValueError, match="PNN has learned no task yet"):
        minicl.predict(minicl.PNN(minicl.mlp(36, 8)), x)
    shared = minicl.FineTune(minicl.mlp(36, 8))
    Loop(shared).learn(*small_tasks("class"))
    with pytest.raises(ValueError, match="FineTune was trained in scenario 'class', where tasks share outputs"):
        minicl.predict(shared, x)
    uneven, tasks = trained(MASKED["packnet"], outputs=[2, 3, 2])
    with pytest.raises(ValueError, match="the tasks have 2, 3 classes, and heads of different sizes have no mixture"):
        minicl.predict(uneven, x, "gradient")
    with pytest.raises(ValueError, match=r"a calibration of 2 tasks with rule 'logit'; allowed: one of the 3 finished"):
        minicl.predict(uneven, x, "logit", calibration=Calibration(torch.ones(2), torch.zeros(2)))
    with pytest.raises(ValueError, match=r"samples of tasks \[0, 4\] were given; allowed: some of each finished task"):
        calibrate(uneven, x[:2], torch.zeros(2, dtype=torch.long), torch.tensor([4, 0]))
    per_task, tasks = trained(partial(minicl.PackNet, batchnorm="per-task"), minicl.mlp(36, 12, batchnorm=True))
    for together in (False, True):
        with pytest.raises(ValueError, match="only weights of Linear and Conv layers can be mixed; allowed: a rule"):
            minicl.predict(per_task, x, "gradient", together=together)
    norms, tasks = trained(minicl.HAT, minicl.mlp(36, 12, batchnorm=True))
    with pytest.raises(ValueError, match="each task of this HAT has norms of its own, which have no mixture"):
        minicl.predict(norms, x, "gradient")


def test_a_calibration_is_used() -> None:
    learner, tasks = trained(minicl.Individual)
    x = torch.cat([task.test.x for task in tasks])
    shout = Calibration(torch.ones(3), torch.tensor([0.0, 0.0, 1000.0]))
    assert set(minicl.infer_task(learner, x, "logit", calibration=shout).tolist()) == {7}
    fitted = calibrate(
        learner,
        torch.cat([task.train.x for task in tasks]),
        torch.cat([task.train.y for task in tasks]),
        torch.cat([torch.full_like(task.train.y, task.id) for task in tasks]),
    )
    z = [loops.answer(learner, x, t) for t in learner.learned]
    scores = torch.stack([fitted(k, part).amax(1) for k, part in enumerate(z)], 1)
    places = scores.argmax(1)
    assert torch.equal(minicl.infer_task(learner, x, "logit", calibration=fitted), torch.tensor([4, 0, 7])[places])
    assert fitted.nbytes == 24


# ---- rotations -------------------------------------------------------------------------------------------------------


def test_the_loss_with_rotations_is_that_of_four_turned_copies() -> None:
    learner = minicl.PackNet(minicl.mlp(36, 10), rotations=True)
    task = small_tasks(n=1, outputs=3)[0]
    x, y = task.train.x, task.train.y

    def fit(**_: Any) -> None:
        learner.train()
        optimizer = learner.protect(ADAM(learner.parameters()))
        z = [learner.heads["0"](learner.backbone(x.rot90(r, (2, 3)))) for r in range(4)]
        slow = sum(nn.functional.cross_entropy(each, y + 3 * r) for r, each in enumerate(z)) / 4
        loss = learner.loss(x, y, 0)
        torch.testing.assert_close(loss, slow)
        soft = learner.loss(x, nn.functional.one_hot(y, 3).float(), 0)
        torch.testing.assert_close(soft, loss)
        assert learner(x, 0).shape == (len(x), 3)
        torch.testing.assert_close(learner(x, 0), z[0][:, :3])
        loss.backward()
        optimizer.step()

    learner.learn(task, fit)
    assert learner.heads["0"].out_features == 12
    assert learner.hyperparameters["rotations"] is True
    assert learner.export(0)(x).shape == (len(x), 3)


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
@quiet
def test_finished_tasks_keep_all_outputs_with_rotations(make: Make, tmp_path: Path) -> None:
    """Bit for bit, those for turned images too; also after loading."""
    tasks = small_tasks()
    learner = make(minicl.mlp(36, 24, 16), rotations=True)
    loop, x = Loop(learner).learn(tasks[0]), tasks[0].test.x
    learner.eval()
    then = [*answers(learner, x, 0), learner.outputs(x, 0).detach()]
    loop.learn(*tasks[1:])
    learner.save(tmp_path / "file")
    loaded = type(learner).load(tmp_path / "file", minicl.mlp(36, 24, 16))
    for each in (learner, loaded):
        each.eval()
        assert same_bits([*answers(each, x, 0), each.outputs(x, 0).detach()], then)
        assert each.rotations
    assert torch.equal(minicl.predict(learner, x, "rotation"), minicl.predict(loaded, x, "rotation"))


def test_rotations_are_refused_where_they_mean_nothing() -> None:
    with pytest.raises(ValueError, match="EWC takes no rotations: they are for methods that must be told the task id"):
        minicl.EWC(minicl.mlp(36, 8), rotations=True)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="rotations is 1; allowed: True, False"):
        minicl.PNN(minicl.mlp(36, 8), rotations=1)  # type: ignore[call-arg]


# ---- told in training, not in the test -------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["class", "domain"])
@pytest.mark.parametrize("rule", ["softmax", "gradient", "rotation"])
def test_run_tells_the_id_in_training_alone(scenario: str, rule: str) -> None:
    stream = loops.digits(scenario)
    learner = minicl.PackNet(minicl.mlp(64, 40), keep_ratio=0.5, rotations=rule == "rotation")
    result = loops.run(learner, stream, epochs=3, optimizer=ADAM, infer=rule)
    assert learner.scenario == "task"
    assert [learner.tasks[t].n_outputs for t in learner.learned] == [2] * 5
    assert result.scenario == scenario
    assert result.task_id == "inferred"
    assert result.needs_task_id
    assert not result.knows_task_id
    assert result.settings["infer"] == rule
    for j, task in enumerate(stream):
        found = (
            minicl.predict(learner, task.test.x, rule) if scenario == "class" else guess(learner, task.test.x, rule)[1]
        )
        assert result.accuracy[-1, j] == pytest.approx((found == task.test.y).double().mean().item())
    assert np.isnan(result.accuracy[0, 1]) == (scenario == "class")
    assert np.isnan(result.baseline).all()
    assert minicl.certify(learner, stream)
    told = as_told(stream)
    assert decomposition(learner, told, rule).naming < 1
    again = minicl.PackNet(minicl.mlp(64, 40), keep_ratio=0.5, rotations=rule == "rotation")
    loops.run(again, told, epochs=3, optimizer=ADAM)
    assert same_bits(loops.state(again), loops.state(learner))  # the test has left no trace in the training


def test_a_stream_may_be_learned_in_two_runs() -> None:
    stream, one, other = loops.digits("class"), *(minicl.PackNet(minicl.mlp(64, 40)) for _ in range(2))
    loops.run(one, stream, epochs=1, infer="softmax")
    loops.run(other, stream[:2], epochs=1, infer="softmax")
    result = loops.run(other, stream[2:], epochs=1, infer="softmax")
    assert [other.tasks[t].n_outputs for t in other.learned] == [one.tasks[t].n_outputs for t in one.learned]
    right = minicl.predict(other, stream[4].test.x) == stream[4].test.y
    assert result.accuracy[-1, -1] == pytest.approx(right.double().mean().item())


def test_run_refuses_what_cannot_be_inferred() -> None:
    stream = loops.digits("class", 2)
    cases: list[tuple[Any, Any, str, str]] = [
        (minicl.PNN, loops.digits("task", 2), "softmax", "in scenario 'task' the task id is told"),
        (minicl.PNN, stream, "max", "infer is 'max'; allowed: softmax"),
        (minicl.PNN, stream, "rotation", "the learner was made without; allowed: make it with rotations=True"),
        (minicl.FineTune, stream, "softmax", "FineTune needs no task id; allowed: None"),
        (
            minicl.PNN,
            [stream[0], minicl.Task(1, 5, stream[0].train, None, stream[0].test, scenario="class")],
            "softmax",
            "task 1 brings no class of its own",
        ),
        (
            minicl.PNN,
            [stream[0], minicl.Task(1, 10, stream[0].train, None, stream[0].test, scenario="class")],
            "softmax",
            "the train samples of task 1 hold class 0, which an earlier task has",
        ),
    ]
    for make, tasks, rule, message in cases:
        with pytest.raises(ValueError, match=message):
            loops.run(make(minicl.mlp(64, 8)), tasks, epochs=1, infer=rule)


def test_a_checkpoint_remembers_the_rule(tmp_path: Path) -> None:
    stream = loops.digits("class", 2)
    settings: dict[str, Any] = {"epochs": 1, "checkpoint": tmp_path}
    first = loops.run(minicl.PackNet(minicl.mlp(64, 20)), stream, infer="softmax", **settings)
    again = loops.run(minicl.PackNet(minicl.mlp(64, 20)), stream, infer="softmax", **settings)
    assert first.accuracy.tobytes() == again.accuracy.tobytes()
    with pytest.raises(ValueError, match="infer is 'logit', there 'softmax'"):
        loops.run(minicl.PackNet(minicl.mlp(64, 20)), stream, infer="logit", **settings)


def test_tables_say_who_knows_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = minicl.sweep(
        ["finetune", ("packnet", {"rotations": True})],
        "split-digits",
        1,
        out=tmp_path,
        scenario=["task", "class"],
        network="mlp:16",
        epochs=1,
        jobs=1,
        infer="rotation",
        progress=False,
    )
    assert not done.failures
    from minicl import results

    whole = results.table(tmp_path)
    names = [method.partition(" ")[0] for method in whole["method"]]
    found = dict(zip(zip(names, whole["scenario"], strict=True), whole["task_id"], strict=True))
    assert found == {
        ("FineTune", "class"): "nobody",
        ("PackNet", "class"): "inferred",
        ("FineTune", "task"): "told",
        ("PackNet", "task"): "needs it, is told",
    }
    out = tmp_path / "one.json"
    arguments = ["run", "packnet", "split-digits", "--scenario", "class", "--infer", "softmax", "--epochs", "1"]
    assert cli.main([*arguments, "--network", "mlp:16", "--tasks", "2", "--quiet", "--out", str(out)]) == 0
    assert "the task id is told in training, and guessed at test time" in capsys.readouterr().out
    assert json.loads(out.read_text())["settings"]["infer"] == "softmax"
    assert cli.main(["run", "packnet", "split-digits", "--scenario", "class"]) == 2
    assert "or --infer RULE" in capsys.readouterr().err


# ---- what accuracy is made of ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_decomposition_multiplies(samples: list[tuple[int, int, bool, bool]]) -> None:
    told, guessed, right, if_told = (torch.tensor(column) for column in zip(*samples, strict=True))
    found = decompose(told, guessed, right, if_told)
    assert found.accuracy == pytest.approx(found.naming * found.within_named)
    assert found.accuracy == pytest.approx(sum(t == g and r for t, g, r, _ in samples) / len(samples))
    assert found.within == pytest.approx(sum(w for *_, w in samples) / len(samples))
    for i in range(len(found.confusion)):
        of_task = [g for t, g, *_ in samples if t == i]
        for j in range(len(found.confusion)):
            assert found.confusion[i, j].item() == pytest.approx(of_task.count(j) / max(len(of_task), 1))


def test_reliability_against_loops() -> None:
    torch.manual_seed(seeds.current())
    confidence, right = torch.rand(200), torch.rand(200) < 0.6
    confidence[0] = 1.0
    sure, found, counts = inference.reliability(confidence, right, 5)
    gap = 0.0
    for b in range(5):
        rows = [i for i in range(200) if min(int(confidence[i].item() * 5), 4) == b]
        assert int(counts[b]) == len(rows)
        assert sure[b].item() == pytest.approx(sum(confidence[i].item() for i in rows) / len(rows), rel=1e-5)
        assert found[b].item() == pytest.approx(sum(bool(right[i]) for i in rows) / len(rows), rel=1e-5)
        gap += abs(sure[b].item() - found[b].item()) * len(rows) / 200
    assert inference.calibration_error(confidence, right, 5) == pytest.approx(gap, rel=1e-4)
    sure, _, counts = inference.reliability(torch.tensor([0.95]), torch.tensor([True]), 10)
    assert bool(sure[:9].isnan().all())
    assert counts.sum() == 1
