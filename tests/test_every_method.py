"""What holds of every method, over the table METHODS of `minicl.testing`: learning, files, memory, refusals, promises.

The cells of `check_learner`, in which anybody's learner can be looked at, are run in test_testing.py. A test that only
one method, or one family, can pass or fail stands in that method's own file.
"""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import backbones
import loops
import pytest
import seeds
import torch
from loops import ADAM, OPTIMIZERS, Loop, answers, bytes_held, logits, same_bits, small_tasks, state
from torch import Tensor, nn

import minicl
from minicl.testing import METHODS, VARIANTS, Method

TABLE = METHODS | VARIANTS

# Networks as small as these may lose all units of a layer to the sparsity term; what HAT does then is tested with HAT.
pytestmark = pytest.mark.filterwarnings(r"ignore:task \d+ switched off every unit")

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def in_scenarios(rows: Mapping[str, Method]) -> pytest.MarkDecorator:
    pairs = [(name, row, scenario) for name, row in rows.items() for scenario in row.scenarios]
    return pytest.mark.parametrize(
        ("method", "scenario"), [pytest.param(row, scenario, id=f"{name}-{scenario}") for name, row, scenario in pairs]
    )


in_every_scenario = in_scenarios(METHODS)
variants_too = in_scenarios(TABLE)  # what a variant keeps, and how it is stored, may be its own


def with_a_backbone(rows: Mapping[str, Method], kinds: Callable[[Method], Sequence[str]]) -> pytest.MarkDecorator:
    """Each method in each of its scenarios, on one of two networks in turn."""
    return pytest.mark.parametrize(
        ("method", "scenario", "kind"),
        [
            pytest.param(row, scenario, kind, id=f"{name}-{scenario}-{kind}")
            for number, (name, row) in enumerate(rows.items())
            for place, scenario in enumerate(row.scenarios)
            for kind in seeds.sampled(kinds(row), 2, number + place)
        ],
    )


with_every_kind = with_a_backbone(TABLE, lambda row: row.kinds[-2:])


def known(scenario: str, task: minicl.Task) -> int | None:
    """What is handed over as the task id."""
    return task.id if scenario == "task" else None


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", minicl.METHODS)
def test_the_table_has_a_row_for_each_method(name: str) -> None:
    assert METHODS[name].kind is minicl.METHODS[name]


@with_a_backbone(METHODS, lambda row: ("mlp", "cnn"))
def test_learns(method: Method, scenario: str, kind: str) -> None:
    learner = method.make(method.backbone(kind, side=8))
    settings = {"epochs": 4, "batch_size": 16, "optimizer": partial(torch.optim.Adam, lr=1e-2), **method.learning}
    result = loops.run(learner, loops.digits(scenario, 2, n_train=150), **settings)
    assert result.accuracy[0, 0] > 0.4  # of five classes
    # A network that stands still is no good at all for a class that is two digits by now.
    assert result.accuracy[1, 1] > (0.3 if method.trains == "always" or scenario != "domain" else 0.1)
    assert result.scenario == scenario
    assert result.needs_task_id is method.kind.needs_task_id
    if method.keeps.get(scenario) == "logits":
        assert result.forgetting == result.backward_transfer == 0.0


@in_every_scenario
@pytest.mark.parametrize("set_to_none", [True, False], ids=["no gradients", "zero gradients"])
def test_a_loop_of_ones_own(method: Method, scenario: str, set_to_none: bool) -> None:
    """One optimiser for all tasks, gradients clipped, heads of several sizes; ids in any order, also very large."""
    tasks = small_tasks(scenario, ids=[4, 0, 10**15, 7], outputs=2 if scenario == "domain" else [2, 1, 4, 3])
    learner = method.make(method.backbone())
    Loop(learner, set_to_none=set_to_none, clip=1.0).learn(*tasks)
    assert learner.learned == [4, 0, 10**15, 7]
    found = logits(learner, tasks)
    assert all(bool(z.isfinite().all()) for z in found)
    sizes = [tasks[-1].n_outputs] * 4 if scenario == "class" else [task.n_outputs for task in tasks]
    assert [z.shape[1] for z in found] == sizes


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_precision(method: Method, dtype: torch.dtype, tmp_path: Path) -> None:
    """Heads wide, narrow, wide: outputs that one has not must not enter any loss, nor become NaN; saved on the way."""
    tasks = small_tasks(ids=[7, 2, 4], outputs=[3, 2, 4], dtype=dtype)
    learner = method.make(method.backbone(method.kinds[-1]).to(dtype))
    Loop(learner).learn(*tasks[:2])
    learner.save(tmp_path / "file")
    loaded = method.kind.load(tmp_path / "file", method.backbone(method.kinds[-1]).to(dtype))
    assert same_bits(state(loaded), state(learner))
    method.resume(loaded, tasks[:2])
    Loop(loaded, loops.MOMENTUM).learn(tasks[2])
    for z, task in zip(logits(loaded, tasks), tasks, strict=True):
        assert z.shape == (6, task.n_outputs)
        assert z.dtype == dtype
        assert bool(z.isfinite().all())


@in_every_scenario
def test_between_tasks_the_loss_is_plain_and_only_weights_can_move(method: Method, scenario: str) -> None:
    """Whoever goes on with steps of an optimiser, after a task, does not spoil what the method has stored."""
    tasks = small_tasks(scenario)
    learner = method.make(minicl.mlp(36, 24))
    loop = Loop(learner).learn(*tasks[:2])
    before = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    x, y, task_id = tasks[0].test.x, tasks[0].test.y, known(scenario, tasks[0])
    for mode in (True, False):
        learner.train(mode)
        torch.manual_seed(3)  # of one draw of VCL's weights
        plain = nn.functional.cross_entropy(learner(x, task_id), y)
        torch.manual_seed(3)
        loss = learner.loss(x, y, task_id)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
        if loss.requires_grad:
            loss.backward()
            if method.trains != "never":
                loop.optimizer.step()  # type: ignore[union-attr]
    assert same_bits(before, dict(learner.named_buffers()))
    Loop(learner).learn(tasks[2])
    assert all(bool(z.isfinite().all()) for z in logits(learner, tasks))


@every_method
def test_the_learner_moves_as_a_whole(method: Method) -> None:
    learner = method.make(method.backbone())
    Loop(learner).learn(*small_tasks(n=1))
    learner.to("meta")
    assert learner.device.type == "meta"
    assert {tensor.device.type for tensor in learner.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in (*learner.parameters(), *learner.buffers())} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@in_every_scenario
def test_on_a_gpu(method: Method, scenario: str) -> None:
    learner = method.make(method.backbone())
    tasks = small_tasks(scenario)
    result = loops.run(learner, tasks, epochs=2, device="cuda")
    assert {tensor.device.type for tensor in (*learner.parameters(), *learner.buffers())} == {"cuda"}
    assert learner.capacity()["tasks"].keys() == {task.id for task in tasks}
    if method.keeps.get(scenario) == "logits":
        assert minicl.certify(learner, tasks)
        assert result.forgetting == 0


# ---- what breaks off -------------------------------------------------------------------------------------------------


@in_every_scenario
@pytest.mark.parametrize(
    ("error", "learned"), [(KeyboardInterrupt, 0), (ArithmeticError, 2)], ids=["the first task", "a later task"]
)
def test_what_breaks_off_leaves_no_trace(
    method: Method, scenario: str, error: type[BaseException], learned: int, request: pytest.FixtureRequest
) -> None:
    if method.kind is minicl.Joint and not learned:
        request.applymarker(pytest.mark.xfail(reason="Joint still holds the data of a task that broke off"))
    if method.trains == "never" or (learned and method.trains == "first"):
        pytest.skip("trains nothing that could break off")
    tasks = small_tasks(scenario)
    learner = method.make(method.backbone(method.kinds[-1]))
    loop = Loop(learner, set_to_none=False).learn(*tasks[:learned])
    task = tasks[learned]
    learner.eval()
    if not learned:  # otherwise `learn` prepares the task itself
        learner.prepare(task)
    before, capacity, answers = state(learner), learner.capacity(), logits(learner, tasks[:learned])

    def broken(epochs: int | None = None, tasks: list[minicl.Task] | None = None) -> None:
        here = state(learner)
        loop.fit(task, 3, tasks)
        assert not same_bits(here, state(learner))  # or there would be nothing to put back
        for parameter in learner.parameters():
            parameter.data.fill_(torch.nan)
        raise error

    with pytest.raises(error):
        learner.learn(task, broken)
    after = state(learner)
    assert same_bits(before, {name: after[name] for name in before})
    if scenario != "class":  # where answers have more outputs by now
        assert same_bits(answers, logits(learner, tasks[:learned]))
    assert not learner.training
    assert learner.learned == [t.id for t in tasks[:learned]]
    if not learned:
        assert learner.capacity() == capacity
        assert after.keys() == before.keys()
    if scenario == "task":
        with pytest.raises(ValueError, match=rf"the task id is {task.id}, which has not been learned; allowed: "):
            learner(task.train.x, task.id)
    Loop(learner).learn(*tasks[learned:])  # the same task may be learned again
    assert learner.learned == [0, 1, 2]
    assert all(bool(z.isfinite().all()) for z in logits(learner, tasks))


# ---- files -----------------------------------------------------------------------------------------------------------


@with_every_kind
def test_a_saved_learner_goes_on_as_if_it_had_not_been(
    method: Method, scenario: str, kind: str, tmp_path: Path
) -> None:
    tasks = small_tasks(scenario, 4)
    learner = method.make(method.backbone(kind))
    result = loops.run(learner, tasks[:2], epochs=1, optimizer=ADAM)
    assert not learner.training
    assert result.parameters == learner.capacity()["parameters"]
    assert learner.capacity()["tasks"].keys() == {0, 1}
    assert all(task["finished"] for task in learner.capacity()["tasks"].values())
    backbone, rng = method.backbone(kind), torch.get_rng_state()
    learner.save(tmp_path / "file")
    loaded = method.kind.load(tmp_path / "file", backbone)
    assert torch.equal(rng, torch.get_rng_state())
    assert loaded.learned == [0, 1]
    method.resume(loaded, tasks[:2])
    assert loaded.capacity() == learner.capacity()
    assert same_bits(state(loaded), state(learner))
    assert same_bits(logits(loaded, tasks[:2]), logits(learner, tasks[:2]))
    loaded.eval()
    for task in tasks[:2]:
        task_id = known(scenario, task)
        assert torch.equal(loaded.export(task_id)(task.test.x), learner.export(task_id)(task.test.x))
    loaded.save(tmp_path / "again")  # a second trip changes nothing
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()

    one, other = (loops.run(each, tasks[2:], epochs=1, batch_size=7, optimizer=ADAM) for each in (learner, loaded))
    assert one.learning_curves == other.learning_curves
    assert same_bits(state(loaded), state(learner))
    assert same_bits(logits(loaded, tasks), logits(learner, tasks))


@every_method
def test_a_learner_without_tasks_can_be_saved(method: Method, tmp_path: Path) -> None:
    learner = method.make(method.backbone())
    learner.save(tmp_path / "file")
    loaded = method.kind.load(tmp_path / "file", method.backbone())
    assert same_bits(state(learner), state(loaded))
    assert loaded.tasks == {}
    assert loaded.scenario is None
    Loop(loaded).learn(*small_tasks())
    assert loaded.learned == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:the memory holds no sample")  # this loop reads none
@every_method
def test_nobody_saves_in_the_middle_of_a_task(method: Method, tmp_path: Path) -> None:
    learner = method.make(method.backbone())

    def fit(*args: Any, **kwargs: Any) -> None:
        with pytest.raises(ValueError, match="task 0 is being learned; save between tasks"):
            learner.save(tmp_path / "file")

    learner.learn(small_tasks()[0], fit)
    assert list(tmp_path.iterdir()) == []


@every_method
def test_a_file_that_is_damaged_or_of_another_method_or_network_is_refused(method: Method, tmp_path: Path) -> None:
    learner = method.make(method.backbone())
    Loop(learner, epochs=1).learn(*small_tasks(n=2))
    path = tmp_path / "file"
    learner.save(path)
    other = minicl.FineTune if method.kind is not minicl.FineTune else minicl.Joint
    with pytest.raises(
        ValueError, match=f"holds a {method.kind.__name__}, not a {other.__name__}; load it with minicl"
    ):
        other.load(path, method.backbone())
    for backbone in (minicl.mlp(36, 41, 32), minicl.mlp(36, 40, 32, 5), minicl.mlp(36, 40, 32, bias=False)):
        before = state(backbone)
        with pytest.raises(ValueError, match="does not fit"):
            method.kind.load(path, backbone)
        assert same_bits(before, state(backbone))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1], whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"file"):
            method.kind.load(path, method.backbone())


# ---- export ----------------------------------------------------------------------------------------------------------


@with_every_kind
def test_export_is_the_network_alone(method: Method, scenario: str, kind: str) -> None:
    tasks = small_tasks(scenario)
    learner = method.make(method.backbone(kind))
    with pytest.raises(ValueError, match="no task has been learned yet"):
        learner.export(0)
    Loop(learner).learn(*tasks)
    learner.eval()
    for task in tasks if scenario == "task" else tasks[:1]:
        x, task_id = task.test.x, known(scenario, task)
        network, answer = learner.export(task_id), learner(x, task_id).detach()
        for module in network.modules():
            assert type(module) is backbones.Own or type(module).__module__.startswith("torch.")
            marks = [name for name in vars(module) if "frozen" in name or "initial" in name]
            assert not marks, "what minicl noted down for itself is left at home"
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())  # or its bits would be others
        if method.exports == "bit":
            assert torch.equal(network(x), answer)
            assert torch.equal(network(x[:1]), learner(x[:1], task_id)), "another size of batch"
        elif method.exports == "close":
            torch.testing.assert_close(network(x), answer)
        assert network(x).shape == answer.shape
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        assert torch.equal(learner(x, task_id), answer)  # a copy, not a view


def test_exports_need_no_minicl(tmp_path: Path) -> None:
    """Pickled, and read where there is none: the same answers, and every parameter can be trained further."""
    kept = {}
    for name, method in TABLE.items():
        learner = method.make(method.backbone("cnn"))
        tasks = small_tasks()
        Loop(learner).learn(*tasks)
        network, x = learner.export(1), tasks[1].test.x
        with torch.no_grad():
            answer = network(x) if method.exports == "its own" else learner.eval()(x, 1)
        kept[name] = (network, x, answer, method.exports != "close")
    torch.save(kept, tmp_path / "networks")
    program = """
import sys
sys.modules["minicl"] = None  # an import of it fails
import torch
torch.set_num_threads(1)
for name, (network, x, answer, to_the_bit) in torch.load("networks", weights_only=False).items():
    with torch.no_grad():
        same = torch.equal(network(x), answer) if to_the_bit else torch.allclose(network(x), answer, atol=1e-5)
    network.train().requires_grad_()(x).sum().backward()
    print(name, same, all(p.grad is not None for p in network.parameters()), sep=": ")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [f"{name}: True: True" for name in TABLE], done.stderr


# ---- what it costs ---------------------------------------------------------------------------------------------------


@variants_too
@pytest.mark.parametrize("norms", [False, True], ids=["no norms", "norms"])
def test_memory_is_what_is_really_held(method: Method, scenario: str, norms: bool) -> None:
    """Between tasks, and while one is learned, against all tensors that the learner can reach."""
    if norms and method.takes == "without norms":
        pytest.skip("refuses norms")
    tasks = small_tasks(scenario)
    learner = method.make(minicl.mlp(36, 24, 16, batchnorm=norms))
    loops.run(learner, tasks[:2], epochs=1)
    task = tasks[2]
    learner.prepare(task)
    capacity = learner.capacity()
    saved = learner.state_dict()
    of_norms = {"running_mean", "running_var", "num_batches_tracked"}
    running = sum(tensor.nbytes for name, tensor in saved.items() if name.rpartition(".")[2] in of_norms)
    assert bool(running) == norms
    counted, held = capacity["bytes"] + capacity["extra_bytes"] + running, bytes_held(learner)
    if method.counts == "held":
        assert held == counted
    if method.counts != "more":
        assert sum(tensor.nbytes for tensor in saved.values()) == counted <= held
    else:
        assert sum(tensor.nbytes for tensor in saved.values()) < counted <= held

    def look(epochs: int | None = None, tasks: list[minicl.Task] | None = None) -> None:
        optimizer = learner.protect(ADAM(learner.parameters()))
        learner.train()
        learner.loss(task.train.x, task.train.y, task.id).backward()
        optimizer.step()
        learner.zero_grad()
        if tasks is None:  # the first call of fit
            assert bytes_held(learner) - held == capacity.get("bytes_while_learning", 0)

    if method.counts_while_learning:
        if scenario == "task":  # which outputs are whose is looked up once per head, in a table of a few numbers
            outputs = torch.zeros(1, sum(head.out_features for head in learner.heads.layers))
            learner.heads.own_outputs(outputs, torch.tensor([task.id]))
            held = bytes_held(learner)
        learner.learn(task, look)


# ---- what is refused -------------------------------------------------------------------------------------------------


def never(epochs: int | None = None, tasks: list[minicl.Task] | None = None) -> None:
    raise AssertionError("trained, although the task should have been refused before")


@in_every_scenario
def test_tasks_that_do_not_go_with_those_before_are_refused_before_training(method: Method, scenario: str) -> None:
    learner, tasks = method.make(method.backbone()), small_tasks(scenario)
    Loop(learner, epochs=1).learn(*tasks[:2])
    before = state(learner)
    refused = [
        (tasks[1], "task 1 has been learned already; learned so far: 0, 1"),
        (small_tasks("domain" if scenario == "task" else "task", ids=[7])[0], "scenario"),
        (small_tasks(scenario, ids=[7], shape=(1, 5, 7))[0], r"inputs of task 7 have shape \(batch, 1, 5, 7\), those"),
    ]
    if scenario == "domain":
        refused.append((small_tasks(scenario, ids=[7], outputs=3)[0], "task 7 has 3 outputs, task 0 had 2"))
    if scenario == "class":
        refused.append((small_tasks(scenario, ids=[7], outputs=3)[0], "n_outputs=3, but 4 classes were seen before"))
    for task, message in refused:
        with pytest.raises(ValueError, match=message):
            learner.learn(task, never)
    assert learner.learned == list(learner.tasks) == [0, 1]
    assert same_bits(before, state(learner))
    with pytest.raises(ValueError, match=r"the batch has shape \(6, 1, 5, 7\); allowed: \(batch, 1, 6, 6\)"):
        learner(torch.zeros(6, 1, 5, 7), known(scenario, tasks[0]))
    Loop(learner).learn(tasks[2])  # and nothing is in the way of the right one


class Returns(nn.Module):
    """A backbone whose features are no features."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(36, 36), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.linear(x.flatten(1)))


@every_method
def test_a_backbone_that_gives_no_features_is_refused_before_training(method: Method) -> None:
    makes: dict[str, Callable[[Tensor], Any]] = {
        r"\(2, 1, 36\)": lambda x: x.view(-1, 1, 36),
        r"\(\)": lambda x: x.sum(),
        r"\(2,\)": lambda x: x.sum(1),
        r"\(1, 36\)": lambda x: x[:1],
        "tuple": lambda x: (x, x),
        "NoneType": lambda x: None,
    }
    for what, make in makes.items():
        if method.takes != "any":
            with pytest.raises(ValueError, match=r"Returns.*nn\.Sequential"):
                method.make(Returns(make))
            continue
        learner = method.make(Returns(make))
        message = rf"the backbone returned {what} for a batch of 2; allowed: features of shape \(2, features\)"
        with pytest.raises(ValueError, match=message):
            learner.learn(small_tasks()[0], never)
        assert learner.tasks == {}
        assert len(learner.heads) == 0
    with pytest.raises(TypeError, match=r"the backbone is a list; allowed: an nn\.Module"):
        method.make([nn.Linear(36, 3)])
    learner = method.make(method.backbone("mlp", side=5))
    with pytest.raises(ValueError, match=r"the backbone cannot take inputs of shape \(batch, 1, 6, 6\), as task 0 has"):
        learner.learn(small_tasks()[0], never)
    Loop(learner).learn(*small_tasks(shape=(1, 5, 5)))  # the right ones
    assert learner.learned == [0, 1, 2]


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        pytest.param(row, name, value, id=f"{key}-{name}-{value!r}")
        for key, row in METHODS.items()
        for name, values in row.out_of_range.items()
        for value in values
    ],
)
def test_hyperparameters_out_of_range_are_refused(method: Method, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; allowed: "):
        method.make(minicl.mlp(4, 4), **{name: value})


# ---- the promise -----------------------------------------------------------------------------------------------------

KEEPING = {name: row for name, row in METHODS.items() if row.keeps.get("task") == "logits"}
WAYS = ("new optimisers", "one optimiser", "prepared first", "run")


@pytest.mark.filterwarnings("ignore:only .* can learn after the first task")  # networks are drawn at random
@pytest.mark.parametrize(
    ("name", "kind", "case"),
    [
        (name, kind, case)
        for number, (name, row) in enumerate(KEEPING.items())
        for kind, n, every in (("any", row.cases, 7), ("graph", row.graphs, 2))
        for case in seeds.sampled(range(n), every, number)
    ],
)
def test_finished_tasks_keep_their_logits_bit_for_bit(name: str, kind: str, case: int, tmp_path: Path) -> None:
    """After every step of later tasks, between them, after loading, and in the exported network.

    Network, hyperparameters, task ids, sizes of heads, and what happens between tasks are drawn; each optimiser comes
    in each of four ways of training, with gradients that are zeroed or removed.
    """
    method, number = KEEPING[name], seeds.of(case)
    choose = random.Random(number)
    torch.manual_seed(number)
    draw = backbones.graph if kind == "graph" else method.random_backbone
    backbone, shape = draw(number)
    settings = method.random_settings(choose)
    learner = method.make(backbone, **settings)
    make, way = list(OPTIMIZERS.values())[case % 10], WAYS[case // 10 % 4]
    how: dict[str, Any] = {"reuse": way != "new optimisers", "set_to_none": case // 40 % 2 == 0, "batch": 6}
    tasks = small_tasks(
        ids=choose.sample(range(10), 3),
        outputs=[choose.randint(2, 4) for _ in range(3)],
        samples=12,
        shape=shape,
        number=case,
    )
    x = torch.rand(5, *shape)
    finished: dict[int, list[Tensor]] = {}

    def check(when: str) -> None:
        for task_id, then in finished.items():
            assert same_bits(answers(learner, x, task_id), then), f"task {task_id}, {when}"

    def watch() -> None:
        for task_id, then in finished.items():  # in training mode, too
            assert torch.equal(learner(x, task_id).detach(), then[1]), f"task {task_id}, after a step"
        if loop.optimizer is not None and choose.random() < 0.1:
            loop.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))  # other buffers, same values

    loop = Loop(learner, make, watch=watch, **how)
    for task in tasks:
        try:
            for each in tasks if way == "prepared first" and not finished else ():
                learner.prepare(each)
            if way == "run":
                minicl.run(learner, [task], epochs=1, batch_size=6, optimizer=make, seed=number)
            else:
                loop.learn(task)
        except ValueError as error:
            if method.full is None or method.full not in str(error):
                raise
            break  # the smallest of the networks are soon full
        check(f"after task {task.id}")
        finished[task.id] = answers(learner, x, task.id)
        if choose.random() < 0.3:
            learner.save(tmp_path / "file")
            kept = {key: value for key, value in settings.items() if callable(value)}
            learner = method.kind.load(tmp_path / "file", draw(number)[0], **kept)
            loop = Loop(learner, make, watch=watch, **how)
            check("after loading")
        learner.train()
        if method.survives_train:
            backbone.train()
        if choose.random() < 0.5:
            learner(x, choose.choice(learner.learned))
        check("between tasks")
    learner.eval()
    ids = list(finished) if case % 10 == 0 else choose.sample(list(finished), 1)  # tracing takes its time
    for task_id in ids:
        exported, then = learner.export(task_id), finished[task_id]
        with torch.no_grad():
            quick = exported(x)
            alone = exported(x[:1]), learner(x[:1], task_id)
        for found, answer in ((quick, then[0]), (exported(x), then[1]), alone):
            assert torch.equal(found, answer) if method.exports == "bit" else torch.allclose(found, answer, atol=1e-5)
    different = {tuple(then[0].flatten().tolist()) for then in finished.values()}
    assert len(different) == len(finished) >= 1, "every task has answers of its own"


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        (name, optimizer)
        for number, name in enumerate(name for name, row in TABLE.items() if row.keeps.get("task") == "logits")
        for optimizer in seeds.sampled(list(OPTIMIZERS), 2, number)
    ],
)
def test_the_promise_holds_when_run_keeps_its_optimiser(name: str, optimizer: str) -> None:
    """What it knows of the tasks before, momentum and all, moves nothing that is finished."""
    method, make, x = TABLE[name], OPTIMIZERS[optimizer], torch.rand(5, *loops.SHAPE)
    tasks, finished = small_tasks(samples=12), {}

    class Looking(minicl.Task):
        @property
        def id_at_test(self) -> int:  # asked when a task has been learned, and in each evaluation
            for task_id in set(learner.learned) - {*finished}:
                finished[task_id] = answers(learner, x, task_id)
            return self.id

    for task in tasks:
        task.__class__ = Looking
    learner = method.make(method.backbone(method.kinds[-1]))
    settings = {"epochs": 2, "batch_size": 6, "optimizer": make, "fresh_optimizer": False}
    loops.run(learner, tasks, schedule=partial(torch.optim.lr_scheduler.StepLR, step_size=1), **settings)
    assert finished.keys() == {0, 1, 2}
    for task_id, then in finished.items():
        assert same_bits(answers(learner, x, task_id), then)
    assert minicl.certify(learner, tasks)


def test_the_promise_has_something_to_keep() -> None:
    """The same training moves the answers of a method that promises nothing, so the test above can fail."""
    x = torch.rand(5, *loops.SHAPE)
    for make in OPTIMIZERS.values():
        learner = minicl.FineTune(minicl.mlp(36, 9, 7))
        first, second = small_tasks(n=2)
        loop = Loop(learner, make).learn(first)
        before = answers(learner, x, 0)
        loop.learn(second)
        assert not same_bits(answers(learner, x, 0), before)


@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if "features" in row.keeps.values()])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_features_stand_still_where_that_is_the_promise(name: str, scenario: str, make: loops.Make) -> None:
    method, tasks = METHODS[name], small_tasks(scenario)
    learner = method.make(method.backbone("own"))
    loop, x = Loop(learner, make, set_to_none=False).learn(tasks[0]), torch.rand(5, *loops.SHAPE)

    def features() -> Tensor:
        learner.eval()
        return learner.features(x, known(scenario, tasks[0])).detach()

    before = features()
    loop.learn(*tasks[1:])
    assert torch.equal(features(), before)
