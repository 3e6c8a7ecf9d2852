import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dca_triton.data import ImageRecord, load_dataset
from dca_triton.data.splits import hold_out


def test_transforms_and_corrupt_photos_by_part(tree):
    root = tree("birds", "train/a/1.png", "train/a/2.png", "train/a/3.png", "test/a/4.png", "test/a/5.png")
    splits = load_dataset(
        "folder",
        root,
        train_transform=lambda _: "train",
        test_transform=lambda _: "test",
        holdout=1,
        on_corrupt="skip",
    )
    assert [part[0]["image"] for part in (splits.train, splits.validation, splits.test)] == [
        "train",
        "test",
        "test",
    ]
    splits.train.records[0].path.write_text("corrupt")
    splits.test.records[0].path.write_text("corrupt")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert splits.train[0]["index"] == 1
    with pytest.raises(ValueError, match="cannot be read"):
        splits.test[0]


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    per_class=st.integers(-1, 6),
    seed=st.integers(0, 9),
)
def test_hold_out(labels, per_class, seed):
    records = [ImageRecord(Path(str(number)), label) for number, label in enumerate(labels)]
    smallest = min(labels.count(label) for label in labels)
    if not 0 <= per_class < smallest:
        with pytest.raises(ValueError, match=rf"holdout must be in 0\.\.{smallest - 1}, .* got {per_class}"):
            hold_out(records, per_class, seed)
        return
    kept, held = hold_out(records, per_class, seed)
    assert sorted(kept + held, key=lambda record: int(str(record.path))) == records
    assert all([record.label for record in held].count(label) == per_class for label in labels)
    assert hold_out(records, per_class, seed) == (kept, held)


def test_hold_out_follows_its_seed():
    records = [ImageRecord(Path(str(number)), 0) for number in range(100)]
    assert hold_out(records, 20, seed=0) != hold_out(records, 20, seed=1)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of cub, .*orl-reid, got 'mnist'"):
        load_dataset("mnist", tmp_path)
    with pytest.raises(ValueError, match="root must be the folder of cub, got None"):
        load_dataset("cub")
    with pytest.raises(ValueError, match="root must be None for orl-fgvc, which pip installs, got '/"):
        load_dataset("orl-fgvc", tmp_path)
    with pytest.raises(ValueError, match=r"holdout must be 0 for re-identification \(orl-reid\), got 2"):
        load_dataset("orl-reid", holdout=2)
    with pytest.raises(ValueError, match=r"holdout must be in 0\.\.5, as a class has 6 photos, got 6"):
        load_dataset("orl-fgvc", holdout=6)


def test_the_same_photos_with_another_transform(tree):
    root = tree("birds", "train/a/1.png", "test/a/2.png")
    splits = load_dataset(
        "folder", root, train_transform=lambda _: "train", test_transform=lambda _: "test", on_corrupt="skip"
    )
    plain = splits.train.with_transform(splits.test.transform)
    assert (plain[0]["image"], splits.train[0]["image"]) == ("test", "train")
    assert (plain.records, plain.classes) == (splits.train.records, splits.train.classes)
    assert (plain.on_corrupt, splits.train.on_corrupt) == ("raise", "skip")
    assert splits.train.with_transform(None)[0]["image"].shape == (3, 8, 6)


def test_labels_follow_the_classes_of_a_model(tree):
    cafe = "caf\u00e9"
    root = tree("shops", "train/b/1.png", f"train/{cafe}/2.png", "train/b/3.png", f"test/{cafe}/4.png")
    splits = load_dataset("folder", root)
    assert splits.classes == ("b", cafe) and splits.train.labels.tolist() == [0, 0, 1]
    names = ["a", unicodedata.normalize("NFD", cafe), "b", "z"]
    found = splits.with_classes(names)
    assert found.classes == found.train.classes == found.test.classes == ("a", cafe, "b", "z")
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([2, 2, 1], [1])
    assert [r.path for r in found.train.records] == [r.path for r in splits.train.records]
    assert splits.train.labels.tolist() == [0, 0, 1] and found.validation is None
    assert splits.with_classes(splits.classes).train.records == splits.train.records
    with pytest.raises(
        ValueError, match=r"of the dataset, got 2 names without 'b', 'caf\u00e9'; .* got 'x' more than"
    ):
        splits.with_classes(["x", "x"])
    with pytest.raises(ValueError, match=r"without 's1', 's2', 's3', 's4', 's5', \.\.\. \(40 in all\)"):
        load_dataset("orl-fgvc").with_classes(["s0"])


def test_names_that_are_no_texts():
    with pytest.raises(ValueError, match=r"names must be texts, got \[1, None\]"):
        load_dataset("orl-fgvc").with_classes(["a", 1, None])


def test_identities_are_no_classes():
    splits = load_dataset("orl-reid")
    found = splits.with_classes(splits.classes[::-1])
    assert found.train.labels.tolist() == [29 - label for label in splits.train.labels.tolist()]
    assert found.query is splits.query and found.gallery is splits.gallery
