"""What every learner is held to, cell by cell: what holds of each (`PROMISES`), and the tables LOOPS and WRITERS."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import minicl

from ..tensors import same_bits
from .loops import ADAM, LOOPS, WAYS_TO_ASK, Loop, answer, in_every_way, known, logits, small_tasks, state
from .methods import METHODS, Method
from .strictness import strict
from .writers import WRITERS, Scene, Writer

Promise = Literal["logits", "features"]
REFUSALS = (ValueError, TypeError, RuntimeError)

SWITCHED_OFF = r"task \d+ switched off every unit"
"""What HAT may warn of where networks are as small as these."""


@dataclass(frozen=True)
class Subject:
    """Whoever is looked at.

    Attributes:
        make: makes a learner around a backbone.
        backbone: makes that, for inputs of shape (batch, 1, 6, 6).
        keeps: what of finished tasks does not change by a bit, by scenario.
        refuses: sentences with which it may refuse a cell, by its name; None where every cell's own is allowed.
        must_refuse: whether it has to, where it may.
        exports, resume, draws_weights, stops_early: as in METHODS.
        promise: `keeps` as it was given, for whoever wants to see an error again.
        seed: of weights, data and steps.
    """

    make: Callable[[nn.Module], minicl.Learner]
    backbone: Callable[[], nn.Module]
    keeps: Mapping[str, Promise] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    must_refuse: bool = False
    exports: str = "bit"
    resume: Callable[[Any, list[minicl.Task]], None] = lambda learner, tasks: None
    draws_weights: bool = False
    stops_early: bool = True
    promise: Any = None
    seed: int = 0

    def new(self, dropout: bool = True) -> minicl.Learner:
        """A learner that has learned nothing, always with the same weights."""
        torch.manual_seed(self.seed)
        backbone = self.backbone()
        for module in backbone.modules() if not dropout else ():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        return self.make(backbone)

    def tasks(self, scenario: str = "task", n: int = 3, **settings: Any) -> list[minicl.Task]:
        """Small tasks."""
        return small_tasks(scenario, n, seed=1000 + self.seed, **settings)


def expect(condition: bool, words: str) -> None:
    """AssertionError with these words, unless the condition holds."""
    if not condition:
        raise AssertionError(words)


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """What is done here must be an error that says all this."""
    said = " ... ".join(words)
    try:
        yield
    except REFUSALS as error:
        expect(all(part in str(error) for part in words), f"the error is {str(error)!r}, and should say {said!r}")
        return
    raise AssertionError(f"no error, and one should say {said!r}")


class Finished:
    """The answers of finished tasks as they were, to be held against what they are."""

    def __init__(self, subject: Subject, learner: minicl.Learner, tasks: list[minicl.Task]) -> None:
        self.learner, self.tasks, self.then = learner, tasks, dict[int, list[Tensor]]()
        self.promised, self.asked = subject.keeps.get("task"), 0

    def add(self, task: minicl.Task) -> None:
        """This task has been learned."""
        now = in_every_way(self.learner, task.test.x, task.id)
        expect(all(bool(z.isfinite().all()) for z in now), f"logits of task {task.id} are not finite")
        if self.promised == "logits":
            others = [(now[0] - z).abs().max().item() for z in now[1:]]
            expect(same_bits(now[:1] * 4, now), f"answers of task {task.id} depend on who asks, by {max(others):.3g}")
        self.then[task.id] = now

    def check(self, when: str, one_way: bool = False) -> None:
        """AssertionError where a task answers otherwise, asked in every way, or in one after the other."""
        if self.promised != "logits":
            return
        self.asked += 1
        ways = [self.asked % len(WAYS_TO_ASK)] if one_way else range(len(WAYS_TO_ASK))
        for task in self.tasks:
            if task.id in self.then:
                now = in_every_way(self.learner, task.test.x, task.id, ways)
                then = [self.then[task.id][way] for way in ways]
                if not same_bits(now, then):
                    moved = max(float((a - b).abs().max()) for a, b in zip(now, then, strict=True))
                    raise AssertionError(f"logits of task {task.id} moved by {moved:.3g} {when}")


# ---- what holds of every learner -------------------------------------------------------------------------------------


def learns(subject: Subject, scenario: str) -> None:
    """Three tasks: the logits are finite, of the right shape, and in the scenario's order."""
    learner, tasks = subject.new(), subject.tasks(scenario, outputs=2 if scenario == "domain" else [2, 1, 3])
    Loop(learner).learn(*tasks)
    expect(learner.learned == [0, 1, 2], f"learned are {learner.learned}, and should be [0, 1, 2]")
    for z, task in zip(logits(learner, tasks), tasks, strict=True):
        width = tasks[-1].n_outputs if scenario == "class" else task.n_outputs
        expect(z.shape == (6, width), f"logits of task {task.id} have shape {tuple(z.shape)}, and should {(6, width)}")
        expect(bool(z.isfinite().all()), f"logits of task {task.id} are not finite")
    capacity = learner.capacity()
    missing = {"method", "parameters", "bytes", "extra_bytes", "tasks"} - capacity.keys()
    expect(not missing, f"capacity() lacks {', '.join(sorted(missing))}")


def never_guesses(subject: Subject, scenario: str) -> None:
    """A task id that is missing, unknown or prepared only is an error that says which are allowed."""
    learner, tasks = subject.new(), subject.tasks(scenario, ids=[1, 5, 2])
    name, x = type(learner).__name__, tasks[0].test.x
    with refused(f"{name} has learned no task yet"):
        learner(x, 1)
    Loop(learner, epochs=1).learn(*tasks[:2])
    learner.eval()
    learner.prepare(tasks[2])  # and never learned
    wrongs: tuple[Any, ...] = (-1, 0, 2, 99, True, "1", 1.0)
    for wrong in wrongs:
        message = f"the task id is {wrong!r}, which has not been learned; allowed: 1, 5"
        for ask in (partial(learner, x), learner.export):
            with refused(message):
                ask(wrong)
    if scenario == "task":
        with refused("the task id is missing; ", " Learned so far: 1, 5"):
            learner(x)
        with refused("the task id is missing; allowed: 1, 5"):
            learner.export()
    else:
        expect(torch.equal(learner(x), learner(x, 5)), "where there is no task id, a task id changes the answer")


def leaves_no_trace(subject: Subject, scenario: str) -> None:
    """A task that breaks off, of an error or Ctrl-C, leaves everything as it was, and can be learned again."""
    for error in (ArithmeticError, KeyboardInterrupt):
        learner, tasks = subject.new(), subject.tasks(scenario)
        loop = Loop(learner, set_to_none=False).learn(tasks[0])
        learner.eval()
        before, was = state(learner), logits(learner, tasks[:1])
        called: list[type[BaseException]] = []

        def broken(
            epochs: int | None = None,
            tasks: list[minicl.Task] | None = None,
            loop: Loop = loop,
            task: minicl.Task = tasks[1],
            called: list[type[BaseException]] = called,
            error: type[BaseException] = error,
        ) -> None:
            called.append(error)
            loop.fit(task, 2, tasks)
            for parameter in loop.learner.parameters():
                parameter.data.fill_(torch.nan)
            raise error

        try:
            learner.learn(tasks[1], broken)
        except error:
            pass
        else:
            expect(not called, f"the {error.__name__} of the loop got lost")
            return  # a method that trains on the first task alone: no loop could break off
        after = state(learner)
        changed = [name for name in before if not same_bits([before[name]], [after[name]])]
        expect(not changed, f"after a task that broke off, {', '.join(changed)} differ")
        expect(learner.learned == [0] and not learner.training, "a task that broke off counts, or left its mode behind")
        if scenario != "class":  # where answers have more outputs by now
            expect(same_bits(was, logits(learner, tasks[:1])), "answers differ after a task that broke off")
        Loop(learner).learn(*tasks[1:])
        expect(learner.learned == [0, 1, 2], "what broke off cannot be learned again")


def goes_on_from_a_file(subject: Subject, scenario: str) -> None:
    """What was saved and loaded has the same numbers, gives the same answers, and learns on in the same way."""
    learner, tasks = subject.new(), subject.tasks(scenario)
    Loop(learner).learn(*tasks[:2])
    callables = {k: v for k, v in learner.hyperparameters.items() if callable(v)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learner"
        learner.save(path)
        loaded = type(learner).load(path, subject.backbone(), **callables)
    subject.resume(loaded, tasks[:2])
    expect(same_bits(state(learner), state(loaded)), "a loaded learner has other numbers")
    expect(learner.learned == loaded.learned, "a loaded learner has other tasks")
    expect(learner.capacity() == loaded.capacity(), "a loaded learner has another capacity")
    for each in (learner, loaded):
        torch.manual_seed(1)
        Loop(each, seed=subject.seed).learn(tasks[2])
    expect(same_bits(state(learner), state(loaded)), "a loaded learner learns on in another way")
    expect(same_bits(logits(learner, tasks), logits(loaded, tasks)), "a loaded learner answers otherwise")


def can_be_copied(subject: Subject, scenario: str) -> None:
    """A deep copy gives the same answers, and what it learns does not reach the original."""
    learner, tasks = subject.new(), subject.tasks(scenario)
    Loop(learner).learn(*tasks[:2])
    before, was = state(learner), logits(learner, tasks[:2])
    twin = copy.deepcopy(learner)
    expect(same_bits(was, logits(twin, tasks[:2])), "a copy answers otherwise")
    Loop(twin).learn(tasks[2])
    expect(learner.learned == [0, 1] and same_bits(before, state(learner)), "what a copy learns reaches the original")


def exports(subject: Subject, scenario: str) -> None:
    """The exported network gives the learner's answers, and is a copy."""
    learner, tasks = subject.new(), subject.tasks(scenario)
    Loop(learner).learn(*tasks)
    for task in tasks if scenario == "task" else tasks[-1:]:
        network, was = learner.export(known(task)), answer(learner, task.test.x, known(task))
        now = network(task.test.x).detach()
        expect(now.shape == was.shape, f"the export of task {task.id} gives shape {tuple(now.shape)}")
        if subject.exports == "bit":
            expect(torch.equal(now, was), f"the export of task {task.id} answers otherwise")
        elif subject.exports == "close":
            torch.testing.assert_close(now, was)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        expect(torch.equal(answer(learner, task.test.x, known(task)), was), "an export shares memory with the learner")


def depends_on_its_seed_alone(subject: Subject, scenario: str) -> None:
    """`minicl.run` gives the same bits for the same seed, whatever ran before it."""
    found = []
    for noise in (0, 17):
        learner = subject.new()
        torch.manual_seed(noise)
        result = minicl.run(
            learner,
            subject.tasks(scenario, 2),
            epochs=2,
            batch_size=8,
            patience=1 if subject.stops_early else None,
            seed=3,
            progress=False,
        )
        accuracy = torch.from_numpy(result.accuracy)
        found.append([accuracy, *state(learner).values(), *logits(learner, subject.tasks(scenario, 2))])
    expect(same_bits(*found), "two runs with the same seed differ")


PROMISES: dict[str, Callable[[Subject, str], None]] = {
    "learns": learns,
    "task ids": never_guesses,
    "breaks off": leaves_no_trace,
    "files": goes_on_from_a_file,
    "copies": can_be_copied,
    "exports": exports,
    "seeds": depends_on_its_seed_alone,
}
"""What holds of every learner, in every scenario in which it works.

:meta hide-value:
"""


def refuses_scenario(subject: Subject, scenario: str) -> None:
    """A method that must be told the task id says so, in a scenario that gives none."""
    learner, tasks = subject.new(), subject.tasks(scenario)
    before = state(learner)
    name = type(learner).__name__
    for call in (partial(learner.learn, tasks[0], Loop(learner).fit), partial(minicl.run, learner, tasks)):
        with refused(f"{name} must be told the task id at test time, and scenario '{scenario}' gives none"):
            call()
    expect(same_bits(before, state(learner)) and not learner.tasks, "a refusal leaves something behind")


# ---- the tables ------------------------------------------------------------------------------------------------------


def train_in(subject: Subject, settings: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Three tasks in a loop with these settings, looked at after every step; the answers in the end."""
    exact = dtype is torch.float64
    learner, tasks = subject.new(dropout=not exact).to(dtype), subject.tasks(dtype=dtype)
    if exact:
        settings = {**settings, "make": partial(_dull, settings["make"])}
    finished = Finished(subject, learner, tasks)
    loop = Loop(
        learner, seed=subject.seed, watch=lambda: finished.check("in a step for a later task", True), **settings
    )
    for task in tasks:
        learner.prepare(task)
        before = state(learner)
        loop.learn(task)
        after = state(learner)
        expect(any(not same_bits([before[n]], [after[n]]) for n in before), f"task {task.id} has trained nothing")
        finished.check(f"when task {task.id} ended")
        finished.add(task)
    expect(learner.learned == [0, 1, 2], f"learned are {learner.learned}, and should be [0, 1, 2]")
    return logits(learner, tasks)


def _dull(make: Callable[..., torch.optim.Optimizer], parameters: Any) -> torch.optim.Optimizer:
    """An optimiser with a larger eps: Adam divides a gradient that is zero up to rounding by its own size."""
    optimizer = make(parameters)
    for group in optimizer.param_groups:
        if "eps" in group:
            group["eps"] = 1e-3
    return optimizer


def in_a_loop(subject: Subject, name: str) -> None:
    """A row of LOOPS. What must be the same as in another is compared in double precision and without dropout, whose
    random numbers go by the order in memory."""
    way = LOOPS[name]
    with strict():
        found = train_in(subject, way.settings, torch.float32 if way.same_as is None else torch.float64)
    if way.same_as is not None and not (subject.draws_weights and "channels_last" in way.settings):
        expected = train_in(subject, LOOPS[way.same_as].settings, torch.float64)
        far = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        expect(far < 1e-6, f"logits are {far:.3g} away from those of the loop {way.same_as!r}")


def with_a_writer(subject: Subject, name: str) -> None:
    """A row of WRITERS."""
    writer: Writer = WRITERS[name]
    learner, tasks = subject.new(), subject.tasks()
    scene, finished = Scene(learner, tasks), Finished(subject, learner, tasks)

    def at(moment: str, when: str) -> None:
        if moment in writer.when:
            writer.write(scene)
        finished.check(when, one_way=moment == "step")

    with strict():
        for task in tasks:
            settings = {
                "make": ADAM,
                "reuse": False,
                "watch": lambda: at("step", "in a step for a later task"),
                "at_end": lambda: at("lesson", "before the lesson of a later task ended"),
                **writer.settings,
            }
            Loop(learner, seed=subject.seed, **settings).learn(task)
            finished.check(f"when task {task.id} ended")
            finished.add(task)
            at("between", f"between tasks {task.id} and {task.id + 1}")
    for z in logits(learner, tasks):
        expect(bool(z.isfinite().all()), "logits are not finite")


# ---- cells -----------------------------------------------------------------------------------------------------------

Cell = tuple[str, Callable[[], None]]


def subject_of(
    make: Callable[..., minicl.Learner] | str,
    keeps: Promise | Mapping[str, Promise] | None = None,
    backbone: Callable[[], nn.Module] | None = None,
    refuses: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Subject:
    """What is known of a learner: from METHODS where it is one of ours, and otherwise from the arguments."""
    row = METHODS.get(make) if isinstance(make, str) else next((r for r in METHODS.values() if r.kind is make), None)
    if isinstance(make, str) and row is None:
        raise ValueError(f"make is {make!r}; allowed: a function from backbone to learner, {', '.join(METHODS)}")
    promise = keeps
    if isinstance(keeps, str):
        keeps = dict.fromkeys(minicl.SCENARIOS, keeps)
    if row is not None:
        return of_row(row, seed)
    assert not isinstance(make, str)
    sentences = {f"loop: {n}": way.refusal for n, way in LOOPS.items()} | {
        f"writer: {n}": writer.refusal for n, writer in WRITERS.items()
    }
    return Subject(
        make,
        backbone or partial(minicl.cnn, 1, 6, 12, dropout=0.1, batchnorm=True),
        keeps or {},
        {name: words for name, words in sentences.items() if words} | dict(refuses or {}),
        promise=promise,
        seed=seed,
    )


def of_row(row: Method, seed: int = 0) -> Subject:
    """A row of METHODS, with what it must refuse."""
    tables: dict[str, Any] = {**{f"loop: {n}": w for n, w in LOOPS.items()}}
    tables |= {f"writer: {n}": w for n, w in WRITERS.items()}
    must = {name: tables[name].refusal for name in row.refuses}
    return Subject(
        row.make,
        partial(row.backbone, row.kinds[-1]),
        row.keeps,
        must,
        must_refuse=True,
        exports=row.exports,
        resume=row.resume,
        draws_weights=row.draws_weights,
        stops_early=row.stops_early,
        seed=seed,
    )


def cells(
    make: Callable[..., minicl.Learner] | str,
    *,
    keeps: Promise | Mapping[str, Promise] | None = None,
    backbone: Callable[[], nn.Module] | None = None,
    refuses: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Iterator[Cell]:
    """Everything that `check_learner` looks at, as (name, function): for `pytest.mark.parametrize`, or to choose from.

    Args:
        make, keeps, backbone, refuses, seed: as for `check_learner`.
    """
    yield from cells_of(subject_of(make, keeps, backbone, refuses, seed), _called(make))


def cells_of(subject: Subject, name: str) -> Iterator[Cell]:
    """The cells of a subject, which errors call by this name."""
    with torch.random.fork_rng(devices=[]):
        needs_task_id = subject.new().needs_task_id
    for scenario in minicl.SCENARIOS:
        if needs_task_id and scenario != "task":
            yield _cell(subject, name, f"scenario {scenario}", partial(refuses_scenario, subject, scenario))
            continue
        for promise, check in PROMISES.items():
            yield _cell(subject, name, f"{promise}: {scenario}", partial(check, subject, scenario))
    for loop, way in LOOPS.items():
        yield _cell(subject, name, f"loop: {loop}", partial(in_a_loop, subject, loop), way.warning)
    for tool, writer in WRITERS.items():
        yield _cell(subject, name, f"writer: {tool}", partial(with_a_writer, subject, tool), writer.warning)


def _called(make: Any) -> str:
    make = make.func if isinstance(make, partial) else make
    return make if isinstance(make, str) else getattr(make, "__name__", repr(make))


def _cell(subject: Subject, name: str, cell: str, check: Callable[[], None], warning: str | None = None) -> Cell:
    words = subject.refuses.get(cell)
    keeps = f"keeps={subject.promise!r}, " if subject.promise else ""
    again = f"To see it again: minicl.testing.check_learner({name}, {keeps}only={cell!r}, seed={subject.seed})"

    def run() -> None:
        rng = torch.get_rng_state()
        try:
            with warnings.catch_warnings():
                for pattern in (SWITCHED_OFF, warning):
                    if pattern is not None:
                        warnings.filterwarnings("ignore", message=f".*{pattern}")
                check()
        except REFUSALS as error:
            if words is not None and re.search(words, str(error)):
                return
            raise AssertionError(f"{name}, {cell}: {type(error).__name__}: {error}\n{again}") from error
        except Exception as error:
            raise AssertionError(f"{name}, {cell}: {error}\n{again}") from error
        finally:
            torch.set_rng_state(rng)
        if words is not None and subject.must_refuse:
            raise AssertionError(f"{name}, {cell}: was trained, and should be refused: {words!r}\n{again}")

    return cell, run


def check_learner(
    make: Callable[..., minicl.Learner] | str,
    *,
    keeps: Promise | Mapping[str, Promise] | None = None,
    backbone: Callable[[], nn.Module] | None = None,
    refuses: Mapping[str, str] | None = None,
    only: str | None = None,
    seed: int = 0,
) -> None:
    """Hold a learner to what minicl's own are held to: its promises, every loop of LOOPS, every tool of WRITERS.

        minicl.testing.check_learner(MyMethod)                      # promises nothing of finished tasks
        minicl.testing.check_learner(MyMethod, keeps="logits")      # no forgetting, to the bit

    Each cell must run, or be refused with the sentence that its row states. Nothing is read or written, and the state
    of the random numbers is as before. Use `cells` to run them one by one, as tests.

    Args:
        make: a class, or a function from a backbone to a learner; or the name of one of minicl's methods.
        keeps: what of finished tasks does not change by a bit: their "logits", or by scenario, {"task": "logits"}.
            What is known of minicl's own methods stands in METHODS.
        backbone: makes the network, for inputs of shape (batch, 1, 6, 6); a small convolutional one if not given.
        refuses: sentences (regular expressions) with which the learner may refuse a cell, by the cell's name.
        only: the name of one cell, or the beginning of the names of several, such as "writer".
        seed: of weights, data and steps.

    Raises:
        AssertionError: of the first cell that fails: its name, what was found, and how to see it again.
        ValueError: `only` is the beginning of no cell's name.
    """
    chosen = list(cells(make, keeps=keeps, backbone=backbone, refuses=refuses, seed=seed))
    if only is not None:
        exactly = [(name, run) for name, run in chosen if name == only]
        chosen = exactly or [(name, run) for name, run in chosen if name.startswith(only)]
    if not chosen:
        raise ValueError(f"only is {only!r}, with which no cell's name begins; see minicl.testing.cells(make)")
    for _, run in chosen:
        run()
