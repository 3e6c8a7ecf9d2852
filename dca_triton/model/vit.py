"""timm's VisionTransformer: a packed projection, pre-norm blocks with LayerScale, learned positions."""

from timm.layers import Attention as TimmAttention
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import ResPostBlock as TimmResPostBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .blocks import PairAttention
from .family import Family, TimmModule
from .plain import is_plain
from .residual import PostNormBlock, PreNormBlock


class Attention(PairAttention, TimmAttention):  # type: ignore[misc]
    """timm's attention, which knows no positions."""

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, N, H, D), views of the packed projection, after timm's qk-norm."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).unbind(2)
        return self.q_norm(q), self.k_norm(k), v

    def project_queries(
        self, x: Tensor, positions: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Queries (B, N, H, D) alone; of a plain Linear, only their third is computed."""
        if not is_plain(self.qkv, nn.Linear):
            return self.project(x)[0]
        return self.q_norm(
            self._part(x, slice(self.num_heads * self.head_dim)).unflatten(2, (self.num_heads, self.head_dim))
        )

    def project_keys(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, H, D) alone; of a plain Linear, only their two thirds are computed."""
        if not is_plain(self.qkv, nn.Linear):
            _, k, v = self.project(x)
            return k, v
        packed = self._part(x, slice(self.num_heads * self.head_dim, None))
        k, v = packed.unflatten(2, (2, self.num_heads, self.head_dim)).unbind(2)
        return self.k_norm(k), v

    def _part(self, x: Tensor, rows: slice) -> Tensor:
        """Some outputs of the packed projection."""
        bias = None if self.qkv.bias is None else self.qkv.bias[rows]
        return nn.functional.linear(x, self.qkv.weight[rows], bias)


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
