"""The contract of `minicl.testing`: every method in every cell, and that a learner that breaks it is found out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import seeds
import torch
from torch import Tensor, nn

import minicl
from minicl import testing
from minicl.freezing import TaskModules
from minicl.testing import LOOPS, METHODS, VARIANTS, WRITERS
from minicl.testing.contract import Cell, cells_of, of_row

# ---- our own ---------------------------------------------------------------------------------------------------------

IN_EVERY_CELL = METHODS | {name: VARIANTS[name] for name in ("pnn, mlp", "packnet, norms per task")}


def rows() -> Iterable[Any]:
    """Each method in every cell that it refuses, and in every fifth of the others; `make soak` takes them all."""
    for number, (name, row) in enumerate(IN_EVERY_CELL.items()):
        cells = [cell for cell, _ in cells_of(of_row(row), name)]
        chosen = {*seeds.sampled(cells, 5, number), *row.refuses}
        yield from (pytest.param(name, cell, id=f"{name}-{cell}") for cell in cells if cell in chosen)


def find(cells: Iterable[Cell], name: str) -> Callable[[], None]:
    return dict(cells)[name]


@pytest.mark.parametrize(("name", "cell"), list(rows()))
def test_every_method_in_every_cell(name: str, cell: str) -> None:
    find(cells_of(of_row(IN_EVERY_CELL[name], seeds.current()), name), cell)()


def test_what_a_method_refuses_is_a_cell_with_a_sentence() -> None:
    tables: dict[str, Any] = {**{f"loop: {n}": way for n, way in LOOPS.items()}}
    tables |= {f"writer: {n}": writer for n, writer in WRITERS.items()}
    for name, row in METHODS.items():
        for cell in row.refuses:
            assert tables[cell].refusal, f"{name} refuses {cell!r}, which states no sentence"


# ---- anybody's -------------------------------------------------------------------------------------------------------


class Forgets(minicl.Learner):
    """Promises to keep everything, and protects nothing."""


class Switched(minicl.FeatureExtraction):
    """Holds its backbone, and leaves it to others: nothing is hidden."""

    def belongings(self, task_id: int) -> Iterable[tuple[TaskModules, str]]:
        self.networks.real("backbone").requires_grad_(False)
        return ((self.heads, str(task_id)),)


class Guesses(minicl.Learner):
    def check(self, x: Any, task_id: int | None) -> int | None:
        return self.learned[-1] if task_id not in self.learned and self.learned else super().check(x, task_id)


class Spoils(minicl.Learner):
    """Writes gradients that lie otherwise in memory than their parameters."""

    def edit_gradients(self) -> None:
        for p in self.parameters():
            if p.grad is not None and p.ndim == 4:
                p.grad = p.grad.contiguous(memory_format=torch.channels_last)


class Counts(minicl.Learner):
    """Keeps a number in a file's reach, and does not save it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.steps = 0

    def loss(self, x: Any, y: Tensor, task_id: int | None = None) -> Tensor:
        self.steps += 1
        return super().loss(x, y, task_id) * (1 + self.steps)


@pytest.mark.parametrize(
    ("make", "keeps", "cell", "words"),
    [
        (Forgets, "logits", "loop: SGD", r"logits of task 0 moved by [\d.e-]+ in a step for a later task"),
        (Forgets, "logits", "loop: Adam", "answers of task 0 depend on who asks"),
        (Switched, "logits", "writer: p.mul_(0.99)", "logits of task 0 moved by .* between tasks 0 and 1"),
        (Guesses, None, "task ids: task", "no error, and one should say 'the task id is -1"),
        (Spoils, None, "loop: SGD", "the gradient of a parameter of shape"),
        (Counts, None, "files: task", "a loaded learner learns on in another way"),
    ],
)
def test_a_learner_that_breaks_a_promise_is_found_out(make: Any, keeps: Any, cell: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words) as error:
        testing.check_learner(
            make, keeps=keeps, only=cell, backbone=None if "Adam" in cell else partial(minicl.cnn, 1, 6, 4)
        )
    assert str(error.value).startswith(f"{make.__name__}, {cell}: ")
    again = f"minicl.testing.check_learner({make.__name__}, keeps={keeps!r}, only={cell!r}, seed=0)"
    assert again.replace("keeps=None, ", "") in str(error.value)


class Bounded(minicl.Learner):
    """What a student might hand in: fine-tuning that holds its weights near those of the task before."""

    def __init__(self, backbone: nn.Module, strength: float = 1.0) -> None:
        super().__init__(backbone, strength=strength)
        self.strength = strength
        self.before: dict[str, Tensor] = {}

    def learn(self, task: minicl.Task, fit: Any) -> None:
        self.before = {n: p.detach().clone() for n, p in self.backbone.named_parameters()}
        fit()

    def loss(self, x: Any, y: Tensor, task_id: int | None = None) -> Tensor:
        pull = sum(((p - self.before[n]) ** 2).sum() for n, p in self.backbone.named_parameters() if n in self.before)
        return super().loss(x, y, task_id) + self.strength * pull


def test_a_students_learner_passes_without_a_word() -> None:
    rng = torch.get_rng_state()
    testing.check_learner(Bounded, only="files")
    testing.check_learner(Bounded, only="loop: no")
    assert torch.equal(rng, torch.get_rng_state())


def test_a_function_may_make_it_and_a_name_stands_for_our_own() -> None:
    testing.check_learner(lambda backbone: Bounded(backbone, 0.1), only="learns")
    testing.check_learner(minicl.PackNet, only="loop: Adam")
    testing.check_learner("packnet", only="loop: Adam")
    names = [name for name, _ in testing.cells("packnet")]
    assert len(set(names)) == len(names)
    assert {n.partition(": ")[2] for n in names if n.startswith("loop")} == set(LOOPS)
    assert {n.partition(": ")[2] for n in names if n.startswith("writer")} == set(WRITERS)


def test_what_is_no_cell_and_no_method_is_refused() -> None:
    with pytest.raises(ValueError, match="only is 'lop', with which no cell's name begins"):
        testing.check_learner("packnet", only="lop")
    with pytest.raises(ValueError, match=r"make is 'pakcnet'; allowed: .*packnet"):
        testing.check_learner("pakcnet")


def test_a_refusal_needs_its_sentence() -> None:
    class Refuses(minicl.Learner):
        def edit_gradients(self) -> None:
            raise ValueError("Refuses takes no step")

    with pytest.raises(AssertionError, match="Refuses takes no step"):
        testing.check_learner(Refuses, only="loop: SGD")
    testing.check_learner(Refuses, only="loop: SGD, fused", refuses={"loop: SGD, fused": "takes no step"})


def test_a_method_that_should_refuse_and_trains_is_found_out() -> None:
    subject = of_row(METHODS["finetune"])
    stern = type(subject)(**{**vars(subject), "refuses": {"loop: no protect": "saw no step"}})
    with pytest.raises(AssertionError, match="loop: no protect: was trained, and should be refused: 'saw no step'"):
        find(cells_of(stern, "finetune"), "loop: no protect")()


# ---- strict ----------------------------------------------------------------------------------------------------------


def test_strict_sees_two_types_in_one_operation() -> None:
    single, double = torch.ones(2), torch.ones(2, dtype=torch.float64)
    assert (single * double).dtype == torch.float64  # what PyTorch does in silence
    with testing.strict():
        single.to(torch.float64) * double
        double.copy_(single)
        single * torch.tensor(2.0, dtype=torch.float64)  # a number
        single * torch.tensor([True, False])
        with pytest.raises(AssertionError, match=r"mul was given tensors of torch.float32 and torch.float64"):
            single * double
        with pytest.raises(AssertionError, match=r"add_ was given tensors of torch.bfloat16 and torch.float32"):
            single.add_(single.bfloat16())
    assert (single * double).dtype == torch.float64  # and afterwards nothing is left of it


def test_strict_sees_the_layout_of_gradients() -> None:
    p = nn.Parameter(torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([p], lr=0.1)
    with testing.strict():
        (p**2).sum().backward()
        optimizer.step()
        p.grad = torch.rand(2, 3, 4, 4)
        with pytest.raises(AssertionError, match=r"has strides \(48, 16, 4, 1\).* the parameter \(48, 1, 12, 3\)"):
            optimizer.step()
    optimizer.step()


def test_strict_lets_an_optimiser_work_in_another_type() -> None:
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        pytest.skip("this PyTorch has no Muon")
    p = nn.Parameter(torch.rand(3, 3))
    p.grad = torch.rand(3, 3)
    with testing.strict():
        muon([p], lr=0.1).step()


# ---- the tools -------------------------------------------------------------------------------------------------------


def test_schedule_free_is_the_average_of_its_paper() -> None:
    """x is the mean of all z, and y lies between the two."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.rand(3))
    z, x, beta, lr = p.detach().clone(), p.detach().clone(), 0.9, 0.1
    optimizer = testing.loops.ScheduleFree([p], lr=lr, beta=beta)
    for k in range(1, 5):
        y = (1 - beta) * z + beta * x
        torch.testing.assert_close(p.detach(), y)
        grad = torch.rand(3)
        p.grad = grad.clone()
        optimizer.step()
        z = z - lr * grad
        x = (1 - 1 / k) * x + z / k
        optimizer.eval()
        torch.testing.assert_close(p.detach(), x)
        optimizer.train()


@pytest.mark.parametrize("name", [name for name, writer in WRITERS.items() if not writer.settings])
def test_every_tool_writes(name: str) -> None:
    """A tool that changes nothing could find no fault: each moves a number, a flag or a layer of a plain network."""

    def look(learner: minicl.Learner) -> list[Any]:
        values = [t.detach().clone().tolist() for t in learner.state_dict().values()]
        return [values, [p.requires_grad for p in learner.parameters()], [type(m) for m in learner.modules()]]

    learner, tasks = minicl.FineTune(minicl.cnn(1, 4, batchnorm=True)), testing.small_tasks()
    testing.Loop(learner).learn(*tasks[:2])
    learner.requires_grad_(name != "requires_grad_(True)")
    scene = testing.Scene(learner, tasks)
    if name in ("SWA", "EMA written back", "EMA over state_dict", "load_state_dict"):  # which look back
        WRITERS[name].write(scene)
        with torch.no_grad():
            for p in learner.parameters():
                p.add_(0.1)
    before = look(learner)
    WRITERS[name].write(scene)
    assert (look(learner) != before) == (name != "load_state_dict")


def test_sam_and_lookahead_step() -> None:
    for make in (testing.loops.SAM, partial(testing.loops.Lookahead, base=testing.loops.SGD)):
        learner, tasks = minicl.FineTune(minicl.mlp(36, 8)), testing.small_tasks(n=1)
        learner.prepare(tasks[0])
        before = learner.backbone[1].weight.detach().clone()  # type: ignore[index]
        testing.Loop(learner, make).learn(*tasks)
        assert not torch.equal(before, learner.backbone[1].weight)  # type: ignore[index]


def test_names_of_cells_are_fit_for_a_command_line() -> None:
    for name in (*LOOPS, *WRITERS):
        assert re.fullmatch(r"[\w .,()'&*-]+", name), name
