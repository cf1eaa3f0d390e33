"""The table LOOPS: the ways in which people train, with the small tasks and the one loop that it stands on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minicl

Make = Callable[..., torch.optim.Optimizer]

SGD: Make = partial(torch.optim.SGD, lr=0.1)
MOMENTUM: Make = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAM: Make = partial(torch.optim.Adam, lr=0.01)
OPTIMIZERS: dict[str, Make] = {
    "SGD": SGD,
    "weight decay": partial(torch.optim.SGD, lr=0.1, weight_decay=0.1),
    "momentum": MOMENTUM,
    "Nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": partial(torch.optim.Adam, lr=0.02),
    "Adam with L2": partial(torch.optim.Adam, lr=0.02, weight_decay=0.1),
    "AMSGrad": partial(torch.optim.Adam, lr=0.02, weight_decay=0.1, amsgrad=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.02, weight_decay=0.5),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5, weight_decay=0.01),
    "RMSprop with L2": partial(torch.optim.RMSprop, lr=0.01, weight_decay=0.1),
}
"""The optimisers that the promise of no forgetting names, each with settings that move weights without a gradient.

:meta hide-value:
"""

SHAPE = (1, 6, 6)
"""Of the small tasks' inputs: enough for an MLP, and for a CNN."""


def small_tasks(
    scenario: str = "task",
    n: int = 3,
    *,
    ids: Sequence[int] | None = None,
    outputs: int | Sequence[int] = 2,
    samples: int = 20,
    shape: tuple[int, ...] = SHAPE,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[minicl.Task]:
    """Tasks of random numbers, labelled by a random linear map; the same whenever they are asked for.

    Args:
        scenario: "task", "domain" or "class".
        n: how many.
        ids: 0, 1, ... if not given.
        outputs: classes of each task; one number for all, or one per task.
        samples: to train on; six more to validate, six to test.
        shape: of one input.
        dtype: of the inputs.
        seed: another one gives other tasks.
    """
    ids = range(n) if ids is None else ids
    sizes = [outputs] * len(ids) if isinstance(outputs, int) else list(outputs)
    generator = torch.Generator().manual_seed(seed)
    made, before = [], 0
    for task_id, size in zip(ids, sizes, strict=True):
        first = before if scenario == "class" else 0
        teacher = torch.randn(math.prod(shape), size, generator=generator)
        parts = []
        for m in (samples, 6, 6):
            x = torch.rand(m, *shape, generator=generator)
            y = ((x.flatten(1) - 0.5) @ teacher).argmax(1)
            parts.append((x.to(dtype), y + first))
        made.append(minicl.Task(task_id, first + size, *parts, scenario=scenario))
        before += size
    return made


def known(task: minicl.Task) -> int | None:
    """The task id, where the scenario gives one."""
    return task.id if task.scenario == "task" else None


# ---- asking ----------------------------------------------------------------------------------------------------------


def answer(learner: minicl.Learner, x: Tensor, task_id: int | None = None) -> Tensor:
    """Logits in evaluation mode, which does not last."""
    training = learner.training
    learner.eval()
    try:
        with torch.no_grad():
            return learner(x, task_id)
    finally:
        learner.train(training)


def answers(learner: minicl.Learner, x: Tensor, *task_ids: int) -> list[Tensor]:
    """Of each task, without and with gradients: some layers have a code path of their own for the former."""
    training = learner.training
    learner.eval()
    with torch.no_grad():
        quick = [learner(x, t) for t in task_ids]
    slow = [learner(x, t).detach() for t in task_ids]
    learner.train(training)
    return [*quick, *slow]


WAYS_TO_ASK = ((True, True), (True, False), (False, True), (False, False))
"""In training mode or not, with gradients or not."""


def in_every_way(
    learner: minicl.Learner, x: Tensor, task_id: int, ways: Iterable[int] = range(len(WAYS_TO_ASK))
) -> list[Tensor]:
    """The answers of a finished task in these of `WAYS_TO_ASK`. The mode is as before."""
    mode, found = learner.training, []
    for training, gradients in (WAYS_TO_ASK[way] for way in ways):
        if learner.training != training:
            learner.train(training)
        with torch.set_grad_enabled(gradients):
            found.append(learner(x, task_id).detach())
    if learner.training != mode:
        learner.train(mode)
    return found


def logits(learner: minicl.Learner, tasks: Iterable[minicl.Task]) -> list[Tensor]:
    """The answers to the test samples of each task."""
    return [answer(learner, task.test.x, known(task)) for task in tasks]


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers that a module would save."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# ---- optimisers that do more than step -------------------------------------------------------------------------------


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD (Defazio et al. 2024, arXiv 2405.15682): weights are swapped in `train()` and `eval()`.

    Gradients are taken at y, steps at z; what one evaluates with is x, their average.
    """

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0})
        self.training = True

    @torch.no_grad()
    def _swap(self, training: bool) -> None:
        if training == self.training:
            return
        for group in self.param_groups:
            weight = 1 - 1 / group["beta"] if not training else 1 - group["beta"]
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], weight)
        self.training = training

    def train(self) -> None:
        """Put y, with which one trains, in the place of x."""
        self._swap(True)

    def eval(self) -> None:
        """Put x, with which one evaluates, in the place of y."""
        self._swap(False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone(memory_format=torch.preserve_format))
                p.lerp_(z, 1 / group["k"])
                p.add_(p.grad, alpha=group["lr"] * (group["beta"] * (1 - 1 / group["k"]) - 1))
                z.sub_(p.grad, alpha=group["lr"])


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412) as it is usually written: two steps on a
    wrapper, with the optimiser that really steps inside.
    """

    def __init__(self, params: Any, base: Make = SGD, rho: float = 0.05) -> None:
        super().__init__(params, {"rho": rho})
        self.base_optimizer = base(self.param_groups)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    def _with_gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        return ((p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None)

    @torch.no_grad()
    def first_step(self) -> None:
        """Climb to the worst place nearby."""
        norm = torch.stack([torch.zeros(()), *(grad.norm() for _, grad in self._with_gradients())]).norm()
        for p, grad in self._with_gradients():
            self.state[p]["old"] = p.detach().clone()
            p.add_(grad * (0.05 / (norm + 1e-12)))

    @torch.no_grad()
    def second_step(self) -> None:
        """Go back, and step with the gradient from there."""
        for group in self.param_groups:
            for p in group["params"]:
                if "old" in self.state[p]:
                    p.copy_(self.state[p].pop("old"))
        self.base_optimizer.step()


class Lookahead(torch.optim.Optimizer):
    """Lookahead (Zhang et al. 2019, arXiv 1907.08610) as timm writes it: it does not call the constructor of torch's
    optimiser, and moves weights after the step of the optimiser inside.
    """

    def __init__(self, params: Any, base: Make = SGD, k: int = 2, alpha: float = 0.5) -> None:
        self._base_optimizer = base(params)
        self.param_groups, self.defaults = self._base_optimizer.param_groups, self._base_optimizer.defaults
        self.state = self._base_optimizer.state
        self.k, self.alpha, self.steps = k, alpha, 0
        self.slow: dict[nn.Parameter, Tensor] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._base_optimizer.zero_grad(set_to_none)

    def add_param_group(self, group: Any) -> None:
        self._base_optimizer.add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self._base_optimizer.step(closure)
        self.steps += 1
        for group in self.param_groups if self.steps % self.k == 0 else ():
            for p in group["params"]:
                slow = self.slow.setdefault(p, p.detach().clone())
                slow.lerp_(p, self.alpha)
                p.copy_(slow)
        return loss


class Wrapped:
    """An optimiser inside another object, as Accelerate prepares it; what is asked of it goes to the one inside."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)


# ---- the loop --------------------------------------------------------------------------------------------------------


class Part(Protocol):
    """Which parameters a further optimiser takes, by their name."""

    def __call__(self, name: str, parameter: nn.Parameter) -> bool: ...


class Loop:
    """A loop as a user writes it: `protect`, and one optimiser for all tasks, or a new one for each call of `fit`.

    Args:
        learner: what is trained.
        make: makes an optimiser from parameters.
        reuse: keep the optimiser, and give it the parameters that have come since.
        epochs: passes over the data, where the method asks for no number of its own.
        batch: samples of a step.
        set_to_none: how gradients are zeroed.
        clip: the largest norm of all gradients together, if any.
        watch: called after every step.
        closure: hand the step a function that computes the loss.
        accumulate: so many backward passes per step, of as many parts of the batch.
        autocast: the type of mixed precision, if any.
        scaler: scale the loss against underflow of gradients.
        channels_last: the memory format of the network and of images.
        second: which parameters a second optimiser takes.
        make_second: makes it.
        tell: call `before_step`.
        protect: call `learner.protect`.
        own_loss: in the place of `learner.loss`: a function of logits and labels.
        schedule: a learning rate that rises and falls in each call of `fit`.
        wrap: put around the protected optimiser.
        at_end: called before `fit` returns.
        seed: of the random numbers of each step, if they are to be the same whatever the loop.
    """

    def __init__(
        self,
        learner: minicl.Learner,
        make: Make = ADAM,
        *,
        reuse: bool = True,
        epochs: int = 2,
        batch: int = 10,
        set_to_none: bool = True,
        clip: float | None = None,
        watch: Callable[[], None] | None = None,
        closure: bool = False,
        accumulate: int = 1,
        autocast: torch.dtype | None = None,
        scaler: bool = False,
        channels_last: bool = False,
        second: Part | None = None,
        make_second: Make = SGD,
        tell: bool = True,
        protect: bool = True,
        own_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        schedule: bool = False,
        wrap: Callable[[torch.optim.Optimizer], Any] | None = None,
        at_end: Callable[[], None] | None = None,
        seed: int | None = None,
    ) -> None:
        self.learner, self.make, self.reuse, self.epochs, self.batch = learner, make, reuse, epochs, batch
        self.set_to_none, self.clip, self.watch = set_to_none, clip, watch
        self.closure, self.accumulate, self.autocast = closure, accumulate, autocast
        self.channels_last, self.second, self.make_second = channels_last, second, make_second
        self.tell, self.protect, self.own_loss, self.schedule = tell, protect, own_loss, schedule
        self.wrap, self.at_end, self.seed = wrap, at_end, seed
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12) if scaler else None
        self.optimizers: list[Any] = []

    @property
    def optimizer(self) -> Any:
        """The first optimiser, or None before the first call of `fit`."""
        return self.optimizers[0] if self.optimizers else None

    def learn(self, *tasks: minicl.Task) -> Loop:
        """Learn these tasks, one after the other."""
        for task in tasks:
            self.learner.learn(task, partial(self.fit, task))
        return self

    def fit(self, task: minicl.Task, epochs: int | None = None, tasks: Sequence[minicl.Task] | None = None) -> None:
        """What a method calls: train on the task, or on a mixture of several."""
        learner, mixture = self.learner, [task] if tasks is None else tasks
        x, y = torch.cat([t.train.x for t in mixture]), torch.cat([t.train.y for t in mixture])
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        ids = torch.cat([torch.full((len(t.train),), t.id) for t in mixture])
        self._prepare_optimizers()
        learner.train()
        self._switch("train")
        n_epochs, batches = self.epochs if epochs is None else epochs, torch.arange(len(y)).split(self.batch)
        schedules = [
            torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=max(n_epochs * len(batches), 2))
            for o in self.optimizers
            if self.schedule
        ]
        for epoch in range(n_epochs):
            for step, rows in enumerate(batches):
                if self.tell:
                    learner.before_step(step / max(len(batches) - 1, 1))
                which = partial(self._which, task, ids, mixed=tasks is not None)
                self._step(partial(self._backward, x, y, rows, which, epoch * len(batches) + step))
                for schedule in schedules:
                    schedule.step()
                if self.watch is not None:
                    self.watch()
        self._switch("eval")
        if self.at_end is not None:
            self.at_end()

    @staticmethod
    def _which(task: minicl.Task, ids: Tensor, rows: Tensor, mixed: bool) -> Any:
        return ids[rows] if mixed else task.id

    def _backward(self, x: Tensor, y: Tensor, rows: Tensor, which: Callable[[Tensor], Any], number: int) -> Tensor:
        """The gradients of a batch, from zero; its loss."""
        learner = self.learner
        if self.seed is not None:
            torch.manual_seed(self.seed + number)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=self.set_to_none)
        total = torch.zeros(())
        for part in rows.chunk(self.accumulate):
            share = len(part) / len(rows)
            with nullcontext() if self.autocast is None else torch.autocast("cpu", self.autocast):
                if self.own_loss is None:
                    loss = learner.loss(x[part], y[part], which(part)) * share
                else:
                    loss = self.own_loss(learner(x[part], which(part)), y[part]) * share
            if not bool(loss.isfinite()):
                raise AssertionError(f"the loss is {loss.item()}")
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total += loss.detach()
        if self.clip is not None:
            if self.scaler is not None:
                for optimizer in self.optimizers:
                    self.scaler.unscale_(optimizer)
            learner.edit_gradients()  # what is held counts in no norm
            nn.utils.clip_grad_norm_(learner.parameters(), self.clip)
        return total

    def _step(self, backward: Callable[[], Tensor]) -> None:
        if self.closure:
            for optimizer in self.optimizers:
                optimizer.step(backward)
            return
        backward()
        if hasattr(self.optimizer, "first_step"):
            self.optimizer.first_step()
            backward()
            self.optimizer.second_step()
            return
        for optimizer in self.optimizers:
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()

    def _switch(self, mode: str) -> None:
        for optimizer in self.optimizers:
            getattr(optimizer, mode, lambda: None)()

    def _prepare_optimizers(self) -> None:
        """New ones, or those that there are with the parameters that have come since."""
        if self.channels_last:
            self.learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        named = list(self.learner.named_parameters())
        shares = [named]
        if self.second is not None:
            shares = [[np for np in named if not self.second(*np)], [np for np in named if self.second(*np)]]
        if not self.reuse or len(self.optimizers) != len(shares):
            makes = (self.make, self.make_second)
            made = [make([p for _, p in part]) for make, part in zip(makes, shares, strict=False) if part]
            made = [self.learner.protect(o) if self.protect else o for o in made]
            self.optimizers = made if self.wrap is None else [self.wrap(o) for o in made]
            return
        for optimizer, part in zip(self.optimizers, shares, strict=True):
            have = {id(p) for group in optimizer.param_groups for p in group["params"]}
            new = [p for _, p in part if id(p) not in have]
            if new:
                optimizer.add_param_group({"params": new})


# ---- the table -------------------------------------------------------------------------------------------------------

NO_STEP_SEEN = r"saw no step of a protected optimiser\. Call learner\.protect\(optimizer\)"
OWN_LOSS = r"was trained without learner\.loss, so .* own term was left out|the task id is tensor"


@dataclass(frozen=True)
class Way:
    """A row of LOOPS: a way to train.

    Attributes:
        says: what people do there, in a few words.
        settings: of `Loop`.
        same_as: the row that gives the same numbers, up to rounding.
        refusal: what a method says that cannot be trained in this way; None where every method can.
        warning: what may be warned of.
    """

    says: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    same_as: str | None = None
    refusal: str | None = None
    warning: str | None = None


def _is_head(name: str, parameter: nn.Parameter) -> bool:
    return name.startswith("heads.")


def _is_no_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim != 2


def _of(make: Callable[..., torch.optim.Optimizer], **settings: Any) -> dict[str, Any]:
    return {"make": partial(make, **settings)}


_optim = torch.optim
LOOPS: dict[str, Way] = {
    **{name: Way(f"one optimiser for all tasks: {name}", {"make": make}) for name, make in OPTIMIZERS.items()},
    "SGD, foreach": Way("all tensors at once", _of(_optim.SGD, lr=0.1, foreach=True), same_as="SGD"),
    "SGD, fused": Way("all tensors in one kernel", _of(_optim.SGD, lr=0.1, fused=True), same_as="SGD"),
    "Adam, foreach": Way("all tensors at once", _of(_optim.Adam, lr=0.02, foreach=True), same_as="Adam"),
    "Adam, fused": Way("all tensors in one kernel", _of(_optim.Adam, lr=0.02, fused=True), same_as="Adam"),
    "AdamW, fused": Way("with weight decay", _of(_optim.AdamW, lr=0.02, weight_decay=0.5, fused=True), same_as="AdamW"),
    "Adagrad": Way("sums of squares", _of(_optim.Adagrad, lr=0.05, weight_decay=0.1)),
    "Adadelta": Way("no learning rate", _of(_optim.Adadelta, weight_decay=0.1)),
    "Adamax": Way("the largest gradient", _of(_optim.Adamax, lr=0.02, weight_decay=0.1)),
    "NAdam": Way("Adam with Nesterov's momentum", _of(_optim.NAdam, lr=0.02, weight_decay=0.1)),
    "RAdam": Way("rectified Adam", _of(_optim.RAdam, lr=0.02, weight_decay=0.1)),
    "ASGD": Way("averaged SGD", _of(_optim.ASGD, lr=0.1, weight_decay=0.1)),
    "Rprop": Way("the signs of gradients", _of(_optim.Rprop, lr=0.01)),
    "Adafactor": Way("moments in factors", _of(_optim.Adafactor, lr=0.02, weight_decay=0.1)),
    "Muon, and AdamW for the rest": Way(
        "matrices in one optimiser, vectors in another",
        {
            "make": partial(getattr(_optim, "Muon", _optim.SGD), lr=0.02, weight_decay=0.1),
            "second": _is_no_matrix,
            "make_second": partial(_optim.AdamW, lr=0.02, weight_decay=0.1),
        },
    ),
    "a closure": Way("the step computes the loss itself", {"make": SGD, "closure": True}, same_as="SGD"),
    "L-BFGS": Way(
        "a closure, many times per step", {**_of(_optim.LBFGS, lr=0.1, max_iter=3), "closure": True, "reuse": False}
    ),
    "a new optimiser for each task": Way("as `minicl.run` does", {"make": ADAM, "reuse": False}),
    "zeroed gradients": Way("`zero_grad(set_to_none=False)`", {"make": MOMENTUM, "set_to_none": False}),
    "accumulation": Way("two backward passes per step", {"make": SGD, "accumulate": 2}),
    "clipping": Way("`edit_gradients()`, then `clip_grad_norm_`, then the step", {"make": SGD, "clip": 0.5}),
    "one cycle": Way("a learning rate that rises and falls", {"make": MOMENTUM, "schedule": True, "reuse": False}),
    "bf16 autocast": Way("mixed precision", {"make": SGD, "autocast": torch.bfloat16}),
    "GradScaler": Way("a scaled loss", {"make": SGD, "scaler": True}, same_as="SGD"),
    "GradScaler, fused": Way(
        "the optimiser unscales", {**_of(_optim.Adam, lr=0.02, fused=True), "scaler": True}, same_as="Adam"
    ),
    "GradScaler and clipping": Way(
        "unscaled by hand first", {"make": SGD, "scaler": True, "clip": 0.5}, same_as="clipping"
    ),
    "channels_last": Way("images and kernels with channels last", {"make": SGD, "channels_last": True}, same_as="SGD"),
    "channels_last, fused Adam": Way(
        "both", {**_of(_optim.Adam, lr=0.02, fused=True), "channels_last": True}, same_as="Adam"
    ),
    "two optimisers": Way("heads in one, the rest in another", {"make": SGD, "second": _is_head}, same_as="SGD"),
    "a wrapped optimiser": Way("as Accelerate hands it back", {"make": SGD, "wrap": Wrapped}, same_as="SGD"),
    "no before_step": Way("progress is never told", {"make": SGD, "tell": False}, warning="before_step"),
    "one batch an epoch": Way("few samples", {"make": SGD, "batch": 1000, "epochs": 4}, warning="before_step"),
    "no protect": Way("the hooks are forgotten", {"make": SGD, "protect": False}, refusal=NO_STEP_SEEN),
    "a loss of one's own": Way(
        "`F.cross_entropy(learner(x, task_id), y)`", {"make": SGD, "own_loss": F.cross_entropy}, refusal=OWN_LOSS
    ),
}
"""Ways to train, by name. Every method can be trained in each, or says in words that it cannot.

:meta hide-value:
"""
