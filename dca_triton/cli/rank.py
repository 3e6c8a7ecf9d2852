"""`dca-triton rank`: pictures of what a model finds, and of what it confuses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..branches import Metric
from .options import Selection

if TYPE_CHECKING:
    from ..evaluation import Embeddings, Rankings
    from ..visualization import RankedQuery
    from .trained import Trained

Choice = Literal["spread", "worst"]


def rank(
    selection: Selection,
    file: Path,
    rows: int = 8,
    photos: int = 10,
    queries: Choice | None = None,
    metric: Metric | None = None,
    rerank: bool | None = None,
    flip: bool = False,
    expand: int | None = None,
    alpha: float | None = None,
    curve: Path | None = None,
) -> None:
    """Draw queries with their nearest gallery photos (Re-ID), or the most confused classes (categories).

    Args:
        selection: The model and the photos.
        file: The .png or .html file to write.
        rows: Queries to draw, or pairs of confused classes; at most 32 in a .png.
        photos: Gallery photos of each query, or photos of each pair; at most 32 in a .png.
        queries: Which Re-ID queries to draw: "spread" takes them evenly from all of them, "worst" takes those
            with the lowest average precision; "spread" by default.
        metric: Distance of Re-ID features; cosine by default.
        rerank: Rank Re-ID by k-reciprocal neighbors; false by default.
        flip: Average over each photo and its mirror image.
        expand: Before ranking, average each Re-ID query with this many nearest gallery photos (query
            expansion).
        alpha: Exponent of the weights of these photos, >= 0; 3 by default. With 0, all weights are equal.
        curve: A .png file for the Re-ID curve of cumulative matches (CMC).
    """
    from ..arguments import choice, integer, optional, raise_faults, violations
    from ..files import path_faults
    from ..visualization.gallery import too_many
    from ..visualization.output import SUFFIXES
    from .experiment import check_expansion, reid_options
    from .trained import load_trained

    least = {"--rows": integer(1), "--photos": integer(2), "--queries": optional(choice("spread", "worst"))}
    faults = violations({"--rows": rows, "--photos": photos, "--queries": queries}, least)
    raise_faults(faults)
    check_expansion(expand, alpha)
    raise_faults(path_faults("--file", file, SUFFIXES))
    raise_faults(too_many(file, {"--rows": rows, "--photos": photos}))
    if curve is not None:
        raise_faults(path_faults("--curve", curve, (".png",)))
    trained = load_trained(selection)
    task = trained.description.task
    options = {"metric": metric, "rerank": rerank, "expand": expand, "alpha": alpha}
    asked = reid_options(task, queries=queries, **options, curve=curve)
    if task == "fgvc":
        _confusions(trained, file, rows, photos, flip)
        return
    options = {name: value for name, value in asked.items() if name in options}
    _rankings(trained, file, rows, photos, queries or "spread", flip, curve, options)


def _rankings(
    trained: "Trained",
    file: Path,
    rows: int,
    photos: int,
    queries: Choice,
    flip: bool,
    curve: Path | None,
    options: Mapping[str, Any],
) -> None:
    from ..evaluation import cmc_curve, embed, flip_averaged, rank_embeddings
    from ..visualization import cmc_curves, draw_rankings
    from .experiment import evaluation_batches, scored_part, warn_of_unknown

    splits = trained.splits()
    warn_of_unknown(trained.model, splits.query, splits.gallery)
    model = flip_averaged(trained.model) if flip else trained.model
    query, gallery = (
        embed(model, evaluation_batches(part, trained.data)) for part in (splits.query, splits.gallery)
    )
    found = rank_embeddings(query, gallery, photos, **options)
    shares = cmc_curve(found.ranks, min(50, len(gallery.labels)))
    precisions = found.average_precisions()
    matched = {q: ap for q, ap in enumerate(precisions) if ap is not None}
    summary = (
        f"{scored_part(splits)}: mAP {100 * sum(matched.values()) / len(matched):.2f} %, "
        f"rank-1 {100 * shares[0]:.2f} %; {len(matched)} of {len(query.labels)} queries have a match"
    )
    drawn = [_ranked(q, ap, query, gallery, found) for q, ap in _chosen(matched, rows, queries)]
    draw_rankings(drawn, file, shares, summary)
    if curve is not None:
        cmc_curves({splits.dataset: shares}, curve)
    print(f"{file}: {len(drawn)} of {len(query.labels)} queries; {summary}")


def _chosen(matched: Mapping[int, float], rows: int, queries: Choice) -> Sequence[tuple[int, float]]:
    """The queries to draw and their average precisions, of those that have a match."""
    if queries == "worst":
        return sorted(matched.items(), key=lambda one: one[1])[:rows]
    count = min(rows, len(matched))
    return [list(matched.items())[i * len(matched) // count] for i in range(count)]


def _ranked(
    q: int, precision: float, query: "Embeddings", gallery: "Embeddings", found: "Rankings"
) -> "RankedQuery":
    from ..visualization import Framed, RankedQuery

    def told(side: "Embeddings", i: int) -> str:
        camera = int(side.cameras[i])
        return f"id {int(side.labels[i])}" + (f", camera {camera}" if camera >= 0 else "")

    shown = [
        Framed(Path(gallery.paths[g]), told(gallery, g), right)
        for g, right in zip(found.photos[q].tolist(), found.right[q].tolist(), strict=True)
        if g >= 0
    ]
    path = Path(query.paths[q])
    score = f"AP {100 * precision:.0f} %, first at {found.ranks[q][0]}"
    return RankedQuery(path, f"{told(query, q)}\n{score}\n{path.name}", shown)


def _confusions(trained: "Trained", file: Path, rows: int, photos: int, flip: bool) -> None:
    from ..evaluation import predict
    from ..visualization import draw_confusions
    from .experiment import evaluation_batches, scored_part

    splits = trained.splits()
    scored = splits.validation or splits.test
    predictions, labels = predict(trained.model, evaluation_batches(scored, trained.data), flip=flip)
    assert scored is not None
    best = predictions["sum"].argmax(1)
    summary = f"{scored_part(splits)}: top-1 {100 * (best == labels).double().mean():.2f} %"
    paths = [record.path for record in scored.records]
    draw_confusions(labels, best, paths, trained.description.classes, file, rows, photos, summary)
    print(f"{file}: {summary}")
