"""Draw the figure of README.md with minicl: what one network remembers of five tasks, learned one after another.

python tools/readme_figure.py        # writes docs/forgetting.svg, in about ten seconds
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

import minicl
from minicl import plots

TARGET = Path(__file__).resolve().parent.parent / "docs" / "forgetting.svg"


def main() -> None:
    stream = minicl.permuted("digits", n_tasks=5, scenario="domain", seed=0)
    learner = minicl.FineTune(minicl.mlp(64, 256, 256))
    result = minicl.run(learner, stream, epochs=10, batch_size=32, seed=0, progress=False)

    plots.style()  # on a ground of its own, the same on a light page and on a dark one
    figure, axes = plt.subplots(figsize=(7, 3.4))
    plots.accuracy_over_time(result, ax=axes)
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, metadata={"Date": None})
    print(
        f"{TARGET.relative_to(TARGET.parent.parent)}: average accuracy {result.average_accuracy:.3f}, "
        f"forgetting {result.forgetting:.3f}"
    )


if __name__ == "__main__":
    main()
