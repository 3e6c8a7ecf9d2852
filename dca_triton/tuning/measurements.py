"""The table of a GPU while it is measured. An interruption loses nothing; no other table is replaced."""

import json
from pathlib import Path
from tempfile import TemporaryFile

from ..ops import implementations, launch_table
from ..ops.launch_table import AttentionKey, Config, Key


class Measurements:
    """Launches and times of a GPU's table, and those that are measured now.

    The latter are in `<output>.unfinished` until `end`.

    Args:
        output: The table's file.
        source: What the table says it is from; other files are refused.

    Raises:
        ValueError: `output` or the unfinished file is neither new nor from this source.
        OSError: `output` cannot be written.
    """

    def __init__(self, output: Path, source: str) -> None:
        self.output, self.source = output, source
        self.unfinished = output.with_name(f"{output.name}.unfinished")
        self.table, self.times = self._read("output", output)
        self.new_table, self.new_times = self._read("<output>.unfinished", self.unfinished)
        _check_writable(output)

    def has_launch(self, key: Key, n: int) -> bool:
        """Whether this launch is measured already."""
        return n in self.new_table.get(key, {})

    def has_times(self, key: AttentionKey) -> bool:
        """Whether the implementations of this attention are measured already."""
        return key in self.new_times

    def add_launch(self, key: Key, n: int, config: Config) -> None:
        """Keep the fastest configuration of a launch."""
        self.new_table.setdefault(key, {})[n] = config
        self._keep()

    def add_times(self, key: AttentionKey, ms: dict[str, float]) -> None:
        """Keep the times of the implementations of an attention."""
        self.new_times[key] = ms
        self._keep()

    def publish(self) -> None:
        """Write the table with all that is measured; launches read it from now on."""
        for key, by_length in self.new_table.items():
            self.table[key] = self.table.get(key, {}) | by_length
        self.times |= self.new_times
        if self.table:
            launch_table.write(self.output, self.source, self.table, self.times)
        launch_table.forget()

    def end(self) -> None:
        """Everything is measured: the next run begins from the start."""
        self.unfinished.unlink(missing_ok=True)

    def sentences(self) -> list[str]:
        """For each attention measured now, which implementation `auto` takes, and why."""
        return [implementations.sentence(key, ms) for key, ms in self.new_times.items()]

    def _keep(self) -> None:
        launch_table.write(self.unfinished, self.source, self.new_table, self.new_times)

    def _read(self, name: str, path: Path) -> tuple[launch_table.Table, launch_table.Times]:
        if not path.exists():
            return {}, {}
        try:
            if json.loads(path.read_text())["source"] == self.source:
                return launch_table.read(path), launch_table.read_times(path)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise ValueError(f"{name} must be a new file or a table {self.source}, got {path}")


def _check_writable(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise OSError(f"output must be a file that can be written, got {output} ({error})") from error
