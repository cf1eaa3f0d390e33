"""What `make notebooks` has run, so that `make book` need not run it again.

A record holds the outputs of each code cell, and what they depend on: the code of the cells, and the fingerprint of the
package, the pins and Python. Where any of these is another, the record counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "_build" / "executed"


def fingerprint() -> str:
    """A hash of everything, except the notebooks themselves, that their results depend on."""
    files = [*(ROOT / "minicl").rglob("*.py"), *(ROOT / "book").rglob("*.py"), ROOT / "requirements.txt"]
    digest = hashlib.sha256(sys.version.encode())
    for file in sorted(files):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def keep(path: Path, cells: list[dict[str, Any]], seconds: float, depends: str) -> None:
    """Write down a run in which no cell failed.

    Args:
        path: the notebook.
        cells: for each code cell its "source" and "outputs".
        seconds: what the run took.
        depends: the fingerprint from before the run.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    record = {"fingerprint": depends, "seconds": seconds, "cells": cells}
    record_of(path).write_text(json.dumps(record), encoding="utf-8")


def take(path: Path, notebook: NotebookNode, now: str) -> float | None:
    """Put the outputs of the recorded run into the notebook; None where there is no run of just this.

    Args:
        path: the notebook's file.
        notebook: what it holds; changed only where the record fits.
        now: the fingerprint of today.

    Returns:
        the seconds that the run took.
    """
    if not (file := record_of(path)).exists():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if record["fingerprint"] != now or [cell.source for cell in code] != [c["source"] for c in record["cells"]]:
        return None
    for number, (cell, ran) in enumerate(zip(code, record["cells"], strict=True), start=1):
        cell.outputs = [nbformat.from_dict(output) for output in ran["outputs"]]
        cell.execution_count = number
    return float(record["seconds"])


def record_of(path: Path) -> Path:
    """Where the run of a notebook is kept."""
    return FOLDER / f"{path.stem}.json"
