"""benchmarks/LOG.md: its figures are those of the stored results that it names."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from scripts import ROOT

RESULTS = ROOT / "benchmarks" / "results"
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in (ROOT / "benchmarks" / "LOG.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| 20\d\d-\d\d-\d\d \|", line)
]


def stored(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def runs(name: str) -> dict[str, float]:
    """The ACC of each seed, in per cent."""
    found = {re.fullmatch(re.escape(name) + r" (\d+)", key): run for key, run in stored("expansion.json").items()}
    return {match[1]: 100 * run["ACC"] for match, run in found.items() if match}


def per_cent(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1f}"


@pytest.mark.parametrize("row", [row for row in ROWS if len(row) == 6 and row[-1].isdigit()], ids=lambda row: row[1])
def test_a_row_of_runs_is_what_is_stored(row: list[str]) -> None:
    ours, theirs = runs(row[1].strip("`")), runs(row[3].strip("`"))
    both = sorted(ours.keys() & theirs.keys())
    assert [per_cent([ours[s] for s in both]), per_cent([theirs[s] for s in both]), str(len(both))] == row[2::2][
        :1
    ] + row[4:]


def test_rows_of_searches_and_of_the_published_table_are_what_is_stored() -> None:
    hat = {
        f"momentum {run['momentum']}, lr {run['lr']}, {run['schedule']}": run["valid"]
        for run in stored("hat_search.json")["first"]
    }
    packnet: dict[str, float] = {}
    for run in stored("packnet_search.json")["tried"]:
        for name in (run["optimizer"], run["keep_ratio"]):
            packnet[name] = max(packnet.get(name, 0.0), run["validation"])
    searches = [row for row in ROWS if row[-1].endswith(".json`")]
    assert len(searches) == 4
    for _, tried, ours, beside, theirs, result in searches:
        of = hat if "hat" in result else packnet
        for name, figure in ((tried.partition(": ")[2], ours), (beside, theirs)):
            assert per_cent([100 * of[name.strip("`")]]) == figure, name
    table = (RESULTS / "split_mnist_variants.md").read_text(encoding="utf-8")
    published = [row for row in ROWS if row[2] == "class"]
    assert len(published) == 6
    for _, tried, _, ours, before, theirs in published:
        method = tried.partition(",")[0]
        for name, figure in ((tried, ours), (method, before), (f"{method}, published", theirs)):
            (line,) = (line for line in table.splitlines() if line.startswith(f"| {name} |"))
            assert line.split("|")[4].split()[0] == figure, name
