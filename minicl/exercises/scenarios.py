"""The exercises of the chapter "Three scenarios"."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..learner import Learner
from ..networks import mlp
from ..tasks import SCENARIOS, Task, TaskStream
from ..training import run
from . import Hint, call, compare, exercise
from ._declared import Mistake, Words, declare

SITUATIONS = {"a": "domain", "b": "class", "c": "task", "d": "domain", "e": "task", "f": "class"}

WHY_NOT = {
    ("task", "domain"): "Somebody says which task it is. What is that called, when it is told at test time?",
    ("task", "class"): "Somebody says which task it is. Must the answer then tell the tasks apart as well?",
    ("domain", "task"): "Is anyone there who says which task it is when the answer is needed?",
    (
        "domain",
        "class",
    ): "Do the possible answers become more with time, or does the same question come in a new guise?",
    ("class", "task"): "Is anyone there who says which task it is when the answer is needed?",
    (
        "class",
        "domain",
    ): "Is it the same question throughout? Count the possible answers at the beginning and at the end.",
}


declare(
    "scenarios-1",
    Words(
        'Which scenario is it? A dictionary from the letters "a" to "f" to "task", "domain" or "class".',
        right=SITUATIONS,
        mistakes=[
            Mistake(f"{right} taken for {other}", f"Look again at {letter}. {WHY_NOT[right, other]}", {letter: other})
            for letter, right in SITUATIONS.items()
            for other in SCENARIOS
            if other != right
        ],
        praise="Two questions sort them all: is the task told, and do the answers become more?",
        allowed=SCENARIOS,
        what="Your answer to {}",
        holds='a word for each letter: {"a": "...", ..., "f": "..."}',
    ),
)


def _pooled_and_mean(sizes: list[int]) -> tuple[float, float]:
    return sizes[-1] / sum(sizes), 1 / len(sizes)


@exercise("scenarios-2")
def only_the_last_task(answer: Any) -> str:
    """A function from the list of test set sizes to (share of all images that is right, ACC): two numbers."""
    compare(
        answer,
        _pooled_and_mean,
        cases=[([70, 70, 70],), ([10, 20, 30, 40],), ([500, 20],), ([33],), ([7, 5, 90, 8, 40],)],
        mistakes={
            "swapped": (
                lambda n: _pooled_and_mean(n)[::-1],
                "Both numbers are there, in the other order. Which of the two gives each task the same weight?",
            ),
            "tasks of equal size": (
                lambda n: (1 / len(n), 1 / len(n)),
                "The first number counts images. A task with more images then weighs more.",
            ),
            "images twice": (
                lambda n: (n[-1] / sum(n), n[-1] / sum(n)),
                "The second number is ACC: the mean over tasks, each of which counts once, however large it is.",
            ),
            "first task": (
                lambda n: (n[0] / sum(n), 1 / len(n)),
                "Which task does the network still answer: the first that it learned?",
            ),
        },
    )
    return "With tasks of equal size the two agree, which is why few papers say which one they print."


@exercise("scenarios-3")
def labels(answer: Any) -> str:
    """A function of (digit, scenario, n_tasks) that returns the label of a digit in `minicl.split`: an integer."""

    def right(digit: int, scenario: str, n_tasks: int) -> int:
        return digit if scenario == "class" else digit % (10 // n_tasks)

    compare(
        answer,
        right,
        cases=[(digit, scenario, n) for scenario in SCENARIOS for n in (2, 5) for digit in (0, 3, 4, 7, 9)],
        mistakes={
            "within its task everywhere": (
                lambda digit, scenario, n: digit % (10 // n),
                "Right in two scenarios. In the third, may two different digits share a label?",
            ),
            "the digit everywhere": (
                lambda digit, scenario, n: digit,
                "Right in one scenario. How many outputs has the head in the other two?",
            ),
            "own labels in domain": (
                lambda digit, scenario, n: digit % (10 // n) if scenario == "task" else digit,
                "In scenario 'domain' all tasks share one head. How many outputs has it?",
            ),
            "two digits everywhere": (
                lambda digit, scenario, n: digit if scenario == "class" else digit % 2,
                "Right for five tasks. How many digits has a task where there are two?",
            ),
            "counted from one": (
                lambda digit, scenario, n: (digit if scenario == "class" else digit % (10 // n)) + 1,
                "Labels are counted from 0.",
            ),
            "number of the task": (
                (
                    lambda digit, scenario, n: digit if scenario == "class" else digit // (10 // n),
                    lambda digit, scenario, n: digit // (10 // n),
                ),
                "That is the number of the task which the digit belongs to. The label says which of its digits it is.",
            ),
            "counts from the other end": (
                (
                    lambda digit, scenario, n: digit if scenario == "class" else digit % n,
                    lambda digit, scenario, n: digit % n,
                ),
                "You took the remainder by the number of tasks. How many classes has a task?",
            ),
        },
    )
    return "The pictures are the same in all three; the labels alone make the scenario."


def _logit_gradient(z: Tensor, y: Tensor) -> Tensor:
    return (z.softmax(1) - F.one_hot(y, z.shape[1])) / len(y)


@exercise("scenarios-4")
def logit_gradient(answer: Any) -> str:
    """A function of logits z, shape (n, C), and labels y, shape (n,): the gradient of the mean cross-entropy by z."""
    cases = [(3 * torch.randn(n, c), torch.randint(c, (n,))) for n, c in ((1, 3), (4, 2), (8, 10), (5, 6))]
    compare(
        answer,
        _logit_gradient,
        cases=cases,
        mistakes={
            "sum over the batch": (
                lambda z, y: z.softmax(1) - F.one_hot(y, z.shape[1]),
                "That belongs to the sum of the losses. The loss is their mean over the batch.",
            ),
            "label left out": (
                lambda z, y: z.softmax(1) / len(y),
                "The right class is pushed down like all others. Where does its label come in?",
            ),
            "logits for probabilities": (
                lambda z, y: (z - F.one_hot(y, z.shape[1])) / len(y),
                "Before the label is subtracted, the logits must become something that sums to 1.",
            ),
            "softmax over the batch": (
                lambda z, y: (z.softmax(0) - F.one_hot(y, z.shape[1])) / len(y),
                "Your probabilities sum to 1 over the batch. Over which axis should they?",
            ),
        },
    )
    return "For a class that never appears as a label nothing is subtracted: the gradient is positive at every step."


def _small_stream() -> list[Task]:
    """Three tasks of two classes in eight dimensions, each class a cloud about its own corner. Scenario "class"."""
    tasks = []
    for t in range(3):
        y = torch.arange(2 * t, 2 * t + 2).repeat(24)
        x = 2 * F.one_hot(y, 8).float() + 0.2 * torch.randn(len(y), 8)
        tasks.append(Task(t, 2 * t + 2, (x, y), None, (x, y), scenario="class", classes=(2 * t, 2 * t + 1)))
    return tasks


@exercise("scenarios-5")
def own_classes(answer: Any) -> str:
    """A subclass of `minicl.Learner` whose loss, in scenario "class", compares only the classes of the task at hand."""
    if isinstance(answer, Learner) or not callable(answer):
        raise Hint("Give the class itself, not a learner made from it: minicl.check('scenarios-5', OwnClasses).")
    learner = call(answer, mlp(8, 32), what="Making your learner")
    if not isinstance(learner, Learner):
        raise Hint(f"Called with a backbone it should make a minicl.Learner; yours makes a {type(learner).__name__}.")
    tasks = _small_stream()
    moved = []
    for t, task in enumerate(tasks):
        before = [head.weight.detach().clone() for head in learner.heads.values()]
        run(learner, TaskStream([task]), epochs=5, batch_size=16, progress=False)
        heads = list(learner.heads.values())
        moved += [not torch.equal(head.weight, old) for head, old in zip(heads, before, strict=False)]
        logits = learner(task.test.x).detach()
        if logits.shape[1] != 2 * t + 2 or not bool(logits.isfinite().all()) or float(logits.min()) < -1e4:
            raise Hint(
                "At test time nobody says which task it is, so all classes seen so far must stay possible: "
                "`forward` should give an ordinary logit for each. Change the loss alone.",
                mistake="masked at test time",
            )
        right = float((logits[:, 2 * t :].argmax(1) + 2 * t == task.test.y).float().mean())
        if right < 0.9:
            raise Hint(
                "After a task your learner does not tell the two classes of that task apart. "
                "Which classes does your loss leave in: the new ones or the old ones?",
                mistake="new classes left out",
            )
    if any(moved):
        raise Hint(
            "While a new task is learned, the outputs of the old classes still move. "
            "Let the softmax in the loss run over the new classes alone.",
            mistake="old classes in the loss",
        )
    return "Old classes are no longer pushed down, and no picture was kept."


def _confident(logits: Tensor) -> Tensor:
    head = logits.softmax(2).amax(2).argmax(0)  # (n,)
    within = logits.argmax(2).gather(0, head[None]).squeeze(0)  # (n,)
    return head * logits.shape[2] + within


def _labels_within(logits: Tensor) -> Tensor:
    return logits.argmax(2).gather(0, logits.softmax(2).amax(2).argmax(0)[None]).squeeze(0)


@exercise("scenarios-6")
def most_confident(answer: Any) -> str:
    """A function of logits, shape (T, n, k), of T heads with k classes: the class, out of T * k, of each picture."""
    compare(
        answer,
        _confident,
        cases=[(torch.randn(t, 12, k) + 5 * torch.randn(t, 12, 1),) for t, k in ((2, 2), (5, 2), (3, 2))],
        mistakes={
            "largest logit": (
                lambda z: z.permute(1, 0, 2).flatten(1).argmax(1),
                "You compare raw logits of different heads, which no training ever put on one scale. "
                "What do the heads have that is between 0 and 1?",
            ),
            "label within the head": (
                _labels_within,
                "You name the class within the head. Class 0 of head 0 and class 0 of head 1 are different classes.",
            ),
            "the head": (
                lambda z: z.softmax(2).amax(2).argmax(0),
                "You say which head is the most confident. Which of its classes does it choose?",
            ),
            "numbered across": (
                lambda z: _labels_within(z) * z.shape[0] + z.softmax(2).amax(2).argmax(0),
                "All classes of head 0 come first, then those of head 1. How many are there before head t?",
            ),
        },
    )
    return "A guess of the task id: now anything that needs one can be asked the class question."
