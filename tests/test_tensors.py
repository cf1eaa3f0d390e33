"""Tensors by name."""

from __future__ import annotations

import copy

import torch

from minicl.tensors import TensorDict


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
