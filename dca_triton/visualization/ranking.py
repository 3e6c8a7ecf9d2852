"""Pictures of a ranking: queries with their nearest gallery photos, and curves of cumulative matches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..arguments import raise_faults
from ..files import path_faults
from .curves import CURVES_INCHES, OTHER_COLORS
from .gallery import Framed, draw_rows, html_rows, save, too_many, write_page
from .output import SUFFIXES, png_of
from .overlays import DPI
from .text import drawable

TITLE = "Nearest gallery photos"
NOTE = "solid green: the query's identity; dashed orange: another one"
ABOUT = (
    "Each row is a query, followed by its nearest gallery photos. Solid green frame: the query's identity. "
    "Dashed orange frame: another one. Photos of the query's identity from its own camera are left out."
)


class RankedQuery(NamedTuple):
    """A query, a caption that may have several lines, and its nearest gallery photos, the nearest first."""

    photo: Path
    caption: str
    found: Sequence[Framed]


def draw_rankings(
    queries: Sequence[RankedQuery],
    output: str | Path,
    curve: Sequence[float] = (),
    summary: str = "",
) -> None:
    """Draw queries with their nearest gallery photos, right and wrong ones framed, into one file.

    Args:
        queries: At least one.
        output: A .png, which holds up to 32 queries of 32 photos, or a self-contained .html. It is written
            whole or not at all.
        curve: The shares of `cmc_curve`, drawn above the rows of an .html; none by default. `cmc_curves`
            draws them as a .png.
        summary: A sentence below the title of an .html, for example the scores.

    Raises:
        ValueError: Arguments that do not fit, every reason at once, or a photo that cannot be read.
        OSError: `output` cannot be written.
    """
    output = Path(output)
    longest = max((len(query.found) for query in queries), default=0)
    faults = path_faults("output", output, SUFFIXES)
    faults += too_many(output, {"the queries": len(queries), "the photos of a query": longest})
    if not queries:
        faults.append("queries must hold at least one, got none")
    raise_faults(faults)
    rows = [[Framed(query.photo, query.caption), *query.found] for query in queries]
    if output.suffix == ".png":
        heads = ["query", *(str(rank) for rank in range(1, max(map(len, rows))))]
        save([draw_rows(rows, NOTE, heads)], output)
        return
    pictures = [] if not curve else [("CMC curve", png_of(_curves({"": curve})))]
    write_page(output, TITLE, [ABOUT, summary], pictures, html_rows(rows, "query"))


def cmc_curves(curves: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Draw curves of cumulative matches, one for each name, into one PNG of 576 x 456 pixels.

    Args:
        curves: For each name, such as a run's, the shares in 0..1 for the ranks 1, 2, ...; see
            `dca_triton.evaluation.cmc_curve`.
        path: The PNG; it is written whole or not at all.

    Raises:
        ValueError: There is no curve, or one is empty or leaves 0..1.
        OSError: `path` cannot be written.
    """
    bad = [name for name, shares in curves.items() if not shares or not all(0 <= s <= 1 for s in shares)]
    if bad or not curves:
        raise_faults([f"curves must hold shares in 0..1 for each name, got others for {bad or 'no name'}"])
    save([_curves(curves)], Path(path))


def _curves(curves: Mapping[str, Sequence[float]]) -> Figure:
    figure = Figure(figsize=CURVES_INCHES, dpi=DPI, layout="constrained")
    axis: Axes = figure.subplots()
    for (name, shares), color in zip(curves.items(), _colors(len(curves)), strict=True):
        ranks = range(1, len(shares) + 1)
        told = ", ".join(f"{100 * shares[k - 1]:.1f} %" for k in (1, 5, 10) if k <= len(shares))
        label = drawable(f"{name}: {told}" if name else told)
        axis.plot(ranks, shares, color=color, label=label, drawstyle="steps-post")
    longest = max(map(len, curves.values()))
    axis.set_xscale("log")
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= longest]
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.set_xticks([], minor=True)
    axis.set_xlim(0.94, longest * 1.06)
    lowest = min(shares[0] for shares in curves.values())
    axis.set_ylim(max(0.0, int(lowest * 10 - 0.5) / 10), 1.01)
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
    axis.set_title("Cumulative match characteristic", fontsize=12, weight="bold")
    axis.set_xlabel("rank")
    axis.set_ylabel("queries with a right photo by then")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        title="rank-1, rank-5, rank-10", loc="lower right", framealpha=0.85, edgecolor="none", fontsize=9
    )
    return figure


def _colors(count: int) -> list[str]:
    first = ("#0072b2", "#d55e00", "#009e73", "#222222", *OTHER_COLORS)
    return [first[i % len(first)] for i in range(count)]
