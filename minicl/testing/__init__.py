"""A contract that anybody's learner can be held to.

    minicl.testing.check_learner(MyMethod)                    # or check_learner(MyMethod, keeps="logits")

Three tables say what is looked at. METHODS: what each method of minicl promises, takes and refuses. LOOPS: the ways in
which people train. WRITERS: other people's tools that write over weights, statistics and modes. Every method runs in
every cell, or refuses it in words. `python -m minicl.testing` draws random cases from all of it.
"""

from .contract import PROMISES, cells, check_learner
from .loops import LOOPS, OPTIMIZERS, Loop, Way, small_tasks
from .methods import METHODS, VARIANTS, Method
from .strictness import strict
from .writers import WRITERS, Scene, Writer

__all__ = [
    "LOOPS",
    "METHODS",
    "OPTIMIZERS",
    "PROMISES",
    "VARIANTS",
    "WRITERS",
    "Loop",
    "Method",
    "Scene",
    "Way",
    "Writer",
    "cells",
    "check_learner",
    "small_tasks",
    "strict",
]
