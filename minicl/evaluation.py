"""Asking a network: in evaluation mode, without a graph, and with everything as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import inputs
from .freezing import evaluating, parameters_of
from .inputs import Tree
from .samples import LazySamples, Samples

if TYPE_CHECKING:
    from .learner import Learner
    from .tasks import Task

AT_ONCE = 1000
"""Samples in a batch, where nobody says otherwise."""
LARGEST = 2**24
"""Numbers in the largest tensor of an evaluation, 64 MB as float32, unless a batch of training has more."""
SEED = 0
"""Of random transforms, where samples are read to be evaluated: what differs between two answers is the network."""


def feeder(learner: Learner) -> Callable[[Tree], Tree]:
    """What brings inputs to the learner: onto its device, and floating-point inputs into the type of its network.

    A network in float32 takes data in float64, then. Where the network has several types, inputs in one of them stay.
    """
    device, types = learner.device, [t.dtype for t in parameters_of(learner) if t.is_floating_point()]

    def feed(x: Tree) -> Tree:
        x = inputs.to(x, device)
        strange = types and any(leaf.is_floating_point() and leaf.dtype not in types for leaf in inputs.tensors(x))
        return inputs.to(x, dtype=types[0]) if strange else x

    return feed


@torch.no_grad()
def logits(
    learner: Learner, x: Tree | Samples | LazySamples, task_id: int | None, batch_size: int = AT_ONCE, **reading: Any
) -> list[Tensor]:
    """The learner's logits for inputs or samples, in evaluation mode: one tensor per batch, on the learner's device."""
    feed = feeder(learner)
    read = isinstance(x, (Samples, LazySamples))
    parts = (b.x for b in x.batches(batch_size, seed=SEED, **reading)) if read else inputs.split(x, batch_size)
    with evaluating(learner):
        return [learner(feed(part), task_id) for part in parts]


@torch.no_grad()
def evaluate(learner: Learner, task: Task, part: str = "test", batch_size: int = AT_ONCE, workers: int = 0) -> float:
    """Accuracy (0 to 1) on a part of a task: "test", "valid" or "train". The task id is given in scenario "task" alone.

    Of a task with a metric of its own: the mean of that over the batches, weighted by their sizes.

    Args:
        batch_size: so many samples at once.
        workers: processes that read samples which are read on demand. Their random transforms draw the same each time.

    Raises:
        ValueError: another part, an empty one, or a task that the learner cannot answer for.
    """
    samples = task.make(part)
    if not len(samples):
        raise ValueError(f"task {task.id} has no {part} samples to evaluate on")
    feed, total = feeder(learner), 0.0
    with evaluating(learner):
        for batch in samples.batches(batch_size, seed=SEED, workers=workers):
            total += total_score(learner(feed(batch.x), task.id_at_test), batch.y, task)
    return total / len(samples)


def total_score(outputs: Tensor, y: Tensor, task: Task) -> float:
    """How good the answers for a batch are: how many are right, or what the task's metric says times the batch's size.

    Raises:
        ValueError: a task without a head that has no metric; a metric that gives no number.
    """
    y = y.to(outputs.device)
    if task.metric is not None:
        try:
            return float(task.metric(outputs, y)) * len(y)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"the metric of task {task.id} gave no number for outputs of shape {tuple(outputs.shape)} and targets "
                f"of shape {tuple(y.shape)}: {error}"
            ) from error
    check_metric(task)
    return float((outputs.argmax(1) == y).sum())  # outputs (batch, classes)


def check_metric(task: Task) -> None:
    """ValueError where nobody has said how the answers of a task are judged."""
    if task.n_outputs is None and task.metric is None:
        raise ValueError(
            f"task {task.id} has n_outputs=None, so nobody knows which answers are right; say how good they are: "
            "Task(..., metric=f), f(outputs, targets) -> a number, higher is better"
        )


def samples_at_once(learner: Learner, task: Task, batch_size: int) -> int:
    """How many samples to evaluate at once: up to `AT_ONCE`, fewer of large ones, and no fewer than train together."""
    found = Passing(learner, task)
    return min(AT_ONCE, max(batch_size, LARGEST // found.largest))


class Passing:
    """What passes through the network of a learner when it is shown two inputs of a task, in evaluation mode.

    Attributes:
        largest: numbers in the largest result of any module, per input.
        alone: names of the norms that see one number per channel and input: of one input they have no statistics.
    """

    def __init__(self, learner: Learner, task: Task) -> None:
        self.largest, self.alone = 1, list[str]()
        network = learner.feature_extractor()
        hooks = [module.register_forward_hook(partial(self._see, name)) for name, module in network.named_modules()]
        try:
            with torch.no_grad(), evaluating(network), torch.random.fork_rng(devices=[]):
                learner.apply_network(network, inputs.map(torch.clone, feeder(learner)(task.example)))
        except Exception:  # a network that cannot take such inputs: `prepare` will say so in words
            pass
        finally:
            for hook in hooks:
                hook.remove()

    def _see(self, name: str, module: Any, given: tuple[Any, ...], result: Any) -> None:
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.ndim:
                self.largest = max(self.largest, tensor.numel() // max(len(tensor), 1))
        if (
            isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            and given[0].shape[1:].numel() == given[0].shape[1]
        ):
            self.alone.append(name)
