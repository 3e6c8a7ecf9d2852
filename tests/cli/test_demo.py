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


def percents(lines: list[str]) -> dict[str, str]:
    """The scores of the printed table, as printed."""
    rows = [re.fullmatch(r"  (.+?) +([\d.]+) %", line) for line in lines]
    return {row[1]: row[2] for row in rows if row}


def test_fgvc_end_to_end(run: Run) -> None:
    folder, printed = run[0] / "out folder/fgvc", percents(run[1])
    lines = history(folder)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["total_loss"] < lines[0]["total_loss"]
    assert lines[1]["sa_loss_log_var"] != 0
    scores = {name: value for name, value in lines[1].items() if name.endswith(("top1", "top5"))}
    assert len(scores) == 6 and all(0 <= value <= 1 for value in scores.values())
    for text, name in (("SA", "sa"), ("GLCA", "glca"), ("SA + GLCA", "sum")):
        assert printed[text] == f"{100 * scores[f'{name}_top1']:.2f}"
    assert float(printed["nearest pixels"]) > 90
    assert "SA + GLCA" in demo.table(scores | {"pixels_top1": 0.9}, None)
    assert_pictures(folder)
    rest = load_weights(demo.face_model(40, "fgvc", 0.1), load_checkpoint(folder / "checkpoint.pt"))
    assert rest["epoch"] == 2


def test_reid_end_to_end(run: Run) -> None:
    folder, printed = run[0] / "out folder/reid", percents(run[1])
    scores = history(folder)[-1]
    for name in ("mAP", "rank1"):
        assert 0 < scores[name] <= 1
        assert printed[name] == f"{100 * scores[name]:.2f}"
    assert_pictures(folder)


def assert_pictures(folder: Path) -> None:
    for picture in ("training.png", "rollout.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one photo of each person, without pictures."""
    monkeypatch.setattr(demo, "_pictures", lambda *_: None)
    weights = {}
    for run, seed in (("a", 3), ("b", 3), ("c", 4)):
        demo.train_fgvc(tmp_path / run, epochs=1, holdout=5, seed=seed, progress=False)
        weights[run] = load_checkpoint(tmp_path / run / "checkpoint.pt")["model_state_dict"]
    a, b, c = weights.values()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["sa_head.weight"], c["sa_head.weight"])


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
