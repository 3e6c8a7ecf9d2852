"""Rows of framed photos with captions, as a figure or as a page: for rankings and for confusions."""

import html
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..data import read_image
from ..files import atomic_write
from .output import HEAD, base64_of, png_of
from .overlays import DPI
from .text import drawable, writable

THUMBNAIL = 192  # pixels of the longer side
CELL_INCHES, GAP_INCHES, LINE_INCHES, HEAD_INCHES = 1.15, 0.14, 0.15, 0.3
LETTER_INCHES = 0.06  # of the note
MOST_IN_PNG = 32  # rows, and photos of a row; matplotlib cannot draw a picture of 2^16 pixels
LETTERS = 21  # of a line that fits below a photo
RIGHT, WRONG = "#009e73", "#d55e00"
COLORS = {True: RIGHT, False: WRONG, None: "#444444"}
PAGE = (
    HEAD
    + """.row {{ display: flex; gap: .6rem; overflow-x: auto; align-items: flex-start; padding: .8rem 0;
  border-top: 1px solid #ddd }}
.row h2 {{ font-size: 1rem; margin: 0; flex: 0 0 13rem; white-space: pre-line }}
figure {{ margin: 0; flex: 0 0 auto; font-size: 12px; max-width: {width}px }}
figure img {{ display: block; box-sizing: border-box; height: 128px; border: 4px solid #444 }}
figure.right img {{ border-color: {right} }}
figure.wrong img {{ border: 4px dashed {wrong} }}
figcaption {{ white-space: pre-line; overflow-wrap: anywhere }}
.picture {{ max-width: 100%; height: auto; margin: 0 1rem 1rem 0 }}
</style>
<h1>{title}</h1>
{about}
{pictures}
{rows}
</html>
"""
)


class Framed(NamedTuple):
    """A photo with a caption; its frame says whether it is right, or neither right nor wrong (None).

    Without a photo the caption is drawn in its place.
    """

    photo: Path | None
    caption: str
    right: bool | None = None


def too_many(output: Path, counts: Mapping[str, int]) -> list[str]:
    """The faults of more rows or columns than a .png can have."""
    return [
        f"{name} must be at most {MOST_IN_PNG} for a .png (any number for .html), got {count}"
        for name, count in counts.items()
        if output.suffix == ".png" and count > MOST_IN_PNG
    ]


def thumbnail(path: Path) -> Image.Image:
    """The photo, undistorted, with a longer side of at most `THUMBNAIL` pixels."""
    photo = read_image(path)
    photo.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    return photo


def draw_rows(rows: Sequence[Sequence[Framed]], note: str, heads: Sequence[str] = ()) -> Figure:
    """One row of photos below the other; rows may be of different lengths. `note` stands at the foot."""
    pictures = [[None if one.photo is None else thumbnail(one.photo) for one in row] for row in rows]
    # Persons are upright and vehicles are not: cells have the shape of the tallest photo for its width.
    shapes = [p.height / p.width for row in pictures for p in row if p is not None]
    tall = CELL_INCHES * min(2.2, max([0.5, *shapes]))
    lines = max(one.caption.count("\n") + 1 for row in rows for one in row if one.photo is not None)
    below = LINE_INCHES * lines + GAP_INCHES
    columns = max(map(len, rows))
    width = max(columns * (CELL_INCHES + GAP_INCHES), len(note) * LETTER_INCHES) + GAP_INCHES
    head = HEAD_INCHES if heads else GAP_INCHES
    height = head + len(rows) * (tall + below) + HEAD_INCHES
    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.text(GAP_INCHES / width, 0.12 / height, note, fontsize=8, color="#444444")
    for column, text in enumerate(heads):
        center = (GAP_INCHES + CELL_INCHES / 2 + column * (CELL_INCHES + GAP_INCHES)) / width
        figure.text(center, 1 - 0.16 / height, text, ha="center", va="center", weight="bold", fontsize=10)
    for y, (row, seen) in enumerate(zip(rows, pictures, strict=True)):
        for x, (one, picture) in enumerate(zip(row, seen, strict=True)):
            left = GAP_INCHES + x * (CELL_INCHES + GAP_INCHES)
            bottom = height - head - y * (tall + below) - tall
            _draw(figure, one, picture, (left / width, bottom / height, CELL_INCHES / width, tall / height))
    return figure


def _draw(
    figure: Figure, one: Framed, picture: Image.Image | None, box: tuple[float, float, float, float]
) -> None:
    axis = figure.add_axes(box)
    axis.set_xticks([])
    axis.set_yticks([])
    if picture is None:
        axis.set_axis_off()
        lines = [part for line in one.caption.split("\n") for part in textwrap.wrap(line, LETTERS)]
        text = "\n".join(map(drawable, lines))
        axis.text(0, 1, text, va="top", fontsize=8, parse_math=False)
        return
    axis.imshow(np.asarray(picture))
    axis.set_anchor("S")
    for spine in axis.spines.values():
        spine.set_color(COLORS[one.right])
        spine.set_linewidth(3)
        if one.right is False:  # not by color alone
            spine.set_linestyle((0, (2, 1)))
            spine.set_capstyle("butt")  # others would close the gaps between dashes
    lines = [drawable(_short(line)) for line in one.caption.split("\n")]
    axis.annotate(
        "\n".join(lines),
        (0, 0),
        (0, -4),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=7,
        parse_math=False,
        annotation_clip=False,
    )


def _short(line: str) -> str:
    return line if len(line) <= LETTERS else line[: LETTERS - 1] + "…"


def save(figures: Sequence[Figure], path: Path) -> None:
    """Write figures, one below the other, as a PNG, whole or not at all."""
    parts = [Image.open(io.BytesIO(png_of(figure))).convert("RGB") for figure in figures]
    sheet = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    with atomic_write(path) as file:
        sheet.save(file, format="PNG")


def html_rows(rows: Sequence[Sequence[Framed]], neither: str) -> str:
    """Rows of photos as elements of a page; `neither` names those that are neither right nor wrong."""
    lines = ("".join(_html(one, neither) for one in row) for row in rows)
    return "\n".join(f'<div class="row">{line}</div>' for line in lines)


def _html(one: Framed, neither: str) -> str:
    caption = "\n".join(html.escape(writable(line)) for line in one.caption.split("\n"))
    if one.photo is None:
        return f"<h2>{caption}</h2>"
    stream = io.BytesIO()
    thumbnail(one.photo).save(stream, format="JPEG", quality=85)
    kind = {True: "right", False: "wrong", None: neither}[one.right]
    alt = html.escape(writable(f"{kind}: {one.caption}"))
    data = base64_of(stream.getvalue())
    return (
        f'<figure class="{kind}"><img alt="{alt}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def write_page(
    path: Path, title: str, about: Sequence[str], pictures: Sequence[tuple[str, bytes]], rows: str
) -> None:
    """Write a page that stands alone: paragraphs, PNGs with their alternative texts, and rows of photos."""
    told = "\n".join(f"<p>{html.escape(writable(text))}</p>" for text in about if text)
    drawn = "\n".join(
        f'<img class="picture" alt="{html.escape(alt)}" src="data:image/png;base64,{base64_of(png)}">'
        for alt, png in pictures
    )
    page = PAGE.format(
        title=html.escape(title),
        about=told,
        pictures=drawn,
        rows=rows,
        width=THUMBNAIL,
        right=RIGHT,
        wrong=WRONG,
    )
    with atomic_write(path, "w") as file:
        file.write(page)
