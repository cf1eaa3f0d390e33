"""The one memory of all replay methods: a fixed number of samples, and a rule for who stays.

"reservoir"  every sample seen so far is kept with the same probability (Vitter 1985, algorithm R)
"task"       every task seen so far has an equal share
"class"      every class seen so far has an equal share
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import checks, inputs
from ..freezing import reads_a_file
from ..inputs import Tree
from ..learner import Fit, Learner, TaskRecord
from ..samples import LazySamples, Samples
from ..tasks import Task
from ..tensors import TensorDict

SHARES = ("reservoir", "task", "class")


class Memory(nn.Module):
    """At most `budget` samples: inputs x, labels y, task ids, and, if asked, the logits they were given.

    Labels are int64 of shape (n,), or targets of any type and shape (n, ...), of tasks without a head.

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

    y: Tensor
    task_ids: Tensor
    logits: Tensor
    priorities: Tensor
    counts: Tensor

    def __init__(self, budget: int, share: str = "reservoir") -> None:
        super().__init__()
        budget = checks.integer("budget", budget, what=", the number of samples that are kept")
        checks.one_of("share", share, SHARES)
        self.budget, self.share, self.labels_per_task = budget, share, False
        self.inputs = TensorDict()  # the leaves of x, each by its place in the tree
        self.shape: Any = None  # of one input, see `minicl.inputs.shapes`
        self.register_buffer("y", torch.empty(0, dtype=torch.long))
        self.register_buffer("task_ids", torch.empty(0, dtype=torch.long))
        self.register_buffer("logits", torch.empty(0, 0))
        self.register_buffer("priorities", torch.empty(0))  # for equal shares: a random number each, the lowest stay
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))  # samples held, samples seen
        self._shares: tuple[Any, ...] | None = None  # what `draw_each` has found out, and about which task ids

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """What averages a state dict leaves labels as they are, and mixes samples that belong to other labels.

        So where labels and counts are those of now, the samples of now stay.
        """
        own = self.state_dict(prefix=prefix)
        whole = [(state_dict.get(name), tensor) for name, tensor in own.items() if not tensor.is_floating_point()]
        if not reads_a_file() and all(given is not None and torch.equal(given, tensor) for given, tensor in whole):
            state_dict.update({name: tensor.clone() for name, tensor in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __len__(self) -> int:
        return int(self.counts[0])

    @property
    def x(self) -> Tree:
        """The inputs: of shape (budget, ...), or a tree of such; the first `len(self)` are held."""
        if self.shape is None:
            return torch.empty(0)
        return inputs.named_back(self.shape, {name.removeprefix("x"): leaf for name, leaf in self.inputs.items()})

    @property
    def seen(self) -> int:
        """How many samples have been offered so far."""
        return int(self.counts[1])

    @torch.no_grad()
    def add(self, x: Tree, y: Tensor, task_id: int, logits: Tensor | None = None) -> None:
        """Offer samples of a task: x of shape (n, ...), y of shape (n,), logits of shape (n, outputs) or None.

        Raises:
            ValueError: inputs of another shape than those that are held, or more or fewer than labels; a budget too
                small for the tasks or classes that must each have a share. The memory is as it was.
        """
        if inputs.length(x) != len(y):
            raise ValueError(
                f"the memory was given {inputs.length(x)} inputs and {len(y)} labels; allowed: one label per input"
            )
        self.offer(Samples(x, y), torch.arange(len(y)), task_id, logits)

    @torch.no_grad()
    def offer(
        self,
        samples: Samples | LazySamples,
        order: Tensor,
        task_id: int,
        logits: Tensor | None = None,
        priorities: Tensor | None = None,
    ) -> None:
        """Offer samples of a task in this order, int64 of shape (n,). Only those that stay are read.

        Of each group the samples with the lowest priorities, shape (n,), stay; without any, random ones. Not for a
        reservoir.

        Raises:
            ValueError: as `add`.
        """
        if not len(order):
            return
        self.check(samples, task_id)
        if self.share == "reservoir":
            self._reservoir(samples, order, task_id, logits)
        else:
            self._equal_shares(samples, order, task_id, logits, priorities)

    def check(self, samples: Samples | LazySamples, task_id: int) -> None:
        """ValueError if such samples could not be offered."""
        if self.shape is not None and len(samples) and isinstance(samples, Samples):
            given = inputs.shapes(samples.x)
            if given != self.shape:
                raise ValueError(
                    f"the memory holds inputs of shape {inputs.describe(self.shape)}; given: {inputs.describe(given)}. "
                    "One memory holds inputs of one shape"
                )
        if self.share != "reservoir":
            held, y = len(self), samples.labels if self.share == "class" else torch.zeros(len(samples))
            groups = self._groups(held, y, task_id)
            n_groups = int(groups.max()) + 1 if len(groups) else 0
            if n_groups > self.budget:
                what = "tasks" if self.share == "task" else "classes"
                raise ValueError(
                    f"a budget of {self.budget} samples is smaller than the {n_groups} {what} "
                    f"that must each have a share; allowed: {n_groups} or more"
                )

    @contextmanager
    def shapes_restored_on_error(self) -> Iterator[None]:
        """On an error the buffers get their old shapes back; `learn` restores what they held."""
        shapes, shape = {name: buffer.shape for name, buffer in self.named_buffers(recurse=False)}, self.shape
        try:
            yield
        except BaseException:
            if shape is None:
                self.shape, self.inputs = None, TensorDict()
            for name, buffer in self.named_buffers(recurse=False):
                if buffer.shape != shapes[name]:
                    setattr(self, name, buffer.new_empty(shapes[name]))
            raise

    def _groups(self, held: int, new: Tensor, task_id: int) -> Tensor:
        """For each sample that is held, and each new one with these labels, the number of its group."""
        task_ids = torch.cat([self.task_ids[:held], self.task_ids.new_full((len(new),), task_id)])
        if self.share == "task":
            key = task_ids
        else:
            y = torch.cat([self.y[:held], new.to(self.y.device)])
            key = torch.stack([task_ids, y], 1) if self.labels_per_task else y
        groups: Tensor = torch.unique(key, dim=0, return_inverse=True)[1]
        return groups

    def _make_room(self, x: Tree, y: Tensor, logits: Tensor | None) -> None:
        device = self.counts.device
        if self.shape is None or not len(self.inputs):
            # Zeros, not whatever stood in memory: places that are still free are saved too.
            self.shape = inputs.shapes(x)
            for path, leaf in inputs.named(x):
                self.inputs[f"x{path}"] = leaf.new_zeros(self.budget, *leaf.shape[1:], device=device)
            self.y = y.new_zeros(self.budget, *y.shape[1:], device=device)
            self.task_ids = torch.zeros(self.budget, dtype=torch.long, device=device)
            dtype = torch.float32 if logits is None else logits.dtype
            self.logits = torch.empty(self.budget, 0, dtype=dtype, device=device)
            if self.share != "reservoir":
                self.priorities = self.priorities.new_zeros(self.budget)
        elif inputs.shapes(x) != self.shape:
            raise ValueError(
                f"the memory holds inputs of shape {inputs.describe(self.shape)}; "
                f"given: {inputs.describe(inputs.shapes(x))}. One memory holds inputs of one shape"
            )
        elif y.shape[1:] != self.y.shape[1:] or y.is_floating_point() != self.y.is_floating_point():
            raise ValueError(
                f"the memory holds labels of {self.y.dtype} and shape {tuple(self.y.shape[1:])} each; given: {y.dtype} "
                f"and {tuple(y.shape[1:])}"
            )
        if logits is not None and logits.ndim > 2 and self.logits.ndim == 2:  # outputs of a network without a head
            self.logits = logits.new_full((self.budget, *logits.shape[1:]), torch.nan, device=device)
        wider = 0 if logits is None else logits.shape[1] - self.logits.shape[1]
        if wider > 0:  # a head with more outputs than any before; the others had none there
            self.logits = nn.functional.pad(self.logits, (0, wider), value=torch.nan)

    def _put(self, places: Tensor, samples: Samples, task_id: int, logits: Tensor | None) -> None:
        """Write samples to places on the memory's device."""
        for path, leaf in inputs.named(samples.x):
            held = self.inputs[f"x{path}"]
            held.index_copy_(0, places, leaf.to(held))
        self.y.index_copy_(0, places, samples.y.to(self.y))
        self.task_ids.index_fill_(0, places, task_id)
        if logits is None:
            self.logits.index_fill_(0, places, torch.nan)
        else:
            missing = self.logits.shape[1] - logits.shape[1]
            if missing:
                logits = nn.functional.pad(logits, (0, missing), value=torch.nan)
            self.logits.index_copy_(0, places, logits.to(self.logits))

    def _reservoir(self, samples: Samples | LazySamples, order: Tensor, task_id: int, logits: Tensor | None) -> None:
        n, (held, seen) = len(order), self.counts.tolist()
        # The i-th sample ever seen draws one of i places, and is kept if the memory has that place; while there is
        # room it takes the next. Of two that draw the same place the later stays.
        draws = (torch.rand(n, dtype=torch.float64) * torch.arange(seen + 1, seen + n + 1)).long().tolist()
        room = min(self.budget - held, n)
        draws[:room] = range(held, held + room)
        kept = {place: row for row, place in enumerate(draws) if place < self.budget}
        if kept:
            rows = order[torch.tensor(list(kept.values()))]
            places = torch.tensor(list(kept)).to(self.y.device)
            taken = samples.take(rows)
            self._make_room(taken.x, taken.y, logits)
            self._put(places, taken, task_id, None if logits is None else logits[rows.to(logits.device)])
        self.counts += torch.tensor([room, n], device=self.counts.device)

    def group_sizes(self) -> list[int]:
        """How many samples of each group are held."""
        held = len(self)
        return torch.bincount(self._groups(held, self.y[:0], 0)).tolist() if held else []

    def _equal_shares(
        self,
        samples: Samples | LazySamples,
        order: Tensor,
        task_id: int,
        logits: Tensor | None,
        given: Tensor | None = None,
    ) -> None:
        # Every sample draws a priority when it comes, and of each group the lowest stay. So what is left of a group is
        # always a random part of all that was ever seen of it, however often the shares have shrunk.
        n, (held, seen) = len(order), self.counts.tolist()
        device = self.y.device
        priorities = torch.cat(
            [self.priorities[:held], (torch.rand(n) if given is None else given).to(self.priorities)]
        )
        new = samples.labels[order] if self.share == "class" else torch.zeros(n)
        groups = self._groups(held, new, task_id)
        best = priorities.argsort()
        best = best[groups[best].argsort(stable=True)]  # group after group, in each the lowest priorities first
        sizes = torch.bincount(groups).tolist()
        quotas = equal_shares(sizes, self.budget)
        kept = torch.cat([rows[:quota] for rows, quota in zip(best.split(sizes), quotas, strict=True)])
        old, new = kept[kept < held], kept[kept >= held] - held
        rows = order[new.cpu()]
        taken = samples.take(rows)
        self._make_room(taken.x, taken.y, logits)
        for buffer in (*self.inputs.values(), self.y, self.task_ids, self.logits, self.priorities):
            buffer[: len(old)] = buffer[old]
        places = torch.arange(len(old), len(kept), device=device)
        self._put(places, taken, task_id, None if logits is None else logits[rows.to(logits.device)])
        self.priorities[places] = priorities[new + held]
        self.counts.copy_(torch.tensor([len(kept), seen + n]))

    def forget(self, task_id: int) -> None:
        """Let go of every sample of a task; their places are free."""
        keep = (self.task_ids[: len(self)] != task_id).nonzero().flatten()
        held, buffers = len(self), [b for n, b in self.named_buffers() if n != "counts" and len(b)]
        for buffer in buffers:
            buffer[: len(keep)] = buffer[keep]
            buffer[len(keep) : held] = 0
        self.counts[0] = len(keep)

    def draw(self, n: int) -> Tensor:
        """Where n samples stand that are drawn with equal probability, with replacement: rows, int64 of shape (n,).

        Raises:
            ValueError: the memory is empty.
        """
        held = self._not_empty()
        return torch.randint(held, (n,)).to(self.y.device)

    def draw_each(self, n: int) -> tuple[Tree, Tensor, Tensor]:
        """Of every task as many samples, all different: x of shape (tasks, m, ...), y (tasks, m, ...), ids (tasks,).

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
        x = inputs.map(lambda leaf: leaf.index_select(0, rows).unflatten(0, (len(ids), -1)), self.x)
        return x, self.y.index_select(0, rows).unflatten(0, (len(ids), -1)), ids

    def at(self, rows: Tensor) -> Tree:
        """The inputs that stand at these rows, int64 of shape (n,)."""
        return inputs.map(lambda leaf: leaf.index_select(0, rows), self.x)

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

    def resize_like(self, saved: Mapping[str, Tensor], shape: Any) -> None:
        """Make the buffers as large as those of a file, by name, for inputs of this shape.

        Raises:
            ValueError: that memory had another budget, or other random numbers than this one's shares need.
        """
        places = len(saved["y"])
        if places and places != self.budget:
            raise ValueError(
                f"the memory in this file has room for {places} samples, not for {self.budget}; load it with "
                f"budget={places}"
            )
        if places and (self.share == "reservoir") != (len(saved["priorities"]) == 0):
            was, allowed = ("not ", SHARES[1:]) if len(saved["priorities"]) else ("", SHARES[:1])
            raise ValueError(
                f"the memory in this file was {was}a reservoir, and share is {self.share!r}; allowed: "
                f"{', '.join(allowed)}"
            )
        self.shape = shape if places else None
        for name, buffer in self.named_buffers(recurse=False):
            if name != "counts":
                setattr(self, name, saved[name].to(buffer.device))

    def of_task(self, task_id: int) -> Samples:
        """All samples of a task that are held."""
        rows = (self.task_ids[: len(self)] == task_id).nonzero().flatten()
        return Samples(self.at(rows), self.y[rows])

    @property
    def bytes(self) -> int:
        """What the memory takes, exactly."""
        return sum(buffer.nbytes for buffer in self.buffers())


def equal_shares(sizes: Sequence[int], budget: int) -> list[int]:
    """How many each group may keep: all the same, but for groups that have fewer; what those leave goes round again."""
    quotas = [0] * len(sizes)
    while budget and (open_groups := [i for i, size in enumerate(sizes) if quotas[i] < size]):
        share = max(1, budget // len(open_groups))
        for i in open_groups:
            given = min(share, sizes[i] - quotas[i], budget)
            quotas[i] += given
            budget -= given
    return quotas


class Replay(Learner):
    """A learner with a memory, filled from each task's training samples when the task ends."""

    lesson_attributes: ClassVar[tuple[str, ...]] = ("memory.shape",)

    def __init__(self, backbone: nn.Module, budget: int, share: str, **hyperparameters: Any) -> None:
        memory = Memory(budget, share)
        super().__init__(backbone, budget=memory.budget, share=share, **hyperparameters)
        self.memory = memory
        self._lost: set[int] = set()  # tasks of which it was said that nothing is left

    def learn(self, task: Task, fit: Fit) -> None:
        train = task.make("train")
        self.memory.labels_per_task = task.scenario == "task"
        self.check_memory(task)
        self.memory.check(train, task.id)  # before anything is trained
        fit()
        order = torch.randperm(len(train))
        with self.memory.shapes_restored_on_error():
            self.memory.offer(train, order, task.id)

    def remembers(self, scenario: str) -> bool:
        """Whether samples are kept in this scenario."""
        return True

    def check_memory(self, task: Task) -> None:
        """ValueError where the inputs of a task have no one shape, in which a memory could hold them."""
        if task.ragged:
            raise ValueError(
                f"task {task.id} makes batches with a function of its own (collate), so its inputs may have several "
                f"shapes, and the memory of {type(self).__name__} holds inputs of one; bring them to one shape first"
            )
        if task.n_outputs is None and self.memory.share == "class":
            raise ValueError(
                f"task {task.id} has no classes (n_outputs=None), so they cannot have equal shares of the memory; "
                "allowed: share='reservoir' or 'task'"
            )

    def _finish(self, record: TaskRecord) -> None:
        super()._finish(record)
        if not self.remembers(record.scenario):
            return
        held = set(self.memory.task_ids[: len(self.memory)].tolist())
        lost = [t for t in self.learned if t not in held and t not in self._lost]
        if lost:
            self._lost.update(lost)
            warnings.warn(
                f"the memory holds no sample of task {', '.join(map(str, lost))}, so nothing of it is replayed: "
                f"a reservoir of {self.memory.budget} gives every sample the same chance, and small tasks few. "
                "An equal share, share='task', keeps some of each",
                stacklevel=2,
            )

    @property
    def replaying(self) -> bool:
        """Whether a task is being learned, and there is something to remember."""
        return self._current is not None and len(self.memory) > 0

    def widest(self) -> int:
        """Outputs that a batch of several tasks has: of the widest head, or of all classes so far."""
        sizes = [head.out_features for head in self.heads.layers]
        return sum(sizes) if self.scenario == "class" else max(sizes, default=0)

    def on_forget(self, task_id: int) -> None:
        self.memory.forget(task_id)

    def extra_bytes(self) -> int:
        return self.memory.bytes

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        buffers = self.memory.named_buffers(recurse=False)
        saved = {name: tensors.get(f"memory.{name}", buffer) for name, buffer in buffers}
        self.memory.resize_like(saved, self.input_shape)
        return tensors
