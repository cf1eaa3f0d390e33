"""Exercises that are answered in the page: what a reader types, hears, finds again, and takes away for the teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser.reader import HTML, visit
from playwright.sync_api import Browser, Locator, Page, expect

import minicl
from minicl import exercises
from minicl.exercises._declared import DECLARED

PLANS = {"a": "continual", "b": "feature extraction", "c": "fine-tuning", "d": "joint", "e": "meta-learning"}


def form(page: Page, name: str) -> Locator:
    return page.locator(f"form.check[data-exercise='{name}']")


def answer(form: Locator, *values: str | float) -> str:
    """Type or choose these values, press Enter or the button, and return what is said."""
    fields = form.locator("select, input")
    assert fields.count() == len(values)
    for i, value in enumerate(values):
        field = fields.nth(i)
        if field.evaluate("e => e.tagName") == "SELECT":
            field.select_option(str(value))
        else:
            field.fill(str(value))
    form.get_by_role("button", name="Check").press("Enter")
    return form.locator("output").inner_text()


def test_every_exercise_of_words_and_numbers_has_its_form() -> None:
    for chapter in exercises.chapters():
        exercises.exercises(chapter)
    found = [
        name
        for path in (HTML / "book").glob("*.html")
        for name in re.findall(r'<form [^>]*data-exercise="([^"]*)"', path.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == sorted(DECLARED)


@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_a_hint_for_a_wrong_answer_and_what_is_right_stays(fresh: Any, width: str) -> None:
    here = fresh("book/why_networks_forget", width)
    page, words, vector = here.page, form(here.page, "forgetting-1"), form(here.page, "forgetting-3")
    wrong = {**PLANS, "a": "joint"}
    said = answer(words, *wrong.values())
    assert said == f"Not yet. {minicl.check('forgetting-1', wrong).words}"
    assert words.get_attribute("data-state") == "wrong"
    assert answer(words, *PLANS.values()).startswith("Right. All learn")
    assert answer(vector, "1/2", "0", "0") == f"Not yet. {minicl.check('forgetting-3', [0.5, 0, 0]).words}"
    summary = page.locator(".check-summary p")
    assert "you have 1 right" in summary.inner_text()
    page.reload()
    assert words.locator("output").inner_text().startswith("Right.")
    assert [one.input_value() for one in words.locator("select").all()] == list(PLANS.values())
    assert vector.locator("input").first.input_value() == "0.5"
    assert vector.locator("output").inner_text().startswith("Not yet. A step along this input")
    assert answer(vector, "2", "\u22121", "0").startswith("Right.")
    assert "you have 2 right" in summary.inner_text()
    page.goto(page.url.replace("why_networks_forget", "hat"))
    assert "you have 2 right" in page.locator(".check-summary p").inner_text(), "on every page of the book"
    assert here.complaints == []
    assert here.outside == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_is_no_answer_is_not_judged(fresh: Any) -> None:
    page = fresh("book/measuring_forgetting").page
    number, matrix = form(page, "measuring-1"), form(page, "measuring-4")
    assert answer(number, "") == "There is no answer yet."
    assert number.locator("input").evaluate("e => e === document.activeElement")
    assert answer(number, "abc") == "Not yet. The answer is a str; numbers are asked for."
    assert number.locator("input").get_attribute("aria-invalid") == "true"
    assert answer(number, "-0.2").startswith("Right.")
    assert answer(matrix, *[0.5] * 8, "") == "Something is still empty."
    assert answer(matrix, 0.5, "NaN", "NaN", 0.9, 0.5, "NaN", 0.5, 0.5, 0.5).startswith("Right.")
    number.locator("input").fill("-0.3")
    assert number.locator("output").inner_text() == "", "an old verdict is not about a new answer"


def test_the_file_for_the_teacher_and_a_clean_slate(fresh: Any, tmp_path: Path) -> None:
    page = fresh("book/measuring_forgetting").page
    save, forget = page.get_by_role("button", name="Save my answers"), page.get_by_role("button", name="Delete my")
    assert save.is_disabled()
    answer(form(page, "measuring-1"), "-0.2")
    answer(form(page, "measuring-4"), 0.5, "NaN", "NaN", 0.9, 0.5, "NaN", 0.5, 0.5, 0.5)
    with page.expect_download() as download:
        save.click()
    assert download.value.suggested_filename == "answers.json"
    download.value.save_as(tmp_path / "answers.json")
    given = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))["answers"]
    assert set(given) == {"measuring-1", "measuring-4"}
    assert all(minicl.check(name, one) for name, one in given.items())
    page.on("dialog", lambda dialog: dialog.accept())
    forget.click()
    expect(form(page, "measuring-1").locator("output")).to_have_text("")
    assert form(page, "measuring-1").locator("input").input_value() == ""
    page.reload()
    assert "you have 0 right" in page.locator(".check-summary p").inner_text()


def test_all_of_it_by_keyboard_and_with_names_that_are_read_out(fresh: Any) -> None:
    page = fresh("book/hat").page
    page.get_by_role("form", name="Your answer to hat-1").get_by_label("a", exact=True).focus()
    for word in ("score", "gate", "temperature", "mask", "accumulated mask"):
        page.keyboard.type(word)
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Check"
    page.keyboard.press("Enter")
    assert form(page, "hat-1").get_by_role("status").inner_text().startswith("Right.")


def test_where_the_browser_keeps_nothing_the_page_says_so(browser: Browser, site: str) -> None:
    page = browser.new_page()
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    )
    try:
        page.goto(f"{site}book/hat.html")
        assert answer(form(page, "hat-1"), "score", "gate", "temperature", "mask", "accumulated mask").startswith(
            "Right"
        )
        assert "Your browser keeps nothing" in page.locator(".check-summary p").inner_text()
        assert "you have 1 right" in page.locator(".check-summary p").inner_text()
    finally:
        page.close()


def test_answers_are_checked_in_a_folder_without_a_server(browser: Browser) -> None:
    here = visit(browser, (HTML / "book" / "pnn.html").as_uri(), "book/pnn")
    try:
        assert answer(form(here.page, "pnn-4"), "6").startswith("Not yet.")
        here.page.reload()
        assert form(here.page, "pnn-4").locator("output").inner_text().startswith("Not yet.")
        assert here.complaints == []
    finally:
        here.page.close()
