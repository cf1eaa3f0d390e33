"""The playground's arithmetic against minicl's own learners."""

from __future__ import annotations

from typing import Any

import playground_twins as playground
import pytest


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return playground.tool.data()


ONCE_EACH = {method: (method, scenario) for method, scenario in reversed(playground.CASES)}.values()
"""Each method as the page has it at first; tests/browser goes through all cases."""


@pytest.mark.parametrize(("method", "scenario"), ONCE_EACH)
def test_the_arithmetic_is_that_of_minicl(method: str, scenario: str, data: dict[str, Any]) -> None:
    """The same weights, batches and draws give the same losses, in fifty steps of each task."""
    given, expected = playground.reference(method, scenario, data)
    found = playground.in_node(playground.REPLAY, given)
    if found is None:
        pytest.skip("no node here; tests/browser does the same in a browser")
    assert len(found["losses"]) == 2 * playground.STEPS
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)
    for mine, theirs in zip(found["logits"], expected["logits"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
