"""The exercises of the page "The map"."""

from __future__ import annotations

from typing import Any

from . import Hint, exercise, is_number, texts

FAMILIES = {"a": "regularisation", "b": "isolation", "c": "replay", "d": "growth"}

WHY_NOT = {
    ("a", "replay"): "What does replay keep, and may it be kept in plan a?",
    ("a", "isolation"): "Is the task told in plan a, when an answer is needed?",
    ("a", "growth"): "In plan a the network may not become larger.",
    ("b", "regularisation"): "Springs give way. Plan b asks for an old task that stays exactly as it was.",
    (
        "b",
        "replay",
    ): "Replay forgets less, and still forgets. Plan b asks for an old task that stays as it was.",
    ("b", "growth"): "In plan b the network may not become larger.",
    ("c", "regularisation"): "In plan c pictures may be kept. What is stronger than springs, where no task is told?",
    ("c", "isolation"): "Is the task told in plan c, when an answer is needed?",
    ("c", "growth"): "In plan c the network may not become larger.",
    ("d", "regularisation"): "In plan d there is room for something new. Which family uses it?",
    ("d", "replay"): "In plan d nothing may be kept of the old pictures.",
    ("d", "isolation"): "Isolation shares a network of fixed size. In plan d there is room for something new.",
}


@exercise("the_map-1")
def families(answer: Any) -> str:
    """Which family suits each plan? A dictionary from the letters "a" to "d" to the names of the four families."""
    given = texts(answer, FAMILIES, "a family for each of the letters a, b, c and d", "The family of plan {}")
    for letter, right in FAMILIES.items():
        if given[letter] != right:
            words = f"Not {given[letter]} for plan {letter}. {WHY_NOT[letter, given[letter]]}"
            raise Hint(words, mistake=f"{letter}: {given[letter]}")
    return "Each plan rules three coins out, and one is left to pay with."


TOLD = {"derpp": "not needed", "der": "not needed", "den": "needed", "packnet": "needed", "mas": "not needed"}


@exercise("the_map-2")
def who_must_be_told(answer: Any) -> str:
    """Is the task id needed at test time? A dictionary from five methods to "needed" or "not needed"."""
    holds = f'"needed" or "not needed" for each of {", ".join(map(repr, TOLD))}'
    given = texts(answer, TOLD, holds, "Your answer to {!r}")
    if (given["der"], given["derpp"]) == ("needed", "needed"):
        raise Hint("Two names that look alike, and both of your answers are wrong.", mistake="both der")
    hints = {
        "der": "DER has one classifier that reads all extractors. It is the exception in its family.",
        "derpp": "DER++ is a replay method: one network, one head. It has nothing to do with DER but the letters.",
        "den": "DEN's units have a time stamp. Who says at test time which of them a picture may use?",
        "packnet": "PackNet computes with the weights of one task and of those before it. Which task is it?",
        "mas": "MAS changes how a network is trained. Does it change what is asked of it afterwards?",
    }
    for method, right in TOLD.items():
        if given[method] != right:
            raise Hint(hints[method], mistake=f"{method} {given[method]}")
    return "Whoever computes with a part of the network has to know which part."


WEIGHTS, PICTURE = 1_000_000, 3 * 32 * 32


@exercise("the_map-3")
def pictures_for_springs(answer: Any) -> str:
    """How many pictures fit into the room that the springs take: a number."""
    room = 2 * 4 * WEIGHTS
    is_number(
        answer,
        room // PICTURE,
        mistakes={
            "not a whole number": (room / PICTURE, "Very nearly. How many whole pictures are that?"),
            "importances alone": (
                (room // 2 // PICTURE, room / 2 / PICTURE),
                "A spring has an end that is fixed: what is kept of each weight besides its importance?",
            ),
            "the weights too": (
                (room * 3 // 2 // PICTURE, room * 1.5 / PICTURE),
                "The weights themselves are there anyway. What is kept *beside* them?",
            ),
            "off by four": (
                (room // (4 * PICTURE), room / 4 / PICTURE),
                "A number in float32 takes four bytes, a value of a pixel here one. Have you counted bytes for both?",
            ),
            "one channel": (
                (room // (PICTURE // 3), 3 * room / PICTURE),
                "A picture in colour has three values for each pixel.",
            ),
            "rounded up": (room // PICTURE + 1, "The last of them does not fit any more."),
        },
        tolerance=1e-7,
    )
    return "That is why replay is hard to beat where pictures may be kept: they are small."
