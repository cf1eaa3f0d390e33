"""The table METHODS: of each method what it promises, what it takes, and what it refuses.

`check_learner` and the tests hold every row to all of it. A new method needs one row here, and no tests of its own but
those of its equations and of what no other method does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import nn

import minicl

from . import networks

Learner = minicl.Learner
Keeps = Mapping[str, Literal["logits", "features"]]

NOTHING: Keeps = {}
LOGITS: Keeps = {"task": "logits"}
HOOKS = frozenset({"loop: no protect"})
TERM = frozenset({"loop: a loss of one's own"})


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        make: the learner around a backbone, with hyperparameters.
        keeps: what of finished tasks does not change by a bit, by scenario: their "logits", or their "features" alone.
        refuses: rows of LOOPS and WRITERS in which it cannot be trained; each has the sentence with which it says so.
        takes: backbones: "any" module, or an nn.Sequential of known layers ("sequential"), or of those ("without
            norms") in which each layer has its ReLU.
        random_backbone: for a number, a backbone that the method takes, and the shape of its inputs.
        random_settings: hyperparameters that the promise must hold with, drawn for each random case.
        survives_train: `backbone.train()`, called on the very network that was given, moves nothing of finished tasks.
        exports: what `export` answers: the same to the "bit"; something "close", where the network is cut out; or "its
            own", where one network stands for many.
        draws_weights: it draws numbers for its weights, and those go by their order in memory.
        out_of_range: values of hyperparameters that are refused.
        resume: what a loaded learner needs besides its file, with the tasks that it has learned.
        full: what the error says when a small network has no room for another task; None where there is always some.
        counts: what "bytes" and "extra_bytes" of `capacity` are, with the running statistics of norms: everything that
            is "held" in memory between tasks; what a state dict "saved" would hold; or "more" than both.
        counts_while_learning: what more is held while a task is learned is "bytes_while_learning" of `capacity`.
        stops_early: it can be trained with `run(..., patience=...)`.
        trains: for which tasks it calls `fit`.
        cases: random cases in which the promise is tested.
        graphs: further cases, on networks with branches (`networks.graph`).
        learning: settings of `minicl.run` with which a network learns two small tasks.
    """

    make: Callable[..., Learner]
    keeps: Keeps = field(default_factory=dict)
    refuses: frozenset[str] = frozenset()
    takes: Literal["any", "sequential", "without norms"] = "any"
    random_backbone: Callable[[int], tuple[nn.Module, tuple[int, ...]]] = field(
        default_factory=lambda: networks.anything
    )
    random_settings: Callable[[random.Random], dict[str, Any]] = lambda choose: {}
    survives_train: bool = True
    exports: Literal["bit", "close", "its own"] = "bit"
    draws_weights: bool = False
    out_of_range: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    resume: Callable[[Any, list[minicl.Task]], None] = lambda learner, tasks: None
    full: str | None = None
    counts: Literal["held", "saved", "more"] = "held"
    counts_while_learning: bool = False
    stops_early: bool = True
    trains: Literal["always", "first", "never"] = "always"
    cases: int = 60
    graphs: int = 0
    learning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> type[Learner]:
        """The class."""
        found = self.make.func if isinstance(self.make, partial) else self.make
        assert isinstance(found, type)
        return found

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Those in which the method works; it refuses the others."""
        return ("task",) if self.kind.needs_task_id else minicl.SCENARIOS

    def backbone(self, kind: str = "mlp", side: int = 6) -> nn.Module:
        """An "mlp", "cnn" or network of one's "own" for small grey images: dropout, and norms if those are taken."""
        norms = self.takes != "without norms"
        if kind == "mlp":
            return minicl.mlp(side * side, 40, 32, dropout=0.1, batchnorm=norms)
        channels = (6, 12) if self.full is None else (24, 40)  # where room is limited, there is some for four tasks
        return minicl.cnn(1, *channels, dropout=0.1, batchnorm=norms) if kind == "cnn" else networks.Own()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of backbones that it takes."""
        return ("mlp", "cnn", "own") if self.takes == "any" else ("mlp", "cnn")


def _packnet(choose: random.Random) -> dict[str, Any]:
    return {
        "keep_ratio": choose.choice([0.2, 0.5, [0.5, 0.3, 0.9, 1.0], lambda number, layer: 1 / (number + 1)]),
        "retrain_epochs": choose.choice([None, 0, 2]),
        "batchnorm": choose.choice(["frozen", "per-task"]),
    }


def _turning(method: Callable[..., Learner]) -> Callable[..., Learner]:
    return partial(method, rotations=True)


_NUMBER = [-1, float("nan"), float("inf"), "1", True]
_isolating = partial(Method, cases=200)
_pnn = partial(Method, cases=66, graphs=100, keeps=LOGITS, counts="saved")
_hat = partial(
    _isolating,
    graphs=100,
    counts="saved",  # what finished tasks read is held a second time
    random_backbone=partial(networks.sequential, gated=True),
    exports="close",
    refuses=HOOKS | TERM,
    full="no unit of the network is free",
    out_of_range={"s_max": [1.0, -400, float("nan"), float("inf")], "c": [-0.1, float("nan")], "init": ["zeros"]},
)
_pack = partial(
    _isolating,
    counts="saved",  # what finished tasks read is held a second time
    keeps=LOGITS,
    refuses=HOOKS,
    graphs=100,
    random_settings=_packnet,
    out_of_range={
        "keep_ratio": [0, 0.0, -0.5, 1.0001, float("nan"), True, "half", None],
        "retrain_epochs": [-1, 1.5, True],
        "batchnorm": ["shared"],
        "tolerance": [1.0, -0.1],
        "min_free": [0, 1.5],
    },
)
_piggyback = partial(
    _isolating,
    refuses=HOOKS,
    cases=200,
    counts="saved",  # the fixed network is held a second time
    keeps=LOGITS,
    random_settings=lambda choose: {
        "gradient": choose.choice(["plain", "average", "individual"]),
        "ternary": choose.random() < 0.3,
        "scale": choose.choice([0.01, 0.1]),
    },
    learning={"epochs": 8},  # of masks over random weights
    out_of_range={
        "threshold": [-0.1, float("nan"), "0", True],
        "scale": [0.005, 0.001, float("inf")],
        "gradient": ["none", None],
        "ternary": [1, "yes", None],
    },
)
_cpg = partial(
    _isolating,
    refuses=HOOKS,
    cases=200,
    counts="saved",  # what finished tasks read is held a second time
    keeps=LOGITS,
    random_settings=lambda choose: {
        "goal": choose.choice([None, 0.5, [0.3, 0.9, 1.0], "individual"]),
        "stage": choose.choice([0.4, 0.6]),
        "retrain_epochs": choose.choice([None, 0, 1]),
        "batchnorm": choose.choice(["frozen", "per-task"]),
        "scale": choose.choice([0.01, 0.1]),
    },
    out_of_range={
        "goal": ["half", -0.1, 1.1, True, [], [0.5, None], ["individual"]],
        "tolerance": [1.0, -0.1],
        "max_width": [0.5, float("inf")],
        "widen": [0, -1],
        "stage": [0, 1, float("nan")],
        "stage_epochs": [0, 1.5],
        "every": [0, True],
        "retrain_epochs": [-1, 1.5],
        "threshold": [-0.1],
        "scale": [0.005],
        "batchnorm": ["shared"],
    },
)
_regularizer = partial(Method, refuses=TERM, counts_while_learning=True)
# VCL's weights are drawn anew in every step, which makes it learn slowly
_vcl = partial(_regularizer, exports="its own", draws_weights=True, learning={"epochs": 8})
_replay = partial(
    Method, refuses=TERM, counts="saved", out_of_range={"budget": [0, -1, 1.5, True], "share": ["fair", None]}
)

_der = partial(
    Method,
    refuses=HOOKS | TERM,
    keeps=LOGITS,
    counts="saved",
    random_settings=lambda choose: {"aux": choose.choice([0.0, 1.0]), "sparsity": choose.choice([None, 0.1])},
    out_of_range={
        "budget": [0, -1, 1.5, True],
        "share": ["fair", None],
        "aux": _NUMBER,
        "sparsity": [-0.1, "no"],
        "s_max": [1.0, -400],
        "balance_epochs": [-1, 1.5, True],
        "temperature": [0, -1.0],
    },
)
_den = partial(
    Method,
    refuses=HOOKS | TERM,
    takes="without norms",
    out_of_range={
        "l1": _NUMBER,
        "group": [-1, "1"],
        "lam": [-0.1],
        "tau": [-1, float("nan")],
        "drift": [-1],
        "k": [0, 1.5, True],
    },
)

_prototypes = partial(
    Method,
    counts="saved",
    trains="first",
    keeps={"task": "features", "domain": "features", "class": "features"},
    survives_train=False,
)

METHODS: dict[str, Method] = {
    "finetune": Method(minicl.FineTune, counts_while_learning=True),
    "joint": Method(
        minicl.Joint, refuses=TERM, resume=lambda learner, tasks: setattr(learner, "seen", tasks), counts="more"
    ),
    "individual": Method(minicl.Individual, keeps=LOGITS, counts="saved"),
    "feature-extraction": Method(
        minicl.FeatureExtraction,
        keeps={"task": "logits", "domain": "features", "class": "features"},
        survives_train=False,
        learning={"epochs": 8},  # of the second task a head alone
    ),
    "pnn": _pnn(
        minicl.PNN,
        random_settings=lambda choose: {
            "adapter": choose.choice(["linear", "mlp"]),
            "start": choose.choice([None, "given", "random"]),
        },
        out_of_range={"adapter": ["MLP", "", None, 2, ["mlp"]], "start": ["pretrained", "", 0]},
    ),
    "hat": _hat(
        minicl.HAT,
        keeps=LOGITS,
        random_settings=lambda choose: {
            "s_max": choose.choice([20.0, 400.0]),
            "c": choose.choice([0.0, 0.1, 0.75]),
            "compensation": choose.random() < 0.8,
        },
    ),
    "packnet": _pack(minicl.PackNet),
    "piggyback": _piggyback(minicl.Piggyback),
    "cpg": _cpg(partial(minicl.CPG, stage=0.5)),
    "ewc": _regularizer(
        partial(minicl.EWC, lam=10.0),
        out_of_range={
            "lam": _NUMBER,
            "mode": ["both"],
            "fisher": ["true"],
            "samples": [0, 1.5, True],
            "decay": [0, 1.1],
        },
    ),
    "si": _regularizer(minicl.SI, refuses=HOOKS | TERM, out_of_range={"c": [-0.1], "xi": [0, -1]}),
    "mas": _regularizer(partial(minicl.MAS, lam=0.1), out_of_range={"lam": [-1], "samples": [0]}),
    "lwf": _regularizer(minicl.LwF, out_of_range={"lam": [-1], "temperature": [0]}),
    "vcl": _vcl(
        partial(minicl.VCL, samples=3),
        out_of_range={"samples": [0, 1.5], "coreset": [0], "prior_sigma": [0], "initial_sigma": [0, -1]},
    ),
    "agscl": _regularizer(
        partial(minicl.AGSCL, lam=1.0),
        takes="without norms",
        refuses=HOOKS,
        out_of_range={"mu": [-1], "lam": [-1], "eta": [-1, 1.1], "rho": [-1, 2]},
    ),
    "er": _replay(partial(minicl.ER, budget=30)),
    "agem": _replay(partial(minicl.AGEM, budget=30), refuses=HOOKS | TERM),
    "gem": _replay(
        partial(minicl.GEM, budget=30),
        refuses=HOOKS | TERM,
        out_of_range={"budget": [0], "margin": [-1.0, float("nan"), True]},
    ),
    "derpp": _replay(
        partial(minicl.DERpp, budget=30), out_of_range={"budget": [0], "alpha": [-0.1], "beta": [float("nan")]}
    ),
    "den": _den(minicl.DEN),
    "der": _der(partial(minicl.DER, budget=30, balance_epochs=3)),
    "icarl": Method(
        partial(minicl.ICaRL, budget=30),
        refuses=TERM,
        counts_while_learning=True,
        out_of_range={"budget": [0, -1, 1.5, True]},
    ),
    "bic": Method(
        partial(minicl.BiC, budget=30),
        refuses=TERM,
        counts="saved",
        counts_while_learning=True,
        out_of_range={"budget": [0, -1, 1.5, True], "temperature": [0], "held_out": [0, 1, -0.1]},
    ),
    "generative": Method(
        partial(minicl.GenerativeReplay, hidden=12, latent=5),
        refuses=TERM,
        counts_while_learning=True,
        out_of_range={"hidden": [0, 1.5], "latent": [0], "temperature": [0], "distill": [1]},
    ),
    "ncm": _prototypes(minicl.NCM),
    "slda": _prototypes(minicl.SLDA, out_of_range={"epsilon": [0, -0.1, 1.5], "target": ["trace"]}),
}
"""One row for each method of `minicl.METHODS`, by the same name.

:meta hide-value:
"""

VARIANTS: dict[str, Method] = {
    "pnn, rotations": _pnn(_turning(minicl.PNN)),
    "hat, rotations": _hat(_turning(minicl.HAT), keeps=LOGITS),
    "packnet, rotations": _pack(_turning(minicl.PackNet), exports="close"),
    "pnn, mlp": _pnn(partial(minicl.PNN, adapter="mlp")),
    "hat, soft": _hat(partial(minicl.HAT, binary=False)),  # through soft masks later tasks change earlier ones
    "packnet, norms per task": _pack(partial(minicl.PackNet, keep_ratio=0.3, batchnorm="per-task")),
    "packnet, auto": _pack(partial(minicl.PackNet, keep_ratio="auto", tolerance=0.1)),
    "piggyback, ternary": _piggyback(partial(minicl.Piggyback, ternary=True, gradient="average")),
    "cpg, individual": _cpg(partial(minicl.CPG, stage=0.3, goal="individual", batchnorm="frozen")),
    "ewc, online": _regularizer(
        partial(minicl.EWC, mode="online", lam=10.0, decay=0.9, samples=50, fisher="empirical"),
    ),
    "vcl, coreset": _vcl(partial(minicl.VCL, samples=3, coreset=5), stops_early=False),
    "der, pruned": _der(partial(minicl.DER, budget=30, balance_epochs=3, sparsity=0.1)),
    "ncm, as given": _prototypes(partial(minicl.NCM, train_first=False), trains="never"),
    "slda, as given": _prototypes(partial(minicl.SLDA, train_first=False, target="scaled"), trains="never"),
    "er, by class": _replay(partial(minicl.ER, budget=30, share="class")),
    "agem, by task": _replay(partial(minicl.AGEM, budget=30, share="task"), refuses=HOOKS | TERM),
}
"""The same methods in another mode of theirs, which is held to the same.

:meta hide-value:
"""
