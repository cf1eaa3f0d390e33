"""Mark what a class has handed in: `python -m minicl.marking handed_in --set packnet-1 packnet-7 --out marks.csv`.

`handed_in` is a folder with a folder for each student, in which `answers.py` has a dictionary ANSWERS, from the name of
an exercise to its answer, or `answers.json` is what a page of the book has saved, or both; or a table (CSV) with a row
for each student and a column for each exercise, as a form gives it. Printed are each student's mark and hints, then
what the class got wrong; `--out` writes the marks as a table.

Students' programs run in processes of their own: one that is broken or never ends costs its student a line, and the
others nothing. That is no fence, though. Run it where you would run any program that you have not read.
"""

from __future__ import annotations

import argparse
import ast
import csv
import difflib
import json
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import exercises

NAME = "minicl.marking"
RIGHT, MISSING = "right", "not handed in"


@dataclass
class Marked:
    """What one student handed in.

    Attributes:
        student: the name of the folder, or the first column of the row.
        verdicts: for each exercise that was set "right", the name of the mistake, "wrong", or "not handed in".
        hints: for each exercise that is not right.
        warnings: keys that nobody asked for, each with what may be meant.
        why: what kept the answers from being marked; empty where nothing did.
    """

    student: str
    verdicts: dict[str, str] = field(default_factory=dict)
    hints: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    why: str = ""

    @property
    def right(self) -> int:
        """How many answers are right."""
        return sum(verdict == RIGHT for verdict in self.verdicts.values())

    def __str__(self) -> str:
        if self.why:
            return f"{self.student}: cannot be marked: {self.why}"
        lines = [f"{self.student}: {self.right} of {len(self.verdicts)} right"]
        lines += [f"  {name}: {words}" for name, words in self.hints.items()]
        return "\n".join([*lines, *(f"  warning: {words}" for words in self.warnings)])


def mark(student: str, answers: Mapping[str, Any], asked: Sequence[str], variants: bool = False) -> Marked:
    """Judge a student's answers to the exercises that were asked. With `variants`, each has numbers of their own."""
    varied = exercises.varied() if variants else []
    found = Marked(student, warnings=list(_unknown(answers, asked)))
    for name in asked:
        if name not in answers:
            found.verdicts[name] = found.hints[name] = MISSING
            continue
        verdict = exercises.check(name, answers[name], variant=student if name in varied else None)
        found.verdicts[name] = RIGHT if verdict else verdict.mistake or "wrong"
        if not verdict:
            found.hints[name] = verdict.words
    return found


def _unknown(answers: Mapping[str, Any], asked: Sequence[str]) -> Iterator[str]:
    """What to say of keys that were not asked for: a slip of the pen must not cost a mark in silence."""
    there_are = [name for chapter in exercises.chapters() for name in exercises.exercises(chapter)]
    for key in answers:
        if key in asked:
            continue
        if key in there_are:
            yield f"{key!r} was not set"
        else:
            near = [*difflib.get_close_matches(str(key), asked), *difflib.get_close_matches(str(key), there_are)]
            yield f"{key!r} is no exercise" + (f"; is {near[0]!r} meant?" if near else "")


def read(student: Path, asked: Sequence[str]) -> dict[str, Any]:
    """A student's answers: what a page of the book has saved (those that were asked), and what the program says.

    A page saves the answers of all pages: there it is no slip to have more than was asked. Of two answers to the same
    exercise the program's is marked.
    """
    saved, program = student / "answers.json", student / "answers.py"
    answers = json.loads(saved.read_text(encoding="utf-8"))["answers"] if saved.is_file() else {}
    answers = {name: answer for name, answer in answers.items() if name in asked}
    if program.is_file() or not saved.is_file():
        answers |= runpy.run_path(str(program))["ANSWERS"]
    return answers


def of_folder(folder: Path, asked: Sequence[str], seconds: float, variants: bool = False) -> Iterator[Marked]:
    """Mark the answers in each folder of `folder`, each in a process of its own, two at a time."""
    students = sorted(path for path in folder.iterdir() if path.is_dir())
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda student: _in_a_process(student, asked, seconds, variants), students)


def _in_a_process(student: Path, asked: Sequence[str], seconds: float, variants: bool) -> Marked:
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "marked.json"  # not what is printed: the students' programs print as well
        command = [sys.executable, "-X", "utf8", "-m", NAME, str(student), "--one", str(result)]
        command += ["--variants"] * variants
        try:
            done = subprocess.run(
                [*command, "--set", *asked], capture_output=True, encoding="utf-8", timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return Marked(student.name, why=f"not done after {seconds:g} seconds")
        if not result.is_file():
            lines = done.stderr.strip().splitlines()
            return Marked(student.name, why=lines[-1] if done.returncode and lines else "it ended early")
        return Marked(student.name, **json.loads(result.read_text(encoding="utf-8")))


def of_table(path: Path, asked: Sequence[str], variants: bool = False) -> Iterator[Marked]:
    """Mark a table: the student in the first column, the others named as exercises; what is empty was not handed in.

    A cell holds what one would write in Python, such as 0.5 or [2, -1, 0]; a word needs no quotes.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            (_, student), *cells = row.items()
            answers = {name: _value(cell) for name, cell in cells if name and (cell or "").strip()}
            yield mark(student, answers, asked, variants)


def _value(cell: str) -> Any:
    try:
        return ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError):
        return cell.strip()


def summary(marked: Sequence[Marked], asked: Sequence[str]) -> list[str]:
    """What the class got right and wrong, a line for each exercise, the commonest mistake first."""
    lines = []
    read = [each for each in marked if not each.why]
    for name in asked:
        counts = Counter(each.verdicts[name] for each in read)
        right = counts.pop(RIGHT, 0)
        mistakes = "".join(f"; {n} x {mistake}" for mistake, n in counts.most_common())
        lines.append(f"{name}: {right} of {len(read)} right{mistakes}")
    return lines


def write(path: Path, marked: Sequence[Marked], asked: Sequence[str]) -> None:
    """Write the marks as a table: a row for each student, a column for each exercise."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["student", "right", "of", *asked, "note"])
        for each in marked:
            verdicts = [each.verdicts.get(name, "") for name in asked]
            table.writerow([each.student, each.right, len(asked), *verdicts, each.why or "; ".join(each.warnings)])


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog=f"python -m {NAME}", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("handed_in", type=Path, help="a folder with a folder for each student, or a table (CSV)")
    parser.add_argument("--set", nargs="+", required=True, dest="asked", metavar="EXERCISE", help="such as packnet-1")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the marks as a table (CSV)")
    parser.add_argument("--seconds", type=float, default=60, help="for one student's file (default: 60)")
    parser.add_argument("--variants", action="store_true", help="each student had numbers of their own, by their name")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # a single folder, and where its result goes
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = parser().parse_args(arguments)
    if given.one:
        marked = mark(given.handed_in.name, read(given.handed_in, given.asked), given.asked, given.variants)
        about = {"verdicts": marked.verdicts, "hints": marked.hints, "warnings": marked.warnings}
        given.one.write_text(json.dumps(about), encoding="utf-8")
        return
    try:
        for name in given.asked:
            exercises.asked(name)
    except ValueError as error:
        parser().error(str(error))
    if not given.handed_in.exists():
        parser().error(f"there is no {given.handed_in}; allowed: a folder with a folder for each student, or a table")
    found = []
    if given.handed_in.is_dir():
        rows = of_folder(given.handed_in, given.asked, given.seconds, given.variants)
    else:
        rows = of_table(given.handed_in, given.asked, given.variants)
    for each in rows:
        print(each, flush=True)
        found.append(each)
    print("", "The class:", *(f"  {line}" for line in summary(found, given.asked)), sep="\n")
    if given.out:
        write(given.out, found, given.asked)


if __name__ == "__main__":
    main()
