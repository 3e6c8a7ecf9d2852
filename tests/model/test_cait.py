"""timm's CaiT in the paper's layout, against timm's own modules and single images, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cait_streams import attending_to_partners, slow_streams
from family_checks import (
    check_checkpointing_and_compilation,
    check_gradients,
    check_lora,
    check_onnx,
    check_pairs,
)
from timm.models import cait as timm_cait
from timm_streams import narrow_model, randomized, twin
from torch import Tensor, nn

from dca_triton import DualAttentionModel, reference
from dca_triton.model import cait, distractor_share, explain
from dca_triton.training.parameter_groups import layer_matcher

NAME = "cait_xxs24_224"
SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 4}
SHORT = SIZES | {"depth": 1, "depth_token_only": 1}  # one block of each kind, where graphs take long
SIZE = (48, 64)  # 3 x 4 patches
PARTNERS = torch.tensor([2, 2, -1, 0])
NONE = torch.full((4,), -1)


def build(sizes: dict = SIZES, **options: Any) -> DualAttentionModel:
    torch.manual_seed(0)
    model = narrow_model(NAME, sizes, **({"img_size": SIZE} | options))
    return randomized(model).double().eval()


def plain_of(model: DualAttentionModel) -> Any:
    return twin(model, NAME, img_size=SIZE, **SIZES)


def images_of(size: tuple[int, int] = SIZE) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, *size, dtype=torch.float64)


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_streams_gradients_and_rollout_are_those_of_timms_modules() -> None:
    model, images = build(), images_of()
    plain = plain_of(model)
    sa, pwca, glca, row, selected = slow_streams(model, plain, images, PARTNERS)
    streams = model.sa_and_pwca(images, partner_index=PARTNERS)
    assert torch.equal(model.select(model.rollout(streams)), selected)
    close(model.rollout(streams).double(), row)
    found = (streams.sa, streams.pwca, model.local_branch(streams, selected))
    close(found, (sa, pwca, glca))
    assert (found[1] - found[0])[[0, 1, 3]].abs().max() > 1e-3, "a partner changes something"
    close(found[1][2], sa[2])
    close(model.read_out_sa(streams.sa), plain.forward_head(sa, pre_logits=True))
    check_gradients(model, plain, found, (sa, pwca, glca))
    with torch.no_grad():
        short = model(images, class_tokens_only=True)
        close((short["sa_features"][:, 0], short["glca_features"][:, 0]), (sa[:, 0], glca[:, 0]))


@pytest.mark.parametrize("part", ["scores", "probabilities", "partners of none", "class token"])
def test_a_wrong_part_would_be_seen(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    model, images = build(), images_of()
    with attending_to_partners(PARTNERS):
        expected = plain_of(model).forward_features(images)

    @torch.no_grad()
    def error() -> float:
        return float((model.sa_and_pwca(images, partner_index=PARTNERS).pwca - expected).abs().max())

    assert error() < 1e-9
    block = model.backbone.blocks[0]
    if part == "scores":
        block.attn.proj_l = nn.Identity()
    elif part == "probabilities":
        block.attn.proj_w = nn.Identity()
    elif part == "partners of none":  # what the bias of proj_w gives to the keys of absent partners
        masked = Tensor.masked_fill
        monkeypatch.setattr(
            Tensor, "masked_fill", lambda x, mask, value: masked(x, mask, value) if value else x.clone()
        )
    else:
        monkeypatch.setattr(cait.LayerScaleBlockClassAttn, "before_attention", lambda self, x: x)
    assert error() > 1e-4


def test_every_parameter_is_trained_and_pairs_are_rows_of_the_batch() -> None:
    check_pairs(build(glca_readout="both").train(), images_of())


def test_checkpointing_and_compilation() -> None:
    model = build(SHORT, glca_readout="both").train()
    check_checkpointing_and_compilation(model, images_of(), PARTNERS)


def test_some_blocks_alone_pair_images() -> None:
    """The streams part in the talking heads, or in the first class-attention block."""
    images = images_of()
    for first in (2, 3, 4):
        model = build(pwca_blocks=(first, 4))
        streams = model.sa_and_pwca(images, partner_index=PARTNERS)
        plain = plain_of(model)
        with attending_to_partners(NONE):
            close(streams.sa, plain.forward_features(images))
        blocks = [*plain.blocks, *plain.blocks_token_only]
        with attending_to_partners(PARTNERS):
            paired = {name: getattr(timm_cait, name).forward for name in ("TalkingHeadAttn", "ClassAttn")}
        with attending_to_partners(NONE):
            for block in blocks[first - 1 :]:
                attention = block.attn
                attention.forward = paired[type(attention).__name__].__get__(attention)
            close(streams.pwca, plain.forward_features(images))


def test_pictures_of_attention() -> None:
    model, images = build(), images_of()
    with attending_to_partners(NONE) as maps:
        plain_of(model).forward_features(images)
    found = model.get_attention_maps(images)
    close(found["sa_attention_weights"], maps)
    close(found["accumulated_attention"], reference.rollout(maps))
    explained = explain(model, images)
    close(explained.rollout.double(), reference.rollout(maps)[:, 0])
    share = distractor_share(model, images, images)
    patches, token = share[:, :2, 1:], share[:, 2:, 0]
    close(torch.cat([patches.flatten(), token.flatten()]), torch.full((4 * (2 * 12 + 2),), 0.5).double())
    assert share[:, :2, 0].abs().max() == share[:, 2:, 1:].abs().max() == 0, "what a block leaves as it is"


def test_stochastic_depth_and_dropout() -> None:
    """Each residual of an image is dropped, or counts twice at a rate of 0.5."""
    block = build(drop_path_rate=0.5).backbone.blocks[0].train()
    x = torch.randn(4, 5, 32, dtype=torch.float64)
    patches, outcomes = x[:, 1:], {}
    for first in (0, 2):
        y = patches + first * block.gamma_1 * block.attn(block.norm1(patches))
        for second in (0, 2):
            outcomes[first, second] = y + second * block.gamma_2 * block.mlp(block.norm2(y))
    seen = set()
    for _ in range(20):
        found = block(x)
        assert torch.equal(found[:, :1], x[:, :1])
        for image, tokens in enumerate(found[:, 1:]):
            kinds = {kind for kind, right in outcomes.items() if torch.allclose(tokens, right[image])}
            assert len(kinds) == 1
            seen |= kinds
    assert seen == {*outcomes}
    block.attn.attn_drop.p = 1.0
    close(block.attn(patches), block.attn.proj.bias.expand_as(patches))


def test_lora_equals_its_merged_model() -> None:
    targets = ["qkv", "proj", "proj_l", "proj_w", "q", "k", "v"]
    check_lora(build(), targets, images_of(), PARTNERS)


def test_an_onnx_file_gives_the_same(tmp_path: Path) -> None:
    check_onnx(build(SHORT).float(), images_of().float()[:3], tmp_path)


def test_the_reference_layout_takes_timms_features() -> None:
    model, images = build(layout="reference", num_sa_blocks=1, num_heads=4), images_of()
    torch.testing.assert_close(model.backbone(images), plain_of(model).forward_features(images))
    outputs = model.train()(images, partner_index=PARTNERS)
    assert outputs["pwca_features"].shape == (4, 13, 32)


def test_what_triton_cannot_do_is_refused() -> None:
    model, images = build(), images_of()
    model.backend = "triton"
    with pytest.raises(RuntimeError, match="backend='triton' cannot run here: CaiT's heads mix their scores"):
        model(images)


def test_a_block_keeps_three_maps() -> None:
    """The memory that the docstring states."""
    block = build().backbone.blocks[0]
    x = torch.randn(2, 101, 32, dtype=torch.float64, requires_grad=True)
    sizes: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        block.attn(x[:, 1:], pairs=torch.tensor([1, 0]))
    maps = [size for size in sizes.values() if size == 2 * 100 * 200 * 4 * 8]
    assert len(maps) == 3 and max(sizes.values()) == maps[0]


def test_layers_of_the_learning_rate() -> None:
    model = build()
    layer = layer_matcher(model)
    names = [name for name, _ in model.named_parameters() if "blocks_token_only.1" in name]
    assert names and {layer(name) for name in names} == {layer("backbone.model.blocks.1.norm1.weight")}


def test_what_the_streams_do_not_run_is_refused() -> None:
    with pytest.raises(ValueError, match="it has no class-attention blocks"):
        build(SIZES | {"depth_token_only": 0})
    with pytest.raises(TypeError, match="positional"):  # timm's forward: the class token is no longer apart
        build().backbone.model.forward_features(images_of())
