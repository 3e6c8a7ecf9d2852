"""timm's Beit: BEiT and BEiT v2. Each block adds a learned bias of relative positions to its scores."""

from typing import Any

import torch
from timm.models.beit import Attention as TimmAttention
from timm.models.beit import Beit
from timm.models.beit import Block as TimmBlock
from torch import Tensor

from .family import Family, TimmModule
from .packed import PackedAttention
from .residual import ScaledBlock


class BeitAttention(PackedAttention, TimmAttention):
    """timm's attention; `positions` is the bias (H, N, N) that all blocks share, in a model that has one."""

    reasons_against_triton = ("its scores have a bias of relative positions",)
    relative_position_bias_table: Any

    def score_bias(self, positions: Tensor | None = None) -> Tensor | None:
        if self.relative_position_bias_table is None:
            return None if positions is None else positions[None]
        own = self._get_rel_pos_bias()
        return own if positions is None else own + positions


class BeitBlock(ScaledBlock, TimmBlock):
    """timm's pre-norm block."""


def embed(model: TimmModule, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """What timm's `forward_features` does before the blocks."""
    x = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], 1)
    x = model.pos_drop(x if model.pos_embed is None else x + model.pos_embed)
    return x if model.rel_pos_bias is None else (x, model.rel_pos_bias())


BEIT = Family(Beit, {TimmBlock: BeitBlock}, {TimmAttention: BeitAttention}, embed)
