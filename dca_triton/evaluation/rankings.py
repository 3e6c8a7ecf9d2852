"""The rankings behind the scores of re-identification: which photos come first, and CMC curves."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import integer, raise_faults, violations
from ..branches import Metric
from .embeddings import Embeddings
from .metrics import JUNK_ID, average_precision, comparisons, ranks_of_right
from .scores import retrieval


class Rankings(NamedTuple):
    """The rankings of Q queries.

    `photos` (Q, k) int64 are positions in the gallery, the nearest first, -1 where nothing is left; `right`
    (Q, k) bool says which of them show the query's identity. `ranks` holds for each query the ranks, from 1,
    of all its right photos.
    """

    photos: Tensor
    right: Tensor
    ranks: tuple[tuple[int, ...], ...]

    def average_precisions(self) -> list[float | None]:
        """Of each query in 0..1, None without a right photo; their mean is mAP."""
        return [average_precision(ranks) if ranks else None for ranks in self.ranks]


def rank_embeddings(
    query: Embeddings,
    gallery: Embeddings,
    k: int = 10,
    metric: Metric = "cosine",
    rerank: bool = False,
    progress: bool = True,
    expand: int = 0,
    alpha: float = 3.0,
) -> Rankings:
    """Rank the gallery for each query by the protocol of `score_embeddings`.

    Junk and photos that the protocol leaves out for a query (its identity seen by its own camera, and the
    query itself) are in no ranking. Of two photos at one distance the wrong one comes first.

    Args:
        query: The result of `embed` or `load_embeddings`.
        gallery: Like the queries.
        k: Photos kept of each ranking, at least 1.
        metric: As in `score_embeddings`, like the arguments below.
        rerank: Rank by k-reciprocal neighbors.
        progress: Show a progress bar.
        expand: The number of neighbors that expand a query.
        alpha: The exponent of their weights.

    Raises:
        ValueError: As `score_embeddings`, but queries need no match.
    """
    raise_faults(violations({"k": k}, {"k": integer(1)}))
    known = (gallery.labels != JUNK_ID).nonzero().flatten()
    photos, shown, ranks = [], [], []
    options = retrieval(query, gallery, metric, rerank, progress, expand, alpha)
    for distances, right, wrong in comparisons(**options):
        ranks += [tuple(found) for found in ranks_of_right(distances, right, wrong)]
        # The next larger number puts a right photo behind the wrong ones at its distance.
        behind = distances.nextafter(torch.full_like(distances, torch.inf))
        order = torch.where(right, behind, distances).masked_fill(~(right | wrong), torch.inf)
        nearest = order.topk(min(k, len(known)), largest=False)
        found = known[nearest.indices].masked_fill(nearest.values.isinf(), -1)
        photos.append(found)
        shown.append(right.gather(1, nearest.indices) & (found >= 0))
    return Rankings(torch.cat(photos), torch.cat(shown), tuple(ranks))


def cmc_curve(ranks: Sequence[Sequence[int]], length: int = 50) -> list[float]:
    """The cumulative match characteristic: the share of queries with a right photo among their first k.

    Args:
        ranks: As in `Rankings`; queries without a right photo do not count.
        length: The largest k, at least 1.

    Returns:
        Shares in 0..1 for k = 1..length; those of 1, 5 and 10 are `score_embeddings`' rank1, rank5, rank10.

    Raises:
        ValueError: `length` is out of range, or no query has a right photo.
    """
    raise_faults(violations({"length": length}, {"length": integer(1)}))
    first = torch.tensor([min(found) for found in ranks if found])
    if not len(first):
        raise ValueError(f"ranks must hold a query with a right photo, got {len(ranks)} without one")
    return [(first <= k).double().mean().item() for k in range(1, length + 1)]
