"""The one notion of frozen weights that parameter isolation rests on: single entries that keep their value, bit for bit.

Masking gradients is not enough. Momentum, Adam's moments and weight decay move a weight whose gradient is zero, so
whatever the optimiser did to a frozen entry is undone after its step. (What is frozen as a whole, such as an old head,
is better taken out of every optimiser's reach: `minicl.freeze`.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrozenEntries:
    """Entries of parameters that must not move, and the values that they keep."""

    def __init__(self) -> None:
        self._held: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def hold(self, parameter: nn.Parameter, entries: Tensor) -> None:
        """Keep the present values of `parameter` where `entries`, a boolean tensor of its shape, is True."""
        self._held.append((parameter, entries, parameter.detach().clone()))

    def release(self) -> None:
        """Hold nothing any more."""
        self._held.clear()

    @torch.no_grad()
    def edit_gradients(self) -> None:
        """Zero the gradients of the held entries; filling, not multiplying, so that NaN is cleared too."""
        for parameter, entries, _ in self._held:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(entries, 0)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the held entries their values back."""
        for parameter, entries, values in self._held:
            torch.where(entries, values, parameter, out=parameter)
