"""What holds of every replay method: all scenarios, MLP and CNN, any loop, files, broken lessons, odd networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import family
import pytest
import torch
from family import logits, stream
from torch import Tensor, nn

import minicl
from minicl.cli import main
from minicl.replay.memory import Memory

Make = Callable[[nn.Module], minicl.Learner]
ADAM = partial(torch.optim.Adam, lr=5e-3)

METHODS: dict[str, Make] = {
    "ER": partial(minicl.ER, budget=30),
    "ER class": partial(minicl.ER, budget=30, share="class"),
    "AGEM": partial(minicl.AGEM, budget=30),
    "AGEM task": partial(minicl.AGEM, budget=30, share="task"),
    "GEM": partial(minicl.GEM, budget=30),
    "DERpp": partial(minicl.DERpp, budget=30),
}
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: minicl.mlp(64, 24, 16, dropout=0.1),
    "cnn": lambda: minicl.cnn(1, 4, 6, batchnorm=True),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
every_scenario = pytest.mark.parametrize("scenario", minicl.SCENARIOS)
own_loop = partial(family.own_loop, make=ADAM, clip=1.0, epochs=1)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].nan_to_num(9.0), b[n].nan_to_num(9.0)) for n in a)


@every_method
@every_scenario
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_learns_and_remembers_in_every_scenario(make: Make, scenario: str, backbone: Callable[[], nn.Module]) -> None:
    learner = make(backbone())
    tasks = minicl.split("digits", 2, scenario, n_train=150)
    result = minicl.run(learner, tasks, epochs=6, batch_size=16, optimizer=ADAM, progress=False)
    assert result.accuracy[0, 0] > 0.4
    assert result.accuracy[1, 1] > 0.3
    assert result.needs_task_id is False
    memory = learner.memory
    assert isinstance(memory, minicl.replay.memory.Memory)
    assert len(memory) == 30
    for x, y, t in zip(memory.x, memory.y, memory.task_ids, strict=True):  # what it holds are training samples
        train = tasks[int(t)].train
        assert bool(((train.x == x).flatten(1).all(1) & (train.y == y)).any())


@every_method
@every_scenario
def test_a_saved_learner_goes_on_as_if_it_had_not_been(make: Make, scenario: str, tmp_path: Path) -> None:
    tasks = stream(scenario)
    learner = make(minicl.mlp(64, 16))
    minicl.run(learner, tasks[:2], epochs=2, seed=3, progress=False, optimizer=ADAM)
    learner.save(tmp_path / "file")
    loaded = type(learner).load(tmp_path / "file", minicl.mlp(64, 16))
    assert loaded.capacity() == learner.capacity()
    assert same(dict(loaded.state_dict()), dict(learner.state_dict()))
    for task in tasks[2:4]:
        results = [
            minicl.run(each, [task], epochs=2, seed=5, progress=False, optimizer=ADAM) for each in (learner, loaded)
        ]
        assert results[0].learning_curves == results[1].learning_curves
    assert same(dict(loaded.state_dict()), dict(learner.state_dict()))


@every_method
@every_scenario
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_loop_of_ones_own(make: Make, scenario: str, set_to_none: bool) -> None:
    learner = make(minicl.mlp(64, 16))
    own_loop(learner, stream(scenario), set_to_none=set_to_none)
    assert learner.learned == [0, 1, 2, 3, 4]
    assert all(bool(z.isfinite().all()) for z in logits(learner, stream(scenario)))


@every_method
def test_the_seed_is_all_that_matters(make: Make) -> None:
    runs = []
    for noise in (0, 17):
        torch.manual_seed(noise)
        learner = make(minicl.mlp(64, 16))
        minicl.run(learner, stream("domain", 2), epochs=2, seed=1, progress=False)
        runs.append(dict(learner.state_dict()))
    assert same(*runs)


@every_method
@every_scenario
def test_outside_of_a_lesson_the_loss_is_plain_and_the_memory_stays(make: Make, scenario: str) -> None:
    tasks = stream(scenario)
    learner = make(minicl.mlp(64, 16))
    optimizer = own_loop(learner, tasks[:2])
    before = {name: buffer.clone() for name, buffer in learner.memory.named_buffers()}  # type: ignore[union-attr]
    x, y, task_id = tasks[0].test.x, tasks[0].test.y, 0 if scenario == "task" else None
    for mode in (True, False):
        learner.train(mode)
        plain = nn.functional.cross_entropy(learner(x, task_id), y)
        assert learner.loss(x, y, task_id).item() == pytest.approx(plain.item(), rel=1e-5)
        learner.loss(x, y, task_id).backward()
        optimizer.step()
    assert same(before, dict(learner.memory.named_buffers()))  # type: ignore[union-attr]


@every_method
@every_scenario
def test_what_breaks_off_leaves_no_trace(make: Make, scenario: str) -> None:
    tasks = stream(scenario)
    learner = make(minicl.mlp(64, 16))
    own_loop(learner, tasks[:2])
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    optimizer = learner.protect(ADAM(learner.parameters()))

    def broken() -> None:
        learner.train()
        for _ in range(3):
            optimizer.zero_grad()
            learner.loss(tasks[2].train.x, tasks[2].train.y, 2).backward()
            optimizer.step()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn(tasks[2], broken)
    after = learner.state_dict()
    assert same(before, {name: after[name] for name in before})
    own_loop(learner, tasks[2:4])
    assert learner.learned == [0, 1, 2, 3]


@every_method
@pytest.mark.parametrize("moment", ["in the loop", "in the memory"])
def test_a_first_task_that_breaks_off_leaves_no_picture(
    make: Make, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would look for data in the memory, or in a file, of a learner that has learned nothing."""
    task = stream("task")[0]
    learner = make(minicl.mlp(64, 16))
    learner.prepare(task)
    before, capacity = {name: tensor.clone() for name, tensor in learner.state_dict().items()}, learner.capacity()
    optimizer = learner.protect(ADAM(learner.parameters()))

    def broken() -> None:
        learner.train()
        for _ in range(3):
            optimizer.zero_grad()
            learner.loss(task.train.x, task.train.y, 0).backward()
            optimizer.step()
        if moment == "in the loop":
            raise KeyboardInterrupt

    if moment == "in the memory":
        put = Memory._put

        def interrupted(self: Memory, *arguments: Any) -> None:
            put(self, *arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(Memory, "_put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learner.learn(task, broken)
    assert same(before, dict(learner.state_dict()))
    assert learner.capacity() == capacity


@every_method
def test_a_file_is_not_loaded_into_a_memory_of_another_kind(make: Make, tmp_path: Path) -> None:
    learner = make(minicl.mlp(64, 16))
    for learned in range(2):  # an empty memory takes any budget
        learner.save(tmp_path / "file")
        for budget in (10, 50):
            if learned:
                with pytest.raises(ValueError, match=f"room for 30 samples, not for {budget}; "):
                    type(learner).load(tmp_path / "file", minicl.mlp(64, 16), budget=budget)
            else:
                loaded = type(learner).load(tmp_path / "file", minicl.mlp(64, 16), budget=budget)
                assert loaded.memory.budget == budget  # type: ignore[union-attr]
        if not learned:
            own_loop(learner, stream("task")[:1])


def test_a_reservoir_is_not_loaded_as_equal_shares(tmp_path: Path) -> None:
    for saved, asked in (("reservoir", "class"), ("task", "reservoir")):
        learner = minicl.ER(minicl.mlp(64, 16), budget=30, share=saved)
        own_loop(learner, stream("task")[:1])
        learner.save(tmp_path / "file")
        with pytest.raises(ValueError, match=f"was {'' if saved == 'reservoir' else 'not '}a reservoir"):
            minicl.ER.load(tmp_path / "file", minicl.mlp(64, 16), share=asked)
    loaded = minicl.ER.load(tmp_path / "file", minicl.mlp(64, 16), share="class")  # tickets do for both
    own_loop(loaded, stream("task")[1:2])
    pairs = torch.stack([loaded.memory.task_ids, loaded.memory.y], 1)
    assert max(counts := torch.unique(pairs, dim=0, return_counts=True)[1].tolist()) - min(counts) <= 1


def test_derpp_needs_no_training_samples_but_those_of_the_loop() -> None:
    """They may come from a stream that is never held as a whole."""
    source = stream("domain")[:2]
    learner = minicl.DERpp(minicl.mlp(64, 16), budget=30)
    for task in source:
        bare = minicl.Task(task.id, 2, scenario="domain", example=task.train.x)

        def fit(task: minicl.Task = task) -> None:
            optimizer = learner.protect(ADAM(learner.parameters()))
            learner.train()
            for x, y in zip(task.train.x.split(20), task.train.y.split(20), strict=True):
                optimizer.zero_grad()
                learner.loss(x, y).backward()
                optimizer.step()

        learner.learn(bare, fit)
    assert learner.memory.seen == sum(len(task.train) for task in source)
    assert set(learner.memory.task_ids.tolist()) == {0, 1}


@every_method
def test_export_is_the_network_alone(make: Make) -> None:
    tasks = stream("class", 2)
    learner = make(minicl.mlp(64, 16))
    own_loop(learner, tasks)
    network = learner.export()
    assert all(type(m).__module__.startswith("torch") for m in network.modules())
    torch.testing.assert_close(network(tasks[0].test.x), logits(learner, tasks)[0])


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_heads_of_several_sizes_in_any_precision(make: Make, dtype: torch.dtype, tmp_path: Path) -> None:
    """Wide, narrow, wide: outputs that a head has not must not enter any loss, nor become NaN."""
    torch.manual_seed(0)
    learner = make(nn.Sequential(nn.Flatten(), nn.Linear(5, 8), nn.Tanh()).to(dtype))
    tasks = [
        minicl.Task(t, n, (torch.randn(40, 5, dtype=dtype), torch.randint(n, (40,))), scenario="task")
        for t, n in ((7, 3), (2, 2), (4, 4))
    ]
    own_loop(learner, tasks[:2])  # type: ignore[arg-type]
    learner.save(tmp_path / "file")
    loaded = type(learner).load(tmp_path / "file", nn.Sequential(nn.Flatten(), nn.Linear(5, 8), nn.Tanh()).to(dtype))
    own_loop(loaded, tasks[2:])  # type: ignore[arg-type]
    for task in tasks:
        z = loaded.eval()(task.train.x, task.id)
        assert z.shape == (40, task.n_outputs)
        assert z.dtype == dtype
        assert bool(z.isfinite().all())


@pytest.mark.parametrize(
    ("make", "scenario", "words"),
    [
        (partial(minicl.GEM, budget=2), "domain", "budget of 2 samples is smaller than the 3 tasks"),
        (partial(minicl.ER, budget=2, share="task"), "task", "smaller than the 3 tasks"),
        (partial(minicl.ER, budget=5, share="class"), "class", "smaller than the 6 classes"),
        (partial(minicl.AGEM, budget=5, share="class"), "task", "smaller than the 6 classes"),
        (partial(minicl.ER, budget=1, share="class"), "domain", "smaller than the 2 classes"),
    ],
)
def test_a_budget_that_is_too_small_is_refused_before_training(make: Make, scenario: str, words: str) -> None:
    learner, trained = make(minicl.mlp(64, 8)), []
    fits = 0 if "smaller than the 2" in words else 2  # so many tasks still have room
    for t in range(fits):
        learner.learn(stream(scenario)[t], lambda: trained.append("as it should"))
    with pytest.raises(ValueError, match=words):
        learner.learn(stream(scenario)[fits], lambda: trained.append("too late"))
    assert trained == ["as it should"] * fits
    assert learner.learned == list(range(fits))


@every_method
def test_inputs_of_another_shape_are_refused_before_training(make: Make) -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).mean(2)

    learner = make(nn.Sequential(nn.Conv2d(1, 4, 3), Pooled()))
    y = torch.arange(40) % 2
    small, large = (minicl.Task(t, 2, (torch.rand(40, 1, n, n), y), scenario="domain") for t, n in ((0, 6), (1, 8)))
    own_loop(learner, [small])  # type: ignore[arg-type]
    learner.input_shape = None  # it takes several shapes, but one memory does not
    with pytest.raises(ValueError, match=r"memory holds inputs of shape \(1, 6, 6\); given: \(1, 8, 8\)"):
        learner.learn(large, lambda: pytest.fail("trained"))


@every_method
def test_the_memory_moves_with_the_learner(make: Make) -> None:
    learner = make(minicl.mlp(64, 8))
    own_loop(learner, stream("task")[:1])
    learner.to("meta")
    assert {str(buffer.device) for buffer in learner.memory.buffers()} == {"meta"}  # type: ignore[union-attr]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_method
@every_scenario
def test_on_a_gpu(make: Make, scenario: str) -> None:
    learner = make(minicl.mlp(64, 16))
    minicl.run(learner, stream(scenario)[:3], epochs=2, progress=False, device="cuda")
    assert {buffer.device.type for buffer in learner.memory.buffers()} == {"cuda"}  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["er", "agem", "gem", "derpp"])
def test_from_the_command_line(method: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["run", method, "split-digits", "--scenario", "class", "--epochs", "1", "--n-train", "40"]
    assert main([*arguments, "--set", "budget=25", "--out", str(out)]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["hyperparameters"]["budget"] == 25


@every_method
def test_task_ids_may_be_any_numbers(make: Make) -> None:
    """Dates, keys of a database: what is kept for a task must not grow with its number."""
    tasks = [
        minicl.Task(t, 2, (task.train.x, task.train.y)) for t, task in zip((10**15, 7), stream("task"), strict=False)
    ]
    learner = make(minicl.mlp(64, 16))
    own_loop(learner, tasks)  # type: ignore[arg-type]
    assert set(learner.memory.task_ids.tolist()) == {10**15, 7}  # type: ignore[union-attr]
