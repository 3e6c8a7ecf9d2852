"""Positions of weights of another image size, resampled by timm's functions to the model's size."""

import math

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor

Grid = tuple[int, int]  # patches in height and width


def grid_of(patches: int, *guesses: Grid | None) -> Grid | None:
    """The grid of so many patches: the first guess that has as many, or a square; None if there is none."""
    side = math.isqrt(max(0, patches))
    grids = [grid for grid in (*guesses, (side, side)) if grid is not None]
    return next((grid for grid in grids if math.prod(grid) == patches > 0), None)


def resampled_embedding(value: Tensor, prefix: int, old: Grid | None, new: Grid) -> Tensor | None:
    """Position embeddings (1, prefix + N, C), those of other tokens first, for another grid of patches.

    None if the grids are the same, or if the old one is unknown.
    """
    if old is None or old == new:
        return None
    return resample_abs_pos_embed(value, list(new), list(old), num_prefix_tokens=prefix)


def resampled_table(value: Tensor, rows: int, known: Grid | None, new: Grid) -> Tensor | None:
    """A table (R, H) of a bias for each relative position in a window, for another window.

    Args:
        value: The table of the weights.
        rows: R of the model's table: (2h - 1)(2w - 1) for its window (h, w), and those of a class token.
        known: The window that the weights are said to have. They have it if its table has as many rows;
            otherwise they have the model's window or a square, the first whose table has as many.
        new: The model's window.

    Returns:
        The resampled table; None if the windows are the same, or if the old one is unknown.
    """
    of_class_token = rows - _distances(new)
    side = (math.isqrt(max(0, len(value) - of_class_token)) + 1) // 2
    windows = [window for window in (known, new, (side, side)) if window is not None]
    old = next((w for w in windows if _distances(w) + of_class_token == len(value)), None)
    if old is None or old == new:
        return None
    return resize_rel_pos_bias_table(value, new, (rows, value.shape[1]), old)


def _distances(window: Grid) -> int:
    """How many relative positions there are in a window."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)
