"""The page of the recipes has a row for each of them, with the numbers of their files."""

import re
from pathlib import Path
from typing import Any

from dca_triton.cli.recipe import read_recipe, recipe_files

TEXT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
PAGE = re.sub(r"^(\| `\w+/.*\|)[^|]+\|$", r"\1 - |", TEXT, flags=re.MULTILINE)  # whatever was measured here
SCORES = {"sum_top1": "top-1", "mAP": "mAP", "rank1": "rank-1"}


def table(recipes: dict[str, dict[str, Any]]) -> str:
    """The table of a dataset's recipes: "mAP / rank-1" where there are two scores."""
    scores = next(iter(recipes.values()))
    names = " / ".join(SCORES[score] for score in scores)
    lines = [
        f"| `--config` | baseline, {names} | DCAL, {names} | measured here |",
        "| --- | --- | --- | --- |",
    ]
    for name, expected in recipes.items():
        columns = (
            " / ".join(f"{values[kind]:.1f}" for values in expected.values()) for kind in ("baseline", "dcal")
        )
        lines.append(f"| `{name}` | {' | '.join(columns)} | - |")
    return "\n".join(lines)


def test_the_tables_are_those_of_the_recipes() -> None:
    """After a change of a recipe, copy the table from the failure."""
    datasets: dict[str, dict[str, dict[str, Any]]] = {}
    for name, file in recipe_files().items():
        _, recipe = read_recipe(file)
        if recipe is not None:
            scores = {score: value for score, value in recipe.expected.items() if score != "source"}
            datasets.setdefault(name.partition("/")[0], {})[name] = scores
    assert len(datasets) == 7
    for dataset, recipes in datasets.items():
        assert table(recipes) in PAGE, f"docs/recipes.md must hold\n{table(recipes)}"
        assert re.search(rf"^dca-triton train --config {dataset}/\w+ --data\.root ", PAGE, re.MULTILINE)


def test_every_other_recipe_is_named_with_its_weights() -> None:
    rest = [name for name, file in recipe_files().items() if read_recipe(file)[1] is None]
    assert len(rest) == 8 + 5
    for name in rest:
        backbone = read_recipe(recipe_files()[name])[0]["model"]["backbone_name"]
        row = f"| `{name}` | `{backbone}` | - |" if "/" in name else f"`{name}`"
        assert row in PAGE, f"docs/recipes.md must hold {row}"


def test_the_example_builds_on_a_recipe(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "own.yaml").write_text(example)
    options, recipe = read_recipe(tmp_path / "own.yaml")
    base, _ = read_recipe(recipe_files()["cub/deit_small"])
    assert options == base | {"trainer": base["trainer"] | {"ema_decay": 0.999}}
    assert recipe is not None and recipe.expected["source"] == "our first run"
