"""Arguments as people give them: what is taken, what is refused, and in which words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import minicl
from minicl import checks


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_an_integer_may_come_from_numpy_or_a_tensor(value: Any) -> None:
    found = checks.integer("n", value)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize(
    "value", [True, np.True_, torch.tensor(True), 0, 1.0, np.float32(1), "1", None, torch.tensor([1, 2]), 1j]
)
def test_what_is_no_integer_from_1_up(value: Any) -> None:
    with pytest.raises(ValueError, match=r"n is .*; allowed: integers from 1 up, the number of cats"):
        checks.integer("n", value, what=", the number of cats")


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)])
def test_a_number_may_come_from_numpy_or_a_tensor(value: Any) -> None:
    found = checks.number("lam", value)
    assert (found, type(found)) == (0.5, float)


@pytest.mark.parametrize("value", [True, -0.1, math.nan, math.inf, "1", None, np.array([0.5]), 1j])
def test_what_is_no_number_from_0_up(value: Any) -> None:
    with pytest.raises(ValueError, match=r"lam is .*; allowed: numbers from 0"):
        checks.number("lam", value)


def test_the_ends_of_a_range() -> None:
    assert checks.number("x", 1, most=1) == 1
    for value, settings, words in (
        (0, {"beyond": True}, "above 0"),
        (1.5, {"most": 1}, "from 0 up to 1"),
        (1, {"most": 1, "below": True}, "from 0 up to, but not including, 1"),
    ):
        with pytest.raises(ValueError, match=f"x is {value}; allowed: numbers {words}$"):
            checks.number("x", value, **settings)  # type: ignore[arg-type]


def test_one_of() -> None:
    assert checks.one_of("mode", "a", ("a", "b")) == "a"
    for wrong in ("c", None, ["a"]):
        with pytest.raises(ValueError, match=r"mode is .*; allowed: a, b"):
            checks.one_of("mode", wrong, ("a", "b"))


def test_hyperparameters_from_numpy_are_kept_as_plain_numbers() -> None:
    """A search over np.linspace or np.arange hands these in; a file must be able to hold them."""
    learner = minicl.EWC(minicl.mlp(4, 4), lam=np.float32(2.5), samples=np.int64(7))
    assert learner.hyperparameters["lam"] == 2.5
    assert [type(learner.hyperparameters[name]) for name in ("lam", "samples")] == [float, int]
    assert type(minicl.ER(minicl.mlp(4, 4), budget=np.int64(7)).hyperparameters["budget"]) is int
    assert type(minicl.HAT(minicl.mlp(4, 4), c=torch.tensor(0.5)).hyperparameters["c"]) is float
    assert type(minicl.PackNet(minicl.mlp(4, 4), min_free=np.int32(2)).hyperparameters["min_free"]) is int


def test_a_class_in_the_place_of_a_function_is_named() -> None:
    """Two brackets were forgotten."""
    learner, task = minicl.FineTune(minicl.mlp(4, 3)), minicl.Task(0, 2, (torch.rand(6, 4), torch.arange(6) % 2))
    said = r"criterion is the class CrossEntropyLoss; allowed: a function of logits and labels, such as CrossEnt\w+\("
    with pytest.raises(TypeError, match=said):
        minicl.run(learner, [task], criterion=torch.nn.CrossEntropyLoss)
    learner.criterion = torch.nn.CrossEntropyLoss
    with pytest.raises(TypeError, match=said):
        learner.learn(task, lambda: learner.loss(task.train.x, task.train.y, 0))
    with pytest.raises(TypeError, match="metric of task 0 is a int; allowed: a function of outputs and targets"):
        minicl.Task(0, None, metric=3)  # type: ignore[arg-type]
