"""The one list of what is promised: its tables are those that the tests run, and what it says elsewhere is the same."""

from __future__ import annotations

import re

import pytest
import scripts
from scripts import BOOK

from minicl.testing import LOOPS, METHODS, WRITERS

ROOT = BOOK.parent
promises = scripts.load("tools/promises.py")


def test_the_tables_of_the_page_are_those_of_the_tests() -> None:
    page = (BOOK / "promises.md").read_text(encoding="utf-8")
    assert page == promises.written(page), "run: python tools/promises.py"
    for name in (*LOOPS, *WRITERS):
        assert f"| `{name}` |" in page
    assert page.count("| refused, in words, by `") == 2  # in the tables
    assert all(f"`{name}`" in page for name, row in METHODS.items() if row.refuses)


def test_a_table_that_is_out_of_date_is_noticed() -> None:
    page = (BOOK / "promises.md").read_text(encoding="utf-8")
    assert promises.written(page.replace("| `SGD` |", "| `SDG` |")) == page


def order_of_calls(text: str) -> str:
    found = re.search(r"\| when \| call \| why there \|\n(?:\|.*\n)+", text)
    assert found
    return found.group()


def test_the_order_of_calls_is_the_same_table_in_both_places() -> None:
    readme, api = (ROOT / name for name in ("README.md", "book/api.md"))
    assert order_of_calls(readme.read_text(encoding="utf-8")) == order_of_calls(api.read_text(encoding="utf-8"))


def test_whoever_states_the_promise_links_the_list() -> None:
    for name in ("CONTRIBUTING.md", "README.md", "book/api.md", "book/teaching.md"):
        assert "promises.md)" in (ROOT / name).read_text(encoding="utf-8"), name


def test_the_students_learner_of_the_teaching_page_passes() -> None:
    (code,) = re.findall(
        r"```python\n(  import minicl\n.*?)```", (BOOK / "teaching.md").read_text(encoding="utf-8"), re.S
    )
    code = "\n".join(line.removeprefix("  ") for line in code.splitlines())
    assert code.count("check_learner(NearTheLast)") == 1
    names = {"__name__": "hand_in"}
    exec(code.replace("check_learner(NearTheLast)", 'check_learner(NearTheLast, only="writer")'), names)
    with pytest.raises(AssertionError, match="NearTheLast, loop: SGD: "):
        exec(code.replace("(NearTheLast)", '(NearTheLast, keeps="logits", only="loop")'), names)
