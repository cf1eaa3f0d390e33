"""Figures under the reader's finger: their arithmetic is that of minicl, and where they cannot move there are words."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scripts
import torch
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

import minicl
from minicl import metrics
from minicl.isolation import hat
from minicl.regularization import quadratic

live = scripts.load("tools/live.py")
edition = scripts.load("tools/edition.py")
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node here; make browser-test looks at the figures in a page")


def calculate(figure: str, expression: str, **given: Any) -> Any:
    """An expression of JavaScript with the arithmetic of a figure, such as `ACC(R)`; None stands for NaN."""
    assert NODE is not None
    sources = "".join((live.FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in ("live", figure))
    program = (
        f"{sources}\nconst own = live.{figure};\n"
        f"const {{{', '.join(given)}}} = JSON.parse({json.dumps(json.dumps(given))}, (key, x) => x ?? NaN);\n"
        f"console.log(JSON.stringify({expression}));"
    )
    run = subprocess.run([NODE, "-"], input=program, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def no_nan(values: Any) -> Any:
    """Numbers as JSON has them: None for NaN."""
    return [no_nan(v) for v in values] if isinstance(values, list) else None if values != values else values


def test_all_figures_together_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in live.FOLDER.iterdir()}
    assert {f"{name}.js" for name in live.FIGURES} < set(sizes)
    assert sum(sizes.values()) < 40_000, sizes


@needs_node
def test_the_four_numbers_are_those_of_metrics() -> None:
    rng = np.random.default_rng(0)
    tables = []
    for T, headless in itertools.product((1, 2, 3, 6), (False, True)):
        for _ in range(5):
            R, b = rng.random((T, T)).round(2), rng.random(T).round(2)
            if headless:
                R[np.triu_indices(T, 1)], b[:] = np.nan, np.nan
            tables.append((R, b))
    found = calculate(
        "matrix",
        "tables.map(([R, b]) => [own.ACC(R), own.BWT(R), own.FWT(R, b), own.F(R)])",
        tables=no_nan([[R.tolist(), b.tolist()] for R, b in tables]),
    )
    for (R, b), numbers in zip(tables, found, strict=True):
        expected = [
            metrics.average_accuracy(R),
            metrics.backward_transfer(R),
            metrics.forward_transfer(R, b),
            metrics.forgetting(R),
        ]
        np.testing.assert_allclose(np.array(numbers, dtype=float), expected, atol=1e-12)


@needs_node
def test_the_cells_that_are_marked_are_those_that_count() -> None:
    """A cell is read if and only if the number changes with it."""
    T = 4
    R, b = np.full((T, T), 0.5), np.full(T, 0.5)
    numbers = {
        "ACC": lambda R, b: metrics.average_accuracy(R),
        "BWT": lambda R, b: metrics.backward_transfer(R),
        "FWT": metrics.forward_transfer,
        "F": lambda R, b: metrics.forgetting(R),
    }
    places = [[i, j] for i in range(-1, T) for j in range(T)]
    marked = calculate(
        "matrix",
        "Object.fromEntries(Object.entries(own.reads).map(([n, f]) => [n, places.map(([i, j]) => f(i, j, T))]))",
        places=places,
        T=T,
    )
    for name, number in numbers.items():
        for (i, j), read in zip(places, marked[name], strict=True):
            changed, b2 = R.copy(), b.copy()
            (b2 if i < 0 else changed[i])[j] = 0.9
            assert read == (number(changed, b2) != number(R, b)), (name, i, j)


@needs_node
def test_the_weights_that_are_locked_are_those_of_hat() -> None:
    """Every way in which eight units can be claimed, then masks that are neither open nor closed."""
    soft = np.random.default_rng(0).random((20, 8)).tolist()
    masks = [*map(list, itertools.product((0, 1), repeat=8)), *soft]
    found = calculate(
        "units",
        """masks.map((m) => {
            const into = m.slice(0, 4), out = m.slice(4);
            return [out.map((o) => into.map((i) => own.factor(o, i))), out.map((o) => own.factor(o)),
                into.map((i, u) => own.accumulate(i, out[u]))];
        })""",
        masks=masks,
    )
    assert len(found) == 256 + 20
    for mask, (weights, biases, either) in zip(masks, found, strict=True):
        into, out = torch.tensor(mask, dtype=torch.float64).split(4)
        assert weights == hat.protect_weight(out, into).tolist()
        assert biases == hat.protect_weight(out).tolist()
        assert either == hat.accumulate(into, out).tolist()


@needs_node
@pytest.mark.parametrize(
    ("widths", "keeps"),
    [
        ((64, 100, 100), [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ((64, 100, 100), [0.5, 0.25, 0.25, 0.25]),
        ((64, 100, 100), [0.01, 1.0]),
        ((3, 5, 7), [0.5, 0.5, 0.9, 0.3]),  # halves between two whole numbers
        ((5, 9, 11), [0.37, 0.99, 0.13, 0.5]),
    ],
)
def test_the_plan_is_what_packnet_does(widths: tuple[int, ...], keeps: list[float]) -> None:
    learner = minicl.PackNet(minicl.mlp(*widths), keep_ratio=keeps)
    done = []
    for t in range(len(keeps)):
        before = learner.capacity()["free"]
        learner.learn(minicl.Task(t, 2, example=torch.zeros(2, widths[0])), lambda epochs=None: None)
        free = learner.capacity()["free"]
        done.append({"kept": before - free, "free": free})
    layers = [a * b for a, b in itertools.pairwise(widths)]
    assert calculate("shares", "own.plan(layers, keeps)", layers=layers, keeps=keeps) == done


@needs_node
@pytest.mark.parametrize("adapter", ["linear", "mlp"])
@pytest.mark.parametrize(("T", "width", "layers"), [(1, 16, 1), (4, 32, 1), (5, 16, 3), (3, 64, 6)])
def test_the_bill_is_what_pnn_stores(T: int, width: int, layers: int, adapter: str) -> None:
    learner = minicl.PNN(minicl.mlp(64, *[width] * layers), adapter)
    for t in range(T):
        learner.learn(minicl.Task(t, 10, example=torch.zeros(2, 64)), lambda: None)
    report = learner.capacity()
    found = calculate(
        "bill", "own.bill(T, width, layers, adapter)", T=T, width=width, layers=layers, adapter=adapter == "mlp"
    )
    assert [column["own"] for column in found] == list(report["columns"].values())
    of_laterals = [sum(report["laterals"][t].values()) + report["adapters"][t] for t in range(T)]
    assert [column["laterals"] for column in found] == of_laterals
    assert sum(column["own"] + column["laterals"] for column in found) == report["parameters"]


def walks(*settings: tuple[list[float], float, float]) -> list[dict[str, Any]]:
    """Ways from (0, 0), where task A is solved, towards (2, 2), with importances, strength and learning rate."""
    return list(
        calculate(
            "plane",
            """settings.map(([omega, strength, lr]) => {
                const path = own.walk([0, 0], [2, 2], omega, strength, lr);
                const lost = path.map((w) => [own.loss(own.A, w, [0, 0]), own.loss(own.B, w, [2, 2])]);
                return {path, lost, B: own.B, longest: own.longestStep(omega, strength)};
            })""",
            settings=settings,
        )
    )


@needs_node
def test_the_way_on_the_plane_is_gradient_descent_with_the_quadratic_penalty() -> None:
    omega, strength, lr = [4.0, 0.05], 0.45, 0.12
    (found,) = walks((omega, strength, lr))
    xx, xy, yy = found["B"]
    H = torch.tensor([[xx, xy], [xy, yy]], dtype=torch.float64)
    importance, anchor = torch.tensor(omega, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    w = anchor.clone().requires_grad_()
    for at, (_, lost_b) in list(zip(found["path"], found["lost"], strict=True))[:40]:
        np.testing.assert_allclose(at, w.tolist(), atol=1e-9)
        loss_b = (w - 2) @ H @ (w - 2) / 2
        assert lost_b == pytest.approx(loss_b.item())
        loss = loss_b + strength * quadratic.quadratic_penalty([w], [anchor], [importance])
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - lr * gradient).detach().requires_grad_()
    curvature = torch.linalg.eigvalsh(H + 2 * strength * torch.diag(importance)).max().item()
    assert found["longest"] == pytest.approx(2 / curvature)


@needs_node
def test_the_plane_shows_what_its_words_say() -> None:
    matters, alike = [4, 0.05], [1, 1]
    free, held, stiff = walks(*((matters, strength, 0.1) for strength in (0, 0.5, 1)))
    assert free["lost"][-1][0] > 5  # A is lost
    assert free["lost"][-1][1] < 0.1
    assert max(held["lost"][-1]) < 0.3  # both are small
    others = walks(*((alike, strength / 20, 0.1) for strength in range(21)))
    assert min(sum(other["lost"][-1]) for other in others) > 1.5 * sum(held["lost"][-1])  # no strength does as well
    assert free["longest"] > held["longest"] > stiff["longest"]  # the stiffer, the shorter,
    (far,) = walks((matters, 0.5, 1.1 * held["longest"]))
    assert abs(far["path"][-1][0]) > 100  # and with longer ones they run away


# The directive

PAGE = """# A page

```{live} shares
:caption: What *four* tasks keep.

In **words**, see $x$.
```
"""


def built(folder: Path, text: str) -> tuple[Sphinx, str]:
    """A book of one page, and what the build complained of."""
    (folder / "book").mkdir()
    (folder / "book" / "index.md").write_text(text, encoding="utf-8")
    settings = {
        "extensions": ["myst_parser", "live"],
        "myst_enable_extensions": ["dollarmath"],
        "source_suffix": {".md": "markdown"},  # said, because a book built before in this process may have changed it
    }
    complaints, out = io.StringIO(), str(folder / "out")
    with docutils_namespace():
        app = Sphinx(str(folder / "book"), None, out, out, "html", settings, status=None, warning=complaints)
        app.build()
    return app, complaints.getvalue()


@pytest.fixture(autouse=True)
def _extensions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(scripts.ROOT / "tools"))


def test_where_nothing_moves_there_are_words(tmp_path: Path) -> None:
    app, complaints = built(tmp_path, PAGE)
    assert complaints == ""
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    loaded = [name for name in ("live", *live.FIGURES) if f"live/{name}.js" in page]
    assert loaded == ["live", "shares"]
    assert page.index("live/live.js") < page.index("live/shares.js")
    doctree = app.env.get_and_resolve_doctree("index", app.builder)
    text = edition.Page(lambda node: None, lambda node: None, lambda node: None).text(doctree)
    assert text == "# A page\n\nIn **words**, see $x$.\n\n*What *four* tasks keep.*"
    article = page[page.index('<div class="body"') : page.index('<div class="sphinxsidebar"')]
    assert edition.unsaid(f"<article>{article}</article>", text) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("shares", "x", f"there is no figure 'x'; allowed: {', '.join(live.FIGURES)}"),
        ("In **words**, see $x$.\n", "", "needs a caption, and words"),
        (":caption: What *four* tasks keep.\n", "", "needs a caption, and words"),
    ],
)
def test_a_figure_without_name_or_words_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in built(tmp_path, PAGE.replace(old, new))[1]
