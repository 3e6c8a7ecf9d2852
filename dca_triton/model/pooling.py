"""What stands for an image where a model of timm has no class token: the pooling of its own head."""

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor

from .family import TimmModule


def pooling_of(model: TimmModule) -> str:
    """What stands for an image: its "class" token, or timm's pooling "avg" or "map"."""
    if getattr(model, "cls_token", None) is not None:
        return "class"
    return "avg" if getattr(model, "attn_pool", None) is None else "map"


def pooling_faults(model: TimmModule, known: bool) -> list[str]:
    """Reasons why nothing stands for an image; `known`: it is of a family whose pooling is known."""
    if getattr(model, "cls_token", None) is not None and getattr(model, "num_prefix_tokens", 0) > 0:
        return []
    if not known:
        return ["it has no class token"]
    if model.global_pool not in ("avg", "map"):
        return [f"it has no class token, and it pools by {model.global_pool!r}, not by 'avg' or 'map'"]
    head = getattr(model, "attn_pool", None)
    if model.global_pool == "map" and not (
        isinstance(head, AttentionPoolLatent) and head.latent_len == 1 and head.pos_embed is None
    ):
        return ["it has no class token, and its pooling head has several queries or positions of its own"]
    return []


def pooled_from(model: TimmModule) -> int:
    """The first token that timm's pooling reads; the "map" head of an Eva reads registers too."""
    reads_prefix = getattr(model, "pool_include_prefix", getattr(model, "attn_pool", None) is not None)
    return 0 if reads_prefix else getattr(model, "num_prefix_tokens", 0)


def pooling_weights(head: TimmModule, x: Tensor) -> Tensor:
    """softmax(q Kᵀ / √D) of a head's one query over tokens x (B, N, C), averaged over its heads: (B, N)."""
    q = head.q_norm(head.q(head.latent).unflatten(2, (head.num_heads, head.head_dim)))[0, 0]  # (H, D)
    k = head.k_norm(head.kv(x).unflatten(2, (2, head.num_heads, head.head_dim))[:, :, 0])
    return (torch.einsum("hd,bnhd->bhn", q, k).float() * head.scale).softmax(-1).mean(1)
