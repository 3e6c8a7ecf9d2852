"""The picture of an ablation: points, bars and names, and names that matplotlib cannot draw."""

from pathlib import Path

import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from dca_triton.visualization.comparison import comparison


def test_rows_points_and_bars(tmp_path: Path, figures: list[Figure]) -> None:
    file = tmp_path / "a.png"
    comparison(
        {"sa": [0.5, 0.7], "all": [0.6, 0.9], "failed": []},
        {"sa": (0.6, 0.1), "all": (0.75, 0.2)},
        {"all": (0.15, 0.05)},
        file,
        "top-1, %",
    )
    assert file.read_bytes().startswith(b"\x89PNG")
    left, right = figures[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["sa", "all", "failed"]
    assert left.get_xlabel() == "top-1, %" and right.get_xlabel() == "points above sa"
    points = [line.get_xydata().tolist() for line in left.lines if line.get_marker() == "o"]
    assert points == [[[50.0, 0.0], [70.0, 0.0]], [[60.0, 1.0], [90.0, 1.0]], []]
    bars = [each for each in left.containers if isinstance(each, ErrorbarContainer)]
    assert [bar.lines[0].get_xdata()[0] for bar in bars] == pytest.approx([60, 75])
    (bar,) = right.containers
    assert bar.lines[2][0].get_segments()[0][:, 0] == pytest.approx([10, 20])
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first variant is on top


def test_one_seed_has_no_error_bar(tmp_path: Path, figures: list[Figure]) -> None:
    comparison({"a": [0.5], "b": [0.5]}, {"a": (0.5, None)}, {"b": (0.0, None)}, tmp_path / "a.png")
    assert not figures[0].axes[1].containers[0].has_xerr


def test_any_name(tmp_path: Path) -> None:
    comparison({"$x_$ 鳥 \\": [0.5], "b": [0.1]}, {}, {}, tmp_path / "a.png")  # warnings are errors


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scores must hold at least one variant, got none"):
        comparison({}, {}, {}, tmp_path / "a.png")
