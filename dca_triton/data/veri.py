"""What VeRi-776 says of its photos beside their names: train_label.xml and the views."""

import warnings
from dataclasses import replace
from xml.etree import ElementTree

from .layout import Layout, is_number
from .records import ImageRecord


def compare_with_labels(layout: Layout, photos: list[ImageRecord]) -> None:
    """Raise ValueError if train_label.xml contradicts the name of a photo; warn of photos that it lacks."""
    annotated = _labels(layout)
    for record in photos:
        if annotated.get(record.path.name, (record.label, record.camera)) != (record.label, record.camera):
            raise layout.damaged("train_label.xml", f"it contradicts the name of {record.path}")
    absent = sum(record.path.name not in annotated for record in photos)
    if absent:
        warnings.warn(
            f"{absent} of {len(photos)} training photos are absent from {layout.root / 'train_label.xml'}; "
            "their identities are those of their names",
            stacklevel=3,
        )


def _labels(layout: Layout) -> dict[str, tuple[int, int]]:
    """Identity and camera of each photo in train_label.xml.

    The file declares gb2312, which the parser refuses, and there are copies in other encodings. The needed
    text is ASCII in each of them, so all other bytes are replaced.
    """
    file = "train_label.xml"
    text = layout.content(file).decode("ascii", errors="replace")
    try:
        items = [item.attrib for item in ElementTree.fromstring(text).iter("Item")]
        labels = {
            item["imageName"]: (item["vehicleID"], item["cameraID"].removeprefix("c")) for item in items
        }
    except (ElementTree.ParseError, KeyError) as error:
        raise layout.damaged(file, f"{type(error).__name__}: {error}") from error
    for name, numbers in labels.items():
        if not all(map(is_number, numbers)):
            raise layout.damaged(file, f"vehicle and camera of {name} must be numbers, got {numbers}")
    return {name: (int(vehicle), int(camera)) for name, (vehicle, camera) in labels.items()}


def views(layout: Layout, file: str) -> dict[str, int]:
    """The view of each photo: a line is a path, the places of 20 key points, and the view."""
    if not (layout.root / file).exists():
        return {}
    found = {path.rpartition("/")[2]: rest.split()[-1] for path, rest in layout.rows(file, 2)}
    for name, view in found.items():
        if not is_number(view):
            raise layout.damaged(file, f"the view of {name} must be a number, got {view!r}")
    return {name: int(view) for name, view in found.items()}


def with_views(records: list[ImageRecord], views: dict[str, int]) -> list[ImageRecord]:
    """The records with the view of each photo, by its name."""
    return [replace(record, view=views.get(record.path.name, record.view)) for record in records]
