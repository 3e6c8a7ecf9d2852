"""timm's Beit models in the paper's layout, against timm's own modules in float64."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm_streams import narrow_model, randomized, slow_streams, twin
from torch import Tensor, nn

from dca_triton import DualAttentionModel
from dca_triton.model import beit, export_onnx
from dca_triton.model.rollout import RolloutCache
from dca_triton.training.parameter_groups import parameter_groups

KINDS = {
    "beitv2_base_patch16_224": {},  # a bias of each block
    "beit_base_patch16_224": {"use_shared_rel_pos_bias": True, "swiglu_mlp": True},  # and one for all
}
V2 = "beitv2_base_patch16_224"
SIZE = (48, 64)
PARTNERS = torch.tensor([2, 2, -1, 0])
BRANCHES = ("sa", "glca", "pwca")


def sizes_of(name: str) -> dict:
    return {"embed_dim": 32, "depth": 2, "num_heads": 2} | KINDS[name]


@torch.no_grad()
def build(name: str = V2, **options: object) -> DualAttentionModel:
    torch.manual_seed(0)
    model = randomized(narrow_model(name, sizes_of(name), **({"img_size": SIZE} | options)))
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
    weights = dict(model.backbone.model.named_parameters())
    ours = torch.autograd.grad(sum(x.sin().sum() for x in found), [*weights.values()])
    truth = dict(plain.named_parameters())
    expected = torch.autograd.grad(sum(x.sin().sum() for x in slow[:3]), [truth[name] for name in weights])
    for weight, gradient, right in zip(weights, ours, expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-6, atol=1e-7, msg=lambda m, n=weight: f"{n}: {m}")
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
        first = cache.lookup(traces, "torch")
        again = cache.lookup([trace.of(torch.arange(3, -1, -1)) for trace in traces], "torch")
        assert (cache.hits, cache.misses) == (4, 4) and torch.equal(again, first.flip(0))
        for bias in (traces[1].bias + 0.25, traces[1].bias.expand(4, -1, -1, -1) + 0.25):
            changed = [traces[0], traces[1]._replace(bias=bias)]  # the same queries, keys and log-sum-exps
            assert not torch.allclose(cache.lookup(changed, "torch"), first)
        assert (cache.hits, cache.misses) == (4, 12)
        model(x)
        model(x)
        assert model.get_cache_stats()["cache_hits"] == 4
        model.backbone.model.blocks[0].attn.relative_position_bias_table[3] += 1
        model(x)
        assert model.get_cache_stats()["cache_hits"] == 4


def step(model: nn.Module, x: Tensor, **pairs: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Logits of a training step, and the gradient of every parameter."""
    outputs = model(x, **pairs, class_tokens_only=True)
    logits = {branch: outputs[f"{branch}_logits"] for branch in BRANCHES}
    loss = sum((i + 1) * x.square().sum() for i, x in enumerate(logits.values()))
    return logits, list(torch.autograd.grad(loss, [*model.parameters()]))


def test_pairs_checkpointing_and_compilation() -> None:
    model, x = build("beit_base_patch16_224").train(), images()
    partner = torch.tensor([2, 3, 0, 1])
    expected = step(model, x, partner_index=partner)
    assert all(gradient.abs().sum() > 0 for gradient in expected[1])
    outputs = model(x[:2], x[2:], class_tokens_only=True)
    for branch in BRANCHES:
        torch.testing.assert_close(outputs[f"{branch}_logits"], expected[0][branch][:2])
    expected = step(model, x, partner_index=PARTNERS)
    model.set_grad_checkpointing()
    torch.testing.assert_close(step(model, x, partner_index=PARTNERS), expected)
    model.set_grad_checkpointing(False)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(compiled, x, partner_index=PARTNERS), expected)


def test_lora_equals_its_merged_model() -> None:
    peft = pytest.importorskip("peft")
    x, pairs = images(), {"partner_index": PARTNERS}
    config = peft.LoraConfig(r=2, target_modules=["qkv", "proj", "fc1"], init_lora_weights=False)
    adapted = peft.get_peft_model(build(), config).double().train()
    merged = copy.deepcopy(adapted).merge_and_unload()
    before, after = build().train()(x, **pairs), merged(x, **pairs)
    assert not torch.allclose(before["pwca_logits"], after["pwca_logits"], atol=1e-3)
    found = adapted(x, **pairs)
    for branch in BRANCHES:
        torch.testing.assert_close(found[f"{branch}_logits"], after[f"{branch}_logits"])


def test_an_onnx_file_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, x = build().float(), images().float()[:3]
    export_onnx(model, tmp_path / "model.onnx")
    found = runtime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x.numpy()})
    for ours, expected in zip(map(torch.as_tensor, found), model(x).values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_reference_layout_takes_timms_features() -> None:
    model = build(layout="reference", num_sa_blocks=1, num_heads=4)
    torch.testing.assert_close(model.backbone(images()), twin_of(model).forward_features(images()))
    assert model.train()(images(), partner_index=PARTNERS)["pwca_features"].shape == (4, 13, 32)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm's resampling
def test_weights_of_another_size_come_from_a_local_file(tmp_path: Path) -> None:
    """timm resamples the tables of positions."""
    source = randomized(timm.create_model(V2, num_classes=0, img_size=32, **sizes_of(V2)))
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors"), "num_classes": 0}
    model = narrow_model(V2, sizes_of(V2), img_size=SIZE, pretrained=True, pretrained_cfg_overlay=overlay)
    ours, theirs = model.backbone.model.blocks[1].attn, source.blocks[1].attn
    assert torch.equal(ours.q_bias, theirs.q_bias)
    tables = ours.relative_position_bias_table, theirs.relative_position_bias_table
    assert tables[0].shape == (5 * 7 + 3, 2) and torch.equal(tables[0][-3:], tables[1][-3:])


def test_tables_of_positions_do_not_decay_and_layers_have_their_rate() -> None:
    model = build()
    groups = parameter_groups(model, 0.05, weight_decay_exclude_1d=True, layer_decay=0.5)
    found = {id(p): g for g in groups for p in g["params"]}
    assert len(found) == len([*model.parameters()])
    blocks = model.backbone.model.blocks
    tables = [found[id(block.attn.relative_position_bias_table)] for block in blocks]
    assert [group["weight_decay"] for group in tables] == [0, 0]
    assert tables[0]["lr_scale"] == tables[1]["lr_scale"] / 2
