"""Sphinx extension: exercises that are answered with words or numbers can be answered in the page, without a kernel.

Below the box of such an exercise stands a form that holds its table (`minicl/exercises/_declared.py`);
`book/_static/checks.js` makes the fields, judges with the table as `minicl.check` does, and keeps the answers. Where
scripts are off, nothing is shown. Which exercise a box is about is what its call of `minicl.check` says.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from docutils import nodes
from edition import CHECK
from sphinx.application import Sphinx

from minicl import exercises
from minicl.exercises._declared import DECLARED, Numbers, Words


@cache
def declared() -> dict[str, Words | Numbers]:
    """Every exercise that a page can judge, by name."""
    for chapter in exercises.chapters():
        exercises.exercises(chapter)  # loads them
    return DECLARED


def form(name: str) -> str:
    """The form of an exercise, as HTML: empty but for its table."""
    table = json.dumps(declared()[name].table(), ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<form class="check" data-exercise="{name}" data-total="{len(declared())}" aria-label="Your answer to {name}">'
        f'<script type="application/json">{table}</script></form>'
    )


def _add_forms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Below each box that asks for words or numbers, its form."""
    if app.builder.name != "html":
        return
    for box in list(doctree.findall(nodes.admonition)):
        asked = CHECK.search(box.astext())
        if asked and asked[1] in declared():
            box.parent.insert(box.parent.index(box) + 1, nodes.raw("", form(asked[1]), format="html"))


def _add_script(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """A page with a form gets the script and its styles."""
    if 'class="check"' in context.get("body", ""):
        app.add_css_file("checks.css")
        app.add_js_file("checks.js", defer="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", _add_forms, priority=950)  # after tools/edition.py has read the page
    app.connect("html-page-context", _add_script)
    return {"parallel_read_safe": True}
