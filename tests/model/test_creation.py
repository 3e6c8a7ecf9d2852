"""Where the weights of timm's models come from, what becomes of their positions, and errors with reasons."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm_streams import randomized
from torch import Tensor, nn

from dca_triton import DualAttentionModel
from dca_triton.model.backbone import Backbone
from dca_triton.model.creation import FreshWeights

PAPER = {"num_classes": 5, "img_size": 64, "layout": "paper"}


@pytest.mark.parametrize(
    "name, layout, words",
    [
        ("resnet18", "paper", ["ResNet", "no multi-head attention"]),
        ("resnet18", "reference", ["no class token"]),
        ("swin_tiny_patch4_window7_224", "reference", ["rollout"]),
        ("no_such_model", "paper", ["no_such_model", "timm"]),
        ("vit_relpos_small_patch16_224", "paper", ["is not a VisionTransformer"]),
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


@pytest.mark.parametrize("level", [logging.DEBUG, logging.ERROR])
def test_weights_that_a_file_lacks_are_named(level, tmp_path, caplog):
    """timm loads such a file, and tells what is missing at a level that few programs show."""
    caplog.set_level(level, "timm")
    weights = timm.create_model("test_vit", num_classes=0, img_size=64).state_dict()
    save_file(weights, tmp_path / "whole.safetensors")
    whole = DualAttentionModel(
        "test_vit", **PAPER, pretrained_cfg_overlay={"file": str(tmp_path / "whole.safetensors")}
    )
    assert torch.equal(whole.backbone.model.pos_embed, weights["pos_embed"])
    lacking = {name: x for name, x in weights.items() if name != "pos_embed" and "blocks.5." not in name}
    save_file(lacking, tmp_path / "part.safetensors")
    with pytest.warns(FreshWeights, match=r"lack pos_embed, blocks\.5\..*random values") as caught:
        DualAttentionModel(
            "test_vit", **PAPER, pretrained_cfg_overlay={"file": str(tmp_path / "part.safetensors")}
        )
    assert [Path(each.filename).name for each in caught] == [Path(__file__).name]
    shown = {record.levelno for record in caplog.records if record.name == "timm.models._builder"}
    assert shown == ({logging.INFO} if level == logging.DEBUG else set())
    assert logging.getLogger("timm.models._builder").level == logging.NOTSET


NARROW = {"embed_dim": 32, "depth": 1, "num_heads": 2}
WINDOWS = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
SHARED = {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": True}
# What timm calls the sizes of each family, and the patch.
FAMILIES = {
    "vit_tiny_patch16_224": (NARROW, 16),
    "eva02_tiny_patch14_224": (NARROW, 14),  # learned positions, and rotations
    "vit_small_patch16_rope_mixed_224": (NARROW, 16),  # learned rotations
    "beitv2_base_patch16_224": (NARROW, 16),  # tables of relative positions
    "beit_base_patch16_224": (NARROW | SHARED, 16),  # one for all blocks, and learned positions
    "cait_xxs24_224": (NARROW | {"depth_token_only": 1}, 16),
    "swin_tiny_patch4_window7_224": (WINDOWS, 4),  # tables, and masks of shifted windows
    "swinv2_tiny_window8_256": (WINDOWS, 4),  # coordinates
}
OLD, NEW = (8, 8), (10, 6)  # patches of the weights, whose size no file tells, and of the model


def pixels(grid: tuple[int, int], patch: int) -> tuple[int, int]:
    return grid[0] * patch, grid[1] * patch


def saved(name: str, folder: Path, grid: tuple[int, int] = OLD) -> tuple[Any, dict[str, str]]:
    """timm's model for images of a grid of patches, and an overlay that names the file of its weights."""
    sizes, patch = FAMILIES[name]
    torch.manual_seed(0)
    source = randomized(timm.create_model(name, num_classes=0, img_size=pixels(grid, patch), **sizes))
    save_file(source.state_dict(), folder / "weights.safetensors")
    return source, {"file": str(folder / "weights.safetensors"), "num_classes": 0}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that no file holds."""
    return {name: x.detach() for name, x in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.filterwarnings("ignore::UserWarning")  # in timm's resampling
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_another_image_size_are_those_that_timm_resizes(name: str, tmp_path: Path) -> None:
    """A Swin's last windows shrink with its grid, so their tables are of another size, too."""
    source, overlay = saved(name, tmp_path)
    before, (sizes, patch) = tensors(source), FAMILIES[name]
    model = Backbone(name, "paper", True, pixels(NEW, patch), pretrained_cfg_overlay=overlay, **sizes).model
    if name.startswith("cait"):
        source.pos_embed = nn.Parameter(resample_abs_pos_embed(source.pos_embed, NEW, OLD, 0))
    else:
        windows = {"window_size": 4} if "swin" in name else {}
        source.set_input_size(pixels(NEW, patch), **windows)
    expected = tensors(source)
    assert any(before[key].shape != x.shape for key, x in expected.items())
    torch.testing.assert_close(tensors(model), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_another_model_are_refused(name: str, tmp_path: Path) -> None:
    _, overlay = saved(name, tmp_path)
    sizes, patch = FAMILIES[name]
    with pytest.raises(RuntimeError, match=f"weights of '{name}' could not be loaded .*size mismatch for"):
        wider = sizes | {"embed_dim": 64}
        Backbone(name, "paper", True, pixels(OLD, patch), pretrained_cfg_overlay=overlay, **wider)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cait_xxs24_224"])
def test_as_many_positions_of_another_grid(name: str, tmp_path: Path) -> None:
    """`input_size` says that the images were squares; without it they are those of the model's grid."""
    source, overlay = saved(name, tmp_path)
    sizes, size = FAMILIES[name][0], pixels((16, 4), 16)
    prefix = 0 if name.startswith("cait") else 1
    resampled = resample_abs_pos_embed(source.pos_embed, (16, 4), OLD, prefix)
    assert not torch.equal(resampled, source.pos_embed)
    for known, expected in (({}, source.pos_embed), ({"input_size": (3, 128, 128)}, resampled)):
        model = Backbone(name, "paper", True, size, pretrained_cfg_overlay=overlay | known, **sizes).model
        assert torch.equal(model.pos_embed, expected)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cait_xxs24_224", "beitv2_base_patch16_224"])
def test_positions_of_an_unknown_grid_are_refused(name: str, tmp_path: Path) -> None:
    """Of 3 x 5 patches, which neither the file nor `input_size` tells."""
    _, overlay = saved(name, tmp_path, (3, 5))
    sizes, patch = FAMILIES[name]
    with pytest.raises(RuntimeError, match=f"pretrained weights of '{name}' could not be loaded"):
        Backbone(name, "paper", True, pixels(NEW, patch), pretrained_cfg_overlay=overlay, **sizes)


SIZES = [
    ((250, 125), r"such as \(240, 112\) or \(256, 128\), got \(250, 125\)"),
    (100, r"such as \(96, 96\) or \(112, 112\), got \(100, 100\)"),
    ((8, 32), r"such as \(16, 32\) or \(16, 32\), got \(8, 32\)"),
]


@pytest.mark.parametrize("layout", ["paper", "reference"])
@pytest.mark.parametrize("size, words", SIZES)
def test_the_patch_must_divide_the_images(layout: str, size: int | tuple[int, int], words: str) -> None:
    with pytest.raises(ValueError, match=f"img_size must be .* multiples of the patch \\(16, 16\\), {words}"):
        DualAttentionModel(
            "test_vit", 3, layout=layout, pretrained=False, img_size=size, dynamic_img_size=True
        )
