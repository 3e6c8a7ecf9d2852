"""Embeddings are the model's own, in the order of the batches, and both kinds of file give them back."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from dca_triton import DualAttentionModel
from dca_triton.evaluation import Embeddings, embed, load_embeddings, save_embeddings

IMAGES = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LABELS, CAMERAS = torch.tensor([3, 1, 4, 1, 5]), torch.tensor([2, 7, 1, 8, 2])
PATHS = ["a/1.jpg", "b/ü 2.jpg", "c/3.jpg", "d\n4.jpg", "e/5.jpg"]


def batches(*names: str) -> list[dict[str, Any]]:
    whole = {"image": IMAGES, "label": LABELS, "camera": CAMERAS, "path": PATHS}
    return [{name: whole[name][part] for name in names} for part in (slice(0, 2), slice(2, 5))]


@pytest.fixture(scope="module", params=["fgvc", "reid"])
def model(request: pytest.FixtureRequest) -> DualAttentionModel:
    torch.manual_seed(0)
    return DualAttentionModel(
        "test_vit", 5, request.param, layout="paper", img_size=64, pretrained=False
    ).train()


def made() -> Embeddings:
    return Embeddings(torch.randn(5, 6), LABELS, CAMERAS, tuple(PATHS))


def same(found: Embeddings, expected: Embeddings) -> bool:
    return found.paths == expected.paths and all(map(torch.equal, found[:3], expected[:3]))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_file_holds_the_models_embeddings_in_order(
    model: DualAttentionModel, suffix: str, tmp_path: Path
) -> None:
    found = embed(model, batches("image", "label", "camera", "path"), tmp_path / f"e{suffix}", progress=False)
    assert not model.training
    outputs = model(IMAGES)
    tokens = [outputs["sa_features"][:, 0], outputs["glca_features"][:, 0]]
    expected = torch.cat(tokens, 1) if model.task_type == "reid" else tokens[0]
    torch.testing.assert_close(found.features, expected.detach(), rtol=1e-4, atol=1e-5)
    assert found.features.dtype == torch.float32 and not found.features.requires_grad
    assert found.paths == tuple(PATHS)
    assert torch.equal(found.labels, LABELS) and torch.equal(found.cameras, CAMERAS)
    assert same(load_embeddings(tmp_path / f"e{suffix}"), found)


def test_cameras_and_paths_may_be_unknown(model: DualAttentionModel) -> None:
    found = embed(model, batches("image", "label"), progress=False)
    assert found.cameras.tolist() == [-1] * 5 and found.paths == ("",) * 5


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    expected = made()
    save_embeddings(expected, tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["cameras", "features", "labels", "paths"]
        assert arrays["paths"].tolist() == PATHS
        assert arrays["features"].dtype == np.float32
    save_embeddings(expected, tmp_path / "e.safetensors")
    with safe_open(tmp_path / "e.safetensors", framework="np") as file:
        assert sorted(file.keys()) == ["cameras", "features", "labels"]
        assert "b/ü 2.jpg" in file.metadata()["paths"].encode().decode("unicode_escape")


def test_bad_output_is_refused_before_the_work(model: DualAttentionModel, tmp_path: Path) -> None:
    def work():
        raise AssertionError("a batch was read")
        yield

    with pytest.raises(ValueError, match=r"output must end in .npz or .safetensors, got 'e.csv'"):
        embed(model, work(), "e.csv", progress=False)
    with pytest.raises(ValueError, match=r"output must be in a folder that exists, got 'no/e.npz'"):
        embed(model, work(), "no/e.npz", progress=False)
    with pytest.raises(ValueError, match=r"output must be a file, got '.*f\.npz', a folder"):
        (tmp_path / "f.npz").mkdir()
        embed(model, work(), tmp_path / "f.npz", progress=False)
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        embed(model, [], "e.npz", progress=False)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_unwritable_files_are_os_errors(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"e{suffix}").mkdir()
    with pytest.raises(OSError, match=f"e{suffix}"):
        save_embeddings(made(), tmp_path / f"e{suffix}")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_files_are_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"e{suffix}"
    with pytest.raises(
        FileNotFoundError, match=f"path must be a .npz or .safetensors file that exists, got .*e{suffix}"
    ):
        load_embeddings(path)
    save_embeddings(made(), path)
    whole = path.read_bytes()
    for bytes_ in (b"", whole[: len(whole) // 2], b"\xff" * 100):
        path.write_bytes(bytes_)
        with pytest.raises(ValueError, match=f"e{suffix} cannot be read"):
            load_embeddings(path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    tensors = {name: getattr(made(), name).numpy() for name in ("features", "labels", "cameras")}
    np.savez(tmp_path / "e.npz", paths=np.array([print], dtype=object), **tensors)
    with pytest.raises(ValueError, match=r"cannot be read \(ValueError: Object arrays cannot be loaded"):
        load_embeddings(tmp_path / "e.npz")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_paths_of_any_bytes_survive(suffix: str, tmp_path: Path) -> None:
    odd = ("a/\udcff\udc80.jpg", "\u76ee\u5f55/\u3000.png", "e\u0301", "\U0001f426.jpg", "x\ty\u2028.jpg")
    save_embeddings(made()._replace(paths=odd), tmp_path / f"e{suffix}")
    assert load_embeddings(tmp_path / f"e{suffix}").paths == odd


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_failed_write_leaves_the_older_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"e{suffix}"
    save_embeddings(made(), path)
    whole = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "numpy.savez" if suffix == ".npz" else "dca_triton.evaluation.embeddings.save_file", full
    )
    with pytest.raises(OSError, match=f"e{suffix} cannot be written .No space left"):
        save_embeddings(made(), path)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (
            {"labels": LABELS[:3]},
            "labels must be a dense integer tensor (S,) with S = 5, got an int64 tensor (3,) on cpu",
        ),
        (
            {"cameras": torch.zeros(5)},
            "cameras must be a dense integer tensor (S,) with S = 5, got a float32 tensor (5,) on cpu",
        ),
        (
            {"features": torch.zeros(5)},
            "features must be a dense floating-point tensor (S, C) with sizes >= 1, got a float32",
        ),
        ({"paths": ("a",)}, "paths must be one text for each of the photos, got 1 values"),
    ],
)
def test_files_that_hold_something_else(
    changed: dict[str, Any], fault: str, suffix: str, tmp_path: Path
) -> None:
    save_embeddings(made()._replace(**changed), tmp_path / f"e{suffix}")
    with pytest.raises(ValueError, match=re.escape(fault)):
        load_embeddings(tmp_path / f"e{suffix}")
