"""The losses of DCAL: one per branch, and their weighting by learned uncertainty."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, get_args

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import choice, number, raise_faults, violations
from ..ops.checks import check_range

BRANCHES = ("sa", "glca", "pwca")
TaskType = Literal["fgvc", "reid"]

ARGUMENT_RULES = {
    "task_type": choice(*get_args(TaskType)),
    "label_smoothing": number(lambda v: 0 <= v <= 1, "in [0, 1]"),
    "triplet_margin": number(lambda v: v >= 0, "a finite number >= 0"),
}


class WeightedLosses(TypedDict):
    """What `UncertaintyWeightedLoss` returns; `name` below is the name that a loss was given with."""

    total_loss: Tensor
    weighted_losses: dict[str, Tensor]  # name
    weights: dict[str, Tensor]  # name_weight and name_log_var


class UncertaintyWeightedLoss(nn.Module):
    """1/2 sum_i (exp(-w_i) L_i + w_i) over the branches i (Kendall et al., CVPR 2018, as in DCAL).

    `log_vars` (num_tasks,) float32 holds w of SA, GLCA and PWCA, in this order. It is a parameter: pass it to
    the optimizer.

    Args:
        num_tasks: How many of SA, GLCA and PWCA are weighted, in this order; 1, 2 or 3.
        init_log_vars: Initial `log_vars`, num_tasks finite numbers; zeros by default.

    Raises:
        ValueError: Arguments outside their range, all of them at once.
    """

    def __init__(self, num_tasks: int = 3, init_log_vars: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        faults = []
        if type(num_tasks) is not int or not 1 <= num_tasks <= len(BRANCHES):
            faults.append(f"num_tasks must be 1, 2 or 3, got {num_tasks!r}")
        initial = [0.0] * len(BRANCHES) if init_log_vars is None else _numbers(init_log_vars)
        count = num_tasks if not faults else "num_tasks"
        if init_log_vars is not None and (initial is None or (not faults and len(initial) != num_tasks)):
            faults.append(f"init_log_vars must be {count} finite numbers or None, got {init_log_vars!r}")
        raise_faults(faults)
        assert initial is not None
        self.log_vars = nn.Parameter(torch.tensor(initial[:num_tasks]))

    def forward(self, losses: Mapping[str, Tensor]) -> WeightedLosses:
        """Weight any non-empty subset of the branches' losses; an absent branch adds nothing.

        Args:
            losses: Scalars named "sa", "glca", "pwca", each name with or without the suffix "_loss".

        Returns:
            total_loss: Scalar, the sum of weighted_losses.
            weighted_losses: (exp(-w) L + w) / 2 of each loss, under the name that it was given with.
            weights: For a loss given as `name`, exp(-w) as `name_weight` and w as `name_log_var`, detached.

        Raises:
            ValueError: Unknown names, a branch named twice, losses that are not scalars, or no loss at all.
        """
        raise_faults(self._faults(losses))
        log_vars = {name: self.log_vars[BRANCHES.index(_branch_of(name))] for name in losses}
        weighted = {name: 0.5 * (torch.exp(-w) * losses[name] + w) for name, w in log_vars.items()}
        weights = {}
        for name, w in log_vars.items():
            weights[f"{name}_weight"] = torch.exp(-w.detach())
            weights[f"{name}_log_var"] = w.detach().clone()
        total = torch.stack(list(weighted.values())).sum()
        return {"total_loss": total, "weighted_losses": weighted, "weights": weights}

    def get_current_weights(self) -> dict[str, float]:
        """exp(-w) as `sa_loss_weight` and w as `sa_loss_log_var`; the same for "glca" and "pwca"."""
        current = {}
        for branch, w in zip(BRANCHES, self.log_vars.tolist(), strict=False):
            current[f"{branch}_loss_weight"] = math.exp(-w)
            current[f"{branch}_loss_log_var"] = w
        return current

    def _faults(self, losses: Mapping[str, Tensor]) -> list[str]:
        known = BRANCHES[: len(self.log_vars)]
        if not losses:
            return [f"losses must hold at least one of {', '.join(known)}, got none"]
        faults = []
        branches = [_branch_of(name) for name in losses]
        for (name, loss), branch in zip(losses.items(), branches, strict=True):
            if branch not in known:
                faults.append(
                    f"names in losses must be of {', '.join(known)}, with or without '_loss', got {name!r}"
                )
            if branches.count(branch) > 1:
                faults.append(f"losses must name {branch!r} once, got it with and without '_loss'")
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                got = tuple(loss.shape) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
                faults.append(f"losses[{name!r}] must be a scalar tensor, shape (), got {got}")
        return faults


class BranchLoss(nn.Module):
    """The loss of each branch: cross entropy, plus a batch-hard triplet loss for "reid".

    The triplet loss (Hermans et al., 2017) takes Euclidean distances between class tokens without normalizing
    them. It is the mean over the triplets that violate the margin, and 0 if none does or the batch holds no
    triplet.

    Args:
        task_type: "fgvc" or "reid".
        label_smoothing: In [0, 1].
        triplet_margin: Finite, >= 0; for "reid" only.

    Raises:
        ValueError: Arguments outside their range, all of them at once.
    """

    def __init__(
        self, task_type: TaskType = "fgvc", label_smoothing: float = 0.0, triplet_margin: float = 0.3
    ) -> None:
        super().__init__()
        raise_faults(violations(locals(), ARGUMENT_RULES))
        self.task_type = task_type
        self.label_smoothing = label_smoothing
        distance = LpDistance(normalize_embeddings=False)
        self.miner = BatchHardMiner(distance=distance)
        self.triplet = TripletMarginLoss(margin=triplet_margin, distance=distance)

    def forward(self, outputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Scalar losses "sa", "glca" and, if the model ran its PWCA branch, "pwca".

        Args:
            outputs: What the model returns: {sa,glca,pwca}_logits (B, K), where pwca is optional, and for
                "reid" {sa,glca,pwca}_features (B, N, C) with the class token in row 0, N >= 1.
            labels: (B,) int64 in [0, K).

        Raises:
            ValueError: Missing outputs, wrong shapes or dtypes, labels out of range (on a GPU the range is
                asserted without a wait).
        """
        present = [i for i in BRANCHES if i != "pwca" or "pwca_logits" in outputs]
        raise_faults(self._faults(outputs, labels, present))
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
        shapes = {f"{branch}_{kind}": shape for branch in present for kind, shape in kinds.items()}
        if missing := [name for name in shapes if name not in outputs]:
            return [f"outputs must hold {', '.join(missing)} for {self.task_type!r}, got {sorted(outputs)}"]
        faults = []
        if labels.dim() != 1 or not labels.numel() or labels.dtype != torch.int64:
            faults.append(f"labels must be (B,) int64 with B >= 1, got {tuple(labels.shape)} {labels.dtype}")
        K = outputs["sa_logits"].shape[-1:]
        for name, shape in shapes.items():
            tensor = outputs[name]
            wrong = tensor.dim() != shape.count(",") + 1 or tensor.shape[:1] != labels.shape[:1]
            if wrong or 0 in tensor.shape or ("logits" in name and tensor.shape[-1:] != K):
                faults.append(
                    f"outputs[{name!r}] must be {shape} without a size 0, with the B of labels, "
                    f"{tuple(labels.shape)}, and the K of sa_logits, got {tuple(tensor.shape)}"
                )
            if tensor.device != labels.device:
                faults.append(
                    f"outputs[{name!r}] must be on the device of labels, {labels.device}, got {tensor.device}"
                )
        return faults


def _branch_of(name: str) -> str:
    return str(name).removesuffix("_loss")


def _numbers(values: object) -> list[float] | None:
    """A sequence or 1-D tensor of finite numbers as floats, or None."""
    try:
        tensor = torch.as_tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor.tolist() if tensor.dim() == 1 and bool(tensor.isfinite().all()) else None
