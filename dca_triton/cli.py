"""The command line: dca-triton train | evaluate | embed | visualize | demo | tune | info."""

import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser

from . import commands
from .experiment import DataOptions
from .model import DualAttentionModel
from .pairs import PairSampler
from .process import this_process
from .training import DualAttentionTrainer

RECIPES = Path(__file__).parent / "recipes"
COMMANDS = (
    commands.train,
    commands.evaluate,
    commands.embed,
    commands.visualize,
    commands.demo,
    commands.tune,
    commands.info,
)


class Parser(ArgumentParser):
    """Ends on bad arguments with one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sys.exit(f"dca-triton: {' '.join(message.split())}")


class Recipe(ActionConfigFile):
    """A config file, or the name of a recipe that comes with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        shipped = RECIPES / f"{values}.yaml"
        super().__call__(parser, cfg, str(shipped) if shipped.is_file() else values, option_string)


def _parser(command: Callable[..., None]) -> Parser:
    own = Parser(description=_summary(command))
    if "experiment" in signature(command).parameters:
        _add_experiment(own)
    own.add_function_arguments(command, skip={"experiment"})
    return own


def _summary(command: Callable[..., None]) -> str:
    return (command.__doc__ or "").splitlines()[0]


def _add_experiment(own: Parser) -> None:
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    own.add_argument("--config", action=Recipe, help=f"A YAML file, or a recipe of the paper: {names}.")
    skip = {"num_classes", "task_type", "img_size", "embed_dim", "num_pwca_blocks"}
    own.add_class_arguments(DualAttentionModel, "model", skip=skip, instantiate=False)
    own.add_argument("--model.timm", type=dict[str, Any], default={}, help="Passed to timm.create_model.")
    own.add_class_arguments(DataOptions, "data")
    skip = {"model", "batches", "pairs", "evaluate", "augment"}
    own.add_class_arguments(DualAttentionTrainer, "trainer", skip=skip, instantiate=False)
    own.add_class_arguments(PairSampler, "pairs")
    own.add_argument("--epochs", type=int, default=100, help="Of training, at least 1.")
    own.add_argument("--output", type=Path, default=Path("runs/train"), help="Folder of all that is written.")
    own.add_argument(
        "--weights",
        type=Path | None,
        default=None,
        help="A checkpoint: training starts from it, the other commands use it (by default output's own).",
    )
    own.add_argument(
        "--seed", type=int, default=0, help="Of initial weights, batches, pairs and augmentation."
    )
    own.link_arguments("seed", "data.seed")
    own.link_arguments("seed", "trainer.seed")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; bad input ends with one sentence and exit status 1."""
    parsers = {command.__name__: _parser(command) for command in COMMANDS}
    root = Parser(prog="dca-triton", description="Dual cross-attention learning, made fast.")
    subcommands = root.add_subcommands(dest="command", metavar="command")
    for command in COMMANDS:
        subcommands.add_subcommand(command.__name__, parsers[command.__name__], help=_summary(command))
    options = root.parse_args(arguments)
    command = getattr(commands, options.command)
    try:
        chosen = root.instantiate(options)[options.command]
        names = list(signature(command).parameters)
        given = {name: chosen[name] for name in names if name != "experiment"}
        if command is commands.train and this_process().is_main_process:
            chosen.output.mkdir(parents=True, exist_ok=True)
            parsers["train"].save(options.train, chosen.output / "config.yaml", overwrite=True)
        command(*([chosen] if "experiment" in names else []), **given)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        sys.exit(f"dca-triton: {error}")


if __name__ == "__main__":
    main()
