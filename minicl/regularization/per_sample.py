"""Importances that rest on gradients of single samples: EWC's and MAS's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .. import checks, inputs
from ..evaluation import feeder
from ..freezing import evaluating
from ..inputs import Tree
from ..learner import Learner
from ..samples import LazySamples, Samples
from ..tasks import Task
from ..tensors import gradients_put_back

PER_SAMPLE_NUMBERS = 8_000_000
"""Gradients of single samples that are held at once, in numbers: 32 MB of float32."""
LARGE, SMALL_BATCH = 1_000_000, 16
"""Networks with more weights are asked for as many samples at once as they were trained on, else for so many."""


@torch.no_grad()
def mean_over_samples(
    learner: Learner,
    parameters: Mapping[str, Tensor],
    samples: Samples | LazySamples,
    task_id: int | None,
    output: Callable[[Tensor, Tensor], Tensor],
    measure: Callable[[Tensor], Tensor],
    relabel: Callable[[Tree], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mean over samples of measure(d output / d theta), one gradient per sample, by parameter name.

    Args:
        output: a scalar from one sample's logits, shape (classes,), and label, shape ().
        measure: applied to the gradients of each sample before they are averaged: squares for EWC, |.| for MAS. The
            square of a batch's mean gradient is something else, and much smaller. Not in place: the gradients of two
            parameters that are added to each other may be one tensor.
        relabel: labels for a batch of inputs, in the place of its own.
    """
    theta = {name: parameter.detach() for name, parameter in parameters.items()}
    if not theta:
        return {}

    def scalar(theta: dict[str, Tensor], x: Tree, y: Tensor) -> Tensor:
        logits: Tensor = functional_call(learner, theta, (inputs.map(lambda leaf: leaf.unsqueeze(0), x), task_id))
        return output(logits.squeeze(0), y)

    def one_by_one(theta: dict[str, Tensor], x: Tree, y: Tensor) -> dict[str, Tensor]:
        """Plain autograd, one sample after another: for what torch.func cannot take."""
        leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
        each = []
        for i, b in enumerate(y):
            a = inputs.map(lambda leaf: leaf[i], x)  # noqa: B023
            with torch.enable_grad():
                found = torch.autograd.grad(scalar(leaves, a, b), list(leaves.values()), allow_unused=True)
            each.append([torch.zeros_like(v) if g is None else g for g, v in zip(found, theta.values(), strict=True)])
        return {name: torch.stack(of_each) for name, of_each in zip(theta, zip(*each, strict=True), strict=True)}

    def by_backward(theta: dict[str, Tensor], x: Tree, y: Tensor) -> dict[str, Tensor]:
        """The same through `backward` and the learner's own parameters: for reentrant gradient checkpointing.

        PyTorch refuses it any other way; and what is called once more in the backward pass reads the parameters that
        are there by then.
        """
        each: dict[str, list[Tensor]] = {name: [] for name in theta}
        with gradients_put_back(learner.parameters()):
            for i, b in enumerate(y):
                a = inputs.map(lambda leaf: leaf[i : i + 1], x)  # noqa: B023
                with torch.enable_grad():
                    output(learner(a, task_id).squeeze(0), b).backward()
                for name, parameter in parameters.items():
                    found, parameter.grad = parameter.grad, None
                    each[name].append(torch.zeros_like(parameter) if found is None else found)
        return {name: torch.stack(of_each) for name, of_each in each.items()}

    ways = [vmap(grad(scalar), in_dims=(None, 0, 0)), one_by_one, by_backward]
    # As many samples at once as fit comfortably in memory: each brings a gradient of the size of the network.
    chunk = max(1, min(256, PER_SAMPLE_NUMBERS // max(1, sum(t.numel() for t in theta.values()))))
    if sum(t.numel() for t in learner.parameters()) > LARGE:  # then activations are, too, even where theta is small
        chunk = min(chunk, learner.largest_batch or SMALL_BATCH)
    mean = {name: torch.zeros_like(value) for name, value in theta.items()}
    with evaluating(learner):
        feed = feeder(learner)
        for batch in samples.batches(chunk):
            x = feed(batch.x)
            y = batch.y if relabel is None else relabel(batch.x)
            given = theta, x, y.to(learner.device)
            while True:
                try:
                    with warnings.catch_warnings():
                        warnings.filterwarnings("ignore", "There is a performance drop")
                        found = ways[0](*given)
                    break
                except (RuntimeError, NotImplementedError, ValueError):
                    # A layer that vmap or torch.func cannot take (an LSTM, an old autograd.Function), or that
                    # autograd.grad cannot (gradient checkpointing); of what no way can take, the last one says why.
                    if len(ways) == 1:
                        raise
                    ways.pop(0)
            for name, g in found.items():
                mean[name] += measure(g).sum(0)
    return {name: value.div_(len(samples)) for name, value in mean.items()}


def try_out(learner: Learner, parameters: Mapping[str, Tensor], task: Task) -> None:
    """Measure importances on two samples, before an hour of training and not after it.

    Raises:
        ValueError: the task has no training samples, or the network gives no gradients of single samples.
    """
    task.needs("train")
    try:
        with torch.random.fork_rng(devices=[]):
            two = Samples(task.example, torch.zeros(inputs.length(task.example), dtype=torch.long))
            mean_over_samples(learner, parameters, two, task.id_at_test, lambda logits, y: logits.sum(), Tensor.square)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{type(learner).__name__} needs the gradients of single samples, and this network gives none: {error}"
        ) from error


def subsample(samples: Samples | LazySamples, n: int | None) -> Samples | LazySamples:
    """All samples, or n of them drawn at random without replacement."""
    return samples if n is None or n >= len(samples) else samples.take(torch.randperm(len(samples))[:n])


def check_samples(samples: Any) -> int | None:
    """The number of samples that importances are measured on; None for all."""
    return None if samples is None else checks.integer("samples", samples, what=", or None for all training samples")
