"""Pictures are PNGs of the documented size, and heat and boxes are on the right patches."""

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dca_triton.model.overlap import Overlap
from dca_triton.visualization import heat_map, patch_boxes, rollout_overlays, training_curves

GRID, SIZE, PREFIX = (3, 5), (24, 50), 2


OVERLAP = Overlap(16, 16, 12)  # 3 x 2 patches in 40 x 36 pixels


def png_size(path: Path) -> tuple[int, int]:
    """Width and height from the header, after the signature that makes a file a PNG."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def record(epoch: int) -> dict[str, object]:
    losses = {"sa_loss": 3.0 / epoch, "glca_loss": 2.0 / epoch, "pwca_loss": 4.0 / epoch, "total_loss": -1.0}
    weights = {"sa_loss_weight": 1.0, "sa_loss_log_var": 9.0}
    return {"epoch": epoch, "lr": 7.0, "seconds": 8.0, "note": "text", "best": True, **losses, **weights}


def overlays(**changed: Any) -> dict[str, Any]:
    """Arguments that fit, but for those changed."""
    tokens = PREFIX + GRID[0] * GRID[1]
    return {
        "images": torch.rand(2, 3, *SIZE, dtype=torch.float64),
        "rows": torch.rand(2, tokens),
        "selected": torch.tensor([[0, 2, 9], [0, 16, 3]]),
        "grid": GRID,
        "num_prefix": PREFIX,
        "titles": ["a_1 $x", "b"],
        **changed,
    }


def test_every_curve_is_on_its_panel(tmp_path: Path, figures: list[Figure]) -> None:
    metrics = [
        record(1),
        {**record(2), "sa_top1": 0.5, "mAP": 0.25},
        record(3),
        {**record(4), "sa_top1": 0.75},
    ]
    training_curves(metrics, tmp_path / "curves.png")
    assert png_size(tmp_path / "curves.png") == (3 * 576, 456)
    losses, weights, scores = (axis.get_lines() for axis in figures[0].axes)
    assert [line.get_label() for line in losses] == ["sa: 0.75", "glca: 0.5", "pwca: 1", "total: -1"]
    assert [line.get_label() for line in weights] == ["sa: 1"]
    assert [line.get_label() for line in scores] == ["sa_top1: 0.75", "mAP: 0.25"]
    assert np.asarray(losses[0].get_xydata()).tolist() == [[1, 3], [2, 1.5], [3, 1], [4, 0.75]]
    assert np.asarray(scores[0].get_xydata()).tolist() == [[2, 0.5], [4, 0.75]]
    assert losses[0].get_color() == weights[0].get_color() == scores[0].get_color()


def test_curves_of_one_panel_differ_in_color(tmp_path: Path, figures: list[Figure]) -> None:
    scores = {name: 0.5 for name in ("sa_top1", "sa_top5", "sum_top1", "mAP", "rank1", "rank5")}
    training_curves([{"epoch": 0, **scores}], tmp_path / "curves.png")
    assert png_size(tmp_path / "curves.png") == (576, 456)
    assert len({line.get_color() for line in figures[0].axes[0].get_lines()}) == len(scores)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([], "got none in 0 records"),
        ([{"epoch": 1, "lr": 0.1, "queries": 5, "matched_queries": 4}], "got none in 1 records"),
        ([{"epoch": 1, "loss_weights_lr": 0.1, "skipped_steps": 1}], "got none in 1 records"),
        ([{"epoch": 1, "sa_loss": 1.0}, {"sa_loss": 1.0}], r"got none in records \[1\]"),
    ],
)
def test_metrics_that_cannot_be_drawn(metrics: list[dict[str, object]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        training_curves(metrics, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_overlays_show_photo_heat_and_patches(tmp_path: Path, figures: list[Figure]) -> None:
    given = overlays()
    photos = given["images"].clone()
    rollout_overlays(**given, path=tmp_path / "sheet.png")
    width = 3 * 2.2 + 4 * 0.12
    height = 0.35 + 2 * (2.2 * 24 / 50 + 0.36) + 0.6
    assert png_size(tmp_path / "sheet.png") == (int(width * 120), int(height * 120))
    photo, heat, local = figures[0].axes[3:6]  # of the second photo
    assert photo.get_title(loc="left") == "b" and len(heat.get_images()) == 2
    drawn = torch.from_numpy(np.asarray(heat.get_images()[1].get_array()))
    torch.testing.assert_close(drawn, heat_map(given["rows"][1], GRID, SIZE, PREFIX))
    dark = torch.from_numpy(np.asarray(local.get_images()[0].get_array())).permute(2, 0, 1)
    bright = torch.zeros(SIZE, dtype=torch.bool)
    bright[16:24, 40:50] = bright[0:8, 10:20] = True  # tokens 16 and 3: patches (2, 4) and (0, 1)
    expected = torch.where(bright, photos[1], photos[1] * 0.3).float()
    torch.testing.assert_close(dark, expected)
    boxes = [list(patch.get_bbox().extents) for patch in local.patches if isinstance(patch, Rectangle)]
    assert boxes == [[40, 16, 50, 24], [10, 0, 20, 8]]
    assert torch.equal(given["images"], photos)


@pytest.mark.parametrize("prefix", [0, 2])
def test_only_patches_are_counted_and_drawn(prefix: int, tmp_path: Path, figures: list[Figure]) -> None:
    """Without a class token every selected row is a patch, token 0 too; registers are none."""
    rows = torch.rand(1, prefix + 15)
    selected = torch.tensor([[0, prefix + 7, prefix + 14]])
    given = {"images": torch.rand(1, 3, *SIZE), "rows": rows, "selected": selected, "titles": ["a"]}
    rollout_overlays(**overlays(**given, num_prefix=prefix), path=tmp_path / "sheet.png")
    boxes = [[20, 8, 30, 16], [40, 16, 50, 24]]
    boxes = boxes if prefix else [[0, 0, 10, 8], *boxes]
    assert figures[0].texts[2].get_text() == f"local patches: {len(boxes)}"
    drawn = [list(p.get_bbox().extents) for p in figures[0].axes[2].patches if isinstance(p, Rectangle)]
    assert drawn == boxes


def test_titles_of_any_characters(tmp_path: Path, figures: list[Figure]) -> None:
    titles = ["\u76ee\u5f55/a.jpg", "x\udcff\n\U0001f426 \u00fc"]
    rollout_overlays(**overlays(titles=titles), path=tmp_path / "sheet.png")
    shown = [axis.get_title(loc="left") for axis in figures[0].axes[:6:3]]
    assert shown == ["\u25a1\u25a1/a.jpg", "x\u25a1\u25a1\u25a1 \u00fc"]
    training_curves([{"epoch": 1, "\u5206\u6570": 0.5}], tmp_path / "curves.png")
    assert figures[1].axes[0].get_lines()[0].get_label() == "\u25a1\u25a1: 0.5"


def test_a_failed_picture_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    rollout_overlays(**overlays(), path=path)
    whole = path.read_bytes()

    def half(figure: Figure, file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    for draw in (
        lambda: rollout_overlays(**overlays(), path=path),
        lambda: training_curves([record(1)], path),
    ):
        with pytest.raises(OSError, match=r"sheet\.png cannot be written \(No space left on device\)"):
            draw()
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [SIZE, (25, 47), (3, 5)])
@pytest.mark.parametrize("patch", range(15))
def test_heat_is_largest_on_its_patch(patch: int, size: tuple[int, int]) -> None:
    row = torch.full((17,), 1e-6)
    row[:PREFIX] = 1.0  # the class token keeps most of its own rollout
    row[PREFIX + patch] = 2e-6
    heat = heat_map(row, GRID, size, PREFIX)
    y, x = divmod(int(heat.argmax()), size[1])
    left, top, right, bottom = patch_boxes(torch.tensor([0, PREFIX + patch]), GRID, size, PREFIX)[0].tolist()
    assert heat.shape == size and heat.min() == 0 and 0.8 < heat.max() <= 1
    assert left <= x < right and top <= y < bottom


def test_heat_needs_one_value_per_token() -> None:
    with pytest.raises(ValueError, match=r"row must be .* \(N,\) with N = 17, got a float32 tensor \(16,\)"):
        heat_map(torch.zeros(16), GRID, SIZE, PREFIX)


def test_heat_without_contrast_is_zero() -> None:
    assert torch.equal(heat_map(torch.full((17,), 0.1), GRID, SIZE, PREFIX), torch.zeros(SIZE))


@pytest.mark.parametrize("size", [SIZE, (25, 47)])
def test_boxes_tile_the_photo(size: tuple[int, int]) -> None:
    covered = torch.zeros(size, dtype=torch.int64)
    for left, top, right, bottom in patch_boxes(torch.arange(17), GRID, size, PREFIX).tolist():
        covered[top:bottom, left:right] += 1
    assert torch.equal(covered, torch.ones_like(covered))


def test_boxes_leave_prefix_tokens_out() -> None:
    boxes = patch_boxes(torch.tensor([1, 8, 0], dtype=torch.int32), GRID, SIZE, PREFIX)
    assert boxes.tolist() == [[10, 8, 20, 16]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"images": torch.rand(2, 1, 24, 50)},
            "images must be a dense floating-point tensor (S, 3, h, w) with S = 2, sizes >= 1, "
            "got a float32 tensor (2, 1, 24, 50)",
        ),
        (
            {"images": torch.full((2, 3, 4, 4), 2.0)},
            "images must be in 0..1, got other values in 2 of 2 rows (0, 1)",
        ),
        (
            {"rows": torch.rand(2, 16)},
            "rows must be a dense floating-point tensor (S, N) with S = 2, N = 17, got a float32",
        ),
        (
            {"rows": torch.full((2, 17), torch.nan)},
            "rows must be finite, got inf or NaN in 2 of 2 rows (0, 1)",
        ),
        (
            {"selected": torch.zeros(3, 2, dtype=torch.int64)},
            "(S, M) with S = 2, sizes >= 1, got an int64 tensor (3, 2)",
        ),
        (
            {"selected": torch.zeros(2, 2)},
            "selected must be a dense int64 or int32 tensor (S, M) with S = 2, sizes >= 1, got a float32",
        ),
        (
            {"selected": torch.tensor([[0], [17]])},
            "selected must be in 0..16, got other values in 1 of 2 rows (1)",
        ),
        ({"num_prefix": -1}, "num_prefix must be an integer >= 0, got -1"),
        (
            {"selected": torch.zeros(2, 2, dtype=torch.int16)},
            "selected must be a dense int64 or int32 tensor (S, M) with S = 2, sizes >= 1, got an int16",
        ),
        ({"grid": (3, 0)}, "grid must be a tuple of two integers >= 1, got (3, 0)"),
        (
            {"grid": 3, "rows": None},
            "got 3; rows must be a dense floating-point tensor (S, N) with S = 2, sizes >= 1, got None",
        ),
        (
            {"titles": [], "images": torch.rand(2, 1, 24, 50)},
            "titles must be at least one text, got []; images must be a dense floating-point tensor (S, 3",
        ),
    ],
)
def test_overlays_that_do_not_fit(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        rollout_overlays(**overlays(**changed), path=tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


def test_heat_of_overlapping_patches_lies_at_their_centers() -> None:
    row = torch.tensor([9.0, 0, 1, 2, 4, 3, 0])
    heat = heat_map(row, (3, 2), (40, 36), 1, OVERLAP)
    for patch, value in enumerate(row[1:] / 4):  # the center of 16 pixels is between two of them
        y, x = divmod(patch, 2)
        around = heat[12 * y + 7 : 12 * y + 9, 12 * x + 7 : 12 * x + 9]
        assert around.mean() == pytest.approx(float(value), abs=0.05)
    assert heat[14, 8] == pytest.approx(
        float(row[1:].view(3, 2).T[0] @ torch.tensor([0.5, 0.5, 0]) / 4), abs=0.05
    )
    assert heat[:, :28].isfinite().all() and heat[:, 28:].isnan().all()
    assert heat[0, 0] == heat[7, 7], "beyond the outer centers the value stays"


def test_patches_that_do_not_overlap_are_one_case() -> None:
    row = torch.rand(7)
    plain = heat_map(row, (3, 2), (48, 32), 1)
    torch.testing.assert_close(heat_map(row, (3, 2), (48, 32), 1, Overlap(16, 16, 16)), plain)
    selected = torch.tensor([0, 3, 6])
    assert torch.equal(
        patch_boxes(selected, (3, 2), (48, 32), 1, Overlap(16, 16, 16)),
        patch_boxes(selected, (3, 2), (48, 32), 1),
    )


def test_boxes_of_overlapping_patches(tmp_path: Path, figures: list[Figure]) -> None:
    selected = torch.tensor([0, 1, 4, 6])
    boxes = [[0, 0, 16, 16], [12, 12, 28, 28], [12, 24, 28, 40]]
    assert patch_boxes(selected, (3, 2), (40, 36), 1, OVERLAP).tolist() == boxes
    images, rows = torch.rand(1, 3, 40, 36), torch.rand(1, 7)
    rollout_overlays(images, rows, selected[None], (3, 2), 1, ["a"], tmp_path / "o.png", OVERLAP)
    drawn = [patch for patch in figures[0].axes[2].patches if isinstance(patch, Rectangle)]
    assert [[int(x) for x in (*box.get_xy(), box.get_width())] for box in drawn] == [
        [left, top, 16] for left, top, _, _ in boxes
    ]
