"""What a page says of an answer is what `minicl.check` says of it: the pages' script, run by Playwright's Node."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import playwright
import pytest
import scripts
from docutils import nodes
from docutils.utils import new_document

import minicl
from minicl import exercises, metrics
from minicl.exercises._declared import DECLARED, Mistake, Numbers, Words

ROOT = Path(__file__).resolve().parents[2]
NODE = next((Path(playwright.__file__).parent / "driver").glob("node*"))
for _chapter in exercises.chapters():
    exercises.exercises(_chapter)
WORDS = {name: question for name, question in DECLARED.items() if isinstance(question, Words)}
NUMBERS = {name: question for name, question in DECLARED.items() if isinstance(question, Numbers)}

JUDGE = """
const checks = require("fs").readFileSync(process.argv[1], "utf8") + "\\n; checks";
const {judge, read} = eval(checks), {tables, asked, texts} = JSON.parse(require("fs").readFileSync(0, "utf8"));
const verdicts = asked.map(([name, answer]) => judge(tables[name], answer));
console.log(JSON.stringify([verdicts, texts.map(text => read(text))]));
"""


def without_nan(answer: Any) -> Any:
    """An answer as a page keeps it: JSON has null for NaN."""
    if isinstance(answer, list):
        return [without_nan(entry) for entry in answer]
    return None if isinstance(answer, float) and math.isnan(answer) else answer


def in_the_page(asked: list[tuple[str, Any]], texts: list[str]) -> tuple[list[dict[str, Any]], list[Any]]:
    """What the script says of answers, and as what it reads the texts of fields."""
    asked = [(name, without_nan(answer)) for name, answer in asked]
    given = {"tables": {name: question.table() for name, question in DECLARED.items()}, "asked": asked, "texts": texts}
    command = [str(NODE), "-e", JUDGE, str(ROOT / "book" / "_static" / "checks.js")]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, encoding="utf-8", check=True)
    verdicts, read = json.loads(done.stdout)
    return verdicts, read


def words(rng: random.Random) -> list[tuple[str, Any]]:
    """Many choices of words, every mistake of the tables among them, and words that are no choice."""
    asked: list[tuple[str, Any]] = []
    for name, question in WORDS.items():
        every = list(itertools.islice(itertools.product(question.choices(), repeat=len(question.right)), 5000))
        chosen = rng.sample(every, min(len(every), 60))
        right = [min(question.accepted(key)) for key in question.right]
        ends = [f"{right[-1]}-IL", f"{right[-1]} incremental", right[-1].upper()]
        strange = ["", "nonsense", "it's", 'say "no"', 'it\'s "so"', "a\\b", "DER++", *ends]
        known = [right, *([*right[:-1], f" {word} "] for word in strange)]
        for where in [where for mistake in question.mistakes for where in mistake.choices]:
            slips = {key: word or min(set(question.choices()) - question.accepted(key)) for key, word in where.items()}
            known.append([slips.get(key, word) for key, word in zip(question.right, right, strict=True)])
        for one in [*known, *map(list, chosen)]:
            asked.append((name, one if question.in_order else dict(zip(question.right, one, strict=True))))
    return asked


def numbers(rng: random.Random) -> list[tuple[str, Any]]:
    """Right and wrong numbers, of all sizes, and what is no number."""
    asked: list[tuple[str, Any]] = []
    for name, question in NUMBERS.items():
        size = math.prod(question.shape)
        entries: list[Any] = [0, 1, -1, 0.5, 1e-7, 2e-5, -1e-9, 1234565, 0.0625, 1e22, 100, 2.5, "abc", math.nan]
        if not question.shape:
            near = [one.number for case in question.cases for one in case.when if one.relation == "near"]
            entries += [*near, *(n * (1 + e) for n in near for e in (1e-9, 1e-5, 9e-4, 2e-3))]
            asked += [(name, entry) for entry in entries]
        for digits in (0, 1, 1, 1, 2, 12) * 15:
            flat = [round(rng.uniform(-0.1, 1.05) if size > 3 else rng.uniform(-3, 3), digits) for _ in range(size)]
            if digits == 12 and size > 1:
                flat[rng.randrange(size)] = rng.choice(entries)
            asked.append((name, np.reshape(np.array(flat, object), question.shape).tolist()))
    almost = [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5001, 0.5, 0.5]]  # F is a minus with three zeros
    return [*asked, ("measuring-4", almost)]


@cache
def answers(name: str) -> ModuleType:
    """The answers to a chapter's exercises that test `minicl.check`."""
    chapter = name.rpartition("-")[0]
    return scripts.load(ROOT / "tests" / "book" / "exercises" / f"{chapter}.py", f"page_{chapter}")


def handed_in() -> list[tuple[str, Any]]:
    """Right and wrong answers of the tables for the tests of `minicl.check`."""
    asked: list[tuple[str, Any]] = []
    for name in DECLARED:
        table = answers(name)
        for answer in [*table.RIGHT[name], *table.WRONG[name].values()]:
            asked.append((name, answer.tolist() if hasattr(answer, "tolist") else answer))
    return asked


def test_the_page_says_what_minicl_says() -> None:
    rng = random.Random(0)
    asked = [*handed_in(), *words(rng), *numbers(rng)]
    verdicts, _ = in_the_page(asked, [])
    right = set()
    for (name, answer), page in zip(asked, verdicts, strict=True):
        said = minicl.check(name, answer)
        assert page == {"right": said.right, "words": said.words, "mistake": said.mistake}, (name, answer)
        assert "Trying your answer raised" not in said.words, (name, answer)
        right |= {name} if said else set()
    assert right == set(DECLARED)
    hints = {page["mistake"] for page in verdicts}
    for question in DECLARED.values():
        cases = question.mistakes if isinstance(question, Words) else [c for c in question.cases if c.mistake]
        missing = {case.name if isinstance(case, Mistake) else case.mistake for case in cases} - hints
        assert not missing, f"mistakes that no answer here makes: {missing}"


def test_every_answer_that_is_no_program_is_declared() -> None:
    """Who writes an exercise that is answered with words or numbers writes it as data, and the page has it as well."""
    for name in exercises.EXERCISES:
        answer = answers(name).RIGHT[name][0]
        assert (name in DECLARED) is not callable(answer), name


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-0.2", -0.2),
        (" \u22120.25 ", -0.25),
        ("0,25", 0.25),
        (".5", 0.5),
        ("2.", 2.0),
        ("1e-3", 0.001),
        ("-1/4", -0.25),
        ("1 / 3", 1 / 3),
        ("NaN", None),
        ("1/0", None),  # infinity, which JSON has not either
        ("", ""),
        ("abc", "abc"),
        ("1 2", "1 2"),
        ("0.5.1", "0.5.1"),
        ("1,000,000", "1,000,000"),
        ("20%", "20%"),
        ("0x10", "0x10"),
        ("Infinity", "Infinity"),
    ],
)
def test_fields_are_read_as_people_write_numbers(text: str, number: Any) -> None:
    assert in_the_page([], [text])[1] == [number]


def test_a_form_stands_below_the_box_of_its_exercise() -> None:
    checks = scripts.load("tools/checks.py", "checks_of_pages")
    for builder, expected in (("html", ["hat-1"]), ("epub", [])):
        page = new_document("page")
        for name in ("hat-1", "hat-2"):
            page += nodes.admonition("", nodes.title("", "Exercise"), nodes.literal("", f'minicl.check("{name}", ...)'))
        page += nodes.paragraph("", 'minicl.check("pnn-1", answer)')
        checks._add_forms(SimpleNamespace(builder=SimpleNamespace(name=builder)), page, "page")
        forms = [(i, node.astext()) for i, node in enumerate(page) if isinstance(node, nodes.raw)]
        assert [re.search('data-exercise="([^"]*)"', form)[1] for _, form in forms] == expected  # type: ignore[index]
    assert json.loads(re.search(r">(\{.*\})</script>", checks.form("hat-1"))[1]) == DECLARED["hat-1"].table()  # type: ignore[index]


def test_quantities_of_a_matrix_are_those_of_the_metrics() -> None:
    question = NUMBERS["measuring-4"]
    rng = np.random.default_rng(0)
    for missing in itertools.product((False, True), repeat=3):
        R = rng.random((3, 3))
        R[np.triu_indices(3, 1)] = np.where(missing, math.nan, R[np.triu_indices(3, 1)])
        values = question.measure(R.reshape(-1).tolist())
        assert values["BWT"] == pytest.approx(metrics.backward_transfer(R))
        assert values["F"] == pytest.approx(metrics.forgetting(R))
    assert minicl.check("measuring-4", [[0.5, math.nan, math.nan], [0.9, 0.5, math.nan], [0.5, 0.5, 0.5]])
