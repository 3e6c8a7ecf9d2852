"""`dca-triton export RUN FILE.onnx`."""

import sys
from pathlib import Path

import pytest
import torch
from small_training import described, small_model

from dca_triton import DualAttentionModel
from dca_triton.cli.main import main
from dca_triton.model import Predictor

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "run"
    described(small_model(depth=1)).save_pretrained(folder)
    return folder


def test_an_onnx_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "birds.onnx"
    main(["export", str(run), str(file), "--fp16=true"])
    assert "ONNX Runtime agrees with PyTorch to " in capsys.readouterr().out
    session = onnxruntime.InferenceSession(file)
    assert "classes" in session.get_modelmeta().custom_metadata_map
    images = torch.randn(4, 3, 16, 16)
    [found] = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        truth = Predictor(DualAttentionModel.from_pretrained(run))(images)
    error = (torch.from_numpy(found) - truth).abs().max()
    assert 1e-6 < error < 1e-2


def test_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for target, options, words in (
        ("folder.onnx", [], "target must be a file, got"),
        ("nowhere/birds.onnx", [], "target must be in a folder that exists"),
        ("birds", ["--fp16=true"], "--fp16 must not be given for a folder"),
    ):
        with pytest.raises(SystemExit, match=words):
            main(["export", str(run), str(tmp_path / target), *options])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit, match="onnxruntime must be installed"):
        main(["export", str(run), str(tmp_path / "birds.onnx")])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]
