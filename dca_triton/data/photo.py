"""Decode an untrusted photo file to the RGB pixels that a viewer shows."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.Image import Transpose

MAX_PIXELS = 2**26  # the largest photo of the supported datasets (Stanford Cars) has 42 million
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
OPAQUE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")  # modes whose conversion by PIL keeps their meaning
DARKEST = 1 / 16  # of white, which the brightest value of a photo of more than 8 bits must reach
SMIN_SAMPLE_VALUE, SMAX_SAMPLE_VALUE = 340, 341  # tags of a TIFF
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # gray values of more than 8 bits
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
PIL_SETTINGS = threading.Lock()


def read_image(path: Path) -> Image.Image:
    """Decode a photo to RGB, as a viewer shows it.

    - Formats: JPEG, PNG, WebP, BMP, GIF, PPM (PBM, PGM, PFM) and TIFF, by content and not by name. The first
      of several frames or pages is used.
    - EXIF orientation is applied. Unreadable EXIF data counts as none.
    - Transparent pixels are blended with white.
    - Gray of more than 8 bits is scaled by the range that the file states: the tags SMinSampleValue and
      SMaxSampleValue of a TIFF, the largest value of a PGM, or the full range of 12 or 16 bits.
    - 32-bit integers state no range: they must reach the upper half of 0..255, of 0..65535 or of their full
      range. Floating-point values must lie in 0..1, or reach the upper half of 0..255.
    - Gray and colors of more than 8 bits must reach 1/16 of white. So values of another range are refused and
      do not become a black picture: 12 bits in a file of 16, depth in millimeters, masks of 0 and 1.
    - CMYK is converted by PIL's formula. Color profiles are not applied, as in timm and torchvision. LAB is
      refused.

    PIL's global settings (LOAD_TRUNCATED_IMAGES, MAX_IMAGE_PIXELS) make no difference.

    Raises:
        ValueError: The file is missing, not such a photo, truncated, or has more than `MAX_PIXELS` pixels
            (checked on its header, before anything of that size is allocated). The message names the path.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is a folder, a pipe or a device")
        return _with_own_settings(path)
    except UnidentifiedImageError as error:
        raise ValueError(f"image {path} cannot be read (it is not one of {', '.join(FORMATS)})") from error
    except Exception as error:  # PIL's decoders raise nearly any error for damaged files
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"image {path} cannot be read ({kind}{reason})") from error


def _with_own_settings(path: Path) -> Image.Image:
    # PIL reads these two from its modules, where any other library may have changed them.
    with PIL_SETTINGS:
        settings = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
        truncated, pixels = settings
        if truncated or pixels is None or pixels < MAX_PIXELS:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, MAX_PIXELS
            try:
                return _decode(path)
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = settings
    return _decode(path)


def _decode(path: Path) -> Image.Image:
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} is over the limit of {MAX_PIXELS} pixels")
        reduced = _is_reduced(image)
        image.load()
        turn = TURNS.get(_orientation(image))
        photo = _rgb(image)
        if reduced and (high := int(np.asarray(photo).max())) < 256 * DARKEST:
            raise ValueError(
                f"colors of more than 8 bits must reach 1/16 of white, got at most {high} of 255"
            )
        return photo if turn is None else photo.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as for damaged pixels
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP or (image.mode == "L" and _is_signed(image)):
        return _scaled(image).convert("RGB")
    transparent_color = image.info.get("transparency")
    if isinstance(transparent_color, tuple) and max(transparent_color) > 255:
        raise ValueError("a transparent color of 16 bits is not supported")  # PIL has 8 bits of the pixels
    if image.has_transparency_data:
        transparent = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, transparent).convert("RGB")
    if image.mode not in OPAQUE:
        raise ValueError(f"{image.mode} colors are not supported")
    return image.convert("RGB")


def _is_reduced(image: ImageFile.ImageFile) -> bool:
    """True for colors of more than 8 bits, of which PIL keeps the upper 8. Call it before `load`."""
    if image.mode in DEEP:
        return False
    if image.format == "TIFF":
        return max(_tags(image).get(ExifTags.Base.BitsPerSample, (1,))) > 8
    arguments: Any = image.tile[0].args if image.format in ("PNG", "PPM") else ""
    if isinstance(arguments, str):
        return ";16" in arguments
    return arguments[-1] > 255  # the largest value of a PPM


def _tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})  # of a TIFF


def _scaled(image: Image.Image) -> Image.Image:
    """Gray values of more than 8 bits, or signed ones, as a picture of mode L."""
    tags = _tags(image)
    values = np.asarray(image)
    if image.mode == "I" and tags and not _is_signed(image):
        values = values.view(np.uint32)  # PIL's I is signed
    elif image.mode == "L":
        values = values.view(np.int8)  # and its L is not
    black, white = _range(image, values)
    scaled = values.astype(np.float64)
    scaled -= black
    scaled *= 255
    scaled /= white - black
    gray = np.rint(scaled, out=scaled).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        gray = 255 - gray  # zero is white
    if (transparent := image.info.get("transparency")) is not None:
        gray[values == transparent] = 255
    return Image.fromarray(gray)


def _is_signed(image: Image.Image) -> bool:
    return _tags(image).get(ExifTags.Base.SampleFormat, (1,))[0] == 2


def _range(image: Image.Image, values: np.ndarray) -> tuple[float, float]:
    """The values that stand for black and white.

    Raises:
        ValueError: A value lies outside of them, or all lie so low that the picture would be black.
    """
    low, high = values.min(), values.max()
    got = f"got {low:.10g}..{high:.10g}"
    if stated := _stated_range(image):
        black, white = stated
        if not (black <= low and black + (white - black) * DARKEST <= high <= white):
            raise ValueError(
                f"gray values must lie in {black:.10g}..{white:.10g}, the range that the file states, and "
                f"reach 1/16 of it, {got}"
            )
        return stated
    if image.mode == "F":
        halves = {1.0: DARKEST, 255.0: 128.0}  # values up to 1 can be no other range
        rule = "floating-point values must lie in 0..1 and reach 1/16, or lie in 0..255 and reach 128"
    else:
        halves = {float(top): float(top // 2 + 1) for top in (255, 65535, np.iinfo(values.dtype).max)}
        ranges = ", or ".join(f"lie in 0..{top:.10g} and reach {half:.10g}" for top, half in halves.items())
        rule = f"32-bit gray values must {ranges}"
    for top, least in halves.items():
        if low >= 0 and least <= high <= top:
            return 0, top
    raise ValueError(f"{rule}, {got}")


def _stated_range(image: Image.Image) -> tuple[float, float] | None:
    """The range of gray values that the file states, or None for 32 bits without one."""
    tags = _tags(image)
    if SMAX_SAMPLE_VALUE in tags:
        black, white = (float(tags.get(tag, (0,))[0]) for tag in (SMIN_SAMPLE_VALUE, SMAX_SAMPLE_VALUE))
        if not -np.inf < black < white < np.inf:
            raise ValueError(f"SMaxSampleValue must be above SMinSampleValue, got {white:g} and {black:g}")
        return black, white
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    if image.mode == "F" or bits == 32:
        return None
    return 0, 2.0 ** (bits - _is_signed(image)) - 1  # PIL scales each PGM to 16 bits
