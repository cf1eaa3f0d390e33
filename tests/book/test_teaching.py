"""The teacher's page: its script marks answers, and the exercises that it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import scripts
from scripts import BOOK

import minicl
import minicl.exercises

PAGE, FRONT = BOOK / "teaching.md", BOOK / "index.md"
CHAPTERS = {"why_networks_forget": "forgetting", "three_scenarios": "scenarios", "measuring_forgetting": "measuring"}

STEP = "def step(g1, g2, H1, lr):\n    return {sign}lr * g1 @ g2 + lr**2 / 2 * g2 @ H1 @ g2\n\n"
HANDED_IN = {
    "ada": STEP.format(sign="-") + "ANSWERS = {'forgetting-3': [2, -1, 0], 'forgetting-4': step}",
    "bob": "print('MARKED 2 of 2 right')\n" + STEP.format(sign="+") + "ANSWERS = {'forgetting-4': step}",
    "broken": "def step(:\n",
    "empty": "",
    "exits": "raise SystemExit(0)",
    "missing": None,
    "raises": "ANSWERS = {'forgetting-3': [1 / 0]}",
}
MARKS = {
    "ada": ["2 of 2 right"],
    "bob": ["0 of 2 right", "  forgetting-3: not handed in", "  forgetting-4: The step is -lr * g2: a sign is lost"],
    "broken": ["cannot be marked: SyntaxError"],
    "empty": ["cannot be marked: KeyError: 'ANSWERS'"],
    "exits": ["cannot be marked: it ended early"],
    "missing": ["cannot be marked: FileNotFoundError"],
    "raises": ["cannot be marked: ZeroDivisionError"],
}


def mark(folder: Path, handed_in: dict[str, str | None], seconds: int) -> list[str]:
    """What the script of the page prints for these files."""
    (script,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    script, changed = re.subn(r"^SECONDS = \d+", f"SECONDS = {seconds}", script, flags=re.M)
    script, also = re.subn(r"^SET = .*", 'SET = ["forgetting-3", "forgetting-4"]', script, flags=re.M)
    assert changed == also == 1
    (folder / "mark.py").write_text(script, encoding="utf-8")
    for name, code in handed_in.items():
        (folder / "handed_in" / name).mkdir(parents=True)
        if code is not None:
            (folder / "handed_in" / name / "answers.py").write_text(code)
    (folder / "handed_in" / "notes.txt").write_text("no student")
    done = subprocess.run([sys.executable, "mark.py"], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_script_marks_a_folder_of_answers_whatever_is_in_it(tmp_path: Path) -> None:
    lines = iter(mark(tmp_path, HANDED_IN, seconds=300))
    for name, (first, *more) in MARKS.items():
        assert next(lines).startswith(f"{name}: {first}")
        for hint in more:
            assert next(lines).startswith(hint)
    assert list(lines) == []


def test_script_goes_on_after_a_file_that_never_ends(tmp_path: Path) -> None:
    lines = mark(tmp_path, {"eve": "while True:\n    pass\n", "fay": "while True:\n    pass\n"}, seconds=1)
    assert lines == [f"{name}: cannot be marked: not done after 1 seconds" for name in ("eve", "fay")]


def minutes() -> tuple[dict[str, int], dict[str, float]]:
    """What it takes to read a page, as the front page or the page itself says, and to do an exercise of a chapter."""
    cards = re.findall(r":link: (\w+)\n.*?\n(\d+) minutes(?:, exercises (\d+))?\n", FRONT.read_text("utf-8"), re.S)
    reading = {page: int(read) for page, read, _ in cards} | {"your_data": 20, "your_network": 30}
    assert "**Time**: 20 minutes" in scripts.markdown(BOOK / "your_data.ipynb")
    assert "**It takes** half an hour" in scripts.markdown(BOOK / "your_network.ipynb")
    each = {}
    for page, _, exercises in cards:
        if exercises:
            chapter = CHAPTERS.get(page, page)
            each[chapter] = int(exercises) / len(minicl.exercises.exercises(chapter))
    return reading, each


def named(cell: str) -> list[str]:
    """The exercises of a cell: `pnn-1`, `-2`."""
    found: list[str] = []
    for chapter, number in re.findall(r"`(\w*)-(\d)`", cell):
        found.append(f"{chapter or found[-1].partition('-')[0]}-{number}")
    return found


def test_the_plan_holds_what_it_says_about_time() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [row.split("|")[1:-1] for row in re.findall(r"^\| \d \|.*", page, re.M)]
    plans = re.findall(r"^\*\*In class\.\*\* (.*)", page, re.M)
    reading, each = minutes()
    left, seen, chapters = 0.0, [], set()
    assert len(rows) == len(plans) == 8
    for (_, before, in_class, at_home, total), plan in zip(rows, plans, strict=True):
        assert sum(map(int, re.findall(r"\((\d+)(?: min)?\)", plan))) == 85, plan
        (given,) = re.findall(r"exercises \((\d+)\)", plan)
        assert sum(each[name.rpartition("-")[0]] for name in named(in_class)) <= int(given)
        pages = re.findall(r"\]\((\w+)\.", before)
        assert abs(left + sum(reading[name] for name in pages) - int(total)) < 8, before
        assert int(total) <= 150
        left = sum(each[name.rpartition("-")[0]] for name in named(at_home))
        seen += named(in_class) + named(at_home)
        chapters |= set(pages)
    assert left == 0, "homework after the last session"
    assert len(seen) == len(set(seen)) > 40
    assert chapters == reading.keys(), "a chapter has no place, or two"
    for name in seen:
        assert not minicl.check(name, None)  # raises for a name that is unknown


def test_names_exercises_that_exist() -> None:
    names = set(re.findall(r"`([a-z]+-\d)`", PAGE.read_text()))
    assert len(names) > 10
    for name in names:
        verdict = minicl.check(name, None)  # raises for a name that is unknown
        assert not verdict
