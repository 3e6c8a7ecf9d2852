"""Where the norms of a residual block lie, and what scales its residuals."""

from typing import Any

from torch import Tensor

from .blocks import PairBlock


class PreNormBlock(PairBlock):
    """x + attention(norm1(x)), then x + MLP(norm2(x)); the norms are timm's attributes."""

    norm1: Any
    norm2: Any

    def before_attention(self, x: Tensor) -> Tensor:
        return self.norm1(x)

    def after_attention(self, x: Tensor) -> Tensor:
        return x

    def before_mlp(self, x: Tensor) -> Tensor:
        return self.norm2(x)

    def after_mlp(self, x: Tensor) -> Tensor:
        return x


class ScaledBlock(PreNormBlock):
    """A pre-norm block with timm's `gamma_1` and `gamma_2`, which may be None."""

    gamma_1: Any
    gamma_2: Any

    def after_attention(self, x: Tensor) -> Tensor:
        return x if self.gamma_1 is None else self.gamma_1 * x

    def after_mlp(self, x: Tensor) -> Tensor:
        return x if self.gamma_2 is None else self.gamma_2 * x


class PostNormBlock(PairBlock):
    """x + norm1(attention(x)), then x + norm2(MLP(x)); the norms are timm's attributes."""

    norm1: Any
    norm2: Any

    def before_attention(self, x: Tensor) -> Tensor:
        return x

    def after_attention(self, x: Tensor) -> Tensor:
        return self.norm1(x)

    def before_mlp(self, x: Tensor) -> Tensor:
        return x

    def after_mlp(self, x: Tensor) -> Tensor:
        return self.norm2(x)
