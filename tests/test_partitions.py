"""Which classes come in which task: any lists, a large first task, any order; and what each output stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import Loop
from torch import Tensor

import minicl
from minicl.combinations import combine
from minicl.partitions import name_of, partition

TEN = list(range(10))


def flat(groups: list[list[Any]]) -> list[Any]:
    return [label for group in groups for label in group]


@given(st.permutations(TEN), st.integers(1, 10), st.data())
def test_any_lists_are_the_tasks(order: list[int], n: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, 9), max_size=n - 1)))
    lists = [order[a:b] for a, b in zip([0, *cuts], [*cuts, 10], strict=True)]
    assert partition(TEN, 5, lists) == lists


def test_first_then_equal_parts() -> None:
    assert partition(TEN, 3, first=6) == [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9]]
    assert partition(TEN, 1, first=10) == [TEN]
    assert [len(part) for part in partition(list(range(100)), 11, first=50)] == [50, *[5] * 10]
    assert partition(TEN, 3, first=6, class_order=TEN[::-1]) == [[9, 8, 7, 6, 5, 4], [3, 2], [1, 0]]


def test_arrays_and_tensors_are_lists() -> None:
    expected = [[3, 1], [2, 0]]
    assert partition(TEN[:4], 2, class_order=np.array([3, 1, 2, 0])) == expected  # type: ignore[arg-type]
    assert partition(TEN[:4], 2, class_order=torch.tensor([3, 1, 2, 0])) == expected  # type: ignore[arg-type]
    assert partition(TEN[:4], 2, [np.array([3, 1]), (np.int64(2), 0)]) == expected  # type: ignore[list-item]
    assert partition(TEN[:4], 2, [range(2), range(2, 4)]) == [[0, 1], [2, 3]]


def test_an_order_is_a_list_or_comes_from_the_seed() -> None:
    assert partition(TEN, 5, class_order=[9, 0, 8, 1, 7, 2, 6, 3, 5, 4]) == [[9, 0], [8, 1], [7, 2], [6, 3], [5, 4]]
    orders = [flat(partition(TEN, 5, class_order="seed", seed=seed)) for seed in range(30)]
    assert all(sorted(order) == TEN for order in orders)
    assert len({tuple(order) for order in orders}) > 25
    assert orders[3] == flat(partition(TEN, 2, class_order="seed", seed=3))
    first = np.bincount([order[0] for order in orders], minlength=10)
    assert first.max() < 15  # no class is always first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": [[0, 1], [2, 3, 1], [4, 5, 6, 7, 8, 9]]}, "classes names 1 twice; allowed: each class once"),
        ({"classes": [[0, 1], [2, 3]]}, "classes does not name 4, 5, 6, 7, 8, 9; allowed: each class"),
        ({"classes": [TEN, [10]]}, "classes names 10, and there is no such class; there are: 0, 1, 2, 3, 4, 5 and"),
        ({"classes": [TEN, ["cat"]]}, "classes names 'cat', and there is no such class"),
        ({"classes": [[True, *TEN[2:]], [0]]}, "classes names True, and there is no such class"),
        ({"classes": [TEN, []]}, r"classes holds \[\] for task 1; allowed: a list of lists"),
        ({"classes": []}, r"classes is \[\]; allowed: a list of lists"),
        ({"classes": TEN}, r"classes holds 0 for task 0; allowed: a list of lists of classes"),
        ({"classes": "0,1"}, "classes is '0,1'; allowed: a list of lists"),
        ({"classes": 3}, "classes is 3; allowed: a list of lists"),
        ({"classes": [TEN], "first": 3}, "classes says which classes come when, and so does first; allowed: one of"),
        ({"classes": [TEN], "class_order": "seed"}, "and so does class_order; allowed: one of the two"),
        ({"classes": [TEN[:5], TEN[5:]], "n_tasks": 3}, "n_tasks is 3, and classes names those of 2 tasks"),
        ({"class_order": TEN[:9]}, "class_order does not name 9; allowed: each class"),
        ({"class_order": [*TEN, 0]}, "class_order names 0 twice"),
        ({"class_order": "random"}, "class_order is 'random'; allowed: seed"),
        ({"class_order": 3}, "class_order is 3; allowed: a list of all classes, or 'seed'"),
        ({"first": 0}, "first is 0; allowed: integers from 1 up"),
        ({"first": 4}, "6 are left, which 4 tasks cannot share equally; allowed n_tasks: 2, 3, 4, 7"),
        ({"first": 10}, "0 are left, which 4 tasks cannot share equally; allowed n_tasks: 1"),
        ({"first": 11}, "after the first 11 of 10 classes, 0 are left, .*; allowed: first up to 10"),
        ({"n_tasks": 3}, r"10 classes cannot be split into 3 equal tasks; allowed n_tasks: 1, 2, 5, 10. Unequal"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(settings: dict[str, Any], message: str) -> None:
    n_tasks = settings.pop("n_tasks", 5)
    with pytest.raises(ValueError, match=message):
        minicl.split("digits", n_tasks, **settings)


def test_names_of_tasks() -> None:
    assert name_of([3], TEN) == "classes 3"
    assert name_of([2, 3, 4], TEN) == "classes 2-4"
    assert name_of([4, 2], TEN) == "classes 4, 2"
    assert name_of(["cat", "bird"], ["bird", "cat"]) == "classes cat, bird"
    assert name_of(TEN[::-1], TEN) == "classes 9, 8, 7, 6, 5, 4 and 4 more"


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_samples_go_where_their_class_does(scenario: str) -> None:
    lists = [[7, 0, 3], [9], [1, 2, 8, 4, 6, 5]]
    stream = minicl.split("digits", scenario=scenario, classes=lists, seed=3)
    whole = minicl.split("digits", 1, seed=3)[0]
    seen = 0
    for task, group in zip(stream, lists, strict=True):
        assert list(task.classes) == group
        before = seen if scenario == "class" else 0
        seen += len(group)
        assert task.n_outputs == before + len(group)
        for part in ("train", "valid", "test"):
            samples, everything = getattr(task, part), getattr(whole, part)
            for output, label in enumerate(group):
                assert torch.equal(samples.x[samples.y == before + output], everything.x[everything.y == label])
            assert len(samples) == sum(int((everything.y == label).sum()) for label in group)
    assert stream.settings["classes"] == lists
    assert stream.settings["n_tasks"] == 3
    again = minicl.streams.from_settings(stream.settings)
    assert all(torch.equal(a.train.x, b.train.x) and a.classes == b.classes for a, b in zip(stream, again, strict=True))


def test_what_was_there_before_is_as_it_was() -> None:
    plain, named = minicl.split("digits"), minicl.split("digits", classes=[[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]])
    assert "classes" not in plain.settings
    for a, b in zip(plain, named, strict=True):
        assert (a.name, a.classes) == (b.name, b.classes)
        assert torch.equal(a.train.x, b.train.x)
        assert torch.equal(a.train.y, b.train.y)


def test_unequal_tasks_share_no_head() -> None:
    with pytest.raises(ValueError, match=r"all tasks share one head; given n_outputs: \[6, 2, 2\]"):
        minicl.split("digits", 3, "domain", first=6)


def test_a_sweep_knows_them_apart_and_finds_what_was_there() -> None:
    common: dict[str, Any] = {"epochs": 1, "batch_size": 4, "optimizer": torch.optim.SGD, "schedule": None}
    common |= {"patience": None, "device": "cpu"}
    streams = [
        {"kind": "split", "dataset": "digits", **more}
        for more in ({}, {"classes": [TEN[:4], TEN[4:]]}, {"class_order": "seed"}, {"first": 6, "n_tasks": 3})
    ]
    jobs = list(combine(["ewc"], streams, [0], ["task"], None, common))
    assert len({job.key for job in jobs}) == 4
    assert "classes" not in jobs[0].identity["stream"]
    assert "2 tasks" in jobs[1].label


# ---- what an output stands for ---------------------------------------------------------------------------------------


def animals() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 4, generator=generator)
    return (x, ["cat", "ant", "dog", "bee"] * 10), (x, ["cat", "ant", "dog", "bee"] * 10)


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_a_learner_says_which_class_an_output_stands_for(scenario: str, tmp_path: Path) -> None:
    stream = minicl.split(animals(), 2, scenario, class_order=["dog", "ant", "cat", "bee"])
    assert [list(task.classes) for task in stream] == [["dog", "ant"], ["cat", "bee"]]
    assert stream.settings["classes"] == [["dog", "ant"], ["cat", "bee"]]
    learner = minicl.FineTune(minicl.mlp(4, 8))
    Loop(learner).learn(*stream)
    learner.save(tmp_path / "file")
    for each in (learner, minicl.FineTune.load(tmp_path / "file", minicl.mlp(4, 8))):
        assert each.tasks[1].classes == ["cat", "bee"]
        if scenario == "class":
            assert each.classes_of() == ["dog", "ant", "cat", "bee"]
        else:
            assert each.classes_of(0) == ["dog", "ant"]
            with pytest.raises(ValueError, match="the task id is 7, whose classes are not known; allowed: 0, 1"):
                each.classes_of(7)
    if scenario == "class":  # a task of one's own that lists all there are by then
        x, y = torch.rand(4, 4), torch.tensor([4, 4, 4, 4])
        Loop(learner).learn(minicl.Task(2, 5, (x, y), (x, y), (x, y), scenario="class"))
        assert learner.classes_of() == TEN[:5]


def test_a_file_without_classes_still_loads(tmp_path: Path) -> None:
    learner = minicl.FineTune(minicl.mlp(64, 8))
    minicl.run(learner, minicl.split("digits", n_train=20)[:1], epochs=1)
    learner.save(tmp_path / "file")
    header, tensors = minicl.files.read(tmp_path / "file")
    del header["tasks"][0]["classes"]
    minicl.files.write(tmp_path / "file", header, tensors)
    assert minicl.FineTune.load(tmp_path / "file", minicl.mlp(64, 8)).tasks[0].classes == []
    header["tasks"][0]["classes"] = [1.5]
    minicl.files.write(tmp_path / "file", header, tensors)
    with pytest.raises(ValueError, match="incomplete or damaged"):
        minicl.FineTune.load(tmp_path / "file", minicl.mlp(64, 8))


@pytest.mark.parametrize("value", [-1, -100])
@pytest.mark.parametrize("part", [0, 1])
def test_a_label_that_may_stand_for_none_is_asked_about(value: int, part: int) -> None:
    x, y = torch.rand(20, 4), torch.arange(20) % 4
    strange: Tensor = y.clone()
    strange[:3] = value
    data = [(x, y), (x, y)]
    data[part] = (x, strange)
    with pytest.raises(ValueError, match=rf"3 samples of the t[a-z]+ data set have the label {value}"):
        minicl.split(tuple(data), 2)
    with pytest.raises(ValueError, match=rf"Where {value} stands for 'no label', leave those samples out"):
        minicl.Task(0, 4, (x, strange))
