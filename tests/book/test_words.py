"""The words of the book: what is cited can be told apart, and what has once been mended does not come back."""

from __future__ import annotations

from collections import defaultdict

from pybtex.database import Person, parse_file
from scripts import BOOK

REFERENCES = parse_file(str(BOOK / "references.bib"), bib_format="bibtex").entries


def cited_as(authors: list[Person], year: str) -> str:
    """What a reader sees of a citation: one name, two names, or the first "et al.", and the year."""
    names = [" ".join([*author.prelast_names, *author.last_names]) for author in authors]
    first = names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
    return f"{first}, {year}"


def test_no_two_papers_are_cited_alike() -> None:
    alike = defaultdict(list)
    for key, entry in REFERENCES.items():
        alike[cited_as(entry.persons["author"], entry.fields["year"])].append(key)
    assert not [keys for keys in alike.values() if len(keys) > 1], "append a, b, ... to the years, as in 2019a"
