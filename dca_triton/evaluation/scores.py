"""A model's scores on a dataset: top-1 and top-5 of each branch for FGVC; mAP, CMC and mINP for Re-ID."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..arguments import raise_faults
from ..branches import Metric, Task
from ..data.records import Batch
from ..model import DualAttentionModel
from ..progress import progress as progress_bar
from .distances import k_reciprocal_rerank, squared_distances
from .embeddings import Embeddings, embed
from .expansion import expand_queries
from .flip import flip_averaged
from .metrics import JUNK_ID, reid_metrics, topk_accuracy

PREDICTIONS = {"sa": "SA", "glca": "GLCA", "sum": "SA + GLCA"}
RETRIEVAL = {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mINP": "mINP"}
SCORES: Mapping[Task, tuple[str, ...]] = {
    "fgvc": tuple(f"{name}_top{k}" for name in PREDICTIONS for k in (1, 5)),
    "reid": tuple(RETRIEVAL),
}
"""The scores of each task, in 0..1, higher is better: what `best_by` may name. Other entries are counts."""


@torch.no_grad()
def predict(
    model: DualAttentionModel, test: Iterable[Batch], progress: bool = True, flip: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the probabilities (S, K) float32 of "sa", "glca" and their "sum", and the labels (S,).

    Both are on the CPU. Arguments are those of `evaluate_fgvc`. The sum is the paper's prediction; without
    GLCA it is SA's.
    """
    model.eval()
    device = next(model.parameters()).device
    model = flip_averaged(model) if flip else model
    parts = []
    for batch in progress_bar(test, desc="evaluate", unit="batch", leave=False, disable=not progress):
        outputs = model(batch["image"].to(device, non_blocking=True), class_tokens_only=True)
        logits = {name: outputs[f"{name}_logits"] for name in PREDICTIONS if f"{name}_logits" in outputs}
        found = {name: value.float().softmax(1).cpu() for name, value in logits.items()}
        parts.append(
            (found | {"sum": torch.stack([*found.values()]).sum(0)}, torch.as_tensor(batch["label"]))
        )
    if not parts:
        raise ValueError("test must hold at least one batch, got none")
    predictions, labels = zip(*parts, strict=True)
    return {name: torch.cat([p[name] for p in predictions]) for name in predictions[0]}, torch.cat(labels)


def evaluate_fgvc(
    model: DualAttentionModel, test: Iterable[Batch], progress: bool = True, flip: bool = False
) -> dict[str, float]:
    """Top-1 and top-5 of SA, GLCA and the sum of their probabilities, the paper's prediction.

    Without GLCA, the model predicts by SA alone: there are no scores of GLCA, and the sum is SA's.

    Args:
        model: Left in evaluation mode.
        test: Dicts of "image" (B, 3, h, w) and "label" (B,).
        progress: Show a progress bar.
        flip: Average the probabilities of each photo and its mirror image, see `flip_averaged`.

    Returns:
        {sa,glca,sum}_top1 and _top5 (`SCORES["fgvc"]`), each in 0..1, without those of GLCA if the model has
        no such branch.

    Raises:
        ValueError: There is no batch, or a label is not one of the model's classes.
    """
    predictions, labels = predict(model, test, progress, flip)
    return {
        f"{name}_top{k}": score
        for name, probabilities in predictions.items()
        for k, score in topk_accuracy(probabilities, labels, ks=(1, 5)).items()
    }


def evaluate_reid(
    model: DualAttentionModel,
    query: Iterable[Batch],
    gallery: Iterable[Batch],
    metric: Metric = "cosine",
    rerank: bool = False,
    progress: bool = True,
    flip: bool = False,
    expand: int = 0,
    alpha: float = 3.0,
) -> dict[str, float]:
    """Embed query and gallery with `embed`, and return the scores of `score_embeddings`.

    Args:
        model: Left in evaluation mode.
        query: Dicts of "image" (B, 3, h, w), "label" (B,), the identities, and optionally "camera" (B,) and
            "path", B texts.
        gallery: Like the queries.
        metric: As in `score_embeddings`.
        rerank: As in `score_embeddings`.
        progress: Show progress bars.
        flip: Average the features of each photo and its mirror image, see `flip_averaged`.
        expand: As in `score_embeddings`.
        alpha: As in `score_embeddings`.

    Raises:
        ValueError: A side is empty, or no query has a match in the gallery.
    """
    model = flip_averaged(model) if flip else model
    query_embeddings, gallery_embeddings = (
        embed(model, part, progress=progress) for part in (query, gallery)
    )
    return score_embeddings(query_embeddings, gallery_embeddings, metric, rerank, progress, expand, alpha)


def score_embeddings(
    query: Embeddings,
    gallery: Embeddings,
    metric: Metric = "cosine",
    rerank: bool = False,
    progress: bool = True,
    expand: int = 0,
    alpha: float = 3.0,
) -> dict[str, float]:
    """Rank the gallery for each query.

    Photos of the query's own camera are left out, and so is a gallery photo with the path of the query.
    Camera -1 is unknown and leaves nothing out.

    Args:
        query: The result of `embed` or `load_embeddings`.
        gallery: Like the queries.
        metric: "cosine" divides each feature by its length first.
        rerank: Rank by k-reciprocal neighbors (Zhong et al., CVPR 2017; k1 = 20, k2 = 6, weight 0.3), which
            takes time that grows with the square of the number of photos.
        progress: Show progress bars.
        expand: Before ranking, average each query with this many nearest gallery photos, see
            `expand_queries`; 0 turns it off.
        alpha: Exponent of the weights in this average, >= 0; with 0, all weights are equal.

    Returns:
        The scores mAP, rank1, rank5, rank10 and mINP (`SCORES["reid"]`), floats in 0..1, means over the
        queries that have a match in the gallery; and two counts, integers: "matched_queries" of "queries".

    Raises:
        ValueError: As `dca_triton.evaluation.reid_metrics` and `expand_queries`.
    """
    found = reid_metrics(**retrieval(query, gallery, metric, rerank, progress, expand, alpha))
    return {
        "mAP": found.mAP,
        **{f"rank{k}": share for k, share in found.cmc.items()},
        "mINP": found.mINP,
        "queries": found.queries,
        "matched_queries": found.matched_queries,
    }


def retrieval(
    query: Embeddings,
    gallery: Embeddings,
    metric: Metric,
    rerank: bool,
    progress: bool,
    expand: int,
    alpha: float,
) -> dict[str, Any]:
    """The arguments of `reid_metrics` and `comparisons` for those of `score_embeddings`."""
    features = query.features
    if expand:
        known = gallery.features[gallery.labels != JUNK_ID]
        features = expand_queries(features, known, expand, alpha, metric, progress=progress)
    query_photos, gallery_photos = _photo_numbers(query.paths, gallery.paths)
    return {
        "query_features": features,
        "query_ids": query.labels,
        "query_cameras": query.cameras,
        "gallery_features": gallery.features,
        "gallery_ids": gallery.labels,
        "gallery_cameras": gallery.cameras,
        "metric": metric,
        "distances": partial(k_reciprocal_rerank if rerank else squared_distances, progress=progress),
        "query_photos": query_photos,
        "gallery_photos": gallery_photos,
    }


def _photo_numbers(*sides: Sequence[str]) -> list[Tensor]:
    """Return equal numbers for equal paths, -1 for unknown ones."""
    number = {path: place for place, path in enumerate(dict.fromkeys(chain(*sides)))} | {"": -1}
    return [torch.tensor([number[path] for path in paths]) for paths in sides]


def score_table(scores: Mapping[str, float], part: str = "") -> str:
    """Format the scores of `evaluate_fgvc` or `evaluate_reid` as a table of percentages.

    Args:
        scores: More entries, such as losses, are left out.
        part: Which photos were scored, for example "validation" or "test"; named below the table.

    Raises:
        ValueError: Entries of both functions are missing.
    """
    if "mAP" in scores:
        columns, names = [*RETRIEVAL.values()], {"": [*SCORES["reid"]]}
    else:
        columns = ["top-1", "top-5"]
        # Without GLCA its row and that of the sum, which is SA's, say nothing.
        alone = "sum_top1" in scores and not {"glca_top1", "glca_top5"} & {*scores}
        predictions = {"sa": PREDICTIONS["sa"]} if alone else PREDICTIONS
        names = {text: [f"{name}_top1", f"{name}_top5"] for name, text in predictions.items()}
    if missing := [name for row in names.values() for name in row if name not in scores]:
        raise_faults([f"scores must hold {', '.join(missing)}, got {', '.join(scores)}"])
    rows = {text: [scores[name] for name in row] for text, row in names.items()}
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{column:>10}" for column in columns)]
    for text, values in rows.items():
        lines.append(f"{text:<{width}}" + "".join(f"{100 * value:9.2f}%" for value in values))
    if "queries" in scores:
        counted, queries = int(scores["matched_queries"]), int(scores["queries"])
        lines.append(f"{counted} of {queries} queries have a match in the gallery and count")
    if part:
        lines.append(f"scored photos: {part}")
    return "\n".join(lines)
