"""The second drawing, for narrow screens: what moves, what stays, and how it travels inside a PNG."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.lines import Line2D
from PIL import Image

from minicl import narrow

pytestmark = pytest.mark.usefixtures("style")


def two_panels() -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
    for ax in axes:
        ax.errorbar([0, 1], [1, 2], yerr=0.1, fmt="o--", label="HAT")
    axes[0].set_ylabel("accuracy")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def test_panels_stand_below_one_another_and_each_has_its_labels() -> None:
    figure = two_panels()
    before = plt.get_fignums()
    copy = narrow.draw_narrow(figure)
    assert copy is not None
    assert plt.get_fignums() == before, "no copy is left among the figures that are shown"
    copy.canvas.draw()
    above, below = (ax.get_position() for ax in copy.axes)
    assert copy.get_figwidth() == narrow.WIDTH
    assert above.y0 > below.y1
    assert above.x0 == pytest.approx(below.x0, abs=0.01)
    assert [ax.get_ylabel() for ax in copy.axes] == ["accuracy", "accuracy"]
    assert any(label.get_visible() and label.get_text() for label in copy.axes[1].get_yticklabels())
    assert figure.get_figwidth() == 8.4, "the figure itself is as it was"


def test_legends_move_below_and_keep_markers() -> None:
    copy = narrow.draw_narrow(two_panels())
    assert copy is not None
    copy.canvas.draw()
    ax = copy.axes[1]
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y1 < ax.get_window_extent().y0
    assert legend.findobj(lambda artist: isinstance(artist, Line2D) and artist.get_marker() == "o")
    figure = two_panels()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    copy = narrow.draw_narrow(figure)
    assert copy is not None
    copy.canvas.draw()
    assert copy.legends[0].get_window_extent().y1 < copy.axes[1].get_window_extent().y0


def test_small_pictures_stay_in_their_rows_and_narrow_figures_as_they_are() -> None:
    figure, _ = plt.subplots(2, 10, figsize=(8, 1.9))
    copy = narrow.draw_narrow(figure)
    assert copy is not None
    assert copy.axes[9].get_subplotspec().colspan.start == 9  # type: ignore[union-attr]
    assert narrow.draw_narrow(plt.subplots(figsize=(4.6, 3.9))[0]) is None


def test_what_cannot_be_copied_is_drawn_once() -> None:
    figure = two_panels()
    figure.axes[0].xaxis.set_major_formatter(lambda x, _: str(x))
    assert narrow.draw_narrow(figure) is None


def test_a_png_carries_another_and_shows_the_same() -> None:
    figure = two_panels()
    wide, other = narrow.saved(figure), b"any bytes at all"
    both = narrow.with_narrow(wide, other)
    assert narrow.narrow_of(both) == other
    assert narrow.narrow_of(wide) is None
    assert narrow.narrow_of(b"no picture") is None
    assert Image.open(io.BytesIO(both)).tobytes() == Image.open(io.BytesIO(wide)).tobytes()
    with pytest.raises(ValueError, match="no PNG"):
        narrow.with_narrow(b"no picture", other)


def test_rows_of_pictures_stay_rows() -> None:
    """The first task above, the second below: as the caption says."""
    figure, axes = plt.subplots(2, 4, figsize=(6, 3))
    for ax in axes.flat:
        ax.imshow([[0, 1], [1, 0]])
        ax.axis("off")
    copy = narrow.draw_narrow(figure)
    assert copy is not None
    assert {ax.get_subplotspec().get_geometry()[:2] for ax in copy.axes} == {(2, 4)}  # type: ignore[union-attr]


def test_panels_of_a_second_row_get_the_labels_of_their_row_and_the_title_of_their_column() -> None:
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 5), sharex=True, sharey=True)
    for row, name in zip(axes, ("Fisher", "perturbation"), strict=True):
        row[0].set_ylabel(name)
    for ax, name in zip(axes[0], ("related", "unrelated"), strict=True):
        ax.set_title(name)
    axes[1][0].set_xlabel("left")
    axes[1][1].set_xlabel("right")
    copy = narrow.draw_narrow(figure)
    assert copy is not None
    assert [ax.get_ylabel() for ax in copy.axes] == ["Fisher", "Fisher", "perturbation", "perturbation"]
    assert [ax.get_title() for ax in copy.axes] == ["related", "unrelated", "related", "unrelated"]
    assert [ax.get_xlabel() for ax in copy.axes] == ["left", "right", "left", "right"]
