"""Means and one matrix: against slow formulas and scikit-learn, whatever the order of tasks, batches and samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import loops
import numpy as np
import pytest
import seeds
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Loop, answer, same_bits, small_tasks, state
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

import minicl
from minicl.prototypes import slda
from minicl.prototypes.means import merged_means
from minicl.prototypes.ncm import as_linear

METHODS: dict[str, Callable[..., minicl.Learner]] = {"ncm": minicl.NCM, "slda": minicl.SLDA}
each = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


def never(**_: Any) -> None:
    raise AssertionError("trained")


def learned(make: Callable[..., minicl.Learner], tasks: list[minicl.Task], **more: Any) -> minicl.Learner:
    learner = make(nn.Flatten(), train_first=False, **more).to(tasks[0].train.x.dtype)
    for task in tasks:
        learner.learn(task, never)
    return learner.eval()


def in_order(order: tuple[int, ...], dtype: torch.dtype, scenario: str = "class") -> tuple[list[minicl.Task], Tensor]:
    """Tasks of two classes each in this order, and for each class of the first order its number in this one."""
    tasks, numbers = [], torch.zeros(2 * len(order), dtype=torch.long)
    for place, t in enumerate(order):
        generator = seeds.generator(t)
        x = torch.rand(30, 1, 4, 4, generator=generator, dtype=dtype) + t
        y = torch.randint(2, (30,), generator=generator)
        first = 2 * place if scenario == "class" else 0
        numbers[2 * t : 2 * t + 2] = torch.arange(2) + first
        tasks.append(minicl.Task(t, first + 2, (x, y + first), None, (x, y + first), scenario=scenario))
    return tasks, numbers


# ---- the equations ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 10**6))
def test_means_and_scatter_against_all_samples_at_once(sizes: list[int], seed: int) -> None:
    """However the samples are split into batches."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    z = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (n,), generator=generator)
    means, counts, scatter = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.long), torch.zeros(3, 3)
    for features, labels in zip(z.split(sizes), y.split(sizes), strict=True):
        scatter = scatter + slda.scatter_added(features, labels, means, counts)
        means, counts = merged_means(means, counts, features, labels)
    slow = np.zeros((3, 3))
    for c in range(4):
        own = z[y == c].numpy()
        assert int(counts[c]) == len(own)
        if len(own):
            np.testing.assert_allclose(means[c], own.mean(0), atol=1e-12)
            slow += (own - own.mean(0)).T @ (own - own.mean(0))
    np.testing.assert_allclose(scatter, slow, atol=1e-10)


def test_the_largest_output_is_the_nearest_mean() -> None:
    means, f = torch.randn(5, 7, dtype=torch.float64), torch.randn(40, 7, dtype=torch.float64)
    W, b = as_linear(means)
    distances = [
        [sum((a - m) ** 2 for a, m in zip(row, mean, strict=True)) for mean in means.tolist()] for row in f.tolist()
    ]
    assert (f @ W.T + b).argmax(1).tolist() == np.argmin(distances, axis=1).tolist()


def test_shrinking() -> None:
    S = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    torch.testing.assert_close(slda.shrunk(S, 0.5), torch.tensor([[1.5, 0.5], [0.5, 2.5]]))
    torch.testing.assert_close(slda.shrunk(S, 0.5, "scaled"), torch.tensor([[2.5, 0.5], [0.5, 3.5]]))


def test_trap_the_streamed_covariance_depends_on_the_order() -> None:
    """The paper's update, against its own words, and against the exact one."""
    z = torch.randn(60, 3, dtype=torch.float64, generator=seeds.generator(1))
    y = (torch.arange(60) >= 30).long()

    def stream(order: Tensor) -> Tensor:
        means, n = torch.zeros(2, 3, dtype=torch.float64), [0, 0]
        S = torch.zeros(3, 3, dtype=torch.float64)
        for t, i in enumerate(order.tolist()):
            c = int(y[i])
            S = slda.streamed(S, t, z[i], means[c])
            slow = (z[i] - means[c]).numpy()
            assert S.shape == (3, 3)
            if t == 1:
                np.testing.assert_allclose(S, (1 * np.outer(slow, slow) / 2) / 2)
            n[c] += 1
            means[c] += (z[i] - means[c]) / n[c]
        return S

    one, other = stream(torch.arange(60)), stream(torch.arange(59, -1, -1))
    assert (one - other).abs().max() > 1e-3
    zero = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    exact = slda.scatter_added(z, y, *zero) / 60
    back = slda.scatter_added(z.flip(0), y.flip(0), *zero) / 60
    torch.testing.assert_close(exact, back, atol=1e-12, rtol=0)
    assert (one - exact).abs().max() > 1e-3


# ---- the learners ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["class", "domain"])
@pytest.mark.parametrize("epsilon", [1e-4, 0.1, 1.0])
def test_slda_is_scikit_learns_lda(scenario: str, epsilon: float) -> None:
    """With its shrinkage, and without the prior that it adds."""
    tasks, _ = in_order((0, 1, 2), torch.float64, scenario)
    learner = learned(minicl.SLDA, tasks, epsilon=epsilon, target="scaled")
    x, y = torch.cat([t.train.x for t in tasks]), torch.cat([t.train.y for t in tasks])
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=epsilon).fit(x.flatten(1).numpy(), y.numpy())
    z = answer(learner, x)
    prior = np.log(lda.priors_)
    theirs = lda.decision_function(x.flatten(1).numpy()) - (np.diff(prior) if scenario == "domain" else prior)
    ours = (z[:, 1] - z[:, 0]) if scenario == "domain" else z
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@each
@given(order=st.permutations(range(4)))
@settings(max_examples=10)
def test_the_order_of_tasks_does_not_matter(make: Callable[..., minicl.Learner], order: list[int]) -> None:
    """Means bit for bit, each being of one task; the one matrix, to which all add, to 1e-6."""
    first, _ = in_order((0, 1, 2, 3), torch.float32)
    again, numbers = in_order(tuple(order), torch.float32)
    one, other = learned(make, first), learned(make, again)
    x = torch.cat([task.test.x for task in first])
    for t in range(4):
        assert torch.equal(one.heads.real(str(t)).weight, other.heads.real(str(t)).weight)  # type: ignore[arg-type]
    z, back = answer(one, x), answer(other, x)[:, numbers]
    if make is minicl.NCM:
        torch.testing.assert_close(z, back, rtol=1e-6, atol=1e-6)
    else:
        torch.testing.assert_close(one.scatter, other.scatter, rtol=1e-6, atol=1e-6)  # type: ignore[arg-type]
        assert (z.argmax(1) == back.argmax(1)).double().mean() > 0.99


@each
def test_one_task_at_a_time_is_all_at_once(make: Callable[..., minicl.Learner]) -> None:
    """Nothing is lost in between; in "domain" the same classes come again, in several tasks."""
    for scenario in ("class", "domain"):
        tasks, _ = in_order((0, 1, 2), torch.float64, scenario)
        x, y = torch.cat([t.train.x for t in tasks]), torch.cat([t.train.y for t in tasks])
        whole = minicl.Task(9, tasks[-1].n_outputs, (x, y), None, (x, y), scenario=scenario)
        torch.testing.assert_close(
            answer(learned(make, tasks), x), answer(learned(make, [whole]), x), rtol=1e-9, atol=1e-9
        )


@each
def test_a_class_without_a_sample_is_never_the_answer(make: Callable[..., minicl.Learner]) -> None:
    x, y = torch.rand(10, 1, 4, 4), torch.arange(10) % 2
    task = minicl.Task(0, 5, (x, y), None, (x, y), scenario="class")
    z = answer(learned(make, [task]), -100 * x)
    assert bool(z.isfinite().all())
    assert set(z.argmax(1).tolist()) <= {0, 1}


@each
def test_the_first_task_trains_the_network_and_later_ones_do_not(make: Callable[..., minicl.Learner]) -> None:
    tasks = small_tasks("class")
    learner = make(minicl.mlp(36, 12))
    first = Loop(learner)
    before = state(learner.backbone)
    first.learn(tasks[0])
    after = state(learner.backbone)
    assert not same_bits(before, after)
    for task in tasks[1:]:
        learner.learn(task, never)
    assert same_bits(after, state(learner.backbone))
    features = learner.features(tasks[0].train.x, None)
    mean = features[tasks[0].train.y == 1].mean(0)
    torch.testing.assert_close(learner.heads["0"].weight[1], mean)
    assert learner.counts["0"].tolist() == torch.bincount(tasks[0].train.y, minlength=2).tolist()  # type: ignore[operator, union-attr]


@each
def test_what_breaks_off_while_counting_leaves_no_trace(make: Callable[..., minicl.Learner]) -> None:
    tasks = small_tasks("domain", samples=40)
    learner = make(nn.Flatten(), train_first=False)
    learner.learn(tasks[0], never)
    before = state(learner)
    good, calls = learner.features, 0

    def failing(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("out of memory")
        return good(*arguments)

    learner.features = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        learner.learn(tasks[1], never)
    assert same_bits(before, state(learner))
    assert learner.learned == [0]
    learner.learn(tasks[1], never)
    assert learner.learned == [0, 1]


def test_nothing_is_stored_but_means_and_one_matrix(tmp_path: Path) -> None:
    stream = loops.digits("class", 5)
    learner = minicl.SLDA(nn.Flatten(), train_first=False)
    loops.run(learner, stream, epochs=1)
    capacity = learner.capacity()
    assert capacity["bytes"] == 4 * 10 * (64 + 1)  # means, and a bias each
    assert capacity["extra_bytes"] == 8 * 10 + 4 * 64 * 64  # counts, and the matrix
    assert minicl.NCM(nn.Flatten(), train_first=False).capacity()["extra_bytes"] == 0


def test_refused() -> None:
    with pytest.raises(ValueError, match="train_first is 1; allowed: True or False"):
        minicl.NCM(nn.Flatten(), train_first=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"target is 'trace'; allowed: identity, scaled"):
        minicl.SLDA(nn.Flatten(), target="trace")
