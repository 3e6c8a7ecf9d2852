"""timm's VisionTransformer: a packed projection, pre-norm blocks with LayerScale, learned positions."""

from timm.layers import Attention as TimmAttention
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import ResPostBlock as TimmResPostBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from .family import Family, TimmModule
from .packed import PackedAttention
from .residual import PostNormBlock, PreNormBlock


class Attention(PackedAttention, TimmAttention):  # type: ignore[misc]
    """timm's attention with its qk-norm, which knows no positions."""

    def queries(self, q: Tensor) -> Tensor:
        return self.q_norm(q)

    def keys(self, k: Tensor) -> Tensor:
        return self.k_norm(k)


class Block(PreNormBlock, TimmBlock):  # type: ignore[misc]
    """timm's pre-norm block: x + ls1(attention(norm1(x))), then x + ls2(MLP(norm2(x)))."""

    def after_attention(self, x: Tensor) -> Tensor:
        return self.ls1(x)

    def after_mlp(self, x: Tensor) -> Tensor:
        return self.ls2(x)


class ResPostBlock(PostNormBlock, TimmResPostBlock):  # type: ignore[misc]
    """timm's post-norm block: x + norm1(attention(x)), then x + norm2(MLP(x))."""


def embed(model: TimmModule, images: Tensor) -> Tensor:
    """What timm's `forward_features` does before the blocks."""
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def features(model: TimmModule, images: Tensor, side: Tensor | None = None) -> Tensor:
    """timm's `forward_features`, with `side` (B, 1, C) added to the tokens that enter the blocks."""
    if side is None:
        return model.forward_features(images)
    x = embed(model, images)
    x = x + side.to(x.dtype)
    x = checkpoint_seq(model.blocks, x) if model.grad_checkpointing else model.blocks(x)
    return model.norm(x)


VIT = Family(
    VisionTransformer,
    {TimmBlock: Block, TimmResPostBlock: ResPostBlock},
    {TimmAttention: Attention},
    embed,
)
