"""Query expansion: each query is averaged with its nearest gallery photos before the gallery is ranked."""

from typing import get_args

import torch
from torch import Tensor

from ..arguments import choice, integer, number, raise_faults, violations
from ..branches import Metric
from ..tensor_arguments import tensor_violations
from .distances import squared_distances
from .metrics import unit_rows

VALUE_RULES = {
    "k": integer(1),
    "alpha": number(lambda v: v >= 0, "a number >= 0"),
    "metric": choice(*get_args(Metric)),
    "chunk_size": integer(1),
}
TENSOR_RULES = {"query": "floating-point (Q, C)", "gallery": "floating-point (G, C)"}


def expand_queries(
    query: Tensor,
    gallery: Tensor,
    k: int = 10,
    alpha: float = 3.0,
    metric: Metric = "cosine",
    chunk_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """Average each query with its nearest gallery photos: (alpha) query expansion.

    A query q becomes (q + sum_i w_i g_i) / (1 + sum_i w_i), where g_1..g_k are its nearest gallery photos
    and w_i = max(0, cos(q, g_i)) ** alpha (Radenovic et al., TPAMI 2019). With alpha = 0 all weights are
    equal, which is average query expansion (Chum et al., ICCV 2007). Labels and cameras are not used. Photos
    at the same distance come in the order of torch.topk.

    Args:
        query: (Q, C), any floating dtype, finite.
        gallery: (G, C), like the queries, without photos that must not be found, such as junk.
        k: Neighbors of each query, at least 1. A smaller gallery is used as a whole.
        alpha: At least 0; larger values trust near neighbors more.
        metric: cosine divides each feature by its length first.
        chunk_size: Queries of a block.
        progress: Show a progress bar.

    Returns:
        (Q, C) float32.

    Raises:
        ValueError: Other shapes, dtypes or values, every reason at once.
    """
    faults = violations(
        {"k": k, "alpha": alpha, "metric": metric, "chunk_size": chunk_size}, VALUE_RULES
    ) + tensor_violations({"query": query, "gallery": gallery}, TENSOR_RULES, same_device=True)
    raise_faults(faults)
    q, g = (unit_rows(x) if metric == "cosine" else x.float() for x in (query, gallery))
    expanded = []
    blocks = squared_distances(q, g, chunk_size, progress)
    for rows, distances in zip(q.split(chunk_size), blocks, strict=True):
        nearest = distances.topk(min(k, len(g)), largest=False).indices
        own, near = rows.double(), g[nearest].double()  # (n, C), (n, k, C)
        lengths = own.norm(dim=1)[:, None] * near.norm(dim=2)
        cosine = (own[:, None] * near).sum(2) / lengths.clamp_min(torch.finfo(torch.float64).tiny)
        weight = cosine.clamp_min(0) ** alpha
        total = own + (weight[..., None] * near).sum(1)
        expanded.append((total / (1 + weight.sum(1, keepdim=True))).float())
    return torch.cat(expanded)
