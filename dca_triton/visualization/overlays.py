"""Draw rollout and local attention over photos."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..arguments import Rule, integer, raise_faults, violations
from ..files import atomic_write
from ..model.overlap import Overlap
from ..tensor_arguments import row_violations, tensor_violations
from .text import drawable

DPI = 120
CELL_INCHES, GAP_INCHES, TITLE_INCHES, HEAD_INCHES, FOOT_INCHES = 2.2, 0.12, 0.36, 0.35, 0.6
HEAT = "inferno"
OUTLINE = "#ffd21f"
DARKENED = 0.3  # brightness of patches that are not selected


def _is_grid(value: Any) -> bool:
    fits, _ = integer(1)
    return isinstance(value, tuple) and len(value) == 2 and all(map(fits, value))


VALUE_RULES: dict[str, Rule] = {
    "titles": (lambda v: len(v) > 0, "at least one text"),
    "num_prefix": integer(0),
    "grid": (_is_grid, "a tuple of two integers >= 1"),
}
TENSOR_RULES = {
    "images": "floating-point (S, 3, h, w)",
    "rows": "floating-point (S, N)",
    "selected": "int64 or int32 (S, M)",
}


def rollout_overlays(
    images: Tensor,
    rows: Tensor,
    selected: Tensor,
    grid: tuple[int, int],
    num_prefix: int,
    titles: Sequence[str],
    path: str | Path,
    overlap: Overlap | None = None,
) -> None:
    """Draw a contact sheet as one PNG: each photo, its rollout as heat, and its local patches.

    Args:
        images: (S, 3, h, w), floating point in 0..1.
        rows: (S, N) rollout (DCAL, section 3.1), N = num_prefix + gh * gw.
        selected: (S, M) token rows of the local queries, int64 or int32 in 0..N-1. Rows of tokens before the
            patches, such as the class token's, are not drawn and not counted.
        grid: (gh, gw) patches.
        num_prefix: P, tokens before the patches, at least 0.
        titles: One title per photo.
        path: The PNG, 120 dots per inch. It is written whole or not at all.
        overlap: The geometry of overlapping patches, a model's `backbone.overlap`; by default patches lie
            side by side and fill the photo.

    Raises:
        ValueError: Shapes, dtypes or values that do not fit, every reason at once.
        OSError: `path` cannot be written.
    """
    _check_overlays(locals())
    heads = ("photo", "rollout", patches_head(selected[0], num_prefix))
    figure, axes = contact_sheet(len(images), heads, (images.shape[2], images.shape[3]))
    for line, photo, row, tokens, title in zip(axes, images, rows, selected, titles, strict=True):
        draw_photo(line, photo, row, tokens, grid, num_prefix, title, overlap)
    heat_scale(figure, axes[-1, 1])
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def patches_head(selected: Tensor, num_prefix: int) -> str:
    """The head of the column of local patches, which counts those of one photo (M,)."""
    return f"local patches: {int((selected >= num_prefix).sum())}"


def contact_sheet(count: int, heads: Sequence[str], size: tuple[int, int]) -> tuple[Figure, np.ndarray]:
    """An empty figure and its (count, len(heads)) axes, each shaped as a photo of `size` (h, w)."""
    # Explicit inches: a layout engine would push the columns apart for a title longer than its photo.
    cell_height = CELL_INCHES * size[0] / size[1]
    width = len(heads) * (CELL_INCHES + GAP_INCHES) + GAP_INCHES
    height = HEAD_INCHES + count * (cell_height + TITLE_INCHES) + FOOT_INCHES
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.subplots(
        count,
        len(heads),
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
    for column, head in enumerate(heads):
        center = (GAP_INCHES + CELL_INCHES / 2 + column * (CELL_INCHES + GAP_INCHES)) / width
        figure.text(center, 1 - 0.2 / height, head, ha="center", va="center", weight="bold", fontsize=11)
    return figure, axes


def draw_photo(
    line: Sequence[Axes],
    photo: Tensor,
    row: Tensor,
    tokens: Tensor,
    grid: tuple[int, int],
    num_prefix: int,
    title: str,
    overlap: Overlap | None = None,
) -> None:
    """Photo (3, h, w), rollout row (N,) as heat and selected tokens (M,) on the first three axes."""
    photo, row, tokens = photo.detach().float().cpu(), row.detach().float().cpu(), tokens.cpu()
    size = (photo.shape[1], photo.shape[2])
    dark = photo * DARKENED
    for left, top, right, bottom in patch_boxes(tokens, grid, size, num_prefix, overlap).tolist():
        dark[:, top:bottom, left:right] = photo[:, top:bottom, left:right]
        line[2].add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=OUTLINE, linewidth=1)
        )
    for axis, picture in zip(line[:3], (photo, photo, dark), strict=True):
        show_picture(axis, picture)
    heat = heat_map(row, grid, size, num_prefix, overlap).numpy()
    line[1].imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.6, extent=(0, size[1], size[0], 0))
    line[0].set_title(drawable(title), loc="left", fontsize=9, pad=4, parse_math=False)


def show_picture(axis: Axes, picture: Tensor) -> None:
    """A picture (3, h, w) in 0..1 without axes; pixel edges lie at whole numbers, as in `patch_boxes`."""
    axis.imshow(picture.permute(1, 2, 0).numpy(), extent=(0, picture.shape[2], picture.shape[1], 0))
    axis.set_axis_off()


def heat_scale(figure: Figure, above: Axes) -> None:
    """The color scale of the heat, in the foot of the figure, below the last axes of a column."""
    height, box = figure.get_size_inches()[1], above.get_position()
    bar = figure.add_axes((box.x0, 0.4 / height, box.width, 0.1 / height))
    colors = ScalarMappable(Normalize(0, 1), HEAT)
    figure.colorbar(colors, cax=bar, orientation="horizontal", ticks=[0, 1])
    bar.set_xticks([0, 1], ["least", "most of the photo's patches"], fontsize=8)
    least, most = bar.get_xticklabels()
    least.set_horizontalalignment("left")
    most.set_horizontalalignment("right")


def heat_map(
    row: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    num_prefix: int,
    overlap: Overlap | None = None,
) -> Tensor:
    """The patches' part of one rollout row (N,), stretched to 0..1, bilinear over `size`: (h, w) float32.

    A row with equal values for all patches gives zeros. Each value lies at the center of its patch. Pixels
    in no patch, which only overlapping patches leave, are NaN. Other arguments as in `rollout_overlays`.

    Raises:
        ValueError: N is not num_prefix plus the number of patches.
    """
    sizes = {"N": num_prefix + grid[0] * grid[1]}
    raise_faults(tensor_violations({"row": row}, {"row": "floating-point (N,)"}, sizes))
    patches = row[num_prefix:].float().reshape(1, 1, *grid)
    patches = patches - patches.min()
    # Divide only if there is contrast; rollout values are tiny, so no epsilon is safe.
    patches = patches / patches.max() if patches.max() > 0 else patches
    if overlap is None:
        return F.interpolate(patches, size=size, mode="bilinear", align_corners=False)[0, 0]
    down = _tents(size[0], grid[0], overlap.height, overlap.stride)
    across = _tents(size[1], grid[1], overlap.width, overlap.stride)
    heat = down @ patches[0, 0] @ across.T
    heat[(grid[0] - 1) * overlap.stride + overlap.height :] = torch.nan
    heat[:, (grid[1] - 1) * overlap.stride + overlap.width :] = torch.nan
    return heat


def _tents(pixels: int, patches: int, width: int, stride: int) -> Tensor:
    """The weight of each patch in each pixel (pixels, patches): linear between the patches' centers."""
    place = ((torch.arange(pixels) + 0.5 - width / 2) / stride).clamp(0, patches - 1)
    return (1 - (place[:, None] - torch.arange(patches)).abs()).clamp(min=0)


def patch_boxes(
    selected: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    num_prefix: int,
    overlap: Overlap | None = None,
) -> Tensor:
    """The pixels of the selected patches: (R, 4) int64 of left, top, right, bottom, the latter two exclusive.

    `selected` (M,) holds token rows in any order; prefix tokens have no place in a photo and are left
    out.
    """
    patch = selected[selected >= num_prefix].long() - num_prefix
    (height, width), (down, across) = size, grid
    y, x = patch // across, patch % across
    if overlap is not None:
        left, top = x * overlap.stride, y * overlap.stride
        return torch.stack((left, top, left + overlap.width, top + overlap.height), dim=1)
    return torch.stack(
        (x * width // across, y * height // down, (x + 1) * width // across, (y + 1) * height // down), dim=1
    )


def _check_overlays(arguments: dict[str, Any]) -> None:
    faults = violations(arguments, VALUE_RULES)
    sizes = {}
    if not faults:
        tokens = arguments["num_prefix"] + math.prod(arguments["grid"])
        sizes = {"S": len(arguments["titles"]), "N": tokens}
    raise_faults(faults + tensor_violations(arguments, TENSOR_RULES, sizes))
    images, rows, selected = (arguments[name] for name in TENSOR_RULES)
    outside = ((selected < 0) | (selected >= tokens)).any(1)
    raise_faults(
        [
            *row_violations("images", "in 0..1", ~((images >= 0) & (images <= 1)).flatten(1).all(1)),
            *row_violations("rows", "finite", ~rows.isfinite().all(1), "inf or NaN"),
            *row_violations("selected", f"in 0..{tokens - 1}", outside),
        ]
    )
