"""One of two processes that train learners together: `python ddp_worker.py RANK PORT FOLDER METHOD ...`."""

from __future__ import annotations

import os
import sys
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import minicl


class Loss(nn.Module):
    """What DistributedDataParallel wraps: it averages the gradients of what its forward pass returns."""

    def __init__(self, learner: minicl.Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor, y: Tensor, task_id: int) -> Tensor:
        return self.learner.loss(x, y, task_id)


def train(method: str, rank: int) -> dict[str, Tensor]:
    """Three tasks, of each half of the samples; what the learner holds in the end, but for its memory."""
    torch.manual_seed(0)  # the same first weights
    learner = minicl.METHODS[method](minicl.mlp(64, 16))
    torch.manual_seed(100 + rank)  # and different numbers from then on
    for task in minicl.split("digits", 5, n_train=80)[:3]:
        mine = minicl.Task(task.id, task.n_outputs, (task.train.x[rank::2], task.train.y[rank::2]))
        state = torch.get_rng_state()
        torch.manual_seed(task.id)  # new heads must start alike
        learner.prepare(mine)
        torch.set_rng_state(state)
        learner.learn(mine, partial(fit, learner, mine))
    return {name: tensor for name, tensor in learner.state_dict().items() if not name.startswith("memory.")}


def fit(learner: minicl.Learner, task: minicl.Task, epochs: int = 2) -> None:
    model = DistributedDataParallel(Loss(learner), find_unused_parameters=True)  # a new one for each task
    optimizer = learner.protect(torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1))
    learner.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(task.train)).split(10):
            learner.before_step(0.5)
            optimizer.zero_grad()
            model(task.train.x[rows], task.train.y[rows], task.id).backward()
            optimizer.step()


if __name__ == "__main__":
    rank, port, folder, *methods = sys.argv[1:]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=int(rank), world_size=2)
    for method in methods:
        torch.save(train(method, int(rank)), f"{folder}/{method}-{rank}.pt")
    dist.destroy_process_group()
