"""The page about the sources sends a reader to sections that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts import BOOK, markdown

PLACES = re.findall(
    r"\]\((\w+\.(?:ipynb|md))\): ((?:\*[^*|]+\*(?:, )?)+)", (BOOK / "sources.md").read_text(encoding="utf-8")
)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#{2,3} (.*)$", markdown(page), re.MULTILINE)


def test_many_places_are_named() -> None:
    assert len(PLACES) > 60


@pytest.mark.parametrize("page", sorted({page for page, _ in PLACES}))
def test_each_named_section_is_there(page: str) -> None:
    there = headings(BOOK / page)
    for of_page, sections in PLACES:
        if of_page == page:
            for section in re.findall(r"\*([^*]+)\*", sections):
                assert any(h == section or h.startswith(f"{section}:") for h in there), f"{page} has no {section!r}"
