"""The published folder of a dataset: finding its files, reading its lists, one sentence for what is wrong."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os.path import join, normpath
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from .records import ImageRecord


@dataclass(frozen=True)
class Listing:
    """What a dataset's files say: the names of the training classes, and the photos of each part.

    Parts are train and test (fine-grained categorisation) or train, query and gallery (re-identification).
    """

    classes: tuple[str, ...]
    parts: dict[str, list[ImageRecord]]


@dataclass(frozen=True)
class Layout:
    """The folder `root` of the dataset `name`, expected to hold `tree` (in words)."""

    name: str
    root: Path
    tree: str

    def missing(self, what: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"dataset {self.name}: {what} missing in {self.root}, which must hold {self.tree}"
        )

    def damaged(self, file: str, reason: str) -> ValueError:
        return ValueError(
            f"dataset {self.name}: {self.root / file} is damaged ({reason}); expected are {self.tree}"
        )

    def require(self, *names: str) -> None:
        """Raises FileNotFoundError that lists every absent file or folder."""
        absent = [name for name in names if not (self.root / name).exists()]
        if absent:
            raise self.missing(f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'}")

    def require_photos(self, parts: dict[str, list[ImageRecord]]) -> None:
        """ValueError for a part without photos, FileNotFoundError for listed photos that are absent."""
        for part, records in parts.items():
            if not records:
                raise ValueError(
                    f"dataset {self.name}: {self.root} holds no photo for {part}; expected are {self.tree}"
                )
        absent = [
            record.path for records in parts.values() for record in records if not record.path.is_file()
        ]
        if absent:
            more = f" and {len(absent) - 1} more photos are" if len(absent) > 1 else " is"
            raise self.missing(f"{absent[0]}{more}")

    def inside(self, file: str, relative: str) -> Path:
        """The path that the list `file` names; ValueError when it leads out of the root."""
        path = normpath(join(self.root, relative))
        if not path.startswith(join(normpath(self.root), "")):
            raise self.damaged(file, f"{relative!r} leads out of the dataset's folder")
        return Path(path)

    def rows(self, file: str, fields: int) -> Iterator[list[str]]:
        """The lines of a list but for blank ones, each split at white space into exactly `fields` texts."""
        try:
            lines = (self.root / file).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise self.damaged(file, f"it is no UTF-8 text: {error}") from error
        for number, line in enumerate(lines, start=1):
            row = line.strip().split(maxsplit=fields - 1)
            if row and len(row) != fields:
                raise self.damaged(file, f"line {number} has {len(row)} fields, not {fields}: {line[:80]!r}")
            if row:
                yield row

    def table(self, file: str) -> dict[str, str]:
        """A list of two columns, the first of them unique."""
        table: dict[str, str] = {}
        for key, value in self.rows(file, 2):
            if key in table:
                raise self.damaged(file, f"{key!r} comes twice")
            table[key] = value
        return table

    def photos(self, folder: str) -> list[Path]:
        """The image files right in a folder, by name; Thumbs.db, macOS's ._ files and the like are none."""
        return sorted(
            path
            for path in (self.root / folder).iterdir()
            if path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".")
        )


def contiguous(records: Iterable[ImageRecord]) -> tuple[tuple[str, ...], list[ImageRecord]]:
    """Training labels 0..K-1 in the order of the identity numbers, which become the names of the classes."""
    records = list(records)
    identities = sorted({record.label for record in records})
    label = {identity: position for position, identity in enumerate(identities)}
    return (
        tuple(str(identity) for identity in identities),
        [ImageRecord(record.path, label[record.label], record.camera) for record in records],
    )
