"""Evaluation as one graph for other runtimes: a `torch.export` program, or an ONNX file."""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch

from ..arguments import raise_faults
from ..files import atomic_write, path_faults
from .dual_attention import DualAttentionModel

MOST_BYTES = 2**31 - 1  # of a protobuf message, which an ONNX file is


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
    """
    weight = next(model.parameters())
    height, width = model.backbone.img_size
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
        path: The .onnx file; it is written whole or not at all.
        class_tokens_only: As in `export_program`.

    Raises:
        ValueError: `path` has another suffix, lies in no folder or is no file, which is raised before any
            work, or the weights need 2 GiB or more.
        ImportError: onnx or onnxscript is not installed (extra "export"); raised before any work.
        OSError: The file cannot be written.
    """
    check_onnx(path)
    program = export_program(model, class_tokens_only)
    data = onnx_bytes(program, "x", program.call_spec.out_spec.context)
    with atomic_write(path) as file:
        file.write(data)


def check_onnx(path: str | os.PathLike[str], *packages: str) -> None:
    """Raise ImportError or ValueError if no ONNX file can be made or written, with more `packages` needed."""
    for package in ("onnx", "onnxscript", *packages):
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(
                f"{package} must be installed for an ONNX file (pip install 'dca-triton[export]'), "
                f"got: {error}"
            ) from error
    raise_faults(path_faults("path", Path(path), (".onnx",)))


def onnx_bytes(
    program: torch.export.ExportedProgram,
    image_name: str,
    output_names: Sequence[str],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A program as the content of an ONNX file. Raises ValueError for weights of 2 GiB or more."""
    size = sum(weight.nbytes for weight in program.state_dict.values())
    if size > MOST_BYTES:
        raise ValueError(f"weights must be less than 2 GiB in an ONNX file, got {size / 2**30:.1f} GiB")
    converted = torch.onnx.export(
        program, input_names=[image_name], output_names=output_names, dynamo=True, verbose=False
    )
    assert converted is not None
    converted.model.metadata_props.update(metadata or {})
    return converted.model_proto.SerializeToString()
