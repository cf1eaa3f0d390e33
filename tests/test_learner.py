"""What every learner does: heads, task ids, labels, tasks and backbones, the moments, protection of an optimiser.

What holds of each method is tested in test_every_method.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from backbones import Own
from loops import run, same_bits, small_tasks, state
from torch import Tensor, nn

import minicl
from minicl import FineTune, Task
from minicl.learner import Fit

make_tasks = partial(small_tasks, shape=(6,))
train = partial(run, epochs=2, batch_size=8)


# ---- heads and task ids ----------------------------------------------------------------------------------------------


def test_each_task_has_a_head_of_its_own() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks("task"))
    x = torch.randn(3, 6)
    for t in range(3):
        head = learner.heads[str(t)]
        torch.testing.assert_close(learner(x, t), head(learner.backbone(x)), rtol=0, atol=0)
        assert learner(x, t).shape == (3, 2)


def test_all_domains_share_one_head() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks("domain"))
    x = torch.randn(3, 6)
    assert list(learner.heads) == ["shared"]
    assert torch.equal(learner(x), learner.heads["shared"](learner.backbone(x)))
    assert torch.equal(learner(x, 1), learner(x))


def test_the_head_grows_with_the_classes() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    x = torch.randn(3, 6)
    for t, task in enumerate(make_tasks("class")):
        learner.prepare(task)
        assert learner(x).shape == (3, 2 * (t + 1)) if t == 0 else True
        train(learner, [task])
        assert learner(x).shape == (3, 2 * (t + 1))
    logits = [head(learner.backbone(x)) for head in learner.heads.values()]
    torch.testing.assert_close(learner(x), torch.cat(logits, 1))


def test_tasks_of_different_size() -> None:
    x = torch.randn(8, 6)
    tasks = [Task(t, k, (x, torch.arange(8) % k), test=(x, torch.arange(8) % k)) for t, k in ((4, 3), (0, 1), (9, 7))]
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, tasks)
    assert [learner(x, t).shape[1] for t in (4, 0, 9)] == [3, 1, 7]
    assert learner.learned == [4, 0, 9]


@pytest.mark.parametrize("shape", [(2, 7), (6,), (2, 1, 6), (), (2, 6, 1)])
def test_a_batch_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks("task", 1))
    with pytest.raises(ValueError, match=r"the batch has shape .*; allowed: \(batch, 6\)"):
        learner(torch.zeros(shape), 0)
    learner.input_shape = None
    assert learner(torch.zeros(2, 1, 6), 0).shape == (2, 2)  # mlp flattens


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_labels_out_of_range_are_named(scenario: str) -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks(scenario, 1))
    x = torch.randn(3, 6)
    for y in ([0, 1, 2], [-1, 0, 0], [0, -100, 1]):
        message = f"labels run from {min(y)} to {max(y)}, but the head has 2 outputs; allowed: 0 to 1"
        with pytest.raises(ValueError, match=message):
            learner.loss(x, torch.tensor(y), 0)
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) and torch.int64 do not fit logits of shape \(3, 2\)"):
        learner.loss(x, torch.tensor([0, 1]), 0)
    with pytest.raises(ValueError, match=r"torch.float32 do not fit .* allowed: int64 of shape \(3,\)"):
        learner.loss(x, torch.tensor([0.0, 1, 1]), 0)


def test_the_loss_is_the_mean_cross_entropy() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks("task", 2))
    x, y = torch.randn(7, 6), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    p = learner(x, 1).softmax(1)
    by_hand = -sum(p[i, y[i]].log() for i in range(7)) / 7
    torch.testing.assert_close(learner.loss(x, y, 1), torch.as_tensor(by_hand))


# ---- what a task must be, and a backbone -----------------------------------------------------------------------------


def test_a_task_is_learned_once() -> None:
    tasks = make_tasks()
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, tasks)
    before = state(learner)
    with pytest.raises(ValueError, match="task 1 has been learned already; learned so far: 0, 1, 2"):
        learner.learn(tasks[1], lambda: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=r"task 0 has been learned already; go on with stream\[3:\]"):
        train(learner, tasks)
    assert same_bits(before, state(learner))


def test_one_learner_one_scenario() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    train(learner, make_tasks("task", 1))
    with pytest.raises(ValueError, match="task 1 is of scenario 'class', the tasks before it of 'task'"):
        learner.learn(make_tasks("class", 2)[1], lambda: pytest.fail("it trained"))


def test_domains_have_the_same_outputs_and_classes_only_grow() -> None:
    x, y = torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
    for scenario, message in (
        ("domain", "task 1 has 2 outputs, task 0 had 3; in scenario 'domain' all tasks share one head"),
        ("class", "task 1 has n_outputs=2, but 3 classes were seen before it"),
    ):
        learner = FineTune(minicl.mlp(6, 5))
        train(learner, [Task(0, 3, (x, y), test=(x, y), scenario=scenario)])
        before = state(learner)
        with pytest.raises(ValueError, match=message):
            learner.learn(Task(1, 2, (x, y), test=(x, y), scenario=scenario), lambda: pytest.fail("it trained"))
        assert learner.learned == [0]
        assert same_bits(before, state(learner))


def test_a_backbone_that_cannot_take_the_inputs_is_refused_and_nothing_sticks() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    with pytest.raises(ValueError, match=r"the backbone cannot take inputs of shape \(batch, 7\), as task 0 has them"):
        train(learner, make_tasks(shape=(7,)))
    train(learner, make_tasks())  # the right ones
    assert learner.learned == [0, 1, 2]
    with pytest.raises(ValueError, match=r"inputs of task 3 have shape \(batch, 2, 3\), those before it \(batch, 6\)"):
        learner.learn(make_tasks(n=4, shape=(2, 3))[3], lambda: None)


def test_looking_at_a_backbone_leaves_it_as_it_was() -> None:
    backbone = Own()
    backbone.norm.eval()
    before = state(backbone)
    FineTune(backbone).prepare(make_tasks(shape=(1, 4, 4))[0])
    assert same_bits(before, state(backbone))
    assert backbone.training
    assert not backbone.norm.training
    assert backbone.drop.training


def test_a_prepared_task_keeps_its_number_of_outputs() -> None:
    learner = FineTune(minicl.mlp(6, 5))
    learner.prepare(make_tasks(outputs=2)[0])
    with pytest.raises(ValueError, match="task 0 has n_outputs=3, and was prepared with 2"):
        learner.prepare(make_tasks(outputs=3)[0])


# ---- the moments, and protect ----------------------------------------------------------------------------------------


class Recorder(FineTune):
    """Writes down which moment came when."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.moments: list[str] = []

    def learn(self, task: Task, fit: Fit) -> None:
        self.moments.append("learn")
        super().learn(task, fit)
        self.moments.append("learned")

    def before_step(self, progress: float) -> None:
        self.moments.append("before_step")

    def edit_gradients(self) -> None:
        assert all(p.grad is not None for p in self.backbone.parameters())
        self.before_optimizer = state(self.backbone)
        self.moments.append("edit_gradients")

    def after_step(self) -> None:
        assert not same_bits(self.before_optimizer, state(self.backbone))
        self.moments.append("after_step")


def test_the_moments_come_in_their_order() -> None:
    learner = Recorder(minicl.mlp(6, 5))
    minicl.run(learner, make_tasks(n=1), epochs=2, batch_size=10)
    assert learner.moments == ["learn", *["before_step", "edit_gradients", "after_step"] * 4, "learned"]


def test_protecting_twice_does_nothing_more() -> None:
    learner = Recorder(minicl.mlp(6, 5))
    learner.prepare(make_tasks()[0])
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    assert learner.protect(optimizer) is optimizer
    assert learner.protect(optimizer) is optimizer

    def fit() -> None:
        learner.protect(optimizer)
        learner.loss(torch.randn(2, 6), torch.tensor([0, 1]), 0).backward()
        optimizer.step()

    learner.learn(make_tasks()[0], fit)
    assert learner.moments == ["learn", "edit_gradients", "after_step", "learned"]


def test_one_optimiser_may_serve_two_learners() -> None:
    learners = [Recorder(minicl.mlp(6, 5)), Recorder(minicl.mlp(6, 5))]
    for learner in learners:
        learner.prepare(make_tasks()[0])
        learner.tasks[0].finished = True
    optimizer = torch.optim.SGD([p for learner in learners for p in learner.parameters()], lr=0.1)
    for learner in learners:
        learner.protect(optimizer)
        learner.loss(torch.randn(2, 6), torch.tensor([0, 1]), 0).backward()
    optimizer.step()
    assert [learner.moments for learner in learners] == [["edit_gradients", "after_step"]] * 2


@pytest.mark.parametrize("keyword", [True, False])
@pytest.mark.parametrize("make", [partial(torch.optim.LBFGS, lr=0.1, max_iter=3), partial(torch.optim.Adam, lr=0.1)])
def test_gradients_from_a_closure_are_edited_too(make: Any, keyword: bool) -> None:
    class Half(FineTune):
        edits = 0

        def edit_gradients(self) -> None:
            self.edits += 1
            self.backbone[1].weight.grad[:2] = 0

    learner = Half(minicl.mlp(6, 5))
    learner.prepare(make_tasks()[0])
    optimizer = learner.protect(make(learner.parameters()))
    x, y = make_tasks()[0].train.x, make_tasks()[0].train.y
    before = learner.backbone[1].weight.detach().clone()
    evaluations = []

    def fit() -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = learner.loss(x, y, 0)
            loss.backward()
            evaluations.append(loss.item())
            return loss

        for _ in range(3):
            told = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert torch.is_tensor(told)

    learner.learn(make_tasks()[0], fit)
    assert learner.edits == len(evaluations) >= 3
    assert evaluations[-1] < evaluations[0]
    assert torch.equal(learner.backbone[1].weight[:2], before[:2])
    assert not torch.equal(learner.backbone[1].weight[2:], before[2:])


def test_only_an_optimiser_can_be_protected() -> None:
    with pytest.raises(TypeError):
        FineTune(minicl.mlp(6, 5)).protect("Adam")  # type: ignore[type-var]
