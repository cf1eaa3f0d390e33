"""CPG: Hung et al. 2019, "Compacting, Picking and Growing for Unforgetting Continual Learning", arXiv 1910.06562.

Every weight has one owner, as in PackNet. A task trains the weights that are still free, and picks with a learned mask,
as in Piggyback, which of the owned ones it reads. If that does not reach its goal, the network grows and the task
begins again. Then what it trained is pruned step by step for as long as the goal holds, and frozen.

The file reads from top to bottom: the equations, then the learner. Which weights a network has, and what finished tasks
read, is in `minicl.isolation.owners` and `minicl.isolation.shared`; how the network gets wider, in
`minicl.expansion.wide`; what accuracy is enough, in `minicl.expansion.goals`. The authors' code is
github.com/ivclab/CPG at f1b20ea, `utils/prune.py:31-102` and `experiment1/CPG_cifar100_scratch_mul_1.5.sh`; where this
departs from it, the docstring of `CPG` says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor, nn

from .. import checks
from ..isolation.packnet import keep_mask, owned_by
from ..isolation.task_norms import TaskNorms
from ..learner import Fit
from ..protection import Snapshot
from ..tasks import Task
from .goals import Goal, GoalNetwork, check_goal
from .piggyback import binarize, masked_above
from .stages import Stage

# ---- the equations ---------------------------------------------------------------------------------------------------


def sparsity_schedule(step: float, n_steps: float, start: float, end: float) -> float:
    """s_n = s_end + (s_start - s_end) (1 - n/N)^3: fast at first, slower as fewer weights are left.

    Args:
        step: n, so many steps of the stage are done; beyond N it counts as N.
        n_steps: N, of the stage.
        start: s_start, the share of weights that are pruned before the stage.
        end: s_end, after it.
    """
    left = 1 - min(max(step / n_steps, 0.0), 1.0)
    return end + (start - end) * left**3


def picked(owner: UInt8[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], task: int) -> Bool[Tensor, "*shape"]:
    """The weights that a task reads: its own, and those of the tasks before it that its mask picks.

    Args:
        owner: 0 for a free weight, k for the k-th task that was learned.
        mask: m, of this task; it says nothing about free weights, its own, and those of later tasks.
        task: k, from 1.
    """
    return (owner == task) | ((owner != 0) & (owner < task) & mask)


# ---- the learner -----------------------------------------------------------------------------------------------------


class CPG(GoalNetwork):
    """Many tasks in one network that grows when it has to: train and pick, grow, compact, freeze.

    Weights with owners are those of Linear and Conv layers (1d, 2d, 3d, transposed), of recurrent layers, the input
    projections of attention, and what `prunable` names. Norms, with their running statistics, and all other parameters
    of one axis, such as biases, are each task's own (`batchnorm="per-task"`), and start from those of the task before.

    A module of any kind cannot be widened. So give a function from a width to a network, such as
    `lambda width: minicl.mlp(64, int(256 * width), int(256 * width))`, or an `nn.Sequential` that
    `minicl.expansion.widen` knows how to widen. What a network of width 1 holds must stand in the first rows and
    columns of a wider one, as in Linear and Conv layers it does. Finished tasks are computed in a network of the width
    that they were learned in, so they keep their bits whatever the wider one looks like. Growing makes new parameters,
    and `learner.backbone` is another module then; a loop of your own must give each call of `fit` the parameters that
    the learner has by then.

    The loop owns the optimiser; one may give weights and scores learning rates of their own: names of scores start with
    "masks.". The authors' is SGD with 1e-2 for weights and 5e-4 for scores.

    Departures from the authors' code: goals are on validation samples alone, where theirs also asks for 95 % of the
    training samples; norms are each task's own, where their masks leave them out; a goal that is missed at the largest
    width is lowered to what was reached, so that compacting still finds free weights; a weight that is exactly zero
    is not claimed.

    Args:
        backbone: any module from a batch to features that has a Linear or Conv layer; or a function from a width, 1.0
            at first, to such a module.
        goal: the accuracy on validation samples (0 to 1) that makes growing unnecessary, and that compacting must hold:
            a number; a list of such, one per task in order of learning; "individual", what a network of its own
            reaches, which is trained first, with a `fit` of its own; or None, what the task itself reaches: then
            nothing grows.
        tolerance: so much below the goal is enough.
        max_width: the network grows no wider than this, in multiples of the first.
        widen: how much wider it gets each time.
        stage: how much sparser each stage of compacting makes what the task trained; the first stage that misses the
            goal is undone, and is the last.
        stage_epochs: passes of a stage. (Authors: 20.)
        every: so many steps lie between two prunings in a stage. (Authors: 10.)
        retrain_epochs: passes after compacting, undone if they harm; None for as many as before, 0 for none.
        threshold: tau, above which a score picks its weight.
        scale: every score's first value; above the threshold, so that at first every owned weight is picked.
        batchnorm: "per-task", see above; or "frozen" after the first task, biases too.
        prunable: names of further modules of the backbone, or of parameters, whose weights of two or more axes have
            owners too, such as an embedding.

    Raises:
        ValueError: a hyperparameter out of its range, or a network that cannot be packed, or not be widened.
    """

    forward_alone = True
    lesson_attributes = (*GoalNetwork.lesson_attributes, "held", "_stage.epoch", "_stage.progress", "_stage.steps")

    def __init__(
        self,
        backbone: nn.Module | Callable[[float], nn.Module],
        goal: Goal = None,
        tolerance: float = 0.01,
        max_width: float = 1.0,
        widen: float = 0.5,
        stage: float = 0.1,
        stage_epochs: int = 1,
        every: int = 10,
        retrain_epochs: int | None = None,
        threshold: float = 5e-3,
        scale: float = 1e-2,
        batchnorm: str = "per-task",
        prunable: Sequence[str] = (),
    ) -> None:
        check_goal(goal)
        tolerance = checks.number("tolerance", tolerance, most=1, below=True)
        max_width = checks.number("max_width", max_width, least=1)
        if retrain_epochs is not None:
            retrain_epochs = checks.integer("retrain_epochs", retrain_epochs, 0, ", or None for as many as before")
        own: dict[str, Any] = {
            "widen": checks.number("widen", widen, beyond=True),
            "stage": checks.number("stage", stage, beyond=True, most=1, below=True),
            "stage_epochs": checks.integer("stage_epochs", stage_epochs),
            "every": checks.integer("every", every),
            "retrain_epochs": retrain_epochs,
            "threshold": checks.number("threshold", threshold),
            "scale": checks.number("scale", scale),
            "batchnorm": checks.one_of("batchnorm", batchnorm, ("frozen", "per-task")),
            "prunable": list(prunable),
        }
        if scale <= threshold:
            raise ValueError(f"scale is {scale}; allowed: more than threshold={threshold}, or nothing is picked")
        first = backbone if isinstance(backbone, nn.Module) or not callable(backbone) else backbone(1.0)
        norms = TaskNorms(batchnorm == "per-task", vectors=True)
        super().__init__(first, backbone, prunable, norms, goal, tolerance, max_width=max_width, **own)
        self.widen, self.stage, self.stage_epochs, self.every, self.retrain_epochs = list(own.values())[:5]
        self.threshold, self.scale = own["threshold"], own["scale"]
        self._compacting, self._stage = False, Stage()
        self._picking: dict[str, tuple[Tensor, Tensor]] = {}  # thresholds and slopes of its masks

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        """Train and pick, grow until the goal is reached, compact gradually, re-train, freeze.

        Raises:
            ValueError: see `Learner.learn`; no validation samples; a list of goals that is too short.
            FloatingPointError: weights became NaN or infinite.
        """
        goal = self.goal_of(task, fit)
        self.train_and_pick(task, fit)
        while self.accuracy(task) < goal and self.width < self.max_width:
            self.grow_wider(task)
            self.train_and_pick(task, fit)
        self.compact(task, fit, min(goal, self.accuracy(task)))
        self.retrain(task, fit)
        self.freeze(task)

    def train_and_pick(self, task: Task, fit: Fit) -> None:
        """Train the free weights, and learn with the scores which of the owned ones to read."""
        if not self._picking:
            self.claim_free_weights(task)
        self.announce()
        fit()

    def grow_wider(self, task: Task) -> None:
        """The task begins again in a network that is wider by `widen`: new weights are free, and start at random."""
        self.resize(min(self.width + self.widen, self.max_width))
        self.begin_again(task)
        self.claim_free_weights(task, from_zero=False)

    def compact(self, task: Task, fit: Fit, reached: float) -> None:
        """Prune in stages, each gradually, until one costs too much accuracy; that one is undone."""
        goal = reached - (self.tolerance if self.goal is None else 0.0)
        self.release(0.0)
        stages = [i * self.stage for i in range(math.ceil(1 / self.stage - 1e-9))]  # shares, from 0 to less than 1
        for start, end in itertools.pairwise(stages):
            snapshot, kept = Snapshot(self), self._kept
            self._compacting, self._stage = True, Stage(start, end)
            fit(epochs=self.stage_epochs)
            self._compacting = False
            self.release(end)
            if self.accuracy(task) < goal - 1e-12:
                snapshot.put_back(self)
                self.hold_all_but(kept)
                break

    @torch.no_grad()
    def release(self, sparsity: float) -> None:
        """Prune this share of the weights that the task found free, layer by layer, the smallest; they become 0.

        The share counts those that were pruned before; nothing that was pruned comes back.
        """
        self._put_back()
        kept = {}
        for layer, weight in self.finite_weights().items():
            claimed = owned_by(self.owners[layer], 0)
            kept[layer] = keep_mask(weight, 1 - sparsity, among=claimed) & (weight != 0)
            weight.masked_fill_(claimed & ~kept[layer], 0)
        self.hold_all_but(kept)

    def retrain(self, task: Task, fit: Fit) -> None:
        """Train what was kept, and the scores, once more; undone if the accuracy is lower afterwards."""
        if self.retrain_epochs == 0:
            return
        before, snapshot = self.accuracy(task), Snapshot(self)
        fit() if self.retrain_epochs is None else fit(epochs=self.retrain_epochs)
        if self.accuracy(task) < before:
            snapshot.put_back(self)

    def trainings(self, samples: Sequence[int], epochs: int) -> list[tuple[int, int]]:
        again = epochs if self.retrain_epochs is None else self.retrain_epochs
        return [(n, samples[-1]) for n in (epochs, self.stage_epochs, again)]

    @torch.no_grad()
    def freeze(self, task: Task) -> None:
        """What was kept is this task's; of the scores a bit per weight stays."""
        for layer in self.names:
            self.masks.store(task.id, layer, binarize(self.masks.score(task.id, layer), self.threshold) > 0)
        self.tasks[task.id].notes["width"] = self.width
        self.own()

    def claim_free_weights(self, task: Task, from_zero: bool = True) -> None:
        """From here on the weights without an owner may move; those with one may be picked."""
        self.claim(task.id, from_zero)
        for layer, weight in self.weights().items():
            free = self.owners[layer] == 0
            thresholds = torch.full_like(weight.detach(), self.threshold).masked_fill_(free, -math.inf)  # always on
            self._picking[layer] = thresholds, weight.detach().masked_fill(free, 0)

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def while_learning(self, x: Any, task_id: int) -> Tensor:
        if self.alone is not None:
            return self.apply_network(self.alone, x)
        if self._active <= 1:  # nothing is owned yet
            return self.apply_network(self.backbone, x)
        tensors: dict[str, Tensor] = {}
        for layer, weight in self.weights().items():
            scores: Tensor = self.masks.score(task_id, layer)
            scores = scores.detach() if self._compacting else scores
            tensors[self.names[layer]] = masked_above(weight, scores, *self._picking[layer])
        return self.learn_with(x, tensors)

    def reads(self, layer: str, task_id: int) -> Tensor:
        """Of the first weights, as many as the network had when the task was learned: its own, and those it picks."""
        owner = self.owners_of(layer, task_id)
        return picked(owner, self.masks.stored(task_id, layer, owner.shape)[0], self.number(task_id))

    # ---- what must not move ------------------------------------------------------------------------------------------

    def before_step(self, progress: float) -> None:
        self._stage.told(progress)

    def edit_gradients(self) -> None:
        super().edit_gradients()
        if self._compacting and self._current is not None:  # the mask stands still
            for layer in self.names:
                self.masks.score(self._current, layer).grad = None

    def after_step(self) -> None:
        super().after_step()
        stage = self._stage
        if self._compacting and stage.stepped(self.every):
            self.release(sparsity_schedule(stage.done, self.stage_epochs, stage.start, stage.end))

    def _leave(self, snapshot: Snapshot | None) -> None:
        self._compacting, self._picking = False, {}
        super()._leave(snapshot)
