"""One rule for all readers: which files are photos, which are ignored and counted, and no link loops."""

import os
from pathlib import Path

import pytest

from dca_triton.data import photos_in
from dca_triton.data.walk import photo_files


def names(paths: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


def test_any_nesting_in_the_order_of_the_paths(tree):
    root = tree("any", "b/c/2.JPG", "a.png", "b/1.webp", "b/目录/ü.tiff")
    dataset = photos_in(root, transform=lambda photo: photo.size)
    assert names([r.path for r in dataset.records], root) == [
        "a.png",
        "b/1.webp",
        "b/c/2.JPG",
        "b/目录/ü.tiff",
    ]
    assert set(dataset.labels.tolist()) == set(dataset.cameras.tolist()) == {-1}
    assert dataset[2]["image"] == (6, 8) and dataset.classes == ()


def test_system_files_are_passed_over_and_others_counted(tree):
    texts = (
        ".x.jpg",
        "._a.jpg",
        ".git/b.jpg",
        "__MACOSX/c.jpg",
        "Thumbs.db",
        "p/desktop.ini",
        "@eaDir/d.jpg",
        "p/$Recycle.Bin/S-1-5/e.jpg",
        "System Volume Information/f.jpg",
        "lost+found/#1/g.jpg",
        "Network Trash Folder/h.jpg",
        "#snapshot/i.jpg",
    )
    others = ("p/x.heic", "p/y.heic", "readme.txt", "LICENSE")
    root = tree("messy", "p/a.jpg", texts={name: "" for name in (*texts, *others)})
    with pytest.warns(UserWarning) as caught:
        assert len(photos_in(root)) == 1
    (message,) = (str(w.message) for w in caught)
    assert message.startswith(f"{root}: 4 files are ignored (2 .heic, 1 ")
    assert "1 .txt" in message and "1 LICENSE" in message


def test_links_are_followed_once_and_never_round(tree, tmp_path):
    root, outside = tree("linked", "a/1.jpg"), tree("outside", "2.jpg")
    (root / "a/out").symlink_to(outside)
    (root / "b").symlink_to(outside)
    (root / "3.jpg").symlink_to(outside / "2.jpg")
    photos, _ = photo_files(root)
    assert {path.resolve().name for path in photos} == {"1.jpg", "2.jpg"}
    assert len(photos) == 3  # the folder behind two links is read once, a linked photo is one of its own
    (outside / "back").symlink_to(root / "a")  # round, but not through a folder above the link
    assert len(photo_files(root)[0]) == 3
    for target in (root, root / "a", tmp_path):
        link = root / "a/loop"
        link.symlink_to(target)
        with pytest.raises(ValueError, match=r"loop must not be a link to a folder that contains it"):
            photos_in(root)
        link.unlink()


def test_many_links_take_one_visit_each(tmp_path):
    for level in range(40):  # 2^40 paths
        (tmp_path / f"{level}").mkdir()
    for level in range(39):
        for side in "ab":
            (tmp_path / f"{level}" / side).symlink_to(tmp_path / f"{level + 1}")
    (tmp_path / "39/x.jpg").touch()
    assert len(photo_files(tmp_path / "0")[0]) == 1


@pytest.mark.parametrize("kind", ["pipe", "broken link", "link to itself", "device"])
def test_what_only_looks_like_a_photo(kind, tree):
    root = tree("odd", "a/1.jpg")
    odd = root / "a/2.jpg"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"broken link": "nowhere", "link to itself": odd, "device": "/dev/zero"}[kind])
    with pytest.raises(ValueError, match=r"2\.jpg must be a file, got a broken link, a pipe or a device"):
        photos_in(root)
    odd.rename(root / "a/2.txt")
    with pytest.warns(UserWarning, match=r"1 files are ignored \(1 \.txt\)"):
        assert len(photos_in(root)) == 1


def test_folders_without_photos(tree):
    root = tree("none", texts={"a/.hidden.jpg": ""})
    with pytest.raises(ValueError, match=r"folder must hold photos \(\.bmp, .*\), got none in"):
        photos_in(root)
    with pytest.raises(FileNotFoundError, match=r"folder must be a folder that exists, got '.*hidden\.jpg'"):
        photos_in(root / "a/.hidden.jpg")
