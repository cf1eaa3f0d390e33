"""What every test stands on: one thread, checked shapes, reproducible examples."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: OpenMP reads it once
os.environ["MPLBACKEND"] = "Agg"  # no window, whoever runs the tests

from jaxtyping import install_import_hook

# Every public signature that states shapes, Float[Tensor, "batch features"], is checked in every call of every test.
install_import_hook("minicl", "shape_checks.check")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("laptop", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "laptop")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same first weights whatever ran before: which tests share a process is a matter of chance."""
    torch.manual_seed(0)
