"""Scores come from the right branch, sides and options, and the table shows them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dca_triton import DualAttentionModel
from dca_triton.evaluation import (
    SCORES,
    Embeddings,
    embed,
    evaluate_fgvc,
    evaluate_reid,
    k_reciprocal_rerank,
    reid_metrics,
    score_embeddings,
    score_table,
    squared_distances,
)


class Spoken(nn.Module):
    """A model that answers with the logits that its "images" are: (B, 2, K), SA's and GLCA's."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, class_tokens_only: bool) -> dict[str, Tensor]:
        assert class_tokens_only and not self.training and not torch.is_grad_enabled()
        return {"sa_logits": images[:, 0], "glca_logits": images[:, 1]}


def logits(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


def test_fgvc_by_hand() -> None:
    other = [0.05] * 4
    images = torch.stack(
        [  # label 0 always; eight classes, of which the first three vary
            logits([0.5, 0.2, 0.1, *other], [0.1, 0.6, 0.1, *other]),  # SA right, GLCA not, sum wrong
            logits([0.6, 0.1, 0.1, *other], [0.3, 0.4, 0.1, *other]),  # SA right, GLCA not, sum right
            logits([0.1, 0.6, 0.1, *other], [0.5, 0.2, 0.1, *other]),  # SA wrong, GLCA right, sum wrong
            logits([0.01, 0.3, 0.2, 0.2, 0.2, 0.09, 0.0], [0.02, 0.3, 0.2, 0.2, 0.2, 0.08, 0.0]),  # sixth
        ]
    )
    labels = torch.zeros(4, dtype=torch.int64)
    halves = [{"image": images[i : i + 2], "label": labels[i : i + 2]} for i in (0, 2)]
    scores = evaluate_fgvc(Spoken(), halves, progress=False)  # type: ignore[arg-type]
    assert scores == {
        "sa_top1": 0.5,
        "glca_top1": 0.25,
        "sum_top1": 0.25,
        "sa_top5": 0.75,
        "glca_top5": 0.75,
        "sum_top5": 0.75,
    }
    assert {*scores} == {*SCORES["fgvc"]}


class Alone(Spoken):
    """The same without GLCA."""

    def forward(self, images: Tensor, class_tokens_only: bool) -> dict[str, Tensor]:
        return {"sa_logits": super().forward(images, class_tokens_only)["sa_logits"]}


def test_without_glca_the_prediction_is_that_of_sa() -> None:
    images = torch.randn(9, 2, 7, generator=torch.Generator().manual_seed(0))
    batches = [{"image": images, "label": torch.arange(9) % 3}]
    whole, alone = (evaluate_fgvc(m, batches, progress=False) for m in (Spoken(), Alone()))  # type: ignore[arg-type]
    assert alone == {f"{name}_top{k}": whole[f"sa_top{k}"] for name in ("sa", "sum") for k in (1, 5)}
    lines = score_table(alone).splitlines()
    assert len(lines) == 2 and lines[1].startswith("SA") and "GLCA" not in lines[1]
    del whole["glca_top1"]
    with pytest.raises(ValueError, match="scores must hold glca_top1, got"):
        score_table(whole)


def test_fgvc_without_a_batch() -> None:
    with pytest.raises(ValueError, match="test must hold at least one batch, got none"):
        evaluate_fgvc(Spoken(), [], progress=False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def side() -> SimpleNamespace:
    rng = torch.Generator().manual_seed(0)

    def embeddings(count: int, camera: int) -> Embeddings:
        features = torch.randn(count, 6, generator=rng) * torch.rand(count, 1, generator=rng).mul(9)
        labels = torch.randint(4, (count,), generator=rng)
        return Embeddings(features, labels, torch.full((count,), camera), ("",) * count)

    return SimpleNamespace(query=embeddings(12, 1), gallery=embeddings(60, 2))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("rerank", [False, True])
def test_options_reach_the_metric(side: SimpleNamespace, metric: Any, rerank: bool) -> None:
    found = score_embeddings(side.query, side.gallery, metric, rerank, progress=False)
    expected = reid_metrics(
        *side.query[:3],
        *side.gallery[:3],
        metric,
        distances=k_reciprocal_rerank if rerank else squared_distances,
    )
    cmc = {f"rank{k}": v for k, v in expected.cmc.items()}
    counts = {"queries": 12, "matched_queries": expected.matched_queries}
    assert found == {"mAP": expected.mAP, **cmc, "mINP": expected.mINP, **counts}
    others = [
        score_embeddings(side.query, side.gallery, m, r, progress=False)["mAP"]
        for m in ("euclidean", "cosine")
        for r in (False, True)
    ]
    assert len(set(others)) == 4


def test_reid_scores_embeddings_of_both_sides() -> None:
    torch.manual_seed(0)
    model = DualAttentionModel("test_vit", 5, "reid", layout="paper", img_size=64, pretrained=False)
    images, labels = torch.randn(6, 3, 64, 64), torch.tensor([0, 1, 2, 2, 1, 0])
    query = [{"image": images[:2], "label": labels[:2], "camera": torch.zeros(2)}]
    gallery = [{"image": images[2:], "label": labels[2:], "camera": torch.ones(4)}]
    scores = evaluate_reid(model, query, gallery, "euclidean", progress=False)
    sides = [embed(model, part, progress=False) for part in (query, gallery)]
    assert scores == score_embeddings(*sides, "euclidean", progress=False)
    assert 0 < scores["mAP"] < 1
    assert {name for name, value in scores.items() if isinstance(value, float)} == {*SCORES["reid"]}
    with pytest.raises(ValueError, match="query_ids must have a match"):
        evaluate_reid(model, query, query, progress=False)


def test_a_photo_does_not_match_itself(side: SimpleNamespace) -> None:
    """Without cameras, its path identifies it; the other photos of its identity all count."""
    paths = tuple(f"{i}.jpg" for i in range(12))
    unknown = torch.full((12,), -1)
    alone = side.query._replace(cameras=unknown, paths=paths)
    expected = reid_metrics(*side.query[:2], torch.arange(12), *side.query[:2], torch.arange(12))
    found = score_embeddings(alone, alone, "euclidean", progress=False)
    assert (found["mAP"], found["rank1"]) == (expected.mAP, expected.cmc[1])
    nameless = alone._replace(paths=("",) * 12)
    assert score_embeddings(nameless, nameless, "euclidean", progress=False)["rank1"] == 1


def test_means_say_how_many_queries_count(side: SimpleNamespace) -> None:
    labels = side.gallery.labels.clone()
    labels[labels == 0] = 9
    found = score_embeddings(side.query, side.gallery._replace(labels=labels), progress=False)
    unmatched = int((side.query.labels == 0).sum())
    assert unmatched and (found["queries"], found["matched_queries"]) == (12, 12 - unmatched)
    last = score_table(found, "validation").splitlines()[-2:]
    assert last == [
        f"{12 - unmatched} of 12 queries have a match in the gallery and count",
        "scored photos: validation",
    ]


def test_tables() -> None:
    fgvc = {
        f"{b}_top{k}": i / 8 for i, (b, k) in enumerate((b, k) for k in (1, 5) for b in ("sa", "glca", "sum"))
    }
    assert score_table(fgvc).splitlines() == [
        "              top-1     top-5",
        "SA            0.00%    37.50%",
        "GLCA         12.50%    50.00%",
        "SA + GLCA    25.00%    62.50%",
    ]
    reid = {"mAP": 0.5, "rank1": 1.0, "rank5": 1.0, "rank10": 1.0, "mINP": 1 / 3}
    assert score_table(reid).splitlines() == [
        "       mAP    rank-1    rank-5   rank-10      mINP",
        "    50.00%   100.00%   100.00%   100.00%    33.33%",
    ]
    with pytest.raises(ValueError, match=r"scores must hold sa_top1, .*sum_top5, got total_loss"):
        score_table({"total_loss": 1.0})
