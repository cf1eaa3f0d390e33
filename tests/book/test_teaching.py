"""The teacher's page: its command marks answers, and the exercises that it names exist."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import scripts
from scripts import BOOK

import minicl
import minicl.exercises
from minicl import marking

PAGE, FRONT = BOOK / "teaching.md", BOOK / "index.md"
CHAPTERS = {"why_networks_forget": "forgetting", "three_scenarios": "scenarios", "measuring_forgetting": "measuring"}

STEP = "def step(g1, g2, H1, lr):\n    return {sign}lr * g1 @ g2 + lr**2 / 2 * g2 @ H1 @ g2\n\n"
HANDED_IN = {
    "ada": STEP.format(sign="-") + "ANSWERS = {'forgetting-3': [2, -1, 0], 'forgetting-4': step}",
    "bob": "print('right')\n"
    + STEP.format(sign="+")
    + "ANSWERS = {'forgetting-4': step, 'forgeting-3': 1, 'hat-1': 1}",
    "broken": "def step(:\n",
    "exits": "raise SystemExit(0)",
    "missing": None,
}
MARKS = """ada: 2 of 2 right
bob: 0 of 2 right
  forgetting-3: not handed in
  forgetting-4: The step is -lr * g2: a sign is lost
  warning: 'forgeting-3' is no exercise; is 'forgetting-3' meant?
  warning: 'hat-1' was not set
broken: cannot be marked: SyntaxError
exits: cannot be marked: it ended early
missing: cannot be marked: FileNotFoundError

The class:
  forgetting-3: 1 of 2 right; 1 x not handed in
  forgetting-4: 1 of 2 right; 1 x sign of the first term""".splitlines()
ASKED = ["--set", "forgetting-3", "forgetting-4"]


def mark(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What the command of the page does."""
    command = [sys.executable, "-m", "minicl.marking", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def handed_in(folder: Path, files: dict[str, str | None]) -> Path:
    for name, code in files.items():
        (folder / "handed_in" / name).mkdir(parents=True)
        if code is not None:
            (folder / "handed_in" / name / "answers.py").write_text(code)
    (folder / "handed_in" / "notes.txt").write_text("no student")
    return folder / "handed_in"


def test_a_folder_of_answers_is_marked_whatever_is_in_it(tmp_path: Path) -> None:
    done = mark(handed_in(tmp_path, HANDED_IN), *ASKED, "--out", tmp_path / "marks.csv")
    lines = done.stdout.splitlines()
    assert len(lines) == len(MARKS), done.stderr
    for line, expected in zip(lines, MARKS, strict=True):
        assert line.startswith(expected)
    with (tmp_path / "marks.csv").open(newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert list(rows["ada"].values()) == ["ada", "2", "2", "right", "right", ""]
    assert rows["bob"]["forgetting-3"] == "not handed in"
    assert rows["bob"]["forgetting-4"] == "sign of the first term"
    assert rows["bob"]["note"].startswith("'forgeting-3' is no exercise")
    assert rows["exits"]["note"] == "it ended early"


def test_what_a_page_has_saved_is_marked_beside_the_program(tmp_path: Path) -> None:
    asked = ["measuring-1", "forgetting-3", "pnn-4"]
    saved = {"answers": {"measuring-1": 0.2, "hat-1": {"a": "mask"}, "pnn-4": 50}}
    (tmp_path / "answers.json").write_text(json.dumps(saved), encoding="utf-8")
    assert marking.read(tmp_path, asked) == {"measuring-1": 0.2, "pnn-4": 50}
    (tmp_path / "answers.py").write_text("ANSWERS = {'forgetting-3': [2, -1, 0], 'measuring-1': -0.2}")
    marked = marking.mark("cora", marking.read(tmp_path, asked), asked)
    assert marked.verdicts == {"measuring-1": "right", "forgetting-3": "right", "pnn-4": "wrong"}
    assert not marked.warnings


def test_a_file_that_never_ends_costs_its_student_alone(tmp_path: Path) -> None:
    folder = handed_in(tmp_path, {"eve": "while True:\n    pass\n"})
    assert mark(folder, *ASKED, "--seconds", "1").stdout.startswith("eve: cannot be marked: not done after 1 seconds\n")


def test_a_table_is_marked_and_a_word_needs_no_quotes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "answers.csv"
    rows = ["Name,measuring-1,forgetting-3,measuring-44", 'ada,-0.2,"[2, -1, 0]",', "bob,minus a fifth,,7"]
    table.write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    marking.main([str(table), "--set", "measuring-1", "forgetting-3"])
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["ada: 2 of 2 right", "bob: 0 of 2 right"]
    assert said[2].startswith("  measuring-1: The answer is a str; numbers are asked for")
    assert "  warning: 'measuring-44' is no exercise; is 'measuring-1' meant?" in said


def test_each_student_is_marked_by_numbers_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (listed,) = re.findall(r"have numbers of one's own: (.*?)\.", PAGE.read_text(encoding="utf-8"))
    assert re.findall(r"`(.*?)`", listed) == minicl.exercises.varied()
    table = tmp_path / "answers.csv"
    weights = re.findall(r"A network has (\d+) million .* colour, (\d+) by", minicl.question("the_map-3", "Ada"))
    ((millions, side),) = weights
    right = 8_000_000 * int(millions) // (3 * int(side) ** 2)
    table.write_text(f"student,the_map-3,hat-1\nada,{right},\nbob,2604,\n")
    marking.main([str(table), "--set", "the_map-3", "hat-1", "--variants"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "ada: 1 of 2 right"
    assert next(line for line in said if line.startswith("bob")) == "bob: 0 of 2 right", "the answer of the page"


def test_what_cannot_be_marked_at_all_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in [
        ([str(tmp_path), "--set", "forgetting-99"], "this chapter has: forgetting-1"),
        ([str(tmp_path / "none"), "--set", "forgetting-1"], "a folder with a folder for each student"),
    ]:
        with pytest.raises(SystemExit):
            marking.main(arguments)
        assert words in capsys.readouterr().err


def test_the_page_shows_the_command() -> None:
    (command,) = re.findall(r"^python -m minicl.marking (.*)$", PAGE.read_text(encoding="utf-8"), re.M)
    given = marking.parser().parse_args(command.split())
    assert given.asked[0] == "forgetting-1"
    assert given.out


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
