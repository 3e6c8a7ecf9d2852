"""timm's transformer block on the streams of DCAL, with attention through the public operations.

Blocks and attentions are timm's own classes with another forward, so weights and their names are timm's. They
are called, never run from outside: hooks, adapters, wrappers and replaced forwards take effect.
"""

from typing import NamedTuple

import torch
from timm.layers import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..ops import Backend, Partners, local_attention, pair_attention
from ..ops.torch_backend import take_rows
from .attention_dropout import dropout_rate, dropped_attention
from .plain import is_plain
from .stochastic_depth import add_residual, kept_rows


class BlockTrace(NamedTuple):
    """What a block leaves for rollout: queries, keys (B, N, H, D) and log-sum-exp (B, H, N), no gradient."""

    q: Tensor
    k: Tensor
    lse: Tensor

    def of(self, images: slice) -> "BlockTrace":
        """Those of some images."""
        return BlockTrace(self.q[images], self.k[images], self.lse[images])


class Trace:
    """Collects what the blocks leave, first to last, until it is taken.

    It is an object of its own and no list, so that wrappers which rebuild a module's arguments (FSDP2,
    checkpointing) hand on this very object. A block that is recomputed in the backward pass records nothing.
    """

    def __init__(self) -> None:
        self.blocks: list[BlockTrace] = []
        self.open = True

    def record(self, q: Tensor, k: Tensor, lse: Tensor) -> None:
        if self.open:
            self.blocks.append(BlockTrace(q.detach(), k.detach(), lse))

    def take(self) -> list[BlockTrace]:
        """All of it; nothing is kept or recorded from now on."""
        blocks, self.blocks, self.open = self.blocks, [], False
        return blocks


class Attention(TimmAttention):
    """timm's attention of each image to itself and to its partner, on some or all of the rows."""

    backend: Backend = "auto"

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        partner_x: Tensor | None = None,
        pairs: Tensor | Partners | None = None,
        rows: Tensor | None = None,
        images: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Normed tokens x (B, N, C) -> (B, N, C), or (B, R, C) with `rows`.

        Arguments as in `Block`. `images` (K,): only the queries of these images are computed -> (K, ·, C).
        """
        q, k, v = self.project(x)
        partner_k, partner_v = (None, None) if partner_x is None else self.project_keys(partner_x)
        if images is not None:
            if pairs is not None:  # others may attend to an image that itself attends to nothing
                partner_k, partner_v = (k, v) if partner_k is None else (partner_k, partner_v)
                pairs = pairs.of(images) if isinstance(pairs, Partners) else pairs[images]
            q, k, v = q[images], k[images], v[images]
            rows = None if rows is None else rows[images]
        scale, dropout = self.head_dim**-0.5, dropout_rate(self.attn_drop)
        if rows is not None and pairs is None and trace is None and not dropout:
            out = local_attention(q, k, v, rows, scale, backend=self.backend)
        else:
            q = q if rows is None else take_rows(q, rows)
            if dropout:
                attention = ops.Attention(q, k, v, partner_k, partner_v, pairs, scale=scale)
                out, lse = dropped_attention(attention, dropout, backend=self.backend)
            else:
                out, lse = pair_attention(q, k, v, partner_k, partner_v, pairs, scale, backend=self.backend)
            if trace is not None:
                trace.record(q, k, lse)
        return self.proj_drop(self.proj(self.norm(out.flatten(2))))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, N, H, D), views of the packed projection, after timm's qk-norm."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).unbind(2)
        return self.q_norm(q), self.k_norm(k), v

    def project_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, H, D) alone; of a plain Linear, only their two thirds are computed."""
        if not is_plain(self.qkv, nn.Linear):
            _, k, v = self.project(x)
            return k, v
        own = self.num_heads * self.head_dim
        bias = None if self.qkv.bias is None else self.qkv.bias[own:]
        packed = nn.functional.linear(x, self.qkv.weight[own:], bias)
        k, v = packed.unflatten(2, (2, self.num_heads, self.head_dim)).unbind(2)
        return self.k_norm(k), v


class Block(TimmBlock):
    """timm's pre-norm block: x + attention(norm(x)), then x + MLP(norm(x)).

    `grad_checkpointing` keeps no activations of the block: the backward pass computes them again.
    """

    grad_checkpointing = False
    attn: Attention

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        partner_x: Tensor | None = None,
        pairs: Tensor | Partners | None = None,
        rows: Tensor | None = None,
        trace: Trace | None = None,
        *,
        within_checkpoint: bool = False,
    ) -> Tensor:
        """Tokens x (B, N, C) -> (B, N, C), or (B, R, C) with `rows`. Without more it is timm's own block.

        Args:
            x: Tokens of every stream.
            partner_x: Tokens (B', N', C) whose keys and values are the partners'; x itself by default.
            pairs: Which row of `partner_x` each image is paired with (B,), -1 = none, or `pair_up` of it.
            rows: Compute only these queries (B, R), int64 in [0, N).
            trace: Receives queries, keys and log-sum-exp. Without it, stochastic depth computes no attention
                of the images that it drops.
            within_checkpoint: The call is that of `grad_checkpointing` itself.
        """
        if self.grad_checkpointing and not within_checkpoint and torch.is_grad_enabled():
            return self._checkpointed(x, partner_x, pairs, rows, trace)
        kept = None if trace is not None else kept_rows(self.drop_path1, x)
        partner_x = None if partner_x is None else self.norm1(partner_x)
        attended = self.attn(self.norm1(x), partner_x, pairs, rows, kept, trace)
        x = x if rows is None else take_rows(x, rows)
        x = add_residual(x, self.drop_path1, kept, self.ls1(attended))
        kept = kept_rows(self.drop_path2, x)
        chosen = x if kept is None else x[kept]
        return add_residual(x, self.drop_path2, kept, self.ls2(self.mlp(self.norm2(chosen))))

    def _checkpointed(
        self,
        x: Tensor,
        partner_x: Tensor | None,
        pairs: Tensor | Partners | None,
        rows: Tensor | None,
        trace: Trace | None,
    ) -> Tensor:
        """`forward`, computed again in the backward pass."""

        def run(
            x: Tensor, partner_x: Tensor | None, pairs: Tensor | Partners | None, rows: Tensor | None
        ) -> tuple[Tensor, list[BlockTrace]]:
            own = Trace()
            traces = None if trace is None else own
            x = Block.forward(self, x, partner_x, pairs, rows, traces, within_checkpoint=True)
            return x, own.take()

        # A checkpoint that is compiled may change nothing outside, so what it traces is one of its outputs.
        x, traced = checkpoint(run, x, partner_x, pairs, rows, use_reentrant=False)
        if trace is not None:
            trace.record(*traced[0])
        return x


def first_row(x: Tensor) -> Tensor:
    """The class token's row of each image of x (B, ...), as an index (B, 1)."""
    return torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device)


def init_linears(module: nn.Module) -> None:
    """Linear weights from a truncated normal of std 0.02, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
