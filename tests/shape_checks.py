"""The type checker behind the shape checks: beartype, for what states a shape, `Float[Tensor, "batch features"]`.

Everything else is left alone: tests pass wrong arguments on purpose, and must meet minicl's own errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

SHAPE = re.compile(r"\b(?:Float|Int|Integer|UInt8|Bool|Num|Shaped|Real)\d*\[")

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for every type checker


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beartype's checked version of a function whose annotations state a shape; any other function as it is."""
    stated = (hint if isinstance(hint, str) else repr(hint) for hint in function.__annotations__.values())
    return checked(function) if any(map(SHAPE.search, stated)) else function
