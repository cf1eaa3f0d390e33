"""The memory: who stays, what is held, what it costs; and what holds of every learner that has one."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import loops
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Loop, digits, same_bits, small_tasks, state
from torch import Tensor, nn

import minicl
from minicl.cli import main
from minicl.replay.memory import Memory, equal_shares
from minicl.testing import METHODS, VARIANTS, Method


def offer(memory: Memory, first: int, n: int, task_id: int = 0, classes: int = 1) -> None:
    """n samples whose input is their number in the order of arrival."""
    numbers = torch.arange(first, first + n)
    memory.add(numbers.float()[:, None], numbers % classes, task_id)


def held(memory: Memory) -> list[int]:
    return memory.x[: len(memory), 0].int().tolist()


def test_reservoir_keeps_each_sample_with_the_same_probability():
    """1,000 memories of 10 out of 50: each sample is kept by a binomial number of them, in whatever batches it came."""
    torch.manual_seed(0)
    n, budget, trials = 50, 10, 1000
    counts = torch.zeros(n)
    for trial in range(trials):
        memory, first = Memory(budget), 0
        for size in ((50,), (7, 30, 13), (1,) * 12 + (38,), (10, 40))[trial % 4]:
            offer(memory, first, size)
            first += size
        kept = held(memory)
        assert len(set(kept)) == budget == len(memory)
        counts[kept] += 1
    p = budget / n
    chi_square = float(((counts - trials * p) ** 2 / (trials * p * (1 - p))).sum())
    # Mean 49, deviation about 9.9: 100 is five deviations away; keeping the first, or the last, gives thousands.
    assert chi_square < 100


def test_reservoir_gives_the_first_sample_beyond_the_budget_no_privilege():
    """2 places, 3 samples: each stays with 2/3. Drawing from one place too few would keep the third always."""
    torch.manual_seed(0)
    counts, trials = torch.zeros(3), 600
    for trial in range(trials):
        memory = Memory(2)
        offer(memory, 0, 2 + trial % 2)
        offer(memory, 2 + trial % 2, 1 - trial % 2)
        counts[held(memory)] += 1
    deviation = (trials * 2 / 3 * 1 / 3) ** 0.5  # 11.5
    assert float((counts - trials * 2 / 3).abs().max()) < 5 * deviation


@pytest.mark.parametrize("share", ["reservoir", "task", "class"])
def test_all_that_was_offered_is_counted(share: str):
    memory = Memory(4, share)
    for t in range(3):
        offer(memory, 10 * t, 10, task_id=t)
        assert memory.seen == 10 * (t + 1)


def test_reservoir_holds_all_until_it_is_full():
    memory = Memory(8)
    offer(memory, 0, 5)
    assert held(memory) == [0, 1, 2, 3, 4]
    offer(memory, 5, 3)
    assert held(memory) == list(range(8))
    assert memory.seen == 8


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 60))
def test_equal_shares_are_as_equal_as_the_sizes_allow(sizes: list[int], budget: int):
    quotas = equal_shares(sizes, budget)
    assert sum(quotas) == min(budget, sum(sizes))
    assert all(0 <= quota <= size for quota, size in zip(quotas, sizes, strict=True))
    short = [quota for quota, size in zip(quotas, sizes, strict=True) if quota < size]
    assert not short or max(quotas) - min(short) <= 1  # nobody has more than one that could still have had more


@pytest.mark.parametrize("share", ["task", "class"])
def test_equal_share_a_task_or_class(share: str):
    torch.manual_seed(0)
    memory = Memory(12, share)
    for t in range(3):
        offer(memory, 100 * t, 40, task_id=t, classes=4 if share == "class" else 1)
        groups = (memory.task_ids if share == "task" else memory.y)[: len(memory)]
        counts = torch.unique(groups, return_counts=True)[1]
        assert counts.sum() == 12
        assert counts.tolist() == [12 // len(counts)] * len(counts)


def test_equal_shares_keep_a_random_part_of_each_task():
    torch.manual_seed(0)
    counts = torch.zeros(40)
    for _ in range(600):
        memory = Memory(10, "task")
        offer(memory, 0, 20, task_id=0)
        offer(memory, 20, 20, task_id=1)
        counts[held(memory)] += 1
    assert float(((counts - 150) ** 2 / (150 * 0.75)).sum()) < 90  # mean 40, deviation about 9


def test_draws_are_uniform_with_everything_that_belongs_together():
    torch.manual_seed(0)
    memory = Memory(6)
    numbers = torch.arange(6)
    memory.add(numbers.float()[:, None], numbers * 2, 3, logits=numbers[:, None].expand(6, 4).float())
    rows = memory.draw(12_000)
    x, y, task_ids, logits = memory.x[rows], memory.y[rows], memory.task_ids[rows], memory.logits[rows]
    assert torch.equal(y, (2 * x[:, 0]).long())
    assert torch.equal(logits, x.expand(-1, 4))
    assert set(task_ids.tolist()) == {3}
    assert float(((torch.bincount(y // 2) - 2000) ** 2 / (2000 * 5 / 6)).sum()) < 35


def test_logits_of_a_wider_head_leave_the_older_ones_undefined():
    memory = Memory(4)
    memory.add(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), 0, logits=torch.ones(2, 2))
    memory.add(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), 1, logits=torch.ones(2, 3))
    assert memory.logits.isnan().tolist() == [[False, False, True]] * 2 + [[False] * 3] * 2


def test_bytes_are_exact():
    memory = Memory(7)
    memory.add(torch.zeros(20, 1, 8, 8), torch.zeros(20, dtype=torch.long), 0)
    assert memory.bytes == 7 * (64 * 4 + 8 + 8) + 2 * 8
    learner = minicl.ER(minicl.mlp(64, 8), budget=7)
    minicl.run(learner, minicl.split(n_tasks=2, n_train=20), epochs=1)
    assert learner.capacity()["extra_bytes"] == memory.bytes


def test_what_the_memory_refuses():
    with pytest.raises(ValueError, match="budget is 0"):
        Memory(0)
    with pytest.raises(ValueError, match=r"'fair'.*reservoir, task, class"):
        Memory(3, "fair")
    memory = Memory(3, "class")
    with pytest.raises(ValueError, match="memory is empty"):
        memory.draw(1)
    offer(memory, 0, 9, classes=3)
    before = held(memory)
    with pytest.raises(ValueError, match=r"inputs of shape \(batch, 1\); given: \(batch, 2\)"):
        memory.add(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="budget of 3 samples is smaller than the 4 classes"):
        offer(memory, 9, 8, classes=4)
    assert held(memory) == before


@pytest.mark.parametrize("share", ["task", "class"])
def test_equal_shares_are_random_however_the_samples_come(share: str):
    """One group in three batches, then another group: each of the first has the same chance, early or late."""
    torch.manual_seed(0)
    counts = torch.zeros(30)
    for _ in range(900):
        memory = Memory(10, share)
        for first in (0, 10, 20):
            numbers = torch.arange(first, first + 10)
            memory.add(numbers.float()[:, None], torch.zeros(10, dtype=torch.long), 0)
        memory.add(torch.full((20, 1), 100.0), torch.ones(20, dtype=torch.long), 1)
        kept = [number for number in held(memory) if number < 100]
        assert len(kept) == 5
        counts[kept] += 1
    p = 5 / 30
    assert float(((counts - 900 * p) ** 2 / (900 * p * (1 - p))).sum()) < 80  # mean 29, deviation about 8


def test_the_same_label_may_be_another_class_in_every_task():
    torch.manual_seed(0)
    learner = minicl.ER(minicl.mlp(64, 8), budget=24, share="class")
    minicl.run(learner, minicl.split("digits", 5, "task", n_train=60)[:4], epochs=1, progress=False)
    pairs = torch.stack([learner.memory.task_ids, learner.memory.y], 1)
    assert torch.unique(pairs, dim=0, return_counts=True)[1].tolist() == [3] * 8


def test_draw_each_takes_the_same_number_of_every_task_and_no_sample_twice():
    torch.manual_seed(0)
    memory = Memory(30)
    for t, n in ((5, 9), (2, 4), (8, 12)):
        offer(memory, 100 * t, n, task_id=t)
    found: dict[int, set[int]] = {5: set(), 2: set(), 8: set()}
    for _ in range(60):
        x, y, task_ids = memory.draw_each(3)
        assert x.shape == (3, 3, 1)
        assert y.shape == (3, 3)
        for t, part in zip(task_ids.tolist(), x[..., 0].int().tolist(), strict=True):
            assert len(set(part)) == 3
            assert all(number // 100 == t for number in part)
            found[t].update(part)
    assert [len(found[t]) for t in (5, 2, 8)] == [9, 4, 12]
    assert memory.draw_each(50)[0].shape == (3, 4, 1)  # as many as the smallest share holds
    with pytest.raises(ValueError, match="memory is empty"):
        Memory(3).draw_each(1)


def test_draw_each_notices_what_has_come_in_since():
    memory, other = Memory(30), Memory(30)
    offer(memory, 0, 4, task_id=0)
    assert memory.draw_each(9)[2].tolist() == [0]
    offer(memory, 100, 4, task_id=1)
    assert memory.draw_each(9)[2].tolist() == [0, 1]
    for t in (3, 7):
        offer(other, 100 * t, 4, task_id=t)
    memory.load_state_dict(other.state_dict())  # as many samples, of other tasks
    x, _, task_ids = memory.draw_each(9)
    assert task_ids.tolist() == [3, 7]
    assert sorted(x.flatten().int().tolist()) == [*range(300, 304), *range(700, 704)]


def test_a_draw_costs_the_same_however_many_tasks_are_held():
    """Counted in operations, not in seconds."""
    from torch.profiler import ProfilerActivity, profile

    def operations(tasks: int) -> int:
        memory = Memory(40)
        for t in range(tasks):
            offer(memory, 0, 40 // tasks, task_id=t)
        with profile(activities=[ProfilerActivity.CPU]) as record:
            memory.draw(16)
        return len(record.events() or ())

    assert operations(1) == operations(20)


def test_bytes_of_equal_shares_count_the_random_numbers():
    memory = Memory(7, "task")
    offer(memory, 0, 20)
    assert memory.bytes == 7 * (4 + 8 + 8 + 4) + 2 * 8


def test_samples_without_logits_leave_none_of_those_that_stood_there_before():
    memory = Memory(1)
    memory.add(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), 0, logits=torch.ones(1, 2))
    for number in range(1, 60):
        offer(memory, number, 1)
    assert held(memory) != [0]
    assert bool(memory.logits.isnan().all())


@pytest.mark.parametrize("share", ["reservoir", "task", "class"])
def test_nothing_changes_nothing_and_a_label_a_sample_is_needed(share: str):
    memory = Memory(4, share)
    for n in (0, 3):
        memory.add(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long), 0)
        assert len(memory) == memory.seen == n
        with pytest.raises(ValueError, match="2 inputs and 5 labels"):
            memory.add(torch.zeros(2, 1), torch.zeros(5, dtype=torch.long), 0)
        assert len(memory) == memory.seen == n
        offer(memory, 0, 3)


# ---- the learners that have one --------------------------------------------------------------------------------------

FAMILY = {minicl.ER, minicl.AGEM, minicl.GEM, minicl.DERpp}  # what draws its exemplars otherwise has tests of its own
REPLAY = {name: row for name, row in (METHODS | VARIANTS).items() if row.kind in FAMILY}
every_method = pytest.mark.parametrize("method", REPLAY.values(), ids=REPLAY)


def test_the_family_is_there() -> None:
    assert {row.kind for row in REPLAY.values()} == FAMILY


def memory_of(learner: minicl.Learner) -> Memory:
    memory = learner.memory
    assert isinstance(memory, Memory)
    return memory


@every_method
@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_what_it_holds_are_training_samples_of_all_tasks(method: Method, scenario: str) -> None:
    learner, tasks = method.make(method.backbone("cnn")), small_tasks(scenario, ids=[10**15, 7, 0])
    loops.run(learner, tasks, epochs=2, batch_size=8)
    memory, train = memory_of(learner), {task.id: task.train for task in tasks}
    assert len(memory) == 30
    assert set(memory.task_ids.tolist()) == set(train)
    for x, y, t in zip(memory.x, memory.y, memory.task_ids.tolist(), strict=True):
        assert bool(((train[t].x == x).flatten(1).all(1) & (train[t].y == y)).any())
    assert learner.capacity()["extra_bytes"] == memory.bytes == sum(buffer.nbytes for buffer in memory.buffers())


@every_method
def test_the_memory_is_not_filled_between_tasks(method: Method) -> None:
    learner, tasks = method.make(minicl.mlp(36, 16)), small_tasks()
    Loop(learner).learn(tasks[0])
    before, seen = state(memory_of(learner)), memory_of(learner).seen
    for mode in (True, False):
        learner.train(mode)
        learner.loss(tasks[0].test.x, tasks[0].test.y, 0)
    assert same_bits(before, state(memory_of(learner)))
    assert memory_of(learner).seen == seen


class Interrupted(torch.overrides.TorchFunctionMode):
    """Ctrl-C in the n-th of PyTorch's functions that is called."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch._C._set_grad_enabled:  # PyTorch's own `no_grad` would not survive it
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@every_method
def test_a_first_task_that_breaks_off_leaves_no_picture_behind(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment of filling the memory: nobody looks for data in a learner, or a file, that has learned nothing."""
    task = small_tasks(samples=10)[0]
    learner = method.make(minicl.mlp(36, 8))
    learner.prepare(task)
    before, capacity = state(learner), learner.capacity()
    offer = Memory.offer
    for n in itertools.count(1):
        interrupted = Interrupted(n)

        def broken(self: Memory, *args: Any, interrupted: Interrupted = interrupted) -> None:
            with interrupted:
                offer(self, *args)

        monkeypatch.setattr(Memory, "offer", broken)
        try:
            Loop(learner, epochs=1).learn(task)
        except KeyboardInterrupt:
            assert same_bits(before, state(learner)), f"broken off at operation {n}"
            assert learner.capacity() == capacity
        else:
            break
    assert n > 10
    assert len(memory_of(learner)) == 10


@every_method
def test_a_file_is_not_loaded_into_a_memory_of_another_kind(method: Method, tmp_path: Path) -> None:
    learner = method.make(minicl.mlp(36, 16))
    for learned in range(2):  # an empty memory takes any budget
        learner.save(tmp_path / "file")
        for budget in (10, 50):
            if learned:
                with pytest.raises(ValueError, match=f"room for 30 samples, not for {budget}; "):
                    method.kind.load(tmp_path / "file", minicl.mlp(36, 16), budget=budget)
            else:
                assert (
                    memory_of(method.kind.load(tmp_path / "file", minicl.mlp(36, 16), budget=budget)).budget == budget
                )
        if not learned:
            Loop(learner).learn(*small_tasks(n=1))


def test_a_reservoir_is_not_loaded_as_equal_shares(tmp_path: Path) -> None:
    tasks = small_tasks(samples=40)
    for saved, asked in (("reservoir", "class"), ("task", "reservoir")):
        learner = minicl.ER(minicl.mlp(36, 16), budget=30, share=saved)
        Loop(learner).learn(tasks[0])
        learner.save(tmp_path / "file")
        with pytest.raises(ValueError, match=f"was {'' if saved == 'reservoir' else 'not '}a reservoir"):
            minicl.ER.load(tmp_path / "file", minicl.mlp(36, 16), share=asked)
    loaded = minicl.ER.load(tmp_path / "file", minicl.mlp(36, 16), share="class")  # one kind of ticket does for both
    Loop(loaded).learn(tasks[1])
    pairs = torch.stack([loaded.memory.task_ids, loaded.memory.y], 1)
    assert max(counts := torch.unique(pairs, dim=0, return_counts=True)[1].tolist()) - min(counts) <= 1


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
def test_a_budget_that_is_too_small_is_refused_before_training(make: Any, scenario: str, words: str) -> None:
    learner, tasks = make(minicl.mlp(64, 8)), digits(scenario)
    trained: list[str] = []
    fits = 0 if "smaller than the 2" in words else 2  # so many tasks still have room
    for t in range(fits):
        learner.learn(tasks[t], lambda: trained.append("as it should"))
    with pytest.raises(ValueError, match=words):
        learner.learn(tasks[fits], lambda: trained.append("too late"))
    assert trained == ["as it should"] * fits
    assert learner.learned == list(range(fits))


@every_method
def test_inputs_of_another_shape_are_refused_before_training(method: Method) -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).mean(2)

    learner = method.make(nn.Sequential(nn.Conv2d(1, 4, 3), Pooled()))
    small, large = (small_tasks("domain", ids=[n], shape=(1, n, n))[0] for n in (6, 8))
    Loop(learner).learn(small)
    learner.input_shape = None  # it takes several shapes, but one memory does not
    with pytest.raises(ValueError, match=r"memory holds inputs of shape \(batch, 1, 6, 6\); given: \(batch, 1, 8, 8\)"):
        learner.learn(large, lambda: pytest.fail("trained"))


@pytest.mark.parametrize("name", [name for name in REPLAY if name in minicl.METHODS])
def test_the_budget_can_be_set_on_the_command_line(name: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["run", name, "split-digits", "--scenario", "class", "--epochs", "1", "--n-train", "40"]
    assert main([*arguments, "--network", "mlp:8", "--set", "budget=25", "--out", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["hyperparameters"]["budget"] == 25


def test_replay_forgets_less_than_fine_tuning() -> None:
    stream = minicl.permuted(n_tasks=3, scenario="domain", n_train=200)

    def forgotten(kind: type[minicl.Learner]) -> float:
        return loops.run(kind(minicl.mlp(64, 64)), stream, epochs=5, batch_size=16).forgetting

    without = forgotten(minicl.FineTune)
    for name in REPLAY.keys() & minicl.METHODS.keys():
        assert forgotten(minicl.METHODS[name]) < without, name


@pytest.mark.parametrize("name", ["er", "agem", "gem", "derpp"])
def test_an_average_over_state_dicts_mixes_no_samples(name: str) -> None:
    """And an earlier state can be loaded again."""
    learner, tasks = REPLAY[name].make(minicl.mlp(36, 8)), small_tasks(n=2)
    Loop(learner).learn(tasks[0])
    earlier = state(learner)
    Loop(learner).learn(tasks[1])
    memory = state(learner.memory)  # type: ignore[arg-type]
    average = state(learner)
    for key, value in average.items():
        if value.is_floating_point() and key in earlier and earlier[key].shape == value.shape:
            average[key] = 0.5 * value + 0.5 * earlier[key]
    assert any(not torch.equal(average[f"memory.{key}"], value) for key, value in memory.items())
    learner.load_state_dict(average)
    assert same_bits(state(learner.memory), memory)  # type: ignore[arg-type]
    learner.load_state_dict({**average, **{key: value for key, value in earlier.items() if key.startswith("memory.")}})
    assert same_bits(state(learner.memory), {k.removeprefix("memory."): v for k, v in earlier.items() if "memory" in k})  # type: ignore[arg-type]
