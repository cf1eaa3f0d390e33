"""Streams as properties over random data: nothing is lost, nothing leaks, labels mean what they say, seeds decide."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import TensorDataset

import minicl
from minicl.streams import rotate

PARTS = ("train", "valid", "test")
KINDS = ("split", "permuted", "rotated")


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Train and test with arbitrary labels, unequal class counts and image sizes; no two pixels are the same."""
    labels = draw(st.lists(st.integers(-50, 1000).filter(lambda n: n != -1), min_size=1, max_size=8, unique=True))
    counts = [(draw(st.integers(1, 9)), draw(st.integers(1, 4))) for _ in labels]
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
    shuffle = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    parts = []
    n_before = 0
    for part in (0, 1):
        y = torch.tensor([label for label, count in zip(labels, counts, strict=True) for _ in range(count[part])])
        y = y[torch.randperm(len(y), generator=shuffle)]
        n_pixels = shape[0] * shape[1] * shape[2]
        x = torch.arange(n_before, n_before + len(y) * n_pixels, dtype=torch.float32).view(len(y), *shape)
        n_before += len(y) * n_pixels
        parts.append((x / 2**14, y))  # exact: fewer than 2^24 numbers
    return parts[0], parts[1]


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def key(x: Tensor) -> tuple[float, ...]:
    """An image, whatever the order of its pixels."""
    return tuple(sorted(x.flatten().tolist()))


def pixels(samples: minicl.Samples) -> list[tuple[float, ...]]:
    return [key(x) for x in samples.x]


seeds = st.integers(0, 2**32 - 1)
scenarios = st.sampled_from(minicl.SCENARIOS)
shares = st.sampled_from([0.0, 0.1, 0.3, 0.9])


@given(data=data_sets(), scenario=scenarios, seed=seeds, share=shares, choice=st.data())
def test_split_is_a_partition_and_labels_are_mapped(
    data: Any, scenario: str, seed: int, share: float, choice: st.DataObject
) -> None:
    (x_train, y_train), (x_test, y_test) = data
    classes = sorted(set(y_train.tolist()))
    n_tasks = choice.draw(st.sampled_from(divisors(len(classes))))
    stream = minicl.split(data, n_tasks, scenario, seed, validation=share)
    k = len(classes) // n_tasks

    # Partition: each sample of the data set is in exactly one part of exactly one task.
    both = [image for task in stream for part in ("train", "valid") for image in pixels(getattr(task, part))]
    assert sorted(both) == sorted(map(key, x_train))
    assert sorted(image for task in stream for image in pixels(task.test)) == sorted(map(key, x_test))

    label_of = {
        key(x): y for x, y in zip(torch.cat([x_train, x_test]), torch.cat([y_train, y_test]).tolist(), strict=True)
    }
    for t, task in enumerate(stream):
        assert task.id == t
        assert task.scenario == scenario
        assert list(task.classes) == classes[t * k : (t + 1) * k]
        assert task.n_outputs == ((t + 1) * k if scenario == "class" else k)
        first = t * k if scenario == "class" else 0
        for part in PARTS:
            samples = getattr(task, part)
            assert samples.x.dtype == torch.float32
            assert samples.y.dtype == torch.int64
            for image, y in zip(pixels(samples), samples.y.tolist(), strict=True):
                assert task.classes[y - first] == label_of[image]
        assert set(task.train.y.tolist()) == set(range(first, first + k))  # every class keeps a sample to learn from


@given(data=data_sets(), kind=st.sampled_from(("permuted", "rotated")), scenario=scenarios, seed=seeds, share=shares)
def test_permuted_and_rotated_hold_every_sample_in_every_task(
    data: Any, kind: str, scenario: str, seed: int, share: float
) -> None:
    (_, y_train), (x_test, y_test) = data
    classes = sorted(set(y_train.tolist()))
    stream = getattr(minicl, kind)(data, 3, scenario, seed, validation=share)
    for t, task in enumerate(stream):
        assert list(task.classes) == classes
        first = t * len(classes) if scenario == "class" else 0
        assert task.n_outputs == first + len(classes)
        given = Counter(classes.index(y) + first for y in y_train.tolist())
        assert Counter(task.train.y.tolist()) + Counter(task.valid.y.tolist()) == given
        assert [y - first for y in task.test.y.tolist()] == [classes.index(y) for y in y_test.tolist()]
        assert task.train.x.shape[1:] == x_test.shape[1:]
        if kind == "permuted":
            assert pixels(task.test) == [key(x) for x in x_test]
            assert set(pixels(task.train)).isdisjoint(pixels(task.valid))
    assert torch.equal(stream[0].test.x, x_test)  # task 0 is the data set itself


@given(data=data_sets(), seed=seeds)
def test_one_permutation_a_task_for_all_its_samples(data: Any, seed: int) -> None:
    stream = minicl.permuted(data, 4, "domain", seed)
    plain = stream[0]
    for task in stream[1:]:
        # Pixel i of an image goes to the same place in every image of train, valid and test.
        order = [plain.test.x[0].flatten().tolist().index(v) for v in task.test.x[0].flatten().tolist()]
        for part in PARTS:
            assert torch.equal(getattr(task, part).x.flatten(1), getattr(plain, part).x.flatten(1)[:, order])


def test_permutations_differ_between_tasks_and_between_seeds() -> None:
    orders = [task.test.x for seed in (0, 1) for task in minicl.permuted("digits", 3, seed=seed)[1:]]
    for i in range(len(orders)):
        for j in range(i):
            assert not torch.equal(orders[i], orders[j])


@given(
    data=data_sets(),
    kind=st.sampled_from(KINDS),
    scenario=scenarios,
    seed=seeds,
    n_train=st.none() | st.integers(1, 5),
    disturbance=st.integers(0, 2**31),
)
def test_a_stream_depends_on_its_seed_alone(
    data: Any, kind: str, scenario: str, seed: int, n_train: int | None, disturbance: int
) -> None:
    make = getattr(minicl, kind)
    one = make(data, 1, scenario, seed, n_train=n_train)
    torch.manual_seed(disturbance)
    before = torch.get_rng_state()
    other = make(data, 1, scenario, seed, n_train=n_train)
    # The order in which parts are asked for does not matter either.
    for part in reversed(PARTS):
        a, b = getattr(one[0], part), getattr(other[0], part)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_holds_out_other_samples_but_never_touches_the_test_set() -> None:
    a, b = (minicl.split("digits", 5, seed=seed) for seed in (0, 1))
    assert not torch.equal(a[0].valid.x, b[0].valid.x)
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.test.x, other.test.x)


@given(data=data_sets(), n=st.integers(1, 12), seed=seeds, kind=st.sampled_from(KINDS))
def test_n_train_keeps_so_many_training_samples_and_all_others(data: Any, n: int, seed: int, kind: str) -> None:
    make = getattr(minicl, kind)
    whole, few = make(data, 1, seed=seed)[0], make(data, 1, seed=seed, n_train=n)[0]
    assert len(few.train) == min(n, len(whole.train))
    assert set(pixels(few.train)) <= set(pixels(whole.train))
    assert torch.equal(few.test.x, whole.test.x)
    assert torch.equal(few.valid.x, whole.valid.x)


def test_n_train_may_differ_between_tasks() -> None:
    stream = minicl.split("digits", 5, n_train=[1, 2, 3, 4, 50])
    assert [len(task.train) for task in stream] == [1, 2, 3, 4, 50]


@given(share=st.floats(0, 1, exclude_max=True), seed=seeds)
@settings(max_examples=20)
def test_the_validation_share_is_taken_of_every_class(share: float, seed: int) -> None:
    for task in minicl.split("digits", 10, "domain", seed, validation=share):
        n = len(task.train) + len(task.valid)
        assert len(task.valid) == min(round(share * n), n - 1)


@given(data=data_sets(), share=shares)
def test_what_is_made_anew_is_what_is_kept(data: Any, share: float) -> None:
    for task in minicl.rotated(data, 2, validation=share):
        for part in PARTS:
            made = task.make(part)
            assert torch.equal(made.x, getattr(task, part).x)
        assert task.example.shape[1:] == task.train.x.shape[1:]


# ---- rotation --------------------------------------------------------------------------------------------------------


def test_a_quarter_turn_is_exact() -> None:
    x = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(x, 90), x.rot90(1, (2, 3)))  # counter-clockwise, as one reads an image
    torch.testing.assert_close(rotate(x, -90), x.rot90(-1, (2, 3)))
    torch.testing.assert_close(rotate(x, 180), x.flip(2, 3))
    assert rotate(x, 0) is x
    torch.testing.assert_close(rotate(x - 3, 90), (x - 3).rot90(1, (2, 3)))  # nor are other ranges cut off


def test_a_rotated_rectangle_keeps_its_proportions() -> None:
    x = torch.zeros(1, 1, 5, 9)
    x[0, 0, 2, 4 - 2 : 4 + 3] = 1  # a bar of 5 pixels, lying
    standing = torch.zeros(1, 1, 5, 9)
    standing[0, 0, :, 4] = 1
    torch.testing.assert_close(rotate(x, 90), standing, atol=1e-5, rtol=0)


@given(angle=st.floats(-360, 360), seed=st.integers(0, 99))
def test_rotation_invents_no_values(angle: float, seed: int) -> None:
    x = torch.randn(2, 1, 6, 7, generator=torch.Generator().manual_seed(seed))  # normalised data, below 0 too
    turned = rotate(x, angle)
    assert float(turned.min()) >= min(0.0, float(x.min()))
    assert float(turned.max()) <= max(0.0, float(x.max()))


@pytest.mark.parametrize("value", [1.0, 0.7, 0.9999999])
def test_rounding_lets_no_pixel_out_of_its_range(value: float) -> None:
    for side in (8, 28, 64):
        flat = torch.full((1, 1, side, side), value)
        for angle in range(1, 180, 9):
            assert float(rotate(flat, angle + 0.37).max()) <= float(flat.max())
            assert float(rotate(-flat, angle + 0.37).min()) >= -float(flat.max())


def test_angles_grow_evenly() -> None:
    stream = minicl.rotated("digits", 4, max_angle=90)
    assert [task.name for task in stream] == ["0 degrees", "30 degrees", "60 degrees", "90 degrees"]
    torch.testing.assert_close(stream[3].test.x, stream[0].test.x.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    assert stream.settings["max_angle"] == 90


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "mnits"}, "unknown data set 'mnits'; allowed: digits, mnist"),
        ({"scenario": "tasks"}, "unknown scenario 'tasks'; allowed: task, domain, class"),
        ({"n_tasks": 0}, "n_tasks is 0; allowed: integers from 1 up"),
        ({"n_tasks": -5}, "n_tasks is -5"),
        ({"n_tasks": 10**9}, "n_tasks is 1000000000; allowed: integers from 1 up to 10,000"),
        ({"seed": -1}, "seed is -1; allowed: integers from 0"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"validation": 1.0}, "validation is 1.0; allowed: a share from 0"),
        ({"validation": -0.1}, "validation is -0.1"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"validation": "a"}, "validation is 'a'; allowed: a share from 0"),
        ({"validation": None}, "validation is None"),
        ({"held": "no"}, "held is 'no'; allowed: True or False"),
        ({"n_train": 0}, "n_train is 0; allowed: a positive integer"),
        ({"n_train": [3]}, r"n_train is \[3\]; allowed: a positive integer, or 5 of them"),
        ({"n_train": [3, 3, 3, 3, -1]}, "n_train is"),
        ({"dataset": "mnist"}, "'mnist' is read from a folder of your choice: give it as root"),
    ],
)
def test_wrong_arguments_are_named(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(minicl, kind)(**{"n_tasks": 5, **arguments})


@pytest.mark.parametrize("n_tasks", [3, 4, 11, 20])
def test_split_says_which_numbers_of_tasks_divide_the_classes(n_tasks: int) -> None:
    with pytest.raises(ValueError, match=f"10 classes cannot be split into {n_tasks} .* allowed n_tasks: 1, 2, 5, 10"):
        minicl.split("digits", n_tasks)


@pytest.mark.parametrize("angle", [361, -400, float("nan"), "x", None, True])
def test_angles_beyond_a_turn_are_refused(angle: Any) -> None:
    with pytest.raises(ValueError, match="max_angle is"):
        minicl.rotated("digits", max_angle=angle)


def pair(
    x: Tensor | None = None, y: Tensor | None = None, x_test: Tensor | None = None, y_test: Tensor | None = None
) -> tuple[TensorDataset, TensorDataset]:
    x = torch.zeros(4, 1, 2, 2) if x is None else x
    y = torch.tensor([0, 1, 0, 1]) if y is None else y
    return TensorDataset(x, y), TensorDataset(x if x_test is None else x_test, y if y_test is None else y_test)


NOT_A_NUMBER = torch.zeros(4, 1, 2, 2).index_fill(0, torch.tensor([2]), float("nan"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pair(x=NOT_A_NUMBER), "the train data set: NaN or infinity in 1 inputs, the first at index 2"),
        (pair(x_test=NOT_A_NUMBER / 0), "the test data set: NaN or infinity in 4 inputs"),
        (pair(x=torch.zeros(0, 1, 2, 2), y=torch.zeros(0, dtype=torch.long)), "the train data set is empty"),
        (pair(x_test=torch.zeros(0, 1, 2, 2), y_test=torch.zeros(0, dtype=torch.long)), "the test data set is empty"),
        (pair(x_test=torch.zeros(4, 1, 3, 2)), r"training inputs have shape \(1, 2, 2\), test inputs \(1, 3, 2\)"),
        (
            pair(y_test=torch.tensor([0, 1, 7, 8])),
            r"labels that the training data has not: \[7, 8\]; allowed: \[0, 1\]",
        ),
        (pair(y=torch.tensor([0.0, 1, 0, 1])), "labels of the train samples are torch.float32"),
        (pair(y=torch.zeros(4, 1, dtype=torch.long)), r"of shape \(4, 1\); allowed: integers of shape \(n,\)"),
        (pair(x=torch.zeros(4)), r"the train inputs have shape \(4,\)"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused_when_the_stream_is_made(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minicl.permuted(data, 2)


def test_a_task_without_test_samples_is_refused_when_the_stream_is_made() -> None:
    with pytest.raises(
        ValueError, match=r"task 1 would hold the classes \[1\], and the test data has no sample of them"
    ):
        minicl.split(pair(y_test=torch.zeros(4, dtype=torch.long)), 2)


def test_only_images_can_be_rotated() -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\) cannot be turned; allowed: images"):
        minicl.rotated(pair(x=torch.zeros(4, 4)), 2)
    with pytest.raises(ValueError, match=r"torch.int64 .* cannot be turned"):
        minicl.rotated(pair(x=torch.zeros(4, 1, 2, 2, dtype=torch.long)), 2)


X, Y = torch.zeros(3, 2), torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": -1}, "the task id is -1; allowed: integers from 0 up"),
        ({"n_outputs": 0}, "n_outputs of task 0 is 0; allowed: integers from 1 up"),
        ({"scenario": "classes"}, "unknown scenario 'classes'"),
        ({"n_outputs": 1}, r"labels from 0 to 1; allowed: 0 to 0, since n_outputs is 1"),
        ({"train": (X, Y - 1)}, "labels from -1 to 0; allowed: 0 to 1"),
        ({"test": (X, Y - 100)}, "the test samples have labels from -100"),
        ({"train": (X[:0], Y[:0])}, "the train samples are empty; at least one is needed"),
        ({"train": (X, Y[:2])}, "3 inputs but 2 labels"),
        ({"train": (X, Y.float())}, "have labels of torch.float32"),
        (
            {"train": (X / 0, Y)},
            r"task 0 \(task 0\): the train samples: NaN or infinity in 3 inputs, the first at index 0",
        ),
        ({"valid": (X + torch.inf, Y)}, "the valid samples: NaN or infinity"),
    ],
)
def test_a_task_says_what_is_wrong_with_it(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minicl.Task(**{"id": 0, "n_outputs": 2, "train": (X, Y), "test": (X, Y), **arguments})


def test_a_task_of_ones_own() -> None:
    task = minicl.Task(3, 2, TensorDataset(X, Y), test=lambda: minicl.Samples(X, Y), name="mine", classes=[4, 9])
    assert torch.equal(task.train.x, X)
    assert len(task.valid) == 0
    assert task.valid.x.shape == (0, 2)
    assert (task.name, task.classes, task.n_outputs) == ("mine", (4, 9), 2)
    with pytest.raises(ValueError, match="unknown part 'tests'; allowed: train, valid, test"):
        task.make("tests")
    with pytest.raises(ValueError, match=r"task 0 \(task 0\) was made without test samples; give them as test="):
        _ = minicl.Task(0, 2, (X, Y)).test


def test_samples_that_are_made_late_are_checked_late() -> None:
    task = minicl.Task(0, 2, lambda: minicl.Samples(X, Y + 1))
    with pytest.raises(ValueError, match="labels from 1 to 2"):
        _ = task.train


def test_a_stream_is_a_sequence() -> None:
    stream = minicl.split("digits", 5)
    assert [task.id for task in stream] == [0, 1, 2, 3, 4]
    assert [task.id for task in stream[2:]] == [2, 3, 4]
    assert stream[2:].settings["tasks"] == [2, 3, 4]
    assert stream[-1].id == 4
    assert stream.name == "split-digits"
    assert stream.settings["n_tasks"] == 5


def task(id: int, n_outputs: int = 2, scenario: str = "task") -> minicl.Task:
    return minicl.Task(id, n_outputs, (X, Y), test=(X, Y), scenario=scenario)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "at least one task"),
        ([task(0), task(1, scenario="domain")], "must share one scenario; given: domain, task"),
        ([task(0), task(0)], r"different ids; given: \[0, 0\]"),
        ([task(0, 2, "domain"), task(1, 3, "domain")], r"share one head; given n_outputs: \[2, 3\]"),
        ([task(0, 4, "class"), task(1, 2, "class")], r"cannot shrink; given: \[4, 2\]"),
    ],
)
def test_tasks_that_do_not_go_together_make_no_stream(tasks: list[minicl.Task], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minicl.TaskStream(tasks)


def test_mnist_through_the_real_loader() -> None:
    root = Path(__file__).parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("there is no MNIST beside the project")
    stream = minicl.split("mnist", 5, "class", root=root)
    assert sum(len(task.train) + len(task.valid) for task in stream) == 60_000
    assert sum(len(task.test) for task in stream) == 10_000
    first = stream[0].train
    assert first.x.shape[1:] == (1, 28, 28)
    assert first.x.dtype == torch.float32
    assert float(first.x.min()) == 0
    assert float(first.x.max()) == 1
    assert stream[4].n_outputs == 10
    assert set(stream[4].test.y.tolist()) == {8, 9}
    mean = torch.cat([part.x for task in stream for part in (task.train, task.valid)]).mean()
    assert float(mean) == pytest.approx(0.1307, abs=5e-5)  # the mean that everyone normalises MNIST with
