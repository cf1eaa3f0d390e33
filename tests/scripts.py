"""Programs of the repository that belong to no package (benchmarks, tools, answers), and the pages of the book."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
NOTEBOOKS = sorted(path for path in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
PAGES = sorted([*NOTEBOOKS, *BOOK.rglob("*.md")])


def load(path: Path | str, name: str | None = None) -> ModuleType:
    """The program at a path, from the repository's root; what it imports from its own folder is found."""
    path = ROOT / path
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def toc_pages() -> list[str]:
    """The pages of `_toc.yml` in reading order, without their endings."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return list(load("tools/check_book.py").pages(toc))


def cells(notebook: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The cells of a notebook: all, or those of one kind, "code" or "markdown"."""
    every = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in every if kind in (None, cell["cell_type"])]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def markdown(page: Path) -> str:
    """What a page says: its text, or the markdown cells of a notebook."""
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    return "\n\n".join(source(cell) for cell in cells(page, "markdown"))
