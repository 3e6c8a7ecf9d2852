"""Dual cross-attention learning (DCAL, CVPR 2022) for vision transformers, made fast with Triton kernels."""

from .losses import UncertaintyWeightedLoss
from .model import DualAttentionModel
from .ops import local_attention, pair_attention, rollout_row
from .pairs import PairSampler
from .training import DualAttentionTrainer

__all__ = [
    "DualAttentionModel",
    "DualAttentionTrainer",
    "PairSampler",
    "UncertaintyWeightedLoss",
    "local_attention",
    "pair_attention",
    "rollout_row",
]
