"""timm's Eva: DINOv3, EVA, EVA-02, Perception Encoder, RoPE-ViT, Sapiens2. Most rotate queries and keys."""

from typing import Any

import torch
from timm.layers import AttentionRope as TimmAttentionRope
from timm.layers import apply_rot_embed_cat
from timm.models.eva import Eva
from timm.models.eva import EvaAttention as TimmEvaAttention
from timm.models.eva import EvaBlock as TimmEvaBlock
from timm.models.eva import EvaBlockPostNorm as TimmEvaBlockPostNorm
from torch import Tensor, nn

from .family import Family, TimmModule
from .packed import PackedAttention
from .plain import is_plain
from .residual import PostNormBlock, ScaledBlock


class RotaryAttention(PackedAttention):
    """Projections, packed or not, then timm's qk-norm, then the rotation, then keys shared by several heads.

    timm's attributes: `qkv`, or `q_proj`, `k_proj` and `v_proj`; `rotate_half`; `num_kv_groups`, heads that
    share keys.
    """

    num_kv_groups: Any = 1
    rotate_half: Any = False
    q_proj: Any
    k_proj: Any
    v_proj: Any
    q_norm: Any
    k_norm: Any

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if self.qkv is None:
            return self.project_queries(x, positions), *self.project_keys(x, positions)
        q, k, v = self.packed(x, slice(None)).chunk(3, -1)
        return self._queries(q, positions), *self._keys(k, v, positions)

    def project_queries(
        self, x: Tensor, positions: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        rope = positions if positions is None or rows is None else positions[rows]
        if self.qkv is None:
            return self._queries(self.q_proj(x), rope)
        if not is_plain(self.qkv, nn.Linear):
            return self._queries(self.packed(x, slice(None)).chunk(3, -1)[0], rope)
        return self._queries(self.packed(x, slice(self.qkv.out_features // 3)), rope)

    def project_keys(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.qkv is None:
            return self._keys(self.k_proj(x), self.v_proj(x), positions)
        if not is_plain(self.qkv, nn.Linear):
            _, k, v = self.packed(x, slice(None)).chunk(3, -1)
        else:
            k, v = self.packed(x, slice(self.qkv.out_features // 3, None)).chunk(2, -1)
        return self._keys(k, v, positions)

    def _queries(self, q: Tensor, rope: Tensor | None) -> Tensor:
        return self._rotated(self.q_norm(q.unflatten(2, (self.num_heads, -1))), rope, q.dtype)

    def _keys(self, k: Tensor, v: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        k, v = (t.unflatten(2, (self.num_heads // self.num_kv_groups, -1)) for t in (k, v))
        k = self._rotated(self.k_norm(k), rope, v.dtype)
        if self.num_kv_groups == 1:
            return k, v
        return k.repeat_interleave(self.num_kv_groups, 2), v.repeat_interleave(self.num_kv_groups, 2)

    def _rotated(self, x: Tensor, rope: Tensor | None, dtype: torch.dtype) -> Tensor:
        return x if rope is None else apply_rot_embed_cat(x, rope, half=self.rotate_half).to(dtype)


class EvaAttention(RotaryAttention, TimmEvaAttention):  # type: ignore[misc]
    """timm's EvaAttention."""


class AttentionRope(RotaryAttention, TimmAttentionRope):  # type: ignore[misc]
    """timm's AttentionRope."""


class EvaBlock(ScaledBlock, TimmEvaBlock):  # type: ignore[misc]
    """timm's pre-norm block."""


class EvaBlockPostNorm(PostNormBlock, TimmEvaBlockPostNorm):  # type: ignore[misc]
    """timm's post-norm block: x + norm1(attention(x)), then x + norm2(MLP(x))."""


def embed(model: TimmModule, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """What timm's `forward_features` does before the blocks; the rotary table is made once for all of them.

    With "mixed" positions there is a table for each block (L, N, H, 2D), otherwise one for all (N, 1, 2D).
    """
    x, rope = model._pos_embed(model.patch_embed(images))
    x = model.norm_pre(x)
    if rope is None:
        return x
    rope = rope.transpose(1, 2) if getattr(model, "rope_mixed", False) else rope[:, None]
    *batch, _, heads, width = rope.shape
    still = torch.cat([rope.new_zeros(width // 2), rope.new_ones(width // 2)])  # sin 0, cos 1
    return x, torch.cat([still.expand(*batch, model.num_prefix_tokens, heads, width), rope], -3)


EVA = Family(
    Eva,
    {TimmEvaBlock: EvaBlock, TimmEvaBlockPostNorm: EvaBlockPostNorm},
    {TimmEvaAttention: EvaAttention, TimmAttentionRope: AttentionRope},
    embed,
)
