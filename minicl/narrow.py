"""Figures drawn a second time for narrow screens: panels below one another, legends below the panels.

A picture is one file. The drawing for a phone travels inside the usual PNG, in a chunk of its own that every other
program steps over (`PNG, version 1.2`, section 3.3: ancillary, private, safe to copy). The book takes it out again and
offers both to the browser, which shows the one that fits the screen (tools/pages.py).
"""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from importlib import import_module
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

WIDTH = 4.3
"""Inches. At 390 pixels of a phone a letter of 10 points is then about 12 pixels high."""

SMALL = 1.2  # inches; a panel that is not wider is a picture in a row of pictures, and stays where it is
CHUNK = b"phNe"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def draw_narrow(figure: Figure) -> Figure | None:
    """A copy of a figure for a narrow screen, or None where the figure is narrow already or cannot be copied.

    Panels in a row come to stand below one another, as many beside each other as have room. A panel that shared its
    axis with its neighbour gets the labels that the neighbour had. Legends move from the right to below.
    """
    if figure.get_figwidth() <= WIDTH * 1.1 or figure.subfigs:
        return None
    try:
        copy: Figure = pickle.loads(pickle.dumps(figure))
    except (pickle.PicklingError, AttributeError, TypeError):  # something drawn holds a function of its own
        return None
    plt.close(copy)  # a copy of a figure that is shown would be shown too
    panels = [ax for ax in copy.axes if ax.get_subplotspec() is not None]
    grids = {id(ax.get_gridspec()) for ax in panels}
    if len(grids) == 1:
        _stack(copy, panels)
    else:
        copy.set_size_inches(WIDTH, copy.get_figheight())
    for legend in list(copy.legends):
        _below(copy, legend)
    return copy


def _stack(figure: Figure, panels: list[Axes]) -> None:
    grid = panels[0].get_gridspec()
    assert grid is not None
    width, height = figure.get_figwidth() / grid.ncols, figure.get_figheight() / grid.nrows
    panels.sort(key=lambda ax: (ax.get_subplotspec().num1, ax.get_subplotspec().num2))  # type: ignore[union-attr]
    pictures = grid.nrows > 1 and not any(ax.axison for ax in panels)  # rows that belong together
    if width <= SMALL or pictures:
        figure.set_size_inches(WIDTH, figure.get_figheight() * WIDTH / figure.get_figwidth())
        return
    columns = min(grid.ncols, max(1, int(WIDTH / width)))
    rows = -(-len(panels) // columns)
    if columns < grid.ncols:
        for ax in panels:
            _own_labels(ax, panels)
    new = figure.add_gridspec(rows, columns)
    for k, ax in enumerate(panels):
        ax.set_subplotspec(new[k // columns, k % columns])
        if (legend := ax.get_legend()) is not None and _is_outside(ax, legend):
            _under(ax, legend, height)
    outside = sum(_is_outside(ax, legend) for ax in panels if (legend := ax.get_legend()) is not None)
    figure.set_size_inches(WIDTH, min(height, 1.2 * WIDTH / columns) * rows + 0.6 * outside)


def _own_labels(ax: Axes, panels: list[Axes]) -> None:
    """Labels that stood at another panel only: of the same axis, in the same row or column; and the column's title."""
    at: Any = ax.get_subplotspec()
    row = [s for s in panels if s.get_subplotspec().rowspan == at.rowspan]  # type: ignore[union-attr]
    column = [s for s in panels if s.get_subplotspec().colspan == at.colspan]  # type: ignore[union-attr]
    if not ax.get_title():
        ax.set_title(next((s.get_title() for s in column if s.get_title()), ""))
    for name in ("x", "y"):
        axis = getattr(ax, f"{name}axis")
        siblings = getattr(ax, f"get_shared_{name}_axes")().get_siblings(ax)
        if len(siblings) > 1:
            ax.tick_params(axis=name, labelbottom=name == "x" or None, labelleft=name == "y" or None)
            first = next(
                (
                    s
                    for s in [*(column if name == "x" else row), *panels]
                    if s in siblings and getattr(s, f"get_{name}label")()
                ),
                None,
            )
            if first is not None and not axis.get_label_text():
                axis.set_label_text(getattr(first, f"get_{name}label")())


def _is_outside(ax: Axes, legend: Legend) -> bool:
    corner = legend.get_bbox_to_anchor().transformed(ax.transAxes.inverted())
    return bool(corner.x0 >= 1)


def _under(ax: Axes, legend: Legend, height: float) -> None:
    handles, labels = _entries(legend, [ax])
    ax.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.6 / height),
        ncols=_columns(labels),
        frameon=False,
        title=legend.get_title().get_text() or None,
    )


def _below(figure: Figure, legend: Legend) -> None:
    handles, labels = _entries(legend, figure.axes)
    columns = _columns(labels)
    legend.remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, -(-len(labels) // columns) - 1))


def _columns(labels: list[str]) -> int:
    longest = max(map(len, labels), default=0)
    return 1 if longest > 22 else 2 if longest > 9 else 3


def _entries(legend: Legend, axes: list[Axes]) -> tuple[list[Any], list[str]]:
    """What a legend names, and how: the lines themselves where they are found, what it drew for them elsewhere."""
    labels = [text.get_text() for text in legend.get_texts()]
    named: dict[str, Any] = dict(zip(labels, legend.legend_handles, strict=True))
    for ax in axes:
        handles, names = ax.get_legend_handles_labels()
        named |= {name: handle for handle, name in zip(handles, names, strict=True) if name in named}
    return list(named.values()), list(named)


# The file


def with_narrow(png: bytes, narrow: bytes) -> bytes:
    """A PNG that carries another one; ValueError where the first is none."""
    if not png.startswith(_SIGNATURE):
        raise ValueError("what should carry the narrow drawing is no PNG")
    length = struct.unpack(">I", png[8:12])[0]
    head = len(_SIGNATURE) + 12 + length  # its first chunk, IHDR, must stay the first
    body = CHUNK + narrow
    return png[:head] + struct.pack(">I", len(narrow)) + body + struct.pack(">I", zlib.crc32(body)) + png[head:]


def narrow_of(png: bytes) -> bytes | None:
    """The drawing for narrow screens that a PNG carries, or None."""
    at = len(_SIGNATURE)
    while png.startswith(_SIGNATURE) and at + 8 <= len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        if name == CHUNK:
            return png[at + 8 : at + 8 + length]
        at += 12 + length
    return None


def saved(figure: Figure, **settings: Any) -> bytes:
    """A figure as PNG; `settings` are those of `savefig`."""
    file = io.BytesIO()
    figure.savefig(file, format="png", **settings)
    return file.getvalue()


def carry_narrow_drawings() -> None:
    """In a notebook: from now on each figure that is shown carries its drawing for narrow screens."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    shell: Any = get_ipython()
    if shell is None or "inline" not in plt.get_backend():
        return
    import_module("matplotlib_inline.backend_inline")  # says how a figure is shown, when it is loaded
    formatter: Any = shell.display_formatter.formatters["image/png"]
    shown = formatter.lookup_by_type(Figure) if Figure in formatter.type_printers else None
    if shown is None or getattr(shown, "carries", False):
        return

    def both(figure: Figure) -> Any:
        from base64 import b64decode, b64encode

        usual = shown(figure)
        if not isinstance(usual, str) or (copy := draw_narrow(figure)) is None:
            return usual
        narrow = saved(copy, bbox_inches="tight", dpi=figure.dpi)
        return b64encode(with_narrow(b64decode(usual), narrow)).decode()

    both.carries = True  # type: ignore[attr-defined]
    formatter.for_type(Figure, both)
