"""Progress on stderr: a bar on a terminal or in a notebook, otherwise a line every half minute."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS = 30.0
LINE = "{desc}: {n_fmt}/{total_fmt} {unit} in {elapsed}, {remaining} left{postfix}"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit} in {elapsed}{postfix}"


class ProgressLines(tqdm):
    """A tqdm for logs: writes whole lines, at most one in `SECONDS`, and the last one if it has `leave`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, mininterval=SECONDS, maxinterval=SECONDS, gui=True)
        if not self.disable:
            self.bar_format = LINE_WITHOUT_TOTAL if self.total is None else LINE

    def display(self, *_: Any, **__: Any) -> bool:
        self.fp.write(str(self) + "\n")
        self.fp.flush()
        return True

    def clear(self, *_: Any, **__: Any) -> None:
        """Do nothing: written lines stay."""

    def close(self) -> None:
        if not self.disable and self.leave and self.n > self.last_print_n:
            self.display()
        super().close()


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    total: float | None = None,
    unit: str = "it",
    initial: int = 0,
    leave: bool = True,
    disable: bool = False,
) -> tqdm:
    """Show the progress of a loop; every progress bar of the package is made here.

    Args:
        iterable: Counted as it is iterated; if None, call the result's `update`.
        desc: A word or two about the loop.
        total: The number of items; by default the length of `iterable` if it has one.
        unit: The name of an item.
        initial: The number of items that were done before.
        leave: Keep the bar, or write a last line, at the end.
        disable: Show nothing.
    """
    options: dict[str, Any] = {"desc": desc, "total": total, "unit": unit, "initial": initial, "leave": leave}
    if sys.stderr is None:  # a program without a console
        return tqdm(iterable, disable=True, **options)
    bar = sys.stderr.isatty() or "ipykernel" in sys.modules
    return (tqdm if bar else ProgressLines)(iterable, disable=disable, **options)
