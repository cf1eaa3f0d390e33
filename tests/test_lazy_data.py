"""Data that are read on demand: nothing is held, transforms draw anew, and the same seed gives the same bits."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

import minicl
from minicl import FineTune, Joint, LazySamples, Samples, Task, run, sources
from minicl.samples import Reading, mixed

MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Own(Dataset[Any]):
    """A data set of one's own that counts its readings, and may draw from every generator there is."""

    def __init__(self, samples: Samples, noise: float = 0.0) -> None:
        self.x, self.y, self.noise, self.reads = samples.x, samples.y.tolist(), noise, 0

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        if not self.noise:
            return self.x[index], self.y[index]
        drawn = torch.rand(self.x[index].shape) + np.random.rand() + random.random()
        return self.x[index] + self.noise * drawn, self.y[index]


class Told(Own):
    """One that says what its labels are."""

    def __init__(self, samples: Samples, noise: float = 0.0) -> None:
        super().__init__(samples, noise)
        self.targets = list(self.y)


HELD = minicl.split("digits", 5, n_train=90)


def lazily(noise: float = 0.0, of: Any = HELD[:2], kind: type[Own] = Own) -> list[Task]:
    """The same tasks, each part of them a data set of one's own."""
    made = []
    for task in of:
        train, rest = kind(task.train, noise), [kind(getattr(task, part)) for part in ("valid", "test")]
        made.append(Task(task.id, task.n_outputs, train, *rest, scenario=task.scenario))
    return made


def everything(learner: minicl.Learner, result: minicl.Result) -> Any:
    """What a run leaves behind, to the bit."""
    state = {name: tensor.tolist() for name, tensor in learner.state_dict().items()}
    return repr((state, result.learning_curves, result.accuracy.tolist(), learner.certificate))


def trained(tasks: Any, make: Callable[[nn.Module], minicl.Learner] = FineTune, **settings: Any) -> Any:
    learner = make(minicl.mlp(64, 16, dropout=0.2))
    result = run(learner, tasks, **{"epochs": 2, "optimizer": MOMENTUM, "progress": False, "seed": 3, **settings})
    return everything(learner, result)


# ---- one interface ---------------------------------------------------------------------------------------------------


def both() -> list[Any]:
    train = HELD[0].train
    return [
        train,
        LazySamples(Own(train)),
        LazySamples((train.x, train.y)),
        LazySamples(TensorDataset(train.x, train.y)),
    ]


@pytest.mark.parametrize("samples", both(), ids=["held", "data set", "arrays", "tensors"])
def test_held_or_lazy_they_answer_alike(samples: Any) -> None:
    held = HELD[0].train
    n = len(held)
    assert len(samples) == n
    assert torch.equal(samples.labels, held.y)
    rows = torch.tensor([5, 0, 5, n - 1])
    taken = samples.take(rows)
    assert isinstance(taken, Samples)
    assert torch.equal(taken.x, held.x[rows])
    assert torch.equal(taken.y, held.y[rows])
    assert torch.equal(samples.take(slice(2, 5)).x, held.x[2:5])
    sizes = []
    whole = []
    for batch in samples.batches(40, workers=0, seed=None):
        sizes.append(len(batch))
        whole.append(batch.x)
    assert sizes == [40, 40, n - 80]
    assert torch.equal(torch.cat(whole), held.x)
    part = samples.subset(rows).subset(torch.tensor([3, 1]))
    assert torch.equal(part.take(slice(None)).x, held.x[[n - 1, 0]])
    assert part.labels.tolist() == held.y[[n - 1, 0]].tolist()
    assert samples.with_labels(held.y + 7).take(rows).y.tolist() == (held.y[rows] + 7).tolist()
    changed = samples.changed(lambda x: x * 2).changed(lambda x: x + 1).subset(rows)
    assert torch.equal(changed.take(slice(None)).x, held.x[rows] * 2 + 1)
    assert samples.to("cpu", torch.float16).take(rows).x.dtype == torch.float16
    assert isinstance(samples, LazySamples) or samples.nbytes == held.x.nbytes + held.y.nbytes


def test_samples_that_are_read_on_demand_have_no_x() -> None:
    lazy = lazily()[0].train
    for name in ("x", "y"):
        with pytest.raises(AttributeError, match=rf"have no {name} at once; allowed: .take\(rows\), .batches\(size\)"):
            getattr(lazy, name)
    with pytest.raises(AttributeError, match="no attribute 'z'"):
        _ = lazy.z
    assert torch.equal(copy.deepcopy(lazy).labels, HELD[0].train.y)


def test_nothing_is_kept() -> None:
    kept: list[Any] = []

    class Watched(Own):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            x = self.x[index].clone()
            kept.append(weakref.ref(x))
            return x, self.y[index]

    (task,) = lazily(of=HELD[:1], kind=Watched)
    run(FineTune(minicl.mlp(64, 8)), [task], epochs=2, progress=False)
    _ = task.train, task.example, task.make("train").labels
    gc.collect()
    assert len(kept) > 2 * 90
    assert sum(ref() is not None for ref in kept) <= 2  # the example
    assert task.make("train").nbytes == len(task.train) * 8  # the labels


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_that_a_data_set_tells_need_no_reading() -> None:
    whole = Told(HELD[0].train)
    n = len(whole)
    for data, expected in (
        (whole, whole.y),
        (Subset(whole, [4, 2, 4]), [whole.y[i] for i in (4, 2, 4)]),
        (ConcatDataset([whole, Subset(whole, range(3))]), whole.y + whole.y[:3]),
    ):
        whole.reads = 0
        lazy = LazySamples(data)
        assert lazy.labels.tolist() == expected
        assert whole.reads <= 3  # to see whether it tells the truth
    untold = Own(HELD[0].train)
    lazy = LazySamples(untold)
    assert untold.reads == 1  # whether its labels are texts
    assert lazy.labels.tolist() == whole.y
    assert untold.reads == n + 1
    assert lazy.labels.tolist() == whole.y
    assert untold.reads == n + 1  # once


@pytest.mark.parametrize("attribute", ["targets", "labels"])
def test_what_a_data_set_tells_before_its_transform_is_not_believed(attribute: str) -> None:
    class Transformed(Own):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            x, y = super().__getitem__(index)
            return x, 4 - y

    for told in (list(HELD[0].train.y), HELD[0].train.y.numpy(), HELD[0].train.y):
        data = Transformed(HELD[0].train)
        setattr(data, attribute, told)
        assert torch.equal(LazySamples(data).labels, 4 - HELD[0].train.y)
    for wrong in (list(range(7)), "no list", None, [None] * len(HELD[0].train), torch.rand(len(HELD[0].train))):
        data = Transformed(HELD[0].train)
        setattr(data, attribute, wrong)
        assert torch.equal(LazySamples(data).labels, 4 - HELD[0].train.y)


def test_labels_out_of_range_are_refused_when_they_are_known_or_read() -> None:
    wrong = Samples(HELD[0].train.x, HELD[0].train.y + 1)
    message = r"task 3 .mine.: the train samples have labels from [12] to 2; allowed: 0 to 1, since n_outputs is 2"
    with pytest.raises(ValueError, match=message):
        Task(3, 2, Told(wrong), name="mine")
    task = Task(3, 2, Own(wrong), test=Own(HELD[0].test), name="mine")
    with pytest.raises(ValueError, match=message):
        task.train.take(wrong.y.nonzero().flatten())
    learner = FineTune(minicl.mlp(64, 8))
    with pytest.raises(ValueError, match=message):
        run(learner, [task], epochs=1, progress=False)
    assert learner.learned == []


# ---- what run does with it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [FineTune, Joint, minicl.Individual, minicl.PackNet, minicl.HAT, minicl.PNN])
@pytest.mark.filterwarnings("ignore:task . switched off every unit")
def test_data_that_draw_nothing_give_the_bits_of_held_data(make: Any) -> None:
    make = partial(make)
    expected = trained([Task(t.id, 2, t.train, t.valid, t.test) for t in HELD[:2]], make, patience=1)
    assert trained(lazily(), make, patience=1) == expected


@pytest.mark.parametrize("kind", ["split", "permuted"])
@pytest.mark.parametrize("scenario", minicl.SCENARIOS)
def test_a_stream_that_holds_nothing_gives_the_bits_of_one_that_does(kind: str, scenario: str) -> None:
    runs = [
        trained(getattr(minicl, kind)("digits", 2, scenario, n_train=80, held=held), Joint, patience=2)
        for held in (True, False)
    ]
    assert runs[0] == runs[1]


def test_a_rotated_stream_that_holds_nothing_has_the_same_pictures() -> None:
    held, lazy = (minicl.rotated("digits", 3, n_train=50, held=held) for held in (True, False))
    for a, b in zip(held, lazy, strict=True):
        assert isinstance(b.train, LazySamples)
        torch.testing.assert_close(b.train.take(slice(None)).x, a.train.x, rtol=0, atol=1e-6)
        one = [b.test.take(torch.tensor([i])).x for i in (0, 7)]
        assert torch.equal(torch.cat(one), b.test.take(torch.tensor([0, 7])).x)  # whatever it is read with


@pytest.mark.parametrize("make", [FineTune, Joint])
def test_the_same_seed_gives_the_same_bits_with_any_number_of_workers(make: Any) -> None:
    settings: dict[str, Any] = {"patience": 2, "schedule": partial(ReduceLROnPlateau, patience=0), "epochs": 2}
    expected = trained(lazily(noise=0.3), make, **settings)
    torch.manual_seed(99)  # nothing outside matters
    np.random.seed(99)
    random.seed(99)
    for workers in (0, 2) if make is FineTune else (0, 1):
        assert trained(lazily(noise=0.3), make, workers=workers, **settings) == expected
    assert trained(lazily(noise=0.3), make, seed=4, **settings) != expected


def test_transforms_draw_anew_in_every_epoch_for_every_task_and_call() -> None:
    class Watched(FineTune):
        def learn(self, task: Task, fit: Any) -> None:
            fit()
            fit(epochs=1)

        def loss(self, x: Tensor, y: Tensor, task_id: Any = None) -> Tensor:
            self.seen.append(x.sum().item())
            return super().loss(x, y, task_id)

    one = Samples(torch.zeros(1, 64), torch.tensor([0]))
    tasks = [Task(t, 2, Own(one, 1.0), test=Own(one)) for t in (0, 1)]
    seen: list[float] = []
    for seed in (0, 1):
        learner = Watched(minicl.mlp(64, 4))
        learner.seen = seen  # type: ignore[assignment]
        run(learner, tasks, epochs=3, seed=seed, progress=False)
    assert len(set(seen)) == len(seen) == 2 * 2 * (3 + 1)
    lazy = tasks[0].train
    assert not torch.equal(lazy.take(slice(None)).x, lazy.take(slice(None)).x)
    for workers in (0, 1):
        first, second = (next(iter(lazy.batches(1, workers=workers))).x for _ in range(2))
        assert not torch.equal(first, second)


def test_every_sample_of_a_batch_draws_its_own_numbers() -> None:
    same = Samples(torch.zeros(6, 64), torch.zeros(6, dtype=torch.long))
    for workers in (0, 2):
        batches = list(LazySamples(Own(same, 1.0)).batches(2, seed=5, workers=workers))
        rows = torch.cat([batch.x for batch in batches])
        assert len({row.sum().item() for row in rows}) == 6


def test_the_generators_of_the_process_are_left_alone() -> None:
    def states() -> Any:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]

    learners = [FineTune(minicl.mlp(64, 8)) for _ in range(2)]
    np.random.seed(2)
    random.seed(3)
    before = states()
    for workers, learner in zip((0, 2), learners, strict=True):
        run(learner, lazily(noise=0.5), epochs=1, workers=workers, progress=False)
    task = lazily(noise=0.5)[0]
    _ = task.example, task.train.labels, minicl.split((Own(HELD[0].train, 0.5), Own(HELD[0].test)), 1, held=False)
    assert states() == before


def test_what_is_evaluated_draws_the_same_each_time() -> None:
    (task,) = lazily(of=HELD[:1])
    noisy = Task(0, 2, task.train, Own(HELD[0].valid), Own(HELD[0].test, 3.0))
    learner = FineTune(minicl.mlp(64, 8))
    run(learner, [noisy], epochs=1, progress=False)
    expected = minicl.evaluate(learner, noisy)
    torch.manual_seed(4)
    assert minicl.evaluate(learner, noisy) == expected
    assert minicl.evaluate(learner, noisy, workers=2) == expected
    assert minicl.certify(learner, [noisy])
    with pytest.raises(ValueError, match=r"test data of task 0 .* is not that of which the digest was taken"):
        minicl.certify(learner, [Task(0, 2, task.train, test=Own(HELD[0].test, 3.1))])


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_evaluate_by_hand(batch_size: int) -> None:
    learner = FineTune(minicl.mlp(64, 8))
    (task,) = lazily(of=HELD[:1])
    run(learner, [task], epochs=2, progress=False)
    for part in ("train", "valid", "test"):
        held = getattr(HELD[0], part)
        right = float((learner(held.x, 0).argmax(1) == held.y).double().mean())
        assert minicl.evaluate(learner, task, part, batch_size) == pytest.approx(right)


def test_batches_are_those_of_held_data() -> None:
    class Watched(FineTune):
        def loss(self, x: Tensor, y: Tensor, task_id: Any = None) -> Tensor:
            self.sizes.append(len(x))
            return super().loss(x, y, task_id)

    for n, sizes in ((9, [4, 5]), (8, [4, 4]), (1, [1])):
        few = HELD[0].train[:n]
        learner = Watched(minicl.mlp(64, 8))
        learner.sizes = []  # type: ignore[assignment]
        run(learner, [Task(0, 2, Own(few), test=Own(HELD[0].test))], epochs=2, batch_size=4, progress=False)
        assert learner.sizes == sizes * 2


def test_a_checkpoint_goes_on_to_the_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 2, "optimizer": MOMENTUM, "progress": False, "seed": 8, "workers": 2}
    whole = Joint(minicl.mlp(64, 16, dropout=0.2))
    expected = everything(whole, run(whole, lazily(noise=0.3, of=HELD[:3]), **settings))

    class Stops(Joint):
        def learn(self, task: Task, fit: Any) -> None:
            if task.id == 2:
                raise KeyboardInterrupt
            super().learn(task, fit)

    Stops.__name__ = "Joint"
    with pytest.raises(KeyboardInterrupt):
        run(Stops(minicl.mlp(64, 16, dropout=0.2)), lazily(0.3, HELD[:3]), checkpoint=tmp_path, **settings)
    learner = Joint(minicl.mlp(64, 16, dropout=0.2))
    result = run(learner, lazily(0.3, HELD[:3]), checkpoint=tmp_path, **{**settings, "workers": 0})
    assert everything(learner, result) == expected


def test_a_mixture_takes_from_held_and_lazy_tasks_alike() -> None:
    held = [Task(t.id, 2, t.train, t.valid, t.test) for t in HELD[:3]]
    expected = trained(held, Joint)
    assert trained([held[0], *lazily(of=HELD[1:2]), held[2]], Joint) == expected
    arrays = Task(1, 2, LazySamples((HELD[1].train.x, HELD[1].train.y)), HELD[1].valid, HELD[1].test)
    assert trained([held[0], arrays, held[2]], Joint, workers=2) == expected


def test_a_mixture_reads_each_row_from_its_part() -> None:
    parts = [HELD[0].train, *(task.train for task in lazily(of=HELD[1:3]))]
    whole = mixed(parts)
    assert isinstance(whole, LazySamples)
    plain = torch.cat([task.train.x for task in HELD[:3]])
    rows = torch.randperm(len(plain))[:50]
    taken = whole.take(rows)
    assert torch.equal(taken.x, plain[rows])
    assert torch.equal(taken.y, torch.cat([task.train.y for task in HELD[:3]])[rows])
    assert torch.equal(whole.labels, torch.cat([task.train.y for task in HELD[:3]]))


def test_a_loader_serves_every_epoch() -> None:
    """The workers stay: starting them anew for every epoch would cost more than reading small data."""
    reading = Reading(lazily(of=HELD[:1], noise=1.0)[0].train, workers=1)
    batches = [torch.tensor([3, 1]), torch.tensor([0])]
    first = [batch.x for batch in reading.epoch(batches, seed=1)]
    workers = list(reading.loader._iterator._workers)  # type: ignore[union-attr]
    second = [batch.x for batch in reading.epoch(batches, seed=2)]
    assert [worker.pid for worker in reading.loader._iterator._workers] == [worker.pid for worker in workers]  # type: ignore[union-attr]
    again = [batch.x for batch in reading.epoch(batches, seed=1)]
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], second[0])


# ---- inputs of different lengths, and of several tensors -------------------------------------------------------------


class Texts(Dataset[Any]):
    """Token ids of different lengths; the class is the token that fills the text. An item is no pair."""

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(1, 9, (n,), generator=generator).tolist()
        self.targets = torch.randint(2, (n,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"ids": [1 + self.targets[index]] * self.lengths[index], "label": self.targets[index]}


def padded(items: list[dict[str, Any]]) -> tuple[dict[str, Tensor], Tensor]:
    ids = nn.utils.rnn.pad_sequence([torch.tensor(item["ids"]) for item in items], batch_first=True)
    return {"ids": ids, "mask": ids > 0}, torch.tensor([item["label"] for item in items])


class Bag(nn.Module):
    """The mean of the embeddings of tokens that the mask lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 6)

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, Tensor):  # the example below
            x = {"ids": x, "mask": x > 0}
        weight = x["mask"].float().unsqueeze(2)
        return (self.embedding(x["ids"]) * weight).sum(1) / weight.sum(1)


def prepared(learner: minicl.Learner, tasks: list[Task]) -> minicl.Learner:
    """The learner with everything that these tasks need, for inputs of any shape."""
    for task in tasks:
        learner.prepare(task)
    learner.input_shape = None
    return learner


def text_tasks() -> list[Task]:
    example = torch.ones(2, 3, dtype=torch.long)
    return [
        Task(t, 2, Texts(60, t), Texts(20, t + 10), Texts(30, t + 20), collate=padded, example=example) for t in (0, 1)
    ]


@pytest.mark.parametrize("make", [FineTune, Joint])
def test_texts_of_different_lengths(make: Any) -> None:
    for workers in (0, 2):
        learner = make(Bag())
        tasks = text_tasks()
        prepared(learner, tasks[:1])
        settings: dict[str, Any] = {"epochs": 8, "batch_size": 8, "optimizer": partial(torch.optim.Adam, lr=0.05)}
        result = run(learner, tasks[:1], workers=workers, patience=4, progress=False, **settings)
        assert result.accuracy[0, 0] == 1
        assert minicl.certify(learner, tasks[:1])
    assert tasks[0].train.take(torch.tensor([0, 1])).x.keys() == {"ids", "mask"}


def test_texts_of_several_tasks_are_padded_together() -> None:
    parts = [task.train for task in text_tasks()]
    whole = mixed(parts)
    longest = [max(range(len(part)), key=lambda i, part=part: part.source.dataset.lengths[i]) for part in parts]
    shortest = [min(range(len(part)), key=lambda i, part=part: part.source.dataset.lengths[i]) for part in parts]
    rows = torch.tensor([shortest[0], len(parts[0]) + longest[1]])
    read = whole.take(rows)
    assert read.x["ids"].shape == (2, parts[1].source.dataset.lengths[longest[1]])
    assert read.y.tolist() == [
        parts[0].source.dataset.targets[shortest[0]],
        parts[1].source.dataset.targets[longest[1]],
    ]


def test_split_takes_what_needs_a_collate() -> None:
    stream = minicl.split((Texts(60, 0), Texts(20, 1)), 2, "class", collate=padded)
    for t, task in enumerate(stream):
        assert isinstance(task.train, LazySamples)
        batch = task.train.take(torch.arange(5))
        assert set(batch.x["ids"].unique().tolist()) - {0} == {t + 1}
        assert batch.y.tolist() == [t] * 5
        assert task.classes == (t,)


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_inputs_of_several_tensors_held_and_lazy(kind: str) -> None:
    """Pictures in two halves: the same network, the same bits as with whole pictures."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = minicl.mlp(64, 16)

        def forward(self, x: Any) -> Tensor:
            if not isinstance(x, Tensor):
                x = torch.cat(list(x.values() if isinstance(x, dict) else x), 2)
            return self.net(x)  # type: ignore[no-any-return]

    def halved(samples: Samples) -> Any:
        top, bottom = samples.x[:, :, :4], samples.x[:, :, 4:]
        return ({"top": top, "bottom": bottom} if kind == "dict" else (top, bottom)), samples.y

    def own(samples: Samples) -> Own:
        x, y = halved(samples)
        names = list(x) if kind == "dict" else [0, 1]
        items = [type(x)((n, x[n][i]) for n in names) if kind == "dict" else (x[0][i], x[1][i]) for i in range(len(y))]
        data = Own.__new__(Own)
        data.x, data.y, data.noise, data.reads = items, y.tolist(), 0.0, 0
        return data

    def learn(parts: Any) -> Any:
        torch.manual_seed(6)
        tasks = [Task(t.id, 2, parts(t.train), parts(t.valid), parts(t.test), example=t.train.x) for t in HELD[:2]]
        learner = prepared(Joint(Halves()), tasks)
        result = run(learner, tasks, epochs=3, patience=2, progress=False)
        return learner.state_dict(), result.learning_curves

    expected = learn(lambda samples: (samples.x, samples.y))
    for parts in (halved, own, lambda samples: LazySamples(halved(samples))):
        state, curves = learn(parts)
        assert curves == expected[1]
        assert all(torch.equal(state[name], expected[0][name]) for name in state)


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda items: items, r"task 0 .*: collate returned a list for the train samples; allowed: a pair"),
        (lambda items: (torch.zeros(len(items) + 1, 2), [0] * len(items)), r"4 inputs were made of 3 items"),
        (lambda items: (torch.zeros(len(items), 2), [0.5] * len(items)), r"not single integers, such as 0.5"),
        (lambda items: ({"text": "abc"}, [0] * len(items)), r"the train inputs hold 'abc'"),
    ],
)
def test_a_collate_that_goes_wrong_is_named(collate: Any, message: str) -> None:
    right = [True]
    task = Task(0, 2, Own(HELD[0].train), collate=lambda items: ([0.0], [0]) if right[0] else collate(items))
    right[0] = False
    with pytest.raises(ValueError, match=message):
        task.train.take(torch.arange(3))


def test_a_collate_that_is_no_function_is_named() -> None:
    with pytest.raises(TypeError, match="collate is a int; allowed: a function of a list of items"):
        Task(0, 2, Own(HELD[0].train), collate=3)  # type: ignore[arg-type]


# ---- memory-mapped arrays --------------------------------------------------------------------------------------------


def mapped(array: np.ndarray, path: Path) -> Any:
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def test_a_mapped_array_is_read_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = HELD[0].train
    x = mapped((data.x * 255).byte().numpy(), tmp_path / "x.npy")
    read: list[int] = []
    rows_of = sources._rows

    def watched(array: Any, rows: Tensor) -> Any:
        assert sources.mapped_file(array) is not None
        read.append(len(rows))
        return rows_of(array, rows)

    monkeypatch.setattr(sources, "_rows", watched)
    task = Task(0, 2, (x, data.y), (x[:10], data.y[:10]), (x[10:40], data.y[10:40]))
    stream = minicl.split(((x, data.y), (x[10:40], data.y[10:40])), 1)
    assert sum(read) <= 4  # examples
    for tasks in ([task], stream):
        assert isinstance(tasks[0].train, LazySamples)
        read.clear()
        result = run(FineTune(minicl.mlp(64, 16)), tasks, epochs=8, batch_size=16, progress=False)
        assert result.accuracy[0, 0] > 0.9
        assert max(read) <= 30
    held = Task(0, 2, (np.asarray(x).copy(), data.y), test=(np.asarray(x[10:40]).copy(), data.y[10:40]))
    assert trained([task]) == trained([held])


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_mapped_arrays_of_every_mode_keep_what_they_hold(mode: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4000, dtype=np.float32).reshape(1000, 4))
    x = np.load(tmp_path / "x.npy", mmap_mode=mode)
    expected = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    if mode != "r":
        x[7] = expected[7] = -1  # in the file, or in a private copy of the page
    rows = torch.randperm(1000)
    for view, whole in ((x, expected), (x[::2][::-1], expected[::2][::-1]), (np.asarray(x), expected)):
        lazy = LazySamples((view, np.zeros(len(view), int)))
        some = rows[rows < len(view)]
        assert np.array_equal(lazy.take(some).x.numpy(), whole[some.numpy()])
        assert np.array_equal(lazy.take(some).x.numpy(), whole[some.numpy()])
    assert np.array_equal(np.asarray(x), expected)


def test_reading_a_mapped_file_takes_no_memory(tmp_path: Path) -> None:
    """Not even the pages of the file stay: 64 MB are read, and a few are resident afterwards."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system does not tell how much memory is resident")

    def resident() -> float:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssFile"))
        return int(line.split()[1]) / 1024

    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(16384, 4096))
    x[:] = 1
    x.flush()
    del x
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    lazy = LazySamples((array, np.zeros(len(array), int)))
    before, most = resident(), 0.0
    for batch in lazy.batches(512):
        assert float(batch.x.sum()) == pytest.approx(512 * 4096 / 255)
        most = max(most, resident() - before)
    assert most < 16
    np.asarray(array).sum()  # the same without that care
    assert resident() - before > 32


def test_tensors_in_a_mapped_file_are_read_by_batch(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(np.arange(40, dtype=np.uint8).tobytes())
    x = torch.from_file(str(tmp_path / "x"), shared=True, size=40, dtype=torch.uint8).view(10, 4)
    task = Task(0, 2, (x, torch.arange(10) % 2))
    assert isinstance(task.train, LazySamples)
    assert torch.equal(task.train.take(torch.tensor([9, 2])).x, x[[9, 2]].float() / 255)


# ---- what is refused, and what is told -------------------------------------------------------------------------------


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(2), 0)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Endless(), "the train data is a Endless; allowed: a torch dataset with a length, whose items are"),
        (5, "the train data is 5; allowed"),
        ("digits", "the train data is 'digits'"),
        (
            Subset(TensorDataset(torch.zeros(3, 2)), range(3)),
            r"an item of the train data set is a tuple; allowed: a pair",
        ),
        (Texts(3, 0), "an item of the train data set is a dict; .* or anything else with collate="),
    ],
)
def test_data_of_another_kind_is_refused_when_the_task_is_made(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"task 0 \(task 0\): {message}"):
        Task(0, 2, data)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="the train samples are empty; at least one is needed"):
        Task(0, 2, Own(HELD[0].train[:0]))
    assert len(Task(0, 2, Own(HELD[0].train), Own(HELD[0].train[:0])).valid) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_numbers_that_are_not_finite_are_found_when_they_are_read(workers: int) -> None:
    data = Own(HELD[0].train)
    data.x = data.x.clone()
    data.x[33, 0, 2, 2] = torch.nan
    task = Task(0, 2, data, test=Own(HELD[0].test))
    with pytest.raises(ValueError, match=r"task 0 .*: the train samples: NaN or infinity in 1 inputs"):
        run(FineTune(minicl.mlp(64, 8)), [task], epochs=1, workers=workers, progress=False)


def test_a_data_set_that_draws_and_is_held_is_told() -> None:
    noisy, plain = Own(HELD[0].train, 0.5), Own(HELD[0].test)
    with pytest.warns(
        UserWarning, match=r"the train data set drew random numbers .* held=False\), or run\(..., augment"
    ):
        first = minicl.split((noisy, plain), 1)
    torch.manual_seed(77)
    with pytest.warns(UserWarning, match="every epoch would see the same draw"):
        second = minicl.split((noisy, plain), 1)
    assert torch.equal(first[0].train.x, second[0].train.x)  # a stream depends on its seed alone
    minicl.split((noisy, plain), 1, held=False)  # and there nothing is to be told
    minicl.split((plain, plain), 1)


def test_inputs_that_cannot_be_permuted_or_turned() -> None:
    tree = ({"a": torch.zeros(4, 1, 2, 2)}, [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"inputs of shape \{a: \(batch, 1, 2, 2\)\} cannot be permuted"):
        minicl.permuted((tree, tree), 2)
    with pytest.raises(ValueError, match=r"inputs of \{a: \(batch, 1, 2, 2\)\} cannot be turned"):
        minicl.rotated((tree, tree), 2)


def test_tasks_of_different_shapes_are_refused_by_run() -> None:
    parts = [Own(Samples(torch.zeros(4, n), torch.tensor([0, 1, 0, 1]))) for n in (6, 8)]
    with pytest.raises(ValueError, match=r"inputs of different shapes: \(6,\), \(8,\)"):
        run(FineTune(minicl.mlp(6, 4)), [Task(t, 2, part, test=part) for t, part in enumerate(parts)])


def test_workers_are_a_number() -> None:
    with pytest.raises(ValueError, match="workers is -1; allowed: integers from 0 up"):
        run(FineTune(minicl.mlp(64, 8)), HELD, workers=-1)


def test_a_data_sets_own_way_of_reading_several_is_used() -> None:
    class Together(Own):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            assert all(type(i) is int for i in indices)
            self.together = getattr(self, "together", 0) + 1
            return [(self.x[i], self.y[i]) for i in indices]

    data = Together(HELD[0].train)
    lazy = LazySamples(data)
    data.reads = 0
    assert torch.equal(lazy.take(slice(4)).x, HELD[0].train.x[:4])
    assert (data.together, data.reads) == (1, 0)


# ---- augment ---------------------------------------------------------------------------------------------------------


def test_augment_changes_what_is_trained_on_and_nothing_else() -> None:
    class Watched(FineTune):
        def loss(self, x: Tensor, y: Tensor, task_id: Any = None) -> Tensor:
            self.trained.append((x, self.unaugmented, self.training))
            return super().loss(x, y, task_id)

        def features(self, x: Tensor, task_id: int | None) -> Tensor:
            self.asked.append((self.training, x))
            return super().features(x, task_id)

    learner = Watched(minicl.mlp(64, 8))
    learner.trained, learner.asked = [], []  # type: ignore[assignment]
    given: list[Tensor] = []

    def negative(x: Tensor) -> Tensor:
        given.append(x)
        return -1 - x

    run(learner, [HELD[0]], epochs=2, augment=negative, progress=False)
    assert len(given) == len(learner.trained) == 2 * 3  # type: ignore[arg-type]
    for (x, plain, training), before in zip(learner.trained, given, strict=True):  # type: ignore[call-overload]
        assert training
        assert plain is before
        assert torch.equal(x, -1 - before)
        assert float(before.min()) >= 0
    for training, x in learner.asked:  # type: ignore[union-attr]
        assert (float(x.max()) < 0) == training
    assert not hasattr(learner, "unaugmented")


def test_what_augment_draws_comes_from_the_seed() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + 0.3 * (torch.rand(x.shape) + float(np.random.rand()) + random.random())

    before = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    expected = trained(HELD[:2], augment=noisy)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # type: ignore[index]
    torch.manual_seed(8)
    np.random.seed(8)
    random.seed(8)
    assert trained(HELD[:2], augment=noisy) == expected
    assert trained(HELD[:2], augment=noisy, seed=4) != expected
    assert trained(HELD[:2]) != expected
    assert trained(lazily(), augment=noisy, workers=2)[1] == trained(lazily(), augment=noisy)[1]


def test_transforms_of_torchvision_fit() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2") if minicl.datasets.torchvision() else None
    augment = v2.Compose([v2.RandomCrop(8, padding=1), v2.RandomHorizontalFlip()])  # type: ignore[union-attr]
    result = run(FineTune(minicl.mlp(64, 64)), [HELD[0]], epochs=10, augment=augment, progress=False)
    assert result.accuracy[0, 0] > 0.9
    assert "RandomCrop" in result.settings["augment"]


def test_a_memory_holds_plain_pictures() -> None:
    learner = minicl.ER(minicl.mlp(64, 8), budget=30)
    run(learner, HELD[:2], epochs=1, augment=lambda x: -1 - x, progress=False)
    assert len(learner.memory) == 30
    assert float(learner.memory.x.min()) >= 0


def test_with_a_closure_each_step_is_augmented_once() -> None:
    calls: list[int] = []

    def count(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x + 0.0

    lbfgs = partial(torch.optim.LBFGS, lr=0.3, max_iter=4)
    run(FineTune(minicl.mlp(64, 8)), [HELD[0]], epochs=2, optimizer=lbfgs, augment=count, progress=False)
    assert calls == [32, 32, 26] * 2


@pytest.mark.parametrize(
    ("augment", "error", "message"),
    [
        (3, TypeError, "augment is a int; allowed: a function of a batch of inputs"),
        (lambda x: None, ValueError, "augment made None inputs of 32; allowed: one of each"),
        (lambda x: x[:5], ValueError, "augment made 5 inputs of 32"),
    ],
)
def test_an_augment_that_makes_no_sense_is_refused(augment: Any, error: type[Exception], message: str) -> None:
    learner = FineTune(minicl.mlp(64, 8))
    with pytest.raises(error, match=message):
        run(learner, [HELD[0]], augment=augment)
    assert not hasattr(learner, "unaugmented")
    assert learner.learned == []


def test_a_checkpoint_with_another_augment_belongs_to_another_run(tmp_path: Path) -> None:
    run(FineTune(minicl.mlp(64, 8)), HELD[:1], epochs=1, checkpoint=tmp_path, augment=F.relu, progress=False)
    with pytest.raises(ValueError, match="belongs to another run: augment is 'gelu', there 'relu'"):
        run(FineTune(minicl.mlp(64, 8)), HELD[:1], epochs=1, checkpoint=tmp_path, augment=F.gelu)


def test_a_schedule_and_a_step_optimiser_with_lazy_data() -> None:
    settings = {"schedule": partial(StepLR, step_size=1), "optimizer": torch.optim.Adam}
    held = [Task(t.id, 2, t.train, t.valid, t.test) for t in HELD[:2]]
    assert trained(lazily(), **settings) == trained(held, **settings)
