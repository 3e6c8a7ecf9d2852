"""A run's metrics as they come: metrics.jsonl, and TensorBoard's files on demand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


class MetricsLog:
    """metrics.jsonl in `folder`, a line an epoch; it begins with `history`: what a resumed run lost is cut.

    Args:
        folder: Exists.
        history: The lines of the epochs before.
        tensorboard: Write scalars to `folder`/tensorboard, too.

    Raises:
        ModuleNotFoundError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: Path, history: Sequence[Mapping[str, float]], tensorboard: bool = False
    ) -> None:
        self.file = folder / "metrics.jsonl"
        self.file.write_text("".join(json.dumps(line) + "\n" for line in history))
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder / "tensorboard", purge_step=len(history) + 1)

    def write(self, line: Mapping[str, float]) -> None:
        """Append an epoch's metrics; "epoch" is among them."""
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.writer is not None:
            for name, value in line.items():
                self.writer.add_scalar(name, value, int(line["epoch"]))
            self.writer.flush()
