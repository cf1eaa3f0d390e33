"""Split MNIST in the three scenarios, with the protocol of Hsu et al. 2018 (arXiv 1810.12488, Table 2).

    python benchmarks/split_mnist.py --root FOLDER [--seeds 3] [--methods EWC SI ...]

FOLDER holds MNIST as torchvision lays it out. Five tasks of two digits, 784 (here 32x32 with a border, as there) -
400 - 400, Adam 1e-3, batch 128, 4 epochs each, every training image. A run leaves one file in --out; what is there is
not run again, so the script goes on where it was stopped. Then the table is written beside the published one.

The strengths are those of the authors' scripts, which differ from scenario to scenario, in the normalisation of minicl:

- EWC: theirs multiplies sum F (theta - theta*)^2, ours half of it, so lam is twice theirs. They take the most likely
  label for each image, we draw it from the prediction, as the Fisher information is defined. F is measured on 1,000
  images per task, theirs on all.
- SI: the same formula; theirs lets importances become negative.
- MAS: theirs is the mean over outputs, ours the sum, so lam is theirs divided by the final number of outputs; and
  theirs takes the absolute value of a batch's gradient, ours that of each image's, which is larger.
- LwF: temperature 2; every old head counts as much as the new one, and is not multiplied by the temperature's square.
  Variants weight old outputs more, or have the loss of a public repository of that year (CE / t + (1 - 1 / t) KD).
- Rehearsal: 1,100 images, an equal share a task; half of a batch of 128 is new, half remembered. GEM: as many images,
  margin 0.5, SGD 0.01; a constraint is measured over 64 of its task's images, in a variant over all of them. In the
  authors' code GEM inherits from rehearsal, so it trains on its memory as well; a variant here does.
- One optimiser serves all tasks, as there: Adam's moments live on when a task begins.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minicl
from minicl import files
from minicl.claims import welch
from minicl.datasets import Samples, load
from minicl.replay.wa import align

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "split_mnist.json"
TASKS, EPOCHS, BATCH, WIDTHS = 5, 4, 128, (1024, 400, 400)
ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)  # the same steps, in one pass over the weights
SGD = partial(torch.optim.SGD, lr=0.01)
MOMENTUM = partial(torch.optim.SGD, lr=0.01, momentum=0.9)

# The authors' coefficients, by scenario.
STRENGTHS = {
    "EWC": {"task": 100, "domain": 100, "class": 600},
    "online EWC": {"task": 400, "domain": 700, "class": 100},
    "SI": {"task": 300, "domain": 3000, "class": 600},
    "MAS": {"task": 1, "domain": 10_000, "class": 1},
}
OUTPUTS = {"task": 2, "domain": 2, "class": 10}

MEMORY = 1100


class LwFGrowing(minicl.LwF):
    """Old outputs weigh T^2 a task learned before, so that every task counts as much as every other."""

    def learn(self, task: minicl.Task, fit: minicl.Fit) -> None:
        self.lam = self.temperature**2 * len(self.learned)
        super().learn(task, fit)


class LwFBeside(LwFGrowing):
    """In "class", old outputs are distilled in a softmax over all outputs: new ones should have stayed near zero."""

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        if not self.old or self.scenario != "class":
            return super().loss(x, y, task_id)
        logits, distance = self.beside(x)
        return self.cross_entropy(logits, y) + self.lam * distance

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and - sum_i p_i log q_i, mean over samples: p over the old outputs, q over all of them."""
        logits = self(x)
        with torch.no_grad():
            p = (F.linear(self.old[0](x), *self.old_outputs) / self.temperature).softmax(1)
        log_q = (logits / self.temperature).log_softmax(1)[:, : p.shape[1]]
        return logits, -(p * log_q).sum() / len(x)


class LwFWeighted(LwFBeside):
    """CE / t + (1 - 1 / t) KD, where KD is a mean over outputs, too, times the temperature's square."""

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        if not self.old:
            return super().loss(x, y, task_id)
        logits, distance = self.beside(x)
        t = len(self.learned) + 1
        kd = self.temperature**2 * distance / logits.shape[1]
        return self.cross_entropy(logits, y) / t + (1 - 1 / t) * kd


class GEMWhole(minicl.GEM):
    """Each constraint is measured over all images that are kept of its task, as in GEM's own code."""

    def constraints(self, parameters: list[nn.Parameter]) -> Tensor:
        self._batch_size = 2 * MEMORY
        return super().constraints(parameters)


class GEMRehearsing(minicl.GEM):
    """It trains on its memory as well, an old image for every new one, before the gradient is projected."""

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        new = super().loss(x, y, task_id)
        if not (self.training and self.replaying):
            return new
        self._batch_size = BATCH  # half of a batch is new: a constraint is over as many images as without
        rows = self.memory.draw(len(y))
        old = self.mixed_loss(self.memory.at(rows), self.memory.y[rows], self.memory.task_ids[rows])
        return (new + old) / 2


METHODS: dict[str, Callable[[nn.Module, str], minicl.Learner]] = {
    "fine-tuning": lambda net, s: minicl.FineTune(net),
    "EWC": lambda net, s: minicl.EWC(net, lam=2 * STRENGTHS["EWC"][s], samples=1000),
    "online EWC": lambda net, s: minicl.EWC(net, mode="online", lam=2 * STRENGTHS["online EWC"][s], samples=1000),
    "SI": lambda net, s: minicl.SI(net, c=STRENGTHS["SI"][s], xi=0.1),
    "MAS": lambda net, s: minicl.MAS(net, lam=STRENGTHS["MAS"][s] / OUTPUTS[s], samples=1000),
    "LwF": lambda net, s: minicl.LwF(net, lam=1.0, temperature=2.0),
    "rehearsal": lambda net, s: minicl.ER(net, budget=MEMORY, share="task"),
    "GEM": lambda net, s: minicl.GEM(net, budget=MEMORY, margin=0.5),
    "joint": lambda net, s: minicl.Joint(net),
}
# What the published table does not say, and what difference it makes.
VARIANTS: dict[str, Callable[[nn.Module, str], minicl.Learner]] = {
    "LwF, old outputs x 4": lambda net, s: minicl.LwF(net, lam=4.0, temperature=2.0),
    "LwF, old outputs x 4 (t - 1)": lambda net, s: LwFGrowing(net, temperature=2.0),
    "LwF, old outputs x 4 (t - 1), beside the new": lambda net, s: LwFBeside(net, temperature=2.0),
    "LwF, CE / t + (1 - 1 / t) KD": lambda net, s: LwFWeighted(net, temperature=2.0),
    "GEM, trained on its memory": lambda net, s: GEMRehearsing(net, budget=MEMORY, margin=0.5),
    "GEM, constraints over all of the memory": lambda net, s: GEMWhole(net, budget=MEMORY, margin=0.5),
    "GEM, ten outputs from the start": lambda net, s: minicl.GEM(net, budget=MEMORY, margin=0.5),
    "GEM, momentum 0.9": lambda net, s: minicl.GEM(net, budget=MEMORY, margin=0.5),
}
ONLY = {  # where a variant differs from its method, or has anything to explain; the others are run in all scenarios
    "LwF, old outputs x 4 (t - 1), beside the new": ("class",),
    "LwF, CE / t + (1 - 1 / t) KD": ("domain", "class"),
    **{name: ("class",) for name in VARIANTS if name.startswith("GEM")},
}
# Made for Class-IL, and run in it alone.
BEYOND: dict[str, Callable[[nn.Module, str], minicl.Learner]] = {
    "iCaRL, 2000 images": lambda net, s: minicl.ICaRL(net, budget=2000),
    "BiC": lambda net, s: minicl.BiC(net, budget=MEMORY),
    "rehearsal and WA": lambda net, s: minicl.ER(net, budget=MEMORY, share="class"),
    "generative replay": lambda net, s: minicl.GenerativeReplay(net),
    "generative replay, distilled": lambda net, s: minicl.GenerativeReplay(net, distill=True),
}
# Their published figures are of 2,000 batches per task, which is about 20 epochs.
LONG = 20
BEYOND |= {
    f"{name}, {LONG} epochs": BEYOND[name]
    for name in ("iCaRL, 2000 images", "generative replay", "generative replay, distilled")
}

# Mean and standard deviation of ten runs, in percent, Table 2 of Hsu et al. 2018.
PUBLISHED_RUNS = 10
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "fine-tuning": {"task": (93.46, 2.01), "domain": (55.16, 1.38), "class": (19.71, 0.08)},
    "EWC": {"task": (97.70, 0.81), "domain": (58.85, 2.59), "class": (19.80, 0.05)},
    "online EWC": {"task": (98.04, 1.10), "domain": (57.33, 1.44), "class": (19.77, 0.04)},
    "SI": {"task": (98.56, 0.49), "domain": (64.76, 3.09), "class": (19.67, 0.09)},
    "MAS": {"task": (99.22, 0.21), "domain": (68.57, 6.85), "class": (19.52, 0.29)},
    "LwF": {"task": (99.60, 0.03), "domain": (71.02, 1.26), "class": (24.17, 0.33)},
    "rehearsal": {"task": (99.40, 0.08), "domain": (95.16, 0.49), "class": (90.78, 0.85)},
    "GEM": {"task": (98.42, 0.10), "domain": (96.16, 0.35), "class": (92.20, 0.12)},
    "joint": {"task": (99.52, 0.16), "domain": (98.59, 0.15), "class": (97.53, 0.30)},
}
# iCaRL: van de Ven and Tolias 2019 (arXiv 1904.07734); generative replay: Hsu et al., ten runs. BiC and WA stand beside
# rehearsal with as many images.
PUBLISHED_BEYOND = {
    "iCaRL, 2000 images": (94.57, 0.11),
    "generative replay": (91.24, 0.33),
    "generative replay, distilled": (92.56, 0.21),
}


def mnist(root: str) -> tuple[Samples, Samples]:
    """MNIST as in the paper: a border of two black pixels makes it 32x32; then mean 0.1 off, divided by 0.2752."""

    def ready(samples: Samples) -> Samples:
        return Samples((F.pad(samples.x, (2, 2, 2, 2)) - 0.1) / 0.2752, samples.y)

    train, test = load("mnist", root)
    return ready(train), ready(test)


def learn(
    learner: minicl.Learner,
    task: minicl.Task,
    optimizer: list[torch.optim.Optimizer],
    epochs: int,
    make: Callable[..., torch.optim.Optimizer] = ADAM,
) -> None:
    """Learn a task with the one optimiser of all tasks; `optimizer` is a list that holds it once there is one."""

    def fit(epochs: int = epochs, tasks: list[minicl.Task] | None = None) -> None:
        if not optimizer:
            optimizer.append(learner.protect(make(learner.parameters())))
        known = {id(p) for group in optimizer[0].param_groups for p in group["params"]}
        if heads := [p for p in learner.parameters() if id(p) not in known]:
            optimizer[0].add_param_group({"params": heads})
        several = [task] if tasks is None else tasks
        x, y = torch.cat([t.make("train").x for t in several]), torch.cat([t.make("train").y for t in several])
        ids = torch.cat([torch.full((len(t.make("train")),), t.id) for t in several])
        task_id = task.id if task.scenario == "task" else None
        learner.train()
        rehearses = isinstance(learner, (minicl.ER, GEMRehearsing)) and learner.learned
        new = BATCH // 2 if rehearses else BATCH  # the rest is remembered
        for _ in range(epochs):
            batches = torch.randperm(len(y)).split(new)
            for step, rows in enumerate(batches):
                learner.before_step(step / (len(batches) - 1))
                optimizer[0].zero_grad()
                of_task: Any = task_id if tasks is None else ids[rows]
                learner.loss(x[rows], y[rows], of_task).backward()
                optimizer[0].step()

    learner.learn(task, fit)


def one_run(
    method: str, scenario: str, seed: int, data: tuple[Samples, Samples], epochs: int = EPOCHS
) -> dict[str, Any]:
    """The accuracy matrix of one run; joint training is trained once, in the end, on everything."""
    torch.manual_seed(seed)
    epochs = LONG if method.endswith(f", {LONG} epochs") else epochs
    stream = minicl.split(data, TASKS, scenario, seed, validation=0)
    if "generative" in method:  # it makes up numbers from 0 to 1
        parts = [Samples((part.x * 0.2752 + 0.1).clamp(0, 1), part.y) for part in data]
        stream = minicl.split((parts[0], parts[1]), TASKS, scenario, seed, validation=0)
    learner = {**METHODS, **VARIANTS, **BEYOND}[method](minicl.mlp(*WIDTHS), scenario)
    if "ten outputs" in method:
        tasks = [minicl.Task(t.id, 10, t.train, None, t.test, scenario="class") for t in stream]
        stream = minicl.TaskStream(tasks, stream.name)
    make = MOMENTUM if "momentum" in method else SGD if isinstance(learner, minicl.GEM) else ADAM
    optimizer: list[torch.optim.Optimizer] = []
    R: list[list[float | None]] = []
    gammas: list[float] = []  # by which new rows were multiplied, where weights are aligned
    for i, task in enumerate(stream):
        if isinstance(learner, minicl.Joint) and i < TASKS - 1:
            learner.learn(task, lambda tasks: None)
            R.append([None] * TASKS)
        else:
            learn(learner, task, optimizer, epochs, make)
            if "WA" in method:
                gammas.append(align(learner))
            R.append([minicl.evaluate(learner, t) if j <= i else None for j, t in enumerate(stream)])
    last = [value for value in R[-1] if value is not None]
    found = {"method": method, "scenario": scenario, "seed": seed, "accuracy": R, "ACC": sum(last) / TASKS}
    return {**found, "gammas": gammas} if gammas else found


def table(runs: list[dict[str, Any]]) -> str:
    """The table in Markdown: ours beside the published one, in percent, mean and standard deviation over runs."""
    lines = [
        "| | " + " | ".join(f"{s}, ours | {s}, published" for s in minicl.SCENARIOS) + " |",
        "|---" * 7 + "|",
    ]
    for method in METHODS:
        cells = []
        for scenario in minicl.SCENARIOS:
            mean, deviation = PUBLISHED[method][scenario]
            cells += [ours(runs, method, scenario), f"{mean:.2f} ± {deviation:.2f}"]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def differences(runs: list[dict[str, Any]], methods: Sequence[str]) -> dict[tuple[str, str], tuple[float, ...]]:
    """Ours minus the published mean, and the ends of Welch's 95 % interval, in points, by method and scenario.

    The published side has ten runs, of which mean and standard deviation are known. A variant is compared with the row
    of its method. Cells with fewer than two runs of ours are not there.
    """
    found = {}
    for method in methods:
        for scenario, (mean, deviation) in PUBLISHED[method.partition(",")[0]].items():
            accs = accs_of(runs, method, scenario)
            if len(accs) > 1:
                found[method, scenario] = welch(accs, mean, deviation, PUBLISHED_RUNS)
    return found


def differences_table(runs: list[dict[str, Any]], methods: Sequence[str]) -> str:
    """Those differences in Markdown, in bold where the interval does not hold zero."""
    found = differences(runs, methods)
    lines = ["| | " + " | ".join(minicl.SCENARIOS) + " |", "|---" * 4 + "|"]
    for method in methods:
        cells = [written(found.get((method, scenario))) for scenario in minicl.SCENARIOS]
        lines.append(f"| {method.replace(' x ', ' × ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def in_words(runs: list[dict[str, Any]]) -> str:
    """What the intervals of the table come to."""
    found = differences(runs, list(METHODS))
    differ = [f"{method} in {scenario}" for (method, scenario), cell in found.items() if not holds_zero(cell)]
    return (
        f"\nOf {len(found)} intervals {len(found) - len(differ)} hold zero. The others: {', '.join(differ)}. "
        f"Of so many intervals at 95 %, {len(found) * 0.05:.1f} are expected to miss zero by chance alone.\n"
    )


def holds_zero(cell: tuple[float, ...]) -> bool:
    _, low, high = cell
    return low <= 0 <= high


def written(cell: tuple[float, ...] | None) -> str:
    """A difference with its interval, in bold where the interval does not hold zero."""
    if cell is None:
        return "–"
    effect, low, high = (f"{value:+.2f}".replace("-", "−") for value in cell)
    text = f"{effect} ({low} to {high})"
    return text if holds_zero(cell) else f"**{text}**"


def accs_of(runs: list[dict[str, Any]], method: str, scenario: str) -> list[float]:
    return [100 * r["ACC"] for r in runs if (r["method"], r["scenario"]) == (method, scenario)]


def ours(runs: list[dict[str, Any]], method: str, scenario: str) -> str:
    """Mean and standard deviation of the runs that there are, and how many."""
    found = accs_of(runs, method, scenario)
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.2f}{spread} ({len(found)})" if found else "not yet run"


def variants_table(runs: list[dict[str, Any]]) -> str:
    """LwF and GEM as in the table, as published, and done otherwise where the published text leaves it open."""
    lines = ["| | " + " | ".join(minicl.SCENARIOS) + " |", "|---" * 4 + "|"]
    for base in ("LwF", "GEM"):
        for method in (base, *(name for name in VARIANTS if name.startswith(base))):
            cells = [ours(runs, method, scenario).replace("not yet run", "–") for scenario in minicl.SCENARIOS]
            lines.append(f"| {method.replace(' x ', ' × ')} | " + " | ".join(cells) + " |")
        published = [f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in PUBLISHED[base].values()]
        lines.append(f"| {base}, published | " + " | ".join(published) + " |")
    return "\n".join(lines) + "\n"


def beyond_table(runs: list[dict[str, Any]]) -> str:
    """The methods that are made for Class-IL, ours and published, and rehearsal beside them."""
    lines = ["| | class, ours | class, published |", "|---|---|---|"]
    for method in (*BEYOND, "rehearsal"):
        if method.endswith(f", {LONG} epochs") and not accs_of(runs, method, "class"):
            continue
        known = PUBLISHED_BEYOND.get(method.removesuffix(f", {LONG} epochs"))
        mean, deviation = known or PUBLISHED.get(method, {}).get("class", (None, None))
        published = "–" if mean is None else f"{mean:.2f} ± {deviation:.2f}"
        lines.append(f"| {method} | {ours(runs, method, 'class')} | {published} |")
    return "\n".join(lines) + "\n"


def tables(runs: list[dict[str, Any]]) -> dict[str, str]:
    """The tables in Markdown, by what is put behind the name of the results in the names of their files."""
    return {
        "": table(runs),
        "_differences": differences_table(runs, list(METHODS)) + in_words(runs),
        "_variants": variants_table(runs),
        "_variants_differences": differences_table(runs, list(VARIANTS)),
        "_beyond": beyond_table(runs),
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="the folder that holds MNIST, as torchvision lays it out")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: 3 of them)")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *VARIANTS, *BEYOND], default=[*METHODS, *VARIANTS])
    parser.add_argument("--scenarios", nargs="+", choices=minicl.SCENARIOS, default=list(minicl.SCENARIOS))
    parser.add_argument("--out", type=Path, default=Path("split_mnist_runs"), help="a folder for one file per run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where all runs are gathered, with the table")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"a task (the protocol: {EPOCHS})")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)

    def place(method: str, scenario: str, seed: int) -> Path:
        return arguments.out / f"{re.sub('[^a-zA-Z0-9]+', '-', method)}-{scenario}-{seed}-{arguments.epochs}.json"

    stored = files.read_json(arguments.results) if arguments.results.exists() else {"runs": []}
    if stored.get("epochs", arguments.epochs) != arguments.epochs:
        parser.error(
            f"{arguments.results} holds runs of {stored['epochs']} epochs, and --epochs is {arguments.epochs}; "
            "name another file with --results"
        )
    for run in stored["runs"]:  # what has been gathered before need not be run again
        if not (path := place(run["method"], run["scenario"], run["seed"])).exists():
            files.write_json(path, run)
    data: tuple[Samples, Samples] | None = None
    for seed in range(arguments.seeds):
        for method in arguments.methods:
            for scenario in (s for s in arguments.scenarios if s in ONLY.get(method, minicl.SCENARIOS)):
                path = place(method, scenario, seed)
                if not path.exists():
                    data = data or mnist(arguments.root)
                    files.write_json(path, one_run(method, scenario, seed, data, arguments.epochs))
                acc = files.read_json(path)["ACC"]
                print(f"{method}, {scenario}, seed {seed}: ACC {acc:.2%}", flush=True)
    runs = [files.read_json(path) for path in sorted(arguments.out.glob(f"*-{arguments.epochs}.json"))]
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(arguments.results, {"epochs": arguments.epochs, "runs": runs})
    for name, text in tables(runs).items():
        arguments.results.with_name(f"{arguments.results.stem}{name}.md").write_text(text, encoding="utf-8")
        sys.stdout.write("\n" + text)


if __name__ == "__main__":
    main()
