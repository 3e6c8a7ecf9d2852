"""timm backbones: which serve, where their weights come from, and errors that say why not."""

import pytest
import torch

from dca_triton import DualAttentionModel
from dca_triton.backbone import Backbone, layout_faults

PAPER = {"num_classes": 5, "img_size": 64, "layout": "paper"}


@pytest.mark.parametrize(
    "name, layout, words",
    [
        ("resnet18", "paper", ["class token", "ResNet", "img_size"]),
        ("vit_base_patch16_siglip_224", "paper", ["class token"]),
        ("no_such_model", "paper", ["no_such_model", "timm"]),
        ("vit_relpos_small_patch16_224", "paper", ["not a timm VisionTransformer"]),
    ],
)
def test_unsupported_backbones(name, layout, words):
    with pytest.raises(ValueError) as caught:
        DualAttentionModel(name, 5, layout=layout, pretrained=False)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_pretrained_weights_come_from_a_local_file(tmp_path):
    weights = tmp_path / "weights.pt"
    source = DualAttentionModel("test_vit", **PAPER, pretrained=False).backbone.model
    torch.save(source.state_dict(), weights)
    loaded = DualAttentionModel(
        "test_vit",
        **PAPER,
        pretrained_cfg_overlay={"file": str(weights), "num_classes": 0},
    )
    assert torch.equal(loaded.backbone.model.cls_token, source.cls_token)
    with pytest.raises(RuntimeError, match="pretrained_cfg_overlay"):
        DualAttentionModel(
            "test_vit",
            **PAPER,
            pretrained_cfg_overlay={"file": str(tmp_path / "absent.pt")},
        )


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_tokens_before_the_blocks_are_the_backbones_own(name: str) -> None:
    """`embed`, the blocks and the final norm are timm's whole `forward_features`."""
    torch.manual_seed(0)
    backbone = Backbone(name, "paper", False, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = backbone.embed(images)
    assert tokens.shape == (2, backbone.num_prefix_tokens + 16, backbone.embed_dim)
    for block in backbone.model.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(backbone.model.norm(tokens), backbone(images))


def test_a_backbone_without_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="its patch embedding tells no grid"):
        Backbone("xcit_nano_12_p16_224", "reference", False, 64)


def test_every_reason_against_a_backbone() -> None:
    model = Backbone("test_vit", "paper", False, 64).model
    assert layout_faults(model, "paper") == []
    model.blocks[0] = torch.nn.Identity()
    model.blocks[1].attn = torch.nn.Identity()
    faults = layout_faults(model, "paper")
    assert faults == [
        "its blocks are Identity, not pre-norm Block",
        "its attention is Identity, not timm.layers.Attention",
    ]
    assert layout_faults(model, "reference") == []
