"""Fine-grained categorisation in the published layouts: CUB-200-2011, Stanford Cars, FGVC-Aircraft."""

from collections.abc import Callable
from pathlib import Path

from torchvision.datasets import FGVCAircraft, StanfordCars

from .layout import Layout, Listing
from .records import ImageRecord


def cub(root: Path) -> Listing:
    """CUB-200-2011 (Wah et al., 2011): 200 birds, 5,994 photos to train, 5,794 to test."""
    layout = Layout(
        "cub",
        root,
        "images/<class>/*.jpg, images.txt, image_class_labels.txt, train_test_split.txt and classes.txt",
    )
    layout.require("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    names, images = layout.table("classes.txt"), layout.table("images.txt")
    numbers, training = layout.table("image_class_labels.txt"), layout.table("train_test_split.txt")
    if not images.keys() == numbers.keys() == training.keys():
        raise layout.damaged("images.txt", "the images, their classes and the split list different numbers")
    position = {number: label for label, number in enumerate(names)}
    parts: dict[str, list[ImageRecord]] = {"train": [], "test": []}
    for image, file in images.items():
        if numbers[image] not in position:
            raise layout.damaged("image_class_labels.txt", f"image {image} has no class of classes.txt")
        if training[image] not in ("0", "1"):
            raise layout.damaged("train_test_split.txt", f"image {image} has neither 0 nor 1")
        path = layout.inside("images.txt", f"images/{file}")
        parts["train" if training[image] == "1" else "test"].append(
            ImageRecord(path, position[numbers[image]])
        )
    layout.require_photos(parts)
    return Listing(tuple(names.values()), parts)


def cars(root: Path) -> Listing:
    """Stanford Cars (Krause et al., 2013): 196 models, 8,144 photos to train, 8,041 to test."""
    layout = Layout(
        "cars",
        root,
        "in a folder called stanford_cars: cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat, "
        "devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat",
    )
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    layout.require("cars_train", "cars_test", "devkit/cars_meta.mat", *files.values())
    return _by_torchvision(layout, "stanford_cars", StanfordCars, {"train": "train", "test": "test"}, files)


def aircraft(root: Path) -> Listing:
    """FGVC-Aircraft (Maji et al., 2013): 100 variants, 6,667 photos to train (trainval), 3,333 to test."""
    layout = Layout(
        "aircraft",
        root,
        "in a folder called fgvc-aircraft-2013b: data/images/*.jpg, data/variants.txt, "
        "data/images_variant_trainval.txt and data/images_variant_test.txt",
    )
    files = {"train": "data/images_variant_trainval.txt", "test": "data/images_variant_test.txt"}
    layout.require("data/images", "data/variants.txt", *files.values())
    return _by_torchvision(
        layout, "fgvc-aircraft-2013b", FGVCAircraft, {"train": "trainval", "test": "test"}, files
    )


def _by_torchvision(
    layout: Layout, folder: str, reader: Callable, splits: dict[str, str], files: dict[str, str]
) -> Listing:
    """Both parts by a reader of torchvision, which looks for `folder` in the root that it is given."""
    if layout.root.name != folder:
        raise layout.missing(f"its own name, {folder}, is")
    parts: dict[str, list[ImageRecord]] = {}
    for part, split in splits.items():
        try:
            # loader=str leaves the photos closed: an item is (path, label)
            dataset = reader(layout.root.parent, split=split, loader=str)
            samples = [dataset[index] for index in range(len(dataset))]
        except Exception as error:  # scipy and torchvision let every kind of error through
            raise layout.damaged(files[part], f"{type(error).__name__}: {error}") from error
        parts[part] = []
        for path, label in ((path, int(label)) for path, label in samples):
            if not 0 <= label < len(dataset.classes):
                raise layout.damaged(
                    files[part], f"class {label + 1} of {path} is outside 1..{len(dataset.classes)}"
                )
            parts[part].append(ImageRecord(layout.inside(files[part], path), label))
    layout.require_photos(parts)
    return Listing(tuple(dataset.classes), parts)
