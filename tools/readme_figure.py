"""Draw the figure of README.md with minicl: what one network remembers of five tasks, learned one after another.

python tools/readme_figure.py        # writes docs/forgetting.svg, in about ten seconds
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch

import minicl

TARGET = Path(__file__).resolve().parent.parent / "docs" / "forgetting.svg"
GREY = "#7f7f7f"  # legible on white and on black
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B"]
MARKERS = ["o", "s", "^", "D", "v"]


def main() -> None:
    stream = minicl.permuted("digits", n_tasks=5, scenario="domain", seed=0)
    learner = minicl.FineTune(minicl.mlp(64, 256, 256))
    result = minicl.run(learner, stream, epochs=10, optimizer=partial(torch.optim.SGD, lr=0.1), seed=0, progress=False)
    accuracy = 100 * np.asarray(result.accuracy)
    n_tasks = len(accuracy)

    mpl.rcParams.update({"svg.hashsalt": "minicl", "svg.fonttype": "path", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for task in range(n_tasks):
        learned = np.arange(task, n_tasks)
        (line,) = axes.plot(learned + 1, accuracy[task:, task], color=COLOURS[task], linewidth=2)
        line.set(marker=MARKERS[task], label=f"task {task + 1}")
    axes.set(xlabel="tasks learned so far", ylabel="test accuracy (%)", xticks=range(1, n_tasks + 1), ylim=(0, 104))
    axes.tick_params(colors=GREY)
    axes.xaxis.label.set_color(GREY)
    axes.yaxis.label.set_color(GREY)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    axes.legend(frameon=False, labelcolor=GREY, loc="lower left", ncols=n_tasks, handlelength=1.6, columnspacing=1.2)

    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, metadata={"Date": None}, transparent=True)
    print(
        f"{TARGET.relative_to(TARGET.parent.parent)}: average accuracy {result.average_accuracy:.3f}, "
        f"forgetting {result.forgetting:.3f}"
    )


if __name__ == "__main__":
    main()
