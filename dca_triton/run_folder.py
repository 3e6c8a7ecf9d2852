"""The files of a run: its newest checkpoints, the best one, and its metrics."""

import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .arguments import raise_faults
from .checkpoint import load_checkpoint, save_checkpoint
from .files import replacing, sync_folder

State = dict[str, Any]
NEWEST, BEST, FIRST, FRESH = "checkpoint.pt", "best.pt", "checkpoint.first.pt", "checkpoint.new.pt"
PENDING = "checkpoint.pending.pt"
EVALUATION = "evaluation.json"  # what the command line writes about the newest checkpoint


class RunFolder:
    """The folder of a run: checkpoint.pt, the older checkpoint.1.pt, ..., best.pt and metrics.jsonl.

    `prepare` leaves all that an earlier run wrote as it is; `take` replaces it, once the new run is known to
    work. Whatever kills a run, its newest complete checkpoint is whole. checkpoint.new.pt is a newer one,
    left by a kill before it was renamed. checkpoint.first.pt is the first one of a run, left by a kill before
    the checkpoints of an earlier run were removed. checkpoint.pending.pt, left by a kill between `prepare`
    and `take`, is never read.

    Args:
        folder: Made by `prepare` if it does not exist.
        keep_last: The number of checkpoints to keep in addition to the best, >= 1. With 2, there is another
            one if the newest is damaged.
        tensorboard: Also write the metrics to `folder`/tensorboard.
    """

    def __init__(self, folder: str | os.PathLike[str], keep_last: int = 2, tensorboard: bool = False) -> None:
        self.path = Path(folder)
        self.keep_last = keep_last
        self.tensorboard = tensorboard
        self.writer: Any = None
        self._from: Path | None = None

    def find(self, resume: str | os.PathLike[str] | None) -> tuple[Path, State] | None:
        """Return the checkpoint to resume from: a file, the newest undamaged one for "auto", or none.

        Warns about a damaged checkpoint that "auto" skips, and about a run that None is about to replace.

        Raises:
            FileNotFoundError: `resume` is not a file.
            ValueError: The file is damaged, or, with "auto", all checkpoints are.
        """
        if resume is not None and Path(resume) == Path("auto"):
            return self._newest_sound()
        found = None if resume is None else (Path(resume), load_checkpoint(resume))
        if self.paths() and not self._holds(found and found[0]):
            warnings.warn(
                f"{self.path} holds an earlier run, which the new one replaces after its first step; "
                "resume='auto' would go on with it",
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

    def best_score(self, path: Path) -> float:
        """The score of best.pt if it is of the run that goes on from the checkpoint `path`, or -inf.

        An epoch after that checkpoint may have been better than all before it.
        """
        if not self._holds(path) or path.name == FIRST:
            return -math.inf
        try:
            return float(load_checkpoint(self.path / BEST)["best"])
        except (OSError, ValueError, TypeError, LookupError):  # absent, damaged, or of another program
            return -math.inf

    def _holds(self, path: Path | None) -> bool:
        return path is not None and path.resolve().parent == self.path.resolve()

    def prepare(self, path: Path | None, state: State) -> None:
        """Check the folder and write what the run begins with under a name of its own.

        Args:
            path: The file that the state was read from, or None for a new run.
            state: What the file holds.

        Raises:
            OSError: The folder cannot be written; its files are as they were.
        """
        if self._metrics.is_dir():
            raise IsADirectoryError(f"{self._metrics} must be a file, got a folder")
        if self.tensorboard and self._events.exists() and not self._events.is_dir():
            raise NotADirectoryError(f"{self._events} must be a folder, got a file")
        self.path.mkdir(parents=True, exist_ok=True)
        self._from = path if self._holds(path) else None
        (self.path / PENDING).unlink(missing_ok=True)  # of a killed run
        if self._from is None or self._from.name not in (NEWEST, FRESH):
            save_checkpoint(self.path / PENDING, state)

    def take(self, history: Sequence[Mapping[str, float]]) -> None:
        """Make the state that the run began with the newest checkpoint of the folder, and write its metrics.

        Unless it was the newest here, no other checkpoint is left to be mistaken for one of this run, and no
        evaluation.json. best.pt stays if the state is from this folder, and so of the same run; only a better
        score replaces it (`best_score`).

        Args:
            history: A line for each epoch done; later lines of a killed run go.

        Raises:
            OSError: The folder cannot be written.
        """
        if (self.path / PENDING).exists():
            same_run = self._from is not None and self._from.name != FIRST
            first = self.path / (FRESH if same_run else FIRST)
            os.replace(self.path / PENDING, first)
            others = [EVALUATION] if same_run else [EVALUATION, BEST]
            events = [] if same_run else self._events.glob("events.out.tfevents.*")
            for path in [*self.paths(), *(self.path / other for other in others), *events]:
                if path != first:
                    _remove(path)
            os.replace(first, self.path / NEWEST)
            sync_folder(self.path)
        elif self._from is not None and self._from.name == FRESH:
            self._rotate()
        self._write_metrics(history)
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self._events, purge_step=len(history) + 1)

    def close(self) -> None:
        """Remove what `prepare` wrote if `take` was not called, and close the metrics."""
        (self.path / PENDING).unlink(missing_ok=True)
        if self.writer is not None:
            self.writer.close()

    def save(self, state: State) -> None:
        """Make `state` the newest checkpoint.

        Raises:
            OSError: It cannot be written, e.g. because the disk is full; the older ones are whole.
        """
        save_checkpoint(self.path / FRESH, state)
        self._rotate()

    def _rotate(self) -> None:
        """Make checkpoint.new.pt the newest, and each other one a place older."""
        present = len(self.paths())  # keep_last may be far more
        for age in range(min(self.keep_last - 1, present), 0, -1):
            if self._aged(age - 1).exists():
                os.replace(self._aged(age - 1), self._aged(age))
        os.replace(self.path / FRESH, self._aged(0))
        sync_folder(self.path)

    def save_best(self, state: State) -> None:
        """Make `state` the best checkpoint; raises as `save`."""
        save_checkpoint(self.path / BEST, state)

    def add_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """Add the last line of `history`.

        Raises:
            OSError: metrics.jsonl cannot be written; the older file is whole.
        """
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

    @property
    def _events(self) -> Path:
        return self.path / "tensorboard"

    def _aged(self, age: int) -> Path:
        return self.path / (f"checkpoint.{age}.pt" if age else NEWEST)


def _remove(path: Path) -> None:
    """Delete a file; a folder that has its name is moved out of the way instead, because others made it."""
    if path.is_dir() and not path.is_symlink():
        os.replace(path, path.with_name(f"{path.name}.folder"))
    else:
        path.unlink(missing_ok=True)
