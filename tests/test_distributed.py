"""Two processes, each with its half of the data and its own random numbers, and one learner in the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from minicl import distributed

WORKER = Path(__file__).with_name("ddp_worker.py")
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


METHODS = ("ewc", "si", "mas", "agscl", "agem", "gem", "packnet", "hat", "er", "derpp", "lwf")


def test_two_processes_end_with_the_same_learner(tmp_path: Path) -> None:
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parent.parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(WORKER), str(rank), port, str(tmp_path), *METHODS],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    differ = []
    for method in METHODS:
        first, second = (torch.load(tmp_path / f"{method}-{rank}.pt") for rank in range(2))
        assert first.keys() == second.keys()
        differ += [f"{method}: {name}" for name in first if not torch.equal(first[name], second[name])]
    assert differ == []


def test_one_process_averages_nothing() -> None:
    tensor = torch.arange(3.0)
    distributed.average([tensor])
    assert tensor.tolist() == [0, 1, 2]
    assert distributed.world_size() == 1
