"""The output layers: what each scenario asks for, and inputs that grow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minicl.heads import Heads
from minicl.learner import TaskRecord


def heads(scenario: str, outputs: list[int], n_features: int = 4) -> Heads:
    made = Heads()
    for i, n in enumerate(outputs):
        made.add(TaskRecord(i, n, n_features, scenario), torch.empty(0))
    return made


def test_which_heads_there_are() -> None:
    assert list(heads("task", [2, 3])) == ["0", "1"]
    assert list(heads("domain", [2, 2])) == ["shared"]
    assert [h.out_features for h in heads("class", [2, 5, 5]).layers] == [2, 3]  # the third task brings no new class
    with pytest.raises(ValueError, match="n_outputs=3, but 5 classes were seen before"):
        heads("class", [2, 5, 3])


def one_by_one(made: Heads, features: Tensor, ids: list[int]) -> Tensor:
    """Each sample through the head of its own task, outputs that this head has not -inf."""
    width = max(h.out_features for h in made.layers)
    out = torch.full((len(features), width), -torch.inf)
    for row, (h, t) in enumerate(zip(features, ids, strict=True)):
        own = made[str(t)](h)
        out[row, : len(own)] = own
    return out


@pytest.mark.parametrize("outputs", [[3, 3, 3], [2, 4, 1], [5]])
def test_logits_of_each_against_one_head_at_a_time(outputs: list[int]) -> None:
    made = heads("task", outputs)
    features, ids = torch.randn(20, 4), torch.randint(len(outputs), (20,))
    torch.testing.assert_close(made.logits_of_each(features, ids), one_by_one(made, features, ids.tolist()))


def test_a_new_head_is_noticed() -> None:
    made = heads("task", [3])
    features = torch.randn(2, 4)
    assert made.logits_of_each(features, torch.tensor([0, 0])).shape == (2, 3)
    made.add(TaskRecord(1, 5, 4, "task"), torch.empty(0))
    assert made.logits_of_each(features, torch.tensor([0, 1])).shape == (2, 5)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_inputs_may_grow_and_the_logits_stay(scenario: str) -> None:
    made = heads(scenario, [3, 3] if scenario != "class" else [3, 5])
    features, new = torch.randn(6, 4), torch.randn(6, 3)
    before = made.logits(features, 1)
    made.widen(7)
    after = made.logits(torch.cat([features, new], 1), 1)
    torch.testing.assert_close(after, before)
    assert all(head.in_features == head.weight.shape[1] == 7 and head.weight.requires_grad for head in made.layers)
    made.add(TaskRecord(2, 6 if scenario == "class" else 3, 7, scenario), torch.empty(0))
    assert made.logits(torch.cat([features, new], 1), 2).shape[0] == 6
    with pytest.raises(ValueError, match="reads 7 features; it cannot read 4"):
        made.widen(4)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_a_head_alone_is_a_copy(scenario: str) -> None:
    made = heads(scenario, [3, 3] if scenario != "class" else [3, 5])
    features = torch.randn(6, 4)
    alone = made.alone(1)
    torch.testing.assert_close(alone(features), made.logits(features, 1))
    before = alone(features).clone()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1)
    assert torch.equal(alone(features), before)
