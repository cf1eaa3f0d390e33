"""Sphinx extension: the book as an EPUB. Its equations become MathML, since a reading device runs no MathJax."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        number = f"({node['number']})"
        self.body.append(f'<span class="eqno">{number}</span>')
    self.body.append(convert(node.astext(), display="block"))
    self.body.append("</div>")
    raise nodes.SkipNode


def _choose(app: Sphinx) -> None:
    if app.builder.name == "epub":
        app.config.html_math_renderer = "mathml"
        app.config.html_static_path = [path for path in app.config.html_static_path if "mathjax" not in str(path)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_display, None))
    app.connect("builder-inited", _choose, priority=900)  # after MathJax was added
    return {"parallel_read_safe": True}
