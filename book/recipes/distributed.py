"""DistributedDataParallel: two processes, each with half of a batch, train one learner.

What is wrapped is the loss, so that PyTorch averages the gradients of whatever the
method adds to it; one wrapper per task, since a task brings a head of its own. minicl
averages importances and reference gradients itself.
"""

import os
import tempfile

import minicl
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Loss(nn.Module):
    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def forward(self, x, y, task_id):
        return self.learner.loss(x, y, task_id)


def work(rank, file):
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    torch.manual_seed(
        0
    )  # the same first weights, and the same new heads, in both processes
    stream = minicl.split("digits", n_tasks=5, seed=0)[:3]
    learner = minicl.PackNet(minicl.mlp(64, 128), keep_ratio=0.4)
    before = {}
    for task in stream:

        def fit(epochs=8, tasks=None, task=task):
            model = DistributedDataParallel(Loss(learner), find_unused_parameters=True)
            trainable = [p for p in learner.parameters() if p.requires_grad]
            optimizer = learner.protect(
                torch.optim.SGD(trainable, lr=0.1, momentum=0.9)
            )
            learner.train()
            for _ in range(epochs):
                for rows in torch.randperm(len(task.train)).split(32):
                    mine = rows[rank::2]
                    optimizer.zero_grad()
                    model(task.train.x[mine], task.train.y[mine], task.id).backward()
                    optimizer.step()

        learner.learn(task, fit)
        learner.eval()
        assert all(
            torch.equal(learner(stream[t].test.x, t), logits)
            for t, logits in before.items()
        )
        before[task.id] = learner(task.test.x, task.id)
        both = [torch.empty_like(before[task.id]) for _ in range(2)]
        dist.all_gather(both, before[task.id].detach())
        if rank == 0:
            same = torch.equal(*both)
            accuracy = minicl.evaluate(learner, task)
            print(f"{task.name}: {accuracy:.1%}, the same in both processes: {same}")
            assert same
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (os.path.join(folder, "meeting"),), nprocs=2)
