"""The way through the book: search, theme, next and previous, links between equations and code, and no server."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urldefrag

import pytest
from browser.reader import (
    API,
    CHAPTERS,
    HTML,
    PAGES,
    code_links,
    equation_links,
    function_links,
    links,
    targets,
    visit,
)
from playwright.sync_api import Browser, Page

NAMES = {page.removeprefix("book/") for page in CHAPTERS}


def test_search_finds_packnet(fresh: Any) -> None:
    page: Page = fresh("book/index").page
    page.keyboard.press("Control+k")
    page.keyboard.type("PackNet")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=PackNet*")
    page.get_by_text("Search finished").wait_for()
    found = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.href.split(/[?#]/)[0])")
    assert found[0].endswith("/book/packnet.html")
    entries = [i for i, link in enumerate(found) if "/book/api/" in link]
    chapters = [i for i, link in enumerate(found) if link.split("/book/")[1].removesuffix(".html") in NAMES]
    assert len(chapters) > 3
    assert max(chapters) < min(entries)
    page.locator("#search-results li a[href*='packnet.html']").first.click()
    page.wait_for_url("**/book/packnet.html*")


def test_who_searches_code_finds_its_entry_first(fresh: Any) -> None:
    page: Page = fresh("search.html?q=minicl.metrics.average_accuracy").page
    page.locator("#search-results li a").first.wait_for()
    assert "/book/api/" in page.locator("#search-results li a").first.evaluate("a => a.href")


def test_search_finds_nothing_where_nothing_is(fresh: Any) -> None:
    page: Page = fresh("search.html?q=xyzzyplugh").page
    page.locator("#search-results p").first.wait_for()
    assert page.locator("#search-results li a").count() == 0


@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_theme_switch(fresh: Any, width: str) -> None:
    page: Page = fresh("book/hat", width).page
    look = """() => [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector("article p")).color]"""
    seen = {}
    for _ in range(3):  # light, dark, as the system is
        page.locator("button.theme-switch-button:visible").first.click()
        theme, ground, ink = page.evaluate(look)
        seen[theme] = (ground, ink)
    assert set(seen) == {"light", "dark"}
    brightness = {theme: [sum(map(int, re.findall(r"\d+", c)[:3])) for c in colors] for theme, colors in seen.items()}
    assert brightness["light"][0] > 600 > 300 > brightness["light"][1]
    assert brightness["dark"][0] < 200 < 400 < brightness["dark"][1]
    while page.evaluate("document.documentElement.dataset.mode") != "dark":
        page.locator("button.theme-switch-button:visible").first.click()
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark", "the choice is remembered"


def test_next_and_previous_lead_on_without_scripts(browser: Browser, site: str) -> None:
    """A few steps from the front door; each page's own two links: tests/browser/test_pages.py."""
    page = browser.new_page(java_script_enabled=False)
    try:
        page.goto(site, wait_until="commit")
        page.wait_for_url("**/book/index.html")
        for link, pages in (("right-next", PAGES[1:4]), ("left-prev", PAGES[2::-1])):
            for name in pages:
                page.locator(f"a.{link}").click()
                page.wait_for_url(f"{site}{name}.html", wait_until="domcontentloaded")
    finally:
        page.close()


def test_the_keyboard_is_seen_wherever_it_is(fresh: Any) -> None:
    """Tab leads through the page, in the order of the page, and each stop is marked."""
    page: Page = fresh("book/packnet").page
    for step in range(60):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
                const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
                return {
                    body: e === document.body, html: e.outerHTML.slice(0, 150),
                    marked: (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1)
                        || style.boxShadow !== "none",
                    seen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
                };
            }"""
        )
        assert not stop["body"], f"after {step} stops the keyboard is lost"
        assert stop["marked"], f"no mark on {stop['html']}"
        assert stop["seen"], f"out of sight: {stop['html']}"
        if step == 0:
            assert "Skip to main content" in stop["html"]


# Links (tests/browser/test_pages.py follows them)


def test_links_between_equations_and_code_are_on_pages_that_are_opened() -> None:
    assert {name for name, _ in targets()} <= set(PAGES)


def test_each_equation_leads_to_its_function() -> None:
    found = equation_links()
    assert len(found) >= 30
    assert {name for _, name, _ in found} <= set(API)


def test_each_function_leads_back_to_its_equations() -> None:
    forth = {
        (page, anchor)
        for page in PAGES
        for anchor in re.findall(
            r'id="(equation-[^"]*)">\s*(?:(?!</div>).)*</div>\s*<p class="equation-code">',
            (HTML / f"{page}.html").read_text(encoding="utf-8"),
            re.DOTALL,
        )
    }
    assert function_links() == forth, "an equation that names its function is named by it, and the other way round"


def test_names_in_code_lead_to_the_api() -> None:
    for page in CHAPTERS:
        assert any(name in API for name, _ in code_links(page)), f"{page}: no name in its code leads to the API"
    assert len(CHAPTERS) > 5


def test_every_link_within_the_book_has_a_target() -> None:
    ids: dict[str, set[str]] = {}
    missing = []
    for page in PAGES:
        for name, anchor in set(links(page, 'href="(?![a-z]+:)[^"]+"')):
            file = HTML / (f"{name}.html" if (HTML / f"{name}.html").is_file() else name)
            if not file.exists():
                missing.append(f"{page} -> {name}")
            elif anchor and file.suffix == ".html":
                if name not in ids:
                    ids[name] = set(re.findall(r'\b(?:id|name)="([^"]*)"', file.read_text(encoding="utf-8")))
                if anchor not in ids[name]:
                    missing.append(f"{page} -> {name}#{anchor}")
    assert missing == []


# Without a server


@pytest.mark.parametrize("name", ["book/hat", "book/index"])
def test_the_book_reads_from_a_folder(browser: Browser, name: str) -> None:
    here = visit(browser, (HTML / f"{name}.html").as_uri(), name)
    try:
        assert here.complaints == []
        assert [url for url in here.outside if not url.startswith(HTML.as_uri())] == []
        page = here.page
        assert page.locator(".math").count() == page.locator(".math:has(mjx-container)").count()
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        font = page.evaluate("document.fonts.ready.then(fonts => [...fonts].map(f => [f.family, f.status]))")
        assert any("Awesome" in family and status == "loaded" for family, status in font), "icons"
        page.goto((HTML / "search.html").as_uri() + "?q=PackNet")
        page.locator("#search-results li a[href*='packnet.html']").first.wait_for()
        assert "PackNet" in page.locator("#search-results li p.context").first.inner_text()
    finally:
        here.page.close()


# What tools/pages.py leaves out


@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_a_page_looks_the_same_with_all_that_was_left_out(fresh: Any, site: str, width: str) -> None:
    """Styles of no use were of no use: with the theme's full style sheets not a pixel changes."""
    page: Page = fresh("book/packnet", width).page
    light = page.screenshot()
    full: list[str] = []

    def serve(route: Any) -> None:
        full.append(route.request.url)
        name = urldefrag(route.request.url)[0].split("?")[0].removeprefix(site)
        route.fulfill(path=HTML / name.replace(".used.css", ".css"))

    page.route("**/*.used.css*", serve)
    page.reload()
    page.add_style_tag(content="*, *::before, *::after { transition: none !important; animation: none !important; }")
    page.evaluate("() => window.MathJax.startup.promise")
    assert len(full) == 3
    assert page.screenshot() == light
