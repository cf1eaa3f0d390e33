"""The command line: `minicl run METHOD STREAM`, `minicl methods`, `minicl streams` (also `python -m minicl`)."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

FAILED = 1
"""Exit code of what went wrong without being asked for wrongly: no memory left, a disk that is full."""
WRONG = 2
"""Exit code of a wrong argument."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

OPTIMIZERS: dict[str, tuple[str, dict[str, Any], float]] = {
    "sgd": ("SGD", {}, 0.1),
    "momentum": ("SGD", {"momentum": 0.9}, 0.02),
    "adam": ("Adam", {}, 1e-3),
    "adamw": ("AdamW", {}, 1e-3),
    "rmsprop": ("RMSprop", {}, 1e-3),
}
"""By name: the class in torch.optim, its settings, and the learning rate where none is given."""

WRITTEN_AS = "minicl run finetune split-digits --scenario class --epochs 5 --seed 0 --out result.json"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)  # one clear line for every wrong argument, whoever finds it


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 2 for a wrong argument and 1 for what fails otherwise, each with one line on stderr; 130 after Ctrl-C.
    """
    try:
        arguments = _parser().parse_args(argv)
        code = int(arguments.command(arguments))
        sys.stdout.flush()
        return code
    except SystemExit as done:  # --help and --version have printed what was asked for
        return int(done.code or 0)
    except BrokenPipeError:  # nobody reads on, as after `minicl methods | head -1`
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        return _report(error, WRONG)
    except (RuntimeError, MemoryError) as error:
        return _report(error, FAILED)
    except KeyboardInterrupt:
        print("minicl: interrupted; what was finished before stays as it is", file=sys.stderr)
        return INTERRUPTED


def _report(error: Exception, code: int) -> int:
    print(f"minicl: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
    return code


def _whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Reads a whole number, and says which ones there are."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: whole numbers from {least} to {most}")
        return number

    return read


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: numbers above 0, such as 0.01")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="minicl", description="Continual learning whose claims are tested.", epilog=WRITTEN_AS)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="learn a stream of tasks with a method, and measure", epilog=WRITTEN_AS)
    run.set_defaults(command=_run)
    run.add_argument("method", metavar="METHOD", help="see: minicl methods")
    run.add_argument("stream", metavar="STREAM", help="KIND-DATASET, such as split-digits; see: minicl streams")
    stream = run.add_argument_group("the stream")
    stream.add_argument("--scenario", default="task", help="task, domain or class (default: task)")
    stream.add_argument("--tasks", type=_whole(1), metavar="N", help="number of tasks (default: the stream's own)")
    stream.add_argument("--n-train", type=_whole(1), metavar="N", help="at most so many training samples a task")
    stream.add_argument("--root", metavar="FOLDER", help="where torchvision's data sets are, or go")
    stream.add_argument("--download", action="store_true", help="let torchvision fetch what is missing there")
    network = run.add_argument_group("the network")
    network.add_argument(
        "--network",
        metavar="NETWORK",
        help="mlp:256,256 or cnn:16,32 (hidden widths, channels); default mlp:256,256, for colour images cnn:16,32,64",
    )
    network.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyperparameter of the method, its value as JSON; may be given again",
    )
    training = run.add_argument_group("training")
    training.add_argument(
        "--epochs", type=_whole(1), default=10, metavar="N", help="passes over each task (default: 10)"
    )
    training.add_argument("--batch-size", type=_whole(1), default=32, metavar="N", help="samples a step (default: 32)")
    training.add_argument("--optimizer", default="sgd", help=f"{', '.join(OPTIMIZERS)} (default: sgd)")
    training.add_argument("--lr", type=_rate, metavar="RATE", help="learning rate (default: the optimiser's)")
    training.add_argument("--patience", type=_whole(1), metavar="N", help="stop early, by validation accuracy")
    training.add_argument(
        "--seed", type=_whole(0, 2**32 - 1), default=0, metavar="N", help="of everything random (default: 0)"
    )
    training.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    training.add_argument(
        "--checkpoint", metavar="FOLDER", help="write everything there after each task, and go on from what is there"
    )
    output = run.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="write the result there, as JSON")
    output.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
    output.add_argument("--quiet", action="store_true", help="no progress bar")

    methods = commands.add_parser("methods", help="list the methods and their hyperparameters")
    methods.set_defaults(command=_methods)
    streams = commands.add_parser("streams", help="list the streams of tasks")
    streams.set_defaults(command=_streams)
    for command in (methods, streams):
        command.add_argument("--json", action="store_true", help="for programs")
    return parser


# torch and everything that needs it are imported by the commands: `minicl --help` answers at once.


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"minicl {version('minicl')}"
    except PackageNotFoundError:
        return "minicl (not installed)"


def _run(given: argparse.Namespace) -> int:
    import torch

    import minicl

    from . import files
    from .tasks import check_scenario
    from .training import check_device

    method = _one_of("method", given.method, minicl.METHODS)
    hyperparameters = _hyperparameters(given.method, method, given.set)
    optimizer, settings, lr = _one_of("optimizer", given.optimizer, OPTIMIZERS)
    lr = lr if given.lr is None else given.lr
    check_scenario(given.scenario)
    if method.needs_task_id and given.scenario != "task":
        raise ValueError(
            f"{given.method} must be told the task id at test time, and scenario {given.scenario!r} gives none; "
            "allowed: --scenario task"
        )
    network = None if given.network is None else _layers(given.network)
    check_device(given.device)
    if given.out is not None:
        files.check_writable(given.out)  # now, and not after an hour of training
    kind, _, dataset = given.stream.partition("-")
    make_stream = _one_of("stream", kind, minicl.STREAMS, f"{given.stream!r}", "-DATASET")
    options = {"n_train": given.n_train, "root": given.root, "download": given.download}
    if given.tasks is not None:
        options["n_tasks"] = given.tasks
    if dataset not in minicl.DATASETS:
        known = ", ".join(f"{kind}-{name}" for name in minicl.DATASETS)
        raise ValueError(f"unknown stream {given.stream!r}; allowed: {known}")
    if given.root is None and dataset != "digits":
        raise ValueError(f"{dataset} is read from a folder: name it with --root FOLDER, and add --download to fetch it")
    with contextlib.redirect_stdout(sys.stderr):  # what a download says of itself is no part of the result
        stream = make_stream(dataset, scenario=given.scenario, seed=given.seed, **options)
    backbone = _network(network, tuple(stream[0].example.shape[1:]))
    result = minicl.run(
        method(backbone, **hyperparameters),
        stream,
        epochs=given.epochs,
        batch_size=given.batch_size,
        optimizer=partial(getattr(torch.optim, optimizer), lr=lr, **settings),
        patience=given.patience,
        seed=given.seed,
        device=given.device,
        progress=False if given.quiet or given.json else None,
        checkpoint=given.checkpoint,
    )
    failed = None
    if given.out is not None:
        try:
            result.save(given.out)
        except OSError as error:  # the disk filled up meanwhile: the numbers are still printed
            failed = error
    print(
        json.dumps(_for_programs(result), allow_nan=False)
        if given.json
        else _for_people(result, None if failed else given.out)
    )
    return _report(failed, FAILED) if failed else 0


def _one_of(what: str, name: str, allowed: Any, said: str | None = None, suffix: str = "") -> Any:
    if name not in allowed:
        raise ValueError(f"unknown {what} {said or repr(name)}; allowed: {', '.join(f'{a}{suffix}' for a in allowed)}")
    return allowed[name]


def _hyperparameters(name: str, method: Any, pairs: Sequence[str]) -> dict[str, Any]:
    from .learner import accepted_hyperparameters

    accepted = accepted_hyperparameters(method)
    values: dict[str, Any] = {}
    try:
        hints = typing.get_type_hints(method.__init__)
    except NameError:  # annotated with names that only a type checker imports
        hints = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair!r} has no value; write it as NAME=VALUE")
        key = key.replace("-", "_")
        if key not in accepted:
            raise ValueError(f"{name} has no hyperparameter {key!r}; allowed: {', '.join(accepted) or 'none'}")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value  # a word, such as mode=online, need not be quoted
        if not _fits(values[key], hints.get(key, Any)):
            kind = accepted[key].annotation
            raise ValueError(f"{key} is {values[key]!r}; allowed: {getattr(kind, '__name__', kind)}")
    missing = [key for key, p in accepted.items() if p.default is p.empty and key not in values]
    if missing:
        raise ValueError(f"{name} cannot do without {', '.join(missing)}; give it with --set {missing[0]}=VALUE")
    return values


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that JSON can hold is of an annotated type; what cannot be judged, fits."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is typing.Literal:
        return value in inner
    if isinstance(origin, type) and issubclass(list, origin) and isinstance(value, list):  # list[...], Sequence[...]
        return all(_fits(item, inner[0]) for item in value) if inner else True
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    return origin is None or isinstance(value, (list, dict))


def _layers(spec: str) -> tuple[str, list[int]]:
    """Kind and sizes from words: "mlp:256,256" or "cnn:16,32"."""
    kind, _, sizes = spec.partition(":")
    try:
        widths = [int(size) for size in sizes.split(",")]
    except ValueError:
        widths = []
    if kind not in ("mlp", "cnn") or not widths or min(widths) < 1:
        raise ValueError(f"--network is {spec!r}; allowed: mlp:WIDTH,WIDTH,... or cnn:CHANNELS,CHANNELS,...")
    return kind, widths


def _network(layers: tuple[str, list[int]] | None, shape: tuple[int, ...]) -> Any:
    """A backbone for inputs of this shape; convolutions by default for colour images."""
    import minicl

    colour = len(shape) == 3 and shape[0] > 1
    kind, widths = layers or (("cnn", [16, 32, 64]) if colour else ("mlp", [256, 256]))
    return minicl.mlp(math.prod(shape), *widths) if kind == "mlp" else minicl.cnn(shape[0], *widths)


def _methods(given: argparse.Namespace) -> int:
    import minicl

    from . import files
    from .learner import accepted_hyperparameters

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "class": method.__name__,
            "needs_task_id": method.needs_task_id,
            "what": (inspect.getdoc(method) or "").split("\n\n")[0].replace("\n", " "),
            "hyperparameters": {
                key: None if p.default is p.empty else files.jsonable(p.default)
                for key, p in accepted_hyperparameters(method).items()
            },
        }
        for name, method in minicl.METHODS.items()
    ]
    if given.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        settings = ", ".join(f"{key}={value!r}" for key, value in row["hyperparameters"].items())
        print(f"{row['name']}{'  (must be told the task id: scenario task alone)' if row['needs_task_id'] else ''}")
        print(f"    {row['what']}")
        if settings:
            print(f"    --set {settings}")
    return 0


def _streams(given: argparse.Namespace) -> int:
    import minicl

    rows = []
    for kind, make in minicl.STREAMS.items():
        what = (inspect.getdoc(make) or "").split("\n\n")[0].replace("\n", " ")
        n_tasks = inspect.signature(make).parameters["n_tasks"].default
        rows += [{"name": f"{kind}-{name}", "tasks": n_tasks, "what": what} for name in minicl.DATASETS]
    if given.json:
        print(json.dumps(rows))
        return 0
    for what in dict.fromkeys(row["what"] for row in rows):
        names = [row for row in rows if row["what"] == what]
        print(
            f"{', '.join(row['name'] for row in names)}\n    {what} ({names[0]['tasks']} tasks, unless --tasks says so)"
        )
    print(f"\nScenarios: {', '.join(minicl.SCENARIOS)}. digits needs no download; the others want --root FOLDER.")
    return 0


def _for_programs(result: Any) -> dict[str, Any]:
    summary = ("average_accuracy", "backward_transfer", "forward_transfer", "forgetting")
    numbers = {name: getattr(result, name) for name in summary}
    return {**result.as_json(), **{name: None if math.isnan(n) else n for name, n in numbers.items()}}


def _for_people(result: Any, out: str | None) -> str:
    tasks = range(len(result.accuracy))
    width = max(6, len(f"task {len(tasks)}") + 1)
    lines = [
        f"{result.method} on {result.stream['name']}, scenario {result.scenario}, seed {result.seed}; "
        f"{'the task id is known at test time' if result.knows_task_id else 'nobody knows the task id at test time'}",
        "",
        "accuracy in %, each row after learning one more task:",
        " " * 14 + "".join(f"{f'task {j}':>{width}}" for j in tasks),
    ]
    for i, row in enumerate(result.accuracy):
        cells = "".join(f"{'-' if math.isnan(a) else f'{100 * a:.1f}':>{width}}" for a in row)
        lines.append(f"{f'after task {i}':<14}{cells}")
    lines.append("")
    for name, value, sign in (
        ("average accuracy (ACC)", result.average_accuracy, ""),
        ("backward transfer (BWT)", result.backward_transfer, "+"),
        ("forward transfer (FWT)", result.forward_transfer, "+"),
        ("forgetting (F)", result.forgetting, ""),
    ):
        shown = "not defined here" if math.isnan(value) else f"{100 * value:{sign}.1f} %"
        lines.append(f"{name:<26}{shown}")
    extra = result.capacity.get("extra_bytes", 0)
    lines.append(f"{'parameters stored':<26}{result.parameters:,}" + (f", and {extra:,} bytes beside" if extra else ""))
    lines.append(f"{'training time':<26}{result.seconds:.1f} s")
    if out is not None:
        lines.append(f"{'written to':<26}{out}")
    return "\n".join(lines)
