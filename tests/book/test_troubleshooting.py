"""The page "When it does not work": what it says is printed is printed. Each entry is provoked in a few lines."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scripts
import torch
import torch.nn.functional as F
from loops import ADAM, SGD, run, small_tasks
from torch import Tensor, nn

import minicl
from minicl import distributed

PAGE = scripts.BOOK / "troubleshooting.md"
Provoke = Callable[[], Any]
ENTRIES: dict[str, Provoke] = {}
"""What provokes each entry, by its heading, in the order of the page. What it returns is what is printed."""

UNNAMED = lambda parameters: torch.optim.Adam(parameters, lr=0.01)  # noqa: E731
"""An optimiser that no setting names."""


def entry(heading: str) -> Callable[[Provoke], Provoke]:
    def add(provoke: Provoke) -> Provoke:
        ENTRIES[heading] = provoke
        return provoke

    return add


def last(out: Tensor) -> Tensor:
    return out


def mlp() -> nn.Module:
    return minicl.mlp(36, 12)


def tasks(scenario: str = "task", n: int = 2) -> list[minicl.Task]:
    return small_tasks(scenario, n)


def learned(learner: minicl.Learner, given: list[minicl.Task], **settings: Any) -> minicl.Learner:
    run(learner, given, **{"epochs": 1, "optimizer": SGD, **settings})
    return learner


def labelled(y: Any, n_outputs: int = 2, **settings: Any) -> minicl.Task:
    return minicl.Task(0, n_outputs, (torch.rand(len(y), 36), y), **settings)


def trains(learner: minicl.Learner, task: minicl.Task, optimizer: Any, loss: Any = None) -> Callable[..., None]:
    """A loop of one step: what it does not do is what is told to it."""

    def fit(epochs: int = 1) -> None:
        made = optimizer() if callable(optimizer) else optimizer
        (loss or learner.loss)(task.train.x, task.train.y, task.id).backward()
        made.step()

    return fit


# ---- installing ------------------------------------------------------------------------------------------------------


@entry("`import torchvision` fails, and says that an operator does not exist")
def _() -> Any:
    """What torchvision does as it is imported, for an operator that nobody has; tests/test_datasets.py acts it out."""
    try:
        torch.library.register_fake("nothing::here")(lambda dets, scores, iou_threshold: dets)
    except RuntimeError as error:
        return f"RuntimeError: {error}".replace("nothing::here", "torchvision::nms")


@entry("A data set is not found")
def _() -> Any:
    minicl.split("mnist", root="data")


@entry("The GPU is not used, or not found")
def _() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        run(minicl.FineTune(mlp()), tasks(), device="cuda")


# ---- building --------------------------------------------------------------------------------------------------------


@entry("The network is refused: it returns images, a tuple or a dictionary")
def _() -> Any:
    minicl.FineTune(nn.Conv2d(1, 4, 3)).prepare(small_tasks(shape=(1, 8, 8))[0])


@entry("PackNet finds nothing to prune")
def _() -> Any:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(36, 12))

    minicl.PackNet(nn.Sequential(OrderedDict(flat=nn.Flatten(), mixer=Mixer())))


@entry("HAT finds no units")
def _() -> Any:
    minicl.HAT(nn.LSTM(8, 16))


@entry("A compiled network is refused")
def _() -> Any:
    compiled = nn.Module()
    compiled._orig_mod = mlp()  # as torch.compile returns it
    minicl.PackNet(compiled)


@entry("A lazy layer is refused")
def _() -> Any:
    minicl.PackNet(nn.Sequential(nn.Flatten(), nn.LazyLinear(12)))


@entry("AGS-CL refuses a layer")
def _() -> Any:
    minicl.AGSCL(nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 12), nn.ReLU()))


@entry("Two learners disturb each other")
def _() -> Any:
    network = mlp()
    first = minicl.FineTune(network)
    second = minicl.PackNet(network)
    return first, second


# ---- data ------------------------------------------------------------------------------------------------------------


@entry("The labels are refused: they do not begin at 0")
def _() -> Any:
    labelled([3, 4, 3, 4])


@entry("The labels are refused: they are numbers with a point, or one-hot")
def _() -> Any:
    labelled(torch.rand(4, 2))


@entry("There is a label -1")
def _() -> Any:
    minicl.split(((torch.rand(5, 36), [0, 1, -1, 0, 1]), (torch.rand(2, 36), [0, 1])), n_tasks=1)


@entry("NaN or infinity in the inputs")
def _() -> Any:
    x = torch.rand(4, 36)
    x[2, 0] = torch.nan
    minicl.Task(0, 2, (x, [0, 1, 0, 1]))


class Varied(torch.utils.data.Dataset[Any]):
    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return self.item(i), i % 2


@entry("Pictures or texts of different sizes are refused")
def _() -> Any:
    data = Varied(lambda i: torch.zeros(1, 8 + i, 8))
    minicl.split((data, data), n_tasks=1)


@entry("Random transforms seem to do nothing")
def _() -> Any:
    data = Varied(lambda i: torch.rand(1, 8, 8))
    minicl.split((data, data), n_tasks=1, validation=0)


@entry("The classes do not go evenly into tasks")
def _() -> Any:
    minicl.split("digits", n_tasks=3)


# ---- training --------------------------------------------------------------------------------------------------------


@entry("The loss becomes NaN")
def _() -> Any:
    learned(
        minicl.FineTune(mlp()), tasks(), epochs=9, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e30)
    )


@entry("The network is full")
def _() -> Any:
    learned(minicl.PackNet(mlp(), keep_ratio=1.0), tasks())


@entry("HAT learns a task poorly, and warns of a layer")
def _() -> Any:
    learner = minicl.HAT(mlp(), c=1000.0, s_max=5.0)
    learned(learner, tasks(n=1), epochs=20, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))


@entry("A task is refused because it has been learned")
def _() -> Any:
    given = tasks()
    learned(learned(minicl.FineTune(mlp()), given), given)


@entry("A criterion is refused")
def _() -> Any:
    learned(minicl.ICaRL(mlp()), tasks("class"), criterion=nn.CrossEntropyLoss(label_smoothing=0.1))


@entry("Early stopping is refused")
def _() -> Any:
    x, y = torch.rand(8, 36), [0, 1] * 4
    learned(minicl.FineTune(mlp()), [minicl.Task(0, 2, (x, y), test=(x, y))], patience=3)


@entry("BatchNorm and batches of one")
def _() -> Any:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.BatchNorm1d(12), nn.ReLU())
    learned(minicl.FineTune(network), tasks(), batch_size=1)


# ---- a loop of one's own ---------------------------------------------------------------------------------------------


@entry("A head never trains")
def _() -> Any:
    first, second = tasks()
    learner = learned(minicl.FineTune(mlp()), [first])
    optimizer = learner.protect(SGD(learner.parameters()))  # made too early
    learner.learn(second, trains(learner, second, optimizer))


@entry("Importances are zero, or weights move although their task is finished")
def _() -> Any:
    task, learner = tasks()[0], minicl.SI(mlp())
    learner.learn(task, trains(learner, task, lambda: SGD(learner.parameters())))


@entry("A method behaves like fine-tuning")
def _() -> Any:
    task, learner = tasks()[0], minicl.EWC(mlp())

    def loss(x: Tensor, y: Tensor, task_id: int) -> Tensor:
        return F.cross_entropy(learner(x, task_id), y)

    learner.learn(task, trains(learner, task, lambda: learner.protect(SGD(learner.parameters())), loss))


@entry("It learns for the first task, and not for the second")
def _() -> None:
    learner, given = minicl.ER(mlp()).eval(), tasks()[0]
    learner.learn(given, trains(learner, given, lambda: learner.protect(SGD(learner.parameters()))))


@entry("`protect` does not take the optimiser")
def _() -> Any:
    learner = minicl.PackNet(mlp())
    learner.protect(torch.optim.SGD)  # type: ignore[type-var]


@entry("HAT's masks stay half open")
def _() -> Any:
    task, learner = tasks()[0], minicl.HAT(mlp())
    learner.learn(task, trains(learner, task, lambda: learner.protect(SGD(learner.parameters()))))


@entry("An average of weights (EMA, SWA) is refused")
def _() -> Any:
    first, second = tasks()
    learner = learned(minicl.FineTune(mlp()), [first])
    average = torch.optim.swa_utils.AveragedModel(learner)  # made too early
    learned(learner, [second])
    average.update_parameters(learner)


@entry("Old weights do not come back with `load_state_dict`")
def _() -> Any:
    learner = learned(minicl.PackNet(minicl.mlp(36, 12, 12, 12)), tasks(n=1))
    learner.load_state_dict({name: tensor + 1 for name, tensor in learner.state_dict().items()})


# ---- evaluating ------------------------------------------------------------------------------------------------------


@entry("Accuracy is 1/T, and only the last task is known")
def _() -> Any:
    stream = minicl.split("digits", 5, "class", seed=0, n_train=100)
    result = run(minicl.FineTune(minicl.mlp(64, 32)), stream, epochs=10, batch_size=16, optimizer=ADAM)
    assert abs(result.average_accuracy - 1 / 5) < 0.03
    assert result.accuracy[-1, -1] > 0.85


@entry("NaN in the accuracy matrix")
def _() -> Any:
    matrix = run(minicl.FineTune(mlp()), tasks(n=3), epochs=1, optimizer=SGD).accuracy
    assert all(bool(torch.isnan(torch.tensor(matrix[i, j]))) == (j > i) for i in range(3) for j in range(3))


@entry("The task id is missing")
def _() -> Any:
    given = tasks()
    learner = learned(minicl.FineTune(mlp()), given)
    learner(given[0].test.x)


@entry("A method is refused in Class-IL or Domain-IL")
def _() -> Any:
    learned(minicl.PackNet(mlp()), tasks("class"))


@entry("The batch has another shape than the tasks had")
def _() -> Any:
    learned(minicl.FineTune(mlp()), tasks())(torch.rand(6, 36), task_id=0)


@entry("`evaluate` does not know what is right")
def _() -> Any:
    x, y = torch.rand(8, 36), torch.rand(8, 12)
    task = minicl.Task(0, None, (x, y), test=(x, y), criterion=F.mse_loss)
    minicl.evaluate(learned(minicl.FineTune(mlp()), [task]), task)


@entry("The certificate is refused: other test data")
def _() -> Any:
    stream = minicl.split("digits", 2, seed=0, n_train=20)
    learner = minicl.FineTune(minicl.mlp(64, 8))
    learned(learner, stream)  # type: ignore[arg-type]
    minicl.certify(learner, minicl.permuted("digits", 2, seed=0, n_train=20))


@entry("The certificate says that there is no digest")
def _() -> Any:
    task = tasks(n=1)[0]
    learner = minicl.FineTune(mlp())
    learner.learn(task, trains(learner, task, lambda: learner.protect(SGD(learner.parameters()))))
    return str(minicl.certify(learner, [task])).splitlines()[0]


# ---- saving ----------------------------------------------------------------------------------------------------------


@entry("A file is refused: damaged")
def _() -> Any:
    learned(minicl.FineTune(mlp()), tasks()).save("learner.safetensors")
    held = bytearray(Path("learner.safetensors").read_bytes())
    held[-1] ^= 1
    Path("learner.safetensors").write_bytes(held)
    minicl.FineTune.load("learner.safetensors", mlp())


@entry("A file is refused: another network")
def _() -> Any:
    learned(minicl.FineTune(mlp()), tasks()).save("learner.safetensors")
    minicl.FineTune.load("learner.safetensors", minicl.mlp(36, 24))


@entry("A file is refused: another method")
def _() -> Any:
    learned(minicl.FineTune(mlp()), tasks()).save("learner.safetensors")
    minicl.PackNet.load("learner.safetensors", mlp())


@entry("A file is refused: it could not hold a function")
def _() -> Any:
    learner = minicl.FineTune(mlp(), features=last)  # type: ignore[call-arg]
    learned(learner, tasks()).save("learner.safetensors")
    minicl.FineTune.load("learner.safetensors", mlp())


@entry("A state dict is refused")
def _() -> Any:
    state = learned(minicl.FineTune(mlp()), tasks()).state_dict()
    minicl.FineTune(mlp()).load_state_dict(state)


@entry("A checkpoint belongs to another run")
def _() -> Any:
    learned(minicl.FineTune(mlp()), tasks(), checkpoint="run")
    learned(minicl.FineTune(mlp()), tasks(), checkpoint="run", epochs=2)


# ---- many runs, several processes ------------------------------------------------------------------------------------


@entry("A sweep does nothing")
def _() -> Any:
    for _ in range(2):
        done = minicl.sweep(["finetune"], ["split-digits"], 2, out="results", epochs=1, jobs=1, progress=False)
    return str(done)


@entry("A sweep refuses an optimiser or a network")
def _() -> Any:
    minicl.sweep(["finetune"], ["split-digits"], 2, out="results", optimizer=UNNAMED)


@entry("FSDP is refused")
def _() -> Any:
    given = tasks()
    learner = learned(minicl.FineTune(mlp()), given)
    learner.__class__ = type("FSDPFineTune", (minicl.FineTune,), {})  # what fully_shard does to a module
    learner(given[0].test.x, task_id=0)


@entry("Processes cannot average: a memory lacks a task")
def _() -> Any:
    def gather(sizes: list[Tensor], mine: Tensor) -> None:
        for size, n in zip(sizes, (12, 0), strict=True):
            size.fill_(n)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr("torch.distributed.all_gather", gather)
        distributed.average([torch.zeros(12)])


# ---- the page --------------------------------------------------------------------------------------------------------


def printed(provoke: Provoke) -> str:
    """What a reader would see: the exception, else the last warning, else what the function returns; "" for nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            returned = provoke()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    said = [f"{warning.category.__name__}: {warning.message}" for warning in caught]
    return said[-1] if said else returned if isinstance(returned, str) else ""


def page() -> Iterator[tuple[str, str]]:
    """The entries of the page: heading, and what it says is printed, on one line; "" where nothing is."""
    for part in PAGE.read_text(encoding="utf-8").split("\n### ")[1:]:
        heading, _, text = part.partition("\n")
        blocks = re.findall(r"^```text\n(.*?)^```", text, re.S | re.M)
        assert len(blocks) == 1 or "Nothing is printed." in text, heading
        yield heading, " ".join("".join(blocks).split())


def test_every_entry_of_the_page_is_provoked_here_and_the_other_way_round() -> None:
    assert [heading for heading, _ in page()] == list(ENTRIES)


@pytest.mark.parametrize("heading", ENTRIES)
def test_what_the_page_says_is_printed_is_printed(
    heading: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    said = " ".join(printed(ENTRIES[heading]).split())
    assert dict(page())[heading] == said
