"""Names written beside what they name, instead of in a legend: at the end of a line, next to a mark.

Where a name has room depends on the size at which a figure is drawn, and a figure is drawn at two (minicl/narrow.py).
So places are found anew whenever it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

LEADER = {"arrowstyle": "-", "color": "#767676", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
# right, left, above, below, then the corners; where all of these are taken, in a column on the right or on the left
AROUND = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)]
FARTHER = [(side * far, rows) for far in (16, 28, 44) for rows in (0, 1, -1, 2, -2, 3, -3, 4, -4) for side in (1, -1)]


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
            name, end, (10, 0), textcoords="offset points", va="center", fontsize=fontsize, arrowprops=dict(LEADER)
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
    squares = [(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    crowd = (np.abs(marks[:, None] - marks).max(2) < 40).sum(1)
    sizes = [
        np.array(Text.get_window_extent(label, renderer).size) / points for label in labels
    ]  # without the line to it
    names: dict[int, tuple[float, float, float, float]] = {}
    for k in [*np.argsort(-crowd, kind="stable")] * 4:  # who has most neighbours chooses first, and may choose again
        width, height = sizes[k]
        near = [(dx * (width / 2 + 10), dy * (height / 2 + 6)) for dx, dy in AROUND]
        far = [(dx + np.sign(dx) * width / 2, 1.05 * rows * height) for dx, rows in FARTHER]
        others = squares[:k] + squares[k + 1 :], [box for n, box in names.items() if n != k]
        costs = [
            _cost(marks[k], place, (width, height), *others, axes_box) + 0.6 * n + 3 * (n >= len(near))
            for n, place in enumerate(near + far)
        ]
        best = int(np.argmin(costs))
        labels[k].xyann = (near + far)[best]
        _lead(labels[k], best >= len(near))
        x, y = marks[k] + (near + far)[best]
        names[int(k)] = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _cost(
    mark: NDArray[np.float64],
    place: tuple[float, float],
    size: tuple[float, float],
    squares: list[tuple[float, float, float, float]],
    names: list[tuple[float, float, float, float]],
    axes_box: NDArray[np.float64],
) -> float:
    """What speaks against a name at this place: what it or the line to it covers, and what leaves the axes."""
    (x, y), (width, height) = mark + place, size
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    outside = np.maximum(axes_box[:2] - box[:2], 0).sum() + np.maximum(np.array(box[2:]) - axes_box[2:], 0).sum()
    cost = 50 * float(outside)
    cost += sum(_overlap(box, other) for other in squares) + 3 * sum(_overlap(box, other) for other in names)
    if abs(place[0]) > width / 2 + 12:
        end = x - np.sign(place[0]) * width / 2, y
        line = [mark + t * (np.array(end) - mark) for t in np.linspace(0.2, 1, 9)]
        for price, boxes in ((4, squares), (12, names)):
            cost += price * sum(any(a <= px <= c and b <= py <= d for px, py in line) for a, b, c, d in boxes)
    else:  # without a line a name belongs to the mark that is nearest
        own = _gap(box, *mark)
        cost += 12 * sum(_gap(box, (a + c) / 2, (b + d) / 2) < own for a, b, c, d in squares)
    return cost


def _gap(box: tuple[float, ...], x: float, y: float) -> float:
    return float(np.hypot(max(box[0] - x, x - box[2], 0), max(box[1] - y, y - box[3], 0)))


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high + 20 if wide > 0 and high > 0 else 0.0


def _lead(label: Annotation, moved: bool) -> None:
    """A thin line to what a name belongs to, where it stands apart."""
    if label.arrow_patch is not None:
        label.arrow_patch.set_visible(moved)
