"""Backbones without a class token: timm's own pooling reads out, and rollout starts from its weights."""

from typing import Any

import pytest
import torch
from timm.layers import AttentionPoolLatent
from timm_streams import narrow_model, randomized, slow_streams, twin
from torch import Tensor, nn

from dca_triton import DualAttentionModel
from dca_triton.model import explain, export_program, streams
from dca_triton.model.pooling import pooling_faults
from dca_triton.training.losses import BranchLoss

SIZES = {"embed_dim": 64, "depth": 2, "num_heads": 4}
KINDS = {
    "vit_base_patch16_siglip_224": {},  # map
    "vit_base_patch16_siglip_gap_224": {},  # avg of normed tokens
    "aimv2_large_patch14_224": {},  # RmsNorm, SwiGLU, no biases
    "vit_little_patch16_reg4_gap_256": {},  # registers, fc_norm after avg
    "vit_so150m_patch16_reg4_map_256": {},  # map that does not read the registers
    "test_vit3": {},  # map that reads the register
    "vit_pe_core_gigantic_patch14_448": {},  # an Eva with map
    "vit_pe_lang_gigantic_patch14_448": {},  # an Eva without any final norm
    "vit_base_patch16_rope_reg1_gap_256": {},  # an Eva with a register and fc_norm
}
PARTNERS = torch.tensor([2, 2, -1, 0])


def size_of(name: str) -> tuple[int, int]:
    patch = 14 if "patch14" in name else 16
    return 3 * patch, 4 * patch


def images_of(name: str) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, *size_of(name), dtype=torch.float64)


def build(name: str, **options: Any) -> DualAttentionModel:
    torch.manual_seed(0)
    return randomized(narrow_model(name, SIZES, **({"img_size": size_of(name)} | options))).double().eval()


def pooled(plain: Any, rows: Tensor) -> Tensor:
    """timm's pooling of selected rows."""
    return plain.fc_norm(rows.mean(1) if plain.attn_pool is None else plain.attn_pool(rows))


@pytest.mark.parametrize("name", KINDS)
def test_embeddings_gradients_and_rollout_are_those_of_timms_modules(name: str) -> None:
    model, images = build(name).train(), images_of(name)
    plain: Any = twin(model, name, img_size=size_of(name), **SIZES)
    slow = slow_streams(model, plain, images, PARTNERS)
    expected = {
        "sa": plain.forward_head(slow.sa, pre_logits=True),
        "glca": pooled(plain, slow.glca),
        "pwca": plain.forward_head(slow.pwca, pre_logits=True),
    }
    weights = dict(model.backbone.model.named_parameters())
    truth = dict(plain.named_parameters())
    exact = torch.autograd.grad(sum(x.sin().sum() for x in expected.values()), [truth[n] for n in weights])
    for only in (False, True):
        outputs = model(images, partner_index=PARTNERS, class_tokens_only=only)
        found = {branch: outputs[f"{branch}_embedding"] for branch in expected}
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        gradients = torch.autograd.grad(sum(x.sin().sum() for x in found.values()), [*weights.values()])
        for weight, gradient, right in zip(weights, gradients, exact, strict=True):
            torch.testing.assert_close(
                gradient, right, rtol=1e-6, atol=1e-7, msg=lambda m, n=weight: f"{n}: {m}"
            )
        for branch, embedding in found.items():
            if only:
                assert torch.equal(outputs[f"{branch}_features"][:, 0], embedding)
            else:
                torch.testing.assert_close(
                    outputs[f"{branch}_features"], getattr(slow, branch), rtol=1e-6, atol=1e-6
                )
    seen = explain(model, images)
    torch.testing.assert_close(seen.rollout, slow.rollout.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(seen.selected, slow.selected) and seen.rollout.sum(1).allclose(torch.ones(4))
    torch.testing.assert_close(seen.sa, model.sa_head(expected["sa"]).float().softmax(1))
    torch.testing.assert_close(seen.glca, model.glca_head(expected["glca"]).float().softmax(1))


@pytest.mark.parametrize("layout", ["paper", "reference"])
@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_little_patch16_reg4_gap_256"])
@pytest.mark.parametrize("readout", ["class", "local", "both"])
def test_every_layout_and_readout_trains(layout: str, name: str, readout: str) -> None:
    own = {"num_sa_blocks": 1, "num_heads": 4} if layout == "reference" else {}
    model = build(name, layout=layout, sa_readout=readout, glca_readout=readout, task_type="reid", **own)
    images, labels = images_of(name), torch.tensor([0, 0, 1, 1])
    outputs = model.train()(images, partner_index=PARTNERS, class_tokens_only=True)
    sum(BranchLoss("reid")(outputs, labels).values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    width = 2 * 64 if readout == "both" else 64
    assert outputs["combined_features"].shape == (4, 2 * width)
    assert model.eval().extract_features(images).shape == (4, 2 * width)
    maps = model.get_attention_maps(images)["glca_attention_maps"]["glca_block_0"]
    assert maps["attention_map"].shape[2] == maps["selected_indices"].shape[1] == 3


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_base_patch16_siglip_gap_224"])
def test_the_selection_reaches_the_logits(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, images = build(name, cache_attention_rollout=False), images_of(name)
    before = model(images, class_tokens_only=True)
    select = streams.select_local
    monkeypatch.setattr(streams, "select_local", lambda row, prefix, ratio: select(-row, prefix, ratio))
    after = model(images, class_tokens_only=True)
    assert not torch.allclose(before["glca_logits"], after["glca_logits"])
    assert torch.equal(before["sa_logits"], after["sa_logits"])


def test_the_cache_keeps_rows_of_different_starts_apart() -> None:
    name = "vit_base_patch16_siglip_224"
    model, images = build(name), images_of(name)
    first = model(images)["glca_logits"]
    assert torch.equal(model(images)["glca_logits"], first)
    assert model.get_cache_stats()["hit_rate"] == 0.5
    with torch.no_grad():
        nn.init.normal_(model.backbone.model.attn_pool.latent, std=3)
    model(images)
    assert model.get_cache_stats()["cache_misses"] == 8
    truth = explain(model, images).rollout
    streams = model.sa_and_pwca(images)
    assert torch.equal(model.rollout(streams, cached=True), truth)


def test_an_export_holds_the_pooling() -> None:
    name = "vit_base_patch16_siglip_224"
    model, images = build(name), images_of(name)
    found = export_program(model, class_tokens_only=True).module()(images[:3], class_tokens_only=True)
    torch.testing.assert_close(found, model(images[:3], class_tokens_only=True))


@pytest.mark.parametrize("layout", ["paper", "reference"])
def test_other_poolings_are_refused(layout: str) -> None:
    reason = "it has no class token, and it pools by 'max', not by 'avg' or 'map'"
    with pytest.raises(ValueError, match=reason):
        build("vit_little_patch16_reg4_gap_256", layout=layout, global_pool="max")


def test_a_pooling_head_of_another_kind_is_refused() -> None:
    model = build("vit_base_patch16_siglip_224").backbone.model
    assert pooling_faults(model, known=True) == []
    for change in ({"latent_len": 2}, {"pos_embed": nn.Parameter(torch.zeros(12, 64))}):
        model.attn_pool = AttentionPoolLatent(64, num_heads=4)
        for name, value in change.items():
            setattr(model.attn_pool, name, value)
        assert pooling_faults(model, known=True) == [
            "it has no class token, and its pooling head has several queries or positions of its own"
        ]
