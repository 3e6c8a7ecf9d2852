"""The classification head of a branch, and the width of what it reads."""

from typing import Literal, get_args

from torch import nn

from ..branches import Readout
from .blocks import init_linears

Head = Literal["linear", "mlp", "bnneck"]
HEADS: tuple[Head, ...] = get_args(Head)


def width_of(readout: Readout, C: int) -> int:
    """E, the features of a branch's embedding."""
    return 2 * C if readout == "both" else C


def branch_head(dim: int, num_classes: int, task_type: str, head: Head | None = None) -> nn.Module:
    """Embeddings (B, E) -> logits (B, K).

    Args:
        dim: E.
        num_classes: K.
        task_type: "fgvc" or "reid".
        head: "linear", the default for fgvc. "mlp": Linear-BatchNorm1d-ReLU-Linear, the default for reid.
            "bnneck": BatchNorm1d without a bias that learns, then Linear without a bias (Luo et al., 2019,
            and TransReID); the metric loss sees the embedding before the norm.
    """
    if head is None:
        head = "mlp" if task_type == "reid" else "linear"
    if head == "bnneck":
        return _bnneck(dim, num_classes)
    layer: nn.Module = nn.Linear(dim, num_classes)
    if head == "mlp":
        layer = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.ReLU(), layer)
    init_linears(layer)
    return layer


def _bnneck(dim: int, num_classes: int) -> nn.Module:
    norm, classifier = nn.BatchNorm1d(dim), nn.Linear(dim, num_classes, bias=False)
    norm.bias.requires_grad_(False)
    nn.init.normal_(classifier.weight, std=0.001)  # as in both
    return nn.Sequential(norm, classifier)
