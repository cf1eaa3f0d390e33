"""What holds of every method of this family: all scenarios, MLP and CNN, any loop, files, memory, seeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import family
import pytest
import torch
from family import logits, stream
from torch import Tensor, nn

import minicl

Make = Callable[[nn.Module], minicl.Learner]
ADAM = partial(torch.optim.Adam, lr=1e-3)
MOMENTUM = partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)

METHODS: dict[str, Make] = {
    "EWC": partial(minicl.EWC, lam=10.0),
    "EWC online": partial(minicl.EWC, mode="online", lam=10.0, decay=0.9, samples=50, fisher="empirical"),
    "SI": minicl.SI,
    "MAS": partial(minicl.MAS, lam=0.1),
    "LwF": minicl.LwF,
    "VCL": minicl.VCL,
    "AGSCL": partial(minicl.AGSCL, lam=1.0),
}
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: minicl.mlp(64, 24, 16, dropout=0.1),
    "cnn": lambda: minicl.cnn(1, 4, 6),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
every_scenario = pytest.mark.parametrize("scenario", minicl.SCENARIOS)
own_loop = partial(family.own_loop, make=ADAM)


@every_method
@every_scenario
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_learns_in_every_scenario(make: Make, scenario: str, backbone: Callable[[], nn.Module]) -> None:
    learner = make(backbone())
    tasks = minicl.split("digits", 2, scenario, n_train=150)
    optimizer = partial(torch.optim.Adam, lr=1e-2)
    epochs = 20 if isinstance(learner, minicl.VCL) else 6  # the noise of its weights makes VCL a slow learner
    result = minicl.run(learner, tasks, epochs=epochs, batch_size=16, optimizer=optimizer, progress=False)
    guess = 0.1 if scenario == "class" else 0.2
    assert result.accuracy[0, 0] > 0.4
    assert result.accuracy[1, 1] > 1.5 * guess
    assert result.scenario == scenario
    assert result.needs_task_id is False


@every_method
@every_scenario
def test_a_saved_learner_goes_on_as_if_it_had_not_been(make: Make, scenario: str, tmp_path: Path) -> None:
    tasks = stream(scenario)
    learner = make(minicl.mlp(64, 16))
    minicl.run(learner, tasks[:2], epochs=2, seed=3, progress=False, optimizer=ADAM)
    learner.save(tmp_path / "file")
    loaded = type(learner).load(tmp_path / "file", minicl.mlp(64, 16))
    assert loaded.capacity() == learner.capacity()
    for task in tasks[2:4]:
        results = [
            minicl.run(each, [task], epochs=2, seed=5, progress=False, optimizer=ADAM) for each in (learner, loaded)
        ]
        assert results[0].learning_curves == results[1].learning_curves
    for a, b in zip(logits(learner, tasks[:4]), logits(loaded, tasks[:4]), strict=True):
        assert torch.equal(a, b)


@every_method
@every_scenario
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_loop_of_ones_own(make: Make, scenario: str, set_to_none: bool) -> None:
    tasks = stream(scenario)
    learner = make(minicl.mlp(64, 16))
    own_loop(learner, tasks, set_to_none=set_to_none, clip=1.0)
    assert learner.learned == [0, 1, 2, 3, 4]
    assert all(bool(z.isfinite().all()) for z in logits(learner, tasks))


@every_method
def test_the_seed_is_all_that_matters(make: Make) -> None:
    runs = []
    for noise in (0, 17):
        torch.manual_seed(noise)
        learner = make(minicl.mlp(64, 16))
        result = minicl.run(learner, stream("domain", 2), epochs=2, seed=1, progress=False, patience=1)
        torch.manual_seed(5)
        runs.append((result.accuracy.tolist(), result.learning_curves, logits(learner, stream("domain", 2))[0]))
    assert runs[0][:2] == runs[1][:2]
    assert torch.equal(runs[0][2], runs[1][2])


@every_method
def test_the_loss_outside_of_a_lesson_is_the_plain_one_and_steps_do_no_harm(make: Make) -> None:
    tasks = stream("domain")
    learner = make(minicl.mlp(64, 16))
    optimizer = own_loop(learner, tasks[:2])
    x, y = tasks[0].test.x, tasks[0].test.y
    learner.eval()
    plain = nn.functional.cross_entropy(learner(x), y)
    assert learner.loss(x, y).item() == pytest.approx(plain.item(), rel=1e-5)
    learner.loss(x, y).backward()
    optimizer.step()


@every_method
def test_what_breaks_off_leaves_no_trace(make: Make) -> None:
    tasks = stream("class")
    learner = make(minicl.mlp(64, 16))
    own_loop(learner, tasks[:2])
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    optimizer = ADAM(learner.parameters())

    def broken() -> None:
        learner.protect(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            learner.loss(tasks[2].train.x, tasks[2].train.y).backward()
            optimizer.step()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn(tasks[2], broken)
    after = learner.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    own_loop(learner, tasks[2:4])
    assert learner.learned == [0, 1, 2, 3]


@every_method
def test_export_is_the_network_alone(make: Make) -> None:
    tasks = stream("class", 2)
    learner = make(minicl.mlp(64, 16))
    own_loop(learner, tasks)
    network = learner.export()
    assert all(type(m).__module__.startswith("torch") for m in network.modules())
    if not isinstance(learner, minicl.VCL):  # whose answer is that of many networks
        torch.testing.assert_close(network(tasks[0].test.x), logits(learner, tasks)[0])


@pytest.mark.parametrize(
    "make", [m for n, m in METHODS.items() if n != "AGSCL"], ids=[n for n in METHODS if n != "AGSCL"]
)
def test_other_networks(make: Make) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 12), nn.Linear(12, 12, bias=False)
            self.norm = nn.BatchNorm1d(12)
            self.register_parameter("scale", nn.Parameter(torch.ones(())))

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.first(x.flatten(1))).relu()
            return h + self.scale * self.second(h).relu()

    for dtype in (torch.float32, torch.float64):
        tasks = minicl.TaskStream(
            [
                minicl.Task(t.id, 5, (t.train.x.to(dtype), t.train.y), None, (t.test.x.to(dtype), t.test.y))
                for t in stream("task", 2)
            ]
        )
        learner = make(Residual().to(dtype))
        minicl.run(learner, tasks, epochs=1, progress=False, optimizer=MOMENTUM)
        assert all(z.dtype == dtype for z in logits(learner, tasks))


def bytes_held(thing: Any, found: dict[int, int] | None = None, seen: set[int] | None = None) -> dict[int, int]:
    """The memory of every tensor that can be reached from an object: bytes by address."""
    found, seen = {} if found is None else found, set() if seen is None else seen
    if id(thing) in seen:
        return found
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    elif isinstance(thing, dict):
        for value in thing.values():
            bytes_held(value, found, seen)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            bytes_held(value, found, seen)
    elif isinstance(thing, nn.Module) or type(thing).__module__.startswith("minicl"):
        bytes_held(vars(thing), found, seen)
    return found


@every_method
@every_scenario
@pytest.mark.parametrize("batchnorm", [False, True])
def test_memory_is_what_is_really_held(make: Make, scenario: str, batchnorm: bool) -> None:
    """Between tasks, and while one is learned, against all tensors that the learner can reach."""
    tasks = stream(scenario)
    if batchnorm and make is METHODS["AGSCL"]:
        pytest.skip("refuses BatchNorm")
    learner = make(minicl.mlp(64, 24, 16, batchnorm=batchnorm))
    minicl.run(learner, tasks[:2], epochs=1, progress=False)
    learner.prepare(tasks[2])
    capacity = learner.capacity()
    running = sum(b.numel() * b.element_size() for n, b in learner.backbone.named_buffers() if "prior" not in n)
    before = sum(bytes_held(learner).values())
    assert before == capacity["bytes"] + capacity["extra_bytes"] + running  # "bytes" are those of the weights
    assert running == (2 * 4 * (24 + 16) + 2 * 8 if batchnorm else 0)

    def look() -> None:
        optimizer = learner.protect(ADAM(learner.parameters()))
        learner.loss(tasks[2].train.x, tasks[2].train.y, 2).backward()
        optimizer.step()
        learner.zero_grad()
        assert sum(bytes_held(learner).values()) - before == capacity.get("bytes_while_learning", 0)

    learner.learn(tasks[2], look)


HYPERPARAMETERS: dict[str, dict[str, list[Any]]] = {
    "ewc": {
        "lam": [-1, float("nan"), float("inf"), "1", True],
        "mode": ["both"],
        "fisher": ["true"],
        "samples": [0, 1.5, True],
        "decay": [0, 1.1],
    },
    "si": {"c": [-0.1], "xi": [0, -1]},
    "mas": {"lam": [-1], "samples": [0]},
    "lwf": {"lam": [-1], "temperature": [0]},
    "vcl": {"samples": [0, 1.5], "coreset": [0], "prior_sigma": [0], "initial_sigma": [0, -1]},
    "agscl": {"mu": [-1], "lam": [-1], "eta": [-1, 1.1], "rho": [-1, 2]},
}


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [(m, n, v) for m, values in HYPERPARAMETERS.items() for n, vs in values.items() for v in vs],
)
def test_hyperparameters_out_of_range_are_refused(method: str, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; allowed: "):
        minicl.METHODS[method](minicl.mlp(4, 4), **{name: value})
