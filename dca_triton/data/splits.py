"""`load_dataset`: from a dataset's name and folder to the parts that training and evaluation need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import abspath
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from dca_triton.data.fgvc import aircraft, cars, cub
from dca_triton.data.folder import folder
from dca_triton.data.layout import Listing
from dca_triton.data.orl import orl_fgvc, orl_reid
from dca_triton.data.records import ImageDataset, ImageRecord
from dca_triton.data.reid import dukemtmc, market1501, msmt17, veri776

READERS = {
    "cub": cub,
    "cars": cars,
    "aircraft": aircraft,
    "market1501": market1501,
    "dukemtmc": dukemtmc,
    "msmt17": msmt17,
    "veri776": veri776,
    "folder": folder,
}
INSTALLED = {"orl-fgvc": orl_fgvc, "orl-reid": orl_reid}  # by pip, so that they need no root


@dataclass(frozen=True)
class Splits:
    """The parts of a dataset: train, test and, on demand, validation (fgvc); train, query and gallery (reid).

    `classes` names the training labels 0..K-1; query and gallery labels are identity numbers.
    """

    task: Literal["fgvc", "reid"]
    classes: tuple[str, ...]
    train: ImageDataset
    validation: ImageDataset | None = None
    test: ImageDataset | None = None
    query: ImageDataset | None = None
    gallery: ImageDataset | None = None


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    train_transform: Callable[[Image.Image], Any] | None = None,
    test_transform: Callable[[Image.Image], Any] | None = None,
    holdout: int = 0,
    seed: int = 0,
    on_corrupt: Literal["raise", "skip"] = "raise",
) -> Splits:
    """Read a dataset in its published layout, with its official split. Nothing is downloaded.

    `name` is one of cub, cars, aircraft, folder, orl-fgvc (fgvc), market1501, dukemtmc, msmt17, veri776,
    folder, orl-reid (reid). `root` is the dataset's own folder, the one that its archive unpacks to (absent
    for orl-*). `holdout` photos of each class, drawn by `seed`, go from train to validation (fgvc only).
    `on_corrupt` is for training (see `ImageDataset`); every other part stops at an unreadable photo, as
    figures over fewer photos are not comparable.

    Raises FileNotFoundError for missing files, ValueError for damaged ones and for bad arguments.
    """
    listing = _read(name, root)
    task: Literal["fgvc", "reid"] = "reid" if "query" in listing.parts else "fgvc"
    train, held = listing.parts["train"], list[ImageRecord]()
    if holdout:
        if task == "reid":
            raise ValueError(f"holdout is {holdout}; allowed is 0 for re-identification ({name})")
        train, held = hold_out(train, holdout, seed)
    parts = {
        part: ImageDataset(records, test_transform, listing.classes if task == "fgvc" else ())
        for part, records in {**listing.parts, "validation": held}.items()
        if part != "train" and records
    }
    return Splits(
        task, listing.classes, ImageDataset(train, train_transform, listing.classes, on_corrupt), **parts
    )


def hold_out(
    records: Sequence[ImageRecord], per_class: int, seed: int
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Split records into (kept, held): `per_class` of every class are held, the same ones for the same seed.

    Raises ValueError when per_class is negative or would leave a class without a photo.
    """
    by_class: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        by_class.setdefault(record.label, []).append(index)
    smallest = min(map(len, by_class.values()))
    if not 0 <= per_class < smallest:
        raise ValueError(
            f"holdout is {per_class}; allowed is 0..{smallest - 1}: a class has {smallest} photos"
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


def _read(name: str, root: str | Path | None) -> Listing:
    if name not in READERS and name not in INSTALLED:
        raise ValueError(f"name is {name!r}; allowed is one of {', '.join([*READERS, *INSTALLED])}")
    if name in INSTALLED:
        if root is not None:
            raise ValueError(f"root is {str(root)!r}; allowed is none for {name}, which pip installs")
        return INSTALLED[name]()
    if root is None:
        raise ValueError(f"root is None; allowed is the folder of {name}")
    return READERS[name](Path(abspath(Path(root).expanduser())))
