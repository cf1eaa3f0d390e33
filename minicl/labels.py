"""Names written beside what they name, instead of in a legend: at the end of a line, next to a mark.

Where a name has room depends on the size at which a figure is drawn, and a figure is drawn at two (minicl/narrow.py).
So places are found anew whenever it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

LEADER = {"arrowstyle": "-", "color": "#767676", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
# right, left, above, below, then the corners; where all of these are taken, in a column on the right or on the left
AROUND = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)])
ROWS = (0, 1, -1, 2, -2, 3, -3, 4, -4)
FARTHER = np.array([(side * far, row) for far in (16.0, 28.0, 44.0) for row in ROWS for side in (1, -1)])
Floats: TypeAlias = NDArray[np.float64]


class _Placer(Artist):
    """Drawn first and draws nothing: it moves the labels of its axes to where they have room."""

    def __init__(self, labels: list[Annotation], place: Callable[[list[Annotation], Any], None]) -> None:
        super().__init__()
        self.labels, self.place = labels, place
        self.set_zorder(-1000)

    def draw(self, renderer: Any) -> None:
        self.place(self.labels, renderer)

    def get_tightbbox(self, renderer: Any = None) -> Bbox:
        self.place(self.labels, renderer)
        return Bbox.null()

    def get_window_extent(self, renderer: Any = None) -> Bbox:
        return Bbox.null()


def label_lines(ax: Axes, fontsize: float = 10) -> None:
    """Write the name of each line that has one at its right end, apart from the others.

    A thin line leads from a name to its end where the two are apart. Lines without a name get none.
    """
    leader = LEADER | {"relpos": (0, 0.5)}  # from the left edge: from the middle it would strike other names through
    handles, names = ax.get_legend_handles_labels()
    placer = _Placer([], _spread)
    ax.add_artist(placer)
    for handle, name in zip(handles, names, strict=True):
        line = getattr(handle, "lines", [handle])[0]  # an error bar's own line
        x, y = (np.asarray(values, dtype=float) for values in (line.get_xdata(), line.get_ydata()))
        there = np.flatnonzero(np.isfinite(y))
        if not len(there):
            continue
        end = float(x[there[-1]]), float(y[there[-1]])
        label = ax.annotate(
            name, end, (10, 0), textcoords="offset points", va="center", fontsize=fontsize, arrowprops=dict(leader)
        )
        label.set_annotation_clip(False)
        placer.labels.append(label)


def _spread(labels: list[Annotation], renderer: Any) -> None:
    """Move names up and down until none covers another: in the order of their lines, as little as possible."""
    if not labels:
        return
    ax = labels[0].axes
    assert ax is not None
    points = ax.figure.get_dpi() / 72
    place = ax.transData.transform([label.xy for label in labels])
    right = place[:, 0].max()
    height = 1.2 * float(labels[0].get_fontsize())
    order = np.argsort(place[:, 1], kind="stable")
    wanted = place[order, 1] / points
    got = _apart(wanted, height)
    for k, y in zip(order, got, strict=True):
        labels[k].xyann = ((right - place[k, 0]) / points + 10, y - place[k, 1] / points)
        moved = abs(y - place[k, 1] / points) > 0.5 * height or right - place[k, 0] > 1
        _lead(labels[k], moved)


def _apart(wanted: NDArray[np.float64], height: float) -> NDArray[np.float64]:
    """Places at least `height` apart, in the order given, with the least squared distance from those wanted."""
    blocks: list[list[float]] = []  # of touching names: sum of the wanted lower ends, number
    shifted = wanted - height * np.arange(len(wanted))
    for value in shifted:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    means = np.concatenate([np.full(int(count), total / count) for total, count in blocks])
    return means + height * np.arange(len(wanted))


def label_marks(ax: Axes, places: Mapping[str, tuple[float, float]], fontsize: float = 9) -> None:
    """Write a name beside each mark, where it covers no other mark and no other name.

    Args:
        ax: axes on which the marks are drawn already.
        places: where each mark is, in the units of the axes.
        fontsize: in points.
    """
    placer = _Placer([], _beside)
    ax.add_artist(placer)
    for name, place in places.items():
        label = ax.annotate(
            name, place, (0, 0), textcoords="offset points", ha="center", va="center", arrowprops=dict(LEADER)
        )
        label.set_fontsize(fontsize)
        placer.labels.append(label)


def _beside(labels: list[Annotation], renderer: Any) -> None:
    ax = labels[0].axes if labels else None
    if ax is None:
        return
    points = ax.figure.get_dpi() / 72
    marks = ax.transData.transform([label.xy for label in labels]) / points
    axes_box = np.array(ax.get_window_extent().extents) / points
    squares = np.concatenate([marks - 5, marks + 5], 1)  # (marks, 4): left, bottom, right, top
    crowd = (np.abs(marks[:, None] - marks).max(2) < 40).sum(1)
    places = []  # where each name may stand, as boxes: beside its mark, or in a column with a line to it
    for label, mark in zip(labels, marks, strict=True):
        half = np.array(Text.get_window_extent(label, renderer).size) / points / 2  # without the line
        beside = AROUND * np.add(half, (10, 6))
        farther = FARTHER * (1, 2.1 * half[1]) + np.sign(FARTHER) * (half[0], 0)
        centers = mark + np.concatenate([beside, farther])
        places.append(np.concatenate([centers - half, centers + half], 1))
    names = np.full((len(labels), 4), np.nan)  # nowhere yet
    for k in [*np.argsort(-crowd, kind="stable")] * 4:  # who has most neighbours chooses first, and may choose again
        costs = _costs(marks[k], places[k], np.delete(squares, k, 0), np.delete(names, k, 0), axes_box)
        best = int(np.argmin(costs))
        names[k] = places[k][best]
        labels[k].xyann = tuple((names[k][:2] + names[k][2:]) / 2 - marks[k])
        _lead(labels[k], best >= len(AROUND))


def _costs(mark: Floats, boxes: Floats, squares: Floats, names: Floats, axes_box: Floats) -> Floats:
    """What speaks against each place of a name: what it or the line to it covers, and what leaves the axes.

    Args:
        mark: what is named, shape (2,).
        boxes: the places, shape (places, 4), those of `AROUND` first.
        squares: of the other marks, shape (marks, 4).
        names: of the other names, shape (names, 4), not a number where one has no place yet.
        axes_box: of the axes, shape (4,).
    """
    outside = np.maximum(axes_box[:2] - boxes[:, :2], 0).sum(1) + np.maximum(boxes[:, 2:] - axes_box[2:], 0).sum(1)
    cost = 50 * outside + _overlaps(boxes, squares) + 3 * _overlaps(boxes, names)
    cost += 0.6 * np.arange(len(boxes)) + 3 * (np.arange(len(boxes)) >= len(AROUND))
    near, far = boxes[: len(AROUND)], boxes[len(AROUND) :]
    # without a line a name belongs to the mark that is nearest
    gaps = _gaps(near, (squares[:, :2] + squares[:, 2:]) / 2)
    cost[: len(AROUND)] += 12 * (gaps < _gaps(near, mark[None])).sum(1)
    ends = np.clip(mark, far[:, :2], far[:, 2:])
    ends[:, 1] = (far[:, 1] + far[:, 3]) / 2
    line = mark + np.linspace(0.2, 1, 9)[:, None] * (ends - mark)[:, None]  # (places, points, 2)
    for price, others in ((4, squares), (12, names)):
        within = (others[:, :2] <= line[:, :, None]) & (line[:, :, None] <= others[:, 2:])
        cost[len(AROUND) :] += price * np.any(np.all(within, 3), 1).sum(1)
    return cost


def _gaps(boxes: Floats, dots: Floats) -> Floats:
    """From each box, shape (boxes, 4), to each dot, shape (dots, 2)."""
    apart = np.maximum(np.maximum(boxes[:, None, :2] - dots, dots - boxes[:, None, 2:]), 0)
    return np.hypot(apart[..., 0], apart[..., 1])


def _overlaps(boxes: Floats, others: Floats) -> Floats:
    """By how much each box covers others, in square points, and 20 for each that it touches at all."""
    shared = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
    return np.where((shared > 0).all(2), shared.prod(2) + 20, 0.0).sum(1)


def _lead(label: Annotation, moved: bool) -> None:
    """A thin line to what a name belongs to, where it stands apart."""
    if label.arrow_patch is not None:
        label.arrow_patch.set_visible(moved)
