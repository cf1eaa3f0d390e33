"""The recipes of the page "Your own network": programs for other people's frameworks.

    pip install -e ".[recipes]"    # the frameworks: neither book nor tests need them
    cd book && python -m recipes   # run every recipe, and store what it prints

The page shows what a recipe prints now, where its packages are there, and otherwise
what it printed when that was stored, in recipes/<name>.txt.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NEEDS: dict[str, tuple[str, ...]] = {
    "distributed": (),
    "with_lightning": ("lightning",),
    "with_trainer": ("transformers", "accelerate"),
    "with_accelerate": ("accelerate",),
    "language_model": ("transformers", "peft"),
    "export_onnx": ("onnx", "onnxscript", "onnxruntime"),
}
"""The packages that each recipe needs beside those of the book."""

RUN = """
import runpy, sys, warnings
warnings.filterwarnings("ignore")
from minicl.datasets import torchvision
torchvision()  # some packages import it; without CUDA it must be made ready first
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def missing(name: str) -> list[str]:
    """Packages that a recipe needs and that are not installed."""
    return [
        package for package in NEEDS[name] if importlib.util.find_spec(package) is None
    ]


def output_of(name: str) -> str:
    """What a recipe prints; RuntimeError, with what went wrong, where it fails."""
    script = FOLDER / f"{name}.py"
    command = (
        [sys.executable, str(script)]
        if not NEEDS[name]
        else [sys.executable, "-c", RUN, str(script)]
    )
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def digest(name: str) -> str:
    """Of a recipe's text: which version of it an output is from."""
    return hashlib.blake2b(
        (FOLDER / f"{name}.py").read_bytes(), digest_size=8
    ).hexdigest()


def stored(name: str) -> tuple[str, str]:
    """The output that is kept with a recipe, and the digest of what printed it."""
    first, _, rest = (FOLDER / f"{name}.txt").read_text().partition("\n")
    return rest, first.removeprefix("# printed by ")


def show(name: str) -> None:
    """Print what a recipe prints: now, or what is stored where packages are missing."""
    absent = missing(name)
    if not absent:
        print(output_of(name), end="")
    else:
        print(
            f"(stored output: {', '.join(absent)} not there)\n{stored(name)[0]}",
            end="",
        )
