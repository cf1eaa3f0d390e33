"""Sphinx extension: docstrings are prose with `code` in backticks, not reStructuredText with traps.

- Napoleon takes `Inputs: shape (n, ...)` at the head of a property's docstring for "type: description": it is prose.
- `|W|` would be a substitution and `theta_` a link: outside backticks, both are what they look like.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

_parse = GoogleDocstring._parse


def _as_prose(self: GoogleDocstring) -> None:
    if self._what in ("attribute", "data", "property"):
        self._what = "object"
    _parse(self)


def _literally(text: str) -> str:
    text = re.sub(r"(?<!\\)\|(?=\S)", r"\\|", text)
    return re.sub(r"(?<=\w)_(?![\w`:])", r"\\_", text)


def _escape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape what lies between the backticks' spans; a span may run over a line's end, so all lines are one text."""
    pieces = re.split(r"(`+[^`]*`+)", "\n".join(lines))
    pieces[::2] = map(_literally, pieces[::2])
    lines[:] = "".join(pieces).split("\n")


def setup(app: Sphinx) -> dict[str, Any]:
    GoogleDocstring._parse = _as_prose  # type: ignore[method-assign]
    app.connect("autodoc-process-docstring", _escape, priority=900)  # after Napoleon
    return {"parallel_read_safe": True}
