"""timm's Eva models in the paper's layout, against timm's own modules in float64."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.eva import EvaBlock
from timm_streams import narrow_model, randomized, slow_streams, twin
from torch import Tensor, nn

from dca_triton import DualAttentionModel
from dca_triton.model import eva, explain, export_onnx, layouts

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
    weights = dict(model.backbone.model.named_parameters())
    ours = torch.autograd.grad(sum(x.sin().sum() for x in found), [*weights.values()])
    truth = dict(plain.named_parameters())
    expected = torch.autograd.grad(sum(x.sin().sum() for x in slow[:3]), [truth[name] for name in weights])
    for weight, gradient, right in zip(weights, ours, expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-6, atol=1e-7, msg=lambda m, n=weight: f"{n}: {m}")
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


BRANCHES = ("sa", "glca", "pwca")


def step(model: nn.Module, images: Tensor, **pairs: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Logits of a training step, and the gradient of every parameter."""
    outputs = model(images, **pairs, class_tokens_only=True)
    logits = {branch: outputs[f"{branch}_logits"] for branch in BRANCHES}
    loss = sum((i + 1) * x.square().sum() for i, x in enumerate(logits.values()))
    return logits, list(torch.autograd.grad(loss, [*model.parameters()]))


@pytest.mark.parametrize("name", ["vit_small_patch16_rope_mixed_ape_224", "vit_pe_core_tiny_patch16_384"])
def test_every_parameter_is_trained_and_pairs_are_rows_of_the_batch(name: str) -> None:
    model, images = build(name).train(), images_of(name)
    joint, gradients = step(model, images, partner_index=torch.tensor([2, 3, 0, 1]))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    outputs = model(images[:2], images[2:], class_tokens_only=True)
    for branch in BRANCHES:
        torch.testing.assert_close(outputs[f"{branch}_logits"], joint[branch][:2])


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
    with pytest.raises(
        ValueError, match="patch_drop_rate is above 0, which its rotary positions do not follow"
    ):
        build("eva02_tiny_patch14_224", patch_drop_rate=0.5)
    build("eva_giant_patch14_clip_224", patch_drop_rate=0.5)


def test_lora_equals_its_merged_model() -> None:
    """timm's own forward passes an adapter of a packed projection with biases by."""
    peft = pytest.importorskip("peft")
    name = "vit_small_plus_patch16_dinov3_qkvb"
    images, pairs = images_of(name), {"partner_index": PARTNERS}
    config = peft.LoraConfig(r=2, target_modules=["qkv", "proj", "fc1_g", "fc2"], init_lora_weights=False)
    adapted = peft.get_peft_model(build(name), config).double().train()
    merged = copy.deepcopy(adapted).merge_and_unload()
    before, after = build(name).train()(images, **pairs), merged(images, **pairs)
    assert not torch.allclose(before["pwca_logits"], after["pwca_logits"], atol=1e-3)
    found = adapted(images, **pairs)
    for branch in BRANCHES:
        torch.testing.assert_close(found[f"{branch}_logits"], after[f"{branch}_logits"])


def test_an_onnx_file_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = build("vit_small_patch16_dinov3", depth=1).float()
    images = images_of("vit_small_patch16_dinov3").float()[:3]
    export_onnx(model, tmp_path / "model.onnx")
    found = runtime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": images.numpy()})
    for ours, expected in zip(map(torch.as_tensor, found), model(images).values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_checkpointing_and_compilation() -> None:
    name = "vit_small_patch16_rope_mixed_ape_224"
    model, images = build(name).train(), images_of(name)
    expected = step(model, images, partner_index=PARTNERS)
    model.set_grad_checkpointing()
    torch.testing.assert_close(step(model, images, partner_index=PARTNERS), expected)
    model.set_grad_checkpointing(False)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(compiled, images, partner_index=PARTNERS), expected)


def test_the_reference_layout_takes_timms_features() -> None:
    name = "eva02_tiny_patch14_224"
    model = build(name, layout="reference", num_sa_blocks=1, num_heads=4)
    plain = twin(model, name, img_size=size_of(name), **sizes_of(name))
    images = images_of(name)
    torch.testing.assert_close(model.backbone(images), plain.forward_features(images))
    outputs = model.train()(images, partner_index=PARTNERS)
    assert outputs["pwca_features"].shape == (4, 13, 64)


def test_weights_of_another_size_come_from_a_local_file(tmp_path: Path) -> None:
    """Position embeddings are resampled; a buffer that is not saved is not asked for."""
    name, sizes = "eva02_tiny_patch14_224", sizes_of("eva02_tiny_patch14_224")
    source = randomized(timm.create_model(name, num_classes=0, img_size=28, **sizes))
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors"), "num_classes": 0}
    model = narrow_model(name, sizes, img_size=42, pretrained=True, pretrained_cfg_overlay=overlay)
    own = model.backbone.model
    assert torch.equal(own.blocks[1].attn.q_bias, source.blocks[1].attn.q_bias)
    assert own.pos_embed.shape == (1, 10, 64) and torch.equal(own.pos_embed[:, 0], source.pos_embed[:, 0])
