import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dca_triton.data import ImageDataset, load_dataset


def seen(dataset: ImageDataset) -> list[tuple[str, int, int]]:
    return [(record.path.name, record.label, record.camera) for record in dataset.records]


@pytest.fixture
def market(tree) -> Path:
    return tree(
        "Market-1501-v15.09.15",
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0002_c6s1_002351_01.jpg",
        "bounding_box_train/0007_c3s3_077419_03.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/-1_c1s1_000401_03.jpg",
        "bounding_box_test/0000_c1s1_000151_01.jpg",
        "bounding_box_test/0001_c2s1_000301_00.jpg",
        texts={"bounding_box_test/Thumbs.db": "x", "query/._0001_c1s1_001051_00.jpg": "x", "readme.txt": "x"},
    )


def test_market_drops_junk_and_keeps_distractors(market):
    splits = load_dataset("market1501", market)
    assert splits.task == "reid"
    assert splits.classes == ("2", "7")
    assert seen(splits.train) == [
        ("0002_c1s1_000451_03.jpg", 0, 1),
        ("0002_c6s1_002351_01.jpg", 0, 6),
        ("0007_c3s3_077419_03.jpg", 1, 3),
    ]
    assert seen(splits.query) == [("0001_c1s1_001051_00.jpg", 1, 1)]
    assert seen(splits.gallery) == [("0000_c1s1_000151_01.jpg", 0, 1), ("0001_c2s1_000301_00.jpg", 1, 2)]
    assert splits.test is splits.validation is None
    assert splits.gallery[1]["camera"] == 2


def test_photo_with_a_foreign_name(market):
    (market / "query/holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"query/holiday\.jpg is damaged \(its name has no identity"):
        load_dataset("market1501", market)


def test_missing_folders_and_parts_without_photos(market):
    for photo in (market / "query").iterdir():
        photo.unlink()
    with pytest.raises(ValueError, match="holds no photo for query"):
        load_dataset("market1501", market)
    (market / "query").rmdir()
    with pytest.raises(
        FileNotFoundError, match=r"query is missing in .* which must hold bounding_box_train/"
    ):
        load_dataset("market1501", market)
    with pytest.raises(
        FileNotFoundError, match="bounding_box_train, query, bounding_box_test are missing in"
    ):
        load_dataset("dukemtmc", market / "no such folder")


def test_duke_names(tree):
    root = tree(
        "DukeMTMC-reID",
        "bounding_box_train/0001_c2_f0046182.jpg",
        "bounding_box_train/0005_c8_f0046302.jpg",
        "query/0005_c2_f0046985.jpg",
        "bounding_box_test/0002_c1_f0044158.jpg",
        "bounding_box_test/7139_c2_f0160815.jpg",
    )
    splits = load_dataset("dukemtmc", root)
    assert seen(splits.train) == [("0001_c2_f0046182.jpg", 0, 2), ("0005_c8_f0046302.jpg", 1, 8)]
    assert seen(splits.query) == [("0005_c2_f0046985.jpg", 5, 2)]
    assert seen(splits.gallery) == [("0002_c1_f0044158.jpg", 2, 1), ("7139_c2_f0160815.jpg", 7139, 2)]


MSMT = {
    "list_train.txt": "0000/0000_000_01_0303morning_0008_0.jpg 0\n"
    "0003/0003_019_05_0303morning_0040_0.jpg 3\n",
    "list_val.txt": "0000/0000_001_14_0303morning_0009_0.jpg 0\n",
    "list_query.txt": "0000/0000_008_01_0303morning_0019_2.jpg 0\n",
    "list_gallery.txt": "0000/0000_000_07_0113noon_0015_0.jpg 0\n0012/0012_000_15_0303noon_0015_0.jpg 12\n",
}
MSMT_PHOTOS = {
    "train": [
        row.split()[0] for file in ("list_train.txt", "list_val.txt") for row in MSMT[file].splitlines()
    ],
    "test": [
        row.split()[0] for file in ("list_query.txt", "list_gallery.txt") for row in MSMT[file].splitlines()
    ],
}


@pytest.fixture
def msmt(tree) -> Path:
    folders = {"train": "mask_train_v2", "test": "mask_test_v2"}
    photos = [f"{folders[part]}/{name}" for part, names in MSMT_PHOTOS.items() for name in names]
    return tree("MSMT17_V2", *photos, texts=MSMT)


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt_both_versions(tree, folders):
    train, test = folders
    photos = [f"{train}/{name}" for name in MSMT_PHOTOS["train"]] + [
        f"{test}/{n}" for n in MSMT_PHOTOS["test"]
    ]
    root = tree("MSMT17", *photos, texts=MSMT)
    splits = load_dataset("msmt17", root)
    assert splits.classes == ("0", "3")
    assert seen(splits.train) == [
        ("0000_000_01_0303morning_0008_0.jpg", 0, 1),
        ("0003_019_05_0303morning_0040_0.jpg", 1, 5),
        ("0000_001_14_0303morning_0009_0.jpg", 0, 14),
    ]
    assert seen(splits.query) == [("0000_008_01_0303morning_0019_2.jpg", 0, 1)]
    assert seen(splits.gallery) == [
        ("0000_000_07_0113noon_0015_0.jpg", 0, 7),
        ("0012_000_15_0303noon_0015_0.jpg", 12, 15),
    ]
    assert splits.gallery[0]["image"].shape == (3, 8, 6)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0000/0000_000_01_0303morning_0008_0.jpg", "line 1 has 1 fields, not 2"),
        ("0000/0000_000_01_0303morning_0008_0.jpg zero", "must be a photo's name and identity"),
        (f"0000/0000_000_01_x.jpg {'9' * 5000}", "must be a photo's name and identity"),
        ("0000/0000_000_01_x.jpg \u0663", "must be a photo's name and identity"),
        ("0000/photo.jpg 0", "must be a photo's name and identity"),
        ("../../0000_000_01_x.jpg 0", "leads out of the dataset's folder"),
    ],
)
def test_damaged_msmt_list(tree, line, reason):
    photos = [f"{part}/{name}" for part, names in MSMT_PHOTOS.items() for name in names]
    root = tree("MSMT17", *photos, texts={**MSMT, "list_query.txt": line + "\n"})
    with pytest.raises(ValueError, match=reason) as caught:
        load_dataset("msmt17", root)
    assert str(root / "list_query.txt") in str(caught.value)


NAME = st.one_of(
    st.sampled_from(
        [*MSMT_PHOTOS["test"], "../test/a_b_1", "a_b_٣.jpg", "a_b_1", f"a_b_{'9' * 5000}", "/a_b_1"]
    ),
    st.text(max_size=8),
)
IDENTITY = st.one_of(st.sampled_from(["0", "1", "-1", "٣", "9" * 5000, ""]), st.text(max_size=4))


@settings(max_examples=80, deadline=None)
@given(lines=st.lists(st.tuples(NAME, IDENTITY), max_size=4))
def test_wild_msmt_list_loads_or_is_refused(lines, tmp_path_factory):
    root = tmp_path_factory.mktemp("wild")
    for part, names in MSMT_PHOTOS.items():
        for name in names:
            (root / part / name).parent.mkdir(parents=True, exist_ok=True)
            (root / part / name).touch()
    for file, text in MSMT.items():
        (root / file).write_text(text)
    text = "\n".join(f"{name} {identity}" for name, identity in lines)
    (root / "list_gallery.txt").write_bytes(text.encode("utf-8", errors="replace"))
    try:
        gallery = load_dataset("msmt17", root).gallery
    except (ValueError, FileNotFoundError) as error:
        assert str(root) in str(error)
    else:
        assert all(record.path.resolve().is_relative_to(root.resolve()) for record in gallery.records)
        assert gallery.labels.min() >= 0 and gallery.cameras.min() >= 0


VERI = {
    "image_train": ["0001_c001_00016450_0.jpg", "0001_c002_00016460_0.jpg", "0003_c019_00016470_0.jpg"],
    "image_query": ["0002_c002_00030600_0.jpg"],
    "image_test": ["0002_c003_00030670_0.jpg", "0005_c003_00077625_0.jpg"],
}
DECLARATION = '<?xml version="1.0" encoding="gb2312" ?>\n'


def items(*rows: tuple[str, str, str]) -> str:
    body = "".join(
        f'    <Item imageName="{name}" vehicleID="{vehicle}" cameraID="{camera}" colorID="1" typeID="4" />\n'
        for name, vehicle, camera in rows
    )
    head = f'<TrainingImages Version="1.0">\n  <Items number="{len(rows)}">\n'
    return f"{head}{body}  </Items>\n</TrainingImages>\n"


LABELS = items(*((name, name[:4], name[5:9]) for name in VERI["image_train"]))


@pytest.fixture
def veri(tree) -> Path:
    names = {"name_train.txt": "image_train", "name_query.txt": "image_query", "name_test.txt": "image_test"}
    return tree(
        "VeRi",
        *(f"{folder}/{name}" for folder, photos in VERI.items() for name in photos),
        texts={
            **{file: "".join(f"{name}\n" for name in VERI[folder]) for file, folder in names.items()},
            "train_label.xml": DECLARATION + LABELS,
        },
    )


@pytest.mark.parametrize("encoding", ["gb2312", "gb18030", "utf-8"])  # the declaration stays the same
def test_veri_whatever_the_encoding(veri, encoding):
    text = DECLARATION + "<!-- 车辆再识别 -->\n" + LABELS
    (veri / "train_label.xml").write_bytes(text.encode(encoding))
    splits = load_dataset("veri776", veri)
    assert splits.classes == ("1", "3")
    assert seen(splits.train) == [
        ("0001_c001_00016450_0.jpg", 0, 1),
        ("0001_c002_00016460_0.jpg", 0, 2),
        ("0003_c019_00016470_0.jpg", 1, 19),
    ]
    assert seen(splits.query) == [("0002_c002_00030600_0.jpg", 2, 2)]
    assert seen(splits.gallery) == [("0002_c003_00030670_0.jpg", 2, 3), ("0005_c003_00077625_0.jpg", 5, 3)]


def test_veri_views_are_read_if_somebody_put_them_there(veri):
    assert load_dataset("veri776", veri).train.views.tolist() == [-1, -1, -1]
    places = "-1 -1 " * 20
    lines = [f"VeRi/image_train/{name} {places}{view}\n" for view, name in enumerate(VERI["image_train"][:2])]
    (veri / "keypoint_train.txt").write_text("".join(lines))
    (veri / "keypoint_test.txt").write_text(f"VeRi/image_query/{VERI['image_query'][0]} {places}7\n")
    splits = load_dataset("veri776", veri)
    assert splits.train.views.tolist() == [0, 1, -1] and splits.train.cameras.tolist() == [1, 2, 19]
    assert splits.query.views.tolist() == [7] and splits.gallery.views.tolist() == [-1, -1]
    (veri / "keypoint_test.txt").write_text("VeRi/image_query/a.jpg 1 left\n")
    with pytest.raises(
        ValueError, match=r"keypoint_test.txt is damaged \(the view of a.jpg must be a number"
    ):
        load_dataset("veri776", veri)


def test_veri_photos_without_annotation_are_reported(veri):
    rows = [(name, name[:4], name[5:9]) for name in VERI["image_train"][:2]]
    (veri / "train_label.xml").write_text(DECLARATION + items(*rows))
    with pytest.warns(UserWarning, match=r"1 of 3 training photos are absent from .*train_label\.xml"):
        splits = load_dataset("veri776", veri)
    assert splits.train.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DECLARATION + LABELS[:120], "ParseError"),
        ("", "ParseError"),
        (DECLARATION + LABELS.replace("vehicleID", "id"), "KeyError: 'vehicleID'"),
        (DECLARATION + LABELS.replace("c019", "cam"), "must be numbers"),
        (DECLARATION + LABELS.replace('vehicleID="0003"', 'vehicleID="0004"'), "contradicts the name of"),
    ],
)
def test_damaged_veri_labels(veri, text, reason):
    (veri / "train_label.xml").write_text(text)
    with pytest.raises(ValueError, match=reason) as caught:
        load_dataset("veri776", veri)
    assert str(veri / "train_label.xml") in str(caught.value)


def test_veri_list_that_leaves_its_folder(veri):
    (veri / "name_query.txt").write_text("../../0002_c002_00030600_0.jpg\n")
    with pytest.raises(ValueError, match=r"name_query\.txt is damaged .*leads out of the dataset's folder"):
        load_dataset("veri776", veri)


@pytest.mark.parametrize(
    ("name", "dataset", "training"),
    [
        ("market", "market1501", ["bounding_box_train"]),
        ("veri", "veri776", ["image_train", "name_train.txt", "train_label.xml"]),
        ("msmt", "msmt17", ["mask_train_v2", "list_train.txt", "list_val.txt"]),
    ],
)
def test_evaluation_without_training_photos(name, dataset, training, request):
    root = request.getfixturevalue(name)
    full = load_dataset(dataset, root)
    for path in training:
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        load_dataset(dataset, root)
    splits = load_dataset(dataset, root, training=False)
    assert splits.train is None and splits.task == "reid"
    assert seen(splits.query) == seen(full.query) and seen(splits.gallery) == seen(full.gallery)
