"""The page about the sources sends a reader to sections that are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parent.parent / "book"
PLACES = re.findall(
    r"\]\((\w+\.(?:ipynb|md))\): ((?:\*[^*|]+\*(?:, )?)+)", (BOOK / "sources.md").read_text(encoding="utf-8")
)


def headings(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) + "\n" for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    return re.findall(r"^#{2,3} (.*)$", text, re.MULTILINE)


def test_many_places_are_named() -> None:
    assert len(PLACES) > 60


@pytest.mark.parametrize("page", sorted({page for page, _ in PLACES}))
def test_each_named_section_is_there(page: str) -> None:
    there = headings(BOOK / page)
    for of_page, sections in PLACES:
        if of_page == page:
            for section in re.findall(r"\*([^*]+)\*", sections):
                assert any(h == section or h.startswith(f"{section}:") for h in there), f"{page} has no {section!r}"
