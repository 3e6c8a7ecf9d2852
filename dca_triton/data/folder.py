"""Any tree of folders with one folder per class or identity."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import ImageFolder

from .layout import Layout, Listing
from .records import ImageDataset, ImageRecord
from .walk import SUFFIXES, photo_files, warn_of_others

CAMERA = re.compile(r"_c([0-9]{1,9})")


def folder(root: Path) -> Listing:
    """Categorisation from train/ and test/, re-identification from train/, query/ and gallery/.

    Identities that query and gallery share have the same folder name in both. The camera of a photo is the
    number after "_c" in its name (Market-1501's custom). Where no name has one, every photo of an identity
    counts as seen by a camera of its own, and the same name in query and gallery as the same photo, which
    is thus never matched to itself.
    """
    layout = Layout(
        "folder",
        root,
        "train/<class>/*.jpg and test/<class>/*.jpg, or {train,query,gallery}/<identity>/*.jpg",
    )
    if (root / "query").exists() or (root / "gallery").exists():
        layout.require("train", "query", "gallery")
        return _reid(layout)
    layout.require("train", "test")
    train, test = _read(layout, "train"), _read(layout, "test")
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise layout.damaged("test", f"no training photos for the classes {', '.join(unknown)}")
    parts = {
        "train": [ImageRecord(Path(path), label) for path, label in train.samples],
        "test": [
            ImageRecord(Path(path), train.class_to_idx[test.classes[label]]) for path, label in test.samples
        ],
    }
    return Listing(tuple(train.classes), parts)


def _reid(layout: Layout) -> Listing:
    trees = {part: _read(layout, part) for part in ("query", "gallery")}
    names = sorted({name for tree in trees.values() for name in tree.classes})
    identity = {name: number for number, name in enumerate(names)}
    cameras = _cameras(layout, [Path(path) for tree in trees.values() for path, _ in tree.samples])
    parts = {
        part: [
            ImageRecord(Path(path), identity[tree.classes[label]], cameras[Path(path)])
            for path, label in tree.samples
        ]
        for part, tree in trees.items()
    }
    train = _read(layout, "train")
    training = [ImageRecord(Path(path), label, _named_camera(Path(path))) for path, label in train.samples]
    return Listing(tuple(train.classes), {"train": training, **parts})


def _cameras(layout: Layout, paths: list[Path]) -> dict[Path, int]:
    cameras = {path: _named_camera(path) for path in paths}
    unnamed = [path for path, camera in cameras.items() if camera < 0]
    if len(unnamed) == len(paths):
        number = {name: camera for camera, name in enumerate(sorted({path.name for path in paths}))}
        return {path: number[path.name] for path in paths}
    if unnamed:
        file = str(unnamed[0].relative_to(layout.root))
        raise layout.damaged(file, "its name tells no camera, but others' do")
    return cameras


def _named_camera(path: Path) -> int:
    match = CAMERA.search(path.name)
    return int(match[1]) if match else -1


def _read(layout: Layout, part: str) -> ImageFolder:
    try:
        return ImageFolder(layout.root / part)
    except FileNotFoundError as error:
        raise layout.damaged(part, str(error)) from error


def photos_in(folder: str | Path, transform: Callable[[Image.Image], Any] | None = None) -> ImageDataset:
    """All photos below a folder, at any depth, without labels: for embeddings and pictures.

    Photos come in the order of their paths. Their label and their camera are -1. Other files are ignored and
    counted in one warning.

    Args:
        folder: Any folder of photos.
        transform: As in `ImageDataset`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no photo, or links that lead to a folder that contains them.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"folder must be a folder that exists, got {str(folder)!r}")
    photos, others = photo_files(root)
    warn_of_others(others, str(root))
    if not photos:
        raise ValueError(f"folder must hold photos ({', '.join(SUFFIXES)}), got none in {str(folder)!r}")
    return ImageDataset([ImageRecord(path, label=-1) for path in photos], transform)
