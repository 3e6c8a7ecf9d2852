"""Checkpoint files: written whole or not at all, read without executing anything that they hold."""

import hashlib
import mmap
import os
import re
import zipfile
from collections.abc import Mapping
from io import BufferedRandom
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

SHOWN = 3  # keys of each kind that an error spells out
DIGEST = b"sha256:"


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a checkpoint that is there entirely or not at all, whatever stops the writing.

    The bytes reach the disk under another name in the same folder before they take the place of an older
    file. One writer per path; what a killed one left behind, the next one overwrites. The file is one of
    `torch.save`, with the SHA-256 of its bytes as the comment of the zip archive that it is.

    Args:
        path: The file, in an existing folder.
        state: Tensors and plain Python values, nested as they like.

    Raises:
        OSError: It cannot be written, e.g. a full disk. An older file of this name is whole.
        ValueError: state holds what `load_checkpoint` would refuse. An older file is whole, too.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w+b") as file:
            torch.save(state, file)
            _sign(file)
            file.flush()
            os.fsync(file.fileno())
        # Found now and not on the day that the checkpoint is needed: e.g. a NumPy scalar in the history.
        if refused := get_unsafe_globals_in_checkpoint(temporary):
            raise ValueError(f"state holds {_some(refused)}; allowed are tensors and plain Python values")
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns some of the former into the latter
        raise OSError(
            f"checkpoint {path} cannot be written ({_line(error)}); an older one is whole"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable where the system can (on POSIX)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint, or a bare state dict, into CPU memory; nothing in the file is executed.

    Args:
        path: A file of `torch.save` (.pt, .pth), whose checksums must be right where its format has them, or
            a .safetensors file. The digest that `save_checkpoint` writes covers every byte.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, is no checkpoint, or asks for objects that could execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist; allowed is a .pt, .pth or .safetensors file"
        )
    try:
        state = _read(path)
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"asks for {wanted[1]}, which could execute code"
        else:
            reason = f"cannot be read ({_line(error)})"
        raise ValueError(
            f"checkpoint {path} {reason}; allowed is a whole file of tensors and plain Python values"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"checkpoint {path} holds a {type(state).__name__}; allowed is a dict")
    return state


def load_weights(
    model: nn.Module,
    checkpoint: Mapping[str, Any] | str | os.PathLike[str],
    transfer: bool = False,
) -> Any:
    """Load a model's weights, all or none.

    Args:
        model: Takes the weights, in its own dtypes and on its own devices.
        checkpoint: A file or what `load_checkpoint` returns: a dict with "model_state_dict", or the state
            dict itself. The prefix "module." that `DataParallel` gives every key is dropped.

    Returns:
        What the checkpoint holds besides: epoch, history, optimizer_state_dict, uncertainty_loss_state_dict;
        {} for a bare state dict.

    Raises:
        FileNotFoundError: As `load_checkpoint`.
        ValueError: As `load_checkpoint`, or keys that are missing, unexpected or of another shape; the
            model is then as it was.
    """
    name = "checkpoint"
    if not isinstance(checkpoint, Mapping):
        name, checkpoint = f"checkpoint {checkpoint}", load_checkpoint(checkpoint)
    rest = dict(checkpoint) if "model_state_dict" in checkpoint else {"model_state_dict": checkpoint}
    weights = rest.pop("model_state_dict")
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"{name}'s model_state_dict is a {type(weights).__name__}; allowed is a dict of tensors"
        )
    if all(str(key).startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    if transfer:
        own = model.state_dict()
        fits = {k: v for k, v in weights.items() if k in own and _shape(v) == _shape(own[k])}
        model.load_state_dict(fits, strict=False)
        return [key for key in own if key not in fits]
    faults = _mismatches(model.state_dict(), weights)
    if faults:
        raise ValueError(f"{name} does not fit the model: {'; '.join(faults)}")
    model.load_state_dict(weights)
    return rest


def _mismatches(own: Mapping[str, Tensor], weights: Mapping[str, Any]) -> list[str]:
    shapes = [
        f"{key} is {_shape(weights[key])}, allowed is {_shape(value)}"
        for key, value in own.items()
        if key in weights and _shape(weights[key]) != _shape(value)
    ]
    kinds = {
        "missing": [key for key in own if key not in weights],
        "unexpected": [str(key) for key in weights if key not in own],
        "of another shape": shapes,
    }
    return [f"{len(found)} {kind} ({_some(found)})" for kind, found in kinds.items() if found]


def _shape(value: Any) -> tuple[int, ...] | str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_meta or value.is_complex() or value.layout != torch.strided:
        return f"a {value.layout} {value.dtype} tensor on {value.device}"  # copying it would fail half-way
    return tuple(value.shape)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _line(error: Exception) -> str:
    # What stands before this mark is torch's advice to load the file unsafely.
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def _sign(file: BufferedRandom) -> None:
    """Append the digest of all before it as the archive's comment: a zip ends with that and its length."""
    file.seek(-2, os.SEEK_END)
    file.write((len(DIGEST) + 64).to_bytes(2, "little"))
    file.seek(0)
    file.write(DIGEST + hashlib.file_digest(file, "sha256").hexdigest().encode())


def _digest(path: Path, comment: int) -> bytes:
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as whole,
        whole[:-comment] as signed,
    ):
        return hashlib.sha256(signed).hexdigest().encode()


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch reads past its own checksums
            if archive.comment and archive.comment != DIGEST + _digest(path, len(archive.comment)):
                raise zipfile.BadZipFile("wrong checksum of the file")
            if not archive.comment and (damaged := archive.testzip()):
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    return torch.load(path, map_location="cpu", weights_only=True)
