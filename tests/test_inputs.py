"""Trees of tensors: every function against the plain way of doing it leaf by leaf."""

from __future__ import annotations

import json
from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minicl import inputs

Named = namedtuple("Named", ["a", "b"])


@st.composite
def trees(draw: st.DrawFn, n: int | None = None) -> Any:
    """A tree of at most three floors whose leaves have n rows."""
    n = draw(st.integers(1, 6)) if n is None else n

    def build(depth: int) -> Any:
        kind = draw(st.sampled_from(["leaf", "leaf", "dict", "tuple", "list", "named"])) if depth else "leaf"
        if kind == "leaf":
            shape = draw(st.lists(st.integers(1, 3), max_size=2))
            dtype = draw(st.sampled_from([torch.float32, torch.int64, torch.float64]))
            return torch.arange(n * int(torch.tensor([1, *shape]).prod())).view(n, *shape).to(dtype)
        parts = [build(depth - 1) for _ in range(2 if kind == "named" else draw(st.integers(1, 3)))]
        if kind == "dict":
            return {f"key {i}": part for i, part in enumerate(parts)}
        return Named(*parts) if kind == "named" else tuple(parts) if kind == "tuple" else parts

    return build(2)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))


@given(trees())
def test_map_keeps_the_tree_and_changes_each_leaf(x: Any) -> None:
    assert equal(inputs.map(lambda leaf: leaf, x), x)
    doubled = inputs.map(lambda leaf: leaf * 2, x)
    assert [a.tolist() for a in inputs.tensors(doubled)] == [(2 * a).tolist() for a in inputs.tensors(x)]


@given(trees(), st.data())
def test_take_gives_these_rows_of_every_leaf(x: Any, data: st.DataObject) -> None:
    n = inputs.length(x)
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=5))
    taken = inputs.take(x, torch.tensor(rows, dtype=torch.long))
    for leaf, whole in zip(inputs.tensors(taken), inputs.tensors(x), strict=True):
        assert leaf.tolist() == [whole[row].tolist() for row in rows]


@given(trees(), st.integers(1, 7))
def test_split_and_cat_undo_each_other(x: Any, size: int) -> None:
    parts = list(inputs.split(x, size))
    assert [inputs.length(part) for part in parts] == [len(part) for part in torch.arange(inputs.length(x)).split(size)]
    assert equal(inputs.cat(parts), x)


@given(trees())
def test_places_of_leaves_lead_to_them(x: Any) -> None:
    found = dict(inputs.named(x))
    assert len(found) == len(list(inputs.tensors(x)))
    if isinstance(x, dict) and isinstance(x["key 0"], Tensor):
        assert found[".key 0"] is x["key 0"]
    if isinstance(x, list) and isinstance(x[0], Tensor):
        assert found["[0]"] is x[0]


@given(trees())
def test_shapes_leave_out_the_samples_and_go_through_json(x: Any) -> None:
    shapes = inputs.shapes(x)
    assert inputs.shapes(inputs.take(x, slice(0, 1))) == shapes
    assert inputs.shapes_from_json(json.loads(json.dumps(shapes))) == shapes


def test_shapes_of_trees_that_look_alike_differ() -> None:
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    kinds: list[Any] = [a, {"a": a}, {"b": a}, [a], [b, b], b, (a, b), torch.zeros(2)]
    found = [inputs.shapes(kind) for kind in kinds]
    assert all(found[i] != found[j] for i in range(len(found)) for j in range(i))
    for wrong in (3, "x", None, [1, "2"]):
        with pytest.raises(ValueError, match="is no shape"):
            inputs.shapes_from_json(wrong)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(5, 1, 8, 8), "(batch, 1, 8, 8)"),
        (torch.zeros(5), "(batch,)"),
        ({"ids": torch.zeros(5, 12), "mask": torch.zeros(5, 12)}, "{ids: (batch, 12), mask: (batch, 12)}"),
        ((torch.zeros(5, 3), [torch.zeros(5)]), "[(batch, 3), [(batch,)]]"),
    ],
)
def test_shapes_in_words(x: Any, said: str) -> None:
    assert inputs.describe(inputs.shapes(x)) == said


@given(trees())
def test_to_changes_the_type_of_floating_point_leaves_alone(x: Any) -> None:
    moved = inputs.to(x, "cpu", torch.float16)
    for leaf, before in zip(inputs.tensors(moved), inputs.tensors(x), strict=True):
        assert leaf.dtype == (torch.float16 if before.is_floating_point() else before.dtype)
    assert equal(inputs.to(x, "cpu"), x)


def test_counts() -> None:
    x = {"a": torch.zeros(4, 3), "b": [torch.zeros(4, dtype=torch.int64)]}
    assert inputs.nbytes(x) == 4 * 3 * 4 + 4 * 8
    assert inputs.numel(x) == 16


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"a": torch.zeros(3, 1), "b": torch.zeros(2, 1)}, r"same first axis, .* given: x\.a: 3, x\.b: 2"),
        ([torch.zeros(3), torch.tensor(0.0)], r"x\[0\]: 3, x\[1\]: no axis"),
        (torch.tensor(0.0), "x: no axis"),
        ({}, "no tensor"),
    ],
)
def test_leaves_of_different_lengths_are_refused(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inputs.length(x)


@pytest.mark.parametrize("function", [inputs.shapes, inputs.length, lambda x: inputs.map(len, x)])
def test_what_is_no_tensor_is_named(function: Any) -> None:
    with pytest.raises(TypeError, match="inputs hold a str; allowed: tensors, and dicts"):
        function({"text": "abc"})


@pytest.mark.parametrize(
    "parts",
    [
        [torch.zeros(2, 3), torch.zeros(2, 4)],
        [{"a": torch.zeros(2)}, {"b": torch.zeros(2)}],
        [{"a": torch.zeros(2)}, torch.zeros(2)],
        [(torch.zeros(2),), (torch.zeros(2), torch.zeros(2))],
    ],
)
def test_trees_that_differ_cannot_be_joined(parts: Any) -> None:
    with pytest.raises(ValueError, match=r"inputs that differ cannot be joined: .* and "):
        inputs.cat(parts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found_wherever_it_is(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = {"tokens": torch.zeros(50, 2, dtype=torch.int64), "numbers": torch.zeros(50, 3, 2)}
    inputs.check_finite(x, "the data")
    inputs.check_finite(torch.full((4, 2), 3e38), "the data")  # whose sum is infinite
    x["numbers"][[17, 40], 1, 0] = bad
    for at_once in (2**22, 7):
        monkeypatch.setattr(inputs, "FINITE_AT_ONCE", at_once)
        with pytest.raises(ValueError, match=r"the data \(x\.numbers\): NaN or infinity in 2 inputs, .* at index 17"):
            inputs.check_finite(x, "the data")
    both = torch.zeros(3)
    both[0], both[1] = bad, -bad  # in a sum they might cancel
    with pytest.raises(ValueError, match="the data: NaN or infinity in 2 inputs"):
        inputs.check_finite(both, "the data")
