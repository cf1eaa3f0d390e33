"""Figures draw what was measured, and can be read: on any page, without colour, in every cell."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Annotation, Text
from numpy.typing import NDArray

import minicl
from minicl import plots
from minicl.labels import label_marks

pytestmark = pytest.mark.usefixtures("style")

NAN = np.nan
R = np.array([[0.9, NAN, NAN], [0.5, 0.8, NAN], [0.25, 0.6, 1.0]])
CURVES = [[0.1, 0.7, 0.9], [0.2, 0.8], [0.3, 0.6, 0.8, 1.0]]


def result(accuracy: Any = R, curves: Any = CURVES, method: str = "FineTune", **more: Any) -> minicl.Result:
    T = len(accuracy)
    settings: dict[str, Any] = {"scenario": "task", "stream": {"name": "split-digits"}} | more
    return minicl.Result(accuracy, np.full(T, NAN), curves, parameters=1, seconds=1.0, method=method, **settings)


def pixels(figure: Any) -> NDArray[np.uint8]:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def pixels_at(ax: Any, points: Any) -> NDArray[np.uint8]:
    """The colours that were drawn at points (x, y) of the data."""
    image = pixels(ax.figure)
    columns, rows = ax.transData.transform(points).astype(int).T
    return image[len(image) - 1 - rows, columns]


# ---- mean and interval -------------------------------------------------------------------------------------------


def test_mean_and_interval_by_hand():
    # 1, 2, 3: mean 2, standard deviation 1; a t-table gives 4.303 for 2 degrees of freedom and 2.776 for 4.
    mean, half = plots.mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.3026527 / np.sqrt(3))
    mean, half = plots.mean_and_interval([[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0, 5.0]], axis=1)
    np.testing.assert_allclose(mean, [2, 5])
    np.testing.assert_allclose(half, [2.7764451 * np.sqrt(2.5) / np.sqrt(5), 0])


def test_interval_holds_the_true_mean_in_95_of_100_cases():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(5, 20_000))
    mean, half = plots.mean_and_interval(draws)
    assert np.mean(np.abs(mean - 3.0) <= half) == pytest.approx(0.95, abs=0.006)


def test_one_value_has_no_spread_and_nan_is_not_hidden():
    mean, half = plots.mean_and_interval([[0.5, 0.7]])
    np.testing.assert_array_equal(mean, [0.5, 0.7])
    assert np.isnan(half).all()
    mean, half = plots.mean_and_interval([[0.5, NAN], [0.5, 0.7]])
    np.testing.assert_array_equal(np.isnan(mean), [False, True])
    np.testing.assert_array_equal(np.isnan(half), [False, True])


@pytest.mark.parametrize("values", [[], np.empty((0, 3))])
def test_nothing_has_no_mean(values: Any):
    with pytest.raises(ValueError, match="nothing to average over axis 0"):
        plots.mean_and_interval(values)


# ---- the palette -------------------------------------------------------------------------------------------------


def contrast(a: Any, b: Any) -> float:
    """WCAG 2's contrast, from 1 to 21."""

    def luminance(color: Any) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


# What is left of linear RGB without one kind of cone, at full severity: Machado, Oliveira and Fernandes 2009.
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(color: str, vision: Any) -> NDArray[np.float64]:
    """CIE L*a*b* of a colour as it is seen; distances of about 2 can just be noticed side by side."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(vision) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    x = np.asarray(to_xyz) @ seen / [0.95047, 1.0, 1.08883]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_colors_differ_for_every_kind_of_vision(vision: str):
    for a, b in itertools.combinations(plots.COLORS, 2):
        assert np.linalg.norm(lab(a, VISION[vision]) - lab(b, VISION[vision])) > 20, (a, b)


def test_lines_and_ink_stand_out_from_the_ground():
    for color in plots.COLORS:
        assert contrast(color, plots.GROUND) >= 3
    assert {look["color"] for look in plots.PALETTE.values()} <= set(plots.COLORS)
    for setting in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor"):
        assert contrast(mpl.rcParams[setting], mpl.rcParams["figure.facecolor"]) >= 7


def test_no_two_methods_look_alike_even_without_color():
    looks = [(look["marker"], str(look["linestyle"])) for look in plots.PALETTE.values()]
    assert len(set(looks)) == len(looks)


def test_every_method_has_its_look():
    named = "FineTune Joint Individual FeatureExtraction PNN HAT PackNet EWC SI MAS LwF VCL AGSCL ER GEM AGEM DERpp"
    assert {*named.split(), *(method.__name__ for method in minicl.METHODS.values())} <= plots.PALETTE.keys()


def test_methods_of_other_people_get_a_look_of_their_own():
    look = plots.line_of("MyMethod")
    assert look == plots.line_of("MyMethod")
    assert look != plots.line_of("YourMethod")
    assert str(look["linestyle"]) not in {str(known["linestyle"]) for known in plots.PALETTE.values()}
    plt.plot([0, 1], [0, 1], **look)
    plots.line_of("HAT")["color"] = "red"  # a copy: nobody changes the palette by accident
    assert plots.PALETTE["HAT"]["color"] != "red"


def test_tasks_look_different_without_color():
    ax = plots.accuracy_over_time(result(np.tri(20), [[0, 1]] * 20))
    looks = {(line.get_marker(), line.get_linestyle()) for line in lines_with_labels(ax)}
    assert len(looks) == 20


def test_legible_on_any_color():
    for color in np.random.default_rng(0).random((500, 3)):
        assert contrast(plots.legible_on(color), color) >= 4.5


@pytest.mark.parametrize("draw", [plots.accuracy_matrix, plots.accuracy_over_time, plots.learning_curves])
def test_figures_bring_their_own_ground(draw: Any, tmp_path: Any):
    figure = draw(result()).figure
    image = pixels(figure)
    assert (image[..., 3] == 255).all()  # nothing of the page, light or dark, shines through
    assert (image[0] == 255).all()
    figure.savefig(tmp_path / "figure.png", bbox_inches="tight")
    assert plt.imread(tmp_path / "figure.png")[0, 0].tolist() == [1, 1, 1, 1]


# ---- accuracy_matrix ---------------------------------------------------------------------------------------------


def cells(ax: Any) -> dict[tuple[int, int], str]:
    return {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts}


def test_matrix_says_each_accuracy_in_its_cell_and_nothing_where_there_is_none():
    ax = plots.accuracy_matrix(result())
    written = {(0, 0): "90.0", (1, 0): "50.0", (1, 1): "80.0", (2, 0): "25.0", (2, 1): "60.0", (2, 2): "100.0"}
    assert cells(ax) == written
    places = list(itertools.product(range(3), repeat=2))
    for place, color in zip(places, pixels_at(ax, [(j - 0.3, i - 0.3) for i, j in places]), strict=True):
        assert (color == 255).all() == (place not in written)
    assert ax.get_xlabel() == "accuracy (%) on task"
    assert ax.get_ylabel() == "after learning task"


def test_matrix_color_grows_with_accuracy_and_numbers_are_legible():
    accuracy = np.linspace(0, 1, 49).reshape(7, 7)
    ax = plots.accuracy_matrix(result(accuracy, [[0, 1]] * 7))
    corners = [(j - 0.3, i - 0.3) for i, j in itertools.product(range(7), repeat=2)]
    background = [to_rgba(color / 255) for color in pixels_at(ax, corners)]
    lightness = [contrast(color, "black") for color in background]
    assert lightness == sorted(lightness)
    for text, color in zip(ax.texts, background, strict=True):
        assert contrast(text.get_color(), color) >= 4.5


@pytest.mark.parametrize(("T", "size"), [(1, None), (6, None), (20, None), (12, (3.0, 2.4))])
def test_numbers_stay_within_their_cells(T: int, size: tuple[float, float] | None):
    ax = None if size is None else plt.subplots(figsize=size)[1]
    ax = plots.accuracy_matrix(result(np.ones((T, T)), [[0, 1]] * T), ax=ax)
    ax.figure.canvas.draw()
    (left, bottom), (right, top) = ax.transData.transform([(0.5, 0.5), (1.5, 1.5)])
    assert len(ax.texts) == T * T
    for text in ax.texts:
        box = text.get_window_extent()
        assert box.width < abs(right - left)
        assert box.height < abs(top - bottom)
        assert text.get_fontsize() >= 6


def test_matrix_of_seeds_is_their_mean():
    ax = plots.accuracy_matrix([result(), result(R - 0.1, seed=1)])
    assert cells(ax)[1, 0] == "45.0"
    assert (0, 1) not in cells(ax)


# ---- accuracy_over_time ------------------------------------------------------------------------------------------


def lines_with_labels(ax: Any) -> list[Any]:
    return [getattr(handle, "lines", [handle])[0] for handle in ax.get_legend_handles_labels()[0]]


def error_bars(container: ErrorbarContainer) -> NDArray[np.float64]:
    """Half the length of each error bar."""
    segments = container.lines[2][0].get_segments()
    return np.array([(top - bottom) / 2 for (_, bottom), (_, top) in segments])


def test_each_task_from_the_moment_it_was_learned():
    ax = plots.accuracy_over_time(result(np.where(np.isnan(R), 0.1, R)))  # a head exists, but nothing was learned yet
    for j, line in enumerate(lines_with_labels(ax)):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(j, 3))
        np.testing.assert_array_equal(line.get_ydata(), R[j:, j])
    assert ax.get_legend_handles_labels()[1] == ["task 0", "task 1", "task 2"]
    low, high = ax.get_ylim()
    assert low == 0
    assert 1 <= high < 1.1


def test_seeds_become_mean_and_interval():
    runs = [result(R + shift, seed=seed) for seed, shift in enumerate((0.0, -0.1, -0.2))]
    ax = plots.accuracy_over_time(runs)
    containers = ax.get_legend_handles_labels()[0]
    np.testing.assert_allclose(containers[0].lines[0].get_ydata(), R[:, 0] - 0.1)
    np.testing.assert_allclose(error_bars(containers[0]), 4.3026527 * 0.1 / np.sqrt(3))
    steps = [container.lines[0].get_xdata()[-1] for container in containers]
    assert len(set(steps)) == 3  # error bars at the same moment stand side by side,
    assert max(abs(x - 2) for x in steps) < 0.3  # and still at that moment


def test_several_methods_get_a_line_each_over_the_tasks_so_far():
    ax = plots.accuracy_over_time([result(), result(np.tri(3), method="PackNet")])
    assert ax.get_legend_handles_labels()[1] == ["fine-tuning", "PackNet"]
    assert {text.get_text() for text in ax.texts} == {"fine-tuning", "PackNet"}  # at the ends of their lines
    first, second = lines_with_labels(ax)
    np.testing.assert_allclose(first.get_ydata(), [0.9, 0.65, (0.25 + 0.6 + 1) / 3])
    np.testing.assert_allclose(second.get_ydata(), [1, 1, 1])
    assert second.get_color() == plots.PALETTE["PackNet"]["color"]
    assert second.get_marker() == plots.PALETTE["PackNet"]["marker"]


# ---- within_tasks ----------------------------------------------------------------------------------------------------


def test_every_task_is_drawn_from_its_first_epoch_on():
    moments = [np.array([[0.5, NAN], [0.9, NAN]]), np.array([[0.6, 0.7]])]
    curves = [[0.1] * 5, [0.1] * 4]  # four epochs and three, measured after every second
    ax = plots.within_tasks(result(R[:2, :2], curves, within_tasks=moments, settings={"evaluate_every": 2}))
    first, second = lines_with_labels(ax)
    np.testing.assert_array_equal(first.get_xdata(), [2, 4, 6])
    np.testing.assert_array_equal(first.get_ydata(), [0.5, 0.9, 0.6])
    np.testing.assert_array_equal(second.get_xdata(), [6])
    np.testing.assert_array_equal(second.get_ydata(), [0.7])
    assert [line.get_xdata()[0] for line in ax.lines if line not in (first, second)] == [4]
    assert ax.get_xlim() == (0, 7)
    with pytest.raises(ValueError, match=r"nothing was measured within tasks; run\(..., evaluate_every=1\)"):
        plots.within_tasks(result())


# ---- learning_curves ---------------------------------------------------------------------------------------------


def test_learning_curves_follow_one_another():
    ax = plots.learning_curves(result())
    drawn = [line for line in ax.lines if len(line.get_xdata()) != 2 or line.get_xdata()[0] != line.get_xdata()[1]]
    for line, start, curve in zip(drawn, (0, 2, 3), CURVES, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), start + np.arange(len(curve)))
        np.testing.assert_array_equal(line.get_ydata(), curve)
    borders = [line.get_xdata()[0] for line in ax.lines if line not in drawn]
    assert borders == [2, 3]
    assert ax.get_xlim() == (0, 6)
    assert [text.get_text() for text in ax.texts] == ["task 0", "task 1", "task 2", "fine-tuning"]
    assert ax.get_legend_handles_labels()[1] == ["fine-tuning"]


def test_learning_curves_of_seeds_have_a_band_and_a_short_run_keeps_its_last_accuracy():
    runs = [result(R[:1, :1], [[0.2, 0.6, 0.8]]), result(R[:1, :1], [[0.4, 0.8]])]
    ax = plots.learning_curves(runs)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.3, 0.7, 0.8])
    (band,) = ax.collections
    half = 12.7062047 * np.sqrt(2) * 0.1 / np.sqrt(2)  # t-table, one degree of freedom
    edges = band.get_paths()[0].vertices
    at_start = edges[edges[:, 0] == 0][:, 1]
    assert at_start.max() == pytest.approx(0.3 + half)
    assert at_start.min() == pytest.approx(0.3 - half)


def test_learning_curves_of_methods_share_the_epochs_of_the_longest():
    ax = plots.learning_curves([result(), result(R, [[0.1, 0.9]] * 3, method="HAT")])
    starts = [line.get_xdata()[0] for line in ax.lines if line.get_color() == plots.PALETTE["HAT"]["color"]]
    assert starts == [0, 2, 3]
    assert ax.get_legend_handles_labels()[1] == ["fine-tuning", "HAT"]


# ---- accuracy against bytes ------------------------------------------------------------------------------------------


def test_who_is_beaten_in_both_is_off_the_front():
    places = {"dear and good": (9, 0.9), "cheap": (1, 0.5), "beaten": (4, 0.4), "fair": (3, 0.7), "as dear": (3, 0.6)}
    assert plots.frontier(places) == ["cheap", "fair", "dear and good"]


def test_picture_to_remember_names_every_mark_and_colors_families():
    places = {"FineTune": (10.0, 0.2, NAN), "Joint": (5.0, 0.99, 0.01), "AGEM": (20.0, 0.5, 0.02)}
    places |= {"DERpp": (30.0, 0.7, 0.1), "PackNet": (25.0, 0.9, 0.01), "EWC": (90.0, 0.4, 0.1)}
    ax = plots.trade_off(places)
    assert {t.get_text() for t in ax.texts} == {"fine-tuning", "joint training", "A-GEM", "DER++", "PackNet", "EWC"}
    colors = {c.get_label(): c.lines[0].get_color() for c in ax.containers if isinstance(c, ErrorbarContainer)}
    assert colors["bounds"] == plots.FAMILIES["bound"]
    assert len(set(colors.values())) == len(colors) == 4
    (band,) = [line for line in ax.lines if line.get_linewidth() == 5]
    np.testing.assert_array_equal(band.get_xdata(), [20, 25])  # bounds do not count, and DER++ is beaten
    with pytest.raises(ValueError, match="no methods to draw"):
        plots.trade_off({})


def test_families_have_colors_of_their_own_that_stand_out():
    assert set(plots.FAMILY.values()) == set(plots.FAMILIES)
    assert plots.FAMILY.keys() == plots.PALETTE.keys()
    assert len(set(plots.FAMILIES.values())) == len(plots.FAMILIES)
    assert all(contrast(color, plots.GROUND) >= 3 for color in plots.FAMILIES.values())


# ---- all of them -------------------------------------------------------------------------------------------------

DRAW = pytest.mark.parametrize("draw", [plots.accuracy_matrix, plots.accuracy_over_time, plots.learning_curves])


@DRAW
def test_axes_that_are_given_are_used_and_nothing_is_shown(draw: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    figure, (left, right) = plt.subplots(1, 2)
    assert draw(result(), ax=right) is right
    assert not left.has_data()
    assert right.has_data()
    assert plt.get_fignums() == [figure.number]
    assert draw([result(), result(seed=1)]).figure is not figure


@DRAW
def test_what_cannot_be_drawn_is_refused(draw: Any):
    with pytest.raises(ValueError, match="no results to draw"):
        draw([])
    with pytest.raises(TypeError, match=r"a list; allowed: minicl\.Result"):
        draw([R.tolist()])
    for other, what in (
        (result(scenario="class"), "scenario"),
        (result(stream={"name": "rotated-digits"}), "stream"),
        (result(R[:2, :2], CURVES[:2]), "number of tasks"),
        (result(hyperparameters={"keep_ratio": 0.5}), "hyperparameters"),
    ):
        with pytest.raises(ValueError, match=f"differ in {what}"):
            draw([result(), other])
    assert not plt.get_fignums()  # nor is an empty figure left behind


def test_a_mean_over_methods_is_refused():
    with pytest.raises(ValueError, match="FineTune, HAT"):
        plots.accuracy_matrix([result(), result(method="HAT")])
    with pytest.raises(ValueError, match=r"\[2, 3\] tasks"):
        plots.learning_curves([result(), result(R[:2, :2], CURVES[:2], method="HAT")])


def test_a_name_stands_nearest_to_its_own_mark_or_has_a_line_to_it() -> None:
    """As many marks in one corner as the book's picture to remember has, on a screen as narrow as a phone's."""
    corner = {f"method {k}": (1 + 0.05 * (k % 3), 0.66 + 0.018 * k) for k in range(8)}
    places = {**corner, "far away": (30.0, 0.9), "below": (4.0, 0.4)}
    fig, ax = plt.subplots(figsize=(4.2, 4))
    ax.set_xscale("log")
    ax.plot(*np.array(list(places.values())).T, "o")
    label_marks(ax, places)
    fig.canvas.draw()
    names = {a.get_text(): a for a in ax.texts if isinstance(a, Annotation)}
    boxes = {name: Text.get_window_extent(a) for name, a in names.items()}
    pixels = dict(zip(places, ax.transData.transform(list(places.values())), strict=True))
    for name, box in boxes.items():
        assert not any(box.overlaps(other) for others, other in boxes.items() if others != name), name
        gaps = {m: np.hypot(*np.maximum(0, np.maximum(box.min - p, p - box.max))) for m, p in pixels.items()}
        line = names[name].arrow_patch
        assert min(gaps, key=gaps.__getitem__) == name or (line is not None and line.get_visible()), name
