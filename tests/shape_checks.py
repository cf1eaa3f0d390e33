"""Shapes that a signature states, `Float[Tensor, "batch features"]`, are checked in every call of every test.

Everything else is left alone: tests pass wrong arguments on purpose, and must meet minicl's own errors. A function that
states no shape is not even wrapped: binding its arguments anew in every call would take longer than what it does.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from torch import fx

SHAPE = re.compile(r"\b(?:Float|Int|Integer|UInt8|Bool|Num|Shaped|Real)\d*\[")

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for every type checker
jaxtyped = jaxtyping.jaxtyped


def states_a_shape(function: Callable[..., Any]) -> bool:
    hints = getattr(function, "__annotations__", {}).values()
    return any(SHAPE.search(hint if isinstance(hint, str) else repr(hint)) for hint in hints)


def checked(function: Any) -> Any:
    """A function, or a dataclass, whose calls are checked if its annotations state a shape; otherwise as it is."""
    what = function.__init__ if inspect.isclass(function) else function
    if not states_a_shape(what):
        return function
    typed = jaxtyped(function, typechecker=typechecker)
    if inspect.isclass(function):
        return typed

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        """What torch.fx follows has no shape."""
        return (function if any(isinstance(a, fx.Proxy) for a in args) else typed)(*args, **kwargs)

    return call


def install(package: str) -> None:
    """Check everything in a package that has not been imported yet."""
    jaxtyping.install_import_hook(package, "shape_checks.typechecker")
    jaxtyping.jaxtyped = lambda **_: checked  # with which the hook decorates every function and class that it meets
