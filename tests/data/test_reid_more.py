"""CUHK03-NP, Occluded-Duke, the versions of MSMT17, and VehicleID's drawn gallery."""

import inspect
import shutil
from collections import Counter
from pathlib import Path

import pytest

from dca_triton.data import ImageDataset, load_dataset, reid
from dca_triton.data.splits import READERS


def seen(dataset: ImageDataset) -> list[tuple[str, int, int]]:
    return [(record.path.name, record.label, record.camera) for record in dataset.records]


@pytest.fixture
def cuhk03(tree) -> Path:
    """`labeled` has another photo than `detected`."""
    folders = {
        "bounding_box_train": ("0003_c1_0021.png", "0003_c2_0026.png", "0009_c1_0081.png"),
        "query": ("0001_c1_0001.png",),
        "bounding_box_test": ("0001_c2_0006.png", "0002_c1_0011.png"),
    }
    photos = [f"{folder}/{name}" for folder, names in folders.items() for name in names]
    labeled = [f"labeled/{photo}" for photo in (*photos, "bounding_box_test/0002_c2_0019.png")]
    return tree("cuhk03-np", *(f"detected/{photo}" for photo in photos), *labeled)


def test_cuhk03_of_either_boxes(cuhk03):
    detected, labeled = (load_dataset(f"cuhk03-{boxes}", cuhk03) for boxes in ("detected", "labeled"))
    assert detected.task == "reid" and detected.classes == labeled.classes == ("3", "9")
    assert seen(detected.train) == [
        ("0003_c1_0021.png", 0, 1),
        ("0003_c2_0026.png", 0, 2),
        ("0009_c1_0081.png", 1, 1),
    ]
    assert seen(detected.query) == seen(labeled.query) == [("0001_c1_0001.png", 1, 1)]
    assert seen(detected.gallery) == [("0001_c2_0006.png", 1, 2), ("0002_c1_0011.png", 2, 1)]
    assert seen(labeled.gallery) == [*seen(detected.gallery), ("0002_c2_0019.png", 2, 2)]
    assert {record.path.parts[-3] for record in labeled.query.records} == {"labeled"}
    shutil.rmtree(cuhk03 / "detected/bounding_box_train")
    with pytest.raises(FileNotFoundError, match=r"detected/bounding_box_train is missing in"):
        load_dataset("cuhk03-detected", cuhk03)
    assert seen(load_dataset("cuhk03-detected", cuhk03, training=False).query) == seen(detected.query)


def test_occluded_duke(tree):
    root = tree(
        "Occluded_Duke",
        "bounding_box_train/0001_c2_f0046182.jpg",
        "query/0005_c2_f0046985.jpg",
        "bounding_box_test/0005_c1_f0044158.jpg",
    )
    splits = load_dataset("occluded-duke", root)
    assert splits.dataset == "occluded-duke" and splits.classes == ("1",)
    assert seen(splits.query) == [("0005_c2_f0046985.jpg", 5, 2)]
    assert seen(splits.gallery) == [("0005_c1_f0044158.jpg", 5, 1)]
    (root / "query/junk.jpg").touch()
    with pytest.raises(ValueError, match=r"dataset occluded-duke: .*its name has no identity and camera"):
        load_dataset("occluded-duke", root)


@pytest.mark.parametrize("name", ["dukemtmc", "occluded-duke"])
def test_who_reads_of_duke_learns_that_it_was_withdrawn(name):
    for text in (READERS[name].__doc__, inspect.getdoc(load_dataset)):
        assert "withdr" in text


MSMT = {
    "list_train.txt": "0000/0000_000_01_0303morning_0008_0.jpg 0\n",
    "list_val.txt": "0000/0000_001_14_0303morning_0009_0.jpg 0\n",
    "list_query.txt": "0000/0000_008_01_0303morning_0019_2.jpg 0\n",
    "list_gallery.txt": "0000/0000_000_07_0113noon_0015_0.jpg 0\n",
}


@pytest.mark.parametrize("version", reid.MSMT17)
@pytest.mark.parametrize("training", [True, False])
def test_versions_of_msmt17_are_named_by_their_folders(tree, version, training):
    """Whatever the name of the root."""
    train, test = reid.MSMT17[version]
    folder = {
        "list_train.txt": train,
        "list_val.txt": train,
        "list_query.txt": test,
        "list_gallery.txt": test,
    }
    photos = [f"{folder[file]}/{line.split()[0]}" for file, line in MSMT.items()]
    root = tree("MSMT17", *photos, texts=MSMT)
    if not training:
        shutil.rmtree(root / train)
    assert load_dataset("msmt17", root, training=training).dataset == version
    (root / {"train": "mask_test_v2", "mask_train_v2": "test"}[train]).mkdir()
    with pytest.raises(ValueError, match="must hold one version, got MSMT17_V1 and MSMT17_V2"):
        load_dataset("msmt17", root, training=training)


VEHICLES = {7: ["0000001", "0000002", "0000003"], 9: ["0000004"], 20: [f"{n:07d}" for n in range(5, 25)]}


@pytest.fixture
def vehicleid(tree) -> Path:
    test = "".join(f"{photo} {vehicle}\n" for vehicle, photos in VEHICLES.items() for photo in photos)
    root = tree(
        "VehicleID_V1.0",
        *(f"image/{photo}.jpg" for photos in VEHICLES.values() for photo in photos),
        *(f"image/{n:07d}.jpg" for n in (100, 101, 102)),
        texts={
            "train_test_split/train_list.txt": "0000100 55\n0000101 55\n0000102 31\n",
            "train_test_split/test_list_800.txt": test,
            "train_test_split/test_list_1600.txt": test + "0000100 21\n0000101 21\n",
            "attribute/img2vid.txt": "",
        },
    )
    return root


def test_vehicleid_draws_one_photo_of_each_vehicle(vehicleid):
    splits = load_dataset("vehicleid-800", vehicleid)
    assert (splits.task, splits.classes, splits.dataset) == ("reid", ("31", "55"), "vehicleid-800")
    assert seen(splits.train) == [
        ("0000100.jpg", 1, -1),
        ("0000101.jpg", 1, -1),
        ("0000102.jpg", 0, -1),
    ]
    assert splits.gallery.labels.tolist() == [7, 9, 20]
    assert Counter(splits.query.labels.tolist()) == {7: 2, 20: 19}
    sides = [{r.path.stem for r in part.records} for part in (splits.query, splits.gallery)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {photo for photos in VEHICLES.values() for photo in photos}
    assert set(splits.query.cameras.tolist() + splits.gallery.cameras.tolist()) == {-1}
    assert load_dataset("vehicleid-1600", vehicleid).gallery.labels.tolist() == [7, 9, 20, 21]
    with pytest.raises(FileNotFoundError, match=r"test_list_2400\.txt is missing in"):
        load_dataset("vehicleid-2400", vehicleid)


def test_the_draw_follows_its_own_seed(vehicleid):
    def gallery(**seeds: int) -> list[str]:
        records = load_dataset("vehicleid-800", vehicleid, **seeds).gallery.records
        return [record.path.stem for record in records]

    assert gallery() == gallery(gallery_seed=0) == gallery(seed=5) == gallery(training=False)
    draws = [tuple(gallery(gallery_seed=seed)) for seed in range(30)]
    assert len(set(draws)) > 12
    counts = Counter(draw[0] for draw in draws)
    assert set(counts) == set(VEHICLES[7]) and min(counts.values()) >= 4  # each photo has its chance
    with pytest.raises(ValueError, match="gallery_seed must be 0 for veri776, whose gallery is not drawn"):
        load_dataset("veri776", vehicleid, gallery_seed=1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0000001", "line 1 has 1 fields, not 2"),
        ("0000001 seven", "must be a photo and its vehicle's number"),
        ("0000001 -1", "must be a photo and its vehicle's number"),
        ("../../x 7", "leads out of the dataset's folder"),
    ],
)
def test_damaged_vehicleid_list(vehicleid, line, reason):
    file = vehicleid / "train_test_split/test_list_800.txt"
    file.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=reason) as caught:
        load_dataset("vehicleid-800", vehicleid)
    assert str(file) in str(caught.value)


def test_vehicleid_without_a_query_or_training_photos(vehicleid):
    expected = seen(load_dataset("vehicleid-800", vehicleid).query)
    (vehicleid / "train_test_split/train_list.txt").unlink()
    assert seen(load_dataset("vehicleid-800", vehicleid, training=False).query) == expected
    (vehicleid / "train_test_split/test_list_800.txt").write_text("0000001 7\n0000004 9\n")
    with pytest.raises(ValueError, match="holds no photo for query"):
        load_dataset("vehicleid-800", vehicleid, training=False)
