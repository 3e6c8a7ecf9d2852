"""Pictures of a training run: its curves, and what rollout and the local attention look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

LOSSES = ("sa_loss", "glca_loss", "pwca_loss", "total_loss")
NO_SCORES = ("epoch", "lr", "seconds")
DPI = 120
CURVES_INCHES = (4.8, 3.8)  # of one panel
CELL_INCHES, GAP_INCHES, TITLE_INCHES, HEAD_INCHES, FOOT_INCHES = 2.2, 0.12, 0.36, 0.35, 0.6
BRANCH_COLOURS = {"sa": "#0072b2", "glca": "#d55e00", "pwca": "#009e73", "total": "#222222", "sum": "#222222"}
OTHER_COLOURS = ("#cc79a7", "#8c6d1f", "#56b4e9", "#7f7f7f", "#6a3d9a", "#e0b000")
HEAT = "inferno"
OUTLINE = "#ffd21f"
DARKENED = 0.3  # brightness of what the local attention leaves out


def training_curves(metrics: Sequence[Mapping[str, object]], path: str | Path) -> None:
    """Draw losses, loss weights and evaluation scores against the epoch, one panel each, into one PNG.

    Args:
        metrics: One record per epoch with the number "epoch". `sa_loss`, `glca_loss`, `pwca_loss` and
            `total_loss` are losses, `*_loss_weight` weights, and every other number a score, but for `lr`,
            `seconds` and `*_loss_log_var` (the weights say the same). A record may lack any of them, as when
            evaluation is rarer than training. A panel without a curve is left out.
        path: The PNG, 120 dots per inch, 576 pixels wide per panel and 456 high.

    Raises:
        ValueError: `metrics` has nothing to draw, or a record no epoch.
    """
    lost = [i for i, record in enumerate(metrics) if not _is_number(record.get("epoch"))]
    if lost:
        raise ValueError(f'metrics must hold a number "epoch" in every record, records {lost[:5]} do not')
    names = {name: None for record in metrics for name, value in record.items() if _is_number(value)}
    weights = [name for name in names if name.endswith("_loss_weight")]
    scores = [
        name
        for name in names
        if name not in (*LOSSES, *weights, *NO_SCORES) and not name.endswith("_loss_log_var")
    ]
    panels = {
        "Loss": [name for name in LOSSES if name in names],
        "Weight of the loss": weights,
        "Evaluation score": scores,
    }
    drawn = {title: curves for title, curves in panels.items() if curves}
    if not drawn:
        raise ValueError(
            f"metrics must hold numbers besides epoch, lr and seconds, its {len(metrics)} records hold none"
        )
    width, height = CURVES_INCHES
    figure = Figure(figsize=(width * len(drawn), height), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, drawn.items(), strict=True):
        _panel(axis, title, curves, metrics)
    figure.savefig(path, format="png")


def rollout_overlays(
    images: Tensor,
    rows: Tensor,
    selected: Tensor,
    grid: tuple[int, int],
    num_prefix: int,
    titles: Sequence[str],
    path: str | Path,
) -> None:
    """Draw a contact sheet: per photo the photo, its rollout as heat, and its local patches, as one PNG.

    Args:
        images: (S, 3, h, w), floating point in 0..1.
        rows: (S, N) rollout of the class token (DCAL, section 3.1), N = num_prefix + gh * gw.
        selected: (S, 1 + R) token rows of the local queries, the class token's among them, int64 or int32
            in 0..N-1.
        grid: (gh, gw) patches.
        num_prefix: P, tokens before the patches, at least 1.
        titles: One per photo.
        path: The PNG, 120 dots per inch.

    Raises:
        ValueError: Shapes, dtypes or values that do not fit, every reason at once.
    """
    _check_overlays(images, rows, selected, grid, num_prefix, titles)
    photos, rows, selected = images.detach().float().cpu(), rows.detach().float().cpu(), selected.cpu()
    count, size = len(photos), (photos.shape[2], photos.shape[3])

    # Explicit inches: a layout engine would push the columns apart for a title longer than its photo.
    cell_height = CELL_INCHES * size[0] / size[1]
    width = 3 * CELL_INCHES + 4 * GAP_INCHES
    height = HEAD_INCHES + count * (cell_height + TITLE_INCHES) + FOOT_INCHES
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.subplots(
        count,
        3,
        squeeze=False,
        gridspec_kw={
            "left": GAP_INCHES / width,
            "right": 1 - GAP_INCHES / width,
            "top": 1 - (HEAD_INCHES + TITLE_INCHES) / height,
            "bottom": FOOT_INCHES / height,
            "wspace": GAP_INCHES / CELL_INCHES,
            "hspace": TITLE_INCHES / cell_height,
        },
    )
    extent = (0, size[1], size[0], 0)  # pixel edges at whole numbers, as in `patch_boxes`
    for line, photo, row, tokens, title in zip(axes, photos, rows, selected, titles, strict=True):
        boxes = patch_boxes(tokens, grid, size, num_prefix).tolist()
        dark = photo * DARKENED
        for left, top, right, bottom in boxes:
            dark[:, top:bottom, left:right] = photo[:, top:bottom, left:right]
            line[2].add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=OUTLINE, linewidth=1)
            )
        for axis, picture in zip(line, (photo, photo, dark), strict=True):
            axis.imshow(picture.permute(1, 2, 0).numpy(), extent=extent)
            axis.set_axis_off()
        heat = heat_map(row, grid, size, num_prefix).numpy()
        line[1].imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.6, extent=extent)
        line[0].set_title(title, loc="left", fontsize=9, pad=4, parse_math=False)

    local = f"{selected.shape[1] - 1} local patches"
    for column, head in enumerate(("photo", "rollout", local)):
        centre = (GAP_INCHES + CELL_INCHES / 2 + column * (CELL_INCHES + GAP_INCHES)) / width
        figure.text(centre, 1 - 0.2 / height, head, ha="center", va="center", weight="bold", fontsize=11)
    box = axes[-1, 1].get_position()
    bar = figure.add_axes((box.x0, 0.4 / height, box.width, 0.1 / height))
    colours = ScalarMappable(Normalize(0, 1), HEAT)
    figure.colorbar(colours, cax=bar, orientation="horizontal", ticks=[0, 1])
    bar.set_xticks([0, 1], ["least", "most of the photo's patches"], fontsize=8)
    least, most = bar.get_xticklabels()
    least.set_horizontalalignment("left")
    most.set_horizontalalignment("right")
    figure.savefig(path, format="png")


def heat_map(row: Tensor, grid: tuple[int, int], size: tuple[int, int], num_prefix: int) -> Tensor:
    """The patches' part of one rollout row (N,), stretched to 0..1, bilinear over `size`: (h, w) float32.

    A row that is the same for all patches gives zeros.
    """
    patches = row[num_prefix:].float().reshape(1, 1, *grid)
    patches = patches - patches.min()
    # Divided only when there is a contrast; rollout values are tiny, so no epsilon is safe.
    patches = patches / patches.max() if patches.max() > 0 else patches
    return F.interpolate(patches, size=size, mode="bilinear", align_corners=False)[0, 0]


def patch_boxes(selected: Tensor, grid: tuple[int, int], size: tuple[int, int], num_prefix: int) -> Tensor:
    """The pixels of the selected patches: (R, 4) int64 of left, top, right, bottom, the latter two exclusive.

    `selected` (1 + R,) holds token rows in any order; prefix tokens have no place in a photo: left out.
    """
    patch = selected[selected >= num_prefix].long() - num_prefix
    (height, width), (down, across) = size, grid
    y, x = patch // across, patch % across
    return torch.stack(
        (x * width // across, y * height // down, (x + 1) * width // across, (y + 1) * height // down), dim=1
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _panel(axis: Axes, title: str, curves: Sequence[str], metrics: Sequence[Mapping[str, object]]) -> None:
    spare = list(OTHER_COLOURS)
    branches = dict(BRANCH_COLOURS)
    for name in curves:
        points = [(r["epoch"], r[name]) for r in metrics if _is_number(r.get(name))]
        epochs, values = zip(*points, strict=True)
        colour = branches.pop(name.split("_")[0], None) or spare[0]
        if colour == spare[0]:
            spare.append(spare.pop(0))
        label = f"{name.removesuffix('_loss_weight').removesuffix('_loss')}: {values[-1]:.4g}"
        axis.plot(
            epochs,
            values,
            color=colour,
            label=label,
            linewidth=1.5,
            marker="o" if len(points) <= 40 else "",
            markersize=3,
        )
    axis.set_title(title, fontsize=12, weight="bold")
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(title="last value", frameon=False, fontsize=9, title_fontsize=9)


def _check_overlays(
    images: Tensor,
    rows: Tensor,
    selected: Tensor,
    grid: tuple[int, int],
    num_prefix: int,
    titles: Sequence[str],
) -> None:
    faults = []
    count, tokens = len(titles), num_prefix + grid[0] * grid[1]
    if not count:
        faults.append("titles must name at least one photo, is empty")
    if num_prefix < 1 or min(grid) < 1:
        faults.append(f"num_prefix and grid must be at least 1, are {num_prefix} and {grid}")
    if images.ndim != 4 or tuple(images.shape[:2]) != (count, 3) or not images.numel():
        faults.append(f"images must be ({count}, 3, h, w) for {count} titles, is {tuple(images.shape)}")
    elif not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
        faults.append(
            f"images must be floating point in 0..1, is {images.dtype} in {images.min():g}..{images.max():g}"
        )
    if tuple(rows.shape) != (count, tokens):
        faults.append(
            f"rows must be {(count, tokens)} for grid {grid} and num_prefix {num_prefix}, "
            f"is {tuple(rows.shape)}"
        )
    elif not rows.is_floating_point() or not bool(rows.isfinite().all()):
        faults.append(f"rows must be floating point and finite, is {rows.dtype} or holds inf or NaN")
    if selected.ndim != 2 or len(selected) != count or not selected.shape[1]:
        faults.append(f"selected must be ({count}, 1 + R), is {tuple(selected.shape)}")
    elif selected.dtype not in (torch.int64, torch.int32):
        faults.append(f"selected must be int64 or int32, is {selected.dtype}")
    elif selected.numel() and not bool(((selected >= 0) & (selected < tokens)).all()):
        faults.append(
            f"selected must lie in 0..{tokens - 1}, is in {int(selected.min())}..{int(selected.max())}"
        )
    if faults:
        raise ValueError("; ".join(faults))
