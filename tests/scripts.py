"""Programs of the repository that belong to no package (benchmarks, tools, answers), loaded as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import yaml

ROOT = Path(__file__).resolve().parent.parent


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
