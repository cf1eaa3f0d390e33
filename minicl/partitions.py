"""Which classes come in which task: equal parts, a large first task, any lists; in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import checks

Label = int | str
"""A class as the data set itself calls it."""

NAMED = 6
"""So many classes at most are named in the name of a task."""


def partition(
    known: Sequence[Label],
    n_tasks: int,
    classes: Sequence[Sequence[Label]] | None = None,
    first: int | None = None,
    class_order: Sequence[Label] | str | None = None,
    seed: int = 0,
    names: Mapping[Label, str] | None = None,
) -> list[list[Label]]:
    """The classes of each task, in the order of its outputs.

    Args:
        known: the classes that there are, in ascending order.
        classes: the answer itself, which is checked. Classes may be given as integers or as texts.
        first: classes of the first task; the others share the rest equally.
        class_order: all classes, in the order in which they come; or "seed", an order drawn from the seed.
        names: of classes, by label; a class may be given by its name, too.

    Raises:
        ValueError: classes that are named twice, missing or unknown, by name; numbers that do not divide.
    """
    classes, class_order = _listed(classes), _listed(class_order)
    if classes is not None:
        if first is not None or class_order is not None:
            other = "first" if first is not None else "class_order"
            raise ValueError(f"classes says which classes come when, and so does {other}; allowed: one of the two")
        groups = _groups(classes)
        ordered = _as_known([label for group in groups for label in group], known, "classes", names)
        sizes = [len(group) for group in groups]
    else:
        ordered = _ordered(known, class_order, seed, names)
        sizes = _sizes(len(known), n_tasks, first)
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    return [ordered[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _listed(value: Any) -> Any:
    """Arrays and tensors, also in a list, as lists."""
    if isinstance(value, (list, tuple)):
        return [_listed(item) for item in value]
    tolist = getattr(value, "tolist", None)
    return tolist() if callable(tolist) else value


def _groups(classes: Any) -> list[list[Any]]:
    allowed = "allowed: a list of lists of classes, one for each task, such as [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9]]"
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not len(classes):
        raise ValueError(f"classes is {classes!r}; {allowed}")
    for t, group in enumerate(classes):
        if isinstance(group, str) or not isinstance(group, Sequence) or not len(group):
            raise ValueError(f"classes holds {group!r} for task {t}; {allowed}")
    return [list(group) for group in classes]


def _ordered(
    known: Sequence[Label], class_order: Any, seed: int, names: Mapping[Label, str] | None = None
) -> list[Label]:
    if class_order is None:
        return list(known)
    if isinstance(class_order, str):
        checks.one_of("class_order", class_order, ["seed"])
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed * 100_003 + 7))
        return [known[i] for i in order.tolist()]
    if not isinstance(class_order, Sequence):
        raise ValueError(f"class_order is {class_order!r}; allowed: a list of all classes, or 'seed'")
    return _as_known(class_order, known, "class_order", names)


def _as_known(
    given: Sequence[Any], known: Sequence[Label], what: str, names: Mapping[Label, str] | None = None
) -> list[Label]:
    """The classes that are given, by label or by name, each of them once, as labels."""
    found: list[Label] = []
    labels = {name: label for label, name in (names or {}).items()}
    for label in given:
        value = checks.plain(label)
        value = labels.get(value, value) if isinstance(value, str) else value
        place = next((k for k in known if k == value and not isinstance(value, bool)), None)
        if place is None:
            there = _said([f"{k} ({names[k]})" if names and k in names else k for k in known])
            raise ValueError(f"{what} names {label!r}, and there is no such class; there are: {there}")
        if place in found:
            raise ValueError(f"{what} names {label!r} twice; allowed: each class once")
        found.append(place)
    missing = [label for label in known if label not in found]
    if missing:
        raise ValueError(f"{what} does not name {_said(missing)}; allowed: each class of the data set once")
    return found


def _sizes(n_classes: int, n_tasks: int, first: int | None) -> list[int]:
    if first is None:
        if n_tasks > n_classes or n_classes % n_tasks:
            allowed = [n for n in range(1, n_classes + 1) if n_classes % n == 0]
            raise ValueError(
                f"{n_classes} classes cannot be split into {n_tasks} equal tasks; allowed n_tasks: "
                f"{', '.join(map(str, allowed))}. Unequal ones: first=..., or classes=[[...], [...]]"
            )
        return [n_classes // n_tasks] * n_tasks
    first = checks.integer("first", first)
    rest, n_others = n_classes - first, n_tasks - 1
    if rest < n_others or (n_others and rest % n_others) or (rest and not n_others):
        allowed = [n + 1 for n in range(1, rest + 1) if rest % n == 0] if rest > 0 else [1] if rest == 0 else []
        advice = f"allowed n_tasks: {', '.join(map(str, allowed))}" if allowed else f"allowed: first up to {n_classes}"
        raise ValueError(
            f"after the first {first} of {n_classes} classes, {max(rest, 0)} are left, which {n_others} tasks cannot "
            f"share equally; {advice}"
        )
    return [first, *[rest // n_others] * n_others] if n_others else [first]


def name_of(classes: Sequence[Label], known: Sequence[Label], names: Mapping[Label, str] | None = None) -> str:
    """What a task with these classes is called: "classes 0-4", "classes 7, 1, 3", "Trouser, Bag"."""
    if names:
        return _said([names[label] for label in classes])
    places = [known.index(label) for label in classes]
    if len(classes) == 1:
        return f"classes {classes[0]}"
    if places == list(range(places[0], places[0] + len(places))):
        return f"classes {classes[0]}-{classes[-1]}"
    return f"classes {_said(classes)}"


def _said(classes: Sequence[Label]) -> str:
    shown = ", ".join(map(str, classes[:NAMED]))
    return shown if len(classes) <= NAMED else f"{shown} and {len(classes) - NAMED} more"
