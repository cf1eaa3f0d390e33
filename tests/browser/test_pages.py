"""Every page of the book, at desktop and at phone width, without a network."""

from __future__ import annotations

import itertools
from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from browser.reader import PAGES, Visit, targets

MEGABYTES = 2.0
SECONDS = 2.0


def test_nothing_goes_wrong_and_no_request_leaves(opened: Visit) -> None:
    assert opened.complaints == []
    assert opened.outside == []


def test_page_is_light_and_soon_ready(opened: Visit, record_property: Any) -> None:
    size = opened.page.evaluate(
        """() => ["navigation", "resource"].flatMap(kind => performance.getEntriesByType(kind))
                    .reduce((sum, entry) => sum + entry.encodedBodySize, 0)"""
    )
    if not opened.phone:
        record_property("page", opened.name)
        record_property("megabytes", size / 1e6)
        record_property("seconds", opened.seconds)
    assert 0 < size / 1e6 < MEGABYTES
    assert opened.seconds < 10 * SECONDS  # a busy machine is slow: what was measured stands in the summary


def test_every_equation_is_set(opened: Visit) -> None:
    found = opened.page.evaluate(
        r"""() => {
            const raw = [], article = document.querySelector("article");
            const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const text = walker.currentNode;
                if (text.parentElement.closest("pre, code, script, style, mjx-container")) continue;
                if (/\\[([]|\$\$|\\(frac|sum|begin|mathrm|theta|odot|text)\b/.test(text.data)) raw.push(text.data);
            }
            return {
                raw,
                unset: [...document.querySelectorAll(".math")].filter(e => !e.querySelector("mjx-container"))
                    .map(e => e.textContent),
                errors: [...document.querySelectorAll("mjx-merror, [data-mjx-error]")].map(e => e.textContent),
                silent: [...document.querySelectorAll("mjx-container")]
                    .filter(e => !e.querySelector("mjx-assistive-mml math")).length,
            };
        }"""
    )
    assert found == {"raw": [], "unset": [], "errors": [], "silent": 0}


def test_every_image_is_there_and_says_what_it_shows(opened: Visit) -> None:
    broken = opened.page.evaluate(
        """async () => {
            const images = [...document.images], broken = [];
            for (const image of images) {
                image.loading = "eager";
                try { await image.decode(); } catch { broken.push("cannot be decoded: " + image.src.slice(0, 200)); }
                if (!image.naturalWidth) broken.push("empty: " + image.src.slice(0, 200));
                if (image.alt.trim().split(/\\s+/).length < 2 && image.closest("article"))
                    broken.push("without words: " + image.src.slice(0, 200));
            }
            return broken;
        }"""
    )
    assert broken == []


ARRIVE = """anchor => {
    for (const fold of document.querySelectorAll("details")) fold.open = false;
    location.hash = anchor;
    const there = document.querySelector(":target"), box = there?.getBoundingClientRect();
    return there?.id === anchor && there.checkVisibility({ visibilityProperty: true }) && box.width * box.height > 0;
}"""


def test_links_between_equations_and_code_arrive(opened: Visit) -> None:
    """Each target is on its page and is seen there, even from a page whose folds are closed."""
    page = opened.page
    anchors = sorted(anchor for name, anchor in targets() if name == opened.name)
    folds = "() => [...document.querySelectorAll('details')].map(fold => fold.open)"
    were = page.evaluate(folds)
    assert [anchor for anchor in anchors if not page.evaluate(ARRIVE, anchor)] == []
    page.evaluate("were => document.querySelectorAll('details').forEach((fold, i) => { fold.open = were[i]; })", were)
    assert page.evaluate(folds) == were


def test_next_and_previous_lead_through_the_book(opened: Visit) -> None:
    place = PAGES.index(opened.name)
    for link, pages in (("left-prev", PAGES[:place][-1:]), ("right-next", PAGES[place + 1 :][:1])):
        found = opened.page.locator(f"a.{link}")
        addresses = found.evaluate_all("links => links.map(link => link.origin + link.pathname)")
        assert addresses == [opened.page.url.split("/book/")[0] + f"/{name}.html" for name in pages]
        if pages:
            found.click(trial=True)  # it can be seen, and nothing lies over it


def unfold(here: Visit) -> None:
    here.page.evaluate(
        """() => {
            for (const details of document.querySelectorAll("details")) details.open = true;
            for (const button of document.querySelectorAll("button.toggle-button-hidden")) button.click();
        }"""
    )


STATE = "summary => [summary.parentElement.open, summary.parentElement.getBoundingClientRect().height]"
"""Whether a fold is open, and how high it is."""

GO_THERE = f"""summary => {{
    const box = summary.getBoundingClientRect();
    if (!summary.checkVisibility({{ visibilityProperty: true }}) || !box.width || !box.height) return null;
    summary.focus();
    return ({STATE})(summary);
}}"""
"""The same, with the keyboard on it; null inside one that is still closed: its turn comes."""


def test_what_is_folded_unfolds(opened: Visit) -> None:
    """Hints, solutions and hidden cells, by the keyboard alone."""
    page = opened.page
    for summary in page.query_selector_all("article details > summary"):
        before = summary.evaluate(GO_THERE)
        if before is None:
            continue
        page.keyboard.press("Enter")
        after = summary.evaluate(STATE)
        (was, _), (is_open, _) = before, after
        assert is_open != was
        (_, closed), (_, unfolded) = sorted((before, after))
        assert unfolded > closed + 1, f"nothing in it: {summary.inner_text()}"
        if was:
            page.keyboard.press("Enter")
            assert summary.evaluate(STATE)[0]
    for button in page.locator("article button.toggle-button").all():
        box = button.locator("xpath=ancestor::*[contains(@class, 'toggle')][1]")
        if button.is_visible() and box.evaluate("e => e.classList.contains('toggle-hidden')"):
            button.focus()
            page.keyboard.press("Enter")
            assert not box.evaluate("e => e.classList.contains('toggle-hidden')")
    assert page.locator("article .toggle-hidden:visible").count() == 0


def test_nothing_is_wider_than_the_screen(opened: Visit) -> None:
    unfold(opened)
    wide = opened.page.evaluate(
        """() => [document.documentElement, document.body, document.querySelector("article")]
                    .filter(e => e.scrollWidth > e.clientWidth + 1)
                    .map(e => `${e.tagName}: ${e.scrollWidth} > ${e.clientWidth}; ` +
                        [...e.querySelectorAll("*")]
                            .filter(c => c.getBoundingClientRect().right > e.getBoundingClientRect().right + 1)
                            .slice(0, 5).map(c => c.outerHTML.slice(0, 120)).join(" | "))"""
    )
    assert wide == []


def test_words_in_figures_keep_a_size_that_can_be_read(opened: Visit) -> None:
    """At half of its size a figure can still be read. Figures wider than a phone scroll in their own box."""
    found = opened.page.evaluate(
        """async () => {
            const small = [];
            for (const image of document.querySelectorAll("article div.cell_output figure > img:not([hidden])")) {
                image.loading = "eager";
                await image.decode();
                const box = image.closest("figure");
                if (image.checkVisibility() && image.clientWidth < 0.5 * image.naturalWidth) small.push(image.alt);
                if (box.scrollWidth > box.clientWidth + 1 && box.tabIndex !== 0) small.push(`no stop: ${image.alt}`);
            }
            return small;
        }"""
    )
    assert found == []


def test_code_never_scrolls_sideways_on_a_desktop(opened: Visit) -> None:
    if opened.phone:
        return
    page, found = opened.page, {}
    unfold(opened)
    usual = page.viewport_size
    assert usual
    try:
        for width in (1024, 1200, 1280, usual["width"], 1440, 1920):  # at 1200 the side bars come, and leave least room
            page.set_viewport_size({"width": width, "height": usual["height"]})
            found[width] = page.evaluate(
                """() => [...document.querySelectorAll("article pre")].filter(e => e.scrollWidth > e.clientWidth + 1)
                            .map(e => e.textContent.slice(0, 200))"""
            )
    finally:
        page.set_viewport_size(usual)
    assert not any(found.values()), found


def test_language_and_headings(opened: Visit) -> None:
    page = opened.page
    assert page.evaluate("document.documentElement.lang") == "en"
    levels = page.evaluate(
        """() => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter(e => e.checkVisibility())
                    .map(e => [Number(e.tagName[1]), e.textContent])"""
    )
    assert [level for level, _ in levels].count(1) == 1
    assert levels[0][0] == 1
    for (above, _), (level, text) in itertools.pairwise(levels):
        assert level <= above + 1, f"the heading {text!r} skips a level"


# Figures that the reader moves

MOVING = {f"book/{name}" for name in ("hat", "packnet", "pnn", "why_networks_forget")}


def test_moving_figures_move(opened: Visit) -> None:
    """By keyboard: each step shows another drawing and says so, and one drawing at a time."""
    page = opened.page
    state = """e => ({
        shown: [...e.querySelectorAll("img")].flatMap((img, i) => img.checkVisibility() ? [i] : []),
        said: e.querySelector("output").textContent,
        heard: e.querySelector("input").getAttribute("aria-valuetext"),
    })"""
    figures = page.locator("figure.flipbook").all()
    assert figures or opened.name not in MOVING
    for figure in figures:
        slider = figure.locator("input[type=range]")
        count = figure.locator("img").count()
        assert count > 2
        slider.focus()
        page.keyboard.press("Home")
        seen = [figure.evaluate(state)]
        for _ in range(count - 1):
            page.keyboard.press("ArrowRight")
            seen.append(figure.evaluate(state))
        assert [one["shown"] for one in seen] == [[i] for i in range(count)]
        assert len({one["said"] for one in seen}) == count
        assert all(one["said"] == one["heard"] for one in seen)
        sources = figure.locator("img").evaluate_all("images => images.map(image => image.src)")
        assert len(set(sources)) > count / 2, "the drawings differ"
        page.keyboard.press("Home")
        assert figure.evaluate(state) == seen[0]
        figure.locator("summary").focus()
        assert figure.locator("details li").count() == count, "each drawing is described in words"


def test_the_button_plays_and_turns_single_pages_where_less_motion_is_asked_for(fresh: Any) -> None:
    page = fresh("book/hat").page  # opened as for a reader who has asked for less motion
    figure = page.locator("figure.flipbook").first
    button, said = figure.locator("button"), figure.locator("output")
    figure.locator("input").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Shift+Tab")
    assert button.evaluate("e => e === document.activeElement")
    seen = [said.inner_text()]
    assert button.inner_text() == "Next"
    for key in ("Enter", "Space"):
        page.keyboard.press(key)
        seen.append(said.inner_text())
        page.wait_for_timeout(1000)
        assert said.inner_text() == seen[-1], "nothing moves by itself"
    assert len(set(seen)) == 3
    page.emulate_media(reduced_motion="no-preference")
    page.wait_for_function("e => e.textContent === 'Play'", arg=button.element_handle())
    page.keyboard.press("Enter")
    assert button.inner_text() == "Stop"
    page.wait_for_function("([e, was]) => e.textContent !== was", arg=[said.element_handle(), seen[-1]])
    page.keyboard.press("Enter")
    assert button.inner_text() == "Play"


# axe-core. Nearly all of its time goes into the contrast of thousands of words that look the same. Contrast depends on
# the colours, on size and weight, and on how much shines through; of the words that agree in these, in light and in
# dark, one is left to be measured, and the text of the others is taken away.
THIN = """async () => {
    const look = word => {
        const own = getComputedStyle(word), seen = [own.color, own.fontSize, own.fontWeight];
        for (let e = word; e; e = e.parentElement) {
            const style = getComputedStyle(e);
            if (style.opacity !== "1") seen.push(style.opacity);
            if (style.backgroundImage !== "none") seen.push(style.backgroundImage);
            if (style.backgroundColor !== "rgba(0, 0, 0, 0)") {
                seen.push(style.backgroundColor);
                if (!/rgba/.test(style.backgroundColor)) break;
            }
        }
        return seen.join();
    };
    const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode;
        if (text.data.trim() && !text.parentElement.closest("script, style, mjx-container")) texts.push(text);
    }
    const root = document.documentElement.dataset, theme = root.theme;
    const looks = texts.map(() => "");
    for (root.theme of ["light", "dark"]) texts.forEach((text, i) => { looks[i] += look(text.parentElement); });
    root.theme = theme;
    const seen = new Set(), visible = texts.map(text => text.parentElement.checkVisibility());
    texts.forEach((text, i) => {
        if (!visible[i]) return;
        if (seen.has(looks[i])) text.data = "";
        seen.add(looks[i]);
    });
    return seen.size;
}"""


# Only where something can be read there is a contrast, as axe itself finds after a longer search.
CONTRAST = """() => {
    const read = [...document.querySelectorAll("body, body *")].filter(e => e.matches("input, select, textarea")
        || [...e.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.data.trim()));
    return axe.run({ include: read }, { runOnly: ["color-contrast"], resultTypes: ["violations"] });
}"""

# Two thirds of a chapter's elements are the coloured words of its code, of which only contrast can be wrong. For the
# other rules code is plain text and links, as long as nothing else is said of its words.
PLAIN = """() => {
    for (const code of document.querySelectorAll(".highlight pre")) {
        const plain = code.cloneNode(true), words = [...plain.querySelectorAll("span")];
        if (words.some(word => [...word.attributes].some(one => one.name !== "class"))) continue;
        words.forEach(word => word.replaceWith(...word.childNodes));
        plain.normalize();
        plain.coloured = code;
        code.replaceWith(plain);
    }
}"""
COLOURED = """() => {
    for (const code of document.querySelectorAll(".highlight pre")) if (code.coloured) code.replaceWith(code.coloured);
}"""

# A link in a sentence is told by its underline or weight, or by its colour. The first is quick to see: colours are left
# to the links that it does not tell, one for each pair of colours. Style sheets are asked for by no rule that is on.
ALL_BUT_CONTRAST = """async () => {
    const link = "link-in-text-block", options = { resultTypes: ["violations"], elementRef: true };
    const found = await axe.run({
        ...options, preload: { assets: ["media"] },
        rules: { "color-contrast": { enabled: false } }, checks: { [link]: { enabled: false } },
    });
    const untold = found.violations.filter(one => one.id === link).flatMap(one => one.nodes.map(node => node.element));
    const looks = new Map(untold.map(e => [[e, e.parentElement].map(one => getComputedStyle(one).color).join(), e]));
    const violations = found.violations.filter(one => one.id !== link);
    const include = [...looks.values()];
    if (include.length) violations.push(...(await axe.run({ include }, { ...options, runOnly: [link] })).violations);
    for (const node of violations.flatMap(one => one.nodes)) delete node.element;
    return { passes: found.passes.map(one => one.id), violations };
}"""


def test_bold_numbers_are_those_that_a_table_calls_the_best(opened: Visit) -> None:
    bold = opened.page.evaluate(
        """() => [...document.querySelectorAll("article .pasted-text")]
            .filter(e => getComputedStyle(e).fontWeight >= 600 && !e.closest("strong, th, b, h1, h2, h3, h4, dt"))
            .map(e => e.textContent)"""
    )
    assert bold == []


def axe(here: Visit, run: str) -> list[str]:
    result = here.page.evaluate(run)
    assert result["passes"], "nothing was checked"
    return [
        f"{violation['impact']}: {violation['help']} ({violation['id']}): {node['html'][:160]} {node['any'][:1]}"
        for violation in result["violations"]
        if violation["impact"] != "minor"
        for node in violation["nodes"][:5]
    ]


def test_axe_finds_nothing_that_matters(opened: Visit) -> None:
    unfold(opened)
    opened.page.evaluate(AXE_SCRIPT)
    opened.page.evaluate(PLAIN)
    found = axe(opened, ALL_BUT_CONTRAST)
    opened.page.evaluate(COLOURED)
    if not opened.phone:
        assert opened.page.evaluate(THIN) > 5
        for theme in ("light", "dark"):
            opened.page.emulate_media(color_scheme=theme)
            opened.page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
            found += [f"{theme}: {one}" for one in axe(opened, CONTRAST)]
    assert found == []
