"""The list of claims (tools/claims.py), and that what is claimed in a cell is said on its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import scripts

from minicl import claims

tool = scripts.load("tools/claims.py", "claims_of_the_book")
SAYS = re.compile(r'glue\(\s*"([\w-]+)",\s*(?:said\b|[\w.]+\.says\()')


def page(folder: Path, name: str, **glued: object) -> None:
    """What myst-nb writes of a page."""
    kept = {key: {"data": bundle, "metadata": {}} for key, bundle in glued.items()}
    (folder / f"{name}.glue.json").write_text(json.dumps(kept), encoding="utf-8")


def test_the_list_says_what_holds_and_what_does_not(tmp_path: Path) -> None:
    sure = claims.above([0.9, 0.8, 0.7], 0.1).says("A is above B")
    unsure = claims.above([0.9, 0.8, 0.7], 0.8).says("A is above C")
    near = claims.equal_within([0.9, 0.8, 0.7], [0.9, 0.81, 0.7], 0.05).says("A is as good as D")
    same = claims.exactly([0.0, 0.0], 0.0).says("A forgets nothing")
    page(tmp_path, "one", acc={"text/plain": "0.5"}, sure=sure._repr_mimebundle_())
    page(tmp_path, "two", near=near._repr_mimebundle_(), same=same._repr_mimebundle_())
    hidden = {f"application/papermill.record/{kind}": data for kind, data in unsure._repr_mimebundle_().items()}
    page(tmp_path, "three", unsure=hidden)
    found = tool.glued(tmp_path, ["one", "none", "three", "two"])
    assert [(claim["page"], claim["key"]) for claim in found] == [
        ("one", "sure"),
        ("three", "unsure"),
        ("two", "near"),
        ("two", "same"),
    ]
    assert [tool.row(claim) for claim in found] == [
        ["A is above B", "+70.0", "+45.2 to +94.8", "3", "holds"],
        ["A is above C: no difference shown", "−0.0", "−24.8 to +24.8", "3", "not shown"],
        ["A is as good as D", "−0.3", "−1.8 to +1.1, margin 5.0", "3", "holds"],
        ["A forgets nothing", "+0.0", "exact", "2", "holds"],
    ]
    said = tool.summary(found)
    assert said.startswith("4 claims, 1 of them not shown\n  three: A is above C: no difference shown (")
    assert tool.MIME == claims.MIME


@pytest.mark.parametrize("notebook", scripts.NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_claimed_is_said(notebook: Path) -> None:
    code = "\n".join(map(scripts.source, scripts.cells(notebook, "code")))
    text = scripts.markdown(notebook)
    for key in SAYS.findall(code):
        assert f"{{glue:text}}`{notebook.name}::{key}:s`" in text, f"{key} is claimed in a cell and not said"
