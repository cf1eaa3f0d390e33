"""Slides for teaching: a deck for each session of book/teaching.md, made of the figures of the run.

An outline lies in slides/N.md. Each `## ` heading begins a slide. `![](page.ipynb#fig-name)` puts a figure of a chapter
in its place, `![](page.ipynb#flipbook)` the moving one, `![](page.ipynb#eq-name)` an equation, {glue:text} a number, as
in the book: nothing is retyped. A paragraph that begins with "Note:" is for the speaker (key S). Aims, plan and
exercises come from book/teaching.md.

    python tools/slides.py      # _build/slides; figures from the notebooks that tools/fill_cache.py has executed

The slides need no network. reveal.js comes from its npm package once, and is compared with the digest below.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
BOOK, OUTLINES = ROOT / "book", ROOT / "slides"
BUILD = ROOT / "_build"
VERSION = "5.2.1"
DIGEST = "r7//6mIM5p34hFiDMvYfXgyjXqGRta+/psd9YtytsgRlrpRzFv4RbH76TXd2qD+7ZPZEbpBDhdRhJaFgfQ7zNQ=="
"""SHA-512 of the npm package reveal.js of that version."""
NEEDED = (
    "dist/reset.css",
    "dist/reveal.css",
    "dist/reveal.js",
    "dist/theme/white.css",
    "dist/theme/fonts/source-sans-pro",
    "plugin/notes/notes.js",
    "LICENSE",
)

PUT_IN = re.compile(r"!\[\]\((\w+\.ipynb)#([\w-]+)\)")
NUMBER = re.compile(r"\{glue:text\}`(?:(\w+\.ipynb)::)?([\w-]+)(?::([^`]*))?`")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<link rel="stylesheet" href="reveal/dist/reset.css">
<link rel="stylesheet" href="reveal/dist/reveal.css">
<link rel="stylesheet" href="reveal/dist/theme/white.css">
<style>
.reveal { font-size: 30px; }
.reveal h1 { font-size: 2em; text-transform: none; }
.reveal h2 { font-size: 1.4em; text-transform: none; }
.reveal figure { margin: 0; }
.reveal figure > img { max-height: 480px; max-width: 100%; margin: 0; }
.reveal figcaption { font-size: 0.6em; }
.reveal figure details { display: none; }
.reveal ul { display: table; margin: 0.6em auto; max-width: 90%; }
.reveal section:has(> figure):has(> :not(h2, figure, aside)) > figure > img { max-height: 320px; }
</style>
<script>MathJax = {options: {enableMenu: false}, startup: {typeset: false}};</script>
<script src="mathjax/tex-chtml.js"></script>
</head>
<body>
<div class="reveal"><div class="slides">
SLIDES
</div></div>
<script src="reveal/dist/reveal.js"></script>
<script src="reveal/plugin/notes/notes.js"></script>
<script>
Reveal.initialize({hash: true, width: 1280, height: 720, plugins: [RevealNotes]});
MathJax.startup.promise.then(() => MathJax.typesetPromise()).then(() => Reveal.layout());
</script>
</body>
</html>
"""


class Missing(SystemExit):
    """What an outline names, and the run or the book does not have. Its message ends the program."""


class Run:
    """The executed notebooks of the book, by name, read when they are asked for."""

    def __init__(self, executed: dict[str, NotebookNode] | None = None) -> None:
        self.executed = executed or {}

    def notebook(self, name: str) -> NotebookNode:
        """A page with its outputs."""
        if name not in self.executed:
            from jupyter_cache import get_cache

            source = nbformat.read(BOOK / name, as_version=4)
            try:
                self.executed[name] = get_cache(BUILD / ".jupyter_cache").merge_match_into_notebook(source)[1]
            except KeyError as error:
                raise Missing(f"{name} has not been executed as it is now: python tools/fill_cache.py") from error
        return self.executed[name]

    def outputs(self, name: str) -> Iterator[tuple[NotebookNode, NotebookNode]]:
        """Each output of a page, with its cell."""
        for cell in self.notebook(name).cells:
            for output in cell.get("outputs", ()):
                yield cell, output

    def number(self, name: str, key: str, form: str = "") -> str:
        """A number or a text of the run, as the book writes it."""
        for _, output in self.outputs(name):
            if output.get("metadata", {}).get("scrapbook", {}).get("name") == key:
                (text,) = (value for kind, value in output["data"].items() if kind.endswith("text/plain"))
                try:
                    return format(ast.literal_eval(text), form)
                except (SyntaxError, ValueError):  # a number of NumPy's, say: np.float64(0.5)
                    return format(float(re.sub(r"^[\w.]+\((.*)\)$", r"\1", text)), form)
        raise Missing(f"{name} has no number {key!r}")

    def figure(self, name: str, label: str, images: Path) -> str:
        """A figure as HTML, its picture in the folder."""
        for cell, output in self.outputs(name):
            data, about = output.get("data", {}), cell.metadata.get("mystnb", {})
            if label == "flipbook" and 'class="flipbook"' in "".join(data.get("text/html", "")):
                return str("".join(data["text/html"]))
            if about.get("figure", {}).get("name") != label:
                continue
            for kind, ending in (("image/svg+xml", "svg"), ("image/png", "png")):
                if kind in data:
                    images.mkdir(parents=True, exist_ok=True)
                    picture = images / f"{Path(name).stem}-{label}.{ending}"
                    raw = "".join(data[kind])
                    picture.write_bytes(raw.encode() if ending == "svg" else base64.b64decode(raw))
                    alt = html.escape(" ".join(about.get("image", {}).get("alt", "").split()))
                    caption = to_html(self.filled(without_roles(about["figure"].get("caption", "")), name), inline=True)
                    source = f"{images.name}/{picture.name}"
                    return f'<figure><img src="{source}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'
        raise Missing(f"{name} has no figure {label!r}")

    def equation(self, name: str, label: str) -> str:
        """An equation of the page, as its author wrote it."""
        for cell in self.notebook(name).cells:
            found = re.search(r"\$\$\s*\n((?:(?!\$\$).)*?)\n\s*\$\$ \(" + re.escape(label) + r"\)", cell.source, re.S)
            if found:
                return f"$$\n{found[1]}\n$$"
        raise Missing(f"{name} has no equation {label!r}")

    def filled(self, text: str, here: str = "") -> str:
        """The text with the numbers of the run."""
        return NUMBER.sub(lambda match: self.number(match[1] or here, match[2], match[3] or ""), text)


def without_roles(text: str) -> str:
    """A caption without what only the book can resolve: links become their words, references their names."""
    text = re.sub(r"\{(?!glue:)[\w:]+\}`(?:([^`<]*?)\s*<[^`]*>|([^`]*))`", lambda match: match[1] or match[2], text)
    return re.sub(r"(?<!!)\[([^\]]*)\]\([^)]*\)", r"\1", text)


def to_html(text: str, inline: bool = False) -> str:
    r"""Markdown as HTML; formulas stay in \( \) and \[ \], which MathJax reads."""

    def formula(tex: str, about: dict[str, Any]) -> str:
        left, right = (r"\[", r"\]") if about["display_mode"] else (r"\(", r"\)")
        return f"{left}{html.escape(tex)}{right}"

    converter = MarkdownIt("commonmark", {"html": True}).enable("table").use(dollarmath_plugin, renderer=formula)
    return str(converter.renderInline(text) if inline else converter.render(text)).strip()


def slide(text: str, run: Run, images: Path) -> str:
    """One slide: what stands below a heading, with the heading."""
    blocks: dict[str, str] = {}

    def put_in(match: re.Match[str]) -> str:
        name, label = match.groups()
        if label.startswith("eq-"):
            return run.equation(name, label)
        blocks[key := f"<!-- {len(blocks)} -->"] = run.figure(name, label, images)
        return key

    body, *notes = re.split(r"^Note: ", run.filled(text), flags=re.M)
    made = to_html(PUT_IN.sub(put_in, body))
    for key, block in blocks.items():
        made = made.replace(key, block)
    said = "".join(f'<aside class="notes">{to_html(note)}</aside>' for note in notes)
    return f"<section>{made}{said}</section>"


class Session(NamedTuple):
    """What book/teaching.md says of a session."""

    number: int
    title: str
    aims: str
    plan: str
    exercises: str
    home: str


def sessions(page: str) -> list[Session]:
    """The sessions of the teacher's page.

    Raises:
        Missing: a session without a row in the table.
    """
    rows = dict(re.findall(r"^\| (\d) \|(.*)\|$", page, re.M))
    found = []
    for number, title, aims, plan in re.findall(
        r"^### Session (\d)\. (.*)\n\n\*\*Aims\.\*\* (.*)\n\n\*\*In class\.\*\* (.*)", page, re.M
    ):
        if number not in rows:
            raise Missing(f"session {number} is not in the table of sessions")
        _, in_class, at_home, _ = (cell.strip() for cell in rows[number].split("|"))
        found.append(Session(int(number), title, aims, plan, in_class, at_home))
    return found


def deck(session: Session, outline: str, run: Run, images: Path) -> str:
    """The page of a session."""
    first, *rest = re.split(r"^(?=## )", outline, flags=re.M)
    if first.strip():
        raise Missing(
            f"the outline of session {session.number} begins with {first.strip()[:40]!r}, not with a slide (##)"
        )
    aims = "\n".join(f"- {aim}" for aim in re.split(r"(?<=\.) (?=[A-Z])", session.aims))
    texts = [
        f"# {session.title}\n\nSession {session.number}\n\nNote: {session.plan}",
        f"## Afterwards you can\n\n{aims}",
        *rest,
        f"## Exercises\n\nNow: {session.exercises}\n\nAt home: {session.home}",
    ]
    slides = "\n".join(slide(text, run, images) for text in texts)
    title = html.escape(f"Session {session.number}: {session.title}")
    return PAGE.replace("TITLE", title).replace("SLIDES", slides)


def reveal(target: Path) -> None:
    """Put what the slides need of reveal.js into a folder."""
    archive = BUILD / f"reveal.js-{VERSION}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(
                f"make slides needs npm, to fetch reveal.js once (Debian, Ubuntu: apt install npm); or put "
                f"{archive.name}, the package of that name, into {BUILD.name}"
            )
        BUILD.mkdir(exist_ok=True)
        command = [npm, "pack", f"reveal.js@{VERSION}", "--silent"]
        if subprocess.run(command, cwd=BUILD, stdout=subprocess.DEVNULL).returncode or not archive.exists():
            raise SystemExit("npm could not fetch reveal.js; it needs a network for that, once")
    unpack(archive, target, DIGEST)


def unpack(archive: Path, target: Path, digest: str) -> None:
    """Unpack the needed part of the package, after looking whether it is the one that is meant."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != digest:
        raise SystemExit(f"{archive.name} is not the package that is meant (its digest is {found}); remove it")
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            name = member.name.removeprefix("package/")
            if member.isfile() and any(name == needed or name.startswith(f"{needed}/") for needed in NEEDED):
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(packed.extractfile(member).read())  # type: ignore[union-attr]


def mathjax(target: Path) -> None:
    """MathJax, from the package of the book's build."""
    import importlib

    package = importlib.import_module("sphinx-mathjax-offline")
    static = Path(str(package.__file__)).parent / "static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(static / "tex-chtml.js", target / "tex-chtml.js")
    shutil.copytree(static / "output" / "chtml", target / "output" / "chtml", dirs_exist_ok=True)


def outside(folder: Path) -> list[str]:
    """Addresses of other hosts that a page or a style would fetch from, and files that are not there."""
    found = []
    for path in sorted([*folder.rglob("*.html"), *folder.rglob("*.css")]):
        text = path.read_text(encoding="utf-8")
        targets = re.findall(r"""(?:\bsrc|<link [^>]*\bhref)=["']([^"']+)""", text)
        targets += re.findall(r"""(?:url\(|@import (?!url))["']?([^"')\s;]+)""", text)
        for target in targets:
            if target.startswith(("data:", "#")):
                continue
            if re.match(r"(?:[a-z]+:)?//|[a-z]+:", target):
                found.append(f"{path.name} fetches {target}")
            elif not (path.parent / re.split(r"[?#]", target)[0]).exists():
                found.append(f"{path.name} needs {target}, which is not there")
    return sorted(found)


def main() -> int:
    out = BUILD / "slides"
    planned = sessions((BOOK / "teaching.md").read_text(encoding="utf-8"))
    run, links = Run(), []
    shutil.rmtree(out, ignore_errors=True)
    reveal(out / "reveal")
    mathjax(out / "mathjax")
    for session in planned:
        outline = (OUTLINES / f"{session.number}.md").read_text(encoding="utf-8")
        page = out / f"session-{session.number}.html"
        page.write_text(deck(session, outline, run, out / "images"), encoding="utf-8")
        links.append(f'<li><a href="{page.name}">{html.escape(session.title)}</a></li>')
    front = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Slides</title><ol>{"".join(links)}</ol></html>'
    )
    (out / "index.html").write_text(front, encoding="utf-8")
    found = outside(out)
    for line in found:
        print(line, file=sys.stderr)
    print((out / "index.html").relative_to(ROOT))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
