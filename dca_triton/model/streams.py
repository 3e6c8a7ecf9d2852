"""The tokens of the branches, between the images and the heads: streams, rollout, selected rows, readouts."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..branches import Branch, Readout
from ..ops import Backend
from ..reference import select_local
from .backbone import Backbone
from .blocks import BlockTrace, Trace
from .checks import check_rollout
from .family import Step
from .layouts import ClassRows, paper_inputs, paper_local, reference_inputs, reference_local, sa_and_pwca_rows
from .rollout import RolloutCache, rollout_of
from .side_information import NO_SIDES, SideInformationEmbedding, Sides


class Streams(NamedTuple):
    """What the SA blocks leave.

    Tokens of SA and PWCA (B, N, C), or (B, 1, C) where only the class token's row is computed; GLCA's input
    (B, N, C), and the positions of its rows, if the last block has a table; a trace of each block, SA rows
    first, if it was asked for; which blocks are PWCA's.
    """

    sa: Tensor
    pwca: Tensor | None
    local: Tensor
    positions: Tensor | None
    traces: list[BlockTrace]
    pair_blocks: slice

    @property
    def scale(self) -> float:
        """The factor of the SA blocks' scores, 1/√D."""
        return self.traces[0].q.shape[-1] ** -0.5

    @property
    def sa_traces(self) -> list[BlockTrace]:
        """Those of the SA rows, which rollout is made of."""
        B = self.sa.shape[0]  # len() would pin it in an exported graph
        return [trace.of(slice(B)) for trace in self.traces]

    @property
    def pwca_traces(self) -> list[BlockTrace]:
        """Those of PWCA's blocks and rows, whose log-sum-exp is over own and partner's keys."""
        B = self.sa.shape[0]
        return [trace.of(slice(B, 2 * B)) for trace in self.traces[self.pair_blocks]]


class BranchStreams(nn.Module):
    """What `DualAttentionModel` computes on tokens. Its attributes are those of the model's arguments.

    Attributes:
        backbone: timm's model.
        sa_blocks: SA's own blocks; layout="reference" only.
        glca_blocks: GLCA's blocks.
        pwca_blocks: The first and the last block of PWCA, counted from 1.
        sie: The embeddings of cameras and views.
        cache: Rollout rows of images seen in evaluation.
    """

    backbone: Backbone
    sa_blocks: nn.ModuleList
    glca_blocks: nn.ModuleList
    layout: str
    branches: tuple[Branch, ...]
    pwca_blocks: tuple[int, int]
    sa_readout: Readout
    glca_readout: Readout
    top_k_ratio: float
    sie: SideInformationEmbedding | None
    cache: RolloutCache | None
    backend: Backend

    def sa_and_pwca(
        self,
        x: Tensor,
        x_pair: Tensor | None = None,
        partner_index: Tensor | None = None,
        class_tokens_only: bool = False,
        traced: bool = True,
        sides: Sides = NO_SIDES,
    ) -> Streams:
        """SA's and PWCA's tokens, GLCA's input, and with `traced` each block's trace for rollout.

        Other arguments are those of `forward`, which checks them; pairs count in evaluation too.
        """
        paper, B, trace = self.layout == "paper", x.shape[0], Trace() if traced else None
        inputs = paper_inputs if paper else reference_inputs
        side = None if self.sie is None else self.sie.of_images(sides, B, paired=x_pair is not None)
        tokens, positions, pairing = inputs(self.backbone, x, x_pair, partner_index, self.pwca_blocks, side)
        class_row = class_tokens_only and self.sa_readout == self.backbone.pooling == "class"
        glca_reads_sa = paper and "glca" in self.branches
        class_rows = ClassRows(sa=class_row and not glca_reads_sa, pwca=class_row)
        sa, pwca = sa_and_pwca_rows(self._steps, tokens, B, pairing, class_rows, trace, positions)
        local = sa if paper else tokens
        if paper:
            sa, pwca = (
                self.backbone.features(sa[:, :1] if class_row else sa),
                None if pwca is None else self.backbone.features(pwca),
            )
        first, last = self.pwca_blocks
        traces = [] if trace is None else trace.take()
        own = None if positions is None else positions[-1]  # GLCA's blocks are copies of the last one
        return Streams(sa, pwca, local, own, traces, slice(first - 1, last))

    def local_branch(
        self, streams: Streams, selected: Tensor, only_selected: bool = False, trace: Trace | None = None
    ) -> Tensor:
        """GLCA on SA's streams for the selected rows (B, R): their tokens (B, R, C), in layout="reference"
        without `only_selected` all tokens (B, N, C).
        """
        tokens = streams.local
        if self.layout == "paper":
            return paper_local(self.backbone, self.glca_blocks, tokens, streams.positions, selected, trace)
        return reference_local(self.glca_blocks, tokens, selected, only_selected, trace)

    def selects(self, class_tokens_only: bool) -> bool:
        """Whether a selected patch reaches what is computed of GLCA."""
        if "glca" not in self.branches:
            return False
        # In the paper's layout every block reads SA's tokens, so no row of GLCA ever reaches another.
        rows_meet = self.layout == "reference" and len(self.glca_blocks) > 1
        reads_class = self.glca_readout == self.backbone.pooling == "class"
        return not class_tokens_only or not reads_class or rows_meet

    def select(self, rollout: Tensor) -> Tensor:
        """The rows (B, 1 + R) that GLCA computes, class token first; (B, R) without a class token."""
        selected = select_local(rollout, self.backbone.num_prefix_tokens, self.top_k_ratio)
        return selected if self.backbone.num_class_tokens else selected[:, 1:]

    def read_out_sa(self, tokens: Tensor) -> Tensor:
        """The embedding of SA's or PWCA's tokens (B, N, C): (B, C), or (B, 2C) with a readout of "both"."""
        return self.backbone.read_out(tokens, self.sa_readout)

    def read_out_glca(self, rows: Tensor) -> Tensor:
        """The embedding of GLCA's selected rows: (B, C), or (B, 2C) with a readout of "both"."""
        return self.backbone.read_out(rows, self.glca_readout, self.backbone.num_class_tokens)

    def rollout(self, streams: Streams, cached: bool = False) -> Tensor:
        """The rollout rows (B, N) of SA, from the class token or from the weights of the pooling.

        `cached` takes those of known images from the cache in evaluation. Raises ValueError for a backbone
        that has no rollout.
        """
        check_rollout(self.backbone)
        start = self.backbone.start_row(streams.sa)
        known = None if self.training or torch.compiler.is_compiling() or not cached else self.cache
        compute = rollout_of if known is None else known.lookup
        return compute(streams.sa_traces, streams.scale, self.backend, start)

    @property
    def _steps(self) -> list[Step]:
        """What SA's tokens pass: blocks, and what lies between them."""
        return self.backbone.steps if self.layout == "paper" else [Step(block) for block in self.sa_blocks]

    @property
    def _sa_blocks(self) -> list[nn.Module]:
        return [step.module for step in self._steps if step.is_block]
