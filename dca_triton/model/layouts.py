"""The two layouts of DCAL in two steps each: SA and PWCA on every image, then GLCA on the selected rows.

In training the SA and PWCA streams pass each block as one batch: SA rows first, with partner -1. Nothing of
a partner in the batch is computed again.
"""

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops import Partners, pair_up
from .backbone import Backbone
from .blocks import Attention, Block, BlockTrace, Trace, first_row, init_linears
from .glca import GLCABlock


class Streams(NamedTuple):
    """What the SA blocks leave.

    Tokens of SA and PWCA (B, N, C), or (B, 1, C) where only the class token's row is computed; GLCA's input
    (B, N, C); a trace of each block, SA rows first, if it was asked for.
    """

    sa: Tensor
    pwca: Tensor | None
    local: Tensor
    traces: list[BlockTrace]

    @property
    def sa_traces(self) -> list[BlockTrace]:
        """Those of the SA rows, which rollout is made of."""
        B = self.sa.shape[0]  # len() would pin it in an exported graph
        return [trace.of(slice(B)) for trace in self.traces]

    @property
    def pwca_traces(self) -> list[BlockTrace]:
        """Those of the images' PWCA rows, whose log-sum-exp is over own and partner's keys."""
        B = self.sa.shape[0]
        return [trace.of(slice(B, 2 * B)) for trace in self.traces]


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
            attn_layer=Attention,
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


def reference_streams(
    backbone: Backbone,
    sa_blocks: Iterable[nn.Module],
    x: Tensor,
    x_pair: Tensor | None,
    partner_index: Tensor | None,
    class_row_only: bool,
) -> Streams:
    """SA and PWCA on a whole ViT's output f; a distractor's tokens stay f of the pair in every block."""
    B, trace = x.shape[0], None if class_row_only else Trace()
    if x_pair is None:
        f = pair_f = backbone(x)
    else:
        features = backbone(torch.cat([x, x_pair]))
        f, pair_f = features[:B], features[B:]
        partner_index = torch.arange(B, device=f.device)
    tokens, partner_x, pairs = f, None, None
    if partner_index is not None:
        tokens, partner_x = torch.cat([f, f]), pair_f
        index = torch.cat([torch.full_like(partner_index, -1), partner_index])
        pairs = pair_up(index, pair_f.shape[0])
    *blocks, last = sa_blocks
    for block in blocks:
        tokens = block(tokens, partner_x, pairs, trace=trace)
    rows = first_row(tokens) if class_row_only else None
    tokens = last(tokens, partner_x, pairs, rows, trace)
    pwca = None if partner_index is None else tokens[B:]
    return Streams(tokens[:B], pwca, f, [] if trace is None else trace.take())


def reference_local(
    glca_blocks: Iterable[nn.Module], tokens: Tensor, selected: Tensor | None, trace: Trace | None = None
) -> Tensor:
    """GLCA on f (B, N, C) -> (B, N, C); the class token's row (B, 1, C) where nothing is selected."""
    if selected is None:
        (block,) = glca_blocks
        return block(tokens, first_row(tokens), only_selected=True, trace=trace)
    for block in glca_blocks:
        tokens = block(tokens, selected, trace=trace)
    return tokens


def paper_streams(
    backbone: Backbone,
    sa_blocks: Iterable[nn.Module],
    x: Tensor,
    x_pair: Tensor | None,
    partner_index: Tensor | None,
    class_row_only: bool,
) -> Streams:
    """The backbone's blocks carry SA and PWCA; a distractor is its partner's PWCA stream at that depth."""
    B, trace = x.shape[0], None if class_row_only else Trace()
    tokens, index = _paper_rows(backbone, x, x_pair, partner_index)
    pairs: Partners | None = None if index is None else pair_up(index, tokens.shape[0])
    *blocks, last = sa_blocks
    for block in blocks:
        tokens = block(tokens, pairs=pairs, trace=trace)
    pwca = None
    if not class_row_only:
        tokens = last(tokens, pairs=pairs, trace=trace)
        sa = local = tokens[:B]
        pwca = None if index is None else tokens[B : 2 * B]
    else:  # GLCA reads all of SA's rows, nobody those of PWCA
        if index is not None:
            partner_in_pwca = torch.where(index[B:] < 0, -1, index[B:] - B)
            pwca = last(tokens[B:], pairs=partner_in_pwca, rows=first_row(tokens[B:]))[:B]
        local = last(tokens[:B])
        sa = local[:, :1]
    pwca = None if pwca is None else backbone.norm(pwca)
    return Streams(backbone.norm(sa), pwca, local, [] if trace is None else trace.take())


def paper_local(
    backbone: Backbone,
    glca_blocks: nn.ModuleList,
    tokens: Tensor,
    selected: Tensor | None,
    trace: Trace | None = None,
) -> Tensor:
    """GLCA on SA's tokens (B, N, C) -> its selected rows (B, R, C), the class token's where none are."""
    # No selected patch can reach the class token of a single GLCA block.
    rows = first_row(tokens) if selected is None else selected
    return backbone.norm(glca_blocks[0](tokens, rows=rows, trace=trace))


def _paper_rows(
    backbone: Backbone, x: Tensor, x_pair: Tensor | None, partner_index: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """SA rows, then PWCA rows, then PWCA rows of the pair images; partners index this batch."""
    B = x.shape[0]
    if x_pair is not None:
        tokens = backbone(torch.cat([x, x_pair]))
        images = torch.arange(B, device=tokens.device)
        index = torch.cat([torch.full_like(images, -1), 2 * B + images, B + images])
        return torch.cat([tokens[:B], tokens]), index
    tokens = backbone(x)
    if partner_index is None:
        return tokens, None
    partner = torch.where(partner_index < 0, -1, B + partner_index)
    return torch.cat([tokens, tokens]), torch.cat([torch.full_like(partner, -1), partner])
