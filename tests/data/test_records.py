import struct
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dca_triton.data import ImageDataset, ImageRecord, read_image
from dca_triton.data.records import MAX_PIXELS


def bomb(path: Path, side: int) -> Path:
    """A PNG that is all header: it claims side x side pixels in under 100 bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


@pytest.fixture
def photos(tree) -> list[Path]:
    root = tree("photos", *(f"{name}.png" for name in "abcdef"))
    return sorted(root.iterdir())


def records(photos: list[Path]) -> list[ImageRecord]:
    return [ImageRecord(path, number // 2, number, view=10 + number) for number, path in enumerate(photos)]


def test_item_carries_everything(photos):
    dataset = ImageDataset(records(photos), classes=("x", "y", "z"))
    item = dataset[3]
    assert (item["label"], item["camera"], item["path"], item["index"]) == (1, 3, str(photos[3]), 3)
    assert item["image"].dtype == torch.uint8
    assert item["image"][:, 0, 0].tolist() == [21, 20, 30]
    assert item["image"].shape == (3, 8, 6)
    assert dataset[-1]["index"] == 5
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.cameras.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(IndexError):
        dataset[6]


def test_batches_by_the_default_collate(photos):
    batch = next(iter(DataLoader(ImageDataset(records(photos)), batch_size=4)))
    assert batch["image"].shape == (4, 3, 8, 6)
    assert batch["label"].tolist() == [0, 0, 1, 1]
    assert batch["camera"].tolist() == [0, 1, 2, 3] and batch["view"].tolist() == [10, 11, 12, 13]
    assert batch["path"] == [str(path) for path in photos[:4]]


def test_every_mode_becomes_rgb(tmp_path):
    for mode, color in (("L", 9), ("RGBA", (9, 9, 9, 4)), ("CMYK", (0, 0, 0, 246)), ("1", 1), ("P", 0)):
        path = tmp_path / f"{mode}.tiff"
        Image.new(mode, (4, 3), color).save(path)
        assert read_image(path).mode == "RGB"


def damage(path: Path, kind: str) -> Path:
    if kind == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:-900])
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "missing":
        path.unlink(missing_ok=True)
    elif kind == "broken header":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    return path


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "missing", "broken header"])
def test_corrupt_photo_names_its_path(photos, kind):
    damage(photos[2], kind)
    with pytest.raises(ValueError, match=f"image {photos[2]} cannot be read"):
        ImageDataset(records(photos))[2]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 10_000, 60_000])  # below, between and above PIL's own two limits
def test_image_bomb_is_refused_by_its_header(tmp_path, side):
    assert side**2 > MAX_PIXELS
    path = bomb(tmp_path / "bomb.png", side)
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read .*(over the limit|exceeds limit)"):
        read_image(path)


def test_skip_takes_the_same_class_and_warns_once(photos):
    damage(photos[2], "text")
    damage(photos[0], "empty")
    dataset = ImageDataset(records(photos), on_corrupt="skip")
    assert dataset.corrupt_paths == []
    with pytest.warns(UserWarning, match=str(photos[2])) as caught:
        item = dataset[2]
        assert (item["label"], item["index"], item["path"]) == (1, 3, str(photos[3]))
        assert dataset[0]["index"] == 1
        assert dataset[2]["index"] == 3
    assert len(caught) == 1
    assert dataset.corrupt_paths == [photos[0], photos[2]]
    photos[2].write_bytes(photos[3].read_bytes())
    assert dataset[2]["index"] == 3  # an unreadable photo is not tried again


def test_skip_leaves_the_class_only_when_it_must(photos):
    damage(photos[2], "text")
    damage(photos[3], "text")
    dataset = ImageDataset(records(photos), on_corrupt="skip")
    with pytest.warns(UserWarning):
        item = dataset[3]
    assert (item["label"], item["index"]) == (2, 4)
    assert dataset.corrupt_paths == photos[2:4]


def test_skip_stops_when_nothing_is_left(photos):
    for path in photos:
        damage(path, "text")
    dataset = ImageDataset(records(photos), on_corrupt="skip")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of the 6 images can be read"):
        dataset[4]


def test_worker_processes_report_what_they_skip(photos):
    damage(photos[5], "text")
    dataset = ImageDataset(records(photos), on_corrupt="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = DataLoader(dataset, batch_size=3, num_workers=1, multiprocessing_context="fork")
        seen = torch.cat([batch["index"] for batch in loader])
    assert seen.tolist() == [0, 1, 2, 3, 4, 4]
    assert dataset.corrupt_paths == [photos[5]]


def test_the_transform_s_own_errors_are_no_corruption(photos):
    def transform(image: Image.Image) -> None:
        raise ValueError("a fault of the transform")

    dataset = ImageDataset(records(photos), transform, on_corrupt="skip")
    with pytest.raises(ValueError, match="a fault of the transform"):
        dataset[0]
    assert dataset.corrupt_paths == []


def test_bad_arguments(photos):
    with pytest.raises(ValueError, match="records must hold at least one photo, got none"):
        ImageDataset([])
    with pytest.raises(ValueError, match="on_corrupt must be 'raise' or 'skip', got 'ignore'"):
        ImageDataset(records(photos), on_corrupt="ignore")
