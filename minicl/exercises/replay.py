"""The exercises of the chapter "Replay"."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..replay import agem, derpp, gem
from . import compare, exercise, without
from ._declared import Mistake, Words, declare

USES = {"er": "batch", "agem": "average", "gem": "each", "derpp": "answers"}

HINTS = {
    "er": "ER has no equation of its own. Where do its old samples go?",
    "agem": "What does the A stand for?",
    "gem": "GEM keeps one promise for every earlier task.",
    "derpp": "What does DER++ store that ER does not?",
}


declare(
    "replay-1",
    Words(
        'A dictionary from "er", "agem", "gem", "derpp" to what old samples are used for: a word each.',
        right=USES,
        mistakes=[
            Mistake(
                "gem and a-gem",
                "GEM and A-GEM are the wrong way round. Which of them is the cheap one?",
                {"gem": USES["agem"], "agem": USES["gem"]},
            ),
            *(Mistake(f"{method} wrong", HINTS[method], {method: None}) for method in USES),
        ],
        praise="Two of them train on old samples. The other two only ask them for directions.",
        what="Your answer to {}",
        holds=f"a word for each of {', '.join(USES)}",
    ),
)


def _kept(budget: int, i: int, n: int) -> float:
    return min(1.0, budget / n)


def _pushed_out(budget: int, i: int, n: int) -> float:
    chance = min(1.0, budget / i)
    for j in range(max(i, budget) + 1, n + 1):
        chance *= 1 - budget / j
    return chance


@exercise("replay-2")
def reservoir(answer: Any) -> str:
    """A function of (budget, i, n): how likely the i-th sample (from 1) is in a reservoir after n samples."""
    cases = [(5, 1, 3), (5, 5, 5), (5, 2, 10), (5, 10, 10), (20, 30, 100), (1, 3, 4)]
    compare(
        answer,
        _kept,
        cases=cases,
        mistakes={
            "chance of entering": (
                lambda b, i, n: min(1.0, b / i),
                "That is how likely it enters. Samples that come later may push it out again.",
            ),
            "always let in": (
                lambda b, i, n: (1 - 1 / b) ** max(0, n - max(i, b)),
                "You let every new sample in, so old ones fade. A reservoir lets later ones in more and more rarely.",
            ),
            "above one": (
                lambda b, i, n: b / n,
                "Try it with fewer samples than places. A probability ends at one.",
            ),
            "pushed out by all that is let in": (
                _pushed_out,
                "A later sample that is let in takes one place, and not always yours: it pushes you out with 1 / j.",
            ),
            "first come": (
                lambda b, i, n: float(i <= b),
                "That memory is filled once and never changes. It would hold the first task alone.",
            ),
        },
    )
    return "i has no part in it: the first sample has the same chance as the last, and nobody had to know n beforehand."


def _average(g: Tensor, g_ref: Tensor) -> Tensor:
    return g - min(0.0, float(g @ g_ref)) / float(g_ref @ g_ref) * g_ref


@exercise("replay-3")
def project(answer: Any) -> str:
    """A function of vectors g and g_ref: the gradient that A-GEM hands to the optimiser."""
    cases = [(torch.randn(n), torch.randn(n)) for n in (2, 3, 5, 8, 8, 8)]
    cases += [(g, -g_ref) for g, g_ref in cases]
    compare(
        without(agem, answer),
        _average,
        cases=cases,
        mistakes={
            "always projects": (
                lambda g, r: g - (g @ r) / (r @ r) * r,
                "You also project where both agree, and throw away a step that helps the old tasks.",
            ),
            "length of g_ref left in": (
                lambda g, r: g - min(0.0, float(g @ r)) * r,
                "Is your result at a right angle to g_ref? Only where g_ref has length one.",
            ),
            "added": (
                lambda g, r: g + min(0.0, float(g @ r)) / float(r @ r) * r,
                "Your result is further from g_ref than before. Is the harmful part added or taken off?",
            ),
            "reflected": (
                lambda g, r: g - 2 * min(0.0, float(g @ r)) / float(r @ r) * r,
                "You go past the border, to its mirror image. A-GEM stops at the border.",
            ),
            "the wrong part": (
                lambda g, r: (g @ r) / (r @ r) * r if g @ r < 0 else g,
                "That is the part of g along g_ref: the harmful one. Keep the rest.",
            ),
            "condition turned round": (
                lambda g, r: g - max(0.0, float(g @ r)) / float(r @ r) * r,
                "You project where both agree, and leave the step alone that harms the old tasks.",
            ),
            "divided by g": (
                lambda g, r: g - min(0.0, float(g @ r)) / float(g @ g) * r,
                "What is taken off points along g_ref, so its length is what counts below the line, not that of g.",
            ),
            "divided by the length": (
                lambda g, r: g - min(0.0, float(g @ r)) / float(r.norm()) * r,
                "Divide by the square of the length: g_ref appears twice above the line.",
            ),
        },
    )
    return "One product of two vectors, whatever the number of tasks: that is all that A-GEM adds to a second gradient."


def _logits(z: Tensor, h: Tensor) -> Tensor:
    return (z - h).square().sum(1).mean()


@exercise("replay-4")
def dark(answer: Any) -> str:
    """A function of remembered logits z and present ones h, both (n, C): the distance in DER++'s loss."""
    cases = [(2 * torch.randn(n, c), 2 * torch.randn(n, c)) for n, c in ((1, 2), (4, 3), (6, 10))]
    compare(
        without(derpp, answer),
        _logits,
        cases=cases,
        mistakes={
            "mean over outputs": (
                lambda z, h: F.mse_loss(h, z),
                "mse_loss averages over the outputs too. The squared length of a vector is a sum.",
            ),
            "half": (
                lambda z, h: _logits(z, h) / 2,
                "Half of it. The equation has no factor of one half; alpha stands in its place.",
            ),
            "sum over samples": (
                lambda z, h: (z - h).square().sum(),
                "That grows with the batch. Average over the samples.",
            ),
            "absolute values": (
                lambda z, h: (z - h).abs().sum(1).mean(),
                "That is a sum of absolute values. The squared length is a sum of squares.",
            ),
            "not squared": (
                lambda z, h: (z - h).norm(dim=1).mean(),
                "That is the length; the equation has its square.",
            ),
            "after softmax": (
                lambda z, h: (z.softmax(1) - h.softmax(1)).square().sum(1).mean(),
                "Compare the logits themselves. Softmax forgets what is added to all of them.",
            ),
            "distillation": (
                lambda z, h: -(z.softmax(1) * h.log_softmax(1)).sum(1).mean(),
                "That is LwF's term. DER++ compares the logits directly.",
            ),
        },
    )
    return "Its gradient does not fade where the network is sure, as that of a softmax does."


def _cone(g: Tensor, G: Tensor) -> Tensor:
    return g - ((G @ g).clamp(max=0) / G.square().sum(1)) @ G


@exercise("replay-5")
def orthogonal(answer: Any) -> str:
    """A function of g, shape (n,), and G, shape (k, n), with rows at right angles: the gradient of GEM, margin 0."""
    cases = []
    for n, k in ((3, 1), (4, 2), (6, 3), (9, 4), (9, 4)):
        rows = torch.linalg.qr(torch.randn(n, n))[0][:k]
        cases.append((torch.randn(n), rows * (0.5 + 2 * torch.rand(k, 1))))
    compare(
        without(gem, answer),
        _cone,
        cases=cases,
        mistakes={
            "all removed": (
                lambda g, G: g - ((G @ g) / G.square().sum(1)) @ G,
                "You also remove what helps an old task. Which constraints are violated?",
            ),
            "average": (
                lambda g, G: _average(g, G.mean(0)),
                "That is A-GEM: on average the old tasks are safe, but one of them may pay for the others.",
            ),
            "worst only": (
                lambda g, G: _average(g, G[int((G @ g).argmin())]),
                "You repair the worst violation and leave the others.",
            ),
            "lengths left in": (
                lambda g, G: g - (G @ g).clamp(max=0) @ G,
                "The rows of G need not have length one. Is <g~, g_k> zero with yours?",
            ),
        },
    )
    return "Where the rows are not at right angles, repairing one constraint disturbs the next: then it takes a solver."


def _missing(budget: int, classes: int) -> float:
    return classes * (1 - 1 / classes) ** budget


@exercise("replay-6")
def missing(answer: Any) -> str:
    """A function of (budget, classes): how many of so many equally frequent classes a reservoir lacks, on average."""
    compare(
        answer,
        _missing,
        cases=[(1, 2), (10, 10), (20, 10), (50, 100), (100, 10)],
        mistakes={
            "one class": (
                lambda b, c: (1 - 1 / c) ** b,
                "That is the probability that one given class is missing. How many of them can be missing?",
            ),
            "a place each": (
                lambda b, c: max(0, c - b),
                "That holds if every place goes to another class. A reservoir does not look at classes.",
            ),
            "probability turned round": (
                lambda b, c: c * (1 / c) ** b,
                "A place misses a given class with probability 1 - 1/classes.",
            ),
            "an exponential": (
                lambda b, c: c * np.exp(-b / c),
                "That is right for many classes, and nearly right for few. Places are filled one by one: by what is "
                "the chance multiplied with each?",
            ),
            "rounded": (
                lambda b, c: float(round(_missing(b, c))),
                "It is a mean, and need not be a whole number.",
            ),
            "a share of the present": (
                lambda b, c: 1 - (1 - 1 / c) ** b,
                "That is the probability that one given class is there. How many are missing?",
            ),
            "those present": (
                lambda b, c: c - _missing(b, c),
                "That is how many are there. How many are not?",
            ),
        },
    )
    return "With as many places as classes, over a third of the classes are missing. With an equal share each: none."
