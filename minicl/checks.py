"""Is this argument what it should be? One function a kind; each returns the value as plain Python has it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch


def integer(name: str, value: Any, least: int = 1, what: str = "") -> int:
    """The value as an int: an integer of Python or NumPy, or a tensor that holds one.

    Args:
        name: what the error calls it.
        least: the smallest that is allowed.
        what: more about what is allowed, for the error.

    Raises:
        ValueError: something else, or a number that is too small. A bool is no integer.
    """
    number = None
    if not isinstance(plain(value), bool):
        try:
            number = operator.index(value)
        except (TypeError, RuntimeError, ValueError):
            number = None
    if number is None or number < least:
        raise ValueError(f"{name} is {value!r}; allowed: integers from {least} up{what}")
    return number


def number(
    name: str, value: Any, least: float = 0.0, most: float = math.inf, beyond: bool = False, below: bool = False
) -> float:
    """The value as a finite number of Python: an int stays an int.

    Args:
        name: what the error calls it.
        least, most: the smallest and the largest that are allowed.
        beyond: the smallest itself is not allowed.
        below: the largest itself is not allowed.

    Raises:
        ValueError: something else, or a number out of range. A bool is no number.
    """
    found = plain(value)
    right = isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found)
    if not right or not least <= found <= most or (beyond and found == least) or (below and found == most):
        start = f"{'above' if beyond else 'from'} {least:g}"
        end = "" if math.isinf(most) else f" up to {most:g}" if not below else f" up to, but not including, {most:g}"
        raise ValueError(f"{name} is {value!r}; allowed: numbers {start}{end}")
    return found


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """The value, where it is one of those allowed.

    Raises:
        ValueError: it is not.
    """
    choices = tuple(allowed)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, choices))}")
    return value


def function(name: str, value: Any, of: str) -> Any:
    """The value, where it can be called.

    Args:
        name: what the error calls it.
        of: what it is a function of, for the error.

    Raises:
        TypeError: it cannot be called; or it is a class, of which an object was meant.
    """
    if isinstance(value, type):
        name_of = value.__name__
        raise TypeError(f"{name} is the class {name_of}; allowed: a function of {of}, such as {name_of}(...)")
    if not callable(value):
        raise TypeError(f"{name} is a {type(value).__name__}; allowed: a function of {of}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False; ValueError where the value is neither."""
    if plain(value) is not True and plain(value) is not False:
        raise ValueError(f"{name} is {value!r}; allowed: True or False")
    return bool(value)


def plain(value: Any) -> Any:
    """A number of NumPy, or a tensor of one element and no axis, as Python's number; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.item() if value.ndim == 0 else value
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else value
