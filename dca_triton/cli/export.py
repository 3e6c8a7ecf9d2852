"""`dca-triton export`: a trained model as a folder or as an ONNX file."""

from pathlib import Path

from ..arguments import raise_faults
from ..files import path_faults
from .options import Selection


def export(selection: Selection, run: Path, target: Path, fp16: bool = False) -> None:
    """Write a trained model as a folder for `DualAttentionModel.from_pretrained`, or as an ONNX file.

    Args:
        selection: Another checkpoint, or changed arguments of the model.
        run: The folder of a training run.
        target: The folder or file to write. A folder, new or empty, gets config.json, model.safetensors and
            README.md, a model card. A file that ends in .onnx gets a model from photos to embeddings
            (identities) or probabilities (categories).
        fp16: Store an .onnx file in half precision.
    """
    from .outputs import check_new, new_folder
    from .trained import load_trained

    onnx = target.suffix == ".onnx"
    if onnx:
        raise_faults(path_faults("target", target, (".onnx",)))
    else:
        check_new(target)
    if fp16 and not onnx:
        raise ValueError(f"--fp16 must not be given for a folder, got {str(target)!r}")
    trained = load_trained(selection)
    trained.model.description = trained.description
    if onnx:
        from ..model import export_predictor

        error = export_predictor(trained.model, target, fp16)
        print(f"{target}: {trained.file}; ONNX Runtime agrees with PyTorch to {error:.1g}")
        return
    with new_folder(target) as written:
        trained.model.save_pretrained(written)
    print(f"{target}: {trained.file} for DualAttentionModel.from_pretrained")
