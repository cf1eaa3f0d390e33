"""The shared penalty: its value and gradient, many anchors in one, what is held, what is stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import minicl
from minicl.regularization import per_sample
from minicl.regularization.per_sample import mean_over_samples
from minicl.regularization.quadratic import MergedPenalty, quadratic_penalty

SHAPES = [(3, 4), (4,), (2, 3, 2, 2), ()]


def drawn(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def test_the_penalty_is_its_formula() -> None:
    theta, anchor, importance = drawn(0), drawn(1), [o.abs() for o in drawn(2)]
    slow = 0.0
    for t, a, o in zip(theta, anchor, importance, strict=True):
        for ti, ai, oi in zip(t.flatten().tolist(), a.flatten().tolist(), o.flatten().tolist(), strict=True):
            slow += oi * (ti - ai) ** 2
    assert quadratic_penalty(theta, anchor, importance).item() == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_spring_is_the_penalty_and_its_gradient(scale: float) -> None:
    theta = [t.requires_grad_() for t in drawn(0)]
    anchor, importance = drawn(1), [o.abs() for o in drawn(2)]
    spring = MergedPenalty(theta, anchor, importance, strength=0.7)
    expected = 0.7 * quadratic_penalty(theta, anchor, importance)
    assert spring().item() == pytest.approx(expected.item(), rel=1e-12)
    right = torch.autograd.grad(scale * expected, theta)
    first, second = spring(), spring()  # a second call must not disturb the first
    for value in (first, second):
        for g, r in zip(torch.autograd.grad(scale * value, theta), right, strict=True):
            torch.testing.assert_close(g, r)
    assert torch.autograd.gradcheck(lambda *t: MergedPenalty(list(t), anchor, importance, 0.7)(), theta)
    stale = spring()
    with torch.no_grad():
        theta[0].mul_(1.0)
    spring()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()
    spring().backward()  # what lies in .grad belongs to the parameters, and not to the spring
    kept = [t.grad.clone() for t in theta if t.grad is not None]
    with torch.no_grad():
        theta[0].add_(1.0)
    spring().backward()
    for t, grad, r in zip(theta[1:], kept[1:], right[1:], strict=True):
        torch.testing.assert_close(grad, r / scale)
        torch.testing.assert_close(t.grad, 2 * grad)


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_the_loss_adds_the_penalties_of_all_tasks(mode: str, scenario: str) -> None:
    stream = minicl.split("digits", 5, scenario, n_train=40)
    learner = minicl.EWC(minicl.mlp(64, 8), mode=mode, lam=30.0, decay=0.5)
    kept: list[dict[str, torch.Tensor]] = []
    fishers: list[dict[str, torch.Tensor]] = []
    original = learner.consolidate

    def consolidate(importance: dict[str, torch.Tensor]) -> None:
        kept.append({n: p.detach().clone() for n, p in learner.shared().items()})
        fishers.append({n: f.clone() for n, f in importance.items()})
        original(importance)

    learner.consolidate = consolidate  # type: ignore[method-assign, assignment]
    minicl.run(learner, stream[:3], epochs=1, progress=False)
    last = stream[3]

    def look() -> None:
        for p in learner.parameters():
            nn.init.normal_(p, std=0.3)
        now = dict(learner.named_parameters())
        if mode == "offline":
            springs = list(zip(kept, fishers, strict=True))
        else:  # F <- decay F + F^t, held at the newest solution
            decayed: dict[str, torch.Tensor] = {}
            for fisher in fishers:
                decayed = {n: 0.5 * decayed.get(n, torch.zeros_like(f)) + f for n, f in fisher.items()}
            springs = [(kept[-1], decayed)]
        now = {n: p.detach() for n, p in now.items()}
        total = sum(
            float(fisher[n].flatten()[i] * (now[n].flatten()[i] - at[n].flatten()[i]) ** 2)
            for at, fisher in springs
            for n in fisher
            for i in range(fisher[n].numel())
        )
        # What does not depend on theta is left out: at the anchors' mean the penalty is zero.
        offset = 0.0
        if mode == "offline":
            for n in kept[-1]:
                pairs = [(f[n].double(), at[n].double()) for at, f in springs if n in f]
                F = torch.stack([f for f, _ in pairs]).sum(0)
                mean = torch.where(F > 0, torch.stack([f * a for f, a in pairs]).sum(0) / F, 0)
                offset += float(sum((f * (a - mean) ** 2).sum() for f, a in pairs))
        task_id = last.id if scenario == "task" else None
        plain = nn.functional.cross_entropy(learner(last.train.x, task_id), last.train.y)
        added = learner.loss(last.train.x, last.train.y, task_id) - plain
        assert added.item() == pytest.approx(15 * (total - offset), rel=1e-3)
        assert learner.penalty().item() == pytest.approx(added.item(), rel=1e-3)
        assert added.item() > 0.1

    learner.eval()
    learner.learn(last, look)


@pytest.mark.parametrize(
    ("scenario", "heads"),
    [("task", []), ("domain", ["heads.shared"]), ("class", ["heads.0", "heads.1"])],
)
def test_what_is_held(scenario: str, heads: list[str]) -> None:
    """Heads that later tasks train as well are held; in "class" the rows of all classes seen so far."""
    learner = minicl.MAS(minicl.mlp(64, 8))
    minicl.run(learner, minicl.split("digits", 5, scenario, n_train=30)[:2], epochs=1, progress=False)
    names = ["backbone.1.weight", "backbone.1.bias"] + [f"{h}.{part}" for h in heads for part in ("weight", "bias")]
    assert learner.latest.names == names
    assert all(float(o.sum()) > 0 for o in learner.latest.importances.values())


def test_old_head_rows_hold_on_in_the_class_scenario() -> None:
    stream = minicl.split("digits", 5, "class", n_train=60)
    moved = {}
    adam = partial(torch.optim.Adam, lr=1e-2)
    for lam in (0.0, 100.0):
        learner = minicl.MAS(minicl.mlp(64, 8), lam=lam)
        minicl.run(learner, stream[:1], epochs=5, progress=False, optimizer=adam)
        before = learner.heads["0"].weight.detach().clone()
        minicl.run(learner, stream[1:2], epochs=5, progress=False, optimizer=adam)
        moved[lam] = (learner.heads["0"].weight.detach() - before).norm().item()
    assert moved[100.0] < 0.5 * moved[0.0]


def test_memory_is_counted() -> None:
    stream = minicl.split("digits", 5, "task", n_train=30)
    parameters = 64 * 8 + 8
    for method, anchors in ((minicl.EWC, 3), (minicl.MAS, 1), (minicl.SI, 1)):
        learner = method(minicl.mlp(64, 8))
        assert learner.capacity()["extra_bytes"] == 0
        minicl.run(learner, stream[:3], epochs=1, progress=False)
        assert learner.capacity()["extra_bytes"] == 2 * 4 * parameters * anchors
    online = minicl.EWC(minicl.mlp(64, 8), mode="online")
    minicl.run(online, stream[:3], epochs=1, progress=False)
    assert online.capacity()["extra_bytes"] == 2 * 4 * parameters


@pytest.mark.parametrize("make", [minicl.EWC, partial(minicl.EWC, mode="online", decay=0.5), minicl.SI, minicl.MAS])
def test_a_layer_may_stop_learning_and_begin_again(make: Callable[[nn.Module], minicl.EWC]) -> None:
    """What was important before is held when it does, with the importance of then (in "online" mode decayed)."""
    stream = minicl.split("digits", 5, "task", n_train=30)
    learner = make(minicl.mlp(64, 8, 8))
    minicl.run(learner, stream[:1], epochs=1, progress=False)
    first, name = learner.backbone[1], "backbone.1.weight"  # type: ignore[index]
    omega, value = learner.latest.importances[name].clone(), learner.latest.values[name].clone()
    first.requires_grad_(False)
    minicl.run(learner, stream[1:2], epochs=1, progress=False)
    first.requires_grad_(True)
    with torch.no_grad():
        first.weight.add_(1.0)  # type: ignore[operator, union-attr]
    seen: list[torch.Tensor] = []

    def look() -> None:
        learner.zero_grad()
        learner.penalty().backward()
        seen.append(first.weight.grad.clone())  # type: ignore[operator, union-attr]

    learner.learn(stream[2], look)
    decay = 0.5 if learner.hyperparameters.get("mode") == "online" else 1.0
    torch.testing.assert_close(seen[0], 2 * learner.strength * decay * omega * (value + 1.0 - value))
    assert float(omega.sum()) > 0


def test_tasks_that_broke_off_between_others_do_not_spoil_a_file(tmp_path: Path) -> None:
    stream = minicl.split("digits", 5, "class", n_train=30)
    learner = minicl.EWC(minicl.mlp(64, 8))
    minicl.run(learner, stream[:1], epochs=1, progress=False)
    learner.prepare(stream[1])  # and never learned
    minicl.run(learner, stream[2:3], epochs=1, progress=False)
    learner.learn(stream[1], lambda: None)
    learner.save(tmp_path / "file")
    loaded = minicl.EWC.load(tmp_path / "file", minicl.mlp(64, 8))
    a, b = learner.state_dict(), loaded.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_many_samples_at_once_or_few_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    task = minicl.split("digits", 2, "task", n_train=70)[0]
    learner = minicl.MAS(minicl.mlp(64, 8))
    learner.learn(task, lambda: None)
    at_once = learner.importance(task)
    monkeypatch.setattr(per_sample, "PER_SAMPLE_NUMBERS", 3 * sum(t.numel() for t in at_once.values()))
    for name, value in learner.importance(task).items():
        torch.testing.assert_close(value, at_once[name])


class Recurrent(nn.Module):
    """Rows of an image, one after another: a layer that `vmap` cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(x.flatten(1).view(len(x), 8, 8))
        return out[:, -1]


def test_layers_that_vmap_cannot_take_go_one_by_one() -> None:
    task = minicl.split("digits", 2, "domain", n_train=20)[0]
    learner = minicl.MAS(Recurrent())
    learner.learn(task, lambda: None)
    found = learner.importance(task)
    slow = {name: torch.zeros_like(p) for name, p in learner.shared().items()}
    for x in task.train.x:
        learner.zero_grad()
        learner(x[None]).square().sum().backward()
        for name, p in learner.shared().items():
            assert p.grad is not None
            slow[name] += p.grad.abs() / len(task.train)
    for name, value in found.items():
        torch.testing.assert_close(value, slow[name], rtol=1e-4, atol=1e-6)


class Added(nn.Module):
    """Two parameters that are added to each other, so that their gradients are one tensor, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.aside = nn.Linear(8, 6, bias=False), nn.Linear(3, 2)
        self.place, self.kind = (nn.Parameter(torch.randn(1, 8, 6)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.linear(x.view(len(x), 8, 8)) + self.place + self.kind).tanh().mean(1)


@pytest.mark.parametrize("make", [partial(minicl.EWC, fisher="empirical"), minicl.MAS], ids=["EWC", "MAS"])
def test_gradients_that_share_memory_or_are_not_there(make: Callable[[nn.Module], minicl.EWC | minicl.MAS]) -> None:
    task = minicl.split("digits", 2, "domain", n_train=20)[0]
    torch.manual_seed(0)
    learner = make(Added())
    learner.learn(task, lambda: None)
    found = learner.importance(task)
    slow = {name: torch.zeros_like(p) for name, p in learner.shared().items()}
    for x, y in zip(task.train.x, task.train.y, strict=True):
        learner.zero_grad()
        z = learner(x[None])
        squares = isinstance(learner, minicl.EWC)
        (nn.functional.cross_entropy(z, y[None]) if squares else z.square().sum()).backward()
        for name, p in learner.shared().items():
            if p.grad is not None:
                slow[name] += (p.grad**2 if squares else p.grad.abs()) / len(task.train)
    for name, value in found.items():
        torch.testing.assert_close(value, slow[name], rtol=1e-4, atol=1e-8)
    assert not found["backbone.aside.weight"].any()
    assert bool((found["backbone.kind"] > 0).all())


def test_the_mode_of_the_network_comes_back_where_measuring_fails() -> None:
    learner = minicl.MAS(minicl.mlp(64, 8))
    task = minicl.split("digits", 2, "domain", n_train=20)[0]
    learner.learn(task, lambda: None)
    learner.train()

    def broken(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise KeyError("no")

    with pytest.raises(KeyError):
        mean_over_samples(learner, learner.shared(), task.train, None, broken, torch.square)
    assert learner.training
