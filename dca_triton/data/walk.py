"""Find the photos in a folder, by one rule for every dataset."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
SYSTEM_NAMES = (
    *("$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),  # Windows
    *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
    *("lost+found", "lost.dir"),  # Linux, Android
    *(
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "~snapshot",
    ),  # file servers
)


def is_system(name: str) -> bool:
    """True for hidden names (.ipynb_checkpoints, ._x.jpg) and for files of operating systems."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def subfolders(folder: Path) -> list[Path]:
    """Return the direct subfolders of a folder, by name, without those of the system.

    Raises:
        ValueError: One is a link to a folder that contains it.
        OSError: The folder cannot be read.
    """
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not is_system(path.name))
    for path in found:
        _refuse_round(path)
    return found


def photo_files(folder: Path, nested: bool = True) -> tuple[list[Path], list[Path]]:
    """Return the photos in a folder by path, and the other files, which the caller must report.

    A photo is a file that ends in one of `SUFFIXES`, in any case. System files are in neither list. Links are
    followed wherever they lead; a folder that several links lead to is read once.

    Args:
        folder: An existing folder.
        nested: Read its subfolders as well; otherwise their names are in the second list.

    Raises:
        ValueError: A link leads to a folder that contains it, or a pipe, a device or a broken link is named
            like a photo.
        OSError: A folder cannot be read.
    """
    photos: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    pending = [str(folder)]
    while pending:
        here = pending.pop()
        if here != str(folder):
            _refuse_round(Path(here))
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(here) as entries:
            for entry in entries:
                # A Path treats a link to itself as broken, where an entry raises OSError.
                kind = Path(entry.path) if entry.is_symlink() else entry
                is_folder = kind.is_dir()
                if is_system(entry.name):
                    continue
                if is_folder and nested:
                    pending.append(entry.path)
                elif is_folder or os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                    others.append(entry.path)
                elif kind.is_file():
                    photos.append(entry.path)
                else:
                    raise ValueError(f"{entry.path} must be a file, got a broken link, a pipe or a device")
    return list(map(Path, sorted(photos))), list(map(Path, sorted(others)))


def _refuse_round(folder: Path) -> None:
    real = os.path.realpath(folder)
    if folder.is_symlink() and Path(os.path.realpath(folder.parent)).is_relative_to(real):
        raise ValueError(f"{folder} must not be a link to a folder that contains it, got a link to {real}")


def warn_of_others(others: Sequence[Path], where: str) -> None:
    """Warn once about files that are not read, with their number and kinds."""
    if others:
        kinds = Counter(path.suffix.lower() or path.name for path in others).most_common(5)
        warnings.warn(
            f"{where}: {len(others)} files are ignored "
            f"({', '.join(f'{count} {kind}' for kind, count in kinds)}"
            f"{', ...' if sum(count for _, count in kinds) < len(others) else ''}), "
            f"as they lie outside of the folders of photos or do not end in {', '.join(SUFFIXES)}",
            stacklevel=3,
        )
