"""Checkpoint files: written whole or not at all, read without executing anything that they hold."""

import hashlib
import mmap
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from .arguments import flag, raise_faults, violations
from .files import replacing
from .transfer import shape_of, transferable

MAX_KEYS_SHOWN = 3  # of each kind, in an error
DIGEST = b"sha256:"
SIGNATURE_BYTES = len(DIGEST) + hashlib.sha256().digest_size * 2
LOAD_RULES = {
    "model": (lambda v: isinstance(v, nn.Module), "a torch.nn.Module"),
    "checkpoint": (lambda v: isinstance(v, Mapping | str | os.PathLike), "a path or a dict of tensors"),
    "transfer": flag(),
}
WEIGHT_KEYS = ("model_state_dict", "state_dict", "model", "ema_state_dict")  # in this order


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a checkpoint; the file is there completely or not at all (see `replacing`).

    The file is a zip archive of `torch.save`, with the SHA-256 of its bytes as the archive's comment.

    Args:
        path: The file, in an existing folder.
        state: Tensors and plain Python values, nested in any way.

    Raises:
        OSError: The file cannot be written, e.g. because the disk is full. An older file remains whole.
        ValueError: `load_checkpoint` would refuse `state`. An older file remains whole.
    """
    try:
        with replacing(Path(path)) as file:
            torch.save(state, file)
            _sign(file)
            file.seek(0)
            # Fail now, not on the day that the checkpoint is needed, e.g. for a NumPy scalar in the history.
            if refused := get_unsafe_globals_in_checkpoint(file):
                raise_faults([f"state must hold tensors and plain Python values, got {_some(refused)}"])
            file.seek(0, os.SEEK_END)
    except (OSError, RuntimeError) as error:  # torch's writer turns some of the former into the latter
        raise OSError(
            f"checkpoint {path} cannot be written ({_line(error)}); an older one remains whole"
        ) from error


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint, or a bare state dict, into CPU memory; nothing in the file is executed.

    Args:
        path: A file of `torch.save` (.pt, .pth), whose checksums must be right if its format has them, or a
            .safetensors file. The digest that `save_checkpoint` writes covers every byte.

    Raises:
        FileNotFoundError: `path` is not a file.
        ValueError: The file cannot be read, is not a checkpoint, or needs objects that could execute code.
    """
    path = Path(path)
    if not path.is_file():
        wrong = "is not a file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"checkpoint {path} {wrong}; it must be a .pt, .pth or .safetensors file")
    try:
        state = _read(path)
    except Exception as error:  # damaged bytes make the readers raise nearly any error
        if blocked := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"needs {blocked[1]}, which could execute code"
        else:
            reason = f"cannot be read ({_line(error)})"
        raise ValueError(
            f"checkpoint {path} {reason}; it must be a whole file of tensors and plain Python values"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"checkpoint {path} must hold a dict, got a {type(state).__name__}")
    return state


def load_weights(
    model: nn.Module,
    checkpoint: Mapping[str, Any] | str | os.PathLike[str],
    transfer: bool = False,
) -> dict[str, Any]:
    """Load all of a model's weights or none; with `transfer`, load those that fit.

    Args:
        model: Takes the weights, in its own dtypes and on its own devices. It may be wrapped by
            `DataParallel`, `DistributedDataParallel` or `torch.compile`.
        checkpoint: A file or what `load_checkpoint` returns: a state dict, or a dict that holds one as
            "model_state_dict", "state_dict", "model" or "ema_state_dict" (the first of these that it has).
            The prefixes "module." and "_orig_mod." that wrappers add to names are ignored.
        transfer: Load the weights whose name and shape fit, resample positions to the model's grid of patches
            or windows, and keep the model's own values of all others, such as heads for other classes.

    Returns:
        What the checkpoint holds in addition: epoch, history, optimizer_state_dict, ...; {} for a bare state
        dict. With `transfer` also three lists of names: "fresh" (not loaded: the model's own values),
        "resampled" and "ignored" (in the checkpoint only).

    Raises:
        FileNotFoundError: As `load_checkpoint`.
        ValueError: As `load_checkpoint`; or names that are missing, unexpected or of another shape, with
            `transfer` only if no weight of the backbone fits. The model is then unchanged.
    """
    raise_faults(violations(locals(), LOAD_RULES))
    name = "checkpoint"
    if not isinstance(checkpoint, Mapping):
        name, checkpoint = f"checkpoint {checkpoint}", load_checkpoint(checkpoint)
    weights, rest = _weights_in(checkpoint, name)
    own = _without_prefixes(model.state_dict())
    loaded = _without_prefixes(weights)
    report: dict[str, Any] = {}
    if transfer:
        loaded, report = transferable(model, own, loaded, rest.get("model_arguments"), name)
    elif faults := _mismatches(own, loaded, len(weights) - len(loaded)):
        raise ValueError(f"{name} does not fit the model: {', '.join(faults)}")
    names = dict(zip(own, model.state_dict(), strict=True))
    model.load_state_dict({names[key]: value for key, value in loaded.items()}, strict=not transfer)
    return rest | report


def _weights_in(checkpoint: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Split a checkpoint into its state dict and all that it holds in addition."""
    for key in WEIGHT_KEYS:
        if key in checkpoint and (key == WEIGHT_KEYS[0] or not isinstance(checkpoint[key], Tensor)):
            rest, weights = dict(checkpoint), checkpoint[key]
            del rest[key]
            if not isinstance(weights, Mapping):
                raise ValueError(f"{key} of {name} must be a dict of tensors, got a {type(weights).__name__}")
            return _weights_in(weights, name)[0], rest
    return checkpoint, {}


def _without_prefixes(weights: Mapping[Any, Any]) -> dict[str, Any]:
    """Rename the weights as in the bare model; if two names become the same, only one is kept."""
    names = [str(key).replace("_orig_mod.", "") for key in weights]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return dict(zip(names, weights.values(), strict=True))


def _mismatches(own: Mapping[str, Tensor], weights: Mapping[str, Any], repeated: int) -> list[str]:
    shapes = [
        f"{key} must be {shape_of(value)}, got {shape_of(weights[key])}"
        for key, value in own.items()
        if key in weights and shape_of(weights[key]) != shape_of(value)
    ]
    kinds = {
        "missing": [key for key in own if key not in weights],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": shapes,
    }
    faults = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]
    return faults + [f"{repeated} named twice, with and without a prefix"] * bool(repeated)


def _some(names: list[str]) -> str:
    return ", ".join(names[:MAX_KEYS_SHOWN]) + (", ..." if len(names) > MAX_KEYS_SHOWN else "")


def _line(error: Exception) -> str:
    # The text before this mark is torch's advice to load the file unsafely.
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def _sign(file: IO[bytes]) -> None:
    """Append the digest of all bytes before it as the comment that ends the archive."""
    file.seek(-2, os.SEEK_END)
    file.write(SIGNATURE_BYTES.to_bytes(2, "little"))
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # IO has no readinto
    file.write(DIGEST + digest.encode())


def _check_zip(path: Path) -> None:
    """Raise BadZipFile unless the archive is whole; torch reads past its own checksums."""
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
        if not comment and (damaged := archive.testzip()):
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as whole,
        whole[: len(whole) - len(comment)] as signed,
    ):
        if int.from_bytes(signed[-2:], "little") != len(comment):
            raise zipfile.BadZipFile("the signature is cut off")
        if comment and comment != DIGEST + hashlib.sha256(signed).hexdigest().encode():
            raise zipfile.BadZipFile("wrong checksum of the file")


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if zipfile.is_zipfile(path):
        _check_zip(path)
    return torch.load(path, map_location="cpu", weights_only=True)
