"""Config files: recipes, the config.yaml of a run, and what each means to a command."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_loader
from jsonargparse._loaders_dumpers import yaml_load

from ..arguments import shown
from ..files import atomic_write
from .options import Experiment

MODE = "dca-triton"  # of parsing values
RECIPES = Path(__file__).parent / "recipes"
CONFIG, EVALUATION = "config.yaml", "evaluation.json"
OF_TRAINING = ("on_corrupt", "photos")  # data options that no other command has


def load_value(text: str) -> Any:
    """A YAML value. Bytes of a path that are not UTF-8 are letters that libyaml refuses, plain or escaped."""
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    return yaml.safe_load(text) if "\\uDC" in text else yaml_load(text)


set_loader(MODE, load_value, (yaml.YAMLError,))


class ConfigFile(ActionConfigFile):
    """A config file, or the name of a recipe that comes with the package.

    The config.yaml of a run stands for its folder: with --resume training goes on in it, and the other
    commands use its checkpoint.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        shipped = RECIPES / f"{values}.yaml"
        file = shipped if shipped.is_file() else Path(values)
        content = read_config(file)
        check_texts(content, str(file))
        folder = run_of(file)
        if "trainer" not in parser.groups:
            content = recorded(content, OF_TRAINING) if folder is None else {"run": str(folder)}
        super().__call__(parser, cfg, yaml.safe_dump(content), option_string)
        cfg.config[-1] = file


def run_of(file: Path) -> Path | None:
    """The folder of the run that a config file belongs to, if it is one's config.yaml."""
    folder = file.absolute().parent
    return folder if file.name == CONFIG and any(folder.glob("checkpoint*.pt")) else None


def read_config(file: Path, option: str = "--config") -> dict[str, Any]:
    """The options in a YAML file that `option` names.

    Raises:
        ValueError: There is no such file, it is not YAML, or it is not a mapping.
    """
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is a folder, a pipe or a device")
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        json.dumps(content, default=str, skipkeys=True)  # raises ValueError if it holds itself
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        kind = f"a YAML file or one of {recipes()}" if option == "--config" else "a YAML file"
        raise ValueError(f"{option} must be {kind}, got {str(file)!r} ({reason})") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{option} must hold a mapping of options, got {str(file)!r} with {shown(content)}")
    return content


def check_texts(content: Any, name: str) -> None:
    """Raise ValueError for a text with a null byte or an empty one, whose path is the current folder."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            check_texts(value, f"{key} in {name}")
    elif isinstance(content, list):
        for value in content:
            check_texts(value, name)
    elif isinstance(content, str) and (not content or "\0" in content):
        raise ValueError(f"{name} must have a value without null bytes, got {content!r}")


def recorded(content: Mapping[str, Any], left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Of a training config, what a trained model depends on: its arguments and the data."""
    kept = {name: content[name] for name in ("model", "data") if content.get(name) is not None}
    if isinstance(kept.get("data"), dict):
        kept["data"] = {name: value for name, value in kept["data"].items() if name not in left_out}
        if "seed" in content:
            kept["data"]["seed"] = content["seed"]
    return kept


def recipes() -> str:
    """The names of the shipped recipes."""
    return ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))


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
    if (scores := output / EVALUATION).is_file():
        scores.unlink()
    with atomic_write(output / CONFIG, "w") as stream:
        stream.write(text)
