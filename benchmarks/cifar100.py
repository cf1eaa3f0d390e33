"""The settings of the published CIFAR-100 tables, for whoever has the data.

    python benchmarks/cifar100.py --root FOLDER --table tasks [--seeds 3] [--device cuda]
    python benchmarks/cifar100.py --root FOLDER --table classes
    python benchmarks/cifar100.py --stand-in --table classes --epochs 1    # random pictures of the same shape: a try

FOLDER holds CIFAR-100 as torchvision lays it out.

*tasks*: twenty tasks of five classes, the superclasses, task id known, VGG-16 with BatchNorm: the table of CPG (Hung
et al. 2019, arXiv 1910.06562), where the mean accuracy of PackNet is 67.5 % and that of CPG 80.9 %. CPG's goal is, as
there, what a network alone reaches; here on validation samples.

*classes*: ten steps of ten classes in an order that the seed draws, nobody knows the task id, 2,000 pictures kept,
ResNet-18: the setting in which iCaRL (1611.07725), BiC (1905.13260), WA (1911.07053) and DER (2103.16788) are compared;
their tables print the mean of the accuracy on all classes so far over the steps, and so does this one.

None of it has been run on CIFAR-100 by us: the data could not be had where this was written. It was tried on a
stand-in. A run leaves one file in --out, and what is there is not run again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import minicl
from minicl import files
from minicl.datasets import Samples, load, torchvision
from minicl.replay.wa import align

KEPT, TASKS, STEPS = 2000, 20, 10
MEAN, DEVIATION = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
# The superclass of each class, as the data set's own "coarse" labels have it.
COARSE = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1),
    *(10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12),
    *(12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0),
    *(17, 8, 14, 13),
]
SUPERCLASSES = [[c for c, of in enumerate(COARSE) if of == group] for group in range(TASKS)]


def vgg() -> nn.Module:
    """The features of torchvision's VGG-16 with BatchNorm: (batch, 3, 32, 32) to (batch, 512)."""
    return nn.Sequential(*torchvision().models.vgg16_bn().features, nn.Flatten())


def resnet() -> nn.Module:
    """torchvision's ResNet-18 with the small first layer that 32x32 pictures need: to (batch, 512)."""
    network: nn.Module = torchvision().models.resnet18()
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()  # type: ignore[assignment]
    network.fc = nn.Identity()  # type: ignore[assignment]
    return network


Make = Callable[[Callable[[], nn.Module], list[float]], minicl.Learner]
METHODS: dict[str, dict[str, Make]] = {
    "tasks": {
        "individual": lambda net, goals: minicl.Individual(net()),  # also what CPG's goals are taken of
        "fine-tuning": lambda net, goals: minicl.FineTune(net()),
        "PackNet": lambda net, goals: minicl.PackNet(net(), keep_ratio=[1 / (TASKS - k) for k in range(TASKS)]),
        "CPG": lambda net, goals: minicl.CPG(net(), goal=goals or None),
        "HAT": lambda net, goals: minicl.HAT(net()),
    },
    "classes": {
        "fine-tuning": lambda net, goals: minicl.FineTune(net()),
        "rehearsal": lambda net, goals: minicl.ER(net(), budget=KEPT, share="class"),
        "iCaRL": lambda net, goals: minicl.ICaRL(net(), budget=KEPT),
        "BiC": lambda net, goals: minicl.BiC(net(), budget=KEPT),
        "WA": lambda net, goals: minicl.ER(net(), budget=KEPT, share="class"),  # and `align` after every task
        "DER": lambda net, goals: minicl.DER(net(), budget=KEPT),
    },
}
NETWORKS = {"tasks": vgg, "classes": resnet}
PUBLISHED = {"PackNet": 67.5, "CPG": 80.9}


def shifted_and_mirrored(x: Tensor) -> Tensor:
    """The usual augmentation: each picture padded by four, cut out at random, and mirrored half of the time."""
    n, _, height, width = x.shape
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    down, right = torch.randint(9, (2, n), device=x.device)
    rows = (down[:, None] + torch.arange(height, device=x.device))[:, None, :, None]
    columns = right[:, None] + torch.arange(width, device=x.device)
    columns = torch.where(torch.rand(n, 1, device=x.device) < 0.5, columns, columns.flip(1))[:, None, None, :]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[torch.arange(n, device=x.device)[:, None, None, None], channels, rows, columns]


def pictures(root: str) -> tuple[Samples, Samples]:
    """Training and test pictures, normalised."""
    mean, deviation = (torch.tensor(value)[:, None, None] for value in (MEAN, DEVIATION))
    train, test = load("cifar100", root)
    return Samples((train.x - mean) / deviation, train.y), Samples((test.x - mean) / deviation, test.y)


def stand_in(each: int = 12) -> tuple[Samples, Samples]:
    """Random pictures of the same shape and as many classes, to try the script on: nothing can be learned of them."""
    draw = torch.Generator().manual_seed(0)
    y, y_test = torch.arange(100).repeat_interleave(each), torch.arange(100)
    x, x_test = (torch.randn(len(labels), 3, 32, 32, generator=draw) for labels in (y, y_test))
    return Samples(x, y), Samples(x_test, y_test)


def stream_of(table: str, data: tuple[Samples, Samples], seed: int) -> minicl.TaskStream:
    if table == "tasks":
        return minicl.split(data, scenario="task", seed=seed, classes=SUPERCLASSES)
    return minicl.split(data, STEPS, "class", seed, class_order="seed")


def one_run(table: str, method: str, seed: int, data: tuple[Samples, Samples], how: Any, goals: list[float]) -> Any:
    """The accuracy matrix, the tables' two figures, and what each task came to on validation pictures."""
    torch.manual_seed(seed)
    learner = METHODS[table][method](NETWORKS[table], goals)
    stream = stream_of(table, data, seed)
    settings: dict[str, Any] = {
        "epochs": how.epochs,
        "batch_size": 128,
        "optimizer": partial(torch.optim.SGD, lr=how.lr, momentum=0.9, weight_decay=0.0 if method == "HAT" else 5e-4),
        "schedule": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=how.epochs),
        "augment": shifted_and_mirrored,
        "device": how.device,
    }
    R, seconds = np.zeros((len(stream), len(stream))), 0.0
    for t in range(len(stream)):
        seconds += minicl.run(learner, stream[t : t + 1], seed=1000 * seed + t, **settings).seconds
        if method == "WA":
            align(learner)
        R[t, : t + 1] = [minicl.evaluate(learner, task) for task in stream[: t + 1]]
    return {
        "table": table,
        "method": method,
        "seed": seed,
        "accuracy": R.tolist(),
        "ACC": float(R[-1].mean()),
        "mean over the steps": float(np.mean([R[t, : t + 1].mean() for t in range(len(R))])),
        "valid": [minicl.evaluate(learner, task, "valid") for task in stream] if table == "tasks" else [],
        "seconds": seconds,
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--root", help="the folder that holds CIFAR-100, as torchvision lays it out")
    source.add_argument("--stand-in", action="store_true", help="random pictures instead, to try the script")
    parser.add_argument("--table", choices=list(METHODS), default="tasks")
    parser.add_argument("--methods", nargs="+", help="some of the table's (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: 3 of them)")
    parser.add_argument("--epochs", type=int, default=100, help="a task (default: 100)")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("cifar100_runs"), help="a folder for one file per run")
    arguments = parser.parse_args(given)
    methods = arguments.methods or list(METHODS[arguments.table])
    if unknown := set(methods) - set(METHODS[arguments.table]):
        parser.error(
            f"table {arguments.table} has no {', '.join(sorted(unknown))}; it has {list(METHODS[arguments.table])}"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = stand_in() if arguments.stand_in else pictures(arguments.root)
    figure = "ACC" if arguments.table == "tasks" else "mean over the steps"
    for method in methods:
        runs = []
        for seed in range(arguments.seeds):
            path = arguments.out / f"{arguments.table}-{method}-{seed}-{arguments.epochs}.json"
            if not path.exists():
                alone = arguments.out / f"{arguments.table}-individual-{seed}-{arguments.epochs}.json"
                goals = files.read_json(alone)["valid"] if method == "CPG" and alone.exists() else []
                files.write_json(path, one_run(arguments.table, method, seed, data, arguments, goals))
            runs.append(100 * files.read_json(path)[figure])
        spread = f" ± {statistics.stdev(runs):.2f}" if len(runs) > 1 else ""
        beside = f", published {PUBLISHED[method]}" if arguments.table == "tasks" and method in PUBLISHED else ""
        print(f"{method:12} {figure} {statistics.mean(runs):.2f}{spread} ({len(runs)}){beside}", flush=True)


if __name__ == "__main__":
    main()
