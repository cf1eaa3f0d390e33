"""`run(..., checkpoint=folder)`: a run that is killed at any moment goes on where its last finished task ended.

The folder holds one file, `checkpoint.safetensors`: the learner, as `Learner.save` writes it (so `PackNet.load` reads
it), what was measured so far, and the state of every random generator. It is replaced whole after each task.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import certificate, files
from .learner import Learner, _Stored
from .tasks import Task

FILE = "checkpoint.safetensors"


@dataclass
class Measured:
    """What a run has measured so far."""

    accuracy: NDArray[np.float64]
    baseline: NDArray[np.float64]
    curves: list[list[float]]
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
        files.sweep_up(folder, FILE)

    def resume(self, learner: Learner, tasks: list[Task], measured: Measured, order: torch.Generator) -> int:
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
        stored = _Stored.read(self.path, header, tensors, type(learner))
        for task in tasks[:n]:
            certificate.check_data(task, stored.certificate[task.id])
        stored.into(learner)
        learner.train(bool(run["training"]))
        learner.revisit(tasks[:n])
        measured.accuracy[:] = tensors["run/accuracy"].numpy()
        measured.baseline[:] = tensors["run/baseline"].numpy()
        measured.curves[:] = numbers["curves"]
        measured.seconds = numbers["seconds"]
        _set_random_states(tensors, numbers["random"], order, learner.device)
        return n

    def save(self, learner: Learner, finished: int, measured: Measured, order: torch.Generator) -> None:
        """Write the state after so many tasks: to a temporary name, onto the disk, and only then in its place."""
        states, numbers = _random_states(order, learner.device)
        header = {
            **learner.header(),
            "run": {
                "identity": self.identity,
                "finished": finished,
                "training": learner.training,
                "numbers": {"curves": measured.curves, "seconds": measured.seconds, "random": numbers},
            },
        }
        states["run/accuracy"] = torch.from_numpy(measured.accuracy)
        states["run/baseline"] = torch.from_numpy(measured.baseline)
        files.write(self.path, header, learner.pack(dict(learner.state_dict())) | states)

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


def _random_states(order: torch.Generator, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of all random generators that a run, or a method of anyone's own, may draw from."""
    _, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "run/random/torch": torch.get_rng_state(),
        "run/random/order": order.get_state(),
        "run/random/python": torch.tensor(numbers, dtype=torch.int64),
        "run/random/numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
    }
    if device.type == "cuda":
        for i in range(torch.cuda.device_count()):
            states[f"run/random/cuda/{i}"] = torch.cuda.get_rng_state(i)
    elif device.type == "mps":
        states["run/random/mps"] = torch.mps.get_rng_state()
    return states, {"python": gauss, "numpy": [str(kind), int(position), int(has_gauss), float(cached)]}


def _set_random_states(
    states: dict[str, Tensor], numbers: dict[str, Any], order: torch.Generator, device: torch.device
) -> None:
    torch.set_rng_state(states["run/random/torch"])
    order.set_state(states["run/random/order"])
    random.setstate((3, tuple(states["run/random/python"].tolist()), numbers["python"]))
    kind, position, has_gauss, cached = numbers["numpy"]
    np.random.set_state((kind, states["run/random/numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda":
        for i in range(torch.cuda.device_count()):
            torch.cuda.set_rng_state(states[f"run/random/cuda/{i}"], i)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["run/random/mps"])
