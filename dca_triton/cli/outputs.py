"""Files and folders that commands write: checked before the work, written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_folder(output: Path) -> None:
    """Raise ValueError for an output folder that is a file or lies in one."""
    place = next(path for path in (output, *output.absolute().parents) if path.exists() or path.is_symlink())
    if not place.is_dir():
        raise ValueError(f"--output must be a folder, got {str(output)!r}, where {place} is no folder")


def check_new(folder: Path) -> None:
    """Raise ValueError unless the folder to export to is new or empty."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"folder must be new or empty, got {str(folder)!r}, which holds files")
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        raise ValueError(f"folder must be new or empty, got the file {str(folder)!r}")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that becomes the new or empty `folder` when the block ends, and never if it fails."""
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        written = Path(temporary) / target.name
        written.mkdir()
        yield written
        if target.exists():
            target.rmdir()  # raises if files have come meanwhile
        written.rename(target)


def named(file: Path, run: Path | None) -> str:
    """A path as a record holds it: relative to the run if it is in it, so that the run may move."""
    absolute = file.absolute()
    inside = run is not None and absolute.is_relative_to(run.absolute())
    return str(absolute.relative_to(run.absolute()) if run is not None and inside else absolute)


def counted(number: int, noun: str) -> str:
    """ "1 photo", "2 photos"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
