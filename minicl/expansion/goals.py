"""What accuracy is enough: a number for all tasks, one for each, or what a network of the task's own reaches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .. import checks
from ..evaluation import evaluate
from ..freezing import Template, copied
from ..isolation.task_norms import TaskNorms
from ..learner import Fit
from ..networks import reinitialize
from ..protection import Snapshot
from ..saving import put_template, take_template
from ..tasks import Task
from .wide import WideningNetwork

Goal = float | str | Sequence[float] | None


def check_goal(goal: Any) -> None:
    """ValueError unless it says what accuracy is enough."""
    several = isinstance(goal, Sequence) and not isinstance(goal, str)
    for value in (goal or [-1]) if several else [goal]:  # an empty list is no goal
        try:
            if not (value is None and not several) and not (value == "individual" and not several):
                checks.number("goal", value, most=1)
        except ValueError as error:
            raise ValueError(
                f"goal is {goal!r}; allowed: an accuracy from 0 to 1, a list of such, one per task, "
                "'individual', or None"
            ) from error


def goal_at(goal: Goal, number: int) -> float | str | None:
    """The goal of one task.

    Args:
        goal: of all.
        number: of the task, 1 for the first that is learned.

    Raises:
        ValueError: a list that is too short.
    """
    if not isinstance(goal, Sequence) or isinstance(goal, str):
        return goal
    if number > len(goal):
        raise ValueError(f"goal has {len(goal)} values, one per task, and this is task number {number}")
    return goal[number - 1]


class GoalNetwork(WideningNetwork):
    """A network that gets wider where it does not reach a goal on validation samples.

    Args:
        goal: see `minicl.CPG`.
        tolerance: so much below the goal is enough.
        backbone, make, prunable_too, norms, hyperparameters: see `minicl.expansion.wide.WideningNetwork`.

    Attributes:
        alone: the network of its own that a goal is found with, while that is trained; otherwise None.
    """

    alone: nn.Module | None

    def __init__(
        self,
        backbone: nn.Module,
        make: nn.Module | Callable[[float], nn.Module],
        prunable_too: Sequence[str],
        norms: TaskNorms,
        goal: Goal,
        tolerance: float,
        **hyperparameters: Any,
    ) -> None:
        super().__init__(backbone, make, prunable_too, norms, goal=goal, tolerance=tolerance, **hyperparameters)
        self.goal, self.tolerance = goal, tolerance
        self.template = Template(copied(backbone) if goal == "individual" else nn.Identity())
        self.register_module("alone", None)

    def goal_of(self, task: Task, fit: Fit) -> float:
        """The accuracy that is enough; in the record's notes as "goal", without the tolerance.

        Raises:
            ValueError: no validation samples; a list of goals that is too short.
        """
        number = self.check_number()
        if not len(task.make("valid")):
            raise ValueError(
                f"{type(self).__name__} goes by validation samples, and task {task.id} has none; give valid=(x, y)"
            )
        self.prepare_width(task)
        goal = goal_at(self.goal, number)
        if goal == "individual":
            goal = self.reached_alone(task, fit)
        self.tasks[task.id].notes["goal"] = goal
        return -math.inf if goal is None else float(goal) - self.tolerance

    def accuracy(self, task: Task) -> float:
        """On validation samples."""
        return evaluate(self, task, "valid")

    def reached_alone(self, task: Task, fit: Fit) -> float:
        """The accuracy that a network of the task's own reaches, which is trained for it, and is gone again."""
        network = copied(self.template.network)
        reinitialize(network)
        self.alone = network.train(self.training)
        self.new_head(task)
        self.announce()
        fit()
        reached = self.accuracy(task)
        self.alone = None
        self.new_head(task)
        return reached

    def feature_extractor(self) -> nn.Module:
        return self.backbone if self.alone is None else self.alone

    def _leave(self, snapshot: Snapshot | None) -> None:
        self.alone = None
        super()._leave(snapshot)

    # ---- taking it elsewhere -------------------------------------------------------------------------------

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return put_template(super().pack(state), self.template.network)

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().unpack(take_template(tensors, self.template.network))
