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

from ..learner import Fit, Learner, TaskRecord
from ..tasks import Task
from .quadratic import check_number

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BETWEEN = (
    *(nn.ReLU, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)


def proximal_step(
    theta: Float[Tensor, "units weights"], anchor: Float[Tensor, "units weights"], threshold: Float[Tensor, " units"]
) -> Float[Tensor, "units weights"]:
    """argmin_z 1/2 |z - theta_g|^2 + threshold_g |z - anchor_g|, for the group g of each unit (Eqs. 4 and 5).

    It is anchor + (1 - threshold / |theta - anchor|)_+ (theta - anchor): what is within the threshold becomes exactly
    the anchor, all else comes nearer by the threshold. With the anchor 0 it is group Lasso's step.
    """
    away = theta - anchor
    norm = away.norm(dim=1).clamp(min=torch.finfo(theta.dtype).tiny)
    return anchor + (1 - threshold / norm).clamp(min=0)[:, None] * away


def updated_importance(
    omega: Float[Tensor, " units"], activation: Float[Tensor, " units"], eta: float
) -> Float[Tensor, " units"]:
    """Omega_g <- eta Omega_g + mean activation of the unit after its ReLU, over images and positions (Eq. 3)."""
    return eta * omega + activation


class AGSCL(Learner):
    """Hold the units that earlier tasks used, and pull the others to zero until they are needed.

    L(theta) + mu sum_{g in G0} |theta_g| + lam sum_{g not in G0} Omega_g |theta_g - theta_g^{t-1}| (Eq. 2).

    A group theta_g is what comes into a unit, bias included; G0 are the units that no earlier task used, Omega_g = 0.
    The loss is the task's alone. After each step of the optimiser, every group takes a proximal step with the learning
    rate of that optimiser. After each task the unused units are cut off from all units above them, and a share
    `rho` of them starts again from new weights; from then on nothing flows from them into units that earlier tasks use.

    Where this differs from the authors' code: the proximal step follows each step, as in the formula, not each epoch,
    so `mu` and `lam` are smaller by the number of steps in an epoch. The paper has a head a task. Where heads are
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

    def __init__(
        self, backbone: nn.Module, mu: float = 0.003, lam: float = 1.0, eta: float = 0.9, rho: float = 0.3
    ) -> None:
        check_number("mu", mu, least=0)
        check_number("lam", lam, least=0)
        for name, value in (("eta", eta), ("rho", rho)):
            check_number(name, value, least=0)
            if value > 1:
                raise ValueError(f"{name} is {value!r}; allowed: from 0 to 1")
        super().__init__(backbone, mu=mu, lam=lam, eta=eta, rho=rho)
        self.mu, self.lam, self.eta, self.rho = mu, lam, eta, rho
        self._names, self._relus = chain(backbone)
        self.omega = nn.Module()  # the importance of each unit, by layer
        for name in self._names:
            self._make_room(name, self.backbone.get_submodule(name))
        self._rates: dict[int, float] = {}
        self._anchors: dict[str, Tensor] | None = None  # while a task is learned: where every group was before it

    def learn(self, task: Task, fit: Fit) -> None:
        self._anchors = {name: group(layer).detach().clone() for name, layer in self._held()}
        try:
            fit()
        finally:
            self._anchors = None
        self.weigh(task)
        self.cut_and_renew(task)

    # ---- while a task is learned -------------------------------------------------------------------------------

    def _before_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self._rates = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
        return super()._before_optimizer_step(optimizer, args, kwargs)

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
                put(layer, proximal_step(group(layer), anchor, threshold))
                if below is not None and self.learned and name != "heads.shared":
                    columns(layer, below).mul_(joined(used, below, layer))
            if not name.startswith("heads."):
                below = used

    # ---- when a task is learned --------------------------------------------------------------------------------

    @torch.no_grad()
    def weigh(self, task: Task) -> None:
        """Measure how much each unit answers to the images of the task, and add that to its importance."""
        train = task.make("train")
        sums: dict[str, Tensor] = {}
        hooks = [
            self.backbone.get_submodule(relu).register_forward_hook(
                lambda _m, _i, out, name=name: seen.update({name: out})
            )
            for name, relu in zip(self._names, self._relus, strict=True)
        ]
        seen: dict[str, Tensor] = {}
        training = self.training
        self.eval()
        try:
            for x in train.x.split(500):
                logits = self(x.to(self.device), task.id if task.scenario == "task" else None)
                if task.scenario != "task":
                    heads = [f"heads.{name}" for name in self.heads]
                    sizes = [head.out_features for head in self.heads.values()]
                    seen.update(zip(heads, logits.abs().split(sizes, 1), strict=True))
                for name, out in seen.items():
                    activation = out.flatten(2).mean(2) if out.ndim > 2 else out
                    sums[name] = activation.sum(0) / len(train) + sums.get(name, 0)
        finally:
            self.train(training)
            for hook in hooks:
                hook.remove()
        for name, activation in sums.items():
            self.importance(name).copy_(updated_importance(self.importance(name), activation, self.eta))

    @torch.no_grad()
    def cut_and_renew(self, task: Task) -> None:
        """Nothing reads a unit that no task used; a share of those units starts again."""
        below: Tensor | None = None
        for name in self._names:
            layer, used = self.backbone.get_submodule(name), self.importance(name) > 0
            if below is not None:
                read = columns(layer, below)
                read.mul_(below.to(read.dtype)[:, None])
            unused = (~used).nonzero().flatten()
            renewed = unused[torch.randperm(len(unused))[: round(self.rho * len(unused))].to(unused.device)]
            fresh = copy.deepcopy(layer)
            fresh.reset_parameters()  # type: ignore[operator]
            rows = group(layer)
            rows[renewed] = group(fresh)[renewed]
            put(layer, rows)
            below = used
        assert below is not None
        heads = [str(task.id)] if task.scenario == "task" else list(self.heads)
        for head in heads:
            read = columns(self.heads[head], below)
            read.mul_(below.to(read.dtype)[:, None])

    # ---- layers, units, importances ----------------------------------------------------------------------------

    def _held(self) -> Iterator[tuple[str, Any]]:
        """The layers whose units are held, from the bottom up: those of the backbone, and heads that tasks share."""
        for name in self._names:
            yield name, self.backbone.get_submodule(name)
        if self.scenario != "task":
            for name, head in self.heads.items():
                yield f"heads.{name}", head

    def importance(self, name: str) -> Tensor:
        """Omega of the units of a layer, by the layer's name in the backbone, or "heads.<name>"; shape (units,)."""
        return self.omega.get_buffer(name.replace(".", "/"))

    def _make_room(self, name: str, layer: nn.Module) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.omega.register_buffer(name.replace(".", "/"), weight.detach().new_zeros(len(weight)))

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
        layers = [group(layer) for _, layer in self._held()] if self.learned else []
        capacity["bytes_while_learning"] = sum(g.nbytes for g in layers)
        return capacity

    def extra_bytes(self) -> int:
        """Bytes of the importances: one number a unit."""
        return sum(omega.nbytes for omega in self.omega.buffers())


def chain(backbone: nn.Module) -> tuple[list[str], list[str]]:
    """The names of the Linear and Conv layers in order, and of the ReLU that follows each.

    Raises:
        ValueError: not a sequence of layers that AGS-CL knows.
    """
    names: list[str] = []
    relus: list[str] = []
    advice = (
        "allowed: an nn.Sequential of Linear or Conv layers, each followed by nn.ReLU, with pooling, Flatten and "
        "Dropout between them, such as minicl.mlp(64, 256, 256)"
    )
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Sequential):
            continue
        place = f"layer {name!r}, a {type(module).__name__},"
        if isinstance(module, LAYERS):
            if len(relus) < len(names):
                raise ValueError(f"{place} follows {names[-1]!r} without a ReLU between them; {advice}")
            if getattr(module, "groups", 1) != 1:
                raise ValueError(f"{place} has groups; {advice}")
            names.append(name)
        elif isinstance(module, nn.ReLU):
            if len(relus) == len(names):
                raise ValueError(f"{place} follows no Linear or Conv layer; {advice}")
            relus.append(name)
        elif not isinstance(module, BETWEEN):
            raise ValueError(
                f"{place} is nothing that AGS-CL can work with; {advice}"
                if name
                else f"the backbone is a {type(module).__name__}; {advice}"
            )
    if not names or len(relus) < len(names):
        raise ValueError(f"the backbone does not end in a layer with a ReLU; {advice}")
    return names, relus


def group(layer: Any) -> Tensor:
    """What comes into each unit of a layer, bias last: shape (units, weights)."""
    weight: Tensor = layer.weight.detach().flatten(1)
    return weight.clone() if layer.bias is None else torch.cat([weight, layer.bias.detach()[:, None]], 1)


def put(layer: Any, rows: Tensor) -> None:
    """The inverse of `group`."""
    n = layer.weight[0].numel()
    layer.weight.copy_(rows[:, :n].view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(rows[:, n])


def columns(layer: Any, below: Tensor) -> Tensor:
    """The weights of a layer by unit below, a view of shape (units, units below, weights of each)."""
    columns: Tensor = layer.weight.detach().view(len(layer.weight), len(below), -1)
    return columns


def joined(used: Tensor, below: Tensor, layer: Any) -> Tensor:
    """1 where a weight may be other than zero, 0 where it would lead from an unused unit to a used one."""
    return (~used[:, None] | below).to(layer.weight.dtype)[:, :, None]
