"""The seeds of the tests. `MINICL_SEED` names another one than 0, several, or "any":

    MINICL_SEED=7 python -m pytest                                  every test with seed 7
    MINICL_SEED=0-9 python -m pytest tests/test_every_method.py     every test ten times
    MINICL_SEED=any python -m pytest                                with a seed that nobody has chosen; pytest prints it

PyTorch's global generator is seeded with it before each test (`conftest.py`), so first weights that a test draws need
no seed of their own. What must come out the same whenever it is asked for takes its numbers from `of` or `generator`; a
test that needs the seed itself asks `current`, or takes the fixture `suite_seed`. `MINICL_ALL=1` runs every row of the
tables of which `sampled` takes a part.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from typing import TypeVar

import torch

VARIABLE = "MINICL_SEED"
WHOLE = "MINICL_ALL"  # if it is set, nothing is left out
Row = TypeVar("Row")
LARGEST = 10_000
_current = 0


def read(text: str) -> list[int]:
    """The seeds that the variable names.

    Raises:
        ValueError: anything but a number, a range such as 0-9, or "any".
    """
    if text == "any":
        return [random.SystemRandom().randrange(LARGEST)]
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not 0 <= first <= last < LARGEST:
        raise ValueError(f"{VARIABLE} is {text!r}; allowed: a number below {LARGEST}, a range such as 0-9, or any")
    return list(range(first, last + 1))


def use(seed: int) -> None:
    """The seed of the test that begins."""
    global _current
    _current = seed
    torch.manual_seed(seed)


def current() -> int:
    return _current


def of(number: int) -> int:
    """A number that is another one for every seed, and the number itself for seed 0."""
    return number + 1_000_003 * _current


def sampled(rows: Sequence[Row], n: int, shift: int) -> Sequence[Row]:
    """Every n-th row of a table too long for every day; which ones, turns with `shift` and with the suite's seed."""
    return rows if os.environ.get(WHOLE) else rows[(shift + read(os.environ.get(VARIABLE, "0"))[0]) % n :: n]


def generator(number: int) -> torch.Generator:
    """A generator that draws the same whenever a test asks for it, and something else with another seed."""
    return torch.Generator().manual_seed(of(number))
