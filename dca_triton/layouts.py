"""The two layouts of DCAL as functions from images to branch tokens.

In training the SA and PWCA streams pass each block as one batch: SA rows first, with partner -1. Nothing of
a partner in the batch is computed again.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .backbone import Backbone, TimmModule
from .modules import (
    Attended,
    GLCABlock,
    init_linears,
    project_keys,
    run_block,
    run_last_block,
    run_local_block,
    skip_block,
)
from .ops import Backend, Partners, partners
from .reference import select_local


class Call(NamedTuple):
    """One forward pass: images (B, 3, h, w), at most one kind of pair, and what is wanted."""

    images: Tensor
    pair_images: Tensor | None
    partner_index: Tensor | None
    class_tokens_only: bool
    backend: Backend


class Branches(NamedTuple):
    """Tokens of each branch (B, ·, C), class token first; rollout (B, N) and selected (B, 1 + R)."""

    sa: Tensor
    glca: Tensor
    pwca: Tensor | None
    rollout: Tensor | None
    selected: Tensor | None


RolloutOf = Callable[[list[Attended]], Tensor]


def reference_blocks(
    dim: int, num_heads: int, num_sa: int, num_glca: int, drop: float, drop_path: float
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The reference's own SA and GLCA blocks; stochastic depth rises linearly over the SA blocks."""
    sa_blocks = nn.ModuleList(
        Block(
            dim,
            num_heads,
            norm_layer=nn.LayerNorm,
            proj_drop=drop,
            attn_drop=drop,
            drop_path=drop_path * i / max(1, num_sa - 1),
        )
        for i in range(num_sa)
    )
    glca_blocks = nn.ModuleList(GLCABlock(dim, num_heads, drop, drop_path) for _ in range(num_glca))
    init_linears(sa_blocks)
    init_linears(glca_blocks)
    return sa_blocks, glca_blocks


def paper_blocks(backbone: Backbone) -> nn.ModuleList:
    """GLCA's one block, with weights of its own that start as a copy of the last block's."""
    return nn.ModuleList([copy.deepcopy(backbone.model.blocks[-1])])


def reference_branches(
    backbone: Backbone,
    sa_blocks: nn.ModuleList,
    glca_blocks: nn.ModuleList,
    top_k_ratio: float,
    call: Call,
    rollout_of: RolloutOf,
) -> Branches:
    """SA, GLCA and PWCA on a whole ViT's output f; a distractor's stream stays norm1(f of the pair)."""
    B = call.images.shape[0]
    paired = call.pair_images is not None or call.partner_index is not None
    if call.pair_images is not None:
        features = backbone(torch.cat([call.images, call.pair_images]))
        f, pair_f = features[:B], features[B:]
        index = torch.arange(B, device=f.device)
    else:
        f = pair_f = backbone(call.images)
        index = call.partner_index  # type: ignore[assignment]

    needs_rollout = not call.class_tokens_only or len(glca_blocks) > 1
    x = f
    pairs: Partners | None = None
    if paired:
        x = torch.cat([f, f])
        pairs = partners(torch.cat([torch.full_like(index, -1), index]), pair_f.shape[0])
    attended: list[Attended] = []
    block: TimmModule
    for i, block in enumerate(sa_blocks):
        partner = project_keys(block.attn, block.norm1(pair_f)) if paired else None
        if not needs_rollout and i == len(sa_blocks) - 1:
            x = run_last_block(block, x, partner, pairs, backend=call.backend)
        elif not needs_rollout:
            x = skip_block(block, x, partner, pairs, backend=call.backend)
        else:
            x, left = run_block(block, x, partner, pairs, backend=call.backend)
            attended.append(Attended(*(t[:B] for t in left)))

    sa, pwca = x[:B], x[B:] if paired else None
    if not needs_rollout:
        (block,) = glca_blocks
        return Branches(sa, block.class_token(f, call.backend), pwca, None, None)
    row = rollout_of(attended)
    selected = select_local(row, backbone.num_prefix_tokens, top_k_ratio)
    glca = f
    for block in glca_blocks:
        glca = block(glca, selected, call.backend)
    if call.class_tokens_only:
        sa, glca, pwca = sa[:, :1], glca[:, :1], None if pwca is None else pwca[:, :1]
    return Branches(sa, glca, pwca, row, selected)


def paper_branches(
    backbone: Backbone,
    glca_blocks: nn.ModuleList,
    top_k_ratio: float,
    call: Call,
    rollout_of: RolloutOf,
) -> Branches:
    """The backbone's blocks carry SA and PWCA; a distractor is its partner's PWCA stream at that depth."""
    B = call.images.shape[0]
    x, partner_index = _paper_streams(backbone, call)
    pairs = None if partner_index is None else partners(partner_index, x.shape[0])
    *blocks, last = backbone.model.blocks
    attended: list[Attended] = []
    pwca = None
    if call.class_tokens_only:
        for block in blocks:
            x = skip_block(block, x, None, pairs, backend=call.backend)
        if partner_index is not None:
            among_pwca = torch.where(partner_index[B:] < 0, -1, partner_index[B:] - B)
            pwca = run_last_block(last, x[B:], None, among_pwca, backend=call.backend)[:B]
        sa = skip_block(last, x[:B], backend=call.backend)
    else:
        for block in backbone.model.blocks:
            x, left = run_block(block, x, None, pairs, backend=call.backend)
            attended.append(Attended(*(t[:B] for t in left)))
        sa, pwca = x[:B], None if partner_index is None else x[B : 2 * B]

    norm = backbone.norm
    pwca = None if pwca is None else norm(pwca)
    if call.class_tokens_only:
        # No selected patch can reach the class token of a single GLCA block, so none is selected.
        first = torch.zeros(B, 1, dtype=torch.long, device=sa.device)
        glca = run_local_block(glca_blocks[0], sa, first, backend=call.backend)
        return Branches(norm(sa[:, :1]), norm(glca), pwca, None, None)
    row = rollout_of(attended)
    selected = select_local(row, backbone.num_prefix_tokens, top_k_ratio)
    glca = run_local_block(glca_blocks[0], sa, selected, backend=call.backend)
    return Branches(norm(sa), norm(glca), pwca, row, selected)


def _paper_streams(backbone: Backbone, call: Call) -> tuple[Tensor, Tensor | None]:
    """SA rows, then PWCA rows, then PWCA rows of the pair images; partners index this batch."""
    B = call.images.shape[0]
    if call.pair_images is not None:
        tokens = backbone.embed(torch.cat([call.images, call.pair_images]))
        images = torch.arange(B, device=tokens.device)
        index = torch.cat([torch.full_like(images, -1), 2 * B + images, B + images])
        return torch.cat([tokens[:B], tokens]), index
    tokens = backbone.embed(call.images)
    if call.partner_index is None:
        return tokens, None
    partner = torch.where(call.partner_index < 0, -1, B + call.partner_index)
    return torch.cat([tokens, tokens]), torch.cat([torch.full_like(partner, -1), partner])
