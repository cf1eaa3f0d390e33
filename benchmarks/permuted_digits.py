"""Accuracy on permuted digits: 10 tasks, 5 epochs per task, 64-256-256, batch 32, the task id known, 3 seeds.

    python benchmarks/permuted_digits.py METHOD [--part valid]

Each method comes with the settings that the book uses for it. They were chosen on validation samples alone, and how is
written beside them. The samples tested on never chose anything.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import minicl

SGD = torch.optim.SGD
TASKS, EPOCHS, BATCH, WIDTHS = 10, 5, 32, (64, 256, 256)


def each(method: type[minicl.Learner], **hyperparameters: Any) -> Callable[[], minicl.Learner]:
    """A function that makes such a learner anew."""
    return lambda: method(minicl.mlp(*WIDTHS), **hyperparameters)


METHODS: dict[str, tuple[Callable[[], minicl.Learner], dict[str, Any]]] = {
    # A method's settings: how it is made, and what `minicl.run` is told (epochs and batch size too, where they differ).
    "finetune": (each(minicl.FineTune), {"optimizer": partial(SGD, lr=0.1)}),
    "individual": (each(minicl.Individual), {"optimizer": partial(torch.optim.Adam, lr=0.01)}),
    "feature-extraction": (each(minicl.FeatureExtraction), {"optimizer": partial(SGD, lr=0.1)}),
    # Validation: Adam with lr 0.001 and 0.002 95.6 and 95.8 %; SGD with momentum 0.9 and lr 0.05 95.0 %; plain SGD
    # with lr 0.1 93.0 %.
    "pnn": (each(minicl.PNN), {"optimizer": partial(torch.optim.Adam, lr=0.002)}),
    # Found by hat_search.py: validation 96.1 %, against 93.5 % with a constant learning rate.
    "hat": (
        each(minicl.HAT, s_max=1000.0, c=1.0),
        {
            "optimizer": partial(SGD, lr=0.1, momentum=0.9),
            "schedule": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=EPOCHS),
        },
    ),
    # Found by packnet_search.py: three epochs of training, two of re-training; each task keeps a tenth of the weights.
    "packnet": (
        each(minicl.PackNet, keep_ratio=[1 / (TASKS - k) for k in range(TASKS)], retrain_epochs=2),
        {"optimizer": partial(torch.optim.Adam, lr=0.01), "epochs": 3},
    ),
}


def measure(name: str, seed: int, part: str = "test") -> tuple[float, float, float]:
    """ACC, BWT and seconds of training for one seed, on a part of the tasks."""
    make, settings = METHODS[name]
    stream = minicl.permuted("digits", TASKS, scenario="task", seed=seed)
    if part == "valid":  # the same tasks, with their validation samples in the place of the test samples
        stream = minicl.TaskStream(
            [minicl.Task(t.id, t.n_outputs, t.train, t.valid, t.valid, scenario=t.scenario) for t in stream],
            "permuted-digits-valid",
        )
    settings = {"epochs": EPOCHS, "batch_size": BATCH, **settings}
    result = minicl.run(make(), stream, seed=seed, progress=False, **settings)
    return result.average_accuracy, result.backward_transfer, result.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=sorted(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: 3 of them)")
    parser.add_argument(
        "--part", choices=("test", "valid"), default="test", help="measured on which samples (default: test)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in range(arguments.seeds):
        started = time.perf_counter()
        acc, bwt, seconds = measure(arguments.method, seed, arguments.part)
        found.append(acc)
        print(
            f"{arguments.method}, {arguments.part}, seed {seed}: ACC {acc:.2%}  BWT {bwt:+.2%}  "
            f"{seconds:.1f} s of training, {time.perf_counter() - started:.1f} s in all",
            flush=True,
        )
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    print(
        f"{arguments.method}, {arguments.part}: mean ACC {statistics.mean(found):.2%}, standard deviation {spread:.2%}"
    )


if __name__ == "__main__":
    main()
