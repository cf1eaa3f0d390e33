"""The command line: `minicl run METHOD STREAM`, `compare`, `table`, `plot`, `certify`, `methods`, `streams`.

Also `python -m minicl`.
"""

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
from collections.abc import Callable, Iterator, Sequence
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

KNOWN = {
    "told": "the task id is known at test time",
    "inferred": "the task id is told in training, and guessed at test time",
    "nobody": "nobody knows the task id at test time",
}

WRITTEN_AS = "minicl run finetune split-digits --scenario class --epochs 5 --seed 0 --out result.json"


COMPARED_AS = "minicl compare finetune ewc hat,c=0.5 packnet --stream split-digits --seeds 5 --out runs"
FIGURES = ("png", "svg", "pdf")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)  # one clear line for every wrong argument, whoever finds it


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 2 for a wrong argument and 1 for what fails otherwise, each with one line on stderr; 130 after Ctrl-C.
    """
    try:
        arguments = _parser().parse_args(argv)
        if not getattr(arguments, "preset", False):
            vars(arguments).update({k: v for k, v in USUAL.items() if getattr(arguments, k, v) is None})
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
    _stream_arguments(stream)
    network = run.add_argument_group("the network")
    _network_argument(network)
    network.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="a hyperparameter of the method, its value as JSON; may be given again",
    )
    run.add_argument(
        "--preset", action="store_true", help="use what was searched for this method and stream; says what that is"
    )
    training = run.add_argument_group("training")
    _training_arguments(training)
    training.add_argument(
        "--seed", type=_whole(0, 2**32 - 1), default=0, metavar="N", help="of everything random (default: 0)"
    )
    training.add_argument(
        "--checkpoint", metavar="FOLDER", help="write everything there after each task, and go on from what is there"
    )
    training.add_argument(
        "--checkpoint-every", type=_whole(1), metavar="N", help="also within a task, after so many steps"
    )
    output = run.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="write the result there, as JSON")
    output.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
    output.add_argument("--quiet", action="store_true", help="no progress bar")

    compare = commands.add_parser(
        "compare", help="run several methods on several streams, over seeds; again to finish it", epilog=COMPARED_AS
    )
    compare.set_defaults(command=_compare)
    compare.add_argument("methods", metavar="METHOD", nargs="+", help="names; with hyperparameters: hat,c=1,s_max=100")
    compare.add_argument(
        "--stream",
        nargs="+",
        action="extend",
        required=True,
        metavar="STREAM",
        help="one or several; see: minicl streams",
    )
    stream = compare.add_argument_group("the streams")
    stream.add_argument("--scenario", nargs="+", default=["task"], help="one or several of task, domain, class")
    _stream_arguments(stream)
    _network_argument(compare.add_argument_group("the network"))
    training = compare.add_argument_group("training")
    _training_arguments(training)
    training.add_argument("--seeds", type=_whole(1, 10**6), default=5, metavar="N", help="seeds 0 to N-1 (default: 5)")
    work = compare.add_argument_group("where")
    work.add_argument("--jobs", type=_whole(1), metavar="N", help="runs at once (default: one per core)")
    work.add_argument("--backend", default="loky", help="loky (this machine's cores, the default) or dask")
    work.add_argument("--scheduler", metavar="ADDRESS", help="of Dask, such as tcp://host:8786")
    output = compare.add_argument_group("output")
    output.add_argument("--out", default="runs", metavar="FOLDER", help="results, one file each (default: runs)")
    output.add_argument("--quiet", action="store_true", help="no progress bar")

    table = commands.add_parser("table", help="print the results in a folder as a table; write CSV, Markdown, LaTeX")
    table.set_defaults(command=_table)
    plot = commands.add_parser("plot", help="draw the results in a folder")
    plot.set_defaults(command=_plot)
    for command, where in ((table, "table.csv, table.md and table.tex"), (plot, "the figures")):
        command.add_argument("folder", metavar="FOLDER", help="where compare, or run --out, wrote its results")
        command.add_argument("--out", metavar="FOLDER", help=f"where {where} go (default: the same)")
    plot.add_argument("--format", default="png", help=f"{', '.join(FIGURES)} (default: png)")

    certify = commands.add_parser("certify", help="check that a network has forgotten nothing, bit for bit")
    certify.set_defaults(command=_certify)
    certify.add_argument("learner", metavar="PATH", help="a folder that run --checkpoint wrote, or a learner's file")
    certify.add_argument("--stream", metavar="STREAM", help="of the tasks; a checkpoint of a named stream knows it")
    stream = certify.add_argument_group("the stream, where it is named")
    stream.add_argument("--scenario", default="task", help="task, domain or class (default: task)")
    stream.add_argument("--seed", type=_whole(0, 2**32 - 1), default=0, metavar="N", help="its seed (default: 0)")
    _stream_arguments(stream)
    _network_argument(certify.add_argument_group("the network"))

    methods = commands.add_parser("methods", help="list the methods and their hyperparameters")
    methods.set_defaults(command=_methods)
    streams = commands.add_parser("streams", help="list the streams of tasks")
    streams.set_defaults(command=_streams)
    for command in (methods, streams):
        command.add_argument("--json", action="store_true", help="for programs")
    return parser


def _stream_arguments(group: Any) -> None:
    group.add_argument("--tasks", type=_whole(1), metavar="N", help="number of tasks (default: the stream's own)")
    group.add_argument("--classes", metavar="LISTS", help="classes of each task of a split: 0,1,2,3/4,5/6,7,8,9")
    group.add_argument("--first", type=_whole(1), metavar="N", help="classes of a split's first task (rest: shared)")
    group.add_argument("--class-order", metavar="ORDER", help="of a split: seed, or all classes, such as 9,8,7,6,5")
    group.add_argument("--n-train", type=_whole(1), metavar="N", help="at most so many training samples per task")
    group.add_argument("--root", metavar="FOLDER", help="where torchvision's data sets are, or go")
    group.add_argument("--download", action="store_true", help="let torchvision fetch what is missing there")


def _network_argument(group: Any) -> None:
    group.add_argument(
        "--network",
        metavar="NETWORK",
        help="mlp:256,256 or cnn:16,32 (hidden widths, channels); default mlp:256,256, for colour images cnn:16,32,64",
    )


def _training_arguments(group: Any) -> None:
    group.add_argument("--epochs", type=_whole(1), metavar="N", help="passes over each task (default: 10)")
    group.add_argument("--batch-size", type=_whole(1), metavar="N", help="samples per step (default: 32)")
    group.add_argument("--optimizer", help=f"{', '.join(OPTIMIZERS)} (default: sgd)")
    group.add_argument("--lr", type=_rate, metavar="RATE", help="learning rate (default: the optimiser's)")
    group.add_argument(
        "--keep-optimizer",
        action="store_true",
        default=None,
        help="keep one optimiser for all tasks (default: a new one for each)",
    )
    group.add_argument("--patience", type=_whole(1), metavar="N", help="stop early, by validation accuracy")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    group.add_argument(
        "--infer",
        metavar="RULE",
        help="in scenario class or domain: guess the task id that a method must be told, by softmax, entropy, logit, "
        "energy, gradient or rotation (with --set rotations=true)",
    )


# torch and everything that needs it are imported by the commands: `minicl --help` answers at once.


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"minicl {version('minicl')}"
    except PackageNotFoundError:
        return "minicl (not installed)"


USUAL: dict[str, Any] = {"set": (), "epochs": 10, "batch_size": 32, "optimizer": "sgd", "keep_optimizer": False}
"""What stands for an option that was not given; the parser leaves None, so that a preset sees what was."""
PRESET_SAYS = ("tasks", "n_train", "classes", "first", "class_order", "network", "lr", "patience", *USUAL)
"""What a preset decides."""


def _run_preset(given: argparse.Namespace) -> Any:
    """The result of `minicl run METHOD STREAM --preset`."""
    from . import files
    from .presets import preset
    from .training import check_device

    asked = [name for name in PRESET_SAYS if getattr(given, name) is not None]
    if asked:
        option = f"--{asked[0].replace('_', '-')}"
        raise ValueError(f"{option} was given, and --preset says what it is; allowed: one of the two")
    found = preset(given.method, given.stream, given.scenario)
    check_device(given.device)
    if given.out is not None:
        files.check_writable(given.out)
    print(f"minicl: preset: {found}", file=sys.stderr)
    return found.run(
        given.seed,
        device=given.device,
        progress=False if given.quiet or given.json else None,
        checkpoint=given.checkpoint,
        checkpoint_every=given.checkpoint_every,
        infer=given.infer,
    )


def _run(given: argparse.Namespace) -> int:
    return _told(given, _run_preset(given) if given.preset else _run_as_given(given))


def _run_as_given(given: argparse.Namespace) -> Any:
    """The result of `minicl run METHOD STREAM`."""
    import minicl

    from . import files, networks
    from .tasks import check_scenario
    from .training import check_device

    method = _one_of("method", given.method, minicl.METHODS)
    hyperparameters = _hyperparameters(given.method, method, given.set)
    optimizer = _optimizer(given)
    check_scenario(given.scenario)
    if method.needs_task_id and given.scenario != "task" and given.infer is None:
        raise ValueError(
            f"{given.method} must be told the task id at test time, and scenario {given.scenario!r} gives none; "
            "allowed: --scenario task, or --infer RULE, such as --infer softmax, which guesses it"
        )
    if given.network is not None:
        networks.layers(given.network)
    check_device(given.device)
    if given.out is not None:
        files.check_writable(given.out)  # now, and not after an hour of training
    stream = _quietly(_stream(given.stream, given.scenario, given), seed=given.seed)
    backbone = networks.by_name(given.network, tuple(stream[0].example.shape[1:]))
    return minicl.run(
        method(backbone, **hyperparameters),
        stream,
        epochs=given.epochs,
        batch_size=given.batch_size,
        optimizer=optimizer,
        patience=given.patience,
        fresh_optimizer=not given.keep_optimizer,
        seed=given.seed,
        device=given.device,
        progress=False if given.quiet or given.json else None,
        checkpoint=given.checkpoint,
        checkpoint_every=given.checkpoint_every,
        infer=given.infer,
    )


def _told(given: argparse.Namespace, result: Any) -> int:
    """Write a result where that was asked for, and print it; the exit code."""
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


def _optimizer(given: argparse.Namespace) -> Any:
    import torch

    optimizer, settings, lr = _one_of("optimizer", given.optimizer, OPTIMIZERS)
    return partial(getattr(torch.optim, optimizer), lr=lr if given.lr is None else given.lr, **settings)


def _stream(name: str, scenario: str, given: argparse.Namespace) -> Any:
    """What makes the stream of that name, given a seed."""
    from . import streams
    from .tasks import check_scenario

    check_scenario(scenario)
    chosen: dict[str, Any] = {} if given.tasks is None else {"n_tasks": given.tasks}
    if given.classes is not None:
        chosen["classes"] = [_labels(group) for group in given.classes.split("/")]
    if given.class_order is not None:
        chosen["class_order"] = "seed" if given.class_order == "seed" else _labels(given.class_order)
    if given.first is not None:
        chosen["first"] = given.first
    of_splits = [f"--{option}" for option in ("classes", "first", "class-order") if option.replace("-", "_") in chosen]
    if of_splits and not name.startswith("split-"):
        raise ValueError(
            f"{of_splits[0]} says which classes a task has, and {name} has all in each; allowed: split-..."
        )
    make = streams.by_name(
        name, scenario=scenario, n_train=given.n_train, root=given.root, download=given.download, **chosen
    )
    _check_root(name.partition("-")[2], given)
    return make


def _labels(text: str) -> list[int | str]:
    """Classes as they are written on a command line: numbers, or texts."""
    words = [word.strip() for word in text.split(",")]
    return [int(word) if word.lstrip("-").isdecimal() else word for word in words]


def _check_root(dataset: str, given: argparse.Namespace) -> None:
    if given.root is None and dataset != "digits":
        raise ValueError(f"{dataset} is read from a folder: name it with --root FOLDER, and add --download to fetch it")


def _quietly(make: Any, *arguments: Any, **settings: Any) -> Any:
    """A stream; what a download says of itself is no part of the result."""
    with contextlib.redirect_stdout(sys.stderr):
        return make(*arguments, **settings)


def _compare(given: argparse.Namespace) -> int:
    import minicl

    methods = []
    for word in given.methods:
        name, *pairs = word.split(",")
        method = _one_of("method", name, minicl.METHODS)
        methods.append((name, _hyperparameters(name, method, pairs)))
    streams = [_stream(name, scenario, given) for name in given.stream for scenario in given.scenario]
    for make in streams:
        _quietly(make, seed=0)  # data that are missing, or tasks that cannot be, are found out now
    done = minicl.sweep(
        methods,
        streams,
        given.seeds,
        out=given.out,
        network=given.network,
        epochs=given.epochs,
        batch_size=given.batch_size,
        optimizer=_optimizer(given),
        patience=given.patience,
        fresh_optimizer=not given.keep_optimizer,
        device=given.device,
        infer=given.infer,
        jobs=given.jobs,
        backend=given.backend,
        scheduler=given.scheduler,
        progress=False if given.quiet else None,
    )
    print(str(done).splitlines()[0])  # what failed has been reported
    print(f"results in {given.out}; next: minicl table {given.out}")
    return FAILED if done.failures else 0


def _table(given: argparse.Namespace) -> int:
    from . import results

    with _damage_told():
        rows = results.load_results(given.folder)
    whole = results.table(rows)
    print(results.as_markdown(whole))
    print("written to " + ", ".join(map(str, results.write_table(whole, given.out or given.folder))))
    return 0


def _plot(given: argparse.Namespace) -> int:
    from . import plots, results

    _one_of("format", given.format, dict.fromkeys(FIGURES))
    with _damage_told():
        found = results.load_all(given.folder)
    for path in plots.all_figures(found, given.out or given.folder, given.format):
        print(path)
    return 0


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """Files that are damaged are told in one line each, and left out."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        print(f"minicl: {warning.message}", file=sys.stderr)


def _certify(given: argparse.Namespace) -> int:
    import minicl

    from . import checkpoint, files, networks, streams

    path = checkpoint.learner_file(given.learner)
    header, _ = files.read(path)
    method = next((m for m in minicl.METHODS.values() if m.__name__ == header.get("method")), None)
    if method is None:
        raise ValueError(f"{path} holds a {header.get('method')}; allowed: {', '.join(minicl.METHODS)}")
    if given.stream is not None:
        stream = _quietly(_stream(given.stream, given.scenario, given), seed=given.seed)
    else:
        settings = header.get("run", {}).get("identity", {}).get("stream", {})
        try:
            streams.by_name(f"{settings.get('kind')}-{settings.get('dataset')}")
        except ValueError as error:
            raise ValueError(
                f"{path} does not say of which stream its tasks are; name it with --stream STREAM"
            ) from error
        _check_root(settings["dataset"], given)
        stream = _quietly(streams.from_settings, settings, root=given.root, download=given.download)
    backbone = networks.by_name(given.network, tuple(stream[0].example.shape[1:]))
    try:
        learner = method.load(path, backbone)
    except ValueError as error:
        raise ValueError(f"{error}; was it trained with --network {given.network or '(the default)'}?") from error
    return 0 if minicl.certify(learner, stream) else FAILED


def _one_of(what: str, name: str, allowed: Any) -> Any:
    if name not in allowed:
        raise ValueError(f"unknown {what} {name!r}; allowed: {', '.join(allowed)}")
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
        told = "  (must be told the task id: scenario task, or --infer RULE)" if row["needs_task_id"] else ""
        print(f"{row['name']}{told}")
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
        f"{KNOWN[result.task_id]}",
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
