"""From a command line to a call of a command."""

import contextlib
import functools
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from ..version import __version__
from . import commands
from .ablate import ablate
from .ablate_plan import Plan
from .config import MODE, ConfigFile, config_text, write_config
from .export import export
from .options import DataChanges, DataOptions
from .rank import rank
from .recipe import check_texts, recipe_names
from .reproduction import reproduction_of
from .sentences import sentence
from .values import experiment_of, selection_of

COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command
    for command in (
        commands.train,
        commands.evaluate,
        commands.embed,
        commands.visualize,
        rank,
        export,
        ablate,
        commands.demo,
        commands.tune,
        commands.info,
    )
}


class HelpFormatter(DefaultHelpFormatter):
    """Shows the type Path by its name alone, as all others."""

    def _expand_help(self, action: Any) -> str:
        return super()._expand_help(action).replace("<class 'Path'>", "Path")


class Parser(ArgumentParser):
    """Ends on bad arguments with one sentence."""

    def __init__(self, command: str = "", **options: Any) -> None:
        super().__init__(parser_mode=MODE, formatter_class=HelpFormatter, **options)
        self.command = command
        self.place = ""

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Begin the sentences of errors with `place`, where the options are if not on the command line."""
        self.place = place
        try:
            yield
        finally:
            self.place = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        own = parser_of(self.command) if self.command else self
        typehints = {action.dest: getattr(action, "_typehint", dict) for action in own._actions}
        fail(self.place + sentence(message, typehints, self.command))


def fail(message: object) -> NoReturn:
    """End with one sentence and exit status 1."""
    sys.exit(f"dca-triton: {' '.join(str(message).split())}")


@functools.cache
def parser_of(name: str) -> Parser:
    """The options of a command; to make the parser takes longer than to use it, and errors need it again."""
    command = COMMANDS[name]
    own = Parser(name, description=summary(name))
    parameters = signature(command).parameters
    if "experiment" in parameters:
        text = "The folder to write everything to; by default runs/train, or with --resume and a run's "
        _add_experiment(own, text + "config.yaml the folder of that run.")
    if "plan" in parameters:
        _add_experiment(own, "The folder of all runs and the table; by default runs/ablation.")
    if "selection" in parameters:
        _add_selection(own, exports="run" in parameters)
    skip: set[str | int] = {"experiment", "plan", "selection", "save_config", "reproduction"}
    own.add_function_arguments(command, skip=skip, as_positional=name == "export")
    return own


def summary(name: str) -> str:
    """What a command does, in a line."""
    return (COMMANDS[name].__doc__ or "").splitlines()[0]


def _add_experiment(own: Parser, output: str) -> None:
    from ..model import DualAttentionModel
    from ..training import DualAttentionTrainer, PairSampler

    text = f"A YAML file, or a recipe: {recipe_names()}."
    own.add_argument("--config", action=ConfigFile, help=text)
    skip: set[str | int] = {"num_classes", "task_type", "img_size", "embed_dim", "num_pwca_blocks"}
    skip |= {"cameras", "views"}
    own.add_class_arguments(DualAttentionModel, "model", skip=skip, instantiate=False)
    text = "Other arguments of timm.create_model."
    own.add_argument("--model.timm", type=dict[str, Any], default={}, help=text)
    for kind in ("camera", "view"):
        text = f"Learn a vector for each {kind} of the training photos (SIE of TransReID); for identities."
        own.add_argument(f"--model.{kind}_embedding", type=bool, default=False, help=text)
    own.add_class_arguments(DataOptions, "data", skip={"seed"})
    trained: set[str | int] = {"model", "batches", "pairs", "evaluate", "augment", "seed", "description"}
    own.add_class_arguments(DualAttentionTrainer, "trainer", skip=trained, instantiate=False)
    own.add_class_arguments(PairSampler, "pairs", instantiate=False)
    own.add_argument("--epochs", type=int, default=100, help="Epochs to train in all, >= 1.")
    own.add_argument("--output", type=Path | None, default=None, help=output)
    text = "A checkpoint, or the folder of a run or of `export`; training starts from its weights that fit."
    own.add_argument("--transfer", type=Path | None, default=None, help=text)
    text = "Seeds the initial weights, batches, pairs and augmentation."
    own.add_argument("--seed", type=int, default=0, help=text)


def _add_selection(own: Parser, exports: bool) -> None:
    text = "A checkpoint to use instead of the run's newest."
    own.add_argument("--weights", type=Path | None, default=None, help=text)
    if exports:
        add_model(own)
        return
    text = "A run's config.yaml, instead of --run; or a YAML file or recipe for model and data."
    own.add_argument("--config", action=ConfigFile, help=text)
    text = "The folder of a training run or of `export`."
    own.add_argument("--run", type=Path | None, default=None, help=text)
    add_model(own)
    own.add_class_arguments(DataChanges, "data")


def add_model(own: ArgumentParser) -> None:
    """Add --model, which overrides arguments of a trained model."""
    text = "Arguments of the model that replace the checkpoint's."
    own.add_argument("--model", type=dict[str, Any], default={}, help=text)


def run_command(arguments: list[str]) -> None:
    """Run a command; bad input ends with one sentence and exit status 1."""
    name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    if not name and not (arguments and arguments[0].startswith("-")):
        fail(f"command must be one of {', '.join(COMMANDS)}, got {arguments[0] if arguments else 'none'!r}")
    root = Parser(prog="dca-triton", description="Dual cross-attention learning, made fast.")
    root.add_argument("--version", action="version", version=f"dca-triton {__version__}")
    root.command = name
    subcommands = root.add_subcommands(dest="command", metavar="command")
    for each in COMMANDS:
        own = parser_of(each) if each == name else Parser(each, description=summary(each))
        subcommands.add_subcommand(each, own, help=summary(each))
        if each == name:
            chosen = own
    try:
        _check_values(arguments)
        options = root.parse_args(arguments, defaults=name in ("train", "ablate"))
    except ValueError as error:
        fail(error)
    except Exception as error:  # of files that an option names: not text, too deep, ...
        fail(f"arguments must be options and readable files, got {shlex.join(arguments)} ({error})")
    try:
        with _plain_output():
            _call(name, chosen, options[name])
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        fail(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        fail(f"unexpected {error!r} in {place.filename}, line {place.lineno}; please report it")


def _check_values(arguments: list[str]) -> None:
    for before, argument in zip(["command", *arguments], arguments, strict=False):
        name, equals, value = argument.partition("=")
        if argument.startswith("--") and equals:
            check_texts(value, name)
        elif not argument.startswith("--"):
            check_texts(argument, before if before.startswith("--") else "an argument")


@contextlib.contextmanager
def _plain_output() -> Iterator[None]:
    """Warnings without places in the source, and file names of any bytes."""
    before, errors = warnings.formatwarning, getattr(sys.stdout, "errors", None)
    warnings.formatwarning = lambda message, *_, **__: f"dca-triton: warning: {message}\n"
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        warnings.formatwarning = before
        if reconfigure:
            reconfigure(errors=errors)


def _call(name: str, parser: Parser, given: Namespace) -> None:
    values = given.as_dict()
    command = COMMANDS[name]
    if name == "train":
        from .training_run import resumed_folder

        experiment = experiment_of(values)
        resumed = resumed_folder(experiment.output, values["resume"])
        text = config_text(parser, given, experiment, resumed)
        reproduction = reproduction_of(parser, given, text, resumed)
        text += "" if reproduction is None else reproduction.record()
        save_config = functools.partial(write_config, experiment.output, text)
        command(experiment, values["resume"], save_config, reproduction=reproduction)
        return
    own = {key: given[key] for key in signature(command).parameters if key in given}
    if "selection" in signature(command).parameters:
        own["selection"] = selection_of(values)
    if name == "ablate":
        own["plan"] = Plan(parser_of("train"), given)
    command(**own)
