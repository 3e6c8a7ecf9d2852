"""The losses of DCAL: one per branch, and their weighting by learned uncertainty."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import Rule, choice, integer, number, optional, raise_faults, violations
from ..branches import BRANCHES, Task
from ..ops.values import check_range
from ..tensor_arguments import tensor_violations
from .metric_losses import CLASS_WEIGHTS, METRIC_LOSSES, MetricLoss, make_metric_loss

NUM_TASKS: Rule = (lambda n: type(n) is int and 1 <= n <= len(BRANCHES), "1, 2 or 3")
ARGUMENT_RULES = {
    "task_type": choice(*get_args(Task)),
    "label_smoothing": number(lambda v: 0 <= v <= 1, "in [0, 1]"),
    "triplet_margin": number(lambda v: v >= 0, "a finite number >= 0"),
    "metric_loss": choice(*METRIC_LOSSES),
}
CLASS_WEIGHT_RULES: dict[str, Rule] = {
    "num_classes": integer(1),
    "widths": (
        lambda v: isinstance(v, Mapping) and set(v) <= set(BRANCHES) and all(map(integer(1)[0], v.values())),
        f"a dict of integers >= 1 by {', '.join(BRANCHES)}",
    ),
}


class WeightedLosses(TypedDict):
    """The result of `UncertaintyWeightedLoss`; `name` stands for the name of each loss in its argument."""

    total_loss: Tensor
    weighted_losses: dict[str, Tensor]  # name
    weights: dict[str, Tensor]  # name_weight and name_log_var


class UncertaintyWeightedLoss(nn.Module):
    """1/2 sum_i (exp(-w_i) L_i + w_i) over the branches i (Kendall et al., CVPR 2018, as in DCAL).

    `log_vars` (num_tasks,) float32 holds w of SA, GLCA and PWCA, in this order. It is a parameter: pass it to
    the optimizer, without weight decay.

    Args:
        num_tasks: The number of losses to weight, in the order SA, GLCA, PWCA; 1, 2 or 3.
        init_log_vars: Initial `log_vars`, num_tasks finite numbers; zeros by default.

    Raises:
        ValueError: Arguments outside their range, all of them at once.
    """

    def __init__(self, num_tasks: int = 3, init_log_vars: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        arguments = {"num_tasks": num_tasks, "init_log_vars": init_log_vars}
        faults = violations(arguments, {"num_tasks": NUM_TASKS})
        numbers = _finite_numbers(None if faults else num_tasks)
        raise_faults(faults + violations(arguments, {"init_log_vars": optional(numbers)}))
        initial = [0.0] * num_tasks if init_log_vars is None else [float(w) for w in init_log_vars]
        self.log_vars = nn.Parameter(torch.tensor(initial, dtype=torch.float32))

    def forward(self, losses: Mapping[str, Tensor]) -> WeightedLosses:
        """Weight any non-empty subset of the branches' losses; an absent branch adds nothing.

        Args:
            losses: Scalars named "sa", "glca", "pwca", each name with or without the suffix "_loss".

        Returns:
            total_loss: Scalar, the sum of weighted_losses.
            weighted_losses: (exp(-w) L + w) / 2 of each loss, under the same name.
            weights: For each loss `name`, exp(-w) as `name_weight` and w as `name_log_var`, detached.

        Raises:
            ValueError: Unknown names, a branch named twice, losses that are not scalars, or no loss at all.
        """
        raise_faults(self._violations(losses))
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

    def _violations(self, losses: Mapping[str, Tensor]) -> list[str]:
        known = BRANCHES[: len(self.log_vars)]
        if not losses:
            return [f"losses must hold at least one of {', '.join(known)}, got none"]
        faults = []
        branches = [_branch_of(name) for name in losses]
        for name, branch in zip(losses, branches, strict=True):
            if branch not in known:
                rule = f"{', '.join(known)}, with or without '_loss'"
                faults.append(f"names in losses must be of {rule}, got {name!r}")
            if branches.count(branch) > 1:
                faults.append(f"losses must name {branch!r} once, got it with and without '_loss'")
        scalars = {f"losses[{name!r}]": loss for name, loss in losses.items()}
        return faults + tensor_violations(scalars, dict.fromkeys(scalars, "floating-point ()"))


class BranchLoss(nn.Module):
    """The loss of each branch: cross entropy, plus for "reid" a metric loss on the branch's embeddings.

    Embeddings are not normalized, except by the losses of angles: "circle", "arcface" and "cosface". The
    triplet loss is the mean over the triplets that violate the margin, and 0 if none does or the batch holds
    no triplet. "arcface" and "cosface" have weights of their own: pass `parameters()` to the optimizer.

    Args:
        task_type: "fgvc" or "reid".
        label_smoothing: In [0, 1].
        triplet_margin: Finite, >= 0; for "triplet" only.
        metric_loss: For "reid" only. "triplet" is batch-hard (Hermans et al., 2017), "soft_margin_triplet"
            the same with log(1 + exp(d_positive - d_negative)) as in TransReID; "circle" (m = 0.25, gamma =
            128), "arcface" and "cosface" are those of pytorch-metric-learning.
        num_classes: K; for "arcface" and "cosface" only.
        widths: The features E of each branch's embedding, by "sa", "glca", "pwca"; for "arcface" and
            "cosface" only.

    Raises:
        ValueError: Arguments outside their range, all of them at once.
    """

    def __init__(
        self,
        task_type: Task = "fgvc",
        label_smoothing: float = 0.0,
        triplet_margin: float = 0.3,
        metric_loss: MetricLoss = "triplet",
        *,
        num_classes: int | None = None,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        arguments = locals()
        has_weights = task_type == "reid" and metric_loss in CLASS_WEIGHTS
        rules = ARGUMENT_RULES | (CLASS_WEIGHT_RULES if has_weights else {})
        raise_faults(violations(arguments, rules))
        self.task_type = task_type
        self.label_smoothing = label_smoothing
        sizes = dict(widths or {}) if has_weights else dict.fromkeys(BRANCHES)
        self.metric = nn.ModuleDict()
        if task_type == "reid":
            for branch, width in sizes.items():
                self.metric[branch] = make_metric_loss(metric_loss, triplet_margin, num_classes, width)

    def forward(self, outputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return the scalar losses "sa", and "glca" and "pwca" of the branches that the model ran.

        Args:
            outputs: The model's outputs: {sa,glca,pwca}_logits (B, K), where all but sa are optional, and for
                "reid" {sa,glca,pwca}_features (B, N, C) with the class token in row 0. N may differ by
                branch. The metric loss takes {sa,glca,pwca}_embedding (B, E) where there is one.
            labels: (B,) int64 in [0, K), or for "fgvc" the probabilities of the classes (B, K).

        Raises:
            ValueError: Missing outputs, wrong shapes or dtypes, labels out of range (on a GPU the range is
                asserted without a host sync).
        """
        kinds = ("logits", "features", "embedding")
        present: list[str] = [
            b for b in BRANCHES if b == "sa" or any(f"{b}_{kind}" in outputs for kind in kinds)
        ]
        raise_faults(self._violations(outputs, labels, present))
        if not labels.is_floating_point():
            check_range("labels", labels, 0, outputs["sa_logits"].shape[1])
        return {branch: self._branch(outputs, labels, branch) for branch in present}

    def _branch(self, outputs: Mapping[str, Tensor], labels: Tensor, branch: str) -> Tensor:
        logits = outputs[f"{branch}_logits"]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.task_type == "fgvc":
            return loss
        x = outputs.get(f"{branch}_embedding")
        x = outputs[f"{branch}_features"][:, 0] if x is None else x
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # half-precision distances overflow
        return loss + self.metric[branch](x, labels)

    def _violations(self, outputs: Mapping[str, Tensor], labels: Tensor, present: Sequence[str]) -> list[str]:
        rules = {}
        for branch in present:
            rules[f"{branch}_logits"] = "floating-point (B, K)"
            if self.task_type == "reid" and f"{branch}_embedding" in outputs:
                rules[f"{branch}_embedding"] = f"floating-point (B, E_{branch})"
            elif self.task_type == "reid":  # GLCA's tokens may be fewer
                rules[f"{branch}_features"] = f"floating-point (B, N_{branch}, C)"
        if missing := [name for name in rules if name not in outputs]:
            return [f"outputs must hold {', '.join(missing)} for {self.task_type!r}, got {sorted(outputs)}"]
        tensors = {"labels": labels, **{f"outputs[{name!r}]": outputs[name] for name in rules}}
        named = {f"outputs[{name!r}]": rule for name, rule in rules.items()}
        soft = self.task_type == "fgvc" and isinstance(labels, Tensor) and labels.dim() == 2
        rule = "floating-point (B, K)" if soft and labels.is_floating_point() else "int64 (B,)"
        return tensor_violations(tensors, {"labels": rule, **named}, same_device=True)


def _branch_of(name: str) -> str:
    return str(name).removesuffix("_loss")


def _finite_numbers(count: int | None) -> Rule:
    """A sequence or 1-D tensor of `count` finite numbers; any number of them if None."""

    def holds(values: object) -> bool:
        try:
            tensor = torch.as_tensor(values, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            return False
        if tensor.dim() != 1 or not bool(tensor.isfinite().all()):
            return False
        return count is None or len(tensor) == count

    return holds, f"{'num_tasks' if count is None else count} finite numbers"
