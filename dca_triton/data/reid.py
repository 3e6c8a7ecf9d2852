"""Re-identification in the published layouts.

Market-1501, DukeMTMC-reID, Occluded-Duke, MSMT17 V1 and V2, CUHK03-NP, VeRi-776 and PKU VehicleID. Training
labels become 0..K-1; query and gallery keep the identities' own numbers.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch

from . import veri
from .layout import Layout, Listing, contiguous, is_number
from .records import ImageRecord

# 0002_c1s1_000451_03.jpg (Market-1501), 0001_c2_f0046182.jpg (Duke), 0001_c001_00016450_0.jpg (VeRi-776)
IDENTITY_AND_CAMERA = re.compile(r"(-1|[0-9]{1,9})_c([0-9]{1,9})(?![0-9])")
JUNK = -1
MSMT17 = {"MSMT17_V1": ("train", "test"), "MSMT17_V2": ("mask_train_v2", "mask_test_v2")}
VEHICLE_ID_SIZES = (800, 1600, 2400)


def market1501(root: Path, training: bool = True) -> Listing:
    """Market-1501 (Zheng et al., 2015): 751 people to train, 3,368 queries, 15,913 gallery photos.

    Photos of identity -1 are junk that the protocol ignores: they are dropped. Photos of identity 0000 are
    distractors: they stay in the gallery.
    """
    return _by_folder(Layout("market1501", root, _folders("0002_c1s1_000451_03.jpg")), training)


def dukemtmc(root: Path, training: bool = True) -> Listing:
    """DukeMTMC-reID (Ristani et al., 2016): 702 people to train, 2,228 queries, 17,661 gallery photos.

    The authors withdrew the dataset in 2019, because the people in it had not agreed to be recorded.
    """
    return _by_folder(Layout("dukemtmc", root, _folders("0001_c2_f0046182.jpg")), training)


def occluded_duke(root: Path, training: bool = True) -> Listing:
    """Occluded-Duke (Miao et al., 2019): 702 people to train, 2,210 queries, 17,661 gallery photos.

    Its photos are those of DukeMTMC-reID, which its authors withdrew.
    """
    return _by_folder(Layout("occluded-duke", root, _folders("0001_c2_f0046182.jpg")), training)


def cuhk03_detected(root: Path, training: bool = True) -> Listing:
    """CUHK03 (Li et al., 2014), detected boxes, by the new protocol (Zhong et al., 2017) of 767/700 people.

    7,365 photos to train, 1,400 queries, 5,332 gallery photos: the folder `detected` of CUHK03-NP, which
    those authors published. The protocol's .mat files for cuhk-03.mat are not read.
    """
    return _cuhk03("detected", root, training)


def cuhk03_labeled(root: Path, training: bool = True) -> Listing:
    """As `cuhk03_detected` with boxes drawn by hand: 7,368, 1,400 and 5,328 photos, the folder `labeled`."""
    return _cuhk03("labeled", root, training)


def _cuhk03(boxes: str, root: Path, training: bool) -> Listing:
    folders = ("bounding_box_train/", "query/", "bounding_box_test/")
    tree = f"{', '.join(f'{boxes}/{folder}' for folder in folders)} with photos named like 0001_c1_0001.png"
    return _by_folder(Layout(f"cuhk03-{boxes}", root, tree), training, f"{boxes}/")


def msmt17(root: Path, training: bool = True) -> Listing:
    """MSMT17 (Wei et al., 2018), V1 or V2: 1,041 people to train, 11,659 queries, 82,161 gallery photos.

    V2 blurs the faces, so scores of the two are not comparable: `version` is MSMT17_V1 or MSMT17_V2, as the
    names of the folders say. Trains on list_train.txt and list_val.txt together (32,621 photos), as is usual,
    because both show the same people. The camera is the third field of a photo's name.
    """
    layout = Layout(
        "msmt17",
        root,
        "train/ and test/ (V1) or mask_train_v2/ and mask_test_v2/ (V2) with photos named like "
        "0000/0000_000_01_0303morning_0008_0.jpg, and list_train.txt, list_val.txt, "
        "list_query.txt, list_gallery.txt",
    )
    found = [version for version, names in MSMT17.items() if any((root / name).is_dir() for name in names)]
    if len(found) > 1:
        raise ValueError(f"dataset msmt17: {root} must hold one version, got {' and '.join(found)}")
    version = found[0] if found else "MSMT17_V1"
    train, test = MSMT17[version]
    lists = ("list_train.txt", "list_val.txt") if training else ()
    layout.require(*([train] if training else []), test, *lists, "list_query.txt", "list_gallery.txt")

    def listed(file: str, folder: str) -> list[ImageRecord]:
        records = []
        for name, identity in layout.rows(file, 2):
            fields = name.rpartition("/")[2].split("_")
            if len(fields) < 3 or not is_number(fields[2]) or not is_number(identity):
                raise layout.damaged(file, f"{name!r} {identity!r} must be a photo's name and identity")
            records.append(
                ImageRecord(layout.inside(file, f"{folder}/{name}"), int(identity), int(fields[2]))
            )
        return records

    photos = [record for file in lists for record in listed(file, train)] if training else None
    listing = _reid(layout, photos, listed("list_query.txt", test), listed("list_gallery.txt", test))
    return replace(listing, version=version)


def veri776(root: Path, training: bool = True) -> Listing:
    """VeRi-776 (Liu et al., 2016): 576 vehicles to train, 1,678 queries, 11,579 gallery photos.

    Identities and cameras are read from the names of the photos that name_*.txt list; train_label.xml must
    agree with them. A warning reports photos that it leaves out. The views, the sides of the vehicles, are
    those of keypoint_train.txt and keypoint_test.txt (Wang et al., ICCV 2017) if the root holds these files,
    which the dataset does not bring.
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
        veri.compare_with_labels(layout, trains[0])
    seen = veri.views(layout, "keypoint_test.txt")
    query, gallery = veri.with_views(query, seen), veri.with_views(gallery, seen)
    if not training:
        return _reid(layout, None, query, gallery)
    return _reid(layout, veri.with_views(trains[0], veri.views(layout, "keypoint_train.txt")), query, gallery)


def vehicleid(root: Path, training: bool = True, gallery_seed: int = 0, *, size: int) -> Listing:
    """PKU VehicleID (Liu et al., 2016): 13,164 vehicles to train, `size` others to find.

    The protocol of the authors: one photo of each vehicle of test_list_<size>.txt, drawn at random, is the
    gallery, and all others are queries. The photos of a draw depend on `gallery_seed` and on the list alone.
    Scores of several draws are usually averaged. Cameras are unknown.
    """
    layout = Layout(
        f"vehicleid-{size}",
        root,
        f"image/*.jpg, train_test_split/train_list.txt and train_test_split/test_list_{size}.txt",
    )
    train, test = "train_test_split/train_list.txt", f"train_test_split/test_list_{size}.txt"
    layout.require("image", *([train] if training else []), test)

    def listed(file: str) -> list[ImageRecord]:
        records = []
        for photo, vehicle in layout.rows(file, 2):
            if not is_number(vehicle):
                raise layout.damaged(file, f"{photo!r} {vehicle!r} must be a photo and its vehicle's number")
            records.append(ImageRecord(layout.inside(file, f"image/{photo}.jpg"), int(vehicle)))
        return records

    photos = listed(test)
    gallery = _one_of_each(photos, gallery_seed)
    chosen = set(gallery)
    query = [record for place, record in enumerate(photos) if place not in chosen]
    return _reid(layout, listed(train) if training else None, query, [photos[place] for place in gallery])


def _one_of_each(records: list[ImageRecord], seed: int) -> list[int]:
    """The place of one record of each identity, drawn by the seed, in the order of the identities."""
    places: dict[int, list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault(record.label, []).append(place)
    generator = torch.Generator().manual_seed(seed)
    return [
        places[identity][int(torch.randint(len(places[identity]), (), generator=generator))]
        for identity in sorted(places)
    ]


def _folders(example: str) -> str:
    return f"bounding_box_train/, query/ and bounding_box_test/ with photos named like {example}"


def _by_folder(layout: Layout, training: bool, above: str = "") -> Listing:
    names = (["bounding_box_train"] if training else []) + ["query", "bounding_box_test"]
    folders = [f"{above}{name}" for name in names]
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
