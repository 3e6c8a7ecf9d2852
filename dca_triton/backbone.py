"""timm vision transformers as backbones: created, checked, and with errors that say what to do."""

from typing import Any

import timm
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

TimmModule = Any  # a module of timm's, whose attributes nn.Module's type does not know


class Backbone(nn.Module):
    """A timm vision transformer under the name `model`, as the reference's checkpoints have it.

    Raises:
        ValueError: `name` is no timm model or cannot serve the layout, with every reason.
        RuntimeError: The pretrained weights cannot be had, with the way to give a local file.
    """

    def __init__(
        self, name: str, layout: str, pretrained: bool, img_size: int | tuple[int, int], **kwargs: Any
    ):
        super().__init__()
        self.model: TimmModule = _create(name, layout, pretrained, img_size, kwargs)
        self.num_prefix_tokens: int = self.model.num_prefix_tokens
        self.embed_dim: int = self.model.embed_dim
        self.grid_size: tuple[int, int] = tuple(self.model.patch_embed.grid_size)

    def forward(self, images: Tensor) -> Tensor:
        """The whole ViT, final norm included: (B, 3, h, w) -> (B, N, C)."""
        return self.model.forward_features(images)

    def embed(self, images: Tensor) -> Tensor:
        """Patch and position embedding alone: (B, 3, h, w) -> tokens (B, N, C)."""
        model = self.model
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def _create(
    name: str, layout: str, pretrained: bool, img_size: int | tuple[int, int], kwargs: dict[str, Any]
) -> TimmModule:
    if not timm.is_model(name):
        raise ValueError(
            f"backbone_name is {name!r}; allowed are timm models, listed by timm.list_models('*vit*')"
        )
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, img_size=img_size, **kwargs)
        reasons = layout_faults(model, layout)
    except Exception as error:  # timm's constructors raise nearly anything at arguments that do not fit
        with torch.device("meta"):
            reasons = [str(error) or type(error).__name__, *layout_faults(timm.create_model(name), layout)]
    if reasons:
        raise ValueError(f"backbone_name {name!r} cannot serve layout={layout!r}: {'; '.join(reasons)}")
    if not pretrained:
        return model
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, img_size=img_size, **kwargs)
    except Exception as error:
        raise RuntimeError(
            f"pretrained weights of {name!r} could not be loaded "
            f"({type(error).__name__}: {_first_line(error)}); give a local file by "
            "pretrained_cfg_overlay=dict(file='weights.safetensors') "
            "or start from scratch by pretrained=False"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def layout_faults(model: TimmModule, layout: str) -> list[str]:
    """Every reason why a timm model cannot be the backbone of a layout; an empty list if it can."""
    faults = []
    if getattr(model, "num_prefix_tokens", 0) < 1 or not hasattr(model, "patch_embed"):
        faults.append("it has no class token")
    elif not hasattr(model.patch_embed, "grid_size"):
        faults.append("its patch embedding tells no grid")
    if layout == "reference":
        return faults
    if not isinstance(model, VisionTransformer):
        return [*faults, f"it is a {type(model).__name__}, not a timm VisionTransformer"]
    if not model.has_class_token and "it has no class token" not in faults:
        faults.append("it has no class token")
    if not len(model.blocks):
        faults.append("it has no blocks")
    for block in model.blocks:
        if type(block) is not Block:
            faults.append(f"its blocks are {type(block).__name__}, not pre-norm Block")
        elif type(block.attn) is not Attention:
            faults.append(f"its attention is {type(block.attn).__name__}, not timm.layers.Attention")
        elif getattr(block.attn, "gate", None) is not None:
            faults.append("its attention is gated")
    return list(dict.fromkeys(faults))
