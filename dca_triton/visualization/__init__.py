"""Pictures: training curves, and overlays of rollout, local attention and pair attention."""

from ..model import Explanation, distractor_share, explain
from .curves import training_curves
from .overlays import heat_map, patch_boxes, rollout_overlays
from .sheet import visualize

__all__ = [
    "Explanation",
    "distractor_share",
    "explain",
    "heat_map",
    "patch_boxes",
    "rollout_overlays",
    "training_curves",
    "visualize",
]
