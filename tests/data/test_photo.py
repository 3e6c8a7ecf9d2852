"""A photo is read as a viewer shows it, or refused in a sentence; PIL's global settings change nothing."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from dca_triton.data import read_image
from dca_triton.data.photo import MAX_PIXELS

SHOWN = np.full((4, 6, 3), 128, np.uint8)
SHOWN[0, 0], SHOWN[0, -1], SHOWN[-1, 0] = (255, 255, 255), (200, 0, 0), (0, 0, 200)
STORED = {  # what lies in the file, for each EXIF orientation of the same scene
    1: SHOWN,
    2: SHOWN[:, ::-1],
    3: SHOWN[::-1, ::-1],
    4: SHOWN[::-1],
    5: SHOWN.transpose(1, 0, 2),
    6: np.rot90(SHOWN, 1),
    7: SHOWN[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(SHOWN, -1),
}
GRAY16 = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)


def pixels(path: Path) -> np.ndarray:
    photo = read_image(path)
    assert photo.mode == "RGB"
    return np.asarray(photo).astype(int)


def gray(path: Path) -> np.ndarray:
    found = pixels(path)
    assert (found == found[..., :1]).all()
    return found[..., 0]


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("png", {}),
        ("webp", {"lossless": True}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("jpeg", {"quality": 100, "subsampling": 0}),
    ],
)
def test_orientation(orientation: int, kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"x.{kind}"
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=exif, **options)
    found = pixels(path)
    assert found.shape == SHOWN.shape
    assert abs(found - SHOWN).mean() <= (10 if kind == "jpeg" else 0)


def test_damaged_exif_is_no_orientation(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0" + b"\xff" * 20
    Image.fromarray(SHOWN).save(tmp_path / "x.png", exif=exif)
    assert (pixels(tmp_path / "x.png") == SHOWN).all()


def tiff(
    path: Path, values: np.ndarray, sample_format: int, white: int = 1, bits: int = 0, extra: int = 0
) -> Path:
    """A TIFF of one strip; PIL cannot write these kinds. `white` 0: zero is white, 2: RGB."""
    height, width = values.shape
    order = ">" if values.dtype.byteorder == ">" else "<"
    body = values.tobytes()
    if bits == 12:
        digits = "".join(f"{value:012b}" for value in values.flat)
        body = bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    bits = bits or 8 * values.itemsize
    tags = [
        (256, width // (1 + extra)),
        (257, height),
        (258, bits),
        (259, 1),
        (262, white),
        (273, 8 + 2 + 120 + 4),
    ]
    tags += [
        (277, 1 + extra),
        (278, height),
        (279, len(body)),
        (338 if extra and white < 2 else 339, sample_format),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(head + entries + bytes(4) + body)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(GRAY16).save(path)
    assert (gray(path) == np.rint(GRAY16 / 257)).all()


@pytest.mark.parametrize("top", [255, 65535, 2**31 - 1])
def test_thirty_two_bits(top: int, tmp_path: Path) -> None:
    values = np.linspace(0, top, 24).astype(np.int32).reshape(4, 6)
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert (gray(tmp_path / "x.tif") == np.rint(values * (255 / top))).all()


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floating_point(top: float, tmp_path: Path) -> None:
    values = np.linspace(0, top, 24).astype(np.float32).reshape(4, 6)
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert (gray(tmp_path / "x.tif") == np.rint(values * (255 / top))).all()
    assert (gray(tiff(tmp_path / "y.tif", values, 3, white=0)) == 255 - np.rint(values * (255 / top))).all()


@pytest.mark.parametrize(
    ("values", "options", "top"),
    [
        (np.linspace(0, 2**32 - 1, 24).astype("<u4"), {"sample_format": 1}, 2**32 - 1),
        (np.linspace(0, 65535, 24).astype("<u4"), {"sample_format": 1}, 65535),
        (np.linspace(0, 65535, 24).astype(">u2"), {"sample_format": 1}, 65535),
        (np.linspace(0, 32767, 24).astype("<i2"), {"sample_format": 2}, 32767),
        (np.linspace(0, 4095, 24).astype("<u2"), {"sample_format": 1, "bits": 12}, 4095),
        (np.linspace(0, 65535, 24).astype("<u2"), {"sample_format": 1, "white": 0}, -65535),
    ],
)
def test_every_kind_of_gray_tiff(
    values: np.ndarray, options: dict[str, int], top: int, tmp_path: Path
) -> None:
    expected = np.rint(values.astype(float) * (255 / abs(top))).reshape(4, 6)
    found = gray(tiff(tmp_path / "x.tif", values.reshape(4, 6), **options))
    assert (found == (expected if top > 0 else 255 - expected)).all()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.float32([[-0.125, 1]]), r"must lie in 0\.\.1 and reach 1/16, or .* 128, got -0\.125\.\.1"),
        (np.float32([[np.nan, 1]]), r"got nan\.\.nan"),
        (np.float32([[0, np.inf]]), r"got 0\.\.inf"),
        (np.float32([[0, 65535]]), r"got 0\.\.65535"),
        (np.int32([[-1, 255]]), r"32-bit gray values must lie in 0\.\.255 and reach 128, .*, got -1\.\.255"),
    ],
)
def test_gray_without_a_meaning(values: np.ndarray, reason: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=rf"image .*x\.tif cannot be read \(.*{reason}"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("top", [1, 2, 100, 127, 256, 300, 4095, 5000, 32767, 65536, 70000, 10**6, 2**30 - 1])
def test_integers_of_no_known_range_do_not_turn_black(top: int, tmp_path: Path) -> None:
    values = np.linspace(0, top, 24).astype(np.int32).reshape(4, 6)
    Image.fromarray(values).save(tmp_path / "x.tif")
    for path in (tmp_path / "x.tif", tiff(tmp_path / "y.tif", values.astype("<u4"), 1)):
        with pytest.raises(ValueError, match=rf"32-bit gray values must lie in .*, got 0\.\.{top}\)"):
            read_image(path)


@pytest.mark.parametrize("top", [0.01, 1.0001, 1.02, 1.9, 2, 3, 10, 20, 100, 127.5, 255.5, 4095])
def test_floats_of_no_known_range_do_not_turn_black(top: float, tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, top, 24, dtype=np.float32).reshape(4, 6)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"floating-point values must lie in 0\.\.1 and reach 1/16, or lie"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("values", [np.int32([[0, 128]]), np.float32([[0, 128]]), np.float32([[0, 0.0625]])])
def test_the_darkest_photos_of_a_known_range(values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert gray(tmp_path / "x.tif").tolist() == [[0, 16 if values.max() < 1 else 128]]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("top", [1, 255, 300, 1023, 4095])
def test_sixteen_bits_that_are_nearly_unused(top: int, suffix: str, tmp_path: Path) -> None:
    """A mask, 8, 10 or 12 bits in a file of 16: no darker than what a photo of 16 bits may be."""
    values = np.linspace(0, top, 24).astype(np.uint16).reshape(4, 6)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    message = rf"gray values must lie in 0\.\.65535, .* reach 1/16 of it, got 0\.\.{top}\)"
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / f"x.{suffix}")
    Image.fromarray(values + np.uint16(4096)).save(tmp_path / f"x.{suffix}")
    assert gray(tmp_path / f"x.{suffix}").max() >= 16


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (np.int32([[0, 150, 300]]), 0, 300),
        (np.int32([[-50, 0, 50]]), -50, 50),
        (np.float32([[0, 1, 2]]), 0, 2),
        (np.float32([[0.5, 1, 1.5]]), 0.5, 1.5),
        (np.uint16([[0, 2048, 4096]]), 0, 4096),
    ],
)
def test_a_tiff_that_states_its_range(values: np.ndarray, low: float, high: float, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(values).save(path, tiffinfo={340: low, 341: high})
    assert gray(path).tolist() == [[0, 128, 255]]
    Image.fromarray(values).save(path, tiffinfo={340: low, 341: high * 0.9})
    with pytest.raises(ValueError, match=r"the range that the file states, and reach 1/16 of it, got"):
        read_image(path)
    Image.fromarray(values).save(path, tiffinfo={340: low, 341: high * 100})  # nearly unused
    with pytest.raises(ValueError, match=r"the range that the file states, and reach 1/16 of it, got"):
        read_image(path)
    for wrong in (low, low - 1, float("nan"), float("inf")):
        Image.fromarray(values).save(path, tiffinfo={340: low, 341: wrong})
        with pytest.raises(ValueError, match="SMaxSampleValue must be above SMinSampleValue, got"):
            read_image(path)


@pytest.mark.parametrize("top", [300, 1023, 4095, 65535])
def test_the_largest_value_of_a_pgm_or_ppm_is_white(top: int, tmp_path: Path) -> None:
    path = tmp_path / "x.pgm"
    for kind, channels in (("P5", 1), ("P6", 3)):
        for share in (1.0, 0.3):
            values = np.full((2, 3 * channels), round(top * share), ">u2")
            path.write_bytes(f"{kind} 3 2 {top}\n".encode() + values.tobytes())
            assert abs(gray(path) - 255 * share).max() <= 1
        path.write_bytes(f"{kind} 3 2 {top}\n".encode() + (values // 8).astype(">u2").tobytes())
        with pytest.raises(ValueError, match="reach 1/16"):
            read_image(path)


def test_colors_of_sixteen_bits_that_are_nearly_unused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for top, dark in ((255, True), (4095, True), (8192, False), (65535, False)):
        rgb = rng.integers(0, top + 1, (16, 16, 3), dtype=np.uint16)
        rgb[0, 0] = top
        rgba = np.concatenate([rgb, np.full_like(rgb[..., :1], 65535)], axis=2)
        for path in (
            png(tmp_path / "rgb.png", rgb, 2),
            png(tmp_path / "rgba.png", rgba, 6),
            png(tmp_path / "la.png", rgba[..., 2:], 4),
            tiff(tmp_path / "rgb.tif", rgb.reshape(16, 48).astype("<u2"), 1, white=2, extra=2),
        ):
            if dark:
                with pytest.raises(ValueError, match="colors of more than 8 bits must reach 1/16 of white"):
                    read_image(path)
            else:
                assert pixels(path).max() == top >> 8
    logo = np.zeros((2, 2, 4), np.uint16)
    logo[0, 0, 3] = 65535  # black on a transparent ground
    assert gray(png(tmp_path / "logo.png", logo, 6)).tolist() == [[0, 255], [255, 255]]
    Image.fromarray(np.uint8([[0, 1], [1, 0]])).save(tmp_path / "mask.png")  # 8 bits are shown as they are
    assert gray(tmp_path / "mask.png").max() == 1


def test_signed_bytes(tmp_path: Path) -> None:
    values = np.linspace(0, 127, 24).astype(np.int8).reshape(4, 6)
    assert (gray(tiff(tmp_path / "x.tif", values, 2)) == np.rint(values * (255 / 127))).all()
    with pytest.raises(ValueError, match=r"must lie in 0\.\.127, .*, got -100\.\.27"):
        read_image(tiff(tmp_path / "x.tif", values - np.int8(100), 2))


def png(path: Path, values: np.ndarray, color: int, transparent: bytes = b"") -> Path:
    """A PNG of 8 or 16 bits with the color type of the format's standard, and a tRNS chunk."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    depth = 8 * values.itemsize
    rows = b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, color, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    rgba = np.array([[[9, 80, 200, 255], [9, 80, 200, 0], [9, 80, 200, 51]]], np.uint8)
    expected = [[[9, 80, 200], [255, 255, 255], [206, 220, 244]]]
    for suffix, options in (("png", {}), ("webp", {"lossless": True, "exact": True}), ("tiff", {})):
        Image.fromarray(rgba).save(tmp_path / f"x.{suffix}", **options)
        assert abs(pixels(tmp_path / f"x.{suffix}") - expected).max() <= 1
    Image.fromarray(rgba[..., 2:]).save(tmp_path / "la.png")  # gray 200 with the same alpha
    assert abs(gray(tmp_path / "la.png") - [[200, 255, 244]]).max() <= 1
    associated = np.array([[200, 255], [0, 0], [40, 51]], "<u1").reshape(1, 6)  # gray times alpha, alpha
    assert abs(gray(tiff(tmp_path / "la.tif", associated, 1, extra=1)) - [[200, 255, 244]]).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    for suffix in ("png", "gif"):
        palette.save(tmp_path / f"p.{suffix}", transparency=1)
        assert pixels(tmp_path / f"p.{suffix}").tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_a_single_transparent_color(tmp_path: Path) -> None:
    eight, sixteen = np.array([[10, 20]], np.uint8), np.array([[1000, 25700]], np.uint16)
    assert gray(png(tmp_path / "x.png", eight, 0, struct.pack(">H", 10))).tolist() == [[255, 20]]
    assert gray(png(tmp_path / "x.png", sixteen, 0, struct.pack(">H", 1000))).tolist() == [[255, 100]]
    rgb = np.array([[[10, 20, 30], [10, 20, 31]]], np.uint8)
    found = pixels(png(tmp_path / "x.png", rgb, 2, struct.pack(">HHH", 10, 20, 30)))
    assert found.tolist() == [[[255, 255, 255], [10, 20, 31]]]
    deep = png(tmp_path / "x.png", rgb.astype(np.uint16) * 257, 2, struct.pack(">HHH", 2570, 5140, 7710))
    with pytest.raises(ValueError, match="a transparent color of 16 bits is not supported"):
        read_image(deep)
    assert abs(pixels(png(tmp_path / "x.png", rgb.astype(np.uint16) * 257, 2)) - rgb).max() == 0


def test_other_colors(tmp_path: Path) -> None:
    Image.new("1", (3, 2), 1).save(tmp_path / "1.png")
    assert (gray(tmp_path / "1.png") == 255).all()
    for suffix in ("jpg", "tif"):
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / f"cmyk.{suffix}")
        assert abs(pixels(tmp_path / f"cmyk.{suffix}") - [255, 0, 0]).max() <= 3
    Image.new("YCbCr", (16, 16), (128, 128, 128)).save(tmp_path / "ycc.tif")
    assert (gray(tmp_path / "ycc.tif") == 128).all()
    Image.new("LAB", (3, 2)).save(tmp_path / "lab.tif")
    with pytest.raises(ValueError, match=r"lab\.tif cannot be read \(LAB colors are not supported\)"):
        read_image(tmp_path / "lab.tif")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])  # MPO: JPEGs of stereo cameras
def test_the_first_frame_counts(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "x.jpg", kind, save_all=True, append_images=frames[1:], lossless=True)
    assert abs(pixels(tmp_path / "x.jpg") - [255, 0, 0]).max() <= 1


@pytest.mark.parametrize("kind", ["EPS", "ICO", "ICNS", "PCX", "TGA", "JPEG2000", "PDF", "SGI"])
def test_formats_that_are_not_wanted(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (32, 32), "red").save(path, kind)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    with pytest.raises(ValueError, match=r"x\.jpg cannot be read \(it is not one of JPEG, PNG, WEBP"):
        read_image(path)


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), "red").save(tmp_path / "x.jpg", "PNG")
    assert (pixels(tmp_path / "x.jpg") == [255, 0, 0]).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [None, 1, 10**12])
@pytest.mark.parametrize("tolerant", [True, False])
def test_settings_of_pil_change_nothing(
    limit: int | None, tolerant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for kind in ("png", "jpg", "bmp", "gif", "webp", "tiff", "ppm"):
        whole, cut = tmp_path / f"whole.{kind}", tmp_path / f"cut.{kind}"
        Image.fromarray(noise).save(whole)
        assert read_image(whole).size == (64, 64)
        cut.write_bytes(whole.read_bytes()[:-1200])
        with pytest.raises(ValueError, match=rf"cut\.{kind} cannot be read"):
            read_image(cut)
    side = int(MAX_PIXELS**0.5) + 1
    head = struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "bomb.bmp").write_bytes(b"BM" + head + bytes(99))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"bomb\.bmp cannot be read \(8193 x 8193 is over the limit"):
        read_image(tmp_path / "bomb.bmp")
    assert limit == Image.MAX_IMAGE_PIXELS and tolerant == ImageFile.LOAD_TRUNCATED_IMAGES


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")  # opening it would block forever
    for path in (tmp_path / "x.jpg", tmp_path):
        with pytest.raises(ValueError, match=r"cannot be read \(it is a folder, a pipe or a device\)"):
            read_image(path)
