"""The page to have at hand: all methods are on it, its functions exist, its loop trains."""

from __future__ import annotations

import pkgutil
import re

import pytest
import scripts
import torch
from loops import logits, small_tasks

import minicl

PAGE = (scripts.BOOK / "cheat_sheet.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| \{class\}`[^<]* <([\w.]+)>` \| \$.*\$.* \| \{(?:func|meth)\}`~([\w.]+)` \| (told|–) \|$", PAGE, re.M
)
BOUNDS = {"FineTune", "Joint", "Individual", "FeatureExtraction"}


def test_every_method_has_a_row_with_a_function_and_who_knows_the_task_id() -> None:
    rows = {name: (function, told) for name, function, told in ROWS}
    classes = {f"{kind.__module__}.{kind.__name__}": kind for kind in minicl.METHODS.values()}
    assert rows.keys() == {name for name, kind in classes.items() if kind.__name__ not in BOUNDS}
    for name, (function, told) in rows.items():
        assert classes[name].needs_task_id == (told == "told"), name
        assert callable(pkgutil.resolve_name(function)), function


def test_the_measures_exist() -> None:
    named = re.findall(r"~(minicl\.metrics\.\w+)", PAGE)
    assert len(named) == 4
    assert all(callable(pkgutil.resolve_name(name)) for name in named)


@pytest.mark.parametrize("method", [minicl.HAT, minicl.PackNet, minicl.EWC])
def test_the_loop_of_ten_lines_trains_every_task(method: type[minicl.Learner]) -> None:
    (loop,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
    assert len(loop.splitlines()) == 10
    tasks = small_tasks(n=2)
    learner = method(minicl.mlp(36, 24))
    answers = []
    for task in tasks:
        exec(loop, {"learner": learner, "task": task, "torch": torch})
        answers += logits(learner, tasks[:1])
    assert learner.learned == [0, 1]
    assert isinstance(minicl.evaluate(learner, tasks[0]), float)
    assert torch.equal(*answers) == (method is not minicl.EWC)
