"""Several processes that train one learner together, each on its share of the data (DistributedDataParallel).

The gradients that the processes exchange are those of the loss. What a method works out beside it (importances,
gradients of remembered samples) each process works out from its own data, so it must be averaged, or their networks
would drift apart.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    """The number of processes that train together; 1 where nobody has begun a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_wrapper(learner: nn.Module) -> None:
    """RuntimeError where the `DistributedDataParallel` whose forward pass this is in does not know all parameters.

    It averages the gradients of those that there were when it was made; later ones would drift apart, process by
    process.

    Args:
        learner: that is trained.
    """
    wrapper = DistributedDataParallel._get_active_ddp_module() if dist.is_available() else None
    if wrapper is None or not torch.is_grad_enabled():
        return
    known = {id(parameter) for parameter in getattr(wrapper, "_module_parameters", learner.parameters())}
    left = [name for name, p in learner.named_parameters() if p.requires_grad and id(p) not in known]
    ignored = getattr(wrapper, "parameters_to_ignore", ())
    left = [name for name in left if not any(f".{other}".endswith(f".{name}") for other in ignored)]
    if left and any(module is learner for module in wrapper.modules()):
        raise RuntimeError(
            f"{', '.join(left[:3])}{' and others' if len(left) > 3 else ''} came after this DistributedDataParallel "
            "was made, which would not average their gradients: each process would learn its own. Make a new wrapper "
            "in the function that is given to learn, for each of its calls"
        )


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
