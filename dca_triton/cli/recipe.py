"""Recipes: config files that may build on others and say which scores to expect."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import Any

import yaml

from ..arguments import number, shown

RECIPES = Path(__file__).parent / "recipes"
PERCENTAGES = ("baseline", "dcal")
_percentage, _ = number(lambda v: 0 <= v <= 100, "in [0, 100]")


@dataclass(frozen=True)
class Recipe:
    """Options that are known to give certain scores.

    Attributes:
        name: As --config takes it.
        expected: "source", a text, and percentages by the name of a score and by `PERCENTAGES`, such as
            {"sum_top1": {"baseline": 85.8, "dcal": 87.6}}.
        options: All options that it sets.
    """

    name: str
    expected: Mapping[str, Any]
    options: Mapping[str, Any]


def recipe_files() -> dict[str, Path]:
    """The shipped recipes by name: "fgvc", "cub/deit_small", ..."""
    files = sorted(RECIPES.rglob("*.yaml"))
    return {file.relative_to(RECIPES).with_suffix("").as_posix(): file for file in files}


def recipe_names() -> str:
    """The names of the shipped recipes, by folder: "cub/{deit_base, deit_small}, fgvc"."""
    folders: dict[str, list[str]] = {}
    for name in recipe_files():
        folder, _, last = name.rpartition("/")
        folders.setdefault(folder, []).append(last)
    own = folders.pop("", [])
    return ", ".join([*own, *(f"{folder}/{{{', '.join(names)}}}" for folder, names in folders.items())])


def config_file(name: str, folder: Path = Path()) -> Path:
    """The file of a shipped recipe, or the path `name`, relative to `folder`."""
    return recipe_files().get(name, folder / name)


def read_config(file: Path, option: str = "--config", recipe: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file that `option` names; `recipe` says that a recipe's name is right, too.

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
        kind = "a YAML file"
        kind += " or a recipe that `dca-triton train --help` lists" if recipe else ""
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


def read_recipe(
    file: Path, option: str = "--config", above: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], Recipe | None]:
    """The options of a config file, and the recipe that they come from, if any.

    Next to options the file may have

    - `base`, a recipe or another config file, relative to this one: its options hold where this file has no
      others;
    - `expected`, see `Recipe`: then this file is the recipe; else it is that of the base;
    - `recipe`, in the config.yaml of a run: the recipe that the run came from (see `Reproduction`).

    Args:
        file: The config file.
        option: What names the file, for errors.
        above: The files that led to this one by their bases.

    Raises:
        ValueError: A file that is not one, or bases that lead back to a file.
    """
    content = read_config(file, option, recipe=True)
    if realpath(file) in map(realpath, above):
        circle = " -> ".join(map(str, (*above, file)))
        raise ValueError(f"{option} must not lead back to itself, got {circle}")
    check_texts(content, str(file))
    content = nested(content)
    base, expected, origin = (content.pop(key, None) for key in ("base", "expected", "recipe"))
    options: dict[str, Any] = content
    recipe = None
    if base is not None:
        if not isinstance(base, str):
            raise ValueError(f"base in {file} must be a YAML file or a recipe, got {shown(base)}")
        basis = config_file(base, file.parent)
        options, recipe = read_recipe(basis, f"base in {file}", (*above, file))
        options = merged(options, content)
    if origin is not None:
        recipe = origin_of(origin, options, file)
    if expected is not None:
        check_expected(expected, file)
        names = {path: name for name, path in recipe_files().items()}
        recipe = Recipe(names.get(file, str(file)), expected, options)
    return options, recipe


def origin_of(origin: Any, options: Mapping[str, Any], file: Path) -> Recipe:
    """The recipe that a run's config.yaml records, which holds the options that the run changed."""
    parts = {"name": str, "expected": dict, "replaced": dict}
    right = isinstance(origin, dict) and all(isinstance(origin.get(key), t) for key, t in parts.items())
    if not right or not all(isinstance(name, str) for name in origin["replaced"]):
        raise ValueError(f"recipe in {file} must hold {', '.join(parts)}, got {shown(origin)}")
    check_expected(origin["expected"], file)
    return Recipe(origin["name"], origin["expected"], merged(options, nested(origin["replaced"])))


def check_expected(expected: Any, file: Path) -> None:
    """Raise ValueError for expected scores that are not as `Recipe` has them."""
    from ..evaluation import SCORES

    scores = [score for of_task in SCORES.values() for score in of_task]
    if not isinstance(expected, dict) or not _is_expected(expected, scores):
        raise ValueError(
            f"expected in {file} must hold source, a text, and {' and '.join(PERCENTAGES)}, percentages, for "
            f"scores of {', '.join(scores)}, got {shown(expected)}"
        )


def _is_expected(expected: Mapping[str, Any], scores: list[str]) -> bool:
    of_scores = {name: value for name, value in expected.items() if name != "source"}
    return (
        isinstance(expected.get("source"), str)
        and bool(of_scores)
        and all(name in scores for name in of_scores)
        and all(isinstance(value, dict) and set(value) == set(PERCENTAGES) for value in of_scores.values())
        and all(_percentage(number) for value in of_scores.values() for number in value.values())
    )


def merged(base: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `content`, section by section."""
    result = dict(base)
    for key, value in content.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = merged(before, value)
        result[key] = value
    return result


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """{"trainer.lr": 1} -> {"trainer": {"lr": 1}}; later names win."""
    result: dict[str, Any] = {}
    for name, value in options.items():
        *sections, last = name.split(".")
        inner = {last: value}
        for section in reversed(sections):
            inner = {section: inner}
        result = merged(result, inner)
    return result


def flat(options: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """{"trainer": {"lr": 1}} -> {"trainer.lr": 1}."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        name = f"{section}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return result
