"""Fine-grained categorization in the published layouts.

CUB-200-2011, NABirds, Stanford Cars, Stanford Dogs and FGVC-Aircraft.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .layout import Layout, Listing
from .records import ImageRecord


def cub(root: Path, training: bool = True) -> Listing:
    """CUB-200-2011 (Wah et al., 2011): 200 birds, 5,994 photos to train, 5,794 to test."""
    return _birds("cub", root, training, empty_classes=True)


def nabirds(root: Path, training: bool = True) -> Listing:
    """NABirds (Van Horn et al., 2015): 555 birds, 23,929 photos to train, 24,633 to test.

    classes.txt also names the 456 groups of birds above them, which have no photos and are no classes.
    """
    return _birds("nabirds", root, training, empty_classes=False)


def _birds(name: str, root: Path, training: bool, empty_classes: bool) -> Listing:
    """The four lists of CUB and NABirds. A class without photos counts if `empty_classes`."""
    layout = Layout(
        name,
        root,
        "images/<class>/*.jpg, images.txt, image_class_labels.txt, train_test_split.txt and classes.txt",
    )
    layout.require("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    names, images = layout.table("classes.txt"), layout.table("images.txt")
    numbers, trains = layout.table("image_class_labels.txt"), layout.table("train_test_split.txt")
    if not images.keys() == numbers.keys() == trains.keys():
        raise layout.damaged("images.txt", "the images, their classes and the split list different numbers")
    used = set(numbers.values())
    classes = [number for number in names if empty_classes or number in used]
    position = {number: label for label, number in enumerate(classes)}
    parts: dict[str, list[ImageRecord]] = {"train": [], "test": []}
    for image, file in images.items():
        if numbers[image] not in position:
            raise layout.damaged("image_class_labels.txt", f"image {image} has no class of classes.txt")
        if trains[image] not in ("0", "1"):
            raise layout.damaged("train_test_split.txt", f"image {image} has neither 0 nor 1")
        path = layout.inside("images.txt", f"images/{file}")
        parts["train" if trains[image] == "1" else "test"].append(ImageRecord(path, position[numbers[image]]))
    if not training:
        del parts["train"]
    layout.finish(parts)
    return Listing(tuple(names[number] for number in classes), parts)


def cars(root: Path, training: bool = True) -> Listing:
    """Stanford Cars (Krause et al., 2013): 196 models, 8,144 photos to train, 8,041 to test."""
    layout = Layout(
        "cars",
        root,
        "cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat, devkit/cars_train_annos.mat and "
        "cars_test_annos_withlabels.mat",
    )
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    if not training:
        del files["train"]
    layout.require(*(f"cars_{part}" for part in files), "devkit/cars_meta.mat", *files.values())
    classes = tuple(map(str, _matlab(layout, "devkit/cars_meta.mat", "class_names")))
    parts: dict[str, list[ImageRecord]] = {part: [] for part in files}
    for part, file in files.items():
        for row in _matlab(layout, file, "annotations"):
            try:
                photo, number = str(row["fname"]), int(row["class"])
            except (TypeError, ValueError, IndexError) as error:
                raise layout.damaged(file, f"{type(error).__name__}: {error}") from error
            if not 1 <= number <= len(classes):
                raise layout.damaged(file, f"class {number} of {photo} is outside 1..{len(classes)}")
            parts[part].append(ImageRecord(layout.inside(file, f"cars_{part}/{photo}"), number - 1))
    layout.finish(parts)
    return Listing(classes, parts)


def dogs(root: Path, training: bool = True) -> Listing:
    """Stanford Dogs (Khosla et al., 2011): 120 breeds, 12,000 photos to train, 8,580 to test.

    The names of the classes are those of the folders without ImageNet's number: n02085620-Chihuahua is
    "Chihuahua".
    """
    layout = Layout(
        "dogs",
        root,
        "Images/<number>-<breed>/*.jpg (of images.tar), train_list.mat and test_list.mat (of lists.tar)",
    )
    files = {"train": "train_list.mat", "test": "test_list.mat"}
    if not training:
        del files["train"]
    layout.require("Images", *files.values())
    names: dict[int, str] = {}
    parts: dict[str, list[ImageRecord]] = {part: [] for part in files}
    for part, file in files.items():
        photos, labels = (_matlab(layout, file, name) for name in ("file_list", "labels"))
        try:
            rows = [(str(photo), int(number)) for photo, number in zip(photos, labels, strict=True)]
        except (TypeError, ValueError) as error:
            raise layout.damaged(file, f"{type(error).__name__}: {error}") from error
        for photo, number in rows:
            breed = photo.partition("/")[0].partition("-")[2]
            if not breed or names.setdefault(number, breed) != breed:
                raise layout.damaged(file, f"{photo!r} must lie in the folder of the breed of label {number}")
            parts[part].append(ImageRecord(layout.inside(file, f"Images/{photo}"), number))
    label = {number: place for place, number in enumerate(sorted(names))}
    parts = {part: [replace(r, label=label[r.label]) for r in records] for part, records in parts.items()}
    layout.finish(parts)
    return Listing(tuple(names[number] for number in sorted(names)), parts)


def aircraft(root: Path, training: bool = True) -> Listing:
    """FGVC-Aircraft (Maji et al., 2013): 100 variants, 6,667 photos to train (trainval), 3,333 to test."""
    layout = Layout(
        "aircraft",
        root,
        "data/images/*.jpg, data/variants.txt, data/images_variant_trainval.txt and "
        "data/images_variant_test.txt",
    )
    files = {"train": "data/images_variant_trainval.txt", "test": "data/images_variant_test.txt"}
    if not training:
        del files["train"]
    layout.require("data/images", "data/variants.txt", *files.values())
    classes = [name for (name,) in layout.rows("data/variants.txt", 1)]
    label = {name: number for number, name in enumerate(classes)}
    if len(label) != len(classes):
        raise layout.damaged("data/variants.txt", "a variant comes twice")
    parts: dict[str, list[ImageRecord]] = {part: [] for part in files}
    for part, file in files.items():
        for photo, name in layout.rows(file, 2):
            if name not in label:
                raise layout.damaged(file, f"{name!r} is not in data/variants.txt")
            parts[part].append(ImageRecord(layout.inside(file, f"data/images/{photo}.jpg"), label[name]))
    layout.finish(parts)
    return Listing(tuple(classes), parts)


def _matlab(layout: Layout, file: str, name: str) -> np.ndarray[Any, Any]:
    """Read one variable of a MATLAB file as a 1-D array."""
    from scipy.io import loadmat  # slow to import

    try:
        return np.atleast_1d(loadmat(io.BytesIO(layout.content(file)), squeeze_me=True)[name])
    except Exception as error:  # scipy raises nearly any error
        raise layout.damaged(file, f"{type(error).__name__}: {error}") from error
