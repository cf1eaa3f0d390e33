"""Names beside lines and marks: they say the right one, and cover nothing."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from minicl import labels

pytestmark = pytest.mark.usefixtures("style")


def names(ax: Axes) -> list[Annotation]:
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    ax.figure.canvas.draw()
    return [text for text in ax.texts if isinstance(text, Annotation)]


def apart(texts: list[Annotation]) -> bool:
    boxes = [_words(text) for text in texts]
    return not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def _words(text: Annotation) -> Bbox:
    """The room of the words, without the line that leads to them."""
    return Text.get_window_extent(text).padded(-1)


def test_names_at_the_ends_of_lines_are_apart_and_in_order() -> None:
    ax = plt.subplots(figsize=(5, 3))[1]
    for k in range(8):
        ax.plot([0, 1], [0.5, 0.9 + 0.001 * k], label=f"line {k}")
    ax.plot([0, 1], [0, 0])  # without a name
    ax.set_ylim(0, 1)
    labels.label_lines(ax)
    texts = names(ax)
    assert [text.get_text() for text in texts] == [f"line {k}" for k in range(8)]
    heights = [_words(text).y0 for text in texts]
    assert heights == sorted(heights)
    assert apart(texts)
    right = ax.get_window_extent().x1
    assert all(_words(text).x0 > right - 25 for text in texts)
    leaders = [text.arrow_patch for text in texts if text.arrow_patch is not None]
    struck = [patch.get_window_extent().x1 > _words(text).x0 for patch, text in zip(leaders, texts, strict=True)]
    assert not any(struck)  # a leader ends where its name begins


def test_a_line_that_ends_early_is_named_at_its_last_point() -> None:
    ax = plt.subplots()[1]
    ax.errorbar([0, 1, 2], [0.2, 0.4, np.nan], yerr=0.1, label="short")
    ax.plot([0, 2], [1, 1], label="long")
    labels.label_lines(ax)
    assert sorted(text.xy for text in names(ax)) == [(1.0, 0.4), (2.0, 1.0)]


def test_names_are_no_farther_from_their_place_than_they_must_be() -> None:
    np.testing.assert_allclose(labels._apart(np.array([0.0, 5.0, 30.0]), 10), [-2.5, 7.5, 30])
    np.testing.assert_allclose(labels._apart(np.array([0.0, 0.0, 0.0]), 10), [-10, 0, 10])


def test_names_beside_marks_cover_neither_marks_nor_each_other() -> None:
    ax = plt.subplots(figsize=(7, 4))[1]
    draws = np.random.default_rng(0).random((18, 2))
    places = {f"method {k}": (float(x), float(y)) for k, (x, y) in enumerate(draws)}
    ax.plot(*draws.T, "o", markersize=8)
    labels.label_marks(ax, places)
    texts = names(ax)
    assert apart(texts)
    marks = ax.transData.transform(draws)
    for text in texts:
        box = _words(text)
        assert not any(box.contains(*mark) for mark in marks), text.get_text()
