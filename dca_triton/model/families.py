"""The families of timm's models that the paper's layout runs, and why it cannot use another model."""

from .beit import BEIT
from .cait import CAIT
from .eva import EVA
from .family import Family, TimmModule
from .pooling import pooling_faults
from .refusals import refusal
from .swin import SWIN, SWIN_V2
from .vit import VIT

FAMILIES = (VIT, EVA, BEIT, CAIT, SWIN, SWIN_V2)


def layout_faults(model: TimmModule, layout: str) -> list[str]:
    """Every reason why a timm model cannot be the backbone of a layout; an empty list if it can."""
    family = family_of(model)
    if family is None and (layout == "paper" or type(model).__name__ == "NaFlexVit"):
        return [refusal(model, (family.model for family in FAMILIES))]
    faults = pooling_faults(model, known=family is not None)
    if layout == "reference" and family is not None and family.merging(model) > 1:
        faults.append(family.missing)
    embed = getattr(model, "patch_embed", None)
    if not faults and not hasattr(embed, "grid_size"):
        faults.append("its patch embedding has no grid_size")
    if getattr(embed, "dynamic_img_pad", False):
        faults.append("dynamic_img_pad adds pixels to the images; set dynamic_img_size alone")
    if family is None or layout == "reference":
        return faults
    if getattr(model, "rope", None) is not None and model.patch_drop is not None:
        faults.append(f"patch_drop_rate must be 0 with rotary positions, got {model.patch_drop.prob}")
    if family is CAIT and not model.blocks_token_only:
        faults.append("it has no class-attention blocks")
    return list(dict.fromkeys([*faults, *family.faults(model)]))


def family_of(model: TimmModule) -> Family | None:
    """The family that a timm model belongs to, if any."""
    return next((family for family in FAMILIES if isinstance(model, family.model)), None)
