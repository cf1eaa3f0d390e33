"""Tensors by name."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import minicl
from minicl.tensors import TensorDict


@pytest.mark.parametrize("kind", [torch.tensor, np.array], ids=["tensor", "array"])
def test_same_bits_are_the_same_bytes_of_one_type_and_shape(kind: Any) -> None:
    one = kind([[0.0, 1.0, float("nan")]])
    assert minicl.same_bits(one, kind([[0.0, 1.0, float("nan")]]))  # NaN is the same as itself
    assert not minicl.same_bits(one, kind([[-0.0, 1.0, float("nan")]]))  # and zero has a sign
    assert not minicl.same_bits(one, kind([0.0, 1.0, float("nan")]))
    assert not minicl.same_bits(kind([0, 0]), kind([0.0, 0.0]))
    assert not minicl.same_bits(kind([1.0]), kind([1.0 + 2**-20]))


def test_same_bits_of_collections() -> None:
    x, y = torch.randn(3, 2), torch.arange(4, dtype=torch.uint8)
    assert minicl.same_bits({"a": x, "b": [y, y]}, {"b": (y, y.clone()), "a": x.clone()})
    assert minicl.same_bits(x.T, x.T.contiguous())  # how it lies in memory is no part of it
    assert minicl.same_bits(torch.tensor(True), torch.tensor(True))
    assert minicl.same_bits(x[:0], x[:0].clone())
    for other in ({"a": x}, {"a": x, "c": [y, y]}, {"a": x, "b": [y]}, [x, [y, y]], x):
        assert not minicl.same_bits({"a": x, "b": [y, y]}, other)
    assert not minicl.same_bits(x, x.numpy())
    for other in (1.0, None, "bits"):
        with pytest.raises(TypeError, match="allowed: tensors, NumPy arrays"):
            minicl.same_bits(x, other)


def test_names_may_hold_dots() -> None:
    tensors = TensorDict({"a.weight": torch.ones(2), "b": torch.zeros(3)})
    tensors["a.weight"] = torch.full((2,), 5.0)
    assert list(tensors) == ["a.weight", "b"]
    assert "a.weight" in tensors
    assert "weight" not in tensors
    assert tensors["a.weight"].tolist() == [5.0, 5.0]
    del tensors["b"]
    assert dict(tensors.items()).keys() == {"a.weight"}
    assert (len(tensors), tensors.nbytes) == (1, 8)


def test_they_move_and_are_copied_with_the_module() -> None:
    tensors = TensorDict({"a.b": torch.ones(2)})
    twin = copy.deepcopy(tensors).double()
    twin["a.b"].add_(1)
    assert (tensors["a.b"].tolist(), tensors["a.b"].dtype) == ([1.0, 1.0], torch.float32)
    assert (twin["a.b"].tolist(), twin["a.b"].dtype) == ([2.0, 2.0], torch.float64)


def test_room_is_made_for_what_a_file_holds() -> None:
    saved = TensorDict({"x.y": torch.arange(6).view(2, 3), "z": torch.ones(1)}).state_dict()
    tensors = TensorDict({"old": torch.ones(4)})
    tensors.make_room(saved, torch.device("cpu"))
    tensors.load_state_dict(saved)
    assert list(tensors) == ["x.y", "z"]
    assert tensors["x.y"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["x.y"].dtype == torch.int64
