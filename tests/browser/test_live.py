"""Figures under the reader's finger: by keyboard, by finger, and on paper (arithmetic: tests/book/test_live.py)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Locator

from minicl import metrics
from minicl.isolation import hat

PLACES = {
    "plane": "book/regularization",
    "matrix": "book/measuring_forgetting",
    "units": "book/hat",
    "shares": "book/packnet",
    "bill": "book/pnn",
}


@pytest.fixture
def figure(request: pytest.FixtureRequest, fresh: Any) -> Locator:
    """The figure of a name, on its page, at the width of a phone."""
    found: Locator = fresh(PLACES[request.param], "phone").page.locator(f"figure.live-{request.param}")
    found.scroll_into_view_if_needed()
    return found


def said(figure: Locator) -> str:
    return figure.locator("output").inner_text()


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "").replace("−", "-")) for n in re.findall(r"[−+]?\d[\d,]*(?:\.\d+)?", text)]


def press(control: Locator, *keys: str) -> None:
    for key in keys:
        control.press(key)


@pytest.mark.parametrize("figure", ["plane"], indirect=True)
def test_the_plane_is_moved_by_keyboard_and_by_finger(figure: Locator) -> None:
    spring, lr = figure.get_by_label("spring, λ"), figure.get_by_label("learning rate")
    press(spring, "Home")
    *end, lost_a, lost_b, together, _ = numbers(said(figure))
    np.testing.assert_allclose(end, [2, 2], atol=0.1)  # without a spring: where task B is best
    assert lost_a > 5 > 0.1 > lost_b
    assert together == pytest.approx(lost_a + lost_b, abs=0.02)
    press(spring, "End")
    assert numbers(said(figure))[2] < 1
    press(lr, "End")
    assert "run away" in said(figure).split(".")[0]
    press(lr, "Home")
    before = said(figure)
    handle = figure.locator(".live-handle.live-b").bounding_box()
    assert handle
    mouse, x, y = figure.page.mouse, handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    mouse.move(x, y)
    mouse.down()
    mouse.move(x - 60, y + 40, steps=3)
    mouse.up()
    assert said(figure) != before
    assert float(figure.get_by_label("B, first weight").input_value()) < 2


@pytest.mark.parametrize("figure", ["matrix"], indirect=True)
def test_the_matrix_is_typed_and_dragged(figure: Locator) -> None:
    cells = figure.locator("tbody input")

    def right() -> bool:
        values = [float(value) if value else np.nan for value in cells.evaluate_all("cells => cells.map(c => c.value)")]
        b, *R = np.reshape(values, (4, 3))
        expected = [
            metrics.average_accuracy(R),
            metrics.backward_transfer(R),
            metrics.forward_transfer(R, b),
            metrics.forgetting(R),
        ]
        found = said(figure).split(". ")[0].replace("no number", "+0")
        return bool(np.allclose(numbers(found), np.nan_to_num(expected), atol=0.0051))

    assert right()
    seen = {said(figure)}
    press(figure.get_by_label("after task 2, accuracy on task 0"), "ArrowDown", "ArrowDown")
    seen.add(said(figure))
    assert right()
    figure.get_by_label("after task 1, accuracy on task 2").fill("")
    assert "no number" in said(figure)
    assert right()
    seen.add(said(figure))
    cell = figure.get_by_label("after task 1, accuracy on task 0")
    box = cell.bounding_box()
    assert box
    mouse = figure.page.mouse
    mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.85, box["y"] + box["height"] / 2, steps=3)
    mouse.up()
    assert float(cell.input_value()) > 0.8
    assert right()
    seen.add(said(figure))
    assert len(seen) == 4
    figure.get_by_role("radio", name="FWT").check()
    assert figure.locator("td.live-read").count() == 4
    figure.get_by_role("button", name="nothing is learned").press("Enter")
    assert right()


@pytest.mark.parametrize("figure", ["units"], indirect=True)
def test_units_are_claimed_and_weights_locked(figure: Locator) -> None:
    units = figure.locator("button.live-unit")
    names = []
    for i in range(8):
        units.nth(i).press("Space" if i % 2 else "Enter")
        names = units.evaluate_all("units => units.map(u => u.getAttribute('aria-label'))")
        into, out = torch.tensor(["free" not in name for name in names]).split(4)
        locked = int((hat.protect_weight(out, into) == 0).sum())
        assert numbers(said(figure))[0] == locked
        assert figure.locator("line.live-locked").count() == locked + int(into.sum())
    claimed = ("claimed by task 1", "claimed by task 2", "claimed by tasks 1, 2")
    assert {name.split(": ")[1] for name in names} == {"free", *claimed}


@pytest.mark.parametrize("figure", ["shares"], indirect=True)
def test_a_plan_is_made(figure: Locator) -> None:
    press(figure.get_by_label("tasks", exact=True), "Home", "ArrowRight")
    assert numbers(said(figure))[:4] == [16_400, 12_300, 2, 4_100]
    press(figure.get_by_label("task 2 keeps"), "End")
    assert "nearly the same number" in said(figure)
    assert numbers(said(figure))[3] == 0
    press(figure.get_by_label("task 1 keeps"), "End")
    assert "refused" in said(figure)


@pytest.mark.parametrize("figure", ["bill"], indirect=True)
def test_the_bill_grows(figure: Locator) -> None:
    press(figure.get_by_label("tasks", exact=True), "End")
    column, head, laterals = 64 * 256 + 256 + 256 * 256 + 256, 256 * 10 + 10, 256 * 256 + 256 * 10
    assert numbers(said(figure))[:2] == [20, 20 * (column + head) + 190 * laterals]  # as the page counts it
    direct = said(figure)
    figure.get_by_role("radio", name="adapter").check()
    assert numbers(said(figure))[1] > numbers(direct)[1]


@pytest.mark.parametrize("figure", PLACES, indirect=True)
def test_a_figure_takes_the_place_of_its_words_and_prints_as_it_stands(figure: Locator) -> None:
    page = figure.page
    drawing, control = figure.locator("svg, table").first, figure.locator(".live-buttons, .live-sliders").first
    assert figure.locator(".live-words").is_hidden()
    assert drawing.is_visible()
    assert control.is_visible()
    for theme in ("light", "dark"):  # words and lines stand out from the ground
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
        ink, ground = figure.locator("output").evaluate(
            "e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert abs(sum(numbers(ink)[:3]) - sum(numbers(ground)[:3])) > 300
    page.emulate_media(media="print")
    assert drawing.is_visible()
    assert said(figure)
    assert control.is_hidden()
