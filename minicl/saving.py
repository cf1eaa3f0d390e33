"""Learners as files: safetensors with a JSON header, checked in full before anything of them is believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from . import files, inputs
from .freezing import all_modules, from_a_file
from .networks import is_initial
from .tasks import check_scenario, check_task_id
from .tensors import TensorDict

if TYPE_CHECKING:
    from .learner import Learner
    from .records import TaskRecord

AnyLearner = TypeVar("AnyLearner", bound="Learner")


def header(learner: Learner) -> dict[str, Any]:
    """What a file says of a learner, beside its tensors; JSON can hold it."""
    return {
        "method": type(learner).__name__,
        "hyperparameters": files.jsonable(learner.hyperparameters),
        "scenario": learner.scenario,
        "input_shape": learner.input_shape,
        "tasks": [asdict(record) for record in learner.tasks.values()],
        "attributes": {name: getattr(learner, name) for name in learner.saved_attributes},
        "certificate": learner.certificate,
    }


def tensors(learner: Learner) -> dict[str, Tensor]:
    """The tensors of a file: what is used in several places comes once, and then as the method packs it."""
    twice = aliases(learner)
    return learner.pack({name: tensor for name, tensor in learner.state_dict().items() if name not in twice})


def load(method: type[AnyLearner], path: str | Path, backbone: nn.Module, **hyperparameters: Any) -> AnyLearner:
    """`Learner.load`."""
    header, found = files.read(path)
    if header.get("method") != method.__name__:
        raise ValueError(
            f"{path} holds a {header.get('method')}, not a {method.__name__}; "
            f"load it with minicl.{header.get('method')}.load"
        )
    stored = Stored.read(path, header, found, method)
    given = {**stored.hyperparameters, **hyperparameters}
    missing = [name for name, value in given.items() if files.is_placeholder(value)]
    if missing:
        raise ValueError(
            f"{path} could not hold {', '.join(missing)} ({given[missing[0]]['not_saved']}); "
            f"give it to load(path, backbone, {missing[0]}=...)"
        )
    with torch.random.fork_rng(devices=[]):  # the first weights of what grows are drawn, and overwritten
        try:
            learner = method(backbone, **given)
        except TypeError as error:
            raise ValueError(f"{path} has hyperparameters that {method.__name__} does not take: {error}") from error
        stored.into(learner)
    return learner


@dataclass
class Stored:
    """What a file holds of a learner, checked."""

    path: str | Path
    hyperparameters: dict[str, Any]
    input_shape: Any
    records: list[TaskRecord]
    attributes: dict[str, Any]
    certificate: dict[int, dict[str, Any]]
    tensors: dict[str, Tensor]

    @classmethod
    def read(
        cls, path: str | Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor], method: type[Learner]
    ) -> Stored:
        """Take a header and tensors apart, as `files.read` returns them.

        Raises:
            ValueError: a header that is incomplete or damaged.
        """
        # A checkpoint of `run` is a learner's file, and holds a few things more.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("run/")}
        try:
            shape, attributes = header["input_shape"], dict(header["attributes"])
            return cls(
                path,
                dict(header["hyperparameters"]),
                None if shape is None else inputs.shapes_from_json(shape),
                _check_records(header["tasks"], sum(tensor.numel() for tensor in tensors.values())),
                {
                    name: attributes[name] if name in attributes or not hasattr(method, name) else getattr(method, name)
                    for name in method.saved_attributes
                },
                {int(t): dict(taken) for t, taken in header["certificate"].items()},
                tensors,
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} has a header that is incomplete or damaged: {error!r}") from error

    def into(self, learner: Learner) -> None:
        """Give the learner everything; what it has not grown yet grows."""
        learner.input_shape = self.input_shape
        for name, value in self.attributes.items():
            setattr(learner, name, value)
        for record in self.records:
            if record.id not in learner.tasks:
                learner.grow(record)
            learner._register(record)
        learner.certificate = self.certificate
        state = learner.unpack(self.tensors)
        _make_room(learner, state)
        state |= {name: state[first] for name, first in aliases(learner).items() if first in state}
        check_state(self.path, state, learner.state_dict())
        with from_a_file():
            learner.load_state_dict(state)
        for task_id in learner.learned:
            learner._hide_belongings(task_id)
        learner.on_load()


def _make_room(learner: Learner, state: Mapping[str, Tensor]) -> None:
    for path, module in all_modules(learner):
        if isinstance(module, TensorDict):
            module.make_room(dict(starting_with(f"{path}.", state)), learner.device)


def starting_with(prefix: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors whose names start with the prefix, by the rest of their names."""
    return ((name.removeprefix(prefix), tensor) for name, tensor in tensors.items() if name.startswith(prefix))


def aliases(module: nn.Module) -> dict[str, str]:
    """Further names of tensors that a module uses in several places, and their first."""
    first: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first[id(tensor)] for name, tensor in named if first.setdefault(id(tensor), name) != name}


def put_template(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The state with the given network of which later tasks start: it may be pretrained, and `load` is given another.

    First weights of `mlp` and `cnn` are left out: those are drawn anew for each task.
    """
    given = {} if is_initial(network) else network.state_dict()
    return state | {f"template.{name}": tensor for name, tensor in given.items()}


def take_template(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The inverse of `put_template`, which fills the network.

    Raises:
        ValueError: a network of another shape.
    """
    given = dict(starting_with("template.", tensors))
    if given:
        check_state("the file's copy of the given network", given, network.state_dict())
        network.load_state_dict(given)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("template.")}


def in_a_row(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with all tensors of a prefix as one: in a file each name takes a hundred bytes of its own."""
    row = [tensor.flatten() for _, tensor in starting_with(f"{prefix}.", state)]
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(f"{prefix}.")}
    return {**rest, prefix: torch.cat(row)} if row else rest


def out_of_a_row(prefix: str, state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `in_a_row`, with names and shapes as in `like`; the state as it is where they do not fit."""
    state, places = dict(state), {f"{prefix}.{name}": tensor for name, tensor in like.items()}
    sizes = [tensor.numel() for tensor in places.values()]
    if prefix in state and state[prefix].numel() == sum(sizes):
        parts = zip(places.items(), state.pop(prefix).split(sizes), strict=True)
        state.update({name: part.view_as(tensor) for (name, tensor), part in parts})
    return state


def _check_records(records: Any, n_stored: int) -> list[TaskRecord]:
    """The task records of a file's header, refused where no learner could have written them."""
    from .records import TaskRecord

    tasks = [TaskRecord(**saved) for saved in records]
    for task in tasks:
        check_task_id(task.id)
        check_scenario(task.scenario)
        numbers = (1 if task.n_outputs is None else task.n_outputs, task.n_features)
        named = isinstance(task.classes, list) and all(type(name) in (int, str) for name in task.classes)
        if not all(type(n) is int and n >= 1 for n in numbers) or not isinstance(task.notes, dict) or not named:
            raise ValueError(f"task {task.id} has a record that is damaged: {task}")
        if (task.n_outputs or 0) * task.n_features > n_stored:  # before memory is asked for
            raise ValueError(
                f"task {task.id} has a head of {task.n_features} x {task.n_outputs}, which the file does not hold"
            )
    if len({task.id for task in tasks}) < len(tasks) or len({task.scenario for task in tasks}) > 1:
        raise ValueError("its tasks have the same id, or different scenarios")
    return tasks


def check_state(path: str | Path, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """ValueError where tensors of a file are not those that are expected, by name, shape and type."""
    for name in sorted(given.keys() ^ expected.keys()):
        where = "the file but not in the network" if name in given else "the network but not in the file"
        raise ValueError(f"{path} does not fit this backbone: {name} is in {where}")
    for name, tensor in expected.items():
        if given[name].shape != tensor.shape:
            raise ValueError(
                f"{path} does not fit this backbone: {name} has shape {tuple(given[name].shape)} in the file "
                f"and {tuple(tensor.shape)} in the network"
            )
        if given[name].dtype != tensor.dtype:
            raise ValueError(
                f"{path} does not fit this backbone: {name} is {given[name].dtype} in the file "
                f"and {tensor.dtype} in the network; give it a backbone.to({given[name].dtype})"
            )
