"""A model's answers as an ONNX file: equal to its scores' inputs, without what they do not need, checked."""

import copy
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import bits, described, small_model
from timm_streams import narrow_model, randomized
from torch import Tensor

from dca_triton import DualAttentionModel
from dca_triton.evaluation.scores import predict
from dca_triton.model import Predictor, deployment, export, export_predictor

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def eva(**options: Any) -> DualAttentionModel:
    sizes = {"embed_dim": 64, "depth": 1, "num_heads": 4}
    return narrow_model("vit_small_patch16_dinov3", sizes, img_size=(32, 48), **options)


CASES = {
    "class token": (small_model, {"depth": 1}),
    "both": (small_model, {"glca_readout": "both"}),
    "local, identities": (
        small_model,
        {"task_type": "reid", "layout": "reference", "depth": 1, "num_sa_blocks": 1, "glca_readout": "local"},
    ),
    "Eva, identities": (eva, {"task_type": "reid", "glca_readout": "both"}),
}


def built(case: str) -> DualAttentionModel:
    make, options = CASES[case]
    torch.manual_seed(0)
    return randomized(make(**options)).eval()


def images_of(model: DualAttentionModel, B: int) -> Tensor:
    return torch.randn(B, 3, *model.backbone.img_size, generator=torch.Generator().manual_seed(9))


def scored(model: DualAttentionModel, images: Tensor) -> Tensor:
    """What evaluation computes its scores from."""
    if model.task_type == "reid":
        return model.extract_features(images)
    return predict(model, [{"image": images, "label": torch.zeros(len(images))}], progress=False)[0]["sum"]


@torch.no_grad()
@pytest.mark.parametrize("branches", [("sa",), ("sa", "pwca"), ("sa", "glca"), ("sa", "glca", "pwca")])
@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_a_predictor_answers_what_evaluation_scores(task: str, branches: tuple[str, ...]) -> None:
    model = small_model(task_type=task, branches=branches).train()
    images = images_of(model, 3)
    torch.testing.assert_close(Predictor(model)(images), scored(model, images), rtol=0, atol=1e-6)


def answers(file: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(file)
    [found] = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(found)


@pytest.fixture(scope="module")
def model() -> DualAttentionModel:
    return described(built("both"), test_crop="center")


@pytest.fixture(scope="module")
def exported(model: DualAttentionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert export_predictor(model, file) < 1e-5
    return file


@pytest.mark.parametrize("case", CASES)
def test_a_file_answers_what_evaluation_scores(case: str, tmp_path: Path, exported: Path) -> None:
    model, file = built(case), exported
    if case != "both":
        file = tmp_path / "model.onnx"
        assert export_predictor(model, file) < 1e-5
    for B in (2, 5):  # not those that the export tries
        images = images_of(model, B)
        torch.testing.assert_close(answers(file, images), scored(model, images), rtol=1e-4, atol=1e-5)
    graph = onnx.load(file).graph
    name = "embedding" if model.task_type == "reid" else "probabilities"
    assert [x.name for x in graph.input] == ["images"] and [x.name for x in graph.output] == [name]
    weights = " ".join(x.name for x in graph.initializer)
    heads = {branch for branch in ("sa", "glca", "pwca") if f"{branch}_head" in weights}
    assert heads == ({*model.branches} - {"pwca"} if model.task_type == "fgvc" else set())
    selects = model.glca_readout != "class"
    assert ("TopK" in Counter(node.op_type for node in graph.node)) == selects


def test_half_precision(model: DualAttentionModel, exported: Path, tmp_path: Path) -> None:
    """Weights of half the size, images and outputs in float32, and nothing changes in the model itself."""
    file, before = tmp_path / "half.onnx", bits(model.state_dict())
    error = export_predictor(model, file, fp16=True)
    assert 1e-5 < error < 5e-2
    images = images_of(model, 5)
    found, truth = answers(file, images), scored(model, images)
    assert found.dtype == torch.float32
    assert ((found - truth).norm(dim=1) < 5e-2 * truth.norm(dim=1)).all()
    half, full = (
        {x.data_type for x in onnx.load(each).graph.initializer if len(x.dims) > 1} & FLOATS
        for each in (file, exported)
    )
    assert half == {onnx.TensorProto.FLOAT16} and full == {onnx.TensorProto.FLOAT}
    assert bits(model.state_dict()) == before and model.backend == "auto"


def test_the_metadata_prepare_a_photo(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported)
    known = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert known == {
        "task": "fgvc",
        "classes": ["jay", "owl", "tit", "wren"],
        "size": [16, 16],
        "resize": [20, 20],
        "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.1],
    }


def test_a_file_that_answers_otherwise_is_not_written(
    model: DualAttentionModel, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_text("an older one")
    monkeypatch.setattr(deployment, "_onnx_bytes", lambda *_: exported.read_bytes())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.sa_head.weight.mul_(0.9)
    with pytest.raises(RuntimeError, match=r"must be within 0\.001 of PyTorch's.*nothing was written"):
        export_predictor(other, tmp_path / "model.onnx")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.onnx", "an older one")]
    export_predictor(model, tmp_path / "model.onnx")  # the file of the model itself passes
    assert (tmp_path / "model.onnx").read_bytes() == exported.read_bytes()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_any_work(
    package: str, model: DualAttentionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} must be installed.*dca-triton\[export\]"):
        export_predictor(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_refused(model: DualAttentionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.onnx, got 'model.pt'"):
        export_predictor(model, "model.pt")
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="weights must be less than 2 GiB in an ONNX file"):
        export_predictor(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
