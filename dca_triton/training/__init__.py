"""Losses, partner sampling and the trainer."""

from typing import TYPE_CHECKING

from ..lazy import lazy_face

if TYPE_CHECKING:
    from .loader import SeededDataset, training_loader
    from .losses import BranchLoss, UncertaintyWeightedLoss
    from .pairs import PairSampler
    from .trainer import DualAttentionTrainer

__all__ = [
    "BranchLoss",
    "DualAttentionTrainer",
    "PairSampler",
    "SeededDataset",
    "UncertaintyWeightedLoss",
    "training_loader",
]

# Lazy, because the losses and pairs of your own training loop need neither Accelerate nor the trainer.
_MODULE_OF = {
    "BranchLoss": ".losses",
    "DualAttentionTrainer": ".trainer",
    "PairSampler": ".pairs",
    "SeededDataset": ".loader",
    "UncertaintyWeightedLoss": ".losses",
    "training_loader": ".loader",
}

__getattr__, __dir__ = lazy_face(__name__, _MODULE_OF)
