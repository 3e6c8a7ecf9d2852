"""A transformer block of timm on the streams of DCAL, with attention through the public operations.

Blocks and attentions are timm's own classes with another forward, so weights and their names are timm's. They
are called, never run from outside: hooks, adapters, wrappers and replaced forwards take effect. What differs
between the families of timm's models is said in one file per family, such as vit.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..ops import Backend, Partners, local_attention, pair_attention
from .attention_dropout import dropout_rate, dropped_attention
from .stochastic_depth import add_residual, kept_rows


class BlockTrace(NamedTuple):
    """What a block leaves for rollout: queries, keys (B, N, H, D), log-sum-exp (B, H, N), and what it added
    to the scores, which broadcasts to (B, H, N, N), if anything. None of them has a gradient.
    """

    q: Tensor
    k: Tensor
    lse: Tensor
    bias: Tensor | None = None

    def of(self, images: slice | Tensor) -> "BlockTrace":
        """Those of some images; a bias of batch size 1 is that of every image."""
        bias = self.bias if self.bias is None or self.bias.shape[0] == 1 else self.bias[images]
        return BlockTrace(self.q[images], self.k[images], self.lse[images], bias)


class Trace:
    """Collects what the blocks leave, first to last, until it is taken.

    It is an object of its own and no list, so that wrappers which rebuild a module's arguments (FSDP2,
    checkpointing) hand on this very object. A block that is recomputed in the backward pass records nothing.
    """

    def __init__(self) -> None:
        self.blocks: list[BlockTrace] = []
        self.open = True

    def record(self, q: Tensor, k: Tensor, lse: Tensor, bias: Tensor | None = None) -> None:
        if self.open:
            self.blocks.append(
                BlockTrace(q.detach(), k.detach(), lse, None if bias is None else bias.detach())
            )

    def take(self) -> list[BlockTrace]:
        """All of it; nothing is kept or recorded from now on."""
        blocks, self.blocks, self.open = self.blocks, [], False
        return blocks


class PairAttention(nn.Module):
    """Attention of each image to itself and to its partner, on some or all of the rows.

    A family's class inherits from this and from timm's attention, and says how it projects and what it adds
    to the scores. It has timm's attributes `num_heads`, `attn_drop`, `proj` and `proj_drop`, and a `norm`
    and a `gate`, which may be None. A family whose attention the Triton kernels do not compute gives
    the reasons, which `dca-triton info` prints.
    """

    backend: Backend = "auto"
    reasons_against_triton: tuple[str, ...] = ()
    num_heads: Any
    attn_drop: Any
    proj: Any
    proj_drop: Any

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, N, H, D) as they are multiplied: normed and rotated."""
        raise NotImplementedError

    def project_queries(
        self, x: Tensor, positions: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Queries (B, M, H, D) alone, of all tokens or of the `rows` (B, M) among them; a family computes
        nothing else for them where it can.
        """
        raise NotImplementedError

    def project_keys(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, H, D) alone."""
        _, k, v = self.project(x, positions)
        return k, v

    def score_bias(self, positions: Tensor | None = None) -> Tensor | None:
        """What is added to all scores (1, H, N, N), to those of the own and of the partner's keys alike."""
        return None

    def score_factor(self, q: Tensor) -> float:
        """The factor of the scores."""
        return q.shape[-1] ** -0.5

    def forward(
        self,
        x: Tensor,
        partner_x: Tensor | None = None,
        pairs: Tensor | Partners | None = None,
        context: Tensor | None = None,
        images: Tensor | None = None,
        trace: Trace | None = None,
        rows: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Attention of normed tokens x (B, M, C) -> (K, M, C); arguments as in `PairBlock`, tokens normed."""
        if context is None:
            q, k, v = self.project(x, positions)
        else:
            q, (k, v) = self.project_queries(x, positions, rows), self.project_keys(context, positions)
        partner_k, partner_v = (None, None) if partner_x is None else self.project_keys(partner_x, positions)
        bias = self.score_bias(positions)
        if bias is not None:
            bias = (bias if rows is None else bias[0][:, rows].transpose(0, 1)).to(q.dtype)
        norm, gate = getattr(self, "norm", None), getattr(self, "gate", None)
        gates = None if gate is None else gate(x).sigmoid()
        if images is not None:
            if pairs is not None and partner_x is None:
                partner_k, partner_v = k, v
            q, k, v = q[images], k[images], v[images]
            gates = None if gates is None else gates[images]
            bias = bias if bias is None or rows is None else bias[images]
        scale, dropout = self.score_factor(q), dropout_rate(self.attn_drop)
        if context is not None and pairs is None and trace is None and bias is None and not dropout:
            out = local_attention(q, k, v, scale=scale, backend=self.backend)
        else:
            if dropout:
                attention = ops.Attention(q, k, v, partner_k, partner_v, pairs, scale=scale, bias=bias)
                out, lse = dropped_attention(attention, dropout, backend=self.backend)
            else:
                out, lse = pair_attention(
                    q, k, v, partner_k, partner_v, pairs, scale, bias=bias, backend=self.backend
                )
            if trace is not None:
                trace.record(q, k, lse, bias)
        out = out.reshape(*out.shape[:2], *x.shape[2:-1], -1)
        out = out if norm is None else norm(out)
        return self.proj_drop(self.proj(out if gates is None else out * gates))


class PairBlock(nn.Module):
    """A residual block: x + scaled(attention(normed x)), then x + scaled(MLP(normed x)).

    A family's class inherits from this and from timm's block, and says what norms and scales, and how its
    attention is called. It has timm's attributes `attn`, `mlp`, `drop_path1` and `drop_path2`.
    `grad_checkpointing` keeps no activations of the block: the backward pass computes them again.
    """

    grad_checkpointing = False
    attn: Any
    mlp: Any
    drop_path1: Any
    drop_path2: Any

    def before_attention(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def after_attention(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def before_mlp(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def after_mlp(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def attend(self) -> Callable[..., Tensor]:
        """What computes attention of normed tokens; arguments as in `PairAttention`."""
        return self.attn

    def forward(
        self,
        x: Tensor,
        partner_x: Tensor | None = None,
        pairs: Tensor | Partners | None = None,
        context: Tensor | None = None,
        images: Tensor | None = None,
        trace: Trace | None = None,
        rows: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        within_checkpoint: bool = False,
    ) -> Tensor:
        """Tokens x (B, M, C) -> (K, M, C), K = B without `images`. Without more it is timm's own block.

        Args:
            x: Tokens of every stream.
            partner_x: Tokens (B', N', C) whose keys and values are the partners'; `context` by default.
            pairs: Which row of `partner_x` each image of the result is paired with (K,), -1 = none, or
                `pair_up` of it.
            context: Tokens (B, N, C) that x attends to instead of itself, with `rows`.
            images: The image of x that each image of the result comes from (K,), int64. A repeated one is
                normed and projected once; that is where PWCA leaves SA.
            trace: Receives queries, keys and log-sum-exp. Without it, stochastic depth computes no attention
                of the images that it drops.
            rows: The rows of `context` whose positions x has (B, M), int64.
            positions: What blocks share of the positions of all N tokens. For an Eva the rotary table
                (N, 1 or H, 2D), sines, then cosines; for a Beit the bias of all blocks (H, N, N), if it has
                one. It holds for `partner_x`, too.
            within_checkpoint: The call is that of `grad_checkpointing` itself.
        """
        if self.grad_checkpointing and not within_checkpoint and torch.is_grad_enabled():
            return self._checkpointed(x, partner_x, pairs, context, images, trace, rows, positions)
        partner_x = None if partner_x is None else self.before_attention(partner_x)
        context = None if context is None else self.before_attention(context)
        normed = self.before_attention(x)
        x = x if images is None else x[images]
        kept = None if trace is not None else kept_rows(self.drop_path1, x)
        if kept is not None:
            images = kept if images is None else images[kept]
            pairs = pairs.of(kept) if isinstance(pairs, Partners) else None if pairs is None else pairs[kept]
        attended = self.attend(normed, partner_x, pairs, context, images, trace, rows, positions)
        x = add_residual(x, self.drop_path1, kept, self.after_attention(attended))
        kept = kept_rows(self.drop_path2, x)
        chosen = x if kept is None else x[kept]
        return add_residual(x, self.drop_path2, kept, self.after_mlp(self.mlp(self.before_mlp(chosen))))

    def _checkpointed(
        self,
        x: Tensor,
        partner_x: Tensor | None,
        pairs: Tensor | Partners | None,
        context: Tensor | None,
        images: Tensor | None,
        trace: Trace | None,
        rows: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        """`forward`, computed again in the backward pass."""

        def run(*inputs: Any) -> tuple[Tensor, list[BlockTrace]]:
            own = Trace()
            x, partner_x, pairs, context, images, *places = inputs
            traces = None if trace is None else own
            x = PairBlock.forward(
                self, x, partner_x, pairs, context, images, traces, *places, within_checkpoint=True
            )
            return x, own.take()

        # A checkpoint that is compiled may change nothing outside, so what it traces is one of its outputs.
        inputs = (x, partner_x, pairs, context, images, rows, positions)
        x, traced = checkpoint(run, *inputs, use_reentrant=False)
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
