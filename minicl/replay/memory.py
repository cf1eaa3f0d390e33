"""The one memory of all replay methods: a fixed number of samples, and a rule for who stays.

"reservoir"  every sample seen so far is kept with the same probability (Vitter 1985, algorithm R)
"task"       every task seen so far has an equal share
"class"      every class seen so far has an equal share
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..datasets import Samples
from ..learner import Fit, Learner
from ..tasks import Task

SHARES = ("reservoir", "task", "class")


class Memory(nn.Module):
    """At most `budget` samples: inputs x, labels y, task ids, and, if asked, the logits they were given.

    Everything is a buffer, so it moves with the learner and is saved with it. Room for the whole budget is made when
    the first samples come.

    Args:
        budget: number of samples.
        share: "reservoir", "task" or "class".

    Raises:
        ValueError: a budget below 1, an unknown share.
    """

    x: Tensor
    y: Tensor
    task_ids: Tensor
    logits: Tensor
    counts: Tensor

    def __init__(self, budget: int, share: str = "reservoir") -> None:
        super().__init__()
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise ValueError(f"budget is {budget!r}; allowed: integers from 1 up, the number of samples that are kept")
        if share not in SHARES:
            raise ValueError(f"share is {share!r}; allowed: {', '.join(SHARES)}")
        self.budget, self.share = budget, share
        self.register_buffer("x", torch.empty(0))
        self.register_buffer("y", torch.empty(0, dtype=torch.long))
        self.register_buffer("task_ids", torch.empty(0, dtype=torch.long))
        self.register_buffer("logits", torch.empty(0, 0))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))  # samples held, samples seen

    def __len__(self) -> int:
        return int(self.counts[0])

    @property
    def seen(self) -> int:
        """How many samples have been offered so far."""
        return int(self.counts[1])

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor, task_id: int, logits: Tensor | None = None) -> None:
        """Offer samples of a task: x of shape (n, ...), y of shape (n,), logits of shape (n, outputs) or None.

        Raises:
            ValueError: inputs of another shape than those that are held; a budget too small for the tasks or classes
                that must each have a share. The memory is as it was.
        """
        if len(self) and x.shape[1:] != self.x.shape[1:]:
            raise ValueError(
                f"the memory holds inputs of shape {tuple(self.x.shape[1:])}; given: {tuple(x.shape[1:])}. "
                "One memory holds inputs of one shape"
            )
        self._make_room(x, 0 if logits is None else logits.shape[1])
        place = self.y.device
        if logits is None:
            logits = torch.empty(len(y), 0, device=place)
        new = {
            "x": x.to(place),
            "y": y.to(place),
            "task_ids": torch.full_like(y, task_id).to(place),
            "logits": nn.functional.pad(logits.to(place), (0, self.logits.shape[1] - logits.shape[1]), value=torch.nan),
        }
        if self.share == "reservoir":
            self._reservoir(new)
        else:
            self._equal_shares(new)

    def _make_room(self, x: Tensor, n_logits: int) -> None:
        if not len(self):
            # Zeros, not whatever stood in memory: places that are still free are saved too.
            self.x = x.new_zeros(self.budget, *x.shape[1:], device=self.counts.device)
            self.y = torch.zeros(self.budget, dtype=torch.long, device=self.counts.device)
            self.task_ids = torch.zeros_like(self.y)
            self.logits = torch.empty(self.budget, 0, device=self.counts.device)
        wider = n_logits - self.logits.shape[1]
        if wider > 0:  # a head with more outputs than any before; the others had none there
            self.logits = nn.functional.pad(self.logits, (0, wider), value=torch.nan)

    def _put(self, places: Tensor, new: dict[str, Tensor], rows: Tensor) -> None:
        for name, values in new.items():
            getattr(self, name)[places] = values[rows]

    def _reservoir(self, new: dict[str, Tensor]) -> None:
        n, held, seen = len(new["y"]), len(self), self.seen
        # The i-th sample ever seen draws one of i places, and is kept if the memory has that place; while there is
        # room it takes the next. Of two that draw the same place the later stays.
        number = torch.arange(seen + 1, seen + n + 1)
        draws = (torch.rand(n, dtype=torch.float64) * number).long()
        draws[: self.budget - held] = torch.arange(held, held + n)[: self.budget - held]
        kept = {place: row for row, place in enumerate(draws.tolist()) if place < self.budget}
        places, rows = (torch.tensor(list(part), dtype=torch.long) for part in (kept.keys(), kept.values()))
        self._put(places.to(self.y.device), new, rows.to(self.y.device))
        self._count(min(self.budget, held + n), n)

    def _equal_shares(self, new: dict[str, Tensor]) -> None:
        held = len(self)
        everything = {name: torch.cat([getattr(self, name)[:held], values]) for name, values in new.items()}
        groups = everything["task_ids" if self.share == "task" else "y"]
        rows = [(groups == value).nonzero().flatten() for value in groups.unique()]
        if len(rows) > self.budget:
            what = "tasks" if self.share == "task" else "classes"
            raise ValueError(
                f"a budget of {self.budget} samples is smaller than the {len(rows)} {what} "
                f"that must each have a share; allowed: {len(rows)} or more"
            )
        # A group keeps a random part of what is left of it, which is a random part of all that was seen of it.
        quotas = equal_shares([len(row) for row in rows], self.budget)
        kept = torch.cat(
            [row[torch.randperm(len(row)).to(row.device)[:quota]] for row, quota in zip(rows, quotas, strict=True)]
        )
        self._put(torch.arange(len(kept), device=kept.device), everything, kept)
        self._count(len(kept), len(new["y"]))

    def _count(self, held: int, added: int) -> None:
        self.counts.copy_(torch.tensor([held, self.seen + added]))

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """n samples drawn with equal probability, with replacement: x, y, task ids, logits.

        Raises:
            ValueError: the memory is empty.
        """
        if not len(self):
            raise ValueError("the memory is empty; there is nothing to draw before the first samples were added")
        rows = torch.randint(len(self), (n,)).to(self.y.device)
        return self.x[rows], self.y[rows], self.task_ids[rows], self.logits[rows]

    def of_task(self, task_id: int) -> Samples:
        """All samples of a task that are held."""
        rows = (self.task_ids[: len(self)] == task_id).nonzero().flatten()
        return Samples(self.x[rows], self.y[rows])

    @property
    def bytes(self) -> int:
        """What the memory takes, exactly."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())


def equal_shares(sizes: Sequence[int], budget: int) -> list[int]:
    """How many each group may keep: all the same, but for groups that have fewer; what those leave goes round again."""
    quotas = [0] * len(sizes)
    while budget and (hungry := [i for i, size in enumerate(sizes) if quotas[i] < size]):
        share = max(1, budget // len(hungry))
        for i in hungry:
            given = min(share, sizes[i] - quotas[i], budget)
            quotas[i] += given
            budget -= given
    return quotas


def check_weight(name: str, value: float) -> None:
    """ValueError unless the value is a number from 0 up."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{name} is {value!r}; allowed: numbers from 0 up")


class Replay(Learner):
    """A learner with a memory, filled from each task's training samples when the task ends."""

    def __init__(self, backbone: nn.Module, budget: int, share: str, **hyperparameters: Any) -> None:
        super().__init__(backbone, budget=budget, share=share, **hyperparameters)
        self.memory = Memory(budget, share)

    def learn(self, task: Task, fit: Fit) -> None:
        fit()
        self.remember(task)

    def remember(self, task: Task) -> None:
        """Offer the task's training samples to the memory, in a random order."""
        train = task.make("train")
        order = torch.randperm(len(train))
        self.memory.add(train.x[order], train.y[order], task.id)

    def extra_bytes(self) -> int:
        return self.memory.bytes

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for name in ("x", "y", "task_ids", "logits"):  # as large as they were when saved
            setattr(self.memory, name, tensors[f"memory.{name}"].to(self.device))
        return tensors
