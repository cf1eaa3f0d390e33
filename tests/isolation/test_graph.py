"""Units followed through networks of every kind: whose masks are carried where, and what is not understood."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import backbones
import pytest
import seeds
import torch
import torch.nn.functional as F
from loops import OPTIMIZERS, Loop, answer, answers, same_bits, small_tasks
from torch import Tensor, nn

import minicl
from minicl import HAT
from minicl.isolation import hat
from minicl.isolation.graph import Graph

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:task \d+ switched off every unit"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # PyTorch's own
]


def graph_of(network: nn.Module, *shape: int) -> Graph:
    learner = HAT(network)
    learner.prepare(small_tasks(n=1, shape=shape)[0])
    return learner.graph


def said(graph: Graph, mask: int | None) -> str:
    """A mask in words, layers by their paths."""
    if mask is None:
        return "all"
    kind, *given = graph.masks[mask]
    if kind == "layer":
        return graph.layers[given[0]].path
    if kind in ("max", "min", "cat"):
        return f"{kind}({', '.join(sorted(said(graph, part) for part in given[0]))})"
    return f"{kind}({given[0] if kind == 'ones' else ', '.join([said(graph, given[0]), *map(str, given[1:])])})"


def read(graph: Graph) -> dict[str, str]:
    """Of each weight, from which units it leads."""
    return {w.name: said(graph, w.into) for w in graph.weights if w.name.endswith("weight")}


# ---- networks of every kind ------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Residual, with its activation used twice and in place."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, n, 3, padding=1)
        self.one, self.norm = nn.Conv2d(n, n + 1, 3, padding=1, bias=False), nn.BatchNorm2d(n + 1)
        self.two, self.again = nn.Conv2d(n + 1, n, 3, padding=1), nn.BatchNorm2d(n)
        self.relu = nn.ReLU(inplace=True)
        self.out = nn.Linear(n, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        h = self.again(self.two(self.relu(self.norm(self.one(x)))))
        h += x
        return F.gelu(self.out(self.relu(h).mean((2, 3))))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.norm, self.out = nn.BatchNorm2d(12), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu6(self.norm(self.deep(F.hardswish(self.stem(x)))))).flatten(1)


class Squeezed(nn.Module):
    """Squeeze and excitation: channels multiplied by gates of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.gate, self.out = nn.Hardsigmoid(), nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        s = self.gate(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.out(torch.flatten(F.adaptive_avg_pool2d(s * x, 1), 1))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 3, 1), nn.Conv1d(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x.flatten(1, -2)[:, :2]).tanh()
        return self.three(torch.cat([x, self.two(x).relu()], 1)).amax(-1)


class Rows(nn.Module):
    """LayerNorm, attention, and a feed-forward block, over the rows of an image; a token for the class."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(7, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.again, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x.flatten(1, 2))], 1) + self.place
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return (x + self.down(F.gelu(self.up(self.again(x)))))[:, 0]


class Encoder(nn.Module):
    """PyTorch's transformer over the rows of an image; its second layer looks at what the first one made."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        settings: dict[str, Any] = {"dim_feedforward": 10, "batch_first": True, "norm_first": norm_first}
        self.embed, self.first = nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 4, **settings)
        self.second = nn.TransformerDecoderLayer(8, 2, **settings)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        return self.second(x, self.first(x)).mean(1)


class Queries(nn.Module):
    """Attention with a weight for each of query, key and value, of several sizes, with the batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(6, 5), nn.Linear(6, 7)
        self.query = nn.Parameter(torch.randn(3, 1, 8))
        self.attention = nn.MultiheadAttention(8, 4, kdim=5, vdim=7, add_bias_kv=True, add_zero_attn=True)
        self.last = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2).transpose(0, 1)
        key, value = self.key(x).tanh(), self.value(x).relu()
        made = self.attention(key=key, value=value, query=self.query.expand(-1, x.shape[1], -1))
        return self.last(made[0].mean(0)).relu()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.recurrent, self.last = nn.Linear(6, 5), nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.recurrent(self.first(x[:, 0]).relu())[0][:, -1]).relu()


class Mirror(torch.autograd.Function):
    """An operation that nobody has heard of: it reads every unit, in their order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.flip(1) + 0.3 * x.cumsum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0].flip(1) + 0.3 * grads[0].flip(1).cumsum(1).flip(1)


class Unheard(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.two, self.how = nn.Linear(36, 9), nn.Linear(9, 8), how
        self.mix = torch.jit.script(nn.Linear(9, 9)) if how == "scripted" else nn.Bilinear(9, 9, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x.flatten(1)).relu()
        if self.how == "a function of one's own":
            x = Mirror.apply(x)  # type: ignore[no-untyped-call]
        elif self.how == "fourier":
            x = torch.fft.rfft(x, dim=1).abs() @ torch.ones(5, 9)
        elif self.how == "numpy":
            x = x * torch.from_numpy(x.detach().numpy()[:, ::-1].copy())
        elif self.how == "scripted":
            x = self.mix(x)
        elif self.how == "control flow":
            x = x.flip(1) if float(x.detach().sum()) > 0 else -x
        else:
            x = self.mix(x, x)
        return self.two(x).relu()


class Twice(nn.Module):
    """A layer that is called twice, a tied weight, a buffer that changes in training, a weight of a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.tied = nn.Linear(36, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.tied.weight = self.two.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.register_buffer("seen", torch.zeros(2, 8))
        self.last = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.two(self.one(x.flatten(1)).relu()).relu())
        if self.training:
            self.seen.mul_(0.5).add_(x.detach().mean(0))
        return self.last(self.normed(self.tied(x) - self.seen[1]).tanh())


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (partial(Block, 8), (1, 6, 6)),
    "depthwise": (Depthwise, (1, 4, 4)),
    "squeezed": (Squeezed, (1, 6, 6)),
    "dense": (Dense, (2, 1, 6)),
    "attention": (Rows, (1, 6, 6)),
    "encoder": (Encoder, (1, 6, 6)),
    "norms first": (partial(Encoder, True), (1, 6, 6)),
    "queries": (Queries, (1, 6, 6)),
    "recurrent": (Recurrent, (1, 6, 6)),
    "twice": (Twice, (1, 6, 6)),
    **{
        how: (partial(Unheard, how), (1, 6, 6))
        for how in ("a function of one's own", "fourier", "numpy", "scripted", "control flow", "bilinear")
    },
    **{f"another {name}": (make, backbones.SHAPE) for name, make in backbones.NETWORKS.items()},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("optimizer", ["weight decay", "AdamW"])
def test_finished_tasks_keep_their_bits_on_any_network(kind: str, optimizer: str) -> None:
    make, shape = KINDS[kind]
    torch.manual_seed(seeds.current())
    learner = HAT(make(), c=0.2)
    tasks = small_tasks(shape=shape, samples=12)
    loop, x, kept = Loop(learner, OPTIMIZERS[optimizer], batch=4), torch.rand(5, *shape), []
    for task in tasks:
        loop.learn(task)
        kept.append(answers(learner, x, task.id))
        learner.train()
        for task_id, then in enumerate(kept):
            assert same_bits(answers(learner, x, task_id), then)
    for task_id, then in enumerate(kept):
        torch.testing.assert_close(learner.export(task_id)(x), then[0], atol=1e-4, rtol=1e-4)
    assert not same_bits(kept[0], kept[1])


@every_kind
@pytest.mark.parametrize("binary", [True, False])
def test_what_is_not_read_makes_no_difference(kind: str, binary: bool) -> None:
    """While a task is learned, closed gates stand in the whole network; afterwards what leads from and to closed units
    is gone. Both must compute the same, or a mask was carried where it does not belong."""
    make, shape = KINDS[kind]
    _compare(make(), shape, binary)


@pytest.mark.parametrize("case", range(60))
def test_what_is_not_read_makes_no_difference_on_random_graphs(case: int) -> None:
    torch.manual_seed(seeds.of(case))
    _compare(*backbones.graph(seeds.of(case)), True)


def _compare(network: nn.Module, shape: tuple[int, ...], binary: bool) -> None:
    learner = HAT(network, c=0.2, binary=binary)
    task, x, inside = small_tasks(n=1, shape=shape, samples=12)[0], torch.rand(5, *shape), []

    def fit() -> None:
        Loop(learner, batch=4).fit(task)
        inside.append(answer(learner, x, 0))

    learner.learn(task, fit)
    torch.testing.assert_close(answer(learner, x, 0), inside[0], atol=1e-4, rtol=1e-4)


# ---- whose masks are carried where -----------------------------------------------------------------------------------


def test_a_sum_has_the_union_of_its_masks() -> None:
    graph = graph_of(Block(8), 1, 6, 6)
    assert read(graph) == {
        "stem.weight": "all",
        "one.weight": "stem",
        "two.weight": "one",
        "out.weight": "max(stem, two)",
    }
    assert {gate.path for gate in graph.gates} == {"stem", "norm", "again", ""}
    assert [layer.path for layer in graph.layers if not layer.tied] == ["one", "out"]


def test_depthwise_convolutions_carry_the_mask_of_their_input() -> None:
    graph = graph_of(Depthwise(), 1, 4, 4)
    assert [layer.path for layer in graph.layers] == ["stem", "out"]
    assert said(graph, next(w.out for w in graph.weights if w.name == "deep.weight")) == "repeat(stem, 2)"
    assert read(graph)["out.weight"] == "repeat(stem, 2)"
    assert said(graph, graph.output) == "repeat(out, 16)"


def test_a_product_has_what_both_have() -> None:
    graph = graph_of(Squeezed(), 1, 6, 6)
    assert read(graph) == {
        "stem.weight": "all",
        "down.weight": "stem",
        "up.weight": "down",
        "out.weight": "min(stem, up)",
    }
    assert {gate.path for gate in graph.gates} == {"stem", "down", "gate", ""}


def test_a_concatenation_has_its_masks_side_by_side() -> None:
    graph = graph_of(Dense(), 2, 1, 6)
    assert graph.masks[next(w.into for w in graph.weights if w.name == "three.weight")] == ["cat", [0, 1]]
    assert said(graph, graph.output) == "three"


@pytest.mark.parametrize("kind", ["attention", "recurrent"])
def test_what_is_not_understood_is_read_and_frozen(kind: str) -> None:
    make, shape = KINDS[kind]
    learner = HAT(make())
    tasks = small_tasks(n=2, shape=shape)
    Loop(learner).learn(tasks[0])
    frozen = learner.capacity()["frozen"]
    if kind == "attention":
        assert frozen == {"": 56}
        assert read(learner.graph) == {
            "embed.weight": "all",
            "attention.in_proj_weight": "all",
            "attention.out_proj.weight": "repeat(attention.heads, 4)",
            "up.weight": "all",
            "down.weight": "up",
        }
        assert {"norm.weight", "again.bias", "token"} <= set(learner.graph.own)
    else:
        assert frozen == {"recurrent": 4 * 6 * (5 + 6)}
        assert read(learner.graph)["last.weight"] == "all"
        assert learner.graph.layers[0].tied
    names = [name for name in learner.graph.frozen if "weight" in name or name == "place"]
    before = {name: learner.backbone.get_parameter(name).detach().clone() for name in names}
    Loop(learner).learn(tasks[1])
    assert names
    for name, value in before.items():
        assert torch.equal(learner.backbone.get_parameter(name), value)


@pytest.mark.parametrize("how", ["a function of one's own", "fourier", "scripted", "control flow", "bilinear"])
def test_an_operation_nobody_has_heard_of_reads_every_unit(how: str) -> None:
    graph = graph_of(Unheard(how), 1, 6, 6)
    assert read(graph)["two.weight"] == "all"
    assert graph.layers[0].tied


class Decides(nn.Module):
    """A layer that only some inputs reach."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x).relu()
        return self.last(self.two(h).relu() if x.sum() > 0 else h)


def test_where_values_decide_on_the_way_every_unit_is_read_and_none_cut_out() -> None:
    learner = HAT(Decides())
    Loop(learner, epochs=4).learn(*small_tasks(n=2, shape=(6,)))
    assert {into for name, into in read(learner.graph).items() if name != "one.weight"} == {"all"}
    assert all(layer.tied for layer in learner.graph.layers)
    for x in (torch.rand(4, 6), -torch.rand(4, 6)):
        torch.testing.assert_close(learner.export(0)(x), answer(learner, x, 0))


def test_a_look_at_a_mask_decides_nothing_about_units() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.one, self.last = nn.Embedding(9, 6), nn.Linear(6, 9), nn.Linear(9, 8)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            h = self.one(self.words(ids)).relu()
            h = h if (mask == 1).all() else h * mask.unsqueeze(-1)
            h = h if (torch.zeros(3, 3).triu() == 0).all() else -h  # numbers that no input changes
            return self.last(h.mean(1))

    x = {"ids": torch.zeros(2, 5, dtype=torch.long), "mask": torch.ones(2, 5, dtype=torch.long)}
    learner = HAT(Masked())
    learner.prepare(minicl.Task(0, 2, example=x))
    assert read(learner.graph)["last.weight"] == "one"


def test_layers_called_twice_or_tied_are_no_layers_with_units() -> None:
    graph = graph_of(Twice(), 1, 6, 6)
    assert [layer.path for layer in graph.layers] == ["one", "last"]
    assert read(graph)["last.weight"] == "all"
    assert graph.aliases == {"tied.weight": "two.weight"}
    assert {"two.weight", "seen"} <= set(graph.frozen)


def test_eq_2_protects_what_reads_the_union() -> None:
    """A weight to a claimed unit stands still where either branch of the sum is claimed, and moves elsewhere."""
    torch.manual_seed(seeds.current())
    learner = HAT(Block(12), c=0.5)
    tasks = small_tasks(n=2, shape=(1, 6, 6))
    Loop(learner).learn(tasks[0])
    stem, _, two, out = learner.masks(0)
    union = stem | two
    assert union.sum() > 0
    before = learner.backbone.out.weight.detach().clone()  # type: ignore[union-attr, operator]

    def fit() -> None:
        Loop(learner, OPTIMIZERS["weight decay"]).fit(tasks[1])
        moved = learner.backbone.out.weight != before  # type: ignore[union-attr]
        held = out[:, None] & union[None, :]
        assert not moved[held].any()
        assert moved[~held].all()

    learner.learn(tasks[1], fit)


# ---- heads of attention ----------------------------------------------------------------------------------------------


class Attending(nn.Module):
    """Attention and nothing more, in which something may stand in the way of its heads."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.embed, self.attention, self.how = nn.Linear(6, 8), nn.MultiheadAttention(8, 4, batch_first=True), how
        if how == "a weight that is computed":
            nn.utils.parametrizations.weight_norm(self.attention.out_proj)
        elif how == "a tied weight":
            self.attention.out_proj.weight = self.embed.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "a tied weight":
            x = F.pad(x, (0, 2))
        h = self.embed(x.flatten(1, 2)).relu()
        found, weights = self.attention(h, h, h, need_weights=self.how == "weights that are read")
        if self.how == "a second call":
            found = self.attention(found, h, h)[0]
        if weights is not None:
            found = weights @ found
        made: Tensor = found.mean(1)
        return made


def by_hand(network: Any, x: Tensor, embed: Tensor, heads: Tensor, out: Tensor) -> Tensor:
    """What `Attending` computes between gates, head by head."""
    h = F.linear(x.flatten(1, 2), network.embed.weight, network.embed.bias).relu() * embed
    attention = network.attention
    q, k, v = F.linear(h, attention.in_proj_weight, attention.in_proj_bias).split(8, -1)
    made = []
    for number, gate in enumerate(heads):
        part = slice(2 * number, 2 * number + 2)
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 2**0.5, -1)
        made.append(gate * (weights @ v[..., part]))
    return (attention.out_proj(torch.cat(made, -1)) * out).mean(1)


def test_a_head_is_a_unit() -> None:
    """Between its gates attention computes what the slow formula does, and the scores get the same gradient; the sum
    of the paper's Eq. 5 counts a head once."""
    torch.manual_seed(seeds.current())
    learner = HAT(Attending(), c=0.6)
    tasks = small_tasks(n=2)
    Loop(learner).learn(tasks[0])
    assert {path: layer["units"] for path, layer in learner.capacity()["layers"].items()} == {
        "embed": 8,
        "attention.heads": 4,
        "attention.out_proj": 8,
    }
    assert torch.allclose(
        answer(learner, tasks[0].test.x, 0),
        learner.heads["0"](by_hand(learner.backbone, tasks[0].test.x, *learner.masks(0))),
        atol=1e-5,
    )
    x, y = tasks[1].train.x, tasks[1].train.y
    learner.prepare(tasks[1])

    def fit() -> None:
        learner.train()
        learner.before_step(0.55)
        loss, scores = learner.loss(x, y, 1), learner.scores["1"]
        (grad,) = torch.autograd.grad(loss, scores)
        again = scores.detach().clone().requires_grad_()
        masks = hat.attention(again, hat.temperature(0.55, 400.0)).split([8, 4, 8])
        slow = F.cross_entropy(learner.heads["1"](by_hand(learner.backbone, x, *masks)), y)
        slow = slow + 0.6 * hat.sparsity(masks, learner.used())
        (expected,) = torch.autograd.grad(slow, again)
        torch.testing.assert_close(loss, slow)
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-7)

    learner.learn(tasks[1], fit)


def test_eq_2_protects_what_leads_to_a_head_and_from_it() -> None:
    torch.manual_seed(seeds.current())
    learner = HAT(Attending(), c=0.3)
    tasks = small_tasks(n=2)
    Loop(learner).learn(tasks[0])
    embed, heads, out = learner.masks(0)
    rows = heads.repeat_interleave(2)
    claimed = {
        "in_proj_weight": rows.repeat(3)[:, None] & embed[None, :],
        "in_proj_bias": rows.repeat(3),
        "out_proj.weight": out[:, None] & rows[None, :],
        "out_proj.bias": out,
    }
    parameters = dict(learner.backbone.attention.named_parameters())  # type: ignore[union-attr, operator]
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def fit() -> None:
        Loop(learner, OPTIMIZERS["AdamW"], epochs=2).fit(tasks[1])
        for name, held in claimed.items():
            moved = parameters[name] != before[name]
            assert 0 < held.sum() < held.numel()
            assert not moved[held].any()
            assert moved[~held].all()

    learner.learn(tasks[1], fit)


@pytest.mark.parametrize(
    "how", ["weights that are read", "a second call", "a weight that is computed", "a tied weight"]
)
def test_attention_that_is_not_understood_is_frozen(how: str) -> None:
    torch.manual_seed(seeds.current())
    learner, tasks = HAT(Attending(how), c=0.2), small_tasks(n=2)
    if how == "a tied weight":
        with pytest.raises(ValueError, match="shares its weight"):
            learner.prepare(tasks[0])
        return
    Loop(learner).learn(tasks[0])
    found = learner.capacity()
    assert list(found["layers"]) == ["embed"]
    assert found["frozen"]["attention"] == 3 * 8 * 8
    x = torch.rand(4, 1, 6, 6)
    before = answers(learner, x, 0)
    Loop(learner, OPTIMIZERS["AdamW"]).learn(tasks[1])
    assert same_bits(answers(learner, x, 0), before)


def test_gates_stand_in_the_way_of_the_shortcut_of_a_whole_layer() -> None:
    """In evaluation PyTorch's layer computes all by itself, and calls no attention: not where heads are gated."""
    layer: Any = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    for part in (layer.linear1, layer.linear2):
        nn.utils.parametrizations.weight_norm(part)  # so that attention alone has gates
    learner, x = HAT(nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten()), c=0.2), torch.rand(5, 1, 6, 6)
    task = small_tasks(n=1)[0]

    def fit() -> None:
        Loop(learner).fit(task)
        with torch.no_grad():
            quick = learner.eval()(x, 0)
            heads, out = (gate[:, None] for gate in learner.masks(0))
            projection = layer.self_attn.out_proj
            projection.weight.mul_(out * heads.repeat_interleave(3, 0).T)
            projection.bias.mul_(out[:, 0])
            learner.gates.values = None
            torch.testing.assert_close(learner.heads["0"](learner.backbone(x)), quick)

    learner.learn(task, fit)


class Padded(nn.Module):
    """Words of which some are padding: PyTorch's encoder leaves them out in evaluation mode, in a nested tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        words = (8.9 * x).long()
        h: Tensor = self.encoder(self.words(words), src_key_padding_mask=words == 0)
        return h[:, 0]


def test_padding_is_no_way_around_the_gates() -> None:
    torch.manual_seed(0)
    learner, x = HAT(Padded()), torch.rand(6, 7)
    x[:3, 4:] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about nested tensors
        first, second = small_tasks(n=2, shape=(7,))
        Loop(learner).learn(first)
        before = answers(learner, x, 0)
        Loop(learner).learn(second)
        assert same_bits(answers(learner, x, 0), before)
        torch.testing.assert_close(learner.export(0)(x), before[0])


def test_whatever_ends_a_pass_attention_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, tasks = HAT(Attending(), c=0.2), small_tasks(n=2)
    attention: Any = learner.backbone.attention
    weight, x = attention.out_proj.weight, tasks[0].test.x

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def fit() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(F, "multi_head_attention_forward", stop)
            with pytest.raises(KeyboardInterrupt):
                learner.train()(x, 1)
        assert attention.out_proj.weight is weight
        twin = copy.deepcopy(learner)
        assert same_bits(answers(twin, x, 1), answers(learner, x, 1))
        exported = learner.export(0)
        assert not any("forward" in vars(module) or module._forward_pre_hooks for module in exported.modules())
        torch.testing.assert_close(exported(x), answer(learner, x, 0))
        Loop(learner).fit(tasks[1])

    Loop(learner).learn(tasks[0])
    learner.prepare(tasks[1])
    learner.learn(tasks[1], fit)
    assert "forward" not in vars(attention)


def test_answers_without_a_head_read_the_heads_of_attention() -> None:
    """No task can do without one of its outputs: out_proj has no units, and each task a bias of its own there."""
    torch.manual_seed(seeds.current())
    learner, samples = HAT(Attending(), c=0.2), torch.rand(12, 1, 6, 6)
    wanted = [samples.flatten(1)[:, 4 * t : 4 * t + 8] for t in range(3)]
    tasks = [minicl.Task(t, None, train=(samples, y), criterion=F.mse_loss) for t, y in enumerate(wanted)]
    kept, x = [], torch.rand(4, 1, 6, 6)
    for task in tasks:
        Loop(learner).learn(task)
        kept.append(answers(learner, x, task.id))
        assert all(same_bits(answers(learner, x, t), then) for t, then in enumerate(kept))
    assert list(learner.capacity()["layers"]) == ["embed", "attention.heads"]
    assert said(learner.graph, learner.graph.gates[-1].mask) == "cat(ones(8), repeat(attention.heads, 2))"
    assert learner.graph.own == ["attention.out_proj.bias"]
    torch.testing.assert_close(learner.export(0)(x), kept[0][0])


def test_a_mixture_of_heads_is_refused() -> None:
    learner, tasks = HAT(Attending(), c=0.2), small_tasks(n=2)
    Loop(learner).learn(*tasks)
    with pytest.raises(ValueError, match=r"heads of attention have no mixture; allowed: .*'softmax'"):
        minicl.infer_task(learner, tasks[0].test.x, rule="gradient")


# ---- taking it elsewhere ---------------------------------------------------------------------------------------------


def test_export_says_what_is_cut_and_what_is_masked() -> None:
    torch.manual_seed(seeds.current())
    learner = HAT(Block(12), c=0.5)
    task = small_tasks(n=1)[0]
    Loop(learner).learn(task)
    _, one, _, out = learner.masks(0)
    exported = learner.export(0)
    report: Any = exported.report
    assert report["cut"] == ["one", "out"]
    assert report["masked"] == ["stem", "two"]
    network: Any = exported[0]  # type: ignore[index]
    assert network.one.weight.shape == (int(one.sum()), 12, 3, 3)
    assert network.norm.num_features == network.two.in_channels == int(one.sum())
    assert exported[1].in_features == int(out.sum())  # type: ignore[index]
    assert report["parameters"] < report["parameters_before"]
    torch.testing.assert_close(exported(task.test.x), answer(learner, task.test.x, 0))


class Sized(nn.Module):
    """Writes down the size of a layer, so that none of it can be cut out."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3), nn.Linear(8 * 16, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu().view(-1, 8 * 16)).relu()


def test_what_cannot_be_cut_is_masked() -> None:
    learner = HAT(Sized(), c=0.2)
    task = small_tasks(n=1)[0]
    Loop(learner).learn(task)
    exported: Any = learner.export(0)
    assert exported.report["masked"] == ["one", "two"]
    torch.testing.assert_close(exported(task.test.x), answer(learner, task.test.x, 0))


@pytest.mark.parametrize("kind", ["residual", "squeezed", "attention", "queries"])
def test_a_file_goes_on_as_if_nothing_had_been(kind: str, tmp_path: Any) -> None:
    make, shape = KINDS[kind]
    learner, tasks = HAT(make(), c=0.2), small_tasks(shape=shape)
    Loop(learner).learn(*tasks[:2])
    learner.save(tmp_path / "file")
    loaded = HAT.load(tmp_path / "file", make())
    assert loaded.graph == learner.graph
    for each in (learner, loaded):
        torch.manual_seed(seeds.current())
        Loop(each).learn(tasks[2])
    x = torch.rand(4, *shape)
    assert all(same_bits(answers(learner, x, t), answers(loaded, x, t)) for t in range(3))


# ---- other people's networks -----------------------------------------------------------------------------------------


def _torchvision(name: str) -> nn.Module:
    network: nn.Module = getattr(minicl.datasets.torchvision().models, name)()
    for end in ("fc", "classifier"):
        if hasattr(network, end):
            setattr(network, end, nn.Identity())
    return network


def _timm(name: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "patch_size": 8, "depth": 2} if "vit" in name else {}
    network: nn.Module = timm.create_model(name, num_classes=0, **options)
    return network


class _Tokens(nn.Module):
    """A tiny language model of transformers, over the pixels of an image."""

    def __init__(self, name: str) -> None:
        super().__init__()
        models = pytest.importorskip("transformers")
        bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        gpt = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        config = getattr(models, f"{name}Config")(vocab_size=30, **(bert if name == "Bert" else gpt))
        self.model = getattr(models, f"{name}Model")(config)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[:, 0, 0, :12] * 29).long()
        last: Tensor = self.model(tokens).last_hidden_state[:, -1]
        return last


PUBLIC: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(_torchvision, name) for name in ("resnet18", "mobilenet_v3_small")},
    **{name: partial(_timm, name) for name in ("vit_tiny_patch16_224", "regnetx_002")},
    **{name: partial(_Tokens, name) for name in ("Bert", "GPT2")},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_networks_that_people_use(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = PUBLIC[name]()
        learner = HAT(network, c=0.1)
        tasks = small_tasks(n=2, shape=(3, 32, 32), samples=4)
        Loop(learner, epochs=1, batch=4).learn(tasks[0])
        x = torch.rand(2, 3, 32, 32)
        before = answers(learner, x, 0)
        Loop(learner, OPTIMIZERS["AdamW"], epochs=1, batch=4).learn(tasks[1])
    assert same_bits(answers(learner, x, 0), before)
    torch.testing.assert_close(learner.export(0)(x), before[0], atol=1e-4, rtol=1e-3)
