"""Several processes that train one learner together, each on its share of the data (DistributedDataParallel).

The gradients that the processes exchange are those of the loss. What a method works out beside it (importances,
gradients of remembered samples) each process works out from its own data, so it must be averaged, or their networks
would drift apart.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of processes that train together; 1 where nobody has begun a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place. Each process gives as many, of the same shapes.

    Raises:
        ValueError: the processes hold different numbers of numbers, as where one has no sample of a task in its memory.
    """
    n = world_size()
    if n == 1:
        return
    tensors = list(tensors)
    size = torch.tensor([sum(t.numel() for t in tensors)], dtype=torch.long)
    sizes = [torch.zeros_like(size) for _ in range(n)]
    dist.all_gather(sizes, size)
    if len({int(s) for s in sizes}) > 1:
        raise ValueError(
            f"the processes have {', '.join(str(int(s)) for s in sizes)} numbers to average, which must be as many; "
            "each needs samples of every task (share='task' in the memory of each)"
        )
    for tensor in tensors:
        shared = tensor.contiguous()
        dist.all_reduce(shared)
        tensor.copy_(shared / n)
