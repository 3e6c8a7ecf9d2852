"""Parts of a trainer: the loss of a branch, and the optimizer of everything that learns."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from ..model import DualAttentionModel
from ..model.heads import width_of
from .loader import seed_of
from .losses import BranchLoss, MetricLoss, UncertaintyWeightedLoss


def make_branch_loss(
    model: DualAttentionModel, label_smoothing: float, metric_loss: MetricLoss, seed: int
) -> BranchLoss:
    """The loss of a branch, with the same initial weights in every process."""
    readouts = {"sa": model.sa_readout, "glca": model.glca_readout, "pwca": model.sa_readout}
    widths: dict[str, int] = {b: width_of(readouts[b], model.embed_dim) for b in model.branches}
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed_of(seed))
        return BranchLoss(
            model.task_type,
            label_smoothing,
            metric_loss=metric_loss,
            num_classes=model.num_classes,
            widths=widths,
        )


def prepared(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    branch_loss: BranchLoss,
    weighting: UncertaintyWeightedLoss,
    loss_weights_scale: float | None,
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """The model and the optimizer under Accelerate; the losses' own weights are in the optimizer, too.

    The last group is that of `weighting`. It has no decay; its rate is multiplied by `loss_weights_scale`.
    """
    parallel, joined = accelerator.prepare(model, optimizer)
    # Added after `prepare`, because FSDP2 accepts only parameters of the model.
    if own := list(branch_loss.parameters()):
        joined.add_param_group({"params": own})
    scale: dict[str, Any] = {} if loss_weights_scale is None else {"lr_scale": loss_weights_scale}
    joined.add_param_group({"params": list(weighting.parameters()), "weight_decay": 0.0, **scale})
    return parallel, joined
