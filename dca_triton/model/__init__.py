"""The dual cross-attention model, its inspection and its export."""

from .deployment import Predictor, export_predictor
from .dual_attention import DualAttentionModel
from .export import export_onnx, export_program
from .inspection import Explanation, distractor_share, explain
from .rollout import RolloutCache

__all__ = [
    "DualAttentionModel",
    "Explanation",
    "Predictor",
    "RolloutCache",
    "distractor_share",
    "explain",
    "export_onnx",
    "export_predictor",
    "export_program",
]
