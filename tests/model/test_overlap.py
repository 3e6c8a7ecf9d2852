"""Overlapping patches: the tokens by hand, positions resampled once, and every way to a checkpoint."""

import pytest
import torch
import torch.nn.functional as F
from small_training import small_model
from timm.layers import resample_abs_pos_embed

from dca_triton import DualAttentionModel
from dca_triton.checkpoint import load_weights
from dca_triton.model import explain, export_program
from dca_triton.model.backbone import Backbone

SIZE, GRID, STRIDE = (40, 36), (3, 2), 12  # of patches of 16: 8 columns of pixels are left
POSITIONS = "backbone.model.pos_embed"


def overlapping(**options) -> DualAttentionModel:
    sizes = {"img_size": SIZE, "patch_size": 16, "patch_stride": STRIDE, "drop_path_rate": 0.0}
    return small_model(**(sizes | options))


def test_tokens_are_the_projections_of_unfolded_patches() -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_vit", "paper", False, SIZE, STRIDE).double()
    vit, images = backbone.model, torch.randn(2, 3, *SIZE, dtype=torch.float64)
    patches = F.unfold(images, 16, stride=STRIDE).mT  # (B, 6, 3 * 16 * 16)
    tokens = patches @ vit.patch_embed.proj.weight.flatten(1).T + vit.patch_embed.proj.bias
    truth = torch.cat([vit.cls_token.expand(2, -1, -1), tokens], 1) + vit.pos_embed
    torch.testing.assert_close(backbone(images), truth)
    assert backbone.grid_size == backbone.grid_of(images) == GRID
    assert vit.dynamic_img_size, "without a stride, images of other sizes would fit"
    assert "must be (B, 3, 40, 36), the backbone's size" in backbone.image_faults("x", images[..., :32])[0]


@pytest.mark.parametrize("layout", ["reference", "paper"])
def test_a_model_sees_what_its_patches_cover(layout: str) -> None:
    model = overlapping(layout=layout, task_type="reid").train()
    images = torch.randn(3, 3, *SIZE)
    outputs = model(images, partner_index=torch.tensor([1, 2, 0]))
    assert outputs["sa_features"].shape[1] == 1 + 6
    sum(outputs[f"{b}_logits"].sum() for b in model.branches).backward()
    assert all(p.grad is not None for p in model.parameters())
    found = explain(model, images)
    assert found.rollout.shape == (3, 7) and found.selected.shape == (3, 1 + 3)
    images[:, :, :, 28:] = 0  # behind the last patch
    torch.testing.assert_close(explain(model, images).sa, found.sa)
    images[:, :, :, 27:] = 0
    assert not torch.equal(explain(model, images).sa, found.sa)


def test_a_stride_of_the_patch_is_none() -> None:
    plain, stride = (overlapping(img_size=32, patch_stride=s).eval() for s in (None, 16))
    assert plain.state_dict().keys() == stride.state_dict().keys() == overlapping().state_dict().keys()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain(images)["sa_logits"], stride(images)["sa_logits"])


def test_pretrained_positions_are_resampled_once_to_the_new_grid(tmp_path) -> None:
    source = Backbone("test_vit", "paper", False, 64).model
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    overlay = {"file": str(tmp_path / "weights.pt"), "num_classes": 0}
    loaded = Backbone("test_vit", "paper", True, SIZE, STRIDE, pretrained_cfg_overlay=overlay).model
    expected = resample_abs_pos_embed(source.pos_embed, list(GRID), [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(loaded.pos_embed, expected, rtol=0, atol=0)
    assert torch.equal(loaded.patch_embed.proj.weight, source.patch_embed.proj.weight)


def test_weights_are_transferred_between_strides() -> None:
    for old, new, grids in ((None, STRIDE, ((2, 2), GRID)), (STRIDE, None, (GRID, (2, 2)))):
        source = overlapping(img_size=SIZE if old else 32, patch_stride=old, seed=1)
        target = overlapping(img_size=SIZE if new else 32, patch_stride=new)
        checkpoint = {"model_state_dict": source.state_dict(), "model_arguments": source._hub_mixin_config}
        assert load_weights(target, checkpoint, transfer=True)["resampled"] == [POSITIONS]
        before = source.state_dict()[POSITIONS]
        expected = resample_abs_pos_embed(before, list(grids[1]), list(grids[0]), num_prefix_tokens=1)
        torch.testing.assert_close(target.state_dict()[POSITIONS], expected)


@torch.no_grad()
def test_saved_and_exported_models_have_the_stride(tmp_path) -> None:
    model, images = overlapping(depth=1).eval(), torch.randn(3, 3, *SIZE)
    model.save_pretrained(tmp_path)
    found = DualAttentionModel.from_pretrained(tmp_path)(images)["sa_logits"]
    assert torch.equal(found, model(images)["sa_logits"])
    program = export_program(model, class_tokens_only=True).module()
    exported = program(images, class_tokens_only=True)["sa_logits"]
    torch.testing.assert_close(exported, found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, options, reason",
    [
        ("vit_small_patch16_dinov3", {}, "must be a VisionTransformer for patch_stride, got a Eva"),
        ("vit_tiny_r_s16_p8_224", {}, "must be a model with a PatchEmbed for patch_stride, got a Hybrid"),
        (
            "test_vit",
            {"pos_embed": "none"},
            "must be a model with learned positions for patch_stride, got one without",
        ),
        ("test_vit", {"patch_stride": 17}, "patch_stride must be at most the patch, 16, got 17"),
        ("test_vit", {"patch_stride": 0}, "patch_stride must be an integer >= 1 or None, got 0"),
        (
            "test_vit",
            {"img_size": (15, 64)},
            r"img_size must be at least the patch \(16, 16\), got \(15, 64\)",
        ),
        ("test_vit", {"patch_stride": None}, r"img_size must be \(height, width\) in multiples of the patch"),
    ],
)
def test_what_cannot_overlap_is_refused(name: str, options: dict, reason: str) -> None:
    own = {"layout": "paper", "pretrained": False, "img_size": SIZE, "patch_stride": STRIDE}
    with pytest.raises(ValueError, match=reason):
        DualAttentionModel(name, 3, **(own | options))
