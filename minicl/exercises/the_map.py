"""The exercises of the page "The map"."""

from __future__ import annotations

from . import one_of
from ._declared import Mistake, Numbers, Words, declare, one_number, vary

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


declare(
    "the_map-1",
    Words(
        'Which family suits each plan? A dictionary from the letters "a" to "d" to the names of the four families.',
        right=FAMILIES,
        mistakes=[
            Mistake(f"{letter}: {family}", f"Not {family} for plan {letter}. {words}", {letter: family})
            for (letter, family), words in WHY_NOT.items()
        ],
        praise="Each plan rules three coins out, and one is left to pay with.",
        what="The family of plan {}",
        holds="a family for each of the letters a, b, c and d",
    ),
)


TOLD = {"derpp": "not needed", "der": "not needed", "den": "needed", "packnet": "needed", "mas": "not needed"}


HINTS = {
    "der": "DER has one classifier that reads all extractors. It is the exception in its family.",
    "derpp": "DER++ is a replay method: one network, one head. It has nothing to do with DER but the letters.",
    "den": "DEN's units have a time stamp. Who says at test time which of them a picture may use?",
    "packnet": "PackNet computes with the weights of one task and of those before it. Which task is it?",
    "mas": "MAS changes how a network is trained. Does it change what is asked of it afterwards?",
}

declare(
    "the_map-2",
    Words(
        'Is the task id needed at test time? A dictionary from five methods to "needed" or "not needed".',
        right=TOLD,
        mistakes=[
            Mistake(
                "both der",
                "Two names that look alike, and both of your answers are wrong.",
                {"der": "needed", "derpp": "needed"},
            ),
            *(
                Mistake(f"{method} {'not needed' if right == 'needed' else 'needed'}", HINTS[method], {method: None})
                for method, right in TOLD.items()
            ),
        ],
        praise="Whoever computes with a part of the network has to know which part.",
        what="Your answer to '{}'",
        holds=f'"needed" or "not needed" for each of {", ".join(map(repr, TOLD))}',
    ),
)


def _pictures(weights: int, side: int) -> Numbers:
    picture, room = 3 * side**2, 2 * 4 * weights
    return one_number(
        "How many pictures fit into the room that the springs take: a number.",
        room // picture,
        mistakes={
            "not a whole number": (room / picture, "Very nearly. How many whole pictures are that?"),
            "importances alone": (
                (room // 2 // picture, room / 2 / picture),
                "A spring has an end that is fixed: what is kept of each weight besides its importance?",
            ),
            "the weights too": (
                (room * 3 // 2 // picture, room * 1.5 / picture),
                "The weights themselves are there anyway. What is kept *beside* them?",
            ),
            "off by four": (
                (room // (4 * picture), room / 4 / picture),
                "A number in float32 takes four bytes, a value of a pixel here one. Have you counted bytes for both?",
            ),
            "one channel": (
                (room // (picture // 3), 3 * room / picture),
                "A picture in colour has three values for each pixel.",
            ),
            "rounded up": (room // picture + 1, "The last of them does not fit any more."),
        },
        praise="That is why replay is hard to beat where pictures may be kept: they are small.",
        tolerance=1e-7,
    )


declare("the_map-3", _pictures(1_000_000, side=32))


@vary("the_map-3")
def _a_network() -> tuple[str, Numbers]:
    millions, side = one_of(*range(2, 10)), one_of(28, 36, 48, 84, 96)
    text = (
        f"A network has {millions} million weights, in float32. EWC keeps beside them an old value and one importance "
        f"for each, summed up over tasks. How many pictures in colour, {side} by {side}, one byte for each of the "
        "three values of a pixel, would fit into the same room?"
    )
    return text, _pictures(1_000_000 * millions, side)
