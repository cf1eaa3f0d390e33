"""How PackNet's settings for permuted digits were found: a search on validation samples.

    python benchmarks/packnet_search.py

Every combination below is trained on seeds 100 and 101, which no benchmark uses, and judged by its mean accuracy over
all tasks on validation samples. Test samples are never read. A task has five epochs in all, re-training included.
Optimisers are tried first, with one share and one division of the epochs; then shares and divisions with the best
optimiser. The table goes into results/packnet_search.json.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path

import permuted_digits
import torch

import minicl

SEEDS = (100, 101)
OPTIMIZERS = {
    **{f"SGD(lr={lr})": partial(torch.optim.SGD, lr=lr) for lr in (0.1, 0.2, 0.4)},
    **{f"SGD(lr={lr}, momentum=0.9)": partial(torch.optim.SGD, lr=lr, momentum=0.9) for lr in (0.01, 0.02, 0.05, 0.1)},
    **{f"Adam(lr={lr})": partial(torch.optim.Adam, lr=lr) for lr in (0.003, 0.01, 0.02)},
}
SHARES = {
    "each task a tenth": [1 / (permuted_digits.TASKS - k) for k in range(permuted_digits.TASKS)],
    "a fifth of what is free": 0.2,
    "three tenths of what is free": 0.3,
}
RETRAIN = (1, 2, 3)  # of the five epochs


def validation_accuracy(optimizer: str, shares: str, retrain_epochs: int) -> float:
    """Mean over seeds and tasks."""
    make = permuted_digits.each(minicl.PackNet, keep_ratio=SHARES[shares], retrain_epochs=retrain_epochs)
    permuted_digits.METHODS["searched"] = (
        make,
        {"optimizer": OPTIMIZERS[optimizer], "epochs": permuted_digits.EPOCHS - retrain_epochs},
    )
    return statistics.mean(permuted_digits.measure("searched", seed, "valid")[0] for seed in SEEDS)


def main() -> None:
    torch.set_num_threads(1)
    table: list[dict[str, str | int | float]] = []

    def tried(optimizer: str, shares: str, retrain_epochs: int) -> float:
        accuracy = validation_accuracy(optimizer, shares, retrain_epochs)
        row = {"optimizer": optimizer, "keep_ratio": shares, "retrain_epochs": retrain_epochs, "validation": accuracy}
        table.append(row)
        print(f"{accuracy:.2%}  {optimizer}, {shares}, re-trained for {retrain_epochs}", flush=True)
        return accuracy

    by_optimizer = {name: tried(name, "each task a tenth", 2) for name in OPTIMIZERS}
    best = max(by_optimizer, key=by_optimizer.__getitem__)
    for shares in SHARES:
        for retrain_epochs in RETRAIN:
            if (shares, retrain_epochs) != ("each task a tenth", 2):
                tried(best, shares, retrain_epochs)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    found = {"seeds": SEEDS, "epochs": permuted_digits.EPOCHS, "tried": table}
    (folder / "packnet_search.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
