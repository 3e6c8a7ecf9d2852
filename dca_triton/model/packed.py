"""Attentions of timm that project queries, keys and values by one Linear, with its bias or separate ones."""

from typing import Any

import torch
from torch import Tensor, nn

from .blocks import PairAttention
from .plain import is_plain


class PackedAttention(PairAttention):
    """timm's attributes: `qkv`; `num_heads`; `q_bias`, `k_bias` and `v_bias`, if they lie beside `qkv`."""

    num_heads: Any
    qkv: Any
    k_bias: Any
    v_bias: Any

    def queries(self, q: Tensor) -> Tensor:
        """Projected queries (B, ..., H, D) as they are multiplied."""
        return q

    def keys(self, k: Tensor) -> Tensor:
        """Projected keys (B, ..., H, D) as they are multiplied."""
        return k

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._heads(self.packed(x, slice(None)), 3)
        return _flat(self.queries(q)), _flat(self.keys(k)), _flat(v)

    def project_queries(
        self, x: Tensor, positions: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        if not is_plain(self.qkv, nn.Linear):
            return self.project(x)[0]
        (q,) = self._heads(self.packed(x, slice(self.qkv.out_features // 3)), 1)
        return _flat(self.queries(q))

    def project_keys(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not is_plain(self.qkv, nn.Linear):
            return self.project(x)[1:]
        k, v = self._heads(self.packed(x, slice(self.qkv.out_features // 3, None)), 2)
        return _flat(self.keys(k)), _flat(v)

    def packed(self, x: Tensor, rows: slice) -> Tensor:
        """Some outputs of the packed projection; all of them if it is not a plain Linear."""
        q_bias = getattr(self, "q_bias", None)
        bias = self.qkv.bias if q_bias is None else torch.cat([q_bias, self.k_bias, self.v_bias])
        if is_plain(self.qkv, nn.Linear):
            return nn.functional.linear(x, self.qkv.weight[rows], None if bias is None else bias[rows])
        return self.qkv(x) if q_bias is None else self.qkv(x) + bias

    def _heads(self, packed: Tensor, parts: int) -> tuple[Tensor, ...]:
        return packed.unflatten(-1, (parts, self.num_heads, -1)).unbind(-3)


def _flat(x: Tensor) -> Tensor:
    """Heads (B, N, H, D); those of W windows (B, N, W, H, D) are W H heads."""
    return x.flatten(2, -2)
