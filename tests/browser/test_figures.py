"""Figures in both themes, on a phone and on paper."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from browser.reader import HTML, PAGES
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page

NOTEBOOKS = [page for page in PAGES if "cell_output" in (HTML / f"{page}.html").read_text(encoding="utf-8")]


EVERYTHING_HAS_COME = """async () => {
    const images = [...document.querySelectorAll("article img")].filter(image => image.checkVisibility());
    for (const image of images) image.loading = "eager";
    await Promise.allSettled([document.fonts.ready, ...images.map(image => image.decode())]);
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""
"""What comes later moves what stands below it."""


def in_theme(page: Page, theme: str) -> None:
    page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
    page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)


def pixels(image: Locator) -> NDArray[np.int16]:
    """What is seen of an image, without its edges."""
    image.scroll_into_view_if_needed()
    image.page.evaluate(EVERYTHING_HAS_COME)
    seen = np.asarray(Image.open(io.BytesIO(image.screenshot())).convert("RGB"), dtype=np.int16)
    return seen[8:-8, 8:-8]


@pytest.mark.parametrize("name", ["book/measuring_forgetting", "book/regularization", "book/hat"])
def test_bright_stays_bright_where_color_is_data(fresh: Any, name: str) -> None:
    """A colour map is the same in both themes; a figure of lines is turned around."""
    page = fresh(name).page
    image = page.locator("article img.colour-is-data:visible").first
    lines = page.locator("article div.cell_output figure img:not(.colour-is-data):visible").first
    in_theme(page, "light")
    data, drawn = pixels(image), pixels(lines)
    in_theme(page, "dark")
    # What stands above differs by a fraction of a pixel, so edges do too; turned around, the correlation would be -1.
    again = pixels(image)
    rows = min(len(data), len(again))
    light, dark = (side[:rows].mean(-1).ravel() for side in (data, again))
    assert np.corrcoef(light, dark)[0, 1] > 0.6
    assert abs(light.mean() - dark.mean()) < 5
    assert np.median(drawn) > 240
    assert np.median(pixels(lines)) < 60


def test_a_phone_gets_drawings_of_its_own(fresh: Any) -> None:
    page = fresh("book/comparison", "phone").page
    found = page.evaluate(
        """async () => Promise.all([...document.querySelectorAll("article picture > img")].map(async image => {
            image.loading = "eager";
            await image.decode();
            return [image.currentSrc, image.clientWidth / image.naturalWidth, image.clientWidth];
        }))"""
    )
    assert len(found) >= 3
    for source, scale, width in found:
        assert "-narrow" in source
        assert scale > 0.6, "a letter of 10 points is 10 pixels high, and more"
        assert width <= 390
    page = fresh("book/comparison").page
    sources = page.evaluate("[...document.querySelectorAll('article picture > img')].map(i => i.currentSrc)")
    assert not any("-narrow" in source for source in sources)


def test_the_figure_of_the_front_page_can_be_read_on_a_phone(fresh: Any) -> None:
    image = fresh("book/index", "phone").page.locator("article img.figure")
    width, natural = image.evaluate("i => i.decode().then(() => [i.clientWidth, i.naturalWidth])")
    assert natural < 600, "panels below one another"
    assert width / natural > 0.6


def test_what_scrolls_fades_until_its_end_is_reached(fresh: Any) -> None:
    page = fresh("book/comparison", "phone").page
    box = page.locator("article .goes-on").first
    assert box.count() == 1
    assert "gradient" in box.evaluate("e => getComputedStyle(e).maskImage")
    element = box.element_handle()
    page.evaluate("e => e.scrollTo(e.scrollWidth, 0)", element)
    page.wait_for_function("e => !e.classList.contains('goes-on')", arg=element)
    assert page.evaluate("e => getComputedStyle(e).maskImage", element) == "none"
    assert fresh("book/comparison").page.locator("article figure.goes-on").count() == 0


@pytest.mark.parametrize("name", ["book/hat", "book/pnn"])
def test_on_paper_folds_are_open_and_moving_figures_show_their_last_drawing(fresh: Any, name: str) -> None:
    page = fresh(name).page
    closed = page.locator("article details:not([open])").count()
    assert closed > 3
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("article details:not([open])").count() == 0
    for figure in page.locator("figure.flipbook").all():
        shown = figure.locator("img").evaluate_all("all => all.flatMap((img, i) => img.checkVisibility() ? [i] : [])")
        assert shown == [figure.locator("img").count() - 1]
        assert not figure.locator(".flipbook-bar").is_visible()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("article details:not([open])").count() == closed
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_one_word_for_the_fold(name: str) -> None:
    page = (HTML / f"{name}.html").read_text(encoding="utf-8")
    prompts = set(
        re.findall(r'<details class="hide[^>]*>\s*<summary[^>]*>\s*<span class="collapsed">([^<]*)</span>', page)
    )
    assert prompts <= {"Show the code", "Show the solution"}


def test_tables_of_results_have_a_number_and_a_caption(fresh: Any) -> None:
    page = fresh("book/comparison").page
    captions = page.locator("figure.printed-table > figcaption").all_inner_texts()
    assert len(captions) == 6
    assert all(re.match(r"Table \d+", caption) for caption in captions)
    bold = page.locator("figure.printed-table table.results strong").all_inner_texts()
    assert len(bold) >= 4
    page.set_viewport_size({"width": 1280, "height": 900})
    number = page.locator("table.results td:not(.words)").first
    assert number.evaluate("e => getComputedStyle(e).textAlign") == "right"
