"""jsonargparse's findings in this project's words."""

from pathlib import Path
from typing import Any, Literal

import pytest

from dca_triton.cli.main import main
from dca_triton.cli.sentences import words_of

TRAIN = ["train", "--data.name=orl-fgvc", "--model.backbone_name=test_vit", "--model.pretrained=false"]


@pytest.mark.parametrize(
    ("typehint", "words"),
    [
        (int, "an integer"),
        (float | None, "a number"),
        (Literal["a", "b", "c"] | None, "'a', 'b' or 'c'"),
        (tuple[int, int], "a list [an integer, an integer]"),
        (tuple[int, ...], "a list of integers"),
        (list[Path] | Path, "a list of paths or a path"),
        (dict[str, Any], "a mapping"),
    ],
)
def test_types_in_words(typehint: Any, words: str) -> None:
    assert words_of(typehint) == words


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            [*TRAIN, "--trainer.optimizer=lion"],
            "--trainer.optimizer must be 'adam', 'adamw' or 'sgd', got lion",
        ),
        ([*TRAIN, "--trainer.clip_grad=a"], "--trainer.clip_grad must be a number, got a"),
        ([*TRAIN, "--data.size=3"], "--data.size must be a list [an integer, an integer], got 3"),
        (
            [*TRAIN, "--data=3"],
            "--data must be a mapping or a YAML file of its options (--data.OPTION=VALUE), got 3",
        ),
        ([*TRAIN, "--epochs=0"], "--epochs must be an integer >= 1, got 0"),
        ([*TRAIN, "--trainer.lr=-1"], "--trainer.lr must be a number > 0 and <= 1e18, got -1.0"),
        ([*TRAIN, "--data.workers=-1"], "--data.workers must be an integer in [0, 1024], got -1"),
        ([*TRAIN, "--trainer.lr"], "--trainer.lr must have a value, got none"),
        (["train"], "--model.backbone_name, --data.name must be given, got nothing"),
        (["export", "a"], "target must be given, got nothing"),
        (["evaluate", "--run=nope"], "--run must be the folder of a training run or of `export`, got 'nope'"),
        (["evaluate", "--run=a", "--model={timm: 3}"], "--model.timm must be a mapping, got 3"),
        (["evaluate", "--run=a", "--model.top_k_ratio=7"], "--model.top_k_ratio must be in (0, 1], got 7"),
        (["embed", "--run=a", "--photos=nope", "--file=a.npz"], "--photos must be a folder, got 'nope'"),
        (["demo", "--fgvc_epochs=0"], "--fgvc_epochs must be an integer >= 1, got 0"),
        (["nope"], "command must be one of train, evaluate"),
        ([], "command must be one of train, evaluate"),
        ([*TRAIN, "--data.size=[33, 33]"], "img_size must be (height, width) in multiples of the patch"),
        ([*TRAIN, "--trainer.best_by=nope"], "--trainer.best_by must be one of sa_top1, sa_top5"),
        ([*TRAIN, "--trainer.best_by=queries"], "--trainer.best_by must be one of sa_top1, sa_top5"),
    ],
)
def test_options_are_named_as_they_are_typed(line: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(line)
    assert str(stop.value.code).startswith(f"dca-triton: {sentence}")
    assert "Parser key" not in str(stop.value.code)


def test_faults_of_all_sections_at_once() -> None:
    with pytest.raises(SystemExit) as stop:
        main([*TRAIN, "--data.batch_size=0", "--trainer.accumulate=0", "--model.top_k_ratio=2", "--epochs=0"])
    for name in ("--data.batch_size", "--trainer.accumulate", "--model.top_k_ratio", "--epochs"):
        assert f"{name} must be" in str(stop.value.code)


@pytest.mark.parametrize("option", ["--run=", "--weights=", "--data.root=", "--file="])
def test_an_empty_path_is_not_the_current_folder(option: str) -> None:
    for line in (["evaluate", option], ["evaluate", option.removesuffix("="), ""]):
        with pytest.raises(SystemExit, match=f"{option.removesuffix('=')} must have a value"):
            main(line)
