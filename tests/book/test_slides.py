"""Slides (tools/slides.py): outlines become decks with figures, equations and numbers of the run, without a network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import scripts
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

slides = scripts.load("tools/slides.py")

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
FIGURE = {
    "mystnb": {
        "image": {"alt": 'A "dot".'},
        "figure": {"caption": "One $a<b$, {glue:text}`x.ipynb::n:.0f`.", "name": "fig-x"},
    }
}
TEACHING = """| 1 | [X](x.ipynb) | `pnn-1` | `pnn-2` | 50 |

### Session 1. Dots & lines

**Aims.** See a dot. Draw a line.

**In class.** Look (20 min).
"""


def glued(name: str, value: str) -> NotebookNode:
    about = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
    return new_output("display_data", data={"application/papermill.record/text/plain": value}, metadata=about)


def run() -> slides.Run:
    page = new_notebook(
        cells=[
            new_markdown_cell("Text.\n\n$$\na < b\n$$ (eq-other)\n\n$$\nx^2\n$$ (eq-x)\n"),
            new_code_cell("1", outputs=[glued("n", "3.4"), glued("word", "'dots'"), glued("half", "np.float64(0.5)")]),
            new_code_cell("2", metadata=FIGURE, outputs=[new_output("display_data", data={"image/png": PIXEL})]),
            new_code_cell(
                "3", outputs=[new_output("execute_result", data={"text/html": '<p class="flipbook">$1</p>'})]
            ),
        ]
    )
    return slides.Run(executed={"x.ipynb": page})


OUTLINE = """## A slide

![](x.ipynb#fig-x)

- {glue:text}`x.ipynb::n:.2f` {glue:text}`x.ipynb::word`, {glue:text}`x.ipynb::half:.0%`

Note: say *this*

## Two

![](x.ipynb#eq-x)

![](x.ipynb#flipbook)
"""


def test_an_outline_becomes_a_deck(tmp_path: Path) -> None:
    (session,) = slides.sessions(TEACHING)
    page = slides.deck(session, OUTLINE, run(), tmp_path / "images")
    parts = re.findall(r"<section>(.*?)</section>", page, re.S)
    assert len(parts) == 5
    assert "<h1>Dots &amp; lines</h1>" in parts[0]
    assert '<aside class="notes"><p>Look (20 min).</p></aside>' in parts[0]
    assert parts[1].count("<li>") == 2
    assert '<img src="images/x-fig-x.png" alt="A &quot;dot&quot;.">' in parts[2]
    assert r'<figcaption>One <span class="math inline">\(a&lt;b\)</span>, 3.</figcaption>' in parts[2]
    assert "<li>3.40 dots, 50%</li>" in parts[2]
    assert '<aside class="notes"><p>say <em>this</em></p></aside>' in parts[2]
    assert r"\[" in parts[3]
    assert "x^2" in parts[3]
    assert "a &lt; b" not in parts[3]
    assert '<p class="flipbook">$1</p>' in parts[3]
    assert "<code>pnn-1</code>" in parts[4]
    assert (tmp_path / "images" / "x-fig-x.png").read_bytes() == base64.b64decode(PIXEL)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("![](x.ipynb#fig-y)", "has no figure 'fig-y'"),
        ("![](x.ipynb#eq-y)", "has no equation 'eq-y'"),
        ("{glue:text}`x.ipynb::m`", "has no number 'm'"),
    ],
)
def test_what_the_run_does_not_have_is_named(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=words):
        slides.slide(line, run(), tmp_path)


def test_every_session_has_an_outline_and_everything_in_it_exists() -> None:
    planned = slides.sessions((scripts.BOOK / "teaching.md").read_text(encoding="utf-8"))
    assert [session.number for session in planned] == list(range(1, 9))
    assert sorted(path.name for path in slides.OUTLINES.iterdir()) == [f"{n}.md" for n in range(1, 9)]
    for session in planned:
        text = (slides.OUTLINES / f"{session.number}.md").read_text(encoding="utf-8")
        named = slides.PUT_IN.findall(text)
        assert len(named) >= 3
        assert text.count("![") == len(named), "a picture that is not of the run"
        for page, label in named:
            whole = (scripts.BOOK / page).read_text(encoding="utf-8")
            cells = [cell.get("metadata", {}).get("mystnb", {}) for cell in json.loads(whole)["cells"]]
            figures = {about["figure"].get("name") for about in cells if "figure" in about}
            flips = {"flipbook"} if "Flipbook(" in whole else set()
            equations = re.findall(r"\$\$ \((eq-[\w-]+)\)", whole)
            assert label in {*figures, *flips, *equations}, f"{session.number}.md: {page} has no {label}"
        for page, key, _ in slides.NUMBER.findall(text):
            assert f'"{key}"' in (scripts.BOOK / page).read_text(encoding="utf-8").replace('\\"', '"'), key


def test_a_package_that_is_another_is_not_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "reveal.js.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        for name in ("package/dist/reveal.js", "package/dist/other.js", "package/../../dist/reveal.css"):
            about = tarfile.TarInfo(name)
            about.size = 1
            packed.addfile(about, io.BytesIO(b"x"))
    with pytest.raises(SystemExit, match="is not the package that is meant"):
        slides.unpack(archive, tmp_path / "reveal", slides.DIGEST)
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    slides.unpack(archive, tmp_path / "reveal", digest)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["reveal.js.tgz", "reveal.js"]


def test_requests_to_other_hosts_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("@import url(./b.css); p{background: url(https://x.org/p.png)}")
    (tmp_path / "a.html").write_text(
        '<script src="//cdn.org/a.js"></script><link rel="x" href="a.css"><img src="data:x">'
    )
    assert slides.outside(tmp_path) == [
        "a.css fetches https://x.org/p.png",
        "a.css needs ./b.css, which is not there",
        "a.html fetches //cdn.org/a.js",
    ]


def test_the_page_itself_asks_no_other_host(tmp_path: Path) -> None:
    (session,) = slides.sessions(TEACHING)
    page = slides.deck(session, OUTLINE, run(), tmp_path / "images")
    for needed in re.findall(r'(?:src|href)="((?:reveal|mathjax)/[^"]+)"', page):
        (tmp_path / needed).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / needed).touch()
    (tmp_path / "deck.html").write_text(page)
    assert slides.outside(tmp_path) == []
