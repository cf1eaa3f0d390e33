"""What people bring becomes the same inputs wherever they bring it: to `Task`, to `split`, whole or item by item."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import minicl
from minicl.arrays import Name, as_input, as_labels

N = 12
Y = torch.arange(N) % 2


class Own(Dataset[Any]):
    """A data set of one's own: pairs, item by item."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.y[index]


def numbers(dtype: Any) -> np.ndarray:
    """Different numbers of shape (N, 1, 4, 4) that every type can hold."""
    return (np.arange(N * 16) % 251).reshape(N, 1, 4, 4).astype(dtype)


ARRAYS: dict[str, tuple[Any, torch.dtype, float]] = {  # an array, what becomes of it, and of its 3
    "uint8": (numbers(np.uint8), torch.float32, 3 / 255),
    "float64": (numbers(np.float64), torch.float32, 3.0),
    "float32": (numbers(np.float32), torch.float32, 3.0),
    "float16": (numbers(np.float16), torch.float32, 3.0),
    "big-endian": (numbers(">f4"), torch.float32, 3.0),
    "int64": (numbers(np.int64), torch.int64, 3.0),
    "int32": (numbers(np.int32), torch.int32, 3.0),
    "bool": (numbers(np.float32) > 100, torch.float32, 0.0),
    "tensor of uint8": (torch.from_numpy(numbers(np.uint8)), torch.float32, 3 / 255),
    "tensor of bool": (torch.from_numpy(numbers(np.float32) > 100), torch.float32, 0.0),
    "tensor of int64": (torch.from_numpy(numbers(np.int64)), torch.int64, 3.0),
    "backwards": (numbers(np.float32)[::-1].copy()[::-1], torch.float32, 3.0),  # negative strides
    "read-only": (np.broadcast_to(np.float32(3), (N, 1, 4, 4)), torch.float32, 3.0),
}


def mapped(array: Any, folder: Path) -> Any:
    array = np.ascontiguousarray(array)
    kept = np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=array.dtype, shape=array.shape)
    kept[:] = array
    kept.flush()
    return np.load(folder / "x.npy", mmap_mode="r")


def forms(x: Any, folder: Path) -> dict[str, Any]:
    """One array in all the ways in which it can be given."""
    ways = {
        "pair": (x, Y),
        "pair of arrays": (x, Y.numpy()),
        "list": [x, Y.tolist()],
        "items": list(zip(x, Y.tolist(), strict=True)),
        "data set": Own(x, Y.tolist()),
        "parts of data sets": ConcatDataset([Subset(Own(x, Y), range(5)), Subset(Own(x, Y), range(5, N))]),
        "lazy": minicl.LazySamples((x, Y)),
    }
    if isinstance(x, Tensor):
        return ways | {
            "tensor data set": TensorDataset(x, Y),
            "part of one": Subset(TensorDataset(x.repeat(2, 1, 1, 1), Y.repeat(2)), range(N)),
            "samples": minicl.Samples(x, Y),
        }
    return ways | {"mapped": (mapped(x, folder), Y)}


def all_of(samples: Any) -> minicl.Samples:
    return samples.take(torch.arange(len(samples)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ARRAYS)
def test_task_and_split_make_the_same_of_the_same_array(name: str, tmp_path: Path) -> None:
    x, dtype, three = ARRAYS[name]
    expected = None
    for form, given in forms(x, tmp_path).items():
        streams = [minicl.split((given, given), 1, validation=0.0, held=held) for held in (True, False)]
        for task in (minicl.Task(0, 2, given), *(stream[0] for stream in streams)):
            found = all_of(task.train)
            assert found.x.dtype == dtype, form
            assert found.y.tolist() == Y.tolist(), form
            assert found.y.dtype == torch.int64, form
            expected = found.x if expected is None else expected
            assert torch.equal(found.x, expected), form
    assert expected is not None
    assert float(expected[0, 0, 0, 3]) == pytest.approx(three)


def test_floating_point_tensors_keep_their_type_in_a_task_and_reach_any_network() -> None:
    """A network in double precision needs data in double precision; a stream is in float32; `run` fits them."""
    x = torch.randn(N, 6, dtype=torch.float64)
    x[:, 0] += 4 * Y - 2
    task = minicl.Task(0, 2, (x, Y), (x, Y), (x, Y))
    assert task.train.x.dtype == torch.float64
    assert minicl.split(((x, Y), (x, Y)), 1)[0].train.x.dtype == torch.float32
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        learner = minicl.FineTune(minicl.mlp(6, 8).to(dtype))
        result = minicl.run(learner, [task], epochs=20, batch_size=4, progress=False)
        assert result.accuracy[0, 0] == 1
        assert minicl.evaluate(learner, task, "train") == 1
        assert minicl.certify(learner, [task])
    half = minicl.FineTune(minicl.mlp(6, 8))
    assert minicl.run(half, minicl.split(((x, Y), (x, Y)), 1), epochs=1, progress=False).accuracy.shape == (1, 1)


def test_a_double_network_sees_every_digit() -> None:
    seen: list[torch.dtype] = []

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.dtype)
            return x[:, :2]

    class Both(Look):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).float() * self.scale + 0 * self.other.sum().float()

    x = torch.randn(N, 6, dtype=torch.float64)
    task = minicl.Task(0, 2, (x, Y), test=(x, Y))
    minicl.run(minicl.FineTune(Both()), [task], epochs=1, progress=False)
    assert set(seen) == {torch.float64}  # one of the network's own types
    seen.clear()
    one = Look()
    one.scale = nn.Parameter(torch.ones(2))  # type: ignore[assignment]
    minicl.run(minicl.FineTune(one), [task], epochs=1, progress=False)
    assert set(seen) == {torch.float32}


def test_masks_stay_masks_and_pictures_become_numbers_in_a_tree() -> None:
    tree = {
        "picture": np.full((N, 3, 2, 2), 51, np.uint8),
        "mask": np.ones((N, 5), bool),
        "tokens": np.zeros((N, 5), np.int64),
        "row": (np.zeros((N, 2)), torch.zeros(N, 2, dtype=torch.float64)),
    }
    items = [({"picture": tree["picture"][i], "mask": tree["mask"][i], "tokens": tree["tokens"][i],
               "row": tuple(part[i] for part in tree["row"])}, int(Y[i])) for i in range(N)]  # fmt: skip
    for given in ((tree, Y), items, Own([x for x, _ in items], Y)):
        x = all_of(minicl.Task(0, 2, given).train).x
        assert x["picture"].unique().tolist() == [pytest.approx(0.2)]
        assert [x["mask"].dtype, x["tokens"].dtype] == [torch.bool, torch.int64]
        assert [part.dtype for part in x["row"]] == [torch.float32, torch.float64]
        assert isinstance(x["row"], tuple)


def test_pictures_have_their_channels_first() -> None:
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    image[0, 1] = (255, 51, 0)
    task = minicl.Task(0, 2, Own([Image.fromarray(image)] * 2, [0, 1]))
    x = all_of(task.train).x
    assert x.shape == (2, 3, 2, 3)
    assert x[0, :, 0, 1].tolist() == [1, pytest.approx(0.2), 0]


def test_nothing_is_copied_whose_type_stays() -> None:
    x = torch.rand(N, 3)
    assert minicl.Task(0, 2, (x, Y)).train.x.data_ptr() == x.data_ptr()
    array = np.zeros((N, 3), np.float32)
    assert minicl.Task(0, 2, (array, Y)).train.x.data_ptr() == array.ctypes.data


def test_the_default_type_of_pytorch_is_what_numpys_numbers_become() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert as_input(np.zeros(2), Name()).dtype == torch.float64
        assert as_input(np.zeros(2, np.uint8), Name()).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array(["a", "b"]), "the train inputs hold a ndarray; allowed: numbers, pictures"),
        ({"text": ["a", "b"]}, "the train inputs hold a list"),
        (np.array([object(), None]), "the train inputs hold a ndarray"),
    ],
)
def test_inputs_that_are_no_numbers_are_named(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"task 0 .task 0.: {message}"):
        minicl.Task(0, 2, (x, [0, 1]))


def test_items_of_different_kinds_are_refused() -> None:
    a, b = torch.zeros(2), torch.zeros(3)
    for items in ([({"a": a}, 0), ({"b": a}, 1)], [({"a": a}, 0), (a, 1)], [((a, a), 0), ((a,), 1)]):
        with pytest.raises(ValueError, match=r"inputs of different kinds; give it collate="):
            minicl.Task(0, 2, items)
    with pytest.raises(
        ValueError, match=r"different shapes, such as \(2,\) and \(3,\); give it a transform .* collate="
    ):
        minicl.Task(0, 2, [(a, 0), (b, 1)])


@pytest.mark.parametrize(
    "labels",
    [
        [3, 1],
        (3, 1),
        np.array([3, 1]),
        np.array([3, 1], ">i2"),
        np.array([3, 1], object),
        torch.tensor([3, 1]),
        [np.int8(3), torch.tensor(1)],
        [True, False],
        np.array([True, False]),
    ],
)
def test_labels_of_any_integer_kind(labels: Any) -> None:
    found = as_labels(labels, Name())
    assert isinstance(found, Tensor)
    assert not found.is_floating_point()
    assert found.tolist() == [int(label) for label in labels]


def test_labels_of_some_kind_each_are_refused() -> None:
    for labels in ([1, "cat"], ["cat", 1], [None], [0.5], np.array(["cat", 1], object)):
        with pytest.raises(ValueError, match="labels that are not single integers, such as"):
            as_labels(labels, Name("train"))


def test_two_items_are_no_pair_of_arrays() -> None:
    zeros = torch.zeros(2)
    for given in ([(zeros, 0), (zeros, 1)], ((zeros, 0), (zeros, 1))):
        assert len(minicl.Task(0, 2, given).train) == 2
    task = minicl.Task(0, 2, ([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [0, 1, 1]))  # numbers written down
    assert task.train.x.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_a_function_is_a_maker_and_a_data_set_that_can_be_called_is_none() -> None:
    class Callable(Own):
        def __call__(self) -> None:
            raise AssertionError

    x = torch.rand(N, 3)
    for given in (lambda: (x, Y), lambda: Own(x, Y), partial(Callable, x, Y), Callable(x, Y)):
        assert torch.equal(all_of(minicl.Task(0, 2, given).train).x, x)
