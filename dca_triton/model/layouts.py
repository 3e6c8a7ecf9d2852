"""The two layouts of DCAL in two steps each: SA and PWCA on every image, then GLCA on the selected rows.

SA and PWCA are the same tokens up to the first block in which an image attends to its partner, so they are
computed once up to its projections. From there the two streams pass each block as one batch: SA rows first,
with partner -1. Nothing of a partner in the batch is computed again.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops import pair_up
from ..ops.torch_backend import take_rows
from .backbone import Backbone
from .blocks import Trace, first_row, init_linears
from .family import Step
from .glca import GLCABlock
from .vit import Attention, Block

Positions = Sequence[Tensor | None]  # a table for each block, see `PairBlock`


class Pairing:
    """Which rows of a batch attend to which distractors, in the blocks `first` to `last`, counted from 1.

    Before `first` the batch is the images themselves (P, N, C). From there it is the SA rows of the first B
    images, which attend to no partner, and then the PWCA rows of all P.

    Args:
        partner: The row of the distractors that each image is paired with (P,), -1 = none.
        tokens: The distractors' tokens (B', N, C) in every block; None: the images' PWCA rows at that depth.
        B: How many images have an SA row, at most P.
        first: As `last`, a block.
    """

    def __init__(self, partner: Tensor, tokens: Tensor | None, B: int, first: int, last: int) -> None:
        P = partner.shape[0]
        self.tokens, self.first, self.last = tokens, first, last
        self.of_pwca = partner
        own = torch.arange(P, device=partner.device)
        self.images = torch.cat([own[:B], own])
        unpaired = torch.full_like(partner[:B], -1)
        distractors = P if tokens is None else tokens.shape[0]
        self.at_first = self.later = pair_up(torch.cat([unpaired, partner]), distractors, unpaired=B)
        if tokens is None:
            self.later = self.at_first.behind(B)

    def arguments(self, number: int, x: Tensor) -> dict[str, Any]:
        """What the block `number` takes beside its input x to give the rows of both streams."""
        if not self.first <= number <= self.last:
            return {}
        partner_x = None if self.tokens is x else self.tokens
        if number == self.first:
            return {"partner_x": partner_x, "pairs": self.at_first, "images": self.images}
        return {"partner_x": partner_x, "pairs": self.later}

    def pwca_arguments(self, number: int) -> dict[str, Any]:
        """What the block `number` takes beside PWCA rows (P, N, C) alone."""
        within = self.first <= number <= self.last
        return {"partner_x": self.tokens, "pairs": self.of_pwca} if within else {}


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


def paper_blocks(backbone: Backbone, num_glca: int) -> nn.ModuleList:
    """GLCA's blocks, with weights of their own that start as copies of the last block's."""
    return nn.ModuleList(copy.deepcopy(backbone.blocks[-1]) for _ in range(num_glca))


def reference_inputs(
    backbone: Backbone,
    x: Tensor,
    x_pair: Tensor | None,
    partner_index: Tensor | None,
    pair_blocks: tuple[int, int],
    side: Tensor | None = None,
) -> tuple[Tensor, Positions | None, Pairing | None]:
    """The output f of a whole ViT (B, N, C); a distractor's tokens stay f of the pair in every block."""
    B = x.shape[0]
    if x_pair is not None:
        features = backbone(torch.cat([x, x_pair]), side)
        images = torch.arange(B, device=features.device)
        return features[:B], None, Pairing(images, features[B:], B, *pair_blocks)
    f = backbone(x, side)
    return f, None, None if partner_index is None else Pairing(partner_index, f, B, *pair_blocks)


def paper_inputs(
    backbone: Backbone,
    x: Tensor,
    x_pair: Tensor | None,
    partner_index: Tensor | None,
    pair_blocks: tuple[int, int],
    side: Tensor | None = None,
) -> tuple[Tensor, Positions | None, Pairing | None]:
    """The embedded patches (P, N, C), those of x_pair at the end; distractors are PWCA rows themselves.

    `side` (P, 1, C) is what camera and view add to them. The tables of positions are made once: SA, PWCA,
    partners and GLCA share what is drawn at random in them.
    """
    B = x.shape[0]
    if x_pair is not None:
        tokens, positions = backbone.embed(torch.cat([x, x_pair]), side)
        images = torch.arange(B, device=tokens.device)
        return tokens, positions, Pairing(torch.cat([B + images, images]), None, B, *pair_blocks)
    tokens, positions = backbone.embed(x, side)
    pairing = None if partner_index is None else Pairing(partner_index, None, B, *pair_blocks)
    return tokens, positions, pairing


class ClassRows(NamedTuple):
    """Whether the class token's row is all that the last block computes of a stream."""

    sa: bool
    pwca: bool


def sa_and_pwca_rows(
    steps: Sequence[Step],
    tokens: Tensor,
    B: int,
    pairing: Pairing | None,
    class_rows: ClassRows,
    trace: Trace | None,
    positions: Positions | None,
) -> tuple[Tensor, Tensor | None]:
    """Run the SA blocks on images (P, N, C) -> SA and PWCA tokens (B, N, C), or (B, 1, C) by `class_rows`.

    What lies between the blocks is called on the tokens of all streams. The last step is a block.
    """
    number = 1
    for step in steps[:-1]:
        if not step.is_block:
            tokens = step.module(tokens)
            continue
        arguments = {} if pairing is None else pairing.arguments(number, tokens)
        own = None if positions is None else positions[number - 1]
        tokens = step.module(tokens, trace=trace, positions=own, **arguments)
        if pairing is not None and number == pairing.last:
            tokens = tokens[: 2 * B]  # an image that is nothing but a distractor is needed no longer
        number += 1
    last, own = steps[-1].module, None if positions is None else positions[-1]
    if pairing is None:
        return last(**_queries(tokens, class_rows.sa), trace=trace, positions=own), None
    if class_rows.sa == class_rows.pwca:
        arguments = pairing.arguments(number, tokens)
        tokens = last(**_queries(tokens, class_rows.sa), trace=trace, positions=own, **arguments)
        return tokens[:B], tokens[B : 2 * B]
    pwca = tokens if number == pairing.first else tokens[B:]
    pwca = last(**_queries(pwca, class_rows.pwca), positions=own, **pairing.pwca_arguments(number))
    return last(**_queries(tokens[:B], class_rows.sa), trace=trace, positions=own), pwca[:B]


def _queries(tokens: Tensor, class_row: bool) -> dict[str, Tensor]:
    """A block's input: the class token that attends to all tokens, or all of them."""
    if not class_row:
        return {"x": tokens}
    return {"x": tokens[:, :1], "context": tokens, "rows": first_row(tokens)}


def reference_local(
    glca_blocks: Iterable[nn.Module],
    tokens: Tensor,
    selected: Tensor,
    only_selected: bool,
    trace: Trace | None = None,
) -> Tensor:
    """GLCA on f (B, N, C) -> (B, N, C), or the selected rows (B, R, C) with `only_selected`."""
    *blocks, last = glca_blocks
    for block in blocks:
        tokens = block(tokens, selected, trace=trace)
    return last(tokens, selected, only_selected, trace)


def paper_local(
    backbone: Backbone,
    glca_blocks: Iterable[nn.Module],
    tokens: Tensor,
    positions: Tensor | None,
    selected: Tensor,
    trace: Trace | None = None,
) -> Tensor:
    """GLCA on SA's tokens -> the selected rows (B, R, C); in every block they attend to SA's tokens.

    The rows keep the positions that they have among all tokens.
    """
    x = take_rows(tokens, selected)
    for block in glca_blocks:
        x = block(x, context=tokens, trace=trace, rows=selected, positions=positions)
    return backbone.norm(x)
