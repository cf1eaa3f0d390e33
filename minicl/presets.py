"""`preset`: the settings that were searched for a method and a stream, ready to be used.

They are those of the book's chapters: chosen on validation samples, by the programs in benchmarks/, and shipped as
presets.json, which benchmarks/presets.py makes of the stored results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import torch

from . import checks, networks, streams
from .learner import Learner
from .metrics import Result
from .tasks import TaskStream, check_scenario
from .training import run


@dataclass(frozen=True)
class Preset:
    """What was searched for a method on a stream.

    Attributes:
        method, stream_name, scenario: for which.
        hyperparameters: of the method.
        network: such as "mlp:100,100".
        stream_settings: of the stream, beside its seed.
        settings: of `run`.
        searched: the hyperparameter that was chosen; the others are as they were while it was.
        results: where the search is stored, in the repository.
    """

    method: str
    stream_name: str
    scenario: str
    hyperparameters: dict[str, Any]
    network: str
    stream_settings: dict[str, Any]
    settings: dict[str, Any]
    searched: str
    results: str

    def stream(self, seed: int = 0) -> TaskStream:
        """The stream that the settings were searched for."""
        make = streams.by_name(self.stream_name, scenario=self.scenario, **self.stream_settings)
        return make(seed=seed)

    def learner(self, stream: TaskStream | None = None) -> Learner:
        """A new learner, for inputs of the stream's shape."""
        from . import METHODS

        shape = tuple((self.stream() if stream is None else stream)[0].example.shape[1:])
        return METHODS[self.method](networks.by_name(self.network, shape), **self.hyperparameters)

    def run(self, seed: int = 0, **more: Any) -> Result:
        """Make stream and learner, and run. `more` is given to `minicl.run`, and replaces what the preset says."""
        stream = self.stream(seed)
        return run(self.learner(stream), stream, seed=seed, **{**self.settings, **more})

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        return (
            f"{self.method} on {self.stream_name} ({self.scenario}): {given}, network {self.network}; "
            f"{self.searched} was chosen on validation samples ({self.results})"
        )


def preset(method: str, stream: str, scenario: str = "task") -> Preset:
    """The searched settings of a method on a stream, such as `preset("ewc", "split-digits")`.

    Raises:
        ValueError: nothing was searched for these; says for what it was.
    """
    check_scenario(scenario)
    known = json.loads(resources.files(__package__).joinpath("presets.json").read_text(encoding="utf-8"))
    name = f"{method} {stream} {scenario}"
    if name not in known:
        of_method = [key.split(" ", 1)[1] for key in known if key.split()[0] == method]
        if not of_method:
            checks.one_of("method", method, dict.fromkeys(key.split()[0] for key in known))
        raise ValueError(
            f"nothing was searched for {method} on {stream} in scenario {scenario!r}; there are presets for: "
            f"{', '.join(of_method)}"
        )
    found = known[name]
    settings = {key: _made(value) for key, value in found.pop("settings").items()}
    stream_settings = found.pop("stream")
    return Preset(method, stream, scenario, **found, stream_settings=stream_settings, settings=settings)


def _made(value: Any) -> Any:
    """An optimiser or a schedule from the name of its class and its settings; anything else as it is."""
    if not isinstance(value, list):
        return value
    name, settings = value
    return partial(getattr(torch.optim, name, None) or getattr(torch.optim.lr_scheduler, name), **settings)
