"""What is done to the book's pages when they are written (tools/pages.py)."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import scripts
import tinycss2
import yaml
from PIL import Image

from minicl.narrow import with_narrow

pages = scripts.load("tools/pages.py")


@pytest.mark.parametrize(
    ("sheet", "kept"),
    [
        (".here{a:b}", True),
        (".gone{a:b}", False),
        ("p{a:b}", True),
        (".here .gone{a:b}", False),
        (".here.here2 > p:hover{a:b}", True),
        ("p:not(.gone){a:b}", True),
        (":is(.gone, .here) p{a:b}", True),
        (":not(:is(.gone, p)) .here{a:b}", True),
        ('a[href$=".pdf"]{a:b}', True),
        ('[data-theme="dark"] .gone{a:b}', False),
        (".bs-tooltip-top{a:b}", True),
        ("@media print{.gone{a:b}}", False),
        ("@media print{.here{a:b}.gone{a:b}}", True),
        ("@font-face{src:url(x.gone)}", True),
        ("@keyframes gone{from{a:b}}", True),
    ],
)
def test_rules_that_no_page_uses_go(sheet: str, kept: bool) -> None:
    used = pages.used_rules(tinycss2.parse_stylesheet(sheet), {"here", "here2"})
    assert ("a:b" in used or "url" in used) is kept


def test_what_is_used_of_a_list_of_selectors_stays() -> None:
    assert pages.used_rules(tinycss2.parse_stylesheet(".a,.b p, .c{x:y}"), {"b", "c"}) == ".b p,.c{x:y}"
    inner = pages.used_rules(tinycss2.parse_stylesheet("@media print{.a{x:y}.b{x:y}}"), {"b"})
    assert inner.replace(" ", "") == "@mediaprint{.b{x:y}}"


def test_markup_is_mended_once() -> None:
    page = (
        '<link href="../_static/styles/pydata-sphinx-theme.css?digest=1" rel="stylesheet"/>'
        '<link href="../_static/mystnb.123.css?v=1"/><link href="../_static/sphinx-thebe.css?v=2"/>'
        '<script src="../_static/scripts/fontawesome.js?digest=1"></script>'
        '<dt class="sig py"><dl><dd>x,</dd></dl></dt><dd>kept</dd>'
        '<pre><span class="k">if</span><span class="w"> </span><span class="n">w</span></pre>'
        '<div role="doc-biblioentry"></div><th class="head"><p></p></th><th>name</th>'
        '<p title="망각">PackNet: <em>마스크</em> (가지 치기), 망각 &amp; more.</p>'
        '<div class="bd-sidebar" id="pst-primary-sidebar"></div><div id="pst-primary-sidebar" class="bd-sidebar"></div>'
    )
    mended = pages.mended(page)
    assert mended == (
        '<link href="../_static/styles/pydata-sphinx-theme.used.css?digest=1" rel="stylesheet"/>'
        '<link href="../_static/mystnb.123.used.css?v=1"/>'
        '<dt class="sig py"><span class="sig-lines"><span class="sig-line">x,</span></span></dt><dd>kept</dd>'
        '<pre><span class="k">if</span> <span class="n">w</span></pre>'
        '<div role="listitem"></div><td class="head"></td><th>name</th>'
        '<p title="망각">PackNet: <em><span lang="ko">마스크</span></em> (<span lang="ko">가지 치기</span>), '
        '<span lang="ko">망각</span> &amp; more.</p>'
        '<div class="bd-sidebar" id="pst-primary-sidebar" role="region" aria-label="The book"></div>'
        '<div id="pst-primary-sidebar" class="bd-sidebar" role="region" aria-label="The book"></div>'
    )
    assert pages.mended(mended) == mended


def test_pictures_lose_bytes_and_no_pixel(tmp_path: Path) -> None:
    folder = tmp_path / "_images"
    folder.mkdir()
    pixels = np.zeros((40, 60, 4), dtype=np.uint8)
    pixels[10:20, 5:50] = (200, 30, 60, 255)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="png", compress_level=0)
    (folder / "a.png").write_bytes(png.getvalue())
    data = base64.b64encode(png.getvalue()).decode()
    text = f'<img src="../_images/a.png"><img src="data:image/png;base64,{data}">src="data:image/png;base64,{{x}}"'
    light = pages.with_light_pictures(text, tmp_path / "book" / "x.html", tmp_path)
    assert light.startswith('<img src="../_images/a.webp"><img src="../_images/')
    assert light.endswith('.webp">src="data:image/png;base64,{x}"')
    files = list(folder.glob("*.webp"))
    assert len(files) == 2
    for file in files:
        assert file.stat().st_size < len(png.getvalue())
        assert np.array_equal(np.asarray(Image.open(file).convert("RGBA")), pixels)
    assert pages.with_light_pictures(light, tmp_path / "book" / "x.html", tmp_path) == light


def test_a_picture_that_carries_another_offers_both(tmp_path: Path) -> None:
    folder = tmp_path / "_images"
    folder.mkdir()
    wide, other = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (60, 20), "red").save(wide, format="png", compress_level=0)
    Image.new("RGB", (30, 40), "blue").save(other, format="png", compress_level=0)
    (folder / "a.png").write_bytes(with_narrow(wide.getvalue(), other.getvalue()))
    (folder / "b.png").write_bytes(wide.getvalue())
    text = '<img alt="red" src="../_images/a.png" /> <img alt="b" src="../_images/b.png" />'
    light = pages.with_light_pictures(text, tmp_path / "book" / "x.html", tmp_path)
    assert light == (
        '<picture><source media="(max-width: 600px)" srcset="../_images/a-narrow.webp"/>'
        '<img alt="red" src="../_images/a.webp" /></picture> <img alt="b" src="../_images/b.webp" />'
    )
    with Image.open(folder / "a-narrow.webp") as narrow:
        assert narrow.size == (30, 40)
    assert pages.with_light_pictures(light, tmp_path / "book" / "x.html", tmp_path) == light


def test_a_picture_that_webp_makes_no_smaller_is_a_file_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    png = io.BytesIO()
    Image.new("P", (1, 1)).save(png, format="png", optimize=True)
    data = base64.b64encode(png.getvalue()).decode()
    text = f'<source srcset="data:image/png;base64,{data}"/>'
    light = pages.with_light_pictures(text, tmp_path / "book" / "x.html", tmp_path)
    (file,) = (tmp_path / "_images").iterdir()
    assert light == f'<source srcset="../_images/{file.name}"/>'


def test_the_book_for_offline_reading_has_a_name() -> None:
    """Sphinx would call it "Project name not set", and a reader's shelf shows nothing else."""
    config = yaml.safe_load((scripts.ROOT / "_config.yml").read_text(encoding="utf-8"))
    epub = config["sphinx"]["config"]
    assert epub["epub_title"] == config["title"]
    assert epub["epub_identifier"] not in ("", "unknown")
    assert re.fullmatch(r"[A-Za-z_][\w.-]*", epub["epub_uid"]), "an XML name"
    assert epub["epub_description"] != "unknown"
