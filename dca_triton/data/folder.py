"""Any tree of folders: one folder per class or identity, or photos without labels."""

import hashlib
import itertools
import re
import warnings
from collections.abc import Callable
from os.path import expanduser, isdir
from pathlib import Path
from typing import Any

from PIL import Image

from .layout import Layout, Listing
from .records import ImageDataset, ImageRecord
from .walk import SUFFIXES, photo_files, warn_of_others

CAMERA = re.compile(r"_c([0-9]{1,9})(?![0-9])")
UNKNOWN = -1

Tree = dict[str, list[Path]]
"""The photos of each class folder."""


def folder(root: Path, training: bool = True) -> Listing:
    """Read train/ and test/ for categorization, or train/, query/ and gallery/ for re-identification.

    Identities that query and gallery share have the same folder name in both. The camera of a photo is the
    number after "_c" in its name (Market-1501's custom), in all names of query and gallery or in none. A
    warning says so if evaluation then leaves out a match.
    Without cameras a query matches every other photo of its identity. A photo that lies in query and in
    gallery, byte for byte, is no match for itself: the copies share a number below -1 in place of a camera,
    because evaluation leaves out matches by the same number. All other cameras are -1, unknown. Without
    `training` the classes are those of test/.
    """
    layout = Layout(
        "folder",
        root,
        "train/<class>/*.jpg and test/<class>/*.jpg, or {train,query,gallery}/<identity>/*.jpg",
    )
    reid = (root / "query").exists() or (root / "gallery").exists()
    names = (("train",) if training else ()) + (("query", "gallery") if reid else ("test",))
    layout.require(*names)
    trees = {part: layout.class_folders(part) for part in names}
    classes = tuple(trees.get("train", {}) if training or reid else trees["test"])
    if reid:
        try:
            parts = _identities(layout, trees)
        except OSError as error:  # of a photo whose bytes are compared
            raise layout.damaged("gallery", str(error)) from error
    else:
        if unknown := sorted(set(trees["test"]) - set(classes)):
            raise layout.damaged("test", f"no training photos for the classes {', '.join(unknown)}")
        label = {name: number for number, name in enumerate(classes)}
        parts = {part: _records(tree, label, {}) for part, tree in trees.items()}
    layout.finish(parts)
    return Listing(classes, parts)


def _identities(layout: Layout, trees: dict[str, Tree]) -> dict[str, list[ImageRecord]]:
    training = {name: number for number, name in enumerate(trees.get("train", {}))}
    seen = {name: number for number, name in enumerate(sorted({*trees["query"], *trees["gallery"]}))}
    cameras = {path: _named_camera(path) for path in _photos(trees["query"]) + _photos(trees["gallery"])}
    unnamed = [path for path, camera in cameras.items() if camera == UNKNOWN]
    named = [path for path, camera in cameras.items() if camera != UNKNOWN]
    if named and unnamed:
        raise ValueError(
            f'dataset {layout.name}: {layout.root} must have "_c" and a number, which stands for the camera, '
            f"in all names of query and gallery or in none, got it in {len(named)} of {len(cameras)}: in "
            f"{named[0].relative_to(layout.root)}, not in {unnamed[0].relative_to(layout.root)}"
        )
    if unnamed:
        cameras = _copies(trees["query"], trees["gallery"])
    cameras |= {path: _named_camera(path) for path in _photos(trees.get("train", {}))}
    label = {"train": training, "query": seen, "gallery": seen}
    parts = {part: _records(tree, label[part], cameras) for part, tree in trees.items()}
    if named:
        _warn_of_cameras(layout, parts["query"], parts["gallery"])
    return parts


def _warn_of_cameras(layout: Layout, query: list[ImageRecord], gallery: list[ImageRecord]) -> None:
    """Say what was read from the names if it decides on the scores."""
    asked = {(record.label, record.camera) for record in query}
    left_out = [record for record in gallery if (record.label, record.camera) in asked]
    if left_out:
        cameras = len({record.camera for record in query + gallery})
        first = left_out[0]
        warnings.warn(
            f'dataset {layout.name}: {layout.root}: the number after "_c" in the names of query and gallery '
            f"is read as the camera ({cameras} in all; {first.path.relative_to(layout.root)} is of camera "
            f"{first.camera}). A query's own camera is left out of its ranking, which affects "
            f"{len(left_out)} of {len(gallery)} gallery photos",
            stacklevel=2,
        )


def _records(tree: Tree, label: dict[str, int], cameras: dict[Path, int]) -> list[ImageRecord]:
    return [
        ImageRecord(path, label[name], cameras.get(path, UNKNOWN))
        for name, photos in tree.items()
        for path in photos
    ]


def _photos(tree: Tree) -> list[Path]:
    return [path for photos in tree.values() for path in photos]


def _named_camera(path: Path) -> int:
    match = CAMERA.search(path.name)
    return int(match[1]) if match else UNKNOWN


def _copies(query: Tree, gallery: Tree) -> dict[Path, int]:
    """A number below -1 for the photos of an identity that lie in both parts, the same for the same bytes."""
    number: dict[Path, int] = {}
    count = itertools.count(UNKNOWN - 1, -1)  # not cameras, which are 0 and more
    for name in sorted(query.keys() & gallery.keys()):
        sizes = {path: path.stat().st_size for path in query[name] + gallery[name]}
        common = {sizes[path] for path in query[name]} & {sizes[path] for path in gallery[name]}
        digest = {path: _digest(path) for path, size in sizes.items() if size in common}
        shared = {digest.get(path) for path in query[name]} & {digest.get(path) for path in gallery[name]}
        camera = {content: next(count) for content in sorted(filter(None, shared))}
        number |= {path: camera[content] for path, content in digest.items() if content in camera}
    return number


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def photos_in(folder: str | Path, transform: Callable[[Image.Image], Any] | None = None) -> ImageDataset:
    """Return all photos below a folder, at any depth, without labels: for embeddings and pictures.

    Photos come in the order of their paths. Their label and their camera are -1. Other files are ignored and
    counted in one warning.

    Args:
        folder: Any folder of photos.
        transform: As in `ImageDataset`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder holds no photo, or a link to a folder that contains the link.
    """
    root = Path(expanduser(folder))
    if not isdir(root):
        raise FileNotFoundError(f"folder must be a folder that exists, got {str(folder)!r}")
    photos, others = photo_files(root)
    warn_of_others(others, str(root))
    if not photos:
        raise ValueError(f"folder must hold photos ({', '.join(SUFFIXES)}), got none in {str(folder)!r}")
    return ImageDataset([ImageRecord(path, label=-1) for path in photos], transform)
