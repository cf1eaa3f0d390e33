"""The teacher's page: its script marks answers, and the exercises that it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from scripts import BOOK

import minicl

PAGE = BOOK / "teaching.md"

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


def test_sessions_fit_into_their_ninety_minutes() -> None:
    rows = re.findall(r"^\| \d \|.*", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(rows) == 6
    for row in rows:
        assert sum(map(int, re.findall(r"\((\d+)(?: min)?\)", row))) == 85, row


def test_names_exercises_that_exist() -> None:
    names = set(re.findall(r"`([a-z]+-\d)`", PAGE.read_text()))
    assert len(names) > 10
    for name in names:
        verdict = minicl.check(name, None)  # raises for a name that is unknown
        assert not verdict
