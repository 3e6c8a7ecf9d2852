"""Embeddings, scores and metrics."""

from ..branches import Metric
from .distances import k_reciprocal_rerank, squared_distances
from .embeddings import Embeddings, embed, load_embeddings, save_embeddings
from .expansion import expand_queries
from .flip import flip_averaged
from .metrics import ReidMetrics, reid_metrics, topk_accuracy
from .rankings import Rankings, cmc_curve, rank_embeddings
from .scores import SCORES, evaluate_fgvc, evaluate_reid, predict, score_embeddings, score_table

__all__ = [
    "SCORES",
    "Embeddings",
    "Metric",
    "Rankings",
    "ReidMetrics",
    "cmc_curve",
    "embed",
    "evaluate_fgvc",
    "evaluate_reid",
    "expand_queries",
    "flip_averaged",
    "k_reciprocal_rerank",
    "load_embeddings",
    "predict",
    "rank_embeddings",
    "reid_metrics",
    "save_embeddings",
    "score_embeddings",
    "score_table",
    "squared_distances",
    "topk_accuracy",
]
