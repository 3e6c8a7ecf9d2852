"""Pictures: training curves, rankings, confusions, and overlays of rollout and attention."""

from ..model import Explanation, distractor_share, explain
from .confusion import confusion_matrix, draw_confusions
from .curves import training_curves
from .gallery import Framed
from .overlays import heat_map, patch_boxes, rollout_overlays
from .ranking import RankedQuery, cmc_curves, draw_rankings
from .sheet import visualize

__all__ = [
    "Explanation",
    "Framed",
    "RankedQuery",
    "cmc_curves",
    "confusion_matrix",
    "distractor_share",
    "draw_confusions",
    "draw_rankings",
    "explain",
    "heat_map",
    "patch_boxes",
    "rollout_overlays",
    "training_curves",
    "visualize",
]
