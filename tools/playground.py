"""Sphinx extension: what the playground (book/playground.md) needs beside its page, and on that page alone.

Its scripts and its style lie in `book/_static`. Its data are made here: the first images of scikit-learn's digits, as
letters, and the order of pixels that makes the second task. Both are those of `minicl.permuted("digits", n_tasks=2)`.

    python tools/playground.py            # prints the script with the data
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = "book/playground"
DATA = "playground-data.js"
SCRIPTS = (DATA, "playground-engine.js", "playground.js")
N_TRAIN, N_TEST = 600, 200
WIDTHS, OUTPUTS = (64, 64, 64), 10
"""Of the network, as the script has it too."""


def packed(pixels: list[list[int]]) -> str:
    """Images as letters: A to P for one pixel from 1 to 16, a to z for a row of so many dark ones."""
    letters = "".join("0" if value == 0 else chr(64 + value) for image in pixels for value in image)
    return re.sub("0{1,26}", lambda dark: chr(96 + len(dark.group())), letters)


def stream(scenario: str = "task") -> Any:
    """The two tasks of the page, as minicl's own."""
    import minicl

    whole = minicl.permuted("digits", n_tasks=2, scenario=scenario, seed=0, validation=0)
    cut = [
        minicl.Task(
            task.id,
            OUTPUTS,
            task.make("train").take(slice(N_TRAIN)),
            test=task.make("test").take(slice(N_TEST)),
            scenario=scenario,
            name=task.name,
        )
        for task in whole
    ]
    return minicl.TaskStream(cut, "playground", whole.settings)


def data() -> dict[str, Any]:
    """What the page's script reads: images, labels, and for each pixel of task 2 where it comes from."""
    import torch

    import minicl

    numbered = minicl.datasets.Samples(torch.arange(64.0).repeat(2, 1), torch.arange(2))  # a pixel is its place
    _, moved = minicl.permuted((numbered, numbered), n_tasks=2, seed=0, validation=0)
    found: dict[str, Any] = {"order": moved.make("train").x[0].int().tolist()}
    for part in ("train", "test"):
        samples = stream()[0].make(part)
        pixels = (samples.x.flatten(1) * 16).round().int().tolist()
        found[part] = {"images": packed(pixels), "labels": "".join(map(str, samples.y.tolist()))}
    return found


def script() -> str:
    """The data as a script, which a page that is read from a folder may load, unlike a file of data."""
    return f"globalThis.PLAYGROUND_DATA = {json.dumps(data(), separators=(',', ':'))};\n"


def _on_the_page(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if pagename == PAGE and app.builder.name == "html":
        for name in SCRIPTS:
            app.add_js_file(name, loading_method="defer")
        app.add_css_file("playground.css")


def _finish(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        (Path(app.outdir) / "_static" / DATA).write_text(script(), encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    app.connect("html-page-context", _on_the_page)
    app.connect("build-finished", _finish)  # before tools/pages.py looks at what lies there
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    print(script(), end="")
