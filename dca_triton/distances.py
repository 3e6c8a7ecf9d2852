"""Distances to rank a gallery by, in blocks of queries."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Distances = Callable[[Tensor, Tensor, int], Iterable[Tensor]]
"""(query (Q, C), gallery (G, C), chunk_size) -> blocks (<= chunk_size, G), in the order of the queries."""


def squared_distances(query: Tensor, gallery: Tensor, chunk_size: int) -> Iterator[Tensor]:
    """Squared Euclidean distances, the same to the bit however the work is split.

    A matrix product sums in an order that depends on its shape, so the distances of a query to two copies of
    one photo would differ in their last digit, and ties would be lost. Here every feature is first rounded to
    about float32's precision, such that float64 holds each product and each sum of products exactly.

    Args:
        query: (Q, C) float32, finite.
        gallery: (G, C) float32, finite.
        chunk_size: queries of a block.

    Yields:
        (<= chunk_size, G) float64, at least 0.
    """
    query, gallery = _exact_rows(query), _exact_rows(gallery)
    gallery_norms = torch.einsum("gc,gc->g", gallery, gallery)
    for rows in query.split(chunk_size):
        norms = torch.einsum("qc,qc->q", rows, rows)
        yield (rows @ gallery.T).mul_(-2).add_(gallery_norms).add_(norms[:, None]).clamp_(min=0)


def _exact_rows(x: Tensor) -> Tensor:
    """float64 copy of x (S, C), each row made of integers up to 2^b times a power of two.

    The product of two such rows sums C integers up to 2^(2 b): with 2 b + log2 C <= 53, nothing is rounded.
    """
    bits = (53 - (x.shape[1] - 1).bit_length()) // 2
    exact = x.double()
    largest = torch.linalg.vector_norm(exact, ord=torch.inf, dim=1, keepdim=True)
    largest.clamp_(min=torch.finfo(torch.float32).tiny)
    step = largest / torch.frexp(largest).mantissa * 2.0**-bits
    return exact.div_(step).round_().mul_(step)
