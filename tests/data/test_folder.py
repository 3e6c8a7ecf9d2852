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


def test_identities_without_cameras_never_match_themselves(tree):
    splits = load_dataset("folder", tree("people", *REID, "gallery/distractor/9.jpg"))
    assert splits.task == "reid"
    assert splits.classes == ("anna",)
    (bob_query, eve), (bob_same, bob_other, distractor) = splits.query.records, splits.gallery.records
    assert bob_query.label == bob_same.label == bob_other.label
    assert len({bob_query.label, eve.label, distractor.label}) == 3
    assert bob_query.camera == bob_same.camera != bob_other.camera


def test_cameras_in_names(tree):
    root = tree("people", "train/a/5_c4.jpg", "query/b/7_c3.jpg", "gallery/b/8_c12s1_x.jpg")
    splits = load_dataset("folder", root)
    assert splits.train.cameras.tolist() == [4]
    assert splits.query.cameras.tolist() == [3]
    assert splits.gallery.cameras.tolist() == [12]
    tree("people", "gallery/b/plain.jpg")
    with pytest.raises(ValueError, match=r"gallery/b/plain\.jpg is damaged \(its name tells no camera"):
        load_dataset("folder", root)


def test_reid_without_a_gallery(tree):
    root = tree("people", "train/a/x.jpg", "query/b/1.jpg")
    with pytest.raises(FileNotFoundError, match="gallery is missing in"):
        load_dataset("folder", root)
