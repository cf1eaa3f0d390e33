"""A commit's subject says one thing in at most 100 characters, and its body why: checked by `make hooks`."""

from __future__ import annotations

import sys
from pathlib import Path

LONGEST = 100


def problem(message: str) -> str | None:
    """What is wrong with a commit message, or None."""
    subject, *rest = [line for line in message.splitlines() if not line.startswith("#")] or [""]
    if not subject.strip():
        return "the commit has no subject"
    if len(subject) > LONGEST:
        return f"the subject has {len(subject)} characters; allowed: {LONGEST}"
    if ";" in subject:
        return "the subject joins several changes with a semicolon; make a commit of each"
    if rest and rest[0].strip():
        return "the second line is not empty; leave one between subject and body"
    return None


if __name__ == "__main__":
    found = problem(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if found:
        sys.exit(f"commit message: {found}")
