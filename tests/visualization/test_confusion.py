"""Confusions: the matrix by counting, the worst pairs first, and their photos in the right frames."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from dca_triton.visualization import confusion_matrix, draw_confusions
from dca_triton.visualization.confusion import most_confused
from dca_triton.visualization.gallery import RIGHT, WRONG

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
TAKEN = torch.tensor([0, 1, 1, 1, 0, 1, 2, 2, 2])
CLASSES = ["tern <b>", "gull", "$skua_1"]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_matrix_and_pairs_by_counting(photos: list[tuple[int, int]]) -> None:
    labels, predictions = torch.tensor(photos).T
    matrix = confusion_matrix(labels, predictions, 5)
    counts = Counter(photos)
    assert {(i, j): int(matrix[i, j]) for i in range(5) for j in range(5) if matrix[i, j]} == counts
    total = Counter(label for label, _ in photos)
    expected = sorted(
        ((i, j) for i, j in counts if i != j),
        key=lambda pair: (-counts[pair] / total[pair[0]], -counts[pair], pair),
    )
    assert [(c.true, c.predicted) for c in most_confused(matrix, 3)] == expected[:3]
    assert all((c.photos, c.total) == (counts[c[:2]], total[c.true]) for c in most_confused(matrix, 99))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    (tmp_path / "photos").mkdir()
    made = [tmp_path / "photos" / f"{i}.png" for i in range(len(LABELS))]
    for path in made:
        Image.new("RGB", (30, 24), (90, 20, 30)).save(path)
    return made


def test_photos_of_the_worst_pair(paths: list[Path], figures: list[Figure], tmp_path: Path) -> None:
    draw_confusions(LABELS, TAKEN, paths, CLASSES, tmp_path / "c.png", pairs=1, photos=4)
    matrix, rows = figures
    with Image.open(tmp_path / "c.png") as saved:
        heights = [figure.canvas.get_width_height()[1] for figure in (matrix, rows)]
        assert saved.height == sum(heights)
    shares = torch.as_tensor(matrix.axes[0].images[0].get_array().data)
    torch.testing.assert_close(shares[0], torch.tensor([1 / 3, 2 / 3, 0], dtype=torch.float64))
    text, *photos = rows.axes
    assert text.texts[0].get_text() == "tern <b>\ntaken for\ngull\n2 of 3, 67 %"
    told = [axis.texts[0].get_text() for axis in photos]
    assert told == ["tern <b>\n1.png", "tern <b>\n2.png", "gull\n3.png", "gull\n4.png"]
    frames = [to_hex(axis.spines["top"].get_edgecolor()) for axis in photos]
    assert frames == [WRONG, WRONG, RIGHT, "#444444"]  # the last gull was taken for a tern


def test_page_stands_alone(paths: list[Path], tmp_path: Path) -> None:
    draw_confusions(LABELS, TAKEN, paths, CLASSES, tmp_path / "c.html", summary="top-1 55.56 %")
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert all(link.startswith("data:image/") for link in re.findall(r'src="([^"]*)"', page))
    titles = re.findall(r"<h2>(.*?)</h2>", page, re.DOTALL)
    assert titles[0] == "tern &lt;b&gt;\ntaken for\ngull\n2 of 3, 67 %" and len(titles) == 3
    assert {alt.split(": ")[0] for alt in re.findall('<img alt="(.*?)"', page, re.DOTALL)} == {
        "right",
        "wrong",
        "unrecognized",
    }
    assert "5 of 9 photos are recognized" in page and "top-1 55.56 %" in page and "<b>" not in page


def test_without_confusions_the_matrix_alone(
    paths: list[Path], figures: list[Figure], tmp_path: Path
) -> None:
    draw_confusions(LABELS, LABELS, paths, CLASSES, tmp_path / "c.png")
    assert len(figures) == 1 and torch.as_tensor(figures[0].axes[0].images[0].get_array().data).trace() == 3


def test_faults_at_once(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        draw_confusions(LABELS, TAKEN, paths[1:], CLASSES, tmp_path / "c.gif", pairs=0, photos=1)
    for words in ("output must end in", "pairs must be", "photos must be", "for each of 9 labels, got 8"):
        assert words in str(caught.value)
    with pytest.raises(ValueError, match=r"pairs must be at most 32 for a \.png .*, got 33"):
        draw_confusions(LABELS, TAKEN, paths, CLASSES, tmp_path / "c.png", pairs=33)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.1, got"):
        draw_confusions(LABELS, TAKEN, paths, CLASSES[:2], tmp_path / "c.png")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
