"""A contact sheet that explains a model's answers: one PNG, or one self-contained HTML file."""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms.v2.functional import normalize

from ..arguments import raise_faults
from ..data import fgvc_test, read_image, reid_test
from ..files import atomic_write, path_faults
from ..model import DualAttentionModel, distractor_share, explain
from ..progress import progress as progress_bar
from .curves import BRANCH_COLORS
from .output import HEAD, SUFFIXES, base64_of, png_of
from .overlays import contact_sheet, draw_photo, heat_scale, patches_head, show_picture
from .text import drawable, writable

BATCH = 8
TOP = 3  # classes shown per branch
MOST_IN_PNG = 64  # matplotlib cannot draw a picture of 2^16 pixels
TITLE = "What the model saw"
ABOUT = (
    "Rollout is exact and starts from {start}; the bright patches are those that GLCA selected. "
    "Per branch the likeliest classes with their probabilities."
)
STARTS = {
    "class": "the class token",
    "avg": "the mean of the patches",
    "map": "the weights of attention pooling",
}
PAGE = (
    HEAD
    + """figure {{ margin: 0 0 2rem }}
img {{ max-width: 100%; height: auto }}
</style>
<h1>{title}</h1>
<p>{about}</p>
{figures}
</html>
"""
)


class Explained(NamedTuple):
    """A photo (3, h, w) in 0..1 and what the model saw in it; shares are (L, N), with a distractor only."""

    name: str
    photo: Tensor
    rollout: Tensor
    selected: Tensor
    sa: Tensor
    glca: Tensor | None
    distractor: Tensor | None
    shares: Tensor | None


def visualize(
    model: DualAttentionModel,
    photos: Sequence[Path],
    output: str | Path,
    distractors: Sequence[Path] | None = None,
    classes: Sequence[str] = (),
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    progress: bool = True,
    resize: int | None = None,
) -> None:
    """Draw the rollout, local patches and SA's and GLCA's predictions of each photo into one file.

    With distractors (pair mode), also draw the share of attention that each PWCA block spends on them, for
    the class token, if there is one, and averaged over the patches. Everything is computed from exact rollout
    and log-sum-exps; no attention map is stored.

    Args:
        model: Left in evaluation mode; photos are resized to its image size.
        photos: At least one image file.
        output: A .png, which holds up to 64 photos, or a self-contained .html. It is written whole or not at
            all. Characters that matplotlib's fonts lack are drawn as boxes; captions in HTML keep them.
        distractors: A partner for each photo.
        classes: Names of the model's classes; numbers by default.
        mean: Mean of each channel in the normalization that the model was trained with.
        std: Standard deviation of each channel, likewise.
        progress: Show a progress bar.
        resize: Resize photos to a square of this side and crop the image size from the center, as `fgvc_test`
            does. Use it if the model's evaluation did.

    Raises:
        ValueError: Arguments that do not fit, every reason at once, or a photo that cannot be read.
        OSError: `output` cannot be written.
    """
    output = Path(output)
    _check(model, photos, output, distractors, classes, resize)
    names = classes or [f"class {k}" for k in range(model.num_classes)]
    explained = _explained(model, photos, distractors, mean, std, resize)
    bar = progress_bar(
        explained, desc="visualize", total=len(photos), unit="photo", leave=False, disable=not progress
    )
    if output.suffix == ".png":
        figure = _draw(model, list(bar), names)
        with atomic_write(output) as file:
            figure.savefig(file, format="png")
        return
    figures = "\n".join(_html_figure(model, one, names) for one in bar)
    about = ABOUT.format(start=STARTS[model.backbone.pooling])
    with atomic_write(output, "w") as file:
        file.write(PAGE.format(title=TITLE, about=about, figures=figures))


def _check(
    model: DualAttentionModel,
    photos: Sequence[Path],
    output: Path,
    distractors: Sequence[Path] | None,
    classes: Sequence[str],
    resize: int | None,
) -> None:
    faults = []
    height, width = model.backbone.img_size
    if resize is not None and not height == width <= resize:
        faults.append(f"resize must be at least the side of a square image, {height} x {width}, got {resize}")
    if not photos:
        faults.append("photos must hold at least one image file, got none")
    faults += path_faults("output", output, SUFFIXES)
    if output.suffix == ".png" and len(photos) > MOST_IN_PNG:
        faults.append(
            f"photos must hold at most {MOST_IN_PNG} for a .png (any number for .html), got {len(photos)}"
        )
    if distractors is not None and len(distractors) != len(photos):
        faults.append(f"distractors must hold one per photo, {len(photos)}, got {len(distractors)}")
    if classes and len(classes) != model.num_classes:
        faults.append(f"classes must be the model's {model.num_classes} or none, got {len(classes)}")
    raise_faults(faults)


def _explained(
    model: DualAttentionModel,
    photos: Sequence[Path],
    distractors: Sequence[Path] | None,
    mean: Sequence[float],
    std: Sequence[float],
    resize: int | None,
) -> Iterator[Explained]:
    device = next(model.parameters()).device
    size = model.backbone.img_size
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}  # pictures are shown without normalization, in 0..1
    read = reid_test(size, **plain) if resize is None else fgvc_test(size[0], **plain, resize=resize)

    def load(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
        shown = torch.stack([read(read_image(Path(path))) for path in paths])
        return shown, normalize(shown, list(mean), list(std)).to(device)

    for start in range(0, len(photos), BATCH):
        part = slice(start, start + BATCH)
        shown, images = load(photos[part])
        seen = explain(model, images)
        others: Sequence[Tensor | None] = [None] * len(shown)
        shares: Sequence[Tensor | None] = [None] * len(shown)
        if distractors is not None:
            pictures, partners = load(distractors[part])
            others, shares = list(pictures), list(distractor_share(model, images, partners).cpu())
        for i, path in enumerate(photos[part]):
            yield Explained(
                name="/".join(Path(path).parts[-2:]),
                photo=shown[i],
                rollout=seen.rollout[i].cpu(),
                selected=seen.selected[i].cpu(),
                sa=seen.sa[i].cpu(),
                glca=None if seen.glca is None else seen.glca[i].cpu(),
                distractor=others[i],
                shares=shares[i],
            )


def _draw(model: DualAttentionModel, rows: Sequence[Explained], classes: Sequence[str]) -> Figure:
    backbone, first = model.backbone, rows[0]
    prefix, has_class_token = backbone.num_prefix_tokens, backbone.num_class_tokens > 0
    heads = ["photo", "rollout", patches_head(first.selected, prefix), "predictions"]
    if first.distractor is not None:
        heads += ["distractor", "attention on it"]
    figure, axes = contact_sheet(len(rows), heads, (first.photo.shape[1], first.photo.shape[2]))
    for line, one in zip(axes, rows, strict=True):
        grid = backbone.grid_of(one.photo)
        draw_photo(line, one.photo, one.rollout, one.selected, grid, prefix, one.name, backbone.overlap)
        _draw_predictions(line[3], one, classes)
        if one.distractor is not None and one.shares is not None:
            show_picture(line[4], one.distractor)
            _draw_shares(line[5], one.shares, prefix, has_class_token, model.pwca_blocks[0])
    heat_scale(figure, axes[-1, 1])
    return figure


def _likeliest(one: Explained, classes: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """The TOP classes of each branch with their probabilities."""
    found = {}
    for branch, probabilities in (("sa", one.sa), ("glca", one.glca)):
        if probabilities is None:
            continue
        top = probabilities.topk(min(TOP, len(probabilities)))
        found[branch] = [
            (classes[k], p) for k, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
    return found


def _draw_predictions(axis: Axes, one: Explained, classes: Sequence[str]) -> None:
    axis.set_axis_off()
    axis.set(xlim=(0, 1), ylim=(2 * TOP + 2, 0))
    for place, (branch, likeliest) in enumerate(_likeliest(one, classes).items()):
        top = place * (TOP + 1) + 0.5
        axis.text(0, top, branch.upper(), va="center", weight="bold", fontsize=9, color=BRANCH_COLORS[branch])
        for y, (name, probability) in enumerate(likeliest, start=1):
            axis.barh(top + y, probability, height=0.8, color=BRANCH_COLORS[branch], alpha=0.3)
            text = drawable(f"{100 * probability:.1f} %  {name}")
            axis.text(0.02, top + y, text, va="center", fontsize=8, clip_on=True, parse_math=False)


def _draw_shares(axis: Axes, shares: Tensor, prefix: int, has_class_token: bool, first: int) -> None:
    axis.set_axis_off()
    inner = axis.inset_axes((0.18, 0.18, 0.8, 0.78))
    blocks = range(first, first + len(shares))
    inner.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")  # equal attention to both images
    if has_class_token:
        inner.plot(blocks, shares[:, 0], label="class token", color="#222222", marker="o", markersize=3)
    patches = shares[:, prefix:].mean(1)
    inner.plot(blocks, patches, label="mean of patches", color="#cc79a7", marker="o", markersize=3)
    inner.set(ylim=(0, 1), xlabel="block")
    inner.xaxis.set_major_locator(MaxNLocator(integer=True))
    inner.xaxis.label.set_fontsize(8)
    inner.tick_params(labelsize=8)
    inner.spines[["top", "right"]].set_visible(False)
    inner.legend(frameon=False, fontsize=7, loc="best")


def _html_figure(model: DualAttentionModel, one: Explained, classes: Sequence[str]) -> str:
    said = "; ".join(
        f"{branch.upper()}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in likeliest)
        for branch, likeliest in _likeliest(one, classes).items()
    )
    caption = html.escape(writable(f"{one.name} — {said}"))
    data = base64_of(png_of(_draw(model, [one], classes)))
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
