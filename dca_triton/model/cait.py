"""timm's CaiT: talking heads among the patches, then class attention of a class token that enters late.

Tokens are (B, 1 + N, C) in all blocks here, the class token first. The patches' blocks leave the class token
as it is, and the class-attention blocks leave the patches as they are. timm keeps the two apart until the end
and computes the same. In rollout (DCAL, eq. 2) a token that a block leaves as it is attends to itself alone.
"""

from typing import Any

import torch
from timm.models.cait import Cait
from timm.models.cait import ClassAttn as TimmClassAttn
from timm.models.cait import LayerScaleBlock as TimmLayerScaleBlock
from timm.models.cait import LayerScaleBlockClassAttn as TimmLayerScaleBlockClassAttn
from timm.models.cait import TalkingHeadAttn as TimmTalkingHeadAttn
from timm.models.cait import checkpoint_filter_fn as timm_filter
from torch import Tensor
from torch.nn.functional import pad

from ..ops import Partners
from ..positions import grid_of, resampled_embedding
from .blocks import BlockTrace, PairAttention, Trace
from .family import Family, Step, TimmModule
from .residual import ScaledBlock


class TalkingHeadAttn(PairAttention, TimmTalkingHeadAttn):
    """timm's attention whose heads mix their scores and then their probabilities, on own and partner's keys:

    proj_w(softmax(proj_l(Q [K; K_partner]ᵀ / √D))) [V; V_partner]

    The Linear layers proj_l and proj_w act over the H heads and have biases. An image without a partner
    attends to its own keys alone. Rollout takes the softmax, because weights may be negative after proj_w.

    This runs on PyTorch and forms the maps, because a kernel computes each head by itself: backend="triton"
    raises RuntimeError. In training a block keeps three maps (N, K, H) of each image, over K = N keys, or 2N
    in a batch with partners: 3 * 576 * 1152 * 6 * 2 bytes = 24 MB for cait_xs24_384 in 16 bits.
    """

    reasons_against_triton = ("its talking heads mix their scores",)

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        return q, k, v

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
        """Attention of all normed patches x (B, N, C) -> (K, N, C), arguments as in `PairBlock`."""
        if self.backend == "triton":
            raise RuntimeError(
                "backend='triton' cannot run here: CaiT's heads mix their scores and probabilities, and a "
                "kernel computes each head by itself; set backend='auto'"
            )
        assert context is None and rows is None and positions is None, "all patches attend, without positions"
        q, k, v = self.project(x)
        partner_k, partner_v = (k, v) if partner_x is None else self.project_keys(partner_x)
        if images is not None:
            q, k, v = q[images], k[images], v[images]
        own_k, absent = k, None
        if pairs is not None:
            partner = pairs.partner if isinstance(pairs, Partners) else pairs
            chosen = partner.clamp(min=0)
            k, v = torch.cat([k, partner_k[chosen]], 1), torch.cat([v, partner_v[chosen]], 1)
            of_partner = torch.arange(k.shape[1], device=k.device) >= own_k.shape[1]
            absent = ((partner < 0)[:, None] & of_partner)[:, None, :, None]
        scores = self.proj_l(torch.einsum("bmhd,bnhd->bmnh", q * self.scale, k))
        # The bias of either mixture reaches absent keys too, so each is followed by a mask of its own.
        scores = scores if absent is None else scores.masked_fill(absent, float("-inf"))
        maps = self.proj_w(scores.softmax(2))
        maps = maps if absent is None else maps.masked_fill(absent, 0)
        if trace is not None:
            self._record(trace, q, own_k, scores)
        out = torch.einsum("bmnh,bnhd->bmhd", self.attn_drop(maps), v)
        return self.proj_drop(self.proj(out.flatten(2)))

    @torch.no_grad()
    def _record(self, trace: Trace, q: Tensor, k: Tensor, scores: Tensor) -> None:
        """Record queries and keys (B, N, H, C) whose plain attention has the softmax of the mixed scores.

        Σ_i W_hi q_i · k_i is the product of q'_h = (W_h1 q_1, ..., W_hH q_H) and the keys of all heads side
        by side. What proj_l adds to all keys of a head does not change the softmax.
        """
        shift = self.proj_l(q.new_zeros(self.num_heads))
        mixture = self.proj_l(torch.eye(self.num_heads, dtype=q.dtype, device=q.device)) - shift  # (i, h)
        mixed = torch.einsum("bnid,ih->bnhid", q, mixture).flatten(3)
        factor = self.scale * mixed.shape[-1] ** 0.5  # 1/√D as the factor 1/√C of such queries
        lse = (scores.float() if scores.dtype.itemsize < 4 else scores).logsumexp(2) - shift
        trace.record(mixed * factor, _side_by_side(k), lse.transpose(1, 2))


def _side_by_side(k: Tensor) -> Tensor:
    """For each head the keys (B, N, H, D) of all heads: (B, N, H, C), a view."""
    return k.flatten(2)[:, :, None].expand(-1, -1, k.shape[2], -1)


class ClassAttn(PairAttention, TimmClassAttn):
    """timm's attention of the class token to itself and the patches, and to those of the partner."""

    def project_queries(
        self, x: Tensor, positions: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        return self.q(x).unflatten(2, (self.num_heads, -1))

    def project_keys(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.k(x).unflatten(2, (self.num_heads, -1)), self.v(x).unflatten(2, (self.num_heads, -1))


class CaitBlock(ScaledBlock):
    """One stochastic depth serves both residuals."""

    drop_path: Any

    @property
    def drop_path1(self) -> Any:
        return self.drop_path

    @property
    def drop_path2(self) -> Any:
        return self.drop_path


class LayerScaleBlock(CaitBlock, TimmLayerScaleBlock):
    """timm's block of the patches: x + gamma_1 * attention(norm1(x)), then x + gamma_2 * MLP(norm2(x))."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        partner_x: Tensor | None = None,
        *,
        images: Tensor | None = None,
        trace: Trace | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Tokens x (B, 1 + N, C) -> (K, 1 + N, C), arguments as in `PairBlock`."""
        partner_x, own = None if partner_x is None else partner_x[:, 1:], Trace()
        recorded = None if trace is None else own
        patches = super().forward(x[:, 1:], partner_x, images=images, trace=recorded, **arguments)
        if trace is not None:
            trace.record(*_behind_the_class_token(own.take()[0]))
        class_token = x[:, :1] if images is None else x[images, :1]
        return torch.cat([class_token, patches], 1)


class LayerScaleBlockClassAttn(CaitBlock, TimmLayerScaleBlockClassAttn):
    """timm's block of the class token, which attends to itself and the patches."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        *,
        partner_x: Tensor | None = None,
        context: Tensor | None = None,
        images: Tensor | None = None,
        trace: Trace | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Tokens x (B, 1 + N, C) -> (K, 1 + N, C), arguments as in `PairBlock`; with `context` all rows of x
        (B, M, C) attend to it as the class token does.
        """
        if context is not None:
            return super().forward(x, partner_x, context=context, images=images, trace=trace, **arguments)
        own = Trace()
        recorded = None if trace is None else own
        class_token = super().forward(
            x[:, :1], partner_x, context=x, images=images, trace=recorded, **arguments
        )
        if trace is not None:
            trace.record(*_among_patches(own.take()[0]))
        patches = x[:, 1:] if images is None else x[images, 1:]
        return torch.cat([class_token, patches], 1)


def _behind_the_class_token(trace: BlockTrace) -> BlockTrace:
    """The patches' trace as one of all 1 + N tokens, of which the class token attends to itself alone."""
    q, k, lse, _ = trace
    k = pad(k[:, :, 0], (0, 0, 1, 0))[:, :, None].expand(-1, -1, k.shape[2], -1)  # one head's, still a view
    first = torch.arange(k.shape[1], device=k.device) == 0
    bias = _hidden(first[:, None] != first, q.dtype)
    return BlockTrace(pad(q, (0, 0, 0, 0, 1, 0)), k, pad(lse, (1, 0)), bias)


def _among_patches(trace: BlockTrace) -> BlockTrace:
    """The class token's trace as one of all 1 + N tokens, of which a patch attends to itself alone.

    Its queries take the form of the talking heads': no head mixes with another.
    """
    q, k, lse, _ = trace
    N, H = k.shape[1:3]
    q = torch.einsum("bnhd,hi->bnhid", q, torch.eye(H, dtype=q.dtype, device=q.device)).flatten(3) * H**0.5
    token = torch.arange(N, device=q.device)
    bias = _hidden((token[:, None] != token) & (token[:, None] > 0), q.dtype)
    return BlockTrace(pad(q, (0, 0, 0, 0, 0, N - 1)), _side_by_side(k), pad(lse, (0, N - 1)), bias)


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """-inf where mask (N, N) is true, else 0: (1, 1, N, N)."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))[
        None, None
    ]


def embed(model: TimmModule, images: Tensor) -> Tensor:
    """What timm's `forward_features` does before the blocks, and the class token, a weight of the model."""
    patches = model.pos_drop(model.patch_embed(images) + model.pos_embed)
    return torch.cat([model.cls_token.expand(patches.shape[0], -1, -1), patches], 1)


def steps(model: TimmModule) -> list[Step]:
    """The patches' blocks, then the class token's, counted as one sequence."""
    return [Step(block) for block in (*model.blocks, *(model.blocks_token_only or ()))]


def checkpoint_filter(weights: dict[str, Any], model: TimmModule) -> dict[str, Any]:
    """timm's filter of a file's weights, and what it leaves out: positions resampled to the model's grid.

    The file's images have the size that the model's `pretrained_cfg` says, if that gives as many patches.
    """
    weights = timm_filter(weights, model)
    patch, size = model.patch_embed.patch_size, model.pretrained_cfg["input_size"][1:]
    known = size[0] // patch[0], size[1] // patch[1]
    positions, new = weights["pos_embed"], model.patch_embed.grid_size
    resampled = resampled_embedding(positions, 0, grid_of(positions.shape[1], known, new), new)
    return weights if resampled is None else weights | {"pos_embed": resampled}


CAIT = Family(
    Cait,
    {TimmLayerScaleBlock: LayerScaleBlock, TimmLayerScaleBlockClassAttn: LayerScaleBlockClassAttn},
    {TimmTalkingHeadAttn: TalkingHeadAttn, TimmClassAttn: ClassAttn},
    embed,
    steps,
    checkpoint_filter=checkpoint_filter,
)
