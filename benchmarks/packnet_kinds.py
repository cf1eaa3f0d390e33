"""How the settings of the PackNet chapter's table were found: four tasks of different kinds, on validation samples.

    python benchmarks/packnet_kinds.py

One learning rate for all methods, and LwF's weight of the old outputs, on seeds 100 and 101, which the chapter does not
use. Test samples are never read. The table goes into results/packnet_kinds.json.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer

import minicl

SEEDS, RATES, STRENGTHS = (100, 101), (0.001, 0.003, 0.01), (1.0, 3.0, 10.0)


def kinds(seed: int) -> list[minicl.Task]:
    """The chapter's tasks, with the validation samples in the place of the test samples."""
    digits, scattered = minicl.permuted("digits", n_tasks=2, seed=seed)
    turned = minicl.rotated("digits", n_tasks=2, max_angle=90, seed=seed)[1]
    x, y = (torch.as_tensor(part) for part in load_breast_cancer(return_X_y=True))
    x = (x - x.amin(0)) / (x.amax(0) - x.amin(0))
    x = torch.nn.functional.pad(x.float(), (0, 34)).view(-1, 1, 8, 8)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, valid = order[:350], order[350:400]
    parts = [(t.train, t.valid, t.valid) for t in (digits, turned, scattered)]
    tumours = ((x[train], y[train]), (x[valid], y[valid]), (x[valid], y[valid]))
    return [minicl.Task(i, 10 if i < 3 else 2, *part) for i, part in enumerate((*parts, tumours))]


def accuracy(make: Callable[[torch.nn.Module], minicl.Learner], lr: float) -> float:
    """Mean over seeds and tasks."""
    optimizer = partial(torch.optim.Adam, lr=lr)
    return statistics.mean(
        minicl.run(
            make(minicl.mlp(64, 100, 100)),
            kinds(seed),
            epochs=4,
            batch_size=64,
            optimizer=optimizer,
            seed=seed,
            progress=False,
        ).average_accuracy
        for seed in SEEDS
    )


def main() -> None:
    torch.set_num_threads(1)
    methods: dict[str, Callable[[torch.nn.Module], minicl.Learner]] = {
        "FeatureExtraction": minicl.FeatureExtraction,
        **{f"LwF(lam={lam})": partial(minicl.LwF, lam=lam) for lam in STRENGTHS},
        "PackNet": partial(minicl.PackNet, keep_ratio=[1 / 4, 1 / 3, 1 / 2, 1.0], retrain_epochs=2),
        "Individual": minicl.Individual,
    }
    table = {name: {str(lr): accuracy(make, lr) for lr in RATES} for name, make in methods.items()}
    for name, row in table.items():
        print(f"{name:20}", "  ".join(f"lr={lr}: {value:.1%}" for lr, value in row.items()))
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    found = {"seeds": SEEDS, "validation accuracy": table}
    (folder / "packnet_kinds.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
