"""CPG: Hung et al. 2019, "Compacting, Picking and Growing for Unforgetting Continual Learning", arXiv 1910.06562.

Every weight has one owner, as in PackNet. A task trains the weights that are still free, and picks with a learned mask,
as in Piggyback, which of the owned ones it reads. If that does not reach its goal, the network grows and the task
begins again. Then what it trained is pruned step by step for as long as the goal holds, and frozen.

The file reads from top to bottom: the equations, then the learner. Which weights a network has, and what finished tasks
read, is in `minicl.isolation.owners` and `minicl.isolation.shared`. The authors' code is github.com/ivclab/CPG at
f1b20ea, `utils/prune.py:31-102` and `experiment1/CPG_cifar100_scratch_mul_1.5.sh`; where this departs from it, the
docstring of `CPG` says so.
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
from ..evaluation import evaluate
from ..freezing import Finished, Template, copied, every_name, weight_at
from ..isolation.owners import Owners, prunable
from ..isolation.packnet import keep_mask, owned_by
from ..isolation.shared import OwnedNetwork
from ..isolation.task_masks import TaskMasks
from ..isolation.task_norms import TaskNorms
from ..learner import Fit, TaskRecord
from ..networks import is_initial, reinitialize
from ..protection import Snapshot
from ..saving import check_state, out_of_a_row, starting_with
from ..tasks import Task
from ..tensors import first
from .piggyback import binarize, masked_above
from .widen import widening

Goal = float | str | Sequence[float] | None

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


class CPG(OwnedNetwork):
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

    saved_attributes = ("width",)
    forward_alone = True
    alone: nn.Module | None

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
        widen = checks.number("widen", widen, beyond=True)
        stage = checks.number("stage", stage, beyond=True, most=1, below=True)
        stage_epochs, every = checks.integer("stage_epochs", stage_epochs), checks.integer("every", every)
        if retrain_epochs is not None:
            retrain_epochs = checks.integer("retrain_epochs", retrain_epochs, 0, ", or None for as many as before")
        threshold = checks.number("threshold", threshold)
        scale = checks.number("scale", scale)
        if scale <= threshold:
            raise ValueError(f"scale is {scale}; allowed: more than threshold={threshold}, or nothing is picked")
        checks.one_of("batchnorm", batchnorm, ("frozen", "per-task"))
        first_network = backbone if isinstance(backbone, nn.Module) or not callable(backbone) else backbone(1.0)
        per_task = batchnorm == "per-task"
        super().__init__(
            first_network,
            prunable,
            TaskNorms(per_task, vectors=True),
            goal=goal,
            tolerance=tolerance,
            max_width=max_width,
            widen=widen,
            stage=stage,
            stage_epochs=stage_epochs,
            every=every,
            retrain_epochs=retrain_epochs,
            threshold=threshold,
            scale=scale,
            batchnorm=batchnorm,
            prunable=list(prunable),
        )
        self.goal, self.tolerance, self.max_width, self.widen = goal, tolerance, max_width, widen
        self.stage, self.stage_epochs, self.every, self.retrain_epochs = stage, stage_epochs, every, retrain_epochs
        self.threshold, self.scale = threshold, scale
        self.make = widening(backbone, max_width)
        one_of_its_own = copied(first_network) if goal == "individual" else nn.Identity()
        self.template = Template(one_of_its_own)
        self.masks = TaskMasks()
        self.register_module("alone", None)  # the network of its own that a goal is found with
        self.width = self._built = 1.0
        self._narrow: dict[float, nn.Module] = {}  # networks of finished tasks, without numbers, by width
        self._before: list[Callable[[], None]] = []  # what undoes growing, if the task breaks off
        self._stage: tuple[float, float] | None = None  # from which sparsity to which, while compacting
        self._epoch, self._progress, self._steps = 0, -1.0, 0  # where in the stage
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

    def goal_of(self, task: Task, fit: Fit) -> float:
        """The accuracy that is enough; in the record's notes as "goal", without the tolerance."""
        number, notes = self.check_number(), self.tasks[task.id].notes
        if not len(task.make("valid")):
            raise ValueError(f"CPG goes by validation samples, and task {task.id} has none; give valid=(x, y)")
        self._remember(task)
        if any(self.masks.score(task.id, layer).shape != w.shape for layer, w in self.weights().items()):
            self._begin_again(task)  # it was prepared before the network grew
        goal = self.goal
        if isinstance(goal, Sequence) and not isinstance(goal, str):
            if number > len(goal):
                raise ValueError(f"goal has {len(goal)} values, one per task, and this is task number {number}")
            goal = goal[number - 1]
        if goal == "individual":
            network = copied(self.template.network)
            reinitialize(network)
            self.alone = network.train(self.training)
            self._new_head(task)
            self._announce()
            fit()
            goal = self.accuracy(task)
            self.alone = None
            self._new_head(task)
        notes["goal"] = goal
        return -math.inf if goal is None else float(goal) - self.tolerance

    def accuracy(self, task: Task) -> float:
        """On validation samples."""
        return evaluate(self, task, "valid")

    def train_and_pick(self, task: Task, fit: Fit) -> None:
        """Train the free weights, and learn with the scores which of the owned ones to read."""
        if not self._picking:
            self.claim_free_weights(task)
        self._announce()
        fit()

    def grow_wider(self, task: Task) -> None:
        """The task begins again in a network that is wider by `widen`: new weights are free, and start at random."""
        self._resize(min(self.width + self.widen, self.max_width))
        self._begin_again(task)
        self.claim_free_weights(task, from_zero=False)

    def _begin_again(self, task: Task) -> None:
        """A new head, and new places for norms and scores, as wide as the network is now."""
        self._new_head(task)
        self.norms.add(task.id, self.backbone)
        self.masks.add(self.tasks[task.id], self._shapes(self.width), self.scale, self._like)

    def _new_head(self, task: Task) -> None:
        """A head drawn anew, for the network that learns now."""
        record = self.tasks[task.id]
        record.n_features = self._n_features(task)
        self.heads.add(record, self._like)

    def compact(self, task: Task, fit: Fit, reached: float) -> None:
        """Prune in stages, each gradually, until one costs too much accuracy; that one is undone."""
        goal = reached - (self.tolerance if self.goal is None else 0.0)
        self.release(0.0)
        stages = [i * self.stage for i in range(math.ceil(1 / self.stage - 1e-9))]  # shares, from 0 to less than 1
        for start, end in itertools.pairwise(stages):
            snapshot, kept = Snapshot(self), self._kept
            self._stage, self._epoch, self._progress, self._steps = (start, end), 0, -1.0, 0
            fit(epochs=self.stage_epochs)
            self._stage = None
            self.release(end)
            if self.accuracy(task) < goal - 1e-12:
                snapshot.put_back(self)
                self._hold(kept)
                break

    @torch.no_grad()
    def release(self, sparsity: float) -> None:
        """Prune this share of the weights that the task found free, layer by layer, the smallest; they become 0.

        The share counts those that were pruned before; nothing that was pruned comes back.
        """
        self._put_back()
        kept = {}
        for layer, weight in self.weights().items():
            if not torch.isfinite(weight).all():
                raise FloatingPointError(f"layer {layer!r} holds NaN or infinity; a smaller learning rate may help")
            claimed = owned_by(self.owners[layer], 0)
            kept[layer] = keep_mask(weight, 1 - sparsity, among=claimed) & (weight != 0)
            weight.masked_fill_(claimed & ~kept[layer], 0)
        self._hold(kept)

    def _hold(self, kept: dict[str, Tensor]) -> None:
        """These weights are the task's to train, and no others."""
        self._kept = kept
        self._frozen.release()
        for layer, weight in self.weights().items():
            self._frozen.hold(weight, ~kept[layer])

    def retrain(self, task: Task, fit: Fit) -> None:
        """Train what was kept, and the scores, once more; undone if the accuracy is lower afterwards."""
        if self.retrain_epochs == 0:
            return
        before, snapshot = self.accuracy(task), Snapshot(self)
        fit() if self.retrain_epochs is None else fit(epochs=self.retrain_epochs)
        if self.accuracy(task) < before:
            snapshot.put_back(self)

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

    def _finish(self, record: TaskRecord) -> None:
        super()._finish(record)
        self.masks.finish(record.id)

    def feature_extractor(self) -> nn.Module:
        return self.backbone if self.alone is None else self.alone

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def while_learning(self, x: Any, task_id: int) -> Tensor:
        if self.alone is not None:
            return self.apply_network(self.alone, x)
        if self._active <= 1:  # nothing is owned yet
            return self.apply_network(self.backbone, x)
        tensors: dict[str, Tensor] = {}
        for layer, weight in self.weights().items():
            scores: Tensor = self.masks.score(task_id, layer)
            scores = scores if self._stage is None else scores.detach()
            tensors[self.names[layer]] = masked_above(weight, scores, *self._picking[layer])
        return self.learn_with(x, tensors)

    def reads(self, layer: str, task_id: int) -> Tensor:
        """Of the first weights, as many as the network had when the task was learned: its own, and those it picks."""
        shape = self._shapes(self.width_of(task_id))[layer]
        mask = self.masks.stored(task_id, layer, shape)[0]
        return picked(first(self.owners[layer], shape), mask, self.number(task_id))

    def kept_tensors(self, task_id: int) -> dict[str, Tensor]:
        kept, narrow = super().kept_tensors(task_id), every_name(self.network_of(task_id))
        cut = {name: first(t, narrow[name].shape) for name, t in kept.items() if t.shape != narrow[name].shape}
        return kept | {name: tensor.contiguous() for name, tensor in cut.items()}

    def mixed(self, x: Any, alpha: Tensor) -> Tensor:
        widths = {self.width_of(t) for t in self.learned}
        if len(widths) > 1:
            raise ValueError(
                f"the tasks' networks have the widths {sorted(widths)}, and only networks of one width can be mixed; "
                "allowed: a rule that asks each task, such as 'softmax'"
            )
        return super().mixed(x, alpha)

    def network_of(self, task_id: int) -> nn.Module:
        return self._network(self.width_of(task_id))

    def blank_copy(self, task_id: int) -> nn.Module:
        network = copied(self.network_of(task_id))
        if self.width_of(task_id) == self._built:
            return network
        return network.to_empty(device=self._like.device).to(self._like.dtype)

    def width_of(self, task_id: int) -> float:
        """The width of a finished task's network, in multiples of the first."""
        return float(self.tasks[task_id].notes["width"])

    def _network(self, width: float) -> nn.Module:
        """A network of this width: the backbone, or one without numbers of its own."""
        if width == self._built:
            return self.backbone
        if width not in self._narrow:
            with torch.random.fork_rng(devices=[]):
                self._narrow[width] = self.make(width).to("meta")
        return self._narrow[width]

    def _shapes(self, width: float) -> dict[str, torch.Size]:
        network = self._network(width)
        return {layer: weight_at(network, name).shape for layer, name in self.names.items()}

    # ---- what must not move ------------------------------------------------------------------------------------------

    def before_step(self, progress: float) -> None:
        self._epoch += progress <= self._progress
        self._progress = progress

    def edit_gradients(self) -> None:
        super().edit_gradients()
        if self._stage is not None and self._current is not None:  # the mask stands still
            for layer in self.names:
                self.masks.score(self._current, layer).grad = None

    def after_step(self) -> None:
        super().after_step()
        self._steps += 1
        if self._stage is not None and self._steps % self.every == 0:
            done = self._epoch + max(self._progress, 0.0)
            self.release(sparsity_schedule(done, self.stage_epochs, *self._stage))

    @torch.no_grad()
    def _resize(self, width: float) -> None:
        """Have a network of this width, with all that finished tasks read in the first rows and columns."""
        wide = self.make(width).to(device=self._like.device, dtype=self._like.dtype)
        if prunable(wide, "CPG", self.hyperparameters["prunable"]) != self.names:
            raise ValueError(f"the network of width {width:g} has other layers than the first, {list(self.names)}")
        kept, owners = self.finished.tensors, self.owners
        for name, tensor in every_name(wide).items():
            if name in kept:
                first(tensor, kept[name].shape).copy_(kept[name])
        self.backbone, self.width, self._built = wide.train(self.training), width, width
        self.owner, self.finished = Owners(wide, self.names), Finished()
        for layer, owner in owners.items():
            first(self.owners[layer], owner.shape).copy_(owner)
        if self.learned:
            self.keep()

    def _remember(self, task: Task) -> None:
        """What growing replaces comes back if the task breaks off."""
        record, name = self.tasks[task.id], str(task.id)
        there = {k: getattr(self, k) for k in ("backbone", "owner", "finished", "width", "_built", "_first_names")}
        n_features, containers = record.n_features, (self.heads, self.norms, self.masks.bits, self.masks.scores)
        modules = [(c, c.real(name), name in c.hidden) for c in containers if name in c]

        def undo() -> None:
            record.n_features = n_features
            for attribute, value in there.items():
                setattr(self, attribute, value)
            for container, module, hidden in modules:
                container[name] = module
                if hidden:
                    container.hide(name)

        self._before = [undo]

    def _leave(self, snapshot: Snapshot | None) -> None:
        for undo in self._before if snapshot is not None else ():
            undo()
        self.alone, self._stage, self._before, self._picking = None, None, [], {}
        super()._leave(snapshot)

    def _announce(self) -> None:
        """Parameters have come since the task began: the loop is told if it does not train them."""
        if self._in_progress is not None:
            self._in_progress.replaced({name for name, p in self.named_parameters() if p.requires_grad})

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def grow(self, task: TaskRecord) -> None:
        self.check_number()
        super().grow(task)
        self.masks.add(task, self._shapes(float(task.notes.get("width", self.width))), self.scale, self._like)

    def on_forget(self, task_id: int) -> None:
        self.masks.forget(task_id)
        super().on_forget(task_id)

    def capacity(self) -> dict[str, Any]:
        """As of `PackNet`, and: "width" and "max_width"; of each finished one of "tasks" its "width", and "picked",
        how many weights of earlier tasks it reads; "picked" also in each of "layers", by task; and there "shared", how
        many weights are read by more than one task.
        """
        capacity = super().capacity()
        capacity["width"], capacity["max_width"] = self.width, self.max_width
        for layer, row in capacity["layers"].items():
            readers, row["picked"] = torch.zeros_like(self.owners[layer], dtype=torch.int), {}
            for t in self.learned:
                read = self.reads(layer, t)
                first(readers, read.shape).add_(read)
                row["picked"][t] = int(read.sum()) - row["tasks"][t]
            row["shared"] = int((readers > 1).sum())
        for t in self.learned:
            capacity["tasks"][t]["width"] = self.width_of(t)
            capacity["tasks"][t]["picked"] = sum(row["picked"][t] for row in capacity["layers"].values())
        return capacity

    def extra_bytes(self) -> int:
        """Bytes of the owner index, of what picks, a bit per weight and task, and of the norms of each task."""
        return super().extra_bytes() + self.masks.nbytes

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        given = self.goal == "individual" and not is_initial(self.template.network)
        own = self.template.network.state_dict() if given else {}
        return self.in_a_row("masks.bits", super().pack(state)) | {f"template.{k}": t for k, t in own.items()}

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        given = dict(starting_with("template.", tensors))
        if given:
            check_state("the file's copy of the given network", given, self.template.network.state_dict())
            self.template.network.load_state_dict(given)
        if self.width != self._built:
            self._resize(self.width)
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("template.")}
        return out_of_a_row("masks.bits", super().unpack(rest), self.masks.bits.state_dict())


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
