"""The page to have at hand prints on one sheet of A4."""

from __future__ import annotations

import re

from playwright.sync_api import Browser


def test_the_page_to_have_at_hand_prints_on_one_sheet(browser: Browser, site: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}book/cheat_sheet.html")
    page.wait_for_selector("mjx-container")
    page.wait_for_timeout(1000)
    printed = page.pdf(format="A4", margin=dict.fromkeys(("top", "right", "bottom", "left"), "9mm"))
    page.close()
    assert len(re.findall(rb"/Type /Page\b", printed)) == 1
