"""Run every recipe, or those that are named, and store what they print."""

import sys

from . import FOLDER, NEEDS, digest, missing, output_of

for name in sys.argv[1:] or NEEDS:
    if missing(name):
        raise SystemExit(
            f"{name} needs {', '.join(missing(name))}: pip install -e '.[recipes]'"
        )
    text = output_of(name)
    (FOLDER / f"{name}.txt").write_text(f"# printed by {digest(name)}\n{text}")
    print(f"== {name}\n{text}")
