"""A training run's losses, loss weights and scores against the epoch."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..arguments import raise_faults
from ..branches import LOSSES, TRAINING_METRICS
from ..files import atomic_write
from .overlays import DPI
from .text import drawable

NOT_SCORES = {*TRAINING_METRICS, "seconds", "queries", "matched_queries"}
CURVES_INCHES = (4.8, 3.8)  # of one panel
BRANCH_COLORS = {"sa": "#0072b2", "glca": "#d55e00", "pwca": "#009e73", "total": "#222222", "sum": "#222222"}
OTHER_COLORS = ("#cc79a7", "#8c6d1f", "#56b4e9", "#7f7f7f", "#6a3d9a", "#e0b000")


def training_curves(metrics: Sequence[Mapping[str, object]], path: str | Path) -> None:
    """Draw losses, loss weights and evaluation scores against the epoch, one panel each, into one PNG.

    Args:
        metrics: One record per epoch with the number "epoch". `sa_loss`, `glca_loss`, `pwca_loss` and
            `total_loss` are losses, `*_loss_weight` are weights, and every other number is a score, except
            `lr`, `loss_weights_lr`, `seconds`, `skipped_steps`, counts of queries and `*_loss_log_var` (the
            weights show the same). A record may lack any of them, for example scores if evaluation is rarer
            than epochs. An empty panel is left out.
        path: The PNG, 120 dots per inch, 576 pixels wide per panel and 456 high. It is written whole or not
            at all.

    Raises:
        ValueError: `metrics` holds nothing to draw, or a record without an epoch.
        OSError: `path` cannot be written.
    """
    lost = [i for i, record in enumerate(metrics) if not _is_number(record.get("epoch"))]
    if lost:
        raise_faults([f'metrics must hold a number "epoch" in every record, got none in records {lost[:5]}'])
    names = {name: None for record in metrics for name, value in record.items() if _is_number(value)}
    weights = [name for name in names if name.endswith("_loss_weight")]
    scores = [
        name for name in names if name not in (*weights, *NOT_SCORES) and not name.endswith("_loss_log_var")
    ]
    panels = {
        "Loss": [name for name in LOSSES if name in names],
        "Weight of the loss": weights,
        "Evaluation score": scores,
    }
    drawn = {title: curves for title, curves in panels.items() if curves}
    if not drawn:
        raise_faults([f"metrics must hold a loss, a weight or a score, got none in {len(metrics)} records"])
    width, height = CURVES_INCHES
    figure = Figure(figsize=(width * len(drawn), height), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, drawn.items(), strict=True):
        _panel(axis, title, curves, metrics)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _panel(axis: Axes, title: str, curves: Sequence[str], metrics: Sequence[Mapping[str, object]]) -> None:
    spare, branches = itertools.cycle(OTHER_COLORS), dict(BRANCH_COLORS)
    for name in curves:
        points = [(r["epoch"], r[name]) for r in metrics if _is_number(r.get(name))]
        epochs, values = zip(*points, strict=True)
        color = branches.pop(name.split("_")[0], None) or next(spare)
        label = f"{name.removesuffix('_loss_weight').removesuffix('_loss')}: {values[-1]:.4g}"
        axis.plot(
            epochs,
            values,
            color=color,
            label=drawable(label),
            linewidth=1.5,
            marker="o" if len(points) <= 40 else "",
            markersize=3,
        )
    axis.set_title(title, fontsize=12, weight="bold")
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(title="last value", framealpha=0.85, edgecolor="none", fontsize=9, title_fontsize=9)
