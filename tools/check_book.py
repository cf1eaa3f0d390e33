"""Check that every page of `_toc.yml` was built, and say where the book is.

A build can succeed and publish nothing.

    python tools/check_book.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"


def pages(toc: dict[str, Any] | list[Any]) -> Iterator[str]:
    """Every page that a table of contents names, without its ending, in reading order."""
    if isinstance(toc, list):
        for entry in toc:
            yield from pages(entry)
        return
    for key, value in toc.items():
        if key in ("root", "file"):
            yield str(value)
        elif isinstance(value, list):
            yield from pages(value)


def main() -> int:
    names = list(pages(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))
    missing = [name for name in [*names, "index"] if not (HTML / f"{name}.html").is_file()]
    if missing:
        print(f"not built: {', '.join(missing)}", file=sys.stderr)
        return 1
    index = HTML / "index.html"
    print(f"{len(names)} pages: {index.relative_to(ROOT)}\n{index.as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
