"""From an experiment to its trainer."""

from pathlib import Path

import pytest

from dca_triton.cli import training_run
from dca_triton.cli.options import DataOptions, Experiment


def test_an_evaluation_shows_its_progress_where_the_trainer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only in the main process of a launch."""
    shown = []
    monkeypatch.setattr(training_run, "scores", lambda *_, progress: shown.append(progress) or {})
    model = {"backbone_name": "test_vit", "layout": "paper", "pretrained": False}
    data = DataOptions("orl-fgvc", size=(32, 32), resize=32, workers=0)
    trainer = training_run.prepare(Experiment(model, data, output=tmp_path)).trainer
    assert trainer.scoring.evaluate is not None
    for shows in (True, False):
        trainer.shows_progress = shows
        trainer.scoring.evaluate()
    assert shown == [True, False]
