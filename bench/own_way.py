"""The reference layout as an expert would write it without the library, eager and compiled."""

import torch.nn.functional as F
from torch import Tensor

from dca_triton import DualAttentionModel
from dca_triton.model.backbone import TimmModule
from dca_triton.model.glca import GLCABlock

from .formulations import (
    Formulation,
    Logits,
    compiled,
    features_by_block,
    heads,
    keys_and_values,
    merged,
    rest,
    timm_block,
    with_pair,
)
from .peers import Attend


class BestOwnWay(Formulation):
    """The reference layout as an expert would write it without the library.

    Attention is fused; keys and values of the partner are concatenated. The partner's features are those of
    its own image in the batch, and only its keys and values are projected. Nothing reads more than the class
    token, so there is no rollout, and GLCA and the last SA block compute one query.

    Args:
        model: Has the weights.
        attend: The fused attention, also in the backbone; by default PyTorch's.
    """

    def __init__(self, model: DualAttentionModel, attend: Attend = F.scaled_dot_product_attention) -> None:
        super().__init__(model)
        self.attend = attend

    def features(self, images: Tensor) -> Tensor:
        """As in `Maps`."""
        if self.attend is F.scaled_dot_product_attention:
            return super().features(images)
        return features_by_block(self.model, images, self.block)

    def forward(self, images: Tensor, partner_index: Tensor | None = None) -> Logits:
        """As in `Maps`."""
        model = self.model
        features = self.features(images)
        outputs = {
            "sa_logits": model.sa_head(self.stream(features)),
            "glca_logits": model.glca_head(self.glca(features)),
        }
        if partner_index is not None:
            outputs["pwca_logits"] = model.pwca_head(self.stream(features, features[partner_index]))
        return outputs

    def stream(self, x: Tensor, pair: Tensor | None = None) -> Tensor:
        """All SA blocks on x (B, N, C), paired with the features `pair` or not -> class tokens (B, C)."""
        *blocks, last = self.model.sa_blocks
        for block in blocks:
            x = self.block(block, x, pair)
        return self.block(last, x, pair, queries=1)[:, 0]

    def block(
        self, block: TimmModule, x: Tensor, pair: Tensor | None = None, queries: int | None = None
    ) -> Tensor:
        """A block on the first `queries` rows of x, which attend to all rows of x and of its pair."""
        q, k, v = heads(block, x)
        if pair is not None:
            q, k, v = with_pair((q, k, v), (q, *keys_and_values(block, pair)))
        return rest(block, x[:, :queries], self.attend(q[:, :, :queries], k, v))

    def glca(self, x: Tensor) -> Tensor:
        """GLCA's class token (B, C); no selected row of its only block can reach it."""
        (block,) = self.model.glca_blocks
        assert isinstance(block, GLCABlock)
        normed, glca = block.norm(x), block.glca
        projected = glca.q_proj(normed[:, :1]), glca.k_proj(normed), glca.v_proj(normed)
        q, k, v = (y.unflatten(2, (glca.num_heads, -1)).transpose(1, 2) for y in projected)
        return (x[:, :1] + glca.proj(merged(self.attend(q, k, v))))[:, 0]


class CompiledBestOwnWay(BestOwnWay):
    """`BestOwnWay` under torch.compile, one block at a time."""

    def __init__(self, model: DualAttentionModel) -> None:
        super().__init__(model)
        self.timm_block = compiled(timm_block)
        self.block = compiled(super().block)  # type: ignore[method-assign]
        self.glca = compiled(super().glca)  # type: ignore[method-assign]

    def features(self, images: Tensor) -> Tensor:
        """As in `Maps`."""
        return features_by_block(self.model, images, self.timm_block)
