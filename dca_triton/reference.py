"""DCAL's attentions and rollout as plain PyTorch: the specification that every test compares with.

Each function is the formula, keeps every attention map in memory and works in the dtype of its inputs.
Shapes: B batch, M queries, N keys, H heads, D head dimension, P prefix tokens, R selected local tokens.
"""

import torch
from torch import Tensor


def attention_weights(q: Tensor, k: Tensor, scale: float | None = None, bias: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ · scale + bias), q (B, M, H, D), k (B, N, H, D) -> (B, H, M, N); scale or 1/√D."""
    return attention_scores(q, k, scale, bias).softmax(-1)


def attention_scores(q: Tensor, k: Tensor, scale: float | None = None, bias: Tensor | None = None) -> Tensor:
    """Q Kᵀ · scale + bias, q (B, M, H, D), k (B, N, H, D) -> (B, H, M, N)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bmhd,bnhd->bhmn", q, k) * scale
    return scores if bias is None else scores + bias


def self_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(Q Kᵀ · scale) V -> (B, M, H, D)."""
    return torch.einsum("bhmn,bnhd->bmhd", attention_weights(q, k, scale), v)


def pair_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    partner_k: Tensor | None = None,
    partner_v: Tensor | None = None,
    partner_index: Tensor | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """PWCA: softmax(Q1 [K1; K2]ᵀ / √D) [V1; V2], one softmax over own and partner's keys (DCAL, eq. 5).

    Same arguments and results as `dca_triton.pair_attention`.
    """
    scores = attention_scores(q, k, scale, bias)
    values = v
    if partner_index is not None:
        partner = partner_index.clamp(min=0)
        partner_scores = attention_scores(q, (k if partner_k is None else partner_k)[partner], scale, bias)
        partner_scores = partner_scores.masked_fill((partner_index < 0)[:, None, None, None], float("-inf"))
        scores = torch.cat([scores, partner_scores], -1)
        values = torch.cat([v, (v if partner_v is None else partner_v)[partner]], 1)
    out = torch.einsum("bhmn,bnhd->bmhd", scores.softmax(-1), values)
    return out, scores.logsumexp(-1)


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """GLCA: softmax(Qˡ Kᵍᵀ / √D) Vᵍ for the selected queries Qˡ (DCAL, eq. 3) -> (B, R, H, D)."""
    if index is not None:
        q = torch.take_along_dim(q, index.long()[:, :, None, None], 1)
    return self_attention(q, k, v, scale)


def rollout(
    attentions: list[Tensor],
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    add_residual: bool = True,
) -> Tensor:
    """Attention rollout Ŝ = S̄_L ⋯ S̄_1, S̄ = 0.5 S + 0.5 I rows renormalized (DCAL, eq. 2; Abnar & Zuidema).

    attentions: (B, H, N, N) of each layer, first to last. head_fusion: "mean", "max" or "min" over the heads.
    discard_ratio: the fraction in [0, 1) of the smallest fused weights of an image that are set to zero,
    never the class token's own column. Returns (B, N, N).
    """
    fusions = {"mean": lambda a: a.mean(1), "max": lambda a: a.amax(1), "min": lambda a: a.amin(1)}
    if not attentions:
        raise ValueError("attentions must hold the maps of at least one layer, got none")
    if head_fusion not in fusions:
        raise ValueError(f"head_fusion must be 'mean', 'max' or 'min', got {head_fusion!r}")
    if not 0 <= discard_ratio < 1:
        raise ValueError(f"discard_ratio must be in [0, 1), got {discard_ratio!r}")
    fuse, result = fusions[head_fusion], None
    for attention in attentions:
        fused = fuse(attention)
        if discard_ratio > 0:
            fused = _discard_smallest(fused, discard_ratio)
        if add_residual:
            fused = 0.5 * fused + 0.5 * torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
        fused = fused / fused.sum(-1, keepdim=True)
        result = fused if result is None else fused @ result
    assert result is not None
    return result


def _discard_smallest(fused: Tensor, ratio: float) -> Tensor:
    flat = fused.flatten(1)
    smallest = flat.topk(int(flat.shape[1] * ratio), largest=False).indices
    dropped = flat.scatter(1, smallest, 0.0).view_as(fused)
    return torch.cat([fused[..., :1], dropped[..., 1:]], -1)


def rollout_row(
    qs: list[Tensor],
    ks: list[Tensor],
    lses: list[Tensor],
    scale: float | None = None,
    row: Tensor | None = None,
    biases: list[Tensor] | None = None,
) -> Tensor:
    """One row of the rollout without a matrix product: r <- 0.5 r + 0.5 mean_h(r P_l,h), l = L..1 -> (B, N).

    Same arguments as `dca_triton.rollout_row`, in the dtype of `qs`; the last layer's queries may be the
    class token's alone, because the unit vector has no other row.
    """
    B, N = ks[-1].shape[:2]
    if row is None:
        row = torch.zeros(B, N, dtype=qs[-1].dtype, device=qs[-1].device)
        row[:, 0] = 1
    no_biases: list[None] = [None] * len(qs)
    layers = zip(qs, ks, lses, biases or no_biases, strict=True)
    for q, k, lse, bias in reversed([*layers]):
        weights = (attention_scores(q, k, scale, bias) - lse[..., None]).exp()
        row = 0.5 * row + 0.5 * torch.einsum("bm,bhmn->bhn", row[:, : q.shape[1]], weights).mean(1)
    return row


def num_local(num_patches: int, top_k_ratio: float) -> int:
    """R = max(1, int((N - P) · ratio)): how many patch tokens GLCA selects."""
    return max(1, int(num_patches * top_k_ratio))


def select_local(row: Tensor, num_prefix: int, top_k_ratio: float) -> Tensor:
    """The class token, then the R patch tokens of highest rollout: row (B, N) -> int64 (B, 1 + R)."""
    count = num_local(row.shape[1] - num_prefix, top_k_ratio)
    patches = row[:, num_prefix:].topk(count).indices + num_prefix
    return torch.cat([patches.new_zeros(patches.shape[0], 1), patches], 1)


def read_out(tokens: Tensor, local: Tensor, readout: str) -> Tensor:
    """A branch's embedding: the class token of `tokens` (B, M, C), the mean of its `local` rows (B, R, C), or
    both side by side (B, 2C); `readout` is "class", "local" or "both".
    """
    parts = {"class": [tokens[:, 0]], "local": [local.mean(1)], "both": [tokens[:, 0], local.mean(1)]}
    return torch.cat(parts[readout], 1)
