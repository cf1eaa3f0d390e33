"""Tasks without a head: the network's own output is the answer, judged by a criterion and a metric of the user's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minicl
from minicl.regularization.ewc import fisher_diagonal
from minicl.regularization.lwf import output_distance
from minicl.regularization.mas import output_sensitivity
from minicl.samples import Samples

WITHOUT_A_HEAD: dict[str, Callable[[nn.Module], minicl.Learner]] = {
    "finetune": minicl.FineTune,
    "joint": minicl.Joint,
    "individual": minicl.Individual,
    "ewc": partial(minicl.EWC, lam=1.0),
    "ewc-online": partial(minicl.EWC, mode="online", lam=1.0),
    "si": partial(minicl.SI, c=0.1),
    "mas": partial(minicl.MAS, lam=0.1),
    "lwf": minicl.LwF,
    "er": partial(minicl.ER, budget=16),
    "er-task": partial(minicl.ER, budget=16, share="task"),
    "derpp": partial(minicl.DERpp, budget=16),
    "agem": partial(minicl.AGEM, budget=16),
    "gem": partial(minicl.GEM, budget=16),
    "pnn": minicl.PNN,
    "packnet": minicl.PackNet,
    "hat": partial(minicl.HAT, c=0.1),
    "piggyback": minicl.Piggyback,
}
ISOLATING = ("individual", "pnn", "packnet", "hat", "piggyback")
methods = pytest.mark.parametrize("name", WITHOUT_A_HEAD)


def closeness(outputs: Tensor, targets: Tensor) -> float:
    return -F.mse_loss(outputs, targets).item()


def tokens_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per token: outputs (batch, places, words), targets (batch, places)."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def tokens_right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).float().mean()


def regression(scenario: str = "task", n: int = 2, **given: Any) -> list[minicl.Task]:
    """Lines with other slopes: inputs (n, 4), targets (n, 2)."""
    draw = torch.Generator().manual_seed(3)
    tasks = []
    for t in range(n):
        slope = torch.randn(4, 2, generator=draw)
        parts = [(x := torch.randn(24, 4, generator=draw), x @ slope) for _ in range(2)]
        given = {"criterion": F.mse_loss, "metric": closeness, **given}
        tasks.append(minicl.Task(t, None, train=parts[0], test=parts[1], scenario=scenario, **given))
    return tasks


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))


run = partial(minicl.run, epochs=4, batch_size=8, optimizer=partial(torch.optim.Adam, lr=0.01), progress=False)


@pytest.mark.parametrize("scenario", ["task", "domain"])
@methods
def test_a_regression_is_learned_kept_and_exported(name: str, scenario: str, tmp_path: Path) -> None:
    learner, tasks = WITHOUT_A_HEAD[name](network()), regression(scenario)
    if learner.needs_task_id and scenario != "task":
        with pytest.raises(ValueError, match="must be told the task id"):
            run(learner, tasks)
        return
    before = -F.mse_loss(network()(tasks[0].test.x), tasks[0].test.y).item()
    result = run(learner, tasks, epochs=30)
    share = 0.95 if name == "piggyback" else 0.5  # of the error; masks over random weights learn slowly
    assert result.accuracy[0, 0] > share * before  # the score is minus the error
    assert result.settings["task metric"] == ["closeness"]
    path = tmp_path / "learner"
    learner.save(path)
    loaded = type(learner).load(path, network())
    for task in tasks:
        given = task.id if scenario == "task" else None
        answers = minicl.evaluation.logits(learner, task.test.x, given)[0]
        assert answers.shape == task.test.y.shape
        score = -F.mse_loss(answers, task.test.y).item()
        assert result.accuracy[1, task.id] == pytest.approx(score)
        exported = learner.export(given)(task.test.x)
        assert torch.allclose(exported, answers, atol=1e-5) if name == "hat" else torch.equal(exported, answers)
        assert torch.equal(minicl.evaluation.logits(loaded, task.test.x, given)[0], answers)
    if name in ISOLATING:
        assert (certificate := minicl.certify(learner, tasks))
        assert str(certificate.lines[0]) == f"task 0 (task 0): identical, score {result.accuracy[1, 0]:.4g}"
        assert result.backward_transfer == 0
    if name != "joint":
        third = regression(scenario, n=3)[2]
        run(loaded, [third])
        assert loaded.learned == [0, 1, 2]


@methods
def test_outputs_and_targets_may_have_any_shape(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    tasks = []
    for t in range(2):
        x = torch.randint(11, (20, 6), generator=draw)
        y = (x + 1 + t) % 11
        given = {"criterion": tokens_loss, "metric": tokens_right, "scenario": "task"}
        tasks.append(minicl.Task(t, None, train=(x, y), test=(x, y), **given))
    torch.manual_seed(0)
    backbone: nn.Module = nn.Sequential(nn.Embedding(11, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 11))
    learner = WITHOUT_A_HEAD[name](backbone)
    result = run(learner, tasks, epochs=30)
    assert result.accuracy[0, 0] > 0.5
    assert learner(tasks[0].test.x, 0).shape == (20, 6, 11)


def test_the_learner_may_bring_the_criterion() -> None:
    learner = minicl.FineTune(network())
    learner.criterion = F.l1_loss
    tasks = regression(criterion=None)
    run(learner, tasks)
    assert learner.learned == [0, 1]


def test_each_task_may_bring_its_own_criterion() -> None:
    seen = []

    def of_second(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(outputs))
        return F.l1_loss(outputs, targets)

    first, second = regression()[0], regression(criterion=of_second)[1]
    learner = minicl.ER(network(), budget=16)
    minicl.run(learner, [first, second], epochs=1, batch_size=8, progress=False)
    assert seen == [8, 8, 8]  # its own samples alone; those from memory go to the first task's


def test_a_criterion_of_a_task_serves_heads_as_well() -> None:
    def weighted(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, weight=torch.tensor([1.0, 1e-4]))

    x, y = torch.randn(20, 4), torch.arange(20) % 2
    task = minicl.Task(0, 2, train=(x, y), test=(x, y), criterion=weighted)
    learner = minicl.FineTune(network())
    run(learner, [task], epochs=20)
    assert (learner(x, 0).argmax(1) == 0).all()  # nobody asked for class 1


def test_fisher_information_rests_on_the_criterion() -> None:
    task, learner = regression()[0], minicl.EWC(network())
    run(learner, [task])
    names = learner.shared()
    found = learner.anchors[0].importances
    for name in names:
        slow = torch.zeros_like(names[name])
        for x, y in zip(task.train.x, task.train.y, strict=True):
            loss = F.mse_loss(learner.backbone(x[None]), y[None])
            slow += torch.autograd.grad(loss, names[name])[0] ** 2 / len(task.train)
        assert torch.allclose(found[name], slow, rtol=1e-4, atol=1e-7)
    assert all(
        float(f.sum()) > 0 for f in fisher_diagonal(learner, names, task.train, 0, criterion=F.mse_loss).values()
    )


def test_output_sensitivity_of_outputs_of_any_shape() -> None:
    learner = minicl.MAS(nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))))
    x = torch.randn(5, 3)
    task = minicl.Task(0, None, train=(x, torch.randn(5, 2, 2)), criterion=F.mse_loss)
    learner.learn(task, lambda: None)
    weight = learner.backbone[0].weight
    found = output_sensitivity(learner, {"backbone.0.weight": weight}, Samples(x, torch.zeros(5)), 0)
    slow = sum(torch.autograd.grad(learner.backbone(a[None]).square().sum(), weight)[0].abs() for a in x) / 5
    assert torch.allclose(found["backbone.0.weight"], slow, rtol=1e-5)


def test_outputs_are_distilled_by_their_squared_distance() -> None:
    a, b = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    slow = sum((float(p) - float(q)) ** 2 for p, q in zip(a.flatten(), b.flatten(), strict=True)) / a.numel()
    assert float(output_distance(a, b)) == pytest.approx(slow, rel=1e-5)
    learner, tasks = minicl.LwF(network(), lam=1e4), regression()
    run(learner, tasks[:1])
    before = learner(tasks[1].train.x, 0).detach()
    run(learner, tasks[1:], optimizer=partial(torch.optim.SGD, lr=1e-5))
    assert F.mse_loss(learner(tasks[1].train.x, 0), before) < 1e-3  # held where the new task's inputs lie


@pytest.mark.parametrize("kind", ["dataset", "list", "mapped"])
def test_targets_are_read_on_demand(kind: str, tmp_path: Path) -> None:
    task = regression()[0]
    x, y = task.train.x, task.train.y

    class Lines(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, i: int) -> Any:
            return x[i].numpy(), y[i].numpy()

    given: Any = Lines() if kind == "dataset" else [(a, b) for a, b in zip(x, y, strict=True)]
    if kind == "mapped":
        import numpy as np

        np.save(tmp_path / "x.npy", x.numpy())
        given = (np.load(tmp_path / "x.npy", mmap_mode="r"), y.numpy())
    results = []
    for train in ((x, y), given):
        one = minicl.Task(0, None, train=train, test=(x, y), criterion=F.mse_loss, metric=closeness)
        results.append(run(minicl.ER(network(), budget=8), [one]))
    assert results[0].accuracy[0, 0] == pytest.approx(results[1].accuracy[0, 0], rel=1e-5)


def test_what_does_not_fit_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="scenario 'class' counts classes; allowed: 'task' or 'domain'"):
        regression("class")
    with pytest.raises(TypeError, match="criterion of task 0 is a str; allowed: a function"):
        regression(criterion="mse")
    with pytest.raises(ValueError, match="so its loss must be said: Task"):
        run(minicl.FineTune(network()), regression(criterion=None))
    with pytest.raises(ValueError, match=r"say how good they are: Task\(\.\.\., metric=f\)"):
        run(minicl.FineTune(network()), regression(metric=None))
    for method in (minicl.VCL, minicl.AGSCL, minicl.FeatureExtraction):
        backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        with pytest.raises(ValueError, match=rf"{method.__name__} works with classes, and task 0 has none"):
            run(method(backbone), regression())
    with pytest.raises(ValueError, match="allowed: share='reservoir' or 'task'"):
        run(minicl.ER(network(), share="class"), regression())
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    learner = minicl.FineTune(network())
    with pytest.raises(ValueError, match="do not go together"):
        run(learner, [minicl.Task(0, 2, (x, y), test=(x, y)), regression()[1]])
    run(learner, [minicl.Task(0, 2, (x, y), test=(x, y))])
    with pytest.raises(ValueError, match="a head and tasks without one do not go together in one learner"):
        run(learner, [regression()[1]])
    bad = regression()[0].train.y.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match="the train targets: NaN or infinity"):
        minicl.Task(0, None, train=(regression()[0].train.x, bad), criterion=F.mse_loss)
    with pytest.raises(ValueError, match="the metric of task 0 gave no number for outputs of shape"):
        run(minicl.FineTune(network()), regression(metric=lambda outputs, targets: outputs))


def test_early_stopping_goes_by_the_metric() -> None:
    tasks = regression()
    first = minicl.Task(
        0, None, train=tasks[0].train, valid=tasks[0].test, test=tasks[0].test, criterion=F.mse_loss, metric=closeness
    )
    result = run(minicl.FineTune(network()), [first], epochs=12, patience=2)
    assert result.accuracy[0, 0] == pytest.approx(max(result.learning_curves[0][1:]))
