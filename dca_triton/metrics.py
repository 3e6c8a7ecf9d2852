"""Measures of a trained model: top-k accuracy, and the retrieval scores of re-identification.

Pure functions of tensors; nothing here knows a model or a dataset.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dca_triton.distances import Distances, squared_distances

CMC_RANKS = (1, 5, 10)
JUNK_ID = -1


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


def topk_accuracy(probabilities: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Share of samples whose label is among the k best classes, in 0..1, for each k.

    A class that ties with the label counts as better: a model that says the same of all classes scores 0.
    When there are no more than k classes the share is 1, by definition.

    Args:
        probabilities: (S, K), any floating dtype; only their order matters, so logits serve too.
        labels: (S,) integers in 0..K-1.
        ks: each at least 1.

    Raises:
        ValueError: on other shapes, dtypes or ranges, on NaN, and when S or K is 0.
    """
    problems = []
    if probabilities.ndim != 2 or not probabilities.is_floating_point() or 0 in probabilities.shape:
        problems.append(f"probabilities must be floating, (S, K) and not empty, is {_kind(probabilities)}")
    elif (bad := probabilities.isnan().any(1)).any():
        problems.append(f"probabilities must be numbers, is NaN in {_rows(bad)}")
    if labels.shape != probabilities.shape[:1] or not _is_integer(labels):
        problems.append(f"labels must be integers of shape ({len(probabilities)},), is {_kind(labels)}")
    elif (bad := (labels < 0) | (labels >= probabilities.shape[-1])).any():
        problems.append(f"labels must lie in 0..{probabilities.shape[-1] - 1}, does not in {_rows(bad)}")
    if min(ks, default=0) < 1:
        problems.append(f"ks must be one or more numbers of at least 1, is {tuple(ks)}")
    _refuse("topk_accuracy", problems)

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
    metric: Literal["euclidean", "cosine"] = "euclidean",
    chunk_size: int = 64,
    rerank: Distances | None = None,
) -> ReidMetrics:
    """mAP, CMC and mINP of ranking the gallery for each query (the protocol of Zheng et al., ICCV 2015).

    Gallery photos of the query's id are right answers, except those of its own camera: these are left out,
    and so is all junk (id -1). The others are wrong; so an id that no query has, such as Market-1501's
    distractors 0000, is never right. AP is the mean of the precisions at the right photos, not interpolated.

    Ties never favour the model: of two photos at one distance the wrong one is ranked first. Without ties it
    is the usual protocol. Two photos with the same features always tie (see `squared_distances`), and neither
    `chunk_size` nor, without `rerank`, the order of the photos changes any digit.

    Args:
        query_features: (Q, C), any floating dtype, finite as float32; not zero when metric is cosine.
        query_ids: (Q,) integers.
        query_cameras: (Q,) integers. Without cameras, give all queries one that no gallery photo has.
        gallery_features: (G, C), like the queries'.
        gallery_ids: (G,) integers.
        gallery_cameras: (G,) integers.
        metric: cosine divides each feature by its length first.
        chunk_size: queries ranked at once; each takes about 40 G bytes, besides 8 C (Q + G) for the features.
        rerank: distances to rank by instead, such as `dca_triton.distances.k_reciprocal_rerank`.

    Raises:
        ValueError: on other shapes, dtypes, devices or options, on features that are not finite, when a side
            is empty, and when no query has a match.
    """
    sides = {
        "query": (query_features, query_ids, query_cameras),
        "gallery": (gallery_features, gallery_ids, gallery_cameras),
    }
    problems = [p for side, tensors in sides.items() for p in _side_problems(side, *tensors, metric)]
    if query_features.shape[1:] != gallery_features.shape[1:]:
        shapes = f"{tuple(query_features.shape)} and {tuple(gallery_features.shape)}"
        problems.append(f"query_features and gallery_features must have the same width C, are {shapes}")
    devices = {str(tensor.device) for tensors in sides.values() for tensor in tensors}
    if len(devices) > 1:
        problems.append(f"all tensors must be on one device, are on {' and '.join(sorted(devices))}")
    if metric not in ("euclidean", "cosine"):
        problems.append(f"metric must be 'euclidean' or 'cosine', is {metric!r}")
    if chunk_size < 1:
        problems.append(f"chunk_size must be at least 1, is {chunk_size}")
    _refuse("reid_metrics", problems)

    known = gallery_ids != JUNK_ID
    gallery_ids, gallery_cameras = gallery_ids[known], gallery_cameras[known]
    prepare = _unit_rows if metric == "cosine" else torch.Tensor.float
    blocks = (rerank or squared_distances)(
        prepare(query_features.detach()), prepare(gallery_features.detach()[known]), chunk_size
    )
    ranks: list[list[int]] = []
    asked = zip(query_ids.split(chunk_size), query_cameras.split(chunk_size), strict=True)
    for distances, (ids, cameras) in zip(blocks, asked, strict=True):
        same_id = ids[:, None] == gallery_ids
        same_camera = cameras[:, None] == gallery_cameras
        ranks += _ranks_of_right(distances, right=same_id & ~same_camera, wrong=~same_id)

    answered = [r for r in ranks if r]
    if not answered:
        match = "a gallery photo of its id from another camera"
        raise ValueError(
            f"reid_metrics: query_ids must have a match ({match}), all {len(ranks)} queries lack one"
        )
    return ReidMetrics(
        mAP=_mean([_mean([right / rank for right, rank in enumerate(r, start=1)]) for r in answered]),
        cmc={k: _mean([float(r[0] <= k) for r in answered]) for k in CMC_RANKS},
        mINP=_mean([len(r) / r[-1] for r in answered]),
        queries=len(ranks),
        queries_without_match=len(ranks) - len(answered),
    )


def _ranks_of_right(distances: Tensor, right: Tensor, wrong: Tensor) -> list[list[int]]:
    """Ascending ranks, from 1, of each query's right photos among its right and wrong ones; all are (q, G).

    The gallery is never sorted, only the few right distances are; each wrong photo is then counted before the
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


def _unit_rows(x: Tensor) -> Tensor:
    # In chunks, for a float64 copy of the whole would double the memory.
    return torch.cat(
        [(r / r.norm(dim=1, keepdim=True)).float() for r in map(torch.Tensor.double, x.split(4096))]
    )


def _mean(values: list[float]) -> float:
    # Rounded once, at the end, so that the order of the photos does not show.
    return math.fsum(values) / len(values)


def _side_problems(side: str, features: Tensor, ids: Tensor, cameras: Tensor, metric: str) -> list[str]:
    problems = []
    if features.ndim != 2 or not features.is_floating_point() or 0 in features.shape:
        problems.append(f"{side}_features must be floating, 2-D and not empty, is {_kind(features)}")
    elif (bad := ~features.float().isfinite().all(1)).any():
        problems.append(f"{side}_features must be finite as float32, is not in {_rows(bad)}")
    elif metric == "cosine" and (bad := (features.float() == 0).all(1)).any():
        problems.append(f"{side}_features must not be zero for cosine, is in {_rows(bad)}")
    for name, tensor in (("ids", ids), ("cameras", cameras)):
        if tensor.shape != features.shape[:1] or not _is_integer(tensor):
            shape = tuple(features.shape[:1])
            problems.append(f"{side}_{name} must be integers of shape {shape}, is {_kind(tensor)}")
    return problems


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _rows(bad: Tensor) -> str:
    rows = bad.nonzero().flatten().tolist()
    return (
        f"{len(rows)} of {len(bad)} rows ({', '.join(map(str, rows[:5]))}{', ...' if len(rows) > 5 else ''})"
    )


def _refuse(function: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{function}: {'; '.join(problems)}")
