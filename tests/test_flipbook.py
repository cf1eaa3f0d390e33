"""Moving figures: what is stored, what is said in words, and what is refused. The browser test moves them."""

from __future__ import annotations

import base64
import io
import re
from xml.dom import minidom

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from minicl.flipbook import Flipbook


def drawing(shade: float) -> plt.Figure:
    figure = plt.figure(figsize=(2, 1), dpi=50, facecolor=str(shade))
    return figure


def three() -> Flipbook:
    book = Flipbook("Grey & greyer", "shade", colors=8)
    for k, shade in enumerate((0.2, 0.5, 0.8)):
        book.add(drawing(shade), f"step {k}", f'a plate of shade "{shade}"')
    return book


def pictures(page: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)\"", page)]


def test_holds_every_drawing_as_it_was() -> None:
    found = pictures(three()._repr_html_())
    assert [picture.size for picture in found] == [(100, 50)] * 3
    shades = [np.asarray(picture.convert("L"))[25, 50] / 255 for picture in found]
    np.testing.assert_allclose(shades, [0.2, 0.5, 0.8], atol=0.01)


def test_without_scripts_the_last_drawing_stays_and_the_words_are_there() -> None:
    page = three()._repr_html_()
    tags = re.findall(r"<img [^>]*>", page)
    assert [' hidden=""' in tag for tag in tags] == [True, True, False]
    assert '<div class="flipbook-bar" hidden="">' in page  # a slider that cannot move is not shown
    assert page.count("<li>") == 3
    assert "<strong>step 1</strong>: a plate of shade &quot;0.5&quot;" in page


def test_is_xml_too() -> None:
    minidom.parseString(f"<body>{three()._repr_html_()}</body>")


def test_slider_has_a_place_for_each_drawing_and_a_label() -> None:
    page = three()._repr_html_()
    slider = re.search(r'<input id="([^"]+)" type="range" min="0" max="2"', page)
    assert slider is not None
    assert f'<label for="{slider[1]}">shade</label>' in page


def test_button_says_which_figure_it_moves() -> None:
    page = three()._repr_html_()
    button = re.search(r'<button type="button" aria-describedby="([^"]+)">', page)
    assert button is not None
    assert f'<figcaption id="{button[1]}">Grey &amp; greyer</figcaption>' in page


def test_two_on_a_page_do_not_mix() -> None:
    names = re.findall(r'class="flipbook" id="([^"]+)"', three()._repr_html_() + three()._repr_html_())
    assert len(set(names)) == 2


def test_text_cannot_break_the_page() -> None:
    book = Flipbook("a < b & c", '"quoted"')
    book.add(drawing(0.5), "<b>", "x > y")
    page = book._repr_html_()
    assert "a &lt; b &amp; c" in page
    assert "<b>" not in page


def test_closes_what_it_has_stored() -> None:
    before = plt.get_fignums()
    three()
    assert plt.get_fignums() == before


@pytest.mark.parametrize(("label", "alt"), [("", "words"), ("step", " ")])
def test_refuses_a_drawing_without_words(label: str, alt: str) -> None:
    figure = drawing(0.5)
    with pytest.raises(ValueError, match="label and an alt"):
        Flipbook("caption", "step").add(figure, label, alt)
    plt.close(figure)


def test_refuses_to_show_nothing() -> None:
    with pytest.raises(ValueError, match="add one first"):
        Flipbook("caption", "step")._repr_html_()


def test_opens_where_it_tells_most() -> None:
    book = three()
    book.opens = 1
    assert "show(1);" in book._repr_html_()
    assert "show(2);" in three()._repr_html_()  # the last, if nothing is said
    book.opens = 3
    with pytest.raises(ValueError, match="cannot open at drawing 3: there are 3"):
        book._repr_html_()


def test_a_wide_drawing_is_there_for_narrow_screens_too() -> None:
    book = Flipbook("caption", "step", color_is_data=True)
    for k in range(2):
        figure, axes = plt.subplots(1, 2, figsize=(8, 3), dpi=50)
        axes[0].plot([0, k])
        book.add(figure, f"step {k}", "two panels")
    page = book._repr_html_()
    minidom.parseString(f"<body>{page}</body>")
    narrow, wide = pictures(page)[:2]
    assert wide.size == (400, 150)
    assert narrow.size[0] < wide.size[0] < narrow.size[0] + narrow.size[1]
    assert page.count('<source media="(max-width: 600px)" srcset="data:') == 2
    assert page.count('<img class="colour-is-data" ') == 2
