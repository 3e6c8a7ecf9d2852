"""Models of timm that are no backbones: one reason for each, from a fixed list."""

import pytest
import timm
import torch

from dca_triton import DualAttentionModel
from dca_triton.model.families import FAMILIES, layout_faults
from dca_triton.model.refusals import CHANNELS, NO_HEADS, OTHER, PATCHES, STAGES

REFUSED = {
    "convnext_atto": NO_HEADS,
    "mambaout_femto": NO_HEADS,
    "mixer_s32_224": NO_HEADS,
    "mobilenetv3_small_050": NO_HEADS,
    "poolformer_s12": NO_HEADS,
    "resnet18": NO_HEADS,
    "davit_tiny": STAGES,
    "hiera_tiny_224": STAGES,
    "levit_128s": STAGES,
    "maxvit_nano_rw_256": STAGES,
    "mvitv2_tiny": STAGES,
    "pit_ti_224": STAGES,
    "pvt_v2_b0": STAGES,
    "swinv2_cr_tiny_224": STAGES,
    "xcit_nano_12_p16_224": CHANNELS,
    "convit_tiny": OTHER,
    "samvit_base_patch16": OTHER,
    "vit_relpos_small_patch16_224": OTHER,
    "naflexvit_base_patch16_gap": PATCHES,
}
LACKS = ("it has no class token", "its patch embedding has no grid_size")  # in the reference's layout


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_of_another_class_is_refused_for_one_reason(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    kinds = [family.model.__name__ for family in FAMILIES]
    accepted = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    sentence = f"timm's {type(model).__name__} is not a {accepted}: {REFUSED[name]}"
    assert layout_faults(model, "paper") == [sentence]
    expected = [] if name == "convit_tiny" else [sentence] if REFUSED[name] == PATCHES else None
    faults = layout_faults(model, "reference")
    assert faults == expected if expected is not None else len(faults) == 1 and faults[0] in LACKS


@pytest.mark.parametrize(
    "name, fault",
    [
        ("vit_base_patch16_18x2_224", "its blocks are ParallelThingsBlock, not Block or ResPostBlock"),
        ("vit_base_patch16_xp_224", "its blocks are ParallelScalingBlock, not Block or ResPostBlock"),
        (
            "vit_dpwee_patch16_reg1_gap_256",
            "its blocks are DiffParallelScalingBlock, not Block or ResPostBlock",
        ),
        ("vit_dwee_patch16_reg1_gap_256", "its attention is DiffAttention, not Attention"),
    ],
)
def test_other_blocks_of_a_class_that_serves_are_refused(name: str, fault: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    assert layout_faults(model, "paper") == [fault]
    assert layout_faults(model, "reference") == []


def test_the_reason_is_the_whole_message() -> None:
    with pytest.raises(ValueError) as caught:
        DualAttentionModel("resnet18", 5, layout="paper", pretrained=False)
    assert str(caught.value).startswith("backbone_name must be a timm model that layout='paper' can use")
    assert str(caught.value).endswith(
        f"got 'resnet18': {layout_faults(timm.create_model('resnet18'), 'paper')[0]}"
    )


@pytest.mark.parametrize("layout", ["paper", "reference"])
def test_a_class_that_timm_replaces_is_refused_with_the_switch(
    monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    words = "takes patches instead of images; .* use_naflex, and unset TIMM_USE_NAFLEX and TIMM_USE_NAFLEXVIT"
    with pytest.raises(ValueError, match=words):
        DualAttentionModel("vit_tiny_patch16_224", 5, layout=layout, pretrained=False, use_naflex=True)
    monkeypatch.setenv("TIMM_USE_NAFLEX", "1")
    with pytest.raises(ValueError, match=words):
        DualAttentionModel("eva02_tiny_patch14_224", 5, layout=layout, pretrained=False)


def test_what_the_caller_passes_wrongly_is_said_of_a_model_that_serves() -> None:
    with pytest.raises(ValueError, match="unexpected keyword argument 'depths'"):
        DualAttentionModel("convit_tiny", 5, layout="reference", pretrained=False, depths=2)
    with pytest.raises(ValueError, match="unexpected keyword argument 'depths'"):
        DualAttentionModel("cait_xxs24_224", 5, layout="paper", pretrained=False, depths=2)
