"""How much a task of PNN relies on each earlier column: against slow formulas, and known answers."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from loops import ADAM, Loop, same_bits, small_tasks, state
from torch import Tensor, nn

import minicl
from minicl import PNN, Task
from minicl.isolation.sensitivity import average_fisher_sensitivity, average_perturbation_sensitivity


def some_task(t: int, shape: tuple[int, ...] = (6,)) -> Task:
    return small_tasks(ids=[t], outputs=3, samples=24, shape=shape, number=t)[0]


def learned(n_tasks: int, backbone: nn.Module | None = None, shape: tuple[int, ...] = (6,), **kwargs: Any) -> PNN:
    learner = PNN(minicl.mlp(6, 5, 4) if backbone is None else backbone, **kwargs)
    Loop(learner, ADAM, batch=24, epochs=3).learn(*(some_task(t, shape) for t in range(n_tasks)))
    return learner.eval()


def test_afs_and_aps_are_the_papers_ratios() -> None:
    fisher = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]])
    torch.testing.assert_close(average_fisher_sensitivity(fisher), torch.tensor([(0.25 + 0.5) / 2, (0.75 + 0.5) / 2]))
    torch.testing.assert_close(average_perturbation_sensitivity(torch.tensor([1.0, 3.0])), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_fisher_sensitivity_against_one_sample_one_class_one_feature_at_a_time(kind: str) -> None:
    learner = learned(3, nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh()), adapter=kind).double()
    x = some_task(2).test.x[:5].double()

    def log_p(x: Tensor, changed: tuple[int, int, int] | None, by: float) -> Tensor:
        """The columns run by hand, with one feature of one h_i changed."""
        seen: list[list[Tensor]] = []
        for k in range(3):
            column, h = learner.columns.real(str(k)), [x]
            for i, layer in enumerate((column.layers[0], column.layers[2], learner.heads[str(k)])):
                z = layer(h[-1])
                if k and i:
                    lateral, earlier = column.laterals[i - 1], torch.cat([each[i] for each in seen], 1)
                    z = z + (
                        lateral.U(earlier)
                        if kind == "linear"
                        else lateral.U((lateral.alpha * lateral.V(earlier)).tanh())
                    )
                h.append(z.tanh() if i < 2 else z)
                if changed is not None and (k, i + 1) == changed[:2]:
                    h[-1] = h[-1].clone()
                    h[-1][:, changed[2]] += by
            seen.append(h)
            spread[k] = [each.std(0, correction=0) for each in h[1:3]]
        return seen[2][3].log_softmax(1)

    spread: dict[int, list[Tensor]] = {}
    p = log_p(x, None, 0.0).exp()
    std = dict(spread)
    rows = []
    for i, width in ((1, 5), (2, 4)):
        fisher = torch.zeros(3, width, dtype=torch.float64)
        for k, m in itertools.product(range(3), range(width)):
            slope = (log_p(x, (k, i, m), 1e-5) - log_p(x, (k, i, m), -1e-5)) / 2e-5
            fisher[k, m] = (p * slope**2).sum(1).mean() * std[k][i - 1][m] ** 2
        rows.append((fisher / fisher.sum(0)).mean(1))
    found = learner.sensitivity(2, x)
    torch.testing.assert_close(found.double(), torch.stack(rows), rtol=1e-4, atol=1e-6)


def test_fisher_sensitivity_of_maps_sums_over_pixels() -> None:
    learner = learned(2, minicl.cnn(1, 3, 4), (1, 6, 6))
    found = learner.sensitivity(1, some_task(1, (1, 6, 6)).test.x)
    assert found.shape == (2, 2)
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    assert float(found.min()) > 0


@pytest.mark.parametrize("kind", ["fisher", "perturbation"])
def test_a_column_that_nobody_listens_to_has_no_sensitivity(kind: str) -> None:
    learner = PNN(minicl.mlp(64, 16, 16))
    tasks = minicl.split("digits", 5)[:3]
    minicl.run(learner, tasks, epochs=3, optimizer=partial(torch.optim.Adam, lr=0.003))
    x, y = tasks[2].valid.x, tasks[2].valid.y
    before = learner.sensitivity(2, x, y, kind)
    for lateral in learner.columns.real("2").laterals:
        lateral.U.weight[:, : lateral.U.weight.shape[1] // 2] = 0  # from column 0
    after = learner.sensitivity(2, x, y, kind)
    assert before.shape == after.shape == (2, 3)
    assert torch.equal(after[1, 0], torch.tensor(0.0)), "h_2 of column 0 reaches only the head of column 2"
    assert float(after[0, 0]) < float(before[0, 0]), "h_1 of column 0 still works through column 1"
    torch.testing.assert_close(after.sum(1), torch.ones(2))
    for lateral in learner.columns.real("1").laterals:
        lateral.U.weight.zero_()
    assert float(learner.sensitivity(2, x, y, kind)[:, 0].abs().max()) == 0.0


def test_perturbation_finds_the_noise_that_halves_accuracy_above_chance() -> None:
    learner = PNN(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Identity()))
    x = torch.tensor([[-1.0], [1.0]]).repeat(2000, 1)
    tasks = [Task(t, 2, (x, (x[:, 0] > 0).long())) for t in range(2)]
    for task in tasks:
        learner.learn(task, lambda: None)
    one = torch.ones(1, 1)
    for t in range(2):
        learner.columns.real(str(t)).layers[0].weight.copy_(one)
    learner.heads.real("1").weight.copy_(torch.tensor([[-1.0], [1.0]]))
    learner.heads.real("1").bias.zero_()
    learner.columns.real("1").laterals[0].U.weight.copy_(torch.tensor([[-0.5], [0.5]]))
    # The logits differ by 2 (h^(2) + h^(1) / 2), and each h is the input: +-1, of standard deviation 1. Noise on h^(2)
    # flips the sign with probability 1/4, which halves 100 % - 50 %, where 1.5 / sigma is the 75 % quantile of a normal
    # variable; on h^(1) sigma is twice as large. Precision goes with 1 / sigma^2: 4 to 1.
    found = learner.sensitivity(1, x, tasks[1].train.y, "perturbation")
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.8]]), atol=0.02, rtol=0)


def test_sensitivity_leaves_the_learner_as_it_was() -> None:
    learner = learned(2).train()
    x = some_task(1).train.x
    y = learner(x, 1).argmax(1)  # classified better than by chance
    before, rng = state(learner), torch.random.get_rng_state()
    for kind in ("fisher", "perturbation"):
        first = learner.sensitivity(1, x, y, kind)
        assert same_bits([first], [learner.sensitivity(1, x, y, kind)])
    assert learner.training
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert same_bits(before, state(learner))
    assert all(p.grad is None for p in learner.parameters())


def test_sensitivity_refuses_what_it_cannot_measure() -> None:
    learner = learned(2)
    x, y = some_task(1).test.x, some_task(1).test.y
    with pytest.raises(ValueError, match=r"kind is 'gradient'; allowed: 'fisher', 'perturbation'"):
        learner.sensitivity(1, x, y, "gradient")
    with pytest.raises(ValueError, match="labels y of shape"):
        learner.sensitivity(1, x, kind="perturbation")
    with pytest.raises(ValueError, match="labels y of shape"):
        learner.sensitivity(1, x, y[:3], kind="perturbation")
    with pytest.raises(ValueError, match=r"task id is 5.*allowed: 0, 1"):
        learner.sensitivity(5, x)
    wrong = (learner(x, 1).argmax(1) + 1) % 3
    with pytest.raises(ValueError, match="no better than chance"):
        learner.sensitivity(1, x, wrong, "perturbation")
