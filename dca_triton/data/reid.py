"""Re-identification in the published layouts: Market-1501, DukeMTMC-reID, MSMT17, VeRi-776.

Training labels become 0..K-1; query and gallery keep the identities' own numbers.
"""

import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

from .layout import Layout, Listing, contiguous
from .records import ImageRecord

# 0002_c1s1_000451_03.jpg (Market-1501), 0001_c2_f0046182.jpg (Duke), 0001_c001_00016450_0.jpg (VeRi-776)
IDENTITY_AND_CAMERA = re.compile(r"(-1|[0-9]{1,9})_c([0-9]{1,9})(?![0-9])")
JUNK = -1


def market1501(root: Path, training: bool = True) -> Listing:
    """Market-1501 (Zheng et al., 2015): 751 people to train, 3,368 queries, 15,913 gallery photos.

    Photos of identity -1 are junk that the protocol ignores: they are dropped. Photos of identity 0000 are
    distractors: they stay in the gallery.
    """
    return _by_folder(Layout("market1501", root, _folders("0002_c1s1_000451_03.jpg")), training)


def dukemtmc(root: Path, training: bool = True) -> Listing:
    """DukeMTMC-reID (Ristani et al., 2016): 702 people to train, 2,228 queries, 17,661 gallery photos."""
    return _by_folder(Layout("dukemtmc", root, _folders("0001_c2_f0046182.jpg")), training)


def msmt17(root: Path, training: bool = True) -> Listing:
    """MSMT17 (Wei et al., 2018), V1 or V2: 1,041 people to train, 11,659 queries, 82,161 gallery photos.

    Trains on list_train.txt and list_val.txt together (32,621 photos), as is usual, because both show the
    same people. The camera is the third field of a photo's name.
    """
    layout = Layout(
        "msmt17",
        root,
        "train/ and test/ (V1) or mask_train_v2/ and mask_test_v2/ (V2) with photos named like "
        "0000/0000_000_01_0303morning_0008_0.jpg, and list_train.txt, list_val.txt, "
        "list_query.txt, list_gallery.txt",
    )
    second = any((root / name).is_dir() for name in ("mask_train_v2", "mask_test_v2"))
    train, test = ("mask_train_v2", "mask_test_v2") if second else ("train", "test")
    lists = ("list_train.txt", "list_val.txt") if training else ()
    layout.require(*([train] if training else []), test, *lists, "list_query.txt", "list_gallery.txt")

    def listed(file: str, folder: str) -> list[ImageRecord]:
        records = []
        for name, identity in layout.rows(file, 2):
            fields = name.rpartition("/")[2].split("_")
            if len(fields) < 3 or not _is_number(fields[2]) or not _is_number(identity):
                raise layout.damaged(file, f"{name!r} {identity!r} must be a photo's name and identity")
            records.append(
                ImageRecord(layout.inside(file, f"{folder}/{name}"), int(identity), int(fields[2]))
            )
        return records

    photos = [record for file in lists for record in listed(file, train)] if training else None
    return _reid(layout, photos, listed("list_query.txt", test), listed("list_gallery.txt", test))


def veri776(root: Path, training: bool = True) -> Listing:
    """VeRi-776 (Liu et al., 2016): 576 vehicles to train, 1,678 queries, 11,579 gallery photos.

    Identities and cameras are read from the names of the photos that name_*.txt list; train_label.xml must
    agree with them. A warning reports photos that it leaves out.
    """
    layout = Layout(
        "veri776",
        root,
        "image_train/, image_query/ and image_test/ with photos named like 0001_c001_00016450_0.jpg, "
        "name_train.txt, name_query.txt, name_test.txt and train_label.xml",
    )
    folders = {
        "name_train.txt": "image_train",
        "name_query.txt": "image_query",
        "name_test.txt": "image_test",
    }
    if not training:
        del folders["name_train.txt"]
    layout.require(*folders.values(), *folders, *(["train_label.xml"] if training else []))
    *trains, query, gallery = (
        [_named(layout, layout.inside(file, f"{folder}/{name}")) for (name,) in layout.rows(file, 1)]
        for file, folder in folders.items()
    )
    if training:
        _compare_with_veri_labels(layout, trains[0])
    return _reid(layout, trains[0] if training else None, query, gallery)


def _compare_with_veri_labels(layout: Layout, photos: list[ImageRecord]) -> None:
    annotated = _veri_labels(layout)
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


def _veri_labels(layout: Layout) -> dict[str, tuple[int, int]]:
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
        if not all(map(_is_number, numbers)):
            raise layout.damaged(file, f"vehicle and camera of {name} must be numbers, got {numbers}")
    return {name: (int(vehicle), int(camera)) for name, (vehicle, camera) in labels.items()}


def _folders(example: str) -> str:
    return f"bounding_box_train/, query/ and bounding_box_test/ with photos named like {example}"


def _by_folder(layout: Layout, training: bool) -> Listing:
    folders = (["bounding_box_train"] if training else []) + ["query", "bounding_box_test"]
    layout.require(*folders)
    *train, query, gallery = ([_named(layout, path) for path in layout.photos(folder)] for folder in folders)
    return _reid(layout, train[0] if training else None, query, gallery)


def _named(layout: Layout, path: Path) -> ImageRecord:
    match = IDENTITY_AND_CAMERA.match(path.name)
    if match is None:
        raise layout.damaged(str(path.relative_to(layout.root)), "its name has no identity and camera")
    return ImageRecord(path, int(match[1]), int(match[2]))


def _reid(
    layout: Layout, train: list[ImageRecord] | None, query: list[ImageRecord], gallery: list[ImageRecord]
) -> Listing:
    parts = {"query": query, "gallery": gallery} | ({} if train is None else {"train": train})
    parts = {name: [r for r in records if r.label != JUNK] for name, records in parts.items()}
    layout.finish(parts)
    classes, labeled = contiguous(parts.get("train", []))
    return Listing(classes, parts if train is None else parts | {"train": labeled})


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
