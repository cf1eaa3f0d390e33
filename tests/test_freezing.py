"""What is frozen: single entries keep their bits, whole modules are out of every optimiser's reach."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from loops import Make
from torch import Tensor, nn

import minicl
from minicl.freezing import FrozenEntries, parameters_of, unfreeze

SGD, Adam, AdamW, RMSprop = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_held_entries_keep_their_bits_and_lose_their_gradients(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.randn(6, 5).to(dtype))
    parameter.data[0, :2] = torch.tensor([0.0, -0.0], dtype=dtype)
    entries = torch.rand(6, 5) < 0.5
    entries[0, :2] = True
    before, held = parameter.detach().clone(), FrozenEntries()
    held.hold(parameter, entries)
    gradient = torch.randn(6, 5).to(dtype)
    gradient[entries] = torch.nan
    parameter.grad = gradient.clone()
    held.edit_gradients()
    assert torch.equal(parameter.grad, torch.where(entries, 0, gradient))
    with torch.no_grad():
        parameter.copy_(torch.randn(6, 5))
        parameter[entries] = torch.inf
    after = parameter.detach().clone()
    held.restore()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    assert torch.equal(parameter.detach().view(integers), torch.where(entries, before, after).view(integers))
    held.release()
    with torch.no_grad():
        parameter.fill_(7)
    held.restore()
    assert (parameter == 7).all()


@pytest.mark.parametrize(
    ("optimizer", "spared"),
    [
        (partial(SGD, lr=0.1, momentum=0.9), True),
        (partial(SGD, lr=0.1, momentum=0.9, nesterov=True), True),
        (partial(Adam, lr=0.1), True),
        (partial(Adam, lr=0.1, amsgrad=True), True),
        (partial(RMSprop, lr=0.1, momentum=0.9, centered=True), True),
        (partial(AdamW, lr=0.1), False),  # its weight decay
        (partial(SGD, lr=0.1, weight_decay=0.1), False),
        (partial(Adam, lr=0.1, eps=0.0), False),  # 0 / 0
        (partial(torch.optim.Adagrad, lr=0.1), False),  # not known to stand still
        (partial(type("Mine", (SGD,), {}), lr=0.1), False),
    ],
)
def test_restoring_is_spared_only_where_nothing_can_move(optimizer: Make, spared: bool) -> None:
    parameter = nn.Parameter(torch.randn(20, 10))
    stepper, held = optimizer([parameter]), FrozenEntries()
    for _ in range(2):  # momentum of a task before
        parameter.grad = torch.randn(20, 10)
        stepper.step()
    entries = torch.rand(20, 10) < 0.5
    held.hold(parameter, entries)
    before = parameter.detach().clone()
    for _ in range(3):
        parameter.grad = torch.randn(20, 10)
        held.edit_gradients()
        held.watch(stepper)
        stepper.step()
        if spared:
            assert torch.equal(parameter[entries], before[entries])  # without restoring
        with torch.no_grad():
            parameter[entries] += 1  # as no optimiser would
        held.restore()
        assert torch.equal(parameter[entries], before[entries]) != spared
        with torch.no_grad():
            parameter[entries] = before[entries]
        assert (parameter[~entries] != before[~entries]).all()


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), torch.randn(5, 3)),
        (nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), torch.randn(5, 3)),
        (nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(2, 5, 4)),
    ],
    ids=["sequential", "lstm", "weight_norm", "attention"],
)
def test_a_frozen_module_is_out_of_reach_and_comes_back_plain(module: nn.Module, x: Tensor) -> None:
    module = copy.deepcopy(module)
    call = (lambda m: m(x, x, x)[0]) if isinstance(module, nn.MultiheadAttention) else (lambda m: m(x))
    value = (lambda m: call(m)[0]) if isinstance(module, nn.LSTM) else call
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    value(module).square().sum().backward()
    optimizer.step()
    n = sum(p.numel() for p in module.parameters())
    keys = set(module.state_dict())
    learner = minicl.FineTune(nn.Sequential(nn.Flatten()))
    learner.backbone.add_module("part", module)
    module.eval()
    before = value(module).detach().clone()

    minicl.freeze(module)
    minicl.freeze(module)  # twice is once
    for _ in range(3):
        optimizer.step()  # it still holds the old parameters
    learner.train()
    assert not any(part.training for part in module.modules())
    assert learner.training
    assert list(module.parameters()) == []
    assert torch.equal(value(module), before)
    assert set(module.state_dict()) == keys
    assert sum(t.numel() for t in parameters_of(module)) == n

    # What is loaded into it is what it uses.
    other = copy.deepcopy(module)
    for tensor in other.state_dict().values():
        tensor.zero_() if tensor.is_floating_point() else None
    assert not torch.equal(value(other), before)
    other.load_state_dict(module.state_dict())
    assert torch.equal(value(other), before)

    unfreeze(module)
    assert torch.equal(value(module), before)
    assert sum(p.numel() for p in module.parameters()) == n
    assert all(p.requires_grad for p in module.parameters())
    torch.optim.SGD(module.parameters(), lr=0.1).zero_grad()
    value(module).sum().backward()
    assert any(p.grad is not None for p in module.parameters())
