"""A trained model for other runtimes: images to embeddings or probabilities, as one ONNX file."""

import copy
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..files import atomic_write
from .dual_attention import DualAttentionModel
from .export import check_onnx, onnx_bytes

TOLERANCES = {torch.float32: 1e-3, torch.float16: 5e-2}
BATCHES = (1, 3)


class Predictor(nn.Module):
    """A trained model with the output of its task: images (B, 3, h, w) -> embeddings or probabilities.

    Both are float32.

    - For reid: the embedding (B, E) of `DualAttentionModel.extract_features`. It uses no heads.
    - For fgvc: the sum (B, K) of SA's and GLCA's probabilities, which `evaluate_fgvc` ranks. A row sums to 2,
      or to 1 without GLCA.

    PWCA is not used. `torch.export.export` traces the module for any B.

    Args:
        model: Left in evaluation mode.
    """

    def __init__(self, model: DualAttentionModel) -> None:
        super().__init__()
        self.model = model.eval()
        self.output = "embedding" if model.task_type == "reid" else "probabilities"

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(next(self.model.parameters()).dtype)
        outputs = self.model(images, class_tokens_only=True)
        if self.output == "embedding":
            return outputs["combined_features"].float()
        logits = [outputs[f"{branch}_logits"] for branch in ("sa", "glca") if branch in self.model.branches]
        return torch.stack([each.float().softmax(1) for each in logits]).sum(0)


def export_predictor(model: DualAttentionModel, path: str | os.PathLike[str], fp16: bool = False) -> float:
    """Write `Predictor` as an ONNX file, checked by ONNX Runtime: "images" to "embedding" or "probabilities".

    The file takes any B and the backbone's image size, and its input and output are float32. The metadata of
    a model with a `description` say how to prepare a photo: each value is JSON, under the names "task",
    "classes" (fgvc), "resize" and "size" (height, width), "interpolation", "mean" and "std". A photo is
    resized to "resize", its center "size" is cropped, and values in [0, 1] are normalized.

    Args:
        model: Left in evaluation mode. A copy of it on the CPU is exported.
        path: The .onnx file; it is written whole or not at all, after the check.
        fp16: Store weights and the values between operations in half precision. Norms compute their
            statistics in float32 (ONNX's stash_type), and the rollout is float32. On a CPU, ONNX Runtime also
            computes softmax and products in float32.

    Returns:
        The largest distance of a row from PyTorch's in float32, over the length of that row, on batches of 1
        and 3 random images. It is at most 1e-3, or 5e-2 with fp16.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed (extra "export"); raised before any
            work.
        ValueError: As `export_onnx`.
        RuntimeError: The file would give other outputs than the model.
        OSError: The file cannot be written.
    """
    check_onnx(path, "onnxruntime")
    import onnxruntime

    dtype = torch.float16 if fp16 else torch.float32
    truth = _copy(model, torch.float32)
    data = _onnx_bytes(truth if dtype == torch.float32 else _copy(model, dtype), _metadata(model))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    error = max(_error(truth, lambda x: session.run(None, {"images": x})[0], B) for B in BATCHES)
    if not error <= TOLERANCES[dtype]:
        raise RuntimeError(
            f"the outputs of ONNX Runtime must be within {TOLERANCES[dtype]:g} of PyTorch's, relative to "
            f"their length, got {error:.2g}; nothing was written"
        )
    with atomic_write(path) as file:
        file.write(data)
    return error


def _copy(model: DualAttentionModel, dtype: torch.dtype) -> Predictor:
    """A predictor on the CPU, in PyTorch operations alone."""
    own = copy.deepcopy(model).to("cpu", dtype)
    own.backend = "torch"
    return Predictor(own)


def _images(predictor: Predictor, B: int) -> Tensor:
    backbone = predictor.model.backbone
    shape = (B, backbone.in_chans, *backbone.img_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(B))


def _onnx_bytes(predictor: Predictor, metadata: dict[str, str]) -> bytes:
    batch = ({0: torch.export.Dim("B", min=1)},)
    program = torch.export.export(predictor, (_images(predictor, 2),), dynamic_shapes=batch)
    return onnx_bytes(program, "images", [predictor.output], metadata)


def _metadata(model: DualAttentionModel) -> dict[str, str]:
    values: dict[str, Any] = {"task": model.task_type}
    if (known := model.description) is not None:
        if known.task == "fgvc":
            values["classes"] = known.classes
        values["size"] = known.size
        values["resize"] = (known.resize, known.resize) if known.test_crop == "center" else known.size
        values |= {"interpolation": "bicubic", "mean": known.mean, "std": known.std}
    return {name: json.dumps(value) for name, value in values.items()}


@torch.no_grad()
def _error(truth: Predictor, exported: Callable[[np.ndarray], np.ndarray], B: int) -> float:
    """The largest distance of a row from the truth, over the length of the true row."""
    images = _images(truth, B)
    expected = truth(images)
    difference = torch.from_numpy(exported(images.numpy())) - expected
    return float((difference.norm(dim=1) / expected.norm(dim=1)).max())
