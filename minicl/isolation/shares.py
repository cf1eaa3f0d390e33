"""The share of the weights that a task keeps: one for all, or one per task, per layer, or worked out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import checks

KeepRatio = float | str | Sequence[Any] | Mapping[str, Any] | Callable[[int, str], float]


def share_of(keep_ratio: Any, number: int, layer: str) -> float:
    """The share that the task of this number keeps in this layer.

    Raises:
        ValueError: a list that is too short, or a function that returned no share.
    """
    if isinstance(keep_ratio, Mapping):
        return share_of(keep_ratio[layer], number, layer)
    if isinstance(keep_ratio, Sequence):
        if number > len(keep_ratio):
            raise ValueError(
                f"keep_ratio has {len(keep_ratio)} values, one per task, and this is task number {number}; "
                "give one more"
            )
        return share_of(keep_ratio[number - 1], number, layer)
    if callable(keep_ratio):
        share = keep_ratio(number, layer)
        check_share(share, f"keep_ratio({number}, {layer!r})")
        return share
    return keep_ratio


def check_keep_ratio(keep_ratio: Any, layers: list[str], name: str = "keep_ratio") -> None:
    """ValueError unless it says, for every task and layer, a share in (0, 1]; "auto" is allowed as a whole."""
    if isinstance(keep_ratio, Mapping):
        if set(keep_ratio) != set(layers):
            raise ValueError(
                f"{name} names the layers {sorted(map(str, keep_ratio))}; allowed: one share for each of {layers}"
            )
        for layer, value in keep_ratio.items():
            check_keep_ratio(value, layers, f"{name}[{layer!r}]")
    elif isinstance(keep_ratio, Sequence) and not isinstance(keep_ratio, str):
        if not keep_ratio:
            raise ValueError(f"{name} is empty; allowed: one share per task")
        for i, value in enumerate(keep_ratio):
            check_keep_ratio(value, layers, f"{name}[{i}]")
    elif not callable(keep_ratio) and not (keep_ratio == "auto" and name == "keep_ratio"):
        check_share(keep_ratio, name)


def check_share(share: Any, name: str) -> None:
    """ValueError unless it is a number in (0, 1]."""
    try:
        checks.number(name, share, beyond=True, most=1)
    except ValueError as error:
        raise ValueError(
            f"{name} is {share!r}; allowed: a share in (0, 1], the paper's 1 - p. For the constructor also: a list of "
            "shares, one per task; a dict, one per layer; a function of the task's number and the layer's name; "
            "or 'auto'"
        ) from error
