"""Progressive Neural Networks: Rusu et al. 2016, arXiv 1606.04671. Every task adds a column; earlier ones never move.

Symbols, as in the paper: k is the new column, j < k the earlier ones; h_i are the activations of layer i, W_i a
column's own weights, U_i its laterals; h_{i-1}^(<k) are the activations of all earlier columns, side by side.

Where the paper is silent or says two things:

- A column is a copy of any module. Its layers are the Linear and Conv modules in it, by name; normalisation,
  activation, dropout and pooling belong to f. So a lateral is added before them (BatchNorm normalises the sum), and
  h_{i-1} is what layer i is given, whatever the graph. Layers that are called several times are matched call by call.
- A layer that reads the network's own input has no lateral: no weight lies between, but those of norms and activations.
  Nor have layers that are no Linear or Conv (recurrent ones, embeddings), and those whose weights are used by the
  module around them without a call (nn.MultiheadAttention). `capacity()["without_laterals"]` names them all.
- V projects to n_i units, as the paper's text has it; its formula says n_{i-1}. So an adapter into a head of two
  classes is small, however wide the features are.
- The U^(k:j) of a layer stand side by side in one weight, so that one product is the whole sum; so do the parts of V.
  Each starts as PyTorch starts a layer of its own. With smaller starts, and with alpha below 0.1, validation accuracy
  rose more slowly.
- Only W has a bias.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..freezing import parameters_of
from ..learner import Fit, TaskRecord
from ..networks import is_initial
from ..tasks import Task
from .columned import ColumnedNetwork
from .columns import HEAD, Column, axis, layers_at, like, paths_of, pointwise, some_activation, unseen, width

Map = Callable[[Tensor], Tensor]

# ---- the equations -------------------------------------------------------------------------------------------------


def lateral_sum(
    W: Map,
    h: Float[Tensor, "batch *inputs"],
    U: Map,
    earlier: Float[Tensor, "batch *all_inputs"],
) -> Float[Tensor, "batch *outputs"]:
    """W_i^(k) h_{i-1}^(k) + sum_{j<k} U_i^(k:j) h_{i-1}^(j): the argument of f in the paper's Eq. 1.

    Args:
        W: layer i of column k, a linear map (and its bias, if it has one).
        h: h_{i-1}^(k), what that layer is given.
        U: the laterals [U^(k:1) ... U^(k:k-1)], one linear map without bias.
        earlier: h_{i-1}^(<k), what layer i is given in the columns 1 ... k-1,
            side by side (see `side_by_side`).
    """
    return W(h) + U(earlier)


def adapter(
    U: Map,
    V: Map,
    alpha: Float[Tensor, ""],
    earlier: Float[Tensor, "batch *all_inputs"],
    f: Map,
) -> Float[Tensor, "batch *outputs"]:
    """U_i^(k:j) f( V_i^(k:j) alpha_{i-1}^(<k) h_{i-1}^(<k) ): the lateral term of the paper's Eq. 2.

    Args:
        U: linear map without bias from the adapter's hidden units to layer i.
        V: linear map without bias onto the hidden units; for maps a 1x1 convolution.
        alpha: a learned scalar.
        earlier: h_{i-1}^(<k), side by side (see `side_by_side`).
        f: the non-linearity.
    """
    # V alpha h = alpha V h, and alpha's gradient then needs no product with V.
    return U(f(alpha * V(earlier)))


def side_by_side(activations: Sequence[Any], layer: nn.Module) -> Any:
    """h^(<k) = [h^(1) ... h^(k-1)], the way `layer` reads it: features last for a Linear, channels for a Conv."""
    at, groups = axis(layer), getattr(layer, "groups", 1)
    if groups == 1:
        return torch.cat(list(activations), at)  # (batch, columns x inputs, ...)
    parts = [h.unflatten(at, (groups, -1)) for h in activations]  # (batch, groups, inputs / groups, ...) each
    return torch.stack(parts, at - 1).flatten(at - 2, at)  # (batch, groups x columns x inputs / groups, ...)


# ---- the algorithm ---------------------------------------------------------------------------------------------------


class LinearLateral(nn.Module):
    """The paper's Eq. 1 for one layer of one column, with `n` columns before it."""

    def __init__(self, layer: nn.Module, n: int) -> None:
        super().__init__()
        self.U = like(layer, width(layer)[0], columns=n)

    def forward(self, W: Map, h: Tensor, earlier: Sequence[Tensor], **more: Any) -> Tensor:
        U, W = (partial(self.U, **more), partial(W, **more)) if more else (self.U, W)
        return lateral_sum(W, h, U, side_by_side(earlier, self.U))


class AdapterLateral(nn.Module):
    """The paper's Eq. 2 for one layer of one column, with `n` columns before it and the non-linearity `f`."""

    def __init__(self, layer: nn.Module, n: int, f: nn.Module) -> None:
        super().__init__()
        n_in, n_out = width(layer)
        self.V = pointwise(layer, n_in, columns=n)
        self.U = like(layer, n_out)
        weight: Any = self.U.weight
        self.alpha = nn.Parameter(torch.empty(()).uniform_(0.1, 1.0).to(weight))  # the authors draw 1, 0.1 or 0.01
        self.f = f.to(weight)

    def forward(self, W: Map, h: Tensor, earlier: Sequence[Tensor], **more: Any) -> Tensor:
        U, W = (partial(self.U, **more), partial(W, **more)) if more else (self.U, W)
        return W(h) + adapter(U, self.V, self.alpha, side_by_side(earlier, self.V), self.f)


class PNN(ColumnedNetwork):
    """Progressive Neural Networks: a new column for each task, which may read every column before it.

    A column is a copy of the backbone, whatever it is. Column 1 starts from the weights that the backbone comes with.

    Args:
        backbone: the template of a column. It is copied, not trained.
        adapter: "linear" for the plain sum, the paper's Eq. 1; "mlp" for its Eq. 2.
        start: of the later columns: "random" draws new weights, where a module has `reset_parameters`; "given" are
            those of the backbone, as for column 1. None: "random" for networks from `minicl.mlp` and `minicl.cnn` that
            nobody has trained, "given" for all others, which may be pretrained. What does not require gradients stays
            as it is given.

    Attributes:
        columns: a `Column` per task, by task id; those of finished tasks hold no parameters, and stay in evaluation
            mode. What later tasks read of a task that was forgotten has a negative number.

    Raises:
        ValueError: an unknown adapter or start, a backbone without parameters, or one that was scripted.
    """

    forward_alone = True

    def __init__(self, backbone: nn.Module, adapter: str = "linear", start: str | None = None) -> None:
        checks.one_of("adapter", adapter, ("linear", "mlp"))
        if start is not None:
            checks.one_of("start", start, ("given", "random"))
        super().__init__(backbone, adapter=adapter, start=start)
        self.adapter, self.start = adapter, start

    def learn(self, task: Task, fit: Fit) -> None:
        self.drop_unfinished(self.tasks[task.id])
        fit()

    def grow(self, task: TaskRecord) -> None:
        """Add a task's column, its laterals from the columns before it, and its head."""
        super().grow(task)
        for key, value in {"columns": list(self.tasks), **(self._found or unseen(self.template.network))}.items():
            task.notes.setdefault(key, value)
        for name, notes in task.notes.get("forgotten", {}).items():
            if name not in self.columns:
                self.columns[name] = self._new_column(name, notes)
        heads = [self.heads[str(task.id)]] if task.n_outputs is not None else []
        self.columns[str(task.id)] = self._new_column(str(task.id), task.notes, *heads)

    def _new_column(self, name: str, notes: dict[str, Any], *heads: nn.Module) -> Column:
        """A network of its own, and its laterals; that into the head last."""
        later, template = any(other != name for other in self.columns), self.template.network
        network = self.new_network(
            later and (self.start or ("random" if is_initial(template) else "given")) == "random"
        )
        sources, sites = notes["columns"], [(path, call) for path, call in notes["sites"]]
        reading = [*layers_at(network, paths_of(sites)), *heads]
        laterals = [self._lateral(layer, len(sources)) for layer in reading if sources]
        return Column(network, sources, sites, laterals)

    def _lateral(self, layer: nn.Module, n: int) -> nn.Module:
        if self.adapter == "linear":
            return LinearLateral(layer, n)
        return AdapterLateral(layer, n, copy.deepcopy(some_activation(self.template.network)))

    # ---- forward -----------------------------------------------------------------------------------------------------

    def outputs(self, x: Tensor, task_id: int | None) -> Tensor:
        assert task_id is not None  # the scenario is "task"
        return self.frozen_or_not(lambda x: self.logits(task_id, self.given(x, task_id)), x, task_id)

    def features(self, x: Tensor, task_id: int | None) -> Tensor:
        """h_L^(k) of the task's own column, shape (batch, features)."""
        assert task_id is not None
        return self.frozen_or_not(lambda x: self.given(x, task_id)[task_id][HEAD], x, task_id)

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def capacity(self) -> dict[str, Any]:
        """What every method reports, and by task id: "columns", the parameters of a column and its head; "laterals",
        those of its laterals, by earlier task; "adapters", what they have beside V (U and alpha). Of tasks that were
        forgotten, "forgotten" has those columns that others read: their parameters, and by whom they are read. Last,
        "without_laterals": of each layer that has none, why.

        T columns alike, of layers W_1 ... W_L and a head W_{L+1}, take with plain sums
        T (|column| + |head|) + T (T - 1) / 2 sum_{i>1} |W_i| parameters: they grow with the square of T.
        """
        columns, laterals, adapters = {}, {}, {}
        for t in self.tasks:
            column = self.column(t)
            laterals_of: list[Any] = list(column.laterals)
            columns[t] = _count(column.layers) + _count(self.heads.real(str(t)))
            equal = sum(_count(part.U if self.adapter == "linear" else part.V) for part in laterals_of)
            laterals[t] = {j: equal // len(column.sources) for j in column.sources}
            adapters[t] = _count(column.laterals) - equal
        kept = [int(name) for name in self.columns if int(name) < 0]
        readers = {j: [t for t in self.tasks if j in self.column_ids(t)] for j in kept}
        forgotten = {j: {"parameters": _count(self.column(j)), "read_by": readers[j]} for j in kept}
        without: dict[str, str] = next(
            (record.notes["without"] for record in self.tasks.values() if "without" in record.notes), {}
        )
        report = {"columns": columns, "laterals": laterals, "adapters": adapters, "forgotten": forgotten}
        return {**super().capacity(), **report, "without_laterals": without}


def _count(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in parameters_of(module))
