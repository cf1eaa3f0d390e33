"""Claims that know how far to trust them: above, equal within a margin, exactly the same.

A sentence such as "EWC ends above fine-tuning" rests on a few runs. Here the runs are compared in pairs, seed by seed:
the same seed gives the same tasks and the same start, so what seeds have in common cancels. A claim is an effect (the
mean difference), its 95 % interval and the number of seeds; it holds only where the whole interval is on the right
side.

    mas = [result.average_accuracy for result in runs_of_mas]
    claim = minicl.claims.above(mas, fine_tuning)
    print(claim.says("MAS ends above fine-tuning"))

The last line prints the sentence with its numbers where the claim holds, and "no difference shown" where it does not.
In a notebook, `glue("mas_above", claim.says(...), display=False)` puts it into the text, and on the book's list of
claims.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .metrics import Result, mean_and_interval

MIME = "application/vnd.minicl.claim+json"
"""Under this type a notebook's output holds a claim, for those who gather them."""

FEWEST = 3
"""So many seeds a claim needs: the spread of two differences is one number, and no spread."""

Values = Sequence[float] | Mapping[int, float] | Sequence[Result] | NDArray[Any] | float
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Claim:
    """A comparison, and whether it holds: `if claim:` asks for `holds`.

    Attributes:
        kind: "above", "equal within" or "exactly".
        effect: the mean over seeds of a minus b.
        low, high: the ends of its 95 % interval.
        n: how many seeds.
        holds: whether the claim does.
        margin: of "equal within"; 0 otherwise.
        sentence: what is claimed.
        text: what `says` made of it: the sentence, or what is said in its place, with the numbers.
        points: whether the numbers are shares, which the text gives in percentage points.
    """

    kind: str
    effect: float
    low: float
    high: float
    n: int
    holds: bool
    margin: float = 0.0
    sentence: str = ""
    text: str = ""
    points: bool = True

    def __bool__(self) -> bool:
        return self.holds

    def says(self, sentence: str, otherwise: str | None = None, *, points: bool = True) -> Claim:
        """The same claim with its sentence: what `str` gives, what `glue` puts on a page.

        Args:
            sentence: what is said where the claim holds, without a full stop.
            otherwise: what is said where it does not; by default what can be said of any: "no difference shown" where
                the interval meets zero, "the other way round" where it lies below.
            points: the numbers are shares such as accuracies, and differ by percentage points; False gives them as they
                are.
        """
        text = sentence if self.holds else self._verdict() if otherwise is None else otherwise
        return replace(self, sentence=sentence, text=f"{text} ({self._numbers(points)})", points=points)

    def __str__(self) -> str:
        return self.text or f"{self._verdict()} ({self._numbers(self.points)})"

    def _verdict(self) -> str:
        if self.kind == "above":
            return "above" if self.holds else "the other way round" if self.high < 0 else "no difference shown"
        if self.kind == "exactly":
            return "exactly the same" if self.holds else "not the same"
        return "equal" if self.holds else "not shown to be equal"

    def _numbers(self, points: bool) -> str:
        if self.kind == "exactly" and self.holds:
            return f"in each of {self.n} seeds" if self.n > 1 else "one seed"

        margin = f", margin {number(self.margin, points)[1:]}" if self.kind == "equal within" else ""
        unit = " points" if points else ""
        interval = f"95 % interval {number(self.low, points)} to {number(self.high, points)}"
        return f"{number(self.effect, points)}{unit}, {interval}{margin}, {self.n} seeds"

    def as_json(self) -> dict[str, Any]:
        """The claim as JSON can hold it."""
        return asdict(self) | {"sentence": self.sentence or self.kind, "text": str(self)}

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return {"text/plain": str(self), MIME: self.as_json()}


def number(value: float, points: bool) -> str:
    """A number of a claim with its sign, as sentences and the book's list give it: in percentage points or as it is."""
    value = 100 * value if points else value
    text = f"{value:+.1f}" if points or abs(value) >= 10 else f"{value:+.3g}"
    return text.replace("-", "−")


def above(a: Values, b: Values) -> Claim:
    """a is above b: the 95 % interval of the mean of a - b, over paired seeds, lies above zero.

    The interval is that of the paired t-test: mean ± t(0.975, n - 1) s / sqrt(n) of the n differences.

    Args:
        a, b: one number for each seed, in the same order of seeds; or dictionaries from seeds to numbers, or lists of
            `Result`, whose ACC is taken, which are paired by their seeds. One of them may be a single number, the same
            for every seed, such as chance.

    Raises:
        ValueError: not the same seeds, fewer than three of them, a number that is not finite.
    """
    effect, low, high, n = _interval(a, b)
    return Claim("above", effect, low, high, n, low > 0)


def equal_within(a: Values, b: Values, margin: float) -> Claim:
    """a and b are equal within the margin: the whole 95 % interval of a - b lies between -margin and margin.

    That no difference is shown is no equality; this is what must be shown instead.

    Args:
        a, b: as for `above`.
        margin: how large a difference does not matter, in the unit of a and b; above 0.

    Raises:
        ValueError: as for `above`; a margin that is not above 0.
    """
    margin = float(checks.number("margin", margin, beyond=True))
    effect, low, high, n = _interval(a, b)
    return Claim("equal within", effect, low, high, n, -margin < low and high < margin, margin)


def exactly(a: Values, b: Values) -> Claim:
    """a and b are the same number for every seed; one seed is enough, since nothing is estimated.

    Args:
        a, b: as for `above`.

    Raises:
        ValueError: not the same seeds, no seed, a number that is not finite.
    """
    a, b = _paired(a, b, fewest=1)
    if len(a) < 2:
        effect = low = high = float(a[0] - b[0])
    else:
        effect, low, high = _mean_and_ends(a - b)
    return Claim("exactly", effect, low, high, len(a), bool((a == b).all()))


def welch(values: Sequence[float] | NDArray[Any], mean: float, deviation: float, n: int) -> tuple[float, float, float]:
    """The difference to somebody else's runs, of which only mean and deviation are known: effect, and its interval.

    For runs that cannot be paired: Welch's t-interval (Welch 1947, Biometrika 34), 95 %, with the degrees of freedom of
    Welch and Satterthwaite. The two may be called different where it does not hold zero.

    Args:
        values: ours, one number a seed.
        mean, deviation, n: theirs: mean, standard deviation of a single run, number of runs.

    Returns:
        effect (ours minus theirs), and the low and high end of its interval.

    Raises:
        ValueError: fewer than two runs on either side, numbers that are not finite, a deviation below 0.
    """
    ours = _numbers_of("values", values)
    mean = float(checks.number("mean", mean, least=-math.inf))
    deviation, n = float(checks.number("deviation", deviation)), checks.integer("n", n, least=2)
    if len(ours) < 2:
        raise ValueError(f"values holds {len(ours)} runs; Welch's interval needs at least 2")
    own, other = ours.var(ddof=1) / len(ours), deviation**2 / n
    effect = float(ours.mean() - mean)
    if own + other == 0:
        return effect, effect, effect
    from scipy.special import stdtrit

    freedom = (own + other) ** 2 / (own**2 / (len(ours) - 1) + other**2 / (n - 1))
    half = float(stdtrit(freedom, 0.975) * math.sqrt(own + other))
    return effect, effect - half, effect + half


def _interval(a: Values, b: Values) -> tuple[float, float, float, int]:
    a, b = _paired(a, b, FEWEST)
    return *_mean_and_ends(a - b), len(a)


def _mean_and_ends(differences: Array) -> tuple[float, float, float]:
    mean, half = map(float, mean_and_interval(differences))
    return mean, mean - half, mean + half


def _paired(a: Values, b: Values, fewest: int) -> tuple[Array, Array]:
    """Both as arrays over the same seeds."""
    a, b = _by_seed("a", a), _by_seed("b", b)
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            raise ValueError(
                f"a has seeds {_list(a)} and b {_list(b)}; allowed: the same seeds, since they are compared in pairs"
            )
        seeds = sorted(a)
        a, b = [a[seed] for seed in seeds], [b[seed] for seed in seeds]
    sides = {"a": a, "b": b}
    numbers = {name: isinstance(checks.plain(side), (int, float)) for name, side in sides.items()}
    if any(isinstance(side, dict) for side in sides.values()) and not any(numbers.values()):
        raise ValueError("one of a and b names its seeds and the other does not, so nobody knows the pairs; name both")
    if all(numbers.values()):
        raise ValueError("a and b are single numbers; a claim needs one number for each seed")
    arrays = {
        name: _numbers_of(name, list(side.values()) if isinstance(side, dict) else side)
        for name, side in sides.items()
        if not numbers[name]
    }
    n = max(map(len, arrays.values()))
    for name, is_number in numbers.items():
        if is_number:
            arrays[name] = np.full(n, checks.number(name, sides[name], least=-math.inf), dtype=np.float64)
    if len(arrays["a"]) != len(arrays["b"]):
        raise ValueError(
            f"a has {len(arrays['a'])} numbers and b {len(arrays['b'])}; allowed: one for each seed, of the same seeds"
        )
    if n < fewest:
        raise ValueError(f"a and b have {n} seeds; a claim needs at least {fewest}")
    return arrays["a"], arrays["b"]


def _by_seed(name: str, values: Any) -> Any:
    """Results as a dictionary from seeds to ACC; a mapping as a dictionary; anything else as it is."""
    if isinstance(values, Mapping):
        return dict(values)
    if isinstance(values, Sequence) and values and all(isinstance(value, Result) for value in values):
        seeds = [value.seed for value in values]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{name} has several results of one seed ({_list(seeds)}); allowed: one for each seed")
        return {value.seed: value.average_accuracy for value in values}
    return values


def _numbers_of(name: str, values: Any) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; allowed: one number for each seed, shape (n,)")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return array


def _list(seeds: Any) -> str:
    return ", ".join(map(str, sorted(seeds)))
