"""Sphinx extension: a table that a cell prints has a number and a caption, as one that is written has.

A cell says so in its metadata, as for a figure, with a name that starts with "tab-":
`{"mystnb": {"figure": {"caption": "...", "name": "tab-comparison"}}}`. Then `{numref}` calls it "Table 2".
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class printed_table(nodes.figure):
    """A figure whose content is a table: it is counted among the tables, and its caption stands above."""


class NameTables(SphinxTransform):
    """Figures with the name of a table are tables."""

    default_priority = 10  # before anything is counted

    def apply(self, **kwargs: Any) -> None:
        for figure in list(self.document.findall(nodes.figure)):
            if any(name.startswith("tab-") for name in figure["names"]):
                table = printed_table("", *figure.children, **figure.attributes)
                table.source, table.line = figure.source, figure.line
                for child in list(table.children):
                    if isinstance(child, nodes.caption):
                        table.remove(child)
                        table.insert(0, child)
                figure.replace_self(table)
                for place in table["ids"]:
                    self.document.ids[place] = table


def _visit(self: Any, node: nodes.Element) -> None:
    self.body.append(self.starttag(node, "figure", CLASS="printed-table"))


def _depart(self: Any, node: nodes.Element) -> None:
    self.body.append("</figure>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_enumerable_node(printed_table, "table", html=(_visit, _depart), epub=(_visit, _depart))
    app.add_transform(NameTables)
    return {"parallel_read_safe": True}
