"""Each numbered equation of the book and the function that computes it: the table that ties them has no hole."""

from __future__ import annotations

import pydoc
import re
from pathlib import Path

import pytest
import scripts
from scripts import PAGES

equations = scripts.load("tools/equations.py")


def labels(page: Path) -> list[str]:
    text = scripts.markdown(page)
    return re.findall(r"^\s*\$\$\s*\(([\w:-]+)\)", text, re.MULTILINE) + re.findall(
        r"^:label:\s*(\S+)", text, re.MULTILINE
    )


def test_each_numbered_equation_has_a_function_or_a_reason() -> None:
    for page in PAGES:
        for label in labels(page):
            known = (label in equations.FUNCTIONS) + (label in equations.WITHOUT)
            assert known == 1, (
                f"{page.name}: name the function that is the equation {label} in FUNCTIONS of tools/equations.py, "
                "or the reason why there is none in WITHOUT"
            )


def test_the_table_names_only_equations_that_are_there() -> None:
    there = [label for page in PAGES for label in labels(page)]
    assert len(there) > 30
    assert len(there) == len(set(there)), "two equations have the same label"
    assert {*equations.FUNCTIONS, *equations.WITHOUT} <= set(there)


@pytest.mark.parametrize("name", sorted(equations.EQUATIONS))
def test_each_function_of_the_table_exists(name: str) -> None:
    found = pydoc.locate(name)
    assert callable(found), f"tools/equations.py names {name}, which is not there"
    assert found.__doc__
    assert name == f"{found.__module__}.{found.__qualname__}", "name it where it is defined, as the API does"
