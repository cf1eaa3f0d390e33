"""What every test stands on: one thread, checked shapes, reproducible examples, seeds that can be changed."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: OpenMP reads it once
os.environ["MPLBACKEND"] = "Agg"  # no window, whoever runs the tests

import seeds
import shape_checks

shape_checks.install("minicl")  # before it is imported

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("laptop", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "laptop")

SEEDS = seeds.read(os.environ.get(seeds.VARIABLE, "0"))
os.environ[seeds.VARIABLE] = f"{SEEDS[0]}-{SEEDS[-1]}"  # the processes of pytest-xdist take the same


LONG = 8
"""Rows of a test from which on `--every` takes a part of them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help=f"of tests with {LONG} rows and more one row in N, the same in each run, and none that is marked patient",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "patient: waits for long; left out with --every")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What `--every` leaves out. Rows are drawn by their names, so that no method or option falls out of all tests."""
    every = config.getoption("every")
    if every < 1:
        raise pytest.UsageError(f"--every is {every}; allowed: integers from 1 up")
    if every == 1:
        return
    rows = Counter(item.nodeid.partition("[")[0] for item in items)

    def stays(item: pytest.Item) -> bool:
        is_long = rows[item.nodeid.partition("[")[0]] >= LONG
        drawn = not is_long or zlib.crc32(item.nodeid.encode()) % every == 0
        return drawn and item.get_closest_marker("patient") is None

    parts: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        parts[stays(item)].append(item)
    config.hook.pytest_deselected(items=parts[False])
    items[:] = parts[True]


def pytest_report_header(config: pytest.Config) -> list[str]:
    every = config.getoption("every")
    part = [] if every == 1 else [f"rows of long tables: 1 in {every}; all without --every"]
    return [f"seeds: {seeds.VARIABLE}={os.environ[seeds.VARIABLE]}", *part]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(f"with {seeds.VARIABLE}={os.environ[seeds.VARIABLE]}")


@pytest.fixture(autouse=True)
def suite_seed() -> int:
    """The seed of the test at hand; see `seeds`. Where there are several, every test runs with each of them."""
    return seeds.current()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if len(SEEDS) > 1:
        metafunc.parametrize("suite_seed", SEEDS, indirect=True, ids="seed {}".format)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same first weights whatever ran before: which tests share a process is a matter of chance."""
    of_this_test = getattr(item, "callspec", None)
    seeds.use(SEEDS[0] if of_this_test is None else of_this_test.params.get("suite_seed", SEEDS[0]))


@pytest.fixture
def style() -> Iterator[None]:
    """The look of the book for the figures of a test, which are closed afterwards."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from minicl import plots

    with mpl.rc_context():
        plots.style()
        yield
    plt.close("all")
