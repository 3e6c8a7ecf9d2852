"""Embeddings, scores and metrics."""

from .distances import k_reciprocal_rerank, squared_distances
from .embeddings import Embeddings, embed, load_embeddings, save_embeddings
from .expansion import expand_queries
from .flip import flip_averaged
from .metrics import ReidMetrics, reid_metrics, topk_accuracy
from .scores import SCORES, Metric, evaluate_fgvc, evaluate_reid, score_embeddings, score_table

__all__ = [
    "SCORES",
    "Embeddings",
    "Metric",
    "ReidMetrics",
    "embed",
    "evaluate_fgvc",
    "evaluate_reid",
    "expand_queries",
    "flip_averaged",
    "k_reciprocal_rerank",
    "load_embeddings",
    "reid_metrics",
    "save_embeddings",
    "score_embeddings",
    "score_table",
    "squared_distances",
    "topk_accuracy",
]
