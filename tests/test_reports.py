"""What people reported of continual learning with tools around it, each with the smallest input that showed it."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune

import minicl
from minicl import Task, freezing, protection
from minicl.freezing import all_modules
from minicl.losses import mean_loss
from minicl.testing.loops import SAM

# Most loops below are those of other people, who know nothing of HAT's schedule.
pytestmark = [
    pytest.mark.filterwarnings("ignore:this loop does not say how far it is"),
    pytest.mark.filterwarnings("ignore:task . switched off every unit"),
]

SGD, Adam = torch.optim.SGD, torch.optim.Adam
ADAM = partial(Adam, lr=3e-3)


def stream(n: int = 3, n_train: int = 60) -> list[Task]:
    return list(minicl.split("digits", 5, n_train=n_train))[:n]


def loop(
    learner: minicl.Learner,
    task: Task,
    make: Callable[..., Any] = ADAM,
    epochs: int = 2,
    batch: int = 20,
) -> Callable[..., None]:
    """A loop as anyone would write it, with a new optimiser for each task."""

    def fit(epochs: int = epochs) -> None:
        optimizer = learner.protect(make([p for p in learner.parameters() if p.requires_grad]))
        learner.train()
        for _ in range(epochs):
            for x, y in zip(task.train.x.split(batch), task.train.y.split(batch), strict=True):
                learner.before_step(0.5)
                optimizer.zero_grad()
                learner.loss(x, y, task.id_at_test).backward()
                optimizer.step()

    return fit


def learn(learner: minicl.Learner, tasks: Iterable[Task], **settings: Any) -> None:
    for task in tasks:
        learner.learn(task, loop(learner, task, **settings))


def answers(learner: minicl.Learner, tasks: Iterable[Task]) -> list[Tensor]:
    """The logits of each task, asked for in every way that people ask."""
    found = []
    for mode in (True, False):
        learner.train(mode)
        for task in tasks:
            found.append(learner(task.test.x[:20], task.id_at_test).detach())
            with torch.no_grad():
                found.append(learner(task.test.x[:20], task.id_at_test))
    return found


def in_evaluation(learner: minicl.Learner, tasks: Iterable[Task]) -> list[Tensor]:
    learner.eval()
    return [learner(task.test.x, task.id_at_test).detach() for task in tasks]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


NORMED: Callable[[], nn.Module] = partial(minicl.mlp, 64, 24, 16, batchnorm=True, dropout=0.2)
KEEPERS: dict[str, Callable[[nn.Module], minicl.Learner]] = {
    "pnn": minicl.PNN,
    "hat": partial(minicl.HAT, c=0.3),
    "packnet": minicl.PackNet,
    "packnet, norms per task": partial(minicl.PackNet, batchnorm="per-task"),
    "piggyback": minicl.Piggyback,
    "cpg": partial(minicl.CPG, stage=0.5),
    "individual": minicl.Individual,
    "feature-extraction": minicl.FeatureExtraction,
}
every_keeper = pytest.mark.parametrize("make", KEEPERS.values(), ids=KEEPERS)
ignore_dead_layers = pytest.mark.filterwarnings("ignore:task . switched off every unit")


# ---- somebody else writes --------------------------------------------------------------------------------------------


class Averaged:
    """A moving average of named parameters, written back."""

    def __init__(self, learner: nn.Module) -> None:
        self.kept = {name: p.detach().clone() for name, p in learner.named_parameters()}

    def write_back(self, learner: nn.Module) -> None:
        for name, p in learner.named_parameters():
            if name in self.kept:
                p.data.copy_(0.9 * self.kept[name] + 0.1 * p.data)


def average_of_named_parameters(learner: minicl.Learner, tasks: list[Task]) -> None:
    Averaged(learner).write_back(learner)


def average_over_state_dict(learner: minicl.Learner, tasks: list[Task]) -> None:
    average = {name: value.detach().clone() for name, value in learner.state_dict().items()}
    for _ in range(3):
        for name, value in learner.state_dict().items():
            if value.is_floating_point():
                average[name].mul_(0.9).add_(value.detach(), alpha=0.1)
    learner.load_state_dict(average)


def average_into_the_state_dict(learner: minicl.Learner, tasks: list[Task]) -> None:
    for value in learner.state_dict().values():
        if value.is_floating_point():
            value.mul_(1 + 1e-6)


def decay(learner: minicl.Learner, tasks: list[Task]) -> None:
    with torch.no_grad():
        for p in learner.parameters():
            p.mul_(0.99)


def update_bn(learner: minicl.Learner, tasks: list[Task]) -> None:
    batches = [tasks[0].train.x, tasks[1].train.x]
    for network in (getattr(learner, "backbone", None), *getattr(learner, "columns", {}).values()):
        if network is not None and not isinstance(learner, minicl.PNN):
            torch.optim.swa_utils.update_bn(batches, network)
    for network in getattr(learner, "networks", {}).values():
        torch.optim.swa_utils.update_bn(batches, network)


def switch_every_norm(learner: minicl.Learner, tasks: list[Task]) -> None:
    learner.train()
    for module in learner.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    for task in tasks[: len(learner.learned)]:
        learner(task.train.x, task.id)


def reset_every_norm(learner: minicl.Learner, tasks: list[Task]) -> None:
    for module in learner.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
            module.reset_running_stats()


def sync_batchnorm(learner: minicl.Learner, tasks: list[Task]) -> None:
    nn.SyncBatchNorm.convert_sync_batchnorm(learner)


def one_step_too_far(learner: minicl.Learner, tasks: list[Task]) -> None:
    for make in (partial(SGD, lr=0.5, momentum=0.9, weight_decay=0.1), partial(Adam, lr=0.1)):
        parameters = list(learner.parameters())
        if parameters:
            optimizer = learner.protect(make(parameters))
            learner.train()
            for task in tasks[: len(learner.learned)]:
                learner.loss(task.train.x, task.train.y, task.id).backward()
                optimizer.step()


WRITERS = [
    average_of_named_parameters,
    average_over_state_dict,
    average_into_the_state_dict,
    decay,
    update_bn,
    switch_every_norm,
    reset_every_norm,
    sync_batchnorm,
    one_step_too_far,
]


@every_keeper
@pytest.mark.parametrize("write", WRITERS)
@ignore_dead_layers
def test_what_is_finished_is_nobodys_to_write(
    make: Callable[[nn.Module], minicl.Learner], write: Callable[[minicl.Learner, list[Task]], None]
) -> None:
    torch.manual_seed(0)
    tasks = stream()
    learner = make(NORMED())
    learn(learner, tasks[:2])
    before = answers(learner, tasks[:2])
    assert same(before[:4], before[4:])  # asked in training mode, or not
    write(learner, tasks)
    assert same(answers(learner, tasks[:2]), before)
    if write is not sync_batchnorm:  # whose training pass exists on GPUs alone
        learn(learner, tasks[2:])
        assert same(answers(learner, tasks[:2]), before)


@every_keeper
@pytest.mark.parametrize("write", [average_of_named_parameters, average_over_state_dict, decay, switch_every_norm])
@ignore_dead_layers
def test_nor_while_another_task_is_learned(
    make: Callable[[nn.Module], minicl.Learner], write: Callable[[minicl.Learner, list[Task]], None]
) -> None:
    torch.manual_seed(0)
    tasks = stream()
    learner = make(NORMED())
    learn(learner, tasks[:2])
    before = answers(learner, tasks[:2])

    def fit(epochs: int = 1) -> None:
        optimizer = learner.protect(SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1))
        learner.train()
        for _ in range(3):
            optimizer.zero_grad()
            learner.loss(tasks[2].train.x, tasks[2].train.y, 2).backward()
            optimizer.step()
            write(learner, tasks)
        assert same(answers(learner, tasks[:2]), before)

    learner.learn(tasks[2], fit)
    assert same(answers(learner, tasks[:2]), before)


# ---- hooks that never run, or run twice ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["si", "agem", "gem", "agscl", "hat", "packnet"])
def test_a_loop_without_protect_is_told_so(method: str) -> None:
    tasks = stream(2)
    learner = minicl.METHODS[method](minicl.mlp(64, 16))

    def fit(epochs: int = 1) -> None:
        optimizer = Adam(learner.parameters())
        learner.loss(tasks[0].train.x, tasks[0].train.y, 0).backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"saw no step of a protected optimiser. Call learner.protect\(optimizer\)"):
        learner.learn(tasks[0], fit)
    assert learner.learned == []
    learner.learn(tasks[0], loop(learner, tasks[0]))


@pytest.mark.parametrize("method", ["ewc", "si", "mas", "lwf", "vcl", "hat", "er", "derpp", "agem", "gem"])
def test_a_loss_of_ones_own_that_leaves_out_the_methods_term_is_noticed(method: str) -> None:
    tasks = stream(2)
    learner = minicl.METHODS[method](minicl.mlp(64, 16))

    def fit(epochs: int = 1) -> None:
        optimizer = learner.protect(Adam(learner.parameters()))
        F.cross_entropy(learner(tasks[0].train.x, 0), tasks[0].train.y).backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"without learner.loss.*learner.loss\(x, y, task_id\)"):
        learner.learn(tasks[0], fit)
    assert learner.learned == []


@pytest.mark.parametrize("method", ["finetune", "pnn", "packnet", "ewc"])
def test_an_optimiser_that_was_made_before_the_head_is_noticed(method: str) -> None:
    tasks = stream(2)
    learner = minicl.METHODS[method](minicl.mlp(64, 16))
    learn(learner, tasks[:1])
    parameters = [p for p in learner.parameters() if p.requires_grad] or [nn.Parameter(torch.zeros(1))]
    optimizer = learner.protect(SGD(parameters, lr=0.1))

    def fit(epochs: int = 1) -> None:
        optimizer.zero_grad()
        learner.loss(tasks[1].train.x, tasks[1].train.y, 1).backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"1.*were made for task 1 and are in no protected optimiser"):
        learner.learn(tasks[1], fit)


@pytest.mark.parametrize("method", ["hat", "gem", "agem", "si"])
def test_two_optimisers_are_one_training_step(method: str) -> None:
    """Heads in one, the rest in the other: the same as all in one."""
    tasks, found = stream(2), []
    for parts in (1, 2):
        torch.manual_seed(0)
        learner = minicl.METHODS[method](minicl.mlp(64, 16))
        for task in tasks:

            def fit(epochs: int = 1, task: Task = task, parts: int = parts, learner: Any = learner) -> None:
                heads = list(learner.heads.parameters())
                rest = [p for p in learner.parameters() if all(p is not h for h in heads)]
                groups = [heads + rest] if parts == 1 else [heads, rest]
                optimizers = [learner.protect(SGD(group, lr=0.05)) for group in groups]
                learner.train()
                for seed in range(4):
                    torch.manual_seed(seed)
                    learner.zero_grad()
                    learner.loss(task.train.x, task.train.y, task.id).backward()
                    torch.manual_seed(seed)
                    for optimizer in optimizers:
                        optimizer.step()

            learner.learn(task, fit)
        found.append([p.detach().clone() for p in learner.state_dict().values()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("method", ["si", "gem", "agem", "hat", "packnet", "derpp", "agscl"])
def test_sam_steps_through_the_optimiser_inside(method: str) -> None:
    tasks = stream(2)
    learner = minicl.METHODS[method](minicl.mlp(64, 16))
    for task in tasks:

        def fit(epochs: int = 1, task: Task = task) -> None:
            optimizer = SAM([p for p in learner.parameters() if p.requires_grad], partial(SGD, lr=0.1))
            assert learner.protect(optimizer) is optimizer
            learner.train()
            for _ in range(3):
                learner.loss(task.train.x, task.train.y, task.id).backward()
                optimizer.first_step()
                learner.zero_grad()
                learner.loss(task.train.x, task.train.y, task.id).backward()
                optimizer.second_step()
                learner.zero_grad()

        learner.learn(task, fit)
    if method == "si":
        importances: Any = learner.latest.importances  # type: ignore[union-attr]
        assert any(bool(omega.any()) for omega in importances.values())
    if method == "derpp":
        assert learner.memory.seen == 2 * 60 * 1  # type: ignore[union-attr]


def test_derpp_offers_a_batch_once_however_often_a_closure_is_called() -> None:
    tasks = stream(2)
    learner = minicl.DERpp(minicl.mlp(64, 16), budget=30)
    minicl.run(
        learner, tasks, epochs=1, batch_size=20, optimizer=partial(torch.optim.LBFGS, max_iter=5), progress=False
    )
    assert learner.memory.seen == 120


def test_a_copy_of_learner_and_optimiser_has_no_hooks_and_says_so() -> None:
    tasks = stream(2)
    learner = minicl.SI(minicl.mlp(64, 16))
    learn(learner, tasks[:1])
    record = learner.prepare(tasks[1])
    optimizer = learner.protect(SGD(learner.parameters(), lr=0.1))
    twin, stepper = copy.deepcopy((learner, optimizer))

    def fit() -> None:
        twin.loss(tasks[1].train.x, tasks[1].train.y, 1).backward()
        stepper.step()

    with pytest.raises(RuntimeError, match="again after copying the learner or the optimiser"):
        twin.learn(tasks[1], fit)
    assert not record.finished


def test_what_wraps_an_optimiser_is_taken() -> None:
    class Accelerated:  # what accelerate.optimizer.AcceleratedOptimizer looks like from outside
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    class Lookahead(torch.optim.Optimizer):  # timm's does not call the constructor of torch's
        def __init__(self, base: torch.optim.Optimizer) -> None:
            self._base_optimizer = base

    learner = minicl.HAT(minicl.mlp(64, 16))
    for wrap in (Accelerated, Lookahead, lambda o: Accelerated(Lookahead(o))):  # type: ignore[arg-type]
        inner = SGD(learner.parameters(), lr=0.1)
        wrapped = wrap(inner)
        assert learner.protect(wrapped) is wrapped
        assert len(inner._optimizer_step_pre_hooks) == 1
    for wrong in (None, 3, Accelerated(None)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"protect was given a .*allowed: a torch.optim.Optimizer"):
            learner.protect(wrong)  # type: ignore[type-var]


# ---- mixed precision, layouts, several processes ---------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", ["si", "gem", "agem", "hat", "packnet", "agscl"])
def test_a_gradscaler_makes_no_difference(method: str, fused: bool) -> None:
    tasks, found = stream(2), []
    for scaled in (False, True):
        torch.manual_seed(0)
        learner = minicl.METHODS[method](minicl.mlp(64, 16))
        for task in tasks:

            def fit(epochs: int = 1, task: Task = task, scaled: bool = scaled, learner: Any = learner) -> None:
                parameters = [p for p in learner.parameters() if p.requires_grad]
                optimizer = learner.protect(Adam(parameters, lr=1e-3, fused=fused))
                scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**12)
                learner.train()
                for seed in range(4):
                    torch.manual_seed(seed)
                    optimizer.zero_grad()
                    scaler.scale(learner.loss(task.train.x, task.train.y, task.id)).backward()
                    torch.manual_seed(seed)
                    scaler.step(optimizer)
                    scaler.update()

            learner.learn(task, fit)
        found.append({n: t.detach().clone() for n, t in learner.state_dict().items() if t.is_floating_point()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", ["gem", "agem"])
@pytest.mark.parametrize("fused", [False, True])
def test_projected_gradients_have_the_layout_of_their_parameters(method: str, fused: bool) -> None:
    tasks, found = stream(2), []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        network = minicl.cnn(1, 4, 6).to(memory_format=layout)
        learner = minicl.METHODS[method](network)

        def fit(epochs: int = 1, task: Task = tasks[0], learner: Any = learner) -> None:
            optimizer = learner.protect(Adam(learner.parameters(), lr=1e-2, fused=fused))
            for seed in range(4):
                optimizer.zero_grad()
                learner.loss(task.train.x, task.train.y, task.id).backward()
                torch.manual_seed(seed)
                learner.edit_gradients()
                for p in learner.parameters():
                    assert p.grad is None or p.grad.stride() == p.stride()
                optimizer.step()

        for task in tasks:
            learner.learn(task, partial(fit, task=task))
        found.append(torch.cat([learner(task.test.x, task.id).detach() for task in tasks]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_layers_with_sparse_gradients_are_refused_by_name() -> None:
    network = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 4))
    for method in ("si", "agem", "gem"):
        with pytest.raises(ValueError, match=r"layer '0' \(Embedding\) gives sparse gradients"):
            minicl.METHODS[method](network)


# ---- refused before training, or taken -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ewc", "si", "mas"])
def test_a_frozen_backbone_with_a_head_for_each_task(method: str) -> None:
    network = minicl.mlp(64, 16).requires_grad_(False)
    learner = minicl.METHODS[method](network)
    minicl.run(learner, stream(2), epochs=1, progress=False)
    assert learner.learned == [0, 1]
    assert learner.capacity()["extra_bytes"] == 0


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * (x > 0)


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.kind = nn.Linear(64, 12), nn.Linear(12, 8), kind

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.first(x.flatten(1))
        if self.kind in ("checkpoint", "reentrant"):
            return torch.utils.checkpoint.checkpoint(self.rest, h, use_reentrant=self.kind == "reentrant")
        else:
            h = OldStyle.apply(h) if self.kind == "old" else h.relu()
        return self.second(h)

    def rest(self, h: Tensor) -> Tensor:
        result: Tensor = self.second(h.relu())
        return result


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's, where nothing is trained
@pytest.mark.parametrize("method", ["ewc", "mas", "gem", "agem"])
@pytest.mark.parametrize("kind", ["checkpoint", "reentrant", "old"])
def test_networks_that_torch_func_or_autograd_grad_cannot_take(method: str, kind: str) -> None:
    found = []
    for k in ("plain", kind):
        torch.manual_seed(0)
        learner = minicl.METHODS[method](Odd(k))
        minicl.run(learner, stream(2), epochs=2, batch_size=20, progress=False)
        found.append({name: tensor for name, tensor in learner.state_dict().items() if "memory" not in name})
    for name, value in found[0].items():  # importances are among them
        torch.testing.assert_close(found[1][name], value, msg=name)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's, where nothing is trained
@pytest.mark.parametrize("kind", ["reentrant", "plain"])
def test_importances_leave_gradients_as_they_are(kind: str) -> None:
    learner, task = minicl.MAS(Odd(kind)), stream(1)[0]
    learner.prepare(task)
    before = {name: torch.full_like(p, 0.5) for name, p in learner.named_parameters()}
    for name, p in learner.named_parameters():
        p.grad = before[name]
    learner.learn(task, lambda: None)
    assert all(p.grad is before[name] for name, p in learner.named_parameters())
    assert all(bool((value == 0.5).all()) for value in before.values())


@pytest.mark.parametrize("method", ["ewc", "mas", "agscl"])
def test_a_task_without_training_samples_is_refused_before_training(method: str) -> None:
    task = Task(0, 2, example=torch.rand(2, 64))
    learner = minicl.METHODS[method](minicl.mlp(64, 8))
    with pytest.raises(ValueError, match="was made without train samples"):
        learner.learn(task, lambda: pytest.fail("training began"))


def test_small_tasks_that_a_reservoir_forgets() -> None:
    sizes = {0: 5, 1: 1000, 2: 3}
    tasks = [Task(t, 2, (torch.rand(n, 8), torch.arange(n) % 2)) for t, n in sizes.items()]
    learner = minicl.AGEM(minicl.mlp(8, 8), budget=60)
    with pytest.warns(UserWarning, match=r"no sample of task (0|2|0, 2),.*share='task', keeps some of each"):
        learn(learner, tasks, epochs=1, batch=500)
    equal = minicl.AGEM(minicl.mlp(8, 8), budget=60, share="task")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(equal, tasks, epochs=1, batch=500)
    assert [len(equal.memory.of_task(t)) for t in sizes] == [5, 52, 3]


def test_a_backbone_that_keeps_its_last_output_can_be_copied_and_exported() -> None:
    class Keeps(nn.Module):
        last: Tensor | None = None

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.net(x.flatten(1)).relu()
            return self.last

    tasks = stream(2)
    for method in ("finetune", "packnet", "pnn", "individual", "joint", "lwf", "feature-extraction"):
        learner = minicl.METHODS[method](Keeps())
        learn(learner, tasks) if method != "joint" else minicl.run(learner, tasks, epochs=1, progress=False)
        learner.loss(tasks[1].train.x, tasks[1].train.y, 1)
        twin, exported = copy.deepcopy(learner), learner.export(1)
        x = tasks[1].test.x
        assert torch.equal(twin.eval()(x, 1), learner.eval()(x, 1))
        torch.testing.assert_close(exported(x), learner(x, 1))


def test_a_task_begun_inside_another_is_refused() -> None:
    tasks = stream(2)
    for method in ("finetune", "hat", "packnet"):
        learner = minicl.METHODS[method](minicl.mlp(64, 16))

        def fit(epochs: int = 1, learner: Any = learner) -> None:
            for again in tasks:
                with pytest.raises(RuntimeError, match=f"task {again.id} was to be learned while task 0 is being"):
                    learner.learn(again, lambda: None)
            loop(learner, tasks[0])()

        learner.learn(tasks[0], fit)
        assert learner.learned == [0]
        learn(learner, tasks[1:])


@every_keeper
def test_several_threads_may_ask_one_learner(make: Callable[[nn.Module], minicl.Learner]) -> None:
    tasks = stream(3)
    learner = make(minicl.mlp(64, 24, 16, batchnorm=True))
    learn(learner, tasks)
    learner.eval()
    right, wrong = [learner(task.test.x, task.id).detach() for task in tasks], []

    def ask(t: int) -> None:
        for _ in range(40):
            with torch.no_grad():
                if not torch.equal(learner(tasks[t].test.x, t), right[t]):
                    wrong.append(t)

    threads = [threading.Thread(target=ask, args=(t,)) for t in (0, 1, 2, 0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("method", ["finetune", "packnet", "ewc", "individual"])
def test_an_average_that_is_kept_over_tasks_is_refused_in_words(method: str, use_buffers: bool) -> None:
    tasks = stream(2)
    learner = minicl.METHODS[method](minicl.mlp(64, 16))
    averages: list[torch.optim.swa_utils.AveragedModel] = []

    def fit(epochs: int = 1, task: Task = tasks[0]) -> None:
        loop(learner, task)(1)
        if not averages:
            averages.append(torch.optim.swa_utils.AveragedModel(learner, use_buffers=use_buffers))
        for _ in range(3):
            averages[0].update_parameters(learner)

    learner.learn(tasks[0], fit)
    with pytest.raises(RuntimeError, match=r"made of a learner with tasks \[0\].*tasks \[0, 1\] by now"):
        learner.learn(tasks[1], partial(fit, task=tasks[1]))
    assert learner.learned == [0]
    averages.clear()
    learner.learn(tasks[1], partial(fit, task=tasks[1]))


@every_keeper
def test_a_norm_without_statistics_answers_a_batch_with_the_same_bits(
    make: Callable[[nn.Module], minicl.Learner],
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.ReLU())
    tasks = stream(3)
    learner = make(network)
    learn(learner, tasks[:2])
    before = answers(learner, tasks[:2])
    learn(learner, tasks[2:])
    assert same(answers(learner, tasks[:2]), before)
    x = tasks[0].test.x
    assert not torch.equal(learner(x[:5], 0), learner(x[:10], 0)[:5])  # as the page of promises says


class Mixer(nn.Module):
    """A Linear that reads a tensor which is not contiguous."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv1d(8, 6, 3, padding=1), nn.Linear(6, 5, bias=bias)
        self.mix = nn.Linear(8, 7, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(self.conv(x.flatten(1).view(-1, 8, 8)).relu().transpose(1, 2)).relu()  # (batch, 8, 5)
        return self.mix(h.transpose(1, 2)).flatten(1)


@pytest.mark.parametrize("make", [minicl.PackNet, minicl.Individual, minicl.FeatureExtraction])
@pytest.mark.parametrize("bias", [True, False])
def test_one_way_to_compute_a_finished_task(make: Callable[[nn.Module], minicl.Learner], bias: bool) -> None:
    torch.manual_seed(0)
    tasks, was = stream(3), {}
    learner = make(Mixer(bias))
    for task in tasks:
        learner.learn(task, loop(learner, task))
        for t in learner.learned:
            x = tasks[t].test.x
            now = answers(learner, [tasks[t]])
            exported = learner.export(t)
            now += [exported(x[:20]), learner(x[:20].clone().requires_grad_(), t).detach()]
            was.setdefault(t, now[0])
            assert all(torch.equal(each, was[t]) for each in now), (t, task.id)
        assert minicl.certify(learner, tasks) is not None


def test_nothing_of_a_finished_task_is_found_by_a_walk() -> None:
    tasks = stream(2)
    for name, make in KEEPERS.items():
        learner = make(NORMED())
        learn(learner, tasks)
        seen = {id(m) for m in learner.modules()}
        hidden = [m for _, m in all_modules(learner) if id(m) not in seen]
        assert hidden, name
        for module in hidden:
            assert not list(module.parameters())


# ---- one backbone, one learner ---------------------------------------------------------------------------------------


def test_a_backbone_that_two_learners_would_train_is_noticed() -> None:
    network = minicl.mlp(64, 16)
    first = minicl.PackNet(network)
    with pytest.warns(UserWarning, match=r"is the backbone of a PackNet already.*copy.deepcopy\(backbone\)"):
        minicl.EWC(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minicl.Individual(network)  # copies it
        minicl.EWC(minicl.mlp(64, 16))
        del first


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own
def test_a_compiled_backbone_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"the backbone was compiled \(torch.compile\).*module._orig_mod"):
        minicl.PackNet(torch.compile(minicl.mlp(64, 16)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer '1' was compiled"):
        minicl.FineTune(nn.Sequential(nn.Flatten(), torch.compile(nn.Linear(64, 16))))  # type: ignore[arg-type]


def test_a_state_dict_for_a_new_learner_is_refused_in_words() -> None:
    learner = minicl.PackNet(minicl.mlp(64, 16))
    learn(learner, stream(2))
    with pytest.raises(RuntimeError, match=r"use learner.save\(path\) and PackNet.load\(path, backbone\)"):
        minicl.PackNet(minicl.mlp(64, 16)).load_state_dict(learner.state_dict())


@pytest.mark.parametrize("method", ["finetune", "packnet", "individual", "feature-extraction", "ewc", "joint"])
def test_a_first_operation_in_place_leaves_the_data_alone(method: str) -> None:
    tasks = stream(2)
    before = [(task.train.x.clone(), task.test.x.clone()) for task in tasks]
    for task in tasks:
        task.test.x.sub_(0.5)
        task.train.x.sub_(0.5)
    shifted = [(task.train.x.clone(), task.test.x.clone()) for task in tasks]
    learner = minicl.METHODS[method](nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 8)))
    minicl.run(learner, tasks, epochs=1, progress=False)
    for task, (train, test) in zip(tasks, shifted, strict=True):
        assert torch.equal(task.train.x, train)
        assert torch.equal(task.test.x, test)
    assert before


# ---- losses of one's own ---------------------------------------------------------------------------------------------


def smoothed(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, label_smoothing=0.1)


@pytest.mark.parametrize("method", [name for name in minicl.METHODS if name != "icarl"])  # its loss is its own
@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_a_criterion_is_used_by_every_method(method: str, scenario: str) -> None:
    learner = minicl.METHODS[method](minicl.mlp(64, 16))
    if learner.needs_task_id and scenario != "task":
        pytest.skip("needs the task id")
    calls = 0

    def criterion(logits: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert bool(logits.isfinite().all())  # never the outputs that a head has not
        assert len(logits) == len(y)
        return smoothed(logits, y)

    learner.criterion = criterion
    minicl.run(learner, minicl.split("digits", 5, scenario, n_train=40)[:2], epochs=1, batch_size=20, progress=False)
    assert calls >= (2 if method in ("ncm", "slda") else 4)  # those train on the first task alone


@pytest.mark.parametrize("method", ["er", "derpp", "agem", "gem", "joint", "vcl"])
def test_a_criterion_sees_one_head_at_a_time(method: str) -> None:
    """Heads of 2 and 4 outputs in one batch: the wide one's are not those of the narrow one."""
    parts = {0: (2, torch.rand(30, 8)), 1: (4, torch.rand(30, 8)), 2: (3, torch.rand(30, 8))}
    tasks = [Task(t, n, (x, torch.arange(30) % n), None, (x, torch.arange(30) % n)) for t, (n, x) in parts.items()]
    learner = minicl.METHODS[method](minicl.mlp(8, 8))
    widths = set()

    def criterion(logits: Tensor, y: Tensor) -> Tensor:
        widths.add(logits.shape[1])
        assert bool(logits.isfinite().all())
        return smoothed(logits, y)

    learner.criterion = criterion
    minicl.run(learner, tasks, epochs=1, batch_size=10, progress=False)
    assert widths == {2, 3, 4}


def test_a_criterion_that_fails_says_what_it_was_given() -> None:
    """Weights of three classes, where a head of scenario "class" has two outputs so far."""
    with pytest.raises(RuntimeError, match="weight tensor") as caught:
        mean_loss(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]), nn.CrossEntropyLoss(weight=torch.ones(3)))
    (note,) = caught.value.__notes__
    assert note.startswith("the criterion was given outputs of shape (4, 2) and labels of shape (4,); in scenario")


def test_the_same_criterion_is_cross_entropy() -> None:
    """Given as a criterion, cross-entropy itself changes nothing, in no method with a memory."""
    for method in ("er", "gem", "agem", "derpp", "joint", "lwf"):
        found = []
        for criterion in (None, F.cross_entropy):
            learner = minicl.METHODS[method](minicl.mlp(64, 16))
            learner.criterion = criterion
            minicl.run(learner, stream(3), epochs=2, progress=False)
            found.append(torch.cat([learner(task.test.x, task.id).detach() for task in stream(3)]))
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrong", [3, "mean", lambda z, y: z, lambda z, y: 1.0])
def test_a_criterion_that_is_none(wrong: Any) -> None:
    learner = minicl.FineTune(minicl.mlp(64, 16))
    learner.criterion = wrong
    with pytest.raises((TypeError, ValueError), match=r"criterion (is|returned) .*allowed: a "):
        learn(learner, stream(1))
    assert learner.learned == []


@pytest.mark.parametrize(
    "method", [name for name in minicl.METHODS if name not in ("hat", "joint", "derpp", "der", "bic")]
)
@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_soft_labels(method: str, scenario: str) -> None:
    """Labels of 0 and 1 give the loss of hard ones; mixed ones the mean of two."""
    learner = minicl.METHODS[method](minicl.mlp(64, 16))
    if learner.needs_task_id and scenario != "task":
        pytest.skip("needs the task id")
    tasks = minicl.split("digits", 5, scenario, n_train=40)[:2]

    def fit(epochs: int = 1) -> None:
        optimizer = learner.protect(SGD([p for p in learner.parameters() if p.requires_grad], lr=0.01))
        learner.train()
        for task in [tasks[len(learner.learned)]]:
            x, y = task.train.x, task.train.y
            soft = F.one_hot(y, task.n_outputs).float()
            values = []
            for labels in (y, soft, 0.5 * soft + 0.5 * soft.flip(0)):
                torch.manual_seed(0)
                optimizer.zero_grad()
                loss = learner.loss(x, labels, task.id_at_test)
                values.append(loss.item())
            torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)
            assert values[2] != values[0]
            loss.backward()
            optimizer.step()

    for task in tasks:
        learner.learn(task, fit)


def test_soft_labels_that_do_not_fit_are_refused_in_words() -> None:
    learner = minicl.FineTune(minicl.mlp(64, 16))
    task = stream(1)[0]
    for wrong, words in (
        (torch.ones(60, 3), r"labels of shape \(60, 3\).*probabilities of shape \(60, 2\)"),
        (-torch.ones(60, 2), "soft labels hold negative numbers or NaN"),
        (torch.full((60, 2), torch.nan), "soft labels hold negative numbers or NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            learner.learn(task, lambda wrong=wrong: learner.loss(task.train.x, wrong, 0))
    derpp = minicl.DERpp(minicl.mlp(64, 16))
    with pytest.raises(ValueError, match="DERpp keeps one label with each sample"):
        derpp.learn(task, lambda: derpp.train().loss(task.train.x, torch.ones(60, 2) / 2, 0))


# ---- a task that is taken out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name in minicl.METHODS if name != "joint"])
@pytest.mark.parametrize("order", [[2, 1, 0], [0, 1, 2], [1], [1, 2]])
def test_a_forgotten_task_leaves_the_others_as_they_are(method: str, order: list[int], tmp_path: Any) -> None:
    torch.manual_seed(0)
    tasks = stream(4)
    network = partial(minicl.mlp, 64, 16) if method in ("agscl", "den") else NORMED  # which take no norms
    learner = minicl.METHODS[method](network())
    learn(learner, tasks[:3])
    answer = answers if method in KEEPERS else in_evaluation
    was = {t: answer(learner, [tasks[t]]) for t in range(3)}
    free = learner.capacity().get("free")
    for t in order:
        learner.forget(t)
        assert t not in learner.learned
        with pytest.raises(ValueError, match=f"the task id is {t}, which has not been learned"):
            learner(tasks[t].test.x, t)
        for left in learner.learned:
            assert same(answer(learner, [tasks[left]]), was[left])
    if method in KEEPERS and free is not None and order[0] == 2:  # importances are sums, and give nothing back
        assert learner.capacity()["free"] > free
    if method == "packnet" and len(order) == 3:
        assert learner.capacity()["free"] == learner.capacity()["prunable"]
    if method in ("er", "gem"):
        assert all(len(learner.memory.of_task(t)) == 0 for t in order)  # type: ignore[union-attr]
    learner.save(tmp_path / "file")
    loaded = type(learner).load(tmp_path / "file", network())
    for left in learner.learned:
        assert same(answer(loaded, [tasks[left]]), was[left])
    for each in (learner, loaded):  # and learning goes on, also of what was forgotten
        learn(each, [tasks[3], tasks[order[0]]])
        if method in KEEPERS:
            for left in set(range(3)) - set(order):
                assert same(answers(each, [tasks[left]]), was[left])


def test_what_cannot_be_forgotten_is_refused_in_words() -> None:
    learner = minicl.PackNet(minicl.mlp(64, 16))
    learn(learner, stream(1))
    with pytest.raises(ValueError, match="the task id is 7, which has not been learned; allowed: 0"):
        learner.forget(7)
    shared = minicl.FineTune(minicl.mlp(64, 16))
    minicl.run(shared, minicl.split("digits", 5, "class", n_train=20)[:2], epochs=1, progress=False)
    with pytest.raises(ValueError, match="in scenario 'class' tasks share their outputs"):
        shared.forget(0)


# ---- networks and learners that somebody has worked on --------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.out = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.read(x.flatten(1).view(-1, 8, 8))[0][:, -1]).relu()


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.flatten(1).view(-1, 8, 8)).flatten(1)).relu()


@every_keeper
@pytest.mark.parametrize("network", [Recurrent, Attending])
@pytest.mark.filterwarnings("ignore:only .* of what this")
def test_gradients_of_an_input_change_no_bit_of_the_answer(
    make: Callable[[nn.Module], minicl.Learner], network: Callable[[], nn.Module]
) -> None:
    """PyTorch's LSTM and attention have other kernels for those who ask for gradients."""
    torch.manual_seed(0)
    task = stream(1)[0]
    learner = make(network())
    learn(learner, [task], epochs=1)
    x = task.test.x[:20]
    found = answers(learner, [task])
    asking = x.clone().requires_grad_()
    with_graph = learner(asking, 0)
    assert all(torch.equal(each, found[0]) for each in (*found, with_graph.detach()))
    (gradient,) = torch.autograd.grad(with_graph[:, 0].sum(), asking)
    step = 1e-4 * torch.randn(x.shape, dtype=torch.float64)  # small: a ReLU has a kink
    double = copy.deepcopy(learner).double()
    change = double(x.double() + step, 0)[:, 0].sum() - double(x.double() - step, 0)[:, 0].sum()
    torch.testing.assert_close(2 * (gradient.double() * step).sum(), change, rtol=0.01, atol=1e-6)
    if not isinstance(learner, minicl.HAT):
        with torch.no_grad():
            assert torch.equal(learner.export(0)(x), found[0])


@pytest.mark.parametrize("method", ["packnet", "hat", "piggyback", "cpg"])
def test_a_backbone_that_is_rebuilt_under_finished_tasks_is_refused_in_words(method: str) -> None:
    tasks = stream(2)
    learner = minicl.METHODS[method](minicl.mlp(64, 16))
    learn(learner, tasks[:1])
    before = answers(learner, tasks[:1])
    name, layer = next((n, m) for n, m in learner.backbone.named_modules() if isinstance(m, nn.Linear))
    prune.l1_unstructured(layer, "weight", 0.3)
    words = rf"made of other parts than when the learner was made: '{name}.weight_orig' is new.*prune.remove"
    with pytest.raises(ValueError, match=words):
        learner(tasks[0].test.x, 0)
    with pytest.raises(ValueError, match=words):
        learner.learn(tasks[1], lambda: pytest.fail("training began"))
    prune.remove(layer, "weight")
    assert same(answers(learner, tasks[:1]), before)
    activation = next(n for n, m in learner.backbone.named_modules() if isinstance(m, nn.ReLU))
    setattr(learner.backbone, activation, nn.Tanh())
    with pytest.raises(ValueError, match=f"'{activation}' is a Tanh now"):
        learner(tasks[0].test.x, 0)


def test_a_weight_that_a_hook_computes_has_no_units_of_its_own() -> None:
    network = minicl.mlp(64, 16, 12)
    prune.l1_unstructured(next(m for m in network.modules() if isinstance(m, nn.Linear)), "weight", 0.3)
    learner, tasks = minicl.HAT(network, c=0.1), stream(2)
    learn(learner, tasks[:1])
    before = answers(learner, tasks[:1])
    learn(learner, tasks[1:])
    assert same(answers(learner, tasks[:1]), before)


@every_keeper
@pytest.mark.filterwarnings("ignore:.*other tensors of finished tasks differ")
def test_whatever_a_walk_finds_may_be_overwritten_whole_numbers_too(
    make: Callable[[nn.Module], minicl.Learner],
) -> None:
    """An average with `use_buffers=True` takes bytes for numbers, and rounds them."""

    def other(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.full_like(tensor, 0.37)
        return ~tensor if tensor.dtype == torch.bool else tensor ^ 85

    tasks = stream(2)
    learner = make(NORMED())
    learn(learner, tasks, epochs=1)
    before = answers(learner, tasks)
    with torch.no_grad():
        for tensor in (*learner.parameters(), *learner.buffers(), *learner.state_dict().values()):
            tensor.copy_(other(tensor))
    learner.load_state_dict({name: other(tensor) for name, tensor in learner.state_dict().items()})
    assert same(answers(learner, tasks), before)


def test_hooks_that_keep_what_passes_do_not_keep_a_learner_from_being_copied() -> None:
    kept: list[Tensor] = []
    network = minicl.mlp(64, 16)
    network.kept = kept  # type: ignore[assignment]
    for module in network.children():
        module.register_forward_hook(lambda module, args, out: kept.append(out.detach()))
    learner = minicl.EWC(network)
    learn(learner, stream(1), epochs=1)
    twin = copy.deepcopy(learner)
    x = stream(1)[0].test.x
    assert torch.equal(twin.eval()(x, 0), learner.eval()(x, 0))


@pytest.mark.parametrize("method", ["hat", "packnet", "pnn", "ewc"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda learner: pickle.loads(pickle.dumps(learner))])
def test_a_copy_made_in_the_middle_of_a_task_can_be_asked_and_says_that_it_cannot_learn(method: str, how: Any) -> None:
    tasks, copies = stream(2), []
    learner = minicl.METHODS[method](minicl.mlp(64, 16))

    def fit(epochs: int = 1) -> None:
        loop(learner, tasks[0])(1)
        learner.loss(tasks[0].train.x, tasks[0].train.y, 0)
        copies.extend([how(learner), copy.deepcopy(getattr(learner, "backbone", None))])
        loop(learner, tasks[0])(1)

    learner.learn(tasks[0], fit)
    twin = copies[0]
    twin.loss(tasks[0].train.x, tasks[0].train.y, 0).backward()
    assert twin.eval()(tasks[0].test.x, 0).shape == (len(tasks[0].test.x), 2)
    with pytest.raises(RuntimeError, match=r"a copy of a learner that was made while task 0 was being learned"):
        twin.learn(tasks[1], loop(twin, tasks[1]))
    learn(learner, tasks[1:])
    learn(copy.deepcopy(learner), [])


def test_an_average_with_the_buffers_of_a_memory_that_grows_is_refused_in_words() -> None:
    learner, task = minicl.DERpp(minicl.mlp(64, 16), budget=20), stream(1)[0]

    def fit(epochs: int = 1) -> None:
        average = torch.optim.swa_utils.AveragedModel(learner, use_buffers=True)
        loop(learner, task)(1)
        average.update_parameters(learner)

    with pytest.raises(RuntimeError, match="after the first step where a memory grows"):
        learner.learn(task, fit)


def test_tensors_of_inference_mode_are_refused_before_training() -> None:
    for method in ("finetune", "packnet", "hat"):
        with torch.inference_mode():
            network = minicl.mlp(64, 16)
        with pytest.raises(ValueError, match=r"made in torch.inference_mode\(\).*outside of it"):
            minicl.METHODS[method](network).learn(stream(1)[0], lambda: pytest.fail("training began"))


def test_learning_where_gradients_are_switched_off() -> None:
    tasks, found = stream(1), []
    for context in (torch.enable_grad, torch.no_grad):
        torch.manual_seed(0)
        learner = minicl.EWC(minicl.mlp(64, 16))
        with context():
            learner.learn(tasks[0], loop(learner, tasks[0]))
        found.append(list(learner.state_dict().values()))
    assert same(*found)
    for begin in (lambda: learner.learn(tasks[0], lambda: None), lambda: minicl.run(learner, stream(2)[1:])):
        with torch.inference_mode(), pytest.raises(ValueError, match=r"in torch.inference_mode\(\); call learn or run"):
            begin()


@every_keeper
def test_other_tensors_through_functional_call(make: Callable[[nn.Module], minicl.Learner]) -> None:
    task = stream(1)[0]
    learner = make(NORMED())
    learn(learner, [task], epochs=1)
    tensors, x = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}, task.test.x
    before = learner(x, 0)
    for given in (tensors, {name: tensor * 2 for name, tensor in tensors.items()}):
        assert torch.equal(torch.func.functional_call(learner, given, (x, 0)), before)
    assert torch.equal(learner(x, 0), before)


class Loss(nn.Module):
    """What is wrapped for several processes."""

    def __init__(self, learner: minicl.Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor, y: Tensor, task_id: int) -> Tensor:
        return self.learner.loss(x, y, task_id)


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of one process, which is enough for a wrapper."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("method", ["finetune", "packnet", "hat", "pnn", "ewc", "der"])
def test_a_wrapper_that_is_kept_over_tasks_is_noticed(method: str, process_group: None) -> None:
    tasks, kept = stream(2), {}
    learner = minicl.METHODS[method](minicl.mlp(64, 16))

    def fit(epochs: int = 1, task: Task = tasks[0], anew: bool = False) -> None:
        if anew or not kept:
            kept["model"] = DistributedDataParallel(Loss(learner), find_unused_parameters=True)
        optimizer = learner.protect(SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1))
        learner.train()
        kept["model"](task.train.x, task.train.y, task.id).backward()
        optimizer.step()

    learner.learn(tasks[0], partial(fit, anew=True))
    with pytest.raises(RuntimeError, match=r"1.*came after this DistributedDataParallel was made.*Make a new wrapper"):
        learner.learn(tasks[1], partial(fit, task=tasks[1]))
    assert learner.learned == [0]
    learner.learn(tasks[1], partial(fit, task=tasks[1], anew=True))
    with pytest.raises(ValueError, match=r"the backbone is a DistributedDataParallel.*wrap a module whose forward"):
        minicl.METHODS[method](DistributedDataParallel(minicl.mlp(64, 16)))


@pytest.mark.parametrize("method", ["packnet", "hat", "piggyback", "cpg"])
def test_replicas_on_several_devices_are_refused_where_tasks_share_a_network(method: str) -> None:
    with pytest.raises(ValueError, match=r"layer '0' is a DataParallel.*use DistributedDataParallel"):
        minicl.METHODS[method](nn.Sequential(nn.DataParallel(minicl.mlp(64, 16))))


@pytest.mark.parametrize("method", ["packnet", "hat", "gem"])
def test_another_type_of_numbers_in_the_middle_of_a_task_is_refused(method: str) -> None:
    tasks = stream(1)
    learner = minicl.METHODS[method](minicl.mlp(64, 16))

    def fit(epochs: int = 1) -> None:
        loop(learner, tasks[0])(1)
        learner.to("cpu")
        for move in (learner.double, learner.half, partial(learner.to, torch.bfloat16)):
            with pytest.raises(RuntimeError, match="task 0 is being learned; move the learner to another type"):
                move()

    learner.learn(tasks[0], fit)
    learner.double()


def test_a_learner_without_numbers_is_refused_before_training() -> None:
    for method in ("finetune", "packnet", "hat", "pnn", "individual"):
        with torch.device("meta"):
            network = minicl.mlp(64, 16)
        with pytest.raises(ValueError, match="'meta', which have no numbers"):
            minicl.METHODS[method](network).learn(stream(1)[0], lambda: pytest.fail("training began"))


class Checkpointed(nn.Module):
    """As people do it: in training mode, where it is switched on."""

    def __init__(self, reentrant: bool, on: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 12), nn.Linear(12, 8)
        self.reentrant, self.on = reentrant, on

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1)).relu()
        if not (self.training and self.on):
            return self.second(h).relu()
        return torch.utils.checkpoint.checkpoint(self.second, h, use_reentrant=self.reentrant).relu()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["pnn", "piggyback", "cpg"])
def test_gradient_checkpointing_is_refused_where_something_is_put_in(method: str, reentrant: bool) -> None:
    """The layers would be called once more with other weights, and the task would learn from wrong gradients."""
    tasks = stream(2)
    learner = minicl.METHODS[method](Checkpointed(reentrant))
    weights = copy.deepcopy(learner.state_dict())
    with pytest.raises(
        ValueError, match=rf"layer 'second'.* \(gradient checkpointing\), where what {type(learner).__name__}"
    ):
        learner.learn(tasks[0], lambda: pytest.fail("training began"))
    assert same(list(learner.state_dict().values()), list(weights.values()))

    network = Checkpointed(reentrant, on=False)
    learner = minicl.METHODS[method](network)
    learn(learner, tasks[:1])
    for module in (*learner.modules(), network):
        if isinstance(module, Checkpointed):
            module.on = True
    with pytest.raises(RuntimeError, match=r"was called in the backward pass \(gradient checkpointing\)"):
        learn(learner, tasks[1:])
    assert learner.learned == [0]
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("method", ["packnet", "cpg"])
def test_a_schedule_that_knows_one_training_is_refused_in_words_in_the_second(method: str) -> None:
    learner, task, made = minicl.METHODS[method](minicl.mlp(64, 16)), stream(1)[0], []

    def fit(epochs: int = 2) -> None:
        if not made:
            optimizer = learner.protect(SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1))
            made.extend([optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2)])
        for _ in range(epochs):
            learner.loss(task.train.x, task.train.y, 0).backward()
            for each in made:
                each.step()

    with pytest.raises(ValueError, match=r"has total_steps=2, .* call 2 of fit is at step 1, after 2 in earlier ones"):
        learner.learn(task, fit)
    assert learner.learned == []


def test_an_extractor_that_is_still_read_stays_and_its_id_may_be_learned_again(tmp_path: Any) -> None:
    """Learned again under the same id, a forgotten task changed the ones that had read it, and files were refused."""
    learner, tasks = minicl.DER(minicl.mlp(64, 12), sparsity=0.1), stream(4)
    learn(learner, tasks)
    learner.forget(1)
    assert learner.reads(2) == [0, -1, 2]
    assert learner.reads(3) == [0, -1, 2, 3]
    before = answers(learner, [tasks[2], tasks[3]])
    exported = learner.export(2)
    learner.save(tmp_path / "file")
    for each in (learner, minicl.DER.load(tmp_path / "file", minicl.mlp(64, 12))):
        assert same(answers(each, [tasks[2], tasks[3]]), before)
        assert torch.equal(each.export(2)(tasks[2].test.x), exported(tasks[2].test.x))
        learn(each, [tasks[1]])
        assert each.reads(1) == [0, 2, 3, 1]
        assert same(answers(each, [tasks[2], tasks[3]]), before)
        each.forget(2)
        assert "-1" in each.extractors  # task 3 reads it
        assert "-2" in each.extractors
        each.forget(3)
        assert [name for name in each.extractors if int(name) < 0] == ["-2", "-3"]  # which task 1 reads
        each.forget(1)
        assert list(each.extractors) == ["0"]


def test_a_task_that_is_to_come_reads_nothing_of_one_that_was_forgotten(tmp_path: Any) -> None:
    learner, tasks = minicl.DER(minicl.mlp(64, 12)), stream(3)
    learn(learner, tasks[:2])
    learner.prepare(tasks[2])
    learner.forget(1)
    assert list(learner.extractors) == ["0", "2"]
    learner.save(tmp_path / "file")
    for each in (learner, minicl.DER.load(tmp_path / "file", minicl.mlp(64, 12))):
        learn(each, [tasks[2]])
        assert each.reads(2) == [0, 2]
        each.save(tmp_path / "again")
        again = minicl.DER.load(tmp_path / "again", minicl.mlp(64, 12))
        assert same(answers(again, [tasks[2]]), answers(each, [tasks[2]]))


@pytest.mark.parametrize("place", ["freeze", "hidden", "modules", "progress", "leave"])
def test_ctrl_c_where_a_task_begins_and_ends(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = stream(2)
    learner = minicl.Individual(minicl.mlp(64, 16))
    learn(learner, tasks[:1])
    before = answers(learner, tasks[:1])
    came = []

    def once(function: Callable[..., Any], after: bool = True) -> Callable[..., Any]:
        def interrupted(*args: Any, **kwargs: Any) -> Any:
            if not came:
                came.append(place)
                if after:
                    function(*args, **kwargs)
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return interrupted

    where: Any = {
        "freeze": (freezing, "freeze", True),
        "hidden": (freezing.TaskModules, "hide", True),
        "modules": (nn.ModuleDict, "__setitem__", False),
        "progress": (protection, "InProgress", True),
        "leave": (protection, "uninterrupted", False),
    }[place]
    owner, name, after = where
    monkeypatch.setattr(owner, name, once(getattr(owner, name), after))
    with pytest.raises(KeyboardInterrupt):
        learn(learner, tasks[1:])
    assert came
    if 1 not in learner.learned:
        learn(learner, tasks[1:])
    assert same(answers(learner, tasks[:1]), before)
    assert learner.learned == [0, 1]


def in_one_breath(learner: minicl.Learner, task: Task) -> Callable[..., None]:
    """An optimiser for each parameter, which steps as soon as there is a gradient: less memory."""

    def fit(epochs: int = 1) -> None:
        optimizers = {p: learner.protect(SGD([p], lr=0.1)) for p in learner.parameters() if p.requires_grad}

        def step(p: Tensor) -> None:
            optimizers[p].step()  # type: ignore[index]
            p.grad = None

        hooks = [p.register_post_accumulate_grad_hook(step) for p in optimizers]
        learner.loss(task.train.x, task.train.y, task.id).backward()
        for hook in hooks:
            hook.remove()

    return fit


@pytest.mark.parametrize("method", ["hat", "packnet", "gem", "agem"])
def test_steps_inside_the_backward_pass_are_refused_where_gradients_are_edited(method: str) -> None:
    """Half of them would not be there yet."""
    learner, task = minicl.METHODS[method](minicl.mlp(64, 16)), stream(1)[0]
    with pytest.raises(RuntimeError, match=rf"steps inside the backward pass, where {type(learner).__name__} has not"):
        learner.learn(task, in_one_breath(learner, task))
    assert learner.learned == []
    plain = minicl.EWC(minicl.mlp(64, 16))
    plain.learn(task, in_one_breath(plain, task))


@pytest.mark.parametrize("method", ["hat", "derpp", "er", "generative", "vcl", "bic", "icarl", "der"])
def test_training_in_evaluation_mode_is_refused_where_it_would_leave_something_out(method: str) -> None:
    """Whoever evaluates between tasks, and forgets to switch back."""
    learner = minicl.METHODS[method](minicl.mlp(64, 16))
    task = stream(1)[0]
    learner.eval()

    def fit(epochs: int = 1, **_: Any) -> None:
        optimizer = learner.protect(SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1))
        for mode in (True, False):
            learner.train(mode)
            optimizer.zero_grad()
            learner.loss(task.train.x, task.train.y, task.id_at_test).backward()
            optimizer.step()
            learner.eval()
            learner.loss(task.valid.x, task.valid.y, task.id_at_test)  # of whom forgets no_grad

    with pytest.raises(RuntimeError, match=r"is in evaluation mode.*call learner.train\(\) before the loss"):
        learner.learn(task, fit)
    assert learner.learned == []
    plain = minicl.EWC(minicl.mlp(64, 16)).eval()
    learner = plain
    plain.learn(task, fit)


def test_a_shallow_copy_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"with the same network and the same records.*use copy.deepcopy"):
        copy.copy(minicl.CPG(minicl.mlp(64, 16)))


@every_keeper
def test_an_evaluation_between_loss_and_backward_changes_nothing(make: Callable[[nn.Module], minicl.Learner]) -> None:
    """As for targets that the network itself gives."""
    tasks, found = stream(2), []
    for looks in (False, True):
        torch.manual_seed(0)
        learner = make(minicl.mlp(64, 24, 16, batchnorm=True))
        learn(learner, tasks[:1], epochs=1)

        def fit(epochs: int = 1, learner: minicl.Learner = learner, looks: bool = looks) -> None:
            optimizer = learner.protect(ADAM([p for p in learner.parameters() if p.requires_grad]))
            for _ in range(3):
                learner.train()
                learner.before_step(0.5)
                optimizer.zero_grad()
                loss = learner.loss(tasks[1].train.x, tasks[1].train.y, 1)
                if looks:
                    learner.eval()
                    with torch.no_grad():
                        learner(tasks[0].test.x, 0), learner(tasks[1].test.x, 1)
                    learner.train()
                loss.backward()
                optimizer.step()

        learner.learn(tasks[1], fit)
        found.append(answers(learner, tasks))
    assert same(*found)


@pytest.mark.parametrize("method", ["packnet", "hat"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_guess_by_gradient_through_reentrant_checkpointing_is_refused_in_words(method: str) -> None:
    learner, tasks = minicl.METHODS[method](Odd("reentrant")), stream(2)
    learn(learner, tasks, epochs=1)
    with pytest.raises(ValueError, match=r"rule 'gradient' needs torch.autograd.grad.*such as 'softmax'"):
        minicl.infer_task(learner.eval(), tasks[0].test.x[:4], rule="gradient")
