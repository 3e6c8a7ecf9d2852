"""The files of a run: its newest checkpoints, the best one, and its metrics."""

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .arguments import raise_faults
from .checkpoint import load_checkpoint, replacing, save_checkpoint, sync_folder

State = dict[str, Any]
NEWEST, BEST, FIRST, FRESH = "checkpoint.pt", "best.pt", "checkpoint.first.pt", "checkpoint.new.pt"


class RunFolder:
    """The folder of a run: checkpoint.pt, the older checkpoint.1.pt, ..., best.pt and metrics.jsonl.

    Whatever kills a run, its newest complete checkpoint stays whole. checkpoint.new.pt is a newer one, left
    by a kill before it was renamed. checkpoint.first.pt is the first one of a run, left by a kill before the
    checkpoints of an earlier run were removed.

    Args:
        folder: Made by `go_on` if it does not exist.
        keep_last: How many checkpoints are kept in addition to the best, >= 1; with 2 a damaged newest one
            has a replacement.
        tensorboard: Write the metrics to `folder`/tensorboard, too.
    """

    def __init__(self, folder: str | os.PathLike[str], keep_last: int = 2, tensorboard: bool = False) -> None:
        self.path = Path(folder)
        self.keep_last = keep_last
        self.tensorboard = tensorboard
        self.writer: Any = None

    def find(self, resume: str | os.PathLike[str] | None) -> tuple[Path, State] | None:
        """Return the checkpoint to resume from: a file, the newest sound one for "auto", or none.

        Warns about a damaged checkpoint that "auto" skips, and about a run that None is about to replace.

        Raises:
            FileNotFoundError: `resume` is not a file.
            ValueError: The file is damaged, or, with "auto", all checkpoints are.
        """
        if resume is not None and Path(resume) == Path("auto"):
            return self._newest_sound()
        found = None if resume is None else (Path(resume), load_checkpoint(resume))
        if self.paths() and (found is None or found[0].resolve().parent != self.path.resolve()):
            warnings.warn(
                f"{self.path} holds an earlier run, whose checkpoints are removed; resume='auto' would "
                "continue it",
                stacklevel=4,
            )
        return found

    def _newest_sound(self) -> tuple[Path, State] | None:
        faults: list[str] = []
        for path in self.paths():
            try:
                state = load_checkpoint(path)
            except (ValueError, OSError) as error:
                faults.append(str(error))
                continue
            for fault in faults:
                warnings.warn(f"{fault}; {path} is used instead", stacklevel=5)
            return path, state
        if faults:
            raise_faults([f"{self.path} must hold a checkpoint to resume from, got damaged ones", *faults])
        return None

    def paths(self) -> list[Path]:
        """All checkpoints except the best, from newest to oldest, including damaged ones."""
        if not self.path.is_dir():
            return []
        matches = {path: re.fullmatch(r"checkpoint\.(\d+)\.pt", path.name) for path in self.path.iterdir()}
        aged = {int(match[1]): path for path, match in matches.items() if match}
        latest = [self.path / name for name in (FIRST, FRESH, NEWEST)]
        return [path for path in latest if path.exists()] + [aged[age] for age in sorted(aged)]

    def go_on(self, path: Path | None, state: State) -> None:
        """Save the state that a run starts from as the newest checkpoint of the folder.

        Args:
            path: The file that the state was read from, or None for a new run. Unless it is the newest here,
                no other checkpoint is left to be mistaken for one of this run; best.pt stays if the file is
                of this folder, and so of the same run.
            state: What the file holds.

        Raises:
            OSError: The folder cannot be written; it is unchanged.
        """
        if self._metrics.is_dir():
            raise IsADirectoryError(f"{self._metrics} must be a file, got a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        here = path is not None and path.resolve().parent == self.path.resolve()
        name = path.name if path is not None and here else FIRST
        if name == FRESH:
            self.save(state)
        elif name == FIRST:
            self._begin(FIRST, state, BEST)
        elif name != NEWEST:
            self._begin(FRESH, state)

    def _begin(self, name: str, state: State, *others: str) -> None:
        """Save under `name`, remove all other checkpoints and `others`, and give it the newest's name."""
        first = self.path / name
        save_checkpoint(first, state)
        for path in [*self.paths(), *(self.path / other for other in others)]:
            if path != first:
                _remove(path)
        os.replace(first, self.path / NEWEST)
        sync_folder(self.path)

    def save(self, state: State) -> None:
        """Make `state` the newest checkpoint.

        Raises:
            OSError: It cannot be written, e.g. because the disk is full; the older ones are whole.
        """
        fresh = self.path / FRESH
        save_checkpoint(fresh, state)
        present = len(self.paths())  # keep_last may be far more
        for age in range(min(self.keep_last - 1, present), 0, -1):
            if self._aged(age - 1).exists():
                os.replace(self._aged(age - 1), self._aged(age))
        os.replace(fresh, self._aged(0))
        sync_folder(self.path)

    def save_best(self, state: State) -> None:
        """Make `state` the best checkpoint; raises as `save`."""
        save_checkpoint(self.path / BEST, state)

    def begin_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write metrics.jsonl, one line per epoch of `history`, without later lines of a killed run.

        Raises:
            OSError: It cannot be written; the older file is whole.
        """
        self._write_metrics(history)
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.path / "tensorboard", purge_step=len(history) + 1)

    def add_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """Add the last line of `history`; metrics.jsonl is replaced as a whole and raises as above."""
        self._write_metrics(history)
        if self.writer is not None:
            for name, value in history[-1].items():
                self.writer.add_scalar(name, value, len(history))
            self.writer.flush()

    def _write_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        with replacing(self._metrics) as file:
            file.write("".join(json.dumps(line) + "\n" for line in history).encode())

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _aged(self, age: int) -> Path:
        return self.path / (f"checkpoint.{age}.pt" if age else NEWEST)


def _remove(path: Path) -> None:
    """Delete a file; a folder that has its name is moved out of the way instead, because others made it."""
    if path.is_dir() and not path.is_symlink():
        os.replace(path, path.with_name(f"{path.name}.folder"))
    else:
        path.unlink(missing_ok=True)
