"""The command line: dca-triton train | evaluate | embed | visualize | export | demo | tune | info."""

import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from ..files import atomic_write
from . import commands
from .options import DataOptions, Experiment, Selection

RECIPES = Path(__file__).parent / "recipes"
CONFIG = "config.yaml"
RENAMED = {
    "--weights": "train starts from the weights of --transfer FILE",
    "--output": "a trained model is chosen by --run FOLDER",
}
COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command
    for command in (
        commands.train,
        commands.evaluate,
        commands.embed,
        commands.visualize,
        commands.export,
        commands.demo,
        commands.tune,
        commands.info,
    )
}


class Parser(ArgumentParser):
    """Ends on bad arguments with one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if "unrecognized" in message or "not expected" in message:
            message += "".join(f"; {hint}" for name, hint in RENAMED.items() if name in message)
        fail(message)


def fail(message: object) -> NoReturn:
    """End with one sentence and exit status 1."""
    sys.exit(f"dca-triton: {' '.join(str(message).split())}")


class ConfigFile(ActionConfigFile):
    """A config file, or the name of a recipe that comes with the package.

    The config.yaml of a run stands for its folder: training goes on in it, and the other commands use its
    checkpoint.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        shipped = RECIPES / f"{values}.yaml"
        file = shipped if shipped.is_file() else Path(values)
        try:
            content = read_config(file)
        except ValueError as error:
            fail(error)
        trains = "trainer" in parser.groups
        folder = file.absolute().parent
        if file.name == CONFIG and any(folder.glob("checkpoint*.pt")):
            own = {"output" if trains else "run": str(folder)}
            content = {**content, **own} if trains else own
        elif not trains:
            content = recorded(content)
        super().__call__(parser, cfg, yaml.safe_dump(content), option_string)


def read_config(file: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        ValueError: There is no such file, it is not YAML, or it is not a mapping.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        json.dumps(content, default=str, skipkeys=True)  # raises ValueError if it holds itself
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"config must be a YAML file or one of {recipes()}, got {str(file)!r} ({reason})"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"config must hold a mapping of options, got {str(file)!r} with a {_kind(content)}")
    return content


def _kind(content: Any) -> str:
    return "mapping with other names" if isinstance(content, dict) else type(content).__name__


def recorded(content: Mapping[str, Any]) -> dict[str, Any]:
    """Of a training config, what a trained model depends on: its arguments and the data."""
    kept = {name: content[name] for name in ("model", "data") if content.get(name) is not None}
    if "seed" in content and isinstance(kept.get("data"), dict):
        kept["data"] = kept["data"] | {"seed": content["seed"]}
    return kept


def recipes() -> str:
    """The names of the shipped recipes."""
    return ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def parser_of(name: str) -> Parser:
    """The options of a command."""
    command = COMMANDS[name]
    own = Parser(description=summary(name))
    parameters = signature(command).parameters
    if "experiment" in parameters:
        _add_experiment(own)
    if "selection" in parameters:
        _add_selection(own, "run" in parameters)
    own.add_function_arguments(
        command,
        skip={"experiment", "selection", "save_config"},
        as_positional=name == "export",
    )
    return own


def summary(name: str) -> str:
    """What a command does, in a line."""
    return (COMMANDS[name].__doc__ or "").splitlines()[0]


def _add_experiment(own: Parser) -> None:
    from ..model import DualAttentionModel
    from ..training import DualAttentionTrainer, PairSampler

    own.add_argument(
        "--config", action=ConfigFile, help=f"A YAML file, or a recipe of the paper: {recipes()}."
    )
    skip = {"num_classes", "task_type", "img_size", "embed_dim", "num_pwca_blocks"}
    own.add_class_arguments(DualAttentionModel, "model", skip=skip, instantiate=False)
    own.add_argument("--model.timm", type=dict[str, Any], default={}, help="Passed to timm.create_model.")
    own.add_class_arguments(DataOptions, "data", skip={"seed"})
    skip = {"model", "batches", "pairs", "evaluate", "augment", "seed", "description"}
    own.add_class_arguments(DualAttentionTrainer, "trainer", skip=skip, instantiate=False)
    own.add_class_arguments(PairSampler, "pairs", instantiate=False)
    own.add_argument("--epochs", type=int, default=100, help="Of training, at least 1.")
    own.add_argument(
        "--output",
        type=Path | None,
        default=None,
        help="Folder of all that is written; by default that of --config if it is a run's, else runs/train.",
    )
    own.add_argument(
        "--transfer",
        type=Path | None,
        default=None,
        help="A checkpoint or a run's folder: training starts from the weights that fit.",
    )
    own.add_argument(
        "--seed", type=int, default=0, help="Of initial weights, batches, pairs and augmentation."
    )


def _add_selection(own: Parser, has_run: bool) -> None:
    own.add_argument(
        "--config",
        action=ConfigFile,
        help="A run's config.yaml, instead of --run; or a YAML file or recipe for model and data.",
    )
    if not has_run:
        own.add_argument(
            "--run", type=Path | None, default=None, help="The folder of a training run or of `export`."
        )
    own.add_argument(
        "--weights", type=Path | None, default=None, help="A checkpoint to use instead of the run's newest."
    )
    _add_model_and_data(own)


def _add_model_and_data(own: Parser) -> None:
    own.add_argument(
        "--model",
        type=dict[str, Any],
        default={},
        help="Arguments of the model that override the checkpoint's.",
    )
    own.add_class_arguments(DataOptions, "data", skip={"name"})
    own.add_argument(
        "--data.name", type=str | None, default=None, help="The dataset, if it is not the run's."
    )


def main(arguments: list[str] | None = None) -> None:
    """Run a command; bad input ends with one sentence and exit status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    root = Parser(prog="dca-triton", description="Dual cross-attention learning, made fast.")
    subcommands = root.add_subcommands(dest="command", metavar="command")
    for each in COMMANDS:
        own = parser_of(each) if each == name else Parser(description=summary(each))
        subcommands.add_subcommand(each, own, help=summary(each))
        if each == name:
            chosen = own
    try:
        options = root.parse_args(arguments, defaults=name == "train")
    except Exception as error:  # of files that an option names: not text, too deep, ...
        fail(f"arguments must be options and readable files, got {shlex.join(arguments)} ({error})")
    try:
        _run(name, chosen, options[name])
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        fail(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        fail(f"unexpected {error!r} in {place.filename}, line {place.lineno}; please report it")


def _run(name: str, parser: Parser, given: Namespace) -> None:
    values = given.as_dict()
    if name == "train":
        experiment = experiment_of(values)
        save = _config_writer(parser, given, experiment)
        COMMANDS[name](experiment, values["resume"], save)
        return
    command = COMMANDS[name]
    own = {key: given[key] for key in signature(command).parameters if key in given}
    if "selection" in signature(command).parameters:
        own["selection"] = _selection(values)
    command(**own)


def experiment_of(values: Mapping[str, Any]) -> Experiment:
    """A training run of the options of its config; paths become absolute, so that any folder can go on."""
    data, model, trainer = dict(values["data"]), dict(values["model"]), dict(values["trainer"])
    data["root"] = _absolute(data["root"])
    return Experiment(
        model=_flat(model),
        data=DataOptions(**data, seed=values["seed"]),
        trainer=trainer,
        pairs=dict(values["pairs"]),
        epochs=values["epochs"],
        output=values["output"] or Path("runs/train"),
        transfer=_absolute(values["transfer"]),
        seed=values["seed"],
    )


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else Path(os.path.abspath(path.expanduser()))


def _config_writer(parser: Parser, given: Namespace, experiment: Experiment) -> Callable[[], None]:
    kept = given.clone()
    for key in ("config", "output", "resume"):  # of this call, not of the run
        kept.pop(key, None)
    kept["data.root"], kept["transfer"] = experiment.data.root, experiment.transfer
    text = parser.dump(kept, skip_validation=True)

    def write() -> None:
        with atomic_write(experiment.output / CONFIG, "w") as stream:
            stream.write(text)

    return write


def _selection(values: Mapping[str, Any]) -> Selection:
    run = values.get("run")
    file = run / CONFIG if run is not None else None
    known: Mapping[str, Any] = {}
    if file is not None and file.is_file():
        parser = Parser()
        _add_model_and_data(parser)
        known = parser.parse_object(recorded(read_config(file)), defaults=False).as_dict()
    return Selection(
        run=run,
        weights=values.get("weights"),
        model=_flat(values.get("model")),
        data=values.get("data") or {},
        recorded_model=_flat(known.get("model")),
        recorded_data=known.get("data") or {},
    )


def _flat(model: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of the model with those for timm among them."""
    from ..model import DualAttentionModel

    options = dict(model or {})
    timm = options.pop("timm", None) or {}
    own = {"cls", "model_name", *signature(DualAttentionModel.__init__).parameters}
    if taken := sorted(own & set(timm)):
        raise ValueError(
            f"model.timm must hold arguments that only timm.create_model takes, got {', '.join(taken)}"
        )
    return options | dict(timm)


if __name__ == "__main__":
    main()
