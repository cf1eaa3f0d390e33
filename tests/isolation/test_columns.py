"""Columns of any network: which calls get laterals, what they add up to, and that finished tasks keep their bits."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops import ADAM, SGD, Loop, answers, same_bits, small_tasks, state
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import minicl
from minicl import PNN, Task, files
from minicl.isolation.columns import find_sites

IMAGE, SEQUENCE = (3, 8, 8), (5, 6)


def squeeze(n: int) -> nn.Sequential:
    """Squeeze and excitation: one number per channel."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, 2, 1), nn.ReLU(), nn.Conv2d(2, n, 1), nn.Hardsigmoid())


class Bottleneck(nn.Module):
    """As in ResNet: two paths that are added, and the sum once more in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.inner = nn.Sequential(
            nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, 2, 1)
        )
        self.short = nn.Conv2d(4, 8, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.stem(x)))
        out = self.inner(h)
        out += self.short(h)
        return self.relu(out).mean((2, 3))


class Inverted(nn.Module):
    """As in MobileNet and EfficientNet: a depthwise convolution, and channels that are weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Hardswish(inplace=True))
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.weigh, self.down = squeeze(6), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.depth(self.up(x))
        return (x + self.down(h * self.weigh(h))).flatten(1)


class Dense(nn.Module):
    """As in DenseNet: every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.layers:
            parts.append(layer(torch.cat(parts, 1)).relu())
        return F.avg_pool2d(torch.cat(parts, 1), 8).flatten(1)


class ConvNext(nn.Module):
    """Channels last, LayerNorm, Linear layers on maps, and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.full((4,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.norm(self.depth(x).permute(0, 2, 3, 1))
        h = self.scale * self.down(F.gelu(self.up(h)))
        return (x + h.permute(0, 3, 1, 2)).mean((2, 3))


class Vision(nn.Module):
    """As in ViT: patches, a class token, places, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.place = nn.Parameter(torch.randn(1, 5, 4))
        self.attention, self.norm = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True), nn.LayerNorm(4)
        self.block = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Dropout(0.1), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(x), -1, -1), h], 1) + self.place
        h = h + self.attention(self.norm(h), self.norm(h), self.norm(h), need_weights=False)[0]
        return (h + self.block(h))[:, 0]


class Functional(nn.Module):
    """As in Swin: windows as samples, and a projection whose weight alone is used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, h = len(x), self.embed(x).permute(0, 2, 3, 1)
        h = h.view(n, 2, 2, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(n * 4, 4, 4)
        q, k, v = F.linear(h, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        h = self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
        return h.view(n, 4, 4, 4).mean((1, 2))


class Mixer(nn.Module):
    """As in MLP-Mixer: the same kind of block over places, and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places, self.channels = nn.Linear(6, 4), nn.Linear(5, 5), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.places(h.transpose(1, 2)).transpose(1, 2)
        return (h + self.channels(h).relu()).flatten(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.states, self.out = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.states(x)[0][:, -1]).relu()


class Conv1D(nn.Module):
    """As Hugging Face has it: a Linear whose weight is transposed."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n_in, n_out) / 2), nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Words(nn.Module):
    """A transformer on token ids, of which some have a `Conv1D`, as GPT-2 does."""

    def __init__(self, encoder: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, 0.1, batch_first=True)
        self.words = nn.Embedding(9, 4)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False) if encoder else Conv1D(4, 4)
        self.out = Conv1D(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.words((x[..., 0] * 8.9).long()))).mean(1)


class Again(nn.Module):
    """One layer three times: first on the network's input, then on what it made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.other(self.layer(self.layer(x).tanh()).tanh())).flatten(1)


class Up(nn.Module):
    """Transposed convolutions, with groups, and told how large to become."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2)
        self.more = nn.ConvTranspose2d(6, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self.up(self.down(x).relu(), output_size=(8, 8)).relu()).mean((2, 3))


def line() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv1d(5, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 6, 3, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten()),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str], list[str]]] = {
    "bottleneck": (Bottleneck, IMAGE, ["inner.0", "inner.3", "short"], ["stem"]),
    "inverted": (Inverted, IMAGE, ["depth", "weigh.1", "weigh.3", "down"], ["up.0"]),
    "dense": (Dense, IMAGE, ["layers.1", "layers.2"], ["layers.0"]),
    "convnext": (ConvNext, IMAGE, ["depth", "up", "down"], ["stem"]),
    "vision": (Vision, IMAGE, ["block.0", "block.3"], ["attention", "attention.out_proj", "patches"]),
    "functional": (Functional, IMAGE, ["out"], ["embed", "qkv"]),
    "mixer": (Mixer, SEQUENCE, ["places", "channels"], ["embed"]),
    "recurrent": (Recurrent, SEQUENCE, ["out"], ["states"]),
    "encoder": (
        lambda: Words(True),
        SEQUENCE,
        ["body.layers.0.linear1", "body.layers.0.linear2", "body.layers.1.linear1", "body.layers.1.linear2", "out"],
        [f"body.layers.{i}.self_attn{name}" for i in (0, 1) for name in ("", ".out_proj")] + ["words"],
    ),
    "conv1d": (lambda: Words(False), SEQUENCE, ["body", "out"], ["words"]),
    "again": (Again, SEQUENCE, ["layer", "other"], []),
    "up": (Up, IMAGE, ["up", "more"], ["down"]),
    "line": (line, SEQUENCE, ["2"], ["0"]),
}
"""Of each kind that people use a small one: the shape of its inputs, the layers with laterals, and those without."""

each_network = pytest.mark.parametrize("name", NETWORKS)
of_both_kinds = pytest.mark.parametrize("adapter", ["linear", "mlp"])


def learned(name: str, n: int = 3, **settings: Any) -> tuple[PNN, list[Task]]:
    make, shape, *_ = NETWORKS[name]
    learner, tasks = PNN(make(), **settings), small_tasks(n=n, samples=8, shape=shape)
    Loop(learner, ADAM, epochs=1).learn(*tasks)
    return learner.eval(), tasks


# ---- which calls have laterals ---------------------------------------------------------------------------------------


@each_network
def test_all_layers_have_laterals_but_those_that_read_the_networks_input_and_those_that_are_not_called(
    name: str,
) -> None:
    _, _, expected, without = NETWORKS[name]
    learner, _ = learned(name, 2)
    report = learner.capacity()
    assert list(dict.fromkeys(path for path, _ in learner.tasks[1].notes["sites"])) == expected
    assert sorted(report["without_laterals"]) == sorted(without)
    reasons = report["without_laterals"]
    words = {
        "vision": "is a MultiheadAttention: .*is never called.*reads the network's own input",
        "functional": "is never called: what is around it uses its weight by itself",
        "recurrent": "is a LSTM: laterals lead into Linear and Conv layers",
    }
    assert re.search(words.get(name, ""), " / ".join(sorted(reasons.values())))
    assert len(learner.columns["1"].laterals) == len(expected) + 1, "and the head"
    assert len(learner.columns["0"].laterals) == 0


class First(nn.Module):
    """The first of what a module returns."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x)[0]


class Reads(nn.Module):
    """Something between the input and a layer."""

    def __init__(self, between: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.between, self.layer = between, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.between(x))


@pytest.mark.parametrize(
    ("between", "is_input"),
    [
        (nn.Flatten(), True),
        (lambda x: x.permute(0, 2, 1).contiguous().flatten(1), True),
        (lambda x: (x.flatten(1) * 2 - 1).relu(), True),
        (nn.Sequential(nn.AvgPool1d(2), nn.Flatten()), True),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(30), nn.PReLU(30)), True),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(30)), True),
        (First(nn.GRU(6, 2, batch_first=True)), False),
        (nn.Sequential(nn.Flatten(), nn.Linear(30, 30)), False),
    ],
)
def test_a_layer_reads_the_networks_input_where_no_weight_lies_between_but_those_of_norms_and_activations(
    between: Any, is_input: bool
) -> None:
    network, x = Reads(between), torch.rand(2, 5, 6)
    network(x)
    sites, _ = find_sites(network, lambda: network(x))
    assert (("layer", 0) not in sites) == is_input


class Other(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unsqueeze(1).expand(-1, 2, -1)


class Overwrites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out = self.second(h.detach())
        with torch.no_grad():
            h += 1
        return out + h


def test_a_layer_that_a_lateral_cannot_lead_into_is_named() -> None:
    x = torch.rand(2, 6)
    strange = nn.Sequential(nn.Linear(6, 6), Other(6, 4), nn.Flatten())
    sites, without = find_sites(strange, lambda: strange(x))
    assert (sites, without["1"]) == ([], "has a forward of its own, which puts out another shape")
    flat = nn.Sequential(nn.Linear(6, 6), nn.Unflatten(0, (1, 2)), nn.Flatten(0, 1), nn.Conv1d(2, 2, 3))
    _, without = find_sites(flat, lambda: flat(x))
    assert without["3"] == "is given (2, 6), without an axis for the samples"


# ---- the equations, for any graph ------------------------------------------------------------------------------------


def by_hand(learner: PNN, name: str, x: Tensor, task_id: int) -> Tensor:
    """Eq. 1 or 2 by hooks on plain copies of the backbone: each U and V taken apart, one product per earlier column."""
    given: dict[int, dict[tuple[str, int], Tensor]] = {}
    saved = learner.state_dict()
    for k in range(task_id + 1):
        network, column = NETWORKS[name][0](), learner.columns[str(k)]
        prefix = f"columns.{k}.layers."
        network.load_state_dict({n.removeprefix(prefix): v for n, v in saved.items() if n.startswith(prefix)})
        given[k], calls = {}, dict.fromkeys(dict(network.named_modules()), 0)
        sites = [tuple(site) for site in learner.tasks[k].notes["sites"]]
        places = list(dict.fromkeys(path for path, _ in sites))

        def hook(module: nn.Module, args: Any, kwargs: Any, out: Tensor, path: str, k: int = k) -> Tensor:
            site, calls[path] = (path, calls[path]), calls[path] + 1  # noqa: B023
            if site not in sites:  # noqa: B023
                return out
            given[k][site] = args[0].clone()
            if k == 0:
                return out
            return out + term(column.laterals[places.index(path)], module, site, kwargs, k)  # noqa: B023

        def term(lateral: Any, module: nn.Module, site: Any, kwargs: Any, k: int) -> Tensor:
            hs = [given[j][site] for j in range(k)]
            if hasattr(lateral, "V"):
                return lateral.U(lateral.f(lateral.alpha * split(lateral.V, hs, {})), **kwargs)
            return split(lateral.U, hs, kwargs)

        for path in places:
            network.get_submodule(path).register_forward_hook(
                lambda m, a, kw, out, path=path: hook(m, a, kw, out, path), with_kwargs=True
            )
        with torch.no_grad():
            h = network.eval()(x)
            given[k]["head", 0] = h
            out = learner.heads[str(k)](h)
            if k:
                out = out + term(column.laterals[-1], learner.heads[str(k)], ("head", 0), {}, k)
    return out


def split(layer: Any, hs: list[Tensor], kwargs: dict[str, Any]) -> Tensor:
    """The sum over earlier columns, one product each, with that column's part of the weight."""
    total: Any = 0
    for j, h in enumerate(hs):
        one = copy.deepcopy(layer)
        weight = layer.weight
        if isinstance(layer, nn.Linear):
            one.weight = nn.Parameter(weight.unflatten(1, (len(hs), -1))[:, j])
        elif "Transpose" in type(layer).__name__:  # (groups x columns x inputs, outputs / groups, ...)
            one.weight = nn.Parameter(weight.unflatten(0, (layer.groups, len(hs), -1))[:, :, :][:, j].flatten(0, 1))
        else:  # (outputs, columns x inputs / groups, ...)
            one.weight = nn.Parameter(weight.unflatten(1, (len(hs), -1))[:, j])
        if hasattr(one, "in_channels"):
            one.in_channels //= len(hs)
        total = total + one(h, **kwargs)
    return total


@each_network
@of_both_kinds
def test_every_layer_gets_what_the_same_layer_was_given_in_all_earlier_columns(name: str, adapter: str) -> None:
    learner, tasks = learned(name, 3, adapter=adapter)
    x = tasks[0].test.x
    for t in range(3):
        with torch.no_grad():
            torch.testing.assert_close(learner(x, t), by_hand(learner, name, x, t), rtol=1e-4, atol=1e-5)


# ---- nothing is forgotten --------------------------------------------------------------------------------------------


@each_network
@of_both_kinds
def test_finished_tasks_keep_their_bits_on_any_network(name: str, adapter: str, tmp_path: Path) -> None:
    """While later tasks train, in a copy, after loading, and in the export that needs no minicl."""
    make, shape, *_ = NETWORKS[name]
    learner, tasks, x = PNN(make(), adapter=adapter), small_tasks(samples=8, shape=shape), torch.rand(5, *shape)
    finished: dict[int, list[Tensor]] = {}
    for task in tasks:
        loop = Loop(learner, ADAM, epochs=1, watch=lambda: check(learner, "after a step"))

        def check(of: PNN, when: str) -> None:
            for t, then in finished.items():
                assert same_bits(answers(of, x, t), then), f"task {t}, {when}"

        loop.learn(task)
        finished[task.id] = answers(learner, x, task.id)
    learner.save(tmp_path / "file")
    check(copy.deepcopy(learner), "a copy")
    check(PNN.load(tmp_path / "file", make()), "after loading")
    learner.eval()
    exported = learner.export(1)
    torch.save(exported, tmp_path / "exported")
    again = torch.load(tmp_path / "exported", weights_only=False)
    for network in (exported, again):
        with torch.no_grad():
            assert torch.equal(network(x), finished[1][0])
            assert torch.equal(network(x[:1]), learner(x[:1], 1)), "another size of batch"
        assert torch.equal(network(x), finished[1][1])
        assert {type(module).__module__.partition(".")[0] for module in network.modules()} <= {"torch"} | {
            type(network).__module__
        }
    shape_of = learner.sensitivity(2, x).shape
    assert shape_of == (len(learner.tasks[2].notes["sites"]) + 1, 3)


def test_earlier_columns_run_once_a_batch_in_evaluation_mode_and_build_no_graph() -> None:
    learner, tasks = PNN(Bottleneck()), small_tasks(n=2, samples=8, shape=IMAGE)
    loop = Loop(learner, SGD, epochs=1, batch=8).learn(tasks[0])
    seen: list[tuple[bool, bool]] = []
    learner.columns.real("0").layers.inner[0].register_forward_hook(
        lambda layer, args, out: seen.append((out.requires_grad, layer.training))
    )
    loop.learn(tasks[1])
    assert seen == [(False, False)]


class Tied(nn.Module):
    """Two layers with one weight, of which one stands in two places, and a result that is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.again = self.second

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.second(self.first(x).relu())
        return self.again(self.last.relu())


def made_of(change: Callable[[nn.Linear], nn.Module]) -> nn.Sequential:
    return nn.Sequential(change(nn.Linear(6, 5)), nn.ReLU(), change(nn.Linear(5, 4)))


@pytest.mark.parametrize(
    "make",
    [
        Tied,
        lambda: made_of(parametrizations.weight_norm),
        lambda: made_of(parametrizations.spectral_norm),
        lambda: made_of(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    ],
    ids=["tied", "weight norm", "spectral norm", "pruned"],
)
def test_weights_that_are_shared_or_computed(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    learner, tasks, x = PNN(make()), small_tasks(shape=(6,)), torch.rand(5, 6)
    finished: dict[int, list[Tensor]] = {}
    for task in tasks:
        Loop(learner).learn(task)
        finished[task.id] = answers(learner, x, task.id)
    learner.save(tmp_path / "file")
    for of in (learner, PNN.load(tmp_path / "file", make())):
        assert all(same_bits(answers(of, x, t), then) for t, then in finished.items())
    assert torch.equal(learner.export(2)(x), finished[2][1])


@pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning")
def test_a_network_that_was_scripted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer '0' was scripted, and .*; give what was scripted"):
        PNN(nn.Sequential(torch.jit.script(nn.Linear(6, 5))))


def test_several_threads_may_ask_one_learner() -> None:
    learner, tasks = learned("again", 3)
    x, wrong = tasks[0].test.x, []
    right = [learner(x, t).detach() for t in range(3)]

    def ask(t: int) -> None:
        wrong.extend(t for _ in range(40) if not torch.equal(learner(x, t), right[t]))

    threads = [threading.Thread(target=ask, args=(t,)) for t in (0, 1, 2, 0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_trace_that_answers_otherwise_is_noticed() -> None:
    class Looks(nn.Module):
        """Does something else where it is followed than where it is used."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x) + (type(x) is Tensor))

    learner, tasks = PNN(Looks()), small_tasks(n=1, shape=(6,))
    Loop(learner).learn(*tasks)
    with pytest.raises(ValueError, match=r"torch.fx: ValueError: the answers are not the same; torch.export: "):
        learner.export(0)


class Ids(nn.Module):
    """Takes token ids and a mask by name."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.second = nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return (self.second(self.first(self.words(ids)).relu()) * mask.unsqueeze(-1)).mean(1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's own, when it reads the file
def test_inputs_in_a_dictionary(tmp_path: Path) -> None:
    x = {"ids": torch.randint(9, (8, 5)), "mask": torch.ones(8, 5)}
    learner, tasks = PNN(Ids()), [Task(t, 2, (x, torch.arange(8) % 2)) for t in range(2)]
    for task in tasks:
        learner.learn(task, lambda: None)
    learner.save(tmp_path / "file")
    for of in (learner.eval(), PNN.load(tmp_path / "file", Ids()).eval()):
        with torch.no_grad():
            torch.save(of.export(1), tmp_path / "exported")
            assert torch.equal(torch.load(tmp_path / "exported", weights_only=False)(x), of(x, 1))
    learner.input_shape = None
    with pytest.raises(ValueError, match=r"torch.export: TypeError: the shape of an input is not known"):
        learner.export(1)


@of_both_kinds
def test_tasks_whose_answer_is_the_networks_own_output(adapter: str) -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 1))
    learner, x, kept = PNN(network, adapter=adapter), torch.rand(16, 5, 6), {}
    for t in range(3):
        y = (t + 1) * x.sum(-1, keepdim=True)
        Loop(learner, ADAM).learn(Task(t, None, (x, y), criterion=F.mse_loss))
        kept[t] = learner.eval()(x, t)
        assert all(torch.equal(learner(x, j), then) for j, then in kept.items())
    assert [len(learner.columns[str(t)].laterals) for t in range(3)] == [0, 2, 2], "none into a head, for there is none"
    assert torch.equal(learner.export(2)(x), kept[2])


def test_a_network_that_nothing_can_trace_says_so_and_can_be_kept_as_a_learner() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.second(h) if float(h.detach().sum()) > 0 else h

    learner, tasks = PNN(nn.Sequential(nn.Linear(6, 6), Branches())), small_tasks(n=2, shape=(6,))
    Loop(learner).learn(*tasks)
    where = r"in layer '1' \(Branches\), test_columns\.py, line \d+, \"return self\.second\(h\) if .*\": \w+Error: "
    with pytest.raises(ValueError, match=rf"classes \(torch.fx: {where}.*torch.export: {where[:-8]}.*What helps: "):
        learner.export(1)


# ---- where columns start ---------------------------------------------------------------------------------------------


def first_weights(learner: PNN, *tasks: Task) -> list[Tensor]:
    for task in tasks:
        learner.prepare(task)
    return [learner.columns.real(str(task.id)).layers.inner[0].weight.detach() for task in tasks]


def test_later_columns_start_from_the_given_weights_unless_they_are_drawn_anew() -> None:
    tasks = small_tasks(shape=IMAGE)
    for start in (None, "given"):
        network = Bottleneck()
        assert all(torch.equal(w, network.inner[0].weight) for w in first_weights(PNN(network, start=start), *tasks))
    first, second, third = first_weights(PNN(network, start="random"), *tasks)
    assert torch.equal(first, network.inner[0].weight)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    learner = PNN(minicl.mlp(192, 4))
    for task in tasks[:2]:
        learner.prepare(task)
    assert not torch.equal(*(learner.columns.real(name).layers[1].weight for name in "01")), "nobody has trained it"


@pytest.mark.parametrize("start", ["given", "random"])
def test_weights_that_are_frozen_stay_as_given_in_every_column_and_the_others_learn(start: str) -> None:
    network = Bottleneck()
    network.inner.requires_grad_(False)
    learner, tasks = PNN(network, start=start), small_tasks(shape=IMAGE)
    Loop(learner).learn(*tasks)
    columns = [learner.columns[str(t)].layers for t in range(3)]
    for column in columns:
        assert torch.equal(column.inner[0].weight, network.inner[0].weight)
    assert not torch.equal(columns[1].short.weight, columns[2].short.weight)
    learner.prepare(small_tasks(ids=[7], shape=IMAGE)[0])
    assert {n for n, _ in learner.columns["7"].layers.named_parameters() if n.startswith("inner")}
    assert not any(p.requires_grad for p in learner.columns["7"].layers.inner.parameters())
    assert all(p.requires_grad for p in learner.columns["7"].laterals.parameters()), "laterals into them learn"


def test_a_loaded_learner_goes_on_from_the_network_that_was_given_first(tmp_path: Path) -> None:
    tasks, network = small_tasks(shape=IMAGE), Bottleneck()
    learner = PNN(network)
    Loop(learner).learn(tasks[0])
    learner.save(tmp_path / "file")
    loaded = PNN.load(tmp_path / "file", Bottleneck())
    loaded.prepare(tasks[1])
    assert torch.equal(loaded.columns["1"].layers.stem.weight, network.stem.weight)


def test_files_from_the_time_of_nothing_but_sequentials_are_read(tmp_path: Path) -> None:
    learner, tasks = PNN(minicl.cnn(1, 3, 4, batchnorm=True)), small_tasks()
    Loop(learner).learn(*tasks)
    learner.save(tmp_path / "new")
    header, tensors = files.read(tmp_path / "new")
    for record in header["tasks"]:
        record["notes"] = {"columns": record["notes"]["columns"]}
    del header["hyperparameters"]["start"]
    files.write(tmp_path / "old", {k: v for k, v in header.items()}, tensors)
    loaded, x = PNN.load(tmp_path / "old", minicl.cnn(1, 3, 4, batchnorm=True)).eval(), tasks[0].test.x
    learner.eval()
    for t in range(3):
        assert torch.equal(loaded(x, t), learner(x, t))
        assert torch.equal(loaded.export(t)(x), learner(x, t))
    Loop(loaded).learn(*small_tasks(ids=[5]))


# ---- whom a task listens to ------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """The same twice: by Linear layers, features last, or by convolutions of one pixel, features first."""

    def __init__(self, convolve: bool) -> None:
        super().__init__()
        make: Any = (lambda n, m: nn.Conv1d(n, m, 1)) if convolve else nn.Linear
        self.first, self.second, self.convolve = make(6, 4), make(4, 3), convolve

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2) if self.convolve else x
        return self.second(self.first(x).tanh()).tanh().mean(2 if self.convolve else 1)


@pytest.mark.parametrize("kind", ["fisher", "perturbation"])
def test_sensitivity_knows_which_axis_has_the_features(kind: str) -> None:
    tasks, found = small_tasks(n=2, samples=30, shape=SEQUENCE), []
    linear = PNN(Tokens(convolve=False))
    Loop(linear, ADAM).learn(*tasks)
    convolved = PNN(Tokens(convolve=True))
    for task in tasks:
        convolved.learn(task, lambda: None)
    theirs = linear.state_dict()
    with torch.no_grad():
        for t in range(2):
            for part in (convolved.columns, convolved.heads):
                prefix = "columns" if part is convolved.columns else "heads"
                for name, tensor in part.real(str(t)).state_dict().items():
                    tensor.copy_(theirs[f"{prefix}.{t}.{name}"].view_as(tensor))
    x = tasks[1].train.x
    with torch.no_grad():
        y = linear.eval()(x, 1).argmax(1)
        torch.testing.assert_close(convolved.eval()(x, 1), linear(x, 1))
    found = [learner.sensitivity(1, x, y, kind) for learner in (linear, convolved)]
    # Of the perturbation the noise is drawn in another order, so the numbers are near, not equal.
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5 if kind == "fisher" else 0.15)
    assert found[0].shape == (2, 2)


# ---- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [PNN, minicl.Individual])
@pytest.mark.parametrize("change", [lambda m: m.double(), lambda m: m.to(torch.bfloat16), lambda m: m.half()])
def test_the_template_follows_the_learner(make: Any, change: Callable[[nn.Module], nn.Module]) -> None:
    learner = change(make(Mixer()))
    dtype, tasks = (
        learner._like.dtype,
        [
            Task(t.id, 2, (t.train.x, t.train.y))
            for t in small_tasks(n=2, samples=8, shape=SEQUENCE, dtype=torch.float32)
        ],
    )
    tasks = [Task(t.id, 2, (t.train.x.to(dtype), t.train.y)) for t in tasks]
    Loop(learner, SGD, epochs=1).learn(*tasks)
    assert {tensor.dtype for tensor in learner.state_dict().values()} == {dtype}
    change(learner)
    assert learner.eval()(tasks[0].train.x, 1).dtype == dtype


def test_an_adapter_takes_an_activation_with_slopes_of_its_own() -> None:
    network = nn.Sequential(nn.Linear(9, 14), nn.PReLU(14), nn.Linear(14, 6), nn.PReLU(6))
    learner, tasks = PNN(network, adapter="mlp"), small_tasks(shape=(9,))
    Loop(learner).learn(*tasks)
    assert learner.learned == [0, 1, 2]
    assert [type(lateral.f) for lateral in learner.columns["2"].laterals] == [nn.PReLU] * 2


# ---- tasks that are taken out ----------------------------------------------------------------------------------------


def test_what_later_tasks_read_of_a_forgotten_one_stays_and_the_rest_is_freed(tmp_path: Path) -> None:
    learner, tasks = learned("bottleneck", 4)
    x = tasks[0].test.x
    before, size = {t: answers(learner, x, t) for t in range(4)}, learner.capacity()["parameters"]
    lateral = learner.columns["1"].laterals[-1]
    head = sum(p.numel() for part in (learner.heads["1"], lateral) for p in part.state_dict().values())

    def check(of: PNN) -> None:
        assert all(same_bits(answers(of, x, t), before[t]) for t in of.learned)

    learner.forget(1)
    report = learner.capacity()
    assert report["parameters"] == size - head, "its head and what leads there, and nothing else"
    assert {j: kept["read_by"] for j, kept in report["forgotten"].items()} == {-1: [2, 3]}
    assert learner.column_ids(3) == [0, -1, 2, 3]
    check(learner)
    learner.save(tmp_path / "file")
    loaded = PNN.load(tmp_path / "file", Bottleneck())
    check(loaded)
    assert loaded.capacity() == report
    assert torch.equal(loaded.eval().export(3)(x), learner.eval()(x, 3))
    for of in (learner, loaded):
        Loop(of).learn(small_tasks(n=4, samples=8, shape=IMAGE)[1])  # the same id once more
        assert of.column_ids(1) == [0, -1, 2, 3, 1]
        before[1] = answers(of, x, 1)
        check(of)
        of.forget(0)
        of.forget(3)  # which task 1 reads
        check(of)
        of.forget(1)
        of.forget(2)
        assert of.capacity()["parameters"] == 0
        assert same_bits(state(of), {})


def test_the_newest_task_leaves_nothing_behind() -> None:
    learner, _ = learned("mixer", 3)
    size = learner.capacity()["parameters"]
    Loop(learner).learn(small_tasks(ids=[9], shape=SEQUENCE)[0])
    learner.forget(9)
    assert learner.capacity()["parameters"] == size
    assert learner.capacity()["forgotten"] == {}


# ---- optimisers ------------------------------------------------------------------------------------------------------


def test_an_optimiser_from_before_the_new_column_is_an_error() -> None:
    learner, tasks = PNN(Bottleneck()), small_tasks(n=2, shape=IMAGE)
    loop = Loop(learner).learn(tasks[0])

    def fit() -> None:
        assert loop.optimizer is not None
        for _ in range(3):
            learner.loss(tasks[1].train.x, tasks[1].train.y, 1).backward()
            loop.optimizer.step()

    with pytest.raises(RuntimeError, match=r"columns.1.layers.stem.weight.*in no protected optimiser"):
        learner.learn(tasks[1], fit)
