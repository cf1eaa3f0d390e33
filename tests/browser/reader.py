"""A reader with a browser: which pages there are, and what happens when one is opened."""

from __future__ import annotations

import functools
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import scripts
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
WIDTHS = {"desktop": (1300, 900), "phone": (390, 844)}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


PAGES = scripts.toc_pages()
CHAPTERS = [page for page in PAGES if (ROOT / f"{page}.ipynb").is_file()]
API = [page for page in PAGES if page.startswith("book/api/")]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@dataclass
class Visit:
    """A page that was opened, and what happened meanwhile."""

    name: str
    page: Page
    phone: bool
    complaints: list[str] = field(default_factory=list)  # errors on the console, exceptions, failed requests
    outside: list[str] = field(default_factory=list)  # requests to other hosts
    seconds: float = 0.0  # until the page can be used: parsed, scripts run, equations set


SETTLED = """async () => {
    if (document.readyState === "loading")
        await new Promise(done => document.addEventListener("DOMContentLoaded", done));
    if (document.querySelector("script[src*=mathjax]")) {
        while (!window.MathJax?.startup?.promise && performance.now() < 20000)
            await new Promise(done => setTimeout(done, 5));
        await window.MathJax?.startup?.promise;
    }
}"""


def visit(browser: Browser, address: str, name: str, width: str = "desktop") -> Visit:
    """Open a page in a new, empty profile and wait until it can be used."""
    w, h = WIDTHS[width]
    page = browser.new_page(viewport={"width": w, "height": h}, color_scheme="light", reduced_motion="reduce")
    page.set_default_timeout(30_000)
    here = Visit(name, page, phone=width == "phone")
    inside = ("data:", "blob:", "about:", address.split("/book/")[0])

    def console(message: Any) -> None:
        if message.type == "error":
            here.complaints.append(f"console: {message.text} {message.location}")

    page.on("console", console)
    page.on("pageerror", lambda error: here.complaints.append(f"exception: {error}"))
    page.on("requestfailed", lambda request: here.complaints.append(f"failed: {request.url[:200]} {request.failure}"))
    page.on("request", lambda r: None if r.url.startswith(inside) else here.outside.append(r.url[:200]))
    started = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.evaluate(SETTLED)
    here.seconds = time.perf_counter() - started
    page.wait_for_load_state("load")
    # colours are read right after the theme has changed: no fading
    page.add_style_tag(content="*, *::before, *::after { transition: none !important; animation: none !important; }")
    return here


# Links, as they stand in the files


def links(page: str, pattern: str) -> list[tuple[str, str]]:
    """The links of a page whose tag matches, as (page, anchor)."""
    html = (HTML / f"{page}.html").read_text(encoding="utf-8")
    found = []
    for tag in re.findall(rf"<a [^>]*{pattern}[^>]*>", html):
        target = re.search(r'href="([^"]*)"', tag)
        assert target, tag
        path, anchor = urldefrag(urljoin(f"/{page}.html", unquote(target[1])))
        found.append((path.removeprefix("/").removesuffix(".html"), anchor))
    return found


def equation_links() -> set[tuple[str, str, str]]:
    """From the functions below equations, as (page, page of the function, anchor)."""
    return {
        (page, f"book/{target[1]}", target[2])
        for page in PAGES
        for block in re.findall(
            r'<p class="equation-code">.*?</p>', (HTML / f"{page}.html").read_text(encoding="utf-8"), re.DOTALL
        )
        for target in [re.search(r'href="([^"#]*)\.html#([^"]*)"', block)]
        if target
    }


def function_links() -> set[tuple[str, str]]:
    """From functions back to equations."""
    return {target for page in API for target in links(page, 'href="[^"]*#equation-[^"]*"')}


def code_links(page: str) -> set[tuple[str, str]]:
    """From names in code."""
    return set(links(page, 'class="[^"]*sphinx-codeautolink-a[^"]*"'))


@functools.cache
def targets() -> set[tuple[str, str]]:
    """Where all of these lead."""
    equations = {(name, anchor) for _, name, anchor in equation_links()}
    return equations | function_links() | set().union(*map(code_links, CHAPTERS))
