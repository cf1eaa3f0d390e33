"""Exercises whose answer is words or numbers, declared as data: right answers, mistakes and hints in one table.

`minicl.check` judges with it here, and the pages of the book judge with the same table where no Python runs: `table()`
is what a page gets of it, and book/_static/checks.js does there what `judge` does here, step by step, so that both say
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from math import isnan, nan, prod
from typing import Any, NamedTuple

import numpy as np

from . import USUAL, VARIANTS, Hint, Mistakes, array, exercise, number, texts, ways

Row = Sequence[float]
"""A weighted sum of an answer's entries: a weight for each, and a number that is added."""

Where = Mapping[str, str | None]
"""Words at some of the keys; None stands for any word that is wrong there."""


@dataclass(frozen=True)
class Mistake:
    """A wrong choice of words that people make.

    Attributes:
        name: of the mistake.
        hint: what points at it.
        where: the words by which it is known, at some of the keys; or several such choices, each of which is enough.
    """

    name: str
    hint: str
    where: Where | Sequence[Where]

    @property
    def choices(self) -> list[Where]:
        return [self.where] if isinstance(self.where, Mapping) else list(self.where)


@dataclass(frozen=True)
class Words:
    """An exercise that is answered with a word for each key, or with words in order.

    Attributes:
        asks: what is asked for, in one line.
        right: the right word for each key, or the set of those that are right.
        mistakes: the first that is there is the one that is named. Together they leave no wrong answer without a hint.
        praise: a word to those who got it right.
        allowed: the words to choose from; by default those that are right somewhere.
        what: what the word of a key is called, with {} for the key.
        holds: what the dictionary holds, for the hint where it does not.
        in_order: the answer is a list of words, whose keys are "1", "2" and so on.
    """

    asks: str
    right: Mapping[str, str | frozenset[str]]
    mistakes: Sequence[Mistake]
    praise: str
    _: KW_ONLY
    allowed: Sequence[str] = ()
    what: str = "The name for {}"
    holds: str = ""
    in_order: bool = False

    def accepted(self, key: str) -> frozenset[str]:
        """The words that are right for a key."""
        words = self.right[key]
        return frozenset([words]) if isinstance(words, str) else words

    def choices(self) -> list[str]:
        """The words to choose from."""
        return list(self.allowed) or sorted({word for key in self.right for word in self.accepted(key)})

    def judge(self, answer: Any) -> str:
        """The praise for a right answer. Hint for any other."""
        given = self._read(answer)
        if all(given[key] in self.accepted(key) for key in self.right):
            return self.praise
        for mistake in self.mistakes:
            if any(self._chosen(given, where) for where in mistake.choices):
                raise Hint(mistake.hint, mistake=mistake.name)
        raise AssertionError(f"no mistake of the table is in {given}")

    def _chosen(self, given: Mapping[str, str], where: Where) -> bool:
        return all(
            given[key] not in self.accepted(key) if word is None else given[key] == word for key, word in where.items()
        )

    def _read(self, answer: Any) -> dict[str, str]:
        keys = list(self.right)
        if not self.in_order:
            return texts(answer, self.right, self.holds, self.what, self.choices())
        if not isinstance(answer, (list, tuple)) or len(answer) != len(keys):
            raise Hint(f"The answer should be a list of {self.holds}.")
        return texts(dict(zip(keys, answer, strict=True)), self.right, what=self.what, allowed=self.choices())

    def table(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "kind": "words",
            "inOrder": self.in_order,
            "right": {key: sorted(self.accepted(key)) for key in self.right},
            "allowed": self.choices(),
            "what": self.what,
            "mistakes": [{"name": m.name, "hint": m.hint, "where": m.choices} for m in self.mistakes],
            "praise": self.praise,
        }


class Is(NamedTuple):
    """A condition on a quantity: "near" a number (within `tolerance`, relative and absolute), "above" or "below" it.

    Or "unknown": NaN stands in every sum.
    """

    quantity: str
    relation: str
    number: float = 0.0
    tolerance: float = 0.0

    def holds(self, value: float) -> bool:
        if self.relation == "near":
            return abs(value - self.number) <= self.tolerance + self.tolerance * abs(self.number)
        if self.relation == "unknown":
            return isnan(value)
        return value > self.number if self.relation == "above" else value < self.number


class Case(NamedTuple):
    """What is said where all conditions hold.

    Attributes:
        words: a hint, or for a right answer the praise. It may name quantities, as `str.format` does: {value:.6g}.
        when: the conditions.
        mistake: its name, where it is a known one.
        right: whether such an answer is right.
    """

    words: str
    when: Sequence[Is]
    mistake: str = ""
    right: bool = False


@dataclass(frozen=True)
class Numbers:
    """An exercise that is answered with a number, or with a list or matrix of numbers.

    Attributes:
        asks: what is asked for, in one line.
        cases: the first whose conditions hold is what is said. Together they leave no answer without a word.
        shape: of the answer, at most two lengths; () for a single number.
        quantities: what the conditions speak of: the largest of some sums of the entries. Sums with an entry that is
            NaN do not count.
        what: what the answer is called.
        gaps: entries may be NaN, where nothing was measured.
    """

    asks: str
    cases: Sequence[Case]
    _: KW_ONLY
    shape: tuple[int, ...] = ()
    quantities: Mapping[str, Sequence[Row]] = field(default_factory=lambda: {"value": [(1.0, 0.0)]})
    what: str = "The answer"
    gaps: bool = False

    def __post_init__(self) -> None:
        width = prod(self.shape) + 1
        if any(len(row) != width for rows in self.quantities.values() for row in rows):
            raise ValueError(f"each row needs a weight for each of {width - 1} entries, and a number")

    def judge(self, answer: Any) -> str:
        """The praise for a right answer. Hint for any other."""
        values = self.measure(self._read(answer))
        for case in self.cases:
            if all(condition.holds(values[condition.quantity]) for condition in case.when):
                words = case.words.format(**values)
                if case.right:
                    return words
                raise Hint(words, mistake=case.mistake)
        raise AssertionError(f"no case of the table holds for {values}")

    def measure(self, entries: Sequence[float]) -> dict[str, float]:
        """The quantities of an answer. Added up in order, as the page does, so that both get the same last bit."""

        def largest(rows: Sequence[Row]) -> float:
            sums = []
            for row in rows:
                total = row[-1] + 0.0
                for weight, entry in zip(row, entries, strict=False):
                    if weight:
                        total += weight * entry
                sums.append(total)
            return max((total for total in sums if not isnan(total)), default=nan)

        return {name: largest(rows) for name, rows in self.quantities.items()}

    def _read(self, answer: Any) -> list[float]:
        if not self.shape:
            return [number(answer, self.what)]
        return [float(entry) for entry in array(answer, self.shape, self.what, self.gaps).reshape(-1)]

    def table(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "kind": "numbers",
            "shape": list(self.shape),
            "quantities": {name: [list(map(float, row)) for row in rows] for name, rows in self.quantities.items()},
            "what": self.what,
            "gaps": self.gaps,
            "cases": [
                {**case._asdict(), "when": [condition._asdict() for condition in case.when]} for case in self.cases
            ],
        }


def one_number(
    asks: str,
    right: float,
    mistakes: Mistakes,
    praise: str = "",
    *,
    tolerance: float = 1e-6,
    factors: Mapping[str, tuple[float, str]] = USUAL,
    step: str = "Work it out again, step by step.",
) -> Numbers:
    """An exercise that is answered with the number `right`, to within `tolerance`, relative and absolute.

    Args:
        asks: what is asked for, in one line.
        mistakes: name -> (the wrong number, or several, hint).
        praise: a word to those who got it right.
        factors: name -> (by what the right number is multiplied, hint), where no mistake is.
        step: what to do where the mistake is none of these.
    """

    def near(value: float) -> list[Is]:
        return [Is("value", "near", float(value), tolerance)]

    wrong = {**mistakes, **{name: (factor * right, words) for name, (factor, words) in factors.items()}}
    return Numbers(
        asks,
        [
            Case(praise, near(right), right=True),
            *(
                Case(words, near(value), mistake=name)
                for name, (values, words) in wrong.items()
                for value in ways(values)
            ),
            Case(f"{{value:.6g}} is too large. {step}", [Is("value", "above", float(right))]),
            Case(f"{{value:.6g}} is too small. {step}", []),
        ],
    )


def entries(shape: tuple[int, ...], sign: float = 1.0) -> list[Row]:
    """A row for each entry, with the weight `sign`: their largest is the largest entry, or minus the smallest."""
    size = prod(shape)
    return [(*(sign if i == k else 0.0 for k in range(size)), 0.0) for i in range(size)]


def linear(function: Callable[[Any], Any], shape: tuple[int, ...]) -> list[Row]:
    """The row of a linear function of an array, found by asking it about one entry at a time."""
    size = prod(shape)
    return [(*(float(function(np.eye(size)[k].reshape(shape))) for k in range(size)), 0.0)]


DECLARED: dict[str, Words | Numbers] = {}
"""The declared exercises of the chapters loaded so far, by name."""


def vary(name: str) -> Callable[[Callable[[], tuple[str, Words | Numbers]]], None]:
    """Register a function that draws numbers of one's own for `name`: a text, and what judges its answer."""

    def register(draw: Callable[[], tuple[str, Words | Numbers]]) -> None:
        def drawn() -> tuple[str, Callable[[Any], str]]:
            text, judged = draw()
            return text, judged.judge

        VARIANTS[name] = drawn

    return register


def is_clear(drawn: Numbers) -> bool:
    """Whether each wrong answer of a drawn question can be told from the right one, even where it is rounded."""
    near = [(case.right, c.number) for case in drawn.cases for c in case.when if c.relation == "near"]
    (right,) = (number for is_right, number in near if is_right)
    return all(abs(right - number) > 0.005 for is_right, number in near if not is_right)


def declare(name: str, question: Words | Numbers) -> None:
    """Make a question the exercise `name`."""

    def checker(answer: Any) -> str:
        return question.judge(answer)

    checker.__doc__ = question.asks
    checker.__module__ = f"{__package__}.{name.rpartition('-')[0]}"
    exercise(name)(checker)
    DECLARED[name] = question
