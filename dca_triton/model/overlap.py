"""Overlapping patches of a VisionTransformer (TransReID, He et al., ICCV 2021, section 3.1)."""

from typing import Any, NamedTuple

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer

from ..arguments import raise_faults
from .family import TimmModule

Size = tuple[int, int]


class Overlap(NamedTuple):
    """Patches of `height` x `width` pixels, one every `stride` pixels: patch i begins at pixel i * stride."""

    height: int
    width: int
    stride: int

    def grid(self, size: Size) -> Size:
        """Rows and columns of patches: floor((side - patch) / stride) + 1; pixels may be left behind them."""
        height, width = size
        return (height - self.height) // self.stride + 1, (width - self.width) // self.stride + 1

    def side_by_side(self, size: Size) -> Size:
        """The image size that as many patches fill without overlap: timm makes the positions for it."""
        rows, columns = self.grid(size)
        return rows * self.height, columns * self.width

    def faults(self, size: Size) -> list[str]:
        """Faults of the stride, and of the size of images."""
        patch = self.height, self.width
        faults = []
        if self.stride > min(patch):
            faults.append(f"patch_stride must be at most the patch, {min(patch)}, got {self.stride}")
        if size[0] < self.height or size[1] < self.width:
            faults.append(f"img_size must be at least the patch {patch}, got {size}")
        return faults


def overlap_of(name: str, stride: int, kwargs: dict[str, Any]) -> Overlap:
    """The patches of the timm model `name` with a stride.

    Raises:
        ValueError: The model cannot have overlapping patches, with every reason.
    """
    with torch.device("meta"):
        model: TimmModule = timm.create_model(name, **kwargs | {"checkpoint_path": None})
    if not isinstance(model, VisionTransformer):
        raise_faults(
            [f"backbone_name must be a VisionTransformer for patch_stride, got a {type(model).__name__}"]
        )
    embed, faults = model.patch_embed, []
    if type(embed) is not PatchEmbed:
        got = type(embed).__name__
        faults.append(f"backbone_name must be a model with a PatchEmbed for patch_stride, got a {got}")
    if model.pos_embed is None:
        faults.append(
            "backbone_name must be a model with learned positions for patch_stride, got one without"
        )
    raise_faults(faults)
    height, width = embed.patch_size
    return Overlap(height, width, stride)


def set_stride(model: TimmModule, overlap: Overlap, size: Size) -> None:
    """Let the patches of a model that was made for the size `side_by_side` overlap; its weights stay.

    Images then have this one size, also with dynamic_img_size, whose check allows whole patches only.
    """
    model.patch_embed.proj.stride = (overlap.stride, overlap.stride)
    model.patch_embed.img_size = size
    model.patch_embed.strict_img_size = True
