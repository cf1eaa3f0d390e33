"""`minicl.check(name, answer)`: is this answer to an exercise of the book right, and if not, where does it go wrong?

A chapter's exercises are one module here, named as the exercises are: `forgetting-1`, `forgetting-2` live in
`forgetting.py`. An exercise is a function of the answer that returns if the answer is right and raises `Hint` if not:

    @exercise("measuring-1")
    def average(answer: Any) -> str:
        "ACC of an accuracy matrix: a function of R, shape (T, T)."
        compare(
            answer,
            lambda R: float(R[-1].mean()),                       # a right answer
            cases=[(random_matrix(),) for _ in range(5)],        # arguments to try it on
            mistakes={"mean of the whole matrix": (lambda R: float(R.mean()), "Which row was measured last?")},
        )
        return "It says nothing about which task was lost."      # optional: a word to those who got it right

- The docstring says in one line what is asked for and of what type the answer is.
- Words, a number or a matrix are no function but data: `declare(name, Words(...))`, `one_number(...)` or `Numbers(...)`
  of `_declared.py`. The pages of the book judge such an answer too, with the same table and without Python.
- Take the answer apart with `number`, `array`, `text`, `texts`, `call`, and judge it with `is_number`, `is_text`,
  `compare`; all of them raise `Hint` where the answer has the wrong type or shape, is NaN, or raises an error itself.
  For a learner, look at what it does, and `raise Hint("...", mistake="...")`. Whatever else is raised becomes a hint.
- A hint points at the mistake and keeps the answer back. Name the wrong answers that people really give (`mistakes`,
  or `Hint(..., mistake=...)`), at least two per exercise.
- Numbers of one's own, for marks: put into VARIANTS what draws them, with `one_of`, and returns the question and the
  function that judges its answer.
- Random cases: draw them from torch's global generator, which `check` seeds (and gives back as it was).

`tests/book/exercises/<chapter>.py` holds two tables: `RIGHT`, a list of right answers for every exercise, and `WRONG`,
for every exercise a dictionary from a mistake's name to an answer that makes it. `tests/book/test_exercises.py` finds
every exercise and fails where one is missing.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Checker = TypeVar("Checker", bound=Callable[[Any], str | None])

EXERCISES: dict[str, Callable[[Any], str | None]] = {}
"""The exercises of the chapters loaded so far, by name."""

Draw = Callable[[], tuple[str, Callable[[Any], str | None]]]

VARIANTS: dict[str, Draw] = {}
"""Of exercises with numbers of one's own: what draws a question, and the function that judges its answer."""


@dataclass(frozen=True)
class Verdict:
    """What `check` says. True where the answer is right.

    Attributes:
        right: whether the answer is right.
        words: the hint; or, for a right answer, what is worth noticing (may be empty).
        mistake: the name of the mistake, where it is a known one; empty otherwise.
    """

    right: bool
    words: str = ""
    mistake: str = ""

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'Right.' if self.right else 'Not yet.'} {self.words}".strip()


class Hint(Exception):
    """Raised by an exercise where the answer is wrong: words that point at the mistake, and its name if it is known."""

    def __init__(self, words: str, mistake: str = "") -> None:
        super().__init__(words)
        self.words, self.mistake = words, mistake


def check(name: str, answer: Any, variant: str | int | None = None) -> Verdict:
    """Is `answer` right? The verdict is true if it is, and shows a hint if it is not.

    Args:
        name: of the exercise, such as "forgetting-1".
        answer: whatever the exercise asks for: a number, a text, an array, a function, a learner.
        variant: whose numbers, where the question was `question(name, variant)`; by default those of the page.

    Raises:
        ValueError: no exercise of that name, or none with numbers of one's own; the message lists those that there are.
    """
    checker = _find(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if variant is not None:
            checker = _draw(name, variant)[1]
        try:
            words = checker(answer)
        except Hint as hint:
            return Verdict(False, hint.words, hint.mistake)
        except (Exception, SystemExit) as error:
            return Verdict(
                False,
                f"Trying your answer raised {_error(error)}. Does it have the type that is asked for: {asked(name)}",
            )
    return Verdict(True, words or "")


def question(name: str, variant: str | int) -> str:
    """What an exercise asks with numbers of one's own: each variant has others, and the way to the answer is the same.

    Args:
        name: of an exercise with numbers of one's own, such as "packnet-7".
        variant: whose numbers: a name, or any number. Capitals and spaces at its ends make no difference.

    Raises:
        ValueError: an exercise that asks everybody the same; the message lists the others.
    """
    _find(name)
    with torch.random.fork_rng(devices=[]):
        return _draw(name, variant)[0]


def varied() -> list[str]:
    """The exercises with numbers of one's own."""
    for chapter in chapters():
        exercises(chapter)
    return sorted(VARIANTS)


def _draw(name: str, variant: str | int) -> tuple[str, Callable[[Any], str | None]]:
    if name not in VARIANTS:
        raise ValueError(f"{name} asks everybody the same; with numbers of one's own there are: {', '.join(varied())}")
    digest = hashlib.sha256(f"{name} {str(variant).strip().lower()}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))
    return VARIANTS[name]()


def one_of(*values: Any) -> Any:
    """One of the values, drawn from torch's generator."""
    return values[int(torch.randint(len(values), ()))]


def exercise(name: str) -> Callable[[Checker], Checker]:
    """Register a function of the answer as the exercise `name`."""

    def register(checker: Checker) -> Checker:
        if name in EXERCISES and EXERCISES[name].__module__ != checker.__module__:
            raise ValueError(f"there are two exercises {name!r}")
        EXERCISES[name] = checker
        return checker

    return register


def chapters() -> list[str]:
    """The chapters that have exercises."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def exercises(chapter: str) -> list[str]:
    """The names of a chapter's exercises, in order. ValueError where there is no such chapter."""
    if chapter not in chapters():
        raise ValueError(f"no chapter {chapter!r} has exercises; allowed: {', '.join(chapters())}")
    importlib.import_module(f".{chapter}", __name__)
    return sorted((n for n in EXERCISES if n.rpartition("-")[0] == chapter), key=lambda n: (len(n), n))


def asked(name: str) -> str:
    """What an exercise asks for, in one line."""
    return " ".join((_find(name).__doc__ or "").split())


def _find(name: str) -> Callable[[Any], str | None]:
    chapter = name.rpartition("-")[0] if isinstance(name, str) else ""
    if chapter not in chapters():
        examples = ", ".join(f"{c}-1" for c in chapters())
        raise ValueError(f"there is no exercise {name!r}; chapters and the first exercise of each: {examples}")
    names = exercises(chapter)
    if name not in names:
        raise ValueError(f"there is no exercise {name!r}; this chapter has: {', '.join(names)}")
    return EXERCISES[name]


# ---- taking an answer apart ----------------------------------------------------------------------------------------


def number(answer: Any, what: str = "The answer") -> float:
    """The answer as a float: from a number, or from an array or tensor of one entry."""
    value = array(answer, what=what)
    if value.size != 1:
        raise Hint(f"{what} should be a single number; yours has the shape {value.shape}.")
    return float(value.reshape(()))


def array(
    answer: Any, shape: Sequence[int] | None = None, what: str = "The answer", gaps: bool = False
) -> NDArray[np.float64]:
    """The answer as an array of finite numbers, and of the given shape. With `gaps` entries may be NaN."""
    if answer is None:
        raise Hint(f"{what} is None. Does your function return what it computed?")
    if callable(answer):
        raise Hint(f"{what} is a function; numbers are asked for. Did you forget to call it?")
    try:
        if isinstance(answer, torch.Tensor) and not answer.is_complex():
            answer = answer.detach().cpu().to_dense().double().numpy()  # bfloat16 too, which NumPy does not know
        value = np.asarray(answer)
        if value.dtype.kind in "SUc" or (value.dtype.kind == "O" and any(isinstance(v, str) for v in value.flat)):
            raise TypeError("a number in quotes is a text, and NumPy would read it")
        value = value.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise Hint(f"{what} is {_kind(answer)}; numbers are asked for.") from None
    if shape is not None and value.shape != tuple(shape):
        raise Hint(f"{what} should have the shape {tuple(shape)}; yours has {value.shape}.")
    if not (np.isfinite(value) | (gaps & np.isnan(value))).all():
        raise Hint(f"{what} holds NaN or infinity. A division by zero, or an entry that was never measured?")
    return value


ENDING = r"(il|(incremental)?(learning|training)?)$"
"""What may be added to a word and says nothing: "Domain-IL", "class-incremental learning"."""


def plain(word: str) -> str:
    """A word as it is compared: small letters and digits alone, with ++ written as pp, as in `minicl.DERpp`."""
    return re.sub(r"[^a-z0-9]", "", word.lower().replace("++", "pp"))


def text(answer: Any, allowed: Sequence[str], what: str = "The answer") -> str:
    """The answer as one of the `allowed` words, as it stands there.

    Capitals, spaces and hyphens make no difference, nor does an ending as in "Domain-IL", or in "joint training".
    """
    words = {plain(word): word for word in allowed}
    given = plain(answer) if isinstance(answer, str) else ""
    for spelled in (given, re.sub(ENDING, "", given)):
        if spelled in words:
            return words[spelled]
    shown = repr(answer) if isinstance(answer, (str, int, float, type(None))) else f"a {type(answer).__name__}"
    raise Hint(f"{what} is {shown}; allowed: {', '.join(map(repr, allowed))}.")


def texts(
    answer: Any,
    right: Mapping[str, Any],
    holds: str = "",
    what: str = "The name for {}",
    allowed: Sequence[str] = (),
) -> dict[str, str]:
    """The answer as a dictionary with the keys of `right`, and for each key one of the allowed words.

    Args:
        holds: what such a dictionary holds, for the hint; by default its keys, and a name for each.
        what: what the word of a key is called, with {} for the key.
        allowed: words; by default those that are values of `right`.
    """
    if isinstance(answer, Mapping) and all(isinstance(key, str) for key in answer):
        keys = {plain(key): key for key in right}
        answer = {keys.get(plain(key), key): word for key, word in answer.items()}
    if not isinstance(answer, Mapping) or set(answer) != set(right):
        *others, last = (f'"{key}"' for key in right)
        holds = holds or f"the keys {', '.join(others)} and {last}, and a name for each"
        raise Hint(f"The answer should be a dictionary with {holds}.")
    allowed = allowed or sorted(set(right.values()))
    return {key: text(answer[key], allowed, what.format(key)) for key in right}


def call(function: Any, *arguments: Any, what: str = "Your function") -> Any:
    """What the reader's function returns. It gets copies, so that it cannot change what it is tested with."""
    if not callable(function):
        raise Hint(
            f"A function is asked for; the answer is a {type(function).__name__}. "
            "Give the function itself, without calling it."
        )
    before = copy.deepcopy(arguments)
    given = copy.deepcopy(arguments)
    try:
        value = function(*given)
    except Hint:
        raise
    except (Exception, SystemExit) as error:  # an answer that calls exit() must not end the reader's kernel
        raise Hint(f"{what} raised {_error(error)}, called with {_show(arguments)}.") from error
    if not _same(before, given):
        raise Hint(
            f"{what} changes what it is given ({_show(arguments)}). Work on a copy.", mistake="changes its argument"
        )
    return value


def without(module: ModuleType, answer: Any) -> Any:
    """The reader's function, which may not call the functions of `module`: one of them is what is to be written."""
    if not callable(answer):
        return answer

    def watched(*given: Any) -> Any:
        called = False

        def look(frame: FrameType, event: str, _: Any) -> None:
            nonlocal called
            called |= event == "call" and frame.f_globals.get("__name__") == module.__name__

        before = sys.getprofile()
        sys.setprofile(look)
        try:
            value = answer(*given)
        finally:
            sys.setprofile(before)
        if called:
            raise Hint(
                f"Your function calls {module.__name__}, which has the answer ready. Write it yourself, from the "
                "equation.",
                mistake="the package's own",
            )
        return value

    return watched


# ---- judging it ----------------------------------------------------------------------------------------------------

Mistakes = Mapping[str, tuple[Any, str]]
"""Wrong answers that people really give: name -> (the wrong number, or the function that computes it, hint).

Where a mistake is made in several ways, a tuple of them stands in the first place.
"""


def ways(wrong: Any) -> tuple[Any, ...]:
    """The ways in which a mistake of the table is made."""
    return wrong if isinstance(wrong, tuple) else (wrong,)


USUAL = {
    "wrong sign": (-1.0, "The size is right, the sign is not. Which of the two is subtracted from which?"),
    "percent": (100.0, "That is in percent; the book computes with shares between 0 and 1."),
}
"""Mistakes that any number can suffer from: name -> (the factor, hint)."""


def is_number(answer: Any, right: float, mistakes: Mistakes, tolerance: float = 1e-6) -> None:
    """Hint unless the answer is the number `right`, to within `tolerance`, relative and absolute."""
    from ._declared import one_number

    one_number("A number.", right, mistakes, tolerance=tolerance).judge(answer)


def is_text(answer: Any, right: str, mistakes: Mapping[str, str], what: str = "The answer") -> None:
    """Hint unless the answer is `right`; the other allowed answers are those that have a hint in `mistakes`."""
    given = text(answer, sorted([right, *mistakes]), what)
    if given != right:
        raise Hint(mistakes[given], mistake=given)


def compare(
    answer: Any,
    right: Callable[..., Any],
    cases: Sequence[tuple[Any, ...]],
    mistakes: Mistakes,
    tolerance: float = 1e-5,
) -> None:
    """Hint unless the function `answer` returns what `right` returns, for every one of the `cases`.

    A mistake is recognised where its function gives what the answer gives, for every case.
    """
    values = []
    for case in cases:
        expected = np.asarray(array(right(*copy.deepcopy(case))))
        values.append((array(call(answer, *case), expected.shape, "What your function returns"), expected))
    if all(close(value, expected, tolerance) for value, expected in values):
        return

    def explains(wrong: Callable[..., Any]) -> bool:
        try:
            made = [array(wrong(*copy.deepcopy(case))) for case in cases]
        except (Hint, ArithmeticError):  # NaN, for example: not what the answer gives
            return False
        return all(m.shape == v.shape and close(m, v, tolerance) for m, (v, _) in zip(made, values, strict=True))

    for name, (wrong, words) in mistakes.items():
        if any(map(explains, ways(wrong))):
            raise Hint(words, mistake=name)
    for name, (factor, words) in USUAL.items():
        if all(close(value, factor * expected, tolerance) for value, expected in values):
            raise Hint(words, mistake=name)
    failed = [(c, v, e) for c, (v, e) in zip(cases, values, strict=True) if not close(v, e, tolerance)]
    case, value, expected = min(failed, key=lambda one: one[1].size)  # the one that is the least work by hand
    where = np.argwhere(~np.isclose(value, expected, rtol=tolerance, atol=tolerance))[0].tolist()
    entry = f" Look at its entry {where}, which is {value[tuple(where)]:.4g}." if value.size > 1 else ""
    raise Hint(
        f"For {_show(case)} your function returns {_show((value,))}.{entry} Work this case out by hand and compare."
    )


def close(a: Any, b: Any, tolerance: float = 1e-6) -> bool:
    """Equal to within `tolerance`, relative and absolute, in every entry."""
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance))


# ---- words ---------------------------------------------------------------------------------------------------------


def _kind(answer: Any) -> str:
    """What an answer is, without its contents: "a str", "a list of int and str", "a list of lists of str"."""
    name = type(answer).__name__
    if isinstance(answer, (list, tuple)) and answer:
        nested = all(isinstance(row, (list, tuple)) and row for row in answer)
        entries = [entry for row in answer for entry in row] if nested else answer
        types = " and ".join(sorted({type(entry).__name__ for entry in entries}))
        name += f"{f' of {type(answer[0]).__name__}s' if nested else ''} of {types}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _error(error: BaseException) -> str:
    words = str(error).splitlines()
    return f"{type(error).__name__} ({words[0]})" if words else type(error).__name__


def _show(values: tuple[Any, ...]) -> str:
    return ", ".join(_show_one(value) for value in values)


def _show_one(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.size > 24:
            return f"an array of shape {value.shape}"
        return str(np.round(value.astype(np.float64), 3).tolist())
    if isinstance(value, (list, tuple)) and len(value) <= 8:
        return f"[{', '.join(map(_show_one, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return repr(value) if isinstance(value, (str, int, bool, type(None))) else f"a {type(value).__name__}"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)):
        return isinstance(b, (tuple, list)) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        )
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return True
