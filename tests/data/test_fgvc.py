import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from dca_triton.data import load_dataset

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
CUB_PHOTOS = [
    f"{BIRDS[0]}/Black_Footed_Albatross_0046_18.jpg",
    f"{BIRDS[0]}/Black_Footed_Albatross_0009_34.jpg",
    f"{BIRDS[1]}/Laysan_Albatross_0002_1027.jpg",
    f"{BIRDS[1]}/Laysan_Albatross_0082_524.jpg",
]


@pytest.fixture
def cub(tree) -> Path:
    return tree(
        "CUB_200_2011",
        *(f"images/{photo}" for photo in CUB_PHOTOS),
        texts={
            "classes.txt": "".join(f"{n} {name}\n" for n, name in enumerate(BIRDS, 1)),
            "images.txt": "".join(f"{n} {name}\n" for n, name in enumerate(CUB_PHOTOS, 1)),
            "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
            "train_test_split.txt": "1 0\n2 1\n3 1\n4 0\n",
        },
    )


def test_cub_counts_from_one(cub):
    splits = load_dataset("cub", cub)
    assert splits.task == "fgvc"
    assert splits.classes == splits.train.classes == splits.test.classes == BIRDS
    found = {
        part: [(str(r.path.relative_to(cub / "images")), r.label, r.camera) for r in dataset.records]
        for part, dataset in (("train", splits.train), ("test", splits.test))
    }
    assert found["train"] == [(CUB_PHOTOS[1], 0, -1), (CUB_PHOTOS[2], 1, -1)]
    assert found["test"] == [(CUB_PHOTOS[0], 0, -1), (CUB_PHOTOS[3], 1, -1)]
    assert splits.validation is splits.query is splits.gallery is None
    assert splits.train[0]["image"].shape == (3, 8, 6)


def test_cub_reads_windows_line_ends_and_stray_blanks(cub):
    expected = load_dataset("cub", cub).train.records
    for file in cub.glob("*.txt"):
        file.write_bytes(file.read_bytes().replace(b"\n", b" \t\r\n") + b" \r\n")
    assert load_dataset("cub", cub).train.records == expected


def test_cub_reads_a_byte_order_mark_and_either_spelling(cub):
    photo = cub / "images" / CUB_PHOTOS[0]
    photo.rename(photo.with_name(unicodedata.normalize("NFD", "b\u00fcsserl.jpg")))
    (cub / "images.txt").write_text((cub / "images.txt").read_text().replace(photo.name, "b\u00fcsserl.jpg"))
    for file in cub.glob("*.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    splits = load_dataset("cub", cub)
    assert splits.classes == BIRDS and len(splits.test) == 2
    assert splits.test[0]["image"].shape == (3, 8, 6)


def test_lists_that_are_no_files_of_a_sane_size(cub):
    file = cub / "images.txt"
    with file.open("wb") as stream:
        stream.truncate(10**11)
    with pytest.raises(
        ValueError, match=r"images\.txt is damaged \(it must have at most \d+ bytes, got 10{11}"
    ):
        load_dataset("cub", cub)
    file.unlink()
    for make in (file.mkdir, lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero")):
        make()
        with pytest.raises(ValueError, match=r"images\.txt is damaged \(it must be a file, not a folder"):
            load_dataset("cub", cub)
        file.rmdir() if file.is_dir() else file.unlink()
    file.write_text("1 " + "x" * 5000 + ".jpg\n2 " + "\u00fc" * 5000 + ".jpg\n3 a\n4 b\n")
    with pytest.raises(FileNotFoundError, match=r"and 3 more photos are missing"):
        load_dataset("cub", cub)


def test_missing_files_are_all_named(cub):
    (cub / "images.txt").unlink()
    (cub / "train_test_split.txt").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("cub", cub)
    message = str(caught.value)
    assert "images.txt, train_test_split.txt are missing" in message
    assert str(cub) in message and "images/<class>/*.jpg" in message and "\n" not in message


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("images.txt", f"1 {CUB_PHOTOS[0]}\n2\n", "line 2 has 1 fields, not 2"),
        ("images.txt", f"1 {CUB_PHOTOS[0]}\n1 {CUB_PHOTOS[1]}\n", "'1' comes twice"),
        ("images.txt", f"1 {CUB_PHOTOS[0]}\n", "list different numbers"),
        ("classes.txt", "1 a\n2 a\n", "must have distinct class names, got 'a' more than once"),
        ("images.txt", "1 ../../x.jpg\n2 a\n3 b\n4 c\n", "leads out of the dataset's folder"),
        ("images.txt", "1 ../../CUB_200_2011_b/x.jpg\n2 a\n3 b\n4 c\n", "leads out of the dataset's folder"),
        ("images.txt", b"1 \xff\xfe\n", "must be UTF-8 text"),
        ("image_class_labels.txt", "1 0\n2 1\n3 2\n4 2\n", "image 1 has no class of classes.txt"),
        ("train_test_split.txt", "1 0\n2 1\n3 yes\n4 0\n", "image 3 has neither 0 nor 1"),
    ],
)
def test_damaged_cub_list(cub, file, text, reason):
    (cub / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=reason) as caught:
        load_dataset("cub", cub)
    assert str(cub) in str(caught.value) and (file in str(caught.value) or "distinct" in reason)


def test_listed_photos_that_are_absent(cub):
    (cub / "images" / CUB_PHOTOS[1]).unlink()
    (cub / "images" / CUB_PHOTOS[3]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{CUB_PHOTOS[1]} and 1 more photos are missing"):
        load_dataset("cub", cub)


def test_a_part_without_photos(cub):
    (cub / "train_test_split.txt").write_text("1 1\n2 1\n3 1\n4 1\n")
    with pytest.raises(ValueError, match="holds no photo for test"):
        load_dataset("cub", cub)


FIELD = st.one_of(
    st.sampled_from([*CUB_PHOTOS, "0", "1", "2", "3", "4", "5", "..", "../..", "/", "a\0b", "٣", "1" * 5000]),
    st.text(max_size=8),
)
LINES = st.lists(st.lists(FIELD, max_size=3).map(" ".join), max_size=6).map("\n".join)


@settings(max_examples=80, deadline=None)
@given(
    texts=st.fixed_dictionaries(
        {},
        optional={
            name: LINES
            for name in ("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt")
        },
    )
)
def test_wild_cub_lists_load_or_are_refused(texts, tmp_path_factory):
    root = tmp_path_factory.mktemp("wild")
    for photo in CUB_PHOTOS:
        (root / "images" / photo).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / photo).touch()
    (root / "classes.txt").write_text("1 a\n2 b\n")
    (root / "images.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(CUB_PHOTOS, 1)))
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n4 2\n")
    (root / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n4 0\n")
    for name, text in texts.items():
        (root / name).write_bytes(text.encode("utf-8", errors="replace"))
    try:
        splits = load_dataset("cub", root)
    except (ValueError, FileNotFoundError) as error:
        assert str(root) in str(error)
    else:
        for record in (*splits.train.records, *splits.test.records):
            assert record.path.resolve().is_relative_to(root.resolve())
            assert 0 <= record.label < len(splits.classes)


def annotations(file: Path, rows: list[tuple[str, int]]) -> None:
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    table = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for column, (name, number) in enumerate(rows):
        table[0, column] = (np.uint8(1), np.uint8(2), np.uint16(300), np.uint16(200), np.uint8(number), name)
    savemat(file, {"annotations": table})


@pytest.fixture
def cars(tree) -> Path:
    root = tree(
        "stanford_cars",
        *(f"cars_train/0000{n}.jpg" for n in (1, 2, 3)),
        *(f"cars_test/0000{n}.jpg" for n in (1, 2)),
        texts={"devkit/README.txt": ""},
    )
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(root / "devkit/cars_meta.mat", {"class_names": names})
    annotations(root / "devkit/cars_train_annos.mat", [("00001.jpg", 2), ("00002.jpg", 1), ("00003.jpg", 2)])
    annotations(root / "cars_test_annos_withlabels.mat", [("00001.jpg", 1), ("00002.jpg", 2)])
    return root


def test_cars(cars, monkeypatch):
    splits = load_dataset("cars", cars)
    assert splits.classes == ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")
    assert [(r.path.name, r.label) for r in splits.train.records] == [
        ("00001.jpg", 1),
        ("00002.jpg", 0),
        ("00003.jpg", 1),
    ]
    assert [(r.path.parent.name, r.label) for r in splits.test.records] == [
        ("cars_test", 0),
        ("cars_test", 1),
    ]
    assert splits.test[1]["image"].shape == (3, 8, 6)
    monkeypatch.chdir(cars.parent)
    assert load_dataset("cars", "stanford_cars").train.records == splits.train.records


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([("00001.jpg", 1), ("00002.jpg", 3)], r"class 3 of .*00002\.jpg is outside 1\.\.2"),
        ([("00001.jpg", 1), ("00002.jpg", 0)], r"is outside 1\.\.2"),
        ([("00001.jpg", 1), ("../../../x.jpg", 1)], "leads out of the dataset's folder"),
    ],
)
def test_damaged_cars_rows(cars, rows, reason):
    annotations(cars / "cars_test_annos_withlabels.mat", rows)
    with pytest.raises(ValueError, match=reason) as caught:
        load_dataset("cars", cars)
    assert str(cars / "cars_test_annos_withlabels.mat") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no mat file at all", None])
def test_damaged_cars_file(cars, content):
    file = cars / "devkit/cars_train_annos.mat"
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        load_dataset("cars", cars)


def test_cars_missing_files_and_another_name(cars):
    (cars / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"cars_test_annos_withlabels\.mat is missing in"):
        load_dataset("cars", cars)
    (cars / "cars_test_annos_withlabels.mat").touch()
    annotations(cars / "cars_test_annos_withlabels.mat", [("00001.jpg", 1)])
    expected = [r.label for r in load_dataset("cars", cars).train.records]
    renamed = cars.rename(cars.parent / "my cars")
    assert [r.label for r in load_dataset("cars", renamed).train.records] == expected
    (cars.parent / "link").symlink_to(renamed)
    assert [r.label for r in load_dataset("cars", cars.parent / "link").train.records] == expected


@pytest.fixture
def aircraft(tree) -> Path:
    return tree(
        "fgvc-aircraft-2013b",
        *(f"data/images/{n}.jpg" for n in ("0034309", "1025794", "1340192", "0056978")),
        texts={
            "data/variants.txt": "707-320\nF/A-18\nMD-80 Series\n",
            "data/images_variant_trainval.txt": "1025794 707-320\n1340192 MD-80 Series\n0056978 F/A-18\n",
            "data/images_variant_test.txt": "0034309 MD-80 Series\n",
        },
    )


def test_aircraft_names_with_blanks_and_slashes(aircraft):
    splits = load_dataset("aircraft", aircraft)
    assert splits.classes == ("707-320", "F/A-18", "MD-80 Series")
    assert [(r.path.name, r.label) for r in splits.train.records] == [
        ("1025794.jpg", 0),
        ("1340192.jpg", 2),
        ("0056978.jpg", 1),
    ]
    assert [(r.path.name, r.label) for r in splits.test.records] == [("0034309.jpg", 2)]


@pytest.mark.parametrize("line", ["0034309 No such plane", "0034309", "../../../x 707-320"])
def test_damaged_aircraft_list(aircraft, line):
    file = aircraft / "data/images_variant_test.txt"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        load_dataset("aircraft", aircraft)


def test_aircraft_of_any_name_and_behind_a_link(aircraft):
    expected = [r.label for r in load_dataset("aircraft", aircraft).train.records]
    renamed = aircraft.rename(aircraft.with_name("planes"))
    (aircraft.parent / "link").symlink_to(renamed)
    for root in (renamed, aircraft.parent / "link"):
        assert [r.label for r in load_dataset("aircraft", root).train.records] == expected
    (renamed / "data/variants.txt").write_text("707-320\nF/A-18\nMD-80 Series\n707-320\n")
    with pytest.raises(ValueError, match=r"variants\.txt is damaged \(a variant comes twice\)"):
        load_dataset("aircraft", renamed)


def test_aircraft_missing_photo(aircraft):
    (aircraft / "data/images/0034309.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"0034309\.jpg is missing in"):
        load_dataset("aircraft", aircraft)


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("cub", [f"images/{CUB_PHOTOS[1]}", f"images/{CUB_PHOTOS[2]}"]),
        ("cars", ["cars_train", "devkit/cars_train_annos.mat"]),
        ("aircraft", ["data/images/1025794.jpg", "data/images_variant_trainval.txt"]),
    ],
)
def test_evaluation_without_training_photos(name, training, request):
    root = request.getfixturevalue(name)
    test = load_dataset(name, root).test
    for path in training:
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        load_dataset(name, root)
    splits = load_dataset(name, root, training=False)
    assert splits.train is None and splits.test.records == test.records
    assert splits.with_classes(test.classes[::-1]).test.classes == test.classes[::-1]
