"""The teacher's page: its script marks answers, and the exercises that it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import minicl

PAGE = Path(__file__).resolve().parent.parent / "book" / "teaching.md"


def test_script_marks_a_folder_of_answers(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    good, bad = tmp_path / "handed_in" / "ada", tmp_path / "handed_in" / "bob"
    for folder, sign in ((good, "-"), (bad, "+")):
        folder.mkdir(parents=True)
        code = f"def step(g1, g2, H1, lr):\n    return {sign}lr * g1 @ g2 + lr**2 / 2 * g2 @ H1 @ g2\n"
        (folder / "answers.py").write_text(code + "ANSWERS = {'forgetting-4': step}\n")
    (tmp_path / "mark.py").write_text(script)
    done = subprocess.run([sys.executable, "mark.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "ada: 1 of 1 right"
    assert lines[1] == "bob: 0 of 1 right"
    assert lines[2].startswith("  forgetting-4: ")


def test_names_exercises_that_exist() -> None:
    names = set(re.findall(r"`([a-z]+-\d)`", PAGE.read_text()))
    assert len(names) > 10
    for name in names:
        verdict = minicl.check(name, None)  # raises for a name that is unknown
        assert not verdict
