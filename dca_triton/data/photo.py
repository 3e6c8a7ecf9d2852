"""Decode an untrusted photo file to the RGB pixels that a viewer shows."""

import threading
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.Image import Transpose

MAX_PIXELS = 2**26  # the largest photo of the supported datasets (Stanford Cars) has 42 million
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
OPAQUE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")  # modes whose conversion by PIL keeps their meaning
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
    - Gray of 12 or 16 bits is scaled by its full range, 32-bit integers by the smallest range that holds the
      photo: 0..255, 0..65535 or the full one. Floating-point gray must lie in 0..1 or 0..255. Negative values
      have no brightness and are refused.
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
        image.load()
        turn = TURNS.get(_orientation(image))
        photo = _rgb(image)
        return photo if turn is None else photo.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as for damaged pixels
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP:
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


def _scaled(image: Image.Image) -> Image.Image:
    """Scale gray values of more than 8 bits to an image of mode L."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    values = np.asarray(image)
    if image.mode == "I" and tags and tags.get(ExifTags.Base.SampleFormat, (1,))[0] == 1:
        values = values.view(np.uint32)  # PIL's I is signed
    white = _white(image, values)
    gray = np.rint(values.astype(np.float32) * np.float32(255 / white)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        gray = 255 - gray  # zero is white
    if (transparent := image.info.get("transparency")) is not None:
        gray[values == transparent] = 255
    return Image.fromarray(gray)


def _white(image: Image.Image, values: np.ndarray) -> int:
    """Return the value that represents white."""
    low, high = values.min(), values.max()
    bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))[0]
    if image.mode == "F":
        # 1.02 is neither: as part of 0..255 it would turn the whole photo black.
        if not (low >= 0 and (high <= 1 or 2 <= high <= 255)):
            raise ValueError(f"floating-point values must lie in 0..1 or 0..255, got {low:g}..{high:g}")
        return 1 if high <= 1 else 255
    if low < 0:
        raise ValueError(f"gray values must not be negative, got {low}..{high}")
    if bits < 32:
        signed = image.mode == "I" and image.format == "TIFF"
        return 2 ** (bits - signed) - 1
    return next(top for top in (255, 65535, np.iinfo(values.dtype).max) if high <= top)
