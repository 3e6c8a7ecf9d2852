"""The demo from photos to pictures, shortened."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from dca_triton.checkpoint import load_checkpoint, load_weights
from dca_triton.cli import demo
from dca_triton.cli.main import main

Run = tuple[Path, list[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The folder where `dca-triton demo` ran, and the lines that it printed."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        main(["demo", "--output=out folder", "--fgvc_epochs=2", "--reid_epochs=1", "--seed=3"])
    return folder, printed.getvalue().splitlines()


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def percents(lines: list[str]) -> dict[str, float]:
    """The scores of the printed table."""
    rows = [re.fullmatch(r"  (.+?) +([\d.]+) %", line) for line in lines]
    return {row[1]: float(row[2]) for row in rows if row}


def test_fgvc_end_to_end(run: Run, tmp_path: Path) -> None:
    """From Python as from the command line: same seed, same bits."""
    scores = demo.train_fgvc(tmp_path, epochs=2, seed=3, progress=False)
    assert scores["pixels_top1"] > 0.9
    assert all(0 <= value <= 1 for value in scores.values())
    lines = history(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["total_loss"] < lines[0]["total_loss"]
    assert lines[1]["sa_loss_log_var"] != 0
    for picture in ("training.png", "rollout.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert load_weights(demo.face_model(40, "fgvc", 0.1), state)["epoch"] == 2
    assert "SA + GLCA" in demo.table(scores, None)
    other = load_checkpoint(run[0] / "out folder/fgvc/checkpoint.pt")["model_state_dict"]
    own = state["model_state_dict"]
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_reid_end_to_end(run: Run) -> None:
    folder, lines = run
    scores = history(folder / "out folder/reid")[-1]
    for name in ("mAP", "rank1"):
        assert 0 < scores[name] <= 1
        assert percents(lines)[name] == pytest.approx(100 * scores[name], abs=0.005)
    for picture in ("training.png", "rollout.png"):
        assert (folder / "out folder/reid" / picture).read_bytes().startswith(b"\x89PNG")


def test_the_printed_commands_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, lines = run
    monkeypatch.chdir(folder)
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("dca-triton ")]
    assert [command[0] for command in commands] == ["evaluate", "embed", "visualize"]
    for command in commands:
        main(command)
    found = json.loads(Path("out folder/fgvc/evaluation.json").read_text())
    assert found["sum_top1"] == history(Path("out folder/fgvc"))[-1]["sum_top1"]
    assert found["photos"] == {"test": 160}
    main(["evaluate", "--run=out folder/reid"])
    found = json.loads(Path("out folder/reid/evaluation.json").read_text())
    assert abs(found["mAP"] - history(Path("out folder/reid"))[-1]["mAP"]) < 1e-4
    assert Path("out folder/faces.npz").is_file() and Path("out folder/face.html").is_file()
