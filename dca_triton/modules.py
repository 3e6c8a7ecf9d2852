"""Transformer blocks whose attention goes through the public operations.

Both layouts are made of timm's own `Block` (pre-norm, LayerScale, qk-norm and stochastic depth included);
this module runs such a block on several streams at once and adds the reference's GLCA block.
"""

import functools
import warnings
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backbone import TimmModule
from .ops import Attention, Backend, Partners, local_attention, pair_attention, torch_backend
from .stochastic_depth import add_branch, surviving


class Heads(NamedTuple):
    """Queries, keys and values (B, N, H, D)."""

    q: Tensor
    k: Tensor
    v: Tensor


class Attended(NamedTuple):
    """What a block leaves for rollout: queries, keys (B, N, H, D) and log-sum-exp (B, H, N)."""

    q: Tensor
    k: Tensor
    lse: Tensor


def project_heads(attn: TimmModule, x: Tensor) -> Heads:
    """The packed qkv projection of timm's `Attention` as views (B, N, H, D), after its qk-norm."""
    B, N, _ = x.shape
    q, k, v = attn.qkv(x).view(B, N, 3, attn.num_heads, attn.head_dim).unbind(2)
    return Heads(attn.q_norm(q), attn.k_norm(k), v)


def project_keys(attn: TimmModule, x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, N, H, D) alone: the last two thirds of the packed projection."""
    B, N, _ = x.shape
    own = attn.num_heads * attn.head_dim
    bias = None if attn.qkv.bias is None else attn.qkv.bias[own:]
    packed = nn.functional.linear(x, attn.qkv.weight[own:], bias)
    k, v = packed.view(B, N, 2, attn.num_heads, attn.head_dim).unbind(2)
    return attn.k_norm(k), v


def project_output(attn: TimmModule, x: Tensor) -> Tensor:
    """Merge the heads (B, M, H, D) -> (B, M, C) and apply timm's output norm, projection and dropout."""
    return attn.proj_drop(attn.proj(attn.norm(x.flatten(2))))


def attend(
    heads: Heads,
    partner: tuple[Tensor, Tensor] | None,
    partner_index: Tensor | Partners | None,
    dropout: float,
    scale: float,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """`pair_attention` of the heads; with dropout on the probabilities it runs on PyTorch, and says so."""
    partner_k, partner_v = (None, None) if partner is None else partner
    if dropout == 0:
        return pair_attention(
            heads.q, heads.k, heads.v, partner_k, partner_v, partner_index, scale, backend=backend
        )
    _say_dropout_needs_torch(backend)
    attention = Attention(*heads, partner_k, partner_v, partner_index, scale=scale)
    return torch_backend.pair_attention(attention, dropout)


def _say_dropout_needs_torch(backend: Backend) -> None:
    message = "drop_rate > 0 drops attention probabilities in training, which only the torch backend does"
    if backend == "triton":
        raise RuntimeError(f"backend='triton' cannot run here: {message}; set drop_rate=0 or backend='auto'")
    if backend == "auto" and torch.cuda.is_available() and not torch.compiler.is_compiling():
        _warn_once(message)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def residuals(block: TimmModule, x: Tensor, attended: Tensor, rows: Tensor | None = None) -> Tensor:
    """The rest of a pre-norm block: x + attention (that of the images `rows`), then x + MLP(norm(x))."""
    x = add_branch(x, block.drop_path1, rows, block.ls1(project_output(block.attn, attended)))
    rows = surviving(block.drop_path2, x)
    kept = x if rows is None else x[rows]
    return add_branch(x, block.drop_path2, rows, block.ls2(block.mlp(block.norm2(kept))))


def run_block(
    block: TimmModule,
    x: Tensor,
    partner: tuple[Tensor, Tensor] | None = None,
    partner_index: Tensor | Partners | None = None,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Attended]:
    """One timm `Block` on x (B, N, C), each image attending to itself and to its partner.

    `partner` holds keys and values (B', N', H, D), x's own by default; `partner_index` as in
    `pair_attention`.
    """
    return _checkpointed(block, x, partner, partner_index, backend, False)


def skip_block(
    block: TimmModule,
    x: Tensor,
    partner: tuple[Tensor, Tensor] | None = None,
    partner_index: Tensor | Partners | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """`run_block` where nobody asks for a rollout: images that stochastic depth drops attend to nothing."""
    return _checkpointed(block, x, partner, partner_index, backend, True)[0]


def _checkpointed(block: TimmModule, *arguments: Any) -> tuple[Tensor, Attended]:
    if getattr(block, "grad_checkpointing", False) and torch.is_grad_enabled():
        return checkpoint(_run, block, *arguments, use_reentrant=False)
    return _run(block, *arguments)


def _run(
    block: TimmModule,
    x: Tensor,
    partner: tuple[Tensor, Tensor] | None,
    partner_index: Tensor | Partners | None,
    backend: Backend,
    skips: bool,
) -> tuple[Tensor, Attended]:
    attn = block.attn
    heads = project_heads(attn, block.norm1(x))
    rows = surviving(block.drop_path1, x) if skips else None
    if rows is not None:
        if partner_index is not None:  # others may attend to an image that itself attends to nothing
            partner = partner or (heads.k, heads.v)
            partner_index = (
                partner_index.of(rows) if isinstance(partner_index, Partners) else partner_index[rows]
            )
        heads = Heads(*(part[rows] for part in heads))
    out, lse = attend(heads, partner, partner_index, _dropout(attn), attn.head_dim**-0.5, backend)
    return residuals(block, x, out, rows), Attended(heads.q, heads.k, lse)


def run_last_block(
    block: TimmModule,
    x: Tensor,
    partner: tuple[Tensor, Tensor] | None = None,
    partner_index: Tensor | Partners | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """`run_block` for the class token alone -> (B, 1, C): full keys, one query row."""
    attn = block.attn
    heads = project_heads(attn, block.norm1(x))
    heads = heads._replace(q=heads.q[:, :1])
    out, _ = attend(heads, partner, partner_index, _dropout(attn), attn.head_dim**-0.5, backend)
    return residuals(block, x[:, :1], out)


def run_local_block(block: TimmModule, x: Tensor, index: Tensor, *, backend: Backend = "auto") -> Tensor:
    """GLCA as a whole timm `Block`: the rows `index` (B, R) of x attend to all of x -> (B, R, C)."""
    attn = block.attn
    heads = project_heads(attn, block.norm1(x))
    if _dropout(attn):
        _say_dropout_needs_torch(backend)
        q = torch_backend.take_rows(heads.q, index)
        out, _ = torch_backend.attention_with_lse(
            q, heads.k, heads.v, attn.head_dim**-0.5, dropout=attn.attn_drop.p
        )
    else:
        out = local_attention(*heads, index, attn.head_dim**-0.5, backend=backend)
    return residuals(block, torch_backend.take_rows(x, index), out)


def _dropout(attn: TimmModule) -> float:
    return attn.attn_drop.p if attn.training else 0.0


class GlobalLocalAttention(nn.Module):
    """GLCA of the reference: attention over all rows replaces the selected ones, then all are projected."""

    def __init__(self, dim: int, num_heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.attn_drop = nn.Dropout(drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor, index: Tensor, backend: Backend = "auto") -> Tensor:
        """Attention of the rows `index` (B, R) of x (B, N, C) over all N rows -> (B, R, C), before `proj`."""
        selected = torch_backend.take_rows(x, index)
        q, k, v = (self._heads(y) for y in (self.q_proj(selected), self.k_proj(x), self.v_proj(x)))
        if _dropout(self):
            _say_dropout_needs_torch(backend)
            out, _ = torch_backend.attention_with_lse(q, k, v, self.head_dim**-0.5, dropout=self.attn_drop.p)
        else:
            out = local_attention(q, k, v, backend=backend)
        return out.flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, self.head_dim)


class GLCABlock(nn.Module):
    """Pre-norm residual block around `GlobalLocalAttention`, without an MLP."""

    def __init__(self, dim: int, num_heads: int, drop: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.glca = GlobalLocalAttention(dim, num_heads, drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, index: Tensor, backend: Backend = "auto") -> Tensor:
        """x (B, N, C), index (B, R) -> (B, N, C): every row gains `proj` of its normed or attended self."""
        normed = self.norm(x)
        attended = self.glca(normed, index, backend).to(normed.dtype)
        mixed = normed.scatter(1, index[:, :, None].expand_as(attended), attended)
        return x + self.drop_path(self.glca.proj_drop(self.glca.proj(mixed)))

    def class_token(self, x: Tensor, backend: Backend = "auto") -> Tensor:
        """The class token's row of `forward` (B, 1, C), which no other selected row can influence."""
        first = torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device)
        attended = self.glca(self.norm(x), first, backend)
        return x[:, :1] + self.drop_path(self.glca.proj_drop(self.glca.proj(attended)))


def init_linears(module: nn.Module) -> None:
    """Linear weights from a truncated normal of std 0.02, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
