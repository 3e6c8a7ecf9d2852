import unicodedata

import pytest

from dca_triton.data import load_dataset


def test_categories_are_matched_by_name(tree):
    root = tree("birds", "train/owl/1.jpg", "train/crow/2.png", "train/crow/a.jpg", "test/owl/3.jpg")
    splits = load_dataset("folder", root)
    assert splits.task == "fgvc"
    assert splits.classes == ("crow", "owl")
    assert [(r.path.name, r.label) for r in splits.train.records] == [
        ("2.png", 0),
        ("a.jpg", 0),
        ("1.jpg", 1),
    ]
    assert [(r.path.name, r.label) for r in splits.test.records] == [("3.jpg", 1)]


def test_unknown_and_empty_classes_are_refused(tree):
    root = tree("birds", "train/owl/1.jpg", "test/owl/3.jpg", "test/emu/4.jpg")
    with pytest.raises(ValueError, match=r"test is damaged \(no training photos for the classes emu\)"):
        load_dataset("folder", root)
    (root / "train/emu").mkdir()
    with pytest.raises(ValueError, match=r"train is damaged .*emu"):
        load_dataset("folder", root)
    with pytest.raises(
        FileNotFoundError, match=r"train, test are missing in .* which must hold train/<class>"
    ):
        load_dataset("folder", root / "train")


REID = ("train/anna/x.jpg", "query/bob/1.jpg", "query/eve/1.jpg", "gallery/bob/1.jpg", "gallery/bob/2.jpg")


def test_equal_names_are_not_equal_photos(tree):
    """Other photos of one name match each other; the same bytes never match, whatever their name."""
    root = tree("people", *REID, "gallery/distractor/9.jpg")
    splits = load_dataset("folder", root)
    assert splits.task == "reid"
    assert splits.classes == ("anna",)
    (bob_query, eve), (bob_first, bob_other, distractor) = splits.query.records, splits.gallery.records
    assert bob_query.label == bob_first.label == bob_other.label
    assert len({bob_query.label, eve.label, distractor.label}) == 3
    assert {r.camera for r in (*splits.train.records, *splits.query.records, *splits.gallery.records)} == {-1}
    (root / "gallery/bob/copy.jpg").write_bytes((root / "query/bob/1.jpg").read_bytes())
    (root / "gallery/eve").symlink_to(root / "query/eve")
    splits = load_dataset("folder", root)
    cameras = {
        str(r.path.relative_to(root)): r.camera for r in (*splits.query.records, *splits.gallery.records)
    }
    assert cameras["query/bob/1.jpg"] == cameras["gallery/bob/copy.jpg"] < -1  # not a camera
    assert cameras["query/eve/1.jpg"] == cameras["gallery/eve/1.jpg"] < -1
    assert cameras["query/eve/1.jpg"] != cameras["query/bob/1.jpg"]
    assert {
        cameras[name] for name in ("gallery/bob/1.jpg", "gallery/bob/2.jpg", "gallery/distractor/9.jpg")
    } == {-1}


def test_a_camera_number_is_taken_whole(tree):
    root = tree("people", "train/a/x.jpg", "query/b/7_c0123456789.jpg", "gallery/b/8.jpg")
    assert load_dataset("folder", root).query.cameras.tolist() == [-1]


def test_folders_of_the_system_are_no_classes(tree):
    texts = {
        **{
            f"{part}/{name}/1.jpg": "x"
            for part in ("train", "test")
            for name in (
                "$RECYCLE.BIN",
                "System Volume Information",
                "lost+found",
                "@eaDir",
                "#recycle",
                "LOST.DIR",
            )
        },
        "train/.ipynb_checkpoints/1-checkpoint.jpg": "x",
        "train/__MACOSX/owl/._1.jpg": "x",
        "train/owl/._1.jpg": "x",
        "train/owl/Thumbs.db": "x",
        "test/.DS_Store": "x",
    }
    root = tree("birds", "train/owl/1.jpg", "train/owl/deep/2.gif", "test/owl/3.jpg", texts=texts)
    splits = load_dataset("folder", root)
    assert splits.classes == ("owl",)
    assert [r.path.name for r in splits.train.records] == ["1.jpg", "2.gif"]
    tree(
        "birds",
        "train/stray.jpg",
        texts={"train/owl/4.heic": "x", "test/owl/5.heic": "x", "test/readme": "x"},
    )
    with pytest.warns(UserWarning, match=r"4 files are ignored \(2 \.heic, .*1 readme\), as they") as caught:
        load_dataset("folder", root)
    assert len(caught) == 1


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_class_is_its_name_composed_or_decomposed(form, tree):
    owl = "h\u00fchner"
    other = unicodedata.normalize(form, owl)
    root = tree("birds", f"train/{other}/1.jpg", f"test/{owl}/2.jpg")
    splits = load_dataset("folder", root)
    assert splits.classes == (owl,) and splits.test.labels.tolist() == [0]
    root = tree("people", "train/a/1.jpg", f"query/{owl}/1.jpg", f"gallery/{other}/2.jpg")
    splits = load_dataset("folder", root)
    assert splits.query.labels.tolist() == splits.gallery.labels.tolist()


def test_damaged_trees(tree):
    root = tree("birds", "train/owl/1.jpg", texts={"test": "a file"})
    with pytest.raises(ValueError, match=r"birds/test is damaged \(.*Not a directory"):
        load_dataset("folder", root)
    (root / "test").unlink()
    (root / "test").mkdir()
    with pytest.raises(ValueError, match=r"birds/test is damaged \(it holds no class folders\)"):
        load_dataset("folder", root)
    (root / "train/emu").symlink_to(root / "train")
    with pytest.raises(ValueError, match=r"train/emu must not be a link to a folder that contains it"):
        load_dataset("folder", root)
    (root / "train/emu").unlink()
    (root / "train/owl/round").symlink_to(root)
    with pytest.raises(ValueError, match=r"train/owl/round must not be a link to a folder that contains it"):
        load_dataset("folder", root)


def test_cameras_in_names(tree):
    root = tree("people", "train/a/5_c4.jpg", "query/b/7_c3.jpg", "gallery/b/8_c12s1_x.jpg")
    splits = load_dataset("folder", root)
    assert splits.train.cameras.tolist() == [4]
    assert splits.query.cameras.tolist() == [3]
    assert splits.gallery.cameras.tolist() == [12]
    tree("people", "gallery/b/plain.jpg")
    with pytest.raises(
        ValueError, match=r"got it in 2 of 3: in query/b/7_c3\.jpg, not in gallery/b/plain\.jpg"
    ):
        load_dataset("folder", root)


@pytest.mark.parametrize("part", ["query", "gallery"])
def test_the_one_name_that_looks_like_a_camera_is_named(tree, part):
    root = tree("cars", "train/a/x.jpg", *(f"{p}/b/{n}.jpg" for p in ("query", "gallery") for n in range(3)))
    tree("cars", f"{part}/b/citroen_c4.jpg")
    with pytest.raises(ValueError, match=rf"in 1 of 7: in {part}/b/citroen_c4\.jpg, not in query/b/0\.jpg"):
        load_dataset("folder", root)


def test_cameras_of_names_are_announced_if_they_decide(tree):
    photos = [
        f"{part}/{name}/pic_c{n}.jpg" for part in ("query", "gallery") for name in "ab" for n in (1, 2, 3, 4)
    ]
    root = tree("people", "train/a/x.jpg", *photos, "gallery/b/pic_c7.jpg")
    message = (
        r'after "_c" .* read as the camera \(5 in all; gallery/a/pic_c1\.jpg is of camera 1\)\. '
        r".*affects 8 of 9 gallery photos"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        splits = load_dataset("folder", root, training=False)
    assert len(caught) == 1
    assert splits.query.cameras.tolist() == [1, 2, 3, 4] * 2
    for photo in (root / "gallery").rglob("pic_c[1-4].jpg"):
        photo.rename(photo.with_name(photo.name.replace("_c", "_c1")))  # no camera of any query
    load_dataset("folder", root)  # and nothing to say


def test_reid_without_a_gallery(tree):
    root = tree("people", "train/a/x.jpg", "query/b/1.jpg")
    with pytest.raises(FileNotFoundError, match="gallery is missing in"):
        load_dataset("folder", root)
