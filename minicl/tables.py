"""Tables of results as the book prints them: names as people write them, families named once, the best in bold."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Cell = Any
"""A text; or a pair (mean, half of the interval), shares from 0 to 1, printed in percent; or None for a dash."""


class Table:
    """Rows with the same columns. The last line of a cell shows it, in a notebook and on the page.

    Args:
        rows: each a mapping from the heading of a column to its cell.
        best: columns whose largest mean is in bold.
        apart: rows, by their place, that do not count for the best, such as bounds.
        once: columns that say a value once, in the first of the rows that share it.
        words: columns that hold words, and are aligned to the left; the others hold numbers.

    Raises:
        ValueError: no rows, rows with different columns, or a column that is not there.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Cell]],
        best: Sequence[str] = (),
        apart: Sequence[int] = (),
        once: Sequence[str] = (),
        words: Sequence[str] = (),
    ) -> None:
        if not rows:
            raise ValueError("a table without rows has nothing to show; give at least one")
        self.rows = [dict(row) for row in rows]
        self.columns = list(self.rows[0])
        for row in self.rows:
            if list(row) != self.columns:
                raise ValueError(f"a row has the columns {list(row)}, the first one {self.columns}")
        for name in (*best, *once, *words):
            if name not in self.columns:
                raise ValueError(f"there is no column {name!r}; there are {', '.join(self.columns)}")
        self.once, self.words = set(once), set(words) | set(once)
        self.bold = {(k, name) for name in best for k in self._best(name, set(apart))}

    def _best(self, column: str, apart: set[int]) -> list[int]:
        means = {
            k: float(row[column][0])
            for k, row in enumerate(self.rows)
            if isinstance(row[column], tuple) and k not in apart
        }
        return [k for k, mean in means.items() if mean == max(means.values())]

    def _repr_html_(self) -> str:
        """The table as HTML; headings are headers of their columns, and a corner without words heads nothing."""
        head = "".join(
            f'<th scope="col"{self._kind(name)}>{html.escape(name)}</th>' if name else f"<td{self._kind(name)}></td>"
            for name in self.columns
        )
        body, before = [], dict.fromkeys(self.once)
        for k, row in enumerate(self.rows):
            first = any(row[name] != before[name] for name in self.once)
            cells = []
            for name in self.columns:
                again = name in self.once and row[name] == before[name]
                text = "" if again else html.escape(written_cell(row[name]))
                text = f"<strong>{text}</strong>" if (k, name) in self.bold else text
                cells.append(f"<td{self._kind(name)}>{text}</td>")
            before = {name: row[name] for name in self.once}
            mark = ' class="first"' if first and k else ""
            body.append(f"<tr{mark}>{''.join(cells)}</tr>")
        return f'<table class="dataframe results"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'

    def _kind(self, column: str) -> str:
        return ' class="words"' if column in self.words else ""

    def __repr__(self) -> str:
        return f"Table of {len(self.rows)} rows: {', '.join(self.columns)}"


def written_cell(cell: Cell) -> str:
    """A cell as text: a pair of shares as percent with half of its interval, None as a dash."""
    if cell is None:
        return "–"
    if isinstance(cell, tuple):
        mean, half = (float(np.asarray(value)) for value in cell)
        return f"{mean:.1%}" + ("" if np.isnan(half) else f" ± {half:.1%}")
    return str(cell)
