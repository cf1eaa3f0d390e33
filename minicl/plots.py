"""Every figure that the book draws more than once, and the one palette it draws them with.

Figures bring their own white ground and dark ink. No single ink reaches a contrast of 4.5 to 1 on a white page and on
a near-black one (the best grey reaches 4.3), so a transparent figure is always hard to read on one of the two. On a
dark page the book turns the lightness of a figure around and keeps its hues (book/_static/custom.css). Nothing is told
by colour alone: methods and tasks also differ in marker and line style.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from . import files
from .labels import label_lines, label_marks
from .metrics import Result, mean_and_interval
from .narrow import carry_narrow_drawings
from .results import by_stream, written

Array = NDArray[np.float64]

GROUND = "#ffffff"
INK = "#1f1f1f"

# Seven colours whose smallest distance, for full colour vision and for each of its three losses, is the largest that
# was found among colours with a contrast of at least 3 to 1 on the ground.
BLACK, BLUE, INDIGO, WINE, OLIVE, ROSE, BROWN = COLORS = (
    "#000000",
    "#0072B2",
    "#332288",
    "#882255",
    "#999933",
    "#CC6677",
    "#7F5F28",
)

_DASHES: dict[str, Any] = {
    "bound": ":",
    "isolation": "-",
    "regularization": "--",
    "replay": "-.",
    "expansion": (0, (6, 1.5, 1, 1.5, 1, 1.5)),
    "prototypes": (0, (1, 2.5)),
}


def _line(family: str, color: str, marker: str) -> dict[str, Any]:
    return {"color": color, "marker": marker, "linestyle": _DASHES[family]}


FAMILIES: dict[str, str] = {
    "isolation": BLUE,
    "regularization": ROSE,
    "replay": OLIVE,
    "expansion": WINE,
    "prototypes": INDIGO,
    "bound": "#6e6e6e",
}
"""One colour for each family, where a figure tells families apart and names the methods; bounds are grey."""

_FAMILY_MARKERS = dict(zip(FAMILIES, "sDo^vX", strict=True))

PALETTE: dict[str, dict[str, Any]] = {
    "FineTune": _line("bound", BLACK, "X"),
    "Joint": _line("bound", BROWN, "*"),
    "Individual": _line("bound", ROSE, "p"),
    "FeatureExtraction": _line("bound", INDIGO, "d"),
    "PNN": _line("isolation", BLUE, "s"),
    "HAT": _line("isolation", WINE, "^"),
    "PackNet": _line("isolation", OLIVE, "o"),
    "EWC": _line("regularization", INDIGO, "D"),
    "SI": _line("regularization", ROSE, "v"),
    "MAS": _line("regularization", BROWN, "P"),
    "LwF": _line("regularization", BLUE, "<"),
    "VCL": _line("regularization", OLIVE, ">"),
    "AGSCL": _line("regularization", WINE, "h"),
    "ER": _line("replay", ROSE, "o"),
    "GEM": _line("replay", INDIGO, "s"),
    "AGEM": _line("replay", BROWN, "^"),
    "DERpp": _line("replay", BLUE, "D"),
    "DEN": _line("expansion", INDIGO, "P"),
    "Piggyback": _line("expansion", ROSE, "s"),
    "CPG": _line("expansion", BROWN, "v"),
    "DER": _line("expansion", BLUE, "X"),
    "ICaRL": _line("replay", OLIVE, "v"),
    "BiC": _line("replay", WINE, "P"),
    "GenerativeReplay": _line("replay", BLACK, "X"),
    "NCM": _line("prototypes", WINE, "o"),
    "SLDA": _line("prototypes", BLUE, "s"),
}
"""How each method is drawn in every chapter: colour, marker and line style, by the name of its class.

The line style says which family a method belongs to, the marker which method of the family it is, so that no two
methods look alike without colour. `ax.plot(x, y, **minicl.plots.PALETTE["HAT"])` draws a line.
"""

FAMILY: dict[str, str] = {
    name: next(family for family, dashes in _DASHES.items() if dashes == look["linestyle"])
    for name, look in PALETTE.items()
}
"""The family of each method, by the name of its class: one of `FAMILIES`."""


def style() -> None:
    """Give every figure that follows the look of the book. A notebook calls this once.

    In a notebook, each figure that is shown then carries a second drawing, for narrow screens (minicl/narrow.py).
    """
    carry_narrow_drawings()
    tasks = [_task_line(j) for j in range(len(COLORS))]
    mpl.rcParams.update(
        {
            "figure.figsize": (7.0, 3.8),
            "figure.dpi": 120,
            "figure.facecolor": GROUND,
            "figure.constrained_layout.use": True,
            "savefig.facecolor": GROUND,
            "savefig.edgecolor": GROUND,
            "savefig.transparent": False,
            "savefig.dpi": "figure",
            "svg.hashsalt": "minicl",  # the same figure gives the same file
            "axes.facecolor": GROUND,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.titlesize": 12,
            "axes.labelsize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.7,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "legend.framealpha": 0.9,
            "legend.facecolor": GROUND,
            "legend.edgecolor": "#bbbbbb",
            "legend.labelcolor": INK,
            "lines.linewidth": 1.8,
            "lines.markersize": 6,
            "axes.prop_cycle": mpl.cycler(  # type: ignore[attr-defined]
                color=[t["color"] for t in tasks], linestyle=[t["linestyle"] for t in tasks]
            ),
        }
    )


def accuracy_matrix(result: Result | Sequence[Result], ax: Axes | None = None) -> Axes:
    """The accuracy matrix as a table of coloured cells, in percent; blank where a task had no head yet.

    Args:
        result: one result, or several of one method over seeds, whose mean is drawn.
        ax: axes to draw on; new ones where none are given.

    Raises:
        TypeError: something that is no result.
        ValueError: no results, or results that cannot be averaged.
    """
    (results,) = _by_method(result, most=1).values()
    R = np.mean([r.accuracy for r in results], axis=0)
    T = len(R)
    ax = _axes(ax, figsize=(1.2 + 0.62 * min(T, 12), 0.9 + 0.52 * min(T, 12)))
    cells = ax.imshow(R, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    decimals = 1 if T <= 6 else 0
    place = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())  # in inches
    letters = 3 + 2 * decimals  # of "100.0"; a letter is about 0.6 as wide as it is high
    room = 72 / T * min(0.8 * place.width / (0.6 * letters), 0.6 * place.height)
    for i, j in np.argwhere(np.isfinite(R)):
        text, color = f"{100 * R[i, j]:.{decimals}f}", legible_on(cells.cmap(float(R[i, j])))
        ax.text(j, i, text, ha="center", va="center", color=color, fontsize=min(room, 11))
    ax.set_xticks(range(T))
    ax.set_yticks(range(T))
    ax.set_xlabel("accuracy (%) on task")
    ax.set_ylabel("after learning task")
    ax.tick_params(length=0)
    ax.grid(False)
    # White lines between the cells, so that equal neighbours are still two cells.
    ax.set_xticks(np.arange(T - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(T - 1) + 0.5, minor=True)
    ax.grid(True, which="minor", color=GROUND, linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def accuracy_over_time(results: Result | Sequence[Result], ax: Axes | None = None) -> Axes:
    """What is still known as tasks arrive: accuracy against the number of tasks learned.

    For one method: a line for each task, from the moment it was learned. For several methods: a line for each method,
    its mean accuracy on the tasks learned so far. Several results of a method are seeds: their mean is drawn, and the
    95 % t-interval as error bars.

    Args:
        results: one result, or several.
        ax: axes to draw on; new ones where none are given.

    Raises:
        TypeError: something that is no result.
        ValueError: no results, or results of a method that cannot be averaged.
    """
    groups = _by_method(results)
    ax = _axes(ax)
    longest = max(len(group[0].accuracy) for group in groups.values())
    if len(groups) == 1:
        (group,) = groups.values()
        R = np.stack([r.accuracy for r in group])
        for j in range(longest):
            x = np.arange(j, longest) + _aside(j, longest, group)
            _error_line(ax, x, R[:, j:, j], label=f"task {j}", **_task_line(j))
        ax.set_ylabel("accuracy")
    else:
        for k, (name, group) in enumerate(groups.items()):
            known = np.array([[r.accuracy[i, : i + 1].mean() for i in range(len(r.accuracy))] for r in group])
            x = np.arange(known.shape[1]) + _aside(k, len(groups), group)
            _error_line(ax, x, known, label=written(name), **line_of(name))
        ax.set_ylabel("mean accuracy on\nthe tasks learned so far")
    ax.set_xlabel("after learning task")
    ax.set_xticks(range(longest))
    ax.set_xlim(-0.3, longest - 0.7)
    _percent(ax)
    _name_lines(ax)
    return ax


def learning_curves(results: Result | Sequence[Result], ax: Axes | None = None) -> Axes:
    """Accuracy on the task at hand as it is learned, task after task, a line for each method.

    Several results of a method are seeds: their mean is drawn, and the 95 % t-interval as a band. A run that stopped
    early counts with its last accuracy until the longest run of its method has ended.

    Args:
        results: one result, or several of one or more methods on streams with the same number of tasks.
        ax: axes to draw on; new ones where none are given.

    Raises:
        TypeError: something that is no result.
        ValueError: no results, results of a method that cannot be averaged, or different numbers of tasks.
    """
    groups = _by_method(results)
    numbers = sorted({len(r.learning_curves) for group in groups.values() for r in group})
    if len(numbers) > 1:
        raise ValueError(f"results with {numbers} tasks do not share one axis of epochs; draw them one at a time")
    T = numbers[0]
    ax = _axes(ax)
    lengths = [max(len(r.learning_curves[t]) for group in groups.values() for r in group) for t in range(T)]
    starts = np.concatenate([[0], np.cumsum([max(length - 1, 1) for length in lengths])])
    for name, group in groups.items():
        line = line_of(name)
        for t in range(T):
            values = _held([r.learning_curves[t] for r in group])
            x = starts[t] + np.arange(values.shape[1])
            mean, half = mean_and_interval(values)
            # a marker where a task ends; the name at the end of the last one
            label = written(name) if t == T - 1 else None
            ax.plot(x, mean, label=label, markevery=[len(x) - 1], **line)
            if len(group) > 1:
                ax.fill_between(x, mean - half, mean + half, color=line["color"], alpha=0.2, linewidth=0)
    for t, start in enumerate(starts[:-1]):
        if t:
            ax.axvline(float(start), color="#767676", linewidth=0.8)
        middle = float(start + starts[t + 1]) / 2
        ax.annotate(
            f"task {t}" if T <= 8 else f"{t}",
            (middle, 1),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    ax.set_xlim(0, float(starts[-1]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epochs")
    ax.set_ylabel("accuracy on\nthe task at hand")
    _percent(ax)
    _name_lines(ax)
    return ax


def within_tasks(result: Result, ax: Axes | None = None) -> Axes:
    """Accuracy on every task while others are learned, from epoch to epoch; a line for each task.

    Args:
        result: of a run that measured within tasks: `run(..., evaluate_every=n)`.
        ax: axes to draw on; new ones where none are given.

    Raises:
        TypeError: something that is no result.
        ValueError: a result without such measurements.
    """
    _by_method(result)
    every, T = result.settings.get("evaluate_every"), len(result.accuracy)
    if every is None or not result.within_tasks:
        raise ValueError("nothing was measured within tasks; run(..., evaluate_every=1) measures after every epoch")
    ax = _axes(ax)
    lengths = [max(len(curve) - 1, 0) for curve in result.learning_curves]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    x = np.concatenate(
        [s + every * np.arange(1, len(m) + 1) for s, m in zip(starts, result.within_tasks, strict=False)]
    )
    values = np.concatenate(result.within_tasks)
    for j in range(T):
        known = np.isfinite(values[:, j])  # from the moment on at which it has a head
        ends = [0, int(known.sum()) - 1]
        ax.plot(x[known], values[known, j], markevery=ends, label=f"task {j}", **_task_line(j))
    for start in starts[1:-1]:
        ax.axvline(float(start), color="#767676", linewidth=0.8)
    ax.set_xlim(0, float(starts[-1]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epochs")
    ax.set_ylabel("accuracy")
    _percent(ax)
    _name_lines(ax)
    return ax


def accuracy_by_method(results: Result | Sequence[Result], ax: Axes | None = None) -> Axes:
    """Average accuracy in the end, a line for each method; several results of a method are seeds.

    Args:
        results: one result, or several.
        ax: axes to draw on; new ones where none are given.

    Raises:
        TypeError: something that is no result.
        ValueError: no results, or results of a method that cannot be averaged.
    """
    groups = _by_method(results)
    ax = _axes(ax, figsize=(6.4, 1.0 + 0.34 * len(groups)))
    for y, (name, group) in enumerate(groups.items()):
        mean, half = mean_and_interval([r.average_accuracy for r in group])
        line = line_of(name) | {"linestyle": "none", "markersize": 8}
        ax.errorbar(float(mean), y, xerr=float(half) if len(group) > 1 else None, capsize=3, **line)
    ax.set_yticks(range(len(groups)), [written(name) for name in groups])
    ax.invert_yaxis()
    ax.set_xlabel("average accuracy after the last task")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    return ax


def accuracy_against_bytes(results: Result | Sequence[Result], ax: Axes | None = None) -> Axes:
    """Average accuracy in the end against all bytes that a method stores, weights and whatever it keeps beside them.

    Args and errors as for `accuracy_by_method`; the results must come from `run`, which counts the bytes.
    """
    groups = _by_method(results)
    places = {}
    for name, group in groups.items():
        stored = [r.capacity["bytes"] + r.capacity["extra_bytes"] for r in group if "bytes" in r.capacity]
        if len(stored) < len(group):
            raise ValueError(f"a result of {name} does not say how many bytes it stores; draw results of minicl.run")
        mean, half = mean_and_interval([r.average_accuracy for r in group])
        places[name] = float(np.mean(stored)), float(mean), float(half)
    return trade_off(places, ax)


def trade_off(places: Mapping[str, tuple[float, float, float]], ax: Axes | None = None) -> Axes:
    """What methods know in the end against what they store: each mark has its name beside it, each family its colour.

    A line joins the methods of which no other stores less and knows more: who stands below it can be beaten in both.
    Bounds (fine-tuning, joint training and the like) are grey, and do not count for that line.

    Args:
        places: for each method, by the name of its class: bytes, mean accuracy, half of its interval (NaN for none).
        ax: axes to draw on; new ones where none are given.

    Raises:
        ValueError: nothing to draw.
    """
    if not places:
        raise ValueError("there are no methods to draw; at least one is needed")
    ax = _axes(ax, figsize=(7.4, 4.8))
    families = {name: FAMILY.get(name.partition(" ")[0], "expansion") for name in places}
    for family, color in FAMILIES.items():
        here = [places[name] for name in places if families[name] == family]
        if here:
            x, y, half = np.array(here).T
            look: dict[str, Any] = {"color": color, "marker": _FAMILY_MARKERS[family], "markersize": 8}
            label = {"bound": "bounds", "regularization": "regularisation", "expansion": "growth"}.get(family, family)
            ax.errorbar(x, y, yerr=np.nan_to_num(half), capsize=3, elinewidth=1, linestyle="none", label=label, **look)
    best = frontier({name: place[:2] for name, place in places.items() if families[name] != "bound"})
    if len(best) > 1:
        ends = np.array([places[name][:2] for name in best])
        ax.plot(*ends.T, color="#767676", linewidth=5, alpha=0.35, zorder=0, solid_capstyle="round")
    ax.set_xscale("log")
    ax.set_xlabel("bytes stored, weights included")
    ax.set_ylabel("average accuracy after the last task")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.margins(0.09)
    ax.figure.legend(loc="outside lower center", ncols=4, frameon=False, handletextpad=0.2)
    label_marks(ax, {written(name): place[:2] for name, place in places.items()})
    return ax


def frontier(places: Mapping[str, tuple[float, float]]) -> list[str]:
    """The methods of which no other costs less and knows more, from the cheapest on (the Pareto front).

    Args:
        places: cost and accuracy of each.
    """
    best: list[str] = []
    for name, (_, accuracy) in sorted(places.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not best or accuracy > places[best[-1]][1]:
            best.append(name)
    return best


def all_figures(results: Sequence[Result], folder: str | Path, kind: str = "png") -> list[Path]:
    """Draw `accuracy_by_method`, `accuracy_over_time` and `accuracy_against_bytes`, each for every stream; the paths.

    Methods that occur with several settings are drawn apart, and named with what differs.

    Args:
        results: of any methods and streams.
        folder: made if it is not there.
        kind: "png", "svg" or "pdf".
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context():
        style()
        for name, group in by_stream(results).items():
            for draw in (accuracy_by_method, accuracy_over_time, accuracy_against_bytes):
                ax = draw(group)
                ax.set_title(name)  # and the figure is pyplot's current one
                paths.append(folder / f"{draw.__name__}-{re.sub(r'[^a-zA-Z0-9]+', '-', name).strip('-')}.{kind}")
                plt.savefig(paths[-1])
                plt.close()
    return paths


def line_of(method: str) -> dict[str, Any]:
    """Colour, marker and line style of a method; one that `PALETTE` does not know gets a look made from its name."""
    if method in PALETTE:
        return dict(PALETTE[method])
    number = zlib.crc32(method.encode())
    markers, dashes = "ov^<>sp*hDdPX", ((0, (1, 1)), (0, (3, 3)), (0, (8, 2)))  # no family draws these lines
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": markers[number // 7 % len(markers)],
        "linestyle": dashes[number // 91 % len(dashes)],
    }


def legible_on(color: Any) -> str:
    """Black or white, whichever has the higher contrast on `color`: at least 4.58 to 1, by WCAG 2's formula."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], channels))
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def _by_method(results: Result | Sequence[Result], most: int | None = None) -> dict[str, list[Result]]:
    """Results by method, in the order in which the methods first come; refused where a mean would mix unlike things."""
    several = [results] if isinstance(results, Result) else list(results)
    if not several:
        raise ValueError("there are no results to draw; at least one is needed")
    groups: dict[str, list[Result]] = {}
    for result in several:
        if not isinstance(result, Result):
            raise TypeError(f"one of the results is a {type(result).__name__}; allowed: minicl.Result, from minicl.run")
        groups.setdefault(result.method, []).append(result)
    if most is not None and len(groups) > most:
        raise ValueError(f"the results are of several methods ({', '.join(groups)}); draw them one at a time")
    for name, group in groups.items():
        kinds = [
            {
                "stream": r.stream.get("name"),
                "scenario": r.scenario,
                "number of tasks": len(r.accuracy),
                "hyperparameters": files.jsonable(r.hyperparameters),
            }
            for r in group
        ]
        for what, value in kinds[0].items():
            other = next((kind[what] for kind in kinds if kind[what] != value), value)
            if other != value:
                raise ValueError(
                    f"the results of {name or 'the method'} differ in {what} ({value} and {other}), "
                    "so a mean over them would mean nothing; draw them one at a time"
                )
    return groups


def _axes(ax: Axes | None, figsize: tuple[float, float] | None = None) -> Axes:
    return plt.subplots(figsize=figsize)[1] if ax is None else ax


def _task_line(j: int) -> dict[str, Any]:
    """The look of task j. Colours, markers and line styles repeat after 7, 9 and 4 tasks: no two of 252 are alike."""
    colors = (BLUE, ROSE, BLACK, OLIVE, INDIGO, BROWN, WINE)
    return {
        "color": colors[j % len(colors)],
        "marker": "os^DvPX*h"[j % 9],
        "linestyle": ("-", "--", "-.", ":")[j % 4],
    }


def _aside(k: int, n: int, group: list[Result]) -> float:
    """How far the k-th of n lines steps aside, so that error bars at the same moment do not cover each other."""
    return (k - (n - 1) / 2) * min(0.05, 0.5 / n) if len(group) > 1 else 0.0


def _error_line(ax: Axes, x: ArrayLike, values: Array, **line: Any) -> None:
    mean, half = mean_and_interval(values)
    ax.errorbar(x, mean, yerr=half if len(values) > 1 else None, capsize=3, elinewidth=1, **line)


def _held(curves: Sequence[Sequence[float]]) -> Array:
    length = max(len(curve) for curve in curves)
    return np.array([[*curve, *[curve[-1]] * (length - len(curve))] for curve in curves], dtype=np.float64)


def _percent(ax: Axes) -> None:
    ax.set_ylim(0, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1))


def _name_lines(ax: Axes) -> None:
    """Names at the ends of the lines; where they are too many for that, a legend beside the axes, which hides none."""
    number = len(ax.get_legend_handles_labels()[1])
    if number <= 12:
        label_lines(ax)
    else:
        columns = 1 + (number - 1) // 12
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), ncols=columns, frameon=False, handlelength=3)
