"""Sphinx extension: read the docstring of a property or a constant as prose.

Napoleon takes `Inputs: shape (n, ...)` at the head of such a docstring for "type: description", and links the words.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

_parse = GoogleDocstring._parse


def _as_prose(self: GoogleDocstring) -> None:
    if self._what in ("attribute", "data", "property"):
        self._what = "object"
    _parse(self)


def setup(app: Sphinx) -> dict[str, Any]:
    GoogleDocstring._parse = _as_prose  # type: ignore[method-assign]
    return {"parallel_read_safe": True}
