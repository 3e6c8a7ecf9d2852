"""Measures of a trained model: top-k accuracy, and the retrieval scores of re-identification.

Pure functions of tensors, independent of models and datasets.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ..arguments import Rule, choice, integer, raise_faults, violations
from ..branches import Metric
from ..tensor_arguments import row_violations, tensor_violations
from .distances import Distances, squared_distances

CMC_RANKS = (1, 5, 10)
JUNK_ID = -1
UNKNOWN = -1  # a camera, or a photo's number
RANKS: Rule = (lambda ks: min(ks, default=0) >= 1, "one or more integers >= 1")
VALUE_RULES = {"metric": choice(*get_args(Metric)), "chunk_size": integer(1)}
SIDES = {"query": "Q", "gallery": "G"}


@dataclass(frozen=True)
class ReidMetrics:
    """Retrieval scores in 0..1, each a mean over the queries that have a match.

    `cmc[k]` is the share of queries with a right photo among their first k. `mINP` is the mean of the number
    of right photos over the rank of the last of them (Ye et al., TPAMI 2021).
    """

    mAP: float
    cmc: dict[int, float]
    mINP: float
    queries: int
    queries_without_match: int

    @property
    def matched_queries(self) -> int:
        """The number of queries that the means are taken over."""
        return self.queries - self.queries_without_match


def topk_accuracy(probabilities: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Share of samples whose label is among the k best classes, in 0..1, for each k.

    A class that ties with the label counts as better: a model that gives all classes the same score gets 0.
    When there are no more than k classes the share is 1, by definition.

    Args:
        probabilities: (S, K), any floating dtype. Only their order matters, so logits serve as well.
        labels: (S,) integers in 0..K-1.
        ks: Each at least 1.

    Raises:
        ValueError: Other shapes, dtypes or ranges, NaN, or S or K is 0; every reason at once.
    """
    arguments = {"probabilities": probabilities, "labels": labels}
    faults = tensor_violations(
        arguments, {"probabilities": "floating-point (S, K)", "labels": "integer (S,)"}
    )
    if not faults:
        classes = probabilities.shape[1]
        faults += row_violations("probabilities", "free of NaN", probabilities.isnan().any(1), "NaN")
        faults += row_violations("labels", f"in 0..{classes - 1}", (labels < 0) | (labels >= classes))
    raise_faults(faults + violations({"ks": ks}, {"ks": RANKS}))

    own = probabilities.gather(1, labels.long()[:, None])
    better = (probabilities >= own).sum(1) - 1
    return {k: (better < k).double().mean().item() for k in ks}


def reid_metrics(
    query_features: Tensor,
    query_ids: Tensor,
    query_cameras: Tensor,
    gallery_features: Tensor,
    gallery_ids: Tensor,
    gallery_cameras: Tensor,
    metric: Metric = "euclidean",
    chunk_size: int = 64,
    distances: Distances = squared_distances,
    query_photos: Tensor | None = None,
    gallery_photos: Tensor | None = None,
) -> ReidMetrics:
    """mAP, CMC and mINP of ranking the gallery for each query (the protocol of Zheng et al., ICCV 2015).

    Gallery photos of the query's id are right answers, except those of its own camera: these are left out,
    and so is all junk (id -1). The others are wrong; so an id that no query has, such as Market-1501's
    distractors 0000, is never right. AP is the mean of the precisions at the right photos, not interpolated.
    Camera -1 is unknown and leaves nothing out. A number below -1 leaves out photos of the same number, as a
    camera does.

    Ties never favor the model: of two photos at one distance the wrong one is ranked first. Without ties it
    is the usual protocol. Two photos with the same features always tie (see `squared_distances`), and neither
    `chunk_size` nor, with `squared_distances`, the order of the photos changes any digit.

    Args:
        query_features: (Q, C), any floating dtype, finite as float32; not zero if metric is cosine.
        query_ids: (Q,) integers.
        query_cameras: (Q,) integers, -1 where the camera is unknown.
        gallery_features: (G, C), like the queries'.
        gallery_ids: (G,) integers.
        gallery_cameras: (G,) integers.
        metric: cosine divides each feature by its length first.
        chunk_size: Queries ranked at once. Each takes about 40 G bytes; the features take 8 C (Q + G) more.
        distances: Distances to rank by, for example `dca_triton.evaluation.k_reciprocal_rerank`.
        query_photos: (Q,) integers that number the photos, -1 for unknown. A query never meets the gallery
            photo of its own number. Needed only if query and gallery share photos whose cameras are unknown.
        gallery_photos: (G,) integers; required with `query_photos`.

    Raises:
        ValueError: Other shapes, dtypes, devices or options, features that are not finite, an empty side;
            every reason at once. Or no query has a match.
    """
    blocks = comparisons(**locals())
    ranks = [found for block in blocks for found in ranks_of_right(*block)]

    answered = [r for r in ranks if r]
    if not answered:
        match = "a gallery photo of the same id"
        if (query_cameras > UNKNOWN).any():
            match += " from another camera"
        elif query_photos is not None or (query_cameras < UNKNOWN).any():
            match += " other than the query or its copies"
        raise ValueError(f"query_ids must have a match ({match}), got {len(ranks)} queries without one")
    return ReidMetrics(
        mAP=_mean([average_precision(r) for r in answered]),
        cmc={k: _mean([float(r[0] <= k) for r in answered]) for k in CMC_RANKS},
        mINP=_mean([len(r) / r[-1] for r in answered]),
        queries=len(ranks),
        queries_without_match=len(ranks) - len(answered),
    )


def comparisons(
    query_features: Tensor,
    query_ids: Tensor,
    query_cameras: Tensor,
    gallery_features: Tensor,
    gallery_ids: Tensor,
    gallery_cameras: Tensor,
    metric: Metric = "euclidean",
    chunk_size: int = 64,
    distances: Distances = squared_distances,
    query_photos: Tensor | None = None,
    gallery_photos: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of distances, of what is right and of what is wrong, in the order of the queries.

    Arguments and errors are those of `reid_metrics`.

    Yields:
        Three tensors (<= chunk_size, G'), of which the last two are bool and neither holds what is left out;
        the gallery's G' photos are those of an id other than JUNK_ID, in their order.
    """
    query = {"features": query_features, "ids": query_ids, "cameras": query_cameras}
    gallery = {"features": gallery_features, "ids": gallery_ids, "cameras": gallery_cameras}
    faults = violations({"metric": metric, "chunk_size": chunk_size}, VALUE_RULES)
    if query_photos is not None and gallery_photos is not None:
        query["photos"], gallery["photos"] = query_photos, gallery_photos
    elif query_photos is not None or gallery_photos is not None:
        faults.append("query_photos and gallery_photos must be given together, got one of them")
    raise_faults(faults + _side_violations({"query": query, "gallery": gallery}, metric))

    known = gallery_ids != JUNK_ID
    gallery = {name: tensor[known] for name, tensor in gallery.items()}
    prepare = unit_rows if metric == "cosine" else torch.Tensor.float
    blocks = distances(prepare(query_features.detach()), prepare(gallery["features"].detach()), chunk_size)
    rows_of_blocks = torch.arange(len(query_ids), device=query_ids.device).split(chunk_size)
    for block, rows in zip(blocks, rows_of_blocks, strict=True):
        same_id = query_ids[rows, None] == gallery["ids"]
        left_out = same_id & _same(query_cameras[rows], gallery["cameras"])
        if "photos" in query:
            left_out |= _same(query["photos"][rows], gallery["photos"])
        yield block, same_id & ~left_out, ~same_id & ~left_out


def _same(query: Tensor, gallery: Tensor) -> Tensor:
    """(q, G) bool: True for the same known camera or photo."""
    return (query[:, None] == gallery) & (gallery != UNKNOWN)


def ranks_of_right(distances: Tensor, right: Tensor, wrong: Tensor) -> list[list[int]]:
    """Ascending ranks, from 1, of each query's right photos among its right and wrong ones; all are (q, G).

    Only the few right distances are sorted, never the gallery. Each wrong photo is then counted before the
    first right one that is not nearer than it.
    """
    counts = right.sum(1)
    row, photo = right.nonzero(as_tuple=True)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    width = int(counts.max())
    ladder = distances.new_full((len(distances), width), torch.inf)  # (q, M), the right distances
    ladder[row, place] = distances[row, photo]
    ladder = ladder.sort(dim=1).values

    bins = torch.searchsorted(ladder, distances)
    bins += torch.arange(len(distances), device=bins.device)[:, None] * (width + 1)
    ahead = torch.bincount(bins[wrong], minlength=len(distances) * (width + 1))
    ahead = ahead.view(-1, width + 1)[:, :width].cumsum(1)  # (q, M), the wrong photos before each right one
    ranks = ahead + torch.arange(1, width + 1, device=ahead.device)
    return [r[:count] for r, count in zip(ranks.tolist(), counts.tolist(), strict=True)]


def unit_rows(x: Tensor) -> Tensor:
    """(S, C) float32: each row divided by its length."""
    # In chunks, because a float64 copy of the whole would double the memory.
    return torch.cat(
        [(r / r.norm(dim=1, keepdim=True)).float() for r in map(torch.Tensor.double, x.split(4096))]
    )


def average_precision(ranks: Sequence[int]) -> float:
    """The mean of the precisions at the ranks, from 1 and ascending, of a query's right photos."""
    return _mean([right / rank for right, rank in enumerate(ranks, start=1)])


def _mean(values: list[float]) -> float:
    # Rounded once, at the end, so that the order of the photos does not show.
    return math.fsum(values) / len(values)


def _side_violations(sides: dict[str, dict[str, Tensor]], metric: str) -> list[str]:
    tensors = {f"{side}_{name}": x for side, named in sides.items() for name, x in named.items()}
    rules = {
        f"{side}_{name}": f"floating-point ({size}, C)" if name == "features" else f"integer ({size},)"
        for side, size in SIDES.items()
        for name in sides[side]
    }
    faults = tensor_violations(tensors, rules, same_device=True)
    for name in ("query_features", "gallery_features"):
        if not tensor_violations(tensors, {name: "floating-point (S, C)"}):
            features = tensors[name].float()
            faults += row_violations(name, "finite as float32", ~features.isfinite().all(1))
            if metric == "cosine":
                faults += row_violations(name, "nonzero for cosine", (features == 0).all(1), "zeros")
    return faults
