"""AGS-CL: the proximal operator against a numerical minimiser; importances, cuts, new weights; what is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import minicl
from minicl.regularization import ags_cl

ADAM = partial(torch.optim.Adam, lr=5e-3)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("with_anchor", [True, False])
def test_the_proximal_step_is_the_minimum(threshold: float, with_anchor: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        theta, anchor = rng.normal(size=4), rng.normal(size=4) * with_anchor

        def objective(z: np.ndarray, theta: np.ndarray = theta, anchor: np.ndarray = anchor) -> float:
            return float(0.5 * ((z - theta) ** 2).sum() + threshold * np.sqrt(((z - anchor) ** 2).sum()))

        found = ags_cl.proximal_step(
            torch.tensor(theta)[None], torch.tensor(anchor)[None], torch.tensor([threshold], dtype=torch.float64)
        )[0].numpy()
        candidates = [
            minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000})
            for start in (theta, anchor, (theta + anchor) / 2)
        ]
        best = min(candidates, key=lambda c: c.fun)
        assert objective(found) <= best.fun + 1e-8
        np.testing.assert_allclose(found, best.x, atol=1e-4)


def test_within_the_threshold_the_anchor_is_reached_exactly() -> None:
    torch.manual_seed(0)
    anchor = torch.randn(3, 5)
    theta = anchor + 0.01 * torch.randn(3, 5)
    assert torch.equal(ags_cl.proximal_step(theta, anchor, torch.full((3,), 1.0)), anchor)
    assert torch.equal(ags_cl.proximal_step(anchor, anchor, torch.zeros(3)), anchor)


def test_importance_is_the_mean_activation_over_images_and_positions() -> None:
    stream = minicl.split("digits", 5, "task", n_train=30)
    for backbone in (minicl.mlp(64, 12, 10, dropout=0.5), minicl.cnn(1, 4, 6)):
        learner = minicl.AGSCL(backbone, eta=0.5, rho=0.0)
        for number, task in enumerate(stream[:2]):
            before = {name: learner.importance(name).clone() for name in learner._names}
            learner.learn(task, lambda: None) if number else minicl.run(learner, [task], epochs=1, progress=False)
            learner.eval()
            if number:
                h, activations = task.train.x, []
                # What was measured is the network before the cut; the cut takes nothing away that is not zero.
                for module in learner.backbone:  # type: ignore[union-attr]
                    h = module(h)
                    if isinstance(module, nn.ReLU):
                        activations.append(h.flatten(2).mean(2).mean(0) if h.ndim > 2 else h.mean(0))
                for name, activation in zip(learner._names, activations, strict=True):
                    expected = 0.5 * before[name] + activation
                    torch.testing.assert_close(learner.importance(name), expected, rtol=1e-4, atol=1e-5)


def trained(
    scenario: str, mu: float = 5.0, rho: float = 0.5, lam: float = 10.0
) -> tuple[minicl.AGSCL, minicl.TaskStream]:
    stream = minicl.split("digits", 5, scenario, n_train=100)
    learner = minicl.AGSCL(minicl.mlp(64, 40, 30), mu=mu, lam=lam, rho=rho)
    minicl.run(learner, stream[:1], epochs=15, batch_size=10, progress=False, optimizer=ADAM)
    return learner, stream


def test_unused_units_become_exactly_zero_and_are_counted() -> None:
    learner, _ = trained("task", rho=0.0)
    capacity = learner.capacity()
    assert capacity["units"] == 70
    assert 5 < capacity["free"] < 70
    first = learner.backbone[1]  # type: ignore[index]
    unused = learner.importance("1") == 0
    assert int(unused.sum()) > 0
    zero = (first.weight == 0).all(1) & (first.bias == 0)
    assert bool((zero & unused).sum() > 0)
    none, _ = trained("task", mu=0.0, rho=0.0)
    assert not bool((none.backbone[1].weight == 0).all(1).any())  # type: ignore[index, operator, union-attr]


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_units_above_are_cut_off_from_unused_ones(scenario: str) -> None:
    learner, stream = trained(scenario)
    below, above = learner.importance("1") > 0, learner.importance("3") > 0
    head = learner.heads["shared" if scenario == "domain" else "0"]
    second = learner.backbone[3]  # type: ignore[index]
    assert not bool(second.weight[above][:, ~below].any())
    assert not bool(head.weight[:, ~above].any())  # type: ignore[index]
    # While the next task is learned, used units stay cut off; in "class" so do the old rows of the head.
    minicl.run(learner, stream[1:2], epochs=3, batch_size=10, progress=False, optimizer=ADAM)
    assert not bool(second.weight[above][:, ~below].any()) or scenario == "domain"
    if scenario == "class":
        assert not bool(head.weight[:, ~above].any())  # type: ignore[index]


def test_a_share_of_the_unused_units_starts_again() -> None:
    torch.manual_seed(0)
    for rho in (0.0, 0.5, 1.0):
        learner, _ = trained("task", rho=rho)
        unused = (learner.importance("1") == 0).nonzero().flatten()
        alive = learner.backbone[1].weight[unused].abs().sum(1) > 0  # type: ignore[index, union-attr]
        assert len(unused) > 4
        assert abs(int(alive.sum()) - rho * len(unused)) <= 1 + 0.2 * len(unused) * (rho < 1)
        assert rho < 1 or bool(alive.all())


def test_used_units_do_not_move_where_the_pull_is_strong() -> None:
    learner, stream = trained("task", lam=1e6)
    used = learner.importance("1") > 0
    before = learner.backbone[1].weight.detach().clone()  # type: ignore[index, operator, union-attr]
    x = stream[0].test.x
    learner.eval()
    answers = learner(x, 0).detach()
    minicl.run(learner, stream[1:2], epochs=3, batch_size=10, progress=False, optimizer=ADAM)
    assert torch.equal(learner.backbone[1].weight[used], before[used])  # type: ignore[index, union-attr]
    assert not torch.equal(learner.backbone[1].weight[~used], before[~used])  # type: ignore[index, union-attr]
    torch.testing.assert_close(learner(x, 0).detach(), answers, atol=1e-4, rtol=1e-4)


def test_the_step_is_the_optimisers() -> None:
    """threshold = learning rate times mu, of the group that the layer is in."""
    stream = minicl.split("digits", 5, "task", n_train=20)
    learner = minicl.AGSCL(minicl.mlp(64, 6, 5), mu=0.7)
    first, second = learner.backbone[1], learner.backbone[3]  # type: ignore[index]

    def fit() -> None:
        groups = [{"params": first.parameters(), "lr": 0.1}, {"params": second.parameters(), "lr": 0.02}]
        optimizer = learner.protect(torch.optim.SGD(groups))
        before = [ags_cl.incoming(first), ags_cl.incoming(second)]
        for p in learner.backbone.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for layer, rows, rate in ((first, before[0], 0.1), (second, before[1], 0.02)):
            shrunk = rows.norm(dim=1) - ags_cl.incoming(layer).norm(dim=1)
            torch.testing.assert_close(shrunk, torch.full_like(shrunk, 0.7 * rate).minimum(rows.norm(dim=1)))

    learner.learn(stream[0], fit)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (minicl.mlp(4, 4, batchnorm=True), "layer '2', a BatchNorm1d, is nothing that AGS-CL can work with"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()), "layer '1', a Linear, follows '0' without a ReLU"),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), "layer '0', a ReLU, follows no Linear"),
        (nn.Sequential(nn.Linear(4, 4)), "does not end in a layer with a ReLU"),
        (nn.Linear(4, 4), "does not end in a layer with a ReLU"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()), "layer '0', a Conv2d, has groups"),
    ],
)
def test_other_backbones_are_refused(backbone: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words + r".*; allowed: an nn.Sequential"):
        minicl.AGSCL(backbone)


def test_memory_is_a_number_a_unit() -> None:
    learner, _ = trained("task")
    assert learner.capacity()["extra_bytes"] == 4 * 70
    assert learner.capacity()["bytes_while_learning"] == 4 * (64 * 40 + 40 + 40 * 30 + 30)


def test_it_forgets_less() -> None:
    stream = minicl.permuted("digits", 3, "domain", n_train=500)
    free = minicl.run(minicl.FineTune(minicl.mlp(64, 64)), stream, epochs=8, progress=False, optimizer=ADAM)
    held = minicl.run(minicl.AGSCL(minicl.mlp(64, 64), lam=2.0), stream, epochs=8, progress=False, optimizer=ADAM)
    assert held.backward_transfer > free.backward_transfer + 0.02
