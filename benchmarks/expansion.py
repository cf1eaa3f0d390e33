"""What growing buys, and what it costs: the figures of the book's chapter on growth.

    python benchmarks/expansion.py                                  # digits: about an hour on one core
    python benchmarks/expansion.py --parts fashion --root FOLDER    # Split Fashion-MNIST, which lies there
    python benchmarks/expansion.py --speed                          # how long a step takes, beside a plain one

*Task known*: permuted and rotated digits, 10 tasks, at most 500 images each, 64-256-256, batch 32, five epochs. DEN
with and without each of its steps, and, on permuted digits, with each of the five points in which the authors' code
departs from their paper; CPG with three goals; the methods of this family and of isolation beside it. DEN calls `fit`
up to four times per task, and CPG more often, so they train longer than the others; "epochs" counts them.
*Nobody knows the task*: split digits as in replay_grid.py, whose results for ER and DER++ stand beside these. Dials
were searched on seeds 100 and 101, on validation samples. What is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import replay_grid as replay
import torch
from _bench import compare
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import minicl
from minicl import certificate, files

RESULTS = Path(__file__).resolve().parent / "results" / "expansion.json"
SEEDS, SEARCH_SEEDS = range(5), (100, 101)
WIDTHS, EPOCHS, BATCH = (64, 256, 256), 5, 32
ADAM = replay.ADAM
BUDGETS = (200, 1000)

STREAMS: dict[str, Callable[..., minicl.TaskStream]] = {
    "permuted": partial(minicl.permuted, "digits", n_tasks=10, scenario="task", n_train=500),
    "rotated": partial(minicl.rotated, "digits", n_tasks=10, scenario="task", n_train=500),
}


# ---- where the authors' code of DEN departs from the paper -----------------------------------------------------------


class FirstOutput(minicl.DEN):
    """The search looks at the head's first output only."""

    def search(self, head: Tensor) -> list[Tensor]:
        return super().search(head[:1])


class AfterExpansion(minicl.DEN):
    """Units are split only where the network was expanded."""

    def may_split(self, expanded: bool) -> bool:
        return expanded


class LeastDrifted(minicl.DEN):
    """Of the units that drifted, the k that drifted least are split."""

    most = False

    def to_split(self, rho: Tensor) -> Tensor:
        drifted = super().to_split(rho)
        return drifted[rho[drifted].argsort(descending=self.most)[: self.k]]


class MostDrifted(LeastDrifted):
    """The k that drifted most: as many units as `LeastDrifted` splits."""

    most = True


class RandomBiases(minicl.DEN):
    """Copies start with random biases."""

    def bias_of_copies(self, bias: Tensor) -> Tensor:
        return torch.rand_like(bias)


# ---- the task is known -----------------------------------------------------------------------------------------------

TRIED: dict[str, list[dict[str, float]]] = {
    "DEN": [{"drift": d} for d in (0.05, 0.1)],
    "Piggyback": [{"lr": lr} for lr in (3e-4, 1e-3, 3e-3)],
}
STEPS: dict[str, dict[str, bool]] = {
    "DEN": {},
    "DEN without selection": {"selective": False},
    "DEN without expansion": {"expansion": False},
    "DEN without splitting": {"splitting": False},
    "DEN without time stamps": {"stamping": False},
    "DEN, pull alone": {"selective": False, "expansion": False, "splitting": False},
}
DEPARTURES: dict[str, type[minicl.DEN]] = {
    "DEN, first output": FirstOutput,
    "DEN, split after expansion": AfterExpansion,
    "DEN, least drifted": LeastDrifted,
    "DEN, most drifted": MostDrifted,
    "DEN, random biases": RandomBiases,
}
OTHERS = ("FineTune", "Individual", "PNN", "HAT", "PackNet", "Piggyback", "Piggyback, untrained", "DER")


def on_validation(stream: minicl.TaskStream) -> minicl.TaskStream:
    """The same tasks, with their validation samples in the place of the test samples."""
    tasks = [minicl.Task(t.id, t.n_outputs, t.train, t.valid, t.valid, scenario=t.scenario) for t in stream]
    return minicl.TaskStream(tasks, f"{stream.name}-valid")


def pretrained(stream: minicl.TaskStream, seed: int) -> nn.Module:
    """A network trained on the first task, and then on nothing."""
    learner = minicl.FineTune(minicl.mlp(*WIDTHS))
    minicl.run(learner, stream[:1], epochs=EPOCHS, batch_size=BATCH, optimizer=ADAM, seed=seed, progress=False)
    return copy.deepcopy(learner.backbone)


def made(
    name: str, stream: minicl.TaskStream, seed: int, dial: dict[str, float]
) -> tuple[minicl.Learner, dict[str, Any]]:
    """The learner, and what `run` is told beside the epochs and the batch size."""
    network = minicl.mlp(*WIDTHS)
    if name in STEPS:
        return minicl.DEN(network, **dial, **STEPS[name]), {"optimizer": ADAM}
    if name in DEPARTURES:
        return DEPARTURES[name](network, **dial), {"optimizer": ADAM}
    if name.startswith("Piggyback"):
        given = network if name.endswith("untrained") else pretrained(stream, seed)
        return minicl.Piggyback(given), {"optimizer": partial(torch.optim.Adam, lr=dial["lr"])}
    if name == "HAT":
        schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=EPOCHS)
        sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        return minicl.HAT(network, s_max=1000.0, c=0.25), {"optimizer": sgd, "schedule": schedule}
    if name == "PackNet":
        adam = partial(torch.optim.Adam, lr=0.01)
        return minicl.PackNet(network, keep_ratio=0.1, retrain_epochs=2), {"optimizer": adam, "epochs": EPOCHS - 2}
    if name == "PNN":
        return minicl.PNN(network), {"optimizer": partial(torch.optim.Adam, lr=0.002)}
    return getattr(minicl, name)(network), {"optimizer": ADAM}


def summary(learner: minicl.Learner, result: minicl.Result) -> dict[str, Any]:
    """What the chapter needs of a run."""
    capacity = result.capacity
    found = {
        "ACC": result.average_accuracy,
        "F": result.forgetting,
        "new": float(np.diagonal(result.accuracy).mean()),
        "bytes": capacity["bytes"],
        "extra_bytes": capacity["extra_bytes"],
        "epochs": sum(len(curve) - 1 for curve in result.learning_curves),
        "seconds": result.seconds,
    }
    if isinstance(learner, minicl.DEN):
        found["units"] = learner.network.units
    if isinstance(learner, minicl.DER):
        found["extractors"] = [each["bytes"] for each in capacity["extractors"].values()]
    return found


@torch.no_grad()
def area_under_curve(learner: minicl.Learner, tasks: minicl.TaskStream) -> float:
    """The authors' score of DEN: the area under the ROC curve, a mean over classes and tasks."""
    learner.eval()
    areas = []
    for task in tasks:
        scores = torch.sigmoid(learner(task.test.x, task.id)).numpy()
        areas += [roc_auc_score(task.test.y.numpy() == c, scores[:, c]) for c in range(task.n_outputs or 0)]
    return float(np.mean(areas))


def task_known(name: str, stream: str, seed: int, dial: dict[str, float], valid: bool = False) -> dict[str, Any]:
    """One run."""
    tasks = STREAMS[stream](seed=seed)
    tasks = on_validation(tasks) if valid else tasks
    learner, settings = made(name, tasks, seed, dial)
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "seed": seed, "progress": False} | settings
    result = minicl.run(learner, tasks, **settings)
    found = summary(learner, result)
    found["identical"] = sum(bool(line.identical) for line in certificate.compare(learner, tasks).lines)
    if name == "DEN":
        found["AUC"] = area_under_curve(learner, tasks)
    return found


ROTATED = ("DEN", "DEN without expansion", "DEN without splitting", "DEN, pull alone", "FineTune", "PNN", "PackNet")
"""What is measured on rotated digits."""


def known() -> list[tuple[str, str, int]]:
    """Method, stream and seed of what is measured where the task is known."""
    both = [*((n, "permuted") for n in (*STEPS, *OTHERS)), *((n, "rotated") for n in ROTATED)]
    runs = [(name, stream, seed) for seed in SEEDS for name, stream in both]
    return runs + [(name, "permuted", seed) for seed in SEEDS[:3] for name in DEPARTURES]


def dialled(name: str) -> str | None:
    """Whose dial a method of the table has."""
    return next((dial for dial in TRIED if name.startswith(dial) or (dial == "DEN" and name in DEPARTURES)), None)


def words(dial: dict[str, float]) -> str:
    return ",".join(f"{name}={value:g}" for name, value in dial.items()) or "default"


def chosen(found: dict[str, Any], name: str, stream: str) -> dict[str, float]:
    """The setting with the highest mean ACC on validation samples."""
    dial = dialled(name)
    if dial is None:
        return {}

    def mean(setting: dict[str, float]) -> float:
        return statistics.mean(found[f"{dial} {stream} valid {words(setting)} {s}"]["ACC"] for s in SEARCH_SEEDS)

    return max(TRIED[dial], key=mean)


GOALS = (0.85, 0.9, 0.95)
NARROW, WIDEST = 100, 4.0


def growing_for(goal: float | None, seed: int) -> dict[str, Any]:
    """CPG on permuted digits: in a network as wide as the others', or in a narrow one that grows for a goal."""
    n = WIDTHS[-1] if goal is None else NARROW

    def network(width: float) -> nn.Module:
        return minicl.mlp(WIDTHS[0], int(n * width), int(n * width))

    learner = minicl.CPG(network, goal=goal, max_width=1.0 if goal is None else WIDEST)
    tasks = STREAMS["permuted"](seed=seed)
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "optimizer": ADAM, "seed": seed, "progress": False}
    found = summary(learner, minicl.run(learner, tasks, **settings))
    found["widths"] = [task["width"] for task in learner.capacity()["tasks"].values()]
    found["identical"] = sum(bool(line.identical) for line in certificate.compare(learner, tasks).lines)
    return found


# ---- nobody knows the task -------------------------------------------------------------------------------------------

REPRESENTATIONS: dict[str, dict[str, Any]] = {
    "DER": {},
    "DER without auxiliary": {"aux": 0.0},
    "DER without balancing": {"balance_epochs": 0},
    "DER, sparsity 1": {"sparsity": 1.0},
    "DER, sparsity 3": {"sparsity": 3.0},
    "DER, sparsity 10": {"sparsity": 10.0},
}


def class_incremental(name: str, budget: int, seed: int) -> dict[str, Any]:
    """One run on split digits, with the settings of replay_grid.py."""
    learner = minicl.DER(minicl.mlp(*replay.WIDTHS), budget, **REPRESENTATIONS[name])
    settings = {"epochs": replay.EPOCHS, "batch_size": replay.BATCH, "optimizer": ADAM, "seed": seed}
    return summary(learner, minicl.run(learner, replay.STREAMS["split-class"](seed), progress=False, **settings))


FASHION: dict[str, Callable[[nn.Module, int], minicl.Learner]] = {
    "DER": lambda network, budget: minicl.DER(network, budget),
    "DER, sparsity 3": lambda network, budget: minicl.DER(network, budget, sparsity=3.0),
    "ER": lambda network, budget: minicl.ER(network, budget),
    "DERpp": lambda network, budget: minicl.DERpp(network, budget, alpha=0.1, beta=1.0),
    "FineTune": lambda network, _: minicl.FineTune(network),
    "Joint": lambda network, _: minicl.Joint(network),
}


def fashion(name: str, budget: int, seed: int, root: str) -> dict[str, Any]:
    """One run on Split Fashion-MNIST, five tasks of two classes, 2,000 images each."""
    learner = FASHION[name](minicl.mlp(784, 100, 100), budget)
    stream = minicl.split("fashion-mnist", 5, "class", seed, root=root, n_train=2000)
    settings = {"epochs": 3, "batch_size": 64, "optimizer": partial(torch.optim.Adam, lr=1e-3), "seed": seed}
    return summary(learner, minicl.run(learner, stream, progress=False, **settings))


# ---- how long a step takes -------------------------------------------------------------------------------------------


def batches(n: int, n_in: int, n_out: int, size: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(size, n_in, generator=generator), torch.randint(n_out, (size,), generator=generator))
        for _ in range(n)
    ]


def steps(
    loss: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]
) -> None:
    for x, y in data:
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()


class Stop(Exception):
    """Leaves `learn` where the step has been measured."""


def speed_of_den(rounds: int) -> None:
    """DEN's step in each of its stages, over a plain step of the same width."""
    data, sgd = batches(20, 64, 10, 32), partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    given = (torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))
    for stage, name in enumerate(("head alone", "selected sub-network", "new units", "after the split")):
        learner = minicl.DEN(minicl.mlp(*WIDTHS), tau=0.0, drift=1e-4)
        first, second = (minicl.Task(t, 10, given, test=given) for t in (0, 1))

        def fit(task: minicl.Task, learner: minicl.DEN = learner) -> None:
            optimizer = learner.protect(sgd(learner.parameters()))
            learner.train()
            steps(lambda x, y: learner.loss(x, y, task.id), optimizer, data)

        learner.learn(first, lambda fit=fit, first=first: fit(first))
        calls = []

        def measured(
            learner: minicl.DEN = learner,
            second: minicl.Task = second,
            fit: Any = fit,
            calls: list[int] = calls,
            stage: int = stage,
            name: str = name,
        ) -> None:
            calls.append(0)
            if len(calls) - 1 < stage:
                fit(second)
                return
            width = [64, *learner.network.units]
            network = nn.Sequential(minicl.mlp(*width), nn.Linear(width[-1], 10))
            plain, own = sgd(network.parameters()), learner.protect(sgd(learner.parameters()))
            learner.train()
            cross_entropy = nn.functional.cross_entropy
            print(f"\n{name}, {'-'.join(map(str, width))} (target: at most 1.60)")
            compare(
                {
                    "plain": lambda: steps(lambda x, y: cross_entropy(network(x), y), plain, data),
                    "DEN": lambda: steps(lambda x, y: learner.loss(x, y, 1), own, data),
                },
                rounds=rounds,
                per=len(data),
            )
            raise Stop

        try:
            learner.learn(second, measured)
        except Stop:
            continue


def speed_of_der(rounds: int) -> None:
    """DER's step on its third task, over the same arithmetic written by hand."""
    tasks = []
    data, sgd = batches(20, 64, 6, 32), partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    for t in range(3):
        x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]) % 2 + 2 * t
        tasks.append(minicl.Task(t, 2 * (t + 1), (x, y), test=(x, y), scenario="class"))
    learner = minicl.DER(minicl.mlp(*WIDTHS), balance_epochs=0)
    for task in tasks[:2]:
        learner.learn(task, lambda tasks=None: None)

    def measured(tasks: Any = None) -> None:
        networks = [minicl.mlp(*WIDTHS) for _ in range(3)]
        head, auxiliary = nn.Linear(3 * 256, 6), nn.Linear(256, 3)
        cross_entropy = nn.functional.cross_entropy

        def by_hand(x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                old = [network(x) for network in networks[:2]]
            new = networks[2](x)
            loss = cross_entropy(head(torch.cat([*old, new], 1)), y)
            return loss + cross_entropy(auxiliary(new), (y - 3).clamp(min=0))

        plain = sgd([*networks[2].parameters(), *head.parameters(), *auxiliary.parameters()])
        own = learner.protect(sgd(learner.parameters()))
        learner.train()
        print(f"\nDER, third task, {'-'.join(map(str, WIDTHS))} (target: at most 1.25)")
        compare(
            {
                "by hand": lambda: steps(by_hand, plain, data),
                "DER": lambda: steps(lambda x, y: learner.loss(x, y), own, data),
            },
            rounds=rounds,
            per=len(data),
        )
        raise Stop

    try:
        learner.learn(tasks[2], measured)
    except Stop:
        return


PARTS = ("known", "goals", "class", "fashion")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that is read and completed")
    parser.add_argument("--speed", action="store_true", help="time steps, and measure nothing else")
    parser.add_argument("--rounds", type=int, default=40, help="how often each takes its turn (default 40)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:3], help="what is measured")
    parser.add_argument("--root", default=".", help="the folder in which Fashion-MNIST lies")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.speed:
        speed_of_den(arguments.rounds)
        speed_of_der(arguments.rounds)
        return
    found: dict[str, Any] = files.read_json(arguments.results) if arguments.results.exists() else {}

    def keep(key: str, measure: Callable[[], dict[str, Any]]) -> None:
        if key not in found:
            found[key] = measure()
            files.write_json(arguments.results, found)
            print(f"{key:60} ACC {found[key]['ACC']:.2%}", flush=True)

    if "known" in arguments.parts:
        for seed in SEARCH_SEEDS:
            for name, settings in TRIED.items():
                for stream in STREAMS if name == "DEN" else ("permuted",):
                    for dial in settings:
                        key = f"{name} {stream} valid {words(dial)} {seed}"
                        keep(key, partial(task_known, name, stream, seed, dial, True))
        for name, stream, seed in known():
            keep(f"{name} {stream} {seed}", partial(task_known, name, stream, seed, chosen(found, name, stream)))
    for seed in SEEDS if "goals" in arguments.parts else ():
        keep(f"CPG permuted {seed}", partial(growing_for, None, seed))
        for goal in GOALS:
            keep(f"CPG, goal {goal} permuted {seed}", partial(growing_for, goal, seed))
    for seed in SEEDS if "class" in arguments.parts else ():
        for budget in BUDGETS:
            for name in REPRESENTATIONS:
                keep(f"{name} split-class {budget} {seed}", partial(class_incremental, name, budget, seed))
    for seed in range(3) if "fashion" in arguments.parts else ():
        for name in FASHION:
            for budget in BUDGETS if name not in ("FineTune", "Joint") else (0,):
                keep(f"{name} fashion {budget} {seed}", partial(fashion, name, budget, seed, arguments.root))


if __name__ == "__main__":
    main()
