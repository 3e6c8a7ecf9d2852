"""The losses of pytorch-metric-learning on a branch's embeddings, by name."""

from typing import Literal, get_args

from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ArcFaceLoss, CircleLoss, CosFaceLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn

MetricLoss = Literal["triplet", "soft_margin_triplet", "circle", "arcface", "cosface"]
METRIC_LOSSES: tuple[MetricLoss, ...] = get_args(MetricLoss)
CLASS_WEIGHTS = {"arcface": ArcFaceLoss, "cosface": CosFaceLoss}  # these have a weight for each class


class BatchHardTripletLoss(nn.Module):
    """The batch-hard triplet loss on Euclidean distances, without normalizing (Hermans et al., 2017).

    The mean over the triplets that violate the margin; 0 if none does or the batch holds no triplet.

    Args:
        margin: Finite, >= 0; None takes the soft margin log(1 + exp(d_positive - d_negative)), whose mean is
            over all triplets.
    """

    def __init__(self, margin: float | None = 0.3) -> None:
        super().__init__()
        distance = LpDistance(normalize_embeddings=False)
        self.miner = BatchHardMiner(distance=distance)
        if margin is None:
            soft = {"margin": 0.0, "smooth_loss": True, "reducer": MeanReducer()}
            self.triplet = TripletMarginLoss(distance=distance, **soft)
        else:
            self.triplet = TripletMarginLoss(margin=margin, distance=distance)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Embeddings x (B, E) of classes `labels` (B,) -> the scalar loss."""
        return self.triplet(x, labels, self.miner(x, labels))


def make_metric_loss(name: str, margin: float, num_classes: int | None, width: int | None) -> nn.Module:
    """Make one of `METRIC_LOSSES`, called with embeddings (B, E) and labels (B,).

    Args:
        name: The loss. "circle" has m = 0.25 and gamma = 128, the values of its authors (Sun et al., CVPR
            2020) for persons; "arcface" and "cosface" have pytorch-metric-learning's defaults.
        margin: Of "triplet".
        num_classes: K, for "arcface" and "cosface".
        width: E, for "arcface" and "cosface".
    """
    if name in CLASS_WEIGHTS:
        return CLASS_WEIGHTS[name](num_classes=num_classes, embedding_size=width)
    if name == "circle":
        return CircleLoss(m=0.25, gamma=128)
    return BatchHardTripletLoss(margin if name == "triplet" else None)
