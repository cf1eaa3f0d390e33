"""Backbones: plain `nn.Sequential` networks from a batch to features of shape (batch, features).

Any other `nn.Module` with that shape of output serves as well; these are here so that examples fit on one line.
"""

from __future__ import annotations

import hashlib
import math
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import prune

from . import inputs
from .freezing import copied


def mlp(
    *widths: int,
    activation: type[nn.Module] = nn.ReLU,
    bias: bool = True,
    batchnorm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A fully connected backbone. `mlp(64, 256, 256)` takes 64 numbers (images are flattened) to 256 features.

    Args:
        widths: number of inputs, then the width of each hidden layer; at least two positive integers.
        activation: the module after each layer.
        bias: give the layers biases.
        batchnorm: normalise before each activation.
        dropout: probability of dropping a unit after each activation.

    Raises:
        ValueError: fewer than two widths, a width below 1, or a dropout outside [0, 1).
        TypeError: an activation that makes no modules.
    """
    _check("mlp", widths, activation, dropout)
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers.append(nn.Linear(n_in, n_out, bias=bias))
        layers += _after(activation, nn.BatchNorm1d(n_out) if batchnorm else None, dropout)
    return mark_initial(nn.Sequential(*layers))


def cnn(
    *channels: int,
    kernel_size: int = 3,
    pool: int = 2,
    activation: type[nn.Module] = nn.ReLU,
    bias: bool = True,
    batchnorm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A convolutional backbone. `cnn(1, 16, 32)` takes grey images through two blocks to flattened maps.

    Each block is a convolution that keeps the size, an activation, and a max-pooling that divides it by `pool`.

    Args:
        channels: channels of the image, then of each block; at least two positive integers.
        kernel_size: side of the kernels, odd.
        pool: side of the pooling windows; 1 for none.
        activation, bias, batchnorm, dropout: as for `mlp`.

    Raises:
        ValueError: fewer than two channel counts, one below 1, an even kernel, pool below 1, dropout outside [0, 1).
    """
    _check("cnn", channels, activation, dropout)
    if kernel_size < 1 or kernel_size % 2 != 1:
        raise ValueError(
            f"kernel_size is {kernel_size}; allowed: odd numbers from 1 up, which keep the size of the image"
        )
    if pool < 1 or pool % 1:
        raise ValueError(f"pool is {pool}; allowed: integers from 1 (no pooling) up")
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(channels):
        layers.append(nn.Conv2d(n_in, n_out, kernel_size, padding=kernel_size // 2, bias=bias))
        layers += _after(activation, nn.BatchNorm2d(n_out) if batchnorm else None, dropout)
        if pool > 1:
            layers.append(nn.MaxPool2d(pool))
    return mark_initial(nn.Sequential(*layers, nn.Flatten()))


def layers(name: str) -> tuple[str, list[int]]:
    """Kind and sizes from a name: "mlp:256,256" (hidden widths) or "cnn:16,32" (channels).

    Raises:
        ValueError: a name that is neither.
    """
    kind, _, sizes = name.partition(":")
    try:
        widths = [int(size) for size in sizes.split(",")]
    except ValueError:
        widths = []
    if kind not in ("mlp", "cnn") or not widths or min(widths) < 1:
        raise ValueError(f"the network is {name!r}; allowed: mlp:WIDTH,WIDTH,... or cnn:CHANNELS,CHANNELS,...")
    return kind, widths


def by_name(name: str | None, shape: tuple[int, ...]) -> nn.Sequential:
    """The network of that name for inputs of this shape; None: "mlp:256,256", for colour images "cnn:16,32,64"."""
    colour = len(shape) == 3 and shape[0] > 1
    kind, widths = layers(name or ("cnn:16,32,64" if colour else "mlp:256,256"))
    return mlp(math.prod(shape), *widths) if kind == "mlp" else cnn(shape[0], *widths)


def _after(activation: type[nn.Module], norm: nn.Module | None, dropout: float) -> list[nn.Module]:
    return [*([norm] if norm else []), activation(), *([nn.Dropout(dropout)] if dropout else [])]


def _check(name: str, sizes: tuple[int, ...], activation: Any, dropout: float) -> None:
    if len(sizes) < 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(
            f"{name}{sizes} is not a network; allowed: at least two positive integers, such as {name}(64, 256)"
        )
    if isinstance(activation, nn.Module) or not callable(activation):
        raise TypeError(f"activation is {activation!r}; allowed: a class of modules, such as torch.nn.ReLU")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; allowed: from 0 up to, but not including, 1")


# A run must depend on its seed alone, not on what drew random numbers before the network was written down. So `run`
# draws the weights of these networks anew, from its seed, as long as nobody has trained or loaded them. Networks from
# elsewhere, which may be pretrained, are taken as they come.


def is_initial(network: nn.Module) -> bool:
    """Whether `network` comes from `mlp` or `cnn` and still has its first weights."""
    first = getattr(network, "_initial_digest", None)
    return first is not None and first == _digest(network)


def reinitialize(network: nn.Module) -> bool:
    """Draw the weights anew if `network` comes from `mlp` or `cnn` and still has its first weights; say if it did."""
    if not is_initial(network):
        return False
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    network._initial_digest = _digest(network)  # type: ignore[assignment]
    return True


Network = TypeVar("Network", bound=nn.Module)


def mark_initial(network: Network) -> Network:
    """The network, whose present weights count as first ones from now on."""
    network._initial_digest = _digest(network)  # type: ignore[assignment]
    return network


def _digest(network: nn.Module) -> str:
    digest = hashlib.blake2b()
    for tensor in network.state_dict().values():
        numbers = tensor.ndim and not tensor.is_meta
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy() if numbers else b"")
    return digest.hexdigest()


def arguments(network: nn.Module, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a batch is handed to a network: as one argument, or by keyword; see `inputs.by_keyword`."""
    return ((), dict(x)) if inputs.by_keyword(network, x) else ((x,), {})


_TRAINED_BY: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()


def claim(backbone: nn.Module, learner: nn.Module) -> None:
    """Remember who trains this network; a warning where another learner that still exists does so as well."""
    ref = _TRAINED_BY.get(backbone)
    other = None if ref is None else ref()
    learns = any(p.requires_grad for p in backbone.parameters())  # one that is frozen may be shared
    if other is not None and other is not learner and learns:
        warnings.warn(
            f"this {type(backbone).__name__} is the backbone of a {type(other).__name__} already: both would train the "
            "same weights. Give each learner a network of its own, such as copy.deepcopy(backbone)",
            stacklevel=4,
        )
    _TRAINED_BY[backbone] = weakref.ref(learner)


def check_backbone(backbone: nn.Module, method: str) -> None:
    """ValueError where a network cannot be trained task after task as it is."""
    for name, module in backbone.named_modules():
        if hasattr(module, "_orig_mod"):
            raise ValueError(
                f"{f'layer {name!r}' if name else 'the backbone'} was compiled (torch.compile), and {method} must "
                "reach its weights; give the network itself, module._orig_mod, and compile what export returns"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"{f'layer {name!r}' if name else 'the backbone'} is a DistributedDataParallel, which averages no "
                "gradients of heads; give the network itself, module.module, and wrap a module whose forward returns "
                "learner.loss(x, y, task_id), a new one for each task"
            )
        if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters(recurse=False)):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) has no weights yet; run a batch through the network first"
            )


def taken_off_with(layer: nn.Module) -> str:
    """Which function makes a weight that a layer computes from others (weight_norm and the like) plain again."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            return "torch.nn.utils.prune.remove"
        name = {"WeightNorm": "weight", "SpectralNorm": "spectral"}.get(type(hook).__name__)
        if name:
            return f"torch.nn.utils.remove_{name}_norm"
    return "torch.nn.utils.parametrize.remove_parametrizations"


def no_replicas(backbone: nn.Module, method: str) -> None:
    """ValueError where the network copies itself to several devices, and this method puts tensors into it."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.DataParallel):
            raise ValueError(
                f"{f'layer {name!r}' if name else 'the backbone'} is a DataParallel, into which {method} cannot put "
                "the weights of a task; give the network itself, module.module, and use DistributedDataParallel"
            )


def no_sparse_gradients(backbone: nn.Module, method: str) -> None:
    """ValueError where a layer of the backbone gives sparse gradients, which this method cannot work with."""
    if isinstance(backbone, nn.Module):
        for name, module in backbone.named_modules():
            if getattr(module, "sparse", False):
                raise ValueError(
                    f"layer {name!r} ({type(module).__name__}) gives sparse gradients, which {method} cannot work "
                    "with; allowed: sparse=False"
                )


def not_called_again(network: nn.Module, call: Callable[[nn.Module], Any], method: str) -> None:
    """ValueError where a training step calls a module once more in its backward pass, as gradient checkpointing does.

    Args:
        network: tried in a copy, so that nothing of it changes.
        call: runs a network on inputs of the task.
        method: which puts tensors into the network, or takes some out, for the forward pass alone.
    """
    again: list[str] = []

    def note(name: str, *_: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            again.append(name)

    cuda = sorted({p.device.index for p in network.parameters() if p.is_cuda})
    with (
        torch.random.fork_rng(devices=cuda),
        torch.enable_grad(),
        suppress(Exception),
    ):  # other faults are told elsewhere
        trial = copied(network).train().requires_grad_(True)
        for name, module in trial.named_modules():
            module.register_forward_pre_hook(partial(note, name))
        call(trial).sum().backward()
    if again:
        raise ValueError(
            f"layer {again[0]!r} of the backbone is called in the backward pass too (gradient checkpointing), where "
            f"what {method} puts in for a task is not in its place; switch gradient checkpointing off, or use "
            "minicl.PackNet or minicl.HAT"
        )
