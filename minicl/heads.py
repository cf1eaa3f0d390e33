"""The output layers of a learner, in the three scenarios.

In "task" there is one head per task, by its id; in "domain" one head for all tasks, "shared"; in "class" one layer over
all classes, whose rows arrive task by task: those of a task's new classes, by its id. Where the network's own output is
the answer, the head is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .freezing import TaskModules, copied

if TYPE_CHECKING:
    from .records import TaskRecord

SHARED = "shared"

TURNS = 4
"""Quarter turns of an image, the one by nothing included."""


class Heads(TaskModules):
    """Output layers by name, in the order of their arrival.

    Attributes:
        scenario: of the tasks, or None before the first.
        turns: 4 where the heads say by how much an image was turned, too: the outputs of the classes for each of the
            turns in a row, those of upright images first. Otherwise 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scenario: str | None = None
        self.turns = 1
        self._columns: tuple[Any, ...] = ()  # what `own_outputs` has found out, and about which heads

    def add(self, task: TaskRecord, like: Tensor) -> None:
        """Create what a task needs, on the device and in the type of `like`.

        Raises:
            ValueError: in scenario "class", fewer outputs than there were classes before.
        """
        self.scenario = task.scenario
        if task.scenario == "domain" and SHARED in self:
            return
        name = SHARED if task.scenario == "domain" else str(task.id)
        if name in self:  # of a task that was broken off
            del self[name]
        if task.n_outputs is None:
            self[name] = nn.Identity()
            return
        before = self.n_outputs if task.scenario == "class" else 0
        if task.n_outputs < before:
            raise ValueError(
                f"task {task.id} has n_outputs={task.n_outputs}, but {before} classes were seen before it; "
                "in scenario 'class' n_outputs counts all classes seen so far"
            )
        if task.n_outputs > before:
            n = self.turns * (task.n_outputs - before)
            self[name] = nn.Linear(task.n_features, n, device=like.device, dtype=like.dtype)

    @property
    def layers(self) -> list[nn.Linear]:
        """The heads that are layers, in the order of their arrival."""
        return [head for name in self if isinstance(head := self.real(name), nn.Linear)]

    @property
    def are_layers(self) -> bool:
        """Whether there are outputs of ours, and not the network's own alone."""
        return any(isinstance(self.real(name), nn.Linear) for name in self)

    @property
    def n_outputs(self) -> int:
        """Outputs of all heads together."""
        return sum(head.out_features for head in self.layers)

    def widen(self, n_features: int) -> None:
        """Let every head read so many features. What is new is read with weight 0, so the logits stay as they are.

        Raises:
            ValueError: a head that reads more features already.
        """
        for name in self:
            head = self.real(name)
            assert isinstance(head, nn.Linear)
            missing = n_features - head.in_features
            if missing < 0:
                raise ValueError(f"head {name!r} reads {head.in_features} features; it cannot read {n_features}")
            if missing:
                wide = nn.Linear(n_features, head.out_features, device=head.weight.device, dtype=head.weight.dtype)
                wide.weight.data = F.pad(head.weight.detach(), (0, missing))  # (outputs, features)
                wide.bias.data = head.bias.detach().clone()
                self[name] = wide.train(head.training)

    def logits(self, features: Float[Tensor, "batch ..."], task_id: int | None) -> Float[Tensor, "batch ..."]:
        """Logits through the head that the scenario asks for."""
        if self.scenario == "task":
            logits: Tensor = self.real(str(task_id))(features)
        elif self.scenario == "domain":
            logits = self.real(SHARED)(features)
        else:
            logits = F.linear(features, *self.side_by_side())
        return logits

    def logits_of_each(self, features: Float[Tensor, "batch ..."], task_ids: Tensor) -> Float[Tensor, "batch ..."]:
        """Logits of samples of several tasks; `task_ids`, int64 of shape (batch,), says of which.

        In scenario "task" each sample goes through the head of its own task, and the width is that of the widest head;
        outputs that a sample's own head has not are -inf. All heads are computed in one product, so the cost hardly
        depends on the number of tasks. In the other scenarios the ids do not matter.
        """
        if self.scenario != "task":
            return self.logits(features, None)
        if not self.are_layers:
            return features
        return self.own_outputs(F.linear(features, *self.side_by_side()), task_ids)

    def side_by_side(self) -> tuple[Tensor, Tensor]:
        """Weight, shape (all outputs, features), and bias, shape (all outputs,), of all heads as one layer."""
        return torch.cat([head.weight for head in self.layers]), torch.cat([head.bias for head in self.layers])

    def own_outputs(
        self, outputs: Float[Tensor, "batch all_outputs"], task_ids: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch outputs"]:
        """Of the outputs of all heads side by side, for each sample those of its own task's head."""
        if self._columns[:1] != ((*self, outputs.device),):
            sizes = [head.out_features for head in self.layers]
            columns = torch.full((len(sizes), max(sizes)), -1)  # (heads, outputs of the widest)
            for row, size in enumerate(sizes):
                columns[row, :size] = torch.arange(size) + int(columns.max()) + 1
            ids, order = torch.tensor([int(name) for name in self]).sort()  # of any size, in any order
            columns, device = columns[order], outputs.device
            missing = (columns < 0).to(device) if bool((columns < 0).any()) else None
            self._columns = (*self, device), ids.to(device), columns.clamp(min=0).to(device), missing
        _, ids, columns, missing = self._columns
        rows = torch.bucketize(task_ids.contiguous(), ids)  # (batch,)
        own = outputs.gather(1, columns[rows])
        return own if missing is None else own.masked_fill(missing[rows], -torch.inf)

    def mixed(
        self, features: Float[Tensor, "batch features"], alpha: Float[Tensor, "rows tasks"], task_ids: Sequence[int]
    ) -> Float[Tensor, "batch outputs"]:
        """sum_t alpha_t head_t(features), of the outputs for upright images: one row of alpha for all, or one per
        sample.

        Raises:
            ValueError: heads of different sizes, which have no mixture.
        """
        heads: list[Any] = [self.real(str(t)) for t in task_ids]
        sizes = {head.out_features // self.turns for head in heads}
        if len(sizes) > 1:
            raise ValueError(
                f"the tasks have {', '.join(map(str, sorted(sizes)))} classes, and heads of different sizes have no "
                "mixture; allowed: tasks of one size, or a rule that asks each task, such as 'softmax'"
            )
        (n,) = sizes
        logits = torch.stack([head(features)[:, :n] for head in heads], 1)  # (batch, tasks, outputs)
        return (alpha.unsqueeze(2) * logits).sum(1)

    def alone(self, task_id: int | None) -> nn.Module:
        """A copy of the head that answers for this task, with everything in it: for a network that leaves minicl.

        Without the outputs for images that are turned.
        """
        if self.scenario == "task":
            head: Any = self.real(str(task_id))
            return copied(head) if self.turns == 1 else upright(head, head.out_features // self.turns)
        if not self.are_layers:
            return nn.Identity()
        weight, bias = self.side_by_side()
        head = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        head.weight.data, head.bias.data = weight.detach(), bias.detach()
        return head


def turned(x: Any, quarters: int) -> Tensor:
    """Images, shape (batch, ..., side, side), turned by so many times 90 degrees, against the clock.

    Raises:
        ValueError: what is no batch of square images.
    """
    if not isinstance(x, Tensor) or x.ndim < 3 or x.shape[-1] != x.shape[-2]:
        given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"rotations turn square images, and the inputs are {given}; allowed: (batch, ..., side, side)")
    return x.rot90(quarters, (-2, -1))


def turned_labels(y: Tensor, n_outputs: int) -> Tensor:
    """The labels of a batch and of its three turned copies, one after the other: class y and turn r are r n + y.

    Args:
        y: int64 of shape (batch,), or probabilities of shape (batch, n_outputs).
    """
    if y.is_floating_point():
        return torch.cat([F.pad(y, (r * n_outputs, (TURNS - 1 - r) * n_outputs)) for r in range(TURNS)])
    return torch.cat([y + r * n_outputs for r in range(TURNS)])


def upright(head: nn.Linear, n: int) -> nn.Linear:
    """A copy of the head with its first n outputs alone."""
    alone = nn.Linear(head.in_features, n, device=head.weight.device, dtype=head.weight.dtype)
    alone.weight.data, alone.bias.data = head.weight.detach()[:n].clone(), head.bias.detach()[:n].clone()
    return alone
