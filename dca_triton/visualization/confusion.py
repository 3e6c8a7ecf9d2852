"""Which categories a model takes for which others: the matrix of confusions and photos of the worst pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..arguments import integer, raise_faults, violations
from ..files import path_faults
from ..tensor_arguments import row_violations, tensor_violations
from .gallery import Framed, draw_rows, html_rows, save, too_many, write_page
from .output import SUFFIXES, png_of
from .overlays import DPI
from .text import drawable

TITLE = "Confusions"
NOTE = "dashed orange: taken for the other class; solid green: photos of that class, recognized; gray: not"
ABOUT = (
    "A row of the matrix is the true class, a column the predicted one, and a row's shares sum to 1. "
    "Below are the pairs of classes that are confused most often: photos of the true class that were taken "
    "for the other (dashed orange frame), and photos of that other class, recognized (solid green frame) or "
    "not (gray frame)."
)
MOST_NAMES = 40  # beyond it, the names of the classes are not drawn at the matrix
SIDE_INCHES = 6.0


class Confusion(NamedTuple):
    """`photos` of the `total` of class `true` were taken for class `predicted`."""

    true: int
    predicted: int
    photos: int
    total: int


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64: entry [i, j] counts the photos of class i that were taken for class j.

    Args:
        labels: (S,) integers in 0..K-1.
        predictions: (S,) integers in 0..K-1.
        num_classes: K.

    Raises:
        ValueError: Shapes, dtypes or values that do not fit, every reason at once.
    """
    arguments = {"labels": labels, "predictions": predictions}
    faults = violations({"num_classes": num_classes}, {"num_classes": integer(1)})
    raise_faults(faults + tensor_violations(arguments, dict.fromkeys(arguments, "integer (S,)")))
    rule = f"in 0..{num_classes - 1}"
    raise_faults(
        fault
        for name, values in arguments.items()
        for fault in row_violations(name, rule, (values < 0) | (values >= num_classes))
    )
    pairs = labels.long() * num_classes + predictions.long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def most_confused(matrix: Tensor, pairs: int) -> list[Confusion]:
    """The `pairs` most frequent confusions of a matrix (K, K) by share of the true class, without empty ones.

    Of pairs with equal shares, those of more photos come first, then those of the earlier classes.
    """
    totals = matrix.sum(1)
    wrong = matrix.clone().fill_diagonal_(0)
    found = [
        Confusion(i, j, int(wrong[i, j]), int(totals[i])) for i, j in wrong.nonzero().tolist()
    ]  # of a matrix of counts, sparse where the model is any good
    return sorted(found, key=lambda c: (-c.photos / c.total, -c.photos, c.true, c.predicted))[:pairs]


def draw_confusions(
    labels: Tensor,
    predictions: Tensor,
    paths: Sequence[str | Path],
    classes: Sequence[str],
    output: str | Path,
    pairs: int = 8,
    photos: int = 8,
    summary: str = "",
) -> None:
    """Draw the matrix of confusions and photos of the pairs that are confused most often, into one file.

    Args:
        labels: (S,) integers in 0..K-1, the true classes.
        predictions: (S,) integers in 0..K-1.
        paths: The S photos.
        classes: The K names.
        output: A self-contained .html or a .png: the matrix and below it the pairs, or the matrix alone where
            nothing is confused. It is written whole or not at all.
        pairs: Pairs of classes to draw, at least 1 and at most 32 in a .png.
        photos: Photos of a pair, at least 2 and at most 32 in a .png: half of either class.
        summary: A sentence below the title of an .html, for example the scores.

    Raises:
        ValueError: Arguments that do not fit, every reason at once, or a photo that cannot be read.
        OSError: `output` cannot be written.
    """
    output = Path(output)
    faults = violations({"pairs": pairs, "photos": photos}, {"pairs": integer(1), "photos": integer(2)})
    counts = {} if faults else {"pairs": pairs, "photos": photos}
    faults += path_faults("output", output, SUFFIXES) + too_many(output, counts)
    if len(paths) != len(labels):
        faults.append(f"paths must hold one for each of {len(labels)} labels, got {len(paths)}")
    raise_faults(faults)
    matrix = confusion_matrix(labels, predictions, len(classes))
    rows = [
        _row(confusion, labels, predictions, paths, classes, photos)
        for confusion in most_confused(matrix, pairs)
    ]
    if output.suffix == ".html":
        told = f"{int(matrix.trace())} of {len(labels)} photos are recognized."
        picture = ("Matrix of confusions", png_of(_draw_matrix(matrix, classes)))
        write_page(output, TITLE, [summary, told, ABOUT], [picture], html_rows(rows, "unrecognized"))
    else:
        save([_draw_matrix(matrix, classes), *([draw_rows(rows, NOTE)] if rows else [])], output)


def _row(
    confusion: Confusion,
    labels: Tensor,
    predictions: Tensor,
    paths: Sequence[str | Path],
    classes: Sequence[str],
    photos: int,
) -> list[Framed]:
    true, predicted, count, total = confusion
    wrong = ((labels == true) & (predictions == predicted)).nonzero().flatten().tolist()
    others = (labels == predicted).nonzero().flatten().tolist()
    others.sort(key=lambda i: int(predictions[i]) != predicted)  # the recognized ones first
    told = (
        f"{classes[true]}\ntaken for\n{classes[predicted]}\n{count} of {total}, {100 * count / total:.0f} %"
    )
    half = photos - photos // 2
    shown: list[tuple[int, bool | None]] = [(i, False) for i in wrong[:half]]
    shown += [(i, True if int(predictions[i]) == predicted else None) for i in others[: photos // 2]]
    return [
        Framed(None, told),
        *(Framed(Path(paths[i]), f"{classes[int(labels[i])]}\n{Path(paths[i]).name}", ok) for i, ok in shown),
    ]


def _draw_matrix(matrix: Tensor, classes: Sequence[str]) -> Figure:
    figure = Figure(figsize=(SIDE_INCHES + 1.6, SIDE_INCHES + 0.8), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    shares = matrix.double() / matrix.sum(1, keepdim=True).clamp_min(1)
    drawn = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(classes) <= MOST_NAMES:
        names = [drawable(name if len(name) <= 28 else name[:27] + "…") for name in classes]
        places = range(len(classes))
        axis.set_xticks(places, names, rotation=90, fontsize=7, parse_math=False)
        axis.set_yticks(places, names, fontsize=7, parse_math=False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title("Confusions, share of the true class", fontsize=12, weight="bold")
    figure.colorbar(drawn, ax=axis, fraction=0.04, pad=0.02)
    return figure
