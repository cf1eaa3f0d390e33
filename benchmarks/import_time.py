"""What `import minicl` costs beside `import torch`: fresh processes that take turns.

    python benchmarks/import_time.py

Target: at most 1.15 times. Libraries that only some users need must not load with the package.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial

from _bench import compare

LATER = ("torchvision", "matplotlib", "sklearn", "scipy", "tqdm", "pandas")
WATCH = "import sys, torch; before = set(sys.modules); import minicl; print(*(set(sys.modules) - before))"


def seconds_to_import(name: str) -> float:
    """Seconds that a fresh interpreter spends on the import, its own start left out."""
    code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="how often each takes its turn (default 20)")
    arguments = parser.parse_args()
    print("import, in a fresh process (target: at most 1.15)")
    compare(
        {f"import {name}": partial(seconds_to_import, name) for name in ("torch", "minicl")},
        rounds=arguments.rounds,
        unit="s",
    )
    loaded = subprocess.run([sys.executable, "-c", WATCH], check=True, capture_output=True, text=True).stdout.split()
    early = sorted(set(loaded) & set(LATER))
    print(
        f"\nof {', '.join(LATER)},\n`import minicl` loads, beyond what torch has loaded: {', '.join(early) or 'none'}"
    )


if __name__ == "__main__":
    main()
