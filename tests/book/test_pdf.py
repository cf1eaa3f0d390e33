"""The book as one PDF (tools/pdf.py): one document, in which every reference finds what it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import scripts
from bs4 import BeautifulSoup

pdf = scripts.load("tools/pdf.py")

TOC = {
    "root": "book/index",
    "parts": [
        {"caption": "Part I", "chapters": [{"file": "book/one"}, {"file": "book/two"}]},
        {"caption": "The package", "chapters": [{"file": "book/api"}, {"file": "book/api/data"}]},
    ],
}
MATHJAX = '<script>window.MathJax = {"tex": {}}</script><script src="../_static/mathjax/startup.js"></script>'


def built(folder: Path, **articles: str) -> Path:
    for page in ("index", "one", "two"):
        text = articles.get(page, "")
        head = '<link rel="stylesheet" href="../_static/a.css">' + MATHJAX * ("\\(" in text)
        (folder / "book").mkdir(exist_ok=True)
        (folder / "book" / f"{page}.html").write_text(
            f"<html><head>{head}<script>reads()</script></head><body><nav id='x'>menu</nav>"
            f'<article class="bd-article" role="main"><h1>{page}<a class="headerlink" href="#">#</a></h1>{text}'
            "</article></body></html>"
        )
    return folder


def document(folder: Path) -> BeautifulSoup:
    return BeautifulSoup(pdf.document(TOC, "A title", "the authors", folder, "../html/"), "html.parser")


def test_links_lead_inside_the_document_or_are_text(tmp_path: Path) -> None:
    text = (
        '<p id="here"><a href="two.html#there">a</a><a href="#here">b</a><a href="two.html">c</a>'
        '<a href="api/data.html#minicl.split">d</a><a href="https://arxiv.org/abs/1606.04671">e</a></p>'
    )
    found = document(built(tmp_path, one=text, two='<p id="there">x</p><p id="here">y</p>'))
    targets = {a.get_text(): a.get("href") for a in found.select("#one p a")}
    assert targets == {
        "a": "#two--there", "b": "#one--here", "c": "#two", "d": None, "e": "https://arxiv.org/abs/1606.04671",
    }  # fmt: skip
    ids = [str(tag["id"]) for tag in found.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert {"one--here", "two--here"} <= set(ids)


def test_the_pages_of_functions_are_left_out_and_the_others_stand_in_order(tmp_path: Path) -> None:
    found = document(built(tmp_path))
    assert [str(article["id"]) for article in found.select("article")] == ["index", "one", "two"]
    contents = [(a.get_text(), a["href"]) for a in found.select("nav.contents a")]
    assert contents == [("one", "#one"), ("two", "#two")]
    assert [part.get_text() for part in found.select(".part")] == ["Part I"]
    assert "menu" not in found.get_text()


def test_mathjax_is_taken_from_the_pages_that_have_equations_and_no_other_script(tmp_path: Path) -> None:
    found = document(built(tmp_path, one="\\(a\\)"))
    assert [script.get("src") for script in found.select("script")] == [
        None,
        "../html/_static/mathjax/startup.js",
    ]
    assert len(found.select("link[rel=stylesheet]")) == 1


def test_folds_are_open_and_nothing_waits_to_be_seen_or_pressed(tmp_path: Path) -> None:
    text = (
        "<details><summary>Solution</summary>42</details><button>Copy</button>"
        '<img loading="lazy" src="../_images/a.png">'
        '<div class="cell tag_hide-input"><details>plt.plot()</details><img src="data:image/png;base64,AA"></div>'
    )
    found = document(built(tmp_path, two=text))
    assert found.select_one("#two > details[open]") is not None
    assert not found.select("button, [loading], .tag_hide-input details, .headerlink")
    assert [re.sub(",.*", "", str(picture["src"])) for picture in found.select("img")] == [
        "../html/_images/a.png",
        "data:image/png;base64",
    ]


def test_a_page_that_was_not_built_is_named(tmp_path: Path) -> None:
    (built(tmp_path) / "book" / "two.html").unlink()
    with pytest.raises(SystemExit, match=r"not built: book/two; run `make book` first"):
        document(tmp_path)
