"""The exercises of the chapter "Why networks forget"."""

from __future__ import annotations

from typing import Any

from . import exercise, is_number


@exercise("forgetting-1")
def lost(answer: Any) -> str:
    """Accuracy on task 1 was 0.98 when learned and is 0.71 in the end: how much was forgotten? A number."""
    is_number(
        answer,
        0.98 - 0.71,
        mistakes={
            "what is left": (0.71, "That is what is still known in the end. How much of it was there before?"),
            "relative loss": (
                (0.98 - 0.71) / 0.98,
                "You divided by what was known. The book counts forgetting in accuracy itself, without dividing.",
            ),
        },
    )
    return "Points of accuracy, not a fraction of what was known."
