"""nbval runs the notebooks; what it has run, `make book` need not run again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))

import executed

RUN = pytest.StashKey[dict[str, Any]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Iterator[None]:
    """Before the first cell of a notebook: what the run depends on."""
    if hasattr(item, "cell") and RUN not in item.parent.stash:
        depends = executed.fingerprint()
        item.parent.stash[RUN] = {"depends": depends, "cells": [], "seconds": 0.0}
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:
    """After the last cell of a notebook in which all passed: the outputs are kept."""
    report = yield
    if call.when == "call" and hasattr(item, "cell"):
        run = item.parent.stash[RUN]
        if report.passed:
            run["seconds"] += call.duration
            outputs = {"source": item.cell.source, "outputs": item.test_outputs}
            run["cells"].append(outputs)
        cells = [cell for cell in item.parent.nb.cells if cell.cell_type == "code"]
        if [c["source"] for c in run["cells"]] == [c.source for c in cells]:
            executed.keep(item.path, run["cells"], run["seconds"], run["depends"])
    return report
