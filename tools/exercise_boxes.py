"""Sphinx extension: the boxes of exercises are headings that one can link to.

A box "Exercise 2 (build): ..." has as its anchor the name that `minicl.check` knows it by. So `hat.html#hat-2` leads to
it, and in the text {ref}`hat-2`, with its title, or {ref}`words <hat-2>`. It keeps the look of a box.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from edition import CHECK
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

TITLE = re.compile(r"Exercise \d+ \(\w+\): ")


class exercise_title(nodes.title):
    """The title of an exercise's box: a heading for whoever goes by headings."""


def _anchor(app: Sphinx, doctree: nodes.document) -> None:
    """Give each exercise of a page its anchor."""
    labels = app.env.get_domain("std")
    for box in doctree.findall(nodes.admonition):
        title = box[0]
        found = CHECK.search(box.astext())
        if not (isinstance(title, nodes.title) and TITLE.match(title.astext()) and found):
            continue
        name = found[1]
        box["ids"].insert(0, name)
        box.replace(title, exercise_title(title.rawsource, "", *title.children, ids=[], anchor=name))
        labels.labels[name] = app.env.docname, name, title.astext()  # type: ignore[attr-defined]
        labels.anonlabels[name] = app.env.docname, name  # type: ignore[attr-defined]


def _visit(self: HTML5Translator, node: exercise_title) -> None:
    self.body.append(self.starttag(node, "p", "", CLASS="admonition-title", role="heading", **{"aria-level": "3"}))


def _depart(self: HTML5Translator, node: exercise_title) -> None:
    if self.config.html_permalinks and self.builder.add_permalinks:
        sign = self.config.html_permalinks_icon
        link = f'<a class="headerlink" href="#{node["anchor"]}" title="Link to this exercise">{sign}</a>'
        self.body.append(link)
    self.body.append("</p>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(exercise_title, html=(_visit, _depart))
    app.connect("doctree-read", _anchor)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
