"""The book as one PDF, for paper and for reading without a browser: its chapters in reading order, one document.

    CHROMIUM=chromium python tools/pdf.py       # _build/pdf/continual-learning.pdf; needs _build/html

The pages of the built book are put into one, every link between them leads inside the document, and Chromium prints it,
with an outline of its headings. Folds are open, save for code that only draws, which stays out; moving figures show
their last frame. The pages of the package's functions are left out: they are looked up, not read.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import yaml
from bs4 import BeautifulSoup, Tag
from check_book import pages

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
PDF = ROOT / "_build" / "pdf" / "continual-learning.pdf"

LEFT_OUT = "book/api"
GONE = (
    "script, noscript, .headerlink, button, .flipbook-bar, .flipbook details, "
    ".tag_hide-input > details"  # code that draws
)
REFERENCES = ("href", "src", "srcset", "aria-labelledby", "aria-describedby", "for")
STYLE = """
@page { size: A4; margin: 18mm 17mm 20mm; }
html, body { background: white; font-size: 9.5pt; line-height: 1.4; }
body { display: block; }
.chapter { break-before: page; }
.title-page { break-after: page; padding-top: 35vh; text-align: center; }
.contents { all: unset; }
.contents a { display: block; line-height: 1.7; }
.contents .part { font-weight: bold; margin-top: 0.8em; }
figure, table, .math { break-inside: avoid-page; }
pre { white-space: pre-wrap; }
h1, h2, h3 { break-after: avoid-page; }
"""


def chapters(toc: dict[str, object]) -> list[str]:
    """The pages that are printed, in reading order."""
    return [page for page in pages(toc) if not page.startswith(LEFT_OUT)]


def place(page: str, fragment: str = "") -> str:
    """Where a page, or a place in it, is in the one document: two pages may use the same name."""
    stem = page.rpartition("/")[2]
    return f"{stem}--{fragment}" if fragment else stem


def article_of(html: BeautifulSoup, page: str, printed: Sequence[str], folder: str) -> Tag:
    """What is printed of a page: its text, its references told what they are called in the one document.

    Args:
        html: the page as it was built.
        page: its name, such as "book/hat".
        printed: the names of all pages of the document. A link to any other is text.
        folder: from the document to the root of the site.
    """
    article = html.select_one("article.bd-article")
    if article is None:
        raise SystemExit(f"{page} has no article: is it a page of the book?")
    for gone in article.select(GONE):
        gone.decompose()
    for fold in article.select("details"):
        fold["open"] = ""
    for picture in article.select("img[loading]"):  # what is put off until it is seen is never seen on paper
        del picture["loading"]
    for found in article.select("[id]"):
        found["id"] = place(page, str(found["id"]))
    for name in REFERENCES:
        for found in article.select(f"[{name}]"):
            _point(found, name, page, printed, folder)
    article["class"], article["id"] = "bd-article chapter", place(page)
    return article


def _point(found: Tag, name: str, page: str, printed: Sequence[str], folder: str) -> None:
    value = str(found[name])
    if name.startswith("aria-") or name == "for":
        found[name] = " ".join(place(page, one) for one in value.split())
    elif name == "href":
        address, fragment = urldefrag(urljoin(f"{page}.html", value))
        target = unquote(address).removesuffix(".html")
        if re.match(r"[a-z]+:", value):
            return
        if target in printed:
            found[name] = "#" + place(target, unquote(fragment))
        else:  # a page that is not printed, a source, a download
            del found[name]
    elif not value.startswith("data:"):
        found[name] = folder + urljoin(f"{page}.html", value)


def document(toc: dict[str, object], title: str, author: str, html: Path, folder: str) -> str:
    """The one document.

    Raises:
        SystemExit: a page was not built.
    """
    printed = chapters(toc)
    missing = [page for page in printed if not (html / f"{page}.html").is_file()]
    if missing:
        raise SystemExit(f"not built: {', '.join(missing)}; run `make book` first")
    built = {
        page: BeautifulSoup((html / f"{page}.html").read_text(encoding="utf-8"), "html.parser") for page in printed
    }
    heads = dict.fromkeys(line for page, one in built.items() for line in _head_of(one, page, folder))
    articles = {page: article_of(one, page, printed, folder) for page, one in built.items()}
    body = "".join(map(str, articles.values()))
    return (
        f'<!doctype html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">'
        f"<title>{title}</title>{''.join(heads)}<style>{STYLE}</style></head><body>"
        f'<div class="title-page"><h1>{title}</h1><p>{author}</p></div>'
        f'<nav class="contents">{"".join(_contents(toc, articles))}</nav>{body}</body></html>'
    )


def _head_of(html: BeautifulSoup, page: str, folder: str) -> Iterator[str]:
    """The style sheets of a page, and MathJax where it has equations; paper needs no other script."""
    for found in html.select("link[rel=stylesheet], script"):
        name = "href" if found.name == "link" else "src"
        source = str(found.get(name, ""))
        if source:
            found[name] = source if source.startswith("data:") else folder + urljoin(f"{page}.html", source)
        if found.name == "link" or "mathjax/" in source or "window.MathJax =" in found.get_text():
            yield str(found)


def _contents(toc: dict[str, object], articles: dict[str, Tag]) -> Iterator[str]:
    parts: object = toc["parts"]
    assert isinstance(parts, list)
    for part in parts:
        named = [str(chapter["file"]) for chapter in part["chapters"] if chapter["file"] in articles]
        if named:
            yield f'<span class="part">{part["caption"]}</span>'
        for page in named:
            heading = articles[page].find("h1")
            assert heading is not None, f"{page} has no heading"
            yield f'<a href="#{place(page)}">{heading.get_text().strip()}</a>'


READY = """async () => {
    while (!window.MathJax?.startup?.promise) await new Promise(done => setTimeout(done, 50));
    await window.MathJax.startup.promise;
    await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
}"""
FOOTER = """<div style="width: 100%; text-align: center; font: 8pt sans-serif; color: #555">
<span class="pageNumber"></span></div>"""


def main() -> int:
    from playwright.sync_api import sync_playwright

    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    PDF.parent.mkdir(parents=True, exist_ok=True)
    one = PDF.with_suffix(".html")
    folder = Path(os.path.relpath(HTML, PDF.parent)).as_posix() + "/"
    one.write_text(document(toc, config["title"], config["author"], HTML, folder), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ["CHROMIUM"],
            args=["--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"],
        )
        page = browser.new_page(color_scheme="light", reduced_motion="reduce")
        page.set_default_timeout(600_000)
        page.goto(one.as_uri())
        page.evaluate(READY)
        page.pdf(
            path=PDF, prefer_css_page_size=True, print_background=True, outline=True, tagged=True,
            display_header_footer=True, header_template="<span></span>", footer_template=FOOTER,
        )  # fmt: skip
        browser.close()
    print(PDF.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
