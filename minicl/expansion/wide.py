"""A network with owned weights that gets wider: what each task reads of it stands in its first rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..freezing import Finished, copied, every_name, weight_at
from ..isolation.owners import Owners, prunable
from ..isolation.shared import OwnedNetwork
from ..isolation.task_masks import MaskedNetwork, TaskMasks
from ..isolation.task_norms import TaskNorms
from ..learner import TaskRecord
from ..protection import Snapshot
from ..tasks import Task
from ..tensors import first
from .widen import widening


class WideningNetwork(MaskedNetwork, OwnedNetwork):
    """Finished tasks are computed in a network of the width that they were learned in, whatever the wider one is.

    Args:
        backbone: the network of width 1.
        make: a network, or a function from a width to one; see `minicl.expansion.widen.widening`.
        max_width: the network grows no wider than this, in multiples of the first.
        prunable_too, norms, hyperparameters: see `minicl.isolation.shared.OwnedNetwork`.

    Attributes:
        width: of the network that learns, in multiples of the first.
    """

    saved_attributes = ("width",)

    def __init__(
        self,
        backbone: nn.Module,
        make: nn.Module | Callable[[float], nn.Module],
        prunable_too: Sequence[str],
        norms: TaskNorms,
        max_width: float,
        **hyperparameters: Any,
    ) -> None:
        super().__init__(backbone, prunable_too, norms, max_width=max_width, **hyperparameters)
        self.max_width = max_width
        self.make = widening(make, max_width)
        self.masks = TaskMasks()
        self.width = self._built = 1.0
        self._narrow: dict[float, nn.Module] = {}  # networks of finished tasks, without numbers, by width
        self._before: list[Callable[[], None]] = []  # what undoes growing, if the task breaks off

    # ---- growing -------------------------------------------------------------------------------------------

    def prepare_width(self, task: Task) -> None:
        """What growing replaces comes back if the task breaks off; its own parts are as wide as the network is now."""
        self._remember(task)
        if any(self.masks.score(task.id, layer).shape != w.shape for layer, w in self.weights().items()):
            self.begin_again(task)  # it was prepared before the network grew

    def begin_again(self, task: Task) -> None:
        """A new head, and new places for norms and scores, as wide as the network is now."""
        self.new_head(task)
        self.norms.add(task.id, self.backbone)
        self.masks.add(self.tasks[task.id], self._shapes(self.width), self.scale, self._like)

    def new_head(self, task: Task) -> None:
        """A head drawn anew, for the network that learns now."""
        record = self.tasks[task.id]
        record.n_features = self._n_features(task)
        self.heads.add(record, self._like)

    def announce(self) -> None:
        """Parameters have come since the task began: the loop is told if it does not train them."""
        if self._in_progress is not None:
            self._in_progress.replaced({name for name, p in self.named_parameters() if p.requires_grad})

    @torch.no_grad()
    def resize(self, width: float) -> None:
        """Have a network of this width, with all that finished tasks read in the first rows and columns."""
        wide = self.make(width).to(device=self._like.device, dtype=self._like.dtype)
        if prunable(wide, type(self).__name__, self.hyperparameters["prunable"]) != self.names:
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
        self._before = []
        super()._leave(snapshot)

    # ---- forward and loss --------------------------------------------------------------------------------------------

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

    def owners_of(self, layer: str, task_id: int) -> Tensor:
        """The owner index of a layer, of the first weights: as many as the network had when the task was learned."""
        return first(self.owners[layer], self._shapes(self.width_of(task_id))[layer])

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

    # ---- what it costs, and taking it elsewhere ------------------------------------------------------------

    def mask_shapes(self, task: TaskRecord) -> dict[str, torch.Size]:
        return self._shapes(float(task.notes.get("width", self.width)))

    def grow(self, task: TaskRecord) -> None:
        self.check_number()
        super().grow(task)

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

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.width != self._built:
            self.resize(self.width)
        return super().unpack(tensors)
