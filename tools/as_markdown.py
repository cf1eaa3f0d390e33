"""A page of the book as Markdown: what Sphinx has resolved (numbers, equations, citations, links), written out again.

Used for the files `.md` beside the pages, which `llms.txt` lists, and for the notebooks of the student's edition
(tools/edition.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bs4 import BeautifulSoup
from docutils import nodes

Locate = Callable[[nodes.Element], str | None]
"""Where a reference leads to, or a picture lies. None: a reference is its text alone, a picture is left out."""

SILENT = (nodes.comment, nodes.substitution_definition, nodes.target, nodes.pending, nodes.raw, nodes.meta)
SILENT_NAMES = {"toctree", "index", "highlightlang", "tabular_col_spec"}
LANGUAGES = {"ipython3": "python", "ipython": "python", "default": "", "none": "", "myst-ansi": "text"}
MARKS = {nodes.emphasis: "*", nodes.strong: "**"}


@dataclass(frozen=True)
class Block:
    """A piece of a page in Markdown. `title` is that of a box, such as "Exercise 1 (recall): four steps"."""

    text: str
    title: str = ""
    heading: bool = False


@dataclass(frozen=True)
class Cell:
    """A code cell of a page: its place among the cells of the notebook, and what Sphinx made of it."""

    index: int
    node: nodes.Element


def escape(text: str, table: bool = False) -> str:
    """Characters that Markdown would read as marks, told apart from them."""
    text = re.sub(r"([\\`*$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it stands for itself
    text = re.sub(r"<(?=[a-zA-Z/!])", r"\\<", text)
    text = text.replace("](", "]\\(")
    return text.replace("|", "\\|") if table else text


def code(text: str, table: bool = False) -> str:
    """Text as inline code, whatever quotes it holds."""
    text = text.replace("|", "\\|") if table else text
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    marks = "`" * (longest + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{marks}{room}{text}{room}{marks}"


def formula(text: str, table: bool = False) -> str:
    """A formula on one line; in a table without the bar, which would end the cell."""
    text = " ".join(text.split())
    return text.replace(r"\|", r"\Vert ").replace("|", r"\vert ").strip() if table else text


def lifted(text: str, first: str, rest: str) -> str:
    """A text with one mark before its first line and another before the others, such as those of a list."""
    head, *tail = text.split("\n")
    return "\n".join([first + head, *((rest + line) if line else rest.rstrip() for line in tail)])


def quotation(text: str) -> str:
    return lifted(text, "> ", "> ")


def signature(node: nodes.Node) -> str:
    """The line of an entry of the API, such as `minicl.run(learner, stream, *, epochs=10) -> Result`."""
    if isinstance(node, nodes.Text):
        return str(node)
    name = type(node).__name__
    inner = [signature(child) for child in node.children]
    if name in ("desc_parameterlist", "desc_type_parameter_list"):
        return f"({', '.join(inner)})"
    if name == "desc_returns":
        return f" -> {''.join(inner)}"
    if name == "only" or "viewcode-link" in getattr(node, "attributes", {}).get("classes", ()):
        return ""
    text = "".join(inner)
    return "" if text == "[source]" else " ".join(text.split()) if name == "desc_signature" else text


def of_html(text: str, tools: bool) -> str:
    """What a piece of HTML says: a table as a table, a figure that moves or a drawing in its own words.

    Anything else is something to be used in the page; with `tools` its paragraphs are given, without nothing.
    """
    soup = BeautifulSoup(text, "html.parser")
    if table := soup.find("table"):
        rows = [
            [escape(" ".join(cell.get_text().split()), table=True) for cell in row.find_all(["td", "th"])]
            for row in table.find_all("tr")
        ]
        if not table.find("thead"):
            rows.insert(0, [""] * len(rows[0]))
        return grid(rows)
    if (moving := soup.find("figure", class_="flipbook")) and (caption := moving.find("figcaption")):
        frames = [" ".join(item.get_text().split()) for item in moving.find_all("li")]
        return "\n".join([f"*{escape(caption.get_text().strip())}*", "", *(f"- {escape(frame)}" for frame in frames)])
    if drawing := soup.find("svg"):
        words = [" ".join(part.get_text().split()) for name in ("title", "desc") if (part := drawing.find(name))]
        if words:
            return f"*Picture: {escape(' '.join(words))}*"
    paragraphs = soup.select("p, h1, h2, h3, h4, pre") if tools else []
    return "\n\n".join(escape(" ".join(part.get_text().split())) for part in paragraphs)


def grid(rows: list[list[str]]) -> str:
    """A table; the first row is its head."""
    width = max(len(row) for row in rows)
    lines = [f"| {' | '.join([*row, *[''] * (width - len(row))])} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * width, *lines[1:]])


class Page:
    """The pieces of a resolved document, in order.

    Args:
        link: where a reference leads to.
        picture: where an image lies.
        number: of a figure or table, such as "Fig. 3", or of an equation, such as "3"; None without one.
        tools: whether to say what stands in pieces of HTML that are to be used in a browser.

    In a quotation a formula stands on one line: JupyterLab takes formulas out before it knows what is quoted.
    """

    def __init__(self, link: Locate, picture: Locate, number: Locate, tools: bool = False) -> None:
        self.link, self.picture, self.number, self.tools = link, picture, number, tools
        self.depth = 0  # of sections
        self.quoted = 0

    # Within a line

    def line(self, node: nodes.Node, table: bool = False) -> str:
        """A node and what it holds, as one line."""
        if isinstance(node, nodes.Text):
            return escape(re.sub(r"\s*\n\s*", " ", str(node)), table)
        assert isinstance(node, nodes.Element)
        if isinstance(node, nodes.raw) and node.get("format") == "html" and node.astext().startswith("<br"):
            return "<br>"
        if isinstance(node, SILENT) or type(node).__name__ in SILENT_NAMES:
            return ""
        if isinstance(node, nodes.image):
            return self._picture(node)
        if isinstance(node, nodes.math | nodes.math_block):
            marks = "$" if isinstance(node, nodes.math) else "$$"
            return f"{marks}{formula(node.astext(), table)}{marks}"
        if isinstance(node, nodes.literal):
            return code(node.astext(), table)
        if isinstance(node, nodes.literal_block):
            return "<br>".join(code(line, table) for line in node.astext().splitlines())
        inner = "".join(self.line(child, table) for child in node.children)
        if isinstance(node, nodes.reference):
            target = self.link(node)
            return f"[{inner}]({target})" if target and inner.strip() and not inner.startswith("!") else inner
        if (mark := MARKS.get(type(node))) and inner.strip():
            lead, trail = inner[: len(inner) - len(inner.lstrip())], inner[len(inner.rstrip()) :]
            return f"{lead}{mark}{inner.strip()}{mark}{trail}"
        if isinstance(node, nodes.superscript | nodes.subscript):
            tag = "sup" if isinstance(node, nodes.superscript) else "sub"
            return f"<{tag}>{inner}</{tag}>"
        return inner

    def _picture(self, node: nodes.Element) -> str:
        place = self.picture(node)
        words = " ".join(str(node.get("alt", "")).split())
        return f"![{words}]({place})" if place else ""

    # Blocks

    def pieces(self, node: nodes.Element) -> Iterator[Block | Cell]:
        """Everything below a node, in order."""
        for child in node.children:
            if isinstance(child, nodes.Element):
                yield from self._piece(child)

    def text(self, node: nodes.Element) -> str:
        """Everything below a node, as one Markdown text. Code cells within it are written out."""
        return "\n\n".join(
            piece.text if isinstance(piece, Block) else self.cell(piece) for piece in self.pieces(node)
        ).strip("\n")

    def cell(self, cell: Cell) -> str:
        """A code cell with its outputs, as text."""
        parts = [self.text(part) for part in cell.node.children if isinstance(part, nodes.Element)]
        return "\n\n".join(part for part in parts if part)

    def _piece(self, node: nodes.Element) -> Iterator[Block | Cell]:
        name = type(node).__name__
        if isinstance(node, nodes.section):
            self.depth += 1
            yield from self.pieces(node)
            self.depth -= 1
        elif isinstance(node, nodes.title):
            yield Block(f"{'#' * min(self.depth, 6)} {self.line(node)}", heading=True)
        elif node.get("nb_element") == "cell_code":
            yield Cell(node["cell_index"], node)
        elif name == "desc":
            yield from self._description(node)
        elif isinstance(node, nodes.Admonition) or name == "admonition":
            yield self._box(node)
        elif name == "dropdown_main" or node.get("design_component") == "dropdown":
            yield Block(self._fold(node))
        elif "sd-card-title" in node.get("classes", ()):
            yield Block(f"**{self.line(node).strip()}**")
        elif text := self._block(node):
            yield Block(text)
        elif not self._is_leaf(node):
            yield from self.pieces(node)

    @staticmethod
    def _is_leaf(node: nodes.Element) -> bool:
        return isinstance(node, (*SILENT, nodes.TextElement)) or type(node).__name__ in SILENT_NAMES

    def _block(self, node: nodes.Element) -> str:
        """The Markdown of a node that is one block; "" of what only holds others."""
        name = type(node).__name__
        if isinstance(node, nodes.raw) and node.get("format") == "html":
            return of_html(node.astext(), self.tools)
        if isinstance(node, SILENT) or name in SILENT_NAMES:
            return ""
        if isinstance(node, nodes.literal_block | nodes.doctest_block):
            return self._fenced(node)
        if isinstance(node, nodes.math_block):
            return self._formula(node)
        if isinstance(node, nodes.rubric):
            return f"**{self.line(node).strip()}**"
        if isinstance(node, nodes.bullet_list | nodes.enumerated_list):
            return self._list(node)
        if isinstance(node, nodes.definition_list | nodes.field_list | nodes.option_list):
            return self._definitions(node)
        if isinstance(node, nodes.block_quote):
            return quotation(self.text(node))
        if isinstance(node, nodes.table):
            return self._table(node)
        if isinstance(node, nodes.figure):
            return self._figure(node)
        if isinstance(node, nodes.image):
            return self._picture(node)
        if isinstance(node, nodes.transition):
            return "---"
        if isinstance(node, nodes.citation | nodes.footnote):
            return self._citation(node)
        if isinstance(node, nodes.line_block):
            return "\\\n".join(self.line(child) for child in node.children)
        if isinstance(node, nodes.TextElement):
            text = self.line(node).strip()
            return re.sub(r"^(#+|[-+>]|\d+[.)])(?=\s)", r"\\\1", text)
        return ""

    def _fenced(self, node: nodes.Element) -> str:
        text = node.astext().rstrip("\n")
        language = str(node.get("language", "python" if isinstance(node, nodes.doctest_block) else ""))
        marks = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
        return f"{marks}{LANGUAGES.get(language, language)}\n{text}\n{marks}"

    def _formula(self, node: nodes.Element) -> str:
        text = node.astext().strip()
        number = self.number(node)
        if r"\\" in text and r"\begin" not in text:  # Sphinx does this where it writes the page
            text = rf"\begin{{split}}{text}\end{{split}}"
        if number:
            text = rf"{text} \tag{{{number}}}"
        return f"$$ {formula(text)} $$" if self.quoted else f"$$\n{text}\n$$"

    def _list(self, node: nodes.Element) -> str:
        loose = any(len([c for c in item.children if not isinstance(c, SILENT)]) > 1 for item in node.children)
        items = []
        for number, item in enumerate(node.children, start=int(node.get("start", 1))):
            mark = f"{number}. " if isinstance(node, nodes.enumerated_list) else "- "
            assert isinstance(item, nodes.Element)
            items.append(lifted(self.text(item), mark, " " * len(mark)))
        return ("\n\n" if loose else "\n").join(items)

    def _definitions(self, node: nodes.Element) -> str:
        items = []
        for item in node.children:
            assert isinstance(item, nodes.Element)
            terms = [self.line(c).strip() for c in item.children if not _is_body(c)]
            bodies = [self.text(c) for c in item.children if isinstance(c, nodes.Element) and _is_body(c)]
            body = "\n\n".join(bodies)
            term = f"**{', '.join(terms)}**"
            joined = f"{term}: {body}" if body and not body.startswith(("- ", "`", "|", "$$")) else f"{term}\n\n{body}"
            items.append(lifted(joined.rstrip(), "- ", "  "))
        return "\n".join(items)

    def _table(self, node: nodes.Element) -> str:
        rows = [
            [self._entry(entry) for entry in row.children if isinstance(entry, nodes.Element)]
            for row in node.findall(nodes.row)
        ]
        if not any(True for _ in node.findall(nodes.thead)):
            rows.insert(0, [""])
        captions = [self._numbered(node, self.line(c)) for c in node.children if isinstance(c, nodes.title)]
        return "\n\n".join([*captions, grid(rows)])

    def _entry(self, entry: nodes.Element) -> str:
        parts = [self.line(child, table=True).strip() for child in entry.children]
        return "<br>".join(part for part in parts if part)

    def _figure(self, node: nodes.Element) -> str:
        parts = [
            self._numbered(node, self.line(child)) if isinstance(child, nodes.caption) else self._any(child)
            for child in node.children
        ]
        return "\n\n".join(part for part in parts if part)

    def _any(self, node: nodes.Node) -> str:
        if not isinstance(node, nodes.Element):
            return self.line(node)
        return self._block(node) or ("" if self._is_leaf(node) else self.text(node))

    def _numbered(self, node: nodes.Element, caption: str) -> str:
        number = self.number(node)
        return f"**{number}.** {caption.strip()}" if number else f"*{caption.strip()}*"

    def caption(self, cell: Cell) -> str:
        """The caption of a cell's figure, with the number that it has in the book; "" without one."""
        for figure in cell.node.findall(nodes.figure):
            for caption in figure.findall(nodes.caption):
                return self._numbered(figure, self.line(caption))
        return ""

    def _citation(self, node: nodes.Element) -> str:
        label, *rest = node.children
        holder = nodes.container("", *(child.deepcopy() for child in rest))
        return lifted(self.text(holder), f"- [{label.astext()}] ", "  ")

    def _box(self, node: nodes.Element) -> Block:
        name = type(node).__name__
        titles = [child for child in node.children if isinstance(child, nodes.title)]
        title = self.line(titles[0]).strip() if titles else name.capitalize()
        self.quoted += 1
        parts = [
            piece.text if isinstance(piece, Block) else self.cell(piece)
            for child in node.children
            if isinstance(child, nodes.Element) and child not in titles
            for piece in self._piece(child)
        ]
        self.quoted -= 1
        return Block(quotation("\n\n".join([f"**{title}**", *parts])), title=title)

    def _fold(self, node: nodes.Element) -> str:
        """What is folded: the title is the one thing that shows."""
        title, *rest = [child for child in node.children if isinstance(child, nodes.Element)]
        named = type(title).__name__ == "dropdown_title" or isinstance(title, nodes.rubric)
        words = self.line(title).strip() if named else "More"
        self.quoted += 1
        parts = [
            piece.text if isinstance(piece, Block) else self.cell(piece)
            for child in (rest if named else [title, *rest])
            for piece in self._piece(child)
        ]
        self.quoted -= 1
        return "\n\n".join([f"<details>\n<summary>{words}</summary>", *parts, "</details>"])

    def _description(self, node: nodes.Element) -> Iterator[Block]:
        """An entry of the API: its signature, then its words."""
        for child in node.children:
            if not isinstance(child, nodes.Element):
                continue
            if type(child).__name__ == "desc_signature":
                yield Block(f"{'#' * min(self.depth + 1, 6)} {code(signature(child))}", heading=True)
            else:
                self.depth += 1
                for piece in self.pieces(child):
                    yield piece if isinstance(piece, Block) else Block(self.cell(piece))
                self.depth -= 1


def _is_body(node: nodes.Node) -> bool:
    return isinstance(node, nodes.definition | nodes.field_body | nodes.description)
