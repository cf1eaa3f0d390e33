"""The book for other readers than a browser's: notebooks to work in, and Markdown for programs that read.

As a Sphinx extension, at the end of `make book`:

- `_build/student`: a notebook for each page, to be opened in JupyterLab or on Colab, wherever minicl is installed.
  Numbers, numbers of equations and figures, and citations are filled in from the run. Where the book has a solution
  there is a cell for an answer; the solutions lie in `solutions`. What a page reads from files it brings along. The
  download button of a page gives this notebook, and where `_config.yml` names a repository, the buttons for Colab and
  Binder open it: from the branch `student`, which .github/workflows/pages.yml fills.
- beside each page `.html` its text as `.md`, and `llms.txt`, which lists pages, equations and functions.

As a program:

    python tools/edition.py lab           # the notebooks, copied to where they may be changed; builds what is missing
    python tools/edition.py zip           # _build/student.zip, and with solutions _build/teacher.zip
    python tools/edition.py publish       # these and the EPUB, where they are, as downloads of the front page
    python tools/edition.py check         # nothing left open in any notebook, nothing left out of the Markdown
    python tools/edition.py test [NAME]   # run all of them, or those named, in kernels, outside the clone
    python tools/edition.py test --quickest
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import inspect
import json
import os
import pkgutil
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from docutils import nodes
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sphinx.addnodes import toctree as toctree_node

sys.path.insert(0, str(Path(__file__).resolve().parent))
from as_markdown import Block, Cell, Page

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
STUDENT = ROOT / "_build" / "student"
LAB = ROOT / "student"
"""Where `make lab` copies the notebooks to: what a reader changes there is never overwritten."""

BRANCH = "student"
NOT_FOR_STUDENTS = ("book/api", "book/playground", "book/runtimes", "book/teaching")
"""Pages, and folders of pages, that are not in the edition: the API is asked with `help`, the playground needs a
browser's page, and a teacher has the book."""

FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell", "hide_input", "remove_input"}
CHECK = re.compile(r'minicl\.check\(\s*"([a-z_]+-\d+)"')
OPEN = re.compile(r"\{[a-zA-Z][\w:-]*\}`|^[> ]*[:`]{3,}\{|\[\?\]|\(\?\)", re.MULTILINE)
"""What should have been filled in: a role, a directive, a reference that leads nowhere."""

SOLVED = "<details>\n<summary>Solution</summary>"
"""How a solution begins on a page without code."""

MOVES = "Run this cell, and the figure moves."

SOLUTIONS = re.compile(r" Afterwards: \[solutions\]\(solutions/\w+\.ipynb\)\.")
"""The link that a notebook for students has not, where it comes without the solutions."""

STUB = """
def glue(name, value, display=True):
    "In the book this keeps a number for the text. Here the text has its numbers."
"""


# Code


def is_solution(cell: NotebookNode) -> bool:
    """Whether a cell of the book shows the solution of an exercise."""
    prompts = cell.metadata.get("mystnb", {})
    return cell.cell_type == "code" and "solution" in str(prompts.get("code_prompt_show", "")).lower()


def without_glue(source: str) -> str:
    """Code without what only keeps numbers for the text, which needs a package that readers do not have.

    Statements of their own go. Where glue is called within something else, a function of that name stands in.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic
        return source
    lines: list[str | None] = list(source.split("\n"))
    stub_at: int | None = None
    for statement in tree.body:
        from_myst = isinstance(statement, ast.ImportFrom) and statement.module == "myst_nb"
        if from_myst or _is_glue(statement):
            lines[statement.lineno - 1 : statement.end_lineno] = [None] * (
                (statement.end_lineno or statement.lineno) - statement.lineno + 1
            )
        if from_myst or (stub_at is not None and isinstance(statement, ast.Import | ast.ImportFrom)):
            stub_at = statement.end_lineno
    if stub_at is not None:
        lines.insert(stub_at, "\n" + STUB)
    text = "\n".join(line for line in lines if line is not None)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")


def _is_glue(statement: ast.stmt) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "glue"


def is_empty(source: str) -> bool:
    """Whether code does nothing."""
    return not re.sub(r"#.*", "", source).strip()


def answer_cell(exercise: str, name: str) -> str:
    """What stands in the place of a solution: the program that the exercise gives to start with, or an open answer."""
    for program in re.findall(r"```python\n(.*?)\n```", re.sub(r"^> ?", "", exercise, flags=re.M), re.DOTALL):
        if f'"{name}"' in program and not program.lstrip().startswith("minicl.check("):
            return str(program)
    return f'answer = ...\n\nminicl.check("{name}", answer)'


# Files that a page reads


def with_its_files(sources: Sequence[str], root: Path) -> tuple[list[str], dict[str, str]]:
    """Code that finds its files beside the notebook, and these files: names and texts.

    Results of longer runs are in `../benchmarks/results`, of which each named file is taken; `recipes` is taken whole.
    """
    files: dict[str, str] = {}
    results = root / "benchmarks" / "results"
    joined = "\n".join(sources)
    if "../benchmarks/results" in joined:
        for path in sorted(results.glob("*.json")):
            if re.search(rf"\b{path.stem}\b", joined):
                files[f"results/{path.name}"] = path.read_text(encoding="utf-8")
    if re.search(r"^from recipes import", joined, re.M):
        for path in sorted((root / "book" / "recipes").iterdir()):
            if path.suffix in (".py", ".txt"):
                files[f"recipes/{path.name}"] = path.read_text(encoding="utf-8")
    return [source.replace("../benchmarks/results", "results") for source in sources], files


def unpacking(files: dict[str, str]) -> str:
    """Code that writes files beside the notebook, where they are not there yet."""
    packed = base64.b64encode(zlib.compress(json.dumps(files).encode(), 9)).decode()
    block = "\n".join(textwrap.wrap(packed, 110))
    return (
        "# The files that this page reads: they are unpacked beside it, where they do not lie there yet.\n"
        "import base64\nimport json\nimport zlib\nfrom pathlib import Path\n\n"
        f'FILES = """\n{block}\n"""\n'
        "for name, text in json.loads(zlib.decompress(base64.b64decode(FILES))).items():\n"
        "    if not Path(name).exists():\n"
        "        Path(name).parent.mkdir(parents=True, exist_ok=True)\n"
        '        Path(name).write_text(text, encoding="utf-8")'
    )


def installing(repository: str) -> str:
    """Code that installs minicl where it is missing, as on Colab."""
    return (
        "# Where minicl is missing, as on Colab, it is installed.\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("minicl") is None:\n'
        f'    %pip install --quiet "minicl @ git+{repository}"'
    )


# Notebooks


class Builder:
    """Collects the cells of a notebook. Text goes into one cell until there is a heading, a box, or code."""

    def __init__(self) -> None:
        self.cells: list[NotebookNode] = []
        self.waiting: list[str] = []

    def say(self, text: str, alone: bool = False, heading: bool = False) -> None:
        if alone or heading:
            self.flush()
        if text.strip():
            self.waiting.append(text)
        if alone:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.cells.append(new_markdown_cell("\n\n".join(self.waiting)))
            self.waiting = []

    def run(self, source: str, outputs: Iterable[Any] = (), folded: bool = False) -> None:
        self.flush()
        cell = new_code_cell(source, outputs=list(outputs))
        if folded:
            cell.metadata["jupyter"] = {"source_hidden": True}
        self.cells.append(cell)

    def notebook(self, **about: Any) -> NotebookNode:
        self.flush()
        for number, cell in enumerate(self.cells):
            cell["id"] = f"cell-{number:03d}"
        kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        return new_notebook(cells=self.cells, metadata={**kernel, "language_info": {"name": "python"}, "minicl": about})


def shown(cell: NotebookNode, alt: str = "") -> list[Any]:
    """The outputs of a cell that a reader sees: not the numbers that were kept for the text, no warnings."""
    seen = []
    for output in cell.get("outputs", ()):
        if output.output_type == "stream" and output.name == "stderr":
            continue
        data = {kind: value for kind, value in output.get("data", {}).items() if "papermill" not in kind}
        data = still(data)
        if output.output_type in ("display_data", "execute_result"):
            if not data or "scrapbook" in output.get("metadata", {}):
                continue
            output = nbformat.from_dict({**output, "data": data, "metadata": {}})
            if alt and "image/png" in data:
                output.metadata["image/png"] = {"alt": alt}
            if "execution_count" in output:
                output["execution_count"] = None
        seen.append(output)
    return seen


def still(data: dict[str, Any]) -> dict[str, Any]:
    """Of a figure that moves the picture that shows first: JupyterLab runs no script of a notebook from elsewhere."""
    html = str(data.get("text/html", ""))
    if "<script" not in html or 'class="flipbook"' not in html:
        return data
    pictures = BeautifulSoup(html, "html.parser").select("img[src^='data:image/png']")
    first = next((picture for picture in pictures if not picture.has_attr("hidden")), pictures[0])
    return {"image/png": str(first["src"]).partition(",")[2], "text/plain": MOVES}


def notebooks(
    name: str,
    pieces: Sequence[Block | Cell],
    executed: NotebookNode | None,
    page: Page,
    root: Path,
    repository: str = "",
    **about: Any,
) -> tuple[NotebookNode, NotebookNode | None]:
    """The notebook of a page for students, and the one with the solutions, where it has any.

    Args:
        name: of the page, such as "packnet".
        pieces: of the resolved page, in order.
        executed: the notebook behind the page, with its outputs; None of a page of text.
        page: what made the pieces; knows captions.
        root: of the clone, where files are that the page reads.
        repository: address; with it, a notebook installs minicl where it is missing.
        about: kept in the metadata of the student's notebook.
    """
    student, solved = Builder(), Builder()
    cells = executed.cells if executed is not None else []
    code = {i: without_glue(cell.source) for i, cell in enumerate(cells) if cell.cell_type == "code"}
    sources, files = with_its_files(list(code.values()), root)
    code = dict(zip(code, sources, strict=True))
    folded = any(isinstance(piece, Block) and piece.text.startswith(SOLVED) for piece in pieces)
    has_solutions = folded or any(is_solution(cell) for cell in cells)
    installs = repository if executed is not None or folded else ""
    done = -1
    exercise, answered = "", False

    def catch_up(to: int) -> None:
        """Cells that the page does not show, such as those that keep numbers: others may need what they define."""
        for i in range(done + 1, to):
            if i in code and not is_solution(cells[i]) and not is_empty(code[i]):
                student.run(code[i], folded=True)
                solved.run(code[i], folded=True)

    for piece in pieces:
        if isinstance(piece, Block):
            if exercise and piece.text.startswith(SOLVED):
                for name_of in CHECK.findall(exercise)[:1]:
                    student.run("import minicl\n\n" * (not cells) + answer_cell(exercise, name_of))
                solved.say(piece.text)
                exercise = ""
                continue
            is_exercise = piece.title.startswith("Exercise") or (piece.heading and "Exercise " in piece.text)
            if is_exercise:
                exercise, answered = piece.text, False
                solved.say(piece.text, alone=True)
            elif exercise and not answered and not piece.heading:
                exercise += "\n\n" + piece.text
                solved.say(piece.text)
            student.say(piece.text, alone=bool(is_exercise and piece.title), heading=piece.heading)
            if piece.heading and done < 0 and len(student.waiting) == 1 and not student.cells:
                student.say(_note(name, executed is not None, has_solutions))
                student.flush()
                _beginning(student, files, installs)
                _solutions_beginning(solved, piece.text, name, files, repository, has_code=bool(cells))
            continue
        catch_up(piece.index)
        done = piece.index
        cell, source = cells[piece.index], code[piece.index]
        if is_solution(cell):
            names = CHECK.findall(source)
            if not answered and names:
                student.run(answer_cell(exercise, names[0]))
                answered = True
            solved.run(source, shown(cell))
        elif not is_empty(source):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            folded = bool(FOLDED & set(cell.metadata.get("tags", ())))
            outputs = shown(cell, " ".join(alt.split()))
            student.run(source, outputs, folded=folded or _draws(piece))
            if any(output.get("data", {}).get("text/plain") == MOVES for output in outputs):
                student.say(f"*{MOVES}*", alone=True)
            if caption := page.caption(piece):
                student.say(caption, alone=True)
            solved.run(source, folded=True)
            exercise = ""
    catch_up(len(cells))
    made = student.notebook(page=name, **about)
    return made, solved.notebook(page=name, solutions=True) if has_solutions else None


def _draws(piece: Cell) -> bool:
    return any(True for _ in piece.node.findall(nodes.figure))


def _note(name: str, has_code: bool, has_solutions: bool) -> str:
    note = "*From the book's edition to work in.*"
    if has_code:
        note += (
            " *The numbers in the text are from the run that made it; another processor may give other last digits."
            " A folded cell opens with a click on its three dots.*"
        )
    if has_solutions:
        note += f" *Answers go into the cells below the exercises. Afterwards: [solutions](solutions/{name}.ipynb).*"
    return note


def _beginning(builder: Builder, files: dict[str, str], repository: str) -> None:
    if repository:
        builder.run(installing(repository), folded=True)
    if files:
        builder.run(unpacking(files), folded=True)


def _solutions_beginning(
    builder: Builder, heading: str, name: str, files: dict[str, str], repository: str, has_code: bool
) -> None:
    first = f"First the code of [the page](../{name}.ipynb), folded." if has_code else f"[The page](../{name}.ipynb)."
    builder.say(f"# Solutions: {heading.lstrip('# ')}\n\n*{first}*")
    _beginning(builder, files, repository if has_code else "")


# What the pages have in common


def is_for_students(docname: str) -> bool:
    return not any(docname == page or docname.startswith(page + "/") for page in NOT_FOR_STUDENTS)


def internal(docname: str, uri: str) -> str | None:
    """The page that a link of a page leads to, as Sphinx names it; None of a link to elsewhere."""
    if re.match(r"[a-z][a-z0-9+.-]*:", uri) or uri.startswith("//"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(docname), uri.partition("#")[0]))
    return path.removesuffix(".html") if path.endswith(".html") else None


class Edition:
    """What is gathered while Sphinx writes the pages, and written at the end."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.markdown: dict[str, str] = {}
        self.notebooks: dict[str, tuple[NotebookNode, NotebookNode | None]] = {}

    def gather(self, app: Any, doctree: nodes.document, docname: str) -> None:
        if app.builder.name != "html":
            return
        beside = Page(self._to_markdown(docname), self._picture(docname), self._number(docname), tools=True)
        self.markdown[docname] = beside.text(doctree) + "\n"
        if is_for_students(docname):
            page = Page(self._to_notebook(docname), lambda node: None, self._number(docname))
            about = {"version": app.config.version, "seconds": self._seconds(docname)}
            pieces = list(page.pieces(doctree))
            name = posixpath.basename(docname)
            self.notebooks[docname] = notebooks(
                name, pieces, self._executed(docname), page, ROOT, repository(app), **about
            )

    def _executed(self, docname: str) -> NotebookNode | None:
        """The notebook of a page with what it gave in the run that made the page."""
        from jupyter_cache import get_cache

        path = Path(self.app.env.doc2path(docname))
        if path.suffix != ".ipynb":
            return None
        notebook = nbformat.read(path, as_version=4)
        settings = self.app.env.mystnb_config
        if settings.execution_mode == "cache":
            notebook = get_cache(settings.execution_cache_path).merge_match_into_notebook(notebook)[1]
        return notebook

    def _seconds(self, docname: str) -> float | None:
        seconds = self.app.env.nb_metadata[docname].get("exec_data", {}).get("runtime")
        return None if seconds is None else round(float(seconds), 1)

    def _number(self, docname: str) -> Any:
        env = self.app.env

        def number(node: nodes.Element) -> str | None:
            kind = env.get_domain("std").get_enumerable_node_type(node)
            if isinstance(node, nodes.math_block):
                kind = "displaymath"
            for name in node.get("ids", ()):
                if parts := env.toc_fignumbers.get(docname, {}).get(kind, {}).get(name):
                    return str(self.app.config.numfig_format.get(kind, "%s")) % ".".join(map(str, parts))
            return None

        return number

    def _to_markdown(self, docname: str) -> Any:
        def link(node: nodes.Element) -> str | None:
            uri = node.get("refuri")
            if not uri or internal(docname, uri) not in self.app.env.found_docs:
                return uri
            return str(uri).partition("#")[0].removesuffix(".html") + ".md"

        return link

    def _to_notebook(self, docname: str) -> Any:
        def link(node: nodes.Element) -> str | None:
            uri = node.get("refuri")
            target = internal(docname, uri) if uri else None
            if target is None:
                return uri if uri and ":" in uri else None
            return f"{posixpath.basename(target)}.ipynb" if is_for_students(target) else None

        return link

    def _picture(self, docname: str) -> Any:
        up = "../" * docname.count("/")

        def picture(node: nodes.Element) -> str | None:
            candidates = node.get("candidates", {})
            path = candidates.get("*") or next(iter(candidates.values()), node.get("uri", ""))
            known = self.app.env.images.get(path)
            return f"{up}_images/{known[1]}" if known else None

        return picture

    # At the end

    def finish(self, app: Any, exception: Exception | None) -> None:
        if exception is not None or app.builder.name != "html":
            return
        for docname in sorted(app.env.found_docs - set(self.markdown)):  # pages that are up to date
            app.env.get_and_resolve_doctree(docname, app.builder)
        html = Path(app.outdir)
        for docname, text in self.markdown.items():
            path = html / f"{docname}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (html / "llms.txt").write_text(self.overview(), encoding="utf-8")
        self.write_notebooks(Path(app.outdir).parent / "student", html / "_sources")

    def write_notebooks(self, folder: Path, downloads: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "solutions").mkdir(parents=True)
        for docname, (student, solved) in self.notebooks.items():
            name = posixpath.basename(docname)
            nbformat.write(student, folder / f"{name}.ipynb")
            if solved is not None:
                nbformat.write(solved, folder / "solutions" / f"{name}.ipynb")
            if (downloads / f"{docname}.ipynb").is_file():
                nbformat.write(student, downloads / f"{docname}.ipynb")
        where = repository(self.app)
        package = f"minicl @ git+{where}" if where else "minicl"
        (folder / "requirements.txt").write_text(f"{package}\njupyterlab\n", encoding="utf-8")
        (folder / "README.md").write_text(README, encoding="utf-8")

    def overview(self) -> str:
        """`llms.txt`: https://llmstxt.org."""
        env = self.app.env
        lines = [
            f"# {env.titles[env.config.root_doc].astext()}",
            "",
            "> An executable book on continual learning: why neural networks forget, and what can be done. With",
            "> it comes minicl, a small PyTorch package. Each page is here as Markdown, with the numbers of the run.",
        ]
        for caption, docnames in parts(env):
            lines += ["", f"## {caption}", ""]
            lines += [f"- [{env.titles[d].astext()}]({d}.md): {first_words(self.markdown[d])}" for d in docnames]
        lines += ["", "## Equations", ""]
        from equations import FUNCTIONS

        places = {label: docname for label, (docname, _) in env.get_domain("math").equations.items() if label}
        numbers = {
            label: equation_number(env, docname, nodes.make_id(f"equation-{label}"))
            for label, docname in places.items()
        }
        for label, number in sorted(numbers.items(), key=lambda entry: entry[1] or 0):
            docname = places[label]
            title = env.titles[docname].astext()
            named = ", ".join(f"`{name}`" for name in FUNCTIONS.get(label, ()))
            lines.append(f"- ({number}) `{label}`, [{title}]({docname}.md)" + (f": {named}" if named else ""))
        lines += ["", "## Functions and classes", ""]
        for name, entry in sorted(env.get_domain("py").objects.items()):
            if entry.objtype in ("function", "class", "exception") and not entry.aliased:
                lines.append(f"- [`{name}`]({entry.docname}.md): {summary(name)}")
        return "\n".join(lines) + "\n"


README = """# The book, to work in

Open `index.ipynb` in JupyterLab. Every chapter is a notebook; answers go into the cells below the exercises, and
`minicl.check` says whether they are right. Solutions, where they are handed out, lie in `solutions`.

Needed: Python 3.11 or newer and `pip install -r requirements.txt`, or minicl from the folder of its source.
"""


def parts(env: Any) -> Iterator[tuple[str, list[str]]]:
    """The parts of the book and their pages, in reading order; the front page stands alone."""
    root = env.config.root_doc
    yield "Start", [root]
    for tree in env.get_doctree(root).findall(toctree_node):
        yield tree.get("caption") or "Pages", [page for _, entry in tree["entries"] for page in below(env, entry)]


def below(env: Any, docname: str) -> Iterator[str]:
    yield docname
    for child in env.toctree_includes.get(docname, ()):
        yield from below(env, child)


def equation_number(env: Any, docname: str, node_id: str) -> int | None:
    parts = env.toc_fignumbers.get(docname, {}).get("displaymath", {}).get(node_id)
    return parts[-1] if parts else None


def first_words(markdown: str) -> str:
    """The first sentence of a page's text."""
    for block in markdown.split("\n\n"):
        if block and not re.match(r"[#>|`!$<*-]", block):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", block).replace("**", "").replace("\n", " ")
            return re.split(r"(?<=[.?!]) (?=[A-Z])", plain)[0]
    return ""


def summary(name: str) -> str:
    """The first sentence of a docstring."""
    words = inspect.getdoc(pkgutil.resolve_name(name)) or ""
    return " ".join(words.split("\n\n")[0].split())


# Buttons


def repository(app: Any) -> str:
    """The address that `_config.yml` names; "" where it names none (Jupyter Book then puts its own)."""
    address = str(app.config.html_theme_options.get("repository_url") or "").rstrip("/")
    return "" if address.endswith("executablebooks/jupyter-book") else address


def launch_links(address: str, name: str) -> dict[str, str]:
    """Where the student's notebook of a page is opened without an installation, on GitHub alone."""
    match = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?", address)
    if not match:
        return {}
    where = f"{match[1]}/{match[2]}"
    return {
        "Colab": f"https://colab.research.google.com/github/{where}/blob/{BRANCH}/{name}.ipynb",
        "Binder": f"https://mybinder.org/v2/gh/{where}/{BRANCH}?labpath={name}.ipynb",
    }


def _add_buttons(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    links = launch_links(repository(app), posixpath.basename(pagename))
    is_notebook = doctree is not None and str(app.env.doc2path(pagename)).endswith(".ipynb")
    if links and is_notebook and is_for_students(pagename) and "header_buttons" in context:
        buttons = [
            {"type": "link", "text": text, "tooltip": f"Open this page on {text}", "icon": "fas fa-rocket", "url": url}
            for text, url in links.items()
        ]
        group = {"type": "group", "tooltip": "Open this page elsewhere", "icon": "fas fa-rocket", "buttons": buttons}
        context["header_buttons"].insert(0, {**group, "label": "launch-buttons"})


def setup(app: Any) -> dict[str, Any]:
    edition = Edition(app)
    app.connect("doctree-resolved", edition.gather, priority=900)  # after tools/equations.py
    app.connect("html-page-context", _add_buttons, priority=600)
    app.connect("build-finished", edition.finish, priority=950)
    return {"parallel_read_safe": True}


# The program


def without_code(text: str) -> str:
    """Markdown without its code, which may hold anything. What looks like a role or a directive is none."""
    text = re.sub(r"^([> ]*)(`{3,})(?!\{)[^`\n]*\n.*?^\1\2 *$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<![}`])(`+)(?!`)[^`].*?(?<!`)\1(?!`)", "", text)


def check(folder: Path = STUDENT) -> list[str]:
    """What is wrong with the notebooks of a folder: what was left open, files outside, packages of the book."""
    found = []
    paths = sorted(folder.rglob("*.ipynb"))
    if not paths:
        return [f"no notebooks in {folder}: make book"]
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        name = path.relative_to(folder).as_posix()
        for number, cell in enumerate(notebook.cells):
            where = f"{name}, cell {number}"
            if cell.cell_type == "markdown":
                text = without_code(cell.source)
                found += [f"{where}: {match.group().strip()!r} was left open" for match in OPEN.finditer(text)]
                for target in re.findall(r"(?<!!)\]\(([^)\s]+)\)", text):
                    if not re.match(r"[a-z]+:|#", target) and not (path.parent / target.partition("#")[0]).exists():
                        found.append(f"{where}: leads to {target}, which is not there")
            else:
                found += [
                    f"{where}: {word} is not there for a reader" for word in ("myst_nb", '"../') if word in cell.source
                ]
                if "solutions" not in path.parts and is_solution(cell):
                    found.append(f"{where}: a solution")
    return found


def letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text)


def unsaid(page: str, markdown: str) -> list[str]:
    """Paragraphs, headings, code and signatures of a page as it is published that its Markdown does not have.

    What is put into pages after Sphinx has read them, and says nothing of its own, has the class `only-in-page`.
    """
    article = BeautifulSoup(page, "html.parser").find("article")
    if article is None:
        return ["the page has no article"]
    markdown = re.sub(r"\]\((?:[a-z]+:|[\w./-]+\.(?:md|html|png|svg)\b|#)[^)\s]*\)", "", markdown)
    said = letters(re.sub(r"</?(?:br|su[bp]|details|summary)>", "", markdown))
    for other in article.select(
        ".headerlink, .viewcode-link, .toctree-wrapper, .only-in-page, summary, script, style, .cell_output"
    ):
        other.decompose()
    texts = [
        " ".join(part.get_text().split())
        for part in article.select("p, h1, h2, h3, h4, dt.sig, pre")
        if not part.find_parent(["table", "figure"])  # their words stand in another order
    ]
    return [text for text in texts if letters(text) not in said]


def incomplete(html: Path = HTML) -> list[str]:
    """What the book has and its Markdown or `llms.txt` lacks."""
    overview = (html / "llms.txt").read_text(encoding="utf-8")
    found = []
    for path in sorted((html / "book").rglob("*.html")):
        name = path.relative_to(html).with_suffix(".md").as_posix()
        if not (html / name).is_file():
            found.append(f"{name} is not there")
            continue
        page = path.read_text(encoding="utf-8")
        found += [f"{name} lacks: {text[:100]}" for text in unsaid(page, (html / name).read_text(encoding="utf-8"))]
        if f"({name})" not in overview:
            found.append(f"llms.txt lacks {name}")
        labels = re.findall(r'id="equation-([\w-]+)"', page)
        found += [f"llms.txt lacks equation {label}" for label in labels if f"`{label}`" not in overview.lower()]
        names = re.findall(r'<dl class="py (?:function|class|exception)">\s*<dt [^>]*id="([\w.]+)"', page)
        found += [f"llms.txt lacks {name}" for name in names if f"[`{name}`]" not in overview]
    return found


JUPYTER_BOOK = (sys.executable, "-c", "from jupyter_book.cli.main import main; main()")
"""Its command, wherever the virtual environment is."""


def build() -> int:
    """Make what is missing for the edition: results of the pages, then the pages."""
    print("The numbers in the text come from a run of every page. That takes some minutes, once.", flush=True)
    for command in (
        [sys.executable, "tools/fill_cache.py"],
        [*JUPYTER_BOOK, "build", ".", "--quiet"],
    ):
        if done := subprocess.run(command, cwd=ROOT).returncode:
            return done
    return 0


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy_to_lab(edition: Path, lab: Path) -> list[str]:
    """Copy the edition to where it may be changed; returns what stays, because the reader has changed it.

    A file that is as it was copied is renewed, and removed where the edition has it no more.
    """
    lab.mkdir(exist_ok=True)
    ledger = lab / ".copied.json"
    copied: dict[str, str] = json.loads(ledger.read_text(encoding="utf-8")) if ledger.exists() else {}
    files = {path.relative_to(edition).as_posix(): path for path in sorted(edition.rglob("*")) if path.is_file()}
    kept = []
    for name in [*files, *(name for name in copied if name not in files)]:
        target = lab / name
        if target.exists() and digest(target) != copied.get(name):
            if name not in files or digest(target) != digest(files[name]):
                kept.append(name)
        elif name in files:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files[name], target)
            copied[name] = digest(target)
        else:
            target.unlink(missing_ok=True)
            del copied[name]
    ledger.write_text(json.dumps(copied, indent=1) + "\n", encoding="utf-8")
    return kept


def lab() -> int:
    if not (STUDENT / "index.ipynb").exists() and (trouble := build()):
        return trouble
    kept = copy_to_lab(STUDENT, LAB)
    print(f"{LAB.relative_to(ROOT)}: the notebooks to work in; what you change stays when the book is built again")
    if kept:
        print(f"yours, and left as they are: {', '.join(kept)}")
    return 0


def archives(edition: Path) -> tuple[Path, Path]:
    """Two archives beside the edition: for students, and for teachers, with the solutions."""
    made = edition.parent / "student.zip", edition.parent / "teacher.zip"
    for archive, with_solutions in zip(made, (False, True), strict=True):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(edition.rglob("*")):
                name = path.relative_to(edition)
                if path.is_file() and (with_solutions or name.parts[0] != "solutions"):
                    text = path.read_text(encoding="utf-8")
                    if not with_solutions:
                        text = SOLUTIONS.sub("", text)
                    packed.writestr((Path("continual-learning") / name).as_posix(), text)
    return made


MARK = "<!-- downloads -->"


def publish(build: Path = HTML.parent) -> list[str]:
    """Put what has been built for download beside the book, and name it on the front page; returns the names."""
    words = {
        "epub/continual-learning.epub": "the book for reading offline (EPUB)",
        "pdf/continual-learning.pdf": "its chapters for paper (PDF)",
        "student.zip": "notebooks to work in (zip)",
        "teacher.zip": "the same with solutions (zip)",
    }
    folder = build / "html" / "downloads"
    links = []
    for name, what in words.items():
        if (build / name).is_file():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(build / name, folder / Path(name).name)
            links.append(f'<a href="../downloads/{Path(name).name}">{what}</a>')
    front = build / "html" / "book" / "index.html"
    text = front.read_text(encoding="utf-8")
    if MARK not in text:
        raise SystemExit(f"{front} has no {MARK}, so the downloads have no place there")
    listed = f'<p class="downloads">Downloads: {", ".join(links)}.</p>' if links else ""
    text = re.sub(r'<p class="downloads">.*?</p>', "", text).replace(MARK, listed + MARK)
    front.write_text(text, encoding="utf-8")
    return [name for name in words if (build / name).is_file()]


def run(path: Path) -> tuple[str, float, str]:
    """Run one notebook in a kernel, in its own folder; returns its name, the seconds, and what went wrong."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    trouble = ""
    try:
        client.execute()
    except CellExecutionError as error:
        trouble = str(error)
    return path.name, time.perf_counter() - start, trouble


def quickest(paths: Iterable[Path]) -> list[Path]:
    """The notebook that took least time in the book."""
    times = []
    for path in paths:
        about = nbformat.read(path, as_version=4).metadata.get("minicl", {})
        if about.get("seconds"):
            times.append((float(about["seconds"]), path))
    return [min(times)[1]] if times else []


def test(names: Sequence[str], only_quickest: bool, jobs: int) -> int:
    """Run notebooks in kernels, in a folder of their own outside the clone."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(STUDENT, Path(folder) / "student")
        paths = sorted((Path(folder) / "student").rglob("*.ipynb"))
        paths = [path for path in paths if any(c.cell_type == "code" for c in nbformat.read(path, as_version=4).cells)]
        if names:
            paths = [path for path in paths if path.stem in names]
        if only_quickest:
            paths = quickest(paths)
        if not paths:
            print("no such notebook in _build/student", file=sys.stderr)
            return 1
        failed = 0
        with ProcessPoolExecutor(max_workers=min(jobs, len(paths))) as pool:
            for path, (name, seconds, trouble) in zip(paths, pool.map(run, paths), strict=True):
                where = path.parent.name if path.parent.name == "solutions" else "student"
                print(f"{where}/{name}: {seconds:.1f} s{' FAILED' if trouble else ''}", flush=True)
                if trouble:
                    failed += 1
                    print(trouble, file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="The book's edition to work in.")
    parser.add_argument("do", choices=("lab", "zip", "publish", "check", "test"))
    parser.add_argument("names", nargs="*", help="of notebooks to test, such as packnet; without: all")
    parser.add_argument("--quickest", action="store_true", help="test the one that takes least time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="notebooks at a time")
    given = parser.parse_args()
    if given.do == "lab":
        return lab()
    if given.do == "test":
        return test(given.names, given.quickest, max(1, given.jobs))
    if given.do == "publish":
        print(*publish(), sep="\n")
        return 0
    found = check() + incomplete()
    for line in found:
        print(line, file=sys.stderr)
    if given.do == "zip" and not found:
        print(*(path.relative_to(ROOT).as_posix() for path in archives(STUDENT)), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
