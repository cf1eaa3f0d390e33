"""Nobody gives the task id: guess it, and then answer. For every method that must be told it, and for any in "task".

Isolation answers "which class, given the task". With `P(class | x) = P(class | x, task) P(task | x)` (Kim et al. 2022,
arXiv 2211.02633, Eq. 3) a method that forgets nothing lacks a good guess of the task alone. Each rule here gives every
task a score, and the task with the highest is the guess:

    softmax    the largest probability
    entropy    the negative entropy of the probabilities
    logit      the largest logit
    energy     logsumexp of the logits (Liu et al. 2020, arXiv 2010.03759)
    gradient   in which direction the entropy of all tasks mixed falls fastest
    rotation   how surely class and turn of the image are told, averaged over its four turns

"gradient" is SupSup's (Wortsman et al. 2020, arXiv 2006.14769, Eq. 4; code RAIVNLab/supsup, adaptors.py); "rotation"
is as in CSI (Tack et al. 2020, arXiv 2007.08176), of a learner that was trained with `rotations=True`.

The first four need T forward passes for T tasks, "rotation" 4 T, and "gradient" one forward and one backward pass of
the mixture. A `Calibration`, fitted on a few stored samples, makes the logits of tasks comparable beforehand.

The file reads from top to bottom: the equations, asking a learner, and what accuracy is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from . import checks, inputs
from .evaluation import AT_ONCE, SEED, feeder
from .freezing import evaluating
from .heads import TURNS, turned
from .inputs import Tree
from .tasks import PARTS, Task
from .tensors import calls_again

if TYPE_CHECKING:
    from .learner import Learner

LOOKED_AT = 128
"""Of a batch of one task, rule "gradient" looks at the first so many samples, as SupSup's code looks at a few."""

RULES = ("softmax", "entropy", "logit", "energy", "gradient", "rotation")

# ---- the equations ---------------------------------------------------------------------------------------------------


def largest_softmax(z: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """max_c p_c, p = softmax(z): how sure the network is of its class."""
    return z.softmax(1).amax(1)


def negative_entropy(z: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """sum_c p_c log p_c, p = softmax(z), in nats: 0 where one class has everything, -log(classes) at worst.

    Heads of different sizes are not comparable by it: of two that know nothing the smaller one wins.
    """
    return (z.softmax(1) * z.log_softmax(1)).sum(1)


def largest_logit(z: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """max_c z_c. Unlike probabilities, logits need not add up to 1 for an image that belongs to none of the classes."""
    return z.amax(1)


def energy(z: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """log sum_c exp z_c, the negative free energy: what softmax divides by, and so forgets."""
    return z.logsumexp(1)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": largest_softmax,
    "entropy": negative_entropy,
    "logit": largest_logit,
    "energy": energy,
}
"""Of a task's logits, by rule: the higher, the more likely the task."""


def entropy_gradient(
    mixed: Callable[[Tensor], Tensor], alpha: Float[Tensor, "rows tasks"]
) -> Float[Tensor, "rows tasks"]:
    """- dH / d alpha_t at alpha: by how much more of task t would make the mixture surer. SupSup, Eq. 4.

    Args:
        mixed: logits, shape (batch, classes), of the network in which each task has the weight alpha.
        alpha: 1 / T everywhere. One row for the whole batch, which is then taken to be of one task, or one per
            sample.
    """
    with torch.enable_grad():
        alpha = alpha.detach().requires_grad_()
        entropy = -negative_entropy(mixed(alpha)).sum()
        if calls_again(entropy):
            raise ValueError(
                "rule 'gradient' needs torch.autograd.grad, which reentrant gradient checkpointing forbids; switch it "
                "off in evaluation mode, use use_reentrant=False, or a rule that asks each task, such as 'softmax'"
            )
        (gradient,) = torch.autograd.grad(entropy, alpha)
    return -gradient


def averaged_over_turns(outputs: Float[Tensor, "turns batch all_outputs"]) -> Float[Tensor, "batch classes"]:
    """1/4 sum_r log P(class c and turn r | x turned by r): how surely class and turn are told at once.

    Args:
        outputs: for the image turned by 0, 90, 180, 270 degrees, all outputs of a head: those of the classes for each
            turn in a row.
    """
    turns, batch, n = outputs.shape
    log_p = outputs.log_softmax(2).view(turns, batch, turns, n // turns)
    return log_p.diagonal(dim1=0, dim2=2).mean(2)  # (batch, classes)


@dataclass(frozen=True)
class Calibration:
    """A scale and a shift for the logits of each task (Kim et al. 2022, Section 5.2).

    Attributes:
        scale, shift: shape (tasks,), in the order in which the tasks were learned.
    """

    scale: Tensor
    shift: Tensor

    def __call__(self, t: int, z: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """scale_t z + shift_t: of the t-th task, counted from 0."""
        return z * self.scale[t].to(z) + self.shift[t].to(z)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.scale.nbytes + self.shift.nbytes


def fit_calibration(
    logits: Sequence[Float[Tensor, "batch _"]], y: Int[Tensor, " batch"], steps: int = 100
) -> Calibration:
    """The scales and shifts with which the tasks' logits, side by side, explain the labels best: least cross-entropy.

    The problem is convex; it is solved with L-BFGS. Scales start at 1, shifts at 0.

    Args:
        logits: of each task, in order, for the same samples.
        y: the class of each sample over all tasks, numbered in the same order.
    """
    z = [part.detach().double() for part in logits]
    scale = torch.ones(len(z), dtype=torch.float64, device=y.device, requires_grad=True)
    shift = torch.zeros_like(scale).requires_grad_()
    solver = torch.optim.LBFGS([scale, shift], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        with torch.enable_grad():
            loss = F.cross_entropy(torch.cat([a * part + b for a, b, part in zip(scale, shift, z, strict=True)], 1), y)
            loss.backward()
        return loss.item()

    solver.step(closure)
    dtype = logits[0].dtype
    return Calibration(scale.detach().to(dtype), shift.detach().to(dtype))


# ---- asking a learner ------------------------------------------------------------------------------------------------


def infer_task(
    learner: Learner,
    x: Tree,
    rule: str = "softmax",
    *,
    calibration: Calibration | None = None,
    together: bool = False,
    batch_size: int = AT_ONCE,
) -> Int[Tensor, " batch"]:
    """The id of the task that each sample probably belongs to: int64 of shape (batch,), on the learner's device.

    Args:
        learner: any that was trained in scenario "task"; its finished tasks are asked.
        x: a batch of inputs, shape (batch, ...).
        rule: "softmax", "entropy", "logit", "energy", "gradient" or "rotation"; see the top of the file.
        calibration: what `calibrate` has fitted; for the first four rules.
        together: the whole batch is of one task, as SupSup has it: scores are added up, and all samples get one id.
        batch_size: so many samples at once.

    Raises:
        ValueError: an unknown rule, one that this learner cannot be asked by, a learner without finished tasks or of
            another scenario.
    """
    task_ids, _ = guess(learner, x, rule, calibration=calibration, together=together, batch_size=batch_size)
    return task_ids


def predict(
    learner: Learner,
    x: Tree,
    rule: str = "softmax",
    *,
    calibration: Calibration | None = None,
    together: bool = False,
    batch_size: int = AT_ONCE,
) -> Int[Tensor, " batch"]:
    """The class of each sample over all tasks, int64 of shape (batch,). The task id is guessed, as by `infer_task`.

    Classes are numbered as in scenario "class": those of the task that was learned first come first.

    Args, Raises: as `infer_task`.
    """
    task_ids, labels = guess(learner, x, rule, calibration=calibration, together=together, batch_size=batch_size)
    return first_classes(learner)(task_ids) + labels


@torch.no_grad()
def guess(
    learner: Learner,
    x: Tree,
    rule: str = "softmax",
    *,
    calibration: Calibration | None = None,
    together: bool = False,
    batch_size: int = AT_ONCE,
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Both at once: the ids of the guessed tasks, and the label within the task. See `infer_task`."""
    ids = _asked(learner, rule, calibration)
    feed = feeder(learner)
    parts = [feed(part) for part in inputs.split(x, batch_size)]
    with evaluating(learner):
        asked = [_ask(learner, part, rule, calibration, together) for part in parts]
        scores = torch.cat([scores for scores, _ in asked])  # (batch, tasks)
        if together:
            scores = scores.sum(0, keepdim=True).expand(len(scores), -1)
        places = scores.argmax(1)  # (batch,)
        labels = []
        for part, (_, answers), where in zip(
            parts, asked, places.split([inputs.length(p) for p in parts]), strict=True
        ):
            labels.append(_chosen(learner, part, where) if answers is None else answers.gather(1, where[:, None])[:, 0])
    return torch.tensor(ids, device=places.device)[places], torch.cat(labels)


def task_scores(
    learner: Learner, x: Tree, rule: str = "softmax", calibration: Calibration | None = None
) -> Float[Tensor, "batch tasks"]:
    """The score of each finished task, in the order of learning: what `infer_task` takes the highest of."""
    _asked(learner, rule, calibration)
    with torch.no_grad(), evaluating(learner):
        return _ask(learner, feeder(learner)(x), rule, calibration, together=False)[0]


def first_classes(learner: Learner) -> Callable[[Tensor], Tensor]:
    """A function from task ids to the number of each task's first class, where all classes are numbered in a row."""
    starts, before = {}, 0
    for t in learner.learned:
        starts[t], before = before, before + (learner.tasks[t].n_outputs or 0)

    def first(task_ids: Tensor) -> Tensor:
        ids, places = task_ids.unique(return_inverse=True)
        return torch.tensor([starts[t] for t in ids.tolist()], dtype=torch.long, device=task_ids.device)[places]

    return first


@torch.no_grad()
def calibrate(learner: Learner, x: Tree, y: Tensor, task_ids: Tensor, rotations: bool | None = None) -> Calibration:
    """Fit a `Calibration` on stored samples of all finished tasks.

    Args:
        x, y: samples and their labels within their tasks, int64 of shape (n,).
        task_ids: of which task each sample is, int64 of shape (n,).

    Raises:
        ValueError: a learner of another scenario, a task without a sample.
    """
    ids = _asked(learner, "softmax", None)
    missing = set(ids) - set(task_ids.tolist())
    if missing or not set(task_ids.tolist()) <= set(ids):
        raise ValueError(
            f"samples of tasks {sorted(set(task_ids.tolist()))} were given; allowed: some of each finished task, "
            f"{', '.join(map(str, ids))}, and of no other"
        )
    with evaluating(learner):
        given = feeder(learner)(x)
        logits = [learner(given, t) for t in ids]
    return fit_calibration(logits, first_classes(learner)(task_ids.to(learner.device)) + y.to(learner.device))


def _asked(learner: Learner, rule: str, calibration: Calibration | None) -> list[int]:
    """The ids of the finished tasks; ValueError where they cannot be asked by this rule."""
    checks.one_of("rule", rule, RULES)
    name = type(learner).__name__
    if not learner.learned:
        raise ValueError(f"{name} has learned no task yet, so there is none to be guessed")
    if learner.scenario != "task":
        raise ValueError(
            f"{name} was trained in scenario {learner.scenario!r}, where tasks share outputs; allowed: 'task'"
        )
    if not learner.heads.are_layers:
        raise ValueError(f"the tasks of this {name} have no heads, so none can be guessed by their logits")
    if rule == "rotation" and not learner.rotations:
        raise ValueError(
            f"rule is 'rotation', and this {name} was not trained with rotations; make it with rotations=True. "
            f"Allowed: one of {', '.join(RULES[:-1])}"
        )
    if calibration is not None and (rule not in SCORES or len(calibration.scale) != len(learner.learned)):
        raise ValueError(
            f"a calibration of {len(calibration.scale)} tasks with rule {rule!r}; allowed: one of the "
            f"{len(learner.learned)} finished tasks, with one of {', '.join(SCORES)}"
        )
    return learner.learned


def _ask(
    learner: Learner, x: Tree, rule: str, calibration: Calibration | None, together: bool
) -> tuple[Tensor, Tensor | None]:
    """Scores, shape (batch, tasks), and each task's label for each sample, or None where that is not known yet."""
    ids = learner.learned
    if rule == "gradient":
        n, like = inputs.length(x), learner._like
        if together:
            x = inputs.take(x, slice(LOOKED_AT))
        alpha = torch.full((1 if together else n, len(ids)), 1 / len(ids), dtype=like.dtype, device=like.device)
        slopes = entropy_gradient(partial(learner.mixed, x), alpha)
        return (slopes / inputs.length(x)).expand(n, -1) if together else slopes, None
    if rule == "rotation":
        answers = [averaged_over_turns(_of_all_turns(learner, x, t)) for t in ids]
        scores = [energy(log_p) for log_p in answers]
    else:
        answers = [learner(x, t) for t in ids]
        if calibration is not None:
            answers = [calibration(place, z) for place, z in enumerate(answers)]
        scores = [SCORES[rule](z) for z in answers]
    return torch.stack(scores, 1), torch.stack([z.argmax(1) for z in answers], 1)


def _of_all_turns(learner: Learner, x: Tree, task_id: int) -> Tensor:
    return torch.stack([learner.outputs(turned(x, r), task_id) for r in range(TURNS)])


def _chosen(learner: Learner, x: Tree, places: Tensor) -> Tensor:
    """The label of each sample within the task that was chosen for it: every sample goes through one network."""
    asked = places.unique().tolist()
    if len(asked) == 1:
        return learner(x, learner.learned[asked[0]]).argmax(1)
    labels = torch.empty_like(places)
    for place in asked:
        rows = (places == place).nonzero().flatten()
        labels[rows] = learner(inputs.take(x, rows), learner.learned[place]).argmax(1)
    return labels


# ---- training with the task id, testing without ----------------------------------------------------------------------


def told(learner: Learner, tasks: Iterable[Task], rule: str) -> list[Task]:
    """`as_told` for a learner that will be asked by this rule.

    Raises:
        ValueError: an unknown rule, a learner that needs no task id, tasks that tell it anyway or cannot be guessed.
    """
    checks.one_of("infer", rule, RULES)
    tasks = list(tasks)
    if "task" in {task.scenario for task in tasks}:
        raise ValueError(f"infer is {rule!r}, and in scenario 'task' the task id is told; allowed: 'class', 'domain'")
    if not learner.needs_task_id:
        raise ValueError(
            f"infer is {rule!r}, and {type(learner).__name__} needs no task id; allowed: None, or a method "
            "that must be told it"
        )
    if rule == "rotation" and not learner.rotations:
        raise ValueError("infer is 'rotation', and the learner was made without; allowed: make it with rotations=True")
    return as_told(tasks, sum(learner.tasks[t].n_outputs or 0 for t in learner.learned))


def as_told(tasks: Iterable[Task], before: int = 0) -> list[Task]:
    """Tasks of scenario "class" or "domain" as tasks of scenario "task": what a learner sees that is told their ids.

    Args:
        before: so many classes came before the first of these tasks; for "class".

    Raises:
        ValueError: a task of scenario "class" that brings no new class; when its samples are read: one of an old class.
    """
    told = []
    for task in tasks:
        first = before if task.scenario == "class" else 0
        n, before = (task.n_outputs or 0) - first, task.n_outputs or 0
        if n < 1:
            raise ValueError(
                f"task {task.id} brings no class of its own ({task.n_outputs} outputs, {first} before it), so it "
                "cannot be told from the others; allowed: tasks with new classes"
            )
        parts = (partial(_shifted, task, part, first) for part in PARTS)
        more: dict[str, Any] = {
            "name": task.name,
            "classes": task.classes,
            "collate": task.collate,
            "criterion": task.criterion,
        }
        told.append(Task(task.id, n, *parts, example=task.example, **more))
    return told


def _shifted(task: Task, part: str, first: int) -> Any:
    """The samples of a part, with labels that start at 0."""
    samples = task.make(part)
    if not first or not len(samples):
        return samples
    y = samples.labels - first
    if int(y.min()) < 0:
        raise ValueError(
            f"the {part} samples of task {task.id} hold class {int(y.min()) + first}, which an earlier task has; where "
            "the task id is guessed every class belongs to one task"
        )
    return samples.with_labels(y)


# ---- what accuracy is made of ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decomposition:
    """accuracy = naming x within_named: the right task, and then the right class (Kim et al. 2022, Eq. 3, counted).

    Attributes:
        accuracy: share of samples whose class of all classes is named.
        naming: share of samples whose task is named.
        within_named: of those, the share whose class is right.
        within: share of all samples whose class is right if the task id is told, as in Task-IL.
        confusion: shape (tasks, tasks): of the samples of task i, the share that is taken for task j.
    """

    accuracy: float
    naming: float
    within_named: float
    within: float
    confusion: Tensor


def decompose(
    task_ids: Int[Tensor, " n"], guessed: Int[Tensor, " n"], right: Tensor, right_if_told: Tensor
) -> Decomposition:
    """What accuracy is made of, from what was guessed.

    Args:
        task_ids: the task of each sample, counted from 0.
        guessed: the task that was named for it.
        right: bool of shape (n,): whether the label within the guessed task is the sample's own.
        right_if_told: the same, of the label within the sample's own task.
    """
    named, n = task_ids == guessed, int(torch.cat([task_ids, guessed]).max()) + 1
    counts = torch.bincount(task_ids * n + guessed, minlength=n * n).view(n, n).double()
    both = named & right
    return Decomposition(
        accuracy=both.double().mean().item(),
        naming=named.double().mean().item(),
        within_named=both.double().sum().item() / max(int(named.sum()), 1),
        within=right_if_told.double().mean().item(),
        confusion=counts / counts.sum(1, keepdim=True).clamp(min=1),
    )


def decomposition(
    learner: Learner,
    tasks: Iterable[Task],
    rule: str = "softmax",
    part: str = "test",
    *,
    calibration: Calibration | None = None,
    batch_size: int = AT_ONCE,
) -> Decomposition:
    """`decompose` for a learner, over a part of tasks in scenario "task": every sample counts the same.

    Raises:
        ValueError: as `infer_task`.
    """
    places = {t: i for i, t in enumerate(learner.learned)}
    told, guessed, right, if_told = [], [], [], []
    feed = feeder(learner)
    for task in tasks:
        for batch in task.make(part).batches(batch_size, seed=SEED):
            ids, labels = guess(learner, batch.x, rule, calibration=calibration, batch_size=batch_size)
            y = batch.y.to(labels.device)
            with torch.no_grad(), evaluating(learner):
                if_told.append(learner(feed(batch.x), task.id).argmax(1) == y)
            told.append(torch.full_like(y, places[task.id]))
            guessed.append(torch.tensor([places[t] for t in ids.tolist()], device=y.device))
            right.append(labels == y)
    return decompose(torch.cat(told), torch.cat(guessed), torch.cat(right), torch.cat(if_told))


def reliability(
    confidence: Float[Tensor, " n"], right: Tensor, bins: int = 10
) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"], Int[Tensor, " bins"]]:
    """Mean confidence, share that is right, and number of samples, in bins of equal width from 0 to 1; NaN where empty.

    Args:
        confidence: from 0 to 1, shape (n,).
        right: bool of shape (n,).
    """
    checks.integer("bins", bins)
    places = (confidence * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(places, minlength=bins)
    sums = [torch.bincount(places, v.double(), minlength=bins) for v in (confidence, right)]
    sure, found = (total / counts for total in sums)
    return sure.to(confidence), found.to(confidence), counts


def calibration_error(confidence: Float[Tensor, " n"], right: Tensor, bins: int = 10) -> float:
    """Expected calibration error: the mean over samples of | confidence - share right | of its bin (ECE)."""
    sure, found, counts = reliability(confidence, right, bins)
    gaps = (sure - found).abs().nan_to_num()
    return float((gaps * counts).sum() / counts.sum())


def asked_for_a_class(
    learner: Learner, task: Task, rule: str, part: str = "test", batch_size: int = AT_ONCE, workers: int = 0
) -> float:
    """Accuracy (0 to 1) on a task of scenario "class" or "domain", of a learner that was told its id in training.

    In "class" the class over all tasks must be right. In "domain" the label within whichever task was guessed counts.

    Raises:
        ValueError: as `infer_task`; an empty part.
    """
    samples, right = task.make(part), 0
    if not len(samples):
        raise ValueError(f"task {task.id} has no {part} samples to evaluate on")
    for batch in samples.batches(batch_size, seed=SEED, workers=workers):
        ids, labels = guess(learner, batch.x, rule, batch_size=batch_size)
        found = labels if task.scenario == "domain" else first_classes(learner)(ids) + labels
        right += int((found == batch.y.to(found.device)).sum())
    return right / len(samples)
