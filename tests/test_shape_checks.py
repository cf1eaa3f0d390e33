"""The shape checks are on: a test run without them would prove less than it says."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from shape_checks import checked
from torch import Tensor

from minicl.isolation import hat, pnn
from minicl.learner import Learner


@checked
def product(a: Float[Tensor, "n m"], b: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
    return a @ b if len(b) > 1 else a


def plain(x: int) -> int:
    return x


@checked
@dataclass
class Pair:
    a: Float[Tensor, " n"]
    b: Float[Tensor, " n"]


def test_stated_shapes_are_checked() -> None:
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    with pytest.raises(TypeCheckError):
        product(torch.ones(2, 3), torch.ones(4, 4))
    with pytest.raises(TypeCheckError):
        product(torch.ones(2, 1), torch.ones(1, 4))  # returns the wrong shape
    assert len(Pair(torch.ones(2), torch.ones(2)).a) == 2
    with pytest.raises(TypeCheckError):
        Pair(torch.ones(2), torch.ones(3))


def test_the_package_is_checked() -> None:
    assert hat.protect_weight(torch.ones(2), torch.ones(3)).shape == (2, 3)
    with pytest.raises(TypeCheckError):
        hat.protect_weight(torch.ones(2, 2))
    assert hasattr(pnn.PNN.sensitivity, "__wrapped__")  # methods too


def test_other_annotations_are_not() -> None:
    assert checked(plain) is plain
    assert plain("not a number") == "not a number"  # type: ignore[arg-type]
    assert not hasattr(Learner.capacity, "__wrapped__")
