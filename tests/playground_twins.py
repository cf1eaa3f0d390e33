"""Runs of minicl's own learners with everything that was drawn in them, and the playground's script on the same.

The script runs wherever there is a JavaScript: in node (tests/book) and in the page itself (tests/browser).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import scripts
import torch
from torch import Tensor, nn

import minicl
from minicl.learner import Learner

tool = scripts.load("tools/playground.py")

BATCH, STEPS, LR = 30, 50, 0.1
PRUNED_AFTER = 30
"""So many steps after a task has come PackNet prunes."""

CASES = [
    *((method, "domain") for method in ("finetune", "ewc", "er")),
    *((method, "task") for method in ("finetune", "ewc", "er", "packnet", "hat")),
]
"""Each method with one output layer for both tasks, where it can, and with one for each."""

MAKERS: dict[str, tuple[float, Callable[[nn.Module, Any], Learner]]] = {
    "finetune": (0, lambda network, _: minicl.FineTune(network)),
    "ewc": (30, lambda network, lam: minicl.EWC(network, lam=lam)),
    "er": (40, lambda network, budget: minicl.ER(network, budget=budget)),
    "packnet": (0.5, lambda network, share: minicl.PackNet(network, keep_ratio=share)),
    "hat": (0.5, lambda network, c: minicl.HAT(network, c=c)),
}
"""The strength of each method, and its learner."""

REPLAY = """(given) => {
    const { METHODS, NETWORK, Random, batchOf, tasksFrom } = globalThis.PlaygroundEngine;
    const tasks = tasksFrom(given.data), random = new Random(0), losses = [];
    const learner = new METHODS[given.method]({ ...NETWORK, ...given.settings, random });
    const put = (layer, from) => { layer.weight.set(from.weight); layer.bias.set(from.bias); };
    given.layers.forEach((from, l) => put(learner.layers[l], from));
    given.tasks.forEach((now, t) => {
        let draws = 0;
        learner.begin(tasks[t].train);
        if (now.head) put(learner.head(t), now.head);
        (now.scores || []).forEach((scores, l) => learner.scores[l].set(scores));
        learner.drawnRows = () => now.draws[draws++];
        learner.drawnLabels = () => now.labels;
        now.batches.forEach((rows, i) => {
            if (i === now.pruned_after) learner.between();
            losses.push(learner.step(batchOf(tasks[t].train, rows, t), given.lr, now.progress[i]));
        });
        learner.end();
        if (now.memory) learner.remember(now.memory);
    });
    return { losses, logits: tasks.map(({ test }, t) => [...learner.logits(test.x, test.n, t)]) };
}"""
"""What the page's script makes of a run that was written down."""


def in_node(code: str, given: Any) -> Any:
    """What a function in JavaScript returns, run in node with the playground's arithmetic, or None without node."""
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        return None
    program = (
        'const fs = require("fs");'
        'require("vm").runInThisContext(fs.readFileSync("book/_static/playground-engine.js", "utf8"));'
        f'console.log(JSON.stringify(({code})(JSON.parse(fs.readFileSync(0, "utf8")))));'
    )
    done = subprocess.run(
        [node, "-e", program], input=json.dumps(given), cwd=scripts.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Lesson:
    """A learner and a loop of its own, with everything that was drawn while a task was learned."""

    def __init__(self, learner: Learner, masks: list[list[int]] | None) -> None:
        self.learner, self.masks = learner, masks
        self.drawn: dict[str, Any] = {"batches": [], "progress": []}
        self.losses: list[float] = []
        _listen(learner, self.drawn)

    def learn(self, task: minicl.Task) -> None:
        self.task, self.train = task, task.make("train")
        self.learner.learn(task, self.fit)
        if isinstance(self.learner, minicl.ER):
            self.drawn["memory"] = _rows_of(self.learner.memory.x, self.train.x)

    def fit(self, epochs: int | None = None) -> None:
        learner, drawn, n = self.learner, self.drawn, STEPS
        if isinstance(learner, minicl.PackNet):
            drawn["pruned_after"] = PRUNED_AFTER
            n = STEPS - PRUNED_AFTER if drawn["batches"] else PRUNED_AFTER
        if not drawn["batches"]:
            drawn.update(_first_values(learner, self.task.id, self.masks))
        optimizer = learner.protect(torch.optim.SGD(learner.parameters(), lr=LR))
        learner.train()
        for step in range(n):
            rows, progress = torch.randperm(len(self.train))[:BATCH], step / (n - 1)
            learner.before_step(progress)
            optimizer.zero_grad()
            loss = learner.loss(self.train.x[rows], self.train.y[rows], self.task.id_at_test)
            loss.backward()
            optimizer.step()
            self.losses.append(loss.item())
            drawn["batches"].append(rows.tolist())
            drawn["progress"].append(progress)
        learner.eval()


def reference(method: str, scenario: str, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run of minicl, two tasks of so many steps: what it started from and drew, and what came out.

    In double precision, as the page computes. In scenario "task" there is an output layer for each task.
    """
    strength, make = MAKERS[method]
    network = minicl.mlp(*tool.WIDTHS).double()
    layers = [_values(module) for module in network if isinstance(module, nn.Linear)]
    learner, losses, drawn = make(network, strength), [], []
    tasks = [task.with_dtype(torch.float64) for task in tool.stream(scenario)]
    for task in tasks:
        lesson = Lesson(learner, drawn[-1].get("masks") if drawn else None)
        lesson.learn(task)
        losses += lesson.losses
        drawn.append(lesson.drawn)
    learner.eval()
    with torch.no_grad():
        logits = [learner(task.make("test").x, task.id_at_test).flatten().tolist() for task in tasks]
    settings = {"strength": strength, "ownHeads": scenario == "task"}
    given = {"data": data, "method": method, "settings": settings, "lr": LR, "layers": layers, "tasks": drawn}
    return given, {"losses": losses, "logits": logits}


def _values(layer: Any) -> dict[str, Any]:
    return {"weight": layer.weight.detach().flatten().tolist(), "bias": layer.bias.detach().tolist()}


def _listen(learner: Learner, now: dict[str, Any]) -> None:
    """Write down what a learner draws."""
    if isinstance(learner, minicl.ER):
        draw = type(learner.memory).draw
        now["draws"] = []

        def drawn(n: int) -> Tensor:
            rows = draw(learner.memory, n)
            now["draws"].append(rows.tolist())
            return rows

        learner.memory.draw = drawn  # type: ignore[method-assign]
    if isinstance(learner, minicl.EWC):

        def labels(x: Tensor, task_id: int | None) -> Tensor:
            found = minicl.EWC._drawn_labels(learner, x, task_id)
            now["labels"] = found.tolist()
            return found

        learner._drawn_labels = labels  # type: ignore[method-assign]
    if isinstance(learner, minicl.HAT):

        def in_order(task_id: int, masks: list[Tensor], fresh: dict[str, Tensor]) -> list[Tensor]:
            now["masks"] = [mask.int().tolist() for mask in masks]
            return minicl.HAT.in_order(learner, task_id, masks, fresh)

        learner.in_order = in_order  # type: ignore[method-assign]


def _first_values(learner: Learner, t: int, masks: list[list[int]] | None) -> dict[str, Any]:
    """What a task starts with: its head, and in HAT its scores.

    When a task of HAT ends the units are put in order, those that it claims first; the page leaves them where they are.
    """
    if learner.scenario == "domain":
        return {} if t else {"head": _values(learner.heads.real("shared"))}
    head: Any = learner.heads.real(str(t))
    if not isinstance(learner, minicl.HAT):
        return {"head": _values(head)}
    orders, weight = [torch.arange(n) for n in learner.sizes], head.weight.detach()
    scores = list(learner.scores[str(t)].detach().split(learner.sizes))
    if masks is not None:
        orders = [torch.tensor(mask).sort(descending=True, stable=True).indices for mask in masks]
    back = [order.argsort() for order in orders]
    values = {"weight": weight[:, back[-1]].flatten().tolist(), "bias": head.bias.tolist()}
    return {"head": values, "scores": [e[place].tolist() for e, place in zip(scores, back, strict=True)]}


def _rows_of(x: Tensor, among: Tensor) -> list[int]:
    """Where each of these images stands among others."""
    rows: list[int] = (x[:, None] == among[None]).flatten(2).all(2).int().argmax(1).tolist()
    return rows
