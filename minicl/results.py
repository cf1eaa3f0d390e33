"""Results of many runs: as files, as a pandas DataFrame, and as a table with intervals."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import files, metrics
from .metrics import Result

if TYPE_CHECKING:
    import pandas as pd

START, MIDDLE, END = '{"digest": "', '",\n"record": ', "}\n"


def version() -> str:
    """The version of minicl."""
    from . import __version__

    return __version__


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record of a sweep: JSON, with a digest of the rest in the first line."""
    text = json.dumps(record, allow_nan=False)
    whole = f"{START}{_digest(text)}{MIDDLE}{text}{END}"
    files.atomically(path, partial(_write, whole))


def read_record(path: Path) -> dict[str, Any]:
    """The record of a sweep; ValueError where a single bit of the file is damaged."""
    try:
        whole = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error
    head = len(START) + 40
    text = whole[head + len(MIDDLE) : -len(END)]
    digest = whole[len(START) : head]
    if whole != f"{START}{digest}{MIDDLE}{text}{END}" or digest != _digest(text):
        raise ValueError(f"{str(path)!r} is damaged or cut short: its content does not match its digest")
    record = json.loads(text)
    assert isinstance(record, dict)
    return record


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def records(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The records of all results in a folder: those of sweeps, and what `Result.save` wrote.

    Files that are damaged are reported by a warning and left out; files of something else are left out.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without results.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    found = 0
    for path in sorted(folder.glob("*.json")):
        try:
            record = _any_record(path)
        except ValueError as error:
            warnings.warn(f"{error}; left out", stacklevel=3)
            continue
        if record is not None:
            found += 1
            yield {**record, "file": path.name}
    if not found:
        raise ValueError(f"there are no results in {str(folder)!r}; minicl.sweep and minicl compare write them")


def _any_record(path: Path) -> dict[str, Any] | None:
    with path.open(encoding="utf-8", errors="replace") as file:
        start = file.read(len(START))
    if start == START:
        return read_record(path)
    value = files.read_json(path)
    if not isinstance(value, dict) or value.get("kind") != "result":
        return None
    Result.from_json(dict(value))  # checks it
    files.check_digest(path, value)
    return {"result": value, "identity": {}}


def load_all(folder: str | Path) -> list[Result]:
    """All results of a folder; see `records` for errors."""
    return [Result.from_json(record["result"]) for record in records(folder)]


def load_results(folder: str | Path) -> pd.DataFrame:
    """The results in a folder, one row each.

    Columns: "method", "hyperparameters" (a dictionary), "stream", "scenario", "n_tasks", "seed"; "needs_task_id",
    "knows_task_id", "task_id" ("told", "inferred" or "nobody", see `Result.task_id`); "average_accuracy",
    "backward_transfer", "forward_transfer", "forgetting", "newest_accuracy" (on each task right after learning it, on
    average), all from 0 to 1; "parameters", "bytes" (of the weights), "extra_bytes", "stored_bytes" (both), "seconds"
    (of training); "network", "settings", "stream_settings"; "file".

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without results.
    """
    return frame(records(folder))


def frame(given: Any) -> pd.DataFrame:
    """The same for records, or for a list of `Result`."""
    import pandas as pd

    as_records = ({"result": r.as_json(), "identity": {}} if isinstance(r, Result) else r for r in given)
    return pd.DataFrame([_row(record) for record in as_records])


def _row(record: dict[str, Any]) -> dict[str, Any]:
    result = record["result"]
    R = np.array(result["accuracy"], dtype=np.float64)
    b = np.array(result["baseline"], dtype=np.float64)
    capacity = result["capacity"]
    stored, extra = capacity.get("bytes"), capacity.get("extra_bytes")
    return {
        "method": result["method"],
        "hyperparameters": result["hyperparameters"],
        "stream": result["stream"].get("name", "stream"),
        "scenario": result["scenario"],
        "n_tasks": len(R),
        "seed": result["seed"],
        "needs_task_id": result["needs_task_id"],
        "knows_task_id": result["scenario"] == "task",
        "task_id": metrics.who_knows(result["scenario"], result["settings"]),
        "average_accuracy": metrics.average_accuracy(R),
        "backward_transfer": metrics.backward_transfer(R),
        "forward_transfer": metrics.forward_transfer(R, b),
        "forgetting": metrics.forgetting(R),
        "newest_accuracy": float(R.diagonal().mean()),
        "parameters": result["parameters"],
        "bytes": stored,
        "extra_bytes": extra,
        "stored_bytes": None if stored is None or extra is None else stored + extra,
        "seconds": result["seconds"],
        "network": record["identity"].get("network", ""),
        "settings": result["settings"],
        "stream_settings": result["stream"],
        "file": record.get("file", ""),
    }


# ---- the table -------------------------------------------------------------------------------------------------------

MEASURES = ("average_accuracy", "backward_transfer", "forgetting", "newest_accuracy")
COSTS = ("parameters", "bytes", "extra_bytes", "stored_bytes", "seconds")


def table(results: str | Path | pd.DataFrame | Sequence[Result]) -> pd.DataFrame:
    """A row for each method on each stream: means over seeds, and half of the 95 % t-interval.

    Columns: "method" (with those hyperparameters that differ), "stream", "scenario", "task_id" (who knows it at test
    time), "seeds"; "average_accuracy" and "average_accuracy_half", likewise "backward_transfer", "forgetting" and
    "newest_accuracy"; means of "parameters", "bytes", "extra_bytes", "stored_bytes", "seconds".

    Args:
        results: a folder, what `load_results` returned, or a list of results.
    """
    import pandas as pd

    from . import METHODS

    rows = load_results(results) if isinstance(results, (str, Path)) else results
    rows = rows if isinstance(rows, pd.DataFrame) else frame(rows)
    labels = _labels(rows)
    lines = []
    for (method, stream, scenario, needs, knows), group in rows.groupby(
        [labels["method"], labels["stream"], rows["scenario"], rows["needs_task_id"], rows["task_id"]], sort=False
    ):
        line: dict[str, Any] = {
            "method": method,
            "stream": stream,
            "scenario": scenario,
            "task_id": "needs it, is told" if needs and scenario == "task" else knows,
            "seeds": len(group),
        }
        for name in MEASURES:
            mean, half = metrics.mean_and_interval(group[name].to_numpy(dtype=np.float64))
            line[name], line[f"{name}_half"] = float(mean), float(half)
        for name in COSTS:
            line[name] = float(np.mean(group[name].to_numpy(dtype=np.float64)))
        lines.append(line)
    whole = pd.DataFrame(lines)
    known = [method.__name__ for method in METHODS.values()]
    places = [known.index(name) if (name := m.partition(" (")[0]) in known else len(known) for m in whole["method"]]
    whole["place"] = places
    return whole.sort_values(["stream", "scenario", "place", "method"], ignore_index=True).drop(columns="place")


def _labels(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Names of methods and of streams, with what tells those of the same name apart."""
    more = [
        {"network": network if isinstance(network, str) else str(network), **settings}
        for network, settings in zip(rows["network"], rows["settings"], strict=True)
    ]
    own = [{k: v for k, v in s.items() if k not in ("name", "seed", "scenario")} for s in rows["stream_settings"]]
    methods = _disambiguated(
        list(rows["method"]), [{**h, **m} for h, m in zip(rows["hyperparameters"], more, strict=True)]
    )
    return {"method": methods, "stream": _disambiguated(list(rows["stream"]), own)}


def _disambiguated(names: list[str], settings: list[dict[str, Any]]) -> list[str]:
    values: dict[str, dict[str, set[str]]] = {}
    texts = [{key: json.dumps(value) for key, value in each.items()} for each in settings]
    for name, each in zip(names, texts, strict=True):
        for key, value in each.items():
            values.setdefault(name, {}).setdefault(key, set()).add(value)
    told = []
    for name, each in zip(names, texts, strict=True):
        differ = [f"{k}={v.strip(chr(34))}" for k, v in each.items() if len(values[name][k]) > 1]
        told.append(f"{name} ({', '.join(differ)})" if differ else name)
    return told


def by_stream(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each stream, with methods and streams named as in `table`: for figures."""
    labels = _labels(frame(results))
    groups: dict[str, list[Result]] = {}
    for result, method, stream in zip(results, labels["method"], labels["stream"], strict=True):
        named = dataclasses.replace(result, method=method, hyperparameters={})
        groups.setdefault(f"{stream}, {result.scenario}", []).append(named)
    return groups


WRITTEN = {
    "FineTune": "fine-tuning",
    "FeatureExtraction": "feature extraction",
    "Individual": "separate networks",
    "Joint": "joint training",
    "AGEM": "A-GEM",
    "DERpp": "DER++",
    "AGSCL": "AGS-CL",
    "ICaRL": "iCaRL",
    "GenerativeReplay": "generative replay",
}
"""How people write the names of methods, where that is not the name of the class."""


def written(method: str) -> str:
    """The name of a method as people write it: `AGEM (size=50)` is "A-GEM (size=50)".

    Args:
        method: the name of its class, with settings behind it or without; other names stay as they are.
    """
    name, space, rest = method.partition(" ")
    return WRITTEN.get(name, name) + space + rest


HEADINGS = ("method", "stream", "scenario", "task id", "seeds", "ACC %", "BWT %", "F %", "parameters", "bytes", "s")


def cells(whole: pd.DataFrame) -> list[list[str]]:
    """A table as text, cell by cell: percent with half of the interval, thousands apart."""
    return [
        [
            written(line["method"]),
            *(str(line[name]) for name in ("stream", "scenario", "task_id", "seeds")),
            *(_percent(line[name], line[f"{name}_half"]) for name in MEASURES[:3]),
            *(_count(line[name]) for name in ("parameters", "stored_bytes")),
            f"{line['seconds']:.1f}",
        ]
        for line in whole.to_dict("records")
    ]


def _percent(mean: float, half: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def _count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def as_markdown(whole: pd.DataFrame) -> str:
    """The table in Markdown, its columns lined up; for reading as it is, too."""
    lines = [list(HEADINGS), *cells(whole)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    texts = [
        "| "
        + " | ".join(c.ljust(w) if i < 4 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < 4 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([texts[0], rule, *texts[1:]]) + "\n"


def as_latex(whole: pd.DataFrame) -> str:
    """The table in LaTeX, with the rules of the package booktabs."""
    lines = [" & ".join(map(_tex, line)) + r" \\" for line in [list(HEADINGS), *cells(whole)]]
    body = [rf"\begin{{tabular}}{{llll{'r' * (len(HEADINGS) - 4)}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    text = "".join(rf"\{c}" if c in "&%$#_{}" else c for c in text)
    return text.replace(" ± ", r" $\pm$ ").replace("<", r"$<$").replace(">", r"$>$")


def write_table(whole: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write the table as table.csv (numbers in full), table.md and table.tex; returns the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"csv": whole.to_csv(index=False), "md": as_markdown(whole), "tex": as_latex(whole)}
    for kind, text in texts.items():
        files.atomically(folder / f"table.{kind}", partial(_write, text))
    return [folder / f"table.{kind}" for kind in texts]


def _write(text: str, path: str) -> None:
    Path(path).write_text(text, encoding="utf-8")
