"""GEM: the projection against general solvers, what it makes of a step, and layers that are not plain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import seeds
import torch
from loops import bytes_held, digits, gradient, gradient_by_hand, run
from scipy.optimize import minimize, nnls
from torch import nn
from torch.nn.utils import prune

import minicl
from minicl.replay.gem import project_on_cone

# ---- the equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(25))
def test_gem_satisfies_every_constraint_and_is_the_closest_such_point(case: int) -> None:
    """Against SciPy's general solver SLSQP, on random problems, some with gradients that depend on one another."""
    torch.manual_seed(seeds.of(case))
    n, k = 12, 1 + case % 6
    G = torch.randn(k, n, dtype=torch.float64)
    if case % 3 == 0 and k > 1:
        G[-1] = 2 * G[0]
    g = torch.randn(n, dtype=torch.float64) - G.mean(0)
    projected = project_on_cone(g, G)
    assert bool((G @ projected >= -1e-6).all())
    general = minimize(
        lambda z: 0.5 * ((z - g.numpy()) ** 2).sum(),
        g.numpy(),
        jac=lambda z: z - g.numpy(),
        constraints={"type": "ineq", "fun": lambda z: G.numpy() @ z, "jac": lambda z: G.numpy()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(projected.numpy(), general.x, atol=2e-5)


def test_gem_leaves_a_gradient_alone_that_harms_nobody() -> None:
    G = torch.eye(3, 5)
    g = torch.tensor([1.0, 0.0, 2.0, -3.0, 4.0])
    assert project_on_cone(g, G) is g


def test_gem_margin_leans_towards_the_old_tasks() -> None:
    """With v = v* + margin: for one constraint, g~ = g + (v* + gamma) g_1, worked out by hand."""
    g, g_1 = torch.tensor([-2.0, 1.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(project_on_cone(g, g_1[None], 0.0), torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(project_on_cone(g, g_1[None], 3.0), torch.tensor([1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["opposite", "nearly parallel", "long and short", "one is zero"])
def test_gem_keeps_every_constraint_however_the_gradients_lie(case: str, dtype: torch.dtype) -> None:
    """To what the type can hold, and nearest: what was added is a sum of rows, and only of those that bind (KKT)."""
    for _ in range(20):
        G = torch.randn(4, 30, dtype=torch.float64)
        if case == "opposite":
            G[1] = -G[0]
        elif case == "nearly parallel":
            G[1:] = G[0] + 10.0 ** -torch.arange(2, 9, 3)[:, None] * G[1:]
        elif case == "long and short":
            G *= 10.0 ** torch.tensor([-4.0, 2.0, -3.0, 0.0])[:, None]
        else:
            G[2] = 0
        G, g = G.to(dtype), torch.randn(30, dtype=torch.float64).to(dtype)
        found, rows = project_on_cone(g, G).double(), G.double()
        rows = rows[rows.norm(dim=1) > 0]
        rows = rows / rows.norm(dim=1, keepdim=True)
        allowed = 1e-6 if dtype == torch.float32 else 1e-11
        assert float((rows @ found).min()) >= -allowed * g.norm()
        # Nearest: the rest g - found lies in the cone of -rows, and at a right angle to what was found.
        rest = torch.from_numpy(nnls(rows.T.numpy(), (found - g).numpy())[0]) @ rows
        torch.testing.assert_close(rest, found - g.double(), rtol=0, atol=10 * allowed * float(g.norm()))
        assert abs(float((found - g) @ found)) <= 10 * allowed * float(g @ g)


def test_gem_with_a_margin_is_what_a_general_solver_finds() -> None:
    """At least the margin of every remembered gradient; where nothing hinders, exactly that much of each."""
    as_little_as_allowed = set()
    for margin in (0.01, 0.5, 3.0) * 15:
        G, g = torch.randn(4, 12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
        if bool((G @ g >= 0).all()):
            continue
        gram, products = (G @ G.T).numpy(), (G @ g).numpy()
        solved = minimize(
            lambda v, gram=gram, products=products: v @ gram @ v / 2 + products @ v,
            np.full(4, margin),
            jac=lambda v, gram=gram, products=products: gram @ v + products,
            bounds=[(margin, None)] * 4,
            options={"ftol": 1e-15, "gtol": 1e-12},
        )
        found = project_on_cone(g, G, margin)
        torch.testing.assert_close(found, g + torch.from_numpy(solved.x) @ G, rtol=1e-5, atol=1e-5)
        as_little_as_allowed.add(bool((solved.x < margin + 1e-9).all()))
    assert as_little_as_allowed == {True, False}


# ---- what a step does ------------------------------------------------------------------------------------------------

BACKBONES = {
    "linear layers": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 9, bias=False)),
    "one layer twice": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *[nn.Linear(8, 8)] * 2, nn.ReLU()),
    "rows as tokens": lambda: nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 5), nn.ReLU(), nn.Flatten()),
    "frozen below": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12).requires_grad_(False), nn.Linear(12, 9)),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten()),
}


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_gem_hands_the_optimiser_the_projected_gradient(backbone: Callable[[], nn.Module], scenario: str) -> None:
    """On the memory it drew: every constraint holds, and the gradient is `project_on_cone` of the plain one."""
    learner = minicl.GEM(backbone(), budget=15, margin=0.0)
    tasks = digits(scenario, n_train=40)
    run(learner, tasks[:3], epochs=1)
    task, changed = tasks[3], 0

    def fit() -> None:
        nonlocal changed
        learner.train()
        for seed in range(6):
            rows = slice(5 * seed, 5 * seed + 10)
            learner.zero_grad()
            x, y, task_id = task.train.x[rows], task.train.y[rows], 3 if scenario == "task" else None
            learner.loss(x, y, task_id).backward()
            before = gradient(learner)
            # Half a batch is five, and a share is five too: so nothing is left to chance.
            constraints = torch.stack(
                [gradient_by_hand(learner, *part(t), t if scenario == "task" else None) for t in range(3)]
            )
            learner.edit_gradients()
            after = gradient(learner)
            torch.testing.assert_close(after, project_on_cone(before, constraints), rtol=1e-4, atol=1e-6)
            scale = float(after.norm() * constraints.norm(dim=1).max())
            assert float((constraints @ after).min()) >= -1e-6 * scale
            assert all(p.requires_grad or p.grad is None for p in learner.parameters())
            changed += not torch.equal(before, after)
            learner.edit_gradients()  # once more changes nothing
            assert torch.equal(gradient(learner), after)
            learner.protect(torch.optim.SGD(learner.parameters(), lr=0.1)).step()

    def part(t: int) -> tuple[torch.Tensor, torch.Tensor]:
        held = learner.memory.of_task(t)
        assert len(held) == 5
        return held.x, held.y

    learner.learn(task, fit)
    assert changed
    capacity = learner.capacity()  # the room for the constraints, as large as three networks, is given back
    assert bytes_held(learner) - capacity["bytes"] - capacity["extra_bytes"] < 500


def odd_backbone(kind: str) -> nn.Sequential:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 9))
    if kind == "pruned":
        prune.l1_unstructured(backbone[1], "weight", amount=0.3)
    elif kind == "bias alone learns":
        backbone[1].weight.requires_grad_(False)
    elif kind == "bias does not learn":
        backbone[1].bias.requires_grad_(False)
    return backbone


@pytest.mark.parametrize("kind", ["pruned", "bias alone learns", "bias does not learn", "a head's bias does not learn"])
def test_gem_takes_linear_layers_that_are_not_plain(kind: str) -> None:
    learner = minicl.GEM(odd_backbone(kind), budget=10)
    tasks = digits(n_train=40)
    run(learner, tasks[:2], epochs=1)

    if kind.startswith("a head's"):
        learner.heads["0"].bias.requires_grad_(False)

    def fit() -> None:
        learner.train()
        learner.loss(tasks[2].train.x[:20], tasks[2].train.y[:20], 2).backward()
        found = learner.constraints(learner.trained())
        held = [learner.memory.of_task(t) for t in (0, 1)]
        trained = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in learner.parameters()])
        expected = torch.stack([gradient_by_hand(learner, part.x, part.y, t)[trained] for t, part in enumerate(held)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    learner.learn(tasks[2], fit)


def test_gem_gives_batchnorm_two_samples_also_in_a_batch_of_two() -> None:
    learner = minicl.GEM(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)), budget=20)
    tasks = digits(n_train=40)
    run(learner, tasks[:3], epochs=1, batch_size=2)
    assert learner.learned == [0, 1, 2]
