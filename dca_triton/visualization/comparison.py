"""Scores of several variants over seeds, and their differences to the first variant, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..arguments import raise_faults
from ..files import atomic_write
from .overlays import DPI
from .text import drawable

Bar = tuple[float, float | None]  # a mean, and the half-length of its error bar if it has one
PANEL_INCHES, ROW_INCHES, MARGIN_INCHES = 4.2, 0.42, 1.5
MEAN_COLOR, SEED_COLOR, DIFFERENCE_COLOR = "#222222", "#0072b2", "#d55e00"


def comparison(
    scores: Mapping[str, Sequence[float]],
    means: Mapping[str, Bar],
    differences: Mapping[str, Bar],
    path: str | Path,
    label: str = "score, %",
) -> None:
    """Draw two panels, a row for each variant: its scores with their mean, and its difference to the first.

    Args:
        scores: The score of each seed, in 0..1, by variant; drawn as points, in percent.
        means: The mean over the seeds and the standard deviation, by variant.
        differences: The mean of the paired differences to the first variant and its standard error, by
            variant, without the first.
        path: The PNG, 120 dots per inch. It is written whole or not at all.
        label: The name of the score, below the first panel.

    Raises:
        ValueError: There is no variant.
        OSError: `path` cannot be written.
    """
    if not scores:
        raise_faults(["scores must hold at least one variant, got none"])
    names = list(scores)
    size = (2 * PANEL_INCHES, MARGIN_INCHES + ROW_INCHES * len(names))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, name in enumerate(names):
        values = [100 * score for score in scores[name]]
        left.plot(values, [row] * len(values), "o", color=SEED_COLOR, alpha=0.6, markersize=5)
        if name in means:
            _bar(left, row, means[name], MEAN_COLOR)
        if name in differences:
            _bar(right, row, differences[name], DIFFERENCE_COLOR)
    right.axvline(0, color="#7f7f7f", linewidth=1)
    left.set_yticks(range(len(names)), [drawable(name) for name in names], parse_math=False)
    left.set_ylim(len(names) - 0.5, -0.5)  # the first variant is the top row
    left.set_title("Mean and SD over seeds", fontsize=12, weight="bold")
    left.set_xlabel(drawable(label))
    right.set_title("Paired difference and its SE", fontsize=12, weight="bold")
    right.set_xlabel(drawable(f"points above {names[0]}"), parse_math=False)
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _bar(axis: Axes, row: int, bar: Bar, color: str) -> None:
    mean, half = bar
    axis.errorbar(
        100 * mean,
        row,
        xerr=None if half is None else 100 * half,
        fmt="D",
        color=color,
        markersize=6,
        capsize=4,
        linewidth=1.5,
    )
