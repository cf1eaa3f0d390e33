"""Who may import whom: the table in CONTRIBUTING.md, held against every import of the package."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

import minicl

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "minicl"
ABOVE_ALL = {"__init__", "__main__"}  # they gather what the floors hold


def floors() -> dict[str, int]:
    """The floor of each module or folder, counted from the top."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.search(r"\| floor \| modules \|.*?\n\n", text, re.DOTALL)
    assert table, "CONTRIBUTING.md has lost its table of floors"
    rows = [row.split("|")[1:3] for row in table.group().strip().splitlines()[2:]]
    assert [floor.strip() for floor, _ in rows] == ["book", "experiments", "methods", "core"]
    return {module: n for n, (_, modules) in enumerate(rows) for module in re.findall(r"`(\w+)`", modules)}


def top(path: Path) -> str:
    """The module or folder directly below the package that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """What a file imports from the package when it is loaded, as names directly below the package."""
    package = ["minicl", *path.relative_to(PACKAGE).with_suffix("").parts[:-1]]
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, (ast.FunctionDef, ast.If))  # in a function, or for the type checker alone
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in inside:
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            names = [[*module, alias.name] for alias in node.names] if len(module) == 1 else [module]
            found |= {name[1] for name in names if name[0] == "minicl" and len(name) > 1}
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if top(p) not in ABOVE_ALL)


def test_every_module_has_a_floor() -> None:
    assert {top(path) for path in FILES} == set(floors())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_from_a_floor_above(path: Path) -> None:
    floor = floors()
    gathered = -1 if floor[top(path)] else len(floor)  # a name of `minicl` itself: for the book alone
    above = [name for name in imported(path) - ABOVE_ALL if floor.get(name, gathered) < floor[top(path)]]
    assert not above, f"{path.name} imports from above: {', '.join(above)}"


def test_no_method_imports_training() -> None:
    """Not even inside a function."""
    floor = floors()
    for path in FILES:
        if floor[top(path)] >= floor["isolation"]:
            lines = path.read_text(encoding="utf-8").splitlines()
            assert not [line for line in lines if re.match(r"\s*(from|import) .*\btraining\b", line)], path.name


def test_the_version_is_stated_in_one_place() -> None:
    stated = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated
    for name in ("CITATION.cff", "_config.yml", "minicl/__init__.py", "README.md"):
        assert stated.group(1) not in (ROOT / name).read_text(encoding="utf-8"), f"{name} states the version again"


@pytest.mark.parametrize(
    ("message", "right"),
    [
        ("A learner that fails to answer keeps its modes\n\nWhy.", True),
        ("One thing\n# a comment of git", True),
        ("One thing; and another", False),
        ("x" * 101, False),
        ("", False),
        ("One thing\nand no empty line", False),
    ],
)
def test_a_commit_subject_says_one_thing(message: str, right: bool) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from commit_subject import problem
    finally:
        sys.path.remove(str(ROOT / "tools"))
    assert (problem(message) is None) == right


def lines_of_code(path: Path) -> int:
    """Without docstrings, comments and empty lines."""
    text = path.read_text(encoding="utf-8")
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            told.update(range(node.body[0].lineno, int(node.body[0].end_lineno or 0) + 1))
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found - told)


def test_a_methods_file_is_about_a_page() -> None:
    """The equations and the algorithm; what knows of networks and sizes is in parts that methods share."""
    longer = {"HAT": 230, "PackNet": 230}
    for kind in minicl.METHODS.values():
        n = lines_of_code(Path(str(sys.modules[kind.__module__].__file__)))
        assert n <= longer.get(kind.__name__, 175), f"{kind.__name__} has {n} lines of code"
    assert lines_of_code(PACKAGE / "learner.py") <= 350


LANDMARKS = (
    "the equations",
    "the learner",
    "the algorithm",
    "forward",
    "what must not move",
    "what it costs, and taking it elsewhere",
)


@pytest.mark.parametrize("name", sorted(minicl.METHODS))
def test_every_method_file_has_its_parts_in_the_same_order(name: str) -> None:
    """So that methods can be laid side by side, as the chapters can."""
    module = sys.modules[minicl.METHODS[name].__module__]
    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    found = re.findall(r"# ---- (.+?) -{3,}", text)
    places = [[i for i, mark in enumerate(LANDMARKS) if part.startswith(mark)] for part in found]
    known = [i for place in places for i in place]
    assert known == sorted(known), f"{module.__name__} has its parts in another order: {found}"
    assert minicl.METHODS[name].__module__ == "minicl.baselines" or known, f"{module.__name__} has no landmarks"
