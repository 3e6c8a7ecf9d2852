"""Query expansion against a plain loop."""

import math

import pytest
import torch
from torch import Tensor

from dca_triton.evaluation import Embeddings, expand_queries, score_embeddings


def features(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def unit(row: list[float]) -> list[float]:
    return [x / math.hypot(*row) for x in row]


def slow_expand(query: Tensor, gallery: Tensor, k: int, alpha: float, metric: str) -> list[list[float]]:
    prepare = unit if metric == "cosine" else list
    photos = [prepare(row) for row in gallery.tolist()]
    answer = []
    for q in map(prepare, query.tolist()):
        nearest = sorted(photos, key=lambda g: math.dist(q, g))[:k]
        weights = [1.0]
        for g in nearest:
            cosine = sum(a * b for a, b in zip(q, g, strict=True)) / math.hypot(*q) / math.hypot(*g)
            weights.append(max(0.0, cosine) ** alpha)
        rows = [q, *nearest]
        answer.append(
            [
                sum(w * row[c] for w, row in zip(weights, rows, strict=True)) / sum(weights)
                for c in range(len(q))
            ]
        )
    return answer


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(("k", "alpha"), [(1, 3.0), (5, 0.0), (5, 3.0), (7, 0.5), (50, 1.0)])
def test_expansion_equals_a_plain_loop(k: int, alpha: float, metric: str) -> None:
    q, g = features(9, 6, 0), features(23, 6, 1)
    expected = torch.tensor(slow_expand(q, g, k, alpha, metric))
    for chunk_size in (1, 4, 100):
        found = expand_queries(q, g, k, alpha, metric, chunk_size)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(found, expand_queries(q, g, k, alpha, metric))


def test_a_query_stays_where_its_neighbors_are_itself() -> None:
    q = features(3, 5, 2)
    found = expand_queries(q, q.repeat(4, 1), k=4, metric="euclidean")
    torch.testing.assert_close(found, q)


def test_faults_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        expand_queries(torch.ones(2, 3), torch.ones(2, 4), k=0, alpha=-1, metric="l1")
    for words in ("k must be", "alpha must be a number >= 0", "metric must be", "(G, C)"):
        assert words in str(caught.value)


def side(count: int, camera: int, seed: int) -> Embeddings:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (count,), generator=rng)
    centers = torch.randn(5, 12, generator=torch.Generator().manual_seed(7))
    x = centers[labels] + 0.8 * torch.randn(count, 12, generator=rng)
    return Embeddings(x, labels, torch.full((count,), camera), ("",) * count)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("rerank", [False, True])
def test_scores_of_expanded_queries(metric, rerank: bool) -> None:
    """Off, nothing changes; on, the scores are those of the expanded features, and junk is no neighbor."""
    query, gallery = side(30, 1, 0), side(120, 2, 1)
    options = {"metric": metric, "rerank": rerank, "progress": False}
    plain = score_embeddings(query, gallery, **options)
    assert score_embeddings(query, gallery, **options, expand=0, alpha=9.0) == plain
    found = score_embeddings(query, gallery, **options, expand=6, alpha=1.0)
    moved = query._replace(features=expand_queries(query.features, gallery.features, 6, 1.0, metric))
    assert found == score_embeddings(moved, gallery, **options) != plain
    assert found != score_embeddings(query, gallery, **options, expand=6, alpha=0.0)
    assert rerank or found["mAP"] > plain["mAP"] + 0.02  # noisy identities are what it is for
    junk = Embeddings(*(torch.cat([a, b]) for a, b in zip(gallery[:3], query[:3], strict=True)), ("",) * 150)
    junk.labels[120:] = -1
    assert score_embeddings(query, junk, **options, expand=6, alpha=1.0) == found


def test_a_fault_is_named() -> None:
    with pytest.raises(ValueError, match="k must be an integer >= 1, got -1"):
        score_embeddings(side(3, 1, 0), side(9, 2, 1), expand=-1, progress=False)
