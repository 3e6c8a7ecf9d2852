"""metrics: against plain loops over exact fractions, by hand, and under every change that must not matter."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dca_triton.evaluation import ReidMetrics, reid_metrics, topk_accuracy

Photos = tuple[Tensor, Tensor, Tensor]  # features, ids, cameras
SIDES = [f"{side}_{name}" for side in ("query", "gallery") for name in ("features", "ids", "cameras")]


def slow_metrics(query: Photos, gallery: Photos) -> dict[str, float] | None:
    """One query, one sorted list, as in the papers; exact, because the features are small integers."""
    precisions, inps, firsts, missed = [], [], [], 0
    for feature, identity, camera in zip(*(t.tolist() for t in query), strict=True):
        ranking = []
        for other, other_id, other_camera in zip(*(t.tolist() for t in gallery), strict=True):
            if other_id == -1 or (other_id == identity and other_camera == camera != -1):
                continue
            distance = sum((a - b) ** 2 for a, b in zip(feature, other, strict=True))
            ranking.append((distance, other_id == identity))
        ranking.sort()  # at one distance False (wrong) comes before True (right)
        ranks = [place for place, (_, right) in enumerate(ranking, start=1) if right]
        if not ranks:
            missed += 1
            continue
        precisions.append(sum(Fraction(n, rank) for n, rank in enumerate(ranks, start=1)) / len(ranks))
        inps.append(Fraction(len(ranks), ranks[-1]))
        firsts.append(ranks[0])
    if not firsts:
        return None
    n = len(firsts)
    cmc = {f"rank{k}": sum(first <= k for first in firsts) / n for k in (1, 5, 10)}
    return {"mAP": float(sum(precisions) / n), "mINP": float(sum(inps) / n), "missed": missed, **cmc}


def as_dict(m: ReidMetrics) -> dict[str, float]:
    cmc = {f"rank{k}": share for k, share in m.cmc.items()}
    return {"mAP": m.mAP, "mINP": m.mINP, "missed": m.queries_without_match, **cmc}


def photos(n: int, ids: int, cameras: int, width: int, spread: int, seed: int, junk: bool = False) -> Photos:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randint(-spread, spread + 1, (n, width), generator=rng).float()
    low = -1 if junk else 0
    identity = torch.randint(low, ids, (n,), generator=rng)
    return features, identity, torch.randint(-1, cameras, (n,), generator=rng)


sides = st.builds(
    lambda seed, q, g, ids, cameras, width, spread: (
        photos(q, ids, cameras, width, spread, seed),
        photos(g, ids, cameras, width, spread, seed + 1, junk=True),
    ),
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from([0, 1, 2, 1000]),
)


@given(sides, st.integers(1, 13))
def test_equals_plain_loops_with_ties_junk_and_queries_without_a_match(
    both: tuple[Photos, Photos], chunk_size: int
) -> None:
    query, gallery = both
    expected = slow_metrics(query, gallery)
    if expected is None:
        with pytest.raises(ValueError, match="must have a match"):
            reid_metrics(*query, *gallery, chunk_size=chunk_size)
    else:
        found = reid_metrics(*query, *gallery, chunk_size=chunk_size)
        assert as_dict(found) == pytest.approx(expected, rel=1e-15, abs=0)
        assert found.queries == len(query[0])


def test_by_hand() -> None:
    # Query 0, id 7, camera 1. The gallery in order of distance: same camera (left out), wrong, right, junk
    # (left out), right, wrong and right at one distance. Kept: wrong right right wrong right, ranks 2, 3, 5.
    # Query 1, id 8: no photo of another camera. Query 2, id 9: its one right photo is the nearest of 6.
    query = torch.tensor([[0.0], [0.0], [10.0]]), torch.tensor([7, 8, 9]), torch.tensor([1, 1, 1])
    gallery = (
        torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [5.0], [10.0]]),
        torch.tensor([7, 0, 7, -1, 7, 7, 8, 9]),
        torch.tensor([1, 1, 2, 2, 3, 2, 1, 2]),
    )
    found = reid_metrics(*query, *gallery)
    assert found == ReidMetrics(
        mAP=pytest.approx(((1 / 2 + 2 / 3 + 3 / 5) / 3 + 1) / 2),
        cmc={1: 0.5, 5: 1.0, 10: 1.0},
        mINP=pytest.approx((3 / 5 + 1) / 2),
        queries=3,
        queries_without_match=1,
    )


def wild_photos(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Photos, Photos]:
    rng = torch.Generator().manual_seed(seed)
    query, gallery = photos(41, 9, 3, 1, 1, seed), photos(203, 9, 3, 1, 1, seed + 1, junk=True)
    scales = torch.logspace(-3, 3, 37)
    features = [(torch.randn(n, 37, generator=rng) * scales + 2).to(dtype) for n in (41, 203)]
    features[1][50:100] = features[1][100:150]  # copies, most of them under another id
    return (features[0], *query[1:]), (features[1], *gallery[1:])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_neither_the_chunks_nor_the_order_change_a_digit(metric: str, dtype: torch.dtype) -> None:
    query, gallery = wild_photos(0, dtype)
    expected = reid_metrics(*query, *gallery, metric=metric)
    for chunk_size in (1, 2, 3, 5, 7, 8, 13, 40, 41, 1000):
        assert reid_metrics(*query, *gallery, metric=metric, chunk_size=chunk_size) == expected
    for seed in range(10):
        rng = torch.Generator().manual_seed(seed)
        q, g = (torch.randperm(len(side[0]), generator=rng) for side in (query, gallery))
        assert reid_metrics(*(t[q] for t in query), *(t[g] for t in gallery), metric=metric) == expected


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_without_ties_it_is_the_usual_sort(metric: str) -> None:
    # The usual evaluation: float64 distances by subtraction, argsort, and no rule for ties.
    rng = torch.Generator().manual_seed(3)
    query, gallery = torch.randn(50, 33, generator=rng), torch.randn(400, 33, generator=rng)
    ids, gallery_ids = torch.arange(50), torch.arange(400) % 50
    cameras, gallery_cameras = torch.zeros(50, dtype=torch.int32), torch.ones(400, dtype=torch.int32)
    a, b = query.double(), gallery.double()
    if metric == "cosine":
        a, b = torch.nn.functional.normalize(a), torch.nn.functional.normalize(b)
    order = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").argsort(dim=1)
    hits = gallery_ids[order] == ids[:, None]
    precision = hits.cumsum(1) / torch.arange(1, 401)
    found = reid_metrics(query, ids, cameras, gallery, gallery_ids, gallery_cameras, metric=metric)
    assert found.mAP == pytest.approx(((precision * hits).sum(1) / 8).mean().item(), rel=1e-6)
    assert found.cmc == pytest.approx({k: hits[:, :k].any(1).float().mean().item() for k in (1, 5, 10)})
    last = 400 - hits.int().flip(1).argmax(1)
    assert found.mINP == pytest.approx((8 / last).mean().item(), rel=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_collapsed_model_gets_the_worst_score(metric: str) -> None:
    # Every photo has the same awkward feature: all tie, so the 200 wrong ones come before the 3 right ones.
    feature = torch.randn(1, 769, generator=torch.Generator().manual_seed(0)) * 1e3
    query = feature.repeat(5, 1), torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    gallery = feature.repeat(203, 1), (torch.arange(203) >= 3).long(), torch.ones(203, dtype=torch.int64)
    found = reid_metrics(*query, *gallery, metric=metric, chunk_size=2)
    assert found.mAP == pytest.approx((1 / 201 + 2 / 202 + 3 / 203) / 3)
    assert found.cmc == {1: 0.0, 5: 0.0, 10: 0.0}


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leaves_its_arguments_alone_and_takes_features_with_gradients(
    metric: str, dtype: torch.dtype
) -> None:
    query, gallery = wild_photos(1, dtype)
    features = [query[0].clone().requires_grad_(), gallery[0].clone().requires_grad_()]
    reid_metrics(features[0], *query[1:], features[1], *gallery[1:], metric=metric)
    assert torch.equal(features[0], query[0])
    assert torch.equal(features[1], gallery[0])


def test_ranks_by_the_distances_it_is_given() -> None:
    query, gallery = wild_photos(2)
    known = gallery[1] != -1

    def reversed_distances(q: Tensor, g: Tensor, chunk_size: int) -> list[Tensor]:
        assert len(g) == int(known.sum())  # junk is left out before
        return [-torch.cdist(rows, g) for rows in q.split(chunk_size)]

    away = reid_metrics(-query[0], *query[1:], gallery[0], *gallery[1:], distances=reversed_distances)
    near = reid_metrics(query[0], *query[1:], gallery[0], *gallery[1:])
    assert away.mAP != near.mAP
    with pytest.raises(ValueError, match="zip"):  # distances that leave queries out must not shorten the mean
        reid_metrics(*query, *gallery, distances=lambda q, g, n: [torch.cdist(q[:n], g)], chunk_size=20)


def test_an_unknown_camera_leaves_nothing_out_and_a_photo_never_meets_itself() -> None:
    features, ids, unknown = (
        torch.tensor([[0.0], [1.0], [5.0]]),
        torch.tensor([3, 3, 4]),
        torch.full((3,), -1),
    )
    side = features, ids, unknown
    assert reid_metrics(*side, *side).mAP == 1  # each finds itself first
    numbers = torch.tensor([7, 8, -1])
    found = reid_metrics(*side, *side, query_photos=numbers, gallery_photos=numbers)
    assert (found.queries, found.matched_queries) == (3, 3)  # the third photo's number is unknown
    found = reid_metrics(*side, *side, query_photos=torch.arange(3), gallery_photos=torch.arange(3))
    assert (found.mAP, found.queries, found.matched_queries) == (1, 3, 2)
    swapped = torch.tensor([1, 0, 2])  # a number leaves photos out whatever their id
    assert (
        reid_metrics(*side, *side, query_photos=numbers, gallery_photos=numbers[swapped]).matched_queries == 3
    )
    with pytest.raises(
        ValueError, match=r"match \(a gallery photo of the same id\), got 1 queries without one"
    ):
        reid_metrics(*(t[:1] for t in side), *(t[2:] for t in side))
    alone = tuple(t[:1] for t in side)
    for copies in ({"query_cameras": unknown[:1] - 1, "gallery_cameras": unknown[:1] - 1}, {}):
        sides = dict(zip(SIDES, (*alone, *alone), strict=True)) | copies
        numbered = {} if copies else {"query_photos": numbers[:1], "gallery_photos": numbers[:1]}
        with pytest.raises(
            ValueError, match=r"match \(a gallery photo of the same id other than the query or its"
        ):
            reid_metrics(**sides, **numbered)
    with pytest.raises(ValueError, match="query_photos and gallery_photos must be given together"):
        reid_metrics(*side, *side, query_photos=numbers)
    with pytest.raises(
        ValueError, match=r"gallery_photos must be .*integer.* \(G,\) with G = 3, got a float32"
    ):
        reid_metrics(*side, *side, query_photos=numbers, gallery_photos=numbers.float())


def test_reid_errors_name_every_reason() -> None:
    query, gallery = wild_photos(0)
    broken = query[0].clone()
    broken[[3, 8], 0] = torch.nan
    with pytest.raises(ValueError, match=r"query_features must be finite .* 2 of 41 rows \(3, 8\)") as caught:
        reid_metrics(broken, query[1].float(), query[2][:5], *gallery, metric="l1", chunk_size=0)
    for reason in (
        "query_ids must be a dense integer tensor (Q,) with Q = 41, got a float32 tensor (41,) on cpu",
        "query_cameras must be a dense integer tensor (Q,) with Q = 41, got an int64 tensor (5,) on cpu",
        "metric must be 'euclidean' or 'cosine', got 'l1'",
        "chunk_size must be an integer >= 1, got 0",
    ):
        assert reason in str(caught.value)
    with pytest.raises(
        ValueError, match=r"gallery_features must be finite .* 203 rows \(0, 1, 2, 3, 4, \.\.\.\)"
    ):
        reid_metrics(*query, gallery[0] * torch.inf, *gallery[1:])
    with pytest.raises(
        ValueError, match=r"gallery_features must be nonzero for cosine, got zeros in 203 of 203"
    ):
        reid_metrics(*query, gallery[0] * 0, *gallery[1:], metric="cosine")
    with pytest.raises(ValueError, match=r"gallery_features must be .* C = 37, .* got .* \(203, 36\)"):
        reid_metrics(*query, gallery[0][:, 1:], *gallery[1:])
    with pytest.raises(
        ValueError, match=r"query_features must be .* \(Q, C\) with sizes >= 1, got .* \(0, 37\)"
    ):
        reid_metrics(*(t[:0] for t in query), *gallery)
    with pytest.raises(
        ValueError,
        match=r"gallery_features must be .*floating-point.*\(G, C\) .* got an int64 tensor \(203, 37\)",
    ):
        reid_metrics(*query, gallery[0].long(), *gallery[1:])
    with pytest.raises(
        ValueError, match="gallery_ids must be on the device of query_features, cpu, got meta"
    ):
        reid_metrics(*query, gallery[0], gallery[1].to("meta"), gallery[2])
    with pytest.raises(ValueError, match=r"from another camera\), got 41 queries without one"):
        reid_metrics(*query, gallery[0], torch.full((203,), -1), gallery[2])


def test_topk_by_hand() -> None:
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    labels = torch.tensor([1, 2, 0])  # best; last; ties for the best place, so second
    assert topk_accuracy(probabilities, labels, ks=(1, 2, 3, 5)) == pytest.approx(
        {1: 1 / 3, 2: 2 / 3, 3: 1, 5: 1}
    )
    assert topk_accuracy(torch.zeros(4, 7), torch.arange(4)) == {1: 0.0, 5: 0.0}


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.sampled_from([2, 1000]))
def test_topk_equals_a_plain_sort(seed: int, samples: int, classes: int, levels: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (samples, classes), generator=rng).float()
    labels = torch.randint(0, classes, (samples,), generator=rng)
    for k, share in topk_accuracy(scores, labels, ks=range(1, 11)).items():
        right = 0
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
            order = sorted(range(classes), key=lambda c: (-row[c], c == label))
            right += label in order[:k]
        assert share == pytest.approx(right / samples)


def test_topk_errors_name_every_reason() -> None:
    scores = torch.zeros(3, 4)
    scores[1, 2] = torch.nan
    with pytest.raises(
        ValueError, match=r"NaN in 1 of 3 rows \(1\); labels must be in 0\.\.3, got .* \(1, 2\); ks must be"
    ):
        topk_accuracy(scores, torch.tensor([0, 4, -1]), ks=(0,))
    with pytest.raises(
        ValueError, match=r"labels must be .* \(S,\) with S = 3, got an int64 tensor \(3, 1\)"
    ):
        topk_accuracy(torch.zeros(3, 4), torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"floating-point tensor \(S, K\) with sizes >= 1, got a float32 tensor \(0, 4\)"
    ):
        topk_accuracy(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
