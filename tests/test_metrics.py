"""Every metric on matrices worked out by hand, and against slow loops; results that come back from files."""

from __future__ import annotations

import json
import math
import pickle
import random
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minicl
from minicl import Result, files, metrics

NAN = math.nan

# Known task ids: no head, no number above the diagonal.
TASK = [
    [0.90, NAN, NAN],
    [0.70, 0.80, NAN],
    [0.50, 0.60, 0.95],
]
# One head for all: tasks are answered before they are learned, and task 1 gains from task 2.
DOMAIN = [
    [0.80, 0.30, 0.20],
    [0.90, 0.70, 0.40],
    [0.60, 0.75, 0.90],
]
GUESSING = [0.10, 0.10, 0.20]


def test_average_accuracy_by_hand() -> None:
    assert metrics.average_accuracy(TASK) == pytest.approx((0.50 + 0.60 + 0.95) / 3)
    assert metrics.average_accuracy(DOMAIN) == pytest.approx(0.75)
    assert metrics.average_accuracy([[0.4]]) == 0.4


def test_backward_transfer_by_hand() -> None:
    assert metrics.backward_transfer(TASK) == pytest.approx(-0.30)  # (-0.4 - 0.2) / 2
    assert metrics.backward_transfer(DOMAIN) == pytest.approx(-0.075)  # (-0.20 + 0.05) / 2
    assert math.isnan(metrics.backward_transfer([[0.4]]))


def test_forward_transfer_by_hand() -> None:
    assert metrics.forward_transfer(DOMAIN, GUESSING) == pytest.approx(0.20)  # (0.30 - 0.10 + 0.40 - 0.20) / 2
    assert math.isnan(metrics.forward_transfer(TASK, [NAN, NAN, NAN]))  # there was no head to measure with
    assert math.isnan(metrics.forward_transfer([[0.4]], [0.1]))


def test_forgetting_by_hand() -> None:
    assert metrics.forgetting(TASK) == pytest.approx(0.30)  # (0.4 + 0.2) / 2
    # Task 0 was best after task 1, which backward transfer does not see; task 1 is better than ever: (0.30 - 0.05) / 2
    assert metrics.forgetting(DOMAIN) == pytest.approx(0.125)
    # What was known best before the task was learned counts as well: max over all i < T-1.
    assert metrics.forgetting([[0.5, 0.9, 0.1], [0.5, 0.6, 0.1], [0.5, 0.4, 0.8]]) == pytest.approx((0.0 + 0.5) / 2)
    # The last row is no part of the maximum, or forgetting could never be negative.
    assert metrics.forgetting([[0.5, 0.2], [0.9, 0.8]]) == pytest.approx(-0.4)
    assert math.isnan(metrics.forgetting([[0.4]]))


def test_forgetting_ratio_by_hand() -> None:
    A = [[0.9, NAN], [0.7, 0.8]]
    A_J = [[0.9, NAN], [0.9, 0.9]]
    # rho^{<=0} = 0.4/0.4 - 1 = 0; rho^{<=1} = ((0.2/0.4 - 1) + (0.3/0.4 - 1)) / 2 = -0.375
    np.testing.assert_allclose(metrics.forgetting_ratio(A, [0.5, 0.5], A_J), [0.0, -0.375], atol=1e-12)
    # rho^{<=0} = 0.2/0.4 - 1 = -0.5 is a mean over the one task learned so far.
    np.testing.assert_allclose(metrics.forgetting_ratio([[0.7, NAN], *A[1:]], [0.5, 0.5], A_J), [-0.5, -0.375])
    # As bad as guessing is -1, better than joint training is above 0.
    np.testing.assert_allclose(metrics.forgetting_ratio([[0.5]], [0.5], [[0.9]]), [-1.0])
    np.testing.assert_allclose(metrics.forgetting_ratio([[1.0]], [0.5], [[0.9]]), [0.25])


@pytest.mark.parametrize("joint", [0.5, 0.4])
def test_forgetting_ratio_has_no_meaning_where_joint_training_is_no_better_than_guessing(joint: float) -> None:
    with pytest.raises(ValueError, match=r"joint training on the tasks up to 1 reaches .* on task 0"):
        metrics.forgetting_ratio([[0.9, NAN], [0.7, 0.8]], [0.5, 0.5], [[0.9, NAN], [joint, 0.9]])


def test_learning_curve_area_by_hand() -> None:
    assert metrics.learning_curve_area([0.0, 0.5, 1.0]) == pytest.approx(0.5)
    assert metrics.learning_curve_area([0.0, 1.0, 1.0]) == pytest.approx(0.75)
    assert metrics.learning_curve_area([0.2, 0.8, 0.6, 0.6]) == pytest.approx((0.5 + 0.7 + 0.6) / 3)
    assert metrics.learning_curve_area([0.7] * 9) == pytest.approx(0.7)


@pytest.mark.parametrize("curve", [[], [0.5], [[0.1, 0.2]]])
def test_a_learning_curve_needs_two_points(curve: list[Any]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        metrics.learning_curve_area(curve)


@pytest.mark.parametrize("R", [[], [[]], [[0.1, 0.2]], [0.1, 0.2], [[[0.1]]]])
def test_the_accuracy_matrix_is_square(R: list[Any]) -> None:
    for metric in (metrics.average_accuracy, metrics.backward_transfer, metrics.forgetting):
        with pytest.raises(ValueError, match=r"shape .* allowed: square, \(T, T\)"):
            metric(R)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"b has shape \(2,\)"):
        metrics.forward_transfer(DOMAIN, [0.1, 0.1])
    with pytest.raises(ValueError, match=r"shapes \(3, 3\), \(3, 3\) and \(2,\)"):
        metrics.forgetting_ratio(TASK, [0.1, 0.1], TASK)
    with pytest.raises(ValueError, match="baseline has shape"):
        Result(accuracy=np.eye(2), baseline=np.zeros(3), learning_curves=[], parameters=1, seconds=0.0)


accuracies = st.floats(0, 1, allow_nan=False)
square = st.integers(2, 6).flatmap(lambda T: hnp.arrays(np.float64, (T, T), elements=accuracies))


@given(square)
def test_metrics_are_the_sums_of_their_definitions(R: np.ndarray) -> None:
    T = len(R)
    b = R[::-1, 0].copy()
    assert metrics.average_accuracy(R) == pytest.approx(sum(R[T - 1][j] for j in range(T)) / T)
    assert metrics.backward_transfer(R) == pytest.approx(sum(R[T - 1][j] - R[j][j] for j in range(T - 1)) / (T - 1))
    assert metrics.forward_transfer(R, b) == pytest.approx(sum(R[j - 1][j] - b[j] for j in range(1, T)) / (T - 1))
    best = [max(R[i][j] for i in range(T - 1)) for j in range(T - 1)]
    assert metrics.forgetting(R) == pytest.approx(sum(best[j] - R[T - 1][j] for j in range(T - 1)) / (T - 1))


@given(square)
def test_forgetting_is_at_least_minus_backward_transfer(R: np.ndarray) -> None:
    R[np.triu_indices(len(R), 1)] = NAN
    assert metrics.forgetting(R) >= -metrics.backward_transfer(R) - 1e-12
    best_when_learned = np.fmin(R, np.diag(R)[None, :])
    best_when_learned[np.triu_indices(len(R), 1)] = NAN
    assert metrics.forgetting(best_when_learned) == pytest.approx(-metrics.backward_transfer(best_when_learned))


@given(square, st.randoms())
def test_joint_training_itself_has_ratio_zero(R: np.ndarray, rng: random.Random) -> None:
    joint = R / 2 + 0.5  # above a guess of 0.4
    np.testing.assert_allclose(metrics.forgetting_ratio(joint, [0.4] * len(R), joint), np.zeros(len(R)), atol=1e-12)


# ---- results in files ------------------------------------------------------------------------------------------------

words = st.text(max_size=8)
numbers = st.floats() | st.integers(-(2**70), 2**70) | st.booleans() | st.none()
jsons = st.recursive(
    numbers | words, lambda x: st.lists(x, max_size=3) | st.dictionaries(words, x, max_size=3), max_leaves=6
)


@st.composite
def results(draw: st.DrawFn) -> dict[str, Any]:
    T = draw(st.integers(1, 4))
    measured = accuracies | st.just(NAN)
    return dict(
        accuracy=draw(hnp.arrays(np.float64, (T, T), elements=measured)),
        baseline=draw(hnp.arrays(np.float64, (T,), elements=measured)),
        learning_curves=draw(st.lists(st.lists(measured, max_size=4), min_size=T, max_size=T)),
        within_tasks=draw(st.sampled_from([[], [np.full((2, T), 0.5)] * T])),
        parameters=draw(st.integers(0, 2**60)),
        seconds=draw(st.floats(0, 1e9)),
        method=draw(words),
        hyperparameters=draw(st.dictionaries(words, jsons, max_size=3)),
        needs_task_id=draw(st.booleans()),
        scenario=draw(words),
        stream=draw(st.dictionaries(words, jsons, max_size=2)),
        seed=draw(st.integers(0, 2**32 - 1)),
        settings=draw(st.dictionaries(words, jsons, max_size=2)),
        capacity={"tasks": {t: {"name": draw(words)} for t in range(T)}, "bytes": draw(st.integers(0, 2**60))},
    )


def same(a: Any, b: Any) -> bool:
    """Equal, of the same type, bit for bit; one NaN is as good as another."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and same(a.tolist(), b.tolist())
    if isinstance(a, dict):
        return (
            list(a) == list(b)
            and all(type(k) is type(j) for k, j in zip(a, b, strict=True))
            and all(same(a[k], b[k]) for k in a)
        )
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@given(given=results())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_result_comes_back_exactly(given: dict[str, Any], tmp_path: Path) -> None:
    result = Result(**given)
    path = tmp_path / "result.json"
    result.save(path)
    loaded = Result.load(path)
    for field in fields(Result):
        assert same(getattr(loaded, field.name), getattr(result, field.name)), field.name
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def example() -> Result:
    return Result(
        accuracy=np.array(TASK), baseline=np.full(3, NAN), learning_curves=[[0.1, 0.9]] * 3, parameters=7, seconds=1.5
    )


def test_what_json_cannot_hold_is_said_to_be_missing(tmp_path: Path) -> None:
    result = Result(**{**asdict(example()), "hyperparameters": {"f": math.sqrt, "n": np.int64(3), "sizes": (1, 2)}})
    result.save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json").hyperparameters == {"f": {"not_saved": "sqrt"}, "n": 3, "sizes": [1, 2]}


def test_numbers_that_json_has_no_word_for(tmp_path: Path) -> None:
    given = {"a": math.inf, "b": [-math.inf], "c": {"d": NAN}}
    result = Result(
        **{**asdict(example()), "hyperparameters": given, "capacity": {"tasks": {0: {}, 12: {1: "x"}}, "07": 1}}
    )
    result.save(tmp_path / "r.json")
    loaded = Result.load(tmp_path / "r.json")
    assert same(loaded.hyperparameters, given)
    assert loaded.capacity == {"tasks": {0: {}, 12: {1: "x"}}, "07": 1}


def test_properties_are_the_functions() -> None:
    result = Result(
        **{
            **asdict(example()),
            "accuracy": np.array(DOMAIN),
            "baseline": np.array(GUESSING),
            "scenario": "domain",
            "method": "M",
        }
    )
    assert result.average_accuracy == metrics.average_accuracy(DOMAIN)
    assert result.backward_transfer == metrics.backward_transfer(DOMAIN)
    assert result.forward_transfer == metrics.forward_transfer(DOMAIN, GUESSING)
    assert result.forgetting == metrics.forgetting(DOMAIN)
    assert not result.knows_task_id
    assert str(result) == "M on stream (domain, 3 tasks): ACC 75.0%, BWT -7.5%, F 12.5%"
    one = Result(
        accuracy=np.eye(1), baseline=np.array([NAN]), learning_curves=[[0.1]], parameters=1, seconds=0.0, method="M"
    )
    assert "nan" not in str(one)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accuracy", "abc"),
        ("accuracy", [[1, 2]]),
        ("accuracy", [[[0.5]]]),
        ("accuracy", {"a": 1}),
        ("accuracy", [[10**400]]),
        ("baseline", [0.1]),
        ("baseline", None),
        ("learning_curves", 5),
        ("learning_curves", [["x"]]),
        ("learning_curves", None),
        ("parameters", "many"),
        ("parameters", True),
        ("seconds", None),
        ("method", 5),
        ("hyperparameters", []),
        ("stream", "split"),
        ("seed", "0"),
        ("settings", None),
        ("capacity", [1]),
        ("needs_task_id", "yes"),
        ("surprise", 1),
    ],
)
def test_a_result_with_a_damaged_field_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "result.json"
    example().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=r"result\.json' holds a result that is incomplete or damaged"):
        Result.load(path)


def test_a_result_without_one_of_its_fields_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    example().save(path)
    whole = json.loads(path.read_text())
    for field in ("accuracy", "baseline", "learning_curves", "parameters", "seconds", "kind", "format"):
        path.write_text(json.dumps({name: value for name, value in whole.items() if name != field}))
        with pytest.raises(ValueError, match=r"incomplete or damaged|holds no result"):
            Result.load(path)


class Bomb:
    """Unpickling it would create a file."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("bomb-went-off"),)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"kind": "result"}',
        b'{"kind": "result", "format": 99}',
        b"\xff\xfe\x00",
        b"[" * 200_000,
        pickle.dumps(Bomb()),
        random.Random(0).randbytes(999),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_hostile_result_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    Path("result.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.json"):
        Result.load("result.json")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_truncated_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    example().save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            Result.load(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        Result.load(tmp_path / "another.json")


def test_every_damage_to_a_saved_result_is_noticed(tmp_path: Path) -> None:
    """One byte changed anywhere: refused, or (a space for another) the same result."""
    result = minicl.run(minicl.PackNet(minicl.mlp(64, 8)), minicl.split(n_train=20)[:3], epochs=1, progress=False)
    result.save(tmp_path / "result.json")
    whole, choose = (tmp_path / "result.json").read_bytes(), random.Random(0)
    for _ in range(750):
        place, damaged = choose.randrange(len(whole)), bytearray(whole)
        damaged[place] ^= 1 << choose.randrange(8)
        (tmp_path / "damaged.json").write_bytes(bytes(damaged))
        try:
            found = Result.load(tmp_path / "damaged.json")
        except ValueError:
            continue
        assert found.as_json() == result.as_json(), f"byte {place}: {bytes(whole[place - 20 : place + 20])!r}"


def test_a_result_without_a_digest_still_loads_and_says_so(tmp_path: Path) -> None:
    result = minicl.run(minicl.FineTune(minicl.mlp(64, 8)), minicl.split(n_train=20)[:2], epochs=1, progress=False)
    files.write_json(tmp_path / "old.json", result.as_json())
    with pytest.warns(UserWarning, match=r"old.json' has no digest, so damage to it would not be seen"):
        assert Result.load(tmp_path / "old.json").as_json() == result.as_json()
