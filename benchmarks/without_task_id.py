"""Split MNIST in Class-IL without a task id: guessing it, with and without rotations, and what a few images buy.

    python benchmarks/without_task_id.py --root FOLDER --out RUNS --jobs 16 --seeds 0 1 2 3 4

FOLDER holds MNIST as torchvision lays it out (the files are read here; torchvision is not needed). A run is one file in
--out; what is there is not run again, and several machines may fill one folder. All is gathered in --results.

Parts, with --parts:

search   PackNet, its network's dropout and epochs, with and without rotations, on training images as they are and on
         images that are moved by up to two pixels, anew in each batch; on the validation samples (a tenth of the
         training images) of seed 100, which no result uses. Of each of the four kinds the setting with the highest
         accuracy of the best rule is taken.
rules    PackNet, HAT and PNN with these settings, every rule, on test images: accuracy, naming, within, the calibration
         error of the largest softmax probability; and with 200 stored images, 20 a class, a scale and a shift a task.
         HAT and PNN are not searched.
memory   ER with 200 images, also on moved images for as many epochs as PackNet, and WA after every task of it; BiC and
         iCaRL with as many; NCM and SLDA on pixels and on features of the first task.
pretrained  NCM and SLDA on features of EfficientNet-Lite0, which has learned ImageNet (what has to be installed:
         benchmarks/pretrained.py), from a few images of each class, and on the pixels of the same images. SLDA's
         epsilon is the best on the seed's validation images.
speed    Twenty tasks: what asking costs, in forward passes of one task; and a step of ICaRL and of generative replay in
         plain steps. Alternating, in one process; not in parallel with anything.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import minicl
from minicl import files, inference
from minicl.replay.wa import align
from minicl.samples import Samples

RESULTS = Path(__file__).resolve().parent / "results" / "without_task_id.json"
TASKS, BATCH, WIDTH, STORED = 5, 128, 400, 200
EPSILONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SIDES = (48, 96)  # pixels, of the images that the network is given
FEW = {"train": 300, "valid": 50, "test": 200}  # images of each class, for a network that takes its time
ADAM = partial(torch.optim.Adam, lr=1e-3)
SHARES = [1 / (TASKS - k) for k in range(TASKS)]
SEARCH_SEEDS = (100,)
PIXELS = 2  # by which training images are moved, at most, in each direction
GRID: list[dict[str, Any]] = [
    {"rotations": rotations, "width": 400, "dropout": dropout, "epochs": epochs, **more}
    for more, rotations, lengths in (
        ({}, False, (1, 3, 10)),
        ({}, True, (3, 10)),
        ({"moved": PIXELS}, False, (3, 10)),
        ({"moved": PIXELS}, True, (3, 10)),
    )
    for dropout in (0.0, 0.5)
    for epochs in lengths
]
UNSEARCHED: dict[bool, dict[str, Any]] = {
    False: {"rotations": False, "width": 400, "dropout": 0.0, "epochs": 3},
    True: {"rotations": True, "width": 400, "dropout": 0.5, "epochs": 10},
}
METHODS: dict[str, Callable[..., minicl.Learner]] = {
    "PackNet": partial(minicl.PackNet, keep_ratio=SHARES, retrain_epochs=1),
    "HAT": minicl.HAT,
    "PNN": minicl.PNN,
}


def idx(path: Path) -> Tensor:
    """The array in a file of MNIST's format, packed or not."""
    packed = path.with_suffix(".gz") if not path.exists() else path
    raw = gzip.decompress(packed.read_bytes()) if packed.suffix == ".gz" else packed.read_bytes()
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy())


def mnist(root: str) -> tuple[Samples, Samples]:
    """Training and test images, from 0 to 1."""
    folder = Path(root) / "MNIST" / "raw"
    found = []
    for part in ("train", "t10k"):
        x, y = (idx(folder / f"{part}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        found.append(Samples(x[:, None].float() / 255, y.long()))
    return found[0], found[1]


def stream_of(root: str, seed: int, scenario: str = "class") -> minicl.TaskStream:
    return minicl.split(mnist(root), TASKS, scenario, seed)


def moved(x: Tensor, pixels: int) -> Tensor:
    """Each image of a batch, moved by up to so many pixels in each direction; what comes in is black."""
    n, _, height, width = x.shape
    padded = F.pad(x, [pixels] * 4)
    down, right = torch.randint(2 * pixels + 1, (2, n, 1, 1))
    rows, columns = torch.arange(height)[:, None] + down, torch.arange(width) + right
    return padded[torch.arange(n)[:, None, None], :, rows, columns].movedim(-1, 1)


def trained(method: str, setting: dict[str, Any], stream: minicl.TaskStream, seed: int) -> minicl.Learner:
    """A learner that was told the task ids, and is tested without."""
    torch.manual_seed(seed)  # of the first weights
    width = setting["width"]
    net = minicl.mlp(784, width, width, dropout=setting["dropout"])
    if method == "PNN":  # five columns of this width have as many weights as the others' one network, about
        net = minicl.mlp(784, width // 4, width // 4, dropout=setting["dropout"])
    learner = METHODS[method](net, **({"rotations": True} if setting["rotations"] else {}))
    how: dict[str, Any] = {"epochs": setting["epochs"], "batch_size": BATCH, "optimizer": ADAM, "seed": seed}
    if "moved" in setting:
        how["augment"] = partial(moved, pixels=setting["moved"])
    minicl.run(learner, inference.as_told(stream), progress=False, **how)
    return learner


def rules_of(learner: minicl.Learner) -> list[str]:
    return [
        rule
        for rule in inference.RULES
        if (rule != "rotation" or learner.rotations) and (rule != "gradient" or not isinstance(learner, minicl.PNN))
    ]


def asked(learner: minicl.Learner, told: list[minicl.Task], part: str) -> dict[str, Any]:
    """For each rule: share of all samples that are right, task and class, and what it is made of."""
    found: dict[str, Any] = {}
    for rule in rules_of(learner):
        parts = inference.decomposition(learner, told, rule, part)
        found[rule] = {"accuracy": parts.accuracy, "naming": parts.naming, "within": parts.within}
        found[rule]["confusion"] = parts.confusion.tolist()
    return found


def best_setting(out: Path, rotations: bool, moving: bool = False) -> dict[str, Any]:
    """Of those that were searched, by the best rule on validation samples; without a search, what the book says."""
    scores: dict[str, list[float]] = {}
    for path in sorted(out.glob("search-*.json")):
        run = files.read_json(path)
        if (run["setting"]["rotations"], "moved" in run["setting"]) == (rotations, moving):
            best = max(rule["accuracy"] for rule in run["rules"].values())
            scores.setdefault(json.dumps(run["setting"], sort_keys=True), []).append(best)
    whole = {key: statistics.mean(values) for key, values in scores.items() if len(values) == len(SEARCH_SEEDS)}
    without = UNSEARCHED[rotations] | ({"moved": PIXELS} if moving else {})
    found: dict[str, Any] = json.loads(max(whole, key=whole.__getitem__)) if whole else without
    return found


def search(root: str, out: Path, seed: int, setting: dict[str, Any]) -> dict[str, Any]:
    stream = stream_of(root, seed)
    learner = trained("PackNet", setting, stream, seed)
    return {"rules": asked(learner, inference.as_told(stream), "valid"), "setting": setting, "seed": seed}


def rules(root: str, out: Path, seed: int, method: str, rotations: bool, moving: bool = False) -> dict[str, Any]:
    stream, setting = stream_of(root, seed), best_setting(out, rotations, moving)
    learner = trained(method, setting, stream, seed)
    told = inference.as_told(stream)
    found = asked(learner, told, "test")
    x, y = (torch.cat([getattr(task.test, what) for task in stream]) for what in "xy")
    sure = inference.task_scores(learner, x, "softmax").amax(1)
    right = minicl.predict(learner, x, "softmax") == y
    stored = [_few(task.train, STORED // (2 * TASKS), seed) for task in told]
    ids = torch.cat([torch.full_like(part.y, task.id) for part, task in zip(stored, told, strict=True)])
    few_x, few_y = (torch.cat([getattr(part, what) for part in stored]) for what in "xy")
    calibrations = {}
    for rule in ("logit", "energy", "softmax"):
        fitted = inference.calibrate(learner, few_x, few_y, ids)
        calibrations[rule] = inference.decomposition(learner, told, rule, calibration=fitted).accuracy
    capacity = learner.capacity()
    return {
        "method": method,
        "rotations": rotations,
        "setting": setting,
        "seed": seed,
        "rules": found,
        "calibration error": inference.calibration_error(sure, right),
        "calibrated": calibrations,
        "bytes": capacity["bytes"] + capacity["extra_bytes"],
    }


def _few(samples: Samples, n: int, seed: int) -> Samples:
    """n samples of each class."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(samples.y == c).nonzero().flatten() for c in samples.y.unique()]
    found: Samples = samples[torch.cat([r[torch.randperm(len(r), generator=generator)[:n]] for r in rows])]
    return found


def memory(root: str, out: Path, seed: int, name: str) -> dict[str, Any]:
    stream = stream_of(root, seed)
    pixels = nn.Flatten()
    make: dict[str, Callable[[], minicl.Learner]] = {
        "ER": lambda: minicl.ER(minicl.mlp(784, WIDTH, WIDTH), budget=STORED, share="class"),
        "ER, moved": lambda: minicl.ER(minicl.mlp(784, WIDTH, WIDTH), budget=STORED, share="class"),
        "ER and WA": lambda: minicl.ER(minicl.mlp(784, WIDTH, WIDTH), budget=STORED, share="class"),
        "BiC": lambda: minicl.BiC(minicl.mlp(784, WIDTH, WIDTH), budget=STORED),
        "ICaRL": lambda: minicl.ICaRL(minicl.mlp(784, WIDTH, WIDTH), budget=STORED),
        "NCM, pixels": lambda: minicl.NCM(pixels, train_first=False),
        "SLDA, pixels": lambda: minicl.SLDA(pixels, train_first=False, epsilon=0.01),
        "NCM, first task": lambda: minicl.NCM(minicl.mlp(784, WIDTH, WIDTH)),
        "SLDA, first task": lambda: minicl.SLDA(minicl.mlp(784, WIDTH, WIDTH), epsilon=0.01),
    }
    torch.manual_seed(seed)
    learner = make[name]()
    how: dict[str, Any] = {"epochs": 4, "batch_size": BATCH, "optimizer": ADAM, "seed": seed, "progress": False}
    if "moved" in name:
        how |= {"epochs": 10, "augment": partial(moved, pixels=PIXELS)}
    for task in stream:
        minicl.run(learner, [task], **how)
        if "WA" in name:
            align(learner)
    accuracies = [minicl.evaluate(learner, task) for task in stream]
    capacity = learner.capacity()
    size = capacity["bytes"] + capacity["extra_bytes"]
    return {"method": name, "seed": seed, "ACC": statistics.mean(accuracies), "bytes": size}


@torch.no_grad()
def on_features(root: str, out: Path, seed: int) -> dict[str, Any]:
    """ACC of means over a network that has learned something else, and over pixels, from the same few images."""
    from pretrained import bytes_of, lite0, prepared

    network = lite0().eval()
    stream = stream_of(root, seed)
    few = {part: [_few(getattr(task, part), n, seed) for task in stream] for part, n in FEW.items()}
    found: dict[str, Any] = {"seed": seed, "images": FEW, "ACC": {}, "bytes": {}, "epsilon": {}}
    for name, side in (("pixels", None), *((f"EfficientNet, {side} pixels", side) for side in SIDES)):

        def made(x: Tensor, side: int | None = side) -> Tensor:
            return x.flatten(1) if side is None else torch.cat([network(prepared(p, side)) for p in x.split(100)])

        parts = {part: [(made(samples.x), samples.y) for samples in all_of] for part, all_of in few.items()}
        still = {"train_first": False}
        judge = partial(_learned, stream, parts)
        tried = {e: judge(minicl.SLDA(nn.Flatten(), epsilon=e, **still), "valid")[0] for e in EPSILONS}
        epsilon = found["epsilon"][name] = max(tried, key=tried.__getitem__)
        for method, learner in (
            ("NCM", minicl.NCM(nn.Flatten(), **still)),
            ("SLDA", minicl.SLDA(nn.Flatten(), epsilon=epsilon, **still)),
        ):
            accuracy, size = judge(learner, "test")
            found["ACC"][f"{method}, {name}"] = accuracy
            found["bytes"][f"{method}, {name}"] = size + (0 if side is None else bytes_of(network))
    return found


def _learned(
    stream: minicl.TaskStream, parts: dict[str, Any], learner: minicl.Learner, judge: str
) -> tuple[float, int]:
    """ACC on one part of the data, and the bytes that are kept."""
    tasks = [
        minicl.Task(t.id, t.n_outputs, parts["train"][t.id], None, parts[judge][t.id], scenario="class") for t in stream
    ]
    result = minicl.run(learner, tasks, progress=False)
    return result.average_accuracy, result.capacity["bytes"] + result.capacity["extra_bytes"]


def speed(root: str, out: Path, seed: int) -> dict[str, Any]:
    """Medians of alternating turns, in one process."""
    torch.manual_seed(seed)
    T, x = 20, torch.rand(1000, 1, 28, 28)
    y = torch.arange(40) % 2
    learners: dict[str, minicl.Learner] = {
        "PackNet": minicl.PackNet(
            minicl.mlp(784, WIDTH, WIDTH), keep_ratio=[1 / (T - k) for k in range(T)], retrain_epochs=0
        ),
        "HAT": minicl.HAT(minicl.mlp(784, WIDTH, WIDTH)),
    }
    found: dict[str, Any] = {}
    for name, learner in learners.items():
        for t in range(T):
            task = minicl.Task(t, 2, (torch.rand(40, 1, 28, 28), y), None, (x[:40], y))
            minicl.run(learner, [task], epochs=1, optimizer=ADAM, progress=False)
        learner.eval()
        with torch.no_grad():
            ways: dict[str, Callable[[], object]] = {
                "one forward pass": lambda learner=learner: learner(x, 3),
                "softmax": partial(minicl.predict, learner, x),
                "gradient, one task a batch": partial(minicl.predict, learner, x, "gradient", together=True),
                "gradient, each sample": partial(minicl.predict, learner, x, "gradient"),
            }
            found[name] = _ratios(ways)
    images, labels = torch.rand(640, 1, 28, 28), torch.arange(640) % 2
    stream = [
        minicl.Task(t, 2 * t + 2, (images, labels + 2 * t), None, (x[:2], y[:2] + 2 * t), scenario="class")
        for t in range(2)
    ]
    steps: dict[str, Callable[[], float]] = {}
    for name, make in {
        "plain": minicl.FineTune,
        "ICaRL": partial(minicl.ICaRL, budget=500),
        "GenerativeReplay": minicl.GenerativeReplay,
    }.items():
        steps[name] = partial(_seconds_of_a_step, make, stream)
    found["steps"] = _ratios(steps)
    return found


def _seconds_of_a_step(make: Callable[..., minicl.Learner], stream: list[minicl.Task]) -> float:
    """Of the second task, of batches of 64 new samples."""
    learner = make(minicl.mlp(784, WIDTH, WIDTH))
    minicl.run(learner, stream[:1], epochs=1, batch_size=64, optimizer=ADAM, progress=False)
    return minicl.run(learner, stream[1:], epochs=2, batch_size=64, optimizer=ADAM, progress=False).seconds / 20


def _ratios(ways: dict[str, Callable[[], Any]], rounds: int = 9) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in ways if turn % 2 else reversed(ways):
            started = time.perf_counter()
            told = ways[name]()
            elapsed = told if isinstance(told, float) else time.perf_counter() - started
            if turn:
                times[name].append(elapsed)
    first = statistics.median(next(iter(times.values())))
    return {name: statistics.median(values) / first for name, values in times.items()}


PARTS = ("search", "rules", "memory", "pretrained", "speed")
MEMORY = (
    "ER",
    "ER, moved",
    "ER and WA",
    "BiC",
    "ICaRL",
    "NCM, pixels",
    "SLDA, pixels",
    "NCM, first task",
    "SLDA, first task",
)
DO: dict[str, Callable[..., dict[str, Any]]] = {
    "search": search,
    "rules": rules,
    "memory": memory,
    "pretrained": on_features,
    "speed": speed,
}


def jobs_of(part: str, seeds: list[int]) -> list[tuple[str, tuple[Any, ...]]]:
    """Name of the file, and arguments, of each run of a part; the long ones first."""
    if part == "search":
        grid = sorted(GRID, key=lambda s: -s["epochs"] * s["width"] * (4 if s["rotations"] else 1))
        return [
            (f"search-{'-'.join(str(v) for v in s.values())}-{seed}", (seed, s)) for s in grid for seed in SEARCH_SEEDS
        ]
    if part == "rules":
        return [
            (f"rules-{m}-{r}-{seed}" + "-moved" * moving, (seed, m, r, moving))
            for moving in (True, False)
            for r in (True, False)
            for m in METHODS
            for seed in seeds
        ]
    if part == "memory":
        return [
            (f"memory-{name.replace(', ', '-').replace(' ', '-')}-{seed}", (seed, name))
            for name in MEMORY
            for seed in seeds
        ]
    if part == "pretrained":
        return [(f"pretrained-{seed}", (seed,)) for seed in seeds]
    return [("speed-0", (0,))]


def work(part: str, name: str, arguments: tuple[Any, ...], root: str, out: Path) -> str:
    torch.set_num_threads(1)
    path = out / f"{name}.json"
    if not path.exists():
        started = time.perf_counter()
        found = DO[part](root, out, *arguments)
        files.write_json(path, {"part": part, **found, "seconds": round(time.perf_counter() - started, 1)})
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="the folder that holds MNIST/raw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each with one thread")
    parser.add_argument("--out", type=Path, default=Path("without_task_id_runs"), help="a folder for one file per run")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where all runs are gathered")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    for part in PARTS:  # the search decides what the others run
        if part not in given.parts:
            continue
        jobs = jobs_of(part, given.seeds)
        if given.jobs == 1 or part == "speed":
            for name, arguments in jobs:
                print(work(part, name, arguments, given.root, given.out), flush=True)
            continue
        with ProcessPoolExecutor(given.jobs) as pool:
            futures = [pool.submit(work, part, name, arguments, given.root, given.out) for name, arguments in jobs]
            for future in futures:
                print(future.result(), flush=True)
    runs = [files.read_json(path) for path in sorted(given.out.glob("*.json"))]
    command = "python benchmarks/without_task_id.py --root FOLDER --seeds " + " ".join(map(str, given.seeds))
    given.results.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(given.results, {"command": command, "torch": torch.__version__, "runs": runs})


if __name__ == "__main__":
    main()
