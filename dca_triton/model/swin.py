"""timm's Swin Transformer, v1 and v2: several stages of attention within windows, every other time shifted.

Tokens keep their rows and columns (B, h, w, C). The keys of an image's partner are those of the same window,
with the same bias of relative positions and the same mask: the partner's patch at a place is as far away as
the own one.
"""

import math
from collections.abc import Callable
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import SwinTransformerBlock as TimmBlock
from timm.models.swin_transformer import WindowAttention as TimmAttention
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2 import SwinTransformerV2Block as TimmBlockV2
from timm.models.swin_transformer_v2 import WindowAttention as TimmAttentionV2
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from .blocks import PairBlock
from .family import Family, Step, TimmModule
from .packed import PackedAttention
from .residual import PostNormBlock, PreNormBlock


class WindowedAttention(PackedAttention):
    """Attention of A tokens in each of W windows (B, A, W, C).

    Windows are heads here: pairs and images stay those of the batch, and one bias (1, W H, A, A) serves all
    images. `positions` is the mask (W, A, A), or zeros (W, 1, 1).
    """

    reasons_against_triton = ("its scores have a bias of relative positions",)

    def relative_bias(self) -> Tensor:
        """The bias of relative positions (1, H, A, A)."""
        raise NotImplementedError

    def score_bias(self, positions: Tensor | None = None) -> Tensor | None:
        assert positions is not None
        return (self.relative_bias() + positions[:, None]).flatten(0, 1)[None]


class WindowAttention(WindowedAttention, TimmAttention):
    """timm's attention of v1."""

    def relative_bias(self) -> Tensor:
        return self._get_rel_pos_bias()


class WindowAttentionV2(WindowedAttention, TimmAttentionV2):
    """timm's cosine attention of v2, whose factor is in the queries; an MLP computes the bias."""

    def queries(self, q: Tensor) -> Tensor:
        scale = self.logit_scale.clamp(max=math.log(1 / 0.01)).exp()
        return normalize(q, dim=-1) * scale[:, 0]

    def keys(self, k: Tensor) -> Tensor:
        return normalize(k, dim=-1)

    def score_factor(self, q: Tensor) -> float:
        return 1.0

    def relative_bias(self) -> Tensor:
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        return 16 * table[self.relative_position_index].permute(2, 0, 1)[None].sigmoid()


class WindowBlock(PairBlock):
    """Attention within windows of the rolled and padded tokens (B, h, w, C)."""

    window_size: Any
    shift_size: Any
    dynamic_mask: Any
    attn_mask: Any
    get_attn_mask: Any

    @property
    def attend(self) -> Callable[..., Tensor]:
        return self.attend_within_windows

    def attend_within_windows(self, x: Tensor, partner_x: Tensor | None, *arguments: Any) -> Tensor:
        """Attention of normed tokens (B, h, w, C); arguments as in `PairAttention`."""
        pairs, context, images, trace, rows, positions = arguments
        assert context is None and rows is None and positions is None, "windows have no class token"
        padded = self._padded(x)
        mask = self.get_attn_mask(padded) if self.dynamic_mask else self.attn_mask
        windows = self._windows(padded)
        partner_windows = None if partner_x is None else self._windows(self._padded(partner_x))
        mask = windows.new_zeros(windows.shape[2], 1, 1) if mask is None else mask
        attended = self.attn(windows, partner_windows, pairs, None, images, trace, None, mask)
        # The inverse of the steps above.
        h, w = padded.shape[1] // self.window_size[0], padded.shape[2] // self.window_size[1]
        grid = attended.unflatten(2, (h, w)).unflatten(1, self.window_size)
        grid = grid.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)
        grid = grid[:, : x.shape[1], : x.shape[2]]
        return grid.roll(self.shift_size, (1, 2)) if any(self.shift_size) else grid

    def _padded(self, x: Tensor) -> Tensor:
        """The tokens, rolled where windows are shifted, with zeros up to whole windows."""
        if any(self.shift_size):
            x = x.roll([-shift for shift in self.shift_size], (1, 2))
        below, right = (-size % side for size, side in zip(x.shape[1:3], self.window_size, strict=True))
        return pad(x, (0, 0, 0, right, 0, below)) if below or right else x

    def _windows(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, A, W, C)."""
        (height, width) = self.window_size
        x = x.unflatten(2, (-1, width)).unflatten(1, (-1, height))
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3, 4).flatten(1, 2)


class SwinBlock(WindowBlock, PreNormBlock, TimmBlock):
    """timm's pre-norm block."""


class SwinBlockV2(WindowBlock, PostNormBlock, TimmBlockV2):
    """timm's post-norm block."""


def embed(model: TimmModule, images: Tensor) -> Tensor:
    """What timm's `forward_features` does before the stages: (B, h, w, C)."""
    return model.patch_embed(images)


def steps(model: TimmModule) -> list[Step]:
    """What each stage does: it merges patches, the first one none, and runs its blocks."""
    found = []
    for stage in model.layers:
        if not isinstance(stage.downsample, nn.Identity):
            found.append(Step(stage.downsample, is_block=False))
        found += [Step(block) for block in stage.blocks]
    return found


def merging(model: TimmModule) -> int:
    return 2 ** sum(not step.is_block for step in steps(model))


def family(model: type[nn.Module], blocks: dict, attentions: dict) -> Family:
    missing = "its windows and stages give no rollout, which GLCA selects patches by"
    return Family(model, blocks, attentions, embed, steps, ("sa", "pwca"), missing, merging)


SWIN = family(SwinTransformer, {TimmBlock: SwinBlock}, {TimmAttention: WindowAttention})
SWIN_V2 = family(SwinTransformerV2, {TimmBlockV2: SwinBlockV2}, {TimmAttentionV2: WindowAttentionV2})
