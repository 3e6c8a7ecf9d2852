"""A run next to the scores that the source of its recipe reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from .config import CONFIG, deciding
from .recipe import Recipe, flat, read_recipe

OF_THE_CALL = ("config", "output", "resume", "seed", "recipe")  # a recipe does not say them


@dataclass(frozen=True)
class Reproduction:
    """A recipe, and how a run differs from it.

    Attributes:
        recipe: The recipe.
        changes: The recipe's value and the run's, by the name of the option.
        scored_with: What a score depends on and the run does not have, by the name of the option.
    """

    recipe: Recipe
    changes: Mapping[str, tuple[Any, Any]]
    scored_with: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> str:
        """The part of config.yaml that `read_recipe` restores the recipe from."""
        replaced = {name: before for name, (before, _) in self.changes.items()}
        origin = {"name": self.recipe.name, "expected": dict(self.recipe.expected), "replaced": replaced}
        return yaml.safe_dump({"recipe": origin}, sort_keys=False)

    def table(self, scores: Mapping[str, float]) -> str:
        """What the recipe's source reports beside `scores`, in 0..1, and everything that was changed."""
        expected = dict(self.recipe.expected)
        lines = [f"{self.recipe.name}, as reported by {expected.pop('source')}:"]
        for name, percent in expected.items():
            own = f"{100 * scores[name]:.2f}%" if name in scores else "has no such score"
            lines.append(
                f"  {name}: {percent['dcal']}% (DCAL), {percent['baseline']}% (baseline); this run: {own}"
            )
        changes = [f"{name} {now} (recipe: {before})" for name, (before, now) in self.changes.items()]
        changes += [f"{name} {value} (in this score)" for name, value in self.scored_with.items()]
        lines.append(
            f"This run has changes: {'; '.join(changes)}" if changes else "This run has the recipe's options."
        )
        return "\n".join(lines)


def reproduction_of(
    parser: ArgumentParser, given: Namespace, config: str, resumed: Path | None
) -> Reproduction | None:
    """The last recipe with expected scores that the options of a training run name.

    Args:
        parser: Of the options.
        given: The options of the command line.
        config: The text of the run's config.yaml, without its recipe.
        resumed: The folder of the run that this one goes on from: its recipe stays if the options name none.
    """
    before = [] if resumed is None or not (resumed / CONFIG).is_file() else [resumed / CONFIG]
    recipes = [read_recipe(Path(file))[1] for file in [*before, *(given["config"] or [])]]
    recipe = next((recipe for recipe in reversed(recipes) if recipe is not None), None)
    if recipe is None:
        return None
    own = parser.get_defaults()
    own["data.name"] = given["data.name"]  # unless the recipe has one
    own = parser.parse_object(dict(recipe.options), namespace=own)
    options = yaml.safe_load(parser.dump(own, skip_validation=True, format="yaml"))
    return Reproduction(recipe, changes_of(options, yaml.safe_load(config)))


def reproduction_in(run: Path | None) -> Reproduction | None:
    """The recipe that the config.yaml of a run records, if any."""
    if run is None or not (run / CONFIG).is_file():
        return None
    options, recipe = read_recipe(run / CONFIG)
    return None if recipe is None else Reproduction(recipe, changes_of(recipe.options, options))


def changes_of(recipe: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The values of options that differ and decide a result."""
    before, now = (
        {name: value for name, value in flat(deciding(options)).items() if name not in OF_THE_CALL}
        for options in (recipe, run)
    )
    return {
        name: (before.get(name), now.get(name)) for name in now | before if before.get(name) != now.get(name)
    }
