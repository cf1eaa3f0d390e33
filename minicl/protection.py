"""What surrounds the learning of a task, whatever the method and whoever wrote the loop.

Every step of a protected optimiser is edited once; what breaks off is put back; and a loop that leaves out what the
method needs is told so before the task counts as learned.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .distributed import check_wrapper
from .freezing import all_modules
from .records import State

if TYPE_CHECKING:
    from .learner import Fit, Learner
    from .tasks import Task

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)

WRAPPED = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer", "optim", "base")
"""Where Accelerate, Lightning, Lookahead, SAM and their like keep the optimiser that they wrap."""


def torch_optimizer(given: Any) -> torch.optim.Optimizer:
    """The optimiser that really steps: the given one, or the innermost that it wraps.

    Raises:
        TypeError: neither is an optimiser of torch with hooks around its step.
    """
    inner, seen = given, {id(given)}
    while True:
        found = (vars(inner).get(name) for name in WRAPPED if hasattr(inner, "__dict__"))
        wrapped = next((o for o in found if isinstance(o, torch.optim.Optimizer) and id(o) not in seen), None)
        if wrapped is None:
            break
        inner = wrapped
        seen.add(id(inner))
    if not isinstance(inner, torch.optim.Optimizer) or "_optimizer_step_pre_hooks" not in vars(inner):
        raise TypeError(
            f"protect was given a {type(given).__name__}; allowed: a torch.optim.Optimizer, or what wraps one in an "
            f"attribute named {', '.join(WRAPPED[:3])}. Protect the optimiser that takes the steps before it is wrapped"
        )
    return inner


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None


def with_a_graph(loss: Tensor) -> Tensor:
    """The loss of a task of which nothing learns any more: `backward` finds nothing to do, and does not fail."""
    if loss.requires_grad or not torch.is_grad_enabled():
        return loss
    result: Tensor = _Constant.apply(loss, loss.new_zeros((), requires_grad=True))
    return result


def unscale(optimizer: torch.optim.Optimizer) -> None:
    """Undo a GradScaler's scale now, where a fused optimiser would do it inside its step, after the edit."""
    scale = vars(optimizer).get("grad_scale")
    if isinstance(scale, Tensor):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(scale.to(parameter.grad.device))
        optimizer.grad_scale = None  # type: ignore[attr-defined]


def check_average(learner: Learner, asking: Any) -> None:
    """RuntimeError where an `AveragedModel` asks for the parameters of a learner that has other ones by now.

    It would pair the head of one task with that of another, or stop with sizes that do not match.

    Args:
        learner: whose parameters are asked for.
        asking: the object whose method asks.
    """
    average = getattr(asking, "module", None) if isinstance(asking, AveragedModel) else None
    if not isinstance(average, type(learner)):
        return
    made, now = (
        [
            *each.tasks,
            *(p.shape for p in nn.Module.parameters(each)),
            *((b.shape for b in nn.Module.buffers(each)) if asking.use_buffers else ()),
        ]
        for each in (average, learner)
    )
    if made != now:
        raise RuntimeError(
            f"this AveragedModel was made of a learner with tasks {list(average.tasks)}, and the learner has tasks "
            f"{list(learner.tasks)} by now, or has grown. Make a new one for each task, in the function that is given "
            "to learn, after the first step where a memory grows, and write it back before that returns"
        )


class Snapshot:
    """Every number of a learner that is not frozen, to go back to."""

    def __init__(self, learner: nn.Module) -> None:
        self.training = learner.training
        self.tensors = [
            (tensors, name, tensor.detach().clone())
            for _, part in all_modules(learner)
            if not (part.__dict__.get("frozen") and part.__dict__.get("frozen_parameters"))
            for tensors in (part._parameters, part._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]

    @torch.no_grad()
    def put_back(self, learner: nn.Module) -> None:
        """Everything as it was; what has been created since, or has another shape now, stays as it is."""
        for tensors, name, value in self.tensors:
            tensor = tensors.get(name)
            if tensor is not None and tensor.shape == value.shape:
                tensor.copy_(value)
        learner.train(self.training)


def uninterrupted(do: Callable[[], None]) -> None:
    """Do this to its end, again where Ctrl-C came in between, which then follows. It must be repeatable."""
    interruption: KeyboardInterrupt | None = None
    while True:
        try:
            do()
            break
        except KeyboardInterrupt as error:
            interruption = error
    if interruption is not None:
        raise interruption


class InProgress:
    """What is known of the loop while a task is learned."""

    def __init__(self, learner: Learner, task_id: int, made: set[str]) -> None:
        self.learner, self.task_id = learner, task_id
        self.made = made  # names of the parameters that were made for this task
        self.steps = 0  # of protected optimisers
        self.taken: list[int] = []  # steps of each call of `fit` that has come to its end
        self.losses = 0  # calls of `loss`
        self.modes: set[bool] = set()  # whether the learner was in training mode in those since the last step
        self.edited_at = 0  # how many of them there had been when the gradients were last edited
        self.editing = False
        self.optimizers: list[weakref.ref[torch.optim.Optimizer]] = []
        self.known: set[int] = set()  # parameters in protected optimisers that have stepped
        self.trained: set[str] = set()  # of those made for the task, what had a gradient in a step
        self.round = False  # whether an optimiser has stepped twice, so that all of them are known

    def fit(self, fit: Fit) -> Fit:
        """The loop, followed by a look at what it has done."""

        def looked_at(*args: Any, **kwargs: Any) -> None:
            steps, losses, before = self.steps, self.losses, self._sums()
            try:
                fit(*args, **kwargs)
            except ValueError as error:
                self._explain(error, self.steps - steps)
                raise
            self.taken.append(self.steps - steps)
            tried = self.losses > losses or any(p.grad is not None for p in self.learner.parameters())
            if self.steps > steps or (tried and self._sums() != before):
                self._check(self.steps > steps, self.losses > losses)
                self.check_made()

        return looked_at

    def _explain(self, error: ValueError, steps: int) -> None:
        """ValueError in words where a schedule has gone through all of its steps, and the task takes more."""
        total = re.search(r"specified number of total steps is (\d+)", str(error))
        if total is not None:
            name, before = type(self.learner).__name__, sum(self.taken)
            earlier = f", after {before} in earlier ones" if before else ""
            raise ValueError(
                f"the learning rate's schedule has total_steps={total[1]}, and task {self.task_id} takes more: call "
                f"{len(self.taken) + 1} of fit is at step {steps}{earlier}. {name} may call fit several times for a "
                "task, each time for as many epochs as it says: make the schedule inside fit, with the steps of that "
                "call as its total_steps"
            ) from error

    def _sums(self) -> list[float]:
        sums = [p.detach().sum(dtype=torch.float64) for p in self.learner.parameters() if p.requires_grad]
        return torch.stack([s.cpu() for s in sums]).tolist() if sums else []

    def _check(self, stepped: bool, lost: bool) -> None:
        """RuntimeError where the loop trained, and left out what the method needs."""
        kind, name = type(self.learner), type(self.learner).__name__
        if not stepped and any(overrides(kind, moment) for moment in ("watch", "edit_gradients", "after_step")):
            raise RuntimeError(
                f"task {self.task_id} was trained, and {name} saw no step of a protected optimiser. "
                "Call learner.protect(optimizer) on the optimiser that takes the steps (the one inside, where "
                "something wraps it, and again after copying the learner or the optimiser)"
            )
        if not lost and overrides(kind, "loss"):
            raise RuntimeError(
                f"task {self.task_id} was trained without learner.loss, so {name}'s own term was left out. Compute the "
                "loss with learner.loss(x, y, task_id); for another criterion set learner.criterion"
            )

    def check_step(self) -> None:
        """RuntimeError where an optimiser is about to take a step that the method knows nothing of, or not enough."""
        learner, name = self.learner, type(self.learner).__name__
        if overrides(type(learner), "edit_gradients") and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"an optimiser steps inside the backward pass, where {name} has not seen all gradients yet; take the "
                "steps after loss.backward() has returned"
            )
        if self.modes == {False} and (learner.needs_training_mode or learner.rotations):
            raise RuntimeError(
                f"task {self.task_id} is being trained, and the learner is in evaluation mode, in which {name} leaves "
                "out what it learns by; call learner.train() before the loss. To keep norms or dropout as they are, "
                "call eval() on those layers alone"
            )
        self.modes = set()

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """A protected optimiser has stepped."""
        if any(ref() is optimizer for ref in self.optimizers):
            self.round = True
        else:
            self.optimizers.append(weakref.ref(optimizer))
        self.steps += 1
        if self.made:
            self.known |= {id(p) for group in optimizer.param_groups for p in group["params"]}
            named = self.learner.named_parameters()
            self.trained |= {name for name, p in named if name in self.made and p.grad is not None}

    def replaced(self, names: set[str]) -> None:
        """Parameters of these names are new ones since the last call of `fit`: the next must train those."""
        self.made, self.trained, self.steps = names, set(), 0
        self.optimizers, self.known, self.round = [], set(), False  # whoever steps now may be new, too

    def check_made(self) -> None:
        """RuntimeError where what was made for the task was trained, and is in no protected optimiser."""
        if not self.made or not self.steps:
            return
        left = [
            name
            for name, p in self.learner.named_parameters()
            if name in self.trained and id(p) not in self.known and p.requires_grad
        ]
        self.made = set()
        if left:
            raise RuntimeError(
                f"{', '.join(left[:4])}{' and others' if len(left) > 4 else ''} were made for task {self.task_id} "
                "and are in no protected optimiser, so they would never be trained. Make the optimiser inside "
                "the function that is given to learn, or add them: optimizer.add_param_group({'params': [...]})"
            )


def overrides(kind: type[Learner], moment: str) -> bool:
    """Whether a method redefines a moment of `Learner`."""
    from .learner import Learner

    return getattr(kind, moment) is not getattr(Learner, moment)


# ---- around the moments ----------------------------------------------------------------------------------------------


def around_init(init: Callable[..., None]) -> Callable[..., None]:
    """Around a method's constructor: every method takes `features` and `rotations`, and none needs to name them."""

    @functools.wraps(init)
    def constructor(
        self: Learner,
        *args: Any,
        features: Callable[[Any], Tensor] | None = None,
        rotations: bool = False,
        **kwargs: Any,
    ) -> None:
        if features is not None:
            if not callable(features):
                raise TypeError(
                    f"features is a {type(features).__name__}; allowed: a function from what the backbone returns to a "
                    "tensor of shape (batch, features)"
                )
            self.__dict__["_given_features"] = features
        if not isinstance(rotations, bool):
            raise ValueError(f"rotations is {rotations!r}; allowed: True, False")
        if rotations:
            _takes_rotations(type(self))
            self.__dict__["_given_rotations"] = True
        init(self, *args, **kwargs)

    return constructor


def _takes_rotations(kind: type[Learner]) -> None:
    """ValueError where a method needs no task id, or has a forward pass that knows nothing of turns."""
    if not kind.needs_task_id or overrides(kind, "forward"):
        raise ValueError(
            f"{kind.__name__} takes no rotations: they are for methods that must be told the task id, and that leave "
            "`forward` as it is"
        )


def around_learn(learn: Callable[[Any, Task, Fit], None]) -> Callable[[Any, Task, Fit], None]:
    """Around a method's `learn`: check the task and create what it needs; mark it as finished when all went well.

    When it did not go well (a loss that became NaN, Ctrl-C), put back what the broken training had changed.
    """

    @functools.wraps(learn)
    def guarded(self: Learner, task: Task, fit: Fit) -> None:
        if self._copied_at is not None:
            raise RuntimeError(
                f"this is a copy of a learner that was made while task {self._copied_at} was being learned, which "
                "cannot be learned to its end here: copy between tasks. To go back to the best epoch keep "
                "learner.state_dict(), and load it before the function that is given to learn returns"
            )
        if self._current is not None:
            if task.id != self._current or getattr(type(self), "learn", None) is guarded:
                raise RuntimeError(
                    f"task {task.id} was to be learned while task {self._current} is being learned; "
                    "let the first learn return before the next is called"
                )
            learn(self, task, fit)  # super().learn()
            return
        record = self.prepare(task)
        snapshot = Snapshot(self)
        try:
            try:
                self._current = task.id
                self._in_progress = InProgress(self, task.id, self._made.get(task.id, set()))
                with torch.enable_grad():
                    learn(self, task, self._in_progress.fit(fit))
                uninterrupted(lambda: self._finish(record))
            finally:
                uninterrupted(lambda: self._leave(None if record.finished else snapshot))
        finally:
            if self._current is not None:  # Ctrl-C came on the way there
                self._leave(None if record.finished else snapshot)

    return guarded


def around_loss(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Around a method's `loss`: note that it was called."""

    @functools.wraps(loss)
    def counted(self: Learner, *args: Any, **kwargs: Any) -> Tensor:
        if self._in_progress is not None:
            check_wrapper(self)
            self._in_progress.losses += 1
            if torch.is_grad_enabled():
                self._in_progress.modes.add(self.training)
            if self._in_progress.round:
                self._in_progress.check_made()
            y = args[1] if len(args) > 1 else kwargs.get("y")
            self.largest_batch = max(self.largest_batch, len(y) if isinstance(y, Tensor) and y.ndim else 0)
        return loss(self, *args, **kwargs)

    return counted


def around_edit(edit: Callable[[Any], None]) -> Callable[[Any], None]:
    """Around a method's `edit_gradients`: one training step is one edit, however many optimisers take it."""

    @functools.wraps(edit)
    def once(self: Learner) -> None:
        progress = self._in_progress
        if progress is None or progress.editing:  # between tasks; super().edit_gradients()
            edit(self)
        elif not progress.losses or progress.edited_at < progress.losses:
            progress.editing = True
            try:
                edit(self)
            finally:
                progress.editing = False
            progress.edited_at = progress.losses

    return once


# ---- around the step -------------------------------------------------------------------------------------------------


class Steps(State):
    """The part of a `Learner` that stands around the steps of optimisers."""

    def protect(self, optimizer: Optimizer) -> Optimizer:
        """Make every step of `optimizer` keep the method's promises; returns the optimiser.

        Attaches `edit_gradients` before and `after_step` after each step, by PyTorch's public hooks. Protecting an
        optimiser twice does nothing more. One optimiser may serve all tasks: give it the parameters of a new head with
        `optimizer.add_param_group`.

        Raises:
            TypeError: not a torch optimiser.
        """
        inner = torch_optimizer(optimizer)
        protected = inner.__dict__.setdefault("_protected_by", [])
        if not any(learner is self for learner in protected):
            protected.append(self)
            self._protected = [ref for ref in self._protected if ref() is not None] + [weakref.ref(inner)]
            inner.register_step_pre_hook(self._before_optimizer_step)
            inner.register_step_post_hook(self._after_optimizer_step)
            inner.register_load_state_dict_post_hook(lambda *_: inner.__dict__.pop("_cleared_for", None))
        return optimizer

    def optimizer_states(self, parameters: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """What protected optimisers remember of these parameters: tensors by their names, a dictionary for each kind.

        Momentum is one kind, and Adam has two. All of them have as many axes as the parameter.
        """
        found: dict[tuple[int, str], dict[str, Tensor]] = {}
        optimizers = [optimizer for ref in self._protected if (optimizer := ref()) is not None]
        for number, optimizer in enumerate(optimizers):
            for name, parameter in parameters.items():
                for kind, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == parameter.ndim > 0:
                        found.setdefault((number, kind), {})[name] = value
        return list(found.values())

    def _before_optimizer_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        unscale(optimizer)
        self.watch(optimizer)
        # `step(closure)` computes its gradients inside the step, after this hook: there the editing goes with them.
        given = args[1:] if args and args[0] is optimizer else args
        closure = kwargs.get("closure", given[0] if given else None)
        if closure is None:
            self._edit()
            return None

        def edited() -> Any:
            value = closure()
            self._edit()
            return value

        return args[: len(args) - len(given)], {**kwargs, "closure": edited}

    def _edit(self) -> None:
        if self._in_progress is not None:
            self._in_progress.check_step()
        self.edit_gradients()

    def _after_optimizer_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._in_progress is not None:
            self._in_progress.stepped(optimizer)
        self.after_step()
