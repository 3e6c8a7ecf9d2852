"""Config files: recipes, the config.yaml of a run, and what each means to a command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, get_loader, set_loader

from ..files import atomic_write
from .options import Experiment
from .recipe import config_file, read_config, read_recipe

MODE = "dca-triton"  # of parsing values
CONFIG = "config.yaml"
OF_TRAINING = ("on_corrupt", "photos", "rand_augment", "erase")  # data options that no other command has
# Options that change no result.
FREE = {
    "data": ("root", "workers"),
    "trainer": (
        "progress",
        "tensorboard",
        "keep_last",
        "save_every",
        "evaluate_every",
        "checkpoint_blocks",
        "compile",
    ),
}


def load_value(text: str) -> Any:
    """A YAML value. Bytes of a path that are not UTF-8 are letters that libyaml refuses, plain or escaped."""
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    return yaml.safe_load(text) if "\\uDC" in text else get_loader("yaml")(text)


set_loader(MODE, load_value, (yaml.YAMLError,))


class ConfigFile(ActionConfigFile):
    """A config file, or the name of a recipe that comes with the package.

    The config.yaml of a run stands for its folder: with --resume training goes on in it, and the other
    commands use its checkpoint.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        file = config_file(values)
        content, _ = read_recipe(file)
        folder = run_of(file)
        if "trainer" not in parser.groups:
            content = recorded(content, OF_TRAINING) if folder is None else {"run": str(folder)}
        super().__call__(parser, cfg, yaml.safe_dump(content), option_string)
        cfg.config[-1] = file


def run_of(file: Path) -> Path | None:
    """The folder of the run that a config file belongs to, if it is one's config.yaml."""
    folder = file.absolute().parent
    return folder if file.name == CONFIG and any(folder.glob("checkpoint*.pt")) else None


def recorded(content: Mapping[str, Any], left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Of a training config, what a trained model depends on: its arguments and the data."""
    kept = {name: content[name] for name in ("model", "data") if content.get(name) is not None}
    if isinstance(kept.get("data"), dict):
        kept["data"] = {name: value for name, value in kept["data"].items() if name not in left_out}
        if "seed" in content:
            kept["data"]["seed"] = content["seed"]
    return kept


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a config.yaml that decide a result; a file from elsewhere may hold anything."""
    return {
        section: {name: value for name, value in values.items() if name not in FREE.get(section, ())}
        if isinstance(values, dict)
        else values
        for section, values in config.items()
    }


def config_text(
    parser: ArgumentParser, given: Namespace, experiment: Experiment, resumed: Path | None
) -> str:
    """The config.yaml of a run.

    Args:
        parser: Of the options.
        given: The options of this call.
        experiment: The run that they describe.
        resumed: The folder of the run that this one goes on from: its record of --transfer stays true.
    """
    kept = given.clone()
    for key in ("config", "output", "resume"):  # of this call, not of the run
        kept.pop(key, None)
    kept["data.root"], kept["transfer"] = experiment.data.root, experiment.transfer
    if resumed is not None and (resumed / CONFIG).is_file():
        before = read_config(resumed / CONFIG).get("transfer")
        kept["transfer"] = None if before is None else Path(before)
    return parser.dump(kept, skip_validation=True, format="yaml")


def write_config(output: Path, text: str) -> None:
    """Write a run's config.yaml, and remove the scores of the checkpoint before."""
    from ..run_folder import EVALUATION

    with atomic_write(output / CONFIG, "w") as stream:
        stream.write(text)
    if (scores := output / EVALUATION).is_file():
        scores.unlink()
