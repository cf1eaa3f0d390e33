"""The exercises of the chapter "Why networks forget"."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import FineTune, mlp, same_bits
from . import Hint, call, compare, exercise, one_of
from ._declared import Case, Is, Mistake, Numbers, Row, Words, declare, entries, linear, vary

Array = NDArray[np.float64]


PLANS = {"a": "continual", "b": "feature extraction", "c": "fine-tuning", "d": "joint", "e": "meta-learning"}

WHY_NOT = {
    ("a", "fine-tuning"): "Plan a trains on and on too, but read its last words: what counts in the end?",
    ("a", "joint"): "Are the first year's pictures still there in plan a?",
    ("b", "fine-tuning"): "In plan b, which weights may still move?",
    ("c", "feature extraction"): "In plan c, does anything stay as it was?",
    ("c", "continual"): "Does plan c ask whether the cats are still known at the end?",
    ("d", "continual"): "In plan d, does any data ever go away?",
    ("e", "continual"): "In plan e, are the tasks kept, or are they practice for tasks to come?",
}

declare(
    "forgetting-1",
    Words(
        'What each plan is called: a dictionary from the letters "a" to "e" to the names in the list.',
        right=PLANS,
        mistakes=[
            Mistake(
                f"{letter}: {name}",
                f"Not {name} for plan {letter}. "
                + WHY_NOT.get((letter, name), "Ask what data is there, what may move, and what counts in the end."),
                {letter: name},
            )
            for letter, right in PLANS.items()
            for name in PLANS.values()
            if name != right
        ],
        praise="All learn from more than one task; only a is judged by all of them with the data of one at a time.",
        what="The name for {}",
    ),
)


def _left_behind(theta: Array, x1: Array, y1: float, x2: Array, y2: float) -> float:
    after = theta - (theta @ x2 - y2) * x2 / (x2 @ x2)
    return float(0.5 * (after @ x1 - y1) ** 2)


@exercise("forgetting-2")
def left_behind(answer: Any) -> str:
    """The loss of task 1 once descent has solved task 2: a function of theta, x1, y1, x2, y2."""

    def case(n: int) -> tuple[Array, Array, float, Array, float]:
        theta, x1, x2, y = (np.asarray(torch.randn(m).double()) for m in (n, n, n, 2))
        return theta, x1, float(y[0]), x2, float(y[1])

    compare(
        answer,
        _left_behind,
        cases=[case(n) for n in (2, 2, 3, 5)],
        mistakes={
            "loss before": (
                lambda theta, x1, y1, x2, y2: 0.5 * (theta @ x1 - y1) ** 2,
                "That is the loss of task 1 before task 2 is learned. Where does descent on task 2 end?",
            ),
            "loss of task 2": (
                lambda theta, x1, y1, x2, y2: 0.5 * (theta @ x2 - y2) ** 2,
                "That is the loss of task 2 at the start. The loss of task 1, at the end, is asked for.",
            ),
            "one step": (
                lambda theta, x1, y1, x2, y2: 0.5 * ((theta - (theta @ x2 - y2) * x2) @ x1 - y1) ** 2,
                "That is one step of size one. How far along x2 must you go until task 2's error is exactly zero?",
            ),
            "tasks swapped": (
                lambda theta, x1, y1, x2, y2: _left_behind(theta, x2, y2, x1, y1),
                "You solve task 1 and look at the loss of task 2. It is the other way round.",
            ),
            "uphill": (
                lambda theta, x1, y1, x2, y2: 0.5 * ((theta + (theta @ x2 - y2) * x2 / (x2 @ x2)) @ x1 - y1) ** 2,
                "You went as far as you should, but away from task 2's solution: put your theta into its error.",
            ),
            "length, not its square": (
                lambda theta, x1, y1, x2, y2: (
                    0.5 * ((theta - (theta @ x2 - y2) * x2 / np.linalg.norm(x2)) @ x1 - y1) ** 2
                ),
                "You divided by the length of x2. Put your theta into task 2's error: is it zero?",
            ),
            "no half": (
                lambda theta, x1, y1, x2, y2: 2 * _left_behind(theta, x1, y1, x2, y2),
                "Twice too much: the loss is half of the squared error.",
            ),
            "error, not loss": (
                lambda theta, x1, y1, x2, y2: (theta - (theta @ x2 - y2) * x2 / (x2 @ x2)) @ x1 - y1,
                "That is task 1's error. The loss is half of its square.",
            ),
        },
    )
    return "If task 1 was solved before, all that matters is the angle between x1 and x2, and how wrong task 2 was."


def _apart(x1: Array, k: int, x2: Array) -> float:
    """An entry of the cross product, which is zero where x2 points along x1."""
    return float(np.cross(x1, x2)[k])


def _both(rows: list[Row]) -> list[Row]:
    """Rows and their opposites: their largest is the largest in size."""
    return [*rows, *(tuple(-weight for weight in row) for row in rows)]


def _harmless(x1: Array) -> Numbers:
    asked = ", ".join(f"{entry:g}" for entry in x1)
    return Numbers(
        f"An input of task 2 that cannot make the network forget x1 = ({asked}): three numbers, not all zero.",
        [
            Case(
                "With an input of zeros task 2 has no gradient, and can never be learned.",
                [Is("size", "near", 0, 1e-6)],
                mistake="zeros",
            ),
            Case(
                "This input points along x1 itself: every step for it changes what task 1 answers as much as can be.",
                [Is("apart", "near", 0, 1e-6)],
                mistake="parallel",
            ),
            Case(
                "At right angles: a step for the one does not show in the other. "
                "Isolation builds such tasks on purpose.",
                [Is("product", "near", 0, 1e-6)],
                right=True,
            ),
            Case(
                "A step along this input changes the answer to x1: their product is {product:.3g}. What must it be?",
                [],
                mistake="product not zero",
            ),
        ],
        shape=(3,),
        quantities={
            "size": _both(entries((3,))),
            "apart": _both([row for k in range(3) for row in linear(partial(_apart, x1, k), (3,))]),
            "product": linear(lambda x2: x1 @ x2, (3,)),
        },
    )


declare("forgetting-3", _harmless(np.array([1.0, 2.0, 2.0])))


@vary("forgetting-3")
def _an_input() -> tuple[str, Numbers]:
    x1 = [one_of(-3, -2, -1, 1, 2, 3) for _ in range(3)]
    text = (
        f"In a linear network with three weights, the first task has the input {x1}. Find an input for the second "
        "task, not all zeros, so that learning it cannot change what the first task is answered, whatever its labels."
    )
    return text, _harmless(np.array(x1, dtype=np.float64))


def _change(g1: Array, g2: Array, H1: Array, lr: float) -> float:
    return float(-lr * g1 @ g2 + 0.5 * lr**2 * g2 @ H1 @ g2)


@exercise("forgetting-4")
def change(answer: Any) -> str:
    """What a step on task 2 does to task 1's loss, to second order: a function of g1, g2, H1, lr."""

    def case(n: int) -> tuple[Array, Array, Array, float]:
        g1, g2, H = (np.asarray(torch.randn(shape).double()) for shape in ((n,), (n,), (n, n)))
        return g1, g2, H @ H.T, 0.1 + float(torch.rand(()))

    compare(
        answer,
        _change,
        cases=[case(n) for n in (2, 3, 4)],
        mistakes={
            "first order": (
                lambda g1, g2, H1, lr: -lr * g1 @ g2,
                "That is the first-order term. It vanishes where task 1 is solved; what is left then?",
            ),
            "second order": (
                lambda g1, g2, H1, lr: 0.5 * lr**2 * g2 @ H1 @ g2,
                "That is the second-order term alone. Away from task 1's solution g1 is not zero.",
            ),
            "sign of the first term": (
                lambda g1, g2, H1, lr: lr * g1 @ g2 + 0.5 * lr**2 * g2 @ H1 @ g2,
                "The step is -lr * g2: a sign is lost in the first-order term.",
            ),
            "sign of the second term": (
                lambda g1, g2, H1, lr: -lr * g1 @ g2 - 0.5 * lr**2 * g2 @ H1 @ g2,
                "In the second-order term the step comes twice, so its two minus signs make a plus.",
            ),
            "no half": (
                lambda g1, g2, H1, lr: -lr * g1 @ g2 + lr**2 * g2 @ H1 @ g2,
                "The second-order term of Taylor's formula has a factor that yours lacks.",
            ),
            "lr not squared": (
                lambda g1, g2, H1, lr: -lr * g1 @ g2 + 0.5 * lr * g2 @ H1 @ g2,
                "The step, with its lr, comes twice in the second-order term.",
            ),
            "the other gradient": (
                lambda g1, g2, H1, lr: -lr * g1 @ g2 + 0.5 * lr**2 * g1 @ H1 @ g1,
                "Which gradient is stepped along? The curvature that matters is the one in that direction.",
            ),
        },
    )
    return "Where g1 is zero, no step is free: what is left is the curvature, and at a minimum it is never negative."


@exercise("forgetting-5")
def freeze_first(answer: Any) -> str:
    """Freeze the first n linear layers of a learner's backbone: a function of (learner, n), changing the learner."""
    for n in range(4):
        learner = FineTune(mlp(6, 5, 5, 5, dropout=0.1))
        layers = [module for module in learner.backbone.modules() if isinstance(module, nn.Linear)]
        optimizer = _optimizer(learner)
        _train(learner, optimizer)  # task 1: there is a velocity by now
        before = [_values(layer) for layer in layers]
        _freeze(answer, learner, n)
        layers = [module for module in learner.backbone.modules() if isinstance(module, nn.Linear)]
        if len(layers) != 3 or not all(
            same_bits(_values(layer), old) for layer, old in zip(layers, before, strict=True)
        ):
            raise Hint(
                "The weights themselves changed. Freezing keeps them as they are.", mistake="changes the weights"
            )
        moved, weights_moved = _moved(learner, layers, optimizer)
        should = [i >= n for i in range(3)]
        if moved == should:
            continue
        if weights_moved == should:
            raise Hint(
                f"With n={n}, the weights of the first layers stand still, and their biases move. A bias is part of "
                "its layer.",
                mistake="biases move",
            )
        if [layer.weight.requires_grad for layer in layers] == should:
            raise Hint(
                f"With n={n}, the first layers get no gradient any more, and they move all the same: the optimiser of "
                "the first task still holds them, with a velocity, and weight decay pulls as well. How are they taken "
                "out of its reach?",
                mistake="the gradient alone",
            )
        if all(moved):
            raise Hint(f"With n={n}, every layer still moves when the network is trained.", mistake="nothing is frozen")
        if n == 2 and moved == [False, True, True]:
            raise Hint(
                "With n=2 only one layer is frozen. The backbone holds modules without weights too: count layers.",
                mistake="counts every module",
            )
        if moved == [i < 3 - n for i in range(3)]:
            raise Hint(
                f"With n={n}, you froze the last layers. The first are those next to the input.", mistake="the last"
            )
        frozen = [i for i in range(3) if not moved[i]]
        raise Hint(
            f"With n={n}, these layers do not move (counted from 0): {frozen}. Which ones should not?",
            mistake="the wrong layers",
        )
    return "What is frozen cannot be forgotten, and cannot learn."


def _freeze(answer: Any, learner: FineTune, n: int) -> None:
    """Call the reader's function on the learner itself, which it is meant to change."""
    if not callable(answer):
        call(answer)
    try:
        answer(learner, n)
    except Exception as error:
        raise Hint(
            f"Your function raised {type(error).__name__} ({error}), called with a learner and n={n}."
        ) from error


def _optimizer(learner: FineTune) -> torch.optim.Optimizer | None:
    weights = [p for p in learner.parameters() if p.requires_grad]
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1) if weights else None


def _train(learner: FineTune, optimizer: torch.optim.Optimizer | None) -> None:
    for _ in range(3 if optimizer else 0):
        optimizer.zero_grad(set_to_none=False)  # type: ignore[union-attr]
        output = learner.backbone(torch.randn(8, 6))
        if output.requires_grad:
            output.square().mean().backward()
        optimizer.step()  # type: ignore[union-attr]


def _values(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight.detach().clone(), layer.bias.detach().clone()


def _moved(
    learner: FineTune, layers: list[nn.Linear], optimizer: torch.optim.Optimizer | None
) -> tuple[list[bool], list[bool]]:
    """Which layers move under momentum and weight decay, by the optimiser that is there or by a new one.

    Returns:
        for each layer whether its weights or biases moved, and whether its weights alone did.
    """
    before = [_values(layer) for layer in layers]
    _train(learner, optimizer)
    _train(learner, _optimizer(learner))
    after = [_values(layer) for layer in layers]
    pairs = list(zip(after, before, strict=True))
    return [not same_bits(new, old) for new, old in pairs], [not same_bits(new[0], old[0]) for new, old in pairs]
