"""distances: exact for any split, and re-ranking against the paper's sets in plain loops."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dca_triton.evaluation import k_reciprocal_rerank, reid_metrics, squared_distances


def people(count: int, width: int, seed: int, ids: int = 6, noise: float = 0.6) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    identity = torch.randint(0, ids, (count,), generator=rng)
    centers = torch.randn(ids, width, generator=torch.Generator().manual_seed(99))
    return centers[identity] + noise * torch.randn(count, width, generator=rng), identity


def slow_rerank(
    query: Tensor, gallery: Tensor, k1: int, k2: int, original_weight: float
) -> list[list[float]]:
    photos = [[float(x) for x in row] for row in torch.cat([query, gallery]).tolist()]
    everyone = range(len(photos))
    distance = [[math.dist(a, b) ** 2 for b in photos] for a in photos]
    scaled = [[d / max(row) for d in row] for row in distance]
    order = [sorted(everyone, key=lambda j: scaled[i][j]) for i in everyone]

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    encoding = []
    for i in everyone:
        core = mutual(i, k1)
        members = set(core)
        for j in core:
            others = mutual(j, round(k1 / 2))
            if 3 * len(others & core) > 2 * len(others):
                members |= others
        weights = {j: math.exp(-scaled[i][j]) for j in members}
        encoding.append({j: w / sum(weights.values()) for j, w in weights.items()})
    averaged = [
        [sum(encoding[n].get(j, 0.0) for n in order[i][:k2]) / k2 for j in everyone] for i in everyone
    ]

    answer = []
    for i in everyone[: len(query)]:
        answer.append([])
        for g in everyone[len(query) :]:
            least = sum(map(min, averaged[i], averaged[g]))
            most = sum(map(max, averaged[i], averaged[g]))
            answer[-1].append((1 - least / most) * (1 - original_weight) + scaled[i][g] * original_weight)
    return answer


@pytest.mark.parametrize(
    ("queries", "gallery", "k1", "k2", "original_weight"),
    [
        (20, 60, 20, 6, 0.3),  # the paper's
        (20, 60, 5, 3, 0.3),  # k1/2 rounds to the even neighbor, as in the authors' code
        (20, 60, 7, 1, 0.0),  # no expansion, Jaccard only
        (1, 30, 1, 2, 0.5),
        (9, 12, 20, 20, 0.3),  # fewer photos than k1 + 1 on each side
        (9, 12, 4, 5, 1.0),  # the plain distances
    ],
)
def test_rerank_equals_the_paper_in_plain_loops(
    queries: int, gallery: int, k1: int, k2: int, original_weight: float
) -> None:
    (q, _), (g, _) = people(queries, 8, 0), people(gallery, 8, 1)
    expected = torch.tensor(slow_rerank(q, g, k1, k2, original_weight), dtype=torch.float64)
    for chunk_size in (1, 7, 1000):
        blocks = k_reciprocal_rerank(q, g, chunk_size, k1=k1, k2=k2, original_weight=original_weight)
        found = torch.cat(list(blocks))
        # Features are rounded to 22 bits, hence distances to about 1e-6.
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_rerank_takes_fewer_photos_than_neighbors() -> None:
    (q, _), (g, _) = people(2, 4, 0), people(3, 4, 1)
    expected = torch.tensor(slow_rerank(q, g, k1=20, k2=4, original_weight=0.3), dtype=torch.float64)
    found = torch.cat(list(k_reciprocal_rerank(q, g, 2, k1=20, k2=4)))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_rerank_in_chunks_is_the_same_to_the_bit() -> None:
    (q, _), (g, _) = people(33, 16, 0), people(205, 16, 1)
    whole = torch.cat(list(k_reciprocal_rerank(q, g, 1000)))
    for chunk_size in (1, 2, 5, 16, 33, 34):
        blocks = list(k_reciprocal_rerank(q, g, chunk_size))
        assert max(len(block) for block in blocks) <= chunk_size
        assert torch.equal(torch.cat(blocks), whole)


def test_distances_leave_their_arguments_alone() -> None:
    (q, _), (g, _) = people(4, 16, 0), people(5, 16, 1)
    for distances in (squared_distances, k_reciprocal_rerank):
        given_q, given_g = q.double(), g.double()
        list(distances(given_q, given_g, 2))
        assert torch.equal(given_q, q.double())
        assert torch.equal(given_g, g.double())


def test_rerank_of_copies_is_finite() -> None:
    # More copies than k1 + 1: a photo need not be among its own nearest, and its row of V may be empty.
    photo = torch.ones(1, 5)
    found = torch.cat(list(k_reciprocal_rerank(photo.repeat(30, 1), photo.repeat(40, 1), 8, k1=3, k2=2)))
    assert ((found >= 0) & (found <= 1)).all()


def test_rerank_finds_more_of_noisy_identities() -> None:
    (q, ids), (g, gallery_ids) = (
        people(count, 16, seed, ids=10, noise=1.0) for seed, count in enumerate((40, 160))
    )
    sides = q, ids, torch.zeros_like(ids), g, gallery_ids, torch.ones_like(gallery_ids)
    reranked = reid_metrics(*sides, distances=partial(k_reciprocal_rerank, k1=12, k2=4))
    assert reranked.mAP > reid_metrics(*sides).mAP + 0.1


def test_rerank_errors_name_every_reason() -> None:
    reasons = r"k1 must .* got 0; original_weight must .* got 1\.5; k2 must be at most k1 \+ 1, 1, got 2"
    with pytest.raises(ValueError, match=reasons):
        k_reciprocal_rerank(torch.ones(2, 2), torch.ones(2, 2), 1, k1=0, k2=2, original_weight=1.5)


@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 900),
    st.sampled_from([1e-30, 1, 1e30]),
)
def test_squared_distances_are_exact(seed: int, queries: int, gallery: int, width: int, scale: float) -> None:
    # The same to the bit in any split, equal for copies, 0 to itself, and right to float32's precision.
    rng = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-2, 2, width)
    q, g = (torch.randn(n, width, generator=rng) * spread * scale for n in (queries, gallery))
    whole = torch.cat(list(squared_distances(q, g, 1000)))
    assert torch.equal(torch.cat(list(squared_distances(q, g, 1))), whole)
    copies = torch.cat(list(squared_distances(q, g[:1].repeat(17, 1), 3)))
    assert torch.equal(copies, whole[:, :1].expand(-1, 17))
    assert torch.cat(list(squared_distances(q, q, 4))).diagonal().eq(0).all()
    close = q + q * 2.0**-20 * torch.randint(-1, 2, q.shape, generator=rng)
    assert (torch.cat(list(squared_distances(q, close, 4))) >= 0).all()
    expected = torch.cdist(q.double(), g.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    norms = q.double().square().sum(1)[:, None] + g.double().square().sum(1)
    assert ((whole - expected).abs() <= 1e-6 * norms).all()
