"""DER as in "Dynamically Expandable Representation", not Dark Experience Replay (that is `DERpp`).

Yan, Xie and He 2021, arXiv 2103.16788. Each task brings a feature extractor of its own; those of earlier tasks stand
still. One classifier reads the features of all of them, and is trained again on a memory in which every class has the
same share. An auxiliary classifier makes the new extractor tell its classes apart by itself; masks over channels, as in
HAT, make it smaller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, fx, nn

from .. import checks
from ..freezing import FrozenEntries, TaskModules, Template, copied, evaluating, parameters_of, standalone
from ..inputs import Tree
from ..isolation.hat import attention, compensate, temperature
from ..layers import columns, set_tensors
from ..learner import Fit, TaskRecord
from ..protection import uninterrupted
from ..replay.memory import Replay
from ..samples import Samples
from ..saving import starting_with
from ..tasks import Task
from .growing import Growing

# ---- the equations ---------------------------------------------------------------------------------------------------


def auxiliary_targets(y: Shaped[Tensor, "batch ..."], n_old: int) -> Shaped[Tensor, "batch ..."]:
    """What the auxiliary classifier is to answer: 0 for any of the n_old classes before, 1, 2, ... for the new ones.

    Args:
        y: classes, int64 of shape (batch,), or probabilities of them, shape (batch, classes).
        n_old: how many classes there were before.
    """
    if y.is_floating_point():
        return torch.cat([y[:, :n_old].sum(1, keepdim=True), y[:, n_old:]], 1)
    return (y - n_old + 1).clamp(min=0)


def sparsity(masks: Sequence[Float[Tensor, " _"]], inputs: int, kernels: Sequence[float]) -> Float[Tensor, ""]:
    """sum_l K_l ||m_{l-1}||_1 ||m_l||_1 / sum_l K_l c_{l-1} c_l: the share of the weights that the masks leave.

    A layer counts by its size: K_l weights for each pair of a channel below and one of its own.

    Args:
        masks: m_l of each layer, one number from 0 to 1 for each of its c_l channels.
        inputs: c_0, the channels of the input, of which none is left out.
        kernels: K_l of each layer, the weights between one channel and another.
    """
    kept, size = masks[0].new_zeros(()), 0.0
    below, c_below = masks[0].new_full((), float(inputs)), inputs
    for mask, k in zip(masks, kernels, strict=True):
        total = mask.sum()
        kept = kept + k * below * total
        size += k * c_below * len(mask)
        below, c_below = total, len(mask)
    return kept / size


# ---- the learner -----------------------------------------------------------------------------------------------------


class DER(Replay):
    """A frozen extractor for each task so far, a new one for the task, and one classifier over all their features.

    Loss of a task after the first: L_CE + `aux` L_aux (+ `sparsity` L_S), over the task's samples and the memory
    together, each sample once an epoch. Then the new extractor is frozen, the memory gets its share of the new
    classes, and the classifier is drawn anew and trained on the memory alone, its logits divided by `temperature`.

    The features of an extractor that is finished are exact: nothing moves them. The classifier goes on learning, so the
    logits are no promise, but in scenario "task": there each task has a head of its own over the extractors up to its
    own, nothing is remembered, and this is a progressive network (PNN) without laterals, whose answers stay the same
    to the bit. In "domain" all classes are new to the auxiliary classifier.

    Where this departs from the authors' code (Rhyssiyan/DER-ClassIL.pytorch at dd4af61, inclearn/models/incmodel.py):
    that has no masks; here they are the paper's, if `sparsity` is given. They work where channels can be followed: an
    `nn.Sequential` of Linear or Conv layers, each with its ReLU. On other backbones nothing is masked, and
    `capacity()["masked"]` says so. Old rows of the classifier start from what they were, and read new features with
    weight 0; theirs are drawn anew. Samples of the memory are drawn at random for each class, not by herding. The
    auxiliary loss is plain cross-entropy, also where the learner has a criterion.

    Args:
        backbone: any module; a template, which is copied. An extractor starts from the weights of the one before.
        budget: number of samples kept; unused in "task".
        share: who stays in memory; "class", an equal share for each, is what makes it balanced.
        aux: weight of the auxiliary loss.
        sparsity: weight of L_S; None for no masks, as in the authors' code.
        s_max: how sharp the masks get, see HAT.
        balance_epochs: passes over the memory for the classifier alone; 0 leaves it as it is.
        temperature: what its logits are divided by there.

    Raises:
        ValueError: a hyperparameter out of its range.
    """

    copies_backbone = True
    needs_classes = True

    def __init__(
        self,
        backbone: nn.Module,
        budget: int = 200,
        share: str = "class",
        aux: float = 1.0,
        sparsity: float | None = None,
        s_max: float = 400.0,
        balance_epochs: int = 30,
        temperature: float = 5.0,
    ) -> None:
        numbers = {
            "aux": checks.number("aux", aux),
            "s_max": checks.number("s_max", s_max, 1, beyond=True),
            "temperature": checks.number("temperature", temperature, beyond=True),
        }
        sparsity = None if sparsity is None else checks.number("sparsity", sparsity)
        balance_epochs = checks.integer("balance_epochs", balance_epochs, 0)
        super().__init__(backbone, budget, share, **numbers, sparsity=sparsity, balance_epochs=balance_epochs)
        self.aux, self.s_max, self.temperature = numbers.values()
        self.sparsity, self.balance_epochs = sparsity, balance_epochs
        del self.backbone  # extractors are copies; the given network itself is no part of the learner
        self.template = Template(backbone)
        self.extractors = TaskModules()
        self.auxiliary = nn.ModuleDict()  # of tasks that are not finished
        self.scores = nn.ParameterDict()  # of tasks that are not finished: of all layers in one vector
        self._masks: list[Tensor] = []  # of the extractor that is being learned
        self._sizes: tuple[int, list[float]] = (0, [])  # c_0 and K_l
        self._heat = 1.0
        self._balancing = False
        self._frozen = FrozenEntries()

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        record, train = self.tasks[task.id], task.make("train")
        remembers = self.remembers(task.scenario)
        if remembers:
            self.check_memory(task)
            self.memory.check(train, task.id)  # before anything is trained
        before = self.order()
        with self._sizes_restored_on_error(record), self.memory.shapes_restored_on_error():
            self.expand(record)  # a new extractor, and a classifier that reads it
            with self._masked(record):
                if before and remembers:
                    fit(tasks=[task, self.remembered(task)])  # L_CE + L_aux (+ L_S)
                else:
                    fit()
            self.prune(record)
            if remembers:
                self.memory.offer(train, torch.randperm(len(train)), task.id)
            if before and remembers and self.balance_epochs:
                self.balance(task, fit)
        record.notes["place"] = len(before)
        for own in (self.auxiliary, self.scores):
            if str(task.id) in own:
                del own[str(task.id)]

    def remembers(self, scenario: str) -> bool:
        return scenario != "task"

    def order(self) -> list[int]:
        """Finished tasks in the order in which they were learned, which is that of their features."""
        return sorted(self.learned, key=lambda t: self.tasks[t].notes["place"])

    @torch.no_grad()
    def expand(self, record: TaskRecord) -> None:
        """Start the new extractor from the last one, and let the classifier read it."""
        before = self.order()
        if before:
            self._start_from(self.tasks[before[-1]], self._extractor(record.id))
        width = sum(self.tasks[t].notes["width"] for t in before) + record.notes["width"]
        own = str(record.id)
        if record.scenario == "task":
            record.notes["read"] = before
        for name in [own] if record.scenario == "task" else self.heads:
            head: Any = self.heads.real(name)
            if head.in_features != width:
                fresh = nn.Linear(width, head.out_features, device=head.weight.device, dtype=head.weight.dtype)
                if name != own:  # what is new is read with weight 0
                    fresh.weight[:] = F.pad(head.weight, (0, width - head.in_features))
                    fresh.bias[:] = head.bias
                set_tensors(head, fresh.weight, fresh.bias)
        self._resized()

    def remembered(self, task: Task) -> Task:
        """The memory as the training samples of a task; those for validation are the task's own."""
        rows = torch.arange(len(self.memory), device=self.memory.y.device)
        held = Samples(self.memory.at(rows), self.memory.y[rows]).to("cpu")
        valid = partial(task.make, "valid")
        return Task(task.id, task.n_outputs, held, valid, scenario=task.scenario, name=task.name)

    def balance(self, task: Task, fit: Fit) -> None:
        """The classifier alone, from new weights, on a memory in which every class has the same share."""
        for head in self.heads.layers:
            head.reset_parameters()
        for parameter in self._extractor(task.id).parameters():
            self._frozen.hold_corner(parameter, parameter.shape[:1])
        self._balancing = True
        try:
            fit(epochs=self.balance_epochs, tasks=[self.remembered(task)])
        finally:
            self._balancing = False
            self._frozen.release()

    @torch.no_grad()
    def prune(self, record: TaskRecord) -> None:
        """Cut out of the new extractor the channels that its masks leave out, and of the classifier what reads them."""
        if str(record.id) not in self.scores:
            return
        network = Growing(self._extractor(record.id), "DER")
        kept = [mask.nonzero().flatten() for mask in self._hard_masks(record)]
        below: Tensor | None = None
        for layer, units, each in zip(network.layers, kept, network.each, strict=True):
            weight = layer.weight[units] if below is None else layer.weight[units][:, columns(below, each)]
            set_tensors(layer, weight, None if layer.bias is None else layer.bias[units])
            below = units
        assert below is not None
        record.notes["kept"] = [units.tolist() for units in kept]
        record.notes["width"], full = len(below) * record.notes["each"], record.notes["width"]
        for head in self._readers(record):
            n = head.in_features - full
            read = torch.cat([torch.arange(n, device=below.device), n + columns(below, record.notes["each"])])
            set_tensors(head, head.weight[:, read], None)
        self._resized()

    @torch.no_grad()
    def _start_from(self, last: TaskRecord, new: nn.Module) -> None:
        """The weights of the last extractor. Where channels were cut out of it, new ones stand in their places."""
        old = self._extractor(last.id)
        if "kept" not in last.notes:
            new.load_state_dict(old.state_dict())
            return
        fresh, cut = Growing(new, "DER"), Growing(old, "DER")
        below: Tensor | None = None
        for layer, small, kept, each in zip(fresh.layers, cut.layers, last.notes["kept"], fresh.each, strict=True):
            layer.reset_parameters()
            units = torch.tensor(kept, device=layer.weight.device)
            inputs = columns(below, each) if below is not None else torch.arange(layer.weight.shape[1]).to(units)
            layer.weight[units[:, None], inputs] = small.weight
            if layer.bias is not None:
                layer.bias[units] = small.bias
            below = units

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def features(self, x: Tree, task_id: int | None) -> Tensor:
        return torch.cat(self.features_of_each(x, task_id), 1)

    def features_of_each(self, x: Tree, task_id: int | None) -> list[Float[Tensor, "batch _"]]:
        """The features of each extractor that the task's classifier reads, its own last."""
        return [self._extract(x, t) for t in self.reads(task_id)]

    def reads(self, task_id: int | None) -> list[int]:
        """The tasks whose extractors are read, in order: by this task's head, or by the classifier of all."""
        if task_id is not None:
            return [*self.tasks[task_id].notes["read"], task_id]
        current = [self._current] if self._current is not None and not self.tasks[self._current].finished else []
        return [*self.order(), *current] or list(self.tasks)[:1]

    def _extractor(self, task_id: int) -> nn.Module:
        return self.extractors.real(str(task_id))

    def _extract(self, x: Tree, task_id: int) -> Tensor:
        network = self._extractor(task_id)
        if not self._balancing:
            return self.apply_kept(network, x)
        with evaluating(network), torch.no_grad():
            return self.apply_network(network, x)

    def loss(self, x: Tree, y: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """L_CE + aux L_aux + sparsity L_S while a task is learned; the tempered loss while the classifier alone is."""
        if isinstance(task_id, Tensor):  # of the memory; the scenario gives none
            task_id = None
        if self._current is None or not self.training:
            return super().loss(x, y, task_id)
        parts = self.features_of_each(x, self.check(x, task_id))
        logits = self.classify(torch.cat(parts, 1), task_id)
        if self._balancing:
            return self.cross_entropy(logits / self.temperature, y)
        loss = self.cross_entropy(logits, y)
        record = self.tasks[self._current]
        if len(parts) > 1 and self.aux and str(record.id) in self.auxiliary:
            n_old = record.notes["old"]
            targets = auxiliary_targets(y, n_old) if record.scenario == "class" else y
            loss = loss + self.aux * F.cross_entropy(self.auxiliary[str(record.id)](parts[-1]), targets)
        if self._masks and self.sparsity:
            loss = loss + self.sparsity * sparsity(self._masks, *self._sizes)
        return loss

    # ---- what must not move, and masks -------------------------------------------------------------------------------

    @contextmanager
    def _masked(self, record: TaskRecord) -> Iterator[None]:
        """Here every layer's output is multiplied by its mask: soft in training, 0 or 1 otherwise."""
        if str(record.id) not in self.scores:
            yield
            return
        layers = Growing(self._extractor(record.id), "DER").layers
        sizes = [len(layer.weight) for layer in layers]
        inputs = layers[0].weight.shape[1]
        pairs = zip(layers, [inputs, *sizes], strict=False)
        self._sizes = inputs, [layer.weight.numel() / (len(layer.weight) * below) for layer, below in pairs]

        def gate(level: int, _module: nn.Module, _given: Any, out: Tensor) -> Tensor:
            if not self.training:
                masks = self._hard_masks(record)
            elif level == 0:
                masks = self._masks = list(attention(self.scores[str(record.id)], self._heat).split(sizes))
            else:
                masks = self._masks
            return out * masks[level].to(out.dtype).view(-1, *[1] * (out.ndim - 2))

        hooks = [layer.register_forward_hook(partial(gate, level)) for level, layer in enumerate(layers)]
        try:
            yield
        finally:
            self._masks = []
            for hook in hooks:
                hook.remove()

    def _hard_masks(self, record: TaskRecord) -> list[Tensor]:
        """1[e > 0] for each layer, and in a layer without any the channel with the highest score."""
        sizes = [len(layer.weight) for layer in Growing(self._extractor(record.id), "DER").layers]
        scores = self.scores[str(record.id)].detach().split(sizes)
        return [(e > 0) | (e == e.max()) & (e.max() <= 0) for e in scores]

    def before_step(self, progress: float) -> None:
        """The masks sharpen through each epoch, as in HAT."""
        self._heat = temperature(progress, self.s_max)

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        self._frozen.watch(optimizer)

    @torch.no_grad()
    def edit_gradients(self) -> None:
        self._frozen.edit_gradients()
        for scores in self.scores.values():
            if scores.grad is not None:
                scores.grad = compensate(scores.grad, scores.detach(), self._heat, self.s_max)

    @torch.no_grad()
    def after_step(self) -> None:
        self._frozen.restore()
        for scores in self.scores.values():
            scores.clamp_(-6, 6)

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        yield self.extractors, str(task_id)
        if self.scenario == "task":
            yield self.heads, str(task_id)

    def grow(self, task: TaskRecord) -> None:
        """Add a task's extractor, its head or its rows of the classifier, and what it needs while it is learned."""
        new = "width" not in task.notes
        readers = [t for t, record in self.tasks.items() if t != task.id and task.id in record.notes["read"]]
        if new and readers:
            raise ValueError(
                f"task {task.id} was forgotten, and its extractor is still read by task {readers[0]}; give the new "
                "task another id, or forget that one, too"
            )
        network = copied(self.template.network)
        masked = self.sparsity is not None and not self.unmasked
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

    def _readers(self, record: TaskRecord) -> list[Any]:
        return [self.heads.real(str(record.id))] if record.scenario == "task" else self.heads.layers

    def _resized(self) -> None:
        """Parameters have been replaced: records know the widths of heads, and optimisers must have the new ones."""
        for record in self.tasks.values():
            name = "shared" if record.scenario == "domain" else str(record.id)
            if name in self.heads:
                record.n_features = self.heads.real(name).in_features  # type: ignore[assignment]
        if self._in_progress is not None and self._current is not None:
            own = {id(p) for part in (self.heads, self._extractor(self._current)) for p in part.parameters()}
            self._in_progress.replaced({name for name, p in self.named_parameters() if id(p) in own})

    @contextmanager
    def _sizes_restored_on_error(self, record: TaskRecord) -> Iterator[None]:
        """On an error heads and the extractor get their old shapes back; `learn` restores what they held."""
        notes = dict(record.notes)
        layers: list[Any] = [*self._readers(record), *filter(_resizable, self._extractor(record.id).modules())]
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

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for t in self.tasks:
            if "kept" in self.tasks[t].notes:
                saved = dict(starting_with(f"extractors.{t}.", tensors))
                Growing(self._extractor(t), "DER").make_room(saved)
        return super().unpack(tensors)

    def on_forget(self, task_id: int) -> None:
        super().on_forget(task_id)
        if not any(task_id in record.notes["read"] for record in self.tasks.values()):
            del self.extractors[str(task_id)]  # nobody else reads it

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def feature_extractor(self) -> nn.Module:
        return self.template.network

    @property
    def unmasked(self) -> str:
        """Why the backbone's channels cannot be masked; empty where they can."""
        try:
            Growing(self.template.network, "DER")
        except ValueError as error:
            return str(error)
        return ""

    def capacity(self) -> dict[str, Any]:
        """As of every method; "extractors", by task, the "bytes" and "features" of each; "masked", the layers whose
        channels are masked, which are none where they cannot be followed."""
        networks = {t: self._extractor(int(t)) for t in map(int, self.extractors)}
        extractors = {
            t: {"bytes": sum(p.nbytes for p in parameters_of(network)), "features": self.tasks[t].notes["width"]}
            for t, network in networks.items()
            if t in self.tasks
        }
        masked = self.sparsity is not None and not self.unmasked
        names = Growing(self.template.network, "DER").names if masked else []
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
            parts[str(t)] = copied(self._extractor(t))
            given = graph.call_method("clone", (x,)) if self._writes_input else x
            found.append(graph.call_module(f"extractors.{t}", (given,)))
        features = graph.call_function(torch.cat, (found, 1))
        graph.output(graph.call_module("head", (features,)))
        network = nn.ModuleDict({"extractors": nn.ModuleDict(parts), "head": self.heads.alone(task_id)})
        return fx.GraphModule(standalone(network), graph, class_name="ExpandedRepresentation")


def _resizable(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and type(layer.weight) is nn.Parameter
