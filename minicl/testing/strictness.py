"""A mode for tests in which two things fail that PyTorch does in silence: numbers of two types that are mixed, and
gradients that lie otherwise in memory than their parameters.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

CONVERT = ("_to_copy", "copy_", "_foreach_copy_", "_amp_", "_fused_")
"""Operations, by the beginning of their names, that exist to bring one type into another."""
NORMALIZE = re.compile("(batch|layer|group)_norm")
"""Operations that read numbers in half precision with statistics in single precision, as mixed precision wants it."""


class _OneType(TorchDispatchMode):
    """An operation on numbers of two floating types is an error. A number without axes takes the other's type."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _is_looked_at(func):
            found = set(_types((*args, *kwargs.values()) if kwargs else args))
            if len(found) > 1 and not _called_by_an_optimizer():
                name = func.overloadpacket.__name__
                raise AssertionError(
                    f"{name} was given tensors of {' and '.join(sorted(map(str, found)))}, and PyTorch would convert "
                    "them in silence; convert them where it can be seen"
                )
        return func(*args, **(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: PyTorch would switch off a compiler that is not there, for longer than an operation takes."""
        return False


@cache
def _is_looked_at(func: Any) -> bool:
    name = func.overloadpacket.__name__
    return not name.startswith(CONVERT) and NORMALIZE.search(name) is None


def _types(arguments: Iterable[Any]) -> Iterator[torch.dtype]:
    """Floating types among an operation's arguments: tensors, and lists of tensors."""
    for value in arguments:
        if isinstance(value, Tensor):
            if value.ndim and (value.is_floating_point() or value.is_complex()):
                yield value.dtype
        elif isinstance(value, (list, tuple)):
            yield from _types(value)


def _called_by_an_optimizer() -> bool:
    """Whether an optimiser of PyTorch calls this: what it mixes (Muon works in bfloat16) is its own affair."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("torch._", "torch.utils")):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).startswith("torch.optim")


def check_layout(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """AssertionError where a gradient has other strides, or another type, than its parameter.

    A fused optimiser goes through memory in its order, and would give each weight another weight's gradient.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None or p.grad.layout != torch.strided:
                continue
            sides = [side for side in range(p.ndim) if p.shape[side] > 1]
            strides = [[t.stride(side) for side in sides] for t in (p, p.grad)]
            if strides[0] != strides[1] or p.dtype != p.grad.dtype:
                raise AssertionError(
                    f"the gradient of a parameter of shape {tuple(p.shape)} has strides {p.grad.stride()} and type "
                    f"{p.grad.dtype}, the parameter {p.stride()} and {p.dtype}; write gradients in place, or with "
                    "torch.empty_like(parameter)"
                )


@contextmanager
def strict() -> Iterator[None]:
    """Here an operation that mixes floating types, and a step with gradients in another layout, are AssertionErrors.

        with minicl.testing.strict():
            learner.learn(task, fit)

    Looked at is every operation of this thread, and the gradients before and after each step of any optimiser.
    """
    hooks: tuple[Callable[..., Any], ...] = (register_optimizer_step_pre_hook, register_optimizer_step_post_hook)
    handles = [register(check_layout) for register in hooks]
    try:
        with _OneType():
            yield
    finally:
        for handle in handles:
            handle.remove()
