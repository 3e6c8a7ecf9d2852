"""The demo's backbone, which this import registers with timm, so that its models can be loaded."""

from typing import Any

from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

SIZE = 48


@register_model
def face_vit(
    pretrained: bool = False,
    pretrained_cfg: object = None,
    pretrained_cfg_overlay: object = None,
    cache_dir: object = None,
    **kwargs: Any,
) -> VisionTransformer:
    """A ViT of 4 blocks, 128 channels and 4 heads on 48 x 48 photos in 8 x 8 patches, never pretrained."""
    shape = {"img_size": SIZE, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
    return VisionTransformer(**(shape | kwargs))
