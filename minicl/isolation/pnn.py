"""Progressive Neural Networks: Rusu et al. 2016, arXiv 1606.04671. Every task adds a column; earlier ones never move.

Symbols, as in the paper: k is the new column, j < k the earlier ones; h_i are the activations of layer i, W_i a
column's own weights, U_i its laterals; h_{i-1}^(<k) are the activations of all earlier columns, side by side.

Where the paper is silent or says two things:

- Layers are the Linear and Conv modules of the template; normalisation, activation, dropout and pooling belong to f.
  So a lateral is added before them (BatchNorm normalises the sum), and h_{i-1} is what layer i is given.
- V projects to n_i units, as the paper's text has it; its formula says n_{i-1}. So an adapter into a head of two
  classes is small, however wide the features are.
- The U^(k:j) of a layer stand side by side in one weight, so that one product is the whole sum; so do the parts of V.
  Each starts as PyTorch starts a layer of its own. With smaller starts, and with alpha below 0.1, validation accuracy
  rose more slowly.
- Only W has a bias.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ..learner import Fit, Learner, TaskRecord, freeze, parameters_of, plain
from ..tasks import Task
from .sensitivity import fisher_sensitivity, perturbation_sensitivity

Map = Callable[[Tensor], Tensor]

# ---- the equations -------------------------------------------------------------------------------------------------


def lateral_sum(
    W: Map,
    h: Float[Tensor, "batch *inputs"],
    U: Map,
    earlier: Float[Tensor, "batch *all_inputs"],
) -> Float[Tensor, "batch *outputs"]:
    """W_i^(k) h_{i-1}^(k) + sum_{j<k} U_i^(k:j) h_{i-1}^(j): the argument of f in Eq. 1.

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
    """U_i^(k:j) f( V_i^(k:j) alpha_{i-1}^(<k) h_{i-1}^(<k) ): the lateral term of Eq. 2.

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
    if isinstance(layer, nn.Linear):
        return torch.cat(list(activations), -1)
    groups: int = layer.groups  # type: ignore[assignment]
    if groups == 1:
        return torch.cat(list(activations), 1)
    return torch.stack([h.unflatten(1, (groups, -1)) for h in activations], 2).flatten(1, 3)  # group by group


# ---- a column and its laterals ---------------------------------------------------------------------------------------

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMALISATION = tuple(f"torch.nn.modules.{name}" for name in ("batchnorm", "instancenorm", "normalization"))
Tap = Callable[[int, Tensor], Tensor]
Given = list[Tensor]
"""[h_0, ..., h_L] of one column: what each of its layers is given, and last what its head is given."""


class LinearLateral(nn.Module):
    """Eq. 1 for one layer of one column, with `n` columns before it."""

    def __init__(self, layer: nn.Module, n: int) -> None:
        super().__init__()
        self.U = _like(layer, _width(layer)[0], columns=n)

    def forward(self, W: nn.Module, h: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        return lateral_sum(W, h, self.U, side_by_side(earlier, self.U))


class AdapterLateral(nn.Module):
    """Eq. 2 for one layer of one column, with `n` columns before it and the non-linearity `f`."""

    def __init__(self, layer: nn.Module, n: int, f: nn.Module) -> None:
        super().__init__()
        n_in, n_out = _width(layer)
        self.V = _like(layer, n_in, columns=n, kernel_size=1, stride=1, padding=0, dilation=1, groups=1)
        self.U = _like(layer, n_out)
        self.alpha = nn.Parameter(torch.empty(()).uniform_(0.1, 1.0))  # the authors draw 1, 0.1 or 0.01
        self.f = f

    def forward(self, W: nn.Module, h: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        return W(h) + adapter(self.U, self.V, self.alpha, side_by_side(earlier, self.V), self.f)


class Column(nn.Module):
    """One task's network, and its own laterals from the columns that were finished when it was made.

    Attributes:
        layers: the network, an `nn.Sequential` that holds no other.
        laterals: one for each Linear and Conv after the first and one for the head; none in the first column.
    """

    def __init__(self, layers: Sequence[nn.Module], laterals: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.laterals = nn.ModuleList(laterals)

    def forward(self, x: Tensor, before: Sequence[Given], tap: Tap | None = None) -> Given:
        """Run the column on x; `before` are the earlier columns' lists. `tap(i, h_i)` may look at h_i or replace it."""
        h, given = x, Given()
        for layer in self.layers:
            if isinstance(layer, LAYERS):
                given.append(tap(len(given), h) if tap and given else h)
                h = self.read(layer, given, before)
            else:
                h = layer(h)
        given.append(tap(len(given), h) if tap else h)
        return given

    def read(self, layer: nn.Module, given: Given, before: Sequence[Given]) -> Tensor:
        """The argument of f: what `layer`, or the head, makes of the last of `given` and of the same in `before`."""
        i = len(given) - 1
        if i == 0 or not before:  # a lateral into the first layer would read the same x once more
            return layer(given[i])
        return self.laterals[i - 1](layer, given[i], [other[i] for other in before])


class PNN(Learner):
    """Progressive Neural Networks: a new column for each task, which may read every column before it.

    Column 1 starts from the weights that the backbone comes with, which may be pretrained; later ones from new weights.

    Args:
        backbone: the template of a column, an `nn.Sequential` of Linear, Conv, activations, pooling, normalisation,
            dropout and flatten. It is copied, not trained.
        adapter: "linear" for the laterals of Eq. 1, "mlp" for those of Eq. 2.

    Attributes:
        columns: a `Column` a task, by task id; those of finished tasks hold no parameters, and stay in evaluation mode.

    Raises:
        ValueError: an unknown adapter, or a backbone that cannot be a column.
    """

    needs_task_id = True

    def __init__(self, backbone: nn.Module, adapter: str = "linear") -> None:
        if adapter not in ("linear", "mlp"):
            raise ValueError(f"adapter is {adapter!r}; allowed: 'linear' (Eq. 1), 'mlp' (Eq. 2)")
        if isinstance(backbone, nn.Module) and not any(isinstance(layer, LAYERS) for layer in _layers(backbone)):
            raise ValueError(
                f"the backbone {backbone} has no Linear or Conv layer, so a column would have nothing to learn"
            )
        super().__init__(backbone, adapter=adapter)
        del self.backbone  # columns are copies; the given network itself is no part of the learner
        self.template = [backbone]  # in a list, so that it is not registered as a module
        self.adapter = adapter
        self.columns = nn.ModuleDict()

    def learn(self, task: Task, fit: Fit) -> None:
        self._drop_unfinished(self.tasks[task.id])
        fit()
        self._freeze(task.id)

    def grow(self, task: TaskRecord) -> None:
        """Add a task's column, its laterals from the columns before it, and its head."""
        super().grow(task)
        head = self.heads[str(task.id)]
        sources = task.notes.setdefault("columns", list(self.tasks))
        first = not self.columns.keys() - {str(task.id)}
        layers = _layers(copy.deepcopy(self.template[0]))
        for layer in layers:
            if hasattr(layer, "reset_parameters") and not first:
                layer.reset_parameters()  # type: ignore[operator]
            if hasattr(layer, "inplace"):  # it might overwrite what others read as well
                layer.inplace = False  # type: ignore[assignment]
        weights = [*(layer for layer in layers if isinstance(layer, LAYERS)), head]
        reading = weights[1:] if sources else []
        column = Column(layers, [self._lateral(layer, len(sources)) for layer in reading])
        self.columns[str(task.id)] = column.to(self._place)

    def _lateral(self, layer: nn.Module, n: int) -> nn.Module:
        if self.adapter == "linear":
            return LinearLateral(layer, n)
        template = _layers(self.template[0])
        activations = [part for part in template if type(part).__module__ == "torch.nn.modules.activation"]
        return AdapterLateral(layer, n, copy.deepcopy(activations[0]) if activations else nn.ReLU())

    def _drop_unfinished(self, record: TaskRecord) -> None:
        """Grow the column again, without laterals from tasks that were given up: their columns may still change."""
        sources = record.notes["columns"]
        record.notes["columns"] = [j for j in sources if self.tasks[j].finished]
        if record.notes["columns"] != sources:
            self.grow(record)

    def forward(self, x: Tensor, task_id: int | None = None) -> Tensor:
        task_id = self.check(x, task_id)
        assert task_id is not None  # the scenario is "task"
        return self._logits(task_id, self._given(x, task_id))

    def features(self, x: Tensor, task_id: int | None) -> Tensor:
        """h_L^(k) of the task's own column, shape (batch, features)."""
        assert task_id is not None
        return self._given(x, task_id)[task_id][-1]

    def column_ids(self, task_id: int) -> list[int]:
        """The tasks whose columns this task's forward pass runs through, its own last."""
        return [*self.tasks[task_id].notes["columns"], task_id]

    def _given(
        self, x: Tensor, task_id: int, tap: Callable[[int, int, Tensor], Tensor] | None = None
    ) -> dict[int, Given]:
        """Every column up to this task's own, run once. Frozen ones hold no parameters: no graph is built for them."""
        given: dict[int, Given] = {}
        for t in self.column_ids(task_id):
            given[t] = self._column(t)(x, self._before(t, given), tap and partial(tap, t))
        return given

    def _column(self, task_id: int) -> Column:
        return self.columns[str(task_id)]  # type: ignore[return-value]

    def _before(self, task_id: int, given: Mapping[int, Any]) -> list[Any]:
        return [given[t] for t in self.tasks[task_id].notes["columns"]]

    def _logits(self, task_id: int, given: Mapping[int, Given]) -> Tensor:
        return self._column(task_id).read(self.heads[str(task_id)], given[task_id], self._before(task_id, given))

    def _freeze(self, task_id: int) -> None:
        freeze(self.columns[str(task_id)])
        freeze(self.heads[str(task_id)])

    def restored(self) -> None:
        for t in self.learned:
            self._freeze(t)

    def probed(self) -> nn.Module:
        return self.template[0]

    # ---- what it costs, what it listens to, and taking it elsewhere ------------------------------------------------

    def capacity(self) -> dict[str, Any]:
        """What every method reports, and by task id: "columns", the parameters of a column and its head; "laterals",
        those of its laterals, by earlier task; "adapters", what Eq. 2 has beside V (U and alpha).

        T columns alike, of layers W_1 ... W_L and a head W_{L+1}, take with Eq. 1
        T (|column| + |head|) + T (T - 1) / 2 sum_{i>1} |W_i| parameters: they grow with the square of T.
        """
        columns, laterals, adapters = {}, {}, {}
        for t in self.tasks:
            column, sources = self._column(t), self.tasks[t].notes["columns"]
            laterals_of: list[Any] = list(column.laterals)
            columns[t] = _count(column.layers) + _count(self.heads[str(t)])
            equal = sum(_count(part.U if self.adapter == "linear" else part.V) for part in laterals_of)
            laterals[t] = {j: equal // len(sources) for j in sources}
            adapters[t] = _count(column.laterals) - equal
        return {**super().capacity(), "columns": columns, "laterals": laterals, "adapters": adapters}

    def sensitivity(
        self, task_id: int, x: Tensor, y: Tensor | None = None, kind: str = "fisher", seed: int = 0
    ) -> Float[Tensor, "layers columns"]:
        """How much a task's output relies on h_i of each column: rows i = 1 ... L, columns as in `column_ids`.

        Every row adds up to 1. What a column's layer feeds counts in full: its laterals, and its own next layer.

        Args:
            task_id: the task whose output is looked at.
            x: inputs of that task, some hundred of them; shape (n, ...).
            y: their labels, int64 of shape (n,); for "perturbation" alone.
            kind: "fisher" or "perturbation"; see `fisher_sensitivity` and `perturbation_sensitivity`.
            seed: of the noise, for "perturbation".

        Raises:
            ValueError: an unknown task or kind, labels that are missing, or a task classified no better than by chance.
        """
        self.check(x, task_id)
        if kind not in ("fisher", "perturbation"):
            raise ValueError(f"kind is {kind!r}; allowed: 'fisher', 'perturbation'")
        if kind == "perturbation" and (y is None or len(y) != len(x)):
            raise ValueError(f"'perturbation' measures accuracy: give labels y of shape ({len(x)},), one an input")

        def logits(part: Tensor, tap: Callable[[int, int, Tensor], Tensor]) -> Tensor:
            return self._logits(task_id, self._given(part.to(self.device), task_id, tap))

        training = self.training
        self.eval()
        try:
            columns = self.column_ids(task_id)
            if y is None or kind == "fisher":
                return fisher_sensitivity(logits, x, columns)
            return perturbation_sensitivity(logits, x, y, columns, seed)
        finally:
            self.train(training)

    def export(self, task_id: int | None = None) -> nn.Module:
        """The columns up to that task's, and its head: a `torch.fx.GraphModule` whose `code` can be read.

        It needs torch alone, also where `torch.save` has pickled it.

        Raises:
            ValueError: a task id that is missing or not learned.
        """
        task_id = self.check_finished(task_id)
        assert task_id is not None
        parts = {str(t): self.columns[str(t)] for t in self.column_ids(task_id)}
        network = nn.ModuleDict({"columns": nn.ModuleDict(parts), "head": self.heads[str(task_id)]})
        return fx.GraphModule(plain(copy.deepcopy(network)), self._graph(task_id), class_name="ProgressiveNetwork")

    def _graph(self, task_id: int) -> fx.Graph:
        """`forward`, written down call by call: torch.fx can run it without the classes of this file."""
        graph = fx.Graph()
        tracer = fx.proxy.GraphAppendingTracer(graph)
        x = fx.Proxy(graph.placeholder("x"), tracer)
        given: dict[int, list[Any]] = {}

        def call(name: str, h: Any) -> Any:
            return fx.Proxy(graph.call_module(name, (h.node,)), tracer)

        def read(t: int, name: str, h: Any) -> Any:
            own, i, before = call(name, h), len(given[t]), self._before(t, given)
            given[t].append(h)
            if i == 0 or not before:
                return own
            lateral: Any = self._column(t).laterals[i - 1]
            at = f"columns.{t}.laterals.{i - 1}"
            earlier = [other[i] for other in before]
            if isinstance(lateral, LinearLateral):
                return own + call(f"{at}.U", side_by_side(earlier, lateral.U))
            alpha: Any = fx.Proxy(graph.get_attr(f"{at}.alpha"), tracer)
            projected = alpha * call(f"{at}.V", side_by_side(earlier, lateral.V))
            return own + call(f"{at}.U", call(f"{at}.f", projected))

        for t in self.column_ids(task_id):
            h, given[t] = x, []
            for i, layer in enumerate(self._column(t).layers):
                name = f"columns.{t}.layers.{i}"
                h = read(t, name, h) if isinstance(layer, LAYERS) else call(name, h)
            if t != task_id:
                given[t].append(h)
        graph.output(read(task_id, "head", h).node)
        return graph


# ---- what a column can be made of ------------------------------------------------------------------------------------


def _layers(template: nn.Module, name: str = "") -> list[nn.Module]:
    """The layers of a template in the order in which they work, those of nested `nn.Sequential`s among them."""
    if not isinstance(template, nn.Sequential) or type(template).forward is not nn.Sequential.forward:
        _check_layer(template, name)
        return [template]
    parts = template._modules.items()  # named_children leaves out a module that comes a second time
    return [layer for key, part in parts for layer in _layers(part, f"{name}.{key}" if name else key)]


def _check_layer(layer: nn.Module, name: str) -> None:
    kind = type(layer)
    problem = f"layer {name!r} of the backbone is a {kind.__name__}" if name else f"the backbone is a {kind.__name__}"
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        problem += " that does not know its inputs yet"
    elif layer._forward_pre_hooks or layer._forward_hooks or hasattr(layer, "parametrizations"):
        problem += " with hooks or a parametrisation (pruning, weight_norm, ...)"
    elif name and (kind in (*LAYERS, nn.PReLU) or kind.__module__ in NORMALISATION):
        return
    elif name and not list(layer.children()) and not layer.state_dict():
        return  # an activation, pooling, dropout, flatten, or anyone's own
    raise ValueError(
        f"{problem}; a column, with its laterals, can be made of an nn.Sequential of Linear, Conv1d, Conv2d, Conv3d, "
        "activations, pooling, normalisation, dropout and flatten. Use those, as minicl.mlp and minicl.cnn do, or take "
        "minicl.Individual, which works with any network"
    )


def _like(layer: nn.Module, n_in: int, columns: int = 1, **changes: int) -> nn.Module:
    """A layer with the outputs of `layer`, and `n_in` features or channels from each of several columns. No bias."""
    new: nn.Linear | _ConvNd
    if isinstance(layer, nn.Linear):
        new = nn.Linear(columns * n_in, layer.out_features, bias=False)
    else:
        assert isinstance(layer, _ConvNd)
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        settings: dict[str, Any] = {name: getattr(layer, name) for name in names} | changes
        new = type(layer)(columns * n_in, layer.out_channels, bias=False, **settings)
    new.weight.data *= columns**0.5  # PyTorch's first weights go with 1 / sqrt(inputs): of all columns, that is
    return new


def _width(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels  # type: ignore[return-value]


def _count(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in parameters_of(module))
