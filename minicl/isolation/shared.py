"""One network for all tasks, of which each reads the weights that are meant for it: what such methods share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..freezing import (
    Finished,
    FrozenEntries,
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
from ..protection import Snapshot
from ..saving import in_a_row, out_of_a_row
from ..tensors import TensorDict, first
from .mixing import mixed_features
from .owners import MOST_TASKS, Owners, SparseNetwork, prunable
from .task_norms import NORMS, TaskNorms


class SharedNetwork(Learner):
    """Finished tasks are answered from tensors that are kept apart from the backbone, and nobody else's code finds.

    A method says with `task_weight` which weights a task reads, and with `while_learning` how the task at hand is
    computed. Nothing in the backbone is trained, except for what `open_names` and the norms of each task hold.

    Args:
        backbone: any module from a batch to features with a layer that `minicl.isolation.owners.prunable` knows.
        prunable_too: names of further modules or parameters whose weights are meant, too.
        norms: which tensors of the backbone are each task's own.
        hyperparameters: as of every learner.

    Attributes:
        names: the weight's name in the backbone, by the name of its layer.
        finished: what finished tasks read.
    """

    needs_task_id = True

    def __init__(
        self, backbone: nn.Module, prunable_too: Sequence[str], norms: TaskNorms, **hyperparameters: Any
    ) -> None:
        super().__init__(backbone, **hyperparameters)
        no_replicas(backbone, type(self).__name__)
        self.names = prunable(backbone, type(self).__name__, prunable_too)
        self.norms = norms
        self.finished = Finished()
        self._made_of = built(backbone)
        self._first_names: dict[str, str] = {}  # of tensors that the backbone uses in several places
        self._fixed: list[nn.Parameter] = []  # what no task trains any more
        self._sentinels: list[Any] = []  # hooks of the task that is being learned

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def features(self, x: Any, task_id: int | None) -> Tensor:
        assert task_id is not None
        with one_at_a_time():
            if self.tasks[task_id].finished:
                check_built(self.backbone, self._made_of)
            self.check_place()
            if self.tasks[task_id].finished:
                return self.apply_kept(self.network_of(task_id), x, self.masked_tensors(task_id))
            self._hold_statistics()
            return self.while_learning(x, task_id)

    def while_learning(self, x: Any, task_id: int) -> Tensor:
        """What the backbone makes of x, shape (batch, features), for the task that is being learned."""
        return self.apply_network(self.backbone, x)

    def learn_with(self, x: Any, weights: dict[str, Tensor]) -> Tensor:
        """What the backbone makes of x with these weights, by their first name, in the place of its own.

        Raises:
            RuntimeError: in the backward pass, a layer that is called once more there (gradient checkpointing).
        """
        if not self._sentinels and self._current is not None:
            paths = {name.rpartition(".")[0] for name in self.names.values()}
            for module in map(self.backbone.get_submodule, sorted(paths)):
                self._sentinels.append(module.register_forward_pre_hook(_not_in_the_backward_pass))
        named = {name: weights[known] for name, known in self._first_names.items() if known in weights}
        return self.apply_network(self.backbone, x, named, learning=True)

    def network_of(self, task_id: int) -> nn.Module:
        """The network that a finished task's tensors are put into: of their shapes; its own are never read."""
        return self.backbone

    def kept_tensors(self, task_id: int) -> dict[str, Tensor]:
        """What a finished task reads, before its weights are picked, by first name in the backbone."""
        return dict(self.finished.tensors.items())

    def task_weight(self, layer: str, kept: Tensor, task_id: int) -> Tensor:
        """A layer's weight as a finished task reads it, made from the one that is kept, of the same shape."""
        raise NotImplementedError

    def mixed(self, x: Tensor, alpha: Tensor) -> Tensor:
        with one_at_a_time():
            features = mixed_features(self, self.backbone, [self.masked_tensors(t) for t in self.learned], x, alpha)
        return self.heads.mixed(features, alpha, self.learned)

    def masked_tensors(self, task_id: int) -> dict[str, Tensor]:
        """The backbone's tensors as this finished task's network has them, by every name that they have there."""
        tensors = self.kept_tensors(task_id)
        for layer, name in self.names.items():
            tensors[name] = self.task_weight(layer, tensors[name], task_id)
        return self.by_every_name({**tensors, **self.norms.network(task_id)})

    def by_every_name(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the backbone, given by their first name, by all their names."""
        return {name: tensors[first] for name, first in self._first_names.items()}

    # ---- what must not move --------------------------------------------------------------------------------

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        return ((self.heads, str(task_id)),)

    def check_place(self) -> None:
        """ValueError where the backbone was moved to another device without the learner, and that matters."""

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights that are shared, by the name of their layer."""
        return {layer: weight_at(self.backbone, name) for layer, name in self.names.items()}

    @property
    def open_names(self) -> set[str]:
        """Names of the weights in the backbone that later tasks may train."""
        return set()

    def edit_gradients(self) -> None:
        if self._current is None:  # between tasks nothing moves: optimisers pass over what has no gradient
            self._fixed = list(self.backbone.parameters())
        for parameter in self._fixed:
            parameter.grad = None

    def train(self, mode: bool = True) -> Self:
        """As of every learner; what someone else has written over finished tasks is put back."""
        super().train(mode)
        self._put_back()
        self._hold_statistics()
        return self

    def _leave(self, snapshot: Snapshot | None) -> None:
        while self._sentinels:
            self._sentinels[-1].remove()
            self._sentinels.pop()
        super()._leave(snapshot)

    def on_load(self) -> None:
        self.finished.hidden["tensors"] = TensorDict()
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """From now on finished tasks read what the backbone holds now; and what is not shared learns no more."""
        check_built(self.backbone, self._made_of)
        weights = {id(weight): self.names[layer] for layer, weight in self.weights().items()}
        own = {id(tensor) for tensor in self.norms.tensors_of(self.backbone).values()}
        first, kept = dict(weights), {}
        self._first_names = {}
        for name, tensor in every_name(self.backbone).items():
            known = self._first_names[name] = first.setdefault(id(tensor), name)
            if known not in kept and id(tensor) not in own:
                kept[known] = self.kept(known, tensor.detach())
        self.finished.hidden["tensors"] = TensorDict(kept)
        learn = {id(self.backbone.get_parameter(name)) for name in self.open_names}
        self._fixed = [p for p in self.backbone.parameters() if id(p) not in learn | own]
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(id(parameter) in learn)
            parameter.grad = None
        self._hold_statistics()

    def kept(self, name: str, tensor: Tensor) -> Tensor:
        """What finished tasks read of a tensor of the backbone: what it was when it was first kept."""
        known = self.finished.tensors
        return known[name] if name in known else tensor.clone()

    @torch.no_grad()
    def _put_back(self) -> None:
        """What finished tasks read is in the backbone again, whoever wrote over it: the new task builds on it."""
        kept = self.finished.tensors
        for name, tensor in every_name(self.backbone).items() if len(kept) else ():
            if name in kept and name not in self.open_names:
                tensor.data.copy_(kept[name])  # as in FrozenEntries: behind autograd's back

    def _hold_statistics(self) -> None:
        """Running statistics stay as they were kept, unless each task has its own."""
        if len(self.finished.tensors):
            learning = self._current is not None and not self.tasks[self._current].finished
            for module in self.backbone.modules():
                own = learning and self.norms.per_task and isinstance(module, NORMS)
                if module.training and module._buffers and not own:
                    module.training = False

    # ---- what it costs, and taking it elsewhere ------------------------------------------------------------

    def grow(self, task: TaskRecord) -> None:
        check_built(self.backbone, self._made_of)
        super().grow(task)
        self.norms.add(task.id, self.backbone)

    def export(self, task_id: int | None = None, sparse: bool = False) -> nn.Module:
        """That task's network alone, in evaluation mode: the weights that it reads, zero for all others.

        Args:
            sparse: keep the weights as sparse (COO) tensors, made dense for each call: smaller, slower; the file of
                such a module can be read where minicl is installed. A dense one is plain PyTorch.

        Raises:
            ValueError: a task id that is missing or not learned.
        """
        task_id = self.check_finished(task_id)
        assert task_id is not None
        network = standalone(self.blank_copy(task_id))
        places = every_name(network)
        with torch.no_grad():
            for name, value in self.masked_tensors(task_id).items():
                places[name].data = value.detach().clone()  # in its order in memory: in another, other bits come out
        network, head = as_called(network, self.select, self.input_shape), standalone(self.heads.alone(task_id))
        return nn.Sequential(SparseNetwork(network, list(self.names.values())) if sparse else network, head).eval()

    def blank_copy(self, task_id: int) -> nn.Module:
        """A copy of the network that a finished task's tensors are to be written into."""
        return copied(self.backbone)

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Heads in a row; and of what finished tasks read, not what somebody has written over it since."""
        self._put_back()
        return self.in_a_row("heads", state)

    def in_a_row(self, prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """All tensors of a prefix as one, by task in the order in which they will grow when a file is loaded."""
        own = {name: state[name] for t in self.tasks for name in state if name.startswith(f"{prefix}.{t}.")}
        return in_a_row(prefix, {name: tensor for name, tensor in state.items() if name not in own} | own)

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return out_of_a_row("heads", tensors, self.heads.state_dict())


def _not_in_the_backward_pass(module: nn.Module, args: Any) -> None:
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"a {type(module).__name__} was called in the backward pass (gradient checkpointing), where the weights of "
            "the task are not in their places; switch gradient checkpointing off"
        )


class OwnedNetwork(SharedNetwork):
    """Every weight has one owner: the task that keeps it. The free ones are trained by the next task, from zero.

    Args:
        backbone, prunable_too, norms, hyperparameters: see `SharedNetwork`.

    Attributes:
        owner: the owner index of every weight.
    """

    lesson_attributes: ClassVar[tuple[str, ...]] = ("_stepped",)

    def __init__(
        self, backbone: nn.Module, prunable_too: Sequence[str], norms: TaskNorms, **hyperparameters: Any
    ) -> None:
        super().__init__(backbone, prunable_too, norms, **hyperparameters)
        self.owner = Owners(backbone, self.names)
        self._active = 0  # number of the task whose network the raw weights are
        self._stepped = False  # whether an optimiser has moved anything for this task
        self._kept: dict[str, Tensor] = {}
        self._frozen = FrozenEntries()

    @property
    def owners(self) -> TensorDict:
        """The owner index of each layer, by its name: uint8, of the shape of its weight; 0 for free."""
        return self.owner.index

    def number(self, task_id: int) -> int:
        """The task's owner index: 1 for the first that was learned."""
        return int(self.tasks[task_id].notes["number"])

    def next_number(self) -> int:
        """The owner index of the task to come."""
        numbers = [self.number(t) for t in self.learned]
        return 1 + max([*numbers, *(int(owner.max()) for owner in self.owners.values())])

    def reads(self, layer: str, task_id: int) -> Tensor:
        """Which weights of a layer, or of the first ones in it, a finished task reads: boolean."""
        raise NotImplementedError

    def task_weight(self, layer: str, kept: Tensor, task_id: int) -> Tensor:
        return switched_off(kept, self.reads(layer, task_id))

    def claim(self, task_id: int, from_zero: bool = True) -> None:
        """From here on the free weights are this task's to train; those with an owner are held.

        Args:
            from_zero: the free weights start from zero, where a task was learned before. Otherwise as they are.
        """
        record, others = self.tasks[task_id], {t: record for t, record in self.tasks.items() if t != task_id}
        self.tasks = {**others, task_id: record}  # in the order in which they are learned
        self.activate_newest(from_zero)
        self._active, self._stepped = self.next_number(), False
        record.notes["number"] = self._active
        for norm in self.norms.modules_of(self.backbone):
            norm.train(self.training)
        for tensor in self.norms.tensors_of(self.backbone).values():
            tensor.requires_grad_(isinstance(tensor, nn.Parameter))
        self._frozen.release()
        for layer, weight in self.weights().items():
            self._frozen.hold(weight, self.owners[layer] != 0)

    def finite_weights(self) -> dict[str, nn.Parameter]:
        """As `weights`.

        Raises:
            FloatingPointError: one of them became NaN or infinite.
        """
        weights = self.weights()
        for layer, weight in weights.items():
            if not torch.isfinite(weight).all():
                raise FloatingPointError(f"layer {layer!r} holds NaN or infinity; a smaller learning rate may help")
        return weights

    @property
    def held(self) -> dict[str, Tensor]:
        """What `hold_all_but` was given last; a checkpoint within the task sets it again. Nothing before that."""
        return self._kept

    @held.setter
    def held(self, kept: dict[str, Tensor]) -> None:
        if kept:
            self.hold_all_but(kept)

    def hold_all_but(self, kept: dict[str, Tensor]) -> None:
        """From here on these weights, a boolean mask for each layer, are the task's to train, and no others."""
        self._kept = kept
        self._frozen.release()
        for layer, weight in self.weights().items():
            self._frozen.hold(weight, ~kept[layer])

    @torch.no_grad()
    def own(self) -> None:
        """What was kept is this task's: its number goes into the owner index."""
        self._put_back()
        self._frozen.release()
        for layer, kept in self._kept.items():
            self.owners[layer][kept] = self._active
        self._kept = {}
        if self._current is not None:
            self.norms.store(self._current, self.backbone)
        else:  # called by hand
            self.keep()

    def _finish(self, record: TaskRecord) -> None:
        super()._finish(record)
        self.keep()

    # ---- what must not move --------------------------------------------------------------------------------

    def check_place(self) -> None:
        self.weights()

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights that have owners, by the name of their layer.

        Raises:
            ValueError: the backbone was moved to another device without the learner.
        """
        return self.owner.weights(self.backbone)

    @property
    def open_names(self) -> set[str]:
        return set(self.names.values())

    def kept(self, name: str, tensor: Tensor) -> Tensor:
        layer = next((layer for layer, weight in self.names.items() if weight == name), None)
        return super().kept(name, tensor) if layer is None else switched_off(tensor, self.owners[layer] != 0)

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        self._frozen.watch(optimizer)

    def edit_gradients(self) -> None:
        if self._current is None:
            self._frozen.release()
        super().edit_gradients()
        self._frozen.edit_gradients()

    def after_step(self) -> None:
        self._stepped = True
        self._frozen.restore()

    def _put_back(self) -> None:
        if len(self.finished.tensors):
            self._frozen.restore(always=True)
            super()._put_back()

    def on_load(self) -> None:
        if self.learned:
            super().on_load()
        self.activate_newest()

    @torch.no_grad()
    def on_forget(self, task_id: int) -> None:
        """Free the weights that no task reads any more."""
        for layer, weight in self.weights().items():  # whoever wrote over them
            weight.copy_(self.finished.tensors[self.names[layer]])
        for layer, owner in self.owners.items():
            unread = torch.ones_like(owner, dtype=torch.bool)
            for t in self.learned:
                read = self.reads(layer, t)
                first(unread, read.shape).logical_and_(~read)
            owner[unread] = 0
        if str(task_id) in self.norms:
            del self.norms[str(task_id)]
        if not self.learned:
            self.finished.hidden["tensors"], self._fixed = TensorDict(), []
            self.backbone.requires_grad_(True)
        else:
            self.keep()
        self.activate_newest()

    @torch.no_grad()
    def activate_newest(self, from_zero: bool = True) -> None:
        """Make the raw network that of the task learned last: free weights zero, its own norms in place."""
        self._active = self.number(self.learned[-1]) if self.learned else 0
        if self.learned:
            for layer, weight in self.weights().items() if from_zero else ():
                weight.copy_(self.finished.tensors[self.names[layer]])
            self._put_back()
            self.norms.put_back(self.learned[-1], self.backbone)

    # ---- what it costs, and taking it elsewhere ------------------------------------------------------------

    def check_number(self) -> int:
        """The number that the next task would have; ValueError where there is none left."""
        number = self.next_number()
        if number > MOST_TASKS:
            name = type(self).__name__
            raise ValueError(
                f"this would be task number {number}, and an owner is one byte: {name} holds {MOST_TASKS} tasks at "
                f"most; start another {name}"
            )
        return number

    def capacity(self) -> dict[str, Any]:
        """As of every method, and: "prunable" and "free", numbers of weights in the backbone; "unprunable", numbers in
        it that the first task alone trains; "weights" in each of "tasks", how many it owns; "layers", by name, each
        with its "weights", "free", and "tasks": how many each owns.
        """
        layers: dict[str, Any] = {}
        for layer, counts in self.owner.counts().items():
            tasks = {task_id: counts[self.number(task_id)] for task_id in self.learned}
            layers[layer] = {"weights": sum(counts), "free": counts[0], "tasks": tasks}
        capacity = super().capacity()
        capacity["prunable"] = sum(layer["weights"] for layer in layers.values())
        capacity["free"] = sum(layer["free"] for layer in layers.values())
        capacity["unprunable"] = self._unprunable()
        capacity["layers"] = layers
        for task_id in self.learned:
            capacity["tasks"][task_id]["weights"] = sum(layer["tasks"][task_id] for layer in layers.values())
        return capacity

    def _unprunable(self) -> int:
        own = {id(tensor) for tensor in (*self.weights().values(), *self.norms.tensors_of(self.backbone).values())}
        return sum(p.numel() for p in self.backbone.parameters() if id(p) not in own)

    def extra_bytes(self) -> int:
        """Bytes of the owner index and of the norms of each task."""
        return self.owner.nbytes + self.norms.nbytes

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Owners in as many bits as the number of tasks needs; heads in a row, in the order in which they will grow."""
        kept = self.finished.tensors
        for layer, weight in self.weights().items() if len(kept) else ():
            owned = kept[self.names[layer]]
            if owned.shape == weight.shape:  # not where the network has grown for a task that is being learned
                weight.detach().copy_(torch.where(self.owners[layer] != 0, owned, weight.detach()))
        return super().pack(self.owner.pack(state, "owner", len(self.learned)))

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().unpack(self.owner.unpack(tensors, "owner"))
