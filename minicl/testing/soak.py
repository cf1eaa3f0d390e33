"""Random cases of no forgetting: any network, any loop, other people's tools, and life between tasks.

    python -m minicl.testing --seeds 0-9999

A case is drawn from its seed and consists of ingredients, each with a name. In a case that fails ingredients are left
out, one by one, as long as it still fails; what is left is printed with the command that runs it alone.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import pickle
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import minicl

from ..tensors import same_bits
from . import networks
from .loops import ADAM, LOOPS, Loop, in_every_way, small_tasks
from .methods import METHODS, Method
from .writers import WRITERS, Scene

ISOLATING = [
    name
    for name, row in METHODS.items()
    if row.keeps.get("task") == "logits" and not row.kind.__module__.endswith("baselines")
]
"""The methods that promise no forgetting, but for the bounds: PNN, HAT, PackNet, and those that come after them."""

OPTIMIZERS = [name for name, way in LOOPS.items() if way.settings.keys() == {"make"}]
OF_THEIR_OWN = [name for name, writer in WRITERS.items() if writer.settings]  # tools that are optimisers
CHANGES = (
    *("a new optimiser for each task", "zeroed gradients", "accumulation", "clipping", "bf16 autocast", "GradScaler"),
    *("channels_last", "two optimisers", "a wrapped optimiser", "no before_step", "one batch an epoch", "a closure"),
)
"""Rows of LOOPS that go with any optimiser."""
TOOLS = [name for name, writer in WRITERS.items() if not writer.settings and name != "SyncBatchNorm"]
LATE = ("SyncBatchNorm",)  # after which nothing is trained any more

DIVERGED = r"the loss is (nan|inf|-inf)|holds NaN or infinity"
EXPECTED_WARNINGS = (
    *("task .* switched off every unit", "other tensors of finished tasks", "before_step", "only .* of what this"),
    *("Detected call of", "The given NumPy", "lr_scheduler"),
)


class Skipped(Exception):
    """A case that cannot be: a network that is full, or a loss that became NaN before anything could be looked at."""


# ---- life between tasks ----------------------------------------------------------------------------------------------


class Life:
    """A learner and everything around it, while tasks come and go.

    Attributes:
        then: the answers of finished tasks, in every way, as they were when the task ended.
    """

    def __init__(self, number: int, method: str, ingredients: Sequence[str]) -> None:
        self.row: Method = METHODS[method]
        self.number, self.method, self.ingredients = number, method, list(ingredients)
        self.choose = random.Random(number + 1)
        self.settings = self.row.random_settings(random.Random(number)) if "random settings" in ingredients else {}
        torch.manual_seed(number)
        self.learner: minicl.Learner = self.row.make(self.network()[0], **self.settings)
        shape = self.network()[1]
        self.tasks = small_tasks(
            ids=self.choose.sample(range(10), 3),
            outputs=[self.choose.randint(2, 4) for _ in range(3)],
            samples=12,
            shape=shape,
            seed=number,
        )
        self.x, self.asked = torch.rand(4, *shape, generator=torch.Generator().manual_seed(number)), 0
        self.then: dict[int, list[Tensor]] = {}
        self.scene = Scene(self.learner, self.tasks)

    def network(self) -> tuple[nn.Module, tuple[int, ...]]:
        """The network of this case, and the shape of its inputs; drawn anew, always the same shape."""
        if "a random graph" in self.ingredients:
            return networks.graph(self.number, narrowest=5)
        if "a random network" in self.ingredients:
            return self.row.random_backbone(self.number)
        return minicl.mlp(8, 9, 7), (8,)

    def check(self, when: str, one_way: bool = False) -> None:
        """AssertionError where a finished task answers otherwise."""
        self.asked += 1
        ways = [self.asked % 4] if one_way else range(4)
        for task_id, then in self.then.items():
            now, before = in_every_way(self.learner, self.x, task_id, ways), [then[way] for way in ways]
            if not same_bits(now, before):
                moved = max(float((a - b).abs().max()) for a, b in zip(now, before, strict=True))
                raise AssertionError(f"logits of task {task_id} moved by {moved:.3g} {when}")

    def loop(self) -> Loop:
        """The loop of this case, as a new one."""
        settings: dict[str, Any] = {"make": ADAM}
        for name in self.ingredients:
            kind, _, row = name.partition(": ")
            if kind == "optimizer":
                settings |= LOOPS[row].settings if row in LOOPS else WRITERS[row].settings
            elif kind == "loop":
                settings |= {k: v for k, v in LOOPS[row].settings.items() if k != "make"}
        if len(self.x.shape) != 4 or any(p.ndim == 5 for p in self.network()[0].parameters()):
            settings.pop("channels_last", None)
        settings = {"batch": 6, **settings}
        return Loop(self.learner, **settings, watch=partial(self.at, "step"), at_end=partial(self.at, "lesson"))

    def at(self, moment: str) -> None:
        """Whoever writes at this moment does, and everything is looked at."""
        for name in self.ingredients:
            kind, _, row = name.partition(": ")
            if kind == "writer" and moment in WRITERS[row].when:
                WRITERS[row].write(self.scene)
        self.check({"step": "in a step for a later task", "lesson": "when a lesson ended"}.get(moment, moment), True)

    def moved_to(self, learner: minicl.Learner) -> None:
        """From here on this is the learner."""
        self.learner, self.scene = learner, Scene(learner, self.tasks)

    def live(self) -> None:
        """Three tasks, and what happens between them."""
        loop = self.loop()
        for number, task in enumerate(self.tasks):
            try:
                if "life: prepared first" in self.ingredients and number == 0:
                    for each in self.tasks:
                        self.learner.prepare(each)
                loop.learn(task)
            except (ValueError, AssertionError, FloatingPointError) as error:
                full = self.row.full is not None and self.row.full in str(error)
                if full or re.search(DIVERGED, str(error)):
                    self.check("after a task that broke off")
                    if number == 0:
                        raise Skipped(str(error)) from error
                    break
                raise
            self.check(f"when task {task.id} ended")
            self.then[task.id] = in_every_way(self.learner, self.x, task.id)
            first = self.then[task.id][0]
            if not bool(first.isfinite().all()):
                raise Skipped("logits are not finite")
            if not same_bits([first] * 4, self.then[task.id]):
                raise AssertionError(f"answers of task {task.id} depend on who asks")
            self.at(f"between tasks, after task {task.id}")
            self.between()
            for name in self.ingredients:
                kind, _, event = name.partition(": ")
                if kind == "life" and event in EVENTS:
                    was = self.learner
                    EVENTS[event](self, task)
                    self.check(f"after {event!r}")
                    if self.learner is not was:
                        loop = self.loop()
        for name in self.ingredients:
            kind, _, row = name.partition(": ")
            if kind == "writer" and row in LATE:
                WRITERS[row].write(self.scene)
                self.check(f"after {row!r}")

    def between(self) -> None:
        """The tools that write between tasks."""
        for name in self.ingredients:
            kind, _, row = name.partition(": ")
            if kind == "writer" and row in TOOLS and "between" in WRITERS[row].when:
                WRITERS[row].write(self.scene)
                self.check(f"after {row!r} between tasks")


def save_and_load(life: Life, task: minicl.Task) -> None:
    """The learner is another one, read from a file."""
    callables = {name: value for name, value in life.settings.items() if callable(value)}
    with tempfile.TemporaryDirectory() as folder:
        life.learner.save(Path(folder) / "file")
        life.moved_to(type(life.learner).load(Path(folder) / "file", life.network()[0], **callables))


def deep_copy(life: Life, task: minicl.Task) -> None:
    """The learner is a copy."""
    life.moved_to(copy.deepcopy(life.learner))


def pickled(life: Life, task: minicl.Task) -> None:
    """The learner has been pickled, where it can be."""
    if not any(callable(value) for value in life.settings.values()):
        life.moved_to(pickle.loads(pickle.dumps(life.learner)))


def broken_off(life: Life, task: minicl.Task) -> None:
    """A task begins, trains, and breaks off."""
    waiting = [t for t in life.tasks if t.id not in life.then]
    if waiting:
        loop = life.loop()

        def fit(*args: Any, **kwargs: Any) -> None:
            loop.fit(waiting[0], *args, **kwargs)
            raise KeyboardInterrupt

        try:
            life.learner.learn(waiting[0], fit)
        except (KeyboardInterrupt, ValueError, AssertionError, FloatingPointError):
            return
        raise AssertionError("Ctrl-C in a loop got lost")


def exported(life: Life, task: minicl.Task) -> None:
    """The export answers as the learner does."""
    for task_id, then in life.then.items():
        with torch.no_grad():  # an LSTM rounds otherwise where gradients might be asked for
            found = life.learner.export(task_id)(life.x)
        close = torch.allclose(found, then[0], rtol=1e-4, atol=1e-5)
        if not (torch.equal(found, then[0]) if life.row.exports == "bit" else close):
            raise AssertionError(f"the export of task {task_id} answers otherwise")


def asked_in_any_mode(life: Life, task: minicl.Task) -> None:
    """Somebody switches the learner, and asks for gradients of the inputs."""
    life.learner.train(life.choose.random() < 0.5)
    x = life.x.clone().requires_grad_()
    out = life.learner(x, task.id)
    if out.requires_grad:
        out.sum().backward()


def forgotten(life: Life, task: minicl.Task) -> None:
    """An earlier task is taken out; the others stay."""
    if len(life.then) > 1:
        task_id = life.choose.choice(list(life.then))
        try:
            life.learner.forget(task_id)
        except ValueError:  # a method that cannot
            return
        del life.then[task_id]
        life.tasks = [t for t in life.tasks if t.id != task_id]
        life.scene.tasks = life.tasks


EVENTS: dict[str, Callable[[Life, minicl.Task], None]] = {
    "saved and loaded": save_and_load,
    "copied": deep_copy,
    "pickled": pickled,
    "broken off": broken_off,
    "exported": exported,
    "asked in any mode": asked_in_any_mode,
    "forgotten": forgotten,
}
"""What happens between tasks, by name.

:meta hide-value:
"""


# ---- cases -----------------------------------------------------------------------------------------------------------


def draw(seed: int, methods: Sequence[str] = ISOLATING) -> tuple[str, list[str]]:
    """The method and the ingredients of a case."""
    choose = random.Random(seed)
    method = choose.choice(list(methods))
    graph = METHODS[method].graphs and choose.random() < 0.4
    found = ["a random graph" if graph else "a random network"]
    if choose.random() < 0.8:
        found.append("random settings")
    optimizer = choose.choice(OPTIMIZERS if choose.random() < 0.75 else OF_THEIR_OWN)
    found.append(f"optimizer: {optimizer}")
    changes = [change for change in CHANGES if choose.random() < 0.15]
    found += [f"loop: {change}" for change in changes if goes_with(optimizer, change, changes)]
    found += [f"writer: {tool}" for tool in (*TOOLS, *LATE) if choose.random() < 0.08]
    found += [f"life: {event}" for event in ("prepared first", *EVENTS) if choose.random() < 0.15]
    return method, found


def goes_with(optimizer: str, change: str, changes: Sequence[str]) -> bool:
    """Whether a loop can have this: a closure knows no scaler, and what steps by itself is alone and new."""
    if optimizer in OF_THEIR_OWN and change in ("a closure", "GradScaler", "two optimisers", "a wrapped optimiser"):
        return False
    if optimizer in OF_THEIR_OWN and change == "bf16 autocast":
        return True
    return not (change == "a closure" and {"GradScaler", "accumulation"} & set(changes))


def run(seed: int, method: str | None = None, ingredients: Sequence[str] | None = None) -> None:
    """One case, as it is drawn or with these ingredients.

    Raises:
        Skipped: it cannot be.
        AssertionError: a promise was broken. Any other error is a failure as well.
    """
    drawn_method, drawn = draw(seed)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("error")
        for pattern in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=f".*{pattern}")
        Life(seed, method or drawn_method, drawn if ingredients is None else ingredients).live()


def failure(seed: int, method: str, ingredients: Sequence[str]) -> BaseException | None:
    """What goes wrong in a case, if anything does."""
    try:
        run(seed, method, ingredients)
    except Skipped:
        return None
    except Exception as error:
        return error
    return None


def shrink(seed: int, method: str, ingredients: Sequence[str], found: BaseException) -> list[str]:
    """The ingredients without which it does not fail in the same way."""
    left = list(ingredients)
    for name in list(ingredients):
        without = [other for other in left if other != name]
        again = failure(seed, method, without)
        if again is not None and kind(again) == kind(found):
            left = without
    return left


def kind(error: BaseException) -> str:
    """An error without its numbers."""
    return f"{type(error).__name__}: {re.sub(r'[-+]?[0-9][0-9.e+-]*', '#', str(error))[:60]}"


def look(seed: int, methods: Sequence[str]) -> tuple[int, str, str]:
    """One case of many: its seed; "fine", "skipped" or "failed"; and of what failed a report."""
    torch.set_num_threads(1)
    method, ingredients = draw(seed, methods)
    try:
        run(seed, method, ingredients)
    except Skipped:
        return seed, "skipped", ""
    except Exception as error:
        left = shrink(seed, method, ingredients, error)
        last = failure(seed, method, left) or error
        where = traceback.extract_tb(last.__traceback__)[-1]
        again = " ".join(f"--with {name!r}" for name in left)
        return (
            seed,
            "failed",
            (
                f"seed {seed}: {method}, {', '.join(left) or 'nothing else'}\n"
                f"  {type(last).__name__}: {last}\n  at {where.filename}:{where.lineno}, in {where.name}\n"
                f"  python -m minicl.testing --seeds {seed} --methods {method} {again}".rstrip()
            ),
        )
    return seed, "fine", ""


# ---- the command -----------------------------------------------------------------------------------------------------


def _seeds(text: str) -> range:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number, or a range such as 0-9999")
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minicl.testing", description="Random cases of no forgetting; what fails is made small."
    )
    parser.add_argument("--seeds", type=_seeds, default=range(10_000), help="cases, such as 17 or 0-9999 (the default)")
    parser.add_argument("--methods", nargs="+", choices=ISOLATING, default=ISOLATING, help="of these alone")
    parser.add_argument("--with", dest="ingredients", action="append", help="these ingredients alone; once for each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--verbose", action="store_true", help="say what is drawn; of a single case, the traceback")
    return parser


def results(seeds: Sequence[int], methods: Sequence[str], jobs: int) -> Iterator[tuple[int, str, str]]:
    """Every case, in any order."""
    if jobs == 1 or len(seeds) == 1:
        yield from (look(seed, methods) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(seeds))) as pool:
        yield from pool.imap_unordered(partial(look, methods=methods), seeds, chunksize=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where a case failed."""
    given = _parser().parse_args(arguments)
    if given.ingredients is not None:
        bad = 0
        for seed, method in ((seed, method) for seed in given.seeds for method in given.methods):
            error = failure(seed, method, given.ingredients)
            bad += error is not None
            print(f"seed {seed}, {method}: {'fine' if error is None else f'{type(error).__name__}: {error}'}")
            if error is not None and given.verbose:
                traceback.print_exception(error)
        return int(bad > 0)
    counts, began = {"fine": 0, "skipped": 0, "failed": 0}, time.perf_counter()
    with tqdm(total=len(given.seeds), disable=not sys.stderr.isatty()) as bar:
        for seed, outcome, report in results(given.seeds, given.methods, given.jobs):
            counts[outcome] += 1
            bar.update()
            if given.verbose:
                method, ingredients = draw(seed, given.methods)
                bar.write(f"{outcome}, seed {seed}: {method}, {', '.join(ingredients)}")
            if report:
                bar.write(report)
    seconds = time.perf_counter() - began
    print(
        f"{len(given.seeds)} cases in {seconds:.0f} s: {counts['fine']} fine, {counts['failed']} failed, "
        f"{counts['skipped']} skipped (a network that is full, a loss that became NaN)"
    )
    return int(counts["failed"] > 0)
