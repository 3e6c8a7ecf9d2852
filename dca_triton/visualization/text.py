"""Text in pictures and pages: file names and class names may hold any characters, even invalid ones."""

import unicodedata
from functools import lru_cache

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, get_font

BOX, REPLACEMENT = "\u25a1", "\ufffd"


def drawable(text: str) -> str:
    """Replace every character that matplotlib's fonts lack by a box; matplotlib would warn about it.

    Most installations draw Latin, Greek, Cyrillic, Hebrew and Arabic. For other scripts set matplotlib's
    `font.family` to a list with a font that has them.
    """
    families = matplotlib.rcParams["font.family"]
    files = (findfont(FontProperties(family=[family])) for family in families)
    glyphs = frozenset().union(*map(_glyphs, files))
    box = BOX if ord(BOX) in glyphs else "?"
    return "".join(letter if ord(letter) in glyphs else box for letter in text)


def writable(text: str) -> str:
    """Replace control characters and bytes that are not UTF-8 by a replacement character."""
    return "".join(REPLACEMENT if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text)


@lru_cache(maxsize=8)
def _glyphs(file: str) -> frozenset[int]:
    return frozenset(get_font(file).get_charmap())
