"""Which column a progressive network listens to: the two analyses of Rusu et al. 2016 (section 3 and appendix A)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Key = tuple[int, int]  # column, layer
Tap = Callable[[int, int, Tensor], Tensor]
Logits = Callable[[Tensor, Tap], Tensor]
"""`logits(x, tap)`: the network's output for x, where `tap(column, i, h_i)` may look at every h_i, or replace it."""

DRAWS = 5  # of noise for each input
RANGE = (-6.0, 8.0)  # of the noise's standard deviation, as powers of two of the activation's
HALVINGS = 10  # of that range, to find the critical noise


def average_fisher_sensitivity(
    fisher: Float[Tensor, "columns features"],
) -> Float[Tensor, " columns"]:
    """AFS(i, k) = mean_m F_i^(k)(m, m) / sum_k F_i^(k)(m, m), of the diagonals of F_i^(k).

    The paper sums over the features m; with a mean the columns of a layer add up to 1.
    Features that matter in no column are left out.
    """
    total = fisher.sum(0)
    return (fisher / total)[:, total > 0].mean(1)


def average_perturbation_sensitivity(
    precision: Float[Tensor, " columns"],
) -> Float[Tensor, " columns"]:
    """APS(i, k) = Lambda_i^(k) / sum_k Lambda_i^(k), Lambda = 1 / sigma^2 (the paper's Eq. 3)."""
    return precision / precision.sum()


def fisher_sensitivity(logits: Logits, x: Tensor, columns: Sequence[int]) -> Float[Tensor, "layers columns"]:
    """The average Fisher sensitivity, from F_i^(k)(m, m) = E[ (d log p(y | x) / d h_i^(k)(m))^2 ], y as predicted.

    The expectation over y is taken exactly. Activations are measured in their standard deviations, which multiplies F
    by their variance. In feature maps F is summed over the pixels.
    """
    variance = {key: std.square() for key, std in _spread(logits, x).items()}
    fisher = {key: torch.zeros_like(each) for key, each in variance.items()}
    for part in x.split(250):
        log_p, activations = _watched(logits, part)
        for c in range(log_p.shape[1]):
            # Weighted by sqrt(p) here, squares are weighted by p, whatever the first axis of h is (windows, tokens).
            root = log_p[:, c].detach().div(2).exp()  # (batch,)
            gradients = torch.autograd.grad(
                (root * log_p[:, c]).sum(), list(activations.values()), retain_graph=True, materialize_grads=True
            )
            for key, gradient in zip(activations, gradients, strict=True):
                fisher[key] += _by_feature(gradient.square()).sum((0, 2)) / len(x)
    normalised = {key: fisher[key] * variance[key] for key in fisher}
    rows = [torch.stack([normalised[k, i] for k in columns]) for i in _layers(fisher)]
    return torch.stack([average_fisher_sensitivity(row) for row in rows])


@torch.no_grad()
def perturbation_sensitivity(
    logits: Logits, x: Tensor, y: Int[Tensor, " n"], columns: Sequence[int], seed: int
) -> Float[Tensor, "layers columns"]:
    """The average perturbation sensitivity: 1 / sigma^2 of the noise on h_i^(k) that halves accuracy above chance.

    The noise is Gaussian, in units of each feature's standard deviation, and drawn anew for every input. The critical
    sigma is found by bisection; where no noise does that much harm, the precision is 0.

    Raises:
        ValueError: without noise, accuracy is no better than chance.
    """
    spread = _spread(logits, x)

    def accuracy(key: Key | None, sigma: float) -> float:
        generator = torch.Generator().manual_seed(seed)  # the same noise for every sigma

        def noisy(k: int, i: int, h: Tensor) -> Tensor:
            if (k, i) != key:
                return h
            std = spread[key].view(1, -1, *[1] * (h.ndim - 2))
            return h + sigma * std * torch.randn(h.shape, generator=generator, dtype=h.dtype).to(h.device)

        rows = torch.arange(len(x)).repeat(1 if key is None else DRAWS)
        right = sum(int((logits(x[part], noisy).argmax(1).cpu() == y[part].cpu()).sum()) for part in rows.split(1000))
        return right / len(rows)

    chance = 1 / logits(x[:1], _untouched).shape[1]
    clean = accuracy(None, 0.0)
    if clean <= chance:
        raise ValueError(
            f"accuracy is {clean:.3f}, no better than chance ({chance:.3f}): there is nothing that noise could halve"
        )

    def precision(key: Key) -> float:
        low, high = RANGE
        if accuracy(key, 2**high) > (clean + chance) / 2:
            return 0.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if accuracy(key, 2**middle) > (clean + chance) / 2 else (low, middle)
        return 2 ** -(low + high)  # 1 / sigma^2, sigma in the middle of what is left

    rows = [torch.tensor([precision((k, i)) for k in columns]) for i in _layers(spread)]
    return torch.stack([average_perturbation_sensitivity(row) for row in rows])


def _watched(logits: Logits, x: Tensor) -> tuple[Tensor, dict[Key, Tensor]]:
    """log p(y | x), shape (batch, classes), and every activation in the graph that leads to it."""
    activations: dict[Key, Tensor] = {}

    def watch(k: int, i: int, h: Tensor) -> Tensor:
        activations[k, i] = h if h.requires_grad else h.requires_grad_()
        return h

    with torch.enable_grad():
        return logits(x, watch).log_softmax(1), activations


@torch.no_grad()
def _spread(logits: Logits, x: Tensor) -> dict[Key, Float[Tensor, " features"]]:
    """The standard deviation of every feature, over inputs and pixels."""
    sums: dict[Key, Tensor] = {}

    def add(k: int, i: int, h: Tensor) -> Tensor:
        flat = _by_feature(h).double()
        moments = torch.stack(
            [
                torch.full(flat.shape[1:2], flat[:, 0].numel()).to(flat),
                flat.sum((0, 2)),
                flat.square().sum((0, 2)),
            ]
        )
        sums[k, i] = sums.get((k, i), 0) + moments
        return h

    for part in x.split(1000):
        logits(part, add)
    return {key: ((squares - s * s / n).clamp(min=0) / n).sqrt().float() for key, (n, s, squares) in sums.items()}


def _by_feature(h: Tensor) -> Tensor:
    """(batch, features, ...) as (batch, features, pixels)."""
    return h.reshape(*h.shape[:2], -1)


def _layers(by_key: Mapping[Key, object]) -> list[int]:
    return sorted({i for _, i in by_key})


def _untouched(k: int, i: int, h: Tensor) -> Tensor:
    return h
