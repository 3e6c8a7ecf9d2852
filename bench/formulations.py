"""The reference layout as it is usually written, and the parts that all formulations share.

All use the weights of a `DualAttentionModel`. None has dropout or stochastic depth, because random draws
cannot be compared.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dca_triton import DualAttentionModel, reference
from dca_triton.model.backbone import TimmModule
from dca_triton.model.glca import GLCABlock

Logits = dict[str, Tensor]


class Formulation(nn.Module):
    """Another way to compute what a model does, with its weights."""

    def __init__(self, model: DualAttentionModel) -> None:
        super().__init__()
        self.model = model

    def features(self, images: Tensor) -> Tensor:
        """The whole timm backbone, with timm's fused attention -> (B, N, C)."""
        return self.model.backbone(images)


class Maps(Formulation):
    """The reference layout as it is usually written.

    It keeps attention maps for the full rollout matrix, runs the partner images through the backbone again,
    and computes every token to the end.
    """

    def forward(self, images: Tensor, partner_index: Tensor | None = None) -> Logits:
        """Images (B, 3, h, w), in training with partner_index (B,) -> {sa,glca,pwca}_logits (B, K)."""
        model = self.model
        features = self.features(images)
        sa, maps = features, []
        for block in model.sa_blocks:
            sa, weights = self.block(block, sa)
            maps.append(weights.detach())
        outputs = {"sa_logits": model.sa_head(sa[:, 0]), "glca_logits": self.glca_logits(features, maps)}
        if partner_index is not None:
            pwca, pair = features, self.features(images[partner_index])
            for block in model.sa_blocks:
                pwca = self.pair_block(block, pwca, pair)
            outputs["pwca_logits"] = model.pwca_head(pwca[:, 0])
        return outputs

    def block(self, block: TimmModule, x: Tensor) -> tuple[Tensor, Tensor]:
        """A block of the SA branch, and its attention map for the rollout (B, H, N, N)."""
        q, k, v = heads(block, x)
        weights = attention_map(q, k)
        return rest(block, x, weights @ v), weights

    def pair_block(self, block: TimmModule, x: Tensor, pair: Tensor) -> Tensor:
        """The same block in the PWCA branch, where x also attends to the partner's features."""
        q, k, v = with_pair(heads(block, x), heads(block, pair))
        return rest(block, x, attention_map(q, k) @ v)

    def glca_logits(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """GLCA of the rows selected by the rollout; `proj` applies to all rows of x (B, N, C)."""
        selected = self.select(maps)[:, :, None]
        for block in self.model.glca_blocks:
            assert isinstance(block, GLCABlock)
            normed, glca = block.norm(x), block.glca
            rows = torch.take_along_dim(normed, selected, 1)
            projected = glca.q_proj(rows), glca.k_proj(normed), glca.v_proj(normed)
            q, k, v = (y.unflatten(2, (glca.num_heads, -1)).transpose(1, 2) for y in projected)
            out = merged(attention_map(q, k) @ v)
            x = x + glca.proj(normed.scatter(1, selected.expand_as(out), out.to(normed.dtype)))
        local = torch.take_along_dim(x, selected, 1)[:, 1:]
        return self.model.glca_head(reference.read_out(x, local, self.model.glca_readout))

    def select(self, maps: list[Tensor]) -> Tensor:
        """Select the class token and the rows with the highest rollout of maps (B, H, N, N) -> (B, 1 + R)."""
        return select(self.model, maps)


class SelectedMaps(Maps):
    """`Maps` on the rows that the library selects, for readouts of these rows.

    Rows of nearly equal rollout change their order with the last bits of the maps.
    """

    def forward(self, images: Tensor, partner_index: Tensor | None = None) -> Logits:
        """As in `Maps`."""
        with torch.no_grad():
            streams = self.model.sa_and_pwca(images, None, partner_index, class_tokens_only=True)
            self.selected = self.model.select(self.model.rollout(streams, cached=True))
        return super().forward(images, partner_index)

    def select(self, maps: list[Tensor]) -> Tensor:
        """As in `Maps`."""
        return self.selected


class CompiledMaps(Maps):
    """`Maps` under torch.compile, one block at a time."""

    def __init__(self, model: DualAttentionModel) -> None:
        super().__init__(model)
        self.timm_block = compiled(timm_block)
        self.block = compiled(super().block)  # type: ignore[method-assign]
        self.pair_block = compiled(super().pair_block)  # type: ignore[method-assign]
        self.glca_logits = compiled(super().glca_logits)  # type: ignore[method-assign]

    def features(self, images: Tensor) -> Tensor:
        """As in `Maps`."""
        return features_by_block(self.model, images, self.timm_block)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a block under torch.compile, as PyTorch recommends for repeated blocks.

    One graph then serves all blocks. Code that cannot be compiled is an error and never runs eagerly instead.
    """
    return torch.compile(function, dynamic=False, fullgraph=True)


def timm_block(block: TimmModule, x: Tensor) -> Tensor:
    """A block of timm on tokens (B, N, C)."""
    return block(x)


def features_by_block(model: DualAttentionModel, images: Tensor, block_of: Callable[..., Tensor]) -> Tensor:
    """The whole timm backbone, each block by `block_of(block, x)` -> (B, N, C)."""
    vit = model.backbone.model
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for block in vit.blocks:
        x = block_of(block, x)
    return vit.norm(x)


def heads(block: TimmModule, x: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values (B, H, N, D) of a pre-norm block's input (B, N, C)."""
    qkv = block.attn.qkv(block.norm1(x)).unflatten(2, (3, block.attn.num_heads, -1))
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def keys_and_values(block: TimmModule, x: Tensor) -> tuple[Tensor, ...]:
    """Return keys and values (B, H, N, D) alone, by two thirds of the packed projection."""
    qkv, C = block.attn.qkv, x.shape[-1]
    bias = None if qkv.bias is None else qkv.bias[C:]
    packed = F.linear(block.norm1(x), qkv.weight[C:], bias)
    return packed.unflatten(2, (2, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √D) of q (B, H, M, D) and k (B, H, N, D) -> (B, H, M, N)."""
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def with_pair(own: tuple[Tensor, ...], pair: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Concatenate the keys and values of both images; the queries are the image's own."""
    return own[0], torch.cat([own[1], pair[1]], 2), torch.cat([own[2], pair[2]], 2)


def merged(out: Tensor) -> Tensor:
    """Concatenate heads: (B, H, M, D) -> (B, M, C)."""
    return out.transpose(1, 2).flatten(2)


def rest(block: TimmModule, x: Tensor, attended: Tensor) -> Tensor:
    """Everything after attention (B, H, M, D) in a block: projection, residual, MLP, residual."""
    x = x + block.attn.proj(merged(attended))
    return x + block.mlp(block.norm2(x))


def select(model: DualAttentionModel, maps: list[Tensor]) -> Tensor:
    """Select the class token and the rows with the highest rollout (B, 1 + R), by the full rollout matrix."""
    with torch.no_grad():
        row = reference.rollout(maps)[:, 0]
    return reference.select_local(row, model.backbone.num_prefix_tokens, model.top_k_ratio)
