"""`run(..., checkpoint=folder)`: a run that is killed at any moment goes on where its last finished task ended.

The folder holds one file, `checkpoint.safetensors`: the learner, as `Learner.save` writes it (so `PackNet.load` reads
it), what was measured so far, an optimiser that is kept, and the state of every random generator. It is replaced whole
after each task.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import certificate, files, saving
from .learner import Learner
from .lesson import Lesson, random_states, set_random_states
from .optimizers import Optimizers
from .tasks import Task

FILE = "checkpoint.safetensors"
WITHIN = "within.safetensors"
"""Of the task that is being learned, where `run(checkpoint_every=)` asks for it."""
RANDOM = "run/random/"


@dataclass
class Measured:
    """What a run has measured so far."""

    accuracy: NDArray[np.float64]
    baseline: NDArray[np.float64]
    curves: list[list[float]] = field(default_factory=list)
    within: list[list[list[float]]] = field(default_factory=list)
    seconds: float = 0.0


class Checkpoint:
    """The checkpoint of one run in a folder, which is made if it is not there.

    Args:
        folder: for this run alone.
        identity: what the run is, by the names that a refusal will use; JSON can hold it.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        self.identity = files.jsonable(identity)
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.path = Path(folder) / FILE
        files.check_writable(self.path)
        files.remove_temporaries(folder, FILE)

    def resume(
        self, learner: Learner, tasks: list[Task], measured: Measured, optimizers: Optimizers, order: torch.Generator
    ) -> int:
        """Put everything back as it was when the last finished task ended; how many tasks that were, 0 for none.

        A damaged file is reported by a warning and set aside, and the run begins anew.

        Raises:
            ValueError: a checkpoint of another run, or of other data.
        """
        if not self.path.exists():
            return 0
        try:
            header, tensors = files.read(self.path)
            run = header["run"]
            there, n, numbers = run["identity"], int(run["finished"]), run["numbers"]
        except (ValueError, KeyError, TypeError) as error:
            aside = files.set_aside(self.path)
            warnings.warn(
                f"{error if isinstance(error, ValueError) else f'{str(self.path)!r} is no checkpoint of a run'}; "
                f"it was set aside as {aside.name}, and the run begins anew",
                stacklevel=4,
            )
            return 0
        self._same_run(there)
        stored = saving.Stored.read(self.path, header, tensors, type(learner))
        for task in tasks[:n]:
            certificate.check_data(task, stored.certificate[task.id])
        stored.into(learner)
        learner.train(bool(run["training"]))
        learner.on_resume(tasks[:n])
        measured.accuracy[:] = tensors["run/accuracy"].numpy()
        measured.baseline[:] = tensors["run/baseline"].numpy()
        measured.curves[:], measured.within[:] = numbers["curves"], numbers.get("within", [])
        measured.seconds = numbers["seconds"]
        optimizers.unpack(run.get("optimizer"), tensors)
        states = {name.removeprefix(RANDOM): t for name, t in tensors.items() if name.startswith(RANDOM)}
        set_random_states(states, numbers["random"], [order], learner.device)
        return n

    def save(
        self, learner: Learner, finished: int, measured: Measured, optimizers: Optimizers, order: torch.Generator
    ) -> None:
        """Write the state after so many tasks: to a temporary name, onto the disk, and only then in its place."""
        random, numbers = random_states([order], learner.device)
        states = {f"{RANDOM}{name}": state for name, state in random.items()}
        kept, of_optimizer = optimizers.pack(learner)
        header = {
            **saving.header(learner),
            "run": {
                "identity": self.identity,
                "finished": finished,
                "training": learner.training,
                "numbers": {
                    "curves": measured.curves,
                    "within": measured.within,
                    "seconds": measured.seconds,
                    "random": numbers,
                },
                "optimizer": kept,
            },
        }
        states |= of_optimizer
        states["run/accuracy"] = torch.from_numpy(measured.accuracy)
        states["run/baseline"] = torch.from_numpy(measured.baseline)
        files.write(self.path, header, saving.tensors(learner) | states)

    def lesson(self, learner: Learner, task: Task, order: torch.Generator) -> Lesson:
        """The task to be learned next, from where it was broken off; a damaged file is set aside."""
        path = self.path.with_name(WITHIN)
        try:
            lesson = Lesson(path, learner, [order])
        except ValueError as error:
            aside = files.set_aside(path)
            warnings.warn(f"{error}; it was set aside as {aside.name}, and the task begins anew", stacklevel=4)
            lesson = Lesson(path, learner, [order])
        if lesson.task_id != task.id:  # of a task that is learned by now, or not yet again
            lesson.remove()
        return lesson

    def _same_run(self, there: dict[str, Any]) -> None:
        differ = [name for name in {**self.identity, **there} if self.identity.get(name) != there.get(name)]
        if differ:
            words = [f"{name} is {_short(self.identity.get(name))}, there {_short(there.get(name))}" for name in differ]
            raise ValueError(
                f"the checkpoint {str(self.path)!r} belongs to another run: {'; '.join(words)}. "
                "Name another folder, or remove this one"
            )


def learner_file(path: str | Path) -> Path:
    """The file of a learner: the path itself, or the checkpoint where the path is a folder."""
    return Path(path) / FILE if Path(path).is_dir() else Path(path)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
