"""timm's Eva models in the paper's layout, against timm's own modules in float64."""

import copy
from pathlib import Path

import pytest
import torch
from family_checks import (
    check_checkpointing_and_compilation,
    check_gradients,
    check_lora,
    check_onnx,
    check_pairs,
)
from timm.models.eva import EvaBlock
from timm_streams import narrow_model, randomized, slow_streams, twin
from torch import Tensor, nn

from dca_triton import DualAttentionModel
from dca_triton.model import eva, explain, layouts

KINDS = {
    "vit_small_patch16_dinov3": {},  # no biases of queries and keys, rotation by halves, registers
    "vit_small_plus_patch16_dinov3_qkvb": {},  # biases beside a packed projection, SwiGLU
    "eva02_tiny_patch14_224": {},  # fc_norm, rotation of neighbors, learned positions too
    "eva02_base_patch14_224": {},  # separate projections
    "eva02_base_patch16_clip_224": {},  # a norm within the attention
    "eva02_enormous_patch14_clip_224": {},  # post-norm, no rotation
    "eva_giant_patch14_clip_224": {},  # no rotation
    "vit_pe_core_tiny_patch16_384": {},  # a pooling head beside the class token, norm_pre
    "vit_pe_spatial_tiny_patch16_512": {},  # no final norm
    "vit_small_patch16_rope_224": {},  # AttentionRope
    "vit_small_patch16_rope_mixed_ape_224": {},  # a learned rotation of each head in each block
    "vit_large_patch16_sapiens2": {"num_kv_heads": (None, 2)},  # shared keys, qk-norm, one LayerScale
}
PARTNERS = torch.tensor([2, 2, -1, 0])


def size_of(name: str) -> tuple[int, int]:
    patch = 14 if "patch14" in name else 16
    return 3 * patch, 4 * patch


def sizes_of(name: str) -> dict:
    return {"embed_dim": 64, "depth": 2, "num_heads": 4} | KINDS[name]


def images_of(name: str) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, *size_of(name), dtype=torch.float64)


def build(name: str, depth: int = 2, **options: object) -> DualAttentionModel:
    torch.manual_seed(0)
    model = narrow_model(name, sizes_of(name) | {"depth": depth}, **({"img_size": size_of(name)} | options))
    return randomized(model).double().eval()


@pytest.mark.parametrize("name", KINDS)
def test_streams_gradients_and_rollout_are_those_of_timms_modules(name: str) -> None:
    model, images = build(name), images_of(name)
    plain = twin(model, name, img_size=size_of(name), **sizes_of(name))
    slow = slow_streams(model, plain, images, PARTNERS)
    streams = model.sa_and_pwca(images, partner_index=PARTNERS)
    selected = model.select(model.rollout(streams))
    assert torch.equal(selected, slow.selected)
    found = (streams.sa, streams.pwca, model.local_branch(streams, selected))
    torch.testing.assert_close(found, slow[:3], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(explain(model, images).rollout, slow.rollout.float(), rtol=1e-5, atol=1e-6)
    check_gradients(model, plain, found, slow[:3])
    with torch.no_grad():
        short = model(images, class_tokens_only=True)
        torch.testing.assert_close(short["sa_features"][:, 0], slow.sa[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("part", ["rotation", "positions of rows", "keys of a group", "biases", "scale"])
def test_a_wrong_part_would_be_seen(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Each of them changes what `slow_streams` is compared with."""
    name = {"biases": "vit_small_plus_patch16_dinov3_qkvb"}.get(part, "vit_large_patch16_sapiens2")
    model, images = build(name), images_of(name)
    plain = twin(model, name, img_size=size_of(name), **sizes_of(name))
    slow = slow_streams(model, plain, images, PARTNERS)

    def error() -> float:
        streams = model.sa_and_pwca(images, partner_index=PARTNERS)
        rows = model.local_branch(streams, slow.selected)
        return max(
            (a - b).abs().max().item() for a, b in zip((streams.sa, rows), (slow.sa, slow.glca), strict=True)
        )

    assert error() < 1e-9
    if part == "rotation":
        monkeypatch.setattr(eva.RotaryAttention, "_rotated", lambda self, x, rope, dtype: x)
    elif part == "positions of rows":
        local = layouts.paper_local
        monkeypatch.setattr(
            "dca_triton.model.streams.paper_local",
            lambda b, g, x, table, *rest: local(b, g, x, table.roll(1, 0), *rest),
        )
    elif part == "keys of a group":
        monkeypatch.setattr(Tensor, "repeat_interleave", lambda x, n, dim: torch.cat([x] * n, dim))
    elif part == "biases":
        model.backbone.model.blocks[0].attn.q_bias = None
    else:
        model.backbone.model.blocks[1].gamma_1 = None
    assert error() > 1e-4


@pytest.mark.parametrize("name", ["vit_small_patch16_rope_mixed_ape_224", "vit_pe_core_tiny_patch16_384"])
def test_every_parameter_is_trained_and_pairs_are_rows_of_the_batch(name: str) -> None:
    check_pairs(build(name).train(), images_of(name))


def test_a_random_rotation_is_drawn_once_for_all_streams() -> None:
    """Sapiens2 rescales coordinates while it trains."""
    name = "vit_large_patch16_sapiens2"
    model, images = build(name).train(), images_of(name)
    rope = model.backbone.model.rope
    drawn: list[Tensor] = []
    embed = rope.get_embed

    def counted(*args: object, **kwargs: object) -> Tensor:
        drawn.append(embed(*args, **kwargs))
        return drawn[-1]

    rope.get_embed = counted
    for _ in range(2):
        model(images, partner_index=PARTNERS)
    assert len(drawn) == 2 and not torch.equal(*drawn), "one table for each step, each of them another"
    rope.get_embed = lambda *args, **kwargs: drawn[0]
    plain = twin(model, name, img_size=size_of(name), **sizes_of(name))
    plain.rope.get_embed = rope.get_embed
    slow = slow_streams(model, plain, images, PARTNERS)
    outputs = model(images, partner_index=PARTNERS)
    found = [outputs[f"{branch}_features"] for branch in ("sa", "pwca", "glca")]
    torch.testing.assert_close(found, list(slow[:3]), rtol=1e-6, atol=1e-6)


def test_images_of_any_size() -> None:
    name = "vit_small_patch16_dinov3"
    model = build(name)
    plain = twin(model, name, img_size=size_of(name), **sizes_of(name))
    images = torch.randn(4, 3, 32, 80, dtype=torch.float64)
    slow = slow_streams(model, plain, images, PARTNERS)
    found = model(images)
    torch.testing.assert_close(found["sa_features"], slow.sa, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["glca_features"], slow.glca, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"multiples of the patch \(16, 16\)"):
        model(images[:, :, :, :72])


def test_a_gate_scales_each_streams_attention() -> None:
    """No model of timm has one today, its blocks do."""
    torch.manual_seed(0)
    for attn_type in ("eva", "rope"):
        block = EvaBlock(
            32, 2, attn_type=attn_type, gated_attn=True, norm_layer=nn.LayerNorm, init_values=0.5
        )
        plain = randomized(block).double()
        holder = nn.Module()
        holder.blocks = nn.ModuleList([copy.deepcopy(plain)])
        eva.EVA.adopt(holder)
        x = torch.randn(3, 5, 32, dtype=torch.float64)
        torch.testing.assert_close(holder.blocks[0](x), plain(x))
        twice = torch.tensor([2, 0, 0])
        torch.testing.assert_close(holder.blocks[0](x, images=twice), plain(x)[twice])
        torch.testing.assert_close(holder.blocks[0](x[:, 1:3], context=x), plain(x)[:, 1:3])


def test_dropped_patches_are_refused_where_positions_rotate() -> None:
    with pytest.raises(ValueError, match=r"patch_drop_rate must be 0 with rotary positions, got 0.5"):
        build("eva02_tiny_patch14_224", patch_drop_rate=0.5)
    build("eva_giant_patch14_clip_224", patch_drop_rate=0.5)


def test_lora_equals_its_merged_model() -> None:
    """timm's own forward passes an adapter of a packed projection with biases by."""
    name = "vit_small_plus_patch16_dinov3_qkvb"
    check_lora(build(name), ["qkv", "proj", "fc1_g", "fc2"], images_of(name), PARTNERS)


def test_an_onnx_file_gives_the_same(tmp_path: Path) -> None:
    name = "vit_small_patch16_dinov3"
    check_onnx(build(name, depth=1).float(), images_of(name).float()[:3], tmp_path)


def test_checkpointing_and_compilation() -> None:
    name = "vit_small_patch16_rope_mixed_ape_224"
    check_checkpointing_and_compilation(build(name).train(), images_of(name), PARTNERS)


def test_the_reference_layout_takes_timms_features() -> None:
    name = "eva02_tiny_patch14_224"
    model = build(name, layout="reference", num_sa_blocks=1, num_heads=4)
    plain = twin(model, name, img_size=size_of(name), **sizes_of(name))
    images = images_of(name)
    torch.testing.assert_close(model.backbone(images), plain.forward_features(images))
    outputs = model.train()(images, partner_index=PARTNERS)
    assert outputs["pwca_features"].shape == (4, 13, 64)
