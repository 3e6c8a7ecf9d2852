"""Rankings against plain sorting, and CMC curves against the scores."""

import pytest
import torch

from dca_triton.evaluation import (
    Embeddings,
    Rankings,
    cmc_curve,
    rank_embeddings,
    score_embeddings,
    squared_distances,
)


def side(count: int, seed: int, cameras: int = 3, ids: int = 6) -> Embeddings:
    """Features of few values, so that distances tie."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randint(1, 3, (count, 4), generator=rng).float()
    labels = torch.randint(-1, ids, (count,), generator=rng)
    camera = torch.randint(-1, cameras, (count,), generator=rng)
    return Embeddings(features, labels, camera, tuple(f"{seed}/{i % 9}.jpg" for i in range(count)))


def slow_ranking(query: Embeddings, gallery: Embeddings, q: int) -> list[tuple[int, bool]]:
    """Positions in the gallery and whether they are right, the nearest first and wrong before right."""
    distances = torch.cat(list(squared_distances(query.features, gallery.features, 64)))[q].tolist()
    found = []
    for g, distance in enumerate(distances):
        same = bool(query.labels[q] == gallery.labels[g])
        camera = int(query.cameras[q])
        own = same and camera != -1 and camera == int(gallery.cameras[g])
        if gallery.labels[g] != -1 and not own and query.paths[q] != gallery.paths[g]:
            found.append((distance, same, g))
    return [(g, same) for _, same, g in sorted(found)]


def test_rankings_equal_plain_sorting() -> None:
    query, gallery = side(25, 0), side(70, 1)
    query = query._replace(paths=tuple(f"1/{i % 9}.jpg" for i in range(25)))  # some lie in both
    for k in (1, 7, 90):
        found = rank_embeddings(query, gallery, k, "euclidean", progress=False)
        distances = torch.cat(list(squared_distances(query.features, gallery.features, 64)))
        assert found.photos.shape == found.right.shape == (25, min(k, int((gallery.labels != -1).sum())))
        for q in range(25):
            expected = slow_ranking(query, gallery, q)
            shown = [g for g in found.photos[q].tolist() if g != -1]
            # Photos at one distance and alike right or wrong may come in any order.
            assert distances[q, shown].tolist() == [distances[q, g] for g, _ in expected[:k]]
            assert found.right[q, : len(shown)].tolist() == [same for _, same in expected[:k]]
            assert not found.right[q, len(shown) :].any() and set(shown) <= {g for g, _ in expected}
            assert found.ranks[q] == tuple(r for r, (_, same) in enumerate(expected, 1) if same)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metric": "euclidean"},
        {"rerank": True},
        {"expand": 5, "alpha": 1.0},
        {"expand": 5, "rerank": True},
    ],
)
def test_curves_and_precisions_are_the_scores(options: dict) -> None:
    query, gallery = side(25, 0), side(70, 1)
    found = rank_embeddings(query, gallery, progress=False, **options)
    scores = score_embeddings(query, gallery, progress=False, **options)
    curve = cmc_curve(found.ranks, 30)
    assert len(curve) == 30 and curve == sorted(curve)
    assert [curve[k - 1] for k in (1, 5, 10)] == [scores[f"rank{k}"] for k in (1, 5, 10)]
    precisions = [ap for ap in found.average_precisions() if ap is not None]
    assert sum(precisions) / len(precisions) == pytest.approx(scores["mAP"], abs=1e-12)
    assert len(precisions) == scores["matched_queries"] < 25


def test_queries_without_a_match() -> None:
    query, gallery = side(3, 0), side(9, 1)._replace(labels=torch.full((9,), 77))
    found = rank_embeddings(query, gallery, 4, progress=False)
    assert found.ranks == ((), (), ()) and not found.right.any() and (found.photos >= 0).all()
    assert found.average_precisions() == [None] * 3
    with pytest.raises(ValueError, match="ranks must hold a query with a right photo, got 3 without one"):
        cmc_curve(found.ranks)
    assert cmc_curve([(2, 5), (), (1,)], 3) == [0.5, 1, 1]
    for call in (lambda: rank_embeddings(query, gallery, 0), lambda: cmc_curve([(1,)], 0)):
        with pytest.raises(ValueError, match="must be an integer >= 1, got 0"):
            call()
    assert Rankings._fields == ("photos", "right", "ranks")
