"""Evaluation as one graph for other runtimes: a `torch.export` program, or an ONNX file."""

import os

import torch

from .dual_attention import DualAttentionModel


def export_program(
    model: DualAttentionModel, class_tokens_only: bool = False
) -> torch.export.ExportedProgram:
    """Export the evaluation of a model on images (B, 3, h, w), for any B and the backbone's image size.

    Args:
        model: Left in evaluation mode. The graph holds PyTorch operations only: no Triton kernel and no
            rollout cache.
        class_tokens_only: As in `DualAttentionModel.forward`; the graph then has a rollout only if selected
            patches reach GLCA's readout.

    Returns:
        A program whose `.module()(images, class_tokens_only=...)`, called with the same value, returns the
        same dict as the model.

    Raises:
        ValueError: The model has backend="triton", which other runtimes do not have.
    """
    if model.backend == "triton":
        raise ValueError("backend must be 'auto' or 'torch' for an export, got 'triton'")
    weight = next(model.parameters())
    height, width = model.backbone.model.patch_embed.img_size
    images = torch.zeros(2, model.backbone.in_chans, height, width, device=weight.device, dtype=weight.dtype)
    backend, model.backend = model.backend, "torch"
    try:
        return torch.export.export(
            model.eval(),
            (images,),
            {"class_tokens_only": class_tokens_only},
            dynamic_shapes={"x": {0: torch.export.Dim("B", min=1)}, "class_tokens_only": None},
        )
    finally:
        model.backend = backend


def export_onnx(
    model: DualAttentionModel, path: str | os.PathLike[str], class_tokens_only: bool = False
) -> None:
    """Write the evaluation of a model as an ONNX file: input "x" (B, 3, h, w), outputs named as the model's.

    Args:
        model: As in `export_program`.
        path: The .onnx file; weights above 2 GB lie beside it.
        class_tokens_only: As in `export_program`.

    Raises:
        ValueError: As `export_program`.
        ImportError: onnx or onnxscript is not installed (extra "export").
    """
    program = export_program(model, class_tokens_only)
    names = list(program.call_spec.out_spec.context)
    converted = torch.onnx.export(
        program, input_names=["x"], output_names=names, dynamo=True, verbose=False, optimize=True
    )
    assert converted is not None
    converted.save(path)
