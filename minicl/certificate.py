"""`certify`: has a task been forgotten? Digests of its logits, taken when it ended and again now.

`run` takes the first when a task ends, and the learner keeps them: its files and checkpoints hold them too, so that
anyone who is given a network can check it. Bits are compared, so the second digest must be taken on the same kind of
machine, with the same version of PyTorch; elsewhere rounding differs, and the certificate says how far.
"""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import evaluation, files, freezing, inputs
from .inference import as_told
from .learner import Learner
from .samples import Samples
from .tasks import Task, TaskStream

NUMBERS_KEPT = 1000
"""So many logits of a task are kept themselves, to say how far off the others are; 4 KB."""


@dataclass
class TaskCertificate:
    """What a certificate says of a task.

    Attributes:
        task_id, name: of the task.
        identical: whether every bit of its logits is what it was when the task ended; None where no digest was taken.
        off_by: the largest difference among the logits that were kept; 0.0 where identical, NaN where nothing is known.
        accuracy_then, accuracy_now: on the task's test data, 0 to 1; or what the task's metric says, where it has one.
        where: what the digest was taken with, where that differs from now; empty otherwise.
    """

    task_id: int
    name: str
    identical: bool | None
    off_by: float = float("nan")
    accuracy_then: float = float("nan")
    accuracy_now: float = float("nan")
    where: str = ""
    has_metric: bool = False

    def _said(self, value: float) -> str:
        return f"{value:.4g}" if self.has_metric else f"{value:.1%}"

    def __str__(self) -> str:
        start = f"task {self.task_id} ({self.name}): "
        if self.identical is None:
            return start + "no digest was taken when it ended; minicl.run takes one"
        what = "score" if self.has_metric else "accuracy"
        if self.identical:
            return start + f"identical, {what} {self._said(self.accuracy_now)}"
        text = f"NOT identical, logits off by up to {self.off_by:.3g}, "
        text += f"{what} {self._said(self.accuracy_then)} then, {self._said(self.accuracy_now)} now"
        return start + text + (f" (digest taken with {self.where})" if self.where else "")


@dataclass
class Certificate:
    """What `certify` found, a `TaskCertificate` for each finished task. True where every task is identical."""

    method: str
    lines: list[TaskCertificate] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether there is a digest of every task, and all of them are the same now."""
        return bool(self.lines) and all(line.identical for line in self.lines)

    def __bool__(self) -> bool:
        return self.identical

    def __str__(self) -> str:
        n = sum(bool(line.identical) for line in self.lines)
        end = f"{self.method}: {n} of {len(self.lines)} tasks identical, bit for bit"
        return "\n".join([*map(str, self.lines), end])

    def __repr__(self) -> str:
        return f"<{str(self).splitlines()[-1]}>"


def certify(learner: Learner, stream: TaskStream | Sequence[Task]) -> Certificate:
    """Compare the logits of every finished task of `stream` with those it had when it ended; prints a line per task.

    In scenario "class" the outputs that there were then are compared; classes that came later have none to compare.

    Raises:
        TypeError: something that is no learner, or no stream.
        ValueError: a learner without finished tasks of this stream; test data that is not what the digest was taken of.
    """
    certificate = compare(learner, stream)
    print(certificate)
    return certificate


def compare(learner: Learner, stream: TaskStream | Sequence[Task]) -> Certificate:
    """`certify`, without printing."""
    if not isinstance(learner, Learner):
        raise TypeError(f"the learner is a {type(learner).__name__}; allowed: a minicl.Learner")
    if isinstance(stream, Task) or not all(isinstance(task, Task) for task in stream):
        raise TypeError("certify was given something else than a stream; allowed: a stream or a list of tasks")
    if learner.scenario == "task" and any(task.scenario != "task" for task in stream):
        stream = as_told(stream)  # learned with `run(..., infer=...)`
    finished = [task for task in stream if task.id in learner.learned]
    if not finished:
        known = ", ".join(map(str, learner.learned)) or "none"
        raise ValueError(f"no task of this stream has been learned, so nothing can be certified; learned: {known}")
    lines = []
    for task in finished:
        then = learner.certificate.get(task.id)
        if then is None:
            lines.append(TaskCertificate(task.id, task.name, None))
            continue
        if isinstance(task.make("test"), Samples):
            check_data(task, then)  # first: a network may not even take other data
        now = digest_of(learner, task, then["outputs"], _batch_size(then))
        _check_same_data(task, now["data"], then)  # what is read on demand is read once
        same = now["digest"] == then["digest"]
        off = 0.0 if same else float(np.abs(_kept(now) - _kept(then)).max(initial=0.0))
        where = "" if then["with"] == now["with"] else then["with"]
        scores = then["accuracy"], now["accuracy"], where, task.metric is not None
        lines.append(TaskCertificate(task.id, task.name, same, off, *scores))
    return Certificate(type(learner).__name__, lines)


@torch.no_grad()
def digest_of(
    learner: Learner, task: Task, outputs: int | None = None, batch_size: int = evaluation.AT_ONCE
) -> dict[str, Any]:
    """The digest of a task's logits on its test data, of the first `outputs` (all by default); JSON can hold it.

    The same bits can only be expected of batches of the same size, so the size is a part of it.
    """
    n = len(task.make("test"))
    data, digest, feed = _DataDigest(n), _RowsDigest(n), evaluation.feeder(learner)
    done, right, kept = 0, 0.0, []  # rows so far, of them right, and a few logits
    with freezing.evaluating(learner):
        for batch in _test_batches(task, batch_size):
            data.add(batch)
            answers = learner(feed(batch.x), task.id_at_test)  # (batch, all outputs), or whatever the network makes
            right += evaluation.total_score(answers, batch.y, task)
            answers = answers.cpu() if outputs is None else answers[:, :outputs].cpu()
            each = max(1, answers[0].numel())
            rows = torch.linspace(0, n - 1, min(max(1, NUMBERS_KEPT // each), n)).long() - done
            kept.append(answers[rows[(rows >= 0) & (rows < len(answers))]].double().numpy().astype("<f4").tobytes())
            digest.add(answers)
            width, done = answers.shape[1] if answers.ndim > 1 else 1, done + len(answers)
    return {
        "digest": digest.hexdigest(),
        "data": data.hexdigest(),
        "samples": n,
        "outputs": width,
        "accuracy": right / n,
        "kept": base64.b64encode(b"".join(kept)).decode(),
        "with": f"torch {torch.__version__}, {platform.machine()}, {learner.device.type}",
        "batch": batch_size,
    }


def check_data(task: Task, then: dict[str, Any]) -> None:
    """ValueError unless the test data of the task is that of which the digest was taken."""
    data = _DataDigest(len(task.make("test")))
    for batch in _test_batches(task, _batch_size(then)):
        data.add(batch)
    _check_same_data(task, data.hexdigest(), then)


def _check_same_data(task: Task, now: str, then: dict[str, Any]) -> None:
    if now != then["data"]:
        raise ValueError(
            f"the test data of task {task.id} ({task.name}) is not that of which the digest was taken "
            f"({then['samples']} samples then, {len(task.make('test'))} now); "
            "make the stream with the same settings and seed"
        )


def _test_batches(task: Task, batch_size: int) -> Iterator[Samples]:
    batches: Iterator[Samples] = task.make("test").batches(batch_size, seed=evaluation.SEED)
    return batches


def _batch_size(then: dict[str, Any]) -> int:
    return int(then.get("batch", evaluation.AT_ONCE))  # older files do not say


class _RowsDigest:
    """The digest of n rows that come batch by batch: that of the whole tensor, wherever rows have one shape."""

    def __init__(self, n: int) -> None:
        self.n, self.sums = n, hashlib.blake2b(digest_size=20)
        self.shape: torch.Size | None = None

    def add(self, rows: Tensor) -> None:
        if self.shape != rows.shape[1:]:  # for the first time, or rows of different lengths
            self.sums.update(f"{rows.dtype} {(self.n, *rows.shape[1:])}".encode())
            self.shape = rows.shape[1:]
        self.sums.update(files.raw_bytes(rows))

    def hexdigest(self) -> str:
        return self.sums.hexdigest()


class _DataDigest:
    """The digest of n samples that come batch by batch."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.of_leaf: dict[str, _RowsDigest] = {}
        self.y: list[Tensor] = []

    def add(self, batch: Samples) -> None:
        for path, leaf in inputs.named(batch.x):
            self.of_leaf.setdefault(path, _RowsDigest(self.n)).add(leaf)
        self.y.append(batch.y)

    def hexdigest(self) -> str:
        sums = self.of_leaf[""].sums if "" in self.of_leaf else hashlib.blake2b(digest_size=20)
        for path in sorted(self.of_leaf.keys() - {""}):
            sums.update(f"{path} {self.of_leaf[path].hexdigest()}".encode())
        of_y = _RowsDigest(self.n)
        of_y.sums = sums
        for y in self.y:
            of_y.add(y)
        return sums.hexdigest()


def _kept(digest: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(digest["kept"]), dtype="<f4").astype(np.float64)
