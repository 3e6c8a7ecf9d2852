"""Embeddings of photos as one file that numpy or safetensors reads back."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..arguments import raise_faults
from ..data.records import Batch
from ..files import atomic_write, path_faults
from ..model import DualAttentionModel
from ..progress import progress as progress_bar
from ..tensor_arguments import tensor_violations

SUFFIXES = (".npz", ".safetensors")
TENSOR_RULES = {"features": "floating-point (S, C)", "labels": "integer (S,)", "cameras": "integer (S,)"}


class Embeddings(NamedTuple):
    """Features (S, C or 2C) float32, labels (S,) int64, cameras (S,) int64 and paths of S photos, on the CPU.

    A camera is -1 and a path "" where it is unknown.
    """

    features: Tensor
    labels: Tensor
    cameras: Tensor
    paths: tuple[str, ...]


def embed(
    model: DualAttentionModel,
    batches: Iterable[Batch],
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Embeddings:
    """Embed every photo: the embeddings of SA and GLCA, (S, 2C), for reid; that of SA, (S, C), for fgvc.

    Args:
        model: Left in evaluation mode; runs on its device.
        batches: Dicts of "image" (B, 3, h, w), "label" (B,) and optionally "camera" (B,), "view" (B,) and
            "path", B texts. A model with embeddings of cameras or views uses them; photos without one of its
            cameras get the mean of the embeddings.
        output: A .npz or .safetensors file to write as well, see `save_embeddings`.
        progress: Show a progress bar.

    Raises:
        ValueError: There is no batch; or `output` has another suffix, lies in no folder or is no file, which
            is raised before any work.
        OSError: `output` cannot be written.
    """
    if output is not None:
        raise_faults(path_faults("output", Path(output), SUFFIXES))
    model.eval()
    device = next(model.parameters()).device
    features: list[Tensor] = []
    labels: list[Tensor] = []
    cameras: list[Tensor] = []
    paths: list[str] = []
    for batch in progress_bar(batches, desc="embed", unit="batch", leave=False, disable=not progress):
        images = batch["image"].to(device, non_blocking=True)
        features.append(model.extract_features(images, **model.sides_of(batch)).float().cpu())
        labels.append(torch.as_tensor(batch["label"]).long())
        cameras.append(torch.as_tensor(batch.get("camera", torch.full_like(labels[-1], -1))).long())
        paths += map(str, batch.get("path", [""] * len(labels[-1])))
    if not labels:
        raise_faults(["batches must hold at least one batch, got none"])
    found = Embeddings(torch.cat(features), torch.cat(labels), torch.cat(cameras), tuple(paths))
    if output is not None:
        save_embeddings(found, output)
    return found


def save_embeddings(embeddings: Embeddings, path: str | os.PathLike[str]) -> None:
    """Write embeddings under the names of their fields, whole or not at all.

    A .npz holds four arrays, `paths` an array of texts; none needs pickle to be read. A .safetensors file
    holds the three tensors, and the paths as a JSON list under "paths" in its metadata. Names of files that
    are not UTF-8 survive in both.

    Raises:
        ValueError: Another suffix.
        OSError: The file cannot be written.
    """
    path = _with_suffix(path)
    tensors = {name: getattr(embeddings, name).contiguous() for name in TENSOR_RULES}
    with atomic_write(path) as file:
        if path.suffix == ".npz":
            arrays = {name: value.numpy() for name, value in tensors.items()}
            np.savez(file, paths=np.array(embeddings.paths, dtype=np.str_), **arrays)
            return
        try:
            save_file(tensors, file.name, metadata={"paths": json.dumps(embeddings.paths)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def load_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Read what `save_embeddings` wrote; nothing in the file is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another suffix, or a file that is damaged or does not hold embeddings.
    """
    path = _with_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be a {' or '.join(SUFFIXES)} file that exists, got {str(path)!r}")
    try:
        found = _read(path)
        raise_faults(_violations(found))
        return found
    except Exception as error:  # damaged bytes make the readers raise nearly any error
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"embeddings {path} cannot be read ({type(error).__name__}: {line}); "
            "path must be a whole file of save_embeddings"
        ) from error


def _read(path: Path) -> Embeddings:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            features, labels, cameras = map(file.get_tensor, TENSOR_RULES)
            return Embeddings(features, labels, cameras, tuple(json.loads(file.metadata()["paths"])))
    # Opened here, because numpy leaves some damaged files open.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        features, labels, cameras = (torch.from_numpy(arrays[name]) for name in TENSOR_RULES)
        return Embeddings(features, labels, cameras, tuple(arrays["paths"].tolist()))


def _violations(found: Embeddings) -> list[str]:
    faults = tensor_violations(found._asdict(), TENSOR_RULES)
    if not all(isinstance(text, str) for text in found.paths) or len(found.paths) != len(found.labels):
        faults.append(f"paths must be one text for each of the photos, got {len(found.paths)} values")
    return faults


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path must end in {' or '.join(SUFFIXES)}, got {str(path)!r}")
    return path
