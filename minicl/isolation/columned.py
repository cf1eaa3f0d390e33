"""A learner that has a column for each task: who reads whom, what is forgotten, what a task listens to, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import inputs
from ..freezing import TaskModules, Template, copied, evaluating, one_way, standalone
from ..learner import Learner, TaskRecord
from ..saving import put_template, take_template
from ..tasks import Task
from .columns import Column, Given, Progressive, axis, look, paths_of, run_columns, stand_in
from .sensitivity import fisher_sensitivity, perturbation_sensitivity
from .tracing import traced


class ColumnedNetwork(Learner):
    """Columns are copies of the backbone; a method says how they grow, and what they add to each other.

    Args:
        backbone: the template of a column. It is copied, not trained.
        hyperparameters: as of every learner.

    Attributes:
        columns: a `Column` per task, by task id, and with negative numbers those of forgotten tasks that others read.

    Raises:
        ValueError: a backbone without parameters, or one that was scripted.
    """

    needs_task_id = True
    copies_backbone = True

    def __init__(self, backbone: nn.Module, **hyperparameters: Any) -> None:
        super().__init__(backbone, **hyperparameters)
        for name, module in backbone.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise ValueError(
                    f"layer {name!r} was scripted, and a column must reach its layers; give what was scripted"
                )
        if not any(True for _ in backbone.parameters()):
            raise ValueError(f"the backbone {backbone} has no parameters, so a column would have nothing to learn")
        del self.backbone  # columns are copies; the given network itself is no part of the learner
        self.template = Template(backbone)
        self.columns = TaskModules()
        self._found: dict[str, Any] = {}  # see `look`

    def new_network(self, anew: bool) -> nn.Module:
        """A copy of the template: with its weights, or anew with random ones, where a module can draw them."""
        network = copied(self.template.network)
        for module in network.modules():
            if anew and all(p.requires_grad for p in module.parameters(recurse=False)):
                getattr(module, "reset_parameters", lambda: None)()
            if hasattr(module, "inplace"):  # it might overwrite what others read as well
                module.inplace = False  # type: ignore[assignment]
        return network

    def drop_unfinished(self, record: TaskRecord) -> None:
        """Grow the column again, without laterals from tasks that were given up: their columns may still change."""
        sources = record.notes["columns"]
        record.notes["columns"] = [j for j in sources if j < 0 or self.tasks[j].finished]
        if record.notes["columns"] != sources:
            self.grow(record)

    def _n_features(self, task: Task) -> int:
        n_features = super()._n_features(task)
        if not self._found:
            self._found = look(self.new_network(anew=False), inputs.to(task.example, self.device), self.apply_network)
            for record in self.tasks.values():  # of a file: in all columns the same layers are read
                self._found["sites"] = record.notes["sites"]
        return n_features

    # ---- forward -----------------------------------------------------------------------------------------------------

    def frozen_or_not(self, compute: Callable[[Any], Tensor], x: Any, task_id: int) -> Tensor:
        """`compute(x)`, in the one way in which what does not learn is computed, if the task is finished."""
        return one_way(compute, x) if self.tasks[task_id].finished else compute(x)

    def column_ids(self, task_id: int) -> list[int]:
        """The columns that this task's forward pass runs through, its own last."""
        return list(self.columns_of(task_id))

    def columns_of(self, task_id: int) -> dict[int, Column]:
        """The same, with the columns themselves."""
        found: dict[int, Column] = {}

        def visit(t: int) -> None:
            column = self.column(t)
            for j in column.sources:
                if j not in found:
                    visit(j)
            found[t] = column

        visit(task_id)
        return found

    def given(self, x: Any, task_id: int, tap: Callable[[int, int, Tensor], Tensor] | None = None) -> dict[int, Given]:
        """Every column up to this task's own, run once. Frozen ones hold no parameters: no graph is built for them."""
        return run_columns(self.columns_of(task_id), partial(self.apply_network, x=x), tap)

    def column(self, task_id: int) -> Column:
        """A task's column; of one that was forgotten by its negative number."""
        return self.columns.real(str(task_id))  # type: ignore[return-value]

    def logits(self, task_id: int, given: dict[int, Given]) -> Tensor:
        """All outputs of a task's head, with its laterals."""
        return self.column(task_id).head(self.heads.real(str(task_id)), given, task_id)

    def feature_extractor(self) -> nn.Module:
        return self.template.network

    # ---- what must not move ------------------------------------------------------------------------------------------

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        kept = self.tasks[task_id].notes.get("forgotten", ())
        return (self.heads, str(task_id)), *((self.columns, name) for name in (str(task_id), *kept))

    def on_forget(self, task_id: int) -> None:
        """Free the column, unless later ones read it: then it stays, without its lateral into the head."""
        column, new = self.column(task_id), min([0, *map(int, self.columns)]) - 1
        del self.columns[str(task_id)]
        column.laterals = column.laterals[: len(paths_of(column.sites)) - 1]
        self.columns[str(new)] = column
        self.columns.hide(str(new))
        for name in self.columns:
            other = self.column(int(name))
            other.sources = [new if j == task_id else j for j in other.sources]
        read = {t: [j for j in self.column_ids(t) if j < 0] for t in self.tasks}
        for t, record in self.tasks.items():
            record.notes["columns"] = self.column(t).sources
            kept = {str(j): self.column(j) for j in read[t]}
            record.notes["forgotten"] = {j: {"columns": c.sources, "sites": c.sites[:-1]} for j, c in kept.items()}
        for name in [name for name in self.columns if int(name) < 0]:
            if not any(int(name) in ids for ids in read.values()):
                del self.columns[name]

    # ---- what it listens to, and taking it elsewhere -----------------------------------------------------------------

    def sensitivity(
        self, task_id: int, x: Tensor, y: Tensor | None = None, kind: str = "fisher", seed: int = 0
    ) -> Float[Tensor, "layers columns"]:
        """How much a task's output relies on h_i of each column: rows i = 1 ... L, columns as in `column_ids`.

        A row for each call that has a lateral, the head's last. Every row adds up to 1. What a column's layer feeds
        counts in full: its laterals, and its own next layer.

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
            raise ValueError(f"'perturbation' measures accuracy: give labels y of shape ({len(x)},), one per input")
        column = self.column(task_id)
        axes = [axis(column.layers.get_submodule(path)) for path, _ in column.sites[:-1]] + [-1]

        def logits(part: Tensor, tap: Callable[[int, int, Tensor], Tensor]) -> Tensor:
            def by_feature(t: int, i: int, h: Tensor) -> Tensor:
                return tap(t, i, h.movedim(axes[i - 1], 1)).movedim(1, axes[i - 1])

            return self.logits(task_id, self.given(part.to(self.device), task_id, by_feature))

        with evaluating(self):
            columns = self.column_ids(task_id)
            if y is None or kind == "fisher":
                return fisher_sensitivity(logits, x, columns)
            return perturbation_sensitivity(logits, x, y, columns, seed)

    def export(self, task_id: int | None = None) -> nn.Module:
        """The columns up to that task's, and its head: a `torch.fx.GraphModule`, written down by tracing `forward`.

        It needs torch alone, also where `torch.save` has pickled it. See `minicl.isolation.tracing.traced`.

        Raises:
            ValueError: a task id that is missing or not learned; a network that nothing can trace.
        """
        task_id = self.check_finished(task_id)
        assert task_id is not None
        columns = {t: copied(column) for t, column in self.columns_of(task_id).items()}
        head = copied(self.heads.real(str(task_id)))
        n_outputs = self.tasks[task_id].n_outputs if self.rotations else None
        network = standalone(Progressive(columns, head, self.apply_network, n_outputs))
        known = self.input_shape is not None
        return traced(network, stand_in(self.tasks[task_id].notes, self.input_shape, self._like) if known else None)

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return put_template(state, self.template.network)

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return take_template(tensors, self.template.network)
