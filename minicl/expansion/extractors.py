"""One feature extractor per task, and classifiers over the features of several: sizes, records, files, costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from ..freezing import FrozenEntries, TaskModules, Template, as_called, copied, evaluating, parameters_of, standalone
from ..inputs import Tree
from ..layers import columns, set_tensors
from ..learner import TaskRecord
from ..protection import uninterrupted
from ..replay.memory import Replay
from ..saving import starting_with
from .channel_masks import ChannelMasks, cut_out, fill_from_cut
from .growing import Growing


class Extractors(Replay):
    """Each task has a copy of the backbone, and a head that reads the features of the copies before it, too.

    Args:
        backbone: any module; a template, which is copied.
        budget, share, hyperparameters: see `minicl.replay.memory.Replay`.
        sparsity: None for no masks over channels.

    Attributes:
        extractors: by task id; those of finished tasks move no more. What later tasks read of a task that was
            forgotten has a negative number.
        auxiliary: of tasks that are not finished: a classifier of their own extractor.
        scores: of tasks that are not finished, where channels are masked: of all layers in one vector.
        masks: of the extractor that is being learned.
        heat: how sharp they are.
    """

    copies_backbone = True

    def __init__(
        self, backbone: nn.Module, budget: int, share: str, sparsity: float | None, **hyperparameters: Any
    ) -> None:
        super().__init__(backbone, budget, share, sparsity=sparsity, **hyperparameters)
        self.sparsity = sparsity
        del self.backbone  # extractors are copies; the given network itself is no part of the learner
        self.template = Template(backbone)
        self.extractors = TaskModules()
        self.auxiliary = nn.ModuleDict()
        self.scores = nn.ParameterDict()
        self.masks: ChannelMasks | None = None
        self.heat = 1.0
        self._standing = False  # whether the extractor of the task that is being learned stands still, too
        self._frozen = FrozenEntries()

    def remembers(self, scenario: str) -> bool:
        return scenario != "task"

    def order(self) -> list[int]:
        """Finished tasks in the order in which they were learned, which is that of their features."""
        return sorted(self.learned, key=lambda t: self.tasks[t].notes["place"])

    def reads(self, task_id: int | None) -> list[int]:
        """The tasks whose extractors are read, in order: by this task's head, or by the classifier of all."""
        if task_id is not None:
            return [*self.tasks[task_id].notes["read"], task_id]
        current = [self._current] if self._current is not None and not self.tasks[self._current].finished else []
        return [*self.order(), *current] or list(self.tasks)[:1]

    def extractor(self, task_id: int) -> nn.Module:
        """A task's extractor."""
        return self.extractors.real(str(task_id))

    def heads_over(self, record: TaskRecord) -> list[Any]:
        """The heads that read the extractor of a task that is being learned."""
        return [self.heads.real(str(record.id))] if record.scenario == "task" else self.heads.layers

    # ---- sizes -------------------------------------------------------------------------------------------------------

    @contextmanager
    def sizes_restored_on_error(self, record: TaskRecord) -> Iterator[None]:
        """On an error heads and the extractor get their old shapes back; `learn` restores what they held."""
        notes = dict(record.notes)
        layers: list[Any] = [*self.heads_over(record), *filter(_resizable, self.extractor(record.id).modules())]
        shapes = [(layer, layer.weight.shape) for layer in layers]

        def put_back() -> None:
            for layer, shape in shapes:
                if layer.weight.shape != shape:
                    bias = None if layer.bias is None else layer.weight.new_zeros(shape[0])
                    set_tensors(layer, layer.weight.new_zeros(shape), bias)
            record.notes.clear()
            record.notes.update(notes)
            self._resized()

        try:
            yield
        except BaseException:
            uninterrupted(put_back)
            raise

    @torch.no_grad()
    def start_from_last(self, record: TaskRecord) -> None:
        """The new extractor starts from the weights of the last. Channels that were cut out of that are new ones."""
        before = self.order()
        if before:
            notes, new, old = self.tasks[before[-1]].notes, self.extractor(record.id), self.extractor(before[-1])
            if "kept" in notes:
                fill_from_cut(new, old, notes["kept"])
            else:
                new.load_state_dict(old.state_dict())

    @torch.no_grad()
    def read_all(self, record: TaskRecord) -> None:
        """Have the classifier read the new extractor, too: old rows with weight 0."""
        before = self.order()
        width = sum(self.tasks[t].notes["width"] for t in before) + record.notes["width"]
        own = str(record.id)
        if record.scenario == "task":
            record.notes["read"] = before
        for name in [own] if record.scenario == "task" else self.heads:
            head: Any = self.heads.real(name)
            if head.in_features != width:
                fresh = nn.Linear(width, head.out_features, device=head.weight.device, dtype=head.weight.dtype)
                if name != own:
                    fresh.weight[:] = F.pad(head.weight, (0, width - head.in_features))
                    fresh.bias[:] = head.bias
                set_tensors(head, fresh.weight, fresh.bias)
        self._resized()

    @torch.no_grad()
    def keep_channels(self, record: TaskRecord, kept: list[Tensor]) -> None:
        """Leave in a task's extractor these channels of each layer alone, and in the classifier what reads them."""
        cut_out(self.extractor(record.id), kept)
        each, last = record.notes["each"], kept[-1]
        record.notes["kept"] = [units.tolist() for units in kept]
        record.notes["width"], full = len(last) * each, record.notes["width"]
        for head in self.heads_over(record):
            n = head.in_features - full
            read = torch.cat([torch.arange(n, device=last.device), n + columns(last, each)])
            set_tensors(head, head.weight[:, read], None)
        self._resized()

    def _resized(self) -> None:
        """Parameters have been replaced: records know the widths of heads, and optimisers must have the new ones."""
        for record in self.tasks.values():
            name = "shared" if record.scenario == "domain" else str(record.id)
            if name in self.heads:
                record.n_features = self.heads.real(name).in_features  # type: ignore[assignment]
        if self._in_progress is not None and self._current is not None:
            own = {id(p) for part in (self.heads, self.extractor(self._current)) for p in part.parameters()}
            self._in_progress.replaced({name for name, p in self.named_parameters() if id(p) in own})

    # ---- masks over channels -----------------------------------------------------------------------------------------

    def _masks_of(self, record: TaskRecord) -> ChannelMasks:
        return ChannelMasks(self.extractor(record.id), self.scores[str(record.id)])

    def hard_masks(self, record: TaskRecord) -> list[Tensor]:
        """Of each layer which channels the masks of a task leave in, boolean."""
        return self._masks_of(record).hard()

    @contextmanager
    def masked(self, record: TaskRecord) -> Iterator[None]:
        """Here every layer's output is multiplied by its mask: soft in training, 0 or 1 otherwise."""
        if str(record.id) not in self.scores:
            yield
            return
        self.masks = self._masks_of(record)
        try:
            with self.masks.on(lambda: self.training, lambda: self.heat):
                yield
        finally:
            self.masks = None

    @property
    def unmasked(self) -> str:
        """Why the backbone's channels cannot be masked; empty where they can."""
        try:
            Growing(self.template.network, "DER")
        except ValueError as error:
            return str(error)
        return ""

    @property
    def masks_channels(self) -> bool:
        """Whether masks over channels are wanted, and can be had."""
        return self.sparsity is not None and not self.unmasked

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def features(self, x: Tree, task_id: int | None) -> Tensor:
        return torch.cat(self.features_of_each(x, task_id), 1)

    def features_of_each(self, x: Tree, task_id: int | None) -> list[Float[Tensor, "batch _"]]:
        """The features of each extractor that the task's classifier reads, its own last."""
        return [self._extract(x, t) for t in self.reads(task_id)]

    def _extract(self, x: Tree, task_id: int) -> Tensor:
        network = self.extractor(task_id)
        if not self._standing:
            return self.apply_kept(network, x)
        with evaluating(network), torch.no_grad():
            return self.apply_network(network, x)

    # ---- what must not move ------------------------------------------------------------------------------------------

    @contextmanager
    def standing(self, task_id: int) -> Iterator[None]:
        """Here the extractor of a task that is being learned stands still, in evaluation mode."""
        for parameter in self.extractor(task_id).parameters():
            self._frozen.hold_corner(parameter, parameter.shape[:1])
        self._standing = True
        try:
            yield
        finally:
            self._standing = False
            self._frozen.release()

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        self._frozen.watch(optimizer)

    def edit_gradients(self) -> None:
        self._frozen.edit_gradients()

    def after_step(self) -> None:
        self._frozen.restore()

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        for t in (task_id, *(t for t in self.tasks[task_id].notes["read"] if t < 0)):
            yield self.extractors, str(t)
        if self.scenario == "task":
            yield self.heads, str(task_id)

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def grow(self, task: TaskRecord) -> None:
        """Add a task's extractor, its head or its rows of the classifier, and what it needs while it is learned."""
        new = "width" not in task.notes
        network = copied(self.template.network)
        masked = self.masks_channels
        if new:
            before = sum(self.tasks[t].notes["width"] for t in self.order())
            task.notes |= {"width": task.n_features, "read": self.order(), "old": self.heads.n_outputs}
            if masked:
                task.notes["each"] = task.n_features // Growing(network, "DER").units[-1]
            if task.scenario == "task":
                task.n_features += before
            else:
                task.n_features = before or task.n_features
        super().grow(task)
        for t in [t for t in task.notes["read"] if t < 0 and str(t) not in self.extractors]:  # from a file
            self.extractors[str(t)] = copied(self.template.network).to(self._like)
        self.extractors[str(task.id)] = network.to(self._like)
        if not task.finished:
            n_old = task.notes["old"] if task.scenario == "class" else 0
            assert task.n_outputs is not None
            outputs = task.n_outputs - n_old + (task.scenario == "class")
            if outputs > 1 or task.scenario != "class":
                self.auxiliary[str(task.id)] = nn.Linear(task.notes["width"], outputs).to(self._like)
            if masked:
                n = sum(Growing(network, "DER").units)
                self.scores[str(task.id)] = nn.Parameter(self._like.new_empty(n).normal_())

    def settle(self, task_id: int, place: int) -> None:
        """What the task needed while it was learned is needed no more; its place among the features is known."""
        self.tasks[task_id].notes["place"] = place
        for own in (self.auxiliary, self.scores):
            if str(task_id) in own:
                del own[str(task_id)]

    def on_forget(self, task_id: int) -> None:
        """Free the extractor, unless later tasks read it: then it stays, under a negative number."""
        super().on_forget(task_id)
        network, new = self.extractor(task_id), min([0, *map(int, self.extractors)]) - 1
        del self.extractors[str(task_id)]
        self.extractors[str(new)] = network
        self.extractors.hide(str(new))
        for record in self.tasks.values():
            read = record.notes["read"] if record.finished else self.order()  # to come, or broken off: it reads anew
            record.notes["read"] = [new if t == task_id else t for t in read]
        read = {t for record in self.tasks.values() for t in record.notes["read"]}
        for name in [name for name in self.extractors if int(name) < 0 and int(name) not in read]:
            del self.extractors[name]

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        masked = self.masks_channels
        for t in map(int, self.extractors):
            if masked if t < 0 else "kept" in self.tasks[t].notes:
                saved = dict(starting_with(f"extractors.{t}.", tensors))
                Growing(self.extractor(t), "DER").make_room(saved)
        return super().unpack(tensors)

    def feature_extractor(self) -> nn.Module:
        return self.template.network

    def capacity(self) -> dict[str, Any]:
        """As of every method; "extractors", by task, the "bytes" and "features" of each; "masked", the layers whose
        channels are masked, which are none where they cannot be followed."""
        networks = {t: self.extractor(int(t)) for t in map(int, self.extractors)}
        extractors = {
            t: {"bytes": sum(p.nbytes for p in parameters_of(network)), "features": self.tasks[t].notes["width"]}
            for t, network in networks.items()
            if t in self.tasks
        }
        names = Growing(self.template.network, "DER").names if self.masks_channels else []
        return {**super().capacity(), "extractors": extractors, "masked": names}

    def export(self, task_id: int | None = None) -> nn.Module:
        """The extractors that are read, and the head: a `torch.fx.GraphModule`, which needs torch alone.

        Raises:
            ValueError: a task id that is missing (in scenario "task") or not learned.
        """
        task_id = self.check_finished(task_id)
        graph = fx.Graph()
        x = graph.placeholder("x")
        parts, found = {}, []
        for t in self.reads(task_id):
            parts[str(t)] = as_called(copied(self.extractor(t)), self.select, self.input_shape)
            given = graph.call_method("clone", (x,)) if self._writes_input else x
            found.append(graph.call_module(f"extractors.{t}", (given,)))
        features = graph.call_function(torch.cat, (found, 1))
        graph.output(graph.call_module("head", (features,)))
        network = nn.ModuleDict({"extractors": nn.ModuleDict(parts), "head": self.heads.alone(task_id)})
        return fx.GraphModule(standalone(network), graph, class_name="ExpandedRepresentation")


def _resizable(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and type(layer.weight) is nn.Parameter
