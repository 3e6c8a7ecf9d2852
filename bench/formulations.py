"""The implementations that the library is compared with; all use the weights of a `DualAttentionModel`.

None has dropout or stochastic depth, because random draws cannot be compared.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dca_triton import DualAttentionModel, reference
from dca_triton.model.backbone import TimmModule
from dca_triton.model.glca import GLCABlock

Logits = dict[str, Tensor]


class Maps(nn.Module):
    """The reference layout as it is usually written.

    It keeps attention maps for the full rollout matrix, runs the partner images through the backbone again,
    and computes every token to the end.
    """

    def __init__(self, model: DualAttentionModel) -> None:
        super().__init__()
        self.model = model

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

    def features(self, images: Tensor) -> Tensor:
        """The whole timm backbone, with timm's fused attention -> (B, N, C)."""
        return self.model.backbone(images)

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
        selected = select(self.model, maps)[:, :, None]
        for block in self.model.glca_blocks:
            assert isinstance(block, GLCABlock)
            normed, glca = block.norm(x), block.glca
            rows = torch.take_along_dim(normed, selected, 1)
            projected = glca.q_proj(rows), glca.k_proj(normed), glca.v_proj(normed)
            q, k, v = (y.unflatten(2, (glca.num_heads, -1)).transpose(1, 2) for y in projected)
            out = merged(attention_map(q, k) @ v)
            x = x + glca.proj(normed.scatter(1, selected.expand_as(out), out.to(normed.dtype)))
        return self.model.glca_head(x[:, 0])


class CompiledMaps(Maps):
    """`Maps` under torch.compile, one block at a time.

    PyTorch recommends this for repeated blocks, because one compiled graph then serves all of them.
    """

    def __init__(self, model: DualAttentionModel) -> None:
        super().__init__(model)
        torch.compiler.reset()  # graphs of other benchmarks would count toward the recompilation limit
        # fullgraph: code that cannot be compiled is an error and never runs eagerly instead.
        compiled = partial(torch.compile, dynamic=False, fullgraph=True)
        self.timm_block = compiled(lambda block, x: block(x))
        self.block = compiled(super().block)  # type: ignore[method-assign]
        self.pair_block = compiled(super().pair_block)  # type: ignore[method-assign]
        self.glca_logits = compiled(super().glca_logits)  # type: ignore[method-assign]

    def features(self, images: Tensor) -> Tensor:
        """As in `Maps`."""
        vit = self.model.backbone.model
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        for block in vit.blocks:
            x = self.timm_block(block, x)
        return vit.norm(x)


class OwnWay(Maps):
    """`Maps` as users would speed it up, with scaled_dot_product_attention.

    Keys and values of the partner are concatenated. The rollout uses its own map, averaged over
    heads and without gradient.
    """

    def block(self, block: TimmModule, x: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Maps`; the map is (B, 1, N, N)."""
        q, k, v = heads(block, x)
        with torch.no_grad():
            weights = attention_map(q, k).mean(1, keepdim=True)
        return rest(block, x, F.scaled_dot_product_attention(q, k, v)), weights

    def pair_block(self, block: TimmModule, x: Tensor, pair: Tensor) -> Tensor:
        """As in `Maps`."""
        q, k, v = with_pair(heads(block, x), heads(block, pair))
        return rest(block, x, F.scaled_dot_product_attention(q, k, v))


class PaperMaps(nn.Module):
    """The paper layout with attention maps and no shortcuts; its outputs are the oracle of that layout."""

    def __init__(self, model: DualAttentionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, partner_index: Tensor | None = None) -> Logits:
        """As in `Maps`."""
        model = self.model
        tokens = model.backbone(images)
        norm = model.backbone.model.norm
        sa, maps = tokens, []
        for block in model.backbone.model.blocks:
            q, k, v = heads(block, sa)
            maps.append(attention_map(q, k))
            sa = rest(block, sa, maps[-1] @ v)
        block = model.glca_blocks[0]
        selected = select(model, maps)[:, :, None]
        q, k, v = heads(block, sa)
        local = attention_map(torch.take_along_dim(q, selected[:, None], 2), k) @ v
        glca = rest(block, torch.take_along_dim(sa, selected, 1), local)
        outputs = {
            "sa_logits": model.sa_head(norm(sa)[:, 0]),
            "glca_logits": model.glca_head(norm(glca)[:, 0]),
        }
        if partner_index is not None:
            pwca = tokens
            for block in model.backbone.model.blocks:
                own = heads(block, pwca)
                q, k, v = with_pair(own, tuple(t[partner_index] for t in own))
                pwca = rest(block, pwca, attention_map(q, k) @ v)
            outputs["pwca_logits"] = model.pwca_head(norm(pwca)[:, 0])
        return outputs


def heads(block: TimmModule, x: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values (B, H, N, D) of a pre-norm block's input (B, N, C)."""
    qkv = block.attn.qkv(block.norm1(x)).unflatten(2, (3, block.attn.num_heads, -1))
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


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
