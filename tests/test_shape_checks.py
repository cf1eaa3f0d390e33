"""The shape checks are on: a test run without them would prove less than it says."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from shape_checks import check
from torch import Tensor


@jaxtyped(typechecker=check)
def product(a: Float[Tensor, "n m"], b: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
    return a @ b if len(b) > 1 else a


@jaxtyped(typechecker=check)
def plain(x: int) -> int:
    return x


def test_stated_shapes_are_checked() -> None:
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    with pytest.raises(TypeCheckError):
        product(torch.ones(2, 3), torch.ones(4, 4))
    with pytest.raises(TypeCheckError):
        product(torch.ones(2, 1), torch.ones(1, 4))  # returns the wrong shape


def test_other_annotations_are_not() -> None:
    assert plain("not a number") == "not a number"  # type: ignore[arg-type]
