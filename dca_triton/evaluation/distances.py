"""Distances for ranking a gallery, in blocks of queries: Euclidean, or k-reciprocal re-ranking.

`dca_triton.evaluation.reid_metrics` takes either.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import integer, number, raise_faults, violations
from ..progress import progress as progress_bar

Distances = Callable[[Tensor, Tensor, int], Iterable[Tensor]]
"""(query (Q, C), gallery (G, C), chunk_size) -> blocks (<= chunk_size, G), in the order of the queries."""

VALUE_RULES = {
    "k1": integer(1),
    "k2": integer(1),
    "original_weight": number(lambda v: 0 <= v <= 1, "a number in 0..1"),
}


def squared_distances(
    query: Tensor, gallery: Tensor, chunk_size: int, progress: bool = False
) -> Iterator[Tensor]:
    """Squared Euclidean distances, bit-identical for any split of the work.

    A matrix product sums in an order that depends on its shape, so the distances of a query to two copies of
    one photo would differ in their last digit, and ties would be lost. Here every feature is first rounded to
    about float32's precision, such that float64 holds each product and each sum of products exactly.

    Args:
        query: (Q, C) float32, finite.
        gallery: (G, C) float32, finite.
        chunk_size: Queries of a block.
        progress: Show a progress bar.

    Yields:
        (<= chunk_size, G) float64, exactly 0 between equal features.
    """
    blocks = _blocks(_exact_rows(query), _exact_rows(gallery), chunk_size)
    return _watched(blocks, "rank", len(query), chunk_size, progress)


def k_reciprocal_rerank(
    query: Tensor,
    gallery: Tensor,
    chunk_size: int,
    k1: int = 20,
    k2: int = 6,
    original_weight: float = 0.3,
    progress: bool = False,
) -> Iterator[Tensor]:
    """Re-ranked distances of Zhong et al. (CVPR 2017), in the form of the authors' code.

    Two photos are near when their k-reciprocal neighbors are the same. Among all S = Q + G photos, R(i, k)
    are those of the k nearest of i that have i among their own k nearest (eq. 3), i itself coming first.
    R*(i) adds to R(i, k1) each R(j, k1/2) of a j in R(i, k1) of which more than 2/3 lie in R(i, k1) (eq. 4,
    its >= a >). Row i of V is exp(-d(i, j)) for j in R*(i) and 0 elsewhere, where d is the squared distance
    divided by the largest of its row (eq. 7). It is divided by its sum, then averaged over the k2 nearest of
    i (eq. 11). The Jaccard distance is 1 - m / (2 - m), with m = sum_j min(V_ij, V_gj) (eq. 10), and the
    answer (1 - w) * Jaccard + w * d (eq. 12), w being the `original_weight`.

    The work is S^2 C multiplications, but nothing S x S is held: V is sparse, and blocks are made one by one.
    Photos at one distance come in the order that torch.topk gives them.

    Args:
        query: (Q, C) float32, finite.
        gallery: (G, C) float32, finite.
        chunk_size: Photos of a block.
        k1: Neighbors, at least 1.
        k2: Neighbors averaged over, in 1..k1+1; 1 averages nothing.
        original_weight: In 0..1.
        progress: Show progress bars, one for the search of neighbors, which is most of the work.

    Yields:
        (<= chunk_size, G) float64, in 0..1.

    Raises:
        ValueError: k1, k2 or original_weight is out of range.
    """
    faults = violations({"k1": k1, "k2": k2, "original_weight": original_weight}, VALUE_RULES)
    if isinstance(k1, int) and isinstance(k2, int) and k2 > k1 + 1:
        faults.append(f"k2 must be at most k1 + 1, {k1 + 1}, got {k2}")
    raise_faults(faults)
    blocks = _reranked(query, gallery, chunk_size, k1, k2, original_weight, progress)
    return _watched(blocks, "rank", len(query), chunk_size, progress)


def _exact_rows(x: Tensor) -> Tensor:
    """float64 copy of x (S, C), each row made of integers up to 2^b times a power of two.

    The product of two such rows sums C integers up to 2^(2 b): with 2 b + log2 C <= 53, nothing is rounded.
    """
    bits = (53 - (x.shape[1] - 1).bit_length()) // 2
    exact = x.to(torch.float64, copy=True)
    largest = torch.linalg.vector_norm(exact, ord=torch.inf, dim=1, keepdim=True)
    largest.clamp_(min=torch.finfo(torch.float32).tiny)
    step = largest / torch.frexp(largest).mantissa * 2.0**-bits
    return exact.div_(step).round_().mul_(step)


def _blocks(query: Tensor, gallery: Tensor, chunk_size: int) -> Iterator[Tensor]:
    gallery_norms = torch.einsum("gc,gc->g", gallery, gallery)
    for rows in query.split(chunk_size):
        norms = torch.einsum("qc,qc->q", rows, rows)
        yield (rows @ gallery.T).mul_(-2).add_(gallery_norms).add_(norms[:, None])


def _watched(
    blocks: Iterator[Tensor], name: str, rows: int, chunk_size: int, progress: bool
) -> Iterator[Tensor]:
    total = -(-rows // chunk_size)
    return iter(progress_bar(blocks, desc=name, total=total, unit="block", leave=False, disable=not progress))


class _Sparse(NamedTuple):
    """Rows of a sparse matrix: those of row i lie at start[i] .. start[i] + length[i] in column and value."""

    start: Tensor
    length: Tensor
    column: Tensor
    value: Tensor

    @classmethod
    def of(cls, rows: int, row: Tensor, column: Tensor, value: Tensor) -> "_Sparse":
        """Build from entries in ascending order of `row`."""
        length = torch.bincount(row, minlength=rows)
        return cls(length.cumsum(0) - length, length, column, value)

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all entries of `rows` (n,), in order: position in `rows` (0..n-1), column, value."""
        length = self.length[rows]
        owner = torch.arange(len(rows), device=rows.device).repeat_interleave(length)
        first = self.start[rows] - (length.cumsum(0) - length)
        place = torch.arange(len(owner), device=rows.device) + first[owner]
        return owner, self.column[place], self.value[place]


def _reranked(
    query: Tensor,
    gallery: Tensor,
    chunk_size: int,
    k1: int,
    k2: int,
    original_weight: float,
    progress: bool,
) -> Iterator[Tensor]:
    photos = _exact_rows(torch.cat([query, gallery]))
    found = [
        (block.topk(min(k1 + 1, len(photos)), largest=False).indices, block.amax(1))
        for block in _watched(
            _blocks(photos, photos, chunk_size), "neighbors", len(photos), chunk_size, progress
        )
    ]
    nearest = torch.cat([indices for indices, _ in found])  # (S, k1 + 1), photo i itself is its first
    furthest = torch.cat([distances for _, distances in found]).clamp_(min=torch.finfo(torch.float64).tiny)

    encoding = _encoding(photos, nearest, furthest, round(k1 / 2), chunk_size)
    encoding = _averaged(encoding, nearest[:, :k2], chunk_size)
    shared = _shared_weight(encoding, len(query), chunk_size)
    original = _blocks(photos[: len(query)], photos[len(query) :], chunk_size)
    for m, d, largest in zip(shared, original, furthest[: len(query)].split(chunk_size), strict=True):
        yield (1 - m / (2 - m)) * (1 - original_weight) + d / largest[:, None] * original_weight


def _reciprocal(nearest: Tensor, chunk_size: int) -> Tensor:
    """(S, k) bool: True if photo i is among the k nearest of its neighbor nearest[i, a]."""
    photo = torch.arange(len(nearest), device=nearest.device)
    chunks = zip(nearest.split(chunk_size), photo.split(chunk_size), strict=True)
    return torch.cat([(nearest[n] == i[:, None, None]).any(-1) for n, i in chunks])


def _encoding(photos: Tensor, nearest: Tensor, furthest: Tensor, half: int, chunk_size: int) -> _Sparse:
    """V (S, S) of eq. 7: the weight of each photo in R*(i)."""
    mutual, near = _reciprocal(nearest, chunk_size), nearest[:, : half + 1]
    near_mutual = _reciprocal(near, chunk_size)
    parts = []
    for row in torch.arange(len(photos), device=photos.device).split(chunk_size):
        n, own = nearest[row], mutual[row]  # (n, k1 + 1): R(i, k1) is n[own]
        sets, valid = near[n], near_mutual[n]  # (n, k1 + 1, k1/2 + 1): R(j, k1/2) for each neighbor j
        inside = valid & ((sets[..., None] == n[:, None, None]) & own[:, None, None]).any(-1)
        joined = own & (3 * inside.sum(-1) > 2 * valid.sum(-1))
        first = row * len(photos)
        keys = (n + first[:, None])[own], (sets + first[:, None, None])[valid & joined[..., None]]
        members = torch.cat(keys).unique()
        i, j = members // len(photos), members % len(photos)
        weight = torch.exp(-(photos[i] - photos[j]).square().sum(1) / furthest[i])
        total = weight.new_zeros(len(row)).index_add_(0, i - row[0], weight)
        parts.append((i, j, weight / total[i - row[0]]))
    return _Sparse.of(len(photos), *(torch.cat(part) for part in zip(*parts, strict=True)))


def _averaged(encoding: _Sparse, nearest: Tensor, chunk_size: int) -> _Sparse:
    """Local query expansion (eq. 11): row i becomes the mean of the rows nearest[i]; nearest is (S, k2)."""
    size, k2 = nearest.shape
    parts = []
    for row in torch.arange(size, device=nearest.device).split(chunk_size):
        owner, column, value = encoding.entries(nearest[row].flatten())
        members, place = ((row[0] + owner // k2) * size + column).unique(return_inverse=True)
        mean = value.new_zeros(len(members)).index_add_(0, place, value / k2)
        parts.append((members // size, members % size, mean))
    return _Sparse.of(size, *(torch.cat(part) for part in zip(*parts, strict=True)))


def _shared_weight(encoding: _Sparse, queries: int, chunk_size: int) -> Iterator[Tensor]:
    """Blocks (<= chunk_size, G) of sum_j min(V_ij, V_gj), i a query and g a photo of the gallery behind them.

    This uses an inverted index: V_ij meets the gallery's entries of column j only; others would add 0.
    """
    size = len(encoding.length)
    photo, column, value = encoding.entries(torch.arange(queries, size, device=encoding.column.device))
    order = column.argsort(stable=True)
    inverted = _Sparse.of(size, column[order], photo[order], value[order])
    for chunk in torch.arange(queries, device=column.device).split(chunk_size):
        i, j, v = encoding.entries(chunk)
        entry, photo, value = inverted.entries(j)
        shared = value.new_zeros(len(chunk) * (size - queries))
        shared.index_add_(0, i[entry] * (size - queries) + photo, torch.minimum(v[entry], value))
        yield shared.view(len(chunk), size - queries)
