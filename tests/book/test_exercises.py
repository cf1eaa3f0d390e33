"""Every exercise: right answers pass, wrong answers that people give are recognised by name, rubbish gets a hint.

A chapter's answers are in tests/book/exercises/<chapter>.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scripts
import torch

import minicl
from minicl import exercises
from minicl.exercises import Hint, Verdict, call, compare, is_number, is_text, number, text

FOLDER = Path(__file__).parent / "exercises"
NAMES = [name for chapter in exercises.chapters() for name in exercises.exercises(chapter)]


def answers(chapter: str) -> ModuleType:
    """The tables RIGHT and WRONG of a chapter."""
    return scripts.load(FOLDER / f"{chapter}.py", f"answers_{chapter}")


TABLES = {chapter: answers(chapter) for chapter in exercises.chapters()}
RIGHT = [(name, answer) for table in TABLES.values() for name, given in table.RIGHT.items() for answer in given]
WRONG = [(name, mistake) for table in TABLES.values() for name, given in table.WRONG.items() for mistake in given]


@cache
def verdict_on(name: str, mistake: str) -> Verdict:
    return minicl.check(name, TABLES[name.rpartition("-")[0]].WRONG[name][mistake])


@pytest.mark.parametrize("name", NAMES)
def test_every_exercise_has_answers(name: str) -> None:
    table = TABLES[name.rpartition("-")[0]]
    assert table.RIGHT.get(name), f"no right answer to {name}"
    assert len(table.WRONG.get(name, {})) >= 2, f"fewer than two wrong answers to {name}"
    assert exercises.asked(name), f"{name} does not say what it asks for"


@pytest.mark.parametrize("chapter", exercises.chapters())
def test_answers_belong_to_an_exercise(chapter: str) -> None:
    names = set(exercises.exercises(chapter))
    assert names
    assert names == set(TABLES[chapter].RIGHT) == set(TABLES[chapter].WRONG)
    assert exercises.exercises(chapter) == [f"{chapter}-{i}" for i in range(1, len(names) + 1)]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[name for name, _ in RIGHT])
def test_right_answers_pass(name: str, answer: Any) -> None:
    verdict = minicl.check(name, answer)
    assert verdict, verdict
    assert repr(verdict).startswith("Right.")


@pytest.mark.parametrize(("name", "mistake"), WRONG)
def test_wrong_answers_are_recognised(name: str, mistake: str) -> None:
    verdict = verdict_on(name, mistake)
    assert not verdict
    assert verdict.mistake == mistake, verdict
    assert repr(verdict).startswith("Not yet.")
    assert len(verdict.words) > 20, "a hint is a sentence"


@pytest.mark.parametrize("name", NAMES)
def test_hints_differ_from_mistake_to_mistake(name: str) -> None:
    table = TABLES[name.rpartition("-")[0]]
    hints = [verdict_on(name, mistake).words for mistake in table.WRONG[name]]
    assert len(set(hints)) == len(hints)


def _raises(*_: Any) -> Any:
    raise KeyError("broken")


def _exits(*_: Any) -> Any:
    raise SystemExit(1)


RUBBISH = {
    "nothing": None,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a word": "no such answer",
    "an object": object(),
    "an empty list": [],
    "an empty dictionary": {},
    "an array of another shape": np.zeros((2, 7, 3)),
    "NaN in a tensor": torch.full((3,), float("nan")),
    "a function that raises": _raises,
    "a function that returns nothing": lambda *_: None,
    "a function that returns NaN": lambda *_: float("nan"),
    "a function that returns text": lambda *_: "text",
    "a function that returns another shape": lambda *_: np.zeros((2, 7, 3)),
    "a function without arguments": lambda: 0.0,
    "a function that ends the program": _exits,
    "a number in quotes": "0.5",
    "numbers in quotes": ["2", "-1", "0"],
    "a number that no float holds": 10**400,
    "half precision, the other one": torch.ones(2, dtype=torch.bfloat16),
    "a complex number": 1j,
    "a class": int,
    "a module": torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", NAMES)
def test_rubbish_gets_a_hint_and_no_traceback(name: str) -> None:
    for what, answer in RUBBISH.items():
        verdict = minicl.check(name, answer)
        assert not verdict, f"{what} passed as the answer to {name}"
        assert len(verdict.words) > 20, what
        assert "object is not callable" not in verdict.words, what


def test_unknown_exercises_are_refused_with_a_list() -> None:
    with pytest.raises(ValueError, match=r"forgetting-99.*this chapter has: forgetting-1"):
        minicl.check("forgetting-99", 1)
    for name in ("nonsense-1", "forgetting", "", None, "__init__-1"):
        with pytest.raises(ValueError, match=r"no exercise.*forgetting-1"):
            minicl.check(name, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"nonsense.*allowed: .*forgetting"):
        exercises.exercises("nonsense")


def test_random_cases_depend_on_nothing_and_leave_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    monkeypatch.setitem(exercises.EXERCISES, "forgetting-1", lambda answer: drawn.append(float(torch.rand(()))))
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        assert minicl.check("forgetting-1", None)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn[0] == drawn[1]


def test_whatever_an_exercise_raises_becomes_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(answer: Any) -> None:
        """A number, say."""
        raise LookupError("no such thing")

    monkeypatch.setitem(exercises.EXERCISES, "forgetting-1", broken)
    verdict = minicl.check("forgetting-1", 1)
    assert not verdict
    assert "LookupError (no such thing)" in verdict.words
    assert "A number, say." in verdict.words


def test_exercises_load_when_first_used() -> None:
    code = (
        "import sys, minicl; assert 'minicl.exercises' not in sys.modules; minicl.check('forgetting-1', 0);"
        "assert 'minicl.exercises.forgetting' in sys.modules; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr


# ---- the parts that exercises are made of ----------------------------------------------------------------------------


def test_verdict_is_a_bool_with_words() -> None:
    assert Verdict(True)
    assert repr(Verdict(True)) == "Right."
    assert repr(Verdict(True, "Well seen.")) == "Right. Well seen."
    assert not Verdict(False, "Look again.", "blind")
    assert repr(Verdict(False, "Look again.", "blind")) == "Not yet. Look again."


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), [0.5], np.array([[0.5]])])
def test_number_takes_whatever_is_one_number(value: Any) -> None:
    assert number(value) == 0.5


def test_numbers_in_quotes_are_not_numbers() -> None:
    for value in ("0.5", ["0.5"], np.array(["0.5"]), np.array(["0.5"], dtype=object), b"0.5"):
        with pytest.raises(Hint, match="numbers are asked for"):
            number(value)
    assert number(torch.tensor(0.5, dtype=torch.bfloat16)) == 0.5


def test_is_number_says_too_large_or_too_small_and_knows_the_usual_mistakes() -> None:
    is_number(0.25, 0.25, {})
    for value, words, mistake in [
        (0.5, "too large", ""),
        (0.1, "too small", ""),
        (-0.25, "sign", "wrong sign"),
        (25, "percent", "percent"),
    ]:
        with pytest.raises(Hint, match=words) as caught:
            is_number(value, 0.25, {})
        assert caught.value.mistake == mistake


def test_is_text_ignores_capitals_and_lists_what_is_allowed() -> None:
    is_text(" Class ", "class", {"task": "no"})
    with pytest.raises(Hint, match="'class', 'task'"):
        is_text("domain", "class", {"task": "no"})
    with pytest.raises(Hint, match=r"^no$") as caught:
        is_text("task", "class", {"task": "no"})
    assert caught.value.mistake == "task"


def test_words_may_be_written_as_people_write_them() -> None:
    allowed = ["derpp", "der", "domain", "fine-tuning", "re-train"]
    for given, word in [("DER++", "derpp"), ("Domain-IL", "domain"), ("fine tuning", "fine-tuning"), ("DER", "der")]:
        assert text(given, allowed) == word
    for given in ("", "il", "domain-ils", 1, None):
        with pytest.raises(Hint, match="allowed"):
            text(given, allowed)


def test_a_mistake_that_is_made_in_several_ways_has_one_hint() -> None:
    for given in (0.5, 0.75):
        with pytest.raises(Hint) as caught:
            is_number(given, 1.0, {"a share": ((0.5, 0.75), "All of it.")})
        assert caught.value.mistake == "a share"


def answer_of(question: str) -> float:
    """An answer to a question of `packnet-7`, from its text alone."""
    found = [float(number) for number in re.findall(r"-?\d+\.\d+", question)]
    weight, lr, momentum, decay, velocity = found
    for _ in range(2):
        velocity = momentum * velocity + decay * weight
        weight -= lr * velocity
    return round(weight, 3)


def test_a_variant_has_numbers_of_its_own_that_its_question_names() -> None:
    asked = {name: minicl.question("packnet-7", name) for name in ("ada", "bob", "eve", "fay", "guy")}
    assert len(set(asked.values())) > 3
    assert minicl.question("packnet-7", " Ada ") == asked["ada"]
    for name, question in asked.items():
        assert minicl.check("packnet-7", answer_of(question), variant=name)
    assert not minicl.check("packnet-7", 1.29875, variant="ada"), "the page's answer"
    assert minicl.check("packnet-7", 1.29875)


@pytest.mark.parametrize("name", exercises.varied())
def test_variants_tell_the_mistakes_of_the_page_and_differ(name: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert len({minicl.question(name, seed) for seed in range(8)}) > 3
    answer = TABLES[name.rpartition("-")[0]].RIGHT[name][0]
    assert minicl.check(name, answer)
    assert not all(minicl.check(name, answer, variant=seed) for seed in range(8)), "the page's answer serves all"
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_exercise_without_variants_names_those_that_have_them() -> None:
    for ask in (lambda: minicl.question("hat-1", 1), lambda: minicl.check("hat-1", {}, variant=1)):
        with pytest.raises(ValueError, match=r"hat-1 asks everybody the same.*forgetting-3, measuring-1, packnet-7"):
            ask()


def test_call_gives_copies_and_notices_changes() -> None:
    x = torch.zeros(3)
    with pytest.raises(Hint, match="Work on a copy"):
        call(lambda t: t.add_(1), x)
    assert torch.equal(x, torch.zeros(3))


def test_compare_names_the_mistake_only_where_it_explains_every_case() -> None:
    cases = [(np.array([1.0, 2.0]),), (np.array([3.0, 3.0]),)]
    mistakes = {"the largest": (lambda x: x.max(), "Not the largest.")}
    compare(np.mean, np.mean, cases, mistakes)
    with pytest.raises(Hint, match="Not the largest") as caught:
        compare(np.max, np.mean, cases, mistakes)
    assert caught.value.mistake == "the largest"
    with pytest.raises(Hint, match=r"For \[1.0, 2.0\] your function returns 1.0"):
        compare(np.min, np.mean, cases, mistakes)


def test_compare_shows_the_smallest_case_and_points_at_the_entry() -> None:
    cases = [(np.arange(40.0),), (np.array([[1.0, 2.0], [3.0, 4.0]]),), (np.arange(30.0),)]
    with pytest.raises(Hint, match=r"For \[\[1.0, 2.0\], \[3.0, 4.0\]\] .*entry \[0, 1\], which is 5"):
        compare(lambda x: x + 3 * (np.arange(x.size).reshape(x.shape) == 1), lambda x: x, cases, {})
    with pytest.raises(Hint, match=r"For 3, \[0.5, 0.25\] your"):
        compare(lambda n, shares: 0.0, lambda n, shares: n, [(3, [0.5, 0.25])], {})


CHAPTERS = [path for path in scripts.NOTEBOOKS if path.stem not in ("your_network", "your_data")]  # pages of recipes


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_chapter_asks_from_recall_to_research(path: Path) -> None:
    cells = [scripts.source(cell) for cell in scripts.cells(path)]
    asked = [re.search(r"\{admonition\} Exercise (\d) \((\w+)\): ", cell) for cell in cells]
    found = [(int(match[1]), match[2], at) for at, match in enumerate(asked) if match]
    assert [k for k, _, _ in found] == list(range(1, len(found) + 1))
    assert len(found) >= 5
    assert found[0][1] == "recall"
    assert found[-1][1] == "research"
    for k, _, at in found:
        names = set(re.findall(r"check\(\s*\"(\w+)-(\d)\"", cells[at] + cells[at + 1]))
        ((chapter, n),) = names
        assert int(n) == k, "the question and its solution name the same exercise"
        assert f"{chapter}-{n}" in NAMES
        assert "{dropdown} Hint" in cells[at], "a hint, folded"
