"""The scores of a recipe's source are printed beside the run's, with all that was changed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from dataset_trees import TREES

from dca_triton.cli.main import main
from dca_triton.cli.recipe import merged

RECIPE = """
base: fgvc
model: {backbone_name: test_vit, pretrained: false, timm: {depth: 1}}
data: {name: folder, size: [32, 32], resize: 36, batch_size: 8, workers: 0}
trainer: {warmup_epochs: 0, progress: false}
epochs: 1
expected: {source: a note, sum_top1: {baseline: 40, dcal: 62.5}}
"""
SAME = "This run has the recipe's options."


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    TREES["folder"](tmp_path / "photos")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"


def options_of(run: Path) -> dict[str, Any]:
    """The config of a run without its recipe."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    return {name: value for name, value in config.items() if name != "recipe"}


def said(capsys: pytest.CaptureFixture[str], command: str, *options: str) -> list[str]:
    """What a command prints below the table of scores."""
    capsys.readouterr()
    main([command, *options])
    lines = capsys.readouterr().out.splitlines()
    return lines[[line.startswith("scored photos") for line in lines].index(True) + 1 :]


def test_a_run_is_compared_with_its_recipe(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", f"--data.root={tmp_path / 'photos'}"
    train = ["train", f"--config={recipe}", data]
    # What no recipe decides is no change: the photos' place, the seed, how often is saved.
    lines = said(capsys, *train, f"--output={run}", "--seed=3", "--trainer.save_every=2")
    score = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["sum_top1"]
    compared = f"  sum_top1: 62.5% (DCAL), 40% (baseline); this run: {100 * score:.2f}%"
    assert lines == [f"{recipe}, as reported by a note:", compared, SAME]
    assert said(capsys, "evaluate", f"--run={run}") == lines

    # Changes are told, by whatever file they come, and stay told when the run goes on by its own config.
    run = tmp_path / "other"
    options = ["--epochs=2", "--trainer.mixup=0.5", "--model.timm={depth: 1, init_values: 0.1}"]
    lines = said(capsys, *train, f"--output={run}", *options)
    changes = ["epochs 2 (recipe: 1)", "trainer.mixup 0.5 (recipe: 0.0)"]
    changes.append("model.timm.init_values 0.1 (recipe: None)")
    assert lines[-1].startswith("This run has changes: ")
    assert sorted(lines[-1].removeprefix("This run has changes: ").split("; ")) == sorted(changes)
    recipe.unlink()
    resumed = ["train", f"--config={run / 'config.yaml'}", "--resume=auto"]
    assert said(capsys, *resumed)[-1] == lines[-1]
    more = said(capsys, *resumed, "--epochs=3")[-1]
    assert more == lines[-1].replace("epochs 2", "epochs 3")
    assert said(capsys, "evaluate", f"--run={run}")[-1] == more
    (tmp_path / "none.yaml").write_text(yaml.safe_dump(options_of(run)))
    by_hand = [f"--config={tmp_path / 'none.yaml'}", f"--output={run}", "--resume=auto"]
    assert said(capsys, "train", *by_hand)[-1] == more

    options = [f"--weights={run / 'checkpoint.pt'}", "--flip=true", "--model={top_k_ratio: 1.0}"]
    assert said(capsys, "evaluate", f"--run={run}", *options)[-1] == (
        f"{more}; model.top_k_ratio 1.0 (in this score); flip True (in this score); "
        f"weights {run / 'checkpoint.pt'} (in this score)"
    )


def test_a_change_that_is_taken_back_is_none(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"base: tiny.yaml\ndata: {{root: {tmp_path / 'photos'}}}\ntrainer: {{label_smoothing: 0.1}}\n"
    )
    first, second = tmp_path / "first", tmp_path / "second"
    told = "This run has changes: trainer.label_smoothing 0.1 (recipe: 0.0)"
    assert said(capsys, "train", f"--config={mine}", f"--output={first}")[-1] == told
    record = yaml.safe_load((first / "config.yaml").read_text())["recipe"]
    assert record["replaced"] == {"trainer.label_smoothing": 0.0} and record["name"] == str(recipe)
    back = [f"--config={first / 'config.yaml'}", f"--output={second}", "--trainer.label_smoothing=0"]
    assert said(capsys, "train", *back)[-1] == SAME


def test_no_comparison_without_expected_scores(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = yaml.safe_load(RECIPE)
    del options["expected"]
    recipe.write_text(yaml.safe_dump(merged(options, {"data": {"root": str(tmp_path / "photos")}})))
    run = tmp_path / "run"
    assert said(capsys, "train", f"--config={recipe}", f"--output={run}") == []
    assert said(capsys, "evaluate", f"--run={run}") == []
    assert "recipe" not in yaml.safe_load((run / "config.yaml").read_text())


def test_another_dataset_of_another_task_has_no_such_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    TREES["market1501"](tmp_path / "people")
    place = [f"--data.root={tmp_path / 'people'}", f"--output={tmp_path / 'run'}"]
    other = ["--data.name=market1501", "--data.test_crop=resize"]
    lines = said(capsys, "train", f"--config={tmp_path / 'tiny.yaml'}", *place, *other)
    assert lines[1].endswith("this run: has no such score")
    assert "data.name market1501 (recipe: folder)" in lines[2]
