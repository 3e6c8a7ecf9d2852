"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal


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
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")  # two processes must not share it
    try:
        with open(temporary, mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        kind = type(error) if type(error).__module__ == "builtins" else OSError  # others take more arguments
        raise kind(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
