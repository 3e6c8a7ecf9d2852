"""The published folder of a dataset: find its files, read its lists, report every fault in one sentence."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from os.path import exists, isfile, join, normpath
from pathlib import Path
from unicodedata import normalize

from .records import ImageRecord
from .walk import is_system, photo_files, subfolders, warn_of_others

MAX_LIST_BYTES = 2**28  # the longest list of the supported datasets has 2 MB


@dataclass(frozen=True)
class Listing:
    """The names of the training classes and the photos of each part, as a dataset's files give them.

    Parts are train and test (fine-grained categorization) or train, query and gallery (re-identification).
    `version` is the dataset's name with the version that was found, where there are several.
    """

    classes: tuple[str, ...]
    parts: dict[str, list[ImageRecord]]
    version: str = ""


@dataclass(frozen=True)
class Layout:
    """The folder `root` of the dataset `name`, expected to hold `tree` (in words).

    `others` collects files that are not photos but lie among photos.
    """

    name: str
    root: Path
    tree: str
    others: list[Path] = field(default_factory=list)

    def missing(self, what: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"dataset {self.name}: {what} missing in {self.root}, which must hold {self.tree}"
        )

    def damaged(self, file: str, reason: str) -> ValueError:
        return ValueError(
            f"dataset {self.name}: {self.root / file} is damaged ({reason}); "
            f"the dataset must hold {self.tree}"
        )

    def require(self, *names: str) -> None:
        """Raise FileNotFoundError that lists every absent file or folder."""
        absent = [name for name in names if not exists(self.root / name)]
        if absent:
            raise self.missing(f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'}")

    def finish(self, parts: dict[str, list[ImageRecord]]) -> None:
        """Raise ValueError for a part without photos and FileNotFoundError for listed photos that are absent.

        Then warn once about the other files among the photos.
        """
        for part, records in parts.items():
            if not records:
                raise ValueError(
                    f"dataset {self.name}: {self.root} holds no photo for {part}; it must hold {self.tree}"
                )
        absent = [r.path for records in parts.values() for r in records if not isfile(r.path)]
        if absent:
            more = f" and {len(absent) - 1} more photos are" if len(absent) > 1 else " is"
            raise self.missing(f"{absent[0]}{more}")
        warn_of_others(self.others, f"dataset {self.name}: {self.root}")

    def inside(self, file: str, relative: str) -> Path:
        """The path that the list `file` names.

        A list may spell a name composed (NFC) and the folder decomposed (NFD, as macOS does), or the other
        way round: the spelling that exists is used. Links are followed wherever they lead.

        Raises:
            ValueError: The name leads outside the root.
        """
        root = normpath(self.root)
        path = normpath(join(root, relative))
        if not path.startswith(join(root, "")):
            raise self.damaged(file, f"{relative!r} leads out of the dataset's folder")
        if relative.isascii():
            return Path(path)
        found = self.root
        for part in Path(path).relative_to(root).parts:
            spellings = [found / text for text in (part, normalize("NFC", part), normalize("NFD", part))]
            found = next(filter(exists, spellings), spellings[0])
        return found

    def content(self, file: str) -> bytes:
        """All bytes of a list, at most `MAX_LIST_BYTES`."""
        path = self.root / file
        if not isfile(path):
            raise self.damaged(file, "it must be a file, not a folder, a pipe or a device")
        try:
            if (size := path.stat().st_size) > MAX_LIST_BYTES:
                raise self.damaged(file, f"it must have at most {MAX_LIST_BYTES} bytes, got {size}")
            return path.read_bytes()
        except OSError as error:
            raise self.damaged(file, str(error)) from error

    def rows(self, file: str, fields: int) -> Iterator[list[str]]:
        """The lines of a list except blank ones, each split at white space into exactly `fields` texts."""
        try:
            text = self.content(file).decode("utf-8-sig")  # editors on Windows add a byte-order mark
        except UnicodeDecodeError as error:
            raise self.damaged(file, f"it must be UTF-8 text: {error}") from error
        for number, line in enumerate(io.StringIO(text, newline=None), start=1):
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

    def photos(self, folder: str, nested: bool = False) -> list[Path]:
        """The photos in a folder by path, see `photo_files`; other files go to `others`."""
        try:
            photos, others = photo_files(self.root / folder, nested)
        except OSError as error:
            raise self.damaged(folder, str(error)) from error
        self.others.extend(others)
        return photos

    def class_folders(self, part: str) -> dict[str, list[Path]]:
        """The photos of each class folder of a part, at any depth, in the order of the folders' names.

        Names are composed (NFC), so that a part from macOS matches a part from another system.

        Raises:
            ValueError: There is no class folder, or one without photos.
        """
        try:
            folders = subfolders(self.root / part)
            found: dict[str, list[Path]] = {normalize("NFC", folder.name): [] for folder in folders}
            for folder in folders:
                found[normalize("NFC", folder.name)] += self.photos(f"{part}/{folder.name}", nested=True)
            self.others.extend(
                path for path in (self.root / part).iterdir() if not (path.is_dir() or is_system(path.name))
            )
        except OSError as error:
            raise self.damaged(part, str(error)) from error
        if not found:
            raise self.damaged(part, "it holds no class folders")
        if empty := [name for name, photos in found.items() if not photos]:
            raise self.damaged(part, f"no photos for the classes {', '.join(empty)}")
        return found


def contiguous(records: Iterable[ImageRecord]) -> tuple[tuple[str, ...], list[ImageRecord]]:
    """Training labels 0..K-1 in the order of the identity numbers, which become the names of the classes."""
    records = list(records)
    identities = sorted({record.label for record in records})
    label = {identity: position for position, identity in enumerate(identities)}
    return (
        tuple(str(identity) for identity in identities),
        [replace(record, label=label[record.label]) for record in records],
    )


def is_number(text: str) -> bool:
    """Whether a text is a number of at most nine digits."""
    return text.isascii() and text.isdigit() and len(text) < 10
