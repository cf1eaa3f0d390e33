"""Tables of results: what is bold, what is said once, and what is refused."""

from __future__ import annotations

import re

import docutils.core
import numpy as np
import pytest
import scripts
from docutils import nodes

from minicl.tables import Table, written_cell

ROWS = [
    {"family": "bounds", "method": "joint training", "ACC": (0.95, 0.01)},
    {"family": "replay", "method": "ER", "ACC": (0.7, 0.02)},
    {"family": "replay", "method": "DER++", "ACC": (0.8, 0.03)},
    {"family": "replay", "method": "A-GEM", "ACC": None},
]


def cells(table: Table) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table._repr_html_())
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_the_best_is_bold_and_a_family_is_named_once() -> None:
    table = Table(ROWS, best=["ACC"], apart=[0], once=["family"], words=["method"])
    assert cells(table) == [
        ["family", "method", "ACC"],
        ["bounds", "joint training", "95.0% ± 1.0%"],
        ["replay", "ER", "70.0% ± 2.0%"],
        ["", "DER++", "<strong>80.0% ± 3.0%</strong>"],
        ["", "A-GEM", "–"],
    ]
    assert cells(Table(ROWS, best=["ACC"]))[1][2] == "<strong>95.0% ± 1.0%</strong>"


def test_words_stand_to_the_left_and_text_cannot_break_the_page() -> None:
    page = Table([{"a": "<b>", "n": 1}], words=["a"])._repr_html_()
    assert '<td class="words">&lt;b&gt;</td><td>1</td>' in page
    assert '<th scope="col" class="words">a</th>' in page


def test_cells_as_text() -> None:
    assert written_cell((np.array(0.5), np.array(np.nan))) == "50.0%"
    assert written_cell("x") == "x"


@pytest.mark.parametrize(
    ("rows", "best", "words"),
    [([], (), "without rows"), ([{"a": 1}, {"b": 1}], (), r"columns \['b'\]"), ([{"a": 1}], ["b"], "no column 'b'")],
)
def test_refuses_what_is_no_table(rows: list[dict[str, int]], best: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Table(rows, best=best)


def test_a_corner_without_words_heads_no_column() -> None:
    page = Table([{"": "ER", "n": 1}], words=[""])._repr_html_()
    assert '<thead><tr><td class="words"></td><th scope="col">n</th></tr></thead>' in page


WRITTEN = """
.. table:: Made up.
   :class: best-2 best-row-3

   =============== ============ ======== =====
   method          ACC          BWT      joint
   =============== ============ ======== =====
   joint training  95.0% ± 1.0%
   HAT             81.0% ± 2.0% -1.0%    99%
   PNN             82.5% ± 2.0% -20.0%   99%
   fine-tuning     90.0%        0.0%     99%
   DER++           82.5%        +0.1%    99%
   =============== ============ ======== =====
"""


def test_the_best_of_a_written_table_is_bold_and_bounds_are_not() -> None:
    document = docutils.core.publish_doctree(WRITTEN, settings_overrides={"report_level": 5})
    (table,) = document.findall(nodes.table)
    scripts.load("tools/tables.py").embolden(table)
    bold = [strong.astext() for strong in table.findall(nodes.strong)]
    assert bold == ["82.5% ± 2.0%", "82.5%"]  # twins; in its row the first of them is bold already


def test_a_number_with_its_interval_stays_on_one_line_and_words_do_not() -> None:
    document = docutils.core.publish_doctree(WRITTEN, settings_overrides={"report_level": 5})
    (table,) = document.findall(nodes.table)
    (corner, *_) = table.findall(nodes.entry)
    corner += nodes.paragraph("", "1,080 ± 20")
    corner[:] = corner[-1:]
    words = nodes.entry("", nodes.paragraph("", "81.0% ± 2.0%, five seeds"))
    table += words
    scripts.load("tools/tables.py").keep_together(table)
    kept = {cell.astext() for cell in table.findall(nodes.entry) if "interval" in cell["classes"]}
    assert kept == {"1,080 ± 20", "95.0% ± 1.0%", "81.0% ± 2.0%", "82.5% ± 2.0%"}
