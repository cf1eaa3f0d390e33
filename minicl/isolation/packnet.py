"""PackNet: Mallya and Lazebnik 2018, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning",
arXiv 1711.05769.

Every weight has one owner. A task trains all weights that are still free, keeps the largest, gives the rest back, and
trains again what it kept; from then on these weights are frozen. Later tasks read them and never move them. To answer
for a task, the weights of the tasks after it are switched off.

The file reads from top to bottom: the equations, then the learner. Which weights a network has, and how their owners
are stored, is in `minicl.isolation.weights`. Where it departs from the authors' code (github.com/arunmallya/packnet),
the docstring of `PackNet` says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor, nn
from torch.func import functional_call

from ..learner import Fit, Learner, Optimizer, TaskRecord, freeze, plain
from ..tasks import Task
from ..training import evaluate
from .frozen import FrozenEntries, switched_off
from .weights import NORMS, SparseNetwork, evaluating, every_name, flat, pack_owners, prunable, unpack_owners

KeepRatio = float | str | Sequence[Any] | Mapping[str, Any] | Callable[[int, str], float]

MOST_TASKS = 255
"""An owner is one byte: 0 for a free weight, 1 to 255 for the tasks in the order in which they were learned."""

# ---- the equations -----------------------------------------------------------------------------------------


def keep_mask(
    weight: Float[Tensor, "*shape"], keep_ratio: float, among: Bool[Tensor, "*shape"] | None = None
) -> Bool[Tensor, "*shape"]:
    """m^(t), by magnitude: which of the weights `among` a task keeps.

    The paper's pruned share is p = 1 - keep_ratio. Of the n weights in question, the round(p n) smallest in absolute
    value are released. So where p n rounds to 0, nothing is; and exactly n - round(p n) are kept, for of weights that
    tie at the cutoff the first ones (row by row) stay. (The authors release all that tie.)

    Args:
        weight: of one layer.
        keep_ratio: share to keep, in (0, 1].
        among: the weights in question, those that this task trained; None for all.

    Returns:
        True for what is kept, False elsewhere.

    Raises:
        ValueError: keep_ratio outside (0, 1].
    """
    _check_share(keep_ratio, "keep_ratio")
    among = torch.ones_like(weight, dtype=torch.bool) if among is None else among
    n = int(among.sum())
    released = round((1 - keep_ratio) * n)
    if released == 0:
        return among.clone()
    size = weight.detach().abs()
    cutoff = (size[among] if n < size.numel() else size.flatten()).kthvalue(released).values
    keep = among & (size > cutoff)
    ties = n - released - int(keep.sum())
    if ties > 0:
        keep[tuple((among & (size == cutoff)).nonzero()[:ties].T)] = True
    return keep


def total_mask(masks: Iterable[Bool[Tensor, "*shape"]]) -> Bool[Tensor, "*shape"]:
    """m^(1:t) = OR_i m^(i): the weights that belong to any of the tasks whose masks are given.

    Raises:
        ValueError: no mask.
    """
    masks = iter(masks)
    first = next(masks, None)
    if first is None:
        raise ValueError("total_mask was given no mask, so it cannot know their shape; allowed: at least one")
    total = first.clone()
    for mask in masks:
        total |= mask
    return total


def trainable(theta: Float[Tensor, "*shape"], total: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """theta (.) (1 - m^(1:t)), verbatim: the weights that no task owns yet, and zero in the place of all others.

    This says what may *move*. As the network of the next task it would be wrong: that reads the owned weights too.
    """
    return theta * (1 - total.to(theta.dtype))


def owned_by(owner: UInt8[Tensor, "*shape"], task: int) -> Bool[Tensor, "*shape"]:
    """m^(task), read off the owner index: the weights that this task keeps.

    Args:
        owner: 0 for a free weight, k for the k-th task that was learned.
        task: k, from 1; 0 gives the free weights.
    """
    return owner == task


def used_by(owner: UInt8[Tensor, "*shape"], task: int) -> Bool[Tensor, "*shape"]:
    """m^(1:task), read off the owner index in one go: the weights that are switched on when this task is asked."""
    return (owner != 0) & (owner <= task)


# ---- the learner -------------------------------------------------------------------------------------------


class PackNet(Learner):
    """Many tasks in one network, by pruning and freezing.

    Prunable are the weights of Linear and Conv layers (1d, 2d, 3d, transposed) and the input projections of attention.
    Everything else in the backbone (biases, norms, embeddings, recurrent layers) is trained with the first task and
    frozen after it. Heads are not pruned.

    Departures from the authors' code: the stated share is kept where weights tie (see `keep_mask`); attention's
    input projections, which their networks do not have, are pruned as three stacked linear layers; what an optimiser
    did to a frozen weight is undone, so that momentum, Adam and weight decay may be used.

    Args:
        backbone: any module from a batch to features that has a Linear or Conv layer.
        keep_ratio: share of the weights that a task trained, layer by layer, which it keeps; the paper's 1 - p.
            A number in (0, 1]; or a list of such, one a task in the order of learning; or a dict, one a layer by its
            name, see `capacity()`; or a function of the task's number (1 for the first that is learned) and the name
            of the layer; or "auto": the smallest share, for all layers alike, whose validation accuracy before
            re-training is at most `tolerance` below the unpruned network's, found by bisection to 1/128.
        retrain_epochs: passes after pruning; None for as many as before, 0 for none. (Authors: 10 after 20.)
        batchnorm: "frozen" after the first task, as in the paper, or "per-task": scale, shift and running statistics
            of each task's own, starting from those of the task before.
        tolerance: of "auto", as a share of the validation samples.
        min_free: a task that would find fewer free weights in the whole backbone is refused before it is trained.

    Raises:
        ValueError: a hyperparameter out of its range, or a network that cannot be packed; see `prunable`.
    """

    needs_task_id = True

    def __init__(
        self,
        backbone: nn.Module,
        keep_ratio: KeepRatio = 0.5,
        retrain_epochs: int | None = None,
        batchnorm: str = "frozen",
        tolerance: float = 0.01,
        min_free: int = 1,
    ) -> None:
        names = prunable(backbone) if isinstance(backbone, nn.Module) else {}
        super().__init__(
            backbone,
            keep_ratio=keep_ratio,
            retrain_epochs=retrain_epochs,
            batchnorm=batchnorm,
            tolerance=tolerance,
            min_free=min_free,
        )
        self._names = names
        _check_keep_ratio(keep_ratio, list(self._names))
        if retrain_epochs is not None and not _is_integer(retrain_epochs, 0):
            raise ValueError(
                f"retrain_epochs is {retrain_epochs!r}; allowed: integers from 0 up, or None for as many as before"
            )
        if batchnorm not in ("frozen", "per-task"):
            raise ValueError(f"batchnorm is {batchnorm!r}; allowed: 'frozen', 'per-task'")
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
            raise ValueError(f"tolerance is {tolerance!r}; allowed: a share of the validation samples, from 0 up to 1")
        if not _is_integer(min_free, 1):
            raise ValueError(f"min_free is {min_free!r}; allowed: integers from 1 up")
        self.keep_ratio, self.retrain_epochs, self.batchnorm = keep_ratio, retrain_epochs, batchnorm
        self.tolerance, self.min_free = tolerance, min_free
        self.owner = nn.Module()  # holds the owner index of each layer, see `owners`
        for layer, name in self._names.items():
            index = torch.zeros_like(backbone.get_parameter(name), dtype=torch.uint8, requires_grad=False)
            self.owner.register_buffer(flat(layer), index)
        self.norms = nn.ModuleDict()  # batchnorm="per-task": each task's tensors
        self._standing = 0  # number of the task whose network the raw weights are
        self._stepped = False  # whether an optimiser has moved anything for this task
        self._kept: dict[str, Tensor] = {}
        self._rest: list[nn.Parameter] = []  # what was frozen after the first task
        self._frozen = FrozenEntries()

    # ---- the algorithm -------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        """Train, prune, re-train, freeze.

        Raises:
            ValueError: see `Learner.learn`; too few free weights; "auto" without validation samples; the backbone was
                moved to another device without the learner.
            FloatingPointError: weights became NaN or infinite.
        """
        self.claim_free_weights(task)  # theta * (1 - m^(1:t)) may move, the rest may not
        fit()
        self.prune(self.smallest_share(task) if self.keep_ratio == "auto" else self.keep_ratio)
        self.retrain(fit)
        self.freeze()  # m^(1:t+1) = m^(1:t) OR m^(t+1)

    def claim_free_weights(self, task: Task) -> None:
        """From here on, the weights that no task owns may move: all for the first task; for later ones, from zero."""
        self._check_room()
        if self.keep_ratio == "auto" and not len(task.make("valid")):
            raise ValueError(
                f"keep_ratio='auto' needs validation samples, and task {task.id} has none; give valid=(x, y)"
            )
        self.tasks[task.id] = self.tasks.pop(task.id)  # number the tasks in the order in which they are learned
        self._settle()
        for norm in self._own_norms().values():
            norm.frozen, norm.training = False, self.training  # type: ignore[assignment]
        self._standing, self._stepped = len(self.learned) + 1, False
        self._frozen.release()
        for layer, weight in self._weights().items():
            if self.learned:
                owner = self.owners[layer]
                self._frozen.hold(weight, total_mask(owned_by(owner, k) for k in range(1, self._standing)))

    @torch.no_grad()
    def prune(self, keep_ratio: KeepRatio) -> None:
        """Keep the largest of the weights that this task trained, layer by layer; release the others, which become 0.

        A weight that is still exactly zero (its input is always dark, its unit silent) is not claimed while anything is
        released, as in the authors' code, where it never exceeds the cutoff. Only where the loop trained nothing at all
        does the share count zeros too, so that a plan can be tried out without training.

        Args:
            keep_ratio: as for the constructor, except "auto".
        """
        self._frozen.restore()
        self._frozen.release()
        weights = self._weights()
        free = {layer: owned_by(owner, 0) for layer, owner in self.owners.items()}
        trained = self._stepped or any(bool(weights[layer][free[layer]].any()) for layer in weights)
        for layer, weight in weights.items():
            if not torch.isfinite(weight).all():
                raise FloatingPointError(f"layer {layer!r} holds NaN or infinity; a smaller learning rate may help")
            share = _share(keep_ratio, self._standing, layer)
            self._kept[layer] = keep_mask(weight, share, among=free[layer])
            if trained and share < 1:
                self._kept[layer] &= weight != 0  # what never moved from zero holds nothing
            stays = total_mask([~free[layer], self._kept[layer]])  # m^(1:t) OR m^(t+1)
            weight.sub_(trainable(weight, stays))
            self._frozen.hold(weight, ~self._kept[layer])

    def retrain(self, fit: Fit) -> None:
        """Train what was kept for `retrain_epochs`: None means for as many epochs as `fit` takes by itself."""
        if self.retrain_epochs is None:
            fit()
        elif self.retrain_epochs > 0:
            fit(epochs=self.retrain_epochs)

    @torch.no_grad()
    def freeze(self) -> None:
        """The kept weights are this task's: its number goes into the owner index."""
        self._frozen.restore()
        self._frozen.release()
        for layer, kept in self._kept.items():
            self.owners[layer][kept] = self._standing
        self._kept = {}
        if self._current is not None:
            freeze(self.heads[str(self._current)])
            for name, tensor in self._norm_tensors().items():
                self.norms[str(self._current)].get_buffer(flat(name)).copy_(tensor)
        self._freeze_rest()

    def smallest_share(self, task: Task) -> float:
        """The smallest share of the weights just trained with which the validation accuracy stays within `tolerance`.

        Found by bisection, to 1/128, before any re-training; noted in the task's record.
        """
        goal = evaluate(self, task, "valid") - self.tolerance
        trained = {layer: weight.detach().clone() for layer, weight in self._weights().items()}
        enough, too_small = 1.0, 0.0
        while enough - too_small > 1 / 128:
            share = (enough + too_small) / 2
            with torch.no_grad():
                for layer, weight in self._weights().items():
                    free = owned_by(self.owners[layer], 0)
                    weight.masked_fill_(free & ~keep_mask(weight, share, among=free), 0)
            if evaluate(self, task, "valid") >= goal - 1e-12:
                enough = share
            else:
                too_small = share
            with torch.no_grad():
                for layer, weight in self._weights().items():
                    weight.copy_(trained[layer])
        self.tasks[task.id].notes["keep_ratio"] = enough
        return enough

    # ---- the forward pass ----------------------------------------------------------------------------------

    def features(self, x: Tensor, task_id: int | None) -> Tensor:
        assert task_id is not None
        self._weights()  # where they are is checked
        for module in self.backbone.modules():
            if module.training and getattr(module, "frozen", False):
                module.training = False  # whoever called backbone.train()
        number = self.number(task_id)
        if number == self._standing:
            return self.backbone(x)  # the free weights are this task's to train, or zero
        with evaluating(self._own_norms().values()):  # whose statistics are not this task's to move
            return functional_call(self.backbone, self.network_of(task_id), (x,), tie_weights=False)

    def number(self, task_id: int) -> int:
        """The task's owner index: 1 for the first that was learned."""
        return 1 + sum(record.finished for record in list(self.tasks.values())[: list(self.tasks).index(task_id)])

    def network_of(self, task_id: int) -> dict[str, Tensor]:
        """What a finished task's network differs in from the raw one, by name: weights with later ones switched off."""
        number = self.number(task_id)
        tensors = {
            id(weight): switched_off(weight, used_by(self.owners[layer], number))
            for layer, weight in self._weights().items()
        }
        network = {
            name: tensors[id(weight)] for name, weight in every_name(self.backbone).items() if id(weight) in tensors
        }
        for name in self._norm_tensors():
            network[name] = self.norms[str(task_id)].get_buffer(flat(name))
        return network

    # ---- what must not move --------------------------------------------------------------------------------

    def protect(self, optimizer: Optimizer) -> Optimizer:
        known = any(learner is self for learner in getattr(optimizer, "_protected_by", ()))
        optimizer = super().protect(optimizer)
        if not known:
            optimizer.register_step_pre_hook(lambda *_: self._frozen.watch(optimizer))
            optimizer.register_load_state_dict_post_hook(lambda *_: optimizer.__dict__.pop("_cleared_for", None))
        return optimizer

    def edit_gradients(self) -> None:
        if self._current is None:  # between tasks nothing moves: optimisers pass over what has no gradient
            self._frozen.release()
            self._rest = list(self.backbone.parameters())
        for parameter in self._rest:
            parameter.grad = None
        self._frozen.edit_gradients()

    def after_step(self) -> None:
        self._stepped = True
        self._frozen.restore()

    def restored(self) -> None:
        for task_id in self.learned:
            freeze(self.heads[str(task_id)])
        if self.learned:
            self._freeze_rest()
        self._settle()

    def _freeze_rest(self) -> None:
        """Freeze what is not pruned; after every task, for with batchnorm="per-task" the norms thaw in between."""
        packed = {id(weight) for weight in self._weights().values()}
        own = {id(norm) for norm in self._own_norms().values()}
        self._rest = []
        for module in self.backbone.modules():
            if id(module) not in own:
                self._rest += [p for p in module.parameters(recurse=False) if id(p) not in packed]
            if id(module) in own or any(True for _ in module.buffers(recurse=False)):
                module.frozen = True  # type: ignore[assignment]
                module.training = False  # running statistics stay as they are
        for parameter in self._rest:
            parameter.requires_grad_(False)
        for parameter in self.backbone.parameters():
            parameter.grad = None

    @torch.no_grad()
    def _settle(self) -> None:
        """Make the raw network that of the task learned last: free weights zero, its own norms in place."""
        self._standing = len(self.learned)
        if self.learned:
            for layer, weight in self._weights().items():
                weight.masked_fill_(owned_by(self.owners[layer], 0), 0)
            for name, tensor in self._norm_tensors().items():
                tensor.copy_(self.norms[str(self.learned[-1])].get_buffer(flat(name)))

    # ---- what it costs, and taking it elsewhere ------------------------------------------------------------

    @property
    def owners(self) -> dict[str, Tensor]:
        """The owner index of each layer, by its name: uint8, of the shape of its weight; 0 for free."""
        return {layer: self.owner.get_buffer(flat(layer)) for layer in self._names}

    def grow(self, task: TaskRecord) -> None:
        self._check_room()
        super().grow(task)
        if self.batchnorm == "per-task":
            tensors = nn.Module()
            for name, tensor in self._norm_tensors().items():
                tensors.register_buffer(flat(name), tensor.detach().clone())
            self.norms[str(task.id)] = tensors

    def capacity(self) -> dict[str, Any]:
        """As of every method, and: "prunable" and "free", numbers of weights in the backbone; "weights" in each of
        "tasks", how many it owns; "layers", by name, each with its "weights", "free", and "tasks": how many each owns.
        """
        layers = {}
        for layer, owner in self.owners.items():
            counts = torch.bincount(owner.flatten(), minlength=MOST_TASKS + 1).tolist()
            tasks = {task_id: counts[self.number(task_id)] for task_id in self.learned}
            layers[layer] = {
                "weights": owner.numel(),
                "free": owner.numel() - sum(tasks.values()),
                "tasks": tasks,
            }
        capacity = super().capacity()
        capacity["prunable"] = sum(layer["weights"] for layer in layers.values())
        capacity["free"] = sum(layer["free"] for layer in layers.values())
        capacity["layers"] = layers
        for task_id in self.learned:
            capacity["tasks"][task_id]["weights"] = sum(layer["tasks"][task_id] for layer in layers.values())
        return capacity

    def extra_bytes(self) -> int:
        """Bytes of the owner index and of the norms of each task."""
        stored = [*self.owner.buffers(), *self.norms.buffers()]
        return sum(tensor.nbytes for tensor in stored)

    def export(self, task_id: int | None = None, sparse: bool = False) -> nn.Module:
        """That task's network alone, in evaluation mode: its weights and those it reads, zero for all others.

        Args:
            sparse: keep the weights as sparse (COO) tensors, made dense for each call: smaller, slower; the file of
                such a module can be read where minicl is installed. A dense one is plain PyTorch.

        Raises:
            ValueError: a task id that is missing or not learned.
        """
        task_id = self.check_finished(task_id)
        assert task_id is not None
        network = plain(copy.deepcopy(self.backbone))
        places = every_name(network)
        with torch.no_grad():
            for name, value in self.network_of(task_id).items():
                places[name].copy_(value)
        head = plain(copy.deepcopy(self.heads[str(task_id)]))
        return nn.Sequential(SparseNetwork(network, list(self._names.values())) if sparse else network, head).eval()

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Owners in as many bits as the number of tasks needs, what is used in several places once, heads in a row."""
        twice = self._aliases()
        packed = {name: tensor for name, tensor in state.items() if name not in twice}
        for layer in self._names:
            name = f"owner.{flat(layer)}"
            packed[name] = pack_owners(state[name], len(self.learned).bit_length())
        heads = [packed.pop(name).flatten() for name in self.heads.state_dict(prefix="heads.")]
        return {**packed, "heads": torch.cat(heads)} if heads else packed

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state = dict(tensors)
        for layer, owner in self.owners.items():
            name = f"owner.{flat(layer)}"
            if name in state:
                state[name] = unpack_owners(name, state[name], owner.shape)
        state.update({name: state[first] for name, first in self._aliases().items() if first in state})
        heads = self.heads.state_dict(prefix="heads.")
        if "heads" in state and state["heads"].numel() == sum(tensor.numel() for tensor in heads.values()):
            parts = state.pop("heads").split([tensor.numel() for tensor in heads.values()])
            state.update({name: part.view_as(heads[name]) for name, part in zip(heads, parts, strict=True)})
        return state

    def _aliases(self) -> dict[str, str]:
        """Further names of tensors that are used in several places of the backbone, and their first."""
        first: dict[int, str] = {}
        named = [*self.backbone.named_parameters("backbone", remove_duplicate=False)]
        named += [*self.backbone.named_buffers("backbone", remove_duplicate=False)]  # type: ignore[list-item]
        return {name: first[id(t)] for name, t in named if first.setdefault(id(t), name) != name}

    def _weights(self) -> dict[str, nn.Parameter]:
        weights = {}
        for layer, name in self._names.items():
            weight, owner = self.backbone.get_parameter(name), self.owner.get_buffer(flat(layer))
            if weight.device != owner.device or weight.shape != owner.shape:
                raise ValueError(
                    f"layer {layer!r} is on {weight.device} with shape {tuple(weight.shape)}, the index of its owners "
                    f"on {owner.device} with shape {tuple(owner.shape)}; "
                    "move the learner as a whole, with learner.to(device)"
                )
            weights[layer] = weight
        return weights

    def _own_norms(self) -> dict[str, nn.Module]:
        """The norms of which every task has its own, by name: none, unless batchnorm="per-task"."""
        if self.batchnorm == "frozen":
            return {}
        return {name: module for name, module in self.backbone.named_modules() if isinstance(module, NORMS)}

    def _norm_tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}" if name else key: tensor
            for name, norm in self._own_norms().items()
            for key, tensor in (*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False))
        }

    def _check_room(self) -> None:
        """Refuse a task that would find no place, or no share to keep, before anything is made for it."""
        number = len(self.learned) + 1
        if number > MOST_TASKS:
            raise ValueError(
                f"this would be task number {number}, and an owner is one byte: PackNet holds {MOST_TASKS} tasks at "
                "most; start another PackNet"
            )
        owners = self.owners
        free = {layer: int((owner == 0).sum()) for layer, owner in owners.items()}
        if sum(free.values()) < self.min_free:
            raise ValueError(
                f"task number {number} would get {sum(free.values())} free weights of "
                f"{sum(owner.numel() for owner in owners.values())}; at least min_free={self.min_free} are asked for. "
                "What helps: a smaller keep_ratio for the tasks before it (learn them again), a wider backbone, or "
                "minicl.FeatureExtraction, which needs a head alone"
            )
        for layer, n in free.items():
            if self.keep_ratio == "auto":
                break
            share = _share(self.keep_ratio, number, layer)
            if number == 1 and round((1 - share) * n) == n:
                raise ValueError(
                    f"keep_ratio {share} would keep none of the {n} weights of layer {layer!r}, and no signal would "
                    f"pass it; allowed: more than {0.5 / n:.3g} there"
                )


# ---- the shares that tasks keep ---------------------------------------------------------------------------


def _share(keep_ratio: Any, number: int, layer: str) -> float:
    """The share that the task of this number keeps in this layer."""
    if isinstance(keep_ratio, Mapping):
        return _share(keep_ratio[layer], number, layer)
    if isinstance(keep_ratio, Sequence):
        if number > len(keep_ratio):
            raise ValueError(
                f"keep_ratio has {len(keep_ratio)} values, one a task, and this is task number {number}; give one more"
            )
        return _share(keep_ratio[number - 1], number, layer)
    if callable(keep_ratio):
        share = keep_ratio(number, layer)
        _check_share(share, f"keep_ratio({number}, {layer!r})")
        return share
    return keep_ratio


def _check_keep_ratio(keep_ratio: Any, layers: list[str], name: str = "keep_ratio") -> None:
    if isinstance(keep_ratio, Mapping):
        if set(keep_ratio) != set(layers):
            raise ValueError(
                f"{name} names the layers {sorted(map(str, keep_ratio))}; allowed: one share for each of {layers}"
            )
        for layer, value in keep_ratio.items():
            _check_keep_ratio(value, layers, f"{name}[{layer!r}]")
    elif isinstance(keep_ratio, Sequence) and not isinstance(keep_ratio, str):
        if not keep_ratio:
            raise ValueError(f"{name} is empty; allowed: one share a task")
        for i, value in enumerate(keep_ratio):
            _check_keep_ratio(value, layers, f"{name}[{i}]")
    elif not callable(keep_ratio) and not (keep_ratio == "auto" and name == "keep_ratio"):
        _check_share(keep_ratio, name)


def _check_share(share: Any, name: str) -> None:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(
            f"{name} is {share!r}; allowed: a share in (0, 1], the paper's 1 - p. For the constructor also: a list of "
            "shares, one a task; a dict, one a layer; a function of the task's number and the layer's name; or 'auto'"
        )


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
