"""Every method with data as people have them: read on demand, dictionaries, tuples, texts of several lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import minicl
from minicl import Task, inputs

WITHOUT_SEQUENTIAL = [name for name in minicl.METHODS if name not in ("hat", "agscl", "den")]
REPLAY = ("er", "agem", "gem", "derpp")


class Pictures(Dataset[tuple[Tensor, int]]):
    """Reads one item at a time, and counts how often."""

    def __init__(self, samples: Any) -> None:
        self.x, self.y, self.read = samples.x, samples.y, 0

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.read += 1
        return self.x[i], int(self.y[i])


def on_demand(stream: minicl.TaskStream) -> list[Task]:
    return [
        Task(
            t.id,
            t.n_outputs,
            *(Pictures(part) for part in (t.train, t.valid, t.test)),
            scenario=t.scenario,
            name=t.name,
            classes=t.classes,
        )
        for t in stream
    ]


@pytest.mark.parametrize("method", minicl.METHODS)
def test_samples_read_on_demand_give_the_same_as_those_held(method: str, tmp_path: Path) -> None:
    held = minicl.split("digits", 5, n_train=60)[:3]
    found = []
    for tasks in (held, on_demand(held)):
        learner = minicl.METHODS[method](minicl.mlp(64, 16))
        result = minicl.run(learner, tasks, epochs=2, seed=3, progress=False)
        learner.eval()
        found.append((result.accuracy.tolist(), [learner(task.test.x, task.id).detach() for task in held]))
        if method != "joint":
            learner.save(tmp_path / "file")
            loaded = type(learner).load(tmp_path / "file", minicl.mlp(64, 16)).eval()
            assert torch.equal(loaded(held[1].test.x, 1), learner(held[1].test.x, 1))
    assert str(found[0][0]) == str(found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_memory_reads_only_what_it_keeps() -> None:
    for share in ("reservoir", "task"):
        tasks = on_demand(minicl.split("digits", 5, n_train=100)[:1])
        learner = minicl.ER(minicl.mlp(64, 8), budget=10, share=share)
        data = tasks[0]._given["train"]
        learner.learn(tasks[0], lambda: None)
        assert data.read <= 10 + 4 + (100 if share == "task" else 0)  # labels of an equal share are read once
        assert len(learner.memory) == 10


class Words(nn.Module):
    """Token ids with an attention mask, as language models take them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(30, 8), nn.Linear(8, 6)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embedding(ids) * mask[..., None]  # (batch, length, 8)
        features: Tensor = self.out(h.sum(1) / mask.sum(1, keepdim=True)).relu()
        return features


class Pair(nn.Module):
    """A picture and a row of measurements, as one tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 6), nn.Linear(3, 6)

    def forward(self, x: Any) -> Tensor:
        features: Tensor = (self.a(x[0].flatten(1)) + self.b(x[1])).relu()
        return features


def words(n: int) -> tuple[dict[str, Tensor], Tensor]:
    return {"ids": torch.randint(30, (n, 5)), "mask": torch.ones(n, 5)}, torch.arange(n) % 2


def pairs(n: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    return (torch.rand(n, 3, 4), torch.rand(n, 3)), torch.arange(n) % 2


@pytest.mark.parametrize("method", WITHOUT_SEQUENTIAL)
@pytest.mark.parametrize(("make", "network"), [(words, Words), (pairs, Pair)])
@pytest.mark.filterwarnings("ignore:only .* of what this")  # an embedding
def test_dictionaries_and_tuples_in_every_method(
    method: str, make: Any, network: type[nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tasks = [Task(t, 2, make(40), make(8), make(10)) for t in range(3)]
    learner = minicl.METHODS[method](network())
    if method == "generative":
        with pytest.raises(
            ValueError, match="are no single tensor of one shape, and the generator makes up such alone"
        ):
            minicl.run(learner, tasks, epochs=2, batch_size=8, progress=False)
        return
    minicl.run(learner, tasks, epochs=2, batch_size=8, progress=False, checkpoint=tmp_path / "run")
    learner.eval()
    for task in tasks:
        assert learner(task.test.x, task.id).shape == (10, 2)
    if method in REPLAY:
        kept = learner.memory.of_task(0)  # type: ignore[union-attr]
        assert inputs.shapes(kept.x) == inputs.shapes(tasks[0].train.x)
    if method != "joint":
        learner.save(tmp_path / "file")
        loaded = type(learner).load(tmp_path / "file", network()).eval()
        assert torch.equal(loaded(tasks[2].test.x, 2), learner(tasks[2].test.x, 2))
        assert loaded.capacity() == learner.capacity()
    with pytest.raises(ValueError, match=r"the batch has shape .*; allowed: "):
        learner(torch.rand(4, 3), 0)


def collate(items: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
    """Pads a batch to its own longest text."""
    longest = max(len(ids) for ids, _ in items)
    ids = torch.stack([nn.functional.pad(ids, (0, longest - len(ids))) for ids, _ in items])
    mask = torch.stack([(torch.arange(longest) < len(ids)).float() for ids, _ in items])
    return {"ids": ids, "mask": mask}, torch.tensor([label for _, label in items])


@pytest.mark.parametrize("method", WITHOUT_SEQUENTIAL)
@pytest.mark.filterwarnings("ignore:only .* of what this")
def test_texts_of_several_lengths(method: str) -> None:
    torch.manual_seed(0)
    texts = lambda n: [(torch.randint(30, (3 + i % 5,)), i % 2) for i in range(n)]  # noqa: E731
    tasks = [Task(t, 2, texts(40), texts(8), texts(10), collate=collate) for t in range(2)]
    learner = minicl.METHODS[method](Words())
    if method in (*REPLAY, "icarl", "bic", "generative"):
        with pytest.raises(
            ValueError, match=r"its inputs may have several shapes, and the memory of|no single tensor of one shape"
        ):
            minicl.run(learner, tasks, epochs=1, batch_size=8, progress=False)
        assert learner.learned == []
        return
    minicl.run(learner, tasks, epochs=1, batch_size=8, progress=False)
    assert learner.learned == [0, 1]
    assert minicl.evaluate(learner, tasks[0]) >= 0


def test_what_is_augmented_is_not_what_is_stored() -> None:
    """DER++ stores batches while it trains: as they were, and with the logits of what was trained on."""
    tasks = minicl.split("digits", 5, n_train=40)[:2]
    learner = minicl.DERpp(minicl.mlp(64, 8), budget=20)
    minicl.run(learner, tasks, epochs=1, augment=lambda x: x + 100, progress=False)
    assert float(learner.memory.x.max()) <= 1.0
