"""The exercises of the chapter "Without a task id"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import inference
from ..replay import wa
from . import compare, exercise, without
from ._declared import Mistake, Words, declare

KEPT = {"packnet": "masks", "icarl": "images", "slda": "means", "generative": "generator"}

HINTS = {
    "packnet": "PackNet needs the task id in training alone. What is stored, so that a guess can be tried?",
    "icarl": "What are iCaRL's exemplars?",
    "slda": "SLDA's network stands still. What does it add for a new class?",
    "generative": "Generative replay stores no picture. Where do its old samples come from?",
}


declare(
    "without_task_id-1",
    Words(
        'A dictionary from "packnet", "icarl", "slda", "generative" to what each keeps of old tasks: a word each.',
        right=KEPT,
        mistakes=[Mistake(f"{method} wrong", HINTS[method], {method: None}) for method in KEPT],
        praise="One of the four keeps pictures of people's handwriting. That may decide which one can be used.",
        what="Your answer to {}",
        holds=f"a word for each of {', '.join(KEPT)}",
    ),
)


@exercise("without_task_id-2")
def product(answer: Any) -> str:
    """A function of (naming, within_named): the share of all samples whose class is right."""
    compare(
        answer,
        lambda naming, within: naming * within,
        cases=[(1.0, 0.9), (0.5, 1.0), (0.6, 0.99), (0.2, 0.5), (0.0, 1.0)],
        mistakes={
            "mean": (
                lambda n, w: (n + w) / 2,
                "A sample must be right in both. If no task is ever named, what is the accuracy?",
            ),
            "smaller": (min, "Some samples whose task is named still get the wrong class. Both shares cost something."),
            "sum of errors": (
                lambda n, w: n + w - 1,
                "You take off both errors from all samples. The second is made among those alone whose task was named.",
            ),
        },
    )
    return "Without forgetting the second factor stays near one, so nearly all that is missing is the name of the task."


@exercise("without_task_id-3")
def free_energy(answer: Any) -> str:
    """A function of logits z, shape (n, C): the energy score of each sample, shape (n,)."""
    compare(
        without(inference, answer),
        lambda z: z.logsumexp(1),
        cases=[(3 * torch.randn(n, c),) for n, c in ((1, 2), (4, 3), (6, 10))],
        mistakes={
            "largest logit": (lambda z: z.amax(1), "That is the rule beside it. The energy listens to all outputs."),
            "no logarithm": (lambda z: z.exp().sum(1), "Is that on the scale of logits? Large ones would overflow."),
            "sum of logits": (lambda z: z.sum(1), "You add up logits. What does softmax divide by?"),
            "sign": (
                lambda z: -z.logsumexp(1),
                "That is the free energy itself; the score is the other way round.",
            ),
        },
    )
    return "It is what softmax divides by, and so throws away: how much the outputs rise together."


def _gamma(old: Tensor, new: Tensor) -> Tensor:
    return old.norm(dim=1).mean() / new.norm(dim=1).mean()


@exercise("without_task_id-4")
def aligning(answer: Any) -> str:
    """A function of the rows of old and new classes, shapes (n, d) and (m, d): the factor for the new ones."""
    compare(
        without(wa, answer),
        _gamma,
        cases=[(torch.randn(n, d), 2 * torch.randn(m, d)) for n, m, d in ((2, 2, 3), (6, 2, 4), (3, 5, 2))],
        mistakes={
            "turned round": (lambda o, n: 1 / _gamma(o, n), "The new rows are longer. Would yours make them shorter?"),
            "norm of the matrix": (
                lambda o, n: o.norm() / n.norm(),
                "That grows with the number of classes. Take the length of each row, and then their mean.",
            ),
            "squares": (
                lambda o, n: o.square().sum(1).mean() / n.square().sum(1).mean(),
                "Those are squared lengths.",
            ),
        },
    )
    return "One number, after training, without a single image: no other correction is as cheap."


@exercise("without_task_id-5")
def biases(answer: Any) -> str:
    """A function of means, shape (C, d): the biases with which the weight rows mu make argmax the nearest mean."""
    compare(
        answer,
        lambda means: -0.5 * means.square().sum(1),
        cases=[(torch.randn(c, d),) for c, d in ((2, 3), (5, 4), (10, 2))],
        mistakes={
            "no half": (
                lambda m: -m.square().sum(1),
                "Multiply out the square: the cross term has a two.",
            ),
            "sign": (lambda m: 0.5 * m.square().sum(1), "A mean that is far out would win everywhere. Check the sign."),
            "not squared": (lambda m: -0.5 * m.norm(dim=1), "The length of mu comes in squared."),
            "no biases": (lambda m: torch.zeros(len(m)), "Then the longest mean wins. When are biases not needed?"),
        },
    )
    return "So the nearest mean is a linear layer that nobody has to train. With means of length one it needs no bias."


@exercise("without_task_id-6")
def bytes_of_slda(answer: Any) -> str:
    """A function of (classes, d): numbers that streaming LDA keeps: means, one count a class, one matrix."""
    compare(
        answer,
        lambda classes, d: classes * d + classes + d * d,
        cases=[(2, 3), (10, 64), (100, 512), (10, 784)],
        mistakes={
            "a matrix each": (
                lambda c, d: c * d + c + c * d * d,
                "All classes share one covariance. That is what makes it linear.",
            ),
            "means alone": (lambda c, d: c * d + c, "That is what the nearest class mean keeps. What does LDA add?"),
            "no counts": (lambda c, d: c * d + d * d, "To go on with a mean one must know of how many samples it is."),
        },
    )
    return "The matrix is of fixed size: a hundred more classes cost a hundred means."
