"""One photo (`ImageRecord`) and a list of them (`ImageDataset`)."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from ..arguments import choice, raise_faults, violations
from .photo import MAX_PIXELS, read_image

__all__ = ["MAX_PIXELS", "Batch", "ImageDataset", "ImageRecord", "Item", "read_image"]


@dataclass(frozen=True)
class ImageRecord:
    """The path, label and camera of a photo.

    `label` is the class 0..K-1 in training, validation and test parts, and the identity's own number in
    query and gallery; -1 if it is unknown. `camera` is -1 if it is unknown. A number below -1 is not a
    camera. It marks copies of one photo, which share it: evaluation leaves out matches of the same number.
    `view`, such as the side of a vehicle, is -1 if it is unknown.
    """

    path: Path
    label: int
    camera: int = -1
    view: int = -1


Batch = dict[str, Any]
"""The fields of `Item`, each for B photos: tensors, and lists of texts."""


class Item(TypedDict):
    """What `ImageDataset` returns for one index; the default collate function makes batches of it."""

    image: Any
    label: int
    camera: int
    view: int
    path: str
    index: int


class ImageDataset(Dataset[Item]):
    """A list of photos.

    Args:
        records: At least one.
        transform: Takes the RGB photo of `read_image`. Without one, `image` is a uint8 tensor (3, h, w).
        classes: Names of the labels.
        on_corrupt: "raise" stops at an unreadable photo with a ValueError that names the path. "skip" takes
            the next readable photo instead, of the same class if there is one, so that batches of P
            identities x K photos stay complete. It warns once and lists the photo in `corrupt_paths`, also
            across the worker processes of a DataLoader. The item then describes the replacement.

    Raises:
        ValueError: `records` is empty, or `on_corrupt` is another value.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        transform: Callable[[Image.Image], Any] | None = None,
        classes: Sequence[str] = (),
        on_corrupt: Literal["raise", "skip"] = "raise",
    ) -> None:
        faults = violations({"on_corrupt": on_corrupt}, {"on_corrupt": choice("raise", "skip")})
        if not records:
            faults.append("records must hold at least one photo, got none")
        raise_faults(faults)
        self.records = tuple(records)
        self.transform = transform or pil_to_tensor
        self.classes = tuple(classes)
        self.on_corrupt = on_corrupt
        # One flag per record in shared memory, so that DataLoader's worker processes can set it.
        self._corrupt = torch.zeros(len(self.records), dtype=torch.bool).share_memory_()

    def with_transform(
        self,
        transform: Callable[[Image.Image], Any] | None,
        on_corrupt: Literal["raise", "skip"] = "raise",
    ) -> Self:
        """Return a new dataset with the same photos, labels and classes, and another transform.

        `splits.train.with_transform(test_transform)` holds the training photos as evaluation sees them.
        """
        return type(self)(self.records, transform, self.classes, on_corrupt)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Item:
        index = range(len(self))[index]
        if self.on_corrupt == "raise":
            photo = read_image(self.records[index].path)
        else:
            index, photo = self._first_readable(index)
        record = self.records[index]
        return Item(
            image=self.transform(photo),
            label=record.label,
            camera=record.camera,
            view=record.view,
            path=str(record.path),
            index=index,
        )

    @property
    def labels(self) -> Tensor:
        """(number of photos,) int64."""
        return torch.tensor([record.label for record in self.records])

    @property
    def cameras(self) -> Tensor:
        """(number of photos,) int64."""
        return torch.tensor([record.camera for record in self.records])

    @property
    def views(self) -> Tensor:
        """(number of photos,) int64."""
        return torch.tensor([record.view for record in self.records])

    @property
    def corrupt_paths(self) -> list[Path]:
        """The photos skipped so far, each once."""
        return [self.records[index].path for index in self._corrupt.nonzero().flatten().tolist()]

    def _first_readable(self, index: int) -> tuple[int, Image.Image]:
        for candidate in self._candidates(index):
            if self._corrupt[candidate]:
                continue
            try:
                return candidate, read_image(self.records[candidate].path)
            except ValueError as error:
                if not self._corrupt.any():
                    warnings.warn(
                        f"{error}; unreadable photos are replaced by others and listed in corrupt_paths",
                        stacklevel=4,
                    )
                self._corrupt[candidate] = True
        raise ValueError(f"none of the {len(self)} images can be read, the first is {self.records[0].path}")

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        label = self.records[index].label
        others = ((index + step) % len(self) for step in range(1, len(self)))
        yield from sorted(others, key=lambda other: self.records[other].label != label)
