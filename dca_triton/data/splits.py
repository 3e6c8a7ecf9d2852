"""`load_dataset`: from a dataset's name and folder to the parts that training and evaluation need."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os.path import abspath, expanduser
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import torch
from PIL import Image

from ..arguments import raise_faults
from ..branches import Task
from .fgvc import aircraft, cars, cub, dogs, nabirds
from .folder import folder
from .layout import Listing
from .orl import orl_fgvc, orl_reid
from .records import ImageDataset, ImageRecord
from .reid import (
    VEHICLE_ID_SIZES,
    cuhk03_detected,
    cuhk03_labeled,
    dukemtmc,
    market1501,
    msmt17,
    occluded_duke,
    vehicleid,
    veri776,
)

RANDOM_GALLERY = {f"vehicleid-{size}": partial(vehicleid, size=size) for size in VEHICLE_ID_SIZES}
READERS: dict[str, Callable[..., Listing]] = {
    "cub": cub,
    "nabirds": nabirds,
    "cars": cars,
    "dogs": dogs,
    "aircraft": aircraft,
    "market1501": market1501,
    "dukemtmc": dukemtmc,
    "occluded-duke": occluded_duke,
    "msmt17": msmt17,
    "cuhk03-detected": cuhk03_detected,
    "cuhk03-labeled": cuhk03_labeled,
    "veri776": veri776,
    **RANDOM_GALLERY,
    "folder": folder,
}
INSTALLED = {"orl-fgvc": orl_fgvc, "orl-reid": orl_reid}  # installed by pip, so they need no root


@dataclass(frozen=True)
class Splits:
    """The parts of a dataset: train, test and, on demand, validation (fgvc); train, query and gallery (reid).

    `classes` names the training labels 0..K-1; query and gallery labels are identity numbers. `train` is
    None if only the parts of evaluation were read. `dataset` is the dataset's name, with its version where
    there are several, such as "MSMT17_V1": scores belong to it.
    """

    task: Task
    classes: tuple[str, ...]
    train: ImageDataset | None
    validation: ImageDataset | None = None
    test: ImageDataset | None = None
    query: ImageDataset | None = None
    gallery: ImageDataset | None = None
    dataset: str = ""

    def with_classes(self, names: Sequence[str]) -> "Splits":
        """Return the photos with labels that are positions in `names`, e.g. the classes of a checkpoint.

        A label means something only together with the names it was trained with. `names` may hold classes
        that this dataset lacks. In re-identification only training labels change: query and gallery labels
        are identities, not classes.

        Args:
            names: The model's classes, in the order of its outputs.

        Raises:
            ValueError: The dataset has classes that are not in `names`, or a name occurs twice.
        """
        if odd := [name for name in names if not isinstance(name, str)]:
            raise_faults([f"names must be texts, got {odd[:5]}"])
        known = [normalize("NFC", name) for name in names]
        index = {name: label for label, name in enumerate(known)}
        faults = []
        if unknown := [name for name in self.classes if name not in index]:
            faults.append(
                f"names must hold every class of the dataset, got {len(known)} names without {_some(unknown)}"
            )
        if twice := [name for label, name in enumerate(known) if index[name] != label]:
            faults.append(f"names must be distinct, got {_some(twice)} more than once")
        raise_faults(faults)
        position = [index[name] for name in self.classes]

        def relabeled(part: ImageDataset | None) -> ImageDataset | None:
            if part is None:
                return None
            records = [replace(record, label=position[record.label]) for record in part.records]
            return ImageDataset(records, part.transform, known, part.on_corrupt)

        return replace(
            self,
            classes=tuple(known),
            train=relabeled(self.train),
            validation=relabeled(self.validation),
            test=relabeled(self.test),
        )


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    train_transform: Callable[[Image.Image], Any] | None = None,
    test_transform: Callable[[Image.Image], Any] | None = None,
    holdout: int = 0,
    seed: int = 0,
    on_corrupt: Literal["raise", "skip"] = "raise",
    training: bool = True,
    gallery_seed: int = 0,
) -> Splits:
    """Read a dataset in its published layout, with its official split. Nothing is downloaded.

    Args:
        name: cub, nabirds, cars, dogs, aircraft, folder, orl-fgvc (fgvc); market1501, dukemtmc (which its
            authors withdrew), occluded-duke, msmt17, cuhk03-detected, cuhk03-labeled, veri776, vehicleid-800,
            vehicleid-1600, vehicleid-2400, folder, orl-reid (reid).
        root: The folder of the unpacked archive, under any name; None for orl-*. Links
            in it are followed wherever they lead, but no list may name a path outside of it.
        train_transform: Transform of training photos; see `ImageDataset`.
        test_transform: Transform of all other parts.
        holdout: Photos of each class, drawn by `seed`, that go from train to validation (fgvc only).
        seed: Seeds the choice of validation photos.
        on_corrupt: For training photos (see `ImageDataset`). Every other part stops at an unreadable photo,
            because figures over fewer photos are not comparable.
        training: False reads the parts of evaluation only: the training photos may be absent, and the
            classes of a folder are those of its test part.
        gallery_seed: Draws the gallery of vehicleid-*, one photo of each vehicle; it does not change with
            `seed`, so that runs of several seeds have comparable scores.

    Raises:
        FileNotFoundError: Files are missing.
        ValueError: Files are damaged, or arguments do not fit.
    """
    listing = _read(name, root, training or bool(holdout), gallery_seed)
    # macOS writes file names decomposed (NFD), nearly all other systems composed (NFC).
    classes = tuple(normalize("NFC", text) for text in listing.classes)
    if len(set(classes)) < len(classes):
        twice = [text for text, count in Counter(classes).items() if count > 1]
        raise ValueError(
            f"dataset {name}: {root} must have distinct class names, got {_some(twice)} more than once"
        )
    task: Task = "reid" if "query" in listing.parts else "fgvc"
    train: list[ImageRecord] = listing.parts.get("train", [])
    held: list[ImageRecord] = []
    if holdout:
        if task == "reid":
            raise_faults([f"holdout must be 0 for re-identification ({name}), got {holdout}"])
        train, held = hold_out(train, holdout, seed)
    parts = {
        part: ImageDataset(records, test_transform, classes if task == "fgvc" else ())
        for part, records in {**listing.parts, "validation": held}.items()
        if part != "train" and records
    }
    photos = ImageDataset(train, train_transform, classes, on_corrupt) if training else None
    return Splits(task, classes, photos, **parts, dataset=listing.version or name)


def hold_out(
    records: Sequence[ImageRecord], per_class: int, seed: int
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Split records into (kept, held): hold out `per_class` records of every class, chosen by seed.

    Raises:
        ValueError: per_class is negative or would leave a class without a photo.
    """
    by_class: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        by_class.setdefault(record.label, []).append(index)
    smallest = min(map(len, by_class.values()))
    if not 0 <= per_class < smallest:
        raise_faults(
            [f"holdout must be in 0..{smallest - 1}, as a class has {smallest} photos, got {per_class}"]
        )
    generator = torch.Generator().manual_seed(seed)
    held = {
        members[choice]
        for members in by_class.values()
        for choice in torch.randperm(len(members), generator=generator)[:per_class].tolist()
    }
    return (
        [record for index, record in enumerate(records) if index not in held],
        [record for index, record in enumerate(records) if index in held],
    )


def _read(name: str, root: str | Path | None, training: bool, gallery_seed: int) -> Listing:
    if name not in READERS and name not in INSTALLED:
        raise_faults([f"name must be one of {', '.join([*READERS, *INSTALLED])}, got {name!r}"])
    if gallery_seed and name not in RANDOM_GALLERY:
        raise_faults([f"gallery_seed must be 0 for {name}, whose gallery is not drawn, got {gallery_seed}"])
    if name in INSTALLED:
        if root is not None:
            raise_faults([f"root must be None for {name}, which pip installs, got {str(root)!r}"])
        return INSTALLED[name]()
    if root is None:
        raise ValueError(f"root must be the folder of {name}, got None")
    drawn = {"gallery_seed": gallery_seed} if name in RANDOM_GALLERY else {}
    return READERS[name](Path(abspath(expanduser(root))), training, **drawn)


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
