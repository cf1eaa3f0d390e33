"""Let nbval run the notebooks that have no valid result yet, several at a time, and keep the results for the build.

jupyter-cache recognises a notebook by its code cells alone. A change inside `minicl`, in the pins or in Python would
leave old numbers on the page, so a fingerprint of all of these lies beside the cache, which is dropped when it differs.
What nbval has run in this state (here, or by `make notebooks`) is taken as it came out, and not run a second time.

    python tools/fill_cache.py [--jobs N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import executed
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "_build" / ".jupyter_cache"
FINGERPRINT = ROOT / "_build" / ".jupyter_cache_fingerprint"


def pages() -> list[Path]:
    """The notebooks of the book."""
    return sorted(p for p in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def store(cache: JupyterCacheAbstract, path: Path, notebook: NotebookNode, seconds: float) -> None:
    """Put a notebook with its outputs where the build looks for it."""
    bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": seconds})
    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def run(paths: Sequence[Path], jobs: int, timeout: int) -> int:
    """Let nbval run notebooks; what passes is kept by `book/conftest.py`. Returns pytest's exit status."""
    nbval = ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={timeout}"]
    several = ["-n", str(min(jobs, len(paths))), "--dist", "loadscope"]
    return subprocess.run([sys.executable, "-m", "pytest", *nbval, *several, *map(str, paths)], cwd=ROOT).returncode


def time_limit() -> int:
    """Seconds that a cell may take: what `_config.yml` says, times MINICL_TIMEOUT_FACTOR, for slow machines."""
    limit = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["execute"]["timeout"]
    text = os.environ.get("MINICL_TIMEOUT_FACTOR", "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise SystemExit(f"MINICL_TIMEOUT_FACTOR is {text!r}; allowed: numbers above 0, such as 4")
    return round(limit * factor)


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute the notebooks of the book, several at a time.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="notebooks at a time")
    jobs = max(1, parser.parse_args().jobs)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    timeout = time_limit()  # what is wrong is said before anything is dropped

    now = executed.fingerprint()
    if CACHE.exists() and (not FINGERPRINT.exists() or FINGERPRINT.read_text() != now):
        print("minicl, the pins or Python changed: every notebook runs again")
        shutil.rmtree(CACHE)
    CACHE.parent.mkdir(exist_ok=True)
    FINGERPRINT.write_text(now)

    cache = get_cache(CACHE)

    def missing() -> list[Path]:
        """Notebooks that have no valid result, after those that were run are put where the build looks for them."""
        found = []
        for path in pages():
            notebook = cache.get_project_notebook(cache.add_nb_to_project(str(path)).pk).nb
            try:
                cache.match_cache_notebook(notebook)
            except KeyError:
                seconds = executed.take(path, notebook, now)
                if seconds is None:
                    found.append(path)
                else:
                    store(cache, path, notebook, seconds)
        return found

    todo, total = missing(), len(pages())
    print(f"{total - len(todo)} of {total} notebooks are up to date", flush=True)
    if todo:
        status, failed = run(todo, jobs, timeout), missing()
        if status or failed:
            names = ", ".join(path.relative_to(ROOT).as_posix() for path in failed) or "a test beside the notebooks"
            print(f"failed: {names}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
