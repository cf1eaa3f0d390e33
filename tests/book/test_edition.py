"""The student's edition and the Markdown beside the pages (tools/edition.py, tools/as_markdown.py)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
import scripts
from docutils import nodes
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

edition = scripts.load("tools/edition.py")
as_markdown = sys.modules["as_markdown"]

PAGE = """# A page

It is {glue:text}`page.ipynb::acc:.1%`, as {eq}`eq-one` says; see [the other](other.md) and [the API](api/part.md).

$$
a \\\\ b
$$ (eq-one)

| symbol | meaning |
|---|---|
| $\\|x\\|$ | a_b, `p \\| q` |
"""
EXERCISE = """````{admonition} Exercise 1 (build): a function
:class: note
Write $x^2$:

$$
x
\\cdot x
$$

```python
def square(x):
    ...

minicl.check("chapter-1", square)
```

```{dropdown} Hints
Multiply.
```
````"""
SECOND = """````{admonition} Exercise 2 (recall): a word
:class: note
Say it: `minicl.check("chapter-2", "...")`
````"""
ON_A_PAGE_OF_TEXT = """````{admonition} Exercise 1 (recall): a number
`minicl.check("other-1", ...)`
````

```{dropdown} Solution
It is seven.
```

## After it
"""
GLUED = """from functools import partial
from myst_nb import glue
from pathlib import Path


def keep(name, value):
    glue(name, value, display=False)


glue(
    "acc", 0.5, display=False
)
x = 1"""
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
FIGURE = {
    "mystnb": {"image": {"alt": "A dot."}, "figure": {"caption": "One *dot*.", "name": "fig-dot"}},
}
SOLUTION = {"tags": ["hide-cell"], "mystnb": {"code_prompt_show": "Show the solution"}}


def source() -> NotebookNode:
    """A page with all that is turned into something else."""
    kept = {"application/papermill.record/text/plain": "0.5"}
    about = {"scrapbook": {"name": "acc", "mime_prefix": "application/papermill.record/"}}
    moves = (
        f'<figure class="flipbook"><img src="data:image/png;base64,AAAA" hidden=""/>'
        f'<img src="data:image/png;base64,{PIXEL}"/></figure><script>1</script>'
    )
    return new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}},
        cells=[
            new_markdown_cell(PAGE),
            new_code_cell(GLUED, outputs=[new_output("display_data", data=kept, metadata=about)]),
            new_code_cell("hidden = 1", metadata={"tags": ["remove-input", "remove-output"]}),
            new_code_cell("draw()", metadata=FIGURE, outputs=[new_output("display_data", data={"image/png": PIXEL})]),
            new_code_cell("move()", outputs=[new_output("execute_result", data={"text/html": moves})]),
            new_markdown_cell("## Exercises\n\n" + EXERCISE),
            new_code_cell('minicl.check("chapter-1", lambda x: x * x)', metadata=SOLUTION),
            new_markdown_cell(SECOND),
            new_code_cell('minicl.check("chapter-2", "secret")', metadata=SOLUTION),
            new_markdown_cell("## What to remember\n\nIn {numref}`fig-dot` is a dot."),
        ],
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A book of three pages, built once: its folder `_build`."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    root = tmp_path_factory.mktemp("book")
    book = root / "book"
    (book / "api").mkdir(parents=True)
    nbformat.write(source(), book / "page.ipynb")
    (book / "index.md").write_text(
        "# The book\n\nIt begins.\n\n$$\nz\n$$ (eq-zero)\n\n"
        "```{toctree}\n:caption: Part\npage\nother\napi/part\ntroubleshooting\n```\n"
    )
    (book / "other.md").write_text(
        "# The other\n\n## Deeper\n\nBack to [](page.ipynb), and {ref}`chapter-1`.\n\n" + ON_A_PAGE_OF_TEXT
    )
    (book / "api" / "part.md").write_text("# Part\n\n```{py:function} minicl.run(learner, *, epochs=10)\nRuns.\n```\n")
    shutil.copyfile(scripts.BOOK / "troubleshooting.md", book / "troubleshooting.md")
    settings: dict[str, Any] = {
        "extensions": ["myst_nb", "sphinx_design", "edition", "exercise_boxes"],
        "nb_execution_mode": "off",
        "myst_enable_extensions": ["dollarmath"],
        "root_doc": "book/index",
        "numfig": True,
        "html_theme": "basic",
        "html_sourcelink_suffix": "",
    }
    sys.path.insert(0, str(scripts.ROOT / "tools"))
    try:
        with docutils_namespace():
            app = Sphinx(root, None, root / "_build" / "html", root / "_build" / "trees", "html", settings, status=None)
            app.build()
    finally:
        sys.path.remove(str(scripts.ROOT / "tools"))
    return root / "_build"


@pytest.fixture(scope="module")
def student(built: Path) -> NotebookNode:
    return nbformat.read(built / "student" / "page.ipynb", as_version=4)


@pytest.fixture(scope="module")
def said(student: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in student.cells if cell.cell_type == "markdown")


def test_numbers_equations_and_captions_are_filled_in(said: str) -> None:
    assert "It is 50.0%, as (2) says" in said
    assert r"\tag{2}" in said
    assert "**Fig. 1.** One *dot*." in said
    assert "In Fig. 1 is a dot." in said
    assert r"| $\vert x\vert$ | a_b, `p \| q` |" in said


def test_links_lead_to_notebooks_of_the_edition_or_nowhere(said: str) -> None:
    assert "[the other](other.ipynb) and the API" in said


def test_boxes_are_quotations_with_titles_and_formulas_that_jupyterlab_reads(said: str) -> None:
    assert "> **Exercise 1 (build): a function**\n>\n> Write $x^2$:" in said
    assert "> $$ x \\cdot x $$" in said  # on one line: JupyterLab would take the marks of the quotation into it
    assert "> <details>\n> <summary>Hints</summary>\n>\n> Multiply.\n>\n> </details>" in said


def test_boxes_of_exercises_are_headings_with_anchors_that_the_text_can_name(built: Path) -> None:
    page = (built / "html" / "book" / "page.html").read_text()
    box = re.search(r'<div class="[\w ]*admonition" id="chapter-2">\s*<p ([^>]*)>(.*?)</p>', page)
    assert box, "the name that check knows is the anchor"
    assert box[1] == 'aria-level="3" class="admonition-title" role="heading"'
    assert box[2].startswith('Exercise 2 (recall): a word<a class="headerlink" href="#chapter-2"')
    other = (built / "html" / "book" / "other.html").read_text()
    assert re.search(r'href="page.html#chapter-1"><span[^>]*>Exercise 1 \(build\): a function</span></a>', other)


def test_answers_take_the_place_of_solutions(student: NotebookNode) -> None:
    code = [cell.source for cell in student.cells if cell.cell_type == "code"]
    assert code[-2:] == [
        'def square(x):\n    ...\n\nminicl.check("chapter-1", square)',
        'answer = ...\n\nminicl.check("chapter-2", answer)',
    ]
    assert not any("secret" in source or "lambda" in source for source in code)


def test_a_page_of_text_has_cells_for_answers_and_its_solutions_elsewhere(built: Path) -> None:
    student = nbformat.read(built / "student" / "other.ipynb", as_version=4)
    code = [cell.source for cell in student.cells if cell.cell_type == "code"]
    assert code == ['import minicl\n\nanswer = ...\n\nminicl.check("other-1", answer)']
    assert "seven" not in "".join(cell.source for cell in student.cells)
    solved = nbformat.read(built / "student" / "solutions" / "other.ipynb", as_version=4)
    assert "Exercise 1 (recall)" in solved.cells[-2].source
    assert "It is seven." in "".join(cell.source for cell in solved.cells)


def test_solutions_are_in_a_folder_of_their_own(built: Path) -> None:
    solved = nbformat.read(built / "student" / "solutions" / "page.ipynb", as_version=4)
    code = [cell for cell in solved.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code][-2:] == [
        'minicl.check("chapter-1", lambda x: x * x)',
        'minicl.check("chapter-2", "secret")',
    ]
    assert [cell.source for cell in code][1] == "hidden = 1"  # whatever they need is there
    assert all(cell.metadata.get("jupyter", {}).get("source_hidden") for cell in code[:-2])


def test_code_of_figures_is_folded_and_what_moves_stands_still(student: NotebookNode) -> None:
    cells = {cell.source: cell for cell in student.cells}
    assert cells["draw()"].metadata["jupyter"] == {"source_hidden": True}
    assert cells["draw()"].outputs[0].metadata["image/png"] == {"alt": "A dot."}
    assert cells["hidden = 1"].metadata["jupyter"] == {"source_hidden": True}  # not on the page, but needed
    assert "jupyter" not in cells["move()"].metadata
    assert cells["move()"].outputs[0].data == {"image/png": PIXEL, "text/plain": edition.MOVES}


def test_code_needs_no_package_of_the_book(student: NotebookNode) -> None:
    first = next(cell for cell in student.cells if cell.cell_type == "code")
    assert first.outputs == []
    names: dict[str, Any] = {}
    exec(first.source, names)  # the stub of `glue` stands where `keep` calls it
    names["keep"]("acc", 1)
    assert "myst_nb" not in first.source
    assert '"acc", 0.5' not in first.source
    assert names["x"] == 1


def test_the_download_button_gives_the_notebook_of_the_edition(built: Path) -> None:
    assert (built / "html" / "_sources" / "book" / "page.ipynb").read_text() == (
        built / "student" / "page.ipynb"
    ).read_text()


def test_pages_lie_beside_themselves_as_markdown(built: Path) -> None:
    page = (built / "html" / "book" / "page.md").read_text()
    assert "It is 50.0%" in page
    assert "[the other](other.md) and [the API](api/part.md)" in page
    assert "```python\ndraw()\n```\n\n![A dot.](../_images/" in page
    (picture,) = (line for line in page.splitlines() if line.startswith("!["))
    assert (built / "html" / "book" / picture.partition("(")[2].rstrip(")")).is_file()
    assert (
        "## `minicl.run(learner, *, epochs=10)`\n\nRuns." in (built / "html" / "book" / "api" / "part.md").read_text()
    )


def test_overview_lists_pages_equations_and_functions(built: Path) -> None:
    overview = (built / "html" / "llms.txt").read_text()
    assert "## Part\n\n- [A page](book/page.md): It is 50.0%, as (2) says; see the other and the API.\n" in overview
    assert "- (1) `eq-zero`, [The book](book/index.md)\n- (2) `eq-one`, [A page](book/page.md)\n" in overview
    assert "- [`minicl.run`](book/api/part.md): Learn the tasks" in overview


def test_what_is_printed_when_it_does_not_work_is_there_for_programs_that_read(built: Path) -> None:
    assert (
        "- [When it does not work](book/troubleshooting.md): What goes wrong," in (built / "html/llms.txt").read_text()
    )
    assert "book/troubleshooting" in scripts.toc_pages()
    said = (built / "html/book/troubleshooting.md").read_text()
    blocks = re.findall(r"^```text\n.*?^```", (scripts.BOOK / "troubleshooting.md").read_text(), re.S | re.M)
    assert len(blocks) > 40
    assert all(block.partition("\n")[2] in said for block in blocks)


def test_markdown_of_a_small_book_is_complete(built: Path, tmp_path: Path) -> None:
    html = built / "html"
    article = "<article>{}</article>".format
    for page in (html / "book").rglob("*.html"):  # the theme of this book has no article
        page.write_text(article(page.read_text().partition('<div class="body"')[2].partition('<div class="sphinxs')[0]))
    assert edition.incomplete(html) == []
    shutil.copytree(html, tmp_path / "html")
    (tmp_path / "html" / "book" / "other.md").unlink()
    page = tmp_path / "html" / "book" / "page.md"
    page.write_text(page.read_text().replace("It is", "It was"))
    other = tmp_path / "html" / "book" / "index.html"
    other.write_text(other.read_text().replace("<article>", '<article><p class="only-in-page">Menu</p><p>New</p>'))
    overview = tmp_path / "html" / "llms.txt"
    overview.write_text(
        "\n".join(line for line in overview.read_text().splitlines() if "`" not in line and "page.md" not in line)
    )
    found = edition.incomplete(tmp_path / "html")
    assert [line for line in found if "lacks: " not in line] == [
        "llms.txt lacks minicl.run",
        "llms.txt lacks equation eq-zero",
        "book/other.md is not there",
        "llms.txt lacks book/page.md",
        "llms.txt lacks equation eq-one",
    ]
    assert "book/page.md lacks: It is 50.0%" in "\n".join(found)
    assert "book/index.md lacks: New" in found
    assert "book/index.md lacks: Menu" not in found


def test_edition_of_a_small_book_is_in_order(built: Path) -> None:
    assert edition.check(built / "student") == []
    assert "no notebooks" in edition.check(built / "html" / "book")[0]


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (new_markdown_cell("It is {glue:text}`x`."), "'{glue:text}`' was left open"),
        (new_markdown_cell("> ```{dropdown} Hints"), "was left open"),
        (new_markdown_cell("See [this](gone.ipynb)."), "gone.ipynb, which is not there"),
        (new_code_cell("from myst_nb import glue"), "myst_nb is not there"),
        (new_code_cell('read("../x.json")'), '"../ is not there'),
        (new_code_cell("1", metadata=SOLUTION), "a solution"),
    ],
)
def test_what_is_left_open_is_found(cell: NotebookNode, found: str, tmp_path: Path) -> None:
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    (message,) = edition.check(tmp_path)
    assert message.startswith("a.ipynb, cell 0")
    assert found in message


@pytest.mark.parametrize("text", ["`{eq}` is a role", "```\n{a}`b`\n```", "a set $\\{x\\}$", "{braces}", "[x](#there)"])
def test_what_may_stand_is_not_taken_for_open(text: str, tmp_path: Path) -> None:
    nbformat.write(new_notebook(cells=[new_markdown_cell(text)]), tmp_path / "a.ipynb")
    assert edition.check(tmp_path) == []


def test_files_come_along_and_are_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (results := tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (results / "one.json").write_text('{"name": "α"}', encoding="utf-8")
    (results / "two.json").write_text("2")
    (code,), files = edition.with_its_files(['read("../benchmarks/results/one.json")'], tmp_path)
    assert code == 'read("results/one.json")'
    assert list(files) == ["results/one.json"]
    monkeypatch.chdir(tmp_path)
    exec(edition.unpacking(files), {})
    assert json.loads(Path("results/one.json").read_text(encoding="utf-8")) == {"name": "α"}
    Path("results/one.json").write_text("mine")
    exec(edition.unpacking(files), {})
    assert Path("results/one.json").read_text() == "mine"


def test_recipes_come_along() -> None:
    _, files = edition.with_its_files(["from recipes import show"], scripts.ROOT)
    assert {"recipes/__init__.py", "recipes/distributed.txt"} <= set(files)


def test_what_a_reader_changed_stays(tmp_path: Path) -> None:
    made, lab = tmp_path / "made", tmp_path / "lab"
    (made / "solutions").mkdir(parents=True)
    for name in ("a", "b", "gone"):
        (made / name).write_text("1")
    (made / "solutions" / "a").write_text("1")
    assert edition.copy_to_lab(made, lab) == []
    (lab / "a").write_text("mine")
    (lab / "own").write_text("own")
    for name in ("a", "b", "solutions/a"):
        (made / name).write_text("2")
    (made / "gone").unlink()
    assert edition.copy_to_lab(made, lab) == ["a"]
    texts = {p.relative_to(lab).as_posix(): p.read_text() for p in lab.rglob("*") if p.is_file() and p.name[0] != "."}
    assert texts == {"a": "mine", "b": "2", "own": "own", "solutions/a": "2"}


def test_what_is_missing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def run(command: list[str], cwd: Path) -> Any:
        ran.append([part for part in command if part.startswith(("tools", "build"))])
        (tmp_path / "student").mkdir(exist_ok=True)
        (tmp_path / "student" / "index.ipynb").write_text("{}")
        return subprocess.CompletedProcess(command, 0)

    for name in ("STUDENT", "LAB"):
        monkeypatch.setattr(edition, name, tmp_path / {"STUDENT": "student", "LAB": "lab"}[name])
    monkeypatch.setattr(edition, "ROOT", tmp_path)
    monkeypatch.setattr(edition.subprocess, "run", run)
    assert edition.lab() == edition.lab() == 0
    assert ran == [["tools/fill_cache.py"], ["build"]]  # and once only
    assert (tmp_path / "lab" / "index.ipynb").exists()


def test_jupyter_book_is_found() -> None:
    said = subprocess.run([*edition.JUPYTER_BOOK, "--help"], capture_output=True, text=True, check=True).stdout
    assert "build" in said


def test_archives_for_students_and_for_teachers(built: Path) -> None:
    for archive, has_solutions in zip(edition.archives(built / "student"), (False, True), strict=True):
        with zipfile.ZipFile(archive) as packed:
            names = packed.namelist()
            assert "continual-learning/index.ipynb" in names
            assert ("continual-learning/solutions/page.ipynb" in names) is has_solutions
            page = packed.read("continual-learning/page.ipynb").decode()
        assert ("solutions/page.ipynb" in page) is has_solutions
        nbformat.validate(nbformat.reads(page, as_version=4))


def test_downloads_stand_on_the_front_page_where_they_are_built(tmp_path: Path) -> None:
    (html := tmp_path / "html" / "book").mkdir(parents=True)
    (html / "index.html").write_text("<p>a</p><!-- downloads --><p>b</p>")
    assert edition.publish(tmp_path) == []
    (tmp_path / "student.zip").write_text("zip")
    for _ in range(2):
        assert edition.publish(tmp_path) == ["student.zip"]
    text = (html / "index.html").read_text()
    assert text.count('<a href="../downloads/student.zip">') == 1
    assert (tmp_path / "html" / "downloads" / "student.zip").read_text() == "zip"
    (html / "index.html").write_text("")
    with pytest.raises(SystemExit, match="no <!-- downloads -->"):
        edition.publish(tmp_path)


def test_buttons_open_the_edition_where_a_repository_is_named() -> None:
    links = edition.launch_links("https://github.com/org/name.git", "packnet")
    assert links == {
        "Colab": "https://colab.research.google.com/github/org/name/blob/student/packnet.ipynb",
        "Binder": "https://mybinder.org/v2/gh/org/name/student?labpath=packnet.ipynb",
    }
    assert edition.launch_links("", "packnet") == edition.launch_links("https://example.org/x", "packnet") == {}


class App:
    """What the buttons ask of Sphinx."""

    class config:
        html_theme_options: dict[str, str] = {}  # noqa: RUF012

    class env:
        @staticmethod
        def doc2path(name: str) -> str:
            return f"{name}.ipynb"


@pytest.mark.parametrize(
    ("url", "page", "buttons"),
    [
        ("https://github.com/org/name", "book/packnet", 1),
        ("https://github.com/org/name", "book/teaching", 0),
        ("https://github.com/executablebooks/jupyter-book", "book/packnet", 0),  # Jupyter Book's own default
        ("", "book/packnet", 0),
    ],
)
def test_buttons_of_a_page(url: str, page: str, buttons: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(App.config, "html_theme_options", {"repository_url": url})
    context: dict[str, Any] = {"header_buttons": []}
    edition._add_buttons(App, page, "page.html", context, nodes.document(None, None))
    assert len(context["header_buttons"]) == buttons


def test_a_notebook_installs_minicl_only_where_it_is_missing() -> None:
    text = edition.installing("https://github.com/org/name")
    assert "git+https://github.com/org/name" in text
    exec(text.replace("%pip", "raise RuntimeError #"), {})  # it is here


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a*b", r"a\*b"),
        ("snake_case _x_", r"snake_case \_x\_"),
        ("$5", r"\$5"),
        ("a < b", "a < b"),
        ("<b>", r"\<b>"),
        ("f[x](y)", r"f[x]\(y)"),
    ],
)
def test_marks_in_text_are_told_apart(text: str, escaped: str) -> None:
    assert as_markdown.escape(text) == escaped


@pytest.mark.parametrize(
    ("html", "with_tools", "without"),
    [
        ("<table><tr><td>a|b</td></tr></table>", "|  |\n| --- |\n| a\\|b |", None),
        ("<svg><title>A tree.</title><desc>Green.</desc></svg>", "*Picture: A tree. Green.*", None),
        (
            '<figure class="flipbook"><ol><li>1: a</li></ol><figcaption>It.</figcaption></figure>',
            "*It.*\n\n- 1: a",
            None,
        ),
        ("<div><p>Drag the\n task.</p><svg></svg></div>", "Drag the task.", ""),
        ("<!-- end -->", "", None),
    ],
)
def test_what_pieces_of_html_say(html: str, with_tools: str, without: str | None) -> None:
    assert as_markdown.of_html(html, tools=True) == with_tools
    assert as_markdown.of_html(html, tools=False) == (with_tools if without is None else without)


def test_code_with_quotes_of_its_own() -> None:
    assert as_markdown.code("a`b") == "``a`b``"
    assert as_markdown.code("`a`") == "`` `a` ``"
