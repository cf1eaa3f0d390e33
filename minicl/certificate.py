"""`certify`: has a task been forgotten? Digests of its logits, taken when it ended and again now.

`run` takes the first when a task ends, and the learner keeps them: its files and checkpoints hold them too, so that
anyone who is given a network can check it. Bits are compared, so the second digest must be taken on the same kind of
machine, with the same version of PyTorch; elsewhere rounding differs, and the certificate says how far.
"""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import files
from .learner import Learner
from .tasks import Task, TaskStream

AT_ONCE = 1000
NUMBERS_KEPT = 1000
"""So many logits of a task are kept themselves, to say how far off the others are; 4 KB."""


@dataclass
class Line:
    """What a certificate says of a task.

    Attributes:
        task_id, name: of the task.
        identical: whether every bit of its logits is what it was when the task ended; None where no digest was taken.
        off_by: the largest difference among the logits that were kept; 0.0 where identical, NaN where nothing is known.
        accuracy_then, accuracy_now: on the task's test data, 0 to 1.
        where: what the digest was taken with, where that differs from now; empty otherwise.
    """

    task_id: int
    name: str
    identical: bool | None
    off_by: float = float("nan")
    accuracy_then: float = float("nan")
    accuracy_now: float = float("nan")
    where: str = ""

    def __str__(self) -> str:
        start = f"task {self.task_id} ({self.name}): "
        if self.identical is None:
            return start + "no digest was taken when it ended; minicl.run takes one"
        if self.identical:
            return start + f"identical, accuracy {self.accuracy_now:.1%}"
        text = f"NOT identical, logits off by up to {self.off_by:.3g}, "
        text += f"accuracy {self.accuracy_then:.1%} then, {self.accuracy_now:.1%} now"
        return start + text + (f" (digest taken with {self.where})" if self.where else "")


@dataclass
class Certificate:
    """What `certify` found, a `Line` for each finished task. True where every task is identical."""

    method: str
    lines: list[Line] = field(default_factory=list)

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
    """Compare the logits of every finished task of `stream` with those it had when it ended; prints a line a task.

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
    finished = [task for task in stream if task.id in learner.learned]
    if not finished:
        known = ", ".join(map(str, learner.learned)) or "none"
        raise ValueError(f"no task of this stream has been learned, so nothing can be certified; learned: {known}")
    lines = []
    for task in finished:
        then = learner.certificate.get(task.id)
        if then is None:
            lines.append(Line(task.id, task.name, None))
            continue
        check_data(task, then)
        now = taken(learner, task, then["outputs"])
        same = now["digest"] == then["digest"]
        off = 0.0 if same else float(np.abs(_kept(now) - _kept(then)).max(initial=0.0))
        where = "" if then["with"] == now["with"] else then["with"]
        lines.append(Line(task.id, task.name, same, off, then["accuracy"], now["accuracy"], where))
    return Certificate(type(learner).__name__, lines)


@torch.no_grad()
def taken(learner: Learner, task: Task, outputs: int | None = None) -> dict[str, Any]:
    """The digest of a task's logits on its test data, of the first `outputs` (all by default); JSON can hold it."""
    test = task.make("test")
    task_id = task.id if task.scenario == "task" else None
    training = learner.training
    learner.eval()
    parts = [learner(x.to(learner.device), task_id) for x in test.x.split(AT_ONCE)]
    learner.train(training)
    whole = torch.cat(parts).cpu()
    logits = whole if outputs is None else whole[:, :outputs]
    rows = max(1, NUMBERS_KEPT // logits.shape[1])
    kept = logits[torch.linspace(0, len(logits) - 1, min(rows, len(logits))).long()].double().numpy().astype("<f4")
    return {
        "digest": _digest(logits),
        "data": _digest(test.x, test.y),
        "samples": len(logits),
        "outputs": logits.shape[1],
        "accuracy": float((whole.argmax(1) == test.y).double().mean()),
        "kept": base64.b64encode(kept.tobytes()).decode(),
        "with": f"torch {torch.__version__}, {platform.machine()}, {learner.device.type}",
    }


def check_data(task: Task, then: dict[str, Any]) -> None:
    """ValueError unless the test data of the task is that of which the digest was taken."""
    test = task.make("test")
    if _digest(test.x, test.y) != then["data"]:
        raise ValueError(
            f"the test data of task {task.id} ({task.name}) is not that of which the digest was taken "
            f"({then['samples']} samples then, {len(test)} now); make the stream with the same settings and seed"
        )


def _kept(taken: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(taken["kept"]), dtype="<f4").astype(np.float64)


def _digest(*tensors: Tensor) -> str:
    sums = hashlib.blake2b(digest_size=20)
    for tensor in tensors:
        sums.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sums.update(files.bits(tensor))
    return sums.hexdigest()
