"""Small datasets in their published layouts: two classes, four photos of each to train."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = range(2)
PHOTOS = range(4)  # of a class, to train
SIDES = (20, 24)


def photo(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(map(ord, file.name)))
    Image.fromarray(noise.integers(0, 256, (*SIDES, 3), dtype=np.uint8)).save(file)


def lines(file: Path, *rows: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row}\n" for row in rows))


def cub(root: Path) -> None:
    photos = [(c, i) for c in CLASSES for i in range(len(PHOTOS) + 1)]
    for c, i in photos:
        photo(root / f"images/{c}/{i}.jpg")
    lines(root / "classes.txt", *(f"{c} bird{c}" for c in CLASSES))
    lines(root / "images.txt", *(f"{n} {c}/{i}.jpg" for n, (c, i) in enumerate(photos)))
    lines(root / "image_class_labels.txt", *(f"{n} {c}" for n, (c, _) in enumerate(photos)))
    lines(root / "train_test_split.txt", *(f"{n} {int(i in PHOTOS)}" for n, (_, i) in enumerate(photos)))


def cars(root: Path) -> None:
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array(["car0", "car1"], dtype=object)})
    lists = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for part, file in lists.items():
        photos = [(c, f"{c}{i}.jpg") for c in CLASSES for i in (PHOTOS if part == "train" else [0])]
        table = np.zeros((1, len(photos)), dtype=[("class", object), ("fname", object)])
        for column, (c, name) in enumerate(photos):
            photo(root / f"cars_{part}/{name}")
            table[0, column] = (np.uint8(c + 1), name)
        savemat(root / file, {"annotations": table})


def aircraft(root: Path) -> None:
    lines(root / "data/variants.txt", *(f"plane{c}" for c in CLASSES))
    for part, numbers in {"trainval": PHOTOS, "test": [9]}.items():
        names = {f"{c}{i}": f"plane{c}" for c in CLASSES for i in numbers}
        for name in names:
            photo(root / f"data/images/{name}.jpg")
        lines(root / f"data/images_variant_{part}.txt", *(" ".join(pair) for pair in names.items()))


def folder(root: Path) -> None:
    for part, numbers in {"train": PHOTOS, "test": [0]}.items():
        for c in CLASSES:
            for i in numbers:
                photo(root / f"{part}/{c}/{i}.jpg")


def people(root: Path) -> None:
    """Market-1501 and DukeMTMC-reID."""
    for c in CLASSES:
        for i in PHOTOS:
            photo(root / f"bounding_box_train/000{c + 1}_c{i}_00000{i}.jpg")
        photo(root / f"query/000{c + 3}_c1_000000.jpg")
        photo(root / f"bounding_box_test/000{c + 3}_c2_000000.jpg")


def msmt17(root: Path) -> None:
    lists = {"train": PHOTOS[:-1], "val": PHOTOS[-1:], "query": [1], "gallery": [2]}
    for part, numbers in lists.items():
        names = {f"000{c}/000{c}_00{i}_0{i}_x.jpg": c for c in CLASSES for i in numbers}
        for name in names:
            photo(root / ("train" if part in ("train", "val") else "test") / name)
        lines(root / f"list_{part}.txt", *(f"{name} {c}" for name, c in names.items()))


def veri776(root: Path) -> None:
    for part, numbers in {"train": PHOTOS, "query": [1], "test": [2]}.items():
        names = [f"000{c + 1}_c00{i + 1}_0.jpg" for c in CLASSES for i in numbers]
        for name in names:
            photo(root / f"image_{part}/{name}")
        lines(root / f"name_{part}.txt", *names)
        items = [f'<Item imageName="{n}" vehicleID="{n[:4]}" cameraID="{n[5:9]}"/>' for n in names]
        if part == "train":
            text = ["<TrainingImages><Items>", *items, "</Items></TrainingImages>"]
            lines(root / "train_label.xml", *text)


TREES: dict[str, Callable[[Path], None]] = {
    "cub": cub,
    "cars": cars,
    "aircraft": aircraft,
    "folder": folder,
    "market1501": people,
    "dukemtmc": people,
    "msmt17": msmt17,
    "veri776": veri776,
}
