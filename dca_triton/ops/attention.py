"""The arguments of an attention as one record, used from the public operations down to the kernels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .pairing import Partners, invert_pairs


class Attention(NamedTuple):
    """Queries over the keys and values of their own image and of its partner.

    Attributes:
        q: Queries (B, M, H, D).
        k: Keys (B, N, H, D).
        v: Values (B, N, H, D).
        partner_k: Keys of the partners (B', N', H, D); None: those in k.
        partner_v: Values of the partners (B', N', H, D); None if `partner_k` is None.
        pairs: The partner of each image (B,), -1 for none, or the result of `pair_up`; None: no partners.
        rows: Rows of q to take (B, R); None: all M.
        scale: Factor of the scores; None: 1/√D.
        bias: Added to the scores of the own and of the partner's keys, four dimensions that broadcast to
            (B, H, M, N); None: nothing.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    partner_k: Tensor | None = None
    partner_v: Tensor | None = None
    pairs: Tensor | Partners | None = None
    rows: Tensor | None = None
    scale: float | None = None
    bias: Tensor | None = None

    @property
    def partner_index(self) -> Tensor | None:
        """The partner of each image (B,), -1 for none."""
        return self.pairs.partner if isinstance(self.pairs, Partners) else self.pairs

    @property
    def partner_keys(self) -> Tensor:
        """The keys that partners are chosen from (B', N', H, D)."""
        return self.k if self.partner_k is None else self.partner_k

    @property
    def num_images(self) -> int:
        """How many images there are to choose partners from, B'."""
        return self.partner_keys.shape[0]  # len() would pin it in an exported graph

    @property
    def needs_gradient(self) -> bool:
        """Whether autograd records this attention."""
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in self[:5])

    @property
    def factor(self) -> float:
        """The scale, 1/√D by default."""
        return self.q.shape[-1] ** -0.5 if self.scale is None else float(self.scale)

    def with_inverse(self) -> "Attention":
        """Return a copy with `Partners` as pairs, which the backward pass of the kernels needs."""
        if not isinstance(self.pairs, Tensor):
            return self
        return self._replace(pairs=invert_pairs(self.pairs, self.num_images))

    def converted(self, convert: Callable[[Tensor], Tensor]) -> "Attention":
        """Return a copy with all queries, keys, values and the bias converted."""
        return self._replace(
            q=convert(self.q),
            k=convert(self.k),
            v=convert(self.v),
            partner_k=None if self.partner_k is None else convert(self.partner_k),
            partner_v=None if self.partner_v is None else convert(self.partner_v),
            bias=None if self.bias is None else convert(self.bias),
        )

    def flat(self) -> tuple[Any, ...]:
        """The fields that kernels take, as `torch.library` takes them; the inverse of `from_flat`."""
        image, reader, first = (
            self.pairs[:3] if isinstance(self.pairs, Partners) else (self.pairs, None, None)
        )
        return *self[:5], image, reader, first, self.rows, self.factor

    @classmethod
    def from_flat(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        partner_k: Tensor | None,
        partner_v: Tensor | None,
        image: Tensor | None,
        reader: Tensor | None,
        first: Tensor | None,
        rows: Tensor | None,
        scale: float,
    ) -> "Attention":
        pairs: Tensor | Partners | None = image
        if image is not None and reader is not None and first is not None:
            pairs = Partners(image, reader, first)
        return cls(q, k, v, partner_k, partner_v, pairs, rows, scale)
