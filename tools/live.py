"""Sphinx extension: the directive `live` puts a figure under the reader's finger.

    ```{live} shares
    :caption: What four tasks keep of one network.

    What the figure shows, in words.
    ```

The words are what readers of the EPUB, of the notebooks and of the Markdown have, and who reads without scripts. In a
browser `book/_static/live/shares.js` takes their place; a page loads the scripts of its own figures alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = Path(__file__).resolve().parent.parent / "book" / "_static" / "live"
FIGURES = sorted(path.stem for path in FOLDER.glob("*.js") if path.stem != "live")


class Live(SphinxDirective):
    """The directive. Its argument names the figure; its content says in words what is shown."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"caption": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in FIGURES:
            raise self.error(f"there is no figure {name!r}; allowed: {', '.join(FIGURES)}")
        if not self.content or not self.options.get("caption"):
            raise self.error(f"the figure {name!r} needs a caption, and words for who cannot move it")
        words = nodes.container(classes=["live-words"])
        self.state.nested_parse(self.content, self.content_offset, words)
        caption, messages = self.state.inline_text(self.options["caption"], self.lineno)
        figure = nodes.figure("", words, nodes.caption("", "", *caption), classes=["live", f"live-{name}"])
        return [figure, *messages]


def figures_of(doctree: nodes.document) -> list[str]:
    """The names of the figures on a page, each once, in order."""
    classes = [figure["classes"] for figure in doctree.findall(nodes.figure) if "live" in figure["classes"]]
    return list(dict.fromkeys(one.removeprefix("live-") for of in classes for one in of if one.startswith("live-")))


def _load(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    names = figures_of(doctree) if doctree is not None and app.builder.name == "html" else []
    if names:
        app.add_css_file("live/live.css")
    for name in ["live", *names] if names else []:
        app.add_js_file(f"live/{name}.js", defer="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("live", Live)
    app.connect("html-page-context", _load)
    return {"parallel_read_safe": True}
