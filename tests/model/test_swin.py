"""timm's Swin Transformers in the paper's layout: SA by timm's own forward, PWCA by loops over windows."""

from functools import partial
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
from timm_streams import narrow_model, randomized, twin
from timm_windows import slow_windows
from torch import Tensor, nn

from dca_triton import DualAttentionModel
from dca_triton.model import distractor_share, explain, swin
from dca_triton.training.parameter_groups import parameter_groups

V1, V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
# Windows that the grids 9 x 13 and 5 x 7 do not fill, a merge of odd sides, shifted blocks in both stages.
SIZES = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
SIZE = (36, 52)
PARTNERS = torch.tensor([2, -1, 0])
BRANCHES = ("sa", "pwca")


def build(name: str = V1, depths: tuple[int, int] = (2, 2), **options: object) -> DualAttentionModel:
    torch.manual_seed(0)
    options = {"img_size": SIZE, "branches": BRANCHES} | options
    model = randomized(narrow_model(name, SIZES | {"depths": depths}, **options))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if (
                "relative_position_bias_table" in key or "cpb_mlp.2" in key
            ):  # a bias that cannot be overlooked
                parameter.add_(torch.randn_like(parameter))
    return model.double().eval()


def images(count: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, *SIZE, dtype=torch.float64)


def slow_streams(
    model: DualAttentionModel, name: str, x: Tensor, partner: Tensor
) -> tuple[nn.Module, list[Tensor]]:
    """timm's model, and the tokens of SA and PWCA (B, N, C)."""
    plain = twin(model, name, img_size=SIZE, **SIZES)
    return plain, slow_windows(plain, model.pwca_blocks, x, partner)


@pytest.mark.parametrize("name", [V1, V2])
@pytest.mark.parametrize("pwca_blocks", [None, (2, 3)])
def test_streams_and_gradients_are_those_of_timms_modules(
    name: str, pwca_blocks: tuple[int, int] | None
) -> None:
    model, x = build(name, pwca_blocks=pwca_blocks), images()
    plain, expected = slow_streams(model, name, x, PARTNERS)
    streams = model.sa_and_pwca(x, partner_index=PARTNERS)
    found = [streams.sa, streams.pwca]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (found[1] - found[0]).abs().max() > 0.01
    check_gradients(model, plain, found, expected)
    outputs = model.train()(x, partner_index=PARTNERS)
    pooled = plain.forward_head(expected[0].unflatten(1, model.backbone.grid_of(x)))
    torch.testing.assert_close(outputs["sa_embedding"], pooled)
    torch.testing.assert_close(outputs["sa_logits"], model.sa_head(pooled))


@pytest.fixture(scope="module")
def slow_pwca() -> Tensor:
    with torch.no_grad():
        return slow_streams(build(), V1, images(), PARTNERS)[1][1]


@pytest.mark.parametrize("part", ["bias", "mask", "window of the partner"])
def test_a_wrong_part_would_be_seen(monkeypatch: pytest.MonkeyPatch, part: str, slow_pwca: Tensor) -> None:
    model, x = build(), images()
    if part == "bias":
        monkeypatch.setattr(
            swin.WindowAttention, "relative_bias", lambda self: torch.zeros(1, self.num_heads, 1, 1)
        )
    elif part == "mask":
        for block in model.backbone.blocks:
            block.attn_mask = None
    else:
        pair_attention = swin.PairBlock.forward.__globals__["pair_attention"]
        wrong = lambda q, k, v, pk, pv, *rest, **named: pair_attention(  # noqa: E731
            q, k, v, *(None if t is None else t.roll(2, 2) for t in (pk, pv)), *rest, **named
        )
        monkeypatch.setitem(swin.PairBlock.forward.__globals__, "pair_attention", wrong)
    with torch.no_grad():
        found = model.sa_and_pwca(x, partner_index=PARTNERS)
    assert (found.pwca - slow_pwca).abs().max() > 1e-3


def test_pairs_checkpointing_and_compilation() -> None:
    model, x = build(V2, depths=(1, 1)).train(), images(4)
    check_pairs(model, x)
    check_checkpointing_and_compilation(model, x, torch.tensor([2, -1, 0, 0]))


def test_what_a_swin_does_not_have_is_refused() -> None:
    rule = rf"branches must be some of sa, pwca for {V1}, got sa, glca, pwca: its windows and stages"
    with pytest.raises(ValueError, match=rule + r".*pass branches=\['sa', 'pwca'\]"):
        build(branches=("sa", "glca", "pwca"))
    with pytest.raises(ValueError, match=r"layout='reference'.*give no rollout"):
        build(layout="reference")
    with pytest.raises(ValueError, match=r"pwca_blocks must be in \[1, 4\]"):
        build(pwca_blocks=(4, 5))
    model, x = build(), images()
    for call in (explain, DualAttentionModel.get_attention_maps, partial(distractor_share, distractors=x)):
        with pytest.raises(ValueError, match="backbone_name must be a model with a rollout"):
            call(model, x)
    assert model._no_split_modules == ["SwinBlock"]


def test_images_of_any_size() -> None:
    """As timm, which makes the masks of the padded grid anew."""
    model, x = build(dynamic_img_size=True), torch.randn(2, 3, 44, 32, dtype=torch.float64)
    plain = twin(model, V1, img_size=SIZE, dynamic_img_size=True, **SIZES)
    found = model(x)
    expected = plain.forward_features(x)
    assert model.backbone.grid_of(x) == expected.shape[1:3] == (6, 4)
    torch.testing.assert_close(found["sa_features"], expected.flatten(1, 2))
    with pytest.raises(ValueError, match=r"x must be \(height, width\) in multiples of the patch \(4, 4\)"):
        model(x[:, :, :42])


def test_hooks_and_lora_take_effect_in_every_block() -> None:
    model, x = build(V2).train(), images()
    seen: list[tuple[int, ...]] = []
    for module in model.backbone.blocks:
        for called in (module, module.attn, module.attn.qkv):
            called.register_forward_hook(lambda m, i, out: seen.append(tuple(out.shape[:2])))
    model(x, partner_index=PARTNERS)
    assert len(seen) == 3 * 4
    check_lora(build(V2), ["qkv", "proj", "fc1", "reduction"], x, PARTNERS)


def test_an_onnx_file_gives_the_same(tmp_path: Path) -> None:
    check_onnx(build(depths=(2, 1)).float(), images().float(), tmp_path)


def test_layers_have_their_rate() -> None:
    model = build()
    groups = parameter_groups(model, 0.05, weight_decay_exclude_1d=True, layer_decay=0.5)
    found = {id(p): g for g in groups for p in g["params"]}
    assert len(found) == len([*model.parameters()])
    rates = [found[id(block.attn.qkv.weight)]["lr_scale"] for block in model.backbone.blocks]
    assert rates == [rates[-1] / 8, rates[-1] / 4, rates[-1] / 2, rates[-1]]
    table = model.backbone.blocks[0].attn.relative_position_bias_table
    assert found[id(table)]["weight_decay"] == 0
