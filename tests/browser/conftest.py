"""The built book, served on this machine alone, and one browser in which every other host is unknown.

    make book browser-test

The tests need `_build/html` and a Chromium; the variable CHROMIUM names one that is not on the path.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
from browser.reader import HTML, PAGES, WIDTHS, Quiet, Visit, find_chromium, visit
from playwright.sync_api import Browser, sync_playwright
from xdist.scheduler import LoadScopeScheduling


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The address of the built book."""
    missing = [page for page in PAGES if not (HTML / f"{page}.html").is_file()]
    assert not missing, f"not built: {', '.join(missing)}; run `make book` first"
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=executable,
            # the sandbox needs rights that containers do not give; the only pages opened are the book's own
            args=["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield chromium
        chromium.close()


# Each page stays open, at each width, while all tests look at it.
@pytest.fixture(
    scope="session",
    params=[
        pytest.param((page, width), id=f"{page.removeprefix('book/')}-{width}") for page in PAGES for width in WIDTHS
    ],
)
def opened(request: pytest.FixtureRequest, browser: Browser, site: str) -> Iterator[Visit]:
    name, width = request.param
    here = visit(browser, f"{site}{name}.html", name, width)
    yield here
    here.page.close()


@pytest.fixture
def fresh(browser: Browser, site: str) -> Iterator[Any]:
    """Open a page anew: `fresh("book/hat")`, or `fresh("search.html?q=hat")`."""
    visits: list[Visit] = []

    def go(name: str, width: str = "desktop") -> Visit:
        visits.append(visit(browser, site + (name if ".html" in name else f"{name}.html"), name, width))
        return visits[-1]

    yield go
    for one in visits:
        one.page.close()


class ByPage(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
    """All that looks at an opened page goes to one worker: the marks of xdist 3.8 go unread in pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        page = re.search(rf"\[(.+-(?:{'|'.join(WIDTHS)}))\]$", nodeid)
        if page:
            return page[1]
        return nodeid.split("::")[0] if "test_playground.py" in nodeid else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByPage:
    return ByPage(config, log)


# What was measured, printed at the end


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = [
        dict(report.user_properties)
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        if report.when == "call" and "megabytes" in dict(report.user_properties)
    ]
    if rows:
        terminalreporter.section("each page: what is loaded, and when it can be used")
        for row in sorted(rows, key=lambda row: -row["megabytes"]):
            terminalreporter.write_line(f"{row['megabytes']:5.2f} MB {row['seconds']:5.2f} s  {row['page']}")
