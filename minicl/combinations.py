"""What a sweep runs: methods, streams and seeds as people name them, combined, each with a key that identifies it."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from . import files, networks, results
from .learner import COMMON, Learner, accepted_hyperparameters
from .optimizers import describe
from .streams import STREAMS, by_name
from .tasks import PARTS, TaskStream, check_scenario, check_seed
from .training import check_device

LATER = ("held", "collate", "classes", "first", "class_order")
"""Arguments of streams that came when there were results already: as they were, they are not in a job's identity."""


@dataclass(frozen=True)
class Job:
    """One combination, ready to be sent to a worker.

    Attributes:
        key: the name of its result: a digest of `identity`.
        identity: everything that determines the result, as JSON can hold it.
        label: what people call it.
        kind: method and stream: seeds of the same kind take equally long.
        method: makes the learner from a network.
        stream: makes the stream from a seed.
        network: makes the network from the shape of an input.
        settings: of `run`.
    """

    key: str
    identity: dict[str, Any]
    label: str
    kind: tuple[str, str]
    method: Callable[..., Learner]
    stream: Callable[[int], TaskStream]
    network: Callable[[tuple[int, ...]], nn.Module]
    seed: int
    settings: dict[str, Any]


def combine(
    methods: Any, streams: Any, seeds: Sequence[int], scenarios: list[str], network: Any, settings: dict[str, Any]
) -> Iterator[Job]:
    """A job for each combination of what `sweep` was given; see there.

    Raises:
        ValueError: an unknown name, settings out of range.
        TypeError: something that is no method, stream or network.
    """
    for seed in seeds:
        check_seed(seed)
    for name in scenarios:
        check_scenario(name)
    check_device(settings["device"])
    if isinstance(network, str):
        networks.layers(network)
    elif network is not None and not callable(network):
        raise TypeError(f"network is a {type(network).__name__}; allowed: a name such as 'mlp:256,256', or a function")
    described = {
        **settings,
        "optimizer": _named("optimizer", settings["optimizer"]),
        "schedule": None if settings["schedule"] is None else _named("schedule", settings["schedule"]),
    }
    made = [_method(item) for item in _several(methods, (str, type, tuple, partial))]
    given = [s for item in _several(streams, (str, Mapping, TaskStream, partial)) for s in _streams(item, scenarios)]
    without = {name: value for name, value in settings.items() if name != "infer"}
    for cls, hyperparameters in made:
        own = settings if cls.needs_task_id else without
        for what, make, settings_of_stream in given:
            for seed in seeds:
                identity = {
                    "minicl": results.version(),
                    "method": _class(cls),
                    "hyperparameters": {**_defaults(cls), **files.jsonable(hyperparameters)},
                    "stream": settings_of_stream(seed),
                    "network": _network_identity(network, seed),
                    "seed": seed,
                    "settings": {name: described[name] for name in own},
                }
                text = json.dumps(identity, sort_keys=True, default=_unnameable)
                key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
                changed = ", ".join(f"{k}={v!r}" for k, v in hyperparameters.items())
                name = f"{cls.__name__}({changed})" if changed else cls.__name__
                yield Job(
                    key,
                    identity,
                    f"{name} on {what}, seed {seed}",
                    (name, what),
                    partial(cls, **hyperparameters),
                    make,
                    partial(_network, network),
                    seed,
                    own,
                )


def _several(items: Any, single: tuple[type, ...]) -> list[Any]:
    return [items] if isinstance(items, single) or callable(items) else list(items)


def _method(item: Any) -> tuple[type[Learner], dict[str, Any]]:
    from . import METHODS

    given: Mapping[str, Any] = {}
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], Mapping):
        item, given = item
    elif isinstance(item, partial):
        if item.args:
            raise TypeError(f"{describe(item)} has arguments without a name; allowed: hyperparameters by name")
        item, given = item.func, item.keywords
    if isinstance(item, str):
        if item not in METHODS:
            raise ValueError(f"unknown method {item!r}; allowed: {', '.join(METHODS)}")
        item = METHODS[item]
    if not (isinstance(item, type) and issubclass(item, Learner)):
        raise TypeError(
            f"a method is {item!r}; allowed: a name such as 'hat', a Learner class, a pair ('hat', {{'c': 1.0}}), "
            "or partial(minicl.HAT, c=1.0)"
        )
    accepted = accepted_hyperparameters(item)
    for name in given:
        if name not in accepted:
            raise ValueError(
                f"{item.__name__} has no hyperparameter {name!r}; allowed: {', '.join(accepted) or 'none'}"
            )
    return item, dict(given)


def _defaults(cls: type[Learner]) -> dict[str, Any]:
    accepted = accepted_hyperparameters(cls)
    return {
        name: files.jsonable(p.default)
        for name, p in accepted.items()
        if p.default is not p.empty and name not in COMMON
    }


def _class(cls: type[Learner]) -> str | list[str]:
    """A method's name; for one of anyone's own also a digest of its code, which no version number covers."""
    if cls.__module__.startswith(f"{__package__}."):
        return cls.__name__
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # typed into a shell
        source = ""
    return [cls.__qualname__, hashlib.blake2b(source.encode(), digest_size=16).hexdigest()]


Settings = Callable[[int], Any]


def _streams(item: Any, scenarios: list[str]) -> Iterator[tuple[str, Callable[[int], TaskStream], Settings]]:
    """What a stream is called, a function from a seed to it, and one from a seed to what identifies it."""
    if isinstance(item, str):
        for scenario in scenarios:
            yield from _streams(by_name(item, scenario=scenario), scenarios)
    elif isinstance(item, Mapping):
        settings = dict(item)
        kind = settings.pop("kind", None)
        if kind not in STREAMS:
            raise ValueError(f"a stream has the kind {kind!r}; allowed: {', '.join(STREAMS)}")
        yield from _streams(partial(STREAMS[kind], **settings), scenarios)
    elif isinstance(item, TaskStream):
        digest = _data(item)
        yield f"{item.name} ({item.scenario})", lambda seed: item, lambda seed: digest
    elif isinstance(item, partial) and item.func in STREAMS.values():
        kind = next(name for name, make in STREAMS.items() if make is item.func)
        bound = inspect.signature(item.func).bind_partial(*item.args, **item.keywords)
        fixed = "seed" in bound.arguments
        bound.apply_defaults()
        settings = dict(bound.arguments)
        if isinstance(settings["dataset"], str):
            by_name(f"{kind}-{settings['dataset']}")
            check_scenario(settings["scenario"])
            defaults = {name: p.default for name, p in inspect.signature(item.func).parameters.items()}
            kept = {
                name: value
                for name, value in settings.items()
                if name not in ("root", "download") and not (name in LATER and value == defaults[name])
            }
            n_tasks = settings["n_tasks"] if settings.get("classes") is None else len(settings["classes"])
            name = f"{kind}-{settings['dataset']} ({settings['scenario']}, {n_tasks} tasks)"
            make = partial(_with_seed, item.func, settings, fixed)
            yield name, make, lambda seed: {"kind": kind, **kept, "seed": kept["seed"] if fixed else seed}
        else:
            yield from _streams(partial(_with_seed, item.func, settings, fixed), scenarios)
    elif callable(item):
        first = item(0)
        if not isinstance(first, TaskStream):
            raise TypeError(f"a function of a stream returned a {type(first).__name__}; allowed: a minicl.TaskStream")
        yield f"{first.name} ({first.scenario})", item, lambda seed: _data(item(seed))
    else:
        raise TypeError(
            f"a stream is {item!r}; allowed: a name such as 'split-digits', partial(minicl.split, 'digits'), "
            "a function from a seed to a TaskStream, or a TaskStream"
        )


def _with_seed(make: Callable[..., TaskStream], settings: dict[str, Any], fixed: bool, seed: int) -> TaskStream:
    return make(**settings) if fixed else make(**{**settings, "seed": seed})


def _data(stream: TaskStream) -> dict[str, Any]:
    """What identifies a stream that no settings describe: its data."""
    sums = hashlib.blake2b(digest_size=16)
    for task in stream:
        sums.update(f"{task.id} {task.name} {task.n_outputs} {task.scenario}".encode())
        for part in PARTS:
            samples = task.make(part)
            sums.update(files.raw_bytes(samples.x))
            sums.update(files.raw_bytes(samples.y))
    return {"name": stream.name, "data": sums.hexdigest()}


def _named(what: str, factory: Any) -> str:
    text = describe(factory) if callable(factory) else repr(factory)
    if not callable(factory) or "<" in text:
        raise ValueError(
            f"{what} is {text}, which does not say what it does; "
            "allowed: a class, a function of a module, or a partial of one, such as partial(torch.optim.SGD, lr=0.1)"
        )
    return text


def _network(network: str | Callable[[], nn.Module] | None, shape: tuple[int, ...]) -> nn.Module:
    return network() if callable(network) else networks.by_name(network, shape)


def _network_identity(network: Any, seed: int) -> Any:
    if not callable(network):
        return network or "default"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = network()
    if not isinstance(module, nn.Module):
        raise TypeError(f"the function of a network returned a {type(module).__name__}; allowed: an nn.Module")
    return [str(module), "untouched" if networks.is_initial(module) else networks._digest(module)]


def _unnameable(value: Any) -> Any:
    raise TypeError(f"{value!r} has no name that tells it from others; settings must be numbers, texts, lists of those")
