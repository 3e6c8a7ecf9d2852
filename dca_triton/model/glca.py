"""GLCA of the reference layout: attention over all rows replaces the selected ones (DCAL, eq. 3)."""

from timm.layers import DropPath
from torch import Tensor, nn

from .. import ops
from ..ops import Backend, local_attention, pair_attention
from ..ops.rows import take_rows
from .attention_dropout import dropout_rate, dropped_attention
from .blocks import Trace


class GlobalLocalAttention(nn.Module):
    """The selected rows attend to all rows and replace themselves; then every row is projected."""

    backend: Backend = "auto"

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

    def forward(
        self, x: Tensor, selected: Tensor, only_selected: bool = False, trace: Trace | None = None
    ) -> Tensor:
        """Normed tokens x (B, N, C), selected rows (B, R) -> (B, N, C), or (B, R, C) with `only_selected`."""
        q, k, v = (
            project(rows).unflatten(2, (self.num_heads, self.head_dim))
            for project, rows in ((self.q_proj, take_rows(x, selected)), (self.k_proj, x), (self.v_proj, x))
        )
        dropout = dropout_rate(self.attn_drop)
        if trace is None and not dropout:
            out = local_attention(q, k, v, backend=self.backend)
        else:
            if dropout:
                out, lse = dropped_attention(ops.Attention(q, k, v), dropout, backend=self.backend)
            else:
                out, lse = pair_attention(q, k, v, backend=self.backend)
            if trace is not None:
                trace.record(q, k, lse)
        y = out.flatten(2)
        if not only_selected:
            y = x.scatter(1, selected[:, :, None].expand_as(y), y.to(x.dtype))
        return self.proj_drop(self.proj(y))


class GLCABlock(nn.Module):
    """Pre-norm residual block around `GlobalLocalAttention`, without an MLP."""

    def __init__(self, dim: int, num_heads: int, drop: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.glca = GlobalLocalAttention(dim, num_heads, drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self, x: Tensor, selected: Tensor, only_selected: bool = False, trace: Trace | None = None
    ) -> Tensor:
        """Every row gains the projection of its normed or attended self.

        Args:
            x: Tokens (B, N, C).
            selected: Rows that attend to all of x (B, R), int64 in [0, N).
            only_selected: Compute the selected rows alone, which no other row can influence.
            trace: Receives queries (B, R, H, D), keys (B, N, H, D) and log-sum-exp (B, H, R).

        Returns:
            (B, N, C), or (B, R, C) with `only_selected`.
        """
        y = self.glca(self.norm(x), selected, only_selected, trace)
        return (take_rows(x, selected) if only_selected else x) + self.drop_path(y)
