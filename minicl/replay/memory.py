"""The one memory of all replay methods: a fixed number of samples, and a rule for who stays.

"reservoir"  every sample seen so far is kept with the same probability (Vitter 1985, algorithm R)
"task"       every task seen so far has an equal share
"class"      every class seen so far has an equal share
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

    Attributes:
        labels_per_task: the same label stands for another class in each task, as in scenario "task".

    Raises:
        ValueError: a budget below 1, an unknown share.
    """

    x: Tensor
    y: Tensor
    task_ids: Tensor
    logits: Tensor
    tickets: Tensor
    counts: Tensor

    def __init__(self, budget: int, share: str = "reservoir") -> None:
        super().__init__()
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise ValueError(f"budget is {budget!r}; allowed: integers from 1 up, the number of samples that are kept")
        if share not in SHARES:
            raise ValueError(f"share is {share!r}; allowed: {', '.join(SHARES)}")
        self.budget, self.share, self.labels_per_task = budget, share, False
        self.register_buffer("x", torch.empty(0))
        self.register_buffer("y", torch.empty(0, dtype=torch.long))
        self.register_buffer("task_ids", torch.empty(0, dtype=torch.long))
        self.register_buffer("logits", torch.empty(0, 0))
        self.register_buffer("tickets", torch.empty(0))  # for equal shares: a random number each, the lowest stay
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))  # samples held, samples seen
        self._shares: tuple[Any, ...] | None = None  # what `draw_each` has found out, and about which task ids

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
            ValueError: inputs of another shape than those that are held, or more or fewer than labels; a budget too
                small for the tasks or classes that must each have a share. The memory is as it was.
        """
        self.check(x, y, task_id)
        if not len(y):
            return
        self._make_room(x, logits)
        if self.share == "reservoir":
            self._reservoir(x, y, task_id, logits)
        else:
            self._equal_shares(x, y, task_id, logits)

    def check(self, x: Tensor, y: Tensor, task_id: int) -> None:
        """ValueError if such samples could not be added."""
        if len(x) != len(y):
            raise ValueError(f"the memory was given {len(x)} inputs and {len(y)} labels; allowed: one label an input")
        if x.shape[1:] != self.x.shape[1:] and len(self):
            raise ValueError(
                f"the memory holds inputs of shape {tuple(self.x.shape[1:])}; given: {tuple(x.shape[1:])}. "
                "One memory holds inputs of one shape"
            )
        if self.share != "reservoir":
            held = len(self)
            groups = self._groups(
                torch.cat([self.y[:held], y.to(self.y.device)]),
                torch.cat([self.task_ids[:held], self.task_ids.new_full((len(y),), task_id)]),
            )
            n_groups = int(groups.max()) + 1 if len(groups) else 0
            if n_groups > self.budget:
                what = "tasks" if self.share == "task" else "classes"
                raise ValueError(
                    f"a budget of {self.budget} samples is smaller than the {n_groups} {what} "
                    f"that must each have a share; allowed: {n_groups} or more"
                )

    @contextmanager
    def unless_broken_off(self) -> Iterator[None]:
        """If what is done here breaks off, room that it has made is given back; a lesson puts back the contents."""
        shapes = {name: buffer.shape for name, buffer in self.named_buffers()}
        try:
            yield
        except BaseException:
            for name, buffer in self.named_buffers():
                if buffer.shape != shapes[name]:
                    setattr(self, name, buffer.new_empty(shapes[name]))
            raise

    def _groups(self, y: Tensor, task_ids: Tensor) -> Tensor:
        """For each sample the number of the group that it shares its places with."""
        if self.share == "task":
            key = task_ids
        elif self.labels_per_task:
            key = torch.stack([task_ids, y], 1)
        else:
            key = y
        groups: Tensor = torch.unique(key, dim=0, return_inverse=True)[1]
        return groups

    def _make_room(self, x: Tensor, logits: Tensor | None) -> None:
        if not len(self):
            # Zeros, not whatever stood in memory: places that are still free are saved too.
            self.x = x.new_zeros(self.budget, *x.shape[1:], device=self.counts.device)
            self.y = torch.zeros(self.budget, dtype=torch.long, device=self.counts.device)
            self.task_ids = torch.zeros_like(self.y)
            dtype = torch.float32 if logits is None else logits.dtype
            self.logits = torch.empty(self.budget, 0, dtype=dtype, device=self.counts.device)
            if self.share != "reservoir":
                self.tickets = torch.zeros(self.budget, device=self.counts.device)
        wider = 0 if logits is None else logits.shape[1] - self.logits.shape[1]
        if wider > 0:  # a head with more outputs than any before; the others had none there
            self.logits = nn.functional.pad(self.logits, (0, wider), value=torch.nan)

    def _put(self, places: Tensor, x: Tensor, y: Tensor, task_id: int, logits: Tensor | None) -> None:
        """Write samples to places, both on the memory's device."""
        self.x.index_copy_(0, places, x.to(self.x))
        self.y.index_copy_(0, places, y.to(self.y))
        self.task_ids.index_fill_(0, places, task_id)
        if logits is None:
            self.logits.index_fill_(0, places, torch.nan)
        else:
            missing = self.logits.shape[1] - logits.shape[1]
            if missing:
                logits = nn.functional.pad(logits, (0, missing), value=torch.nan)
            self.logits.index_copy_(0, places, logits.to(self.logits))

    def _reservoir(self, x: Tensor, y: Tensor, task_id: int, logits: Tensor | None) -> None:
        n, (held, seen) = len(y), self.counts.tolist()
        # The i-th sample ever seen draws one of i places, and is kept if the memory has that place; while there is
        # room it takes the next. Of two that draw the same place the later stays.
        draws = (torch.rand(n, dtype=torch.float64) * torch.arange(seen + 1, seen + n + 1)).long().tolist()
        room = min(self.budget - held, n)
        draws[:room] = range(held, held + room)
        kept = {place: row for row, place in enumerate(draws) if place < self.budget}
        if kept:
            rows = torch.tensor(list(kept.values())).to(x.device)
            places = torch.tensor(list(kept)).to(self.y.device)
            taken = None if logits is None else logits.index_select(0, rows)
            self._put(places, x.index_select(0, rows), y.index_select(0, rows), task_id, taken)
        self.counts += torch.tensor([room, n], device=self.counts.device)

    def _equal_shares(self, x: Tensor, y: Tensor, task_id: int, logits: Tensor | None) -> None:
        # Every sample draws a ticket when it comes, and of each group the lowest stay. So what is left of a group is
        # always a random part of all that was ever seen of it, however often the shares have shrunk.
        n, (held, seen) = len(y), self.counts.tolist()
        device = self.y.device
        tickets = torch.cat([self.tickets[:held], torch.rand(n).to(device)])
        groups = self._groups(
            torch.cat([self.y[:held], y.to(device)]),
            torch.cat([self.task_ids[:held], self.task_ids.new_full((n,), task_id)]),
        )
        order = tickets.argsort()
        order = order[groups[order].argsort(stable=True)]  # group after group, in each the lowest tickets first
        sizes = torch.bincount(groups).tolist()
        quotas = equal_shares(sizes, self.budget)
        kept = torch.cat([rows[:quota] for rows, quota in zip(order.split(sizes), quotas, strict=True)])
        old, new = kept[kept < held], kept[kept >= held] - held
        for buffer in (self.x, self.y, self.task_ids, self.logits, self.tickets):
            buffer[: len(old)] = buffer[old]
        places = torch.arange(len(old), len(kept), device=device)
        rows = new.to(x.device)
        self._put(places, x[rows], y[rows], task_id, None if logits is None else logits[rows])
        self.tickets[places] = tickets[new + held]
        self.counts.copy_(torch.tensor([len(kept), seen + n]))

    def draw(self, n: int) -> Tensor:
        """Where n samples stand that are drawn with equal probability, with replacement: rows, int64 of shape (n,).

        Raises:
            ValueError: the memory is empty.
        """
        held = self._not_empty()
        return torch.randint(held, (n,)).to(self.y.device)

    def draw_each(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of every task as many samples, all different: x of shape (tasks, m, ...), y (tasks, m), task ids (tasks,).

        m is n, or what the smallest share holds if that is less.

        Raises:
            ValueError: the memory is empty.
        """
        held = self._not_empty()
        written = (self.task_ids._version, held)
        if self._shares is None or self._shares[0] is not self.task_ids or self._shares[1] != written:
            self._shares = (self.task_ids, written, *self._share_of_each())
        ids, places, none, smallest = self._shares[2:]
        chances = torch.rand(places.shape).to(ids.device) + none
        rows = places.gather(1, chances.topk(min(n, smallest), largest=False).indices).flatten()
        x, y = self.x.index_select(0, rows), self.y.index_select(0, rows)
        return x.unflatten(0, (len(ids), -1)), y.view(len(ids), -1), ids

    def _not_empty(self) -> int:
        """How many samples are held, or the ValueError of a draw from none."""
        held = len(self)
        if not held:
            raise ValueError("the memory is empty; there is nothing to draw before the first samples were added")
        return held

    def _share_of_each(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """Task ids; rows of each one's samples, shape (tasks, largest share); 1 where there is none; smallest share."""
        ids, task, sizes = torch.unique(self.task_ids[: len(self)], return_inverse=True, return_counts=True)
        none = torch.arange(int(sizes.max()), device=ids.device) >= sizes[:, None]
        places = torch.zeros(none.shape, dtype=torch.long, device=ids.device)
        places[~none] = task.argsort(stable=True)
        return ids, places, none.to(torch.get_default_dtype()), int(sizes.min())

    def fit_to(self, saved: Mapping[str, Tensor]) -> None:
        """Make the buffers as large as those of a file, by name.

        Raises:
            ValueError: that memory had another budget, or other random numbers than this one's shares need.
        """
        places = len(saved["y"])
        if places and places != self.budget:
            raise ValueError(
                f"the memory in this file has room for {places} samples, not for {self.budget}; load it with "
                f"budget={places}"
            )
        if places and (self.share == "reservoir") != (len(saved["tickets"]) == 0):
            was, allowed = ("not ", SHARES[1:]) if len(saved["tickets"]) else ("", SHARES[:1])
            raise ValueError(
                f"the memory in this file was {was}a reservoir, and share is {self.share!r}; allowed: "
                f"{', '.join(allowed)}"
            )
        for name, buffer in self.named_buffers():
            if name != "counts":
                setattr(self, name, saved[name].to(buffer.device))

    def of_task(self, task_id: int) -> Samples:
        """All samples of a task that are held."""
        rows = (self.task_ids[: len(self)] == task_id).nonzero().flatten()
        return Samples(self.x[rows], self.y[rows])

    @property
    def bytes(self) -> int:
        """What the memory takes, exactly."""
        return sum(buffer.nbytes for buffer in self.buffers())


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
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value!r}; allowed: numbers from 0 up")


class Replay(Learner):
    """A learner with a memory, filled from each task's training samples when the task ends."""

    def __init__(self, backbone: nn.Module, budget: int, share: str, **hyperparameters: Any) -> None:
        super().__init__(backbone, budget=budget, share=share, **hyperparameters)
        self.memory = Memory(budget, share)

    def learn(self, task: Task, fit: Fit) -> None:
        train = task.make("train")
        self.memory.labels_per_task = task.scenario == "task"
        self.memory.check(train.x, train.y, task.id)  # before anything is trained
        fit()
        order = torch.randperm(len(train))
        with self.memory.unless_broken_off():
            self.memory.add(train.x[order], train.y[order], task.id)

    @property
    def replaying(self) -> bool:
        """Whether a task is being learned, and there is something to remember."""
        return self._current is not None and len(self.memory) > 0

    def extra_bytes(self) -> int:
        return self.memory.bytes

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        buffers = self.memory.named_buffers()
        self.memory.fit_to({name: tensors.get(f"memory.{name}", buffer) for name, buffer in buffers})
        return tensors
