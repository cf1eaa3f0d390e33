"""The optimiser of a run: a new one for every call of `fit`, or one that is kept; and what files hold of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import files
from .learner import Learner
from .protection import torch_optimizer

Make = Callable[..., torch.optim.Optimizer]

SGD = partial(torch.optim.SGD, lr=0.1)


class Optimizers:
    """What gives each call of `fit` its optimiser.

    Args:
        make: makes one from a list of parameters; where its first argument is called `named_parameters`, from a list of
            pairs (name, parameter), so that it can put them into groups: heads faster than the backbone, say.
        fresh: make a new one every time. Otherwise the first is kept: what it knows of each parameter stays, parameters
            that have come since are added to it (to the group that `make` puts them into, or as a new one), and those
            that the learner has no longer are dropped.
    """

    def __init__(self, make: Make, fresh: bool = True) -> None:
        self.make, self.fresh = make, fresh
        self._kept: torch.optim.Optimizer | None = None
        self.initial: list[dict[str, Any]] = []  # settings of each group, before any schedule changed them
        self._saved: tuple[Any, dict[str, Tensor]] | None = None

    def begin(self, learner: Learner) -> torch.optim.Optimizer:
        """The optimiser, protected, of all that can be trained now."""
        trainable = [(name, p) for name, p in learner.named_parameters() if p.requires_grad]
        if self.fresh or self._kept is None:
            optimizer = learner.protect(made_by(self.make, trainable))
            if self.fresh:
                return optimizer
            self._kept = optimizer
            inner = torch_optimizer(optimizer)
            inner.defaults = _copied(inner.defaults)
            self.initial = [_settings(group) for group in inner.param_groups]
        if self._saved is not None:
            self._put_back(learner)
        self._drop_vanished(learner)
        inner = torch_optimizer(self._kept)
        for group, initial in zip(inner.param_groups, self.initial, strict=True):
            parameters = group["params"]
            group.clear()
            group.update(_copied(initial), params=parameters)
        known = {id(p) for group in inner.param_groups for p in group["params"]}
        new = [(name, p) for name, p in trainable if id(p) not in known]
        if new and wants_names(self.make):
            self._join_groups(inner, torch_optimizer(made_by(self.make, new)))
        elif new:
            inner.add_param_group({"params": [p for _, p in new]})
            # A learning rate that is a tensor is one for all groups, until it is copied: a schedule writes into it.
            inner.param_groups[-1].update(_settings(inner.param_groups[-1]))
            self.initial.append(_settings(inner.param_groups[-1]))
        return self._kept

    def _join_groups(self, inner: torch.optim.Optimizer, made: torch.optim.Optimizer) -> None:
        """Add what `made` has to the groups of the same settings, or as groups of its own."""
        for group in made.param_groups:
            settings = _settings(group)
            same = [i for i, initial in enumerate(self.initial) if _equal(initial, settings)]
            if same:
                inner.param_groups[same[0]]["params"] += group["params"]
            elif group["params"]:
                inner.add_param_group({**settings, "params": group["params"]})
                self.initial.append(_settings(inner.param_groups[-1]))

    def _drop_vanished(self, learner: Learner) -> None:
        """Leave out parameters that the learner has no longer: heads of finished tasks, for example."""
        assert self._kept is not None
        inner, there = torch_optimizer(self._kept), {id(p) for p in learner.parameters()}
        for group in inner.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in there:
                    inner.state.pop(parameter, None)
            group["params"] = [p for p in group["params"] if id(p) in there]
        left = [i for i, group in enumerate(inner.param_groups) if group["params"]]
        inner.param_groups[:] = [inner.param_groups[i] for i in left]
        self.initial = [self.initial[i] for i in left]

    @property
    def idle(self) -> bool:
        """Whether no optimiser is kept yet: what a file holds can still be gone on with."""
        return not self.fresh and self._kept is None

    # ---- files -----------------------------------------------------------------------------------------------

    def pack(self, learner: Learner) -> tuple[Any, dict[str, Tensor]]:
        """What is kept between two tasks, as JSON and tensors: parameters by their names in the learner.

        Raises:
            ValueError: a state that is made of other things than numbers, texts and tensors.
        """
        if self._kept is None:
            return (None, {}) if self._saved is None else self._saved
        self._drop_vanished(learner)
        return pack_optimizer(self._kept, learner, self.initial)

    def unpack(self, value: Any, tensors: dict[str, Tensor]) -> None:
        """Go on, in the next `begin`, with what `pack` gave."""
        self._saved = None if value is None else (value, tensors)

    def _put_back(self, learner: Learner) -> None:
        assert self._kept is not None
        assert self._saved is not None
        self.initial = unpack_optimizer(self._kept, learner, *self._saved)
        self._saved = None


def pack_optimizer(
    optimizer: torch.optim.Optimizer, learner: nn.Module, initial: list[dict[str, Any]] | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """An optimiser's groups and state as JSON and tensors; see `Optimizers.pack`."""
    inner = torch_optimizer(optimizer)
    names = {id(p): name for name, p in learner.named_parameters()}
    groups = [
        {
            "params": [names[id(p)] for p in group["params"]],
            "settings": _settings(group),
            "initial": _settings(group) if initial is None else initial[i],
        }
        for i, group in enumerate(inner.param_groups)
    ]
    states: dict[str, Any] = {}
    for group in inner.param_groups:
        for p in group["params"]:
            if p in inner.state:
                states[names[id(p)]] = inner.state[p]
    return files.packed({"groups": groups, "state": states}, "run/optimizer", f"the state of {type(inner).__name__}")


@torch.no_grad()
def unpack_optimizer(
    optimizer: torch.optim.Optimizer, learner: nn.Module, value: Any, tensors: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """The inverse of `pack_optimizer`, into an optimiser of the same kind; returns the groups' initial settings."""
    inner, named = torch_optimizer(optimizer), dict(learner.named_parameters())
    given = files.unpacked(value, tensors)
    inner.param_groups.clear()
    inner.state.clear()
    for group in given["groups"]:
        inner.add_param_group({**group["settings"], "params": [named[name] for name in group["params"]]})
    for name, state in given["state"].items():
        # As PyTorch's own load_state_dict: counts of steps stay on the CPU, unless the optimiser wants them elsewhere.
        parameter = named[name]
        on_device = any(g.get("capturable") or g.get("fused") for g in inner.param_groups)
        inner.state[parameter] = {
            key: _moved(item, parameter.device if on_device or key != "step" else None) for key, item in state.items()
        }
    return [group["initial"] for group in given["groups"]]


def _moved(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if device is None else value.to(device, copy=True)
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device) for item in value)
    return {key: _moved(item, device) for key, item in value.items()} if isinstance(value, dict) else value


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return _copied({name: value for name, value in group.items() if name != "params"})


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(bool(a[name] == b[name]) for name in a)


def made_by(make: Make, named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimiser that a factory makes from these parameters, with or without their names."""
    if not wants_names(make):
        return make([p for _, p in named])
    optimizer = make(named)
    for group in torch_optimizer(optimizer).param_groups:
        group.pop("param_names", None)  # PyTorch would want them of every parameter that comes later, too
    return optimizer


def wants_names(make: Make) -> bool:
    """Whether a factory asks for pairs (name, parameter): its first argument is called `named_parameters`."""
    try:
        return next(iter(inspect.signature(make).parameters), None) == "named_parameters"
    except (TypeError, ValueError):  # something in C
        return False


def _copied(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, their tensors with memory of their own."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in settings.items()}


def check_keepable(optimizer: torch.optim.Optimizer) -> None:
    """ValueError where an optimiser cannot be kept for parameters that come later."""
    if isinstance(torch_optimizer(optimizer), torch.optim.LBFGS):
        raise ValueError(
            f"{type(optimizer).__name__} takes no parameters that come later, so it cannot be kept "
            "(fresh_optimizer=False); make a new one for every task"
        )


def check_packable(optimizer: torch.optim.Optimizer) -> None:
    """ValueError where an optimiser's state is not all in `state`, so that no file can be sure to hold it."""
    inner = torch_optimizer(optimizer)
    if inner is not optimizer or type(inner).state_dict is not torch.optim.Optimizer.state_dict:
        raise ValueError(
            f"{type(optimizer).__name__} keeps a state of its own, of which a checkpoint cannot know; "
            "allowed with checkpoint=: optimisers that keep everything in `state`, as those of torch.optim do"
        )


def describe(factory: Any) -> str:
    """A factory in words that fit into a file: partial(SGD, lr=0.1) -> "SGD(lr=0.1)"."""
    if isinstance(factory, partial):
        arguments = [*map(repr, factory.args), *(f"{k}={v!r}" for k, v in factory.keywords.items())]
        return f"{getattr(factory.func, '__name__', factory.func)}({', '.join(arguments)})"
    if isinstance(factory, nn.Module):  # such as a transform of torchvision: all of it
        return " ".join(repr(factory).split())
    return str(getattr(factory, "__qualname__", None) or type(factory).__name__)
