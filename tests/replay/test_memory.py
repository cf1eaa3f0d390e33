"""The memory: who stays, what is held, what it costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minicl
from minicl.replay.memory import Memory, equal_shares


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
    with pytest.raises(ValueError, match=r"inputs of shape \(1,\); given: \(2,\)"):
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
