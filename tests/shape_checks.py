"""The type checker behind the shape checks: beartype, except where it cannot see the class that `Self` stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function
