"""A run's checkpoints: the newest and a few before it, the best, and which of them is sound."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

from .checkpoint import load_checkpoint, save_checkpoint, sync_folder

State = dict[str, Any]


class CheckpointFolder:
    """checkpoint.pt, the newest; checkpoint.1.pt, checkpoint.2.pt, ... before it; best.pt.

    Whenever a save is killed, the newest before it is whole, under its own name or that of the next older.

    Args:
        folder: Made if it does not exist.
        keep_last: How many are kept besides the best, at least 1; with 2 a damaged newest has a stand-in.
    """

    def __init__(self, folder: str | os.PathLike[str], keep_last: int = 2) -> None:
        self.path = Path(folder)
        self.path.mkdir(parents=True, exist_ok=True)
        self.keep_last = keep_last

    def save(self, state: State) -> None:
        """Make `state` the newest checkpoint.

        Raises:
            OSError: It cannot be written, e.g. a full disk; the older ones are whole.
        """
        fresh = self.path / "checkpoint.new.pt"
        save_checkpoint(fresh, state)
        for age in range(self.keep_last - 1, 0, -1):
            if self._aged(age - 1).exists():
                os.replace(self._aged(age - 1), self._aged(age))
        os.replace(fresh, self._aged(0))
        sync_folder(self.path)

    def save_best(self, state: State) -> None:
        """Make `state` the best checkpoint; raises as `save`."""
        save_checkpoint(self.path / "best.pt", state)

    def find(self, resume: str | os.PathLike[str] | None) -> tuple[Path, State] | None:
        """The checkpoint to go on from: a file, the newest sound one for "auto", or none.

        A damaged checkpoint that "auto" passes over is reported as a warning, and so is a run in this folder
        that None is about to replace.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is damaged, or for "auto" each of those that are there.
        """
        if resume is None:
            if self.paths():
                warnings.warn(
                    f"{self.path} holds an earlier run, whose checkpoints give way to the new one's; "
                    "resume='auto' would go on with it",
                    stacklevel=4,
                )
            return None
        path = Path(resume)
        return self._newest() if path == Path("auto") else (path, load_checkpoint(path))

    def _newest(self) -> tuple[Path, State] | None:
        faults = []
        for path in self.paths():
            try:
                state = load_checkpoint(path)
            except ValueError as error:
                faults.append(str(error))
                continue
            for fault in faults:
                warnings.warn(f"{fault}; {path} is used instead", stacklevel=5)
            return path, state
        if faults:
            raise ValueError(f"no checkpoint to resume from: {'; '.join(faults)}")
        return None

    def paths(self) -> list[Path]:
        """All but the best, from the newest to the oldest."""
        names = {path: re.fullmatch(r"checkpoint\.(\d+)\.pt", path.name) for path in self.path.iterdir()}
        aged = {int(match[1]): path for path, match in names.items() if match}
        newest = [self._aged(0)] if self._aged(0).exists() else []
        return newest + [aged[age] for age in sorted(aged)]

    def _aged(self, age: int) -> Path:
        return self.path / (f"checkpoint.{age}.pt" if age else "checkpoint.pt")
