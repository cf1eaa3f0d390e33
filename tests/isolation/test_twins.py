"""HAT's corners and PackNet's bit masks beside naive twins: a boolean for each entry, and all put back each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import OPTIMIZERS, Loop, Make, same_bits, small_tasks, state
from torch import Tensor, nn

import minicl
from minicl.freezing import FrozenEntries, switched_off
from minicl.isolation import packnet, shared

STEPS = 50


class Naive:
    """What `FrozenEntries` does, as anyone would write it first."""

    def __init__(self) -> None:
        self.held: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self.restored = 0

    def hold(self, parameter: nn.Parameter, entries: Tensor) -> None:
        self.held.append((parameter, entries.clone(), parameter.detach().clone()))

    def hold_corner(self, parameter: nn.Parameter, sizes: tuple[int, ...]) -> None:
        entries = torch.zeros_like(parameter, dtype=torch.bool)
        entries[tuple(slice(n) for n in sizes)] = True
        self.hold(parameter, entries)

    def release(self) -> None:
        self.held = []

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Where nothing pulls at a weight without a gradient, what it did before is forgotten."""
        pulled = any(group["weight_decay"] for group in optimizer.param_groups)
        for parameter, entries, _ in () if pulled else self.held:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[entries] = 0

    def edit_gradients(self) -> None:
        for parameter, entries, _ in self.held:
            if parameter.grad is not None:
                parameter.grad[entries] = 0

    @torch.no_grad()
    def restore(self, always: bool = False) -> None:
        for parameter, entries, values in self.held:
            self.restored += int(entries.sum())
            parameter[entries] = values[entries]


def naively_switched_off(weight: Tensor, used: Tensor) -> Tensor:
    """Zero wherever it is not used, entry by entry."""
    return torch.where(used, weight, torch.zeros_like(weight))


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.filterwarnings(r"ignore:task \d+ switched off every unit")
@pytest.mark.parametrize("method", [minicl.HAT, minicl.PackNet], ids=["HAT", "PackNet"])
def test_a_naive_twin_ends_with_the_same_bits(
    method: Callable[..., minicl.Learner], make_optimizer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, Tensor]] = []
    naive = Naive()
    for twin in (False, True):
        torch.manual_seed(1)
        settings = {"c": 0.05} if method is minicl.HAT else {}
        learner: Any = method(minicl.mlp(12, 14, 9, batchnorm=True), **settings)
        if twin:
            learner._frozen = naive
            for module in (packnet, shared):
                if hasattr(module, "switched_off"):
                    monkeypatch.setattr(module, "switched_off", naively_switched_off)
        tasks, steps = small_tasks(n=2, shape=(12,), samples=10), [0]

        def count(steps: list[int] = steps) -> None:
            steps[0] += 1

        Loop(learner, make_optimizer, batch=5, epochs=STEPS // 4 + 1, seed=0, watch=count).learn(*tasks)
        assert steps[0] >= STEPS
        found.append({**state(learner), **{f"answer {t.id}": learner.eval()(t.test.x, t.id).detach() for t in tasks}})
    assert naive.restored > 0
    assert same_bits(*found)


@pytest.mark.parametrize("sizes", [(3,), (3, 2), (6, 5), (1, 4)])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_corner_is_its_entries(make_optimizer: Make, sizes: tuple[int, ...]) -> None:
    parameters = [nn.Parameter(torch.linspace(-1, 1, 30).view(6, 5)) for _ in range(3)]
    entries = torch.zeros(6, 5, dtype=torch.bool)
    entries[tuple(slice(n) for n in sizes)] = True
    fast, corner, naive = FrozenEntries(), FrozenEntries(), Naive()
    optimizers = [make_optimizer([p]) for p in parameters]
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        if step == 5:  # with momentum from before
            fast.hold(parameters[0], entries)
            corner.hold_corner(parameters[1], sizes)
            naive.hold(parameters[2], entries)
        gradient = torch.randn(6, 5, generator=generator)
        for parameter, optimizer, frozen in zip(parameters, optimizers, (fast, corner, naive), strict=True):
            parameter.grad = gradient.clone()
            frozen.watch(optimizer)
            frozen.edit_gradients()
            optimizer.step()
            frozen.restore()
        assert torch.equal(parameters[0], parameters[2])
        assert torch.equal(parameters[1], parameters[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_switching_off_by_bits_is_switching_off(dtype: torch.dtype) -> None:
    weight, used = torch.randn(7, 5).to(dtype), torch.rand(7, 5) < 0.5
    weight[0, :3] = torch.tensor([torch.nan, torch.inf, -0.0])
    with torch.no_grad():
        assert same_bits([switched_off(weight, used)], [naively_switched_off(weight, used)])
