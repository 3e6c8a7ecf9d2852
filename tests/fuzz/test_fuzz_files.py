"""Damaged and hostile checkpoints, photos and dataset lists: read right, or refused in a sentence."""

import contextlib
import copy
import io
import math
import os
import pickle
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_training import bits, small_model, small_trainer

from dca_triton.checkpoint import load_checkpoint, load_weights, save_checkpoint
from dca_triton.data import load_dataset, read_image
from dca_triton.data.records import MAX_PIXELS


def fuzzed(examples: int):
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


STATE = {
    "model_state_dict": {"w": torch.arange(300.0), "b": torch.ones(2, 3)},
    "epoch": 3,
    "history": [{"a": 1.5}],
}


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """Bits flipped, a piece cut out, overwritten, doubled or appended."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 40))
        kind = draw(st.sampled_from(["flip", "cut", "overwrite", "double", "append", "truncate"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "overwrite":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "append":
            data += draw(st.binary(min_size=1, max_size=length))
        else:
            del data[at:]
    return bytes(data)


def refused(call, name: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    text = str(caught.value)
    assert name in text and "\n" not in text and len(text) < 2000, text


@pytest.fixture(scope="module")
def signed(scratch) -> bytes:
    save_checkpoint(scratch / "whole.pt", STATE)
    return (scratch / "whole.pt").read_bytes()


@fuzzed(1000)
@given(data=st.data())
def test_all_damage_to_a_checkpoint_is_detected(data, signed, scratch):
    """The digest covers every byte, so each change is refused."""
    content = data.draw(damaged(signed))
    if content == signed:
        return
    (scratch / "damaged.pt").write_bytes(content)
    refused(lambda: load_checkpoint(scratch / "damaged.pt"), "damaged.pt")


def test_every_single_bit_of_a_checkpoint_counts(signed, scratch):
    step = 97  # a prime: all bits of all kinds of bytes come by
    for bit in range(0, 8 * len(signed), step):
        content = bytearray(signed)
        content[bit // 8] ^= 1 << bit % 8
        (scratch / "bit.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"bit\.pt"):
            load_checkpoint(scratch / "bit.pt")


@fuzzed(500)
@given(data=st.data())
def test_damage_to_others_checkpoints(data, scratch):
    """Files of plain torch.save (zip and old) and safetensors: an error or a dict, but no other end."""
    kind = data.draw(st.sampled_from(["zip", "old", "safetensors"]))
    path = scratch / ("other.safetensors" if kind == "safetensors" else "other.pt")
    if kind == "safetensors":
        safetensors.torch.save_file(STATE["model_state_dict"], path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    try:
        assert isinstance(load_checkpoint(path), dict)
    except ValueError as error:
        assert path.name in str(error) and "\n" not in str(error)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
DANGEROUS = [
    (os.system, ("true",)),
    (eval, ("1",)),
    (pickle.loads, (b"N.",)),
    (open, ("/etc/hostname",)),
    (os.getcwd, ()),
]


class Call:
    """Pickles to a call of any function."""

    def __init__(self, function, arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@fuzzed(500)
@given(data=st.data())
def test_no_pickle_is_executed(data, scratch):
    """Calls anywhere in a checkpoint are refused by name; plain values come back as they were."""
    state = {"model_state_dict": {}, "x": data.draw(plain), "y": data.draw(plain)}
    call = data.draw(st.none() | st.sampled_from(DANGEROUS))
    if call:
        state[data.draw(st.sampled_from(["x", "y", "z"]))] = [{"deep": Call(*call)}]
    path = scratch / "pickle.pt"
    torch.save(state, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    if call:
        refused(lambda: load_checkpoint(path), "could execute code")
        return
    try:
        assert bits(load_checkpoint(path)) == bits(state)
    except ValueError as error:
        assert "cannot be read" in str(error)


ONE_BLOCK = small_model(depth=1)  # trained as copies, which are made sooner than models


@pytest.fixture(scope="module")
def whole_run(scratch) -> dict:
    small_trainer(model=copy.deepcopy(ONE_BLOCK)).train(1, scratch / "run")
    return load_checkpoint(scratch / "run" / "checkpoint.pt")


wild = plain | st.sampled_from([torch.ones(2), torch.full((3,), math.nan), torch.zeros(0, dtype=torch.int64)])


KEYS = "model_state_dict optimizer_state_dict uncertainty_loss_state_dict epoch history step skipped sums"
KEYS += " scaler_state_dict ema_state_dict rng_state best settings model_arguments description"
KEYS += " branch_loss_state_dict"


@fuzzed(100)
@given(name=st.sampled_from(KEYS.split()), value=wild, remove=st.booleans())
def test_wrong_states_are_not_resumed(name, value, remove, whole_run, scratch):
    """Anything in the place of anything: refused, or as right as what it replaced."""
    assert set(KEYS.split()) == set(whole_run)
    hostile = {key: other for key, other in whole_run.items() if key != name}
    save_checkpoint(scratch / "hostile.pt", hostile if remove else hostile | {name: value})
    shutil.rmtree(scratch / "hostile run", ignore_errors=True)
    try:
        trainer = small_trainer(model=copy.deepcopy(ONE_BLOCK))
        history = trainer.train(1, scratch / "hostile run", resume=scratch / "hostile.pt")
    except ValueError as error:
        assert "hostile.pt" in str(error) and "\n" not in str(error)
        assert not (scratch / "hostile run").exists(), "something was written"
    else:
        free = ("scaler_state_dict", "ema_state_dict", "best", "model_arguments", "description")
        older = remove and name == "branch_loss_state_dict"  # this loss has no weights
        assert name in free or older or (not remove and value == whole_run[name])
        assert history == whole_run["history"]


FUZZED_MODEL = small_model()


@fuzzed(300)
@given(data=st.data())
def test_weights_that_do_not_fit_change_nothing(data):
    model = FUZZED_MODEL
    before = bits(model.state_dict())
    state = dict(model.state_dict())
    name = data.draw(st.sampled_from(sorted(state)))
    change = data.draw(st.sampled_from(["absent", "value", "shape", "more", "dtype"]))
    if change == "absent":
        del state[name]
    elif change == "value":
        state[name] = data.draw(wild)
    elif change == "shape":
        state[name] = state[name][None]
    elif change == "more":
        state[data.draw(st.text())] = data.draw(wild)
    else:
        state[name] = state[name].to(torch.complex64)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_weights(model, state)
    assert bits(model.state_dict()) == before


def photo(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """With an orientation, where the format has one."""
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    color = {"RGB": (200, 10, 30), "I;16": 40_000, "I": 200, "F": 0.5}.get(mode, 0)
    Image.new(mode, (13, 7), color).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


PHOTOS = {kind: photo(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")}
DEEP = {f"{kind} {mode}": photo(kind, mode) for kind, mode in (("PNG", "I;16"), ("TIFF", "I"), ("TIFF", "F"))}
CLEAR = {f"{kind} {mode}": photo(kind, mode) for kind in ("PNG", "TIFF") for mode in ("RGBA", "LA")}
OTHER = {"TIFF LAB": photo("TIFF", "LAB"), "JPEG CMYK": photo("JPEG", "CMYK"), "GIF P": photo("GIF", "P")}
OTHER |= {"TIFF LZW": photo("TIFF", compression="tiff_lzw"), "PNG P": photo("PNG", "P", transparency=3)}


@fuzzed(1000)
@given(data=st.data())
def test_damaged_photos(data, scratch):
    photos = PHOTOS | DEEP | CLEAR | OTHER
    kind = data.draw(st.sampled_from(sorted(photos)))
    path = scratch / f"photo.{kind.lower()}"
    path.write_bytes(data.draw(st.binary(max_size=80) | damaged(photos[kind])))
    try:
        image = read_image(path)
    except ValueError as error:
        assert path.name in str(error) and "\n" not in str(error)
    else:
        assert image.mode == "RGB" and image.width * image.height <= MAX_PIXELS


@pytest.mark.parametrize("side", [8193, 65_535, 2**31 - 1])
def test_image_bombs_are_refused_by_their_header(side, scratch, monkeypatch):
    """Without memory for them: a header that promises more pixels than any photo has is enough."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )
    bmp = (
        b"BM"
        + struct.pack("<IHHI", 60, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    for name, content in (("bomb.png", png), ("bomb.bmp", bmp + bytes(99))):
        (scratch / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_image(scratch / name)


VEHICLE = '<?xml version="1.0"?><Items><Item imageName="{}" vehicleID="{}" cameraID="{}"/></Items>'
TREES = {
    "cub": {
        "images.txt": "1 a/1.jpg\n2 b/2.jpg\n3 a/3.jpg\n4 b/4.jpg\n",
        "image_class_labels.txt": "1 1\n2 2\n3 1\n4 2\n",
        "train_test_split.txt": "1 1\n2 1\n3 0\n4 0\n",
        "classes.txt": "1 a\n2 b\n",
    },
    "veri776": {
        "train_label.xml": VEHICLE.format("0001_c001_1.jpg", "0001", "c001"),
        "test_label.xml": VEHICLE.format("0002_c002_1.jpg", "0002", "c002"),
        "name_query.txt": "0002_c002_1.jpg\n",
        "name_train.txt": "0001_c001_1.jpg\n",
        "name_test.txt": "0002_c002_1.jpg\n",
    },
    "msmt17": {
        "list_train.txt": "0000/0000_000_01_0303morning_0008_0.jpg 0\n",
        "list_val.txt": "0000/0000_001_02_0303morning_0008_0.jpg 0\n",
        "list_query.txt": "0001/0001_000_01_0303morning_0008_0.jpg 1\n",
        "list_gallery.txt": "0001/0001_001_02_0303morning_0008_0.jpg 1\n",
    },
    "market1501": {},
    "folder": {},
}
FILES = {
    "cub": ["images/a/1.jpg", "images/b/2.jpg", "images/a/3.jpg", "images/b/4.jpg"],
    "veri776": ["image_train/0001_c001_1.jpg", "image_test/0002_c002_1.jpg", "image_query/0002_c002_1.jpg"],
    "msmt17": [
        "train/0000/0000_000_01_0303morning_0008_0.jpg",
        "train/0000/0000_001_02_0303morning_0008_0.jpg",
        "test/0001/0001_000_01_0303morning_0008_0.jpg",
        "test/0001/0001_001_02_0303morning_0008_0.jpg",
    ],
    "market1501": [
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/0001_c2s1_001051_00.jpg",
    ],
    "folder": ["train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg"],
}
names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)
rows = st.sampled_from(
    ["../../etc/passwd", "/etc/passwd", "a/../../../x.jpg", "1 ../../../../etc/passwd", "~/x", "1 1 1"]
)


@pytest.mark.parametrize("name", sorted(TREES))
@fuzzed(160)
@given(data=st.data())
def test_damaged_datasets(name, data, tmp_path_factory):
    """Lists with wild bytes and rows, folders with wild names: a dataset inside its root, or a sentence."""
    root = tmp_path_factory.mktemp(name)
    for file in FILES[name]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(PHOTOS["JPEG"])
    for file, text in TREES[name].items():
        (root / file).write_text(text)
    for _ in range(data.draw(st.integers(1, 2))):
        lists, photos = sorted(TREES[name]), FILES[name]
        file = root / data.draw(st.sampled_from(lists + photos))
        kind, row, new = (
            data.draw(st.sampled_from(["damage", "row", "rename", "remove", "link", "pipe"])),
            data.draw(rows),
            data.draw(names),
        )
        content = data.draw(damaged(TREES[name].get(file.name, "").encode() or PHOTOS["JPEG"]))
        if not file.is_file():
            continue
        if kind == "damage":
            file.write_bytes(content)
        elif kind == "row" and file.name in TREES[name]:
            file.write_bytes(file.read_bytes() + row.encode() + b"\n")
        elif kind == "rename" and new not in (".", ".."):
            with contextlib.suppress(OSError):
                file.rename(file.with_name(new))
        elif kind in ("link", "pipe"):
            file.unlink()
            target = data.draw(st.sampled_from([file, file.parent, root, root / "nowhere", "/dev/zero"]))
            os.mkfifo(file) if kind == "pipe" else file.symlink_to(target)
        else:
            file.unlink()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # sentences about photos that lists do not have
            splits = load_dataset(name, root)
    except (ValueError, FileNotFoundError) as error:
        assert str(root) in str(error), str(error)
        return
    for part in (splits.train, splits.test, splits.query, splits.gallery):
        for record in part.records if part else ():
            assert record.path.resolve().is_relative_to(root.resolve()), record.path
    labels = splits.train.labels
    assert labels.min() >= 0 and labels.max() < len(splits.classes)
