"""ER, A-GEM, GEM and DER++: the equations against independent formulas, and what each does to a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize, nnls
from torch import nn
from torch.nn.utils import prune

import minicl
from minicl.replay.agem import project_on_average
from minicl.replay.derpp import logit_distance
from minicl.replay.gem import project_on_cone

METHODS = [minicl.ER, minicl.AGEM, minicl.GEM, minicl.DERpp]


# ---- the equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_agem_is_the_nearest_point_of_the_half_space(seed: int):
    torch.manual_seed(seed)
    g, g_ref = torch.randn(2, 30, dtype=torch.float64)
    projected = project_on_average(g, g_ref)
    if g @ g_ref >= 0:
        assert torch.equal(projected, g)
    else:
        assert abs(float(projected @ g_ref)) < 1e-12
        # What was taken off points along g_ref: no other point of the half-space is as near.
        assert float(F.cosine_similarity(g - projected, g_ref, dim=0)) == pytest.approx(-1)


@pytest.mark.parametrize("seed", range(25))
def test_gem_satisfies_every_constraint_and_is_the_closest_such_point(seed: int):
    """Against SciPy's general solver SLSQP, on random problems, some with gradients that depend on one another."""
    torch.manual_seed(seed)
    n, k = 12, 1 + seed % 6
    G = torch.randn(k, n, dtype=torch.float64)
    if seed % 3 == 0 and k > 1:
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


def test_gem_leaves_a_gradient_alone_that_harms_nobody():
    G = torch.eye(3, 5)
    g = torch.tensor([1.0, 0.0, 2.0, -3.0, 4.0])
    assert project_on_cone(g, G) is g


def test_gem_margin_leans_towards_the_old_tasks():
    """With v = v* + margin: for one constraint, g~ = g + (v* + gamma) g_1, worked out by hand."""
    g, g_1 = torch.tensor([-2.0, 1.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(project_on_cone(g, g_1[None], 0.0), torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(project_on_cone(g, g_1[None], 3.0), torch.tensor([1.0, 1.0], dtype=torch.float64))


def test_logit_distance_against_a_loop():
    torch.manual_seed(0)
    z, h = torch.randn(5, 3), torch.randn(5, 4)
    z[2, 1:] = torch.nan
    expected = sum((z[i, j] - h[i, j]) ** 2 for i in range(5) for j in range(3) if not z[i, j].isnan()) / 5
    torch.testing.assert_close(logit_distance(z, h), expected)


# ---- what a step does ------------------------------------------------------------------------------------------------


def learned(method: type[minicl.Learner], scenario: str = "task", tasks: int = 2, **kwargs: object) -> minicl.Learner:
    """A learner of the first tasks of a stream of one more."""
    learner = method(minicl.mlp(64, 16), **kwargs)
    minicl.run(learner, minicl.split(n_tasks=5, scenario=scenario, n_train=40)[:tasks], epochs=1)
    return learner


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_er_loss_is_the_mean_over_new_and_remembered(scenario: str):
    learner = learned(minicl.ER, scenario)
    task = minicl.split(n_tasks=5, scenario=scenario, n_train=40)[2]
    x, y = task.train.x[:8], task.train.y[:8]
    task_id = 2 if scenario == "task" else None

    def fit() -> None:
        learner.train()
        torch.manual_seed(5)
        loss = learner.loss(x, y, task_id)
        torch.manual_seed(5)
        rows = learner.memory.draw(8)
        old_x, old_y, old_ids = learner.memory.x[rows], learner.memory.y[rows], learner.memory.task_ids[rows]
        losses = [F.cross_entropy(learner(x[i : i + 1], task_id), y[i : i + 1]) for i in range(8)]
        for i in range(8):
            own = int(old_ids[i]) if scenario == "task" else None
            losses.append(F.cross_entropy(learner(old_x[i : i + 1], own), old_y[i : i + 1]))
        torch.testing.assert_close(loss, torch.stack(losses).mean())
        assert set(old_ids.tolist()) == {0, 1}

    learner.learn(task, fit)


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_derpp_loss_has_two_separate_draws(scenario: str):
    learner = learned(minicl.DERpp, scenario, alpha=0.3, beta=0.7)
    task = minicl.split(n_tasks=5, scenario=scenario, n_train=40)[2]
    x, y = task.train.x[:8], task.train.y[:8]
    task_id = 2 if scenario == "task" else None

    def fit() -> None:
        learner.train()
        torch.manual_seed(5)
        memory, first, second = learner.memory, learner.memory.draw(8), learner.memory.draw(8)
        x1, ids1, z = memory.x[first], memory.task_ids[first], memory.logits[first]
        x2, y2, ids2 = memory.x[second], memory.y[second], memory.task_ids[second]
        assert not torch.equal(x1, x2)
        own = [int(t) if scenario == "task" else None for t in ids1]
        distance = 0.0
        for i in range(8):
            h = learner(x1[i : i + 1], own[i])[0].detach()
            known = ~z[i].isnan()
            distance += float(((z[i][known] - h[: int(known.sum())]) ** 2).sum()) / 8
        remembered = [
            F.cross_entropy(learner(x2[i : i + 1], int(ids2[i]) if scenario == "task" else None), y2[i : i + 1])
            for i in range(8)
        ]
        new = F.cross_entropy(learner(x, task_id), y)
        expected = new.item() + 0.3 * distance + 0.7 * torch.stack(remembered).mean().item()
        torch.manual_seed(5)
        assert learner.loss(x, y, task_id).item() == pytest.approx(expected, rel=1e-4)

    learner.learn(task, fit)


BACKBONES = {
    "linear layers": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 9, bias=False)),
    "one layer twice": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *[nn.Linear(8, 8)] * 2, nn.ReLU()),
    "rows as tokens": lambda: nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 5), nn.ReLU(), nn.Flatten()),
    "frozen below": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12).requires_grad_(False), nn.Linear(12, 9)),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten()),
}


def by_hand(learner: minicl.Learner, x: torch.Tensor, y: torch.Tensor, task_id: int | None) -> torch.Tensor:
    """The gradient of the mean loss, in one vector, from an ordinary backward pass."""
    kept = [None if p.grad is None else p.grad.clone() for p in learner.parameters()]
    learner.zero_grad()
    F.cross_entropy(learner(x, task_id), y).backward()
    found = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learner.parameters()])
    for p, g in zip(learner.parameters(), kept, strict=True):
        p.grad = g
    return found


def gradient(learner: minicl.Learner) -> torch.Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learner.parameters()])


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_gem_hands_the_optimiser_the_projected_gradient(backbone: Callable[[], nn.Module], scenario: str):
    """On the memory it drew: every constraint holds, and the gradient is `project_on_cone` of the plain one."""
    torch.manual_seed(0)
    learner = minicl.GEM(backbone(), budget=15, margin=0.0)
    tasks = minicl.split(n_tasks=5, scenario=scenario, n_train=40)
    minicl.run(learner, tasks[:3], epochs=1)
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
                [by_hand(learner, *held, t if scenario == "task" else None) for t in range(3) for held in [part(t)]]
            )
            learner.edit_gradients()
            after = gradient(learner)
            torch.testing.assert_close(after, project_on_cone(before, constraints), rtol=1e-4, atol=1e-6)
            scale = float(after.norm() * constraints.norm(dim=1).max())
            assert float((constraints @ after).min()) >= -1e-6 * scale
            assert all(p.requires_grad or p.grad is None for p in learner.parameters())
            changed += not torch.equal(before, after)
            with torch.no_grad():
                for p in learner.parameters():
                    p -= 0 if p.grad is None else 0.1 * p.grad

    def part(t: int) -> tuple[torch.Tensor, torch.Tensor]:
        held = learner.memory.of_task(t)
        assert len(held) == 5
        return held.x, held.y

    learner.learn(task, fit)
    assert changed
    assert not learner._G.numel()  # the room for the constraints is given back


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_agem_hands_the_optimiser_the_projected_gradient(scenario: str):
    torch.manual_seed(0)
    learner = minicl.AGEM(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh()), budget=1)
    tasks = minicl.split(n_tasks=5, scenario=scenario, n_train=40)
    minicl.run(learner, tasks[:1], epochs=1)
    changed = []

    def fit() -> None:
        learner.train()
        x, y = tasks[1].train.x[:7], tasks[1].train.y[:7]
        for _ in range(8):
            learner.zero_grad()
            learner.loss(x, y, 1 if scenario == "task" else None).backward()
            before = gradient(learner)
            only = learner.memory.x[:1], learner.memory.y[:1], 0 if scenario == "task" else None
            g_ref = by_hand(learner, *only)  # a memory of one sample: every batch from it is that sample
            learner.edit_gradients()
            after = gradient(learner)
            torch.testing.assert_close(after, project_on_average(before, g_ref), rtol=1e-4, atol=1e-6)
            changed.append(not torch.equal(before, after))
            with torch.no_grad():
                for p in learner.parameters():
                    p -= 0 if p.grad is None else 0.2 * p.grad

    learner.learn(tasks[1], fit)
    assert any(changed)


@pytest.mark.parametrize("method", METHODS)
def test_replay_forgets_less_than_fine_tuning(method: type[minicl.Learner]):
    stream = minicl.permuted(n_tasks=3, scenario="domain", n_train=200)

    def forgotten(kind: type[minicl.Learner]) -> float:
        return minicl.run(kind(minicl.mlp(64, 64)), stream, epochs=5, batch_size=16).forgetting

    assert forgotten(method) < forgotten(minicl.FineTune)


@pytest.mark.parametrize("method", METHODS)
def test_convolutions_batchnorm_own_loop_and_one_optimiser(method: type[minicl.Learner]):
    torch.manual_seed(0)
    learner = method(minicl.cnn(1, 4, batchnorm=True, dropout=0.1), budget=20)
    optimizer = learner.protect(torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9))
    for task in minicl.split(n_tasks=5, n_train=40)[:3]:

        def fit(task: minicl.Task = task) -> None:
            known = {id(p) for group in optimizer.param_groups for p in group["params"]}
            optimizer.add_param_group({"params": [p for p in learner.parameters() if id(p) not in known]})
            learner.train()
            for rows in torch.arange(len(task.train)).split(16):
                optimizer.zero_grad()
                learner.loss(task.train.x[rows], task.train.y[rows], task.id).backward()
                optimizer.step()

        learner.learn(task, fit)
    assert len(learner.memory) == 20
    assert set(learner.memory.task_ids.tolist()) == {0, 1, 2}
    assert bool(torch.isfinite(learner.eval()(task.test.x, 0)).all())


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load_go_on_identically(method: type[minicl.Learner], tmp_path: Path):
    stream = minicl.split(n_tasks=5, scenario="class", n_train=40)
    learner = method(minicl.mlp(64, 16), budget=20)
    minicl.run(learner, stream[:2], epochs=1)
    learner.save(tmp_path / "learner.safetensors")
    loaded = method.load(tmp_path / "learner.safetensors", minicl.mlp(64, 16))
    for name, buffer in learner.memory.named_buffers():
        torch.testing.assert_close(loaded.memory.get_buffer(name), buffer, rtol=0, atol=0, equal_nan=True)
    results = [minicl.run(each, stream[2:3], epochs=2, seed=4) for each in (learner, loaded)]
    np.testing.assert_array_equal(results[0].accuracy, results[1].accuracy)
    x = stream[0].test.x
    assert torch.equal(learner.eval()(x), loaded.eval()(x))


def test_wrong_hyperparameters():
    backbone = nn.Flatten()
    for call, words in (
        (lambda: minicl.ER(backbone, budget=0), "budget is 0"),
        (lambda: minicl.ER(backbone, share="mine"), "'mine'"),
        (lambda: minicl.GEM(backbone, margin=-1.0), "margin is -1"),
        (lambda: minicl.DERpp(backbone, alpha=-0.1), "alpha is -0.1"),
        (lambda: minicl.DERpp(backbone, beta=float("nan")), "beta is nan"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_budget_smaller_than_what_it_must_hold():
    learner = minicl.ER(minicl.mlp(64, 8), budget=3, share="class")
    with pytest.raises(ValueError, match="budget of 3 samples is smaller than the 4 classes"):
        minicl.run(learner, minicl.split(n_tasks=5, scenario="class", n_train=20), epochs=1)


# ---- what a solver and a loop of one's own can trip over -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["opposite", "nearly parallel", "long and short", "one is zero"])
def test_gem_keeps_every_constraint_however_the_gradients_lie(case: str, dtype: torch.dtype):
    """To what the type can hold, and nearest: what was added is a sum of rows, and only of those that bind (KKT)."""
    torch.manual_seed(0)
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


def test_gem_with_a_margin_is_what_a_general_solver_finds():
    """At least the margin of every remembered gradient; where nothing hinders, exactly that much of each."""
    torch.manual_seed(0)
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


@pytest.mark.parametrize("length", [1.0, 1e-18, 1e-22, 1e-30])
def test_agem_projects_on_a_reference_of_any_length(length: float):
    """When all is remembered the reference is so short that its square is zero, and a step must not become infinite."""
    torch.manual_seed(0)
    g, g_ref = torch.randn(2, 40)
    g_ref = -g_ref * torch.sign(g @ g_ref)
    found = project_on_average(g, length * g_ref)
    torch.testing.assert_close(found, project_on_average(g, g_ref), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [minicl.AGEM, minicl.GEM])
def test_an_optimiser_without_the_old_heads_does_not_keep_their_gradients(method: type[minicl.Learner]):
    """It does not clear them: what a projection left there must not count as the next batch's."""
    torch.manual_seed(0)
    learner = learned(method, budget=20)
    task = minicl.split(n_tasks=5, n_train=40)[2]
    old = [p for t in ("0", "1") for p in learner.heads[t].parameters()]
    projected = []

    def fit() -> None:
        learner.train()
        optimizer = torch.optim.SGD([*learner.backbone.parameters(), *learner.heads["2"].parameters()], lr=0.3)
        learner.protect(optimizer)
        for _ in range(3):
            for x, y in zip(task.train.x.split(10), task.train.y.split(10), strict=True):
                optimizer.zero_grad()
                learner.loss(x, y, 2).backward()
                assert all(p.grad is None for p in old)
                optimizer.step()
                projected.append(any(p.grad is not None for p in old))

    learner.learn(task, fit)
    assert any(projected)


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
def test_gem_takes_linear_layers_that_are_not_plain(kind: str):
    torch.manual_seed(0)
    learner = minicl.GEM(odd_backbone(kind), budget=10)
    tasks = minicl.split(n_tasks=5, n_train=40)
    minicl.run(learner, tasks[:2], epochs=1)

    if kind.startswith("a head's"):
        learner.heads["0"].bias.requires_grad_(False)

    def fit() -> None:
        learner.train()
        learner.loss(tasks[2].train.x[:20], tasks[2].train.y[:20], 2).backward()
        found = learner.constraints(learner.trained())
        held = [learner.memory.of_task(t) for t in (0, 1)]
        trained = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in learner.parameters()])
        expected = torch.stack([by_hand(learner, part.x, part.y, t)[trained] for t, part in enumerate(held)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    learner.learn(tasks[2], fit)


def test_gem_gives_batchnorm_two_samples_also_in_a_batch_of_two():
    learner = minicl.GEM(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)), budget=20)
    tasks = minicl.split(n_tasks=5, n_train=40)
    minicl.run(learner, tasks[:3], epochs=1, batch_size=2)
    assert learner.learned == [0, 1, 2]
