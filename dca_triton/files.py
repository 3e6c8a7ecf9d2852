"""Files that are checked before the work, and written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal


def path_faults(name: str, path: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Every reason why `path`, the argument `name`, is no file to be written with one of the suffixes."""
    faults = []
    if path.suffix not in suffixes:
        faults.append(f"{name} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    if not path.parent.is_dir():
        faults.append(f"{name} must be in a folder that exists, got {str(path)!r}")
    if path.exists() and not path.is_file():
        faults.append(f"{name} must be a file, got {str(path)!r}, a folder, a device or a pipe")
    return faults


@contextmanager
def replacing(path: Path, mode: str = "w+b", writer: str = "") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends, and never if it fails.

    The bytes reach the disk under another name in the same folder first, so a reader finds the old file or
    the new one, never a part. Several writers of one path must have different `writer` names; without one, a
    later writer overwrites what a killed one left.
    """
    temporary = path.with_name(f".{path.name}{writer}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
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


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: Literal["w", "wb"] = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends, and disappears if the block raises.

    Until then an older file at `path` stays as it is. The bytes reach the disk before the file gets its name,
    so a power cut leaves the old file or the new one. A link at `path` is kept: the file it leads to is
    replaced. Writers that take a name instead of a file can use the result's `name`.

    Args:
        path: The file to write, in a folder that exists.
        mode: "w" for text in UTF-8, "wb" for bytes.

    Raises:
        OSError: `path` is a folder, a device or a pipe, or the block raised an OSError; the message names
            `path`.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"{path} must be a file, got a folder, a device or a pipe")
    try:
        with replacing(target, mode, f".{os.getpid()}") as file:  # two processes must not share it
            yield file
    except OSError as error:
        kind = type(error) if type(error).__module__ == "builtins" else OSError  # others take more arguments
        raise kind(f"{path} cannot be written ({error.strerror or error})") from error
