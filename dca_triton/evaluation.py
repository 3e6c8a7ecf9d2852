"""A model's scores on a dataset: top-1 and top-5 of each branch for FGVC; mAP, CMC and mINP for Re-ID."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from .data.records import Batch
from .distances import k_reciprocal_rerank, squared_distances
from .embedding import Embeddings, embed
from .metrics import reid_metrics, topk_accuracy
from .model import DualAttentionModel

Metric = Literal["euclidean", "cosine"]
PREDICTIONS = {"sa": "SA", "glca": "GLCA", "sum": "SA + GLCA"}
RETRIEVAL = {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mINP": "mINP"}


@torch.no_grad()
def evaluate_fgvc(
    model: DualAttentionModel, test: Iterable[Batch], progress: bool = True
) -> dict[str, float]:
    """Top-1 and top-5 of SA, GLCA and the sum of their probabilities, the paper's prediction.

    Args:
        model: Left in evaluation mode.
        test: Dicts of "image" (B, 3, h, w) and "label" (B,).
        progress: Show a progress bar.

    Returns:
        {sa,glca,sum}_top1 and _top5, each in 0..1.

    Raises:
        ValueError: There is no batch, or a label is no class of the model's.
    """
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for batch in tqdm(test, desc="evaluate", leave=False, disable=not progress):
        outputs = model(batch["image"].to(device, non_blocking=True), class_tokens_only=True)
        sa, glca = (outputs[f"{branch}_logits"].float().softmax(1).cpu() for branch in ("sa", "glca"))
        parts.append((sa, glca, torch.as_tensor(batch["label"])))
    if not parts:
        raise ValueError("test is empty; allowed is at least one batch")
    sa, glca, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return {
        f"{name}_top{k}": score
        for name, probabilities in zip(PREDICTIONS, (sa, glca, sa + glca), strict=True)
        for k, score in topk_accuracy(probabilities, labels, ks=(1, 5)).items()
    }


def evaluate_reid(
    model: DualAttentionModel,
    query: Iterable[Batch],
    gallery: Iterable[Batch],
    metric: Metric = "cosine",
    rerank: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """The scores of `score_embeddings` for query and gallery as `embed` sees them.

    Args:
        model: Left in evaluation mode.
        query: Dicts of "image" (B, 3, h, w), "label" (B,), the identities, and "camera" (B,).
        gallery: Like the queries.
        metric: As in `score_embeddings`.
        rerank: As in `score_embeddings`.
        progress: Show progress bars.

    Raises:
        ValueError: A side is empty, or no query has a match in the gallery.
    """
    asked, offered = (embed(model, part, progress=progress) for part in (query, gallery))
    return score_embeddings(asked, offered, metric, rerank, progress)


def score_embeddings(
    query: Embeddings,
    gallery: Embeddings,
    metric: Metric = "cosine",
    rerank: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """mAP, rank1, rank5, rank10 and mINP in 0..1 of ranking the gallery for each query.

    Args:
        query: As `embed` or `load_embeddings` gives them.
        gallery: Like the queries.
        metric: "cosine" divides each feature by its length first.
        rerank: Rank by k-reciprocal neighbours (Zhong et al., CVPR 2017; k1 = 20, k2 = 6, weight 0.3), which
            takes time that grows with the square of all photos.
        progress: Show progress bars.

    Raises:
        ValueError: As `dca_triton.metrics.reid_metrics`.
    """
    rank = partial(k_reciprocal_rerank, progress=progress) if rerank else squared_distances

    def watched(query: Tensor, gallery: Tensor, chunk_size: int) -> Iterable[Tensor]:
        chunks = -(-len(query) // chunk_size)
        blocks = rank(query, gallery, chunk_size)
        return tqdm(blocks, desc="rank", total=chunks, leave=False, disable=not progress)

    found = reid_metrics(*query[:3], *gallery[:3], metric=metric, rerank=watched)
    return {"mAP": found.mAP, **{f"rank{k}": share for k, share in found.cmc.items()}, "mINP": found.mINP}


def score_table(scores: Mapping[str, float]) -> str:
    """The scores of `evaluate_fgvc` or `evaluate_reid` as a table of per cent, to be printed."""
    if "mAP" in scores:
        columns, rows = [*RETRIEVAL.values()], {"": [scores[name] for name in RETRIEVAL]}
    else:
        columns = ["top-1", "top-5"]
        rows = {text: [scores[f"{name}_top{k}"] for k in (1, 5)] for name, text in PREDICTIONS.items()}
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{column:>10}" for column in columns)]
    for text, values in rows.items():
        lines.append(f"{text:<{width}}" + "".join(f"{100 * value:9.2f}%" for value in values))
    return "\n".join(lines)
