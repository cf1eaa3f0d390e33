"""The words of the book: what is cited can be told apart, and what has once been mended does not come back."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
from pybtex.database import Person, parse_file
from scripts import BOOK, PAGES, markdown

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


def test_every_reference_is_cited() -> None:
    text = "\n".join(markdown(page) for page in PAGES)
    cited = {key for keys in re.findall(r"\{cite[:\w]*\}`([^`]+)`", text) for key in keys.split(",")}
    assert cited == set(REFERENCES)


def test_every_chapter_says_what_to_read_on() -> None:
    for page in PAGES:
        text = markdown(page)
        if "\n## What to remember\n" in text:
            (reading,) = re.findall(r"^## Further reading\n\n((?:- .*\n?)+)", text, re.MULTILINE)
            entries = re.findall(r"^- \{cite:t\}`\w+`: \S", reading, re.MULTILINE)
            assert 2 <= len(entries) <= 4, page.name


@pytest.mark.parametrize("word", ["batch", "epoch", "learner", "loss", "optimiser", "seed"])
def test_the_first_words_are_explained(word: str) -> None:
    """Where the first chapter uses them first, in bold, and in the glossary."""
    assert re.search(rf"\*\*{word}s?\*\*", markdown(BOOK / "why_networks_forget.ipynb"))
    assert re.search(rf"^{word}$", markdown(BOOK / "glossary.md"), re.MULTILINE)


# Phrases that readers stumbled over, with what to write instead.

UNITS = "task|weight|unit|class|layer|channel|step|batch|epoch|pixel|token|image|picture|KiB"
COUNTED = (
    "one|two|three|four|five|hundred|thousand|numbers?|bits?|bytes?|masks?|heads?|columns?|rows?|images?|pictures?|"
    "samples?|passes|pass|products?|epochs?|steps?|times|seconds|points|unknowns?"
)
STUMBLES = {
    rf"(?<=\s)(?:{COUNTED}) an? (?:{UNITS})\b": "per: two numbers per weight",
    r"\b95.in.100\b|\bt-interval": "95 % interval",
    r"\bsays? a difference\b": "there is a difference",
    r"sources?(?: and the papers)? simplif": "Common misreadings",
    r"\b(?:one|an?other|the|a (?:second|third)) (?:of our )?sources? (?:says?|writes?|calls?|names?|gives?|has)\b|"
    r"\bsources \d{3}\b": "the misreading, and no defendant: who wrote it stands on the page about the sources",
    r"(?:\b(?:no|not|never|nothing|none|nobody)\b[^.!?:;|\n]{0,24}[,.;] (?:and |or )?){3}": "fewer negations in a row",
    r"순열 MNIST|분할 MNIST": "순열 숫자, 분할 숫자: the digits are not MNIST",
}


def stumbles(text: str) -> list[str]:
    return [
        f"{match.group()!r} ({instead})"
        for phrase, instead in STUMBLES.items()
        for match in re.finditer(phrase, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "sources.md"], ids=lambda page: page.name)
def test_no_page_has_a_phrase_that_readers_stumbled_over(page: Path) -> None:
    text = re.sub(r"\{glue:text\}`[^`]*`", "...", markdown(page))  # tables of results are long
    assert not stumbles(text)
    assert re.search(r"\*exam\*", text) or not re.search(r"\bexams?\b", text), "say first what the exam is"
    rare = re.findall(r"\b(?:somebody|nobody|everybody)\b(?!'s)", re.sub(r"^\|.*$", "", text, flags=re.MULTILINE))
    assert len(rare) <= 3, "say who it is, or leave them out"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("offline EWC stores two numbers a weight", 1),
        ("an adapter adds one a task", 1),
        ("it gives a task its number, and each unit a class", 0),
        ("half of the 95-in-100 interval", 1),
        ("half of the 95 % interval", 0),
        ("One source says that A-GEM is simple.", 1),
        ("No mask is needed, no importance, and no task id, ever.", 1),
        ("It has no mask. The task id is not needed.", 0),
    ],
)
def test_stumbles_are_found(text: str, found: int) -> None:
    assert len(stumbles(text)) == found
