"""Pictures: a run's curves, and what rollout, the local attention and the pairs' attention look at."""

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
