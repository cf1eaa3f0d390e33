"""Sphinx extension: the directive `claims` lists every claim of the book, with effect, interval, n and where it stands.

A claim is made in a cell of a notebook and put into the page's text: `glue("key", minicl.claims.above(a, b).says("...",
), display=False)`. myst-nb keeps what is glued, page by page; when all pages are read, the list is made of that. At the
end of a build, what is claimed and does not hold is printed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

from minicl.claims import MIME, number

HEADINGS = ("where", "claim", "effect", "95 % interval", "n", "result")


class claims_list(nodes.General, nodes.Element):
    """Where the list will be."""


class Claims(SphinxDirective):
    """The directive."""

    def run(self) -> list[nodes.Node]:
        return [claims_list()]


def glued(folder: Path, pages: list[str]) -> list[dict[str, Any]]:
    """The claims that myst-nb has kept of these pages, in their order; each with its page and key."""
    found = []
    for page in pages:
        path = folder / f"{page}.glue.json"
        if path.is_file():
            for key, output in json.loads(path.read_text(encoding="utf-8")).items():
                # what is not displayed has types with a prefix, which myst-nb takes off in some versions alone
                for kind, claim in output["data"].items():
                    if kind.endswith(MIME):
                        found.append({**claim, "page": page, "key": key})
    return found


def row(claim: dict[str, Any]) -> list[str]:
    """The cells of a claim behind the first, which is a link."""
    sentence = claim["text"].rpartition(" (")[0] or claim["text"]
    if not claim["holds"]:
        sentence = f"{claim['sentence']}: {sentence}"
    margin = f", margin {number(claim['margin'], claim['points'])[1:]}" if claim["kind"] == "equal within" else ""
    interval = f"{number(claim['low'], claim['points'])} to {number(claim['high'], claim['points'])}{margin}"
    return [
        sentence,
        number(claim["effect"], claim["points"]),
        "exact" if claim["kind"] == "exactly" and claim["holds"] else interval,
        str(claim["n"]),
        "holds" if claim["holds"] else "not shown",
    ]


def pages_in_order(env: Any) -> list[str]:
    """Every page, in the order of the table of contents."""
    order, left = [], [env.config.root_doc]
    while left:
        page = left.pop(0)
        order.append(page)
        left = [*env.toctree_includes.get(page, []), *left]
    return [*order, *sorted(set(env.all_docs) - set(order))]


def all_claims(app: Sphinx) -> list[dict[str, Any]]:
    return glued(Path(app.env.mystnb_config.output_folder), pages_in_order(app.env))  # type: ignore[attr-defined]


class FillIn(SphinxPostTransform):
    """Put the list where it belongs."""

    default_priority = 6

    def run(self, **kwargs: Any) -> None:
        for place in list(self.document.findall(claims_list)):
            place.replace_self(self.table(all_claims(self.app)))

    def table(self, found: list[dict[str, Any]]) -> nodes.Node:
        group = nodes.tgroup(cols=len(HEADINGS))
        group += [nodes.colspec(colwidth=width) for width in (20, 50, 10, 20, 5, 10)]
        head, body = nodes.thead(), nodes.tbody()
        head += _row([nodes.paragraph(text=text) for text in HEADINGS])
        for claim in found:
            title = self.env.titles[claim["page"]].astext()
            paragraph = nodes.paragraph()
            uri = self.app.builder.get_relative_uri(self.env.docname, claim["page"])
            paragraph += nodes.reference("", title, internal=True, refuri=uri)
            body += _row([paragraph, *(nodes.paragraph(text=text) for text in row(claim))])
        group += [head, body]
        table = nodes.table(classes=["claims"])
        table += group
        return table


def _row(cells: list[nodes.paragraph]) -> nodes.row:
    line = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        entry += cell
        line += entry
    return line


def summary(found: list[dict[str, Any]]) -> str:
    """What the build says of the claims."""
    open_ = [claim for claim in found if not claim["holds"]]
    lines = [f"{len(found)} claims, {len(open_)} of them not shown"]
    lines += [f"  {claim['page']}: {claim['sentence']}: {claim['text']}" for claim in open_]
    return "\n".join(lines)


def _say(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and (found := all_claims(app)):
        print(summary(found))  # also where the build is told to be quiet


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(claims_list)
    app.add_directive("claims", Claims)
    app.add_post_transform(FillIn)
    app.connect("build-finished", _say)
    return {"parallel_read_safe": True}
