"""How fast `minicl.run` goes through a stream that is held: this copy of the package against another one.

    git worktree add /tmp/before REVISION
    python benchmarks/held.py --against /tmp/before

Both are run in processes of their own, in turns, in one sitting. Each gives the least processor time of five runs, and
what is printed are the medians of those, and their ratio. A run trains fine-tuning on digits, 64-100-100, Adam,
batches of 32: small enough that reading data and all that is done around a step would show.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
WORK = """
import functools, time, torch, minicl
torch.set_num_threads(1)
stream = minicl.permuted("digits", 1)
adam = functools.partial(torch.optim.Adam, lr=1e-3)
def once(epochs):
    started = time.process_time()
    learner = minicl.FineTune(minicl.mlp(64, 100, 100))
    minicl.run(learner, stream, epochs=epochs, batch_size=32, optimizer=adam, progress=False)
    return time.process_time() - started
once(1)  # the first step of an optimiser imports much
print(min(once(8) for _ in range(5)))
"""


def seconds(package: Path) -> float:
    """Of a run, with the package in this folder."""
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, required=True, metavar="FOLDER", help="another copy of the repository")
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    pairs = [(seconds(HERE), seconds(given.against)) for _ in range(given.turns)]
    here, there = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"here {here:.3f} s, there {there:.3f} s, ratio {here / there:.3f} (medians of {given.turns})")


if __name__ == "__main__":
    main()
