"""Resident memory while `minicl.run` goes through a memory-mapped set of pictures that is larger than one would hold.

    python benchmarks/memory_mapped.py                    4 GB of uint8 pictures, in a temporary folder
    python benchmarks/memory_mapped.py --gigabytes 1 --folder /somewhere

The file is written first (and removed at the end). Then a stream is made of it and learned for one epoch, in a process
of its own, which says how much memory it had before and at most; both with memory that belongs to the process alone
("anonymous") and with pages of the file that are mapped into it. Nothing is held, so neither grows with the file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SIDE = 64
CHUNK = 4096


def write(path: Path, n: int) -> None:
    """n pictures of noise on one of two grey grounds, and their labels, which the ground decides."""
    generator = np.random.default_rng(0)
    x = np.lib.format.open_memmap(path / "x.npy", mode="w+", dtype=np.uint8, shape=(n, 1, SIDE, SIDE))
    y = generator.integers(0, 2, n)
    for start in range(0, n, CHUNK):
        rows = slice(start, min(n, start + CHUNK))
        noise = generator.integers(0, 64, (rows.stop - rows.start, 1, SIDE, SIDE), dtype=np.uint8)
        x[rows] = noise + (64 * y[rows, None, None, None]).astype(np.uint8)
    x.flush()
    np.save(path / "y.npy", y)


def resident() -> dict[str, float]:
    """Resident memory of this process in MB: of its own, and of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: int(found[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon", "RssFile")}


class Watch(threading.Thread):
    """The largest of each, sampled every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = resident()

    def run(self) -> None:
        while True:
            self.most = {name: max(value, self.most[name]) for name, value in resident().items()}
            time.sleep(0.02)


def learn(path: Path) -> None:
    """One epoch over the file, and what it took."""
    import torch

    import minicl

    torch.set_num_threads(1)
    x, y = np.load(path / "x.npy", mmap_mode="r"), np.load(path / "y.npy")
    few = x[:1000].copy(), y[:1000]
    learner = minicl.FineTune(minicl.mlp(SIDE * SIDE, 32))
    minicl.run(learner, minicl.split((few, few), n_tasks=1), epochs=1, progress=False)  # all of PyTorch is loaded
    before, watch = resident(), Watch()
    watch.start()
    started = time.perf_counter()
    n = len(y) - len(y) // 20
    stream = minicl.split(((x[:n], y[:n]), (x[n:], y[n:])), n_tasks=1, validation=0.0)
    learner = minicl.FineTune(minicl.mlp(SIDE * SIDE, 32))
    result = minicl.run(learner, stream, epochs=1, batch_size=256, progress=False)
    seconds = time.perf_counter() - started
    print(f"{x.nbytes / 1e9:.2f} GB, {len(y):,} pictures, one epoch in {seconds:.0f} s, {result}")
    for name, value in before.items():
        most = watch.most[name]
        print(f"{name:8} before {value:7.0f} MB, at most {most:7.0f} MB, grew by {most - value:6.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the file (default 4)")
    parser.add_argument("--folder", type=Path, help="where the file is written (default: a temporary folder)")
    parser.add_argument("--learn", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.learn is not None:
        learn(arguments.learn)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write(Path(folder), round(arguments.gigabytes * 1e9 / SIDE**2))
        subprocess.run([sys.executable, __file__, "--learn", folder], check=True)


if __name__ == "__main__":
    main()
