"""The demo from photos to pictures, shortened."""

import json
import shlex

import torch

from dca_triton.checkpoint import load_checkpoint, load_weights
from dca_triton.cli import demo
from dca_triton.cli.main import main


def test_fgvc_end_to_end(tmp_path):
    scores = demo.train_fgvc(tmp_path, epochs=2, progress=False)
    assert scores["pixels_top1"] > 0.9
    assert all(0 <= value <= 1 for value in scores.values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["total_loss"] < lines[0]["total_loss"]
    assert lines[1]["sa_loss_log_var"] != 0
    for picture in ("training.png", "rollout.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    model = demo.face_model(40, "fgvc", 0.1)
    rest = load_weights(model, load_checkpoint(tmp_path / "checkpoint.pt"))
    assert rest["epoch"] == 2
    assert "SA + GLCA" in demo.table(scores, None)


def test_reid_end_to_end(tmp_path):
    scores = demo.train_reid(tmp_path, epochs=1, progress=False)
    assert 0 < scores["mAP"] <= 1
    assert 0 < scores["rank1"] <= 1


def test_same_seed_same_bits(tmp_path):
    weights = []
    for run in ("a", "b"):
        demo.train_fgvc(tmp_path / run, epochs=1, seed=3, progress=False)
        weights.append(load_checkpoint(tmp_path / run / "checkpoint.pt")["model_state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_printed_commands_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["demo", "--output=out folder", "--fgvc_epochs=1", "--reid_epochs=1"])
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("dca-triton ")]
    assert [command[0] for command in commands] == ["evaluate", "embed", "visualize"]
    for command in commands:
        main(command)
    found = json.loads((tmp_path / "out folder/fgvc/evaluation.json").read_text())
    last = json.loads((tmp_path / "out folder/fgvc/metrics.jsonl").read_text().splitlines()[-1])
    assert found["sum_top1"] == last["sum_top1"] and found["photos"] == {"test": 160}
    main(["evaluate", "--run=out folder/reid"])
    found = json.loads((tmp_path / "out folder/reid/evaluation.json").read_text())
    last = json.loads((tmp_path / "out folder/reid/metrics.jsonl").read_text().splitlines()[-1])
    assert abs(found["mAP"] - last["mAP"]) < 1e-4
    assert (tmp_path / "out folder/faces.npz").is_file() and (tmp_path / "out folder/face.html").is_file()
