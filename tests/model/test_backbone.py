"""timm backbones: which ones work, with their own tokens and norms, and errors with reasons."""

from pathlib import Path

import pytest
import timm
import torch
from timm_names import LAYOUTS, REFUSALS, check, entry_of, names

from dca_triton import DualAttentionModel
from dca_triton.model.backbone import Backbone
from dca_triton.model.families import layout_faults


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_tokens_before_the_blocks_are_the_backbones_own(name: str) -> None:
    """The paper's tokens, the blocks and the final norm are timm's whole `forward_features`."""
    torch.manual_seed(0)
    backbone = Backbone(name, "paper", False, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = backbone(images)
    assert tokens.shape == (2, backbone.num_prefix_tokens + 16, backbone.embed_dim)
    for block in backbone.model.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(backbone.norm(tokens), backbone.model.forward_features(images))


def test_a_backbone_without_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="its patch embedding has no grid_size"):
        Backbone("xcit_nano_12_p16_224", "reference", False, 64)


def test_every_reason_against_a_backbone() -> None:
    model = timm.create_model("test_vit")
    assert layout_faults(model, "paper") == []
    model.blocks[0] = torch.nn.Identity()
    model.blocks[1].attn = torch.nn.Identity()
    faults = layout_faults(model, "paper")
    assert faults == [
        "its blocks are Identity, not Block or ResPostBlock",
        "its attention is Identity, not Attention",
    ]
    assert layout_faults(model, "reference") == []


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "cait_m48_448"])
def test_what_make_backbones_checks(name: str) -> None:
    """Post-norm blocks, and a CaiT of other sizes."""
    check(entry_of(name))


def test_every_model_of_timm_serves_or_is_refused_as_the_docs_say() -> None:
    """On the meta device; `make backbones` compares those that serve with timm's own modules."""
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    documented = {row[0].strip("`"): row[-2:] for row in rows}
    if f"timm {timm.__version__} " in page:
        assert [*documented] == names()
    accepted = 0
    for name in names():
        entry = entry_of(name)
        for layout, words in zip(LAYOUTS, documented.get(name, [None, None]), strict=True):
            reasons = entry.reasons[layout]
            assert all(reason.startswith(REFUSALS) for reason in reasons), (name, reasons)
            assert words in (None, entry.cell(layout)), (name, layout)
            accepted += not reasons
    assert accepted > 500


KINDS = [
    "test_vit",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",  # LayerScale, position embedding without the class token
    "vit_base_patch32_clip_224",  # norm_pre, no bias in the patch embedding
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_reg1_tipsv2",  # GluMlp, one register
    "beit3_base_patch16_224",  # fc_norm, norms of attention and MLP
    "eva_large_patch14_196",  # fc_norm
    "vit_intern300m_patch14_448",  # no final norm, dynamic_img_size
    "vit_base_patch16_radio_v3",  # several class tokens
    "vit_tiny_r_s16_p8_224",  # a CNN stem
]


@torch.no_grad()
def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """LayerScale, norms and biases that do not pass for the identity."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("name", KINDS)
def test_the_paper_layouts_class_token_is_timms(name: str) -> None:
    """SA alone is the whole ViT, with the norm that timm gives its class token."""
    torch.manual_seed(0)
    side = 28 if "14" in name else 64
    sizes = {} if name in ("test_vit", "vit_tiny_r_s16_p8_224") else {"embed_dim": 32}
    model = DualAttentionModel(
        name, 3, layout="paper", pretrained=False, img_size=side, num_heads=2, depth=2, **sizes
    )
    randomized(model).double().eval()
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    vit = model.backbone.model
    with torch.no_grad():
        expected = vit.fc_norm(vit.forward_features(images)[:, 0])
        torch.testing.assert_close(model(images)["sa_features"][:, 0], expected)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("layout", ["paper", "reference"])
def test_images_of_another_size(layout: str, train: bool) -> None:
    """A fixed size is required; a dynamic size must be multiples of the patch, and changes the grid."""
    options = {"layout": layout, "pretrained": False, "num_heads": 4, "num_sa_blocks": 1, "in_chans": 1}
    fixed = DualAttentionModel("test_vit", 3, img_size=64, dynamic_img_size=False, **options).train(train)
    with pytest.raises(ValueError, match=r"x must be \(B, 1, 64, 64\), .* got shape \(2, 1, 64, 48\)"):
        fixed(torch.randn(2, 1, 64, 48))
    with pytest.raises(ValueError, match=r"x must be \(B, 1, 64, 64\), .* got shape \(2, 3, 64, 64\)"):
        fixed(torch.randn(2, 3, 64, 64))
    model = DualAttentionModel("test_vit", 3, img_size=64, dynamic_img_size=True, **options).train(train)
    images = torch.randn(2, 1, 32, 96)
    assert model(images)["sa_features"].shape[1] == 1 + 2 * 6
    assert model.backbone.grid_of(images) == (2, 6) and model.backbone.grid_size == (4, 4)
    with pytest.raises(ValueError, match=r"x must be .*such as \(32, 96\) or \(48, 96\), got \(40, 96\)"):
        model(torch.randn(2, 1, 40, 96))
    with pytest.raises(ValueError, match=r"x must be \(B, 1, h, w\), got shape \(2, 3, 32, 96\)"):
        model(torch.randn(2, 3, 32, 96))
    with pytest.raises(ValueError, match="set dynamic_img_size alone"):
        DualAttentionModel("test_vit", 3, img_size=64, dynamic_img_pad=True, **options)
