"""The table WRITERS: other people's tools that write over weights, running statistics and modes of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import swa_utils

import minicl

from .loops import SAM, SGD, Lookahead, ScheduleFree, known

Moment = Literal["step", "lesson", "between"]

NORMS = nn.modules.batchnorm._NormBase


class Scene:
    """What a tool finds: the learner, the tasks, and what it has kept from the last time that it was called."""

    def __init__(self, learner: minicl.Learner, tasks: list[minicl.Task]) -> None:
        self.learner, self.tasks = learner, tasks
        self.kept: dict[str, Any] = {}


@dataclass(frozen=True)
class Writer:
    """A row of WRITERS: something else that writes weights.

    Attributes:
        says: what it does, in a few words.
        write: does it.
        when: the moments at which it does: after each "step", at the end of each "lesson" (before `fit` returns), and
            "between" tasks.
        settings: of `Loop`, where it comes with an optimiser of its own.
        refusal: what a method says that cannot bear it; None where every method can.
        warning: what may be warned of.
    """

    says: str
    write: Callable[[Scene], None] = lambda scene: None
    when: tuple[Moment, ...] = ("between",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    warning: str | None = None


def average_named_parameters(scene: Scene) -> None:
    """A moving average of named parameters, written back at once."""
    for name, p in scene.learner.named_parameters():
        average = scene.kept.get(name)
        if average is None or average.shape != p.shape:
            average = scene.kept[name] = p.detach().clone()
        average.lerp_(p.detach(), 0.3)
        p.data.copy_(average)


def average_state_dict(scene: Scene) -> None:
    """A moving average of the whole state dict, loaded."""
    state = scene.learner.state_dict()
    for name, value in state.items():
        average = scene.kept.get(name)
        if value.is_floating_point() and average is not None and average.shape == value.shape:
            state[name] = average.mul(0.7).add(value, alpha=0.3)
        scene.kept[name] = state[name].detach().clone()
    scene.learner.load_state_dict(state)


def write_into_state_dict(scene: Scene) -> None:
    """What `state_dict()` hands out is written to in place."""
    for value in scene.learner.state_dict().values():
        if value.is_floating_point():
            value.mul_(1 + 1e-6)


def stochastic_weight_averaging(scene: Scene) -> None:
    """`AveragedModel`, made anew for each task and where a network has grown, whose average is copied back."""
    learner = scene.learner
    shapes = [list(learner.tasks), *(tensor.shape for tensor in (*learner.parameters(), *learner.buffers()))]
    if scene.kept.get("shapes") != shapes:
        scene.kept.update(shapes=shapes, model=swa_utils.AveragedModel(learner, use_buffers=True))
    model = scene.kept["model"]
    model.update_parameters(learner)
    with torch.no_grad():
        for p, average in zip(learner.parameters(), model.module.parameters(), strict=True):
            p.copy_(average)


def networks_of(learner: minicl.Learner) -> list[nn.Module]:
    """The networks that somebody finds who looks for them."""
    found = [getattr(learner, "backbone", None)]
    for name in ("networks", "columns"):
        held = getattr(learner, name, None)
        found += list(held.values()) if isinstance(held, nn.ModuleDict) else []
    return [network for network in found if isinstance(network, nn.Module)]


def update_bn(scene: Scene) -> None:
    """Running statistics measured anew, on data of the first task."""
    batches = [scene.tasks[0].train.x, scene.tasks[0].train.x + 1]
    for network in networks_of(scene.learner):
        try:
            swa_utils.update_bn(batches, network)
        except (TypeError, RuntimeError):  # a part that takes more than a batch
            continue


def forward_with_every_norm_in_training(scene: Scene) -> None:
    """`module.train()` on each norm, and a forward pass of each task."""
    scene.learner.train()
    for module in scene.learner.modules():
        if isinstance(module, NORMS):
            module.train()
    with torch.no_grad():
        for task in scene.tasks:
            if task.id in scene.learner.learned:
                scene.learner(task.train.x, known(task))


def reset_every_norm(scene: Scene) -> None:
    """Running statistics, scale and shift of each norm as they began."""
    for module in scene.learner.modules():
        if isinstance(module, NORMS):
            module.reset_parameters()
            module.reset_running_stats()


def train_through_a_parent(scene: Scene) -> None:
    """A module around the learner is switched, and one that sets the mode of every part by hand."""
    parent = nn.ModuleDict({"learner": scene.learner})
    parent.train()
    for module in parent.modules():
        module.training = True
    with torch.no_grad():
        for task in scene.tasks:
            if task.id in scene.learner.learned:
                scene.learner(task.train.x, known(task))


def decay(scene: Scene) -> None:
    """Every parameter a little smaller."""
    with torch.no_grad():
        for p in scene.learner.parameters():
            p.mul_(0.99)


def require_gradients(scene: Scene) -> None:
    """`requires_grad_(True)` on everything, as for a phase of fine-tuning."""
    scene.learner.requires_grad_(True)


def fill_every_buffer(scene: Scene) -> None:
    """Every buffer of a layer with floating numbers a little larger."""
    with torch.no_grad():
        for network in networks_of(scene.learner):
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    buffer.mul_(1.01)


def load_the_same(scene: Scene) -> None:
    """The state of a moment ago."""
    scene.learner.load_state_dict({name: tensor.clone() for name, tensor in scene.learner.state_dict().items()})


def convert_to_sync_batchnorm(scene: Scene) -> None:
    """Each BatchNorm replaced by one that averages over processes."""
    nn.SyncBatchNorm.convert_sync_batchnorm(scene.learner)


def stray_steps(scene: Scene) -> None:
    """A loop that runs on after the task has ended, with several optimisers."""
    learner = scene.learner
    for make in (partial(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.1), partial(torch.optim.Adam, lr=0.1)):
        parameters = list(learner.parameters())
        if not parameters:
            continue
        optimizer = learner.protect(make(parameters))
        learner.train()
        for task in scene.tasks:
            if task.id in learner.learned:
                optimizer.zero_grad()
                learner.loss(task.train.x, task.train.y, known(task)).backward()
                optimizer.step()


def stray_steps_without_protection(scene: Scene) -> None:
    """The same, of an optimiser that nobody has protected."""
    parameters = list(scene.learner.parameters())
    if parameters:
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        for task in scene.tasks:
            if task.id in scene.learner.learned:
                scene.learner.loss(task.train.x, task.train.y, known(task)).backward()
                optimizer.step()
        scene.learner.zero_grad()


def prune_in_place(scene: Scene) -> None:
    """`data.zero_()` where weights are small, as scripts for pruning do."""
    for p in scene.learner.parameters():
        p.data.masked_fill_(p.data.abs() < 0.05, 0)


def apply_first_weights(scene: Scene) -> None:
    """`learner.apply(init)`: every layer that can be is drawn anew."""

    def init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d, NORMS)):
            module.reset_parameters()

    scene.learner.apply(init)


WRITERS: dict[str, Writer] = {
    "EMA written back": Writer("a moving average of named parameters", average_named_parameters, ("step", "between")),
    "EMA over state_dict": Writer(
        "a moving average, loaded", average_state_dict, ("lesson", "between"), warning="other tensors of finished tasks"
    ),
    "state_dict written in place": Writer("what `state_dict()` returns is written to", write_into_state_dict),
    "SWA": Writer("`AveragedModel`, a new one for each task", stochastic_weight_averaging, ("step",)),
    "update_bn": Writer("`torch.optim.swa_utils.update_bn`", update_bn),
    "train() on every BatchNorm": Writer(
        "and a forward pass", forward_with_every_norm_in_training, ("step", "lesson", "between")
    ),
    "every norm reset": Writer("`reset_parameters()` and `reset_running_stats()`", reset_every_norm),
    "a parent's train()": Writer(
        "a module around the learner is switched", train_through_a_parent, ("step", "lesson", "between")
    ),
    "p.mul_(0.99)": Writer("every parameter a little smaller", decay, ("step", "lesson", "between")),
    "buffers written": Writer("every buffer of the network a little larger", fill_every_buffer, ("lesson", "between")),
    "requires_grad_(True)": Writer("on everything", require_gradients, ("lesson", "between")),
    "load_state_dict": Writer("the state of a moment ago", load_the_same, ("step", "lesson", "between")),
    "SyncBatchNorm": Writer("`convert_sync_batchnorm(learner)`", convert_to_sync_batchnorm),
    "stray steps": Writer("a loop that runs on after the task has ended", stray_steps),
    "stray steps, unprotected": Writer("of an optimiser without hooks", stray_steps_without_protection),
    "pruning in place": Writer("small weights set to zero", prune_in_place, ("step", "between")),
    "apply(init)": Writer("every layer drawn anew", apply_first_weights),
    "a schedule-free optimiser": Writer(
        "weights are swapped in `train()` and `eval()`",
        settings={"make": partial(ScheduleFree, lr=0.1)},
    ),
    "SAM": Writer("two steps on a wrapper", settings={"make": SAM}),
    "Lookahead": Writer("weights are moved after the step", settings={"make": partial(Lookahead, base=SGD)}),
}
"""Tools that write, by name. Where no forgetting is promised, none of them moves a finished task by a bit.

:meta hide-value:
"""
