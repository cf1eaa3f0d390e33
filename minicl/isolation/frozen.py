"""The one notion of frozen weights that parameter isolation rests on: single entries that keep their bits.

Masking gradients is not enough. Momentum, Adam's moments and weight decay move a weight whose gradient is zero, so
whatever the optimiser did to a frozen entry is undone after its step. (What is frozen as a whole, such as an old head,
is better taken out of every optimiser's reach: `minicl.freeze`.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Boolean masks cost a branch an entry, which a processor cannot foresee. AND and OR on the bits of the numbers do the
# same up to twenty times faster, and clear NaN too, which multiplying by zero does not.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

# These leave an entry alone when its gradient is zero, its state is zero and no weight decay pulls at it.
_STILL = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)


def bits(entries: Tensor, like: Tensor) -> Tensor:
    """Integers as wide as the numbers of `like`: all bits set where `entries`, a boolean tensor, is True, else none."""
    return entries.to(_INTEGERS[like.element_size()]).neg_()


def switched_off(weight: Tensor, used: Tensor) -> Tensor:
    """`weight` where `used`, a boolean tensor of its shape, is True, and zero elsewhere."""
    if torch.is_grad_enabled():
        return torch.where(used, weight, 0)  # slower, but gradients flow through it
    return (weight.view(_INTEGERS[weight.element_size()]) & bits(used, weight)).view(weight.dtype)


@dataclass
class _Held:
    parameter: nn.Parameter
    free: Tensor  # all bits set where the entry may move, none where it is held; integers as wide as the parameter's
    values: Tensor  # what the held entries keep, zero elsewhere


class FrozenEntries:
    """Entries of parameters that must not move, and the values that they keep."""

    def __init__(self) -> None:
        self._held: list[_Held] = []
        self._version = object()  # another one whenever other entries are held
        self._still = False

    def hold(self, parameter: nn.Parameter, entries: Tensor) -> None:
        """Keep the present values of `parameter` where `entries`, a boolean tensor of its shape, is True."""
        self._version = object()
        if bool(entries.any()):
            with torch.no_grad():
                self._held.append(_Held(parameter, bits(~entries, parameter), switched_off(parameter, entries)))

    def release(self) -> None:
        """Hold nothing any more."""
        self._version = object()
        self._held.clear()

    @torch.no_grad()
    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Called before a step of `optimizer`, spares the restoring after it where that would find nothing to restore.

        That is so where the optimiser moves no entry whose gradient and state are zero. State left from earlier
        (momentum of the task before) is cleared at the held entries.
        """
        self._still = type(optimizer) in _STILL and all(
            group["weight_decay"] == 0 and group.get("eps", 1) > 0 for group in optimizer.param_groups
        )
        if self._still and optimizer.__dict__.get("_cleared_for") is not self._version:
            for held in self._held:
                for value in optimizer.state.get(held.parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == held.parameter.shape:
                        value.masked_fill_((held.free == 0).to(value.device), 0)
            optimizer.__dict__["_cleared_for"] = self._version

    @torch.no_grad()
    def edit_gradients(self) -> None:
        """Zero the gradients of the held entries."""
        for held in self._there():
            if held.parameter.grad is not None:
                held.parameter.grad.view(held.free.dtype).bitwise_and_(held.free)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the held entries their values back, unless `watch` found that the step could not have moved them."""
        if not self._still:
            for held in self._there():
                values = held.values.view(held.free.dtype)
                held.parameter.view(held.free.dtype).bitwise_and_(held.free).bitwise_or_(values)
        self._still = False

    def _there(self) -> list[_Held]:
        """What is held, on the device where its parameter is now."""
        for held in self._held:
            if held.free.device != held.parameter.device:
                held.free, held.values = (
                    held.free.to(held.parameter.device),
                    held.values.to(held.parameter.device),
                )
        return self._held
