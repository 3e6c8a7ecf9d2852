"""Explanations against attention maps kept in memory, block after block."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dca_triton import DualAttentionModel, reference
from dca_triton.model import distractor_share, explain

IMAGES, DISTRACTORS = torch.randn(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(1)).unbind()
LAYOUTS = [{"layout": "paper"}, {"num_heads": 4, "num_sa_blocks": 3}]


@pytest.fixture(scope="module", params=LAYOUTS, ids=["paper", "reference"])
def model(request: pytest.FixtureRequest) -> DualAttentionModel:
    torch.manual_seed(0)
    model = DualAttentionModel(
        "test_vit", 5, img_size=64, pretrained=False, top_k_ratio=0.3, **request.param
    ).train()
    for name, weight in model.named_parameters():  # contrast, lest all attention be nearly uniform
        if "qkv.weight" in name:
            weight.data.mul_(15)
    return model


def test_explanation_equals_the_maps(model: DualAttentionModel) -> None:
    found = explain(model, IMAGES)
    assert not model.training and not any(t.requires_grad for t in found)
    maps = model.get_attention_maps(IMAGES)
    row = maps["accumulated_attention"][:, 0]
    torch.testing.assert_close(found.rollout, row, rtol=1e-4, atol=1e-6)
    expected = reference.select_local(row, model.backbone.num_prefix_tokens, 0.3)
    assert torch.equal(found.selected, expected) and found.selected.shape == (3, 1 + 4)
    outputs = model(IMAGES)
    for branch in ("sa", "glca"):
        probabilities = outputs[f"{branch}_logits"].softmax(1).detach()
        torch.testing.assert_close(getattr(found, branch), probabilities)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(3))


@torch.no_grad()
def eager_share(model: Any, images: Tensor, distractors: Tensor) -> Tensor:
    """The mass of PWCA's whole map on the last N of its 2N columns, in every block (B, L, N)."""
    shares = []
    paper = model.layout == "paper"
    x, other = model.backbone(images), model.backbone(distractors)
    for block in model.backbone.model.blocks if paper else model.sa_blocks:
        attn = block.attn
        (q, k, v), (q2, k2, v2) = (attn.project(block.norm1(stream)) for stream in (x, other))
        updated = []
        for queries, keys, values, stream in (
            (q, [k, k2], [v, v2], x),
            (q2, [k2, k], [v2, v], other),
        ):
            weights = reference.attention_weights(queries, torch.cat(keys, 1), attn.scale)
            out = torch.einsum("bhmn,bnhd->bmhd", weights, torch.cat(values, 1)).flatten(2)
            stream = stream + block.ls1(attn.proj(attn.norm(out)))
            updated.append(stream + block.ls2(block.mlp(block.norm2(stream))))
            if queries is q:
                shares.append(weights[..., q.shape[1] :].sum(-1).mean(1))
        x = updated[0]
        other = updated[1] if paper else other  # the reference's distractors are never updated
    return torch.stack(shares, 1)


def test_share_is_the_mass_on_the_partners_keys(model: DualAttentionModel) -> None:
    found = distractor_share(model, IMAGES, DISTRACTORS)
    expected = eager_share(model, IMAGES, DISTRACTORS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape[0] == 3 and found.std() > 0.005
    assert not torch.allclose(found, distractor_share(model, DISTRACTORS, IMAGES), atol=1e-3)


def test_twins_share_equally(model: DualAttentionModel) -> None:
    shares = distractor_share(model, IMAGES, IMAGES)
    first = shares if model.layout == "paper" else shares[:, :1]  # later the image's stream moves on alone
    torch.testing.assert_close(first, torch.full_like(first, 0.5))


def test_unequal_images(model: DualAttentionModel) -> None:
    with pytest.raises(
        ValueError, match=r"distractors must have the shape of images, \(3, 3, 64, 64\), got \(2,"
    ):
        distractor_share(model, IMAGES, DISTRACTORS[:2])
