"""Where logits meet labels: cross-entropy, hard or soft labels, or a criterion of anyone's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks

NO_LABEL = -(2**62)
"""PyTorch leaves samples with the label -100 out of the loss, silently. Here nothing is left out."""


def mean_loss(logits: Tensor, y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """The mean loss of logits, shape (batch, outputs), with labels of shape (batch,), or soft ones of their own shape.

    Raises:
        ValueError: labels of another shape or type, a label that has no output, soft labels that are negative or NaN,
            or a criterion that gives no scalar.
        TypeError: a criterion that cannot be called, or a class.
    """
    if y.is_floating_point():
        _check_soft(logits, y)
    if criterion is not None:
        return judged(logits, y, criterion)
    if y.is_floating_point():
        return F.cross_entropy(logits, y.to(logits.dtype))
    try:
        return F.cross_entropy(logits, y, ignore_index=NO_LABEL)
    except (IndexError, RuntimeError, ValueError) as error:
        if y.shape != logits.shape[:1]:
            raise ValueError(
                f"labels of shape {tuple(y.shape)} and {y.dtype} do not fit logits of shape {tuple(logits.shape)}; "
                f"allowed: int64 of shape ({logits.shape[0]},), or probabilities of shape {tuple(logits.shape)}"
            ) from error
        if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
            raise ValueError(
                f"labels run from {int(y.min())} to {int(y.max())}, but the head has {logits.shape[1]} outputs; "
                f"allowed: 0 to {logits.shape[1] - 1}"
            ) from error
        raise


def judged(outputs: Tensor, y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean loss by a criterion of anyone's own, outputs and targets of shapes (batch, ...).

    Raises:
        ValueError: a criterion that gives no scalar.
        TypeError: a criterion that cannot be called, or a class.
    """
    checks.function("criterion", criterion, "logits and labels")
    try:
        loss = criterion(outputs, y)
    except Exception as error:
        error.add_note(
            f"the criterion was given outputs of shape {tuple(outputs.shape)} and labels of shape {tuple(y.shape)}; in "
            "scenario 'class' outputs are those of all classes so far: weight=weights[: outputs.shape[1]]"
        )
        raise
    if not isinstance(loss, Tensor) or loss.ndim:
        kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"criterion returned {kind}; allowed: a scalar tensor, the mean over the batch")
    return loss


def _check_soft(logits: Tensor, y: Tensor) -> None:
    if y.shape != logits.shape:
        raise ValueError(
            f"labels of shape {tuple(y.shape)} and {y.dtype} do not fit logits of shape {tuple(logits.shape)}; "
            f"allowed: int64 of shape ({logits.shape[0]},), or probabilities of shape {tuple(logits.shape)}"
        )
    if not bool((y >= 0).all()):  # NaN is not
        raise ValueError("soft labels hold negative numbers or NaN; allowed: probabilities, each row adding up to 1")


def together(a: Tensor, b: Tensor, n_outputs: int) -> Tensor:
    """Labels of two parts of a batch as one: as numbers if both are, otherwise as probabilities of `n_outputs`."""
    if a.is_floating_point() == b.is_floating_point() and a.shape[1:] == b.shape[1:]:
        return torch.cat([a, b])
    return torch.cat([_soft(a, n_outputs, like=b), _soft(b, n_outputs, like=a)])


def _soft(y: Tensor, n_outputs: int, like: Tensor) -> Tensor:
    if y.is_floating_point():
        return F.pad(y, (0, n_outputs - y.shape[1]))
    return F.one_hot(y, n_outputs).to(like.dtype if like.is_floating_point() else torch.get_default_dtype())
