"""The accuracy matrix, and every number that is read off it.

R, shape (T, T): R[i, j] is the accuracy (0 to 1) on task j after learning task i; NaN where no head exists yet.
Rows and columns are counted from 0, in the order in which the tasks were learned.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import files

Array = NDArray[np.float64]


def average_accuracy(R: ArrayLike) -> float:
    """ACC = mean over j of R[T-1, j]: what is known in the end (Lopez-Paz and Ranzato 2017, arXiv 1706.08840)."""
    return float(_matrix(R)[-1].mean())


def backward_transfer(R: ArrayLike) -> float:
    """BWT = mean over j < T-1 of R[T-1, j] - R[j, j]: negative where later tasks harmed earlier ones.

    Lopez-Paz and Ranzato 2017, arXiv 1706.08840. NaN for a single task.
    """
    R = _matrix(R)
    return _mean(R[-1, :-1] - np.diag(R)[:-1])


def forward_transfer(R: ArrayLike, b: ArrayLike) -> float:
    """FWT = mean over j > 0 of R[j-1, j] - b[j]: what earlier tasks are worth to a task not yet learned.

    Lopez-Paz and Ranzato 2017, arXiv 1706.08840. `b`, shape (T,), is the accuracy at random initialisation. NaN for a
    single task, and where an untrained task has no head, as in scenarios "task" and "class".
    """
    R, b = _matrix(R), np.asarray(b, dtype=np.float64)
    if b.shape != (len(R),):
        raise ValueError(f"b has shape {b.shape}; allowed: one accuracy at random initialisation per task, ({len(R)},)")
    return _mean(np.diag(R, k=1) - b[1:])


def forgetting(R: ArrayLike) -> float:
    """F = mean over j < T-1 of (max over i < T-1 of R[i, j]) - R[T-1, j]: what was known at best and is no longer.

    Chaudhry et al. 2018, arXiv 1801.10112. Moments at which a task had no head are left out. NaN for a single task.
    """
    R = _matrix(R)
    if len(R) == 1:
        return math.nan
    return _mean(np.nanmax(R[:-1, :-1], axis=0) - R[-1, :-1])


def forgetting_ratio(A: ArrayLike, A_R: ArrayLike, A_J: ArrayLike) -> Array:
    """HAT's rho, shape (T,): rho^{<=t} = mean over j <= t of (A_j^{<=t} - A_{R,j}) / (A_{J,j}^{<=t} - A_{R,j}) - 1.

    Serra et al. 2018, arXiv 1801.01423, the paper's Eq. 6, which writes tau for j. 0 is as good as joint training, -1
    as bad as guessing.

    Args:
        A: accuracies of the method, shape (T, T): row t, column j.
        A_R: accuracy of a random classifier on each task, shape (T,).
        A_J: accuracies of joint training on the tasks up to t, shape (T, T).

    Raises:
        ValueError: shapes that differ, or joint training that is no better than guessing, where rho has no meaning.
    """
    A, A_J, A_R = _matrix(A), _matrix(A_J), np.asarray(A_R, dtype=np.float64)
    if A_J.shape != A.shape or A_R.shape != (len(A),):
        raise ValueError(
            f"A, A_J and A_R have shapes {A.shape}, {A_J.shape} and {A_R.shape}; allowed: (T, T), (T, T) and (T,)"
        )
    known = np.tril(np.ones(A.shape, dtype=bool))
    if bool(np.any((A_J - A_R <= 0) & known)):
        t, j = np.argwhere((A_J - A_R <= 0) & known)[0]
        raise ValueError(
            f"joint training on the tasks up to {t} reaches {A_J[t, j]} on task {j}, "
            f"a random classifier {A_R[j]}; "
            "rho has a meaning only where joint training is better"
        )
    rho = np.where(known, (A - A_R) / np.where(known, A_J - A_R, 1.0) - 1, 0.0)
    return np.asarray(rho.sum(axis=1) / known.sum(axis=1))


def learning_curve_area(curve: ArrayLike) -> float:
    """Area under a learning curve, divided by its length: the mean accuracy while learning, by the trapezoid rule.

    Rusu et al. 2016, arXiv 1606.04671, measure transfer as this area over that of a single column trained alone.
    `curve`: accuracies at evenly spaced moments, at least two.
    """
    curve = np.asarray(curve, dtype=np.float64)
    if curve.ndim != 1 or len(curve) < 2:
        raise ValueError(
            f"a learning curve of shape {curve.shape} has no area; allowed: at least two accuracies in a row"
        )
    return float(((curve[:-1] + curve[1:]) / 2).mean())


def mean_and_interval(values: ArrayLike, axis: int = 0) -> tuple[Array, Array]:
    """Mean over `axis`, and half the width of its 95 % t-interval: the mean is reported as mean ± half.

    `half = t_{0.975, n-1} s / sqrt(n)`, where s is the standard deviation of the n values (with n - 1 below the
    fraction). NaN for a single value, which says nothing about its spread. NaN among the values makes NaN.

    Raises:
        ValueError: no values along the axis.
    """
    values = np.asarray(values, dtype=np.float64)
    n = values.shape[axis] if values.ndim else 0
    if not n:
        raise ValueError(f"values of shape {values.shape} hold nothing to average over axis {axis}; one is needed")
    mean = np.asarray(values.mean(axis=axis))
    if n == 1:
        return mean, np.full_like(mean, np.nan)
    from scipy.special import stdtrit

    return mean, np.asarray(stdtrit(n - 1, 0.975) * values.std(axis=axis, ddof=1) / np.sqrt(n))


def _matrix(R: ArrayLike) -> Array:
    matrix = np.asarray(R, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"the accuracy matrix has shape {matrix.shape}; allowed: square, (T, T)")
    return matrix


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def who_knows(scenario: str, settings: dict[str, Any]) -> str:
    """Who knows the task id at test time, from what a result holds: "told", "inferred" or "nobody"."""
    return "told" if scenario == "task" else "inferred" if settings.get("infer") else "nobody"


@dataclass(eq=False)
class Result:
    """What a run measured.

    Attributes:
        accuracy: R, shape (T, T); NaN where no head exists yet.
        baseline: accuracy of each task at random initialisation, shape (T,); NaN where no head exists before a task.
        learning_curves: for each task, accuracy on its test data before training and after each epoch.
        within_tasks: for each task, accuracy on all tasks while it was learned, after every n-th epoch, shape (moments,
            T); NaN where no head exists yet. Empty unless `run(evaluate_every=n)` asked for it.
        parameters: weights stored at the end.
        seconds: spent in training, evaluation left out.
        method, hyperparameters, needs_task_id: what learned, and whether it was told the task id at test time.
        stream, scenario, seed, settings: on what, and how.
        capacity: the learner's own account of what it used.
    """

    accuracy: Array
    baseline: Array
    learning_curves: list[list[float]]
    parameters: int
    seconds: float
    method: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    needs_task_id: bool = False
    scenario: str = ""
    stream: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    capacity: dict[str, Any] = field(default_factory=dict)
    within_tasks: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.accuracy = _matrix(self.accuracy)
        self.baseline = np.asarray(self.baseline, dtype=np.float64)
        if self.baseline.shape != (len(self.accuracy),):
            raise ValueError(
                f"baseline has shape {self.baseline.shape}; allowed: ({len(self.accuracy)},), one number per task"
            )
        self.within_tasks = [np.asarray(moments, dtype=np.float64) for moments in self.within_tasks]
        shapes = {moments.shape[1:] for moments in self.within_tasks}
        if self.within_tasks and (shapes != {(len(self.accuracy),)} or len(self.within_tasks) != len(self.accuracy)):
            raise ValueError(
                f"within_tasks has moments of shape {sorted(shapes)} for {len(self.within_tasks)} tasks; "
                f"allowed: for each of {len(self.accuracy)} tasks, accuracies of shape (moments, {len(self.accuracy)})"
            )
        # The form in which a file holds them, from the beginning: what is loaded equals what was saved.
        for name in ("hyperparameters", "stream", "settings"):
            setattr(self, name, files.jsonable(getattr(self, name)))
        self.capacity = _with_task_ids(files.jsonable(self.capacity))

    @property
    def average_accuracy(self) -> float:
        """ACC, see `average_accuracy`."""
        return average_accuracy(self.accuracy)

    @property
    def backward_transfer(self) -> float:
        """BWT, see `backward_transfer`."""
        return backward_transfer(self.accuracy)

    @property
    def forward_transfer(self) -> float:
        """FWT, see `forward_transfer`."""
        return forward_transfer(self.accuracy, self.baseline)

    @property
    def forgetting(self) -> float:
        """F, see `forgetting`."""
        return forgetting(self.accuracy)

    @property
    def knows_task_id(self) -> bool:
        """Whether anyone told the learner the task id at test time."""
        return self.scenario == "task"

    @property
    def task_id(self) -> str:
        """Who knows the task id at test time: "told", "inferred" (the learner guesses it, see `run`), or "nobody"."""
        return who_knows(self.scenario, self.settings)

    def save(self, path: str | Path) -> None:
        """Write the result to `path` as JSON. OSError where the path cannot be written.

        NaN becomes null in the matrix, the baseline and the curves. Elsewhere JSON has no word for NaN and infinity:
        they are written as {"float": "nan"}.
        """
        files.write_json(path, files.with_digest(self.as_json()))

    def as_json(self) -> dict[str, Any]:
        """What `save` writes."""
        return {"format": files.FORMAT, "kind": "result", **_encoded(asdict(self))}

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """The result saved at `path`, exactly as it was.

        A file of minicl before 0.1 has no digest: it is loaded with a warning, since damage to it would not be seen.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, or something else.
        """
        try:
            value = files.read_json(path)
            result = cls.from_json(value)
            files.check_digest(path, value)
            return result
        except _NoResult as error:
            raise ValueError(f"{str(path)!r} holds {error}") from error

    @classmethod
    def from_json(cls, value: Any) -> Result:
        """The inverse of `as_json`; ValueError where that is no result, or a damaged one."""
        if not isinstance(value, dict) or value.get("kind") != "result" or value.get("format") != files.FORMAT:
            raise _NoResult(f"no result of minicl (format {files.FORMAT})")
        try:
            return cls(
                **_decoded({name: item for name, item in value.items() if name not in ("kind", "format", "digest")})
            )
        except (TypeError, ValueError, KeyError, OverflowError, RecursionError, AttributeError) as error:
            raise _NoResult(f"a result that is incomplete or damaged: {error}") from error

    def __str__(self) -> str:
        numbers = [f"ACC {self.average_accuracy:.1%}"]
        if len(self.accuracy) > 1:
            numbers += [f"BWT {self.backward_transfer:+.1%}", f"F {self.forgetting:.1%}"]
        name, tasks = self.stream.get("name", "stream"), f"{len(self.accuracy)} task{'s' * (len(self.accuracy) > 1)}"
        return f"{self.method} on {name} ({self.scenario}, {tasks}): " + ", ".join(numbers)


class _NoResult(ValueError):
    pass


def _encoded(value: Any) -> Any:
    """The fields of a result as JSON holds them."""
    fields = {name: _finite(files.jsonable(item)) for name, item in value.items() if name not in MEASURED}
    for name in MEASURED:
        item = value[name]
        fields[name] = _null(item)
    return {name: fields[name] for name in value}


def _decoded(fields: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_encoded`; raises what Python raises where a field is not of its kind."""
    value = {name: item if name in MEASURED else _infinite(item) for name, item in fields.items()}
    value["learning_curves"] = [[_number(a) for a in curve] for curve in value["learning_curves"]]
    for name in ("accuracy", "baseline"):
        value[name] = np.asarray(value[name], dtype=np.float64)
    n_tasks = len(value["accuracy"])
    within = [np.asarray(moments, dtype=np.float64) for moments in value.get("within_tasks", [])]
    value["within_tasks"] = [moments.reshape(-1, n_tasks) if moments.size == 0 else moments for moments in within]
    for name, kinds in KINDS.items():
        if name in value and (
            not isinstance(value[name], kinds) or (isinstance(value[name], bool) and kinds is not bool)
        ):
            raise ValueError(f"{name} is {value[name]!r}")
    return value


MEASURED = ("accuracy", "baseline", "learning_curves", "within_tasks")
KINDS: dict[str, Any] = {
    "parameters": int,
    "seconds": (int, float),
    "method": str,
    "hyperparameters": dict,
    "needs_task_id": bool,
    "scenario": str,
    "stream": dict,
    "seed": int,
    "settings": dict,
    "capacity": dict,
}


def _with_task_ids(value: Any) -> Any:
    """Keys that are numbers, such as task ids, as numbers; JSON has only strings."""
    if not isinstance(value, dict):
        return [_with_task_ids(item) for item in value] if isinstance(value, list) else value
    numbers = all(key.isdecimal() and str(int(key)) == key for key in value)
    return {int(key) if numbers else key: _with_task_ids(item) for key, item in value.items()}


def _null(value: Any) -> Any:
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_null(item) for item in value]
    return float(value) if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _infinite(value: Any) -> Any:
    if isinstance(value, dict):
        return (
            float(value["float"])
            if value.keys() == {"float"}
            else {key: _infinite(item) for key, item in value.items()}
        )
    return [_infinite(item) for item in value] if isinstance(value, list) else value
