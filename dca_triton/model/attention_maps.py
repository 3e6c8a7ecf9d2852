"""Attention maps from the traces of a forward pass: the only place that forms N x N matrices."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import reference
from .blocks import BlockTrace


def attention_maps(sa: Sequence[BlockTrace], local: Sequence[BlockTrace], selected: Tensor) -> dict[str, Any]:
    """Return the maps of every SA and GLCA block, under the reference's names.

    Args:
        sa: A trace of each SA block, without partners.
        local: A trace of each GLCA block.
        selected: The rows that GLCA computed (B, 1 + R).
    """
    weights = [_map_of(trace) for trace in sa]
    return {
        "sa_attention_weights": weights,
        "accumulated_attention": reference.rollout(weights),
        "glca_attention_maps": {
            f"glca_block_{i}": {"attention_map": _map_of(trace), "selected_indices": selected}
            for i, trace in enumerate(local)
        },
    }


def _map_of(trace: BlockTrace) -> Tensor:
    """softmax(Q Kᵀ / √D + bias) (B, H, M, N) of a block without partners."""
    scores = reference.attention_scores(trace.q, trace.k, bias=trace.bias)
    return (scores - trace.lse[..., None]).exp()
