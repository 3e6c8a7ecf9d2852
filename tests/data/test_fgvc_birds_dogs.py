"""NABirds and Stanford Dogs: layouts, labels and damaged lists."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from dca_triton.data import load_dataset

BIRDS = {
    "0139c3c7-5f8a-4b4b-8b1e-6a2a9e0f0001": "0817/0139c3c75f8a4b4b8b1e6a2a9e0f0001.jpg",
    "0139c3c7-5f8a-4b4b-8b1e-6a2a9e0f0002": "0817/0139c3c75f8a4b4b8b1e6a2a9e0f0002.jpg",
    "0139c3c7-5f8a-4b4b-8b1e-6a2a9e0f0003": "0997/0139c3c75f8a4b4b8b1e6a2a9e0f0003.jpg",
    "0139c3c7-5f8a-4b4b-8b1e-6a2a9e0f0004": "0997/0139c3c75f8a4b4b8b1e6a2a9e0f0004.jpg",
}
CHIHUAHUA, HOUND = "n02085620-Chihuahua", "n02088094-Afghan_hound"


@pytest.fixture
def nabirds(tree) -> Path:
    """Two birds with photos among the groups above them, which have none."""
    return tree(
        "nabirds",
        *(f"images/{photo}" for photo in BIRDS.values()),
        texts={
            "classes.txt": "0 Birds\n12 Finches and Allies\n817 Oak Titmouse\n"
            "997 House Finch (Female/immature)\n",
            "hierarchy.txt": "12 0\n817 0\n997 12\n",
            "images.txt": "".join(f"{number} {photo}\n" for number, photo in BIRDS.items()),
            "image_class_labels.txt": "".join(f"{n} {photo[1:4]}\n" for n, photo in BIRDS.items()),
            "train_test_split.txt": "".join(f"{n} {i % 2}\n" for i, n in enumerate(BIRDS)),
        },
    )


def seen(dataset) -> list[tuple[str, int]]:
    return [(f"{record.path.parent.name}/{record.path.name}", record.label) for record in dataset.records]


def test_nabirds_counts_the_birds_that_have_photos(nabirds):
    splits = load_dataset("nabirds", nabirds)
    photos = list(BIRDS.values())
    assert (splits.task, splits.dataset) == ("fgvc", "nabirds")
    assert splits.classes == ("Oak Titmouse", "House Finch (Female/immature)")
    assert seen(splits.train) == [(photos[1], 0), (photos[3], 1)]
    assert seen(splits.test) == [(photos[0], 0), (photos[2], 1)]
    assert splits.test[1]["image"].shape == (3, 8, 6)


def test_nabirds_labels_are_those_of_all_photos(nabirds):
    """A bird without test photos keeps its place."""
    file = nabirds / "train_test_split.txt"
    file.write_text("".join(f"{n} {int(i != 2)}\n" for i, n in enumerate(BIRDS)))
    splits = load_dataset("nabirds", nabirds, training=False)
    assert splits.train is None and len(splits.classes) == 2 and splits.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("image_class_labels.txt", "".join(f"{n} 5\n" for n in BIRDS), "has no class of classes.txt"),
        ("train_test_split.txt", "".join(f"{n} 2\n" for n in BIRDS), "has neither 0 nor 1"),
        ("images.txt", "".join(f"{n} ../../x.jpg\n" for n in BIRDS), "leads out of the dataset's folder"),
        ("images.txt", "1 a.jpg\n", "list different numbers"),
    ],
)
def test_damaged_nabirds_list(nabirds, file, text, reason):
    (nabirds / file).write_text(text)
    with pytest.raises(ValueError, match=reason) as caught:
        load_dataset("nabirds", nabirds)
    assert str(nabirds / file) in str(caught.value)


def listed(file: Path, photos: list[str], labels: list[float]) -> None:
    """As lists.tar has them: columns of texts and numbers."""
    texts = np.empty((len(photos), 1), dtype=object)
    texts[:, 0] = photos
    columns = {"file_list": texts, "annotation_list": texts, "labels": np.array(labels)[:, None]}
    savemat(file, columns)


@pytest.fixture
def dogs(tree) -> Path:
    photos = [f"{breed}/{breed[:9]}_{n}.jpg" for breed in (CHIHUAHUA, HOUND) for n in (7, 10)]
    root = tree("dogs", *(f"Images/{photo}" for photo in photos))
    listed(root / "train_list.mat", [photos[0], photos[2]], [1, 2])
    listed(root / "test_list.mat", [photos[3], photos[1]], [2, 1])
    return root


def test_dogs(dogs):
    splits = load_dataset("dogs", dogs)
    assert splits.task == "fgvc" and splits.classes == ("Chihuahua", "Afghan_hound")
    assert seen(splits.train) == [
        (f"{CHIHUAHUA}/n02085620_7.jpg", 0),
        (f"{HOUND}/n02088094_7.jpg", 1),
    ]
    assert seen(splits.test) == [
        (f"{HOUND}/n02088094_10.jpg", 1),
        (f"{CHIHUAHUA}/n02085620_10.jpg", 0),
    ]
    assert splits.train[0]["image"].shape == (3, 8, 6)


def test_breeds_with_hyphens_keep_them(dogs):
    folder = (dogs / "Images" / HOUND).rename(dogs / "Images/n02095314-wire-haired_fox_terrier")
    for part, number in (("train", 7), ("test", 10)):
        photos = [f"{CHIHUAHUA}/n02085620_{number}.jpg", f"{folder.name}/n02088094_{number}.jpg"]
        listed(dogs / f"{part}_list.mat", photos, [1, 2])
    assert load_dataset("dogs", dogs).classes == ("Chihuahua", "wire-haired_fox_terrier")


@pytest.mark.parametrize(
    ("photos", "labels", "reason"),
    [
        ([f"{HOUND}/n02088094_7.jpg"], [1], "must lie in the folder of the breed of label 1"),
        (["n02088094_7.jpg"], [2], "must lie in the folder of the breed of label 2"),
        (["../../a-b/x.jpg"], [3], "must lie in the folder of the breed of label 3"),
        (["x-b/../../../x.jpg"], [3], "leads out of the dataset's folder"),
        ([f"{HOUND}/n02088094_7.jpg"], [np.nan], "cannot convert float NaN"),
        ([f"{HOUND}/n02088094_7.jpg"], [2, 2], "ValueError: zip"),
    ],
)
def test_damaged_dogs_list(dogs, photos, labels, reason):
    listed(dogs / "test_list.mat", photos, labels)
    with pytest.raises(ValueError, match=reason) as caught:
        load_dataset("dogs", dogs)
    assert str(dogs / "test_list.mat") in str(caught.value)


def test_dogs_file_that_is_no_list(dogs):
    (dogs / "test_list.mat").write_bytes(b"no mat file")
    with pytest.raises(ValueError, match=r"test_list\.mat is damaged"):
        load_dataset("dogs", dogs)
    (dogs / "test_list.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_list\.mat is missing in .*lists\.tar"):
        load_dataset("dogs", dogs)


def test_evaluation_without_training_photos(dogs):
    expected = seen(load_dataset("dogs", dogs).test)
    (dogs / "train_list.mat").unlink()
    for photo in dogs.glob("Images/*/*_7.jpg"):
        photo.unlink()
    splits = load_dataset("dogs", dogs, training=False)
    assert splits.train is None and seen(splits.test) == expected
    shutil.rmtree(dogs / "Images" / HOUND)
    with pytest.raises(FileNotFoundError, match=r"n02088094_10\.jpg is missing in"):
        load_dataset("dogs", dogs, training=False)
