"""What must hold of the repository itself: pages, notebooks, figures, numbers, links."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from scripts import BOOK, NOTEBOOKS, PAGES, ROOT, cells, markdown, source, toc_pages


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# The table of contents


TOC = toc_pages()


@pytest.mark.parametrize("page", TOC)
def test_every_page_of_the_table_of_contents_exists(page: str) -> None:
    assert [p for p in PAGES if name(p.with_suffix("")) == page], f"_toc.yml names {page}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_page_is_in_the_table_of_contents(page: Path) -> None:
    assert name(page.with_suffix("")) in TOC, "add it to _toc.yml"


# Notebooks


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebooks_carry_no_results(notebook: Path) -> None:
    for cell in cells(notebook, "code"):
        assert cell["outputs"] == [], f"a cell has outputs:\n{source(cell)}"
        assert cell["execution_count"] is None, f"a cell has an execution count:\n{source(cell)}"


def draws(code: str) -> bool:
    """Whether a cell shows a figure: it calls something's `show()`, or ends in a call to `minicl.plots` or pyplot."""
    tree = ast.parse(re.sub(r"^\s*[%!].*$", "", code, flags=re.MULTILINE))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if any(isinstance(f, ast.Attribute) and f.attr == "show" for f in calls):
        return True
    if not (tree.body and isinstance(tree.body[-1], ast.Expr) and isinstance(tree.body[-1].value, ast.Call)):
        return False
    return re.match(r"(minicl\.)?plots\.(?!style)|plt\.", ast.unparse(tree.body[-1].value.func)) is not None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_every_figure_has_alt_text(notebook: Path) -> None:
    for cell in cells(notebook, "code"):
        if draws(source(cell)):
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) >= 3, f"say in the cell's metadata, mystnb.image.alt, what is seen:\n{source(cell)}"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("plt.plot(x)\nplt.show()", True),
        ("fig.show()", True),
        ("minicl.plots.accuracy_matrix(result)", True),
        ("fig = minicl.plots.accuracy_matrix(result)", False),
        ("import minicl\nminicl.plots.style()", False),
        ("%matplotlib inline\nx = 1", False),
        ("result.accuracy", False),
    ],
)
def test_draws_recognises_figures(code: str, expected: bool) -> None:
    assert draws(code) is expected


COLOR_IS_DATA = re.compile(r"imshow\(|accuracy_matrix\(|pcolormesh\(|contourf\([^)]*cmap")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_where_color_is_data_a_dark_page_leaves_it_alone(notebook: Path) -> None:
    for cell in cells(notebook, "code"):
        code, image = source(cell), cell["metadata"].get("mystnb", {}).get("image")
        if COLOR_IS_DATA.search(code) and "Flipbook" not in code and image:
            assert image.get("classes") == "colour-is-data", f"say so in mystnb.image.classes:\n{code}"
        if COLOR_IS_DATA.search(code) and "Flipbook(" in code:
            assert "color_is_data=True" in code, f"tell the Flipbook:\n{code}"


HIDDEN = {"hide-input", "hide-cell", "remove-cell", "remove-input"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_imports_and_bookkeeping_are_folded_and_nothing_is_hatched(notebook: Path) -> None:
    first, *others = cells(notebook, "code")
    assert set(first["metadata"].get("tags", ())) & HIDDEN, "imports are folded: tag the first cell hide-input"
    for cell in others:
        code = source(cell)
        assert "hatch=" not in code, f"hatches vibrate; draw points with intervals:\n{code}"
        if not set(cell["metadata"].get("tags", ())) & HIDDEN:
            found = re.search(r"^\s*(?:glue|keep|note)\(", code, re.MULTILINE)
            assert not found, f"into a cell of its own, tagged remove-cell:\n{code}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_fence_has_a_backtick_behind_its_name(page: Path) -> None:
    """Markdown takes such a line for text, and the fence that should close it for one that opens."""
    found = re.findall(r"^[ >]*`{3,}[^`\n]+`.*$", markdown(page), re.MULTILINE)
    assert not found, f"a role in a caption; put it below the block: {found}"


# Numbers in running text come from the run. What is left of a page when code, mathematics, roles and links are taken
# out must hold no percentage and no decimal number. Settings are code: `lr=0.1`. Numbers of a publication stand in a
# block (a paragraph or a table) below `<!-- published: key -->`, where key is an entry of references.bib that the same
# page cites.

CITABLE = set(re.findall(r"^@\w+\{([^,\s]+)", (BOOK / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
PUBLISHED = re.compile(
    r"^[ \t]*<!--\s*published:\s*([^\s,]+)\s*-->[ \t]*\n(?:[ \t]*\n)?((?:[ \t]*\S.*(?:\n|\Z))+)", re.MULTILINE
)
NO_PROSE = [
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"\$\$.*?\$\$", re.DOTALL),
    re.compile(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL),
    re.compile(r"(?<!\\)\$[^$\n]+(?:\n[^$\n]+)*\$"),
    re.compile(r"(?:\{[\w:-]+\})?(?<!`)(`{1,2})(?!`)(?:[^`\n]|\n(?!\n)|(?!\1)`)+\1(?!`)"),
    re.compile(r"\]\([^)\s]*\)"),
    re.compile(r"https?://\S+"),
]
NO_PROSE_DIRECTIVES = {"math", "code", "code-block", "code-cell", "literalinclude", "eval-rst", "bibliography"}
NO_RESULT = re.compile(
    r"\b(?:Python|PyTorch|torch|version|Section|Sec\.|§|Equation|Eq\.|Figure|Table|CC BY|MIT)[ \u00a0]v?\d+(?:\.\d+)*"
    r"|\b\d{4}\.\d{4,5}\b"  # arXiv
    r"|\b95 ?%[ \u00a0](?:confidence )?intervals?\b"  # a level is chosen, not measured
)
RESULT = re.compile(
    r"(?<![\w.])\d*[.,]?\d+\s*(?:%|\\%|per ?cent\b|percentage)|(?<![\w.])\d*\.\d+(?![\w.]*\w)", re.IGNORECASE
)


def outside_code(text: str) -> str:
    """A page without its code blocks and directive options; what stands in admonitions and the like is kept."""
    kept: list[str] = []
    opened: list[tuple[str, bool]] = []  # fence, whether its content is prose
    for line in text.splitlines():
        fence = re.match(r"\s*(`{3,}|~{3,}|:{3,})\s*(.*)$", line)
        inside_code = bool(opened) and not opened[-1][1]
        if fence and opened and not fence[2] and fence[1].startswith(opened[-1][0]):
            opened.pop()
        elif fence and not inside_code:
            directive = re.match(r"\{([\w:-]+)\}(.*)", fence[2])
            opened.append((fence[1], directive is not None and directive[1] not in NO_PROSE_DIRECTIVES))
            kept.append(directive[2] if directive else "")
        elif not inside_code and not (opened and re.match(r"\s*:[\w-]+:", line)):
            kept.append(line)
    return "\n".join(kept)


def typed_numbers(text: str) -> list[str]:
    """The percentages and decimal numbers of a page's running text."""
    for key, _ in PUBLISHED.findall(text):
        assert key in CITABLE, f"<!-- published: {key} -->: no such entry in references.bib"
        cited = re.search(r"\{cite[:\w]*\}`[^`]*\b" + re.escape(key) + r"\b", text)
        assert cited, f"<!-- published: {key} -->: the page does not cite it"
    text = outside_code(PUBLISHED.sub("\n", text))
    for pattern in NO_PROSE:
        text = pattern.sub(" ", text)
    return [match.group().strip() for match in RESULT.finditer(NO_RESULT.sub(" ", text))]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_numbers_in_prose_come_from_the_run(page: Path) -> None:
    found = typed_numbers(markdown(page))
    assert not found, f"{found}: use glue for results, `code` for settings, <!-- published: key --> for cited numbers"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It reaches 95.2 % after", ["95.2 %"]),
        ("an accuracy of 0.93.", ["0.93"]),
        ("an accuracy of .93, no more", [".93"]),
        ("ninety of 100 per cent", ["100 per cent"]),
        ("it loses 26%", ["26%"]),
        ("| method | 71.5 |", ["71.5"]),
        ("{glue:text}`page.ipynb::acc:.2f` on $0.5 x$ with `lr=0.1`", []),
        ("```python\nlr = 0.1\n```\nand 5 tasks", []),
        ("```{admonition} Note\nIt reaches 0.93 there.\n```", ["0.93"]),
        ("```{note}\nFirst.\n```\nThen 0.95 there.\n```{note}\nLast.\n```", ["0.95"]),
        ("````{exercise}\n```python\nlr = 0.1\n```\nwhy 0.7?\n````", ["0.7"]),
        (":::{figure} a.svg\n:width: 50%\nIt falls by 12 %.\n:::", ["12 %"]),
        ("half of its 95 % interval, a 95 % confidence interval", []),
        ("an interval of 95 % of the cases", ["95 %"]),
        ("a 90 % interval", ["90 %"]),
        ("$$\na = 0.5\n$$", []),
        ("arXiv 1801.01423, Python 3.11, Section 4.2, 1,797 images", []),
        ("[1801.01423](https://arxiv.org/abs/1801.01423v3)", []),
        ("<!-- published: serra2018 -->\n| a | 98.6 |\n\n{cite:t}`serra2018`", []),
        ("<!-- published: serra2018 -->\n\n| a | 98.6 |\n\nbut 99.1 {cite}`serra2018`", ["99.1"]),
    ],
)
def test_typed_numbers_recognises_results(text: str, expected: list[str]) -> None:
    assert typed_numbers(text) == expected


@pytest.mark.parametrize("text", ["<!-- published: nobody1900 -->\n98.6", "<!-- published: serra2018 -->\n98.6"])
def test_published_numbers_need_a_citation(text: str) -> None:
    with pytest.raises(AssertionError, match="published"):
        typed_numbers(text)


# The API's pages, links, and what a clone must not hold


def public_modules() -> list[str]:
    files = [p.relative_to(ROOT) for p in (ROOT / "minicl").rglob("*.py")]
    names = [".".join(p.with_suffix("").parts) for p in files if not p.name.startswith("_")]
    return sorted(n for n in names if not n.startswith("minicl.exercises."))  # answers are no API


@pytest.mark.parametrize("module", public_modules())
def test_every_module_is_on_one_page_of_the_api(module: str) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (BOOK / "api").glob("*.md")]
    found = sum(len(re.findall(rf"automodule:: {re.escape(module)}$", page, re.MULTILINE)) for page in pages)
    assert found == 1, f"add {module} to one page in book/api"


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / file for file in listed.split("\0") if file and (ROOT / file).is_file()]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r"(?:src|href|srcset)=\"([^\"#]+)", text)
    relative = [target for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in relative if not (ROOT / target).exists()]
    assert not missing, f"{page} links to {missing}"


def test_no_tracked_file_names_a_folder_of_one_machine() -> None:
    folder = re.compile(rb"(?<![\w./~-])/(?:work|root|home|Users|opt|mnt)/\w")
    for file in tracked():
        found = folder.search(file.read_bytes()) if file.suffix not in {".png", ".npz"} else None
        assert not found, f"{name(file)} holds {found.group()!r}" if found else ""


def pins(file: str) -> dict[str, str]:
    """Package and version of each line of a file of requirements."""
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_the_lock_holds_what_the_requirements_pin() -> None:
    pinned, locked = pins("requirements.txt"), pins("requirements.lock")
    assert {p: locked.get(p) for p in pinned} == pinned, "make requirements.lock again, as its first lines say"
    # What it has beside comes with PyTorch's wheel for Linux, which brings CUDA.
    assert all(p.startswith(("nvidia-", "cuda-", "triton")) for p in locked.keys() - pinned.keys())


def test_every_file_of_the_lock_has_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"^(?=[A-Za-z0-9_.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins("requirements.lock"))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
