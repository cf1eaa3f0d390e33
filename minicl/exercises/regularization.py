"""The exercises of the chapter "Regularisation and distillation"."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..regularization import lwf
from . import compare, exercise, without
from ._declared import Mistake, Words, declare

SOURCES = {
    "ewc": "predictions",
    "si": "path",
    "mas": "outputs",
    "lwf": "none",
    "vcl": "posterior",
    "agscl": "activations",
}

HINTS = {
    "ewc": "What is squared in EWC's importance: the gradient of which function?",
    "si": "SI needs no second look at the data: it is measured while training.",
    "mas": "MAS needs no labels. Of which quantity does it take the gradient?",
    "lwf": "Look for importances in LwF's equation. Which weights does it hold?",
    "vcl": "In VCL a weight has a mean and something else, which says how sure it is.",
    "agscl": "AGS-CL looks at units, not at weights. When does a unit matter?",
}


declare(
    "regularization-1",
    Words(
        'A dictionary from "ewc", "si", "mas", "lwf", "vcl", "agscl" to where the importances come from: a word each.',
        right=SOURCES,
        mistakes=[Mistake(f"{method} wrong", HINTS[method], {method: None}) for method in SOURCES],
        praise="One of them has no importances at all: it holds answers, not weights.",
        what="Your answer to {}",
        holds=f"a word for each of {', '.join(SOURCES)}",
    ),
)


def _springs(f1: Tensor, a1: Tensor, f2: Tensor, a2: Tensor) -> Tensor:
    return (f1 * a1 + f2 * a2) / (f1 + f2)


@exercise("regularization-2")
def resting_point(answer: Any) -> str:
    """A function of (F1, a1, F2, a2): where a weight rests that two springs of stiffness F1, F2 pull to a1 and a2."""
    cases = [(torch.rand(n) + 0.1, torch.randn(n), torch.rand(n) + 0.1, torch.randn(n)) for n in (1, 4, 7)]
    compare(
        answer,
        _springs,
        cases=cases,
        mistakes={
            "plain mean": (
                lambda f1, a1, f2, a2: (a1 + a2) / 2,
                "That is right for springs of equal stiffness. Which anchor pulls harder?",
            ),
            "newest anchor": (
                lambda f1, a1, f2, a2: a2,
                "That is where online EWC and MAS hold on. With one anchor per task, the first one pulls as well.",
            ),
            "oldest anchor": (
                lambda f1, a1, f2, a2: a1,
                "The second spring pulls too: the weight does not stay where the first task left it.",
            ),
            "weights swapped": (
                lambda f1, a1, f2, a2: (f2 * a1 + f1 * a2) / (f1 + f2),
                "The stiffer spring should win; with yours the softer one does.",
            ),
            "not divided": (
                lambda f1, a1, f2, a2: f1 * a1 + f2 * a2,
                "Set the derivative of F1 (w - a1)^2 + F2 (w - a2)^2 to zero and solve for w.",
            ),
        },
    )
    return "So any number of anchors is one anchor: a step of offline EWC costs the same after a hundred tasks."


def _fisher(x: Tensor, p: Tensor) -> Tensor:
    return ((p * (1 - p))[:, None] * x**2).mean(0)


@exercise("regularization-3")
def fisher_of_logistic_regression(answer: Any) -> str:
    """A function of inputs x, shape (n, d), and p = p(y = 1 | x), shape (n,): the Fisher diagonal, shape (d,)."""
    cases = [(torch.randn(n, d), torch.rand(n)) for n, d in ((1, 3), (6, 2), (20, 5))]
    compare(
        answer,
        _fisher,
        cases=cases,
        mistakes={
            "square of the mean": (
                lambda x, p: ((p * (1 - p)).sqrt()[:, None] * x).mean(0) ** 2,
                "You square a mean. The gradients of single images must be squared before they are averaged.",
            ),
            "the batch's gradient": (
                (
                    lambda x, p: _fisher(x, p) / len(x),
                    lambda x, p: ((p * (1 - p))[:, None] * x).mean(0) ** 2,
                    lambda x, p: ((1 - p)[:, None] * x).mean(0) ** 2,
                    lambda x, p: (p[:, None] * x).mean(0) ** 2,
                    lambda x, p: ((1 - p)[:, None] * x).sum(0) ** 2,
                    lambda x, p: (p[:, None] * x).sum(0) ** 2,
                    lambda x, p: ((p.round() - p)[:, None] * x).mean(0) ** 2,
                ),
                "You square the gradient of the batch, in which the images have been averaged already. Square the "
                "gradient of each image, then take the mean.",
            ),
            "not squared": (
                lambda x, p: ((p * (1 - p))[:, None] * x).mean(0),
                "The gradient of log p is (y - p) x. What becomes of x when that is squared?",
            ),
            "sum over images": (
                lambda x, p: ((p * (1 - p))[:, None] * x**2).sum(0),
                "That is the sum over images; the Fisher information is their mean.",
            ),
            "labels not averaged": (
                lambda x, p: (p[:, None] * x**2).mean(0),
                "The square of the gradient is (y - p)^2 x^2. Average (y - p)^2 over y: what is left is not p.",
            ),
            "labels all one": (
                lambda x, p: (((1 - p) ** 2)[:, None] * x**2).mean(0),
                "That takes y = 1 everywhere. Average over y as the model would draw it: 1 with p, 0 with 1 - p.",
            ),
            "labels all zero": (
                lambda x, p: ((p**2)[:, None] * x**2).mean(0),
                "That takes y = 0 everywhere. The model would draw 1 as well: with probability p.",
            ),
            "the likeliest label": (
                lambda x, p: (((p.round() - p) ** 2)[:, None] * x**2).mean(0),
                "You take the likeliest label of each image. The model would draw the other one too, now and then: "
                "average over both.",
            ),
            "squared twice": (
                lambda x, p: (((p * (1 - p)) ** 2)[:, None] * x**2).mean(0),
                "p (1 - p) is what is left of (y - p)^2 when it has been averaged. It is not squared again.",
            ),
            "two means": (
                lambda x, p: (p * (1 - p)).mean() * (x**2).mean(0),
                "You average p (1 - p) and x^2 each by itself. They belong to the same image: multiply first.",
            ),
            "a root": (
                lambda x, p: _fisher(x, p).sqrt(),
                "You take a root at the end. The Fisher information is the mean of the squares itself.",
            ),
        },
    )
    return "Where the model is sure, p (1 - p) is nearly zero: EWC sees nothing to protect there."


def _mas(W: Tensor, x: Tensor) -> Tensor:
    return (2 * (x @ W.T)[:, :, None] * x[:, None, :]).abs().mean(0)


@exercise("regularization-4")
def mas_of_a_linear_layer(answer: Any) -> str:
    """A function of W, shape (c, d), and inputs x, shape (n, d): MAS's importances for F(x) = W x, shape (c, d)."""
    cases = [(torch.randn(c, d), torch.randn(n, d)) for c, d, n in ((2, 3, 1), (3, 2, 8), (4, 4, 5))]
    compare(
        answer,
        _mas,
        cases=cases,
        mistakes={
            "per batch": (
                lambda W, x: (2 * (x @ W.T)[:, :, None] * x[:, None, :]).mean(0).abs(),
                "You average over the images first: what pulls up for one and down for another cancels out.",
            ),
            "without the two": (
                lambda W, x: ((x @ W.T)[:, :, None] * x[:, None, :]).abs().mean(0),
                "Half of it. What is the derivative of a square?",
            ),
            "length not squared": (
                lambda W, x: (
                    (((x @ W.T) / (x @ W.T).norm(dim=1, keepdim=True))[:, :, None] * x[:, None, :]).abs().mean(0)
                ),
                "That is the gradient of the length; MAS takes the square of the length.",
            ),
            "no absolute value": (
                lambda W, x: (2 * (x @ W.T)[:, :, None] * x[:, None, :]).mean(0),
                "An importance has no sign: where is the absolute value?",
            ),
            "sum over images": (
                lambda W, x: _mas(W, x) * len(x),
                "That is the sum over images; MAS takes their mean.",
            ),
            "squared like EWC": (
                lambda W, x: ((2 * (x @ W.T)[:, :, None] * x[:, None, :]) ** 2).mean(0),
                "EWC squares its gradients. What does MAS do with them?",
            ),
        },
    )
    return "No label appears anywhere: MAS can be measured on images that nobody has named."


def _distillation(z: Tensor, old: Tensor, T: float) -> Tensor:
    return -((old / T).softmax(1) * (z / T).log_softmax(1)).sum(1).mean()


@exercise("regularization-5")
def distil(answer: Any) -> str:
    """A function of logits z and recorded logits old, both (n, C), and a temperature: the distillation loss."""
    cases = [(2 * torch.randn(n, c), 2 * torch.randn(n, c), t) for n, c, t in ((1, 2, 2.0), (5, 3, 2.0), (4, 6, 3.0))]
    compare(
        without(lwf, answer),
        _distillation,
        cases=cases,
        mistakes={
            "roles swapped": (
                lambda z, old, T: _distillation(old, z, T),
                "The recorded answer is the target: it stands where a label would, outside the logarithm.",
            ),
            "no temperature": (
                lambda z, old, T: _distillation(z, old, 1.0),
                "The temperature is missing. It divides the logits of both networks.",
            ),
            "temperature on one side": (
                lambda z, old, T: -((old / T).softmax(1) * z.log_softmax(1)).sum(1).mean(),
                "Only the targets are softened. The network must answer at the same temperature.",
            ),
            "hard targets": (
                lambda z, old, T: F.cross_entropy(z / T, old.argmax(1)),
                "You keep the winner alone. What makes distillation better is what the old network says of the rest.",
            ),
            "divergence": (
                lambda z, old, T: F.kl_div((z / T).log_softmax(1), (old / T).softmax(1), reduction="batchmean"),
                "That is the KL divergence. Its gradient is the same, but the equation asks for the cross-entropy, "
                "from which no entropy of the targets is taken off.",
            ),
            "temperature squared": (
                lambda z, old, T: T**2 * _distillation(z, old, T),
                "Much code multiplies by the square of the temperature, to make up for smaller gradients. "
                "The equation does not.",
            ),
            "mean over classes": (
                lambda z, old, T: _distillation(z, old, T) / z.shape[1],
                "You average over the classes as well. Sum over them, and average over the images alone.",
            ),
            "sum over images": (
                lambda z, old, T: _distillation(z, old, T) * len(z),
                "That is the sum over the batch; its mean is asked for.",
            ),
            "multiplied": (
                lambda z, old, T: _distillation(z * T * T, old * T * T, T),
                "Your temperature makes the answers sharper. It should make them softer: divide.",
            ),
        },
    )
    return "Its gradient is zero exactly where old and new answers agree, and nothing is said about the weights."


def _proximal(theta: Tensor, anchor: Tensor, threshold: float) -> Tensor:
    away = theta - anchor
    return anchor + torch.clamp(1 - threshold / away.norm(), min=0) * away


@exercise("regularization-6")
def proximal(answer: Any) -> str:
    """A function of vectors theta, anchor and a threshold: the z of least |z-theta|^2 / 2 + threshold |z-anchor|."""
    cases = []
    for scale in (0.1, 0.5, 1.0, 3.0, 10.0):
        theta, anchor = torch.randn(4), torch.randn(4)
        cases.append((theta, anchor, scale * float((theta - anchor).norm()) / 2))
    compare(
        answer,
        _proximal,
        cases=cases,
        mistakes={
            "overshoots": (
                lambda theta, anchor, t: anchor + (1 - t / (theta - anchor).norm()) * (theta - anchor),
                "Where the threshold is larger than the distance, yours goes past the anchor to the other side.",
            ),
            "each entry by itself": (
                lambda theta, anchor, t: anchor + F.softshrink(theta - anchor, t),
                "You shrink each entry by itself. The group moves as one: look at the length of theta - anchor.",
            ),
            "squared distance": (
                lambda theta, anchor, t: (theta + 2 * t * anchor) / (1 + 2 * t),
                "That minimises with the square of the distance, as EWC has it. It never arrives at the anchor.",
            ),
            "a share of the way": (
                lambda theta, anchor, t: theta - t * (theta - anchor),
                "That goes a share of the way, as on a squared distance. Here the step has a length of its own.",
            ),
            "towards zero": (
                lambda theta, anchor, t: _proximal(theta, torch.zeros_like(theta), t),
                "That pulls towards zero, as group Lasso does. Here the pull is towards the anchor.",
            ),
        },
    )
    return "It reaches its anchor in finitely many steps, which no gradient of a smooth penalty does."
