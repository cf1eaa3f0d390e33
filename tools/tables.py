"""Sphinx extension: a table that a cell prints has a number and a caption, as one that is written has.

A cell says so in its metadata, as for a figure, with a name that starts with "tab-":
`{"mystnb": {"figure": {"caption": "...", "name": "tab-comparison"}}}`. Then `{numref}` calls it "Table 2".

In a table that is written, the largest number of a column is bold where the table has the class `best-3` (the third
column), and that of a row where it has the class `best-row-1`. Bounds do not count: what tells them apart is BOUNDS.

A number with its interval stays on one line, on a phone too, where a wide table scrolls.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

BOUNDS = {"fine-tuning", "joint training", "joint", "separate networks", "individual networks"}
"""What the first cell of a row or column says where it is a bound and no method."""


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


def embolden(table: nodes.table) -> None:
    """The largest numbers in the columns and rows that the table's classes name; twins are bold alike."""
    rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
    for name in table["classes"]:
        if match := re.fullmatch(r"best-(row-)?(\d+)", name):
            k = int(match[2])
            line = rows[k] if match[1] else [row[k - 1] for row in rows]
            named = rows[0] if match[1] else [row[0] for row in rows]
            found = [
                (float(number[0]), cell)
                for cell, of in zip(line[1:], named[1:], strict=True)
                if of.astext() not in BOUNDS and (number := re.match(r"[-+]?\d+(\.\d+)?", cell.astext()))
            ]
            for value, cell in found:
                if value == max(found, key=lambda one: one[0])[0] and not any(cell.findall(nodes.strong)):
                    for paragraph in cell.findall(nodes.paragraph):
                        paragraph[:] = [nodes.strong("", "", *paragraph.children)]


INTERVAL = re.compile(r"[-+−]?[\d,]+(\.\d+)?\s*%?\s*±\s*[\d,]+(\.\d+)?\s*%?")


def keep_together(table: nodes.table) -> None:
    """A cell that is a number with its interval, and nothing else, is not broken into lines."""
    for cell in table.findall(nodes.entry):
        if INTERVAL.fullmatch(cell.astext().strip()):
            cell["classes"].append("interval")


def _finish_all(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for table in doctree.findall(nodes.table):
        embolden(table)
        keep_together(table)


def _visit(self: Any, node: nodes.Element) -> None:
    self.body.append(self.starttag(node, "figure", CLASS="printed-table"))


def _depart(self: Any, node: nodes.Element) -> None:
    self.body.append("</figure>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_enumerable_node(printed_table, "table", html=(_visit, _depart), epub=(_visit, _depart))
    app.add_transform(NameTables)
    app.connect("doctree-resolved", _finish_all, priority=800)  # the numbers stand there; before tools/edition.py
    return {"parallel_read_safe": True}
