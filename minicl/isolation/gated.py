"""A network behind whose layers stand gates, and each task closes some: what finished tasks read, and what is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import inputs
from ..freezing import (
    Finished,
    HiddenTensors,
    TaskModules,
    as_called,
    built,
    check_built,
    copied,
    every_name,
    one_at_a_time,
    standalone,
    switched_off,
    weight_at,
)
from ..learner import Learner, TaskRecord
from ..networks import no_replicas
from ..tasks import Task
from ..tensors import TensorDict
from . import units
from .columns import attends, slow_attention
from .graph import HEAD, Graph
from .task_norms import TaskNorms


class GatedNetwork(Learner):
    """Finished tasks are answered from weights of their own, through gates of their own, in evaluation mode.

    A method says with `mask` which units a task reads, and with `used` which ones finished tasks have claimed. What a
    finished task reads is kept apart from the backbone, where nobody else's code finds it.

    Args:
        backbone: any module with a Linear or Conv layer.
        binary: whether masks are 0 or 1. Soft ones keep no weights: they are those of the moment.
        hyperparameters: as of every learner.

    Attributes:
        graph: where the units are, known from the first task on.
        norms: what each task has of its own.
        stored_masks: of finished tasks: one bit per unit, or the scores of a soft mask.
        finished: what finished tasks read.
        gates: behind the layers, while they are attached.
    """

    needs_task_id = True
    saved_attributes = ("structure",)
    structure: dict[str, Any] | None = None  # older files have none, and hold an nn.Sequential

    def __init__(self, backbone: nn.Module, binary: bool = True, **hyperparameters: Any) -> None:
        super().__init__(backbone, binary=binary, **hyperparameters)
        no_replicas(backbone, type(self).__name__)
        units.check_layers(backbone)
        self.binary = binary
        self.norms = TaskNorms(per_task=True)
        self.stored_masks = HiddenTensors()
        self.finished = Finished()
        self.graph = Graph()
        self.gates = units.Gates()
        self._made_of: dict[str, str] = {}  # what the backbone is made of, known with the graph

    @property
    def sizes(self) -> list[int]:
        """The number of units of each layer."""
        return self.graph.sizes

    def mask(self, task_id: int) -> Tensor:
        """The task's mask, all layers in one vector, shape (units,): bool, or from 0 to 1."""
        raise NotImplementedError

    def used(self, but: int | None = None) -> list[Float[Tensor, " _"]]:
        """The accumulated mask of each layer, over all finished tasks (`but` one): 0 for free units."""
        raise NotImplementedError

    def masks(self, task_id: int) -> list[Float[Tensor, " _"] | Bool[Tensor, " _"]]:
        """The task's mask of each layer, shape (units,): bool where masks are binary, otherwise from 0 to 1.

        Raises:
            ValueError: a task id that has no mask.
        """
        if not isinstance(task_id, int) or task_id not in self.tasks:
            raise ValueError(
                f"the task id is {task_id!r}, which has no mask; allowed: {', '.join(map(str, self.tasks)) or 'none'}"
            )
        training, self.training = self.training, False
        try:
            return list(self.mask(task_id).detach().split(self.sizes))
        finally:
            self.training = training

    # ---- forward -----------------------------------------------------------------------------------------------------

    def features(self, x: Tensor, task_id: int | None) -> Tensor:
        assert task_id is not None
        if self.tasks[task_id].finished:
            check_built(self.backbone, self._made_of)
        gates = self.gate_values(self.mask(task_id))
        if not self.tasks[task_id].finished:
            self.gates.values = gates  # and they stay, for what computes a part once more in the backward pass
            self.gates.anew = lambda: self.gate_values(self.mask(task_id))
            with nullcontext() if self.backbone.training else self._all_layers_called():
                return self.apply_network(self.backbone, x)
        with self._all_layers_called(), self.gates.set(self.backbone, self.graph, gates):
            return self.apply_kept(self.backbone, x, self.masked_tensors(task_id))

    def mixed(self, x: Tensor, alpha: Tensor) -> Tensor:
        if self.graph.own:
            raise ValueError(
                "each task of this HAT has norms of its own, which have no mixture; allowed: a rule that asks each "
                "task, such as 'softmax'"
            )
        if any(gate.heads for gate in self.graph.gates):
            raise ValueError(
                "the heads of attention have no mixture; allowed: a rule that asks each task, such as 'softmax'"
            )
        masks = torch.stack([self.mask(t) for t in self.learned])  # (tasks, units)
        gates, kept = self.gate_values(alpha @ masks.to(alpha.dtype)), dict(self.finished.tensors.items())
        kept |= {name: kept[first] for name, first in self.graph.aliases.items()}
        with self._all_layers_called(), self.gates.set(self.backbone, self.graph, gates):
            h = self.apply_network(self.backbone, x, kept)
        return self.heads.mixed(h, alpha, self.learned)

    def _all_layers_called(self) -> AbstractContextManager[Any]:
        """One thread at a time; in evaluation mode attention has a second way, which passes over layers and gates."""
        return slow_attention() if attends(self.backbone) else one_at_a_time()

    def masked_tensors(self, task_id: int) -> dict[str, Tensor]:
        """The backbone's tensors as this finished task reads them: others' weights 0, norms of its own. By every name.

        Soft masks leave no weight out: there the weights are those of the moment.
        """
        kept, tensors = self.finished.tensors, dict(self.norms.network(task_id))
        values = self.graph.evaluate(self.mask(task_id).split(self.sizes))
        for weights in self.graph.weights:
            if self.binary:
                used = units.aligned(weights.pairs(values, units.both), kept[weights.name])
                tensors[weights.name] = switched_off(kept[weights.name], used)
            else:
                tensors[weights.name] = weight_at(self.backbone, weights.name).detach()
        tensors |= {name: kept[name] for name in self.graph.frozen}
        return tensors | {name: tensors[first] for name, first in self.graph.aliases.items()}

    def gate_values(self, mask: Tensor) -> list[Tensor]:
        values = self.graph.evaluate(mask.split(self.sizes, -1))
        return [values(gate.mask) for gate in self.graph.gates]

    # ---- what must not move ------------------------------------------------------------------------------------------

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        return ((self.heads, str(task_id)),)

    def _finish(self, record: TaskRecord) -> None:
        super()._finish(record)
        self.keep(record.id)

    def on_load(self) -> None:
        if self.learned:
            self.keep()

    def on_forget(self, task_id: int) -> None:
        del self.stored_masks[str(task_id)], self.norms[str(task_id)]
        if not self.learned:
            self.finished.hidden["tensors"] = TensorDict()
            for name in self.graph.frozen:
                self._set_trainable(name, True)

    @torch.no_grad()
    def keep(self, newest: int | None = None) -> None:
        """What finished tasks read, of the newest one what the backbone holds now; what has no units learns no more."""
        check_built(self.backbone, self._made_of)
        kept, known, tensors = {}, self.finished.tensors, every_name(self.backbone)
        values = self.graph.evaluate([used > 0 for used in self.used(but=newest)])
        for weights in self.graph.weights:
            kept[weights.name] = tensors[weights.name].detach().clone()
            if weights.name in known:
                claimed = units.aligned(weights.pairs(values, units.both), kept[weights.name])
                kept[weights.name] = torch.where(claimed, known[weights.name], kept[weights.name])
        for name in self.graph.frozen:
            kept[name] = known[name] if name in known else tensors[name].detach().clone()
            self._set_trainable(name, False)
        self.finished.hidden["tensors"] = TensorDict(kept)

    def _set_trainable(self, name: str, trainable: bool) -> None:
        tensor = every_name(self.backbone)[name]
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(trainable).grad = None

    @torch.no_grad()
    def put_back(self) -> None:
        """What finished tasks read is in the backbone again, whoever wrote over it: the next task builds on it."""
        kept, tensors = self.finished.tensors, every_name(self.backbone)
        values = self.graph.evaluate([used > 0 for used in self.used()])
        for weights in self.graph.weights if self.binary and len(kept) else ():
            claimed = units.aligned(weights.pairs(values, units.both), kept[weights.name])
            tensors[weights.name].copy_(torch.where(claimed, kept[weights.name], tensors[weights.name]))
        for name in self.graph.frozen if len(kept) else ():
            tensors[name].copy_(kept[name])

    def in_order(self, task_id: int, masks: list[Tensor], fresh: dict[str, Tensor]) -> list[Tensor]:
        """Reorder each layer's free units: those that this task claims come first. Claimed ones stay where they are.

        What protected optimisers remember of a weight goes with it.

        Args:
            masks: of the task, one per layer.
            fresh: further tensors to be put in the same order, by name in the backbone.
        """
        head: Any = self.heads.real(str(task_id))
        tensors = every_name(self.backbone) | ({} if isinstance(head, nn.Identity) else {HEAD: head.weight})
        states = self.optimizer_states(tensors)
        for number, (layer, used) in enumerate(zip(self.graph.layers, self.used(), strict=True)):
            if not layer.tied:
                free, order = (used == 0).nonzero().flatten(), torch.arange(layer.units, device=used.device)
                claims = masks[number][free]
                order[free] = torch.cat([free[claims], free[~claims]])
                for each in (tensors, fresh, *states):
                    units.reorder(each, layer.places, order)
                masks[number] = masks[number][order]
        return masks

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def _n_features(self, task: Task) -> int:
        n = super()._n_features(task)
        if not self.graph.layers:
            self._follow(task.example, answers=task.n_outputs is None)
        return n

    def _follow(self, example: Any, answers: bool = False) -> None:
        """Find out where the units are, on a batch of two inputs."""
        given = inputs.to(example, next(self.backbone.parameters()).device)
        numbers = isinstance(given, Tensor) and given.is_floating_point()
        run = partial(self.apply_network, x=given)
        self.graph = units.units_of(self.backbone, run, numbers, answers)
        self.structure, self.norms.named = self.graph.plain(), set(self.graph.own)
        self._made_of = built(self.backbone)

    def _recall(self) -> None:
        """Where the units are, as a file has it; one of an older version holds an `nn.Sequential`."""
        if self.structure is None:
            self._follow(self._like.new_zeros(2, *self.input_shape))
        else:
            self.graph = Graph.of(self.structure)
            self.norms.named = set(self.graph.own)
            self._made_of = built(self.backbone)

    def grow(self, task: TaskRecord) -> None:
        if not self.graph.layers:  # a file is being loaded
            self._recall()
        check_built(self.backbone, self._made_of)
        super().grow(task)
        self.norms.add(task.id, self.backbone)

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        self.put_back()
        return state

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return units.from_older_files(self.backbone, tensors)

    def capacity(self) -> dict[str, Any]:
        """As for every method, and "layers", by name: "units" in all, "claimed" by each task, "shared" by two or more
        tasks, and "free"; heads of attention are "path.heads". "frozen", by module: how many numbers in it the first
        task alone trains. Soft masks count from 0.5 up.
        """
        masks = {t: [a > 0.5 for a in self.masks(t)] for t in self.learned}
        frozen: Counter[str] = Counter()
        layers, tensors = {}, every_name(self.backbone)
        for level, layer in enumerate(self.graph.layers):
            nobody = torch.zeros(layer.units, dtype=torch.int32, device=self.device)
            users = sum((m[level].int() for m in masks.values()), nobody)
            layers[layer.path] = {
                "units": layer.units,
                "claimed": {t: int(m[level].sum()) for t, m in masks.items()},
                "shared": int((users > 1).sum()),
                "free": int((users == 0).sum()),
            }
        for name in self.graph.frozen:
            if isinstance(tensors[name], nn.Parameter):
                frozen[name.rpartition(".")[0]] += tensors[name].numel()
        return {**super().capacity(), "layers": layers, "frozen": dict(frozen)}

    def extra_bytes(self) -> int:
        """Bytes of the masks and of what each task has of its own."""
        return self.stored_masks.nbytes + sum(self.norms.of(int(t)).nbytes for t in self.norms)

    def export(self, task_id: int | None = None) -> nn.Module:
        """That task's network alone, in evaluation mode; it needs PyTorch alone.

        Units that the task does not use are cut out where nothing ties them to others. Elsewhere their weights are
        zero, and a gate stands behind them, as it does behind soft masks.

        Its attribute `report` says what was gained: "parameters" and "parameters_before"; for a batch of 100, "seconds"
        and "seconds_before" (medians, measured now) and "speed_up"; and the layers that are "cut" and "masked".

        Raises:
            ValueError: a task id that is missing or not learned.
        """
        t = self.check_finished(task_id)
        assert t is not None
        network = units.alone(self.backbone, self.masked_tensors(t))
        before = nn.Sequential(copied(network), self.heads.alone(t))
        after = units.without_units(network, self.heads.alone(t), self.graph, self.masks(t))
        for each in (before, after):
            as_called(each[0], self.select, self.input_shape)
        x = None
        if self.graph.numbers and self.input_shape is not None:
            x = self._like.new_zeros(100, *self.input_shape)
        after.report |= units.report(standalone(before), after, x)
        return after
