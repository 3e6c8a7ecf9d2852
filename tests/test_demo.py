"""The demo from photos to pictures, shortened."""

import json

import torch

from dca_triton import demo
from dca_triton.checkpoint import load_checkpoint, load_weights


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
