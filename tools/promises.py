"""The tables of book/promises.md, made from LOOPS and WRITERS of `minicl.testing`: `python tools/promises.py`."""

from __future__ import annotations

from pathlib import Path

from minicl.testing import LOOPS, METHODS, WRITERS

PAGE = Path(__file__).resolve().parents[1] / "book" / "promises.md"


def refusing(cell: str) -> str:
    """What the last column says of a cell: held, or refused, and by whom."""
    names = [f"`{name}`" for name, row in METHODS.items() if cell in row.refuses]
    return f"refused, in words, by {', '.join(names)}" if names else "holds"


def tables() -> dict[str, str]:
    """The two tables, by the name of their place in the page."""
    loops = ["| loop | what is done | |", "|---|---|---|"]
    loops += [f"| `{name}` | {way.says} | {refusing(f'loop: {name}')} |" for name, way in LOOPS.items()]
    writers = ["| tool | what it does | |", "|---|---|---|"]
    writers += [f"| `{name}` | {row.says} | {refusing(f'writer: {name}')} |" for name, row in WRITERS.items()]
    return {"loops": "\n".join(loops), "writers": "\n".join(writers)}


def written(page: str) -> str:
    """The page with the tables as they should be."""
    for name, table in tables().items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        page = f"{before}{mark}\n{table}\n\n{rest[rest.index('<!-- end -->') :]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
