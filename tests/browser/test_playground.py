"""The playground, live: its arithmetic in the browser, its controls by the keyboard, and what its page says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import playground_twins as playground
import pytest
from browser.reader import HTML, visit
from playwright.sync_api import Browser, Page

PAGE = "book/playground"

LEARN = """settings => {
    const { Run, tasksFrom } = globalThis.PlaygroundEngine;
    const run = new Run({ tasks: tasksFrom(globalThis.PLAYGROUND_DATA), ...settings });
    const answers = () => [...run.learner.logits(run.tasks[0].test.x, run.tasks[0].test.n, 0)];
    let before, learned;
    while (!run.done) if (run.step() === "next task") [before, learned] = [answers(), run.curve[0].at(-1)[1]];
    const [one, two] = run.curve.map(curve => curve.at(-1)[1]), after = answers();
    return {
        learned, one, two, diverged: !Number.isFinite(run.loss), used: run.learner.used(),
        soon: run.curve[0].find(([step]) => step >= run.perTask + run.perEpoch)?.[1],
        moved: before && before.some((z, k) => z !== after[k]),
    };
}"""
"""A run with the page's own numbers, without its drawing."""


@pytest.fixture
def page(fresh: Any) -> Page:
    opened: Page = fresh(PAGE).page
    opened.locator("#pg-start").wait_for()
    return opened


@pytest.fixture(scope="module")
def untouched(browser: Browser, site: str) -> Iterator[Page]:
    """The page, for what only calculates in it."""
    here = visit(browser, f"{site}{PAGE}.html", PAGE)
    yield here.page
    here.page.close()


@pytest.mark.parametrize(("method", "scenario"), playground.CASES)
def test_the_arithmetic_in_the_page_is_that_of_minicl(method: str, scenario: str, untouched: Page) -> None:
    given, expected = playground.reference(method, scenario, {})
    # the page has its data; the rest goes there as text, which is far quicker
    found = untouched.evaluate(
        f"given => ({playground.REPLAY})({{ ...JSON.parse(given), data: globalThis.PLAYGROUND_DATA }})",
        json.dumps(given),
    )
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_the_page_says_one_will_see(untouched: Page, seed: int) -> None:
    def learn(method: str, strength: float = 0, own_heads: bool = False) -> dict[str, Any]:
        settings = {"method": method, "strength": strength, "ownHeads": own_heads, "seed": seed, "lr": 0.2}
        found: dict[str, Any] = untouched.evaluate(LEARN, settings)
        return found

    bare = learn("finetune")
    assert bare["learned"] > 0.85
    assert bare["one"] < bare["learned"] - 0.3, "it forgets"
    assert bare["soon"] < bare["learned"] - 0.1, "as soon as task 2 is trained"
    assert learn("finetune", own_heads=True)["one"] > bare["one"] + 0.1, "less, with an output layer for each"
    held, harder = learn("ewc", 10), learn("ewc", 20)
    assert bare["one"] + 0.1 < held["one"] < harder["one"]
    assert abs(learn("ewc", 0)["one"] - bare["one"]) < 0.1, "without strength it is fine-tuning, with other draws"
    assert learn("ewc", 100)["diverged"]
    few, many = learn("er", 5), learn("er", 100)
    assert bare["one"] + 0.1 < few["one"] < many["one"] - 0.05
    kept, crowded = learn("packnet", 0.5), learn("packnet", 0.95)
    assert crowded["two"] < kept["two"] - 0.05
    assert abs(crowded["learned"] - kept["learned"]) < 0.05
    free, dear = learn("hat", 0.1), learn("hat", 0.75)
    assert dear["learned"] < free["learned"] - 0.1
    for flat in (kept, crowded, free, dear):
        assert not flat["moved"], "not an answer changes"
        assert flat["one"] == flat["learned"]
    assert bare["moved"], "this would be seen"


def test_by_the_keyboard_alone_and_in_words(page: Page) -> None:
    said, start = page.locator(".pg-status"), page.locator("#pg-start")
    page.wait_for_timeout(500)
    assert page.locator(".pg-readout").inner_text().startswith("Step 0"), "nothing moves by itself"
    page.locator("input[value=finetune]").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("input[value=packnet]").is_checked()
    assert page.locator("#pg-heads").is_disabled()
    strength = page.get_by_label("Share of its weights that a task keeps")
    strength.focus()
    page.keyboard.press("End")
    assert strength.get_attribute("aria-valuetext") == "0.95"
    page.get_by_label("Steps in each frame").focus()
    page.keyboard.press("End")
    page.locator("#pg-step").focus()
    page.keyboard.press("Enter")
    assert said.inner_text().startswith("Step 1. Loss 2.")
    start.focus()
    page.keyboard.press("Enter")
    assert start.inner_text() == "Pause"
    page.keyboard.press("Enter")
    assert said.inner_text().startswith("Paused at step")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.pg-status').textContent.startsWith('Finished')")
    assert "It kept every answer that it had." in said.inner_text()
    assert page.evaluate("document.activeElement.id") == "pg-reset", "the keyboard is not lost"
    assert "PackNet, share 0.95" in page.locator(".pg-runs tbody th").inner_text()
    page.keyboard.press("Enter")
    assert said.inner_text() == "Back at the start."
    assert start.is_enabled()


def test_too_stiff_a_spring_is_told(page: Page) -> None:
    page.locator("input[value=ewc]").check()
    page.get_by_label("Strength of the springs").fill("6")
    page.get_by_label("Steps in each frame").fill("4")
    page.locator("#pg-start").click()
    page.wait_for_function("document.querySelector('.pg-status').textContent.includes('grew without bound')")
    assert "grew without bound" in page.locator(".pg-runs tbody th").inner_text()


@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_it_runs_from_a_folder_and_fits(browser: Browser, width: str) -> None:
    here = visit(browser, (HTML / f"{PAGE}.html").as_uri(), PAGE, width)
    try:
        here.page.emulate_media(reduced_motion="no-preference")
        here.page.get_by_label("Steps in each frame").fill("4")
        here.page.locator("#pg-start").click()
        here.page.wait_for_function("document.querySelector('.pg-status').textContent.startsWith('Finished')")
        lines = here.page.locator(".pg-chart polyline").evaluate_all("all => all.map(e => e.points.length)")
        assert min(lines) > 40
        assert here.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert here.outside == []
        assert [one for one in here.complaints if "playground" in one] == []
    finally:
        here.page.close()


def test_without_scripts_there_is_a_table(browser: Browser, site: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(f"{site}{PAGE}.html")
        assert page.locator(".playground table").is_visible()
        assert page.locator("#pg-start").count() == 0
    finally:
        context.close()
