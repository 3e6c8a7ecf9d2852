"""Config files that build on recipes and on one another, and what is wrong with others."""

from pathlib import Path

import pytest

from dca_triton.cli.main import main
from dca_triton.cli.recipe import flat, read_recipe, recipe_files


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_file_builds_on_others(tmp_path: Path) -> None:
    """The nearest value holds, and paths are relative to the file that names them."""
    (tmp_path / "more").mkdir()
    write(tmp_path, first="base: cub/deit_small\ntrainer.lr: 0.1\nmodel: {timm: {depth: 3}}\n")
    write(
        tmp_path / "more",
        second="base: ../first.yaml\ntrainer: {lr: 0.2, min_lr: 0.0}\nmodel: {timm: {x: 1}}\n",
    )
    options, recipe = read_recipe(tmp_path / "more/second.yaml")
    changed = {"trainer.lr": 0.2, "trainer.min_lr": 0.0, "model.timm.depth": 3, "model.timm.x": 1}
    shipped = flat(read_recipe(recipe_files()["cub/deit_small"])[0])
    assert flat(options) == shipped | changed
    assert recipe is not None and recipe.name == "cub/deit_small"
    assert flat(recipe.options) == shipped

    write(tmp_path, own="base: first.yaml\nexpected: {source: mine, mAP: {baseline: 1, dcal: 2.5}}\n")
    options, recipe = read_recipe(tmp_path / "own.yaml")
    assert recipe is not None and recipe.options == options and recipe.name == str(tmp_path / "own.yaml")
    assert recipe.expected == {"source": "mine", "mAP": {"baseline": 1, "dcal": 2.5}}


WRONG = [
    ("base: nowhere", "base in .*wrong.yaml must be a YAML file or a recipe that .*train --help"),
    ("base: 3", "base in .*wrong.yaml must be a YAML file or a recipe, got 3"),
    ("base: wrong.yaml", "base in .* must not lead back to itself, got .*wrong.yaml -> .*wrong.yaml"),
    (
        "base: other.yaml",
        r"must not lead back to itself, got .*wrong\.yaml -> .*other\.yaml -> .*wrong\.yaml",
    ),
    ("expected: 3", "expected in .*wrong.yaml must hold source, .* sum_top1, .* mAP, .*, got 3"),
    ("expected: {mAP: {baseline: 1, dcal: 2}}", "must hold source"),
    ("expected: {source: a}", "must hold source"),
    ("expected: {source: a, top1: {baseline: 1, dcal: 2}}", "must hold source"),
    ("expected: {source: a, mAP: {baseline: 1}}", "must hold source"),
    ("expected: {source: a, mAP: {baseline: 1, dcal: 200}}", "must hold source"),
    (
        "recipe: {name: a, expected: {source: a, mAP: {baseline: 1, dcal: 2}}, replaced: {1: 2}}",
        "recipe in .* must hold name, expected, replaced, got",
    ),
    ("recipe: {name: a}", "recipe in .* must hold name, expected, replaced, got"),
    ("base: ''", "base in .*wrong.yaml must have a value"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_files_end_with_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, wrong=text, other="base: wrong.yaml")
    for command in ("train", "evaluate"):
        with pytest.raises(SystemExit, match=message) as stop:
            main([command, f"--config={tmp_path / 'wrong.yaml'}"])
        assert "\n" not in str(stop.value.code)


def test_a_misspelt_recipe_is_named() -> None:
    with pytest.raises(SystemExit, match="train --help` lists, got 'cub/deit_smal'"):
        main(["train", "--config=cub/deit_smal"])
