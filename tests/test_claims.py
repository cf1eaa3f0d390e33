"""Claims: what holds, what is refused, and the sentence that follows from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import minicl
from minicl import claims


def result(seed: int, acc: float) -> minicl.Result:
    return minicl.Result(np.full((2, 2), acc), np.zeros(2), [[0.0]] * 2, parameters=1, seconds=0.0, seed=seed)


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=7), rng.normal(size=7)
    claim = claims.above(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval()
    assert (claim.low, claim.high) == pytest.approx((expected.low, expected.high))
    assert claim.effect == pytest.approx(np.mean(a - b))
    assert claim.n == 7
    assert bool(claim) == (stats.ttest_rel(a, b).pvalue < 0.05)


def test_what_the_seeds_share_cancels() -> None:
    base, more = np.array([0.1, 0.5, 0.9]), np.array([0.02, 0.03, 0.025])
    assert claims.above(base + more, base)
    assert not claims.above(base, base + more)
    assert not claims.above([0.1, 0.5, 0.9], [0.2, 0.3, 0.8])


def test_equality_must_be_shown() -> None:
    a = np.array([0.9, 0.91, 0.92])
    near, far = np.array([0.001, -0.001, 0.0]), np.array([0.1, -0.1, 0.0])
    assert claims.equal_within(a, a + near, 0.01)
    assert not claims.equal_within(a, a + far, 0.01)  # no difference is shown, and no equality either
    assert not claims.equal_within(a, a + 0.02, 0.01)
    assert not claims.equal_within(a + 0.02, a, 0.01)
    with pytest.raises(ValueError, match="margin is 0; allowed: numbers above 0"):
        claims.equal_within(a, a, 0)


def test_exactly_forgives_nothing() -> None:
    assert claims.exactly([0.5], [0.5])
    assert claims.exactly([0.0, 0.0, 0.0], 0.0)
    assert not claims.exactly([0.5, 0.5 + 1e-12], [0.5, 0.5])
    assert not claims.exactly([0.5], [0.4])


def test_results_and_dictionaries_are_paired_by_seed() -> None:
    a, b = {0: 0.5, 1: 0.6, 2: 0.8}, {2: 0.7, 0: 0.4, 1: 0.55}
    whole = claims.above(a, b)
    assert whole.effect == pytest.approx((0.1 + 0.05 + 0.1) / 3)
    results = [result(seed, acc) for seed, acc in b.items()]
    assert claims.above(a, results) == whole
    assert claims.above(a, 0.1).effect == pytest.approx(np.mean([0.4, 0.5, 0.7]))


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ([1, 2, 3], [1, 2], "a has 3 numbers and b 2"),
        ([1, 2], [1, 2], "2 seeds; a claim needs at least 3"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.0, 1: 1.0, 3: 1.0}, "a has seeds 0, 1, 2 and b 0, 1, 3"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, [1.0, 1.0, 1.0], "nobody knows the pairs"),
        ([1, 2, math.nan], [1, 2, 3], "a holds numbers that are not finite"),
        ([[1, 2, 3]], [1, 2, 3], r"a has shape \(1, 3\)"),
        (1.0, 0.0, "single numbers"),
        ([result(1, 0.5)] * 3, 0.1, "several results of one seed"),
    ],
)
def test_what_cannot_be_paired_is_refused(a: claims.Values, b: claims.Values, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        claims.above(a, b)


def test_a_sentence_without_its_interval_says_so_itself() -> None:
    a, b = [0.9, 0.8, 0.7], [0.5, 0.41, 0.29]
    sentence = "A ends above B"
    assert str(claims.above(a, b).says(sentence)).startswith(
        "A ends above B (+40.0 points, 95 % interval +37.5 to +42.5"
    )
    assert str(claims.above(a, a).says(sentence)).startswith("no difference shown (+0.0 points")
    assert str(claims.above(b, a).says(sentence)).startswith("the other way round (−40.0 points")
    assert str(claims.above(b, a).says(sentence, "B is ahead")).startswith("B is ahead (−")
    assert str(claims.equal_within(a, b, 0.01).says("the same")).startswith("not shown to be equal (")
    assert "margin 50.0, 3 seeds)" in str(claims.equal_within(a, b, 0.5).says("the same"))
    assert str(claims.exactly(a, a).says("the same bits")) == "the same bits (in each of 3 seeds)"
    assert str(claims.above([2.0, 3.0, 4.0], 0).says("longer", points=False)) == (
        "longer (+3, 95 % interval +0.516 to +5.48, 3 seeds)"
    )


def test_a_notebook_is_given_sentence_and_numbers() -> None:
    claim = claims.above([0.9, 0.8, 0.7], 0.1).says("ahead")
    bundle = claim._repr_mimebundle_(include=None, exclude=None)
    assert bundle["text/plain"] == str(claim)
    assert bundle[claims.MIME] == claim.as_json()
    assert bundle[claims.MIME]["text"] == str(claim)


def test_welch_against_scipy() -> None:
    ours = [97.1, 96.4, 97.9, 96.8]
    theirs = np.array([98.0, 98.9, 97.2, 98.4, 98.1])
    effect, low, high = claims.welch(ours, theirs.mean(), theirs.std(ddof=1), 5)
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert effect == pytest.approx(np.mean(ours) - theirs.mean())
    assert claims.welch([1.0, 1.0], 2.0, 0.0, 3) == (-1.0, -1.0, -1.0)
    with pytest.raises(ValueError, match="values holds 1 runs"):
        claims.welch([1.0], 2.0, 1.0, 3)
