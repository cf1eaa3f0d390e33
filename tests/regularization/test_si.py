"""SI: the path integral against the drop of the loss, the task's gradient alone, early stopping, one optimiser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import minicl
from minicl.regularization.si import Path, consolidated, path_integral_step


def test_the_step_and_the_importance_are_their_formulas() -> None:
    omega, g, delta = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]), torch.tensor([-0.1, 4.0])
    torch.testing.assert_close(path_integral_step(omega.clone(), g, delta), torch.tensor([1.3, -4.0]))
    found = consolidated(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([2.0, 5.0, 1.0]), 0.5)
    torch.testing.assert_close(found, torch.tensor([1 / 4.5, 0.0, 0.0]))


class Quadratic(minicl.SI):
    """SI whose task loss is 1/2 (theta - goal)^T H (theta - goal), so that the integral is known."""

    goal: torch.Tensor
    H: torch.Tensor

    def __init__(self, backbone: nn.Module, **hyperparameters: Any) -> None:
        super().__init__(backbone, **hyperparameters)
        self.clip: float | None = None

    def task_loss(self) -> torch.Tensor:
        away = self.backbone[1].weight.flatten() - self.goal  # type: ignore[index, union-attr]
        return 0.5 * away @ self.H @ away


def quadratic(c: float = 0.0) -> tuple[Quadratic, list[minicl.Task]]:
    torch.manual_seed(0)
    learner = Quadratic(nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False)), c=c, xi=0.1)
    A = torch.randn(6, 6)
    learner.H, learner.goal = A @ A.T / 6 + 0.1 * torch.eye(6), torch.randn(6)
    x = torch.zeros(4, 3)
    return learner, [minicl.Task(t, 2, (x, torch.zeros(4, dtype=torch.long))) for t in range(3)]


def descend(
    learner: Quadratic,
    optimizer: torch.optim.Optimizer,
    steps: int,
    clip: float | None = None,
    parts: int = 1,
    set_to_none: bool = True,
    together: bool = False,
) -> tuple[float, torch.Tensor]:
    """Train on the quadratic; the drop of the task loss, and the path integral by a slow loop of its own."""
    weight = learner.backbone[1].weight  # type: ignore[index, union-attr]
    slow = torch.zeros(6)
    start = learner.task_loss().item()
    for _ in range(steps):
        g = torch.autograd.grad(learner.task_loss(), weight)[0].flatten()
        before = weight.detach().clone().flatten()
        optimizer.zero_grad(set_to_none=set_to_none)
        losses = [(learner.task_loss() + learner.penalty()) / parts for _ in range(parts)]
        for loss in [torch.stack(losses).sum()] if together else losses:
            loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(learner.parameters(), clip)
        optimizer.step()
        slow -= g * (weight.detach().flatten() - before)
    return start - learner.task_loss().item(), slow


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=2e-3),
    "nesterov": partial(torch.optim.SGD, lr=2e-4, momentum=0.9, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_path_integral_over_a_quadratic_loss_is_the_drop_of_the_loss(
    optimizer: Callable[..., torch.optim.Optimizer],
) -> None:
    learner, tasks = quadratic()
    found: dict[str, Any] = {}

    def fit() -> None:
        drop, _ = descend(learner, learner.protect(optimizer(learner.backbone.parameters())), 1500)
        assert learner.path is not None
        found.update(drop=drop, integral=float(learner.path.omega.sum()))

    learner.learn(tasks[0], fit)
    assert found["drop"] > 0.3
    assert found["integral"] == pytest.approx(found["drop"], rel=0.02)


@pytest.mark.parametrize(
    ("clip", "parts", "set_to_none", "together"),
    [
        *((clip, 1, set_to_none, False) for clip in (None, 0.05) for set_to_none in (True, False)),
        *((None, 3, set_to_none, together) for set_to_none in (True, False) for together in (True, False)),
    ],
)
def test_the_gradient_is_the_tasks_alone(clip: float | None, parts: int, set_to_none: bool, together: bool) -> None:
    """With the penalty pulling, gradients clipped, and a batch in several parts, in one backward pass or in several;
    one optimiser for all tasks."""
    learner, tasks = quadratic(c=5.0)
    optimizer = learner.protect(torch.optim.SGD(learner.backbone.parameters(), lr=0.01, momentum=0.9, nesterov=True))
    for t, task in enumerate(tasks):
        learner.goal = torch.randn(6, generator=torch.Generator().manual_seed(t))

        def fit(t: int = t) -> None:
            _, slow = descend(learner, optimizer, 50, clip, parts, set_to_none, together)
            assert learner.path is not None
            torch.testing.assert_close(learner.path.omega, slow, rtol=1e-3, atol=1e-6)
            assert (learner.merged is not None) == (t > 0)
            if t:
                assert learner.penalty().item() > 1e-3

        learner.learn(task, fit)


def test_importance_sums_over_tasks_and_is_never_negative() -> None:
    stream = minicl.split("digits", 5, "domain", n_train=40)
    learner = minicl.SI(minicl.mlp(64, 8))
    minicl.run(learner, stream[:1], epochs=2, progress=False)
    first = {n: o.clone() for n, o in learner.latest.importances.items()}
    minicl.run(learner, stream[1:2], epochs=2, progress=False)
    for name, omega in learner.latest.importances.items():
        assert float(first[name].min()) >= 0
        assert bool((omega >= first[name]).all())
        assert float((omega - first[name]).sum()) > 0


def test_early_stopping_goes_back_on_the_path_too() -> None:
    """What was walked after the best epoch is not counted."""
    stream = minicl.split("digits", 2, "domain", n_train=100)

    class Watched(minicl.SI):
        def importance(self, task: minicl.Task) -> dict[str, torch.Tensor]:
            assert self.path is not None
            now = torch.cat([p.detach().flatten() for p in self.path.theta])
            assert torch.equal(now, self.path.before)
            self.integral = self.path.omega.clone()
            return super().importance(task)

    stopped = Watched(minicl.mlp(64, 8))
    curve = minicl.run(stopped, stream[:1], epochs=40, patience=2, progress=False).learning_curves[0]
    assert len(curve) < 41
    short = Watched(minicl.mlp(64, 8))
    minicl.run(short, stream[:1], epochs=len(curve) - 1 - 2, progress=False)  # as far as the best epoch
    torch.testing.assert_close(stopped.integral, short.integral)


def test_two_optimisers_that_share_the_parameters() -> None:
    learner, tasks = quadratic()
    weight = learner.backbone[1].weight  # type: ignore[index, union-attr]
    one = learner.protect(torch.optim.SGD([weight], lr=1e-3))

    def fit() -> None:
        other = learner.protect(torch.optim.SGD(learner.heads.parameters(), lr=1e-3))
        one.register_step_pre_hook(lambda *_: other.step())
        _, slow = descend(learner, one, 100)
        assert learner.path is not None
        torch.testing.assert_close(learner.path.omega, slow, rtol=1e-3, atol=1e-6)

    learner.learn(tasks[0], fit)


def test_nothing_is_left_behind() -> None:
    learner = minicl.SI(minicl.mlp(64, 8))
    minicl.run(learner, minicl.split("digits", 5, "task", n_train=30)[:2], epochs=1, progress=False)
    assert learner.path is None
    assert not any(name.startswith("path") for name in learner.state_dict())
    assert not any(p._backward_hooks for p in learner.parameters())


def test_the_path_keeps_parameters_out_of_its_own_state() -> None:
    layer = nn.Linear(2, 2)
    path = Path(dict(layer.named_parameters()))
    assert not list(path.parameters())
    assert set(path.state_dict()) == {"start", "before", "omega"}
