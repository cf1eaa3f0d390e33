"""The settings that `minicl.preset` gives, from the searches whose results are stored beside this file.

    python benchmarks/presets.py           # writes minicl/presets.json
    python benchmarks/presets.py --check   # fails where that file is another

Nothing is searched here: the values are those that comparison.py and regularization_search.py chose on validation
samples, with the networks, optimisers and epochs that they were searched with.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import comparison
import regularization_search as before

from minicl import files

PRESETS = Path(__file__).resolve().parents[1] / "minicl" / "presets.json"

OWN = ("HAT", "PackNet", "GEM")
"""Methods whose dial comparison.py searched."""


def presets() -> dict[str, Any]:
    """A preset for each method and stream that was searched, by "method stream scenario"."""
    runs, search = files.read_json(before.RESULTS), files.read_json(comparison.RESULTS)["search"]
    made: dict[str, Any] = {}
    for method, (dial, _, _) in before.METHODS.items():
        for stream in before.STREAMS:
            value = before.chosen(runs, method, stream)
            settings = {"epochs": before.EPOCHS, "batch_size": before.BATCH, "optimizer": before.ADAM}
            tasks = {"n_tasks": 5, "n_train": 500 if stream == "permuted-domain" else None}
            given = {**comparison.ALWAYS.get(method, {}), dial: value}
            made[key(method, stream)] = preset(
                method, given, before.WIDTHS, tasks, settings, "regularization.json", dial
            )
    for method in OWN:
        for stream in comparison.STREAMS:
            if not comparison.fits(method, stream):
                continue
            value, dial = comparison.chosen(search, method, stream), comparison.DIALS[method][0]
            tasks = dict(comparison.STREAMS[stream].keywords)
            tasks = {"n_tasks": tasks["n_tasks"], "n_train": tasks.get("n_train")}
            given = comparison.hyperparameters(method, value)
            settings = comparison.training(method, stream)
            made[key(method, stream)] = preset(
                method, given, comparison.WIDTHS[stream], tasks, settings, "comparison.json", dial
            )
    return dict(sorted(made.items()))


def key(method: str, stream: str) -> str:
    kind, scenario = stream.split("-")
    return f"{comparison.NAMES[method]} {kind}-digits {scenario}"


def preset(
    method: str,
    hyperparameters: dict[str, Any],
    widths: tuple[int, ...],
    stream: dict[str, Any],
    settings: dict[str, Any],
    results: str,
    dial: str,
) -> dict[str, Any]:
    return {
        "hyperparameters": hyperparameters,
        "network": "mlp:" + ",".join(map(str, widths[1:])),
        "stream": stream,
        "settings": {name: named(value) for name, value in settings.items()},
        "searched": dial,
        "results": f"benchmarks/results/{results}",
    }


def named(value: Any) -> Any:
    """A factory by the name of its class in torch.optim and its settings; anything else as it is."""
    return [value.func.__name__, value.keywords] if isinstance(value, partial) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args().check:
        return 0 if files.read_json(PRESETS) == presets() else 1
    files.write_json(PRESETS, presets())
    return 0


if __name__ == "__main__":
    sys.exit(main())
