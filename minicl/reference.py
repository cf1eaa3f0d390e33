"""Equations once more, to be read: as short as they stand on the page, one weight or one picture at a time.

The methods use functions of their own, which check what they are given, take less memory and are faster. Each function
here names the one that it stands for, and tests/test_reference.py shows that the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# HAT


def temperature(b: int, B: int, s_max: float) -> float:
    """tau in batch b of the B batches of an epoch; `minicl.isolation.hat.temperature` asks for (b - 1) / (B - 1)."""
    s = 1 / s_max + (s_max - 1 / s_max) * (b - 1) / (B - 1)
    return 1 / s


def sparsity(a: Float[Tensor, " units"], used: Float[Tensor, " units"]) -> Float[Tensor, ""]:
    """R, with the units of all layers in one row: what `minicl.isolation.hat.sparsity` computes layer by layer."""
    free = 1 - used
    return (a * free).sum() / free.sum()


# PackNet


def keep_mask(weight: Float[Tensor, "*shape"], keep_ratio: float) -> Bool[Tensor, "*shape"]:
    """m^(t) of a layer without equal weights; `minicl.isolation.packnet.keep_mask` breaks ties and looks among some."""
    size = weight.abs()
    n = len(size.flatten()) - round((1 - keep_ratio) * len(size.flatten()))
    return size >= size.flatten().sort(descending=True).values[n - 1]


def total_mask(masks: Sequence[Bool[Tensor, "*shape"]]) -> Bool[Tensor, "*shape"]:
    """m^(1:t): a weight is taken if any task has taken it; `minicl.isolation.packnet.total_mask` needs no stack."""
    return torch.stack(list(masks)).any(dim=0)


# Regularisation


def fisher_diagonal(
    network: nn.Module, theta: nn.Parameter, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]
) -> Float[Tensor, "*shape"]:
    """F of the weights theta, picture by picture; `minicl.regularization.ewc.fisher_diagonal` takes many at once.

    Args:
        network: gives logits, shape (1, classes), for one picture.
        theta: weights of the network.
        x: pictures.
        y: a label for each, drawn from p(y | x).
    """
    log_p = [network(x[i : i + 1]).log_softmax(1)[0, y[i]] for i in range(len(x))]
    squares = [torch.autograd.grad(one, theta)[0] ** 2 for one in log_p]
    return torch.stack(squares).mean(0)


def output_sensitivity(network: nn.Module, theta: nn.Parameter, x: Float[Tensor, "n ..."]) -> Float[Tensor, "*shape"]:
    """Omega of the weights theta, picture by picture: `minicl.regularization.mas.output_sensitivity` for one tensor."""
    lengths = [(network(x[i : i + 1]) ** 2).sum() for i in range(len(x))]
    sizes = [torch.autograd.grad(one, theta)[0].abs() for one in lengths]
    return torch.stack(sizes).mean(0)


def path_integral(
    gradients: Float[Tensor, "steps *shape"], steps: Float[Tensor, "steps *shape"], xi: float
) -> Float[Tensor, "*shape"]:
    """What Omega gains in a task, from all steps: `minicl.regularization.si` adds them up as they are taken.

    Args:
        gradients: g, before each step.
        steps: how far each step moved the weights.
        xi: keeps the fraction finite where a weight has not moved.
    """
    omega = -(gradients * steps).sum(0)
    return omega.clamp(min=0) / (steps.sum(0) ** 2 + xi)


# Replay


def project_on_average(g: Float[Tensor, " p"], g_ref: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """A-GEM's step; `minicl.replay.agem.project_on_average` holds for gradients too short to be squared, too."""
    overlap = g @ g_ref
    return g if overlap >= 0 else g - overlap / (g_ref @ g_ref) * g_ref
