"""Dual cross-attention learning (DCAL, CVPR 2022) for vision transformers, made fast with Triton kernels.

Names load on first use: `import dca_triton` alone does not load PyTorch, and the operations load no more
than PyTorch.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_face

if TYPE_CHECKING:
    from .model import DualAttentionModel
    from .ops import local_attention, pair_attention, rollout_row
    from .training import DualAttentionTrainer, PairSampler, UncertaintyWeightedLoss

    __version__: str

__all__ = [
    "DualAttentionModel",
    "DualAttentionTrainer",
    "PairSampler",
    "UncertaintyWeightedLoss",
    "local_attention",
    "pair_attention",
    "rollout_row",
]

_MODULE_OF = {
    "DualAttentionModel": ".model",
    "DualAttentionTrainer": ".training.trainer",
    "PairSampler": ".training.pairs",
    "UncertaintyWeightedLoss": ".training.losses",
    "__version__": ".version",
    "local_attention": ".ops",
    "pair_attention": ".ops",
    "rollout_row": ".ops",
}

__getattr__, __dir__ = lazy_face(__name__, _MODULE_OF)
