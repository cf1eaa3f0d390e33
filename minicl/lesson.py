"""A checkpoint within a task: a training that is killed in its middle goes on there, bit for bit.

A method's `learn` may call `fit` several times, with code of its own between: PackNet trains, prunes, trains again. So
when a task is begun again, `learn` runs from its beginning, and trainings that had ended are not gone through: the
learner is put where each of them ended, and the code between them does again what it did. In the training that was
broken off, learner, optimiser, schedule and random numbers are put where they were last saved.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import files
from .learner import Fit, Learner
from .optimizers import pack_optimizer, unpack_optimizer
from .tensors import TensorDict


class Lesson:
    """The task that is being learned, as a file: for a loop of your own what `run(checkpoint_every=)` does::

        lesson = minicl.Lesson("task.safetensors", learner)      # goes on from the file, where there is one
        learner.learn(task, lesson.fit(train))
        learner.save("learner.safetensors")
        lesson.remove()                                          # the task is learned

    where ::

        def train(epochs=10, tasks=None):
            optimizer = learner.protect(torch.optim.Adam(learner.parameters()))
            position = lesson.begin(optimizer)                   # what was given to save, or {} at the beginning
            for epoch in range(position.get("epoch", 0), epochs):
                ...                                              # one epoch
                lesson.save(optimizer, epoch=epoch + 1)

    The learner that is given is as it was before the task: loaded from its file, or, before the first task, made as the
    other one was. The states of the random generators of PyTorch, NumPy and Python are saved as well.

    Args:
        path: the file, replaced whole whenever something is saved.
        learner: that learns the task.
        generators: random generators of the loop's own, such as that of a `DataLoader`'s sampler.

    Raises:
        ValueError: a file that is damaged, or something else.
        OSError: the path cannot be written.
    """

    def __init__(self, path: str | Path, learner: Learner, generators: Sequence[torch.Generator] = ()) -> None:
        self.path, self.learner, self.generators = Path(path), learner, list(generators)
        files.check_writable(self.path)
        files.remove_temporaries(self.path.parent, self.path.name)
        self.calls = 0  # of fit, that have ended
        self.ends: list[Any] = []  # the learner, and more, at the end of each of them
        self.more: Callable[[], Any] = dict  # what else belongs to the end of a call, and how it is taken back
        self.take: Callable[[Any], None] = lambda more: None
        self._saved: dict[str, Any] | None = None
        if self.path.exists():
            header, tensors = files.read(self.path)
            if "lesson" not in header:
                raise ValueError(f"{str(self.path)!r} holds no task under way; name another file")
            self._saved = files.unpacked(header["lesson"], tensors)

    @property
    def task_id(self) -> int | None:
        """The task in the file; None where there is no file."""
        return None if self._saved is None else self._saved["task"]

    def fit(self, train: Callable[..., None]) -> Fit:
        """What `learner.learn` is given: `train`, which is not called again for trainings that had ended."""

        def resumed(*args: Any, **kwargs: Any) -> None:
            self._check()
            if self._saved is not None and self.calls < len(self._saved["ends"]):
                end = self._saved["ends"][self.calls]
                self.ends.append(end)
                self.calls += 1
                self._put_back(end["state"])
                self.take(end["more"])
                return
            train(*args, **kwargs)
            self._saved = None
            self.ends.append({"state": self._state(), "more": self.more()})
            self.calls += 1
            self._write(None)

        return resumed

    def begin(self, optimizer: torch.optim.Optimizer | None = None, schedule: Any = None) -> dict[str, Any]:
        """Called when a training begins, its optimiser and schedule made: puts them where they were, and the learner.

        Returns:
            The position that was given to `save`; nothing in it where the training is at its beginning.
        """
        saved = self._saved
        if saved is None or saved["now"] is None:
            return {}
        self._saved = None
        now = saved["now"]
        self._put_back(now["state"])
        if optimizer is not None and now["optimizer"] is not None:
            unpack_optimizer(optimizer, self.learner, *now["optimizer"])
            optimizer._opt_called = True  # type: ignore[attr-defined]  # or a schedule would think that none was taken
        if schedule is not None and now["schedule"] is not None:
            schedule.load_state_dict(now["schedule"])
        return dict(now["position"])

    def save(self, optimizer: torch.optim.Optimizer | None = None, schedule: Any = None, /, **position: Any) -> None:
        """Write where the training is, after a step.

        Args:
            position: whatever the loop needs to go on from here: numbers, texts, tensors, and groups of them.
        """
        self._check()
        self._write(
            {
                "state": self._state(),
                "optimizer": None if optimizer is None else pack_optimizer(optimizer, self.learner),
                "schedule": None if schedule is None else schedule.state_dict(),
                "position": position,
            }
        )

    def remove(self) -> None:
        """The task is learned, and the learner saved: the file is of no use any more."""
        self.path.unlink(missing_ok=True)
        self._saved, self.ends, self.calls = None, [], 0

    def _check(self) -> None:
        current = self.learner._current
        if current is None:
            raise ValueError("no task is being learned; call learner.learn(task, lesson.fit(train))")
        if self._saved is not None and self._saved["task"] != current:
            raise ValueError(
                f"{str(self.path)!r} holds task {self._saved['task']} under way, and task {current} is being learned; "
                "remove the file, or learn that task"
            )

    def _write(self, now: dict[str, Any] | None) -> None:
        lesson = {"task": self.learner._current, "ends": self.ends, "now": now}
        value, tensors = files.packed(lesson, "lesson", "the position of a loop")
        files.write(self.path, {"lesson": value}, tensors)

    def _state(self) -> dict[str, Any]:
        """Everything of the learner that training changes, and the random generators."""
        learner = self.learner
        return {
            "tensors": {name: tensor.detach().cpu().clone() for name, tensor in learner.state_dict().items()},
            "training": learner.training,
            "attributes": {name: operator.attrgetter(name)(learner) for name in learner.lesson_attributes},
            "random": random_states(self.generators, learner.device),
        }

    def _put_back(self, state: dict[str, Any]) -> None:
        learner, tensors = self.learner, state["tensors"]
        learner.train(state["training"])  # first: some methods put back what they hold
        make_room(learner, tensors)
        learner.load_state_dict(tensors)
        for name, value in state["attributes"].items():
            *path, last = name.split(".")
            setattr(reduce(getattr, path, learner), last, _on(learner.device, value))
        states, numbers = state["random"]
        set_random_states(states, numbers, self.generators, learner.device)


def make_room(learner: Learner, tensors: dict[str, Tensor]) -> None:
    """Buffers as large as these, for `load_state_dict` to fill: a memory grows while a task is learned."""
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        try:
            module = learner.get_submodule(path)
        except AttributeError:  # hidden, where finished tasks are
            continue
        there = module._buffers.get(last)
        if (there is not None and there.shape != tensor.shape) or (there is None and isinstance(module, TensorDict)):
            module.register_buffer(last, tensor.new_empty(tensor.shape, device=learner.device))


def _on(device: torch.device, value: Any) -> Any:
    """A value of a file, its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on(device, part) for key, part in value.items()}
    return type(value)(_on(device, part) for part in value) if isinstance(value, (list, tuple)) else value


# ---- random generators -----------------------------------------------------------------------------------------------


def random_states(
    generators: Sequence[torch.Generator], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of all random generators that a run, or a method of anyone's own, may draw from."""
    _, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(numbers, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        **{f"own/{i}": generator.get_state() for i, generator in enumerate(generators)},
    }
    if device.type == "cuda":
        for i in range(torch.cuda.device_count()):
            states[f"cuda/{i}"] = torch.cuda.get_rng_state(i)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states, {"python": gauss, "numpy": [str(kind), int(position), int(has_gauss), float(cached)]}


def set_random_states(
    states: dict[str, Tensor],
    numbers: dict[str, Any],
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> None:
    """The inverse of `random_states`."""
    torch.set_rng_state(states["torch"])
    for i, generator in enumerate(generators):
        generator.set_state(states[f"own/{i}"])
    random.setstate((3, tuple(states["python"].tolist()), numbers["python"]))
    kind, position, has_gauss, cached = numbers["numpy"]
    np.random.set_state((kind, states["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda":
        for i in range(torch.cuda.device_count()):
            torch.cuda.set_rng_state(states[f"cuda/{i}"], i)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
