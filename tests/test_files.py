"""A file is written whole or not at all, and no other file is left behind."""

import json
import os
from pathlib import Path

import pytest

from dca_triton.files import atomic_write, path_faults


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "目录 ü.json"
    path.write_text("old")
    with atomic_write(path, "w") as file:
        json.dump(["ä"], file, ensure_ascii=False)
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == '["ä"]'.encode()
    with atomic_write(path) as file:
        Path(file.name).write_bytes(b"by its name")  # as writers that take a path do
    assert path.read_bytes() == b"by its name"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_an_error_leaves_the_older_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises((KeyboardInterrupt, ValueError, OSError)) as caught, atomic_write(path, "w") as file:
        file.write("new")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path} cannot be written (No space left on device)"


class Foreign(OSError):
    def __init__(self, code: int, reason: str, more: str) -> None:
        super().__init__(f"{code} {reason} {more}")


def test_errors_of_other_libraries_are_told_as_well(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"e\.json cannot be written \(5 a b\)"),
        atomic_write(tmp_path / "e.json"),
    ):
        raise Foreign(5, "a", "b")


def test_a_link_is_kept(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "shared/real.json")
    with atomic_write(tmp_path / "link.json", "w") as file:
        file.write("new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "shared/real.json").read_text() == "new"


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match=f"{path} must be a file, got"), atomic_write(path):
            pytest.fail("opened")
    with pytest.raises(FileNotFoundError, match="cannot be written"), atomic_write(tmp_path / "no/e.json"):
        pytest.fail("opened")


def test_every_reason_against_a_path_is_found(tmp_path: Path) -> None:
    assert path_faults("--file", tmp_path / "new.json", (".html", ".json")) == []
    (tmp_path / "old.json").touch()
    assert path_faults("--file", tmp_path / "old.json", (".json",)) == []
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "folder.png", tmp_path / "pipe.png"):
        told = f"must be a file, got {str(path)!r}, a folder, a device or a pipe"
        assert path_faults("output", path, (".png",)) == [f"output {told}"]
    assert path_faults("output", Path("no/e.txt"), (".png", ".html")) == [
        "output must end in .png or .html, got 'no/e.txt'",
        "output must be in a folder that exists, got 'no/e.txt'",
    ]
