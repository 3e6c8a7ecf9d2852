"""Rankings as pictures: every photo in its place, framed by what it is, in PNG and in HTML."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from dca_triton.visualization import Framed, RankedQuery, cmc_curves, confusion, draw_rankings, ranking
from dca_triton.visualization.gallery import RIGHT, WRONG, draw_rows


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Upright, wide and odd ones, each of its own gray."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{i} & $x_1.png" for i in range(6)]
    for i, path in enumerate(paths):
        size = [(20, 50), (50, 20), (300, 500)][i % 3]
        Image.new("RGB", size, (40 * i + 9,) * 3).save(path)
    return paths


@pytest.fixture
def queries(photos: list[Path]) -> list[RankedQuery]:
    first = [Framed(photos[1], "id 1, camera 2", True), Framed(photos[2], "id 7", False)]
    second = [Framed(photos[4], "id <9>", False)]
    return [
        RankedQuery(photos[0], "id 1\nAP 50 %", first),
        RankedQuery(photos[3], "id <b> \u76ee\udcff", second),
    ]


def test_each_photo_has_its_frame(queries: list[RankedQuery], figures: list[Figure], tmp_path: Path) -> None:
    draw_rankings(queries, tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as saved:
        assert saved.size == tuple(figures[0].canvas.get_width_height())
    axes = figures[0].axes
    grays = [int(np.asarray(axis.images[0].get_array())[0, 0, 0]) for axis in axes]
    assert grays == [9, 49, 89, 129, 169]
    frames = [{to_hex(s.get_edgecolor()) for s in axis.spines.values()} for axis in axes]
    assert frames == [{"#444444"}, {RIGHT}, {WRONG}, {"#444444"}, {WRONG}]
    dashed = [isinstance(axis.spines["left"].get_linestyle(), tuple) for axis in axes]
    assert dashed == [False, False, True, False, True]  # not by color alone
    shapes = [axis.images[0].get_array().shape[:2] for axis in axes]
    assert shapes[:2] == [(50, 20), (20, 50)] and max(shapes[2]) == 192  # undistorted
    assert [text.get_text() for text in figures[0].texts][1:] == ["query", "1", "2"]
    rows = [axis.get_position().y0 for axis in axes]
    assert rows[0] == rows[1] == rows[2] > rows[3] == rows[4]
    assert axes[0].texts[0].get_text() == "id 1\nAP 50 %"


def test_a_note_is_not_cut_below_few_photos(queries: list[RankedQuery]) -> None:
    for note in (ranking.NOTE, confusion.NOTE):
        figure = draw_rows([[queries[0].found[0]]], note)
        assert figure.texts[0].get_window_extent().x1 < figure.bbox.x1


def test_page_stands_alone(queries: list[RankedQuery], tmp_path: Path) -> None:
    draw_rankings(queries, tmp_path / "r.html", curve=[0.5, 1.0], summary="mAP 50 % & more")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(links) == 6 and all(re.match(r"data:image/(png|jpeg);base64,", link) for link in links)
    assert re.findall(r'<figure class="(\w+)">', page) == ["query", "right", "wrong", "query", "wrong"]
    assert "id &lt;9&gt;" in page and "<9>" not in page and "mAP 50 % &amp; more" in page
    assert "\u76ee\ufffd" in page and 'alt="CMC curve"' in page
    draw_rankings(queries, tmp_path / "r.html")
    assert "CMC" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_curves(figures: list[Figure], tmp_path: Path) -> None:
    cmc_curves({"a_$run": [0.5, 0.6, 0.7, 0.7, 0.75], "b": [0.9] * 20}, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as saved:
        assert saved.size == (576, 456)
    first, second = figures[0].axes[0].lines
    assert list(first.get_xdata()) == [1, 2, 3, 4, 5] and list(first.get_ydata()) == [
        0.5,
        0.6,
        0.7,
        0.7,
        0.75,
    ]
    assert second.get_label() == "b: 90.0 %, 90.0 %, 90.0 %"
    assert first.get_label() == "a_$run: 50.0 %, 75.0 %"
    for curves in ({}, {"a": []}, {"a": [0.5, 1.5]}):
        with pytest.raises(ValueError, match=r"curves must hold shares in 0\.\.1 for each name"):
            cmc_curves(curves, tmp_path / "d.png")
    assert not (tmp_path / "d.png").exists()


def test_faults_at_once_and_nothing_written(
    queries: list[RankedQuery], photos: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"output must end in .*; output must be in a folder .*; queries"):
        draw_rankings([], tmp_path / "no" / "r.gif")
    with pytest.raises(ValueError, match=r"the queries must be at most 32 for a \.png .* got 34"):
        draw_rankings(queries * 17, tmp_path / "r.png")
    lost = [RankedQuery(photos[0].with_name("lost.png"), "", [])]
    for name in ("r.png", "r.html"):
        with pytest.raises(ValueError, match=r"lost\.png cannot be read"):
            draw_rankings(lost, tmp_path / name)
    assert not list(tmp_path.iterdir())
