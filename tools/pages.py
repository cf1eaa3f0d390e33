"""Sphinx extension: what is left to do when the pages are written, so that they are light and open to everyone.

- Light: a page loads only what it uses. The theme brings 1.5 MB of icons as a script and 0.5 MB of styles, of which a
  few icons and a fifth of the rules are used; MathJax's usual bundle brings menus and formats that no page needs; the
  same pixels take less than half the room in WebP. A phone loads the drawing that was made for it.
- Open: markup that assistive technology would stumble over (signatures, the bibliography, empty headers) is put right.
- Found: the search of a book that is read from a folder, where a page may fetch nothing, has its excerpts in a script.
- Quiet: thebe, which would fetch scripts from another host, is off.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tinycss2
from bs4 import BeautifulSoup
from fontTools import subset, ttLib
from PIL import Image
from sphinx.application import Sphinx

from minicl.narrow import narrow_of

# From MathJax's own components: TeX in, HTML out, and MathML beside it for screen readers.
MATHJAX = {"loader": {"load": ["input/tex", "output/chtml", "a11y/assistive-mml"]}}

STYLES = ("styles/pydata-sphinx-theme.css", "sphinx-design.min.css", "mystnb.*.css")
ICONS = "vendor/fontawesome/webfonts/fa-solid-900"
LANDMARK = ' role="region" aria-label="The book"'
WORD = re.compile(r"[\w-]+")
# Korean words in a text, and those that are marked already. A screen reader and a font need to know the language.
KOREAN = re.compile(r'<span lang="ko">.*?</span>|([가-힣]+(?: [가-힣]+)*)(?=[^<>]*<)')


# The markup of a page


def _signature(match: re.Match[str]) -> str:
    """A signature of several lines: Sphinx writes a list without terms inside a term, which is no list."""
    text = match.group()
    for old, new in (
        ("<dl>", '<span class="sig-lines">'),
        ("</dl>", "</span>"),
        ("<dd>", '<span class="sig-line">'),
        ("</dd>", "</span>"),
    ):
        text = text.replace(old, new)
    return text


def mended(page: str) -> str:
    """The page as it is published."""
    page = re.sub(r'\s*<script src="[^"]*/fontawesome\.js[^"]*"></script>', "", page)
    page = re.sub(r"\s*<link [^>]*/sphinx-thebe\.css[^>]*>", "", page)
    page = re.sub(r'<dt class="sig .*?</dt>', _signature, page, flags=re.DOTALL)
    page = page.replace('role="doc-biblioentry"', 'role="listitem"')  # its parent is a list
    page = re.sub(r"<th([^>]*)>\s*(?:<p>\s*</p>)?\s*</th>", r"<td\1></td>", page)  # a corner is no header
    # The logo is in no landmark of its own.
    page = re.sub(rf'(<div [^>]*id="pst-primary-sidebar"[^>]*?)(?:{LANDMARK})?>', rf"\1{LANDMARK}>", page)
    page = re.sub(r'<span class="w">(\s*)</span>', r"\1", page)  # spaces of code need no colour
    page = KOREAN.sub(lambda match: f'<span lang="ko">{match[1]}</span>' if match[1] else match[0], page)
    for style in STYLES:
        name = re.escape(style.removesuffix(".css")).replace(r"\*", r'[^"?]*')
        page = re.sub(rf'(_static/{name})(?<!\.used)\.css(\?[^"]*)?"', r'\1.used.css\2"', page)
    return page


# Pictures


def _shrunk(png: bytes, target: Path) -> bool:
    """Write a picture as lossless WebP; returns whether that made it smaller. A name of 64 digits is its content's."""
    if not (len(target.stem) == 64 and target.exists()):
        packed = io.BytesIO()
        Image.open(io.BytesIO(png)).save(packed, format="webp", lossless=True)
        if len(packed.getvalue()) >= len(png):
            return False
        target.write_bytes(packed.getvalue())
    return True


def with_light_pictures(text: str, page: Path, html: Path) -> str:
    """The page with its PNGs replaced: files, and data within the page, which becomes files (base64 adds a third)."""
    folder = html / "_images"
    root = "../" * (len(page.relative_to(html).parts) - 1)

    def two(match: re.Match[str]) -> str:
        """A picture that carries another one for narrow screens (minicl/narrow.py): the browser takes what fits."""
        png = folder / f"{match[2]}.png"
        narrow = narrow_of(png.read_bytes()) if png.is_file() else None
        if narrow is None:
            return match.group()
        (folder / f"{match[2]}-narrow.png").write_bytes(narrow)
        source = f'<source media="(max-width: 600px)" srcset="{match[1]}{match[2]}-narrow.png"/>'
        return f"<picture>{source}{match.group()}</picture>"

    def file(match: re.Match[str]) -> str:
        png = folder / f"{match[1]}.png"
        smaller = png.is_file() and _shrunk(png.read_bytes(), png.with_suffix(".webp"))
        return f'_images/{match[1]}.webp"' if smaller else match.group()

    def data(match: re.Match[str]) -> str:
        png = base64.b64decode(match[2])
        folder.mkdir(exist_ok=True)
        target = folder / f"{hashlib.sha256(png).hexdigest()}.webp"
        if not _shrunk(png, target):
            target = target.with_suffix(".png")
            target.write_bytes(png)
        return f'{match[1]}="{root}_images/{target.name}"'

    text = re.sub(r'\b(src|srcset)="data:image/png;base64,([A-Za-z0-9+/=]+)"', data, text)
    text = re.sub(r'(?<!<picture>)(?<!/>)<img [^>]*?src="((?:\.\./)*_images/)([^"/]+)\.png"[^>]*>', two, text)
    return re.sub(r'(?<=[/"])_images/([^"/]+)\.png"', file, text)


# Styles and icons


def _is_used(selector: str, words: set[str]) -> bool:
    """Whether every class that a selector asks for is a word of some page or script."""
    selector = re.sub(r"\[[^\]]*\]", "", selector)
    while selector != (outer := re.sub(r":(?:not|is|where|has)\([^()]*\)", "", selector)):
        selector = outer  # alternatives: one of them may be used
    classes = re.findall(r"\.((?:[\w-]|\\.)+)", selector)
    return all(name.replace("\\", "") in words or name.startswith("bs-") for name in classes)


def used_rules(rules: list[Any], words: set[str]) -> str:
    """Those rules of a style sheet that could apply to a page made of these words."""
    kept: list[str] = []
    for rule in rules:
        if rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports") and rule.content is not None:
            inner = used_rules(tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True), words)
            if inner:
                kept.append(f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inner}}}")
        elif rule.type == "qualified-rule":
            selectors = re.split(r",(?![^()\[]*[)\]])", tinycss2.serialize(rule.prelude))
            used = [selector.strip() for selector in selectors if _is_used(selector, words)]
            if used:
                kept.append(f"{','.join(used)}{{{tinycss2.serialize(rule.content)}}}")
        else:
            kept.append(rule.serialize())
    return "\n".join(kept)


def lighten(html: Path) -> None:
    """Write, beside each large style sheet and the icons' font, one with what the book uses."""
    static = html / "_static"
    scripts = [p for p in static.rglob("*.js") if "mathjax" not in p.parts and p.name != "fontawesome.js"]
    words: set[str] = set()
    for file in [*html.rglob("*.html"), *scripts]:
        words.update(WORD.findall(file.read_text(encoding="utf-8")))
    icons = {0x20}
    for file in [p for pattern in STYLES for p in static.glob(pattern) if ".used." not in p.name]:
        rules = tinycss2.parse_stylesheet(file.read_text(encoding="utf-8"), skip_comments=True, skip_whitespace=True)
        used = used_rules(rules, words).replace(f'{ICONS}.woff2) format("woff2")', f'{ICONS}.used.woff) format("woff")')
        file.with_suffix(".used.css").write_text(used, encoding="utf-8")
    for file in static.rglob("*.css"):
        if file.with_suffix(".used.css").exists():
            continue
        text = file.read_text(encoding="utf-8")
        icons |= {int(code, 16) for code in re.findall(r"\\(f[0-9a-f]{3})\b", text)}
        icons |= {ord(character) for character in text if "\uf000" <= character <= "\uf8ff"}
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    font = ttLib.TTFont(static / f"{ICONS}.ttf")
    subsetter = subset.Subsetter()
    subsetter.populate(unicodes=icons)
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(static / f"{ICONS}.used.woff")


def excerpts(html: Path, pages: Iterable[str]) -> str:
    """A script with the text of every page that the search finds, for `book/_static/scorer.js`."""
    texts = {}
    for name in pages:
        page = BeautifulSoup((html / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
        if (main := page.select_one("[role=main]")) is not None:
            text = main.get_text(" ").replace("#", "")  # the links beside headings
            texts[name] = re.sub(r"\s+", " ", text).strip()
    return f"window.EXCERPTS = {json.dumps(texts, ensure_ascii=False)};\n"


def _configure(app: Sphinx, config: Any) -> None:
    for listeners in app.events.listeners.values():
        listeners[:] = [one for one in listeners if getattr(one.handler, "__module__", None) != "sphinx_thebe"]
    config.version = config.release = version("minicl")  # pyproject.toml is the one place that states it
    config.html_math_renderer = "mathjax"  # or Sphinx would take the other one it knows, that of the EPUB
    config.mathjax_path = "mathjax/startup.js"
    config.mathjax3_config = MATHJAX
    config.html_search_scorer = "book/_static/scorer.js"


def _finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.name != "html":
        return
    html = Path(app.outdir)
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(with_light_pictures(mended(text), page, html), encoding="utf-8")
    lighten(html)
    (html / "_static" / "excerpts.js").write_text(excerpts(html, sorted(app.env.found_docs)), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_css_file("access.css")
    app.add_js_file("access.js", defer="defer")
    app.connect("config-inited", _configure)
    app.connect("build-finished", _finish, priority=900)  # when every file lies where it belongs
    return {"parallel_read_safe": True}
