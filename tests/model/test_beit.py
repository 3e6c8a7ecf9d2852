"""timm's Beit models in the paper's layout, against timm's own modules in float64."""

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
from timm_streams import narrow_model, randomized, slow_streams, twin
from torch import Tensor, nn

from dca_triton import DualAttentionModel
from dca_triton.model import beit
from dca_triton.model.rollout import RolloutCache
from dca_triton.training.parameter_groups import parameter_groups

KINDS = {
    "beitv2_base_patch16_224": {},  # a bias of each block
    "beit_base_patch16_224": {"use_shared_rel_pos_bias": True, "swiglu_mlp": True},  # and one for all
}
V2 = "beitv2_base_patch16_224"
SIZE = (48, 64)
PARTNERS = torch.tensor([2, 2, -1, 0])


def sizes_of(name: str) -> dict:
    return {"embed_dim": 32, "depth": 2, "num_heads": 2} | KINDS[name]


@torch.no_grad()
def build(name: str = V2, depth: int = 2, **options: object) -> DualAttentionModel:
    torch.manual_seed(0)
    sizes = sizes_of(name) | {"depth": depth}
    model = randomized(narrow_model(name, sizes, **({"img_size": SIZE} | options)))
    for key, parameter in model.named_parameters():
        if "relative_position_bias_table" in key:  # a bias that cannot be overlooked
            parameter.add_(torch.randn_like(parameter))
    return model.double().eval()


def twin_of(model: DualAttentionModel, name: str = V2) -> nn.Module:
    return twin(model, name, img_size=SIZE, **sizes_of(name))


def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, *SIZE, dtype=torch.float64)


@pytest.mark.parametrize("name", KINDS)
def test_streams_gradients_and_rollout_are_those_of_timms_modules(name: str) -> None:
    model, x = build(name), images()
    plain = twin_of(model, name)
    slow = slow_streams(model, plain, x, PARTNERS)
    streams = model.sa_and_pwca(x, partner_index=PARTNERS)
    row = model.rollout(streams)
    torch.testing.assert_close(row, slow.rollout.float(), rtol=1e-5, atol=1e-6)
    selected = model.select(row)
    assert torch.equal(selected, slow.selected)
    found = (streams.sa, streams.pwca, model.local_branch(streams, selected))
    torch.testing.assert_close(found, slow[:3], rtol=1e-6, atol=1e-6)
    check_gradients(model, plain, found, slow[:3])
    with torch.no_grad():
        short = model(x, class_tokens_only=True)
        torch.testing.assert_close(short["sa_features"][:, 0], slow.sa[:, 0], rtol=1e-6, atol=1e-6)
        pooled = plain.forward_head(plain.forward_features(x))  # timm reads the mean of the patches
        alone = build(name, branches=("sa",), sa_readout="local")
        alone.backbone.model.load_state_dict(plain.state_dict())
        assert pooled.shape == alone(x)["sa_embedding"].shape


def test_attention_maps_are_timms() -> None:
    model, x = build(), images()
    plain = twin_of(model)
    found = model.get_attention_maps(x)
    row = slow_streams(model, plain, x, PARTNERS).rollout
    torch.testing.assert_close(found["accumulated_attention"][:, 0], row, rtol=1e-6, atol=1e-6)
    rows = found["glca_attention_maps"]["glca_block_0"]["attention_map"]
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))


@pytest.mark.parametrize("part", ["bias", "bias of GLCA's rows"])
def test_a_wrong_bias_would_be_seen(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    model, x = build(), images()
    slow = slow_streams(model, twin_of(model), x, PARTNERS)

    def error() -> float:
        streams = model.sa_and_pwca(x, partner_index=PARTNERS)
        rows = model.local_branch(streams, slow.selected)
        pairs = zip((streams.sa, rows), (slow.sa, slow.glca), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)

    assert error() < 1e-9
    if part == "bias":
        monkeypatch.setattr(beit.BeitAttention, "score_bias", lambda self, positions: None)
    else:
        forward = model.glca_blocks[0].attn.forward
        shifted = lambda *a, **k: forward(*a[:6], a[6].roll(1, 1), *a[7:], **k)  # noqa: E731
        monkeypatch.setattr(model.glca_blocks[0].attn, "forward", shifted)
    assert error() > 1e-4


def test_the_rollout_cache_knows_a_changed_bias() -> None:
    model, x = build(), images()
    with torch.no_grad():
        traces = model.sa_and_pwca(x).sa_traces
        cache = RolloutCache()
        first = cache.lookup(traces, 0.25, "torch")
        again = cache.lookup([trace.of(torch.arange(3, -1, -1)) for trace in traces], 0.25, "torch")
        assert (cache.hits, cache.misses) == (4, 4) and torch.equal(again, first.flip(0))
        for bias in (traces[1].bias + 0.25, traces[1].bias.expand(4, -1, -1, -1) + 0.25):
            changed = [traces[0], traces[1]._replace(bias=bias)]  # the same queries, keys and log-sum-exps
            assert not torch.allclose(cache.lookup(changed, 0.25, "torch"), first)
        assert (cache.hits, cache.misses) == (4, 12)
        model(x)
        model(x)
        assert model.get_cache_stats()["cache_hits"] == 4
        model.backbone.model.blocks[0].attn.relative_position_bias_table[3] += 1
        model(x)
        assert model.get_cache_stats()["cache_hits"] == 4


def test_pairs_checkpointing_and_compilation() -> None:
    model, x = build("beit_base_patch16_224").train(), images()
    check_pairs(model, x)
    check_checkpointing_and_compilation(model, x, PARTNERS)


def test_lora_equals_its_merged_model() -> None:
    check_lora(build(), ["qkv", "proj", "fc1"], images(), PARTNERS)


def test_an_onnx_file_gives_the_same(tmp_path: Path) -> None:
    check_onnx(build(depth=1).float(), images().float()[:3], tmp_path)


def test_the_reference_layout_takes_timms_features() -> None:
    model = build(layout="reference", num_sa_blocks=1, num_heads=4)
    torch.testing.assert_close(model.backbone(images()), twin_of(model).forward_features(images()))
    assert model.train()(images(), partner_index=PARTNERS)["pwca_features"].shape == (4, 13, 32)


def test_tables_of_positions_do_not_decay_and_layers_have_their_rate() -> None:
    model = build()
    groups = parameter_groups(model, 0.05, weight_decay_exclude_1d=True, layer_decay=0.5)
    found = {id(p): g for g in groups for p in g["params"]}
    assert len(found) == len([*model.parameters()])
    blocks = [*model.backbone.model.blocks, *model.glca_blocks]
    tables = [found[id(block.attn.relative_position_bias_table)] for block in blocks]
    assert [group["weight_decay"] for group in tables] == [0, 0, 0]
    assert tables[0]["lr_scale"] == tables[1]["lr_scale"] / 2
    assert tables[2]["lr_scale"] == 1
    qkv = [found[id(block.attn.qkv.weight)] for block in blocks]
    assert [group["weight_decay"] for group in qkv] == [0.05] * 3
