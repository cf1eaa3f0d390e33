"""AGS-CL, adaptive group sparsity: Jung, Ahn, Cha and Moon 2020, arXiv 2003.13726.

Units, not weights: a unit that answered to earlier tasks is held where it is, one that answered to none is pulled to
zero until it is needed. Both by a proximal step, which reaches "not moved at all" and "zero" exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks, distributed
from ..evaluation import feeder
from ..freezing import evaluating
from ..layers import by_input_unit, chain, incoming, set_incoming
from ..learner import Fit, Learner, TaskRecord
from ..tasks import Task
from ..tensors import TensorDict

# ---- the equations ---------------------------------------------------------------------------------------------------


def proximal_step(
    theta: Float[Tensor, "units weights"], anchor: Float[Tensor, "units weights"], threshold: Float[Tensor, " units"]
) -> Float[Tensor, "units weights"]:
    """argmin_z 1/2 |z - theta_g|^2 + threshold_g |z - anchor_g|, for each unit's group g (the paper's Eqs. 4 and 5).

    It is anchor + (1 - threshold / |theta - anchor|)_+ (theta - anchor): what is within the threshold becomes exactly
    the anchor, all else comes nearer by the threshold. With the anchor 0 it is group Lasso's step.
    """
    away = theta - anchor
    norm = away.norm(dim=1).clamp(min=torch.finfo(theta.dtype).tiny)
    return anchor + (1 - threshold / norm).clamp(min=0)[:, None] * away


def updated_importance(
    omega: Float[Tensor, " units"], activation: Float[Tensor, " units"], eta: float
) -> Float[Tensor, " units"]:
    """Omega_g <- eta Omega_g + the unit's mean activation after its ReLU, over images and positions (its Eq. 3)."""
    return eta * omega + activation


# ---- the learner -----------------------------------------------------------------------------------------------------


class AGSCL(Learner):
    """Hold the units that earlier tasks used, and pull the others to zero until they are needed.

    L(theta) + mu sum_{g in G0} |theta_g| + lam sum_{g not in G0} Omega_g |theta_g - theta_g^{t-1}| (the paper's Eq. 2).

    A group theta_g is what comes into a unit, bias included; G0 are the units that no earlier task used, Omega_g = 0.
    The loss is the task's alone. After each step of the optimiser, every group takes a proximal step with the learning
    rate of that optimiser. After each task the unused units are cut off from all units above them, and a share
    `rho` of them starts again from new weights; from then on nothing flows from them into units that earlier tasks use.

    Where this differs from the authors' code: the proximal step follows each step, as in the formula, not each epoch,
    so `mu` and `lam` are smaller by the number of steps in an epoch. The paper has a head per task. Where heads are
    shared, their outputs are units as well, and their mean absolute logits are importances; the head of "domain" may
    learn to read new units, the old rows of "class" may not.

    Args:
        backbone: layers one after another (nn.Sequential) of Linear or Conv, each followed by a ReLU, with pooling,
            Flatten and Dropout between them.
        mu: pull towards zero of units that no earlier task used. A step takes `mu` times the learning rate off their
            length: 0.5 was used with Adam 3e-3 on digits, which leaves nothing of them at a learning rate of 0.1.
        lam: pull of used units towards where they were. 1 was the best over four streams of digits, on
            validation samples.
        eta: how much of the importance before a task is left after it.
        rho: share of the unused units that get new weights after a task.

    Raises:
        ValueError: a hyperparameter out of its range; a backbone that holds another kind of layer.
    """

    needs_classes = True

    def __init__(
        self, backbone: nn.Module, mu: float = 0.003, lam: float = 1.0, eta: float = 0.9, rho: float = 0.3
    ) -> None:
        mu, lam = checks.number("mu", mu), checks.number("lam", lam)
        eta, rho = checks.number("eta", eta, most=1), checks.number("rho", rho, most=1)
        super().__init__(backbone, mu=mu, lam=lam, eta=eta, rho=rho)
        self.mu, self.lam, self.eta, self.rho = mu, lam, eta, rho
        self._names, self._relus = chain(backbone, "AGS-CL")
        self.omega = TensorDict()  # the importance of each unit, by layer
        for name in self._names:
            self._make_room(name, self.backbone.get_submodule(name))
        self._rates: dict[int, float] = {}
        self._anchors: dict[str, Tensor] | None = None  # while a task is learned: where every group was before it

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        task.needs("train")  # importances are measured on it
        self._anchors = {name: incoming(layer).detach().clone() for name, layer in self._held()}
        try:
            fit()
        finally:
            self._anchors = None
        self.update_importance(task)
        self.prune_and_reinitialize(task)

    # ---- around a step -----------------------------------------------------------------------------------------------

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """The learning rates that the proximal step will use."""
        self._rates = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}

    @torch.no_grad()
    def after_step(self) -> None:
        """The proximal step of every group that the optimiser has moved."""
        if self._anchors is None:
            return
        below: Tensor | None = None  # which units of the layer below are used
        for name, layer in self._held():
            omega = self.importance(name)
            used = omega > 0
            rate = self._rates.get(id(layer.weight))
            if rate is not None:
                anchor = torch.where(used[:, None], self._anchors[name], 0)
                threshold = rate * torch.where(used, self.lam * omega, self.mu)
                if name.startswith("heads."):  # a head that is read by no unit is not made sparse
                    threshold = threshold * used
                set_incoming(layer, proximal_step(incoming(layer), anchor, threshold))
                if below is not None and self.learned and name != "heads.shared":
                    by_input_unit(layer, below).mul_(allowed(used, below, layer))
            if not name.startswith("heads."):
                below = used

    # ---- the algorithm, after training -------------------------------------------------------------------------------

    @torch.no_grad()
    def update_importance(self, task: Task) -> None:
        """Measure how much each unit answers to the images of the task, and add that to its importance."""
        train, feed = task.make("train"), feeder(self)
        sums: dict[str, Tensor] = {}
        hooks = [
            self.backbone.get_submodule(relu).register_forward_hook(
                lambda _m, _i, out, name=name: seen.update({name: out})
            )
            for name, relu in zip(self._names, self._relus, strict=True)
        ]
        seen: dict[str, Tensor] = {}
        try:
            with evaluating(self):
                for batch in train.batches(500):
                    logits = self(feed(batch.x), task.id_at_test)
                    if task.scenario != "task":
                        heads = [f"heads.{name}" for name in self.heads]
                        sizes = [head.out_features for head in self.heads.values()]
                        seen.update(zip(heads, logits.abs().split(sizes, 1), strict=True))
                    for name, out in seen.items():
                        activation = out.flatten(2).mean(2) if out.ndim > 2 else out
                        sums[name] = activation.sum(0) / len(train) + sums.get(name, 0)
        finally:
            for hook in hooks:
                hook.remove()
        distributed.average(sums.values())
        for name, activation in sums.items():
            self.importance(name).copy_(updated_importance(self.importance(name), activation, self.eta))

    @torch.no_grad()
    def prune_and_reinitialize(self, task: Task) -> None:
        """Nothing reads a unit that no task used; a share of those units starts again."""
        below: Tensor | None = None
        for name in self._names:
            layer, used = self.backbone.get_submodule(name), self.importance(name) > 0
            if below is not None:
                read = by_input_unit(layer, below)
                read.mul_(below.to(read.dtype)[:, None])
            unused = (~used).nonzero().flatten()
            renewed = unused[torch.randperm(len(unused))[: round(self.rho * len(unused))].to(unused.device)]
            fresh = copy.deepcopy(layer)
            fresh.reset_parameters()  # type: ignore[operator]
            rows = incoming(layer)
            rows[renewed] = incoming(fresh)[renewed]
            set_incoming(layer, rows)
            below = used
        assert below is not None
        heads = [str(task.id)] if task.scenario == "task" else list(self.heads)
        for head in heads:
            read = by_input_unit(self.heads[head], below)
            read.mul_(below.to(read.dtype)[:, None])

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def _held(self) -> Iterator[tuple[str, Any]]:
        """The layers whose units are held, from the bottom up: those of the backbone, and heads that tasks share."""
        for name in self._names:
            yield name, self.backbone.get_submodule(name)
        if self.scenario != "task":
            for name, head in self.heads.items():
                yield f"heads.{name}", head

    def importance(self, name: str) -> Tensor:
        """Omega of the units of a layer, by the layer's name in the backbone, or "heads.<name>"; shape (units,)."""
        return self.omega[name]

    def _make_room(self, name: str, layer: nn.Module) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.omega[name] = weight.detach().new_zeros(len(weight))

    def grow(self, task: TaskRecord) -> None:
        before = set(self.heads)
        super().grow(task)
        if task.scenario != "task":
            for name in set(self.heads) - before:
                self._make_room(f"heads.{name}", self.heads[name])

    def capacity(self) -> dict[str, Any]:
        """As of every method; "units" and "free", numbers of units of the backbone, all and those that no task used;
        "bytes_while_learning", the copy of the weights that the next task would need."""
        capacity = super().capacity()
        omegas = [self.importance(name) for name in self._names]
        capacity["units"] = sum(len(o) for o in omegas)
        capacity["free"] = sum(int((o == 0).sum()) for o in omegas)
        layers = [incoming(layer) for _, layer in self._held()] if self.learned else []
        capacity["bytes_while_learning"] = sum(g.nbytes for g in layers)
        return capacity

    def extra_bytes(self) -> int:
        """Bytes of the importances: one number per unit."""
        return self.omega.nbytes


def allowed(used: Tensor, below: Tensor, layer: Any) -> Tensor:
    """1 where a weight may be other than zero, 0 where it would lead from an unused unit to a used one."""
    return (~used[:, None] | below).to(layer.weight.dtype)[:, :, None]
