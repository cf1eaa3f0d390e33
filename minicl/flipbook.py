"""Figures that the reader moves: a drawing per step and a slider, in one piece of HTML, without kernel or network."""

from __future__ import annotations

import base64
import html
import io
import itertools

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from .narrow import draw_narrow, saved

_NUMBERS = itertools.count()

_STYLE = """
.flipbook { margin: 1.5rem 0; }
.flipbook img { width: 100%; height: auto; max-width: var(--flipbook-width); display: block; margin: 0 auto; }
.flipbook img[hidden], .flipbook .flipbook-bar[hidden] { display: none; }
.flipbook .flipbook-bar { display: flex; flex-wrap: wrap; align-items: center; justify-content: center;
  gap: .5rem .8rem; margin: .5rem 0; }
.flipbook input { flex: 1 1 12rem; max-width: 26rem; min-height: 1.5rem; }
.flipbook button { min-width: 5rem; min-height: 2rem; }
.flipbook output { flex: 1 0 100%; text-align: center; font-variant-numeric: tabular-nums; }
.flipbook details { margin-top: .5rem; }
"""

# The slider is the browser's own: arrow keys, Home and End work, and screen readers say where it stands.
_SCRIPT = """
(() => {
  const figure = document.getElementById("NAME");
  const frames = [...figure.querySelectorAll("img")], slider = figure.querySelector("input");
  const output = figure.querySelector("output"), button = figure.querySelector("button");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let timer = null;
  const show = (k) => {
    frames.forEach((frame, i) => { frame.hidden = i !== k; });
    slider.value = k;
    output.textContent = frames[k].dataset.label;
    slider.setAttribute("aria-valuetext", frames[k].dataset.label);
  };
  const rest = () => { button.textContent = still.matches ? "Next" : "Play"; };
  const stop = () => { clearInterval(timer); timer = null; rest(); };
  still.addEventListener("change", stop);
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (still.matches) return show((Number(slider.value) + 1) % frames.length);
    if (Number(slider.value) === frames.length - 1) show(0);
    button.textContent = "Stop";
    timer = setInterval(() => {
      const next = Number(slider.value) + 1;
      if (next < frames.length) show(next);
      if (next >= frames.length - 1) stop();
    }, 800);
  });
  figure.querySelector(".flipbook-bar").hidden = false;
  rest();
  show(OPENS);
})();
"""


class Flipbook:
    """Drawings in a row, of which a slider shows one. The last line of a cell shows it, in a notebook and on the page.

    Nothing moves by itself, and for readers who have asked for less motion the button turns one page at a time.
    Without scripts, and on paper, the last drawing stays, as a still picture; a list says in words what each drawing
    shows. A wide drawing is stored a second time, for narrow screens.

    Args:
        caption: what the figure is about.
        control: what the slider changes, such as "temperature".
        colors: a drawing is stored with so many colours, from 2 to 256.
        opens: the place of the drawing that is shown first, the one that tells most; -1 is the last.
        color_is_data: the drawings hold a colour map or pictures, which a dark page must not turn around.
    """

    def __init__(
        self, caption: str, control: str, colors: int = 64, opens: int = -1, color_is_data: bool = False
    ) -> None:
        self.caption, self.control, self.colors = caption, control, colors
        self.opens, self.color_is_data = opens, color_is_data
        self.frames: list[tuple[bytes, bytes | None, str, str]] = []
        self.width = 0

    def add(self, figure: Figure, label: str, alt: str) -> None:
        """Add a drawing, and close it.

        Args:
            figure: drawn as it is.
            label: where the slider stands, such as "T = 0.5".
            alt: what this drawing shows, in a sentence.

        Raises:
            ValueError: a drawing without words.
        """
        if not label.strip() or not alt.strip():
            raise ValueError(f"a drawing needs a label and an alt text; given {label!r} and {alt!r}")
        narrow = draw_narrow(figure)
        usual = Image.open(io.BytesIO(saved(figure)))
        plt.close(figure)
        self.width = max(self.width, usual.width)
        other = None if narrow is None else self._small(Image.open(io.BytesIO(saved(narrow))))
        self.frames.append((self._small(usual), other, label, alt))

    def _small(self, picture: Image.Image) -> bytes:
        file = io.BytesIO()
        # the whole range is covered, then fitted: by frequency alone, thin lines would lose their colour to white
        few = picture.convert("RGB").quantize(
            self.colors, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
        )
        few.save(file, format="png", optimize=True)
        return file.getvalue()

    def _repr_html_(self) -> str:
        """The figure: pictures, bar and script, as HTML that is XML too, for books to download.

        Raises:
            ValueError: nothing to show, or no drawing at the place that is to be shown first.
        """
        if not self.frames:
            raise ValueError("a flipbook without drawings has nothing to show; add one first")
        name, last = f"flipbook-{next(_NUMBERS)}", len(self.frames) - 1
        if not -len(self.frames) <= self.opens <= last:
            raise ValueError(f"it cannot open at drawing {self.opens}: there are {len(self.frames)} drawings")
        pictures, words = [], []
        kind = ' class="colour-is-data"' if self.color_is_data else ""
        for k, (usual, narrow, label, alt) in enumerate(self.frames):
            said = html.escape(alt), html.escape(label)
            hidden = "" if k == last else ' hidden=""'
            picture = f'<img{kind} src="{_data(usual)}" alt="{said[0]}" data-label="{said[1]}"{hidden}/>'
            if narrow is not None:
                source = f'<source media="(max-width: 600px)" srcset="{_data(narrow)}"/>'
                picture = f"<picture>{source}{picture}</picture>"
            pictures.append(picture)
            words.append(f"<li><strong>{said[1]}</strong>: {said[0]}</li>")
        control, caption = html.escape(self.control), html.escape(self.caption)
        script = _SCRIPT.replace("NAME", name).replace("OPENS", str(self.opens % len(self.frames)))
        return (
            f'<style>{_STYLE}</style><figure class="flipbook" id="{name}" style="--flipbook-width: {self.width}px">'
            f"{''.join(pictures)}"
            f'<div class="flipbook-bar" hidden=""><button type="button" aria-describedby="{name}-caption">Play</button>'
            f'<label for="{name}-slider">{control}</label>'
            f'<input id="{name}-slider" type="range" min="0" max="{last}" step="1" value="{last}"/>'
            '<output aria-live="polite"></output></div>'
            f'<figcaption id="{name}-caption">{caption}</figcaption>'
            f"<details><summary>What each drawing shows, in words</summary><ol>{''.join(words)}</ol></details>"
            f"</figure><script>//<![CDATA[{script}//]]></script>"
        )

    def __repr__(self) -> str:
        return f"Flipbook of {len(self.frames)} drawings: {self.caption}"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
