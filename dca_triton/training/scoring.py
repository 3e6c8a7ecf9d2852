"""What follows an epoch: its evaluation, its line of metrics and its checkpoints."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate.utils import broadcast_object_list

from ..arguments import raise_faults
from ..branches import TRAINING_METRICS
from ..run_folder import RunFolder
from .run import Run
from .run_settings import stable_repr

Line = dict[str, float]  # the metrics of an epoch by name


@dataclass(kw_only=True)
class Scoring:
    """Evaluates a run and writes its metrics and checkpoints.

    Attributes:
        run: The run, with its progress.
        evaluate: Returns scores by name; None evaluates nothing.
        evaluate_every: Epochs between evaluations; 0 evaluates after the last epoch only.
        save_every: Epochs between checkpoints.
        best_by: The score that decides on best.pt, or None.
    """

    run: Run
    evaluate: Callable[[], dict[str, float]] | None
    evaluate_every: int
    save_every: int
    best_by: str | None

    def finish_epoch(self, folder: RunFolder, line: Line, num_epochs: int) -> None:
        """Score and record the epoch that is done."""
        progress = self.run.progress
        progress.next_epoch()
        last = progress.epoch == num_epochs
        try:
            scores, faults = self._scores(line) if self._evaluates(num_epochs) else ({}, [])
        except Exception:
            if self.run.accelerator.num_processes == 1:  # saving needs all processes; others may not raise
                self._record(folder, line, {}, saves=True)  # a resumed run evaluates the epoch first
            raise
        saves = last or bool(faults) or progress.epoch % self.save_every == 0
        self._record(folder, line, scores, saves)
        raise_faults(faults)

    def score_resumed(self, folder: RunFolder, num_epochs: int, take: Callable[[], None]) -> None:
        """Evaluate the last epoch done if its scores are missing."""
        progress = self.run.progress
        line = progress.history[-1] if progress.history and not progress.step else None
        if line is None or self.evaluate is None or not self._evaluates(num_epochs) or has_scores(line):
            return
        scores, faults = self._scores(line)
        raise_faults(faults)  # before anything is written
        take()
        progress.history.pop()
        self._record(folder, line, scores, saves=True)

    def save(self, write: Callable[[dict[str, Any]], None]) -> None:
        """Write a checkpoint by a method of `RunFolder`, in the main process."""
        state = self.run.state()  # gathers shards: in every process
        if self.run.accelerator.is_main_process:
            write(state)

    def _evaluates(self, num_epochs: int) -> bool:
        """True if the epoch that is done is one to evaluate."""
        epoch, every = self.run.progress.epoch, self.evaluate_every
        return epoch == num_epochs or (every > 0 and epoch % every == 0)

    def _record(self, folder: RunFolder, line: Line, scores: dict[str, float], saves: bool) -> None:
        """Write the metrics of the epoch that is done, and its checkpoints."""
        progress = self.run.progress
        progress.history.append(line | scores)
        if self.run.accelerator.is_main_process:
            folder.add_metrics(progress.history)
        if (score := self._deciding(scores)) > progress.best:
            progress.best = score
            self.save(folder.save_best)
        if saves:
            self.save(folder.save)

    def _scores(self, line: Line) -> tuple[dict[str, float], list[str]]:
        """Return the scores of an evaluation, or no scores and their faults."""
        if self.evaluate is None:
            return {}, []
        with self.run.averaged():
            scores = self.evaluate()
        return check_scores(broadcast_object_list([scores])[0], line, self.best_by)

    def _deciding(self, scores: Mapping[str, float]) -> float:
        names = [self.best_by] if self.best_by else ["sum_top1", "mAP", *scores]
        return next((scores[name] for name in names if name in scores), -math.inf)


def check_scores(
    scores: Any, line: Mapping[str, float], best_by: str | None
) -> tuple[dict[str, float], list[str]]:
    """Return the scores of `evaluate` as floats, or no scores and their faults.

    Args:
        scores: The result of `evaluate`.
        line: The other metrics of the epoch.
        best_by: The score that is required, or None.
    """
    if not isinstance(scores, Mapping):
        return {}, [f"evaluate must return a dict of numbers, got a {type(scores).__name__}"]
    faults = []
    numbers: dict[str, float] = {}
    for name, value in scores.items():
        try:
            numbers[str(name)] = float(value)  # also of NumPy and PyTorch
        except (TypeError, ValueError, RuntimeError):
            faults.append(f"evaluate must return numbers, got {stable_repr(value)} as {name}")
    if taken := sorted(set(numbers) & set(line)):
        faults.append(f"evaluate must return names other than {', '.join(line)}, got {', '.join(taken)}")
    if best_by is not None and best_by not in numbers:
        faults.append(
            f"best_by must be one of the scores {', '.join(numbers)}, got {best_by!r}; the run is saved and "
            "can be resumed with another"
        )
    return ({} if faults else numbers), faults


def has_scores(line: Mapping[str, float]) -> bool:
    """True if an epoch's metrics hold more than training itself writes."""
    return not TRAINING_METRICS.issuperset(line)
