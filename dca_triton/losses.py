"""The losses of DCAL: one per branch, and their weighting by learnt uncertainty."""

import math
from collections.abc import Mapping
from typing import Literal, TypedDict, get_args

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn
from torch.nn import functional as F

from dca_triton.ops.checks import check_range

BRANCHES = ("sa", "glca", "pwca")
TaskType = Literal["fgvc", "reid"]


class WeightedLosses(TypedDict):
    """What `UncertaintyWeightedLoss` answers; the two dicts are keyed by branch: "sa", "glca", "pwca"."""

    total_loss: Tensor
    weighted_losses: dict[str, Tensor]
    weights: dict[str, Tensor]


class UncertaintyWeightedLoss(nn.Module):
    """1/2 sum_i (exp(-w_i) L_i + w_i) over the branches i (Kendall et al., CVPR 2018, as in DCAL).

    `log_vars` (3,) float32 holds w of SA, GLCA and PWCA in this order. It is a parameter, starts at 0 and has
    to be given to the optimizer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_vars = nn.Parameter(torch.zeros(len(BRANCHES)))

    def forward(self, losses: Mapping[str, Tensor]) -> WeightedLosses:
        """Weigh any non-empty subset of the branches' losses; a branch that is absent adds nothing.

        Args:
            losses: scalars named "sa", "glca", "pwca", each name with or without the suffix "_loss".

        Returns:
            total_loss: scalar, the sum of weighted_losses.
            weighted_losses: per branch (exp(-w) L + w) / 2.
            weights: per branch exp(-w), detached.

        Raises:
            ValueError: an unknown name, a name given twice, a loss that is no scalar, or no loss at all.
        """
        named = _by_branch(losses)
        log_vars = {branch: self.log_vars[BRANCHES.index(branch)] for branch in named}
        weighted = {i: 0.5 * (torch.exp(-w) * named[i] + w) for i, w in log_vars.items()}
        return {
            "total_loss": torch.stack(list(weighted.values())).sum(),
            "weighted_losses": weighted,
            "weights": {i: torch.exp(-w.detach()) for i, w in log_vars.items()},
        }

    def get_current_weights(self) -> dict[str, float]:
        """exp(-w) as `sa_loss_weight` and w as `sa_loss_log_var`, and so for "glca" and "pwca"."""
        current = {}
        for branch, w in zip(BRANCHES, self.log_vars.tolist(), strict=True):
            current[f"{branch}_loss_weight"] = math.exp(-w)
            current[f"{branch}_loss_log_var"] = w
        return current


class BranchLoss(nn.Module):
    """The loss of each branch: cross entropy, and for "reid" a batch-hard triplet loss besides.

    The triplet loss (Hermans et al., 2017) takes Euclidean distances between class tokens as they are, not
    normalised, and is the mean over the triplets that violate the margin, 0 where none does or the batch
    holds no triplet.

    Args:
        task_type: "fgvc" or "reid".
        label_smoothing: in [0, 1].
        triplet_margin: finite and at least 0; of "reid" only.

    Raises:
        ValueError: naming every argument outside its range.
    """

    def __init__(
        self, task_type: TaskType = "fgvc", label_smoothing: float = 0.0, triplet_margin: float = 0.3
    ) -> None:
        super().__init__()
        faults = []
        if task_type not in get_args(TaskType):
            faults.append(f"task_type is {task_type!r}; allowed are 'fgvc' and 'reid'")
        if not 0 <= label_smoothing <= 1:
            faults.append(f"label_smoothing is {label_smoothing}; allowed are 0 to 1")
        if not 0 <= triplet_margin < math.inf:
            faults.append(f"triplet_margin is {triplet_margin}; allowed is a finite number of at least 0")
        _raise(faults)
        self.task_type = task_type
        self.label_smoothing = label_smoothing
        distance = LpDistance(normalize_embeddings=False)
        self.miner = BatchHardMiner(distance=distance)
        self.triplet = TripletMarginLoss(margin=triplet_margin, distance=distance)

    def forward(self, outputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Scalar losses "sa", "glca" and, where the model ran its PWCA branch, "pwca".

        Args:
            outputs: what the model returns: {sa,glca,pwca}_logits (B, K), of which pwca may be absent, and
                for "reid" {sa,glca,pwca}_features (B, N, C) with the class token in row 0, N at least 1.
            labels: (B,) int64 in [0, K).

        Raises:
            ValueError: missing outputs, other shapes or dtypes, labels out of range (on a GPU the range is
                asserted without waiting for it).
        """
        present = [i for i in BRANCHES if i != "pwca" or "pwca_logits" in outputs]
        _raise(self._faults(outputs, labels, present))
        check_range("labels", labels, 0, outputs["sa_logits"].shape[1])
        return {branch: self._branch(outputs, labels, branch) for branch in present}

    def _branch(self, outputs: Mapping[str, Tensor], labels: Tensor, branch: str) -> Tensor:
        logits = outputs[f"{branch}_logits"]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.task_type == "fgvc":
            return loss
        cls = outputs[f"{branch}_features"][:, 0]
        cls = cls.to(torch.promote_types(cls.dtype, torch.float32))  # half-precision distances overflow
        return loss + self.triplet(cls, labels, self.miner(cls, labels))

    def _faults(self, outputs: Mapping[str, Tensor], labels: Tensor, present: list[str]) -> list[str]:
        kinds = {"logits": "(B, K)"} | ({"features": "(B, N, C)"} if self.task_type == "reid" else {})
        names = {f"{i}_{kind}": shape for i in present for kind, shape in kinds.items()}
        missing = [name for name in names if name not in outputs]
        if missing:
            return [f"outputs holds {sorted(outputs)}; missing for {self.task_type!r} are {missing}"]
        faults = []
        if labels.dim() != 1 or not labels.numel() or labels.dtype != torch.int64:
            faults.append(f"labels is {tuple(labels.shape)} {labels.dtype}; allowed is (B,) int64, B >= 1")
        K = outputs["sa_logits"].shape[-1:]
        for name, shape in names.items():
            tensor = outputs[name]
            wrong = tensor.dim() != shape.count(",") + 1 or tensor.shape[:1] != labels.shape[:1]
            if wrong or 0 in tensor.shape or ("logits" in name and tensor.shape[-1:] != K):
                faults.append(
                    f"outputs[{name!r}] is {tuple(tensor.shape)}; allowed is {shape}, no size 0, "
                    f"with labels' B, {tuple(labels.shape)}, and one K for all branches, that of sa_logits"
                )
            if tensor.device != labels.device:
                faults.append(
                    f"outputs[{name!r}] is on {tensor.device}; allowed is labels' device, {labels.device}"
                )
        return faults


def _by_branch(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    faults, named = [], {}
    for name, loss in losses.items():
        branch = name.removesuffix("_loss")
        if branch not in BRANCHES:
            faults.append(f"losses holds {name!r}; allowed are {BRANCHES}, with or without '_loss'")
        if branch in named:
            faults.append(f"losses holds {branch!r} twice, with and without '_loss'; allowed is one of them")
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            faults.append(f"losses[{name!r}] is {what}; allowed is a scalar tensor, shape ()")
        named[branch] = loss
    if not losses:
        faults.append(f"losses is empty; allowed is any non-empty subset of {BRANCHES}")
    _raise(faults)
    return named


def _raise(faults: list[str]) -> None:
    if faults:
        raise ValueError("; ".join(faults))
