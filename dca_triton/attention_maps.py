"""Attention maps of a model for pictures and analysis: the one place that keeps N x N matrices."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import reference
from .layouts import Call
from .modules import Attended
from .rollout import rollout_of

if TYPE_CHECKING:
    from .model import DualAttentionModel


@torch.no_grad()
def attention_maps(model: "DualAttentionModel", images: Tensor) -> dict[str, Any]:
    """The maps of every branch, under the reference's names (see `DualAttentionModel.get_attention_maps`)."""
    left: list[Attended] = []
    projected: list[list[Tensor]] = [[] for _ in model.glca_blocks]
    scale = model.attention_scale

    def keep(attended: list[Attended]) -> Tensor:
        left.extend(attended)
        return rollout_of(attended, scale, model.backend)

    hooks = [
        linear.register_forward_hook(lambda _, __, y, found=found: found.append(y))
        for block, found in zip(model.glca_blocks, projected, strict=True)
        for linear in _projections(block)
    ]
    try:
        branches = model.branches(Call(images, None, None, False, model.backend), keep)
    finally:
        for hook in hooks:
            hook.remove()
    assert branches.selected is not None
    weights = [(reference.attention_scores(q, k, scale) - lse[..., None]).exp() for q, k, lse in left]
    return {
        "sa_attention_weights": weights,
        "accumulated_attention": reference.rollout(weights),
        "glca_attention_maps": {
            f"glca_block_{i}": {
                "attention_map": _local_map(block, found, branches.selected),
                "selected_indices": branches.selected,
            }
            for i, (block, found) in enumerate(zip(model.glca_blocks, projected, strict=True))
        },
    }


def _projections(block: Any) -> list[nn.Module]:
    return [block.attn.qkv] if hasattr(block, "attn") else [block.glca.q_proj, block.glca.k_proj]


def _local_map(block: Any, projected: list[Tensor], selected: Tensor) -> Tensor:
    if hasattr(block, "attn"):
        attn = block.attn
        q, k, _ = projected[0].unflatten(2, (3, attn.num_heads, attn.head_dim)).unbind(2)
        q = torch.take_along_dim(attn.q_norm(q), selected[:, :, None, None], 1)
        return reference.attention_weights(q, attn.k_norm(k), attn.scale)
    q, k = (t.unflatten(2, (block.glca.num_heads, -1)) for t in projected)
    return reference.attention_weights(q, k)
