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
from tqdm import tqdm

from .data.records import Batch
from .model import DualAttentionModel

SUFFIXES = (".npz", ".safetensors")
TENSORS = ("features", "labels", "cameras")


class Embeddings(NamedTuple):
    """What S photos became: features (S, C or 2C) float32, labels and cameras (S,) int64, on the CPU.

    A camera is -1 where none is known, and a path "" likewise.
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
    """Embed every photo: SA and GLCA class tokens side by side (S, 2C) for reid, SA's alone (S, C) for fgvc.

    Args:
        model: Left in evaluation mode; embeds on the device that it is on.
        batches: Dicts of "image" (B, 3, h, w), "label" (B,) and optionally "camera" (B,) and "path", B texts.
        output: A .npz or .safetensors file to write besides, see `save_embeddings`.
        progress: Show a progress bar.

    Raises:
        ValueError: There is no batch, or `output` has another suffix (said before any work).
        OSError: `output` cannot be written; that its folder is missing is said before any work, too.
    """
    if output is not None:
        _writable(output)
    model.eval()
    device = next(model.parameters()).device
    features, labels, cameras = list[Tensor](), list[Tensor](), list[Tensor]()
    paths = list[str]()
    for batch in tqdm(batches, desc="embed", leave=False, disable=not progress):
        features.append(model.extract_features(batch["image"].to(device, non_blocking=True)).float().cpu())
        labels.append(torch.as_tensor(batch["label"]).long())
        cameras.append(torch.as_tensor(batch.get("camera", torch.full_like(labels[-1], -1))).long())
        paths += map(str, batch.get("path", [""] * len(labels[-1])))
    if not labels:
        raise ValueError("batches is empty; allowed is at least one batch")
    found = Embeddings(torch.cat(features), torch.cat(labels), torch.cat(cameras), tuple(paths))
    if output is not None:
        save_embeddings(found, output)
    return found


def save_embeddings(embeddings: Embeddings, path: str | os.PathLike[str]) -> None:
    """Write embeddings under the names of their fields.

    A .npz holds four arrays, `paths` an array of texts; none needs pickle to be read. A .safetensors file
    holds the three tensors, and the paths as a JSON list under "paths" in its metadata.

    Raises:
        ValueError: Another suffix.
        OSError: The file cannot be written.
    """
    path = _writable(path)
    tensors = {name: getattr(embeddings, name).contiguous() for name in TENSORS}
    if path.suffix == ".safetensors":
        try:
            save_file(tensors, path, metadata={"paths": json.dumps(embeddings.paths)})
        except SafetensorError as error:
            raise OSError(f"embeddings {path} cannot be written ({error})") from error
        return
    arrays = {name: value.numpy() for name, value in tensors.items()}
    np.savez(path, paths=np.array(embeddings.paths, dtype=np.str_), **arrays)


def load_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Read what `save_embeddings` wrote; nothing in the file is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another suffix, or a file that is damaged or holds something else.
    """
    path = _with_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"embeddings {path} do not exist; allowed is a {' or '.join(SUFFIXES)} file")
    try:
        return _read(path)
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"embeddings {path} cannot be read ({type(error).__name__}: {line}); "
            "allowed is a whole file of save_embeddings"
        ) from error


def _read(path: Path) -> Embeddings:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            features, labels, cameras = map(file.get_tensor, TENSORS)
            return Embeddings(features, labels, cameras, tuple(json.loads(file.metadata()["paths"])))
    # Opened here, for numpy leaves some damaged files open.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        features, labels, cameras = (torch.from_numpy(arrays[name]) for name in TENSORS)
        return Embeddings(features, labels, cameras, tuple(arrays["paths"].tolist()))


def _writable(path: str | os.PathLike[str]) -> Path:
    path = _with_suffix(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path is {str(path)!r}; allowed are files in a folder that exists")
    return path


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path is {str(path)!r}; allowed are files that end in {' or '.join(SUFFIXES)}")
    return path
